"""Plots as SVG that can stand inside a page, by matplotlib: no file, no display, the same for the same figures.

Text stays text, in the reader's own font, and a plot is drawn for the width of a phone.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge_embed.errors import MissingExtraError

_SIZE_INCHES = (5.2, 3.3)
_COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b", "#dc2626", "#0891b2")
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e8f0",
    "text.color": "#334155",
    "axes.labelcolor": "#334155",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Series:
    """Named points; ``marked`` ones are drawn larger, those of one ``colour`` alike in all plots of a page."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False
    colour: int = 0


def check_plots() -> None:
    """Raise MissingExtraError where matplotlib is not installed."""
    _figure_class()


def points(series: Sequence[Series], x: str, y: str, key: str) -> str:
    """Return a scatter of single points, each with its name beside it."""
    with _styled(x, y, key) as (figure, axes):
        for place, one in enumerate(series):
            axes.scatter(one.x, one.y, s=110 if one.marked else 45, color=_colour(one), zorder=3)
            weight = "bold" if one.marked else "normal"
            # By turns above and below: two codecs may be almost alike.
            offset = (7, -13) if place % 2 else (7, 6)
            for at in zip(one.x, one.y, strict=True):
                axes.annotate(_plain(one.name), at, offset, textcoords="offset points", fontsize=9, fontweight=weight)
        axes.margins(0.18, 0.15)
        return _svg(figure)


def lines(
    series: Sequence[Series], x: str, y: str, key: str, *, log: bool = False, ticks: Sequence[str] | None = None
) -> str:
    """Return lines with a legend; with ``ticks``, points on lines over so many named places."""
    with _styled(x, y, key) as (figure, axes):
        for one in series:
            axes.plot(
                one.x,
                one.y,
                color=_colour(one),
                lw=2.4 if one.marked else 1.4,
                marker="o" if ticks else None,
                ms=7 if one.marked else 5,
                label=_plain(one.name),
            )
        if log:
            axes.set_yscale("log")
        if ticks:
            axes.set_xticks(range(len(ticks)), [_plain(tick) for tick in ticks])
        axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return _svg(figure)


def _colour(one: Series) -> str:
    return _COLOURS[one.colour % len(_COLOURS)]


def _plain(text: str) -> str:
    # matplotlib would set what stands between two dollars as mathematics.
    return text.replace("$", r"\$")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "report", "drawing a report") from error
    return Figure


@contextlib.contextmanager
def _styled(x: str, y: str, key: str) -> Iterator[tuple[Any, Any]]:
    """Give a figure and its axes; ``key`` keeps the ids of two plots on a page apart, and leaves nothing to chance."""
    figure_class = _figure_class()
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key, "svg.id": key}):
        figure = figure_class(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield figure, axes


def _svg(figure: Any) -> str:
    """Return the plot as an element."""
    import matplotlib

    key = matplotlib.rcParams["svg.id"]
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # The page scales the plot; ids of two plots must differ.
    svg = re.sub(r' (?:width|height)="[0-9.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
