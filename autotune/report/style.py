"""One look for all plots, and how a figure becomes a PNG file or part of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

#: Names of the page's style sheet. Data colours are Okabe and Ito's, which the colour-blind can tell apart.
COLOURS: Mapping[str, str] = {
    "ink": "#1f2933",
    "muted": "#6b7785",
    "rule": "#d5dbe1",
    "plain": "#b6c0ca",
    "tuned": "#0072b2",
    "best": "#d55e00",
    "seed": "#009e73",
    "failed": "#cc79a7",
}
#: The same on a dark page; data colours lighter, for contrast.
DARK: Mapping[str, str] = {
    "ink": "#e4e8ec",
    "muted": "#98a4b0",
    "rule": "#38424c",
    "plain": "#5b6773",
    "tuned": "#56b4e9",
    "best": "#f28e4d",
    "seed": "#35c59b",
    "failed": "#e3a4c6",
}
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["plain"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["plain"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["plain"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
#: Pixels per inch of the PNG files.
DPI = 144
_ID = re.compile(
    r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend|[A-Za-z]+Collection)_\d+"'
)


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Draw and save inside. ``name`` keeps apart the marks that plots of one page define."""
    with matplotlib.rc_context({**_RC, "svg.hashsalt": name}):
        yield


def save_png(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, facecolor="white")


def to_svg(figure: Figure) -> str:
    """An ``<svg>`` element whose colours are the page's, light or dark."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = text.getvalue()
    # The page needs no XML prologue, and names like axes_1 would be there once per plot.
    svg = _ID.sub("", svg[svg.index("<svg") :])
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def log_milliseconds(axes: Axes, low_ms: float, high_ms: float) -> None:
    """A logarithmic time axis from below ``low_ms`` to above ``high_ms``, with ticks that say plain numbers."""
    axes.set_yscale("log")
    # Equal times still get an axis of 20 %: no tick could tell less apart.
    middle_ms, span = (low_ms * high_ms) ** 0.5, max(high_ms / low_ms, 1.2)
    low_ms, high_ms = middle_ms / span**0.58, middle_ms * span**0.58
    axes.set_ylim(low_ms, high_ms)
    if span < 3:
        # Within one power of ten a logarithmic locator finds no tick at all.
        axes.yaxis.set_major_locator(FixedLocator(MaxNLocator(5).tick_values(low_ms, high_ms)))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axes.grid(axis="y")
