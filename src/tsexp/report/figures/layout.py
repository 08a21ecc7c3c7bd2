"""Sizes, panels, legends, error bars and feet of the figures."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN_IN, PAGE_IN, PAGE_HIGH_IN = 3.4, 7.0, 8.6
"""Widths of a column and of a page of a paper, and what of its height a figure may take; inches."""
LINE_IN = 0.135
"""Height of a line of the foot."""
EDGE_IN = 0.03
"""Between the foot and the edge, however tall the figure."""
LETTERS_IN = 18.5
"""Letters of the foot, and of a legend, in an inch."""
HANDLE_IN = 0.4
"""Width of a legend's column beside its text."""
ROWS = 2
"""Rows of a legend that the panels leave room for."""


def sized(across: int, height_in: float) -> Figure:
    """An empty figure, as wide as a column for one panel, as a page for more."""
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN_IN if across == 1 else PAGE_IN, height_in))


def panels(
    names: Iterable[str], height_in: float, legend_in: float, share: bool = False
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel per name, three in a row at most; four are two rows of two."""
    names = list(names)
    across = 2 if len(names) == 4 else min(3, len(names))
    down = math.ceil(len(names) / across)
    figure = sized(across, height_in * down + legend_in + 0.35)
    grid = figure.subplots(down, across, squeeze=False, sharex=share, sharey=share)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    return figure, list(zip(names, grid.flat, strict=False))


def finish(
    figure: Figure,
    notes: Sequence[str],
    handles: Sequence[Any] = (),
    x: str = "",
    y: str = "",
    key: Sequence[str] = (),
) -> None:
    """Legend above; labels that all panels share below and at the left; key and small print at the foot.

    The figure grows for its foot.
    """
    small = wrapped(notes, figure.get_figwidth())
    lines = [part for line in key for part in _wrap(line, figure.get_figwidth(), indent="   ")]
    small_in = LINE_IN * (small.count("\n") + 1) + 0.05
    foot_in = small_in + (LINE_IN * len(lines) + 0.06 if lines else 0)
    label_in = 0.18 if x else 0.0
    ncols = _across(handles, figure.get_figwidth())
    more = math.ceil(len(handles) / ncols) - ROWS if figure.get_figwidth() >= PAGE_IN else 0
    height_in = figure.get_figheight() + foot_in + label_in + LINE_IN * max(0, more)
    figure.set_figheight(height_in)
    foot = (foot_in + label_in) / height_in
    figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))  # type: ignore[union-attr,call-arg]
    below: dict[str, Any] = {"fontsize": 7, "ha": "left", "va": "bottom"}
    figure.text(0.02, EDGE_IN / height_in, small, color="0.35", **below)
    if lines:
        figure.text(0.02, (small_in + EDGE_IN) / height_in, "\n".join(lines), color="0.1", **below)
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=ncols)
    if x:  # not a supxlabel: the layout puts that under the foot
        figure.text(0.55, (foot_in + 0.03) / height_in, x, fontsize=8, ha="center", va="bottom")
    if y:
        figure.supylabel(y, fontsize=8)


def _across(handles: Sequence[Any], width_in: float) -> int:
    """Columns of a legend, as many as fit, in rows that are as even as can be."""
    letters = [len(h.get_label()) for h in handles]
    for most in range(7 if width_in >= PAGE_IN else 3, 1, -1):
        rows = max(1, math.ceil(len(letters) / most))
        widest = [max(letters[i : i + rows]) for i in range(0, len(letters), rows)]
        if sum(widest) / LETTERS_IN + HANDLE_IN * len(widest) <= width_in:
            return max(1, len(widest))
    return 1


def wrapped(notes: Sequence[str], width_in: float) -> str:
    """The notes as one paragraph that is as wide as the figure."""
    return "\n".join(_wrap(" ".join(notes), width_in))


def _wrap(text: str, width_in: float, indent: str = "") -> list[str]:
    return textwrap.wrap(text, int(LETTERS_IN * width_in), subsequent_indent=indent)


def readable_on(colour: Any) -> str:
    """Black or white: what can be read on this colour (red, green, blue)."""
    return "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5 else "white"


def around(p: pd.Series, value: str) -> list[list[float]]:
    """Lengths of the error bars of one point, below and above."""
    return [[max(0.0, p[value] - p[f"{value}_lo"])], [max(0.0, p[f"{value}_hi"] - p[value])]]


def warn(axes: Axes, x: float, y: float, colour: str = "white") -> None:
    """Put the dot of a warning into a marker."""
    axes.plot(x, y, marker="o", ms=1.6, mfc=colour, mec=colour, mew=0, ls="none", zorder=4)


def of_two_seeds(shown: pd.DataFrame, value: str) -> pd.Series:
    """Points whose interval is of two seeds; only those with valid energy count, but for accuracy."""
    return shown["n" if value.startswith("accuracy") else "n_energy"] == 2


def frame(axes: Axes, shown: pd.DataFrame, value: str, *levels: float) -> None:
    """Limits that hold all points, these levels and all bars.

    Those of two seeds may leave the panel: they would hide the rest. Of a logarithmic axis, the margins are
    factors.
    """
    sure = shown[~of_two_seeds(shown, value)]
    inside = [*shown[value], *sure[f"{value}_lo"], *sure[f"{value}_hi"], *levels]
    low, high = (f(v for v in inside if not math.isnan(v)) for f in (min, max))
    if axes.get_yscale() == "log":
        margin = (high / low) ** 0.12 if high > low else 1.5
        axes.set_ylim(low / margin, high * margin)
    else:
        margin = 0.12 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)


def prefix(joules: float) -> tuple[float, str]:
    """Factor and unit in which so many joules are a number of at least 1."""
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "µJ")):
        if joules * factor >= 1:
            return factor, unit
    return 1e9, "nJ"
