"""When to stop timing a candidate, and which of the fastest differ. Pure: a stopwatch gives the samples.

Every function takes the seconds it may spend and the clock that counts them (``time.perf_counter``): a sample
may cost more than its milliseconds say, for the caches overwritten and the clones run beside it.
"""

from __future__ import annotations

import random
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy
from numpy.typing import NDArray

from autotune.data import Config, Timing
from autotune.protocol import Objective, Protocol
from autotune.rung import Rung

#: After so many runs, a candidate whose fastest is above this multiple of the best so far is dropped. A single run
#: may be an outlier; the last factor leaves room for a clock 20 % down in all three runs of a candidate 5 % off
#: the best (1.2 * 1.05 = 1.26).
SCREEN = ((1, 5.0), (2, 2.0), (3, 1.3))
#: Runs between two looks at the clock, and of a group while warming up.
GROUP = 3
#: Warm: the medians of two groups in a row differ by no more than this share.
STABLE = 0.02
#: Of the budget, what warming up may take at most.
WARM_UP_SHARE = 0.3
#: A full timing stops here: the fastest are timed again anyway.
MOST_RUNS = 50

#: Seconds planned for one problem's finalists.
FINAL_SECONDS = 2.0
#: Finalists: within 25 % of the fastest, for the best may have met a clock 20 % down; no more than 16.
FINAL_FACTOR, MOST_FINALISTS = 1.25, 16
LEAST_ROUNDS, MOST_ROUNDS = 8, 1000
#: Rounds before the first may be sent home: a median of 8 is too rough for that, and so is a 95 % quantile of 32.
FIRST_LOOK: Mapping[Objective, int] = {"throughput": 16, "latency": 64}
#: Resamples of the rounds: 500 give the 95 % interval to about a tenth of its width.
RESAMPLES = 500
#: Standard errors of their paired difference at which two configs are told apart. Not 1.96: the fastest of eight
#: equals is so by luck, and there are several looks. Of eight equals with 1 % noise, 2.0 ties 70 %, 3.0 ties 96 %.
APART = 3.0

Samples: typing.TypeAlias = NDArray[numpy.float64]


class Stopwatch(typing.Protocol):
    """Times one candidate on demand."""

    def sample(self, repeats: int) -> list[float]:
        """Milliseconds of the next ``repeats`` runs, in order."""
        ...


def summary(samples_ms: Sequence[float], protocol: Protocol) -> Timing:
    """Quantiles of the samples, between samples where they fall between; ``score_ms`` if it is not the median."""
    p20, median, p80 = (float(value) for value in numpy.quantile(samples_ms, (0.2, 0.5, 0.8)))
    score = None if protocol.objective == "throughput" else protocol.score(samples_ms)
    return Timing(median, p20, p80, len(samples_ms), str(protocol), score_ms=score)


