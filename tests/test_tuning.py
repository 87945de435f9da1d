import json
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

import autotune
from autotune import device, registry, tuner, tuning
from autotune.candidate import Measured
from autotune.data import Config, Failure, Problem, Reason, Timing, UsageError
from autotune.rung import Rung
from autotune.store import Store
from autotune.summary import Job
from autotune.targets.target import TargetError
from autotune.tuning import sweep

GEMM = registry.load("gemm")
PROBLEM = GEMM.kernel.parse("M=64,N=64,K=64,dtype=float32")
OTHER = GEMM.kernel.parse("M=128,N=64,K=64,dtype=float32")
# On a GPU, for spaces of some size.
H100 = device.profile("h100")
LARGE = [GEMM.kernel.parse(f"M={m},N=4096,K=4096,dtype=float16") for m in (2048, 4096)]


@dataclass
class FakeTarget:
    """Times a config by its tile sizes, fails BLOCK_K=16, and can be told to stop everything."""

    name: str = "interpreter"
    device: object = device.INTERPRETER
    protocol: str = "wall-throughput-2"
    triton: str = "3.9.0"
    torch: str = "2.13.0"
    calls: list = field(default_factory=list)
    stop_after: int = 10**9
    ahead: int = 0
    turns: list = field(default_factory=list)

    def load(self, name, problem=None):
        return registry.load(name)

    def announce(self, entry, problem, config):
        pass

    def evaluate(self, entry, problem, config, best_ms=None):
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append((problem, config))
        if config["BLOCK_K"] == 16:
            return Measured(Failure(Reason.WRONG, "off by 16", self.protocol), Rung.VERIFY)
        ms = self.milliseconds(config)
        return Measured(Timing(ms, ms, ms, 3, self.protocol), Rung.TIMING, {"verify": 0.5, "timing": 0.25})

    def milliseconds(self, config):
        return 1000.0 / config["BLOCK_M"] / config["BLOCK_N"]

    def evaluate_in_turns(self, entry, problem, configs):
        """All a tenth slower than before; those of equal time are tied."""
        self.turns.append(set(configs))
        ms = {config: 1.1 * self.milliseconds(config) for config in configs}
        return {
            config: Timing(one, one, one, 9, self.protocol, score_ms=one, low_ms=one, high_ms=one, rank_ms=one)
            for config, one in ms.items()
        }


def swept(db_path, target, *problems, **options):
    with Store(db_path) as store:
        return sweep([Job("gemm", problem) for problem in problems or [PROBLEM]], target, store, **options)


def test_the_default_is_trial_one_and_the_summary_tells_the_best(db_path):
    target = FakeTarget()
    (summary,) = swept(db_path, target, trials=20)
    default = GEMM.space.default(PROBLEM, device.INTERPRETER)
    assert target.calls[0] == (PROBLEM, default)
    assert summary.default == default and isinstance(summary.default_outcome, Timing)
    best, timing = summary.best
    assert timing.median_ms <= summary.default_outcome.median_ms
    assert len(summary.outcomes) == summary.measured == len(target.calls) == 20
    assert set(summary.failures) == {Reason.WRONG}
    with Store(db_path, readonly=True) as store:
        (row,) = store.best()
        assert Config.parse(row["config"]) == best
        rows = list(store.rows())
    assert len(rows) == 20
    assert sum(row["reason"] == "WRONG" for row in rows) == summary.failures[Reason.WRONG] > 0


def test_a_stopped_sweep_resumes_and_repeats_nothing(db_path):
    first, second = FakeTarget(stop_after=7), FakeTarget()
    with pytest.raises(KeyboardInterrupt):
        swept(db_path, first, trials=20)
    (summary,) = swept(db_path, second, trials=20)
    assert len(first.calls) == 7 and len(second.calls) == 13
    assert not {config for _, config in first.calls} & {config for _, config in second.calls}
    assert len(summary.outcomes) == 20 and summary.measured == 13
    assert swept(db_path, FakeTarget(), trials=20)[0].measured == 0


