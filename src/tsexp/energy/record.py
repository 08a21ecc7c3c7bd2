"""From raw windows and scores to the numbers that are kept, and whether they may be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import tasks
from tsexp.data import Dataset, FloatArray, IntArray
from tsexp.energy import hardware
from tsexp.energy.meters import CpuTimeMeter
from tsexp.marks import CHANGED, ENDS, NOT_FINITE, OTHERWISE

if TYPE_CHECKING:
    from tsexp.energy.measuring import Scores

ESTIMATE = CpuTimeMeter.source
VARIATION_PCT = 5.0
DRIFT_PCT = 5.0
FOREIGN_CORES = 0.1
WIDE_PT = 10.0
CHILDREN = 0.02
"""CPU time of child processes, as a share of the own, that is more than ticks and idle helpers."""
SHORTEST = 0.9
"""Windows shorter than this share of the length asked for make a record invalid."""


@dataclass(frozen=True)
class Record:
    """One measurement of one artifact.

    Attributes
    ----------
    metrics
        By the fixed names (docs/measuring.md: the numbers).
    energy_source
        ``zeus:nvml``, ``zeus:rapl``, ``zeus:soc`` or ``estimated:cpu_time``.
    invalid_reasons
        Why it must stay out of tables; empty if valid.
    warnings
        Why to look twice.
    raw
        What the worker returned: every window, the latencies, the checks.
    scores, reference_scores
        Class scores on the whole test split, float32 (series, classes).
    labels
        int64 (series,).
    manifest
        Of the artifact that was measured.
    hardware
        The machine.
    """

    metrics: dict[str, float]
    energy_source: str
    invalid_reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    raw: dict[str, Any] = field(repr=False)
    scores: FloatArray = field(repr=False)
    reference_scores: FloatArray = field(repr=False)
    labels: IntArray = field(repr=False)
    manifest: dict[str, Any] = field(repr=False)
    hardware: dict[str, Any] = field(repr=False)

    @property
    def valid(self) -> bool:
        """Nothing speaks against it."""
        return not self.invalid_reasons

    def with_costs(
        self, train: dict[str, Any], compress: Sequence[dict[str, Any]], watts_per_core: float
    ) -> Record:
        """Add what it took to get there, and after how many inferences compression has paid for itself.

        Parameters
        ----------
        train, compress
            As `costs_of`.
        watts_per_core
            For joules where this record's are estimated, too.
        """
        costs = costs_of(train, compress, self.energy_source, watts_per_core)
        compress_j = costs["cost/compress_j"]
        reference_j = self.metrics.get("energy/reference_per_inference_j", 0.0)
        gained_j = reference_j - self.metrics.get("energy/per_inference_j", 0.0)
        if gained_j > 0 and self.metrics.get("vs_dense/energy_saving_lo", 0.0) > 0:  # noise pays nothing back
            costs["cost/break_even_inferences"] = compress_j / gained_j
        return replace(self, metrics=self.metrics | {k: float(v) for k, v in costs.items() if np.isfinite(v)})


def costs_of(
    train: dict[str, Any], compress: Sequence[dict[str, Any]], source: str, watts_per_core: float
) -> dict[str, float]:
    """Seconds and joules of training and of compression.

    Parameters
    ----------
    train, compress
        `Entry.cost` of the dense model; of everything that made the artifact of it. Of what trained, perhaps
        with the ``device``: CPU time says nothing of a GPU, and there is no estimate then.
    source
        Of the joules; NaN if that did not read them.
    watts_per_core
        For joules that are estimated.
    """

    def joules(cost: dict[str, Any]) -> float:
        if source == ESTIMATE:
            return float(cost["cpu_s"]) * watts_per_core if cost.get("device", "cpu") == "cpu" else np.nan
        return float(cost["energy_j"].get(source, np.nan))

    return {
        "cost/train_s": float(train["wall_s"]),
        "cost/train_j": joules(train),
        "cost/compress_s": float(sum(cost["wall_s"] for cost in compress)),
        "cost/compress_j": float(sum(map(joules, compress))),
    }


def summarize(raw: dict[str, Any]) -> dict[str, float]:
    """Statistics of the raw windows, recomputable at any time from ``windows.json``.

    A speedup is the ratio reference / artifact, a saving 1 - artifact / reference, per series. Of each
    process the median over its pairs is taken; the value is their geometric mean, its 95 % interval a t
    interval over the processes, on the logarithm.
    """
    if not _kept(raw, "artifact") or not _kept(raw, "reference"):
        return {}  # every pair was discarded; `doubts` says so
    art, ref = (_per_inference(raw, s) for s in ("artifact", "reference"))
    idle_w = _idle_power_w(raw)
    latency = np.array(raw["latencies_ms"])
    faster, less_cpu, less_energy = (_over_processes(raw, key) for key in ("wall_s", "cpu_s", "energy_j"))
    p50, p90, p99 = np.percentile(latency, [50, 90, 99])
    return {
        "energy/per_inference_j": float(np.median(art["energy_j"])),
        "energy/reference_per_inference_j": float(np.median(ref["energy_j"])),
        # Without an idle window there is no net energy; NaN is not stored.
        "energy/per_inference_net_j": float(np.median(art["energy_j"] - idle_w * art["wall_s"])),
        "energy/window_j": float(np.median([_joules(w) for w in _kept(raw, "artifact")])),
        "power/mean_w": float(np.median([_joules(w) / w["wall_s"] for w in _kept(raw, "artifact")])),
        "power/idle_w": idle_w,
        "latency/p50_ms": float(p50),
        "latency/p90_ms": float(p90),
        "latency/p99_ms": float(p99),
        "throughput/series_per_s": float(1 / np.median(art["wall_s"])),
        "memory/peak_mb": float(raw["peak_mb"]),
        "measure/window_wall_s": float(np.median([w["wall_s"] for w in _kept(raw, "artifact")])),
        "measure/pairs": len(art["wall_s"]),
        "measure/processes": raw["processes"],
        "measure/meter_overhead_ms": 1e3 * float(np.median(raw["meter_overhead_s"])),
        **{f"cost/{k}": v for k, v in _starting(raw).items()},
        **{f"vs_dense/speedup{end}": float(np.exp(v)) for end, v in zip(ENDS, faster, strict=True)},
        **{f"vs_dense/cpu_speedup{end}": float(np.exp(v)) for end, v in zip(ENDS, less_cpu, strict=True)},
        **{
            f"vs_dense/energy_saving{end or '_pct'}": 100 * float(-np.expm1(-v))
            for end, v in zip(ENDS, less_energy, strict=True)
        },
    }


def _starting(raw: dict[str, Any]) -> dict[str, float]:
    """Of loading the artifact and of its first call: milliseconds and joules, medians over processes."""
    each = raw["started"]["artifact"]
    known = {k: [one[k] for one in each if one[k] is not None] for k in each[0]}
    middle = {k: float(np.median(values)) if values else np.nan for k, values in known.items()}
    return {
        "load_ms": 1e3 * middle["load_s"],
        "load_j": middle["load_j"],
        "first_call_ms": 1e3 * middle["first_call_s"],
        "first_call_j": middle["first_call_j"],
    }


def reach_pct(raw: dict[str, Any]) -> float:
    """How far the interval of the saving reaches, to either side, in per cent of what is left.

    Infinite while it is not known.
    """
    _, low, high = _over_processes(raw, "energy_j")
    return 100 * float(np.sinh((high - low) / 2)) if np.isfinite(high - low) else np.inf


def _over_processes(raw: dict[str, Any], key: str) -> tuple[float, float, float]:
    """Mean over processes of the median logarithm of reference / artifact, with its 95 % t interval.

    NaN if a window has no such logarithm. What differs from process to process (memory layout, what was
    loaded and used first) is seen by no pair within one: intervals from the pairs of a single process held
    the truth in 75 % instead of 95 % (docs/measuring.md).
    """
    return _t_interval(_middles(raw, key))


def energy_interval_j(raw: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of the artifact's joules per series.

    t over the logarithms of the processes' medians; NaN if there is one process, or a window without energy.
    """
    each = _per_inference(raw, "artifact")
    with np.errstate(all="ignore"):
        logs = np.log(each["energy_j"])
    _, low, high = _t_interval(_medians(logs, each["process"]))
    return float(np.exp(low)), float(np.exp(high))


