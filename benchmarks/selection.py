"""How often the config that is really fastest wins: our timing beside the usual one, on simulated noise.

    python -m benchmarks.selection

40 configs: the best, 7 that are 1.2 to 6 % slower, 32 from 10 % up. Ours screens, times and takes turns, and the
winner is the database's: least rank, then config text. The usual way (``triton.testing.do_bench`` under an
autotuner) times each in a row and takes the least mean, here with as many runs in all. No device is timed:
the noise is that of tests/noisy_machine.py, its ``recorded`` kind drawn from tests/recorded_noise.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping

from autotune import timing
from autotune.data import Config
from autotune.protocol import Protocol
from tests.noisy_machine import TABLES, Machine, Noise

SCENARIOS: Mapping[str, Noise] = {
    "no noise": Noise(),
    "recorded": Noise(recorded=TABLES),
    "noisiest recorded": Noise(recorded=("dedispersion@A6000",)),
    "drift": Noise(std=0.01, drift=0.15),
    "throttling": Noise(std=0.01, slow=0.2, dwell_ms=200),
    "bimodal clock": Noise(std=0.01, slow=0.06, dwell_ms=20),
    "outliers": Noise(std=0.01, outliers=0.03),
}
THROUGHPUT = Protocol("wall", "throughput")
#: Seconds of simulated time, where a run takes about 1 ms: 50 runs of one, and 200 rounds of ten.
ONE_S, TURNS_S = 0.05, 2.0


def configs(seed: int) -> dict[Config, float]:
    """True milliseconds, in the order in which a search meets them. The best takes 1 ms."""
    draw = random.Random(seed)
    true_ms = [1.0, *(draw.uniform(1.012, 1.06) for _ in range(7)), *(draw.uniform(1.1, 3.0) for _ in range(32))]
    draw.shuffle(true_ms)
    return {Config(number=number): ms for number, ms in enumerate(true_ms)}


def ours(true_ms: Mapping[Config, float], machine: Machine) -> tuple[Config, set[Config]]:
    """The winner, and all that tie with it."""
    stopwatches = {config: machine.stopwatch(ms) for config, ms in true_ms.items()}
    timings = {}
    best_ms = None
    for config, stopwatch in stopwatches.items():
        timings[config], _ = timing.time_one(stopwatch, THROUGHPUT, best_ms, ONE_S, machine.clock)
        best_ms = min(found.score for found in timings.values())
    final = {config: stopwatches[config] for config in timing.finalists(timings, TURNS_S)}
    turns = timing.time_in_turns(final, THROUGHPUT, TURNS_S, machine.clock)
    winner = min(turns, key=lambda config: (turns[config].rank, str(config)))
    return winner, {config for config in turns if turns[config].rank == turns[winner].rank}


def in_a_row(true_ms: Mapping[Config, float], machine: Machine, runs: int) -> Config:
    """The least mean of ``runs`` in a row, each config after the other."""
    means = {config: statistics.fmean(machine.stopwatch(ms).sample(runs)) for config, ms in true_ms.items()}
    return min(means, key=means.__getitem__)


def measure(scenario: str, seeds: int) -> dict[str, float]:
    """Share of the seeds in which a method's winner is within 1 % of the best; ``tied``: mean size of the tie."""
    hits = {"ours": 0, "in a row": 0}
    tied = 0
    for seed in range(seeds):
        true_ms = configs(seed)
        machine = Machine(SCENARIOS[scenario], seed)
        winner, ties = ours(true_ms, machine)
        hits["ours"] += true_ms[winner] <= 1.01
        tied += len(ties)
        runs = -(-machine.runs // len(true_ms))
        hits["in a row"] += true_ms[in_a_row(true_ms, Machine(SCENARIOS[scenario], seed), runs)] <= 1.01
    return {**{method: count / seeds for method, count in hits.items()}, "tied": tied / seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50, help="sweeps simulated for each scenario")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    figures = {scenario: measure(scenario, options.seeds) for scenario in SCENARIOS}
    print(f"share of {options.seeds} sweeps whose winner is within 1 % of the best; configs tied with ours")
    print(f"{'':18} {'ours':>9} {'in a row':>9} {'tied':>6}")
    for scenario, row in figures.items():
        print(f"{scenario:18} {row['ours']:9.2f} {row['in a row']:9.2f} {row['tied']:6.1f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"seeds": options.seeds, "figures": figures}, file, indent=1)


if __name__ == "__main__":
    main()
