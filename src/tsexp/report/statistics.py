"""What may be said of the frozen results: repetitions averaged, intervals, and whether accuracy was kept.

Every interval is one of 95 %. Rows that share ``config`` are repetitions with other seeds; of two machines,
or with energy from two sources, they are never averaged together. A record with invalid energy counts for
accuracy and for nothing else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsexp.marks import ESTIMATED, FEW, PROTOCOL_VERSION
from tsexp.report.frozen import Frozen

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    Group = dict[str, NDArray[Any]]
    """Records that are averaged, by the names of their columns: (seeds,) each."""

MARGIN_PT = 1.0
"""A loss of up to so many points of accuracy counts as kept (the margin of a non-inferiority test)."""
CHANGED = 1.1
"""A control that takes so many times as much as usual, or as little, ran when the machine was another."""
NAMED = 3
"""Of several things, so many are named in a note."""
SAME = ["config", "machine", "data_checksum", "runtime", "device", "energy_source", "protocol"]
"""Columns that repetitions share."""


class Interval(NamedTuple):
    """An estimate and its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


class Metric(NamedTuple):
    """A column of ``results``, the names of a row's own interval, and the scale on which seeds are averaged.

    Of a ratio, that is its logarithm. No interval leaves `least` to `most`.
    """

    name: str
    low: str = ""
    high: str = ""
    to: Callable[[Any], Any] = np.asarray
    back: Callable[[Any], Any] = float
    least: float = -math.inf
    most: float = math.inf


def _left(saving_pct: Any) -> Any:
    return np.log(np.maximum(1 - np.asarray(saving_pct) / 100, 1e-9))


def _saved(log_left: Any) -> float:
    return float(100 * (1 - np.exp(log_left)))


PLAIN = Metric("")
METRICS = (
    *(
        Metric(f"{side}_saving_pct", f"{side}_saving_lo", f"{side}_saving_hi", _left, _saved)
        for side in ("measured", "estimated")
    ),
    Metric("speedup", "speedup_lo", "speedup_hi", np.log, lambda v: float(np.exp(v))),
    Metric("macro_f1", least=0.0, most=1.0),
    *map(Metric, ("measured_j", "estimated_j", "latency_p50_ms", "parameters", "macs", "bytes")),
    *map(Metric, ("matmuls", "matmuls_int8", "measured_reference_j", "estimated_reference_j", "val_drop_pt")),
    *map(Metric, ("cost_train_j", "cost_compress_j")),
)
KEPT_AS_THEY_ARE = (
    *("dataset", "model", "setting", "recipe", "tuning", "method", "scope", "ratio", "finetune_epochs"),
    *("mode", "batch_size", "threads", "repeats", "processes", "window_s", "cpu", "gpu", "energy"),
    "runtime_asked",
)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact McNemar test that `lost` predictions (right only before) and `gained` ones are equally likely."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def over_seeds_and_series(outcomes: NDArray[Any]) -> Interval:
    """Mean outcome of another training on another series, with its interval.

    Both are drawn, and every training meets every series.

    The parameter that is covered is the expectation over all seeds and over the population that the test
    series are a sample of; of a single run, that of this one training over the series. The variance of the
    mean is that of a two-way random-effects analysis (seeds × series): the mean square of the seeds, which
    has few degrees of freedom, and what that of the series has more than the residual one, which has many.
    The quantile of t is the mean of those of both, weighted by their variances (Cochran and Cox 1950). One
    number of degrees of freedom for the sum, by Satterthwaite, holds .88 to .93 with two or three seeds that
    differ much. One more outcome of each sign in the whole table (Bonett and Price 2012) keeps the interval
    from vanishing where no outcome differs; and it reaches at least one standard error of the series alone.
    Coverage, simulated: ``tests/test_coverage_seeds.py``.

    Parameters
    ----------
    outcomes
        Between -1 and 1: (seeds, series).
    """
    from scipy.special import stdtrit

    seeds, series = outcomes.shape
    n = series + 2
    of_series = outcomes.mean(axis=0)
    centre = float(of_series.sum()) / n
    least = 2 / seeds**2 / (n - 1) / n
    series_alone = (float((of_series**2).sum()) - n * centre**2) / (n - 1) / n + least
    from_seeds, from_series = 0.0, series_alone
    if seeds > 1:
        of_seeds = outcomes.mean(axis=1)
        rest = outcomes - of_seeds[:, None] - of_series + of_series.mean()
        from_seeds = float(of_seeds.var(ddof=1)) / seeds
        from_series = max(
            least, series_alone - float((rest**2).sum()) / max(1, (seeds - 1) * (series - 1)) / seeds / series
        )
    quantiles = stdtrit([max(1, seeds - 1), n - 1], 0.975)
    quantile = float(np.average(quantiles, weights=[from_seeds, from_series]))
    # Two seeds that agree by chance are no reason to be surer than the series alone allow.
    reach = max(quantile * math.sqrt(from_seeds + from_series), math.sqrt(series_alone))
    return Interval(float(of_series.mean()), max(-1.0, centre - reach), min(1.0, centre + reach))