def pooled_saving(raws: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Saving in per cent with its 95 % interval.

    Over the processes of several measurements of the same two artifacts.
    """
    value, low, high = _t_interval(np.concatenate([_middles(raw, "energy_j") for raw in raws]))
    return tuple(100 * float(-np.expm1(-v)) for v in (value, low, high))  # type: ignore[return-value]


def _t_interval(middle: FloatArray) -> tuple[float, float, float]:
    from scipy.special import stdtrit

    if not np.isfinite(middle).all():
        return (float("nan"),) * 3
    n, mean = len(middle), float(middle.mean())
    if n < 2:
        return mean, float("nan"), float("nan")
    reach = float(stdtrit(n - 1, 0.975) * middle.std(ddof=1) / np.sqrt(n))
    return mean, mean - reach, mean + reach


def _middles(raw: dict[str, Any], key: str) -> FloatArray:
    """Of each process, the median over its pairs of the logarithm of reference / artifact."""
    art, ref = _per_inference(raw, "artifact"), _per_inference(raw, "reference")
    with np.errstate(all="ignore"):
        logs = np.log(ref[key]) - np.log(art[key])
    return _medians(logs, art["process"])


def _medians(values: FloatArray, processes: FloatArray) -> FloatArray:
    """Of each process, the median of its windows' values."""
    return np.array([np.median(values[processes == p]) for p in np.unique(processes)])


def scatter_p(raws: Sequence[dict[str, Any]]) -> float:
    """How likely measurements of an artifact against itself scatter so, if their intervals are right.

    Each round's t value (the truth is 0) becomes the normal score of the same rank; the sum of their squares
    is χ² distributed, whatever the noise of each round is. A bias shows, too. (Comparing mean squares, an F
    test, blames one right meter in 15 where the noise changes.)
    """
    from scipy.special import chdtrc, ndtri, stdtr

    middles = [_middles(raw, "energy_j") for raw in raws]
    t = [m.mean() / (m.std(ddof=1) / np.sqrt(len(m))) for m in middles]
    scores = [ndtri(stdtr(len(m) - 1, -abs(one))) for m, one in zip(middles, t, strict=True)]
    return float(chdtrc(len(scores), np.square(scores).sum()))


def assemble(
    raw: dict[str, Any],
    scores: Scores,
    reference_scores: Scores,
    manifest: dict[str, Any],
    dense: dict[str, Any],
    dataset: Dataset,
) -> Record:
    """Make a `Record` of what the processes returned, what was answered, and what was counted on both."""
    task = tasks.of(dataset)
    invalid, warnings = doubts(raw)
    for name, values in (("artifact", scores), ("reference", reference_scores)):
        if not (np.isfinite(values.test).all() and np.isfinite(values.val).all()):
            invalid += (f"the {name} answers series with {NOT_FINITE}",)
    pointless = task.pointless(scores.test, dataset.y_test)
    if pointless:
        warnings += (f"the artifact answers {pointless}",)
    y_val = dataset.y_train[dataset.val]
    control = task.quality(reference_scores.test, dataset.y_test, "test")
    metrics = task.quality(scores.test, dataset.y_test, "test")
    metrics |= task.drop(scores.test, reference_scores.test, dataset.y_test)
    first = task.HEADLINE
    metrics |= {f"test/control_{first}": control[f"test/{first}"], "val/series": len(y_val)}
    if len(y_val):
        lost_pt = task.loss_pt(scores.val, y_val).mean() - task.loss_pt(reference_scores.val, y_val).mean()
        metrics |= task.quality(scores.val, y_val, "val") | {f"val/{first}_drop_pt": lost_pt}
    sizes = sizes_of(manifest, dense.get("channels", 0))
    sizes["vs_dense/size_ratio"] = dense["bytes"] / manifest["bytes"]
    return Record(
        metrics=combined(metrics | sizes, summarize(raw)),
        energy_source=raw["source"],
        invalid_reasons=invalid,
        warnings=warnings,
        raw=raw,
        scores=scores.test,
        reference_scores=reference_scores.test,
        labels=dataset.y_test,
        manifest=manifest,
        hardware=hardware.describe(manifest["device"]),
    )


def combined(known: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Return all metrics of a record: those known before, of its windows, and what follows from both."""
    numbers = known | measured
    if numbers.get("test/accuracy") and "energy/per_inference_j" in numbers:
        numbers["energy/per_correct_j"] = numbers["energy/per_inference_j"] / numbers["test/accuracy"]
    # An invalid record may divide by zero.
    return {k: float(v) for k, v in numbers.items() if np.isfinite(v)}


def sizes_of(manifest: dict[str, Any], dense_channels: int) -> dict[str, float]:
    """Parameters, bytes, MACs per series where they are known, and the share of channels that was pruned.

    Parameters
    ----------
    manifest
        Of the artifact.
    dense_channels
        That the model had before; 0 if it has none to prune.
    """
    sizes = {"size/parameters": manifest["parameters"], "size/bytes": manifest["bytes"]}
    if manifest["macs"] is not None:
        sizes["size/macs"] = manifest["macs"]
    if "channels" in manifest and dense_channels:
        sizes["prune/achieved_ratio"] = 1 - manifest["channels"] / dense_channels
    return sizes


SUBJECTS = ("artifact", "reference")


def doubts(raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Judge a measurement: (reasons why it is invalid, warnings)."""
    windows = [w for w in raw["windows"] if w["subject"] != "idle" and not w["discarded"]]
    said = raw.get("meter", {})  # by what filled the joules in (`meters.LateMeter`)
    invalid = list(said.get("invalid", ()))
    if any(_joules(w) <= 0 for w in windows):
        invalid.append("a window with zero or negative energy")
    if not invalid and any(w["energy_j"] is None for w in windows):
        invalid.append("a window whose energy the meter did not tell")
    if raw.get("source") == ESTIMATE and _elsewhere(raw):
        invalid.append(
            "the artifact or the reference works in processes of its own, which the estimate does not see"
        )
    for name in SUBJECTS:
        invalid += _wrong(raw, name)
    if invalid:
        return tuple(invalid), ()
    unsteady = [line for name in SUBJECTS for line in _unsteady(raw, name)]
    return (), (*said.get("warnings", ()), *unsteady, *_disturbed(raw, windows), *_wide(raw))


def _elsewhere(raw: dict[str, Any]) -> bool:
    """Whether part of the work is done in child processes."""
    own_s = sum(w["cpu_s"] for w in raw["windows"] if w["subject"] != "idle")
    return bool(raw.get("children_cpu_s", 0.0) > CHILDREN * own_s)


def _wrong(raw: dict[str, Any], name: str) -> list[str]:
    """Why nothing that was measured of this subject counts."""
    kept, found = _kept(raw, name), []
    if len(kept) < raw["repeats"]:
        found.append(
            f"only {len(kept)} of {raw['repeats']} windows of the {name}: the others were discarded "
            f"({_lost(raw)})"
        )
    short = sum(w["wall_s"] < SHORTEST * raw["window_s"] for w in kept)
    if short:
        found.append(f"{short} windows of the {name} shorter than {raw['window_s']:g} s: measure again")
    broken = {
        "same_outputs": f"the {name} answers the probe batch differently after the windows",
        "same_weights": f"the weights of the {name} {CHANGED}",
        "as_scored": f"the {name} {OTHERWISE}",
    }
    return found + [line for check, line in broken.items() if not raw[check][name]]


def _unsteady(raw: dict[str, Any], name: str) -> list[str]:
    each, found = _per_inference(raw, name), []
    values = each["energy_j"]
    middles = _medians(values, each["process"])
    variation = 100 * float(middles.std(ddof=1) / middles.mean()) if len(middles) > 1 else 0.0
    if variation > VARIATION_PCT:
        found.append(f"energy of the {name} varies by {variation:.0f} % between processes")
    third = max(1, len(values) // 3)
    drift = 100 * abs(float(np.median(values[-third:]) / np.median(values[:third])) - 1)
    if drift > DRIFT_PCT:
        found.append(f"energy of the {name} drifts by {drift:.0f} %")
    return found


def _disturbed(raw: dict[str, Any], windows: list[dict[str, Any]]) -> list[str]:
    """What others did to the machine meanwhile."""
    found = []
    foreign_s = sum(w["foreign_cpu_s"] for w in windows) - raw.get("children_cpu_s", 0.0)
    foreign = max(0.0, foreign_s) / sum(w["wall_s"] for w in windows)
    if foreign > FOREIGN_CORES:
        found.append(f"foreign load of {foreign:.1f} cores: trust vs_dense/cpu_speedup, not vs_dense/speedup")
    if _elsewhere(raw):
        found.append("work in child processes: trust vs_dense/speedup, not vs_dense/cpu_speedup")
    if raw.get("throttle_events"):
        found.append(f"{raw['throttle_events']} thermal throttling events")
    if raw.get("allocator"):
        found.append(f"memory by other rules ({', '.join(raw['allocator'])}): compare only with the same")
    if raw.get("threads_spin"):
        found.append(
            f"{raw['threads']} threads, of which PyTorch's may spin while they wait, which counts as work: "
            "start Python with OMP_WAIT_POLICY=PASSIVE"
        )
    slowed = [w for w in windows if w.get("gpu_slowed_by")]
    if slowed:
        by = sorted({reason for w in slowed for reason in w["gpu_slowed_by"]})
        found.append(f"GPU slowed down by {' and '.join(by)} in {len(slowed)} of {len(windows)} windows")
    others = max(w.get("gpu_foreign") or 0 for w in windows)
    if others:
        found.append(f"other processes on the GPU: up to {others}")
    discarded = sum(w["discarded"] for w in raw["windows"])
    if discarded:
        found.append(f"{discarded} windows discarded ({_lost(raw)})")
    return found


def _lost(raw: dict[str, Any]) -> str:
    """Why windows were discarded."""
    unknown = any(w["discarded"] and w["energy_j"] is None for w in raw["windows"])
    return "the meter did not tell" if unknown else "counter wrap"


def _wide(raw: dict[str, Any]) -> list[str]:
    stats = summarize(raw)
    width = stats["vs_dense/energy_saving_hi"] - stats["vs_dense/energy_saving_lo"]
    if width <= WIDE_PT:
        return []
    return [f"the interval of the saving is {width:.0f} points wide: more measure.processes narrow it"]


def _kept(raw: dict[str, Any], subject: str) -> list[dict[str, Any]]:
    return sorted(
        (w for w in raw["windows"] if w["subject"] == subject and not w["discarded"]), key=lambda w: w["pair"]
    )


def _per_inference(raw: dict[str, Any], subject: str) -> dict[str, FloatArray]:
    """Per pair, in order: wall seconds, CPU seconds and joules of one series; and the process."""
    kept = _kept(raw, subject)
    values = {k: np.array([w[k] / w["inferences"] for w in kept]) for k in ("wall_s", "cpu_s")}
    values["energy_j"] = np.array([_joules(w) / w["inferences"] for w in kept])
    return values | {"process": np.array([w["process"] for w in kept])}


def _idle_power_w(raw: dict[str, Any]) -> float:
    idle = [w for w in raw["windows"] if w["subject"] == "idle" and not w["discarded"]]
    watts = [_joules(w) / w["wall_s"] for w in idle if w["energy_j"] is not None]
    return float(np.mean(watts)) if watts else float("nan")


def _joules(window: dict[str, Any]) -> float:
    """NaN where the meter does not know them."""
    return float("nan") if window["energy_j"] is None else float(window["energy_j"])
