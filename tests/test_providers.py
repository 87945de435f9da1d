"""Other roads to a kernel's result: measured in the same sweep, stored, served where they are faster, explained."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

import autotune
from autotune import device, registry
from autotune.candidate import Measured
from autotune.data import Config, Failure, Reason, Timing, Trial, UsageError
from autotune.decide import decide
from autotune.dispatch import Dispatcher
from autotune.report.write import write
from autotune.row import REQUIRED
from autotune.rung import Rung
from autotune.store import Store
from autotune.summary import Job
from autotune.targets import open_target
from autotune.tuner import Tuner
from autotune.tuning import sweep
from autotune.winners import Winner
from tests.test_tuning import FakeTarget

FILE = str(Path(__file__).parent / "doubling_kernel.py")
ADDITION = Config(provider="addition")
SMALL = Config(BLOCK=64)
H100 = device.profile("h100")
GRAPH, NATIVE = "cudagraph-throughput-2", "native-throughput-2"


@pytest.fixture(autouse=True)
def doubling(monkeypatch):
    monkeypatch.setitem(registry._registered, "doubling", registry.Entry("doubling", FILE, FILE))
    return registry.load("doubling")


class Bench(FakeTarget):
    """Says what each config takes; those it is told nothing of are wrong."""

    def __init__(self, **times_ms):
        super().__init__(name="cuda:0", device=H100, protocol=GRAPH)
        self.times_ms = times_ms
        self.best_ms = {}

    def evaluate(self, entry, problem, config, best_ms=None):
        self.calls.append((problem, config))
        self.best_ms[config] = best_ms
        if self.name_of(config) not in self.times_ms:
            return Measured(Failure(Reason.WRONG, "off", self.protocol), Rung.VERIFY)
        ms = self.milliseconds(config)
        return Measured(Timing(ms, ms, ms, 3, self.protocol), Rung.TIMING, {"timing": 0.25})

    def milliseconds(self, config):
        return self.times_ms[self.name_of(config)]

    def name_of(self, config):
        return config.provider or f"block{config['BLOCK']}"


def tuned(path, target, *densities, **options):
    jobs = [Job("doubling", registry.load("doubling").kernel.make(N=100, density=d)) for d in densities]
    with Store(path) as store:
        return sweep(jobs, target, store, **options)


def explained(path, density):
    loaded = registry.load("doubling")
    problem = loaded.kernel.make(N=100, density=density)
    return Dispatcher(path).explain_fully(loaded, problem, H100)


def recorded(path, density, times_ms, device=H100.key, protocol=GRAPH):
    """Rows as another machine wrote them: timed once each, and never in turns."""
    loaded = registry.load("doubling")
    problem = loaded.kernel.make(N=100, density=density)
    where = {"target": "cuda:0", "triton": "", "torch": "", "created_at": "2026-01-01"}
    with Store(path) as store:
        for config, ms in times_ms.items():
            outcome = Timing(ms, ms, ms, 3, protocol)
            store.record(Trial("doubling", loaded.source, problem, device, config, outcome, **where))


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


@pytest.mark.parametrize(
    ("kernel_ms", "told"),
    [
        (
            {20: 0.5},
            "the faster one is the kernel at every measured density: 20; "
            "by proportion the choice flips near density=40 (predicted)",
        ),
        # Seen from 20, the choice would flip where the kernel is known to win.
        (
            {20: 0.9, 50: 0.8},
            "the faster one is the kernel at every measured density: 20, 50; "
            "by proportion the choice flips near density=62.5 (predicted)",
        ),
        (
            {20: 0.1},
            "at every measured density: 20; by proportion it stays so to density=100 (predicted)",
        ),
        ({10: 0.5, 100: 0.9}, "the faster one is the kernel at every measured density: 10, 100"),
        (
            {20: 1.25, 50: 4.0},
            "the faster one is addition at every measured density: 20, 50; "
            "by proportion the choice flips near density=16 (predicted)",
        ),
        (
            {20: 4.0},
            "at every measured density: 20; by proportion it stays so to density=10 (predicted)",
        ),
        (
            {10: 2.0, 50: 0.5},
            "the choice has no one flip along density (measured): addition at 10, then the kernel at 50",
        ),
        (
            {10: 0.5, 20: 2.0, 50: 0.5, 100: 2.0},
            "(measured): the kernel at 10, then addition at 20, then the kernel at 50, then addition at 100",
        ),
    ],
)
def test_what_is_told_of_the_flip_holds_for_every_measured_density(db_path, kernel_ms, told):
    for density, ms in kernel_ms.items():
        recorded(db_path, density, {ADDITION: 1.0, SMALL: ms})
    assert all(explained(db_path, density).why.endswith(told) for density in kernel_ms)


def test_two_providers_are_told_apart(db_path):
    wrong = Config(provider="wrong")
    recorded(db_path, 20, {ADDITION: 1.0, wrong: 3.0, SMALL: 1.5})
    recorded(db_path, 100, {ADDITION: 1.0, wrong: 0.5, SMALL: 4.0})
    assert "addition at 20, then wrong at 100; by proportion" in explained(db_path, 20).why


def test_explain_tells_why_a_provider_is_not_in_the_race(db_path):
    tuned(db_path, Bench(addition=1.0, block64=0.5, block128=9.0), 20, trials=2)
    why = explained(db_path, 20).why
    assert "wrong failed: WRONG off; deadly failed: WRONG off; absent can't serve it: it is sold separately" in why
    # Nothing is measured there, but near it.
    why = explained(db_path, 50).why
    assert (
        "absent can't serve it: it is sold separately; not measured here: its providers addition, wrong, deadly"
        in why
    )


@pytest.mark.parametrize("addition_ms", [1.0, 1.2])
def test_a_tie_is_told_as_one(db_path, addition_ms):
    tuned(db_path, Tied(addition=addition_ms, block64=1.1, block128=9.0), 20, trials=2)
    choice = explained(db_path, 20)
    assert choice.config == (ADDITION if addition_ms == 1.0 else SMALL)
    assert "they can't be told apart" in choice.why


class Tied(Bench):
    def evaluate_in_turns(self, entry, problem, configs):
        ms = {config: self.milliseconds(config) for config in configs}
        low = min(ms.values())
        return {
            config: Timing(one, one, one, 9, GRAPH, score_ms=one, low_ms=one, high_ms=one, rank_ms=low)
            for config, one in ms.items()
        }


def test_rows_that_are_out_of_order_do_not_stop_explain(db_path):
    recorded(db_path, 20, {ADDITION: 1.0, SMALL: 0.5})
    columns = (*REQUIRED, "median_ms", "p20_ms", "p80_ms", "n")
    with closing(sqlite3.connect(db_path)) as connection, connection:
        for bad in (
            {"problem": "density=20"},
            {"config": "[]"},
            {"config": '{"BLOCK":128}', "median_ms": "soon"},
            {"protocol": "x"},
        ):
            picked = ", ".join(f"'{bad[name]}'" if name in bad else name for name in columns)
            row = f"select {picked} from trials where device = ? and problem = ? limit 1"
            names = ", ".join(columns)
            connection.execute(f"insert into trials ({names}) {row}", (H100.key, "N=100,density=20"))
    assert "the kernel takes 0.5 ms and addition 1 ms: the kernel is 2.00x as fast" in explained(db_path, 20).why


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
        (Config(provider="gone"), "is none of its providers: addition, wrong, deadly, absent"),
        (Config(provider="addition", BLOCK=64), "is none of its providers"),
    ],
)
def test_a_stored_provider_is_not_believed_blindly(doubling, config, why):
    problem = doubling.kernel.make(N=100, density=50)
    won = Winner(problem, doubling.source, config, 1.0, GRAPH, "")
    choice = decide(doubling, problem, H100, (won,))
    assert choice.source == "default" and why in choice.why


def test_where_the_winning_provider_cannot_serve_the_kernels_own_best_does(db_path, doubling):
    """Torch's parts differ from machine to machine, of one device too."""
    recorded(db_path, 50, {Config(provider="absent"): 1.0, Config(BLOCK=128): 2.0, SMALL: 3.0})
    choice = explained(db_path, 50)
    assert (choice.source, choice.config) == ("tuned", Config(BLOCK=128)) and "measured 2 ms" in choice.why
    # Nor does the sweep go on with it.
    (summary,) = tuned(db_path, Bench(block64=3.0, block128=2.0), 50, trials=2)
    assert summary.best[0] == Config(BLOCK=128) and Config(provider="absent") not in summary.providers


