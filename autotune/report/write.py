"""Write the report of a database: a page, and its plots as files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from autotune import registry
from autotune.data import AutotuneError, UsageError
from autotune.report import plots, rows, words
from autotune.report.importance import FEWEST, importances
from autotune.report.page import Plot, Plots, render
from autotune.report.study import Section, Study, sections, steps
from autotune.report.style import save_png, styled, to_svg

#: Problems whose plots are drawn; the page of 100 drawn ones would be too heavy to open.
DRAWN = 20
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


def write(database: Path, output: Path, png: Path | None = None, kernel: str | None = None) -> Path:
    """Write the page to ``output`` and its plots to ``png``, else to ``<output stem>_plots`` beside it.

    :returns: the folder of the plots.
    :raises AutotuneError: if the database can't be read or has no trials (of ``kernel``).
    :raises UsageError: if the folder of ``output`` is not there.
    :raises OSError: if a file can't be written.
    """
    if kernel is not None:
        registry.load(kernel)
    trials = rows.read(database, kernel)
    if not trials:
        what = "no trials" if kernel is None else f"no trials of {kernel}"
        raise AutotuneError(f"database {database} has {what}; make some with `autotune tune`")
    known = {trial.kernel for trial in trials} & registry.entries().keys()
    found = sections(trials, {name: registry.load(name).source for name in known})
    folder = output.with_name(f"{output.stem}_plots") if png is None else png
    if not output.parent.is_dir():
        raise UsageError(f"no folder {output.parent} for {output.name}; make it, or name another --output")
    folder.mkdir(exist_ok=True)
    names = {
        study: f"{one:02}-{two:03}"
        for one, section in enumerate(found)
        for two, study in enumerate(section.studies)
    }
    shown = Plots(
        {section: _of_section(section, folder, f"{number:02}") for number, section in enumerate(found)},
        {study: _of_study(study, folder, names[study]) for study in drawn(found)},
    )
    now = datetime.now(timezone.utc).isoformat(sep=" ", timespec="minutes")
    output.write_text(render(str(database), found, shown, now.replace("+00:00", " UTC")), encoding="utf-8")
    return folder


def drawn(found: Sequence[Section]) -> list[Study]:
    """The DRAWN studies whose plots are worth their weight: present code first, and of each section the slowest."""
    ranked = [
        ((study.stale, place, number), study)
        for number, section in enumerate(found)
        for place, study in enumerate(section.studies)
        if study.best is not None
    ]
    return [study for _, study in sorted(ranked, key=lambda one: one[0])][:DRAWN]


def _of_section(section: Section, folder: Path, number: str) -> list[Plot]:
    climbed = steps(section.trials)
    found = _plot(
        *(folder, f"{number}-{section.kernel}-gains", partial(plots.gains, section)),
        "Shorter is better; 100 % is the default config of the same problem."
        + (f" The {plots.BARS} slowest of {len(section.counted)}." if len(section.counted) > plots.BARS else ""),
    )
    if climbed:
        found += _plot(
            *(folder, f"{number}-{section.kernel}-ladder", partial(plots.ladder, climbed)),
            "The rungs that a candidate climbs, cheapest first. Duplicates compile to the code of a config already"
            " measured.",
        )
    return found


def _of_study(study: Study, folder: Path, number: str) -> list[Plot]:
    shares = importances(study)
    name = f"{number}-{study.kernel}-{study.problem}"
    timed = words.counted(len(study.of_the_space), "timed trial")
    resting = f"Importance: what sets the fastest tenth apart (PED-ANOVA), from {timed}."
    few = f"No importances from {timed}; they need {FEWEST}."
    return [
        *_plot(
            *(folder, f"{name}-history", partial(plots.history, study, shares)),
            f"Dashed: the default. Ring: the best. {resting if shares else few}",
        ),
        *_plot(
            *(folder, f"{name}-parameters", partial(plots.parameters, study, shares)),
            "Each varied parameter against the time, "
            + ("the most important first" if shares else "in the config's order")
            + ". Ring: the best.",
        ),
    ]


def _plot(folder: Path, name: str, draw: Callable[[], Figure | None], caption: str) -> list[Plot]:
    """One plot, saved under ``name`` as a PNG file too; none if there is nothing to draw."""
    name = _UNSAFE.sub("-", name)[:120]
    with styled(name):
        figure = draw()
        if figure is None:
            return []
        save_png(figure, folder / f"{name}.png")
        return [Plot(to_svg(figure), caption)]