def over_seeds(
    values: NDArray[np.floating[Any]], metric: Metric = PLAIN, own: NDArray[np.floating[Any]] | None = None
) -> Interval:
    """Mean and t interval over repetitions; NaN for the interval of a single one, and for all without any.

    The parameter that is covered is the mean over all seeds (of the logarithm, for a ratio) on this machine
    and this test split. Two seeds that agree by chance are no reason to be surer than measuring allows: the
    interval reaches at least as far as that of the mean if only measuring made a difference. Equal shares
    that bring no intervals of their own have none.
    Coverage, simulated: ``tests/test_coverage_seeds.py``.

    Parameters
    ----------
    values
        (seeds,)
    metric
        What they are.
    own
        The ends of each one's own interval: (seeds, 2).
    """
    from scipy.special import stdtrit

    n = len(values)
    if not n:
        return Interval(math.nan, math.nan, math.nan)
    scaled = metric.to(values)
    mean = float(scaled.mean())
    if n < 2:
        return Interval(metric.back(mean), math.nan, math.nan)
    reach = float(stdtrit(n - 1, 0.975) * scaled.std(ddof=1) / math.sqrt(n))
    if own is None and math.isfinite(metric.most) and not np.ptp(scaled):
        return Interval(metric.back(mean), math.nan, math.nan)
    if own is not None:
        low, high = metric.to(own).T
        reach = float(np.fmax(reach, np.sqrt(np.mean((high - low) ** 2) / 4 / n)))  # NaN: not known
    low, high = sorted((metric.back(mean - reach), metric.back(mean + reach)))
    return Interval(metric.back(mean), max(metric.least, low), min(metric.most, high))


def difference(one: Interval, other: Interval) -> Interval:
    """Return one less the other, of two independent estimates; their intervals need not be symmetric.

    The distances to the ends are added in squares (MOVER: Zou and Donner 2008). It errs on the safe side
    where both have few degrees of freedom. Coverage, simulated: ``tests/test_tables.py``.
    """
    middle = one.value - other.value
    return Interval(
        middle,
        middle - math.hypot(one.value - one.low, other.high - other.value),
        middle + math.hypot(one.high - one.value, other.value - other.low),
    )


def degradation(low_pt: float, high_pt: float) -> str:
    """What an interval of the drop means: ``kept`` (within the margin), ``lost`` (beyond), ``undecided``."""
    return "kept" if high_pt <= MARGIN_PT else "lost" if low_pt > MARGIN_PT else "undecided"


