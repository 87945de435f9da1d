"""The plots, each from the studies alone. Call inside :func:`autotune.report.style.styled`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from autotune.data import Failure
from autotune.report import words
from autotune.report.study import Section, Step, Study, Timed
from autotune.report.style import COLOURS, log_milliseconds

#: Inches: what a page of 1100 CSS pixels shows at full size.
WIDTH = 11.4
#: Bars of one plot; a longer list is read in the table.
BARS = 30
#: Marks of one plot that are drawn as shapes; more of them make a page heavy and become a picture.
SHAPES = 400
_ORIGINS = (
    ("default", "D", "ink"),
    ("seed", "^", "seed"),
    ("search", "o", "tuned"),
    ("provider", "D", "plain"),
    ("not recorded", "o", "muted"),
)


def gains(section: Section) -> Figure | None:
    """Tuned time as a share of the default's, a bar per problem; None if no problem has both."""
    rated = [(study, study.gain) for study in section.counted if study.gain is not None][:BARS]
    if not rated:
        return None
    figure = Figure(figsize=(WIDTH, 0.85 + 0.3 * len(rated)), layout="constrained")
    axes = figure.subplots()
    places = range(len(rated))
    shares = [100 / gain for _, gain in rated]
    axes.barh(places, [100] * len(rated), height=0.62, color=COLOURS["rule"], label="default")
    axes.barh(places, shares, height=0.62, color=COLOURS["tuned"], label="tuned")
    for place, (study, gain) in enumerate(rated):
        assert study.best is not None  # it has a gain
        times = f"{words.milliseconds(study.default_ms)} → {words.milliseconds(study.best.timing.score)} ms"
        at = (max(100, shares[place]), place)
        axes.annotate(f"{times}, {words.gain(gain)}", at, (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [str(study.problem) for study, _ in rated])
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.set_ylim(len(rated) - 0.5, -0.5)
    axes.set_xlim(0, 1.45 * max(100, *shares))
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("tuned time, % of the default's", loc="left")
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
    return figure


def history(study: Study, importances: Mapping[str, float]) -> Figure:
    """Times in the order measured with the best so far; beside it the parameters' importances, if there are any.

    The study has a best.
    """
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    if importances:
        axes, beside = figure.subplots(1, 2, width_ratios=[3, 1])
        _importance_bars(beside, importances)
    else:
        axes = figure.subplots()
    assert study.best is not None
    numbers = [one.number for one in study.timed]
    axes.step(
        [*numbers, len(study.trials)], [*study.so_far(), study.so_far()[-1]], where="post", color=COLOURS["best"]
    )
    for origin, marker, colour in _ORIGINS:
        of_origin = [one for one in study.timed if origin_of(one) == origin]
        if of_origin:
            dots = _dots(axes, [(one.number, one.timing.score) for one in of_origin], colour, marker=marker)
            dots.set(label=origin, alpha=0.8, rasterized=len(study.timed) > SHAPES)
    if study.default_ms is not None:
        axes.axhline(study.default_ms, color=COLOURS["muted"], linestyle=(0, (4, 3)), linewidth=0.9)
    failed = [n for n, trial in enumerate(study.trials, start=1) if isinstance(trial.outcome, Failure)]
    if failed:
        ticks = _dots(axes, [(number, 0.03) for number in failed], "failed", marker="|")
        # x in trials, y from 0 at the bottom to 1 at the top
        ticks.set(label="failed", markeredgewidth=1.2, markersize=7, transform=axes.get_xaxis_transform())
    _mark_best(axes, study.best.number, study.best.timing.score)
    _times(axes, study)
    axes.set_xlim(0.2, len(study.trials) + 0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial, in the order measured")
    axes.set_ylabel("time, ms")
    axes.set_title("Best so far")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, borderaxespad=0, handletextpad=0.2)
    return figure


def parameters(study: Study, importances: Mapping[str, float]) -> Figure | None:
    """Each varied parameter against the time, the most important first; None if nothing was varied.

    The study has a best.
    """
    values = study.values()
    names = [*importances, *(name for name in values if name not in importances)]
    if not names:
        return None
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(WIDTH * columns / 4, 0.3 + 2.2 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.flat)
    assert study.best is not None
    for axes, name in zip(panels, names, strict=False):
        places = {value: place for place, value in enumerate(values[name])}
        for value, place in places.items():
            times = [one.timing.score for one in study.of_the_space if one.trial.config[name] == value]
            if not times:  # tried, and failed every time
                continue
            dots = _dots(axes, [(place, time) for time in times], "tuned")
            dots.set(alpha=0.45, rasterized=len(study.timed) * len(names) > SHAPES)
        if study.best.trial.config.provider is None:
            _mark_best(axes, places[study.best.trial.config[name]], study.best.timing.score)
        axes.set_xticks(list(places.values()), [str(value) for value in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
        axes.set_title(name)
    _times(panels[0], study)
    for axes in panels:
        axes.grid(axis="y")
    for axes in panels[::columns]:
        axes.set_ylabel("time, ms")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def ladder(steps: Sequence[Step]) -> Figure:
    """Per rung, the seconds spent and the candidates that ended there."""
    figure = Figure(figsize=(WIDTH, 0.9 + 0.28 * len(steps)), layout="constrained")
    spent, ended = figure.subplots(1, 2, sharey=True)
    places = range(len(steps))
    bars = spent.barh(places, [step.seconds for step in steps], height=0.62, color=COLOURS["tuned"])
    spent.bar_label(bars, [words.duration(step.seconds) if step.seconds else "0 s" for step in steps], padding=4)
    spent.set_title("Time spent, s")
    left = [0] * len(steps)
    for name, colour in (("timed", "tuned"), ("duplicates", "plain"), ("failed", "failed")):
        counts = [getattr(step, name) for step in steps]
        ended.barh(places, counts, left=left, height=0.62, color=COLOURS[colour], label=name)
        left = [before + count for before, count in zip(left, counts, strict=True)]
    for place, total in zip(places, left, strict=True):
        ended.annotate(str(total), (total, place), (4, 0), textcoords="offset points", va="center")
    ended.set_title("Candidates that ended here")
    ended.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ended.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
    spent.set_yticks(places, [step.rung.value for step in steps])
    spent.invert_yaxis()
    for axes in (spent, ended):
        axes.margins(x=0.16)
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    return figure


def origin_of(one: Timed) -> str:
    """Who proposed it: ``default``, ``seed``, ``search`` or ``provider``; ``not recorded`` for anything else."""
    origin = one.trial.provenance.get("origin")
    return str(origin) if origin in ("default", "seed", "search", "provider") else "not recorded"


def _importance_bars(axes: Axes, importances: Mapping[str, float]) -> None:
    bars = axes.barh(list(importances), [100 * share for share in importances.values()], color=COLOURS["tuned"])
    axes.bar_label(bars, [f"{100 * share:.0f} %" for share in importances.values()], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
    axes.set_title("Importance")
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _mark_best(axes: Axes, x: float, y_ms: float) -> None:
    ring = _dots(axes, [(x, y_ms)], "best")
    ring.set(markersize=9, markerfacecolor="none", markeredgewidth=1.6, clip_on=False, zorder=5)


def _dots(axes: Axes, points: Sequence[tuple[float, float]], colour: str, marker: str = "o") -> Line2D:
    (dots,) = axes.plot(
        *zip(*points, strict=True), marker=marker, linestyle="", markersize=4.5, color=COLOURS[colour]
    )
    dots.set_markeredgewidth(0)
    return dots


def _times(axes: Axes, study: Study) -> None:
    times = [one.timing.score for one in study.timed]
    log_milliseconds(axes, min(times), max(times))