def test_more_trials_continue_and_again_measures_anew(db_path):
    swept(db_path, FakeTarget(), trials=10)
    more, again = FakeTarget(), FakeTarget()
    swept(db_path, more, trials=15)
    assert len(more.calls) == 5
    (summary,) = swept(db_path, again, trials=10, again=True)
    assert len(again.calls) == summary.measured == len(summary.outcomes) == 10
    with Store(db_path, readonly=True) as store:
        assert len(list(store.rows())) >= 15


def test_other_code_starts_afresh(db_path, monkeypatch):
    swept(db_path, FakeTarget(), trials=5)
    changed = registry.Loaded(GEMM.entry, GEMM.kernel, GEMM.space, "another source")
    monkeypatch.setattr(registry, "load", lambda name: changed)
    with Store(db_path) as store:
        stale = Config.parse(store.best()[0]["config"])
    target = FakeTarget()
    swept(db_path, target, trials=5)
    assert len(target.calls) == 5
    # The default comes first, what won before right after it (unless it is the default).
    assert stale in [config for _, config in target.calls[:2]]


class Clock:
    """Stands still but for what trials take."""

    now = 0.0

    def monotonic(self):
        return self.now


class TimedTarget(FakeTarget):
    """Each trial takes a second of the clock."""

    def evaluate(self, entry, problem, config, best_ms=None):
        tuning.time.now += 1.0
        return super().evaluate(entry, problem, config, best_ms)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(tuning, "time", clock)
    monkeypatch.setattr(tuner, "time", clock)
    return clock


def test_a_budget_stops_in_time_and_tells_what_was_not_reached(db_path, clock):
    target = TimedTarget()
    summaries = swept(db_path, target, PROBLEM, OTHER, budget_s=20)
    counts = [sum(problem == summary.problem for problem, _ in target.calls) for summary in summaries]
    assert len(summaries) == 2 and min(counts) >= 5 and 12 <= sum(counts) <= 20
    assert {summary.ended for summary in summaries} == {"the time is up"}
    assert clock.now <= 20
    # Where several are close, they had their turns from what was kept back.
    assert target.turns
    only = swept(db_path.with_name("other.db"), TimedTarget(), PROBLEM, OTHER, budget_s=2)
    assert [summary.problem for summary in only] == [PROBLEM]


def test_a_budget_ends_a_problem_that_promises_little_and_trials_bound_it_too(db_path, clock):
    target = TimedTarget(device=H100)
    (summary,) = swept(db_path, target, LARGE[0], budget_s=10_000)
    allowed = list(GEMM.space.allowed(LARGE[0], H100))
    assert summary.ended == "little is left to gain" and len(target.calls) < 0.2 * len(allowed)
    assert target.milliseconds(summary.best[0]) == min(map(target.milliseconds, allowed))
    (summary,) = swept(db_path.with_name("other.db"), TimedTarget(), PROBLEM, budget_s=10_000, trials=6)
    assert summary.ended == "6 trials are done" and summary.measured == 6


def test_the_budget_goes_where_the_model_spends_its_time(db_path, clock):
    target = TimedTarget(device=H100)
    with Store(db_path) as store:
        sweep([Job("gemm", LARGE[0], 1), Job("gemm", LARGE[1], 1000)], target, store, budget_s=24)
    spent = Counter(problem for problem, _ in target.calls)
    assert spent[LARGE[1]] > 2 * spent[LARGE[0]] > 0


def test_finalists_are_timed_again_in_turns_and_what_that_finds_is_stored(db_path):
    target = FakeTarget()
    (summary,) = swept(db_path, target, trials=20)
    best, timing = summary.best
    assert best in target.turns[0]
    assert timing.score == timing.rank_ms == pytest.approx(1.1 * target.milliseconds(best))
    with Store(db_path, readonly=True) as store:
        (row,) = store.best()
        assert Config.parse(row["config"]) == best and row["rung"] == "final" and row["low_ms"] is not None
        rungs = Counter(row["rung"] for row in store.rows())
        # Who proposed a config is known after its finals too.
        first = [row for row in store.rows() if json.loads(row["provenance"])["origin"] == "default"]
    assert [Config.parse(row["config"]) for row in first] == [summary.default]
    assert rungs == Counter({rung.value: count for rung, count in summary.settled.items() if count})
    assert summary.settled.total() == summary.measured == 20
    assert summary.settled[Rung.VERIFY] == summary.failures[Reason.WRONG] > 0
    assert summary.seconds["verify"] == pytest.approx(0.5 * (20 - summary.failures[Reason.WRONG]))


