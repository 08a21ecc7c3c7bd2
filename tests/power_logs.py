"""Made measurements with a power curve that is known, and the logs of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.energy.windows import orders

WATTS = {"idle": 12.0, "artifact": 31.0, "reference": 27.0, "warm-up": 29.0}
SPEEDUP = 1.25
START = 1_760_000_000.0


@dataclass
class Made:
    """A schedule, and the power of each stretch of it: (start, end, watts)."""

    windows: list[dict[str, Any]]
    orders: list[dict[str, list[str]]]
    stretches: list[tuple[float, float, float]] = field(repr=False)

    def watts(self, unix_s: np.ndarray) -> np.ndarray:
        """The curve."""
        starts = np.array([s for s, _, _ in self.stretches])
        levels = np.array([w for _, _, w in self.stretches])
        return levels[np.clip(np.searchsorted(starts, unix_s, side="right") - 1, 0, len(levels) - 1)]

    @property
    def truth_j(self) -> np.ndarray:
        """The curve's integral over each window."""
        return np.array(
            [
                sum(
                    watts * max(0.0, min(end, w["end_unix_s"]) - max(start, w["start_unix_s"]))
                    for start, end, watts in self.stretches
                )
                for w in self.windows
            ]
        )

    def raw(self, **changes: Any) -> dict[str, Any]:
        """The measurement as ``windows.json`` has it, with an estimate of 10 W."""
        processes = 1 + max(w["process"] for w in self.windows)
        both = dict.fromkeys(("artifact", "reference"), True)
        started = {"load_s": 0.1, "load_j": 1.0, "first_call_s": 0.01, "first_call_j": 0.1}
        return {
            "windows": [dict(w) for w in self.windows],
            "latencies_ms": [1.0, 2.0],
            "started": {s: [started] * processes for s in both},
            "meter_overhead_s": [0.0],
            "same_outputs": both,
            "same_weights": both,
            "as_scored": both,
            "throttle_events": None,
            "orders": self.orders,
            "window_s": min(w["wall_s"] for w in self.windows if w["subject"] != "idle"),
            "source": "estimated:cpu_time",
            "scope": "an estimate",
            "batch_size": 1,
            "processes": processes,
            "repeats": sum(w["subject"] == "artifact" for w in self.windows),
        } | changes


def make(
    processes: int = 8,
    pairs: int = 4,
    window_s: float = 25.0,
    watts: dict[str, float] = WATTS,
    seed: int = 0,
) -> Made:
    """The protocol: loading, warm-up, an idle window, pairs in random order, latencies."""
    rng = np.random.default_rng(seed)
    now, pair = START, 0
    windows: list[dict[str, Any]] = []
    stretches = [(now - 100, now, watts["idle"])]

    def stretch(subject: str, seconds: float) -> tuple[float, float]:
        nonlocal now
        stretches.append((now, now + seconds, watts[subject]))
        now += seconds
        return now - seconds, now

    def window(process: int, subject: str, number: int) -> None:
        start, end = stretch(subject, window_s * rng.uniform(1, 1.03))
        wall_s = end - start
        windows.append(
            {
                "process": process,
                "subject": subject,
                "pair": number,
                "start_unix_s": start,
                "end_unix_s": end,
                "wall_s": wall_s,
                "cpu_s": wall_s,
                "energy_j": 10 * wall_s,
                "inferences": 0
                if subject == "idle"
                else round(1000 * wall_s * (SPEEDUP if subject == "artifact" else 1)),
                "foreign_cpu_s": 0.0,
                "discarded": False,
            }
        )

    for process in range(processes):
        stretch("warm-up", 3.0 + 1.5 * window_s)
        window(process, "idle", -1)
        for _ in range(pairs):
            for subject in rng.permutation(["artifact", "reference"]):
                stretch("warm-up", window_s / 200)
                window(process, str(subject), pair)
            pair += 1
        stretch("warm-up", 1.0)
    stretches.append((now, now + 100, watts["idle"]))
    both = ["artifact", "reference"]
    turns = [
        {k: sorted(both, key=first.__ne__) for k, first in zip(("load", "use"), order, strict=True)}
        for order in orders(processes, seed)
    ]
    return Made(windows, turns, stretches)


def sample(
    made: Made,
    interval_s: float = 1.0,
    noise_w: float = 0.15,
    jitter: float = 0.1,
    offset_s: float = 0.0,
    averaged: bool = False,
    seed: int = 0,
) -> np.ndarray:
    """Times by the log's clock, which is `offset_s` ahead, and watts: (samples, 2).

    `averaged`: a sample is the mean over the interval before it.
    """
    rng = np.random.default_rng(seed)
    start, end = made.stretches[0][0] + 30, made.stretches[-1][1] - 30
    times = np.arange(start, end, interval_s)
    times = times + rng.uniform(-jitter, jitter, len(times)) * interval_s
    fine = times[:, None] - interval_s * (np.linspace(0, 1, 50) if averaged else np.zeros(1))
    watts = made.watts(fine).mean(axis=1) + rng.normal(0, noise_w, len(times))
    return np.column_stack([times + offset_s, watts])


def write(path: Path, samples: np.ndarray, header: str = "time,watts") -> Path:
    """As a file."""
    lines = [f"{when:.3f},{watts:.3f}" for when, watts in samples]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path
