"""The window protocol: reference and artifact, alternating, in one process, with everything slow done before.

Nothing here knows what a model is: a subject is a callable on batches of raw series. Nothing here computes a
statistic either: every window is returned as it was read.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import psutil

from tsexp.data import FloatArray
from tsexp.energy.meters import IMPOSSIBLE_W, LateMeter, Meter
from tsexp.marks import ESTIMATED
from tsexp.system import cpu

Subject = Callable[[FloatArray], Any]

WARM_UP = (0.25, 0.5)
"""Of a window's length."""
LEAST_PAIRS = 4
"""Of a process whose windows a slow meter makes longer than asked: there are fewer, so that all of them take
no longer than needed."""
RESOLUTIONS = 20
"""A window lasts at least this many of the meter's own refresh periods."""
LOOKS = 32
"""How often a window looks at the clock, about: reading it disturbs."""
DISTINCT_BATCHES = 32
"""Batches that a window cycles through."""
EMPTY_WINDOWS = 20
"""From which the meter's own overhead is taken."""
QUICK_S, QUICK_ROUNDS = 0.2, 5
JUNK, JUNK_BYTES = 2000, 1 << 16
WARM_UP_CALLS = 3
SUBJECTS = ("artifact", "reference")


class Order(NamedTuple):
    """Which subject a process loads first, and which it uses first."""

    loaded: str
    used: str

    def opposite(self) -> Order:
        """Return the order with both turned round."""
        return Order(*(SUBJECTS[1 - SUBJECTS.index(first)] for first in self))


def orders(processes: int, seed: int) -> list[Order]:
    """Return an order for each process, balanced: the estimate is then free of what the order does.

    Of four processes in a row, each has another of the four orders; the second and the fourth are the
    opposite of the one before, so that of any even number half load, and half use, the artifact first.

    Parameters
    ----------
    processes
        Measuring processes, an even number.
    seed
        Shuffles the orders.
    """
    draw, every = random.Random(f"orders {seed}"), [Order(a, b) for a in SUBJECTS for b in SUBJECTS]
    made: list[Order] = []
    while len(made) < processes:
        first = draw.choice(every)
        second = draw.choice([o for o in every if o not in (first, first.opposite())])
        made += [first, first.opposite(), second, second.opposite()]
    return made[:processes]


@dataclass(frozen=True)
class Plan:
    """One process' part of the protocol.

    ``seed`` draws who goes first in a pair, and the series of each window; ``loaded_first`` and
    ``used_first`` are ``artifact`` or ``reference`` (`orders`); ``planted`` is extra work of the artifact, as
    a share, for the self-test.
    """

    batch_size: int
    pairs: int
    window_s: float
    idle_s: float
    latency_calls: int
    process: int
    seed: int
    loaded_first: str = SUBJECTS[0]
    used_first: str = SUBJECTS[0]
    planted: float = 0.0


def run(
    load: Mapping[str, Callable[[], Subject]],
    series: FloatArray,
    meter: Meter,
    plan: Plan,
    look: Callable[[], dict[str, Any]] = dict,
    check: Callable[[Mapping[str, Any]], Any] = lambda subjects: None,
) -> dict[str, Any]:
    """Load and measure ``artifact`` against ``reference``.

    What is loaded first and what is used first is as the plan says, for both shift a ratio by up to several
    per cent for as long as a process lives (docs/measuring.md). Half of the pairs begin with the artifact.

    Parameters
    ----------
    load
        ``artifact`` and ``reference``: return a subject, which is called with float32 (batch_size, channels,
        time).
    series
        The test split, (series, channels, time).
    meter
        Reads each window. Of a `LateMeter`, joules are None.
    plan
        How many windows, how long.
    look
        Called right after each window of a subject; what it saw is kept with the window.
    check
        Called with the subjects before the first window and after the last; what it returns is kept.

    Returns
    -------
    dict
        JSON values only (but for what `check` returned, ``before`` and ``after``): ``windows`` (each with
        process, subject, pair, start_unix_s, end_unix_s, wall_s, cpu_s, energy_j, inferences, foreign_cpu_s,
        discarded, and what `look` saw), ``latencies_ms`` of the artifact, ``started`` (per subject: load_s,
        load_j, first_call_s, first_call_j), ``orders``, ``meter_overhead_s``, ``children_cpu_s`` (of child
        processes, over all pairs), ``window_s`` (the length asked for, or more where the meter is slow),
        ``pairs`` (then fewer), ``source``, ``scope``.
    """
    bench = _Bench(load, series, meter, plan, look)
    _randomise_heap(bench.draw)
    turns = {"load": _beginning_with(plan.loaded_first), "use": _beginning_with(plan.used_first)}
    with _quiet():
        bench.warm_up_process(turns["load"][0])
        started = bench.start(turns)
        before = check(bench.subjects)
        bench.warm_up(turns["use"])
        overhead = [_read(bench.meter, lambda: None) for _ in range(EMPTY_WINDOWS)]
        windows = bench.idle()
        children_s = _children_s()  # Zeus' helpers are among them
        windows += bench.in_turns()
        children_s = _children_s() - children_s
        latencies = _latencies(bench.subjects["artifact"], bench.batches(), plan.latency_calls)
        after = check(bench.subjects)
    return {
        "windows": [{"process": plan.process, **w} for w in windows],
        "latencies_ms": latencies,
        "started": started,
        "orders": {turn: list(order) for turn, order in turns.items()},
        "meter_overhead_s": [w["wall_s"] for w in overhead],
        "children_cpu_s": children_s,
        "window_s": bench.window_s,
        "pairs": bench.pairs,
        "source": meter.source,
        "scope": meter.scope,
        "before": before,
        "after": after,
    }


