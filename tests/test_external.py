"""Power logs from outside: how they are read, and joules against the curve that a log was made from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY, compose
from power_logs import START, WATTS, Made, make, sample, write
from tsexp import pipeline
from tsexp.cache import Cache
from tsexp.config import ConfigError
from tsexp.energy import external, meters, statistics, validity, windows
from tsexp.energy.powerlog import PowerLog, read
from tsexp.marks import PROTOCOL_VERSION

TRUE_J = WATTS["artifact"] / 1250
"""Per series of `power_logs.make`: 1000 per second, 1250 of the artifact."""
TRUE_SAVING_PCT = 100 * (1 - WATTS["artifact"] / WATTS["reference"] / 1.25)


def log_of(samples: np.ndarray, offset_s: float = 0.0) -> PowerLog:
    return PowerLog(samples[:, 0] - offset_s, samples[:, 1], np.arange(len(samples)) + 2, offset_s)


def filled(made: Made, samples: np.ndarray, offset_s: float = 0.0) -> dict[str, Any]:
    return external.fill(made.raw(), log_of(samples, offset_s), "plug")


# Reading


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ("time,watts\n1760000000.0,1\n1760000001.0,2\n1760000002.0,3\n", [1, 2, 3]),
        ("timestamp,Power (W)\n1760000000000,1\n1760000001000,2\n1760000002000,3\n", [1, 2, 3]),
        ("unix_s;V;power_mW\n1760000000;5;1\n1760000001;5;2\n1760000002;5;3\n", [0.001, 0.002, 0.003]),
        (
            "time\tW\n2025-10-09T08:53:20Z\t1\n2025-10-09T10:53:21+02:00\t2\n2025-10-09T08:53:22Z\t3\n",
            [1, 2, 3],
        ),
        ("\ufefftime,watts,note\r\n1760000000,1,a\r\n\r\n1760000001,2,b\r\n1760000002,3,c\r\n", [1, 2, 3]),
        ("time,watts\n1760000000,1\n1760000001,\n1760000001,2\n1760000002,3\n1760000003,4", [1, 2, 3]),
    ],
    ids=["seconds", "milliseconds", "milliwatts", "iso 8601", "as windows writes", "missing and unfinished"],
)
def test_a_log_is_read_whatever_its_units(tmp_path: Path, text: str, watts: list[float]) -> None:
    (tmp_path / "log.csv").write_bytes(text.encode())
    log = read(tmp_path / "log.csv")
    assert log.watts == pytest.approx(watts)
    assert log.unix_s == pytest.approx(START + np.arange(3))
    assert read(tmp_path / "log.csv", offset_s=5.0).unix_s == pytest.approx(START - 5 + np.arange(3))


GOOD = "time,watts\n1760000000,1\n1760000001,2\n1760000002,3\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: no column of time; it has: nothing; a header such as time,watts is needed"),
        ("a,b\n1,2\n", "line 1: no column of time; it has: a, b"),
        ("time,volts\n1760000000,2\n", "line 1: no column of power; it has: time, volts"),
        (
            "time,watts,power_mw\n1760000000,2,3\n",
            "line 1: several columns of power: watts, power_mw; keep one",
        ),
        (GOOD + "1760000003\n", "line 5: 1 columns, the header has 2"),
        (GOOD + "1760000003,on\n", "line 5: 'on' is no number (watts)"),
        (GOOD + "1760000003,1_0\n", "line 5: '1_0' is no number (watts)"),
        (GOOD + "1760000003,nan\n", "line 5: 'nan' is no number"),
        (GOOD.replace(",", ";") + "1760000003;3,5\n", "line 5: '3,5' is no number (watts); a decimal point"),
        (GOOD + "noon,3\n", "line 5: 'noon' is no number (time)"),
        ("time,watts\n0.1,3\n", "line 2: 0.1 is no UNIX time"),
        ("time,watts\n2025-10-09 08:53:20,3\n", "line 2: '2025-10-09 08:53:20' has no time zone"),
        ("time,watts\nnoon,3\n", "line 2: 'noon' is no time"),
        ("time,watts\n1760000000,1\n1760000001,2\n", "has 2 samples so far; at least 3"),
        (
            "time,Power\n1760000000,2100\n1760000001,9000\n1760000002,2000\n",
            "line 1: column Power tells no unit, and holds 2,000 or more throughout: call it power_mw if",
        ),
    ],
)
def test_a_bad_log_is_told_in_a_line_with_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "log.csv"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "watts"), [("power_w", 2000), ("power_mw", 2), ("apower", 2000), ("power", 900)]
)
def test_a_log_that_tells_its_unit_or_may_well_be_in_watts_is_taken(tmp_path, name, watts):
    held = watts * (1000 if name == "power_mw" else 1)
    rows = "".join(f"{1760000000 + i},{held}\n" for i in range(3))
    (tmp_path / "log.csv").write_text(f"time,{name}\n{rows}")
    assert read(tmp_path / "log.csv").watts == pytest.approx([watts] * 3)


PLUGS = ("plug", "screen")
SEVERAL = {
    "in turn, under a name that may be anything": ("Name", lambda i: PLUGS[i % 2]),
    "in turn, seventy": ("whose", lambda i: i % 70),
    "numbered": ("index", lambda i: i % 4),
    "one lost now and then": ("n", lambda i: (i + (i > 100)) % 4),
    "as they come, named so": ("Device ID", lambda i: PLUGS[i % 7 == 0]),
}
ONE = {
    "replaced": ("device", lambda i: PLUGS[i > 99]),
    "not always told": ("device", lambda i: ("plug", "")[i % 3 == 0]),
    "spelt otherwise": ("device", lambda i: ("plug", " Plug")[i % 2]),
    "what runs": ("name", lambda i: ("idle", "train")[i // 20 % 2]),
    "use": ("gpu", lambda i: (0, 35, 97, 35, 0, 0, 3)[i * i % 7]),
    "a count": ("index", lambda i: i),
    "a count that began anew": ("index", lambda i: i % 120),
}


def log_with(path: Path, column: str, value: Callable[[int], object], cut: int = -1) -> Path:
    """A log with one more column, which the line `cut` does not have."""
    lines = [f"{START + i // 2},{20 + 30 * (i % 2)}{'' if i == cut else f',{value(i)}'}" for i in range(200)]
    path.write_text("\n".join([f"time,watts,{column}", *lines, ""]))
    return path


@pytest.mark.parametrize(("column", "value"), SEVERAL.values(), ids=SEVERAL)
def test_a_log_of_several_devices_is_no_log_of_one(tmp_path: Path, column: str, value: Any) -> None:
    """The mean of a socket's and a screen's watts was taken for a valid measurement."""
    with pytest.raises(ConfigError, match=rf"by its column {column}, lines are of several devices \("):
        read(log_with(tmp_path / "power.csv", column, value))


@pytest.mark.parametrize(("column", "value"), ONE.values(), ids=ONE)
def test_a_log_of_one_device_is_one_whatever_else_it_says(tmp_path: Path, column: str, value: Any) -> None:
    assert len(read(log_with(tmp_path / "power.csv", column, value, cut=4)).watts) == 200


def test_a_log_with_the_newest_first_is_turned_around(tmp_path: Path) -> None:
    path = tmp_path / "power.csv"
    path.write_text("\n".join(["time,watts", *(f"{int(START) + 9 - i},{i}" for i in range(10)), ""]))
    log = read(path)
    assert log.set_back == []
    assert log.watts.tolist() == list(range(9, -1, -1))
    assert (log.unix_s[0], log.line[0]) == (int(START), 11)


def test_a_log_that_is_not_there_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.csv cannot be read: No such file"):
        read(tmp_path / "none.csv")
    (tmp_path / "log.csv").write_bytes(b"time,watts\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "log.csv")


def test_joules_are_the_integral_between_samples_and_unknown_outside() -> None:
    log = log_of(np.array([[0.0, 10], [1, 20], [3, 20], [4, 0]]))
    assert log.joules(0, 4) == pytest.approx(15 + 40 + 10)
    assert log.joules(0.5, 0.75) == pytest.approx(0.25 * 16.25)
    assert log.joules(2.5, 3.5) == pytest.approx(0.5 * 20 + 0.5 * 15)
    assert np.isnan(log.joules(-0.1, 1))
    assert np.isnan(log.joules(3, 4.1))
    unordered = log_of(np.array([[0.0, 10], [3, 20], [1, 15], [1, 25], [4, 0]]))
    assert unordered.joules(0, 4) == pytest.approx(log.joules(0, 4))


# The truth


@pytest.mark.parametrize("averaged", [False, True], ids=["samples", "means of the interval before"])
@pytest.mark.parametrize(("interval_s", "window_s"), [(1.0, 25.0), (0.005, 0.125), (10.0, 250.0)])
def test_joules_of_every_window_are_those_of_the_curve(
    interval_s: float, window_s: float, averaged: bool
) -> None:
    made = make(window_s=window_s)
    raw = filled(made, sample(made, interval_s, averaged=averaged))
    joules = np.array([w["energy_j"] for w in raw["windows"]])
    assert np.abs(joules / made.truth_j - 1).max() < 0.01
    assert validity.judge(raw) == ((), ())
    seen = statistics.summarize(raw)
    assert seen["energy/per_inference_j"] == pytest.approx(TRUE_J, rel=0.005)
    assert seen["power/idle_w"] == pytest.approx(WATTS["idle"], rel=0.01)
    assert raw["source"] == "external:plug"
    assert raw["meter"]["samples"] >= 20


@pytest.mark.parametrize("averaged", [False, True], ids=["samples", "means of the interval before"])
def test_intervals_hold_the_truth_and_nothing_is_blamed_on_a_good_log(averaged: bool) -> None:
    held = 0
    for seed in range(40):
        made = make(seed=seed)
        samples = sample(made, averaged=averaged, seed=seed)
        samples[:, 1] += drifting(len(samples), seed)
        raw = filled(made, samples)
        assert raw["meter"]["invalid"] == raw["meter"]["warnings"] == []
        seen = statistics.summarize(raw)
        held += seen["vs_dense/energy_saving_lo"] <= TRUE_SAVING_PCT <= seen["vs_dense/energy_saving_hi"]
    assert held >= 34  # of 95 %, less than 34 of 40 happen once in 600


def drifting(count: int, seed: int, watts: float = 1.0) -> np.ndarray:
    """What the rest of a machine draws: changes within a minute."""
    steps = np.random.default_rng(1000 + seed).normal(0, watts * np.sqrt(1 - 0.98**2), count)
    out = np.zeros(count)
    for i in range(1, count):
        out[i] = 0.98 * out[i - 1] + steps[i]
    return out


# Faults


MADE = make()


def planted(kind: str) -> tuple[np.ndarray, float]:
    """A log with a fault; and the offset that is given."""
    samples = sample(MADE)
    window = next(w for w in MADE.windows if w["subject"] == "artifact")
    middle = int(np.searchsorted(samples[:, 0], (window["start_unix_s"] + window["end_unix_s"]) / 2))
    if kind == "gap":
        return np.delete(samples, range(middle, middle + 5), axis=0), 0.0
    if kind == "jumps ahead":
        samples[middle:, 0] += 5
    if kind == "jumps back":
        samples[middle:, 0] -= 5
    if kind == "cut off":
        return samples[: int(0.8 * len(samples))], 0.0
    if kind == "seldom":
        return samples[::2], 0.0
    if kind == "stuck":
        samples[:, 1] = samples[middle, 1]
    if kind == "milliwatts":
        samples[:, 1] *= 1000
    if kind == "an hour ahead":
        samples[:, 0] += 3600
    if kind == "3 s ahead":
        samples[:, 0] += 3
    if kind == "3 s behind":
        samples[:, 0] -= 3
    return samples, 3.0 if kind == "wrong offset given" else 0.0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            "gap",
            r"a gap in the power log, or a jump of its clock, in 1 of 64 windows: [56]\S* s up to line \d+",
        ),
        ("jumps ahead", r"a gap in the power log, or a jump of its clock, in 1 of 64 windows: [56]\S* s"),
        (
            "jumps back",
            r"the clock of the power log was set back by [34]\S* s at line \d+, in 1 of 64 windows",
        ),
        ("cut off", r"the power log does not cover \d+ of 64 windows: it has 2025-.* UTC, they are 2025-"),
        ("seldom", r"too few samples of the power log in 64 of 64 windows: 12, .*measure.window_s=50"),
        ("stuck", r"the power log stays at one value through 64 of 64 windows: it is stuck"),
        ("milliwatts", r"3\d,\d+ W: milliwatts need a column that says so, power_mw"),
        ("an hour ahead", r"does not cover 64 of 64 windows: .* is its clock right\?"),
        ("3 s ahead", r"the power log is 3\S* s late, .* less this machine's is about 3\S* s"),
        ("3 s behind", r"the power log is (3|2\.9) s early, .* less this machine's is about -(3|2\.9\d) s"),
        ("wrong offset given", r"the power log is (3|2\.9) s early, .* is about 0?-?\S* s \(--offset-s"),
    ],
)
def test_a_planted_fault_makes_the_record_invalid_with_its_reason(kind: str, reason: str) -> None:
    raw = filled(MADE, *planted(kind))
    reasons, _ = validity.judge(raw)
    assert len([why for why in reasons if re.search(reason, why)]) == 1, reasons
    assert json.loads(json.dumps(raw, allow_nan=False)) == raw
    statistics.summarize(raw)


def test_with_the_right_offset_given_the_same_log_is_good() -> None:
    raw = filled(MADE, sample(MADE, offset_s=7.3), 7.3)
    assert validity.judge(raw) == ((), ())
    assert np.array([w["energy_j"] for w in raw["windows"]]) == pytest.approx(MADE.truth_j, rel=0.01)


@pytest.mark.parametrize("offset_s", [-30.0, -1.4, 1.4, 30.0])
def test_an_offset_is_found_to_within_half_an_interval(offset_s: float) -> None:
    found = filled(MADE, sample(MADE, offset_s=offset_s))["meter"]["clock_offset_s"]
    assert found == pytest.approx(offset_s, abs=0.5)


def test_a_small_offset_of_long_windows_is_warned_of_and_shifts_nothing() -> None:
    made = make(window_s=100.0, pairs=2)
    raw = filled(made, sample(made, offset_s=2.5))
    assert raw["meter"]["invalid"] == []
    (warning,) = raw["meter"]["warnings"]
    assert "the power log is 2." in warning
    shifted = filled(made, sample(made, offset_s=2.5), 2.5)
    assert [w["energy_j"] for w in raw["windows"]] != [w["energy_j"] for w in shifted["windows"]]


def test_a_clock_that_jumps_between_windows_is_seen_by_what_comes_after() -> None:
    samples = sample(MADE)
    last = [w for w in MADE.windows if w["process"] == 2][-1]["end_unix_s"]
    after = samples[:, 0] > last + 10  # while the next process loads
    samples[after, 0] += 4
    (reason,) = filled(MADE, samples)["meter"]["invalid"]
    assert "s late, as the steps at the ends of windows show" in reason


def test_a_log_that_shows_nothing_of_the_windows_leaves_the_clock_unchecked() -> None:
    for offset_s in (0.0, 3.0):
        made = make(watts=dict.fromkeys(WATTS, 30.0))
        seen = filled(made, sample(made, offset_s=offset_s))["meter"]
        assert seen["clock_offset_s"] is None
        assert seen["invalid"] == []
        assert seen["warnings"] == [
            "the power log does not show when windows begin and end: its clock could not be checked"
        ]


def test_a_gap_in_an_idle_window_costs_the_idle_power_alone() -> None:
    samples = sample(MADE)
    idle = [w for w in MADE.windows if w["subject"] == "idle"]
    for w in idle:
        there = (samples[:, 0] > w["start_unix_s"] + 5) & (samples[:, 0] < w["end_unix_s"] - 5)
        samples = samples[~there]
    raw = filled(MADE, samples)
    invalid, warnings = validity.judge(raw)
    assert invalid == ()
    assert "meter: the power log does not tell the power of every idle window" in warnings
    seen = statistics.summarize(raw)
    assert np.isnan(seen["power/idle_w"])
    assert seen["energy/per_inference_j"] == pytest.approx(TRUE_J, rel=0.005)


# Live


@contextmanager
def logging(file: Path, watts: Any, interval_s: float = 0.005, lag_s: float = 0.0) -> Iterator[None]:
    """Something outside that samples on time, whatever this machine does, and tells of it later."""
    stop = threading.Event()

    def go() -> None:
        with file.open("w", buffering=1) as f:
            f.write("time,watts\n")
            when = time.time() - lag_s - 1
            while not stop.wait(interval_s):
                while when < time.time() - lag_s:
                    f.write(f"{when:.6f},{watts(when):.5f}\n")
                    when += interval_s

    thread = threading.Thread(target=go)
    thread.start()
    try:
        while not file.exists() or file.stat().st_size < 1000:
            time.sleep(0.01)
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, value in ((external.FILE, f"{tmp_path}/power.csv"), (external.NAME, "plug")):
        monkeypatch.setenv(variable, value)
    return tmp_path / "power.csv"


LIVE = "tsexp.energy.external:Csv"


def test_the_live_meter_reads_a_stretch_as_soon_as_the_log_has_it(named: Path) -> None:
    with logging(named, lambda when: 20.0, lag_s=0.3):
        meter: Any = meters.choose("cpu", "measured", 10.0, LIVE)
        assert meter.resolution_s == pytest.approx(1.25 * 0.005, rel=0.01)
        start = time.perf_counter()
        meter.begin()
        time.sleep(0.4)
        seconds = time.perf_counter() - start
        joules = meter.end()
        assert time.perf_counter() - start > seconds + 0.2
        assert joules == pytest.approx(20 * seconds, rel=0.05)
        meter.begin()
        assert np.isnan(meter.end())  # nothing can be said of an instant
    assert meter.source == meters.source("cpu", LIVE) == "external:plug"


def test_windows_of_the_live_meter_are_filled_in_afterwards_and_last_20_samples(named: Path) -> None:
    def work(series: Any) -> None:
        time.sleep(0.001)

    plan = windows.Plan(1, 4, 0.001, 0.001, 20, 0, 0)
    with logging(named, lambda when: 20 + 5 * np.sin(when), interval_s=0.01, lag_s=0.5):
        meter: Any = meters.choose("cpu", "measured", 10.0, LIVE)
        series = np.zeros((8, 1, 4), np.float32)
        measured = windows.run({n: lambda: work for n in ("artifact", "reference")}, series, meter, plan)
        assert {w["energy_j"] for w in measured["windows"]} == {None}
        assert json.loads(json.dumps(measured["windows"])) == measured["windows"]
        assert measured["window_s"] == pytest.approx(0.25, rel=0.02)
        measured["started"] = {name: [one] for name, one in measured["started"].items()}
        late = meters.late(LIVE)
        assert late is not None
        raw = late.settle(measured)
    assert raw["meter"]["samples"] >= 20
    for w in raw["windows"]:
        start, end = w["start_unix_s"], w["end_unix_s"]
        assert w["energy_j"] == pytest.approx(
            20 * (end - start) + 5 * (np.cos(start) - np.cos(end)), rel=0.01
        )
    assert raw["meter"]["invalid"] == []


def test_a_writer_that_ends_makes_the_record_invalid_after_some_patience(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "PATIENCE_S", 0.5)
    made = make(processes=2, window_s=0.2)
    shift = time.time() - made.windows[-1]["end_unix_s"]
    for w in made.windows:
        w["start_unix_s"], w["end_unix_s"] = w["start_unix_s"] + shift, w["end_unix_s"] + shift
    with logging(named, lambda when: 20.0):
        late = meters.late(LIVE)
    assert late is not None
    raw = late.settle(made.raw())
    assert "the power log does not cover" in raw["meter"]["invalid"][0]


def test_a_log_that_is_gone_makes_the_record_invalid_and_loses_no_window(named: Path) -> None:
    made = make(processes=2, window_s=0.2)
    with logging(named, lambda when: 20.0):
        late = meters.late(LIVE)
    assert late is not None
    named.unlink()
    raw = late.settle(made.raw())
    assert "cannot be read" in raw["meter"]["invalid"][0]
    assert {w["energy_j"] for w in raw["windows"]} == {None}
    assert [w["start_unix_s"] for w in raw["windows"]] == [w["start_unix_s"] for w in made.windows]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({external.FILE: ""}, "needs a power log: set TSEXP_POWER_LOG=FILE.csv"),
        ({external.FILE: "/proc/nowhere/power.csv"}, "/proc/nowhere/power.csv cannot be read"),
        ({external.NAME: "my plug"}, "'my plug' is no name of a meter"),
        ({external.OFFSET: "soon"}, "TSEXP_POWER_OFFSET_S=soon is no number"),
        ({}, "has no sample of the last"),
        (
            {external.OFFSET: "-1e9"},
            "s ahead of this machine's clock: set the clocks, or TSEXP_POWER_OFFSET_S=",
        ),
    ],
)
def test_a_log_that_cannot_be_used_is_refused_before_any_work(
    named: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    write(named, sample(make(processes=2, window_s=5.0)))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as error:
        pipeline.check(compose("debug=smoke", "data=italy_power_demand", f"measure.meter={LIVE}"))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_log_does_not_tell_of_training_costs_nothing_known(named: Path, tmp_path: Path) -> None:
    with logging(named, lambda when: 20.0):
        cache = Cache(tmp_path / "cache", lambda: meters.counter("cpu", LIVE))
        short = cache.stage("short", 1, {}, lambda folder: None)
        long = cache.stage("long", 1, {}, lambda folder: time.sleep(0.3))
    assert short.cost["energy_j"] == {}
    assert long.cost["energy_j"]["external:plug"] == pytest.approx(20 * long.cost["wall_s"], rel=0.05)


WRITER = """
import math, sys, time
with open(sys.argv[1], "w", buffering=1) as f:
    f.write("time,watts\\n")
    when = time.time()
    while True:
        while when < time.time():
            f.write(f"{when:.6f},{20 + 5 * math.sin(when / 3):.5f}\\n")
            when += 0.005
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_an_experiment_runs_with_a_log_that_is_being_written(tmp_path: Path) -> None:
    import mlflow

    from test_docs import ROOT

    page = (ROOT / "docs" / "measuring.md").read_text()
    (command,) = (line for line in page.splitlines() if line.startswith("    TSEXP_POWER_LOG="))
    *variables, python, m, tsexp, meter = command.split()
    assert (python, m, tsexp, meter) == ("python", "-m", "tsexp", f"measure.meter={LIVE}")
    file = dict(v.split("=") for v in variables)[external.FILE]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, file], cwd=tmp_path)
    try:
        time.sleep(1)
        done = subprocess.run(
            [sys.executable, m, tsexp, meter, *TINY, "data=italy_power_demand", "measure.idle_s=0.3"],
            cwd=tmp_path,
            env=os.environ | dict(v.split("=") for v in variables),
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        writer.kill()
        writer.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert run.data.tags["tsexp.energy_source"] == "external:plug"
    assert run.data.tags["tsexp.valid"] == "true", run.data.tags["tsexp.invalid_reasons"]
    raw = json.loads(Path(client.download_artifacts(run.info.run_id, "windows.json")).read_text())
    assert raw["meter"]["samples"] >= 20
    for w in raw["windows"]:
        start, end = w["start_unix_s"], w["end_unix_s"]
        truth_j = 20 * (end - start) + 15 * (np.cos(start / 3) - np.cos(end / 3))
        assert w["energy_j"] == pytest.approx(truth_j, rel=0.01)
    assert 15 < run.data.metrics["power/mean_w"] < 25
    assert run.data.metrics["cost/train_j"] == pytest.approx(20 * run.data.metrics["cost/train_s"], rel=0.25)
    assert int(run.data.tags["tsexp.protocol"]) == PROTOCOL_VERSION


@pytest.mark.slow
def test_the_documented_logger_writes_what_is_read(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from test_docs import BLOCK, ROOT

    class Plug(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"id": 0, "output": true, "apower": 31.5, "voltage": 230.1}')

        def log_message(self, *_: object) -> None:
            pass

    page = (ROOT / "docs" / "measuring.md").read_text()
    (script,) = (text for kind, text in BLOCK.findall(page) if text.startswith("# log_power.py"))
    plug = HTTPServer(("127.0.0.1", 0), Plug)
    threading.Thread(target=plug.serve_forever, daemon=True).start()
    script = script.replace("192.168.1.50", f"127.0.0.1:{plug.server_port}")
    writer = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
    try:
        time.sleep(8)
        log = read(tmp_path / "power.csv")
    finally:
        writer.kill()
        writer.wait()
        plug.shutdown()
    assert set(log.watts) == {31.5}
    assert log.interval_s == pytest.approx(1, abs=0.3)
    assert abs(log.end_unix_s - time.time()) < 5
