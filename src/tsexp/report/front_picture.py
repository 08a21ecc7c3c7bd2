"""The picture of a search: accuracy against energy, and the Pareto front."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.report.console import ESTIMATE, chosen_by
from tsexp.report.constraints import Constraint
from tsexp.report.front import Candidate, best_of, by_source, candidates, judged_by
from tsexp.report.store import Row
from tsexp.report.style import COLOURS, log_axis, save
from tsexp.report.sweep_picture import subject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEY_WIDTH = 44
"""Characters in a line of the key."""
STAR: dict[str, Any] = {
    "ls": "none",
    "marker": "*",
    "ms": 11,
    "color": COLOURS[1],
    "mec": "black",
    "mew": 0.6,
}


def front_figure(rows: Sequence[Row], path: Path, constraints: Sequence[Constraint] = ()) -> Path | None:
    """Draw accuracy against energy per inference.

    The front as a step line with numbers, which the key beside it explains; what it dominates in grey, the
    controls as stars. Where the front was chosen on validation series, an open mark below or above each of
    its points is the accuracy on test series.

    Returns
    -------
    Path or None
        `path`, or None if there is no valid row to draw.
    """
    from matplotlib.figure import Figure

    groups = by_source(rows)
    if not groups:
        return None
    figure = Figure(figsize=(9.5, 4.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    # Measured and estimated energy never share an axis.
    for axes, (source, members) in zip(panels, groups.items(), strict=True):
        among = candidates(members, judged_by(rows), constraints)
        _panel(axes, source, among, judged_by(rows), members[0].measured)
    estimated = any(not r.measured for members in groups.values() for r in members)
    figure.suptitle(subject(rows), fontsize=10.5, x=0.01, ha="left")
    note = "\n".join(textwrap.wrap(chosen_by(rows), 150))
    note += f"; {ESTIMATE} estimated from CPU time" if estimated else ""
    figure.supxlabel(note, fontsize=7, color="0.4", x=0.01, ha="left")
    save(figure, path)
    return path


def _panel(axes: Axes, source: str, among: Sequence[Candidate], split: str, measured: bool) -> None:
    """One source of energy: the candidates, their front, and its key."""
    best = best_of(among)
    scale, unit = (1e3, "mJ") if max(c.cost for c in among) >= 1e-3 else (1e6, "µJ")
    mark = "" if measured else ESTIMATE

    def place(some: Sequence[Candidate]) -> tuple[list[float], list[float]]:
        return [scale * c.cost for c in some], [100 * c.gain for c in some]

    on_front = [among[i] for i in best]
    others = [c for i, c in enumerate(among) if c.run_id and c.allowed and i not in best]
    if beyond := [c for c in among if not c.allowed]:
        axes.plot(*place(beyond), "x", color="0.7", ms=5, label="breaks a constraint")
    if others:
        axes.plot(*place(others), "o", color="0.7", ms=5, label="dominated")
    axes.step(
        *place(on_front), where="post", color=COLOURS[0], marker="o", ms=6, label="Pareto front", zorder=3
    )
    if split == "val":
        _marks_of_test(axes, on_front, scale)
    stars = [c for c in among if not c.run_id]
    axes.plot(*place(stars), **STAR, label="control: dense, the same training", zorder=4)
    _number(axes, on_front, scale, f"{unit}{mark}")
    axes.set(
        xlabel=f"energy per inference{mark} ({unit}, {source})",
        ylabel=f"accuracy on {'validation' if split == 'val' else 'test'} series (%)",
    )
    log_axis(axes.xaxis, [scale * c.cost for c in among])
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best", framealpha=0.7)


def _marks_of_test(axes: Axes, on_front: Sequence[Candidate], scale: float) -> None:
    for k, c in enumerate(on_front):
        x = scale * c.cost
        axes.plot([x, x], [100 * c.gain, 100 * c.test], color="0.6", lw=0.8, ls=":", zorder=1)
        label = None if k else "the same on test series"
        axes.plot(x, 100 * c.test, "o", ms=5, mfc="white", mec=COLOURS[0], label=label)


def _number(axes: Axes, on_front: Sequence[Candidate], scale: float, unit: str) -> None:
    """Number the points of the front, and say beside the panel what each number is; equal ones once."""
    key: list[str] = []
    for number, c in enumerate(dict.fromkeys(c._replace(run_id="") for c in on_front), 1):
        spot = (scale * c.cost, 100 * c.gain)
        axes.annotate(str(number), spot, xytext=(-5, 4), textcoords="offset points", fontsize=8, ha="right")
        line = f"{number}  {c.name}: {spot[1]:.1f} %, {spot[0]:.3g} {unit}"
        key += textwrap.wrap(line, KEY_WIDTH, subsequent_indent="    ")
    axes.text(1.02, 1, "\n".join(key), transform=axes.transAxes, va="top", fontsize=7.5)
