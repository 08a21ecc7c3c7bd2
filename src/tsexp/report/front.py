"""The Pareto front: what nothing else beats on both counts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from tsexp.report.console import short
from tsexp.report.constraints import Constraint, keeps
from tsexp.report.store import Row


class Candidate(NamedTuple):
    """A job or a control: accuracy by which the front is chosen, that on test series, joules per series.

    One that is not `allowed` breaks a constraint of its search, and is on no front.
    """

    name: str
    gain: float
    test: float
    cost: float
    run_id: str = ""
    allowed: bool = True


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


def energy_front(rows: Sequence[Row], constraints: Sequence[Constraint] = ()) -> set[str]:
    """Run ids of the valid rows on the front of accuracy and energy per inference.

    Each source of energy has a front of its own.

    The accuracy is that on validation series; without any, that on test series, and then the front is
    optimistic. The controls take part, rows that break a constraint do not.
    """
    out = set()
    for members in by_source(rows).values():
        among = candidates(members, judged_by(rows), constraints)
        out |= {among[i].run_id for i in best_of(among)} - {""}
    return out


def by_source(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The valid rows by source of energy: measured and estimated energy share no front."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.valid:
            groups[row.energy_source].append(row)
    return dict(sorted(groups.items()))


def judged_by(rows: Sequence[Row]) -> str:
    """Name the series that choose the front: ``val`` (validation), or ``test`` if there are no such."""
    return "val" if any("val/accuracy" in r.metrics for r in rows) else "test"


def candidates(rows: Sequence[Row], split: str, constraints: Sequence[Constraint] = ()) -> list[Candidate]:
    """The rows, and their controls, each once: its energy is the median of its measurements."""
    jobs = []
    controls: dict[tuple[float, float], list[float]] = defaultdict(list)
    for name, row in zip(short([row.name for row in rows]), rows, strict=True):
        m = row.metrics
        gain, test = m.get(f"{split}/accuracy", math.nan), m["test/accuracy"]
        cost, allowed = m["energy/per_inference_j"], keeps(m, constraints)
        jobs.append(Candidate(name, gain, test, cost, row.run_id, allowed))
        test = m["test/control_accuracy"]
        gain = gain + m.get("val/accuracy_drop_pt", math.nan) / 100 if split == "val" else test
        if not math.isnan(gain):
            controls[round(gain, 9), test].append(m["energy/reference_per_inference_j"])
    return jobs + [Candidate("control", *of, median(joules)) for of, joules in controls.items()]


def best_of(among: Sequence[Candidate]) -> list[int]:
    """Places of the candidates on the front, by rising energy."""
    return front([(c.gain if c.allowed else math.nan, c.cost) for c in among])
