"""From the windows of a measurement to its numbers and their 95 % intervals.

Whatever is estimated is estimated in one way (`estimate`): of each process the median over its windows, of
the medians' logarithms a least-squares fit that takes out what it does to be loaded or used first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsexp.data import FloatArray
from tsexp.energy.windows import SUBJECTS
from tsexp.marks import ENDS

QUANTILE, STOPPING_QUANTILE = 0.975, 0.985
"""Of t, at an interval's upper end: usually; and where measuring stops as soon as the interval is narrow
(`measure.target_pct`), which it is sooner where the processes agree by chance. Coverage of both, simulated:
``tests/test_intervals.py``."""


class Estimate(NamedTuple):
    """A logarithm, its standard error, and the degrees of freedom of that; NaN and 0 where there is none."""

    value: float
    standard_error: float
    degrees: int

    def interval(self, quantile: float = QUANTILE) -> tuple[float, float, float]:
        """Return the value and the ends of its t interval; NaN where there is none."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.degrees, quantile) * self.standard_error) if self.degrees else np.nan
        return self.value, self.value - reach, self.value + reach


def estimate(medians: FloatArray, orders: FloatArray) -> Estimate:
    """Fit medians of processes by least squares on (1, loaded first, used first).

    On some CPUs the subject loaded first is 5 % slower for as long as the process lives, where processes of
    the same order differ by .7 %: left in, the order would be most of the scatter, and a bias where it is
    not balanced.

    Parameters
    ----------
    medians
        Logarithms, one for each process: (processes,).
    orders
        ½ where the artifact was loaded first, and where it was used first, else -½: (processes, 2).

    Returns
    -------
    Estimate
        Of the constant, which is what is left with neither subject first. It has no standard error of three
        processes or fewer, and is NaN if a median is.
    """
    n = len(medians)
    design = np.column_stack([np.ones(n), orders])
    if not np.isfinite(medians).all():
        return Estimate(np.nan, np.nan, 0)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return Estimate(float(medians.mean()), np.nan, 0)
    inverse = np.linalg.inv(design.T @ design)
    fitted = inverse @ design.T @ medians
    degrees = n - len(fitted)
    variance = float(((medians - design @ fitted) ** 2).sum()) / degrees if degrees else np.nan
    return Estimate(float(fitted[0]), float(np.sqrt(variance * inverse[0, 0])), degrees)


def summarize(raw: dict[str, Any]) -> dict[str, float]:
    """Numbers of the raw windows, recomputable at any time from ``windows.json``.

    A speedup is the ratio reference / artifact, a saving 1 - artifact / reference, per series; the net saving
    is that of energy without idle power, by the idle window of each process.
    """
    if not all(kept(raw, name) for name in SUBJECTS):
        return {}  # every pair was discarded; `validity` says so
    artifact, reference = (per_series(raw, name) for name in SUBJECTS)
    windows = kept(raw, "artifact")
    p50, p90, p99 = np.percentile(raw["latencies_ms"], [50, 90, 99])
    faster, less_cpu, less_energy, less_net = (
        _log_ratio(raw, key) for key in ("wall_s", "cpu_s", "energy_j", "net_j")
    )
    return {
        "energy/per_inference_j": float(np.median(artifact["energy_j"])),
        "energy/reference_per_inference_j": float(np.median(reference["energy_j"])),
        # Without an idle window there is no net energy; NaN is not stored.
        "energy/per_inference_net_j": float(np.median(artifact["net_j"])),
        "energy/window_j": float(np.median([joules(w) for w in windows])),
        "power/mean_w": float(np.median([joules(w) / w["wall_s"] for w in windows])),
        "power/idle_w": _mean_idle_w(raw),
        "latency/p50_ms": float(p50),
        "latency/p90_ms": float(p90),
        "latency/p99_ms": float(p99),
        "throughput/series_per_s": float(1 / np.median(artifact["wall_s"])),
        "measure/window_wall_s": float(np.median([w["wall_s"] for w in windows])),
        "measure/pairs": len(windows),
        "measure/processes": raw["processes"],
        "measure/meter_overhead_ms": 1e3 * float(np.median(raw["meter_overhead_s"])),
        **_start_up(raw),
        **{f"vs_dense/speedup{end}": float(np.exp(v)) for end, v in zip(ENDS, faster, strict=True)},
        **{f"vs_dense/cpu_speedup{end}": float(np.exp(v)) for end, v in zip(ENDS, less_cpu, strict=True)},
        **_saving("energy_saving", less_energy),
        **_saving("net_saving", less_net),
    }


def reach_pct(raw: dict[str, Any]) -> float:
    """How far the interval of the saving reaches, to either side, in per cent of what is left.

    Infinite while it is not known.
    """
    _, low, high = _log_ratio(raw, "energy_j")
    return 100 * float(np.sinh((high - low) / 2)) if np.isfinite(high - low) else np.inf


def energy_interval_j(raw: dict[str, Any]) -> tuple[float, float]:
    """95 % interval of the artifact's joules per series; NaN if a window has no energy."""
    artifact = per_series(raw, "artifact")
    with np.errstate(all="ignore"):
        logs = np.log(artifact["energy_j"])
    _, low, high = estimate(*_by_process(raw, logs, artifact["process"])).interval(_quantile(raw))
    return float(np.exp(low)), float(np.exp(high))