def aggregate(frozen: Frozen) -> pd.DataFrame:
    """One row per configuration, machine and source of energy: the records of all its seeds, averaged.

    Returns
    -------
    pandas.DataFrame
        Beside what identifies it: ``energy`` (measured, estimated), ``n`` (seeds), ``n_energy`` (those with
        valid energy, of which the energies, times and speedups are), ``seeds``, ``warned`` (records with a
        warning); ``each`` (the records with valid energy, by seed); every metric with ``_lo`` and ``_hi``;
        ``accuracy_pct``, ``control_accuracy_pct`` and ``drop_pt`` (`over_seeds_and_series`);
        ``dense_accuracy_pct`` (before any tuning); ``val_series``;
        ``mcnemar_p`` (the smallest over seeds, times their number); ``degradation`` (kept, lost, undecided;
        ``reference`` for the dense model itself, which is its own control).
    """
    import pandas as pd

    estimated = frozen.results["energy_source"].str.startswith(ESTIMATED)
    rows = frozen.results.assign(energy=estimated.map({True: "estimated", False: "measured"}))
    predictions = frozen.predictions
    right = (predictions["predicted"] == predictions["label"]).to_numpy()
    dense_right = (predictions["dense_predicted"] == predictions["label"]).to_numpy()
    places = predictions.groupby("run_id", sort=False).indices
    scored = rows[rows["scored"]]
    # Taken apart once: a frame of all columns for every group takes longer than all that is done with it.
    columns, by_seed = {name: scored[name].to_numpy() for name in scored}, _by_seed(scored)
    numbers = scored.groupby(SAME, sort=False).ngroup().to_numpy()
    made = []
    for number in range(numbers.max(initial=-1) + 1):
        members = np.flatnonzero(numbers == number)
        group = {name: values[members] for name, values in columns.items()}
        of = [places[run_id] for run_id in group["run_id"]]
        ours, control = (np.array([of_all[i] for i in of], dtype=float) for of_all in (right, dense_right))
        each = by_seed.iloc[members[group["valid"].astype(bool)]]
        made.append(_known(group, each) | _means(group) | _accuracies(group, ours, control))
    return pd.DataFrame(made)


def _known(group: Group, each: pd.DataFrame) -> dict[str, Any]:
    """What identifies a row, and which records are behind it."""
    return {name: group[name][0] for name in (*SAME, *KEPT_AS_THEY_ARE)} | {
        "n": len(group["seed"]),
        "n_energy": len(each),
        "seeds": " ".join(map(str, sorted(group["seed"]))),
        "warned": sum(isinstance(text, str) and text != "" for text in group["warnings"]),
        "run_ids": " ".join(group["run_id"]),
        "each": each,
        "dense_accuracy_pct": 100 * float(np.nanmean(group["dense_accuracy"])),
        "val_series": int(group["val_series"].min()),
    }


def _means(group: Group) -> dict[str, Any]:
    """Every metric over the seeds that have it; of one seed, with that record's own interval."""
    out: dict[str, Any] = {}
    for metric in METRICS:
        values = group[metric.name].astype(float)
        seen = ~np.isnan(values)
        own = None
        if metric.low:
            own = np.stack([group[metric.low], group[metric.high]], 1).astype(float)[seen]
        interval = over_seeds(values[seen], metric, own)
        if seen.sum() == 1 and own is not None:
            interval = Interval(interval.value, *own[0])
        out |= _columns(metric.name, interval)
    return out


def _accuracies(group: Group, ours: NDArray[Any], control: NDArray[Any]) -> dict[str, Any]:
    """Accuracies and what was lost, of right (1) and wrong (0) answers, (seeds, series)."""
    out = _columns("accuracy_pct", _accuracy_pct(ours)) | _columns(
        "control_accuracy_pct", _accuracy_pct(control)
    )
    if group["is_reference"].all():  # the same model twice
        same = _columns("drop_pt", Interval(0.0, 0.0, 0.0))
        return out | same | {"mcnemar_p": 1.0, "degradation": "reference"}
    lost = control - ours
    drop = Interval(*(100 * v for v in over_seeds_and_series(lost)))
    p = min(1.0, len(lost) * min(mcnemar_p(int((x > 0).sum()), int((x < 0).sum())) for x in lost))
    return out | _columns("drop_pt", drop) | {"mcnemar_p": p, "degradation": degradation(drop.low, drop.high)}


