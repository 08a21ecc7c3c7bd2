"""Joules from a power log that something outside the machine writes.

A smart plug, a PDU, a Joulescope, an INA219 on the supply: a CSV file of times and watts, laid over the
windows by their UNIX time. Live with ``measure.meter=tsexp.energy.external:Csv``, or afterwards with ``tsexp
attach``. Nothing is read while a window lasts. Whatever makes a window's joules doubtful makes the record
invalid: too few samples, a gap, a clock that jumps or that is off, a log that is stuck.
"""

from __future__ import annotations

import math
import os
import re
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsexp.config import ConfigError
from tsexp.energy.powerlog import Floats, PowerLog, read
from tsexp.energy.windows import RESOLUTIONS

SOURCE = "external:"
FILE, NAME, OFFSET = "TSEXP_POWER_LOG", "TSEXP_POWER_NAME", "TSEXP_POWER_OFFSET_S"
"""Environment variables of the live meter: the log; what the meter is called; the log's clock less this
machine's."""
LEAST_SAMPLES = RESOLUTIONS
"""That a window holds."""
SPARE = 1.25
"""Live windows are made for so many times as many: some come late or are lost."""
EDGE = 1.5
"""Median intervals at either end of a window whose power is taken to be that of the rest."""
GAP = 3.0
"""Median intervals without a sample: so many are still none."""
SHIFTED = 0.05
"""Share of a window that an offset of the clock may take from its neighbour."""
CLEAR, WORSE = 1.5, 1.2
"""An offset is believed if at most others power scatters so much more within windows; and matters if without
it it does."""
LEAST_SHARE = 0.01
"""Less of the variance than this is nothing."""
LEAST_WINDOWS = 4
"""In each half of what an offset is looked for in."""
REACH_S = 60.0
"""An offset is looked for this far."""
TRIES = 2000
"""Offsets that are tried to either side."""
PATIENCE_S = 30.0
"""Or 20 intervals of the log, if that is longer: how long it may lag behind."""
TOO_MUCH_W = 10_000.0
"""No machine that this is for draws it: milliwatts, taken for watts."""


def fill(raw: dict[str, Any], log: PowerLog, name: str) -> dict[str, Any]:
    """Return a measurement (`tsexp.energy.windows`, windows of all processes) with its joules from a log.

    Joules of a window that the log does not tell are None. ``meter`` has what was seen of the log:
    ``interval_s``, ``samples`` (of the window that has the fewest), ``offset_s`` (that was given),
    ``clock_offset_s`` (that is left by what the log shows, or None), and ``invalid`` and ``warnings`` for
    `tsexp.energy.validity`.

    Parameters
    ----------
    raw
        As ``windows.json`` has it.
    log
        Its times are by the clock of the machine that was measured.
    name
        Of what wrote it.
    """
    windows = [dict(w) for w in raw["windows"]]
    faults = [_fault(log, w) for w in windows]
    for w, seen in zip(windows, faults, strict=True):
        w["energy_j"] = None if seen else _steady_j(log, *_times(w))
    pairs = [i for i, w in enumerate(windows) if w["subject"] != "idle" and not w["discarded"]]
    invalid = _reasons([windows[i] for i in pairs], [faults[i] for i in pairs], log)
    invalid += _stuck([windows[i] for i in pairs], log)
    invalid += _implausible([windows[i] for i in pairs])
    warnings = []
    idle = [i for i, w in enumerate(windows) if w["subject"] == "idle"]
    if any(faults[i] for i in idle):
        warnings.append("the power log does not tell the power of every idle window")
    shift, shifted, warned = _clocks([w for w, seen in zip(windows, faults, strict=True) if not seen], log)
    about = {
        "interval_s": log.interval_s,
        "samples": min((log.samples(*_times(windows[i])) for i in pairs), default=0),
        "offset_s": log.offset_s,
        "clock_offset_s": shift,
        "invalid": invalid + shifted,
        "warnings": warnings + warned,
    }
    started = {s: [_without_joules(one) for one in each] for s, each in raw["started"].items()}
    scope = (
        f"whatever {name} is put on, usually the whole machine with its power supply, and all that runs on it"
    )
    return raw | {
        "windows": windows,
        "started": started,
        "source": SOURCE + name,
        "scope": scope,
        "meter": about,
    }


