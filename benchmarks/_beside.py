"""Our configs and torch's ways to compute the same, timed in turns on the same inputs in a worker process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from autotune import measure
from autotune.data import Config, Failure, Outcome, Problem, Reason
from autotune.kernel import Tensors
from autotune.measure import Setting
from autotune.registry import Entry
from autotune.targets.target import Machine
from autotune.timing import FINAL_SECONDS, Stopwatch, time_in_turns
from autotune.verify import PIECE, as_tuple
from benchmarks._peers import UNLIKE, lacking, peer

#: Of the largest value, what a peer may be off: a coarse look at whether it computes the same thing at all.
SAME = 0.05


def time_beside(
    machine: Machine, entry: Entry, problem: Problem, configs: Sequence[Config], peers: Sequence[str]
) -> dict[Config | str, Outcome]:
    """An outcome for each config, all of them verified before, and for each peer, by its column.

    :raises TargetError: if the problem's inputs or references can't be had.
    """
    found = machine.attempt(_in_turns, entry, problem, configs, peers)
    if not isinstance(found, Failure):
        return found
    if not peers:
        return dict.fromkeys(configs, found)
    # Whatever it was that took the worker down, ours have run in it before.
    return {**time_beside(machine, entry, problem, configs, ()), **dict.fromkeys(peers, found)}


def _in_turns(
    entry: Entry, problem: Problem, configs: Sequence[Config], peers: Sequence[str], setting: Setting
) -> dict[Config | str, Outcome] | Failure:
    with measure.current(setting.where):
        oracle = measure.prepare(entry, problem, setting.seed, setting.where)

        def time_them() -> dict[Config | str, Outcome]:
            sets = setting.sets(oracle.inputs())
            stopwatches = {
                config: setting.stopwatch(partial(oracle.kernel.compute, config), sets) for config in configs
            }
            failures: dict[Config | str, Outcome] = {}
            labels = {Config(peer=column): column for column in peers}
            device = measure.versions(setting.where)[0]
            for label, column in labels.items():
                why_not = lacking(entry.name, oracle.kernel, column, problem, device)
                if why_not is not None:
                    failures[column] = Failure(Reason.RESOURCES, why_not, str(setting.protocol))
                    continue
                exact = None if column in UNLIKE else oracle.exact
                begun = _begin(peer(entry.name, oracle.kernel, column), exact, sets, setting)
                if isinstance(begun, Failure):
                    failures[column] = begun
                else:
                    stopwatches[label] = begun
            timings = time_in_turns(stopwatches, setting.protocol, FINAL_SECONDS)
            return {**{labels.get(key, key): timing for key, timing in timings.items()}, **failures}

        return measure.caught(time_them, setting.protocol)


def _begin(
    function: Callable[..., Any], exact: Tensors | None, sets: Sequence[tuple[Any, ...]], setting: Setting
) -> Stopwatch | Failure:
    """A stopwatch on a peer that runs here and gives what ours gives (``exact``, if it should); else why not."""
    with warnings.catch_warnings(record=True) as told:  # torch warns of each reason against a backend
        warnings.simplefilter("always")
        try:
            results = as_tuple(function(*sets[0]))
            off = 0.0 if exact is None else _off(results, exact)
            if not off <= SAME:
                text = f"its result is off by {off:.2g} of the largest value: it computes something else"
                return Failure(Reason.WRONG, text, str(setting.protocol))
            return setting.stopwatch(function, sets)
        # Whatever torch raises for want of a backend, of memory, of a dtype, or of a graph that can be captured: it
        # must not cost the other peers their times.
        except Exception as error:
            reason = Reason.RESOURCES if isinstance(error, torch.OutOfMemoryError) else Reason.RUNTIME
            text = "; ".join([measure.line(error), *(str(warning.message)[:200] for warning in told)])
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # raises where the device is lost to all, and not only to this peer
        torch.cuda.empty_cache()
    return Failure(reason, text, str(setting.protocol))


def _off(results: Tensors, exact: Tensors) -> float:
    """The largest error over the largest value; NaN where a result is. Further results of ours are not torch's."""
    pieces = zip(results[0].flatten().split(PIECE), exact[0].flatten().split(PIECE), strict=True)
    largest = [torch.stack([(ours - right).abs().max(), right.abs().max()]) for ours, right in pieces]
    error, size = torch.stack(largest).amax(0).tolist()  # which NaN passes through
    return float(error / size if size else error)
