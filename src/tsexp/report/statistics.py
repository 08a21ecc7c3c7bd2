"""What may be said of the frozen results: repetitions averaged, intervals, and whether accuracy was kept.

Every interval is one of 95 %. Rows that share ``config`` are repetitions with other seeds; of two machines, or with measured and with estimated
energy, they are never averaged together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsexp.config import CONTROL
from tsexp.report.frozen import Frozen

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MARGIN_PT = 1.0
"""A loss of up to so many points of accuracy counts as kept (the margin of a non-inferiority test)."""
SAME = ["config", "machine", "data_checksum", "runtime", "device", "energy"]
"""Columns that repetitions share."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


class Metric(NamedTuple):
    """A column of ``results``, how one row's own interval is called, and the scale on which seeds are averaged (a ratio: its logarithm)."""

    name: str
    low: str = ""
    high: str = ""
    to: Callable[[Any], Any] = np.asarray
    back: Callable[[Any], Any] = float


def _left(saving_pct: Any) -> Any:
    return np.log(np.maximum(1 - np.asarray(saving_pct) / 100, 1e-9))


def _saved(log_left: Any) -> float:
    return float(100 * (1 - np.exp(log_left)))


PLAIN = Metric("")
METRICS = (
    *(Metric(f"{side}_saving_pct", f"{side}_saving_lo", f"{side}_saving_hi", _left, _saved) for side in ("measured", "estimated")),
    *(Metric(name, f"{name}_lo", f"{name}_hi", np.log, lambda v: float(np.exp(v))) for name in ("speedup", "cpu_speedup")),
    *map(Metric, ("macro_f1", "measured_j", "estimated_j", "latency_p50_ms", "achieved_ratio", "size_ratio", "parameters", "macs", "bytes")),
    *map(Metric, ("matmuls", "matmuls_int8")),
)
KEPT_AS_THEY_ARE = (
    *("dataset", "model", "recipe", "method", "scope", "ratio", "finetune_epochs", "mode"),
    *("batch_size", "threads", "repeats", "window_s", "cpu", "energy_source"),
)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact McNemar test of whether `lost` and `gained` predictions (right only before, right only after) are as likely as each other."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def drop_interval_pt(lost: NDArray[np.floating[Any]]) -> Interval:
    """Mean loss of accuracy over paired test predictions, in points, by the method of Bonett and Price (2012).

    Parameters
    ----------
    lost
        Per test series: 1 if only the dense model is right, -1 if only the compressed one is, else 0; or its mean over seeds.
    """
    n = len(lost) + 2  # two more pairs, one of each flip: no flip among n series is no proof that none can happen
    mean = float(lost.sum()) / n
    error = math.sqrt(((lost**2).sum() + 2) / n - mean**2) / math.sqrt(n)
    return Interval(100 * float(lost.mean()), 100 * (mean - 1.959964 * error), 100 * (mean + 1.959964 * error))


def over_seeds(values: NDArray[np.floating[Any]], metric: Metric = PLAIN) -> Interval:
    """Mean and t interval over repetitions; NaN for the interval of a single one."""
    from scipy.special import stdtrit

    scaled = metric.to(values)
    mean, n = float(scaled.mean()), len(values)
    if n < 2:
        return Interval(metric.back(mean), math.nan, math.nan)
    reach = float(stdtrit(n - 1, 0.975) * scaled.std(ddof=1) / math.sqrt(n))
    low, high = sorted((metric.back(mean - reach), metric.back(mean + reach)))
    return Interval(metric.back(mean), low, high)


def degradation(low_pt: float, high_pt: float, margin_pt: float = MARGIN_PT) -> str:
    """Tell from the interval of the drop whether accuracy was ``kept`` (it is within the margin), ``lost`` (beyond it) or ``undecided``."""
    return "kept" if high_pt <= margin_pt else "lost" if low_pt > margin_pt else "undecided"


def aggregate(frozen: Frozen) -> pd.DataFrame:
    """One row per configuration and machine: the valid records of all its seeds, averaged.

    Returns
    -------
    pandas.DataFrame
        Beside what identifies it: ``n``, ``seeds``, ``warned`` (records with a warning); every metric with ``_lo`` and ``_hi``;
        ``accuracy_pct``; ``drop_pt``, whose interval covers both the seeds and the test sample; ``mcnemar_p`` (the smallest over seeds, times
        their number); ``degradation`` (kept, lost, undecided; ``reference`` for the dense model that all is compared with).
    """
    import pandas as pd

    rows = frozen.results.assign(energy=frozen.results["measured_j"].notna().map({True: "measured", False: "estimated"}))
    predictions = frozen.predictions
    right = (predictions["predicted"] == predictions["label"]).to_numpy()
    dense_right = (predictions["dense_predicted"] == predictions["label"]).to_numpy()
    places = predictions.groupby("run_id", sort=False).indices
    made = []
    for _, group in rows[rows["valid"]].groupby(SAME, sort=False):
        first = group.iloc[0]
        of = [places[run_id] for run_id in group["run_id"]]
        out = {name: first[name] for name in (*SAME, *KEPT_AS_THEY_ARE)}
        out |= {
            "n": len(group),
            "seeds": " ".join(map(str, sorted(group["seed"]))),
            "warned": int((group["warnings"].fillna("") != "").sum()),
            "run_ids": " ".join(group["run_id"]),
        }
        for metric in METRICS:
            interval = over_seeds(group[metric.name].to_numpy(float), metric)
            if len(group) == 1 and metric.low:
                interval = Interval(interval.value, first[metric.low], first[metric.high])
            out |= _columns(metric.name, interval)
        out |= _columns("accuracy_pct", _accuracy_pct([right[i] for i in of]))
        lost = [dense_right[i].astype(float) - right[i] for i in of]
        drop, p = _drop_pt(lost), min(1.0, len(of) * min(mcnemar_p(int((x > 0).sum()), int((x < 0).sum())) for x in lost))
        is_reference = first["ratio"] == 0 and first["mode"] == "none" and first["runtime"] == "eager"
        if is_reference:  # the same model twice
            out |= _columns("drop_pt", Interval(0.0, 0.0, 0.0)) | {"mcnemar_p": 1.0, "degradation": "reference"}
        else:
            out |= _columns("drop_pt", drop) | {"mcnemar_p": p, "degradation": degradation(drop.low, drop.high)}
        made.append(out)
    return pd.DataFrame(made)


