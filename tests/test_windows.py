"""The window protocol, on a clock that only the subjects move: every number is known."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tsexp.energy import windows
from tsexp.energy.meters import CpuTimeMeter
from tsexp.energy.windows import Plan
from tsexp.system import cpu

PLAN = Plan(batch_size=2, pairs=6, window_s=0.2, idle_s=0.5, latency_calls=25, process=0, seed=0)
CALL_S = {"reference": 0.004, "artifact": 0.002}
LOAD_S = {"reference": 0.3, "artifact": 0.1}
IDLE_W, BUSY_W = 10.0, 30.0

# Series i is filled with the number i, so that a batch tells which series are in it.
SERIES = np.broadcast_to(np.arange(100, dtype=np.float32)[:, None, None], (100, 3, 16)).copy()


class Bench:
    """A clock, two subjects, a meter and a log of everything that happens in order."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        scripted: dict[int, float] | None = None,
        resolution_s: float = 0.001,
    ) -> None:
        self.now = self.cpu = self.joules = self.foreign_cores = 0.0
        self.log: list[tuple[str, Any]] = []
        self.readings = 0
        self.scripted = scripted or {}
        self.meter = SimpleNamespace(
            source="fake", scope="nothing", resolution_s=resolution_s, begin=self.begin, end=self.end
        )
        clock = SimpleNamespace(
            time=lambda: 1e9 + self.now,
            perf_counter=lambda: self.now,
            perf_counter_ns=lambda: round(1e9 * self.now),
            process_time=lambda: self.cpu,
            sleep=self.sleep,
        )
        monkeypatch.setattr(windows, "time", clock)
        monkeypatch.setattr(windows, "_spin", self.spin)
        monkeypatch.setattr(cpu, "busy_s", lambda: self.cpu + self.foreign_cores * self.now)

    def begin(self) -> None:
        self.log.append(("begin", None))
        self.started = self.joules

    def end(self) -> float:
        self.log.append(("end", None))
        self.readings += 1
        return self.scripted.get(self.readings - 1, self.joules - self.started)

    def spin(self, seconds: float) -> None:
        self.now += seconds
        self.cpu += seconds

    def sleep(self, seconds: float) -> None:
        self.log.append(("sleep", seconds))
        self.now += seconds
        self.joules += IDLE_W * seconds

    def subject(self, name: str) -> Callable[[np.ndarray], None]:
        def call(batch: np.ndarray) -> None:
            self.log.append((name, batch))
            self.now += CALL_S[name]
            self.cpu += CALL_S[name]
            self.joules += BUSY_W * CALL_S[name]

        return call

    def loads(self) -> dict[str, Callable[[], Callable[[np.ndarray], None]]]:
        def load(name: str) -> Callable[[np.ndarray], None]:
            self.log.append(("load", name))
            self.now += LOAD_S[name]
            return self.subject(name)

        return {name: lambda name=name: load(name) for name in CALL_S}  # type: ignore[misc]

    def run(self, plan: Plan = PLAN, series: np.ndarray = SERIES, **more: Any) -> dict[str, Any]:
        return windows.run(self.loads(), series, self.meter, plan, **more)

    def inside(self) -> list[list[tuple[str, Any]]]:
        """What happened within each reading of the meter."""
        starts = [i for i, (what, _) in enumerate(self.log) if what == "begin"]
        ends = [i for i, (what, _) in enumerate(self.log) if what == "end"]
        return [self.log[a + 1 : b] for a, b in zip(starts, ends, strict=True)]

    def calls(self) -> list[tuple[str, int]]:
        """Subject and number of calls of each window that called one."""
        return [(events[0][0], len(events)) for events in self.inside() if events and events[0][0] in CALL_S]

    def pairs(self) -> list[list[tuple[str, Any]]]:
        """What happened within the windows of pairs.

        After two first calls and two times two windows to warm up.
        """
        return [events for events in self.inside() if events and events[0][0] in CALL_S][6:]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def order(raw: dict[str, Any]) -> list[str]:
    return [w["subject"] for w in raw["windows"]]