def test_a_config_left_out_of_the_finals_that_looks_faster_than_their_winner_gets_its_turn(db_path):
    class Lucky(FakeTarget):
        """The first finalists turn out half as fast as they looked; the others are as they were."""

        def evaluate_in_turns(self, entry, problem, configs):
            found = super().evaluate_in_turns(entry, problem, configs)
            ms = {
                config: timing.score * (2.0 if config in self.turns[0] else 1.0) for config, timing in found.items()
            }
            return {
                config: Timing(one, one, one, 9, self.protocol, score_ms=one, low_ms=one, high_ms=one, rank_ms=one)
                for config, one in ms.items()
            }

    target = Lucky(device=H100)
    (summary,) = swept(db_path, target, LARGE[0], trials=60)
    first, *others = target.turns
    assert others and not set().union(*others) <= first
    assert summary.best[0] not in first and summary.best[1].rank_ms is not None


def test_a_much_faster_config_found_later_races_the_old_winner(db_path):
    """More than a quarter faster than all others: there is nobody near it to be timed in turns with."""

    hidden = []

    class Hidden(FakeTarget):
        def milliseconds(self, config):
            return 0.001 if config in hidden else super().milliseconds(config)

    target = Hidden()
    swept(db_path, target, trials=12)
    tried = {config for _, config in target.calls}
    left = [config for config in GEMM.space.allowed(PROBLEM, device.INTERPRETER) if config not in tried]
    hidden.append(next(config for config in left if config["BLOCK_K"] != 16))
    (summary,) = swept(db_path, target, trials=10_000)
    assert summary.best[0] == hidden[0] and summary.best[1].rank_ms is not None
    with Store(db_path, readonly=True) as store:
        assert Config.parse(store.best()[0]["config"]) == hidden[0]


