"""Whether a measurement may be trusted: reasons why it is invalid, and what a reader should act on.

There are four kinds of warning, each with what to do: ``meter`` (it lost windows), ``interference``
(something else used the machine, and which figure is still good), ``throttling``, and ``interval`` (wider
than asked for).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from tsexp.energy.meters import CpuTimeMeter
from tsexp.energy.statistics import joules, kept, reach_pct
from tsexp.energy.windows import SUBJECTS
from tsexp.marks import CHANGED, OTHERWISE

ESTIMATE = CpuTimeMeter.source
FOREIGN_CORES = 0.1
CHILDREN = 0.02
"""CPU time of child processes, as a share of the own, that is more than ticks and idle helpers."""
CORES = 1.2
"""Times the threads asked for; a subject that uses more cores is oversubscribed."""
WIDE_PCT = 5.0
"""How far an interval may reach where `measure.target_pct` asks for nothing."""
SHORTEST = 0.9
"""Windows shorter than this share of the length asked for make a record invalid."""


def judge(raw: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the reasons why a measurement is invalid; and warnings, if it is valid."""
    invalid = list(_invalid(raw))
    if invalid:
        return tuple(invalid), ()
    return (), (*_meter(raw), *_interference(raw), *_throttling(raw), *_interval(raw))


def _invalid(raw: dict[str, Any]) -> Iterator[str]:
    windows = _of_subjects(raw)
    yield from raw.get("meter", {}).get("invalid", ())  # by what filled the joules in (`meters.LateMeter`)
    if any(joules(w) <= 0 for w in windows):
        yield "a window with zero or negative energy"
    elif not raw.get("meter", {}).get("invalid") and any(w["energy_j"] is None for w in windows):
        yield "a window whose energy the meter did not tell"
    if raw.get("source") == ESTIMATE and _elsewhere(raw):
        yield "the artifact or the reference works in processes of its own, which the estimate does not see"
    for name in SUBJECTS:
        yield from _invalid_subject(raw, name)


def _invalid_subject(raw: dict[str, Any], name: str) -> Iterator[str]:
    """Why nothing that was measured of this subject counts."""
    windows = kept(raw, name)
    if len(windows) < raw["repeats"]:
        yield (
            f"only {len(windows)} of {raw['repeats']} windows of the {name}: the others were discarded "
            f"({_lost(raw)})"
        )
    short = sum(w["wall_s"] < SHORTEST * raw["window_s"] for w in windows)
    if short:
        yield f"{short} windows of the {name} shorter than {raw['window_s']:g} s: measure again"
    broken = {
        "same_outputs": f"the {name} answers the probe batch differently after the windows",
        "same_weights": f"the weights of the {name} {CHANGED}",
        "as_scored": f"the {name} {OTHERWISE}",
    }
    yield from (line for check, line in broken.items() if not raw[check][name])


def _meter(raw: dict[str, Any]) -> Iterator[str]:
    """What the meter lost."""
    yield from (f"meter: {line}" for line in raw.get("meter", {}).get("warnings", ()))
    lost = sum(w["discarded"] for w in raw["windows"])
    if lost:
        yield (
            f"meter: {lost} windows were lost ({_lost(raw)}) and measured again; if it recurs, raise "
            "measure.window_s"
        )


def _lost(raw: dict[str, Any]) -> str:
    unknown = any(w["discarded"] and w["energy_j"] is None for w in raw["windows"])
    return "the meter did not tell" if unknown else "counter wrap"


def _interference(raw: dict[str, Any]) -> Iterator[str]:
    """What else used the machine, or more of it than was given, and which figure is still good."""
    windows, by_time = _of_subjects(raw), "trust vs_dense/speedup, not vs_dense/cpu_speedup"
    foreign_s = sum(w["foreign_cpu_s"] for w in windows) - raw.get("children_cpu_s", 0.0)
    foreign = max(0.0, foreign_s) / sum(w["wall_s"] for w in windows)
    if foreign > FOREIGN_CORES:
        yield (
            f"interference: other processes used {foreign:.1f} cores: trust vs_dense/cpu_speedup, not "
            "vs_dense/speedup; stop them and measure again"
        )
    if _elsewhere(raw):
        yield f"interference: part of the work is done in child processes: {by_time}"
    if raw.get("threads_spin"):
        yield (
            f"interference: {raw['threads']} threads, of which PyTorch's may spin while they wait, which "
            f"counts as work: {by_time}; start Python with OMP_WAIT_POLICY=PASSIVE"
        )
    for name in SUBJECTS:
        mine = kept(raw, name)
        cores = sum(w["cpu_s"] for w in mine) / sum(w["wall_s"] for w in mine)
        if cores > CORES * raw.get("threads", math.inf):
            yield (
                f"interference: the {name} uses {cores:.1f} cores, measure.threads={raw['threads']}: see its "
                f"n_jobs; {by_time}"
            )
    others = max(w.get("gpu_foreign") or 0 for w in windows)
    if others:
        yield (
            f"interference: up to {others} other processes on the GPU, whose energy and time are in these "
            "windows: stop them and measure again"
        )


def _throttling(raw: dict[str, Any]) -> Iterator[str]:
    ratios = "ratios hold, absolute times and joules may not; cool the machine and measure again"
    if raw.get("throttle_events"):
        yield f"throttling: heat slowed the CPU down {raw['throttle_events']} times: {ratios}"
    windows = _of_subjects(raw)
    slowed = [w for w in windows if w.get("gpu_slowed_by")]
    if slowed:
        by = sorted({reason for w in slowed for reason in w["gpu_slowed_by"]})
        yield (
            f"throttling: the GPU was slowed down by {' and '.join(by)} in {len(slowed)} of {len(windows)} "
            f"windows: {ratios}"
        )


def _interval(raw: dict[str, Any]) -> Iterator[str]:
    target_pct = raw.get("target_pct") or WIDE_PCT
    reach = reach_pct(raw)
    if reach <= target_pct:
        return
    asked = "measure.target_pct" if raw.get("target_pct") else "usual"
    more = ""
    if math.isfinite(reach):
        needed = 4 * math.ceil(raw["processes"] * (reach / target_pct) ** 2 / 4)
        more = f", to about {needed}"
    yield (
        f"interval: the saving is known to ± {reach:.2g} % of what is left, not ± {target_pct:g} ({asked}): "
        f"raise measure.processes{more}"
    )


def _of_subjects(raw: dict[str, Any]) -> list[dict[str, Any]]:
    return [w for name in SUBJECTS for w in kept(raw, name)]


def _elsewhere(raw: dict[str, Any]) -> bool:
    """Whether part of the work is done in child processes."""
    own_s = sum(w["cpu_s"] for w in raw["windows"] if w["subject"] != "idle")
    return bool(raw.get("children_cpu_s", 0.0) > CHILDREN * own_s)