def test_pairs_hold_both_subjects_in_both_orders_after_an_idle_window(bench: Bench) -> None:
    raw = bench.run(replace(PLAN, pairs=12))
    assert order(raw)[0] == "idle"
    pairs = list(zip(raw["windows"][1::2], raw["windows"][2::2], strict=True))
    assert [(a["pair"], b["pair"]) for a, b in pairs] == [(i, i) for i in range(12)]
    assert {(a["subject"], b["subject"]) for a, b in pairs} == {
        ("reference", "artifact"),
        ("artifact", "reference"),
    }


def test_half_of_the_pairs_begin_with_the_artifact(bench: Bench) -> None:
    first = [w["subject"] for w in bench.run(replace(PLAN, pairs=12))["windows"][1::2]]
    assert first.count("artifact") == 6


def test_every_process_has_an_idle_window_and_the_orders_that_were_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for process, made in enumerate(windows.orders(12, 0)):
        plan = replace(PLAN, process=process, loaded_first=made.loaded, used_first=made.used)
        raw = Bench(monkeypatch).run(plan)
        assert order(raw).count("idle") == 1
        assert {w["process"] for w in raw["windows"]} == {process}
        assert (raw["orders"]["load"][0], raw["orders"]["use"][0]) == made


def test_subjects_are_loaded_and_first_used_in_the_orders_that_are_told_and_what_it_takes_is_read(
    bench: Bench,
) -> None:
    raw = bench.run()
    warmed_up, *loaded = [what for kind, what in bench.log if kind == "load"]
    assert loaded == raw["orders"]["load"]
    assert warmed_up == loaded[0]
    used = [kind for kind, _ in bench.log if kind in CALL_S]
    assert used[: windows.WARM_UP_CALLS] == [warmed_up] * windows.WARM_UP_CALLS
    assert used[windows.WARM_UP_CALLS :][:2] == raw["orders"]["use"]
    for name in CALL_S:
        started = raw["started"][name]
        assert started["load_s"] == pytest.approx(LOAD_S[name])
        assert started["first_call_s"] == pytest.approx(CALL_S[name])
        assert started["load_j"] == 0, "as this clock's loading costs nothing"
        assert started["first_call_j"] is None, "a counter that is refreshed every millisecond"


def test_a_first_call_costs_what_an_estimate_says_or_a_counter_that_is_refreshed_in_time(
    bench: Bench,
) -> None:
    for source, resolution_s in (("estimated:fake", 0.001), ("fake", 0.00005)):
        bench.meter.source, bench.meter.resolution_s = source, resolution_s
        for name, started in bench.run()["started"].items():
            assert started["first_call_j"] == pytest.approx(BUSY_W * CALL_S[name])