def _by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """Metrics of records by seed, with their own intervals, named as those of the mean."""
    names = {
        old: new for m in METRICS for old, new in ((m.low, f"{m.name}_lo"), (m.high, f"{m.name}_hi")) if old
    }
    metrics = rows[["seed", "energy", *(m.name for m in METRICS), *names]]
    return metrics.rename(columns=names).set_index("seed")


def first_machine(rows: pd.DataFrame) -> str:
    """Of several machines, the one with most rows."""
    return str(rows["machine"].value_counts().sort_index().idxmax())


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
        said.append(f"{count(len(names), 'run')} left out, {reason}: {_some(names)}")
    results = frozen.results
    invalid = results[~results["valid"]]
    if len(invalid):
        for some, left_out in (
            (invalid[invalid["scored"]], "energy and times left out, accuracy counts"),
            (invalid[~invalid["scored"]], "left out"),
        ):
            reasons = [f"{why} ({n})" for why, n in sorted(Counter(some["invalid_reasons"]).items())]
            said += [f"{count(len(some), 'invalid record')}, {left_out}: {_some(reasons)}"] if reasons else []
    if results["machine"].nunique() > 1:
        names = [
            f"{m[:6]} ({cpu}{f', {gpu}' if isinstance(gpu, str) else ''})"
            for m, cpu, gpu in _distinct(results, "machine", "cpu", "gpu")
        ]
        of = f"{len(names)} machines or versions of Python and PyTorch"
        said.append(f"{of}, never averaged together: {_some(names)}")
    if others := _other_libraries(results):
        said.append(f"measured with several versions of {others}; they are averaged")
    sources = sorted(results["energy_source"].unique())
    if len(sources) > 1:
        said.append(f"energy from {', '.join(sources)}: never averaged together")
    if (older := results["protocol"] < PROTOCOL_VERSION).any():
        said.append(
            f"{count(int(older.sum()), 'record')} of an older protocol, whose intervals are too narrow on "
            f"some CPUs (docs/measuring.md): never averaged with protocol {PROTOCOL_VERSION}"
        )
    code = sorted(results["git_sha"].unique())
    if len(code) > 1:
        said.append(
            f"measured with {len(code)} commits of the code: "
            f"{_some([c[:10] + ('-dirty' if c.endswith('-dirty') else '') for c in code])}"
        )
    said += _missing_seeds(results) + _another_hour(results)
    if len(rows) and (alone := int((rows["n"] == 1).sum())):
        whose = "one seed each" if alone == len(rows) else f"one seed in {alone} of {len(rows)} rows"
        said.append(
            f"{whose}: the intervals tell of the test sample and of the measuring processes, not of another "
            "training"
        )
    few = (
        sorted({f"{r['dataset']} ({r['val_series']})" for _, r in rows.iterrows() if r["val_series"] < FEW})
        if len(rows)
        else []
    )
    if few:
        said.append(
            f"fewer than {FEW} validation series, so what is chosen by them is chosen by little: {_some(few)}"
        )
    return said


def describe(row: Any) -> str:
    """A configuration in words: ``PLAID t1, l1 global 0.5, static in onnxruntime``."""
    pruned = f"{row['method']} {row['scope']} {row['ratio']:g}" if row["ratio"] else ""
    return ", ".join(
        filter(None, (f"{row['dataset']} {row['model']}", pruned, f"{row['mode']} in {row['runtime']}"))
    )


def way(row: Any, runtime: bool = True) -> str:
    """How a model is deployed, in words: ``onnxruntime, static, pruned 0.5 (l1 global)``.

    Of an estimator, which has no other way and no count of products: ``as trained``.
    """
    plain = not row["ratio"] and row["mode"] == "none" and row["runtime"] == "eager"
    if plain and math.isnan(row["macs"]):
        return "as trained"
    pruned = f"pruned {row['ratio']:.3g} ({row['method']} {row['scope']})" if row["ratio"] else "not pruned"
    number_format = "fp32" if row["mode"] == "none" else row["mode"]
    return ", ".join([*([row["runtime"]] if runtime else []), number_format, pruned])


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_lo": interval.low, f"{name}_hi": interval.high}


