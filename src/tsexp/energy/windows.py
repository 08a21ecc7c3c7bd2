"""The window protocol: reference and artifact, alternating, in one process, with everything slow done before.

Nothing here knows what a model is: a subject is a callable on batches of raw series. Nothing here computes a statistic either: every
window is returned as it was read.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from tsexp.data import FloatArray
from tsexp.energy.meters import IMPOSSIBLE_W, Meter

Subject = Callable[[FloatArray], Any]

HEADROOM = 1.25
"""Windows are calibrated this much longer than asked, so that a faster moment does not make one too short."""
RESOLUTIONS = 20
"""A window lasts at least this many of the meter's own refresh periods."""
DISTINCT_BATCHES = 32
"""Batches that a window cycles through."""
PROBE = 8
"""Series in the probe batch."""


@dataclass(frozen=True)
class Plan:
    """The ``measure`` group's part of the protocol; `planted` is extra uncounted work of the artifact, for the self-test."""

    batch_size: int
    repeats: int
    window_s: float
    idle_s: float
    latency_calls: int
    seed: int
    planted: float = 0.0


def run(
    artifact: Subject,
    reference: Subject,
    series: FloatArray,
    meter: Meter,
    plan: Plan,
    advance: Callable[[str], None] = lambda _: None,
    look: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Measure `artifact` against `reference`.

    Parameters
    ----------
    artifact, reference
        Called with float32 (batch_size, channels, time).
    series
        The test split, (series, channels, time).
    meter
        Reads each window.
    plan
        How many windows, how long.
    advance
        Called between windows, never inside one.
    look
        Called right after each window of a subject; what it saw is kept with the window.

    Returns
    -------
    dict
        JSON values only: ``windows`` (each with subject, pair, wall_s, cpu_s, energy_j, inferences, foreign_cpu_s, discarded, and
        what `look` saw), ``latencies_ms`` by subject, ``calls_per_window``, ``window_s`` (the length asked for, or more where the meter is
        slow), ``source``, ``scope``.
    """
    subjects: Mapping[str, Subject] = {"reference": reference, "artifact": artifact}
    order = random.Random(plan.seed)
    draw = np.random.default_rng(plan.seed)
    window_s = max(plan.window_s, RESOLUTIONS * meter.resolution_s)
    idle_s = max(plan.idle_s, RESOLUTIONS * meter.resolution_s)
    windows: list[dict[str, Any]] = []

    def batches() -> list[FloatArray]:
        count = DISTINCT_BATCHES * plan.batch_size
        index = np.resize(draw.permutation(len(series)), count)
        return [np.ascontiguousarray(series[i]) for i in np.split(index, DISTINCT_BATCHES)]

    def window(name: str, pair: int, calls: int, feed: list[FloatArray]) -> dict[str, Any]:
        extra = round(calls * plan.planted) if name == "artifact" else 0
        read = _read(meter, lambda: _work(subjects[name], feed, calls + extra))
        return {"subject": name, "pair": pair, **read, "inferences": calls * plan.batch_size, **look()}

    with _quiet():
        feed = batches()
        calls = {}
        for name, subject in subjects.items():
            _work(subject, feed, 3)
            calls[name] = _calibrate(subject, feed, window_s * HEADROOM)
            advance("warm-up")
        # Zeus starts its helper processes inside the first window: thrown away.
        _read(meter, lambda: time.sleep(0.01))
        for name in subjects:
            for _ in range(5):
                wall_s = window(name, -1, calls[name], feed)["wall_s"]
                if wall_s >= window_s:
                    break
                # Calibrated while the machine was busy: it has become faster since.
                calls[name] = max(calls[name] + 1, int(np.ceil(calls[name] * window_s * HEADROOM / wall_s)))
            advance("warm-up")
        windows.append({"subject": "idle", "pair": -1, **_read(meter, lambda: time.sleep(idle_s)), "inferences": 0})
        advance("idle")
        done = attempts = 0
        while done < plan.repeats and attempts < 2 * plan.repeats:
            feed = batches()
            names = list(subjects)
            order.shuffle(names)
            both = [window(name, done, calls[name], feed) for name in names]
            windows += both
            attempts += 1
            if any(w["discarded"] for w in both):
                for w in both:
                    w["discarded"] = True
                time.sleep(1.2)  # Zeus' wrap tracker looks once a second
                continue
            done += 1
            advance(f"pair {done}")
        windows.append({"subject": "idle", "pair": done, **_read(meter, lambda: time.sleep(idle_s)), "inferences": 0})
        advance("idle")
        latencies = {name: _latencies(subjects[name], batches(), plan.latency_calls) for name in subjects}
        advance("latency")
    return {
        "windows": windows,
        "latencies_ms": latencies,
        "calls_per_window": calls,
        "batch_size": plan.batch_size,
        "repeats": plan.repeats,
        "window_s": window_s,
        "planted": plan.planted,
        "source": meter.source,
        "scope": meter.scope,
    }


def steps(plan: Plan) -> int:
    """How often `run` calls ``advance``."""
    return 4 + 2 + plan.repeats + 1


def _work(subject: Subject, feed: list[FloatArray], calls: int) -> None:
    for i in range(calls):
        subject(feed[i % len(feed)])


def _read(meter: Meter, work: Callable[[], None]) -> dict[str, Any]:
    busy, cpu, wall = _busy_s(), time.process_time(), time.perf_counter()
    meter.begin()
    work()
    energy_j = meter.end()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "energy_j": energy_j,
        # CPU time of everybody else; the system counts in ticks of 10 ms, hence the floor.
        "foreign_cpu_s": max(0.0, _busy_s() - busy - cpu_s),
        "discarded": energy_j < 0 or energy_j > IMPOSSIBLE_W * wall_s,
    }


def _busy_s() -> float:
    t = psutil.cpu_times()
    return float(t.user + t.system + getattr(t, "nice", 0.0) + getattr(t, "steal", 0.0) + getattr(t, "irq", 0.0) + getattr(t, "softirq", 0.0))


def _calibrate(subject: Subject, feed: list[FloatArray], window_s: float) -> int:
    """Calls that fill a window, from the fastest of several short stretches: a disturbed one would make windows too short."""
    calls = 1
    while True:
        start = time.perf_counter()
        _work(subject, feed, calls)
        if time.perf_counter() - start >= min(0.05, window_s / 4):
            break
        calls *= 2
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        _work(subject, feed, calls)
        best = min(best, time.perf_counter() - start)
    return max(1, int(np.ceil(window_s / best * calls)))


def quick_cpu_ms(subject: Subject, feed: list[FloatArray], window_s: float = 0.2, rounds: int = 5) -> float:
    """CPU milliseconds per series, the best of several short stretches: enough to choose by, no measurement."""
    calls = _calibrate(subject, feed, window_s)
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        _work(subject, feed, calls)
        seconds.append(time.process_time() - start)
    return 1e3 * min(seconds) / (calls * len(feed[0]))


def _latencies(subject: Subject, feed: list[FloatArray], calls: int) -> list[float]:
    """Milliseconds of each call, in a pass of its own: reading the clock disturbs."""
    times = []
    for i in range(calls):
        batch = feed[i % len(feed)]
        start = time.perf_counter_ns()
        subject(batch)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection inside windows."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