def test_finals_that_were_missed_are_made_up_for(db_path):
    class Stopped(FakeTarget):
        def evaluate_in_turns(self, entry, problem, configs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(db_path, Stopped(), trials=12)
    (summary,) = swept(db_path, FakeTarget(), trials=12)
    assert summary.measured == 0 and summary.best[1].rank_ms is not None
    third = FakeTarget()
    swept(db_path, third, trials=12)
    assert third.turns == []


def test_again_measures_first_what_the_database_serves(db_path):
    (before,) = swept(db_path, FakeTarget(), trials=20)
    target = FakeTarget()
    (summary,) = swept(db_path, target, trials=6, again=True)
    assert before.best[0] in [config for _, config in target.calls]
    with Store(db_path, readonly=True) as store:
        assert Config.parse(store.best()[0]["config"]) == summary.best[0]


def test_finalists_that_do_not_run_any_more_cost_the_others_little(db_path):
    class Tired(FakeTarget):
        def evaluate_in_turns(self, entry, problem, configs):
            if len(configs) > 4:
                raise TargetError("one of them crashed")
            return super().evaluate_in_turns(entry, problem, configs)

    (summary,) = swept(db_path, Tired(device=H100), LARGE[0], trials=60)
    assert summary.best[1].rank_ms is not None and summary.trouble is None


def test_a_problem_where_nothing_runs_does_not_eat_the_budget(db_path, clock):
    class Half(TimedTarget):
        def evaluate(self, entry, problem, config, best_ms=None):
            measured = super().evaluate(entry, problem, config, best_ms)
            wrong = Measured(Failure(Reason.WRONG, "always", self.protocol), Rung.VERIFY)
            return wrong if problem == LARGE[0] else measured

    target = Half(device=H100)
    with Store(db_path) as store:
        jobs = [Job("gemm", LARGE[0], 1000), Job("gemm", LARGE[1], 1)]
        summaries = sweep(jobs, target, store, budget_s=100)
    spent = Counter(problem for problem, _ in target.calls)
    assert spent[LARGE[0]] <= 30 and spent[LARGE[1]] >= 40
    assert summaries[0].best is None and summaries[1].best is not None


def test_a_problem_given_twice_is_tuned_once(db_path):
    target = FakeTarget()
    (summary,) = swept(db_path, target, PROBLEM, PROBLEM, trials=8)
    assert summary.job.calls == 2 and len(target.calls) == 8


@pytest.mark.parametrize("options", [{"trials": 0}, {"trials": -3}, {"budget_s": 0}, {"budget_s": -1}])
def test_impossible_requests_are_refused(db_path, options):
    with pytest.raises(UsageError, match="must be"):
        swept(db_path, FakeTarget(), **options)


def test_most_work_is_tuned_first():
    small, large = GEMM.kernel.parse("M=8,N=8,K=8,dtype=float32"), GEMM.kernel.parse("M=64,N=64,K=64,dtype=float32")
    jobs = [Job("gemm", small, 10), Job("gemm", large, 1)]
    assert [job.problem for job in tuning.most_work_first(jobs)] == [large, small]
    jobs = [Job("gemm", small, 1000), Job("gemm", large, 1)]
    assert [job.problem for job in tuning.most_work_first(jobs)] == [small, large]


def test_tune_in_the_interpreter_for_real_and_dispatch_on_the_winner(db_path):
    autotune.use(db_path)
    with pytest.warns(RuntimeWarning, match="no winners"):
        before = autotune.explain("gemm", str(PROBLEM))
    (summary,) = autotune.tune("gemm", str(PROBLEM), target="interpreter", trials=3, db=db_path)
    config, timing = summary.best
    assert timing.protocol == "wall-throughput-2" and timing.median_ms > 0.1
    after = autotune.explain("gemm", str(PROBLEM))
    assert (before.source, after.source, after.config) == ("default", "tuned", config)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    assert autotune.choose("gemm", a, b) == config


CRASHES = {
    "raises": ("raise OverflowError('too wide')", Reason.RUNTIME, "OverflowError: too wide"),
    "exits": ("import os; os._exit(3)", Reason.RUNTIME, "exited with status 3"),
    "crashes": ("import ctypes; ctypes.string_at(0)", Reason.RUNTIME, "killed by SIGSEGV"),
    "loops for ever": ("while True: pass", Reason.TIMEOUT, "not done in 4 s"),
    "is wrong": ("return GEMM.run(config, a, b) * 2", Reason.WRONG, "error"),
}


@pytest.mark.parametrize("case", CRASHES)
def test_a_candidate_that_misbehaves_is_a_row_and_the_sweep_goes_on(tmp_path, db_path, monkeypatch, case):
    """BLOCK_K=64 misbehaves, the other configs are gemm's own."""
    body, reason, detail = CRASHES[case]
    path = tmp_path / "crashing.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from autotune.kernels.gemm import KERNEL as GEMM\n"
        "def run(config, a, b):\n"
        "    if config['BLOCK_K'] == 64:\n"
        f"        {body}\n"
        "    return GEMM.run(config, a, b)\n"
        "KERNEL = replace(GEMM, run=run)\n"
    )
    monkeypatch.setattr(registry, "_registered", {})
    if case == "loops for ever":
        monkeypatch.setattr("autotune.targets.interpreter.TIMEOUT_SECONDS", 4.0)
    registry.register("crashing", str(path), "autotune.search_spaces.gemm")
    (summary,) = autotune.tune(
        "crashing", "M=32,N=32,K=64,dtype=float32", target="interpreter", trials=6, db=db_path
    )
    bad = {config: outcome for config, outcome in summary.outcomes.items() if config["BLOCK_K"] == 64}
    good = {config: outcome for config, outcome in summary.outcomes.items() if config["BLOCK_K"] != 64}
    assert bad and all(outcome.reason is reason and detail in outcome.detail for outcome in bad.values())
    assert good and all(isinstance(outcome, Timing) for outcome in good.values())
    with Store(db_path, readonly=True) as store:
        assert sum(row["reason"] == reason.value for row in store.rows()) == len(bad)


def test_a_problem_nobody_gave_is_refused():
    with pytest.raises(UsageError, match="no problem given for gemm; for example M="):
        autotune.tune("gemm")
    with pytest.raises(UsageError, match="unknown target 'tpu'"):
        autotune.tune("gemm", Problem(PROBLEM), target="tpu")