def warm_up(
    stopwatch: Stopwatch, samples: list[float], limit_s: float, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Run groups of three until the medians of two in a row agree within 2 %, or ``limit_s`` have passed.

    :param samples: the runs so far, the first group; what is not warm yet is left out of the result.
    :return: the two groups that agree, else the last one.
    """
    started = clock()
    while clock() - started < limit_s:
        before, samples = samples, stopwatch.sample(GROUP)
        low, high = sorted((numpy.median(before), numpy.median(samples)))
        if high <= (1 + STABLE) * low:
            return before + samples
    return samples


def time_one(
    stopwatch: Stopwatch,
    protocol: Protocol,
    best_ms: float | None,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Timing, Rung]:
    """Time a candidate that was run before (verified, compiled); stop early when it is far from the best.

    Dropped (``Rung.SCREEN``, the Timing of the runs there are) after one run above 5 times ``best_ms``, two above
    twice, or three above 1.3 times. On recorded noise this drops fewer than one in 10,000 of the
    configs that are 5 % slower than the best (tests/test_timing.py holds it to that). Else (``Rung.TIMING``)
    it is warmed up and run up to 50 times, or until ``budget_s`` are spent, though once at least.

    :param best_ms: least score so far, None for the first candidate.
    """
    started = clock()
    samples: list[float] = []
    for runs, factor in SCREEN:
        samples += stopwatch.sample(runs - len(samples))
        if best_ms is not None and min(samples) > factor * best_ms:
            return summary(samples, protocol), Rung.SCREEN
        if clock() - started >= budget_s:
            return summary(samples, protocol), Rung.TIMING
    samples = warm_up(stopwatch, samples, WARM_UP_SHARE * budget_s, clock)
    while len(samples) < MOST_RUNS and clock() - started < budget_s:
        samples += stopwatch.sample(GROUP)
    return summary(samples, protocol), Rung.TIMING


def finalists(timings: Mapping[Config, Timing], budget_s: float) -> list[Config]:
    """Those worth timing in turns, fastest first: within 25 % of the fastest, 16 at most.

    No more than eight rounds of which fit ``budget_s``; the fastest two may take ten times that.
    """
    ranked = sorted(timings, key=lambda config: (timings[config].score, str(config)))
    chosen: list[Config] = []
    round_ms = 0.0
    for config in ranked[:MOST_FINALISTS]:
        score_ms = timings[config].score
        round_ms += score_ms
        too_long = LEAST_ROUNDS * round_ms > budget_s * 1e3 * (1 if len(chosen) >= 2 else 10)
        if too_long or score_ms > FINAL_FACTOR * timings[ranked[0]].score:
            break
        chosen.append(config)
    return chosen


def time_in_turns(
    stopwatches: Mapping[Config, Stopwatch],
    protocol: Protocol,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Config, Timing]:
    """Time configs against each other: each once a round, in an order shuffled anew by a fixed seed.

    What is slow for a while (drift, throttling, a clock of two speeds) then hits all alike, and cancels: for
    throughput, ``score_ms`` is the fastest's median times the median ratio of the two in the rounds that both
    ran (for one sent home, by way of the one that did it). A tail is ranked as it is. A config differs from the
    fastest if it is slower by more than 3 standard errors of their paired difference (bootstrap over rounds);
    all that don't share the fastest's score as ``rank_ms``. ``low_ms`` and ``high_ms`` are the 95 % interval of
    the score with the rounds as they came.

    Looks at 16, 32, 64, ... rounds (a tail: from 64 on) send home what differs from the fastest, so that the
    close ones get the time; it ends with one left, 1000 rounds or ``budget_s``. Eight rounds are run whatever
    they cost, for fewer call chance a difference. The same samples give the same result.
    """
    if not stopwatches:
        return {}
    samples: dict[Config, list[float]] = {config: [] for config in sorted(stopwatches, key=str)}
    racing = list(samples)
    home: dict[Config, tuple[float, Config]] = {}
    order = random.Random(0)
    started = clock()
    rounds = 0
    while rounds < LEAST_ROUNDS or (len(racing) > 1 and rounds < MOST_ROUNDS and clock() - started < budget_s):
        for config in order.sample(racing, len(racing)):
            samples[config] += stopwatches[config].sample(1)
        rounds += 1
        if rounds >= FIRST_LOOK[protocol.objective] and rounds.bit_count() == 1:
            fastest, found = _compared(samples, racing, protocol)
            home |= {config: (found[config].ratio, fastest) for config in racing if not found[config].tied}
            racing = [config for config in racing if found[config].tied]
    fastest, found = _compared(samples, racing, protocol)
    least_ms = protocol.score(samples[fastest])
    # Medians of ratios are not transitive: one may be below 1, which is a tie.
    score_ms = {config: least_ms * max(1.0, found[config].ratio) for config in racing}
    for config, (ratio, than) in reversed(home.items()):
        score_ms[config] = ratio * score_ms[than]  # whoever sent it home went later, or stayed
    tied = {config for config in racing if found[config].tied}
    return {
        config: _timing(mine, score_ms[config], least_ms if config in tied else score_ms[config], protocol)
        for config, mine in samples.items()
    }


@dataclass(frozen=True)
class _Against:
    """One config against another: their scores' ratio, and whether it may as well be 1 or less."""

    ratio: float
    tied: bool


def _against(mine: Sequence[float], other: Sequence[float], protocol: Protocol) -> _Against:
    """Over the same rounds."""
    samples = numpy.array([mine, other])
    if protocol.objective == "throughput":
        samples = samples / samples[1]  # paired; a tail's spikes are its own, and stay as they are
    ratio = _ratio(samples, protocol)
    error = numpy.log(_ratio(samples[:, _drawn(len(mine))], protocol)).std()
    # 1e-9: without noise, equal times may differ by rounding.
    return _Against(float(ratio), bool(numpy.log(ratio) <= APART * error + 1e-9))


def _ratio(samples: Samples, protocol: Protocol) -> Samples:
    """Of the scores of two configs (first axis) over rounds (last axis)."""
    mine, other = numpy.quantile(samples, protocol.quantile, axis=-1)
    return numpy.asarray(mine / other)


def _drawn(rounds: int) -> NDArray[numpy.int64]:
    """Indices of rounds drawn with replacement: a row for each resample, the same ones at every call."""
    return numpy.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))


def _compared(
    samples: Mapping[Config, Sequence[float]], racing: Sequence[Config], protocol: Protocol
) -> tuple[Config, dict[Config, _Against]]:
    """The fastest of those that ran every round, and each of them against it."""
    guess = min(racing, key=lambda config: protocol.score(samples[config]))
    # By pairs with it: its own median may be in the other mode of a clock of two speeds.
    first = {config: _against(samples[config], samples[guess], protocol).ratio for config in racing}
    fastest = min(racing, key=first.__getitem__)
    return fastest, {config: _against(samples[config], samples[fastest], protocol) for config in racing}


def _timing(samples_ms: Sequence[float], score_ms: float, rank_ms: float, protocol: Protocol) -> Timing:
    again = numpy.quantile(numpy.array(samples_ms)[_drawn(len(samples_ms))], protocol.quantile, axis=1)
    low_ms, high_ms = (float(value) for value in numpy.quantile(again, (0.025, 0.975)))
    return replace(
        summary(samples_ms, protocol),
        score_ms=score_ms,
        # Of the rounds as they came, which the paired score may leave by a little.
        low_ms=min(low_ms, score_ms),
        high_ms=max(high_ms, score_ms),
        rank_ms=rank_ms,
    )
