"""Other roads to a kernel's result: measured in the same sweep, stored, served where they are faster, explained."""

from pathlib import Path

import pytest
import torch

import autotune
from autotune import device, registry
from autotune.candidate import Measured
from autotune.data import Config, Failure, Reason, Timing, Trial
from autotune.decide import decide
from autotune.dispatch import Dispatcher
from autotune.report.write import write
from autotune.rung import Rung
from autotune.store import Store
from autotune.summary import Job
from autotune.targets import open_target
from autotune.tuning import sweep
from autotune.winners import Winner
from tests.test_tuning import FakeTarget

FILE = str(Path(__file__).parent / "doubling_kernel.py")
ADDITION = Config(provider="addition")
SMALL = Config(BLOCK=64)
H100 = device.profile("h100")
GRAPH = "cudagraph-throughput-2"


@pytest.fixture(autouse=True)
def doubling(monkeypatch):
    monkeypatch.setitem(registry._registered, "doubling", registry.Entry("doubling", FILE, FILE))
    return registry.load("doubling")


class Bench(FakeTarget):
    """Says what each config takes."""

    def __init__(self, **times_ms):
        super().__init__(name="cuda:0", device=H100, protocol=GRAPH)
        self.times_ms = times_ms

    def evaluate(self, entry, problem, config, best_ms=None):
        self.calls.append((problem, config))
        if config.provider == "wrong":
            return Measured(Failure(Reason.WRONG, "off", self.protocol), Rung.VERIFY)
        ms = self.milliseconds(config)
        return Measured(Timing(ms, ms, ms, 3, self.protocol), Rung.TIMING, {"timing": 0.25})

    def milliseconds(self, config):
        return self.times_ms[config.provider or f"block{config['BLOCK']}"]


def tuned(path, target, *densities, **options):
    jobs = [Job("doubling", registry.load("doubling").kernel.make(N=100, density=d)) for d in densities]
    with Store(path) as store:
        return sweep(jobs, target, store, **options)


def explained(path, density):
    loaded = registry.load("doubling")
    problem = loaded.kernel.make(N=100, density=density)
    return Dispatcher(path).explain_fully(loaded, problem, H100)


def test_the_faster_road_is_served_and_the_slower_is_not(db_path):
    (summary,) = tuned(db_path, Bench(addition=1.0, block64=2.0, block128=3.0), 50, trials=2)
    # Not a config of the space, so not one of its trials; what it is failed for is on record.
    assert len(summary.outcomes) == summary.measured == 2 and summary.best[0] == ADDITION
    assert summary.providers[Config(provider="wrong")].reason is Reason.WRONG
    assert Config(provider="absent") not in summary.providers
    choice = explained(db_path, 50)
    assert (choice.source, choice.config) == ("tuned", ADDITION)
    assert "the kernel takes 2 ms and addition 1 ms: addition is 2.00x as fast" in choice.why
    tuned(other := db_path.with_name("other.db"), Bench(addition=4.0, block64=2.0, block128=3.0), 50, trials=2)
    assert explained(other, 50).config == SMALL


def test_a_provider_is_measured_once_and_timed_in_turns_with_the_configs(db_path):
    target = Bench(addition=1.0, block64=1.1, block128=3.0)
    tuned(db_path, target, 50, trials=2)
    assert {ADDITION, SMALL} <= target.turns[0]
    calls = len(target.calls)
    (summary,) = tuned(db_path, target, 50, trials=2)
    assert len(target.calls) == calls and summary.best[0] == ADDITION
    tuned(db_path, target, 50, trials=2, again=True)
    assert [config for _, config in target.calls[calls:]].count(ADDITION) == 1


def test_the_trial_says_what_it_was(db_path):
    tuned(db_path, Bench(addition=1.0, block64=2.0, block128=3.0), 50, trials=2)
    with Store(db_path, readonly=True) as store:
        rows = {row["config"]: row for row in store.rows()}
    assert '"origin":"provider"' in rows[str(ADDITION)]["provenance"].replace(" ", "")
    assert rows[str(ADDITION)]["protocol"] == rows[str(SMALL)]["protocol"] == GRAPH


def test_explain_tells_between_which_densities_the_choice_flips(db_path):
    for density, kernel_ms in ((10, 0.5), (20, 0.9), (50, 2.0), (100, 4.0)):
        tuned(db_path, Bench(addition=1.0, block64=kernel_ms, block128=9.0), density, trials=2)
    for density, config in ((10, SMALL), (20, SMALL), (50, ADDITION), (100, ADDITION)):
        choice = explained(db_path, density)
        assert choice.config == config
        flip = "the choice flips between density=20 and density=50 (measured), where addition takes over"
        assert choice.why.endswith(flip)


