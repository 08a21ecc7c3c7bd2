"""What figures say in words: names of points and runs, and the small print that several share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsexp.report.console import ESTIMATE
from tsexp.report.figures.layout import of_two_seeds
from tsexp.report.points import Study
from tsexp.report.points import invalid as count_invalid
from tsexp.report.statistics import way

if TYPE_CHECKING:
    import pandas as pd

ESTIMATED = f"{ESTIMATE} Estimated from CPU time, not measured: compare only with other estimates."
WARNED = "A dot in a marker: one of its records has a warning."


def dagger(side: str) -> str:
    """The mark of an estimate, for that side only."""
    return ESTIMATE if side == "estimated" else ""


def describe(p: pd.Series, runtime: bool = True) -> str:
    """What a point or a run is: ``t1, onnxruntime, static, pruned 0.5 (l1 global)``."""
    return f"{p['model']}, {way(p, runtime)}"


def invalid(study: Study) -> str:
    """How many records have no valid energy, in a sentence."""
    return " ".join(count_invalid(study.frozen))


def small_print(study: Study, *sides: str, warned: bool = False) -> list[str]:
    """What most figures say at their foot.

    Parameters
    ----------
    study
        The data.
    sides
        measured, estimated: the energies that are drawn.
    warned
        Some marker has the dot of a warning.
    """
    fewest, most = study.points["n"].min(), study.points["n"].max()
    means = f"Means of {fewest} seeds." if fewest == most else f"Means of {fewest} to {most} seeds."
    return [
        *([ESTIMATED] if "estimated" in sides else []),
        invalid(study),
        "One seed." if most == 1 else means,
        *([WARNED] if warned else []),
    ]


def uneven(study: Study) -> bool:
    """Whether some points are of fewer seeds than others, so that a figure has to say of how many."""
    return bool(study.points["n"].nunique() > 1)


def seeds(here: pd.DataFrame, study: Study) -> str:
    """How many seeds these points are of, where the study is `uneven`."""
    if not uneven(study):
        return ""
    fewest, most = here["n"].min(), here["n"].max()
    return f", n = {fewest}" if fewest == most else f", n = {fewest} to {most}"


def bars(shown: pd.DataFrame, value: str) -> str:
    """What the bars of these points are."""
    of = (
        "two-way: over seeds and test series"
        if value.startswith("accuracy")
        else "t over seeds, of one seed t over measuring processes"
    )
    wide = " Those of two seeds are wide and may leave the panel." if of_two_seeds(shown, value).any() else ""
    return f"Bars: 95 % intervals, {of}.{wide}"


def ordered(values: pd.Series, known: Sequence[str]) -> list[str]:
    """Distinct values, the known ones in their order, then others."""
    there = set(values)
    return [k for k in known if k in there] + sorted(there - set(known))
