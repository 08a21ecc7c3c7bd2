"""The window protocol, on a clock that only the subjects move: every number is known."""

from __future__ import annotations

import gc
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

PLAN = Plan(batch_size=2, repeats=6, window_s=0.2, idle_s=0.5, latency_calls=25, seed=0)
CALL_S = {"reference": 0.004, "artifact": 0.002}
IDLE_W, BUSY_W = 10.0, 30.0

# Series i is filled with the number i, so that a batch tells which series are in it.
SERIES = np.broadcast_to(np.arange(100, dtype=np.float32)[:, None, None], (100, 3, 16)).copy()


class Bench:
    """A clock, two subjects, a meter and a log of everything that happens in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scripted: dict[int, float] | None = None, resolution_s: float = 0.001) -> None:
        self.now = self.cpu = self.joules = self.foreign_cores = 0.0
        self.log: list[tuple[str, Any]] = []
        self.readings = 0
        self.scripted = scripted or {}
        self.meter = SimpleNamespace(source="fake", scope="nothing", resolution_s=resolution_s, begin=self.begin, end=self.end)
        clock = SimpleNamespace(
            perf_counter=lambda: self.now,
            perf_counter_ns=lambda: round(1e9 * self.now),
            process_time=lambda: self.cpu,
            sleep=self.sleep,
        )
        monkeypatch.setattr(windows, "time", clock)
        monkeypatch.setattr(windows, "_busy_s", lambda: self.cpu + self.foreign_cores * self.now)

    def begin(self) -> None:
        self.log.append(("begin", None))
        self.started = self.joules

    def end(self) -> float:
        self.log.append(("end", None))
        self.readings += 1
        return self.scripted.get(self.readings - 1, self.joules - self.started)

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

    def run(self, plan: Plan = PLAN, series: np.ndarray = SERIES) -> dict[str, Any]:
        return windows.run(
            self.subject("artifact"), self.subject("reference"), series, self.meter, plan, lambda note: self.log.append(("advance", note))
        )

    def inside(self) -> list[list[tuple[str, Any]]]:
        """What happened within each reading of the meter."""
        starts = [i for i, (what, _) in enumerate(self.log) if what == "begin"]
        ends = [i for i, (what, _) in enumerate(self.log) if what == "end"]
        return [self.log[a + 1 : b] for a, b in zip(starts, ends, strict=True)]

    def calls(self) -> list[tuple[str, int]]:
        """Subject and number of calls of each window that called one."""
        return [(events[0][0], len(events)) for events in self.inside() if events and events[0][0] in CALL_S]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def order(raw: dict[str, Any]) -> list[str]:
    return [w["subject"] for w in raw["windows"]]


def test_pairs_hold_both_subjects_in_both_orders_between_two_idle_windows(bench: Bench) -> None:
    raw = bench.run(replace(PLAN, repeats=12))
    assert [order(raw)[0], order(raw)[-1]] == ["idle", "idle"]
    pairs = list(zip(raw["windows"][1:-1:2], raw["windows"][2:-1:2], strict=True))
    assert [(a["pair"], b["pair"]) for a, b in pairs] == [(i, i) for i in range(12)]
    assert {(a["subject"], b["subject"]) for a, b in pairs} == {("reference", "artifact"), ("artifact", "reference")}


def test_what_disturbs_is_looked_for_after_each_window_and_kept_with_it(bench: Bench) -> None:
    seen: list[int] = []

    def look() -> dict[str, Any]:
        assert bench.log[-1] == ("end", None)
        seen.append(bench.readings)
        return {"seen": bench.readings}

    raw = windows.run(bench.subject("artifact"), bench.subject("reference"), SERIES, bench.meter, PLAN, look=look)
    pairs = [w for w in raw["windows"] if w["subject"] != "idle"]
    assert [w["seen"] for w in pairs] == seen[-2 * PLAN.repeats :]


def test_every_window_reads_its_own_time_energy_and_inferences(bench: Bench) -> None:
    bench.foreign_cores = 0.25
    raw = bench.run()
    for w in raw["windows"]:
        calls = raw["calls_per_window"].get(w["subject"], 0)
        busy = calls * CALL_S.get(w["subject"], 0)
        assert w["inferences"] == 2 * calls
        assert w["wall_s"] == pytest.approx(busy or PLAN.idle_s)
        assert w["cpu_s"] == pytest.approx(busy)
        assert w["energy_j"] == pytest.approx(BUSY_W * busy or IDLE_W * PLAN.idle_s)
        assert w["foreign_cpu_s"] == pytest.approx(0.25 * w["wall_s"])
        assert not w["discarded"]


def test_calls_counted_are_calls_made(bench: Bench) -> None:
    raw = bench.run()
    made = bench.calls()
    assert len(made) == 2 + 2 * PLAN.repeats
    assert made == [(name, raw["calls_per_window"][name]) for name, _ in made]
    assert [name for name, _ in made[2:]] == order(raw)[1:-1]


def test_windows_are_a_little_longer_than_asked(bench: Bench) -> None:
    raw = bench.run()
    assert raw["window_s"] == PLAN.window_s
    for name, cost in CALL_S.items():
        assert raw["calls_per_window"][name] == pytest.approx(windows.HEADROOM * PLAN.window_s / cost, abs=1.01)


def test_slow_meter_gets_windows_of_twenty_of_its_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Bench(monkeypatch, resolution_s=0.05).run()
    assert raw["window_s"] == pytest.approx(1.0)
    assert all(w["wall_s"] >= 1.0 for w in raw["windows"] if w["subject"] != "idle")


def test_first_reading_and_one_window_of_each_subject_are_thrown_away(bench: Bench) -> None:
    raw = bench.run()
    inside = bench.inside()
    assert len(inside) == 1 + 2 + len(raw["windows"])
    assert [what for what, _ in inside[0]] == ["sleep"]
    assert {inside[1][0][0], inside[2][0][0]} == {"reference", "artifact"}
    assert inside[3] == [("sleep", PLAN.idle_s)]


def test_nothing_but_the_subject_happens_inside_a_window(bench: Bench) -> None:
    bench.run()
    for events in bench.inside():
        assert len({what for what, _ in events}) == 1
        assert events[0][0] in {"sleep", "reference", "artifact"}


def test_same_seed_same_order_and_series_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def feeds(seed: int) -> tuple[list[str], list[list[float]]]:
        bench = Bench(monkeypatch)
        raw = bench.run(replace(PLAN, seed=seed, repeats=12))
        return order(raw), [[float(x) for _, batch in events for x in batch[:, 0, 0]] for events in bench.inside() if events[0][0] in CALL_S]

    assert feeds(3) == feeds(3)
    assert feeds(3)[0] != feeds(4)[0]
    assert feeds(3)[1] != feeds(4)[1]


def test_both_subjects_of_a_pair_see_the_same_series_and_the_next_pair_others(bench: Bench) -> None:
    bench.run()
    seen = [[float(b[0, 0, 0]) for _, b in events[: windows.DISTINCT_BATCHES]] for events in bench.inside() if events[0][0] in CALL_S][2:]
    assert all(a == b for a, b in zip(seen[::2], seen[1::2], strict=True))
    assert all(a != b for a, b in zip(seen[::2], seen[2::2], strict=False))


@pytest.mark.parametrize(("batch_size", "available"), [(1, 100), (7, 100), (5, 3)])
def test_batches_are_whole_series_of_the_test_split(bench: Bench, batch_size: int, available: int) -> None:
    bench.run(replace(PLAN, batch_size=batch_size, repeats=3), SERIES[:available])
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
    """Index among all readings: one thrown away, two to warm up, one idle, then two per pair."""
    return 4 + 2 * pair + second


@pytest.mark.parametrize("second", [False, True], ids=["first of the pair", "second of the pair"])
@pytest.mark.parametrize("joules", [-3.0, 1e9], ids=["negative", "impossible"])
def test_pair_with_a_wrapped_counter_is_discarded_whole_and_repeated(monkeypatch: pytest.MonkeyPatch, joules: float, second: bool) -> None:
    bench = Bench(monkeypatch, scripted={reading_of_pair(2, second): joules})
    raw = bench.run()
    lost = [w for w in raw["windows"] if w["discarded"]]
    assert sorted(w["subject"] for w in lost) == ["artifact", "reference"]
    assert {w["pair"] for w in lost} == {2}
    for name in CALL_S:
        assert [w["pair"] for w in raw["windows"] if w["subject"] == name and not w["discarded"]] == list(range(PLAN.repeats))
    assert max(seconds for what, seconds in bench.log if what == "sleep") > 1.0  # longer than Zeus' helper takes to notice


def test_gives_up_after_twice_the_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Bench(monkeypatch, scripted=dict.fromkeys(range(4, 1000), -1.0)).run()
    work = [w for w in raw["windows"] if w["subject"] != "idle"]
    assert len(work) == 2 * 2 * PLAN.repeats
    assert all(w["discarded"] for w in work)
    assert order(raw)[-1] == "idle"


@pytest.mark.parametrize("repeats", [3, 8])
def test_advance_is_called_as_often_as_announced_and_never_inside_a_window(bench: Bench, repeats: int) -> None:
    plan = replace(PLAN, repeats=repeats)
    bench.run(plan)
    assert sum(what == "advance" for what, _ in bench.log) == windows.steps(plan)
    assert not any(what == "advance" for events in bench.inside() for what, _ in events)


def test_planted_work_is_done_by_the_artifact_and_not_counted(bench: Bench) -> None:
    raw = bench.run(replace(PLAN, planted=0.1))
    calls = raw["calls_per_window"]
    made = {name: {n for subject, n in bench.calls() if subject == name} for name in CALL_S}
    assert made == {"reference": {calls["reference"]}, "artifact": {calls["artifact"] + round(0.1 * calls["artifact"])}}
    assert made["artifact"] != {calls["artifact"]}
    assert {w["inferences"] for w in raw["windows"] if w["subject"] == "artifact"} == {2 * calls["artifact"]}
    assert raw["planted"] == 0.1


def test_latencies_are_those_of_single_calls_outside_windows(bench: Bench) -> None:
    raw = bench.run()
    assert {name: len(v) for name, v in raw["latencies_ms"].items()} == dict.fromkeys(CALL_S, PLAN.latency_calls)
    for name, values in raw["latencies_ms"].items():
        assert values == pytest.approx([1000 * CALL_S[name]] * PLAN.latency_calls, abs=1e-5)


def test_result_is_json_and_repeats_what_was_asked(bench: Bench) -> None:
    import json

    raw = bench.run()
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    assert (raw["source"], raw["scope"], raw["batch_size"], raw["repeats"]) == ("fake", "nothing", 2, 6)


def test_garbage_collection_is_off_inside_and_on_again_after(bench: Bench) -> None:
    states = set()

    def look(batch: np.ndarray) -> None:
        states.add(gc.isenabled())
        bench.now += 0.01

    windows.run(look, look, SERIES, bench.meter, replace(PLAN, repeats=3))
    assert states == {False}
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_subject_fails(bench: Bench) -> None:
    def fail(batch: np.ndarray) -> None:
        raise RuntimeError("broken artifact")

    with pytest.raises(RuntimeError, match="broken artifact"):
        windows.run(fail, bench.subject("reference"), SERIES, bench.meter, PLAN)
    assert gc.isenabled()


def test_garbage_collection_stays_off_for_who_had_turned_it_off(bench: Bench) -> None:
    gc.disable()
    try:
        bench.run(replace(PLAN, repeats=3))
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

    raw = windows.run(work(50), work(200), SERIES, CpuTimeMeter(10.0), replace(PLAN, window_s=0.02, idle_s=0.05, repeats=3))
    calls = raw["calls_per_window"]
    assert calls["artifact"] > calls["reference"] > 0
    for w in raw["windows"]:
        assert not w["discarded"]
        assert w["foreign_cpu_s"] >= 0
        assert w["energy_j"] <= 10.0 * w["cpu_s"]
        assert (w["energy_j"] > 0) or w["subject"] == "idle"


def test_load_of_another_process_is_seen() -> None:
    burn = "import time\nwhile time.process_time() < 0.6: pass"
    meter = SimpleNamespace(begin=lambda: None, end=lambda: 1.0)
    read = windows._read(meter, lambda: subprocess.run([sys.executable, "-S", "-c", burn], check=True))
    assert read["foreign_cpu_s"] > 0.4
