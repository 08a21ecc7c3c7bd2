"""The Pareto front: what nothing else beats on both counts, and its picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tsexp.report.console import ESTIMATE
from tsexp.report.figures import COLOURS, save
from tsexp.report.store import Row


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising cost.

    Parameters
    ----------
    points
        (gain, cost) of each: gain is better high, cost is better low. A point dominates another if it is no worse in both and better
        in one; equal points do not dominate each other. A point with a NaN is on no front and dominates nothing.

    Returns
    -------
    list of int
        Indices into `points`.
    """
    kept: list[int] = []
    there = [i for i, point in enumerate(points) if all(v == v for v in point)]
    for i in sorted(there, key=lambda i: (points[i][1], -points[i][0])):
        if not kept or points[i][0] > points[kept[-1]][0] or points[i] == points[kept[-1]]:
            kept.append(i)
    return kept


def energy_front(rows: Sequence[Row]) -> set[str]:
    """Run ids of the valid rows on the front of accuracy and energy per inference; each source of energy has a front of its own."""
    return {members[i].run_id for members in _by_source(rows).values() for i in front([_point(r) for r in members])}


def front_figure(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw accuracy against energy per inference: the front as a step line with names, what it dominates in grey.

    Returns
    -------
    Path or None
        `path`, or None if there is no valid row to draw.
    """
    from matplotlib.figure import Figure

    groups = _by_source(rows)
    if not groups:
        return None
    figure = Figure(figsize=(7.5, 4.2 * len(groups)), layout="constrained")
    # Measured and estimated energy never share an axis.
    for axis, (source, members) in zip(figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True):
        mark = ESTIMATE if not members[0].measured else ""
        points = [_point(r) for r in members]
        best = front(points)
        scale, unit = (1e-3, "mJ") if max(cost for _, cost in points) >= 1e-3 else (1e-6, "µJ")
        others = [p for i, p in enumerate(points) if i not in best]
        if others:
            axis.plot([c / scale for _, c in others], [100 * g for g, _ in others], "o", color="0.7", ms=5, label="dominated")
        steps = [(points[i][1] / scale, 100 * points[i][0]) for i in best]
        axis.step(*zip(*steps, strict=True), where="post", color=COLOURS[0], marker="o", ms=6, label="Pareto front")
        told: set[str] = set()
        for i, (x, y) in zip(best, steps, strict=True):
            if members[i].run_id not in told:
                told.add(members[i].run_id)
                axis.annotate(_short(members[i].name), (x, y), xytext=(5, -3), textcoords="offset points", fontsize=6.5, va="top")
        axis.set(xscale="log", xlabel=f"energy per inference{mark} ({unit}, {source})", ylabel="test accuracy (%)")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="both", labelsize=7)
        axis.margins(x=0.25)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    estimated = any(not r.measured for members in groups.values() for r in members)
    note = "chosen on the very series that it is scored on: optimistic" + (f"; {ESTIMATE} estimated from CPU time" if estimated else "")
    figure.supxlabel(note, fontsize=7, color="0.4", x=0.01, ha="left")
    save(figure, path)
    return path


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.valid:
            groups[row.tags["tsexp.energy_source"]].append(row)
    return dict(sorted(groups.items()))


def _point(row: Row) -> tuple[float, float]:
    return row.metrics["test/accuracy"], row.metrics["energy/per_inference_j"]


def _short(name: str) -> str:
    """The values that a job's name is made of."""
    return " ".join(part.split("=", 1)[-1] for part in name.split())