def test_where_no_flip_was_measured_one_is_predicted_and_said_to_be(db_path):
    tuned(db_path, Bench(addition=1.0, block64=0.5, block128=9.0), 20, trials=2)
    assert explained(db_path, 20).why.endswith(
        "the faster one is the kernel at every measured density: 20; "
        "by proportion the choice flips near density=40 (predicted)"
    )
    # Nothing is measured there, but near it.
    assert "not measured here: its providers addition, wrong, absent" in explained(db_path, 50).why


def test_an_untuned_problem_is_told_to_be_tuned(doubling):
    choice = explained(None, 50)
    assert choice.source == "default"
    assert choice.why.endswith("where along density the choice flips is not known: tune it at several")


def test_a_provider_that_won_is_served_at_larger_densities_but_not_at_smaller_ones(doubling):
    def choose(density, config):
        won = Winner(doubling.kernel.make(N=100, density=50), doubling.source, config, 1.0, GRAPH, "")
        return decide(doubling, doubling.kernel.make(N=100, density=density), H100, (won,))

    assert (choose(100, ADDITION).source, choose(100, ADDITION).config) == ("nearest", ADDITION)
    assert (choose(20, ADDITION).source, choose(20, ADDITION).config) == ("default", SMALL)
    for density in (20, 100):
        assert choose(density, Config(BLOCK=128)).config == Config(BLOCK=128)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Config(provider="absent"), "it is sold separately"),
        (Config(provider="gone"), "is none of its providers: addition, wrong, absent"),
        (Config(provider="addition", BLOCK=64), "is none of its providers"),
    ],
)
def test_a_stored_provider_is_not_believed_blindly(doubling, config, why):
    problem = doubling.kernel.make(N=100, density=50)
    won = Winner(problem, doubling.source, config, 1.0, GRAPH, "")
    choice = decide(doubling, problem, H100, (won,))
    assert choice.source == "default" and why in choice.why


def test_the_interpreters_times_are_not_compared_with_torchs(db_path, doubling):
    with Store(db_path) as store, open_target("interpreter") as target:
        (summary,) = sweep([Job("doubling", doubling.kernel.parse("N=100,density=50"))], target, store, trials=2)
    assert summary.best[0].provider is None
    assert summary.providers[ADDITION].protocol == "native-throughput-2"
    assert summary.providers[Config(provider="wrong")].reason is Reason.WRONG
    autotune.use(db_path)
    choice = autotune.explain("doubling", torch.randn(100), 50)
    assert choice.config == summary.best[0]
    assert "ms (native-throughput-2), which says nothing beside an interpreted kernel" in choice.why


def test_dispatch_computes_by_the_provider_and_writes_where_asked(db_path, doubling):
    with Store(db_path) as store:
        row = Timing(1.0, 1.0, 1.0, 3, "wall-throughput-2")
        store.record(
            Trial(
                *(
                    "doubling",
                    doubling.source,
                    doubling.kernel.parse("N=100,density=50"),
                    "interpreter",
                    ADDITION,
                    row,
                ),
                **{"target": "interpreter", "triton": "", "torch": "", "created_at": "2026-01-01"},
            )
        )
    autotune.use(db_path)
    x, out = torch.randn(100, requires_grad=True), torch.empty(100)
    result = autotune.run("doubling", x, 50)
    assert torch.equal(result, 2 * x) and result.grad_fn is None
    assert autotune.choose("doubling", x, 50) == ADDITION
    assert autotune.run("doubling", x, 50, out=out) is out and torch.equal(out, 2 * x)


def test_a_replay_answers_for_the_providers_that_were_recorded(db_path, tmp_path, doubling):
    tuned(db_path, Bench(addition=1.0, block64=2.0, block128=3.0), 50, trials=2)
    with Store(tmp_path / "again.db") as store, open_target(f"replay:{db_path}") as replay:
        (summary,) = sweep([Job("doubling", doubling.kernel.parse("N=100,density=50"))], replay, store, trials=2)
    assert summary.best[0] == ADDITION and summary.best[1].score == 1.0


def test_the_report_shows_a_provider_beside_the_configs(db_path, tmp_path):
    tuned(db_path, Bench(addition=1.0, block64=2.0, block128=3.0), 50, trials=2)
    write(db_path, tmp_path / "report.html", tmp_path / "plots")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "proposed by a provider" in html and "provider=addition" in html