def _accuracy_pct(right: NDArray[np.floating[Any]]) -> Interval:
    return Interval(*(50 * (1 + v) for v in over_seeds_and_series(2 * right - 1)))


def _missing_seeds(results: pd.DataFrame) -> list[str]:
    """Seeds that some configurations have and others of the same machine lack."""
    lacking: dict[int, list[str]] = {}
    invalid: Counter[int] = Counter()
    configurations = 0
    for _, group in results.groupby("machine"):
        of_each = group.groupby("config", sort=False)
        configurations += of_each.ngroups
        for _, rows in of_each:
            for seed in sorted(set(group["seed"]) - set(rows.loc[rows["scored"], "seed"])):
                lacking.setdefault(seed, []).append(describe(rows.iloc[0]))
                invalid[seed] += seed in set(rows["seed"])
    of = count(configurations, "configuration")
    return [
        f"seed {seed} missing in {len(names)} of "
        f"{of}{f' ({invalid[seed]} of them invalid)' if invalid[seed] else ''}: "
        + "; ".join(_first([name if n == 1 else f"{name} ({n})" for name, n in Counter(names).items()]))
        for seed, names in sorted(lacking.items())
    ]


def _another_hour(results: pd.DataFrame) -> list[str]:
    """Records whose control took more or less than that of the others of its dataset and model.

    It is of the same architecture in all of them, so that the machine was another: a neighbour, a clock.
    """
    valid = results[results["valid"]]
    reference_j = valid["measured_reference_j"].fillna(valid["estimated_reference_j"])
    alike = [
        *("dataset", "model", "setting", "machine", "energy_source", "device", "batch_size", "threads"),
        "protocol",
    ]
    times = reference_j / reference_j.groupby([valid[name] for name in alike]).transform("median")
    far = (times > CHANGED) | (times < 1 / CHANGED)
    if not far.any():
        return []
    of = times.groupby([valid["dataset"], valid["model"]])
    where = [
        f"{dataset} {model} ({low:.2f} to {high:.2f} times)"
        for ((dataset, model), low), high in zip(of.min().items(), of.max(), strict=True)
        if high > CHANGED or low < 1 / CHANGED
    ]
    return [
        f"the control took more than {100 * (CHANGED - 1):.0f} % more or less than its median in "
        f"{far.sum()} of {count(len(valid), 'record')}: the machine was another then, and intervals are of "
        f"one hour; {_some(where)}"
    ]


def _distinct(table: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(table[list(columns)].drop_duplicates().itertuples(index=False, name=None), key=str)


def processor(record: Any) -> str:
    """What a record was measured on: the GPU where it ran on one, else the CPU."""
    on_gpu = record["device"] != "cpu" and isinstance(record["gpu"], str)
    return str(record["gpu" if on_gpu else "cpu"])


def count(n: int, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _other_libraries(results: pd.DataFrame) -> str:
    """Name the libraries beside PyTorch that ran in more than one version, on one machine."""
    found: dict[tuple[str, str], set[str]] = {}
    for machine, told in results[["machine", "libraries"]].drop_duplicates().itertuples(index=False):
        for name, version in (library.split(" ") for library in told.split(", ") if library):
            found.setdefault((name, machine), set()).add(version)
    several: dict[str, set[str]] = {}
    for (name, _), versions in found.items():
        if len(versions) > 1 and name != "torch":
            several.setdefault(name, set()).update(versions)
    return ", ".join(f"{name} ({', '.join(sorted(versions))})" for name, versions in sorted(several.items()))


def _some(names: list[str]) -> str:
    return ", ".join(_first(names))


def _first(names: list[str]) -> list[str]:
    return [*names[:NAMED], *([f"{len(names) - NAMED} more"] if len(names) > NAMED else [])]