class _Bench:
    """What the windows of a process share: the subjects, what they are fed, what reads them, and luck."""

    def __init__(
        self,
        load: Mapping[str, Callable[[], Subject]],
        series: FloatArray,
        meter: Meter,
        plan: Plan,
        look: Callable[[], dict[str, Any]],
    ) -> None:
        self.load, self.series, self.plan, self.look = load, series, plan, look
        self.order = random.Random(f"{plan.seed} {plan.process}")
        self.draw = np.random.default_rng([plan.seed, plan.process])
        self.window_s = max(plan.window_s, RESOLUTIONS * meter.resolution_s)
        self.idle_s = max(plan.idle_s, RESOLUTIONS * meter.resolution_s)
        self.pairs = max(min(LEAST_PAIRS, plan.pairs), round(plan.pairs * plan.window_s / self.window_s))
        self.meter = None if isinstance(meter, LateMeter) else meter
        self.subjects: dict[str, Subject] = {}
        self.stride = dict.fromkeys(load, 1)

    def batches(self) -> list[FloatArray]:
        index = np.resize(self.draw.permutation(len(self.series)), DISTINCT_BATCHES * self.plan.batch_size)
        return [np.ascontiguousarray(self.series[i]) for i in np.split(index, DISTINCT_BATCHES)]

    def warm_up_process(self, name: str) -> None:
        """Load a subject, use it, and throw it away: the first model of a process stays slower."""
        warm_up_model = self.load[name]()
        for batch in self.batches()[:WARM_UP_CALLS]:
            warm_up_model(batch)
        # Zeus starts its helper processes inside the first window: thrown away.
        _read(self.meter, lambda: time.sleep(0.01))

    def start(self, turns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float | None]]:
        """Load each subject and call it once; return what both took."""
        started: dict[str, dict[str, float | None]] = {}
        for name in turns["load"]:
            seen = _read(self.meter, lambda name=name: self.subjects.update({name: self.load[name]()}))  # type: ignore[misc]
            started[name] = {"load_s": seen["wall_s"], "load_j": _known_j(seen, self.meter)}
        feed = self.batches()
        for name in turns["use"]:
            seen = _read(self.meter, lambda name=name: self.subjects[name](feed[0]))  # type: ignore[misc]
            started[name] |= {"first_call_s": seen["wall_s"], "first_call_j": _known_j(seen, self.meter)}
        return started

    def warm_up(self, names: Sequence[str]) -> None:
        """Windows that do not count; the first tells how often to look at the clock."""
        feed = self.batches()
        for name in names:
            for share in WARM_UP:
                seen = self.window(name, -1, feed, share * self.window_s)
                calls = seen["inferences"] / self.plan.batch_size
                self.stride[name] = max(1, round(calls * self.window_s / seen["wall_s"] / LOOKS))

    def idle(self) -> list[dict[str, Any]]:
        seen = _read(self.meter, lambda: time.sleep(self.idle_s))
        return [{"subject": "idle", "pair": -1, **seen, "inferences": 0}]

    def in_turns(self) -> list[dict[str, Any]]:
        """All pairs; where a counter began anew in one, both windows are discarded, and it is tried again."""
        windows: list[dict[str, Any]] = []
        done = attempts = 0
        first = list(SUBJECTS) * (self.pairs // 2) + self.order.sample(SUBJECTS, self.pairs % 2)
        self.order.shuffle(first)
        while done < self.pairs and attempts < 2 * self.pairs:
            feed = self.batches()
            both = [self.window(name, done, feed, self.window_s) for name in _beginning_with(first[done])]
            windows += both
            attempts += 1
            if any(w["discarded"] for w in both):
                for w in both:
                    w["discarded"] = True
                time.sleep(1.2)  # Zeus' wrap tracker looks once a second
                continue
            done += 1
        return windows

    def window(self, name: str, pair: int, feed: list[FloatArray], at_least_s: float) -> dict[str, Any]:
        calls = 0
        planted = self.plan.planted if name == "artifact" else 0.0

        if _counts(self.meter):  # what it tells first may be older than the window, and of its neighbour
            _work(self.subjects[name], feed, self.meter.resolution_s, 1, planted)

        def work() -> None:
            nonlocal calls
            calls = _work(self.subjects[name], feed, at_least_s, self.stride[name], planted)

        seen = _read(self.meter, work)
        own = {"subject": name, "pair": pair, **seen, "inferences": calls * self.plan.batch_size}
        return own | self.look()


def _work(subject: Subject, feed: list[FloatArray], at_least_s: float, stride: int, planted: float) -> int:
    """Call until the time is over, looking at the clock every `stride` calls; return how many there were."""
    count, calls = len(feed), 0
    looked = time.perf_counter()
    end = looked + at_least_s
    while True:
        for i in range(calls, calls + stride):
            subject(feed[i % count])
        calls += stride
        before, looked = looked, time.perf_counter()
        if planted:
            _spin(planted * (looked - before))
            looked = time.perf_counter()
        if looked >= end:
            return calls


def _spin(seconds: float) -> None:
    """Be busy for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _read(meter: Meter | None, work: Callable[[], None]) -> dict[str, Any]:
    unix, busy, own, wall = time.time(), cpu.busy_s(), time.process_time(), time.perf_counter()
    if meter is not None:
        meter.begin()
    work()
    energy_j = None if meter is None else meter.end()
    wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - own
    unknown = energy_j is not None and not math.isfinite(energy_j)
    most_j = IMPOSSIBLE_W * wall_s if _counts(meter) else math.inf
    return {
        "start_unix_s": unix,
        "end_unix_s": unix + wall_s,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "energy_j": None if unknown else energy_j,
        # CPU time of everybody else. The system counts in ticks of 10 ms: right only in the sum over many
        # windows, and sometimes negative.
        "foreign_cpu_s": cpu.busy_s() - busy - cpu_s,
        "discarded": unknown or (energy_j is not None and not 0 <= energy_j <= most_j),
    }


def _counts(meter: Meter | None) -> TypeGuard[Meter]:
    """It reads what hardware refreshes now and then; an estimate is right at any time."""
    return meter is not None and not meter.source.startswith(ESTIMATED)


def _known_j(seen: dict[str, Any], meter: Meter | None) -> float | None:
    """Energy of what happens once; None if a counter began anew in it, or hardly moved."""
    moved = not _counts(meter) or seen["wall_s"] >= RESOLUTIONS * meter.resolution_s
    return seen["energy_j"] if moved and not seen["discarded"] else None


def _children_s() -> float:
    """CPU seconds of all child processes, and of theirs; those that ended are included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ends just now
            t = child.cpu_times()
            seconds += t.user + t.system + t.children_user + t.children_system
    return float(seconds)


def quick_ms(subject: Subject, feed: list[FloatArray], clock: Callable[[], float]) -> float:
    """Milliseconds per series by a clock, the best of several short stretches.

    Enough to choose by, no measurement.
    """
    stride = _work(subject, feed, QUICK_S / 4, 1, 0.0)
    best = float("inf")
    for _ in range(QUICK_ROUNDS):
        start = clock()
        calls = _work(subject, feed, QUICK_S, max(1, stride // 8), 0.0)
        best = min(best, (clock() - start) / calls)
    return 1e3 * best / len(feed[0])


def _beginning_with(first: str) -> tuple[str, str]:
    return first, SUBJECTS[1 - SUBJECTS.index(first)]


def _randomise_heap(draw: np.random.Generator) -> None:
    """Leave holes of all sizes in the heap: where a model comes to lie then differs between processes."""
    junk = [bytearray(int(size)) for size in draw.integers(16, JUNK_BYTES, JUNK)]
    _held.extend(junk[i] for i in draw.permutation(JUNK)[: JUNK // 2])


_held: list[bytearray] = []


def _latencies(subject: Subject, feed: list[FloatArray], calls: int) -> list[float]:
    """Milliseconds of each call, in a pass of its own: reading the clock disturbs."""
    times = []
    for i in range(calls):
        batch = feed[i % len(feed)]
        start = time.perf_counter_ns()
        subject(batch)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return times


@contextlib.contextmanager
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
