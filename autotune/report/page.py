"""The page: what was gained, whether it can be trusted, where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from autotune.data import Failure, Trial
from autotune.report import words
from autotune.report.study import Section, Study, steps
from autotune.report.style import COLOURS, DARK
from autotune.spelling import short

#: Configs listed for each problem.
FASTEST = 5


@dataclass(frozen=True)
class Plot:
    """A plot as the page shows it."""

    svg: str
    #: What it shows and how to read it; plain text.
    caption: str


@dataclass(frozen=True)
class Plots:
    """Those of the page, by what they are of."""

    sections: Mapping[Section, Sequence[Plot]]
    studies: Mapping[Study, Sequence[Plot]]


def render(database: str, found: Sequence[Section], plots: Plots, made_at: str) -> str:
    """One HTML page that needs nothing else.

    :param database: the file's name, as shown
    :param made_at: when the page was made, as shown
    """
    trials = [trial for section in found for trial in section.trials]
    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        **{"ms": words.milliseconds, "gain": words.gain, "duration": words.duration, "count": words.counted},
        **{"statistic": words.statistic, "clock": words.clock, "proposer": words.proposer, "short": short},
    )
    return environment.from_string(template).render(
        database=database,
        made_at=made_at,
        facts=facts(trials),
        sections=found,
        studies=[study for section in found for study in section.studies],
        plots=plots,
        markup=Markup,
        steps=steps,
        fastest=FASTEST,
        colours=COLOURS,
        dark=DARK,
    )


def facts(trials: Sequence[Trial]) -> dict[str, str]:
    """What the head of the page says of all trials together; at least one."""
    dates = sorted(trial.created_at[:16].replace("T", " ") for trial in trials)
    spent = sum(sum(trial.seconds.values()) for trial in trials)
    failed = sum(isinstance(trial.outcome, Failure) for trial in trials)
    several = {
        "Devices": {trial.device for trial in trials},
        "Kernels": {trial.kernel for trial in trials},
        "Triton": {trial.triton for trial in trials},
        "PyTorch": {trial.torch for trial in trials},
        "Driver": {trial.driver for trial in trials},
    }
    return {
        "Measured": f"{dates[0]} to {dates[-1]} UTC",
        **{name: ", ".join(sorted(values - {""})) for name, values in several.items() if values - {""}},
        "Trials": f"{len(trials)}, of which {failed} failed",
        "Measuring time": words.duration(spent),
    }