def test_below_the_density_that_a_provider_won_the_kernels_own_best_is_nearest(db_path):
    recorded(db_path, 50, {ADDITION: 1.0, Config(BLOCK=128): 2.0, SMALL: 3.0})
    choice = explained(db_path, 20)
    assert (choice.source, choice.config) == ("nearest", Config(BLOCK=128))
    assert "the winner of N=100,density=50 is addition, and at density=20 the kernel has less to do" in choice.why
    assert explained(db_path, 100).config == ADDITION


def test_the_interpreters_times_are_not_compared_with_torchs(db_path, doubling):
    problem = doubling.kernel.parse("N=100,density=50")
    with Store(db_path) as store, open_target("interpreter") as target:
        (summary,) = sweep([Job("doubling", problem)], target, store, trials=1)
        assert [row["config"] for row in store.best()] == [str(SMALL)]
    assert summary.best[0] == SMALL
    reasons = {"wrong": Reason.WRONG, "deadly": Reason.RUNTIME}
    assert {name: summary.providers[Config(provider=name)].reason for name in reasons} == reasons
    assert {outcome.protocol for outcome in summary.providers.values()} == {NATIVE}
    autotune.use(db_path)
    choice = autotune.explain("doubling", torch.randn(100), 50)
    assert choice.config == SMALL
    assert f"ms ({NATIVE}), which says nothing beside an interpreted kernel" in choice.why
    assert choice.why.endswith("where along density the choice flips only a GPU can tell")
    # There are more providers' rows than kernels'.
    with open_target(f"replay:{db_path}") as replay:
        assert replay.protocol == "wall-throughput-2" and replay.load("doubling").kernel.problems == (str(problem),)


