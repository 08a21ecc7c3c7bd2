"""From raw windows and scores to the numbers that are kept, and whether they may be trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsexp.data import FloatArray, IntArray

VARIATION_PCT = 5.0
DRIFT_PCT = 5.0
FOREIGN_CORES = 0.1
WIDE_PT = 10.0
SHORTEST = 0.9
"""Windows shorter than this share of the length asked for make a record invalid."""


@dataclass(frozen=True)
class Record:
    """One measurement of one artifact.

    Attributes
    ----------
    metrics
        By the fixed names (README: the numbers).
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


def summarize(raw: dict[str, Any], seed: int = 0) -> dict[str, float]:
    """Statistics of the raw windows, recomputable at any time from ``windows.json``.

    A speedup is the median over pairs of reference / artifact, a saving that of 1 - artifact / reference,
    with a 95 % percentile bootstrap interval over pairs.
    """
    if not _kept(raw, "artifact") or not _kept(raw, "reference"):
        return {}  # every pair was discarded; `doubts` says so
    art, ref = (_per_inference(raw, s) for s in ("artifact", "reference"))
    idle_w = _idle_power_w(raw)
    wall = [w["wall_s"] for w in _kept(raw, "artifact")]
    latency = np.array(raw["latencies_ms"]["artifact"])
    speedup = _median_interval(ref["wall_s"] / art["wall_s"], seed)
    cpu_speedup = _median_interval(ref["cpu_s"] / np.maximum(art["cpu_s"], 1e-12), seed)
    with np.errstate(all="ignore"):  # 0 J makes the record invalid
        saved_pct = 100 * (1 - art["energy_j"] / ref["energy_j"])
    saving = _median_interval(saved_pct, seed)
    p50, p90, p99 = np.percentile(latency, [50, 90, 99])
    return {
        "energy/per_inference_j": float(np.median(art["energy_j"])),
        # Without an idle window there is no net energy; NaN is not stored.
        "energy/per_inference_net_j": float(np.median(art["energy_j"] - idle_w * art["wall_s"])),
        "energy/window_j": float(np.median([w["energy_j"] for w in _kept(raw, "artifact")])),
        "power/mean_w": float(np.median([w["energy_j"] / w["wall_s"] for w in _kept(raw, "artifact")])),
        "power/idle_w": idle_w,
        "latency/p50_ms": float(p50),
        "latency/p90_ms": float(p90),
        "latency/p99_ms": float(p99),
        "throughput/series_per_s": float(1 / np.median(art["wall_s"])),
        "memory/peak_mb": float(raw["peak_mb"]),
        "measure/window_wall_s": float(np.median(wall)),
        "vs_dense/speedup": speedup[0],
        "vs_dense/speedup_lo": speedup[1],
        "vs_dense/speedup_hi": speedup[2],
        "vs_dense/cpu_speedup": cpu_speedup[0],
        "vs_dense/cpu_speedup_lo": cpu_speedup[1],
        "vs_dense/cpu_speedup_hi": cpu_speedup[2],
        "vs_dense/energy_saving_pct": saving[0],
        "vs_dense/energy_saving_lo": saving[1],
        "vs_dense/energy_saving_hi": saving[2],
    }


def score(scores: FloatArray, reference: FloatArray, labels: IntArray, seed: int = 0) -> dict[str, float]:
    """Quality on the test split, and the drop against the reference with an interval over paired predictions (points)."""
    from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

    from tsexp.runtimes import softmax

    # Whoever answers NaN makes the record invalid; its quality is that of guessing.
    scores, reference = np.nan_to_num(scores), np.nan_to_num(reference)
    right, right_ref = scores.argmax(1) == labels, reference.argmax(1) == labels
    # Resampling series with replacement only redraws how many pairs differ by -1, 0 and +1.
    lost, gained = int((right_ref & ~right).sum()), int((right & ~right_ref).sum())
    n = len(labels)
    # Half a pair is added to each kind, unless the scores are the very same: no flip among n series is not proof that none can happen.
    half = 0.0 if np.array_equal(scores, reference) else 0.5
    odds = np.array([lost + half, gained + half, n - lost - gained + half]) / (n + 3 * half)
    draws = np.random.default_rng(seed).multinomial(n, odds, size=10_000)
    low, high = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / n, [2.5, 97.5])
    return {
        "test/accuracy": float(right.mean()),
        "test/balanced_accuracy": float(balanced_accuracy_score(labels, scores.argmax(1))),
        "test/macro_f1": float(f1_score(labels, scores.argmax(1), average="macro", zero_division=0)),
        "test/nll": float(log_loss(labels, softmax(scores.astype(np.float64)), labels=np.arange(scores.shape[1]))),
        "vs_dense/accuracy_drop_pt": 100 * (lost - gained) / n,
        "vs_dense/accuracy_drop_lo": float(low),
        "vs_dense/accuracy_drop_hi": float(high),
    }


