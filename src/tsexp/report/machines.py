"""The same measurements on several machines, side by side: what carries over from one to another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp.marks import ENDS, ESTIMATED
from tsexp.report import claims
from tsexp.report.frozen import Frozen
from tsexp.report.statistics import Interval, aggregate, difference, first_machine, processor

if TYPE_CHECKING:
    import pandas as pd

ON_EACH = ("speedup", "accuracy_pct")
"""Shown of both machines."""
ALIKE = ["config", "data_checksum", "runtime", "device"]
"""What both share; not where the energy comes from: neither speedups nor accuracies depend on it, and of
several records that differ in it one is enough."""


def compared(frozen: Frozen) -> pd.DataFrame:
    """Pair what was measured on the machine with most runs, with the same on each of the others.

    Of seeds that both have: else other trainings would count as another machine.

    Parameters
    ----------
    frozen
        All records.

    Returns
    -------
    pandas.DataFrame
        A row per way and other machine: what names it (of the first machine, ``name``), ``other`` and
        ``other_name`` (CPU, or GPU where it ran on one),
        each of `ON_EACH` and the same with ``other_`` before it, with ``_lo`` and ``_hi``; ``times``: the
        speedup there over that here, its interval from both (taken as independent, of their logarithms);
        ``times_within``: the same of the speedup over the dense model in fp32 in the same runtime, which
        leaves out what the runtime itself brings (NaN for that model, or where it was not measured on
        both); ``accuracy_apart_pt``: points more there. Empty if there is one machine. Dense models in eager
        PyTorch, which are compared with themselves, are not among them.
    """
    import pandas as pd

    results = frozen.results[frozen.results["scored"]]
    if results["machine"].nunique() < 2:
        return pd.DataFrame()
    here = first_machine(results)
    names = _names(results)
    made = []
    for there in sorted(set(results["machine"]) - {here}):
        two = results[results["machine"].isin((here, there))]
        on_both = two.groupby([*ALIKE, "seed"])["machine"].transform("nunique") == 2
        if not on_both.any():
            continue
        once = two[on_both].sort_values("valid", ascending=False, kind="stable")
        once = once.drop_duplicates([*ALIKE, "seed", "machine"]).sort_index()
        rows = aggregate(replace(frozen, results=once.assign(energy_source=ESTIMATED)))
        rows = claims.with_speedup_in_runtime(rows[rows["degradation"] != "reference"])
        theirs = rows[rows["machine"] == there].set_index(ALIKE, drop=False)
        for _, row in rows[rows["machine"] == here].iterrows():
            made += [_pair(row, other, names) for _, other in theirs.loc[[tuple(row[ALIKE])]].iterrows()]
    return pd.DataFrame(made)


def _names(results: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Machine and device → what computed there; where two have one name, with the machine's number."""
    named = {
        (record["machine"], record["device"]): processor(record)
        for _, record in results.drop_duplicates(["machine", "device"]).iterrows()
    }
    times = Counter((name, device) for (_, device), name in named.items())
    return {
        (machine, device): f"{name} ({machine[:6]})" if times[name, device] > 1 else name
        for (machine, device), name in named.items()
    }


def said(pairs: pd.DataFrame) -> list[str]:
    """Say in a sentence for each other machine how far it is from the first."""
    sentences = []
    for (_, there), of in pairs.groupby(["other", "other_name"], sort=True):
        times = of["times"].dropna()
        if times.empty:
            continue
        faster = int(((of["speedup"] > 1) == (of["other_speedup"] > 1))[times.index].sum())
        apart = of["accuracy_apart_pt"].abs()
        within = of["times_within"].dropna()
        alone = (
            f" What pruning and number formats bring within a runtime is {_told(within)}."
            if len(within)
            else ""
        )
        sentences.append(
            f"On {there}, of {len(of)} ways to deploy a model, speedups are {_told(times)} of those on "
            f"{of['name'].iloc[0]}; in {faster} of {len(times)} both are faster than the control or both are "
            f"not.{alone} Accuracies differ by {apart.max():.1f} points at most, by {apart.mean():.1f} on "
            "average."
        )
    return sentences


def _told(times: pd.Series) -> str:
    low, middle, high = np.quantile(times, [0.05, 0.5, 0.95])
    return f"{middle:.2f} times in the median ({low:.2f} to {high:.2f} in nine of ten)"


def _pair(row: Any, other: Any, names: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    times = _ratio(other, row)
    within = _alone(other) / _alone(row)
    return {
        **row,
        "name": names[row["machine"], row["device"]],
        "other": other["machine"],
        "other_name": names[other["machine"], other["device"]],
        "warned": row["warned"] + other["warned"],
        **{f"other_{name}{end}": other[f"{name}{end}"] for name in ON_EACH for end in ENDS},
        **{f"times{end}": value for end, value in zip(ENDS, times, strict=True)},
        "times_within": within,
        "accuracy_apart_pt": other["accuracy_pct"] - row["accuracy_pct"],
    }


def _alone(row: Any) -> float:
    """Speedup apart from what the runtime brings; in eager PyTorch, which the control is in, it is all."""
    return float(row["speedup"] if row["runtime"] == "eager" else row["runtime_speedup"])


def _ratio(other: Any, row: Any) -> Interval:
    there, here = (Interval(*(math.log(of[f"speedup{end}"]) for end in ENDS)) for of in (other, row))
    return Interval(*map(math.exp, difference(there, here)))
