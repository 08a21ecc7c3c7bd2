"""What is drawn: the valid runs that are comparable, and the mean of their seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsexp.report.figures import COLOURS
from tsexp.report.frozen import Frozen
from tsexp.report.statistics import METRICS, PLAIN, Interval, over_seeds

if TYPE_CHECKING:
    import pandas as pd

SETUP = ["machine", "device", "threads", "batch_size"]
"""Energies of different setups are not comparable."""
WAY = ["dataset", "model", "method", "scope", "ratio", "mode", "runtime"]
"""Names a point; seeds are repetitions of it."""
VALUES = {
    "accuracy_pct": "accuracy_pct",
    "accuracy_drop_pt": "accuracy_drop",
    "measured_j": None,
    "estimated_j": None,
    "measured_saving_pct": "measured_saving",
    "estimated_saving_pct": "estimated_saving",
    "speedup": "speedup",
}
"""What a point has, and what the columns with the interval of a single run begin with, if it has one."""
SCALES = {metric.name: metric for metric in METRICS}
BARS = "Bars: 95 % interval of the run's pairs for one seed, range of two seeds, 95 % t interval of the mean for more."


@dataclass(frozen=True)
class Points:
    """What the figures of a study are made of.

    Attributes
    ----------
    runs
        The valid rows of ``results`` that were measured in the commonest setup, one config for each way and seed.
    points
        A row per `WAY`: n (seeds), warned (one of them has a warning), and for each of `VALUES` its mean, ``_lo`` and ``_hi`` (`BARS`).
    notes
        What was left out, and of which setup this is.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    notes: tuple[str, ...]


def colours(frozen: Frozen) -> dict[str, str]:
    """Return the colour of each model: the same wherever these results are shown."""
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(sorted(frozen.results["model"].unique()))}


def points(frozen: Frozen) -> Points:
    """Choose what is comparable, and take the mean over seeds."""
    import pandas as pd

    results = frozen.results
    runs = results[results["valid"]]
    notes = [f"Invalid records left out: {len(results) - len(runs)}."]
    setups = len(runs[SETUP].drop_duplicates())
    runs, others = _commonest(runs, [], SETUP)
    if len(runs):
        first = runs.iloc[0]
        processor = first["gpu"] if first["device"] != "cpu" and isinstance(first["gpu"], str) else first["cpu"]
        notes.append(f"Setup: {processor}, batch {first['batch_size']}, {first['threads']} thread{'s' if first['threads'] > 1 else ''}.")
    if others:
        notes.append(f"That is the commonest of {setups} setups; records of the others left out: {others}.")
    for by, columns, what in (
        (["dataset"], ["data_checksum"], "data files"),
        (["dataset", "model"], ["recipe"], "training recipes"),
        (WAY, ["config"], "settings"),
    ):
        runs, others = _commonest(runs, by, columns)
        if others:
            notes.append(f"Records with less common {what} left out: {others}.")
    runs = runs.assign(
        accuracy_pct=100 * runs["accuracy"],
        # The interval of the drop, around the accuracy that it leads to.
        accuracy_pct_lo=100 * runs["accuracy"] + runs["accuracy_drop_pt"] - runs["accuracy_drop_hi"],
        accuracy_pct_hi=100 * runs["accuracy"] + runs["accuracy_drop_pt"] - runs["accuracy_drop_lo"],
    )
    runs = runs.sort_values([*WAY, "seed", "run_id"], kind="stable", ignore_index=True)
    rows = [dict(zip(WAY, way, strict=True)) | _mean(group) for way, group in runs.groupby(WAY)]
    ends = [f"{v}{end}" for v in VALUES for end in ("", "_lo", "_hi")]
    return Points(runs, pd.DataFrame(rows, columns=[*WAY, "n", "warned", *ends]), tuple(notes))


def _commonest(runs: pd.DataFrame, by: list[str], columns: list[str]) -> tuple[pd.DataFrame, int]:
    """Of each group, the rows with its commonest values in these columns (the smallest of equally common ones); and how many others there are."""
    counts = runs.groupby(by + columns).size().reset_index(name="n").sort_values("n", ascending=False, kind="stable")
    best = counts.drop_duplicates(by) if by else counts.head(1)
    kept = runs.merge(best.drop(columns="n"), on=by + columns, how="inner")
    return kept, len(runs) - len(kept)


def _mean(group: pd.DataFrame) -> dict[str, float | int | bool]:
    """As in the tables (`statistics.over_seeds`), but of two seeds the range: their t interval is thirteen times as wide and would hide the rest."""
    out: dict[str, float | int | bool] = {"n": len(group), "warned": bool(group["warnings"].fillna("").ne("").any())}
    for name, interval in VALUES.items():
        values = group[name].astype(float).dropna()
        n = len(values)
        mean = over_seeds(values.to_numpy(), SCALES.get(name, PLAIN)) if n else Interval(math.nan, math.nan, math.nan)
        low, high = mean.low, mean.high
        if n == 2:
            low, high = float(values.min()), float(values.max())
        elif n == 1:
            low, high = (float(group.loc[values.index[0], f"{interval}{end}"]) if interval else mean.value for end in ("_lo", "_hi"))
        out |= {name: mean.value, f"{name}_lo": low, f"{name}_hi": high}
    return out