def doubts(raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Judge a measurement: (reasons why it is invalid, warnings)."""
    invalid, warn = [], []
    windows = [w for w in raw["windows"] if w["subject"] != "idle" and not w["discarded"]]
    if any(w["energy_j"] <= 0 for w in windows):
        invalid.append("a window with zero or negative energy")
    for name in ("artifact", "reference"):
        kept = _kept(raw, name)
        if len(kept) < raw["repeats"]:
            invalid.append(f"only {len(kept)} of {raw['repeats']} windows of the {name}: the others were discarded (counter wrap)")
        short = sum(w["wall_s"] < SHORTEST * raw["window_s"] for w in kept)
        if short:
            invalid.append(f"{short} windows of the {name} shorter than {raw['window_s']:g} s")
        if not raw["same_outputs"][name]:
            invalid.append(f"the {name} answers the probe batch differently after the windows")
        if not raw["same_weights"][name]:
            invalid.append(f"the weights of the {name} changed while it was measured")
    if invalid:
        return tuple(invalid), ()
    for name in ("artifact", "reference"):
        values = _per_inference(raw, name)["energy_j"]
        variation = 100 * float(values.std(ddof=1) / values.mean())
        if variation > VARIATION_PCT:
            warn.append(f"energy of the {name} varies by {variation:.0f} % between windows")
        third = max(1, len(values) // 3)
        drift = 100 * abs(float(np.median(values[-third:]) / np.median(values[:third])) - 1)
        if drift > DRIFT_PCT:
            warn.append(f"energy of the {name} drifts by {drift:.0f} %")
    foreign = sum(w["foreign_cpu_s"] for w in windows) / sum(w["wall_s"] for w in windows)
    if foreign > FOREIGN_CORES:
        warn.append(f"foreign load of {foreign:.1f} cores: trust vs_dense/cpu_speedup, not vs_dense/speedup")
    if raw.get("throttle_events"):
        warn.append(f"{raw['throttle_events']} thermal throttling events")
    slowed = [w for w in windows if w.get("gpu_slowed_by")]
    if slowed:
        by = sorted({reason for w in slowed for reason in w["gpu_slowed_by"]})
        warn.append(f"GPU slowed down by {' and '.join(by)} in {len(slowed)} of {len(windows)} windows")
    others = max(w.get("gpu_foreign") or 0 for w in windows)
    if others:
        warn.append(f"other processes on the GPU: up to {others}")
    discarded = sum(w["discarded"] for w in raw["windows"])
    if discarded:
        warn.append(f"{discarded} windows discarded (counter wrap)")
    stats = summarize(raw)
    width = stats["vs_dense/energy_saving_hi"] - stats["vs_dense/energy_saving_lo"]
    if width > WIDE_PT:
        warn.append(f"the interval of the saving is {width:.0f} points wide; more measure.repeats or measure.window_s narrow it")
    return (), tuple(warn)


def _kept(raw: dict[str, Any], subject: str) -> list[dict[str, Any]]:
    return sorted((w for w in raw["windows"] if w["subject"] == subject and not w["discarded"]), key=lambda w: w["pair"])


def _per_inference(raw: dict[str, Any], subject: str) -> dict[str, FloatArray]:
    """Per pair, in order: wall seconds, CPU seconds and joules of one series."""
    kept = _kept(raw, subject)
    return {k: np.array([w[k] / w["inferences"] for w in kept]) for k in ("wall_s", "cpu_s", "energy_j")}


def _idle_power_w(raw: dict[str, Any]) -> float:
    idle = [w for w in raw["windows"] if w["subject"] == "idle" and not w["discarded"]]
    return float(np.mean([w["energy_j"] / w["wall_s"] for w in idle])) if idle else float("nan")


def _median_interval(values: FloatArray, seed: int) -> tuple[float, float, float]:
    from scipy.stats import bootstrap

    if not np.isfinite(values).all():
        return (float("nan"),) * 3
    if np.ptp(values) == 0:  # nothing to resample
        return (float(values[0]),) * 3
    interval = bootstrap(
        (values,), np.median, n_resamples=5000, confidence_level=0.95, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(np.median(values)), float(interval.low), float(interval.high)