def pooled_saving(raws: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Saving in per cent with its 95 % interval, over the processes of several measurements of one pair."""
    medians, orders = zip(*(_medians(raw, "energy_j") for raw in raws), strict=True)
    ends = estimate(np.concatenate(medians), np.concatenate(orders)).interval()
    return tuple(_saving("", ends).values())  # type: ignore[return-value]


def scatter_p(raws: Sequence[dict[str, Any]]) -> float:
    """How likely measurements of an artifact against itself scatter so, if their intervals are right.

    Each round's t value (the truth is 0) becomes the normal score of the same rank; the sum of their squares
    is χ² distributed, whatever the noise of each round is. A bias shows, too. (Comparing mean squares, an F
    test, blames one right meter in 15 where the noise changes.)
    """
    from scipy.special import chdtrc, ndtri, stdtr

    rounds = [estimate(*_medians(raw, "energy_j")) for raw in raws]
    scores = [ndtri(stdtr(one.degrees, -abs(one.value / one.standard_error))) for one in rounds]
    return float(chdtrc(len(scores), np.square(scores).sum()))


def kept(raw: dict[str, Any], subject: str) -> list[dict[str, Any]]:
    """Windows of a subject that were not discarded, pair by pair."""
    windows = (w for w in raw["windows"] if w["subject"] == subject and not w["discarded"])
    return sorted(windows, key=lambda w: w["pair"])


def per_series(raw: dict[str, Any], subject: str) -> dict[str, FloatArray]:
    """Of each window of a subject: seconds and joules of one series, and the process; (windows,) each."""
    windows = kept(raw, subject)
    values = {k: np.array([w[k] / w["inferences"] for w in windows]) for k in ("wall_s", "cpu_s")}
    process = np.array([w["process"] for w in windows])
    values["energy_j"] = np.array([joules(w) / w["inferences"] for w in windows])
    idle_w = _idle_w(raw)
    values["net_j"] = values["energy_j"] - np.array([idle_w[p] for p in process]) * values["wall_s"]
    return values | {"process": process}


def joules(window: dict[str, Any]) -> float:
    """NaN where the meter does not know them."""
    return float("nan") if window["energy_j"] is None else float(window["energy_j"])


def _log_ratio(raw: dict[str, Any], key: str) -> tuple[float, float, float]:
    """Logarithm of reference / artifact with its interval; NaN if a window has none."""
    return estimate(*_medians(raw, key)).interval(_quantile(raw))


def _medians(raw: dict[str, Any], key: str) -> tuple[FloatArray, FloatArray]:
    """Of each process, the median logarithm of reference / artifact over its pairs, and its order."""
    artifact, reference = (per_series(raw, name) for name in SUBJECTS)
    with np.errstate(all="ignore"):
        logs = np.log(reference[key]) - np.log(artifact[key])
    return _by_process(raw, logs, artifact["process"])


def _by_process(
    raw: dict[str, Any], values: FloatArray, process: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Medians (processes,) of windows' values, and the orders (processes, 2)."""
    there = np.unique(process)
    orders = [
        [0.5 if raw["orders"][p][turn][0] == "artifact" else -0.5 for turn in ("load", "use")] for p in there
    ]
    return np.array([np.median(values[process == p]) for p in there]), np.array(orders)


def _quantile(raw: dict[str, Any]) -> float:
    return QUANTILE if raw.get("target_pct") is None else STOPPING_QUANTILE


def _saving(name: str, logs: tuple[float, float, float]) -> dict[str, float]:
    """Per cent, of the logarithm of reference / artifact and its ends."""
    return {
        f"vs_dense/{name}{end or '_pct'}": 100 * float(-np.expm1(-v))
        for end, v in zip(ENDS, logs, strict=True)
    }


def _idle_w(raw: dict[str, Any]) -> dict[int, float]:
    """Of each process, the power of its idle window; NaN without one.

    Its own, for the noise of the idle power is then in what differs between processes, and in the interval.
    """
    idle = {w["process"]: joules(w) / w["wall_s"] for w in kept(raw, "idle")}
    return {p: idle.get(p, float("nan")) for p in range(len(raw["orders"]))}


def _mean_idle_w(raw: dict[str, Any]) -> float:
    watts = [joules(w) / w["wall_s"] for w in kept(raw, "idle") if w["energy_j"] is not None]
    return float(np.mean(watts)) if watts else float("nan")


def _start_up(raw: dict[str, Any]) -> dict[str, float]:
    """Of loading the artifact and of its first call: milliseconds and joules, medians over processes."""
    each = raw["started"]["artifact"]
    known = {k: [one[k] for one in each if one[k] is not None] for k in each[0]}
    middle = {k: float(np.median(values)) if values else np.nan for k, values in known.items()}
    return {
        "cost/load_ms": 1e3 * middle["load_s"],
        "cost/load_j": middle["load_j"],
        "cost/first_call_ms": 1e3 * middle["first_call_s"],
        "cost/first_call_j": middle["first_call_j"],
    }
