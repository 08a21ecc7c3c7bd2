"""What all pictures share: colours, marks, logarithmic axes, and how a picture is written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.system.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("tsexp.mplstyle")
# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow, faint on white; then
# as many more as there are models.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
COLOURS += ["#882255", "#8A8A00", "#6A3FC0", "#7FD13B", "#0F0FFF", "#FF1493", "#5C4033"]
MARKERS = "osD^vP*X"
LEAST = 1e-9
"""Stands for nothing where there is no logarithm of it."""


def log_axis(axis: Any, values: Iterable[float]) -> None:
    """Make an axis logarithmic, with plain numbers and as many of them as fit.

    Parameters
    ----------
    axis
        ``axes.xaxis`` or ``axes.yaxis``.
    values
        What is drawn along it; they decide which numbers are written.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    there = [v for v in values if v > 0]
    decades = math.log10(max(there) / min(there)) if there else 1.0
    subs = (1,) if decades > 1.8 else (1, 2, 5) if decades > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    # Of less than a factor of 3, the round numbers of a decade show one or none.
    axis.set_major_locator(LogLocator(subs=subs) if decades > 0.5 else MaxNLocator(4, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def relative(saving_pct: float) -> float:
    """Energy relative to the control, of a saving in percent: 0.25 of 75, and 8.5 of -750."""
    return max(1 - saving_pct / 100, LEAST)  # NaN stays


def save(figure: Figure, path: Path) -> None:
    """Write a picture as a whole or not at all; the name decides the format."""
    with whole(path) as partial:
        figure.savefig(partial, dpi=150, format=path.suffix.removeprefix("."))