def test_a_counter_that_is_stale_at_a_window_s_start_does_not_mix_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The counter moves in steps of 0.1 s, as NVML's; the artifact draws three times the power."""
    bench, watts = Bench(monkeypatch, resolution_s=0.1), {"reference": 30.0, "artifact": 90.0}
    history = [(0.0, 0.0)]

    def subject(name: str) -> Callable[[np.ndarray], None]:
        def call(batch: np.ndarray) -> None:
            for _ in range(10):
                bench.now += CALL_S[name] / 10
                bench.joules += watts[name] * CALL_S[name] / 10
                history.append((bench.now, bench.joules))

        return call

    def refreshed() -> float:
        times, joules = zip(*history, strict=True)
        return float(np.interp(0.1 * (bench.now // 0.1), times, joules))

    def begin() -> None:
        bench.started = refreshed()

    monkeypatch.setattr(bench, "subject", subject)
    bench.meter.begin, bench.meter.end = begin, lambda: refreshed() - bench.started
    seen = [w for w in bench.run()["windows"] if w["pair"] >= 0]
    for name in CALL_S:
        power = [w["energy_j"] / w["wall_s"] for w in seen if w["subject"] == name]
        assert np.mean(power) == pytest.approx(watts[name], rel=0.02)


def test_checks_see_the_loaded_subjects_before_the_first_window_and_after_the_last(bench: Bench) -> None:
    seen = []

    def check(subjects: Any) -> int:
        assert set(subjects) == set(CALL_S)
        seen.append(len(bench.log))
        return len(seen)

    raw = bench.run(check=check)
    assert (raw["before"], raw["after"]) == (1, 2)
    first = next(
        i for i, (what, _) in enumerate(bench.log) if what == "sleep" and bench.log[i][1] == PLAN.idle_s
    )
    assert seen[0] < first
    assert seen[1] == len(bench.log)


def test_what_disturbs_is_looked_for_after_each_window_and_kept_with_it(bench: Bench) -> None:
    seen: list[int] = []

    def look() -> dict[str, Any]:
        assert bench.log[-1] == ("end", None)
        seen.append(bench.readings)
        return {"seen": bench.readings}

    raw = bench.run(look=look)
    pairs = [w for w in raw["windows"] if w["subject"] != "idle"]
    assert [w["seen"] for w in pairs] == seen[-2 * PLAN.pairs :]


def test_every_window_reads_its_own_time_energy_and_inferences(bench: Bench) -> None:
    bench.foreign_cores = 0.25
    raw = bench.run()
    for w in raw["windows"]:
        calls = w["inferences"] / 2
        busy = calls * CALL_S.get(w["subject"], 0)
        assert w["wall_s"] == pytest.approx(busy or PLAN.idle_s)
        assert w["end_unix_s"] - w["start_unix_s"] == pytest.approx(w["wall_s"], abs=1e-5)
        assert w["cpu_s"] == pytest.approx(busy)
        assert w["energy_j"] == pytest.approx(BUSY_W * busy or IDLE_W * PLAN.idle_s)
        assert w["foreign_cpu_s"] == pytest.approx(0.25 * w["wall_s"])
        assert not w["discarded"]
    starts = [w["start_unix_s"] for w in raw["windows"]]
    assert starts == sorted(starts)
    assert starts[0] > 1e9


def test_calls_counted_are_calls_made(bench: Bench) -> None:
    raw = bench.run()
    made = [(events[0][0], len(events)) for events in bench.pairs()]
    assert made == [(w["subject"], w["inferences"] // 2) for w in raw["windows"] if w["subject"] != "idle"]


def test_windows_end_by_time_a_little_after_what_was_asked(bench: Bench) -> None:
    raw = bench.run()
    assert raw["window_s"] == PLAN.window_s
    for w in raw["windows"][1:]:
        assert (
            PLAN.window_s - 1e-9
            <= w["wall_s"]
            <= PLAN.window_s * (1 + 2 / windows.LOOKS) + CALL_S[w["subject"]]
        )


def test_no_window_is_too_short_when_the_machine_becomes_faster(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ten times as fast after the warm-up: windows of a count fixed beforehand would last a tenth of what was
    # asked.
    def check(_: Any) -> None:
        for name in CALL_S:
            monkeypatch.setitem(CALL_S, name, CALL_S[name] / 10)

    raw = bench.run(check=check)
    assert all(w["wall_s"] >= PLAN.window_s - 1e-9 for w in raw["windows"] if w["subject"] != "idle")


def test_the_meter_s_own_overhead_is_that_of_empty_windows(bench: Bench) -> None:
    meter = bench.meter
    begin = meter.begin

    def slow() -> None:
        begin()
        bench.now += 0.003

    bench.meter = SimpleNamespace(**{**vars(meter), "begin": slow})
    assert bench.run()["meter_overhead_s"] == pytest.approx([0.003] * windows.EMPTY_WINDOWS)


def test_slow_meter_gets_windows_of_twenty_of_its_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Bench(monkeypatch, resolution_s=0.05).run()
    assert raw["window_s"] == pytest.approx(1.0)
    assert raw["pairs"] == windows.LEAST_PAIRS
    assert all(w["wall_s"] >= 1.0 for w in raw["windows"] if w["subject"] != "idle")


def test_the_first_reading_is_thrown_away(bench: Bench) -> None:
    raw = bench.run()
    inside = bench.inside()
    assert [what for what, _ in inside[0]] == ["sleep"]
    assert len(inside) == 1 + 2 + 2 + 4 + windows.EMPTY_WINDOWS + len(raw["windows"])


def test_nothing_but_the_subject_happens_inside_a_window(bench: Bench) -> None:
    bench.run()
    for events in bench.inside():
        assert len({what for what, _ in events}) <= 1
        assert {what for what, _ in events} <= {"sleep", "load", "reference", "artifact"}


def test_same_seed_same_order_and_series_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def feeds(seed: int) -> tuple[list[str], list[list[float]]]:
        bench = Bench(monkeypatch)
        raw = bench.run(replace(PLAN, seed=seed, pairs=12))
        return order(raw), [
            [float(x) for _, batch in events for x in batch[:, 0, 0]] for events in bench.pairs()
        ]

    assert feeds(3) == feeds(3)
    assert feeds(3)[0] != feeds(4)[0]
    assert feeds(3)[1] != feeds(4)[1]


def test_both_subjects_of_a_pair_see_the_same_series_and_the_next_pair_others(bench: Bench) -> None:
    bench.run()
    seen = [[float(b[0, 0, 0]) for _, b in events[: windows.DISTINCT_BATCHES]] for events in bench.pairs()]
    assert all(a == b for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert all(a != b for a, b in zip(seen[::2], seen[2::2], strict=False))


@pytest.mark.parametrize(("batch_size", "available"), [(1, 100), (7, 100), (5, 3)])
def test_batches_are_whole_series_of_the_test_split(bench: Bench, batch_size: int, available: int) -> None:
    bench.run(replace(PLAN, batch_size=batch_size, pairs=3), SERIES[:available])
    batches = [b for what, b in bench.log if what in CALL_S]
    for b in batches:
        assert b.shape == (batch_size, 3, 16)
        assert b.dtype == np.float32
        assert b.flags["C_CONTIGUOUS"]
        assert (b == b[:, :1, :1]).all()
    used = {float(x) for b in batches for x in b[:, 0, 0]}
    assert used <= set(range(available))
    assert len(used) > min(available, windows.DISTINCT_BATCHES) - 1


def reading_of_pair(pair: int, second: bool = False) -> int:
    """Index among all readings.

    One thrown away, two to load, two first calls, four to warm up, the empty ones, one idle, then two per
    pair.
    """
    return 10 + windows.EMPTY_WINDOWS + 2 * pair + second


@pytest.mark.parametrize("second", [False, True], ids=["first of the pair", "second of the pair"])
@pytest.mark.parametrize("joules", [-3.0, 1e9], ids=["negative", "impossible"])
def test_pair_with_a_wrapped_counter_is_discarded_whole_and_repeated(
    monkeypatch: pytest.MonkeyPatch, joules: float, second: bool
) -> None:
    bench = Bench(monkeypatch, scripted={reading_of_pair(2, second): joules})
    raw = bench.run()
    lost = [w for w in raw["windows"] if w["discarded"]]
    assert sorted(w["subject"] for w in lost) == ["artifact", "reference"]
    assert {w["pair"] for w in lost} == {2}
    for name in CALL_S:
        assert [w["pair"] for w in raw["windows"] if w["subject"] == name and not w["discarded"]] == list(
            range(PLAN.pairs)
        )
    assert (
        max(seconds for what, seconds in bench.log if what == "sleep") > 1.0
    )  # longer than Zeus' helper takes to notice


def test_gives_up_after_twice_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Bench(monkeypatch, scripted=dict.fromkeys(range(reading_of_pair(0), 1000), -1.0)).run()
    work = [w for w in raw["windows"] if w["subject"] != "idle"]
    assert len(work) == 2 * 2 * PLAN.pairs
    assert all(w["discarded"] for w in work)


def test_planted_work_takes_its_share_of_the_artifacts_time_and_of_no_other(bench: Bench) -> None:
    raw = bench.run(replace(PLAN, planted=0.1))
    for w in raw["windows"]:
        if w["subject"] != "idle":
            share = 1.1 if w["subject"] == "artifact" else 1.0
            assert w["wall_s"] == pytest.approx(share * w["inferences"] / 2 * CALL_S[w["subject"]])


def test_latencies_are_those_of_single_calls_outside_windows(bench: Bench) -> None:
    raw = bench.run()
    assert raw["latencies_ms"] == pytest.approx([1000 * CALL_S["artifact"]] * PLAN.latency_calls, abs=1e-5)


def test_result_is_json(bench: Bench) -> None:
    raw = bench.run()
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    assert (raw["source"], raw["scope"]) == ("fake", "nothing")


def test_garbage_collection_is_off_inside_and_on_again_after(bench: Bench) -> None:
    states = set()

    def look(batch: np.ndarray) -> None:
        states.add(gc.isenabled())
        bench.now += 0.01

    windows.run(
        {"artifact": lambda: look, "reference": lambda: look}, SERIES, bench.meter, replace(PLAN, pairs=3)
    )
    assert states == {False}
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_subject_fails(bench: Bench) -> None:
    def fail(batch: np.ndarray) -> None:
        raise RuntimeError("broken artifact")

    with pytest.raises(RuntimeError, match="broken artifact"):
        windows.run(
            {"artifact": lambda: fail, "reference": lambda: bench.subject("reference")},
            SERIES,
            bench.meter,
            PLAN,
        )
    assert gc.isenabled()


def test_garbage_collection_stays_off_for_who_had_turned_it_off(bench: Bench) -> None:
    gc.disable()
    try:
        bench.run(replace(PLAN, pairs=3))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_real_work_on_the_real_clock() -> None:
    weights = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)

    def work(times: int) -> Callable[[np.ndarray], None]:
        def subject(batch: np.ndarray) -> None:
            for _ in range(times):
                np.matmul(batch, weights)

        return subject

    load = {"artifact": lambda: work(50), "reference": lambda: work(200)}
    raw = windows.run(load, SERIES, CpuTimeMeter(10.0), replace(PLAN, window_s=0.02, idle_s=0.05, pairs=3))
    calls = {name: sum(w["inferences"] for w in raw["windows"] if w["subject"] == name) for name in load}
    assert calls["artifact"] > calls["reference"] > 0
    for w in raw["windows"]:
        assert not w["discarded"]
        assert w["energy_j"] <= 10.0 * w["cpu_s"]
        assert (w["energy_j"] > 0) or w["subject"] == "idle"


BURN = "import time\nwhile time.process_time() < 0.05: pass"
BURN_ON_REQUEST = """import sys, time
for line in sys.stdin:
    end = time.process_time() + 0.05
    while time.process_time() < end: pass
    print(flush=True)"""


@pytest.mark.parametrize("kind", ["ended", "alive", "none"])
def test_work_in_child_processes_is_seen_of_those_that_ended_and_of_those_that_did_not(kind: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-S", "-c", BURN_ON_REQUEST], stdin=pipe, stdout=pipe, text=True, bufsize=1
    ) as child:

        def ask(batch: np.ndarray) -> None:
            print(file=child.stdin)
            next(child.stdout)  # type: ignore[call-overload]

        def start(batch: np.ndarray) -> None:
            subprocess.run([sys.executable, "-S", "-c", BURN], check=True)

        subject = {"ended": start, "alive": ask, "none": lambda batch: None}[kind]
        raw = windows.run(
            {"artifact": lambda: subject, "reference": lambda: subject},
            SERIES,
            CpuTimeMeter(10.0),
            replace(PLAN, window_s=0.1, idle_s=0.1, pairs=2, latency_calls=1),
        )
        calls = sum(w["inferences"] for w in raw["windows"]) / PLAN.batch_size
        child.stdin.close()  # type: ignore[union-attr]
    if kind == "none":
        assert raw["children_cpu_s"] < 0.02
    else:
        assert raw["children_cpu_s"] > 0.05 * calls - 0.02


@pytest.mark.parametrize("joules", [float("nan"), float("inf")])
def test_pair_whose_energy_the_meter_does_not_know_is_discarded_and_repeated(
    monkeypatch: pytest.MonkeyPatch, joules: float
) -> None:
    raw = Bench(monkeypatch, scripted={0: joules, 1: joules, reading_of_pair(2): joules}).run()
    lost = [w for w in raw["windows"] if w["discarded"]]
    assert [w["pair"] for w in lost] == [2, 2]
    assert [w["energy_j"] is None for w in lost] == [True, False]
    assert len(raw["windows"]) == 1 + 2 * PLAN.pairs + 2
    json.dumps(raw, allow_nan=False)


def test_load_of_another_process_is_seen() -> None:
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    meter = SimpleNamespace(begin=lambda: None, end=lambda: 1.0, source="mine")
    read = windows._read(meter, lambda: subprocess.run([sys.executable, "-S", "-c", burn], check=True))
    assert read["foreign_cpu_s"] > 0.4