def notes(frozen: Frozen, rows: pd.DataFrame) -> list[str]:
    """What a reader must know of these results as a whole: what is missing, left out or mixed.

    Parameters
    ----------
    frozen
        All records.
    rows
        What `aggregate` made of them.
    """
    said = [f"only runs where {frozen.about['where']}"] if frozen.about.get("where") else []
    for reason, names in frozen.about.get("left_out", {}).items():
        said.append(f"{_count(len(names), 'run')} left out, {reason}: {_some(names)}")
    results = frozen.results
    invalid = results[~results["valid"]]
    if len(invalid):
        reasons = [f"{why} ({n})" for why, n in sorted(Counter(invalid["invalid_reasons"]).items())]
        said.append(f"{_count(len(invalid), 'invalid record')} left out: {_some(reasons)}")
    if results["machine"].nunique() > 1:
        names = [f"{m[:6]} ({cpu}{f', {gpu}' if isinstance(gpu, str) else ''})" for m, cpu, gpu in _distinct(results, "machine", "cpu", "gpu")]
        said.append(f"{len(names)} machines or sets of libraries, never averaged together: {_some(names)}")
    sources = sorted(results["energy_source"].unique())
    if len(sources) > 1:
        said.append(f"energy from {', '.join(sources)}: never averaged together")
    code = sorted(results["git_sha"].unique())
    if len(code) > 1:
        said.append(f"measured with {len(code)} commits of the code: {_some([c[:10] + ('-dirty' if c.endswith('-dirty') else '') for c in code])}")
    said += _missing_seeds(results)
    if len(rows) and (rows["n"] == 1).all():
        said.append("one seed each: the intervals tell of the test sample and of the windows, not of another training")
    return said


def describe(row: Any) -> str:
    """A configuration in words: ``PLAID t1, l1 global 0.5, static in onnxruntime``."""
    pruned = "tuned, not pruned" if row["method"] == CONTROL else f"{row['method']} {row['scope']} {row['ratio']:g}" if row["ratio"] else ""
    return ", ".join(filter(None, (f"{row['dataset']} {row['model']}", pruned, f"{row['mode']} in {row['runtime']}")))


def is_pruned(rows: pd.DataFrame) -> pd.Series:
    """Tell for each row whether anything was removed: not at ratio 0, and not of the control."""
    return (rows["ratio"] > 0) & (rows["method"] != CONTROL)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_lo": interval.low, f"{name}_hi": interval.high}


def _accuracy_pct(right: list[NDArray[np.bool_]]) -> Interval:
    from scipy.stats import binomtest

    if len(right) > 1:
        value, low, high = over_seeds(np.array([100 * r.mean() for r in right]))
        return Interval(value, max(0.0, low), min(100.0, high))
    interval = binomtest(int(right[0].sum()), len(right[0])).proportion_ci(method="wilson")
    return Interval(100 * float(right[0].mean()), 100 * interval.low, 100 * interval.high)


def _drop_pt(lost: list[NDArray[np.floating[Any]]]) -> Interval:
    """Mean drop; its interval covers that over seeds and that over test series: seeds share the test split, and a few of them may agree by chance."""
    sample = drop_interval_pt(np.mean(lost, axis=0))
    if len(lost) == 1:
        return sample
    seeds = over_seeds(np.array([100 * x.mean() for x in lost]))
    return Interval(seeds.value, min(sample.low, seeds.low), max(sample.high, seeds.high))


def _missing_seeds(results: pd.DataFrame) -> list[str]:
    """Seeds that some configurations of a dataset and model have and others of it lack."""
    lacking: dict[int, list[str]] = {}
    invalid: Counter[int] = Counter()
    for _, group in results.groupby(["dataset", "model", "machine"]):
        for _, rows in group.groupby("config", sort=False):
            for seed in sorted(set(group["seed"]) - set(rows.loc[rows["valid"], "seed"])):
                lacking.setdefault(seed, []).append(describe(rows.iloc[0]))
                invalid[seed] += seed in set(rows["seed"])
    of = _count(results["config"].nunique(), "configuration")
    return [
        f"seed {seed} missing in {len(names)} of {of}{f' ({invalid[seed]} of them invalid)' if invalid[seed] else ''}: {'; '.join(_first(names))}"
        for seed, names in sorted(lacking.items())
    ]


def _distinct(table: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(table[list(columns)].drop_duplicates().itertuples(index=False, name=None), key=str)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(_first(names))


def _first(names: list[str], most: int = 3) -> list[str]:
    return [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
