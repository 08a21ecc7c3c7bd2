"""A power log as a file: what something outside wrote, read with care, and integrated.

A sample is taken as the power at its time, with straight lines in between. A meter that reports the mean over
the interval before is then late by half an interval, which `tsexp.energy.external` looks for, as for any
other offset of its clock.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tsexp.config import ConfigError
from tsexp.data import IntArray

Floats = NDArray[np.float64]

TIMES = (
    *("time", "timestamp", "datetime", "date_time", "unix", "unix_time", "epoch", "ts", "t"),
    *("time_s", "timestamp_s", "unix_s", "epoch_s", "time_ms", "timestamp_ms", "unix_ms", "epoch_ms"),
)
"""Names of a column of time, in lower case, with ``_`` for anything but letters and digits."""
POWERS = {
    **dict.fromkeys(("watts", "watt", "w", "power", "power_w", "power_watts", "p", "p_w", "apower"), 1.0),
    **dict.fromkeys(("milliwatts", "mw", "power_mw", "p_mw"), 1e-3),
    **dict.fromkeys(("microwatts", "uw", "power_uw", "p_uw"), 1e-6),
    **dict.fromkeys(("kilowatts", "kw", "power_kw", "p_kw"), 1e3),
}
"""Names of a column of power → watts."""
DEVICES = (
    *("device", "device_id", "device_name", "sensor", "sensor_id", "entity_id", "topic", "uuid", "gpu_uuid"),
    *("meter", "meter_id", "channel", "outlet", "outlet_name", "plug", "socket", "phase", "host", "hostname"),
)
"""Names of a column that says whose power a line has."""
REGULAR = 0.9
"""Share of lines from which on values that come in turn are those of several devices, whatever the column."""
UNITS = ((1e8, 1e10, 1.0), (1e11, 1e13, 1e-3), (1e14, 1e16, 1e-6), (1e17, 1e19, 1e-9))
"""UNIX time is told by its size: from, below, → seconds."""
LEAST_LINES = 3
WITHOUT_UNIT = ("power", "p")
OFTEN_MILLIWATTS = 1000.0
"""From so many on throughout, a column that tells no unit has to."""


@dataclass(frozen=True)
class PowerLog:
    """Samples of power in the order of the file, or the other way round where that has the newest first.

    Attributes
    ----------
    unix_s
        When, by this machine's clock: float64 (samples,).
    watts
        How much: float64 (samples,).
    line
        Where in the file: int64 (samples,).
    offset_s
        What the log's own clock was taken to be ahead of this machine's, and was taken off ``unix_s``.
    """

    unix_s: Floats
    watts: Floats
    line: IntArray
    offset_s: float = 0.0

    @cached_property
    def interval_s(self) -> float:
        """Median time from one sample to the next."""
        steps = np.diff(self.unix_s)
        return float(np.median(steps[steps > 0])) if (steps > 0).any() else math.inf

    @cached_property
    def set_back(self) -> list[tuple[float, float, int]]:
        """Stretches of time that the log has twice, as its clock was set back: from, to, line."""
        latest = np.maximum.accumulate(self.unix_s)
        jumps = np.flatnonzero(np.diff(self.unix_s) < 0)
        return [(float(self.unix_s[i + 1]), float(latest[i]), int(self.line[i + 1])) for i in jumps]

    @cached_property
    def _sorted(self) -> tuple[Floats, Floats, IntArray]:
        """By time, with one sample, the mean, for each time."""
        times, first, inverse, count = np.unique(
            self.unix_s, return_index=True, return_inverse=True, return_counts=True
        )
        return times, np.bincount(inverse, self.watts) / count, self.line[first]

    @property
    def start_unix_s(self) -> float:
        """Of the first sample."""
        return float(self._sorted[0][0])

    @property
    def end_unix_s(self) -> float:
        """Of the last sample."""
        return float(self._sorted[0][-1])

    def covers(self, start_unix_s: float, end_unix_s: float) -> bool:
        """There are samples before and after."""
        return self.start_unix_s <= start_unix_s and end_unix_s <= self.end_unix_s

    def joules(self, start_unix_s: float, end_unix_s: float) -> float:
        """Energy of a stretch of time, by the trapezoidal rule; NaN where the log does not cover it."""
        start, end = self.integral(np.array([start_unix_s, end_unix_s]))
        return float(end - start)

    def integral(self, unix_s: Floats, power: int = 1) -> Floats:
        """∫ watts**power from the first sample to each of these times; NaN outside of the log."""
        times, watts, _ = self._sorted
        done = self._cumulated[power - 1]
        i = np.clip(np.searchsorted(times, unix_s, side="right") - 1, 0, len(times) - 2)
        since, step = unix_s - times[i], times[i + 1] - times[i]
        values = watts**power
        there = values[i] + (values[i + 1] - values[i]) * since / step
        inside = (unix_s >= times[0]) & (unix_s <= times[-1])
        return np.where(inside, done[i] + since * (values[i] + there) / 2, np.nan)

    @cached_property
    def _cumulated(self) -> tuple[Floats, Floats]:
        from scipy.integrate import cumulative_trapezoid

        times, watts, _ = self._sorted
        return tuple(cumulative_trapezoid(watts**power, times, initial=0) for power in (1, 2))

    def samples(self, start_unix_s: float, end_unix_s: float) -> int:
        """How many lie within."""
        times = self._sorted[0]
        first, last = np.searchsorted(times, [start_unix_s, end_unix_s], side="left")
        return int(last - first)

    def longest_gap(self, start_unix_s: float, end_unix_s: float) -> tuple[float, int]:
        """Longest time without a sample that reaches into a stretch, and the line that ends it."""
        times, _, line = self._sorted
        first = max(0, int(np.searchsorted(times, start_unix_s, side="right")) - 1)
        last = min(len(times) - 1, int(np.searchsorted(times, end_unix_s, side="left")))
        if last <= first:
            return math.inf, int(line[first])
        steps = np.diff(times[first : last + 1])
        longest = int(steps.argmax())
        return float(steps[longest]), int(line[first + longest + 1])

    def same_value(self, start_unix_s: float, end_unix_s: float) -> int | None:
        """Which run of one and the same value fills a stretch (a number for each run); None if none does."""
        first, last = np.searchsorted(self._sorted[0], [start_unix_s, end_unix_s], side="left")
        if last - first < 2:
            return None
        runs = self._runs[first:last]
        return int(runs[0]) if runs[0] == runs[-1] else None

    @cached_property
    def _runs(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(np.diff(self._sorted[1]) != 0)])


def read(path: Path, offset_s: float = 0.0) -> PowerLog:
    """Read a CSV file with a header; comma, semicolon or tab.

    A last line that is not ended is left out: somebody may be writing it. A line without a power is a sample
    that is missing.

    Parameters
    ----------
    path
        Has a column of time (`TIMES`), UNIX seconds, milli-, micro- or nanoseconds or ISO 8601 with its zone,
        and one of power (`POWERS`).
    offset_s
        The log's clock less this machine's.

    Raises
    ------
    ConfigError
        In one line, with the file and the line of it.
    """
    try:
        lines = _lines(path)
        header = next(lines, (0, []))[1]
        when, power, factor = _columns(path, header)
        unix_s, watts, numbers = [], [], []
        clock: Callable[[str], float] | None = None
        others: dict[int, list[str]] = {i: [] for i in range(len(header)) if i not in (when, power)}
        for number, row in lines:
            if len(row) <= max(when, power):
                raise ConfigError(f"{path}, line {number}: {len(row)} columns, the header has {len(header)}")
            if not row[power].strip():
                continue
            for i, words in others.items():
                if i < len(row) and (word := row[i].strip().casefold()):
                    words.append(word)
            try:
                clock = clock or _clock(row[when])
                unix_s.append(clock(row[when]))
                watts.append(factor * _number(row[power], header[power]))
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: {error}") from None
            numbers.append(number)
        for i, words in others.items():
            _of_one(path, header[i], words)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the power log {path} cannot be read: {reason}") from None
    if len(set(unix_s)) < LEAST_LINES:
        raise ConfigError(
            f"the power log {path} has {len(set(unix_s))} samples so far; at least {LEAST_LINES} are needed"
        )
    if _name(header[power]) in WITHOUT_UNIT and (least := min(watts)) >= OFTEN_MILLIWATTS:
        raise ConfigError(
            f"{path}, line 1: column {header[power]} tells no unit, and holds {least:,.0f} or more "
            "throughout: call it power_mw if these are milliwatts, power_w if they are watts"
        )
    samples = np.array(unix_s) - offset_s, np.array(watts), np.array(numbers, np.int64)
    if (np.diff(unix_s) <= 0).all():  # newest first, as an export from a web page is
        samples = samples[0][::-1], samples[1][::-1], samples[2][::-1]
    return PowerLog(*samples, offset_s)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    text = path.read_text(encoding="utf-8-sig")
    whole = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    separator = max(",;\t", key=(whole or [""])[0].count)
    reader = csv.reader(whole, delimiter=separator)
    return ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def _of_one(path: Path, column: str, words: list[str]) -> None:
    """Refuse lines of several devices, whose mean would be taken for the power of one.

    Their names come again and again: as they like, or, in a column that may say something else, in turn. One
    that never comes again is a device that another has replaced, or a count.
    """
    several = list(dict.fromkeys(words))
    count, runs = len(several), 1 + sum(a != b for a, b in itertools.pairwise(words))
    if not 1 < count <= len(words) / 2:
        return
    again = sum(a == b for a, b in zip(words, words[count:], strict=False))
    in_turn = runs >= REGULAR * len(words) and again >= REGULAR * (len(words) - count)
    if in_turn or (_name(column) in DEVICES and runs > count):
        raise ConfigError(
            f"{path}: by its column {column}, lines are of several devices ({', '.join(several[:3])}), and a "
            "log is of one: keep the lines of one, or add up the power of all at each time; if the column "
            "says something else, leave it out"
        )


def _name(column: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_")


def _columns(path: Path, header: list[str]) -> tuple[int, int, float]:
    names = [_name(name) for name in header]
    found = []
    for kind, known in (("time", TIMES), ("power", tuple(POWERS))):
        at = [i for i, name in enumerate(names) if name in known]
        if len(at) != 1:
            several = f"several columns of {kind}: {', '.join(header[i] for i in at)}; keep one"
            none = (
                f"no column of {kind}; it has: {', '.join(header) or 'nothing'}; "
                f"a header such as time,watts is needed ({kind}: one of {', '.join(known)})"
            )
            raise ConfigError(f"{path}, line 1: {several if at else none}")
        found.append(at[0])
    return found[0], found[1], POWERS[names[found[1]]]


def _clock(first: str) -> Callable[[str], float]:
    """Return what reads times that look like this one."""
    try:
        value = float(first)
    except ValueError:
        return _iso
    for low, high, seconds in UNITS:
        if low <= value < high:
            return lambda text: seconds * _number(text, "time")
    raise ValueError(f"{first} is no UNIX time; seconds since 1970, or ISO 8601 with its zone, are needed")


def _iso(text: str) -> float:
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            f"{text!r} is no time; UNIX time, or ISO 8601 such as 2025-01-31T12:00:00.5+01:00, is needed"
        ) from None
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; 2025-01-31T12:00:00+01:00 or …Z has one")
    return time.timestamp()


def _number(text: str, what: str) -> float:
    try:
        value = math.nan if "_" in text else float(text)  # 1_0 is ten for Python alone
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no number ({what}); a decimal point, and nothing else, is allowed")
    return value