def test_a_native_time_alone_is_no_winner(db_path):
    recorded(db_path, 50, {ADDITION: 0.001}, device="interpreter", protocol=NATIVE)
    autotune.use(db_path)
    assert autotune.choose("doubling", torch.randn(100), 50) == SMALL
    with pytest.raises(UsageError, match="failures only of kernels on interpreter; there is no time to replay"):
        open_target(f"replay:{db_path}")


def test_configs_are_screened_against_the_kernels_own_best(db_path):
    target = Bench(addition=0.001, block64=2.0, block128=3.0)
    tuned(db_path, target, 50, trials=2)
    assert target.best_ms[SMALL] is None and target.best_ms[Config(BLOCK=128)] == 2.0


def test_a_problem_that_only_a_provider_can_run_has_no_prospects(db_path, doubling):
    job = Job("doubling", doubling.kernel.parse("N=100,density=50"))
    with Store(db_path) as store:
        one = Tuner(job, Bench(addition=1.0), store, trials=2, seed=0, again=False)
        one.start()
        assert len(list(one.steps())) == 2
    assert one.summary.best[0] == ADDITION and one.prospect.best_ms is None


def test_no_provider_is_begun_when_the_time_is_up(db_path, doubling):
    target = Bench(addition=1.0, block64=2.0, block128=3.0)
    job = Job("doubling", doubling.kernel.parse("N=100,density=50"))
    with Store(db_path) as store:
        one = Tuner(job, target, store, trials=2, seed=0, again=False)
        one.start()
        next(one.steps(end=0.0))
        assert [config for _, config in target.calls] == [SMALL]
        next(one.steps())
    assert one.summary.best[0] == ADDITION


def test_dispatch_computes_by_the_provider_and_writes_where_asked(db_path):
    recorded(db_path, 50, {ADDITION: 1.0}, device="interpreter", protocol="wall-throughput-2")
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
    recorded(db_path, 50, {SMALL: 1.0}, device="interpreter", protocol="wall-throughput-2")
    recorded(db_path, 50, {ADDITION: 1.0}, device="interpreter", protocol=NATIVE)
    write(db_path, tmp_path / "report.html", tmp_path / "plots")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "proposed by a provider" in html and "provider=addition" in html
    # Of these the report would say that they are an interpreted kernel's.
    assert "wall-throughput-2" in html and NATIVE not in html