def named(name: str) -> str:
    """Return the name of a meter, if it is one."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{name!r} is no name of a meter: letters, digits, _, . and - are allowed")
    return name


def _steady_j(log: PowerLog, start_unix_s: float, end_unix_s: float) -> float:
    """Joules of a window, which does the same all the time: mean power inside, times its length.

    A sample at an end belongs half to the neighbour. Integrated over the ends, levels that differ by a tenth
    would come out closer by .2 % in windows of 25 samples, and intervals know nothing of that.
    """
    edge_s = EDGE * log.interval_s
    inside = log.joules(start_unix_s + edge_s, end_unix_s - edge_s)
    return inside * (end_unix_s - start_unix_s) / (end_unix_s - start_unix_s - 2 * edge_s)


class Fault(NamedTuple):
    """Why a log does not tell the joules of a window."""

    kind: str
    amount: float = 0.0
    line: int = 0


def _times(window: dict[str, Any]) -> tuple[float, float]:
    return window["start_unix_s"], window["end_unix_s"]


def _without_joules(started: dict[str, Any]) -> dict[str, Any]:
    """Loading and first call have no times of their own, and are too short."""
    return {k: None if k.endswith("_j") else v for k, v in started.items()}


def _fault(log: PowerLog, window: dict[str, Any]) -> Fault | None:
    start, end = _times(window)
    if not log.covers(start, end):
        return Fault("outside")
    for since, until, line in log.set_back:
        if since <= end and start <= until:
            return Fault("set back", until - since, line)
    gap_s, line = log.longest_gap(start, end)
    if gap_s > GAP * log.interval_s:
        return Fault("gap", gap_s, line)
    samples = log.samples(start, end)
    return Fault("few", samples) if samples < LEAST_SAMPLES else None


def _reasons(windows: list[dict[str, Any]], faults: list[Fault | None], log: PowerLog) -> list[str]:
    """One line for each kind of fault."""
    said = []
    for kind in ("outside", "set back", "gap", "few"):
        seen = [fault for fault in faults if fault and fault.kind == kind]
        if not seen:
            continue
        count = f"{len(seen)} of {len(windows)} windows"
        most = max(seen, key=lambda fault: fault.amount)
        if kind == "outside":
            said.append(
                f"the power log does not cover {count}: it has {_span(log.start_unix_s, log.end_unix_s)}, "
                f"they are {_span(windows[0]['start_unix_s'], windows[-1]['end_unix_s'])}: was it cut off, "
                "and is its clock right?"
            )
        elif kind == "set back":
            said.append(
                f"the clock of the power log was set back by {most.amount:.3g} s at line {most.line}, in "
                f"{count}"
            )
        elif kind == "gap":
            said.append(
                f"a gap in the power log, or a jump of its clock, in {count}: {most.amount:.3g} s up to line "
                f"{most.line}, with a sample every {log.interval_s:.3g} s otherwise"
            )
        else:
            needed_s = math.ceil(10 * SPARE * LEAST_SAMPLES * log.interval_s) / 10
            said.append(
                f"too few samples of the power log in {count}: {min(f.amount for f in seen):.0f}, with one "
                f"every {log.interval_s:.3g} s, {LEAST_SAMPLES} are needed: measure.window_s={needed_s:g}"
            )
    return said


def _span(start: float, end: float) -> str:
    first, last = (datetime.fromtimestamp(t, UTC) for t in (start, end))
    return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC"


def _stuck(windows: list[dict[str, Any]], log: PowerLog) -> list[str]:
    """The same value throughout one window may be; throughout its neighbour, too, it is none."""
    run = [log.same_value(*_times(w)) for w in windows if w["energy_j"] is not None]
    stuck = [r for r in run if r is not None and run.count(r) > 1]
    if not stuck:
        return []
    count = f"{len(stuck)} of {len(windows)} windows"
    return [f"the power log stays at one value through {count}: it is stuck, or too coarse"]


def _implausible(windows: list[dict[str, Any]]) -> list[str]:
    watts = max((w["energy_j"] / w["wall_s"] for w in windows if w["energy_j"] is not None), default=0.0)
    if watts <= TOO_MUCH_W:
        return []
    return [f"{watts:,.0f} W: milliwatts need a column that says so, power_mw"]


def _clocks(windows: list[dict[str, Any]], log: PowerLog) -> tuple[float | None, list[str], list[str]]:
    """Compare the clocks by what the log shows of the windows: offset, reasons, warnings.

    Where the log has a gap between windows its clock may have been set: either side is looked at by itself.
    """
    if not windows:
        return None, [], []
    windows = sorted(windows, key=lambda w: float(w["start_unix_s"]))
    parts = [[windows[0]]]
    for before, after in pairwise(windows):
        start, end = before["end_unix_s"], after["start_unix_s"]
        jumped = log.longest_gap(start, end)[0] > GAP * log.interval_s
        jumped |= any(since <= end and start <= until for since, until, _ in log.set_back)
        parts[-1:] = [parts[-1], [after]] if jumped else [[*parts[-1], after]]
    found = [_clock_offset(part, log) for part in parts]
    sure = [(seen, part) for seen, part in zip(found, parts, strict=True) if seen is not None]
    warnings: list[str] = []
    invalid: list[str] = []
    if len(sure) < len(parts):
        where = "" if len(parts) == 1 else " on all sides of the gaps between windows"
        warnings.append(
            f"the power log does not show when windows begin and end{where}: its clock could not be checked"
        )
    if not sure:
        return None, [], warnings
    (shift_s, worse), part = max(sure, key=lambda one: abs(one[0][0]))
    if abs(shift_s) > log.interval_s and worse:
        length_s = float(np.median([w["end_unix_s"] - w["start_unix_s"] for w in part]))
        way = "late" if shift_s > 0 else "early"
        said = (
            f"the power log is {abs(shift_s):.2g} s {way}, as the steps at the ends of windows show: its "
            f"clock less this machine's is about {log.offset_s + shift_s:.3g} s (--offset-s, {OFFSET})"
        )
        (invalid if abs(shift_s) > SHIFTED * length_s else warnings).append(said)
    return shift_s, invalid, warnings


def _clock_offset(windows: list[dict[str, Any]], log: PowerLog) -> tuple[float, bool] | None:
    """Return what is left of an offset of the clocks, and whether it matters.

    Laid rightly over the log, the windows of a subject hold one level of power each, and idle ones another;
    laid wrongly, they hold some of their neighbours'. The offset that leaves the least of the variance to
    scatter within a subject's windows is taken. None if no offset stands out, or if another one does as soon
    as half a process is left out.
    """
    if len(windows) < 2 * LEAST_WINDOWS:
        return None
    start, end = (np.array([w[k] for w in windows]) for k in ("start_unix_s", "end_unix_s"))
    process = np.array([w["process"] for w in windows])
    second = [i >= np.median(np.flatnonzero(process == p)) for i, p in enumerate(process)]
    subject = np.array([w["subject"] for w in windows])
    blocks, block = np.unique(2 * process + second, return_inverse=True)
    groups, group = np.unique(np.char.add(block.astype(str), subject), return_inverse=True)
    in_block, in_group = (np.eye(len(n))[i] for n, i in ((blocks, block), (groups, group)))
    block_of = block[[int(np.flatnonzero(group == g)[0]) for g in range(len(groups))]]

    def scatter(offsets: Floats) -> tuple[Floats, Floats]:
        """Watts² × seconds within subjects, and within blocks: (offsets, blocks) each."""
        joules, squares = (
            np.array([log.integral(end + d, k) - log.integral(start + d, k) for d in offsets]) for k in (1, 2)
        )
        within = (squares @ in_group) - (joules @ in_group) ** 2 / ((end - start) @ in_group)
        around = (squares @ in_block) - (joules @ in_block) ** 2 / ((end - start) @ in_block)
        return within @ np.eye(len(blocks))[block_of], around

    def unexplained(within: Floats, around: Floats) -> Floats:
        """Geometric mean over blocks: one that shows a step by chance must not outweigh the others."""
        shares = np.divide(within, around, out=np.ones_like(within), where=around > 1e-9)
        means: Floats = np.exp(np.log(np.clip(shares, LEAST_SHARE, 1)).mean(axis=1))
        return means

    step_s = max(log.interval_s / 4, float(np.min(end - start)) / 25)
    reach_s = min(REACH_S, TRIES * step_s)
    low, high = max(-reach_s, log.start_unix_s - start.min()), min(reach_s, log.end_unix_s - end.max())
    offsets = np.union1d(np.arange(low, high, step_s), [0.0])
    within, around = scatter(offsets)
    left = unexplained(within, around)
    best = int(left.argmin())
    steps = (around - within).sum(axis=1)
    if not np.median(left) > CLEAR * left[best] or steps[best] < steps.max() / 2:
        return None
    rest = [np.delete(range(len(blocks)), b) for b in range(len(blocks))]
    others = [offsets[unexplained(within[:, r], around[:, r]).argmin()] for r in rest]
    if np.ptp(others) > max(2 * step_s, log.interval_s):
        return None
    near = np.clip(offsets[best] + np.linspace(-step_s, step_s, 41), low, high)
    closer = unexplained(*scatter(near))
    at_none = float(left[np.flatnonzero(offsets == 0)[0]])
    return float(near[closer.argmin()]), bool(at_none > WORSE * closer.min())


class _FromEnvironment:
    """The tag of the class and of what is made of it, which is known before it is made."""

    def __get__(self, instance: object, owner: type) -> str:
        return SOURCE + named(os.environ.get(NAME) or "log")


class Csv:
    """A power log that is being written, as a meter: ``measure.meter=tsexp.energy.external:Csv``.

    Windows last 20 of its samples, with some to spare. Their joules are filled in when they are over
    (`settle`).

    Raises
    ------
    ConfigError
        If no log is named, it cannot be read, or nothing is written to it.
    """

    source = _FromEnvironment()

    def __init__(self) -> None:
        self.name = self.source.removeprefix(SOURCE)
        file, offset = os.environ.get(FILE, ""), os.environ.get(OFFSET) or "0"
        if not file:
            raise ConfigError(
                f"measure.meter=tsexp.energy.external:Csv needs a power log: set {FILE}=FILE.csv, which "
                "something writes times and watts to (docs/measuring.md)"
            )
        try:
            self.offset_s = float(offset)
        except ValueError:
            self.offset_s = math.nan
        if not math.isfinite(self.offset_s):
            raise ConfigError(f"{OFFSET}={offset} is no number of seconds")
        self.path = Path(file).expanduser().absolute()
        self._found = log = self._read()
        behind_s = time.time() - log.end_unix_s
        self.patience_s = max(PATIENCE_S, RESOLUTIONS * log.interval_s)
        right = f"set the clocks, or {OFFSET}={self.offset_s - behind_s:.1f}"
        if behind_s > self.patience_s:
            raise ConfigError(
                f"the power log {file} has no sample of the last {behind_s:.0f} s: is it being written, and "
                f"does it write each line at once? If its clock is slow, {right}"
            )
        if behind_s < -max(1.0, log.interval_s):
            raise ConfigError(
                f"the power log {file} is {-behind_s:.1f} s ahead of this machine's clock: {right}"
            )
        self.resolution_s = SPARE * log.interval_s

    @property
    def scope(self) -> str:
        """What the joules cover."""
        return f"whatever {self.name} is put on: {self.path.name}"

    def _read(self) -> PowerLog:
        return read(self.path, self.offset_s)

    def begin(self) -> None:
        """Start a stretch of time."""
        self._start = time.time()

    def end(self) -> float:
        """Joules since `begin`, as soon as the log has them; NaN if it does not tell."""
        stretch = {"start_unix_s": self._start, "end_unix_s": time.time()}
        log = self._after(stretch["end_unix_s"])
        return math.nan if _fault(log, stretch) else log.joules(*_times(stretch))

    def settle(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return a measurement with its joules (`fill`), as soon as the log has them.

        It is invalid if the log cannot be read any more: what was timed stays, and a log can be attached.
        """
        try:
            log, lost = self._after(max(w["end_unix_s"] for w in raw["windows"])), []
        except ConfigError as error:
            log, lost = self._found, [str(error)]
        filled = fill(raw, log, self.name)
        filled["meter"]["invalid"] = lost + filled["meter"]["invalid"]
        return filled

    def _after(self, unix_s: float) -> PowerLog:
        """The log with all that happened until then, or what there is when patience ends."""
        until = time.monotonic() + self.patience_s
        log = self._read()
        while log.end_unix_s < unix_s and time.monotonic() < until:
            time.sleep(min(1.0, max(0.05, log.interval_s)))
            log = self._read()
        return log
