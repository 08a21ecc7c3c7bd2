"""The Pareto front: what nothing else beats on both counts, and its picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tsexp.report.console import ESTIMATE, chosen_by
from tsexp.report.figures import COLOURS, save
from tsexp.report.store import Row


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other dominates, by rising cost.

    Parameters
    ----------
    points
        (gain, cost) of each: gain is better high, cost is better low. A point dominates another if it is no
        worse in both and better in one; equal points do not dominate each other. A point with a NaN is on no
        front and dominates nothing.

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
    """Run ids of the valid rows on the front of accuracy and energy per inference.

    Each source of energy has a front of its own.

    The accuracy is that on validation series; without any, that on test series, and then the front is
    optimistic. The controls take part.
    """
    of_validation = _of_validation(rows)
    out = set()
    for members in _by_source(rows).values():
        points = [_point(r, of_validation) for r in members] + [
            (gain, cost) for gain, _, cost in _controls(members, of_validation)
        ]
        out |= {members[i].run_id for i in front(points) if i < len(members)}
    return out


def front_figure(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw accuracy against energy per inference.

    The front as a step line with names, what it dominates in grey, the controls as stars.

    Where the front was chosen on validation series, an open mark below or above each of its points is the
    accuracy on test series.

    Returns
    -------
    Path or None
        `path`, or None if there is no valid row to draw.
    """
    from matplotlib.figure import Figure

    groups = _by_source(rows)
    if not groups:
        return None
    of_validation = _of_validation(rows)
    figure = Figure(figsize=(7.5, 4.2 * len(groups)), layout="constrained")
    # Measured and estimated energy never share an axis.
    for axis, (source, members) in zip(
        figure.subplots(len(groups), 1, squeeze=False)[:, 0], groups.items(), strict=True
    ):
        mark = ESTIMATE if not members[0].measured else ""
        controls = _controls(members, of_validation)
        points = [_point(r, of_validation) for r in members] + [(gain, cost) for gain, _, cost in controls]
        tests = [r.metrics["test/accuracy"] for r in members] + [test for _, test, _ in controls]
        names = [_short(r.name) for r in members] + ["control"] * len(controls)
        best = front(points)
        scale, unit = (1e-3, "mJ") if max(cost for _, cost in points) >= 1e-3 else (1e-6, "µJ")
        others = [p for i, p in enumerate(points[: len(members)]) if i not in best]
        if others:
            axis.plot(
                [c / scale for _, c in others],
                [100 * g for g, _ in others],
                "o",
                color="0.7",
                ms=5,
                label="dominated",
            )
        steps = [(points[i][1] / scale, 100 * points[i][0]) for i in best]
        axis.step(
            *zip(*steps, strict=True), where="post", color=COLOURS[0], marker="o", ms=6, label="Pareto front"
        )
        if of_validation:
            for k, (i, (x, y)) in enumerate(zip(best, steps, strict=True)):
                axis.plot([x, x], [y, 100 * tests[i]], color="0.6", lw=0.8, ls=":", zorder=1)
                axis.plot(
                    x,
                    100 * tests[i],
                    "o",
                    ms=5,
                    mfc="white",
                    mec=COLOURS[0],
                    label=None if k else "the same on test series",
                )
        stars = points[len(members) :]
        style = {
            "ls": "none",
            "marker": "*",
            "ms": 11,
            "color": COLOURS[1],
            "mec": "black",
            "mew": 0.6,
            "label": "control: dense, the same training",
        }
        axis.plot([c / scale for _, c in stars], [100 * g for g, _ in stars], **style)
        told: set[tuple[str, float, float]] = set()
        for i, (x, y) in zip(best, steps, strict=True):
            if (names[i], x, y) not in told:
                told.add((names[i], x, y))
                axis.annotate(
                    names[i], (x, y), xytext=(5, -3), textcoords="offset points", fontsize=6.5, va="top"
                )
        series = "validation" if of_validation else "test"
        axis.set(
            xscale="log",
            xlabel=f"energy per inference{mark} ({unit}, {source})",
            ylabel=f"accuracy on {series} series (%)",
        )
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="both", labelsize=7)
        axis.margins(x=0.25)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
    estimated = any(not r.measured for members in groups.values() for r in members)
    note = chosen_by(rows) + (f"; {ESTIMATE} estimated from CPU time" if estimated else "")
    figure.supxlabel(note, fontsize=7, color="0.4", x=0.01, ha="left")
    save(figure, path)
    return path


def _by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.valid:
            groups[row.tags["tsexp.energy_source"]].append(row)
    return dict(sorted(groups.items()))


def _of_validation(rows: Sequence[Row]) -> bool:
    return any("val/accuracy" in r.metrics for r in rows)


def _point(row: Row, of_validation: bool) -> tuple[float, float]:
    return row.metrics.get("val/accuracy" if of_validation else "test/accuracy", math.nan), row.metrics[
        "energy/per_inference_j"
    ]


def _controls(rows: Sequence[Row], of_validation: bool) -> list[tuple[float, float, float]]:
    """Of each control of these rows its accuracy by which the front is chosen, that on test series, and the median of its energies."""
    found: dict[tuple[float, float], list[float]] = defaultdict(list)
    for row in rows:
        m = row.metrics
        test = m["test/control_accuracy"]
        of_front = (
            m.get("val/accuracy", math.nan) + m.get("val/accuracy_drop_pt", math.nan) / 100
            if of_validation
            else test
        )
        found[round(of_front, 9), test].append(m["energy/reference_per_inference_j"])
    return [
        (of_front, test, median(joules)) for (of_front, test), joules in found.items() if of_front == of_front
    ]


def _short(name: str) -> str:
    """The values that a job's name is made of."""
    return " ".join(part.split("=", 1)[-1] for part in name.split())
