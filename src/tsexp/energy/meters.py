"""What turns a stretch of time into joules: Zeus where it reads a counter, else a labelled estimate.

`ZeusMonitor` on a machine without counters returns ``cpu_energy=None`` and ``total_energy == 0`` without a
word; hence the look at what it really monitors, before the first window.
"""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tsexp.config import ConfigError, MeasureConfig, look_up
from tsexp.energy import hardware
from tsexp.marks import ESTIMATED
from tsexp.system.processes import nameless_main
from tsexp.system.quiet import quiet

# No CPU package or GPU draws this much: such a reading is a counter that wrapped between two looks of Zeus'
# tracker. Over the longest window (`config.MeasureConfig`) that is less than the range of the smallest
# counter (65.5 kJ).
IMPOSSIBLE_W = 2000.0

WATCH_S = 1.0
"""Between two looks at who else is on the GPU."""

AUTO = "auto"


class Meter(Protocol):
    """Reads the energy of a window.

    Somebody's own (``measure.meter=module:Class``) is made without arguments, and `source` is of the class.
    """

    source: str
    """As tagged: ``zeus:nvml``, ``zeus:rapl``, ``zeus:soc`` or ``estimated:cpu_time``; what begins with
    ``estimated:`` is marked † everywhere."""
    resolution_s: float
    """Windows must be far longer than this."""

    @property
    def scope(self) -> str:
        """What the joules cover, in words."""
        ...

    def begin(self) -> None:
        """Start a window."""
        ...

    def end(self) -> float:
        """End it; return joules. Negative after a counter wrap that was missed, NaN if they are not known."""
        ...


@runtime_checkable
class LateMeter(Protocol):
    """What a `Meter` has as well if it knows only later what a window took: a log that lags behind.

    Windows then are timed only, and `begin` and `end` are for stretches that nobody pairs.
    """

    def settle(self, raw: dict[str, Any]) -> dict[str, Any]:
        """Return a measurement (as ``windows.json``) with the joules of its windows.

        In the process that asked for it, after some or all of its measuring processes ended. Joules that are
        not known are None; ``meter`` then holds why the record is ``invalid``, and ``warnings`` (lists of
        lines).
        """
        ...


@dataclass
class CpuTimeMeter:
    """An estimate: CPU seconds of this process, all threads, times a constant power."""

    watts_per_core: float
    source: str = "estimated:cpu_time"
    resolution_s: float = 0.001

    @property
    def scope(self) -> str:
        """What the joules cover."""
        return f"CPU time of the worker × {self.watts_per_core:g} W: an estimate, not a measurement"

    def begin(self) -> None:
        """Start a window."""
        self._start = time.process_time()

    def end(self) -> float:
        """Joules since `begin`."""
        return (time.process_time() - self._start) * self.watts_per_core


class ZeusMeter:
    """`zeus.monitor.ZeusMonitor` on one kind of counter.

    Parameters
    ----------
    kind
        ``nvml`` (the GPU that runs the model), ``rapl`` (all CPU packages and their DRAM, all processes
        included) or ``soc``.
    gpus
        Their number with ``nvml``: a fit may take the first of several.
    watch
        Look every second whether other processes are on the GPU, whose joules these are, too.

    Attributes
    ----------
    shared : bool or None
        After a window that was watched, whether there were any; None where NVML does not tell.
    """

    def __init__(self, kind: str, gpus: int = 1, watch: bool = False) -> None:
        from zeus.monitor import ZeusMonitor

        self.shared: bool | None = None
        self._watch = watch and kind == "nvml"
        self._over = threading.Event()
        self.kind, self.source = kind, f"zeus:{kind}"
        packages = _packages() if kind == "rapl" else []
        with warnings.catch_warnings(), nameless_main():  # Zeus spawns what looks for a counter's wraps
            warnings.simplefilter("ignore")
            self._monitor = ZeusMonitor(
                gpu_indices=_gpu(gpus) if kind == "nvml" else [], cpu_indices=packages
            )
        self.most_w = IMPOSSIBLE_W * (gpus if kind == "nvml" else 1)
        # NVML refreshes about every 100 ms (design: Measuring, 3); RAPL about every millisecond.
        self.resolution_s = {"nvml": 0.1, "rapl": 0.001, "soc": 0.1}[kind]
        self._scope = {
            "nvml": "the whole GPU board" if gpus == 1 else f"{gpus} whole GPU boards",
            "rapl": f"{len(packages)} whole CPU package(s), with DRAM where it has a counter; "
            "other processes included",
            "soc": "the whole system on chip",
        }[kind]

    @property
    def scope(self) -> str:
        """What the joules cover."""
        return self._scope

    def begin(self) -> None:
        """Start a window."""
        self._wait_for_gpu()
        self._monitor.begin_window("window", sync_execution=False)
        if self._watch:
            self.shared, self._over = None, threading.Event()
            self._watcher = threading.Thread(target=self._look, args=(self._over,), daemon=True)
            self._watcher.start()

    def _look(self, over: threading.Event) -> None:
        last = False
        while not last:  # once at least after the end
            last = over.wait(WATCH_S)
            others = hardware.gpu_disturbances()["gpu_foreign"]
            if others is not None:
                self.shared = bool(self.shared or others)

    def end(self) -> float:
        """Joules since `begin`."""
        self._wait_for_gpu()
        if self._watch:
            self._over.set()
            self._watcher.join()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zeus warns about zero; the record judges it
            reading = self._monitor.end_window("window", sync_execution=False)
        if self.kind == "nvml":
            return float(sum(reading.gpu_energy.values()))
        if self.kind == "rapl":
            return float(sum((reading.cpu_energy or {}).values()) + sum((reading.dram_energy or {}).values()))
        return _soc_joules(reading.soc_energy)

    def _wait_for_gpu(self) -> None:
        """Until it has done what it was given. Zeus would wait for the GPU that has its number at PyTorch."""
        if self.kind == "nvml":
            import torch

            torch.cuda.synchronize()


def _gpu(gpus: int = 1) -> list[int]:
    """Zeus' number of the GPU that PyTorch computes on, in a list; of several, those of the first ones.

    Zeus takes CUDA_VISIBLE_DEVICES for a list of NVML's numbers. CUDA orders by speed by default, and takes
    UUIDs too.
    """
    import pynvml
    from zeus.device import get_gpus

    mine = [hardware.gpu_uuid()] if gpus == 1 else [hardware.gpu_uuid(f"cuda:{i}") for i in range(gpus)]
    try:
        seen = [pynvml.nvmlDeviceGetUUID(gpu.handle) for gpu in get_gpus().gpus]
    except ValueError:  # UUIDs are not numbers
        seen = []
    unseen = [uuid for uuid in mine if uuid not in seen]
    if unseen:
        raise ConfigError(
            f"Zeus does not see the GPU that PyTorch computes on ({', '.join(unseen)}): set "
            "CUDA_DEVICE_ORDER=PCI_BUS_ID, and CUDA_VISIBLE_DEVICES, if at all, to the numbers that "
            "nvidia-smi shows; a slice of a GPU (MIG) has no meter"
        )
    return [seen.index(uuid) for uuid in mine]


def _packages() -> list[int]:
    """Indices of the CPU packages; ``psys`` counts the whole platform and would count them twice."""
    from zeus.device import get_cpus

    rapl: Any = get_cpus()
    # With zeusd, Zeus opens no counter itself and knows no names; everybody may read those.
    zones = [Path(rapl.rapl_dir, f"intel-rapl:{cpu.cpu_index}", "name") for cpu in rapl.cpus]
    return [i for i, zone in enumerate(zones) if zone.read_text().startswith("package")]


def _soc_joules(soc: Any) -> float:
    """Joules of everything a system on chip reports.

    Apple: CPU, GPU, DRAM, neural engine; Jetson: its total.
    """
    total = getattr(soc, "total_energy_mj", None)
    if total is not None:
        return float(total) / 1000
    parts = ("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj", "cpu_energy_mj", "gpu_energy_mj")
    return float(sum(getattr(soc, p, None) or 0 for p in parts)) / 1000


def available(device: str) -> dict[str, str]:
    """Ask each counter that could measure `device`: kind → ``""`` if it answers, else why it does not."""
    from zeus.device.soc import get_soc

    asks: dict[str, Callable[[], Any]] = (
        {"nvml": _gpu} if device == "cuda" else {"rapl": _packages, "soc": get_soc}
    )
    answers = {}
    for kind, ask in asks.items():
        try:
            with quiet(), nameless_main():  # it tells of what is missing; the doctor does
                found = ask()
            empty = hasattr(found, "__len__") and not len(found)
            answers[kind] = "no counter found" if empty else ""
        except Exception as error:  # each backend of Zeus has exceptions of its own
            answers[kind] = f"{type(error).__name__}: {error}".splitlines()[0]
    return answers


def _own(meter: str) -> Meter:
    """Return somebody's own meter, made, if it has what one needs."""
    kind = look_up(meter, {})
    if not isinstance(kind, type):
        raise ConfigError(f"measure.meter={meter} is no class; docs/extending.md has an example of a meter")
    try:
        own: Any = kind()
        scope, resolution_s = getattr(own, "scope", None), getattr(own, "resolution_s", None)
    except ConfigError:
        raise
    except Exception as error:  # whatever somebody's code raises
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"measure.meter={meter} cannot be made, without arguments ({why})") from None
    told = getattr(kind, "source", None)
    wrong = [f"no method {name}" for name in ("begin", "end") if not callable(getattr(own, name, None))]
    if not isinstance(scope, str):
        wrong.append("no scope, a text")
    if not isinstance(told, str) or not told:
        wrong.append("no source, a text that is the class's")
    elif told.startswith("zeus:"):
        wrong.append(f"source={told!r}, which stands for what Zeus reads")
    if not isinstance(resolution_s, Real) or not 0 < float(resolution_s) < math.inf:
        wrong.append(f"resolution_s={resolution_s}, which has to be seconds > 0")
    if wrong:
        raise ConfigError(
            f"measure.meter={meter} cannot be used as a meter: it has {'; '.join(wrong)}; docs/extending.md "
            "has an example"
        )
    return own  # type: ignore[no-any-return]


def source(device: str, meter: str = AUTO) -> str:
    """Return the tag of the meter that `choose` takes for a device."""
    if meter != AUTO:
        return str(look_up(meter, {}).source)
    return next(
        (f"zeus:{kind}" for kind, problem in available(device).items() if not problem), "estimated:cpu_time"
    )


def choose(device: str, require: str, watts_per_core: float, meter: str = AUTO) -> Meter:
    """Return the best meter for a device, or the one that is asked for.

    Raises
    ------
    ConfigError
        If only an estimate is to be had and ``measure.require=measured``, the device is a GPU, for which CPU
        time says nothing, or somebody's own meter lacks what one needs.
    """
    if meter != AUTO:
        own = _own(meter)
        if require == "measured" and own.source.startswith(ESTIMATED):
            raise ConfigError(f"measure.require=measured, but measure.meter={meter} estimates ({own.source})")
        return own
    answers = available(device)
    for kind, problem in answers.items():
        if not problem:
            return ZeusMeter(kind)
    why = "; ".join(f"{kind}: {problem}" for kind, problem in answers.items())
    if device == "cuda":
        raise ConfigError(f"no meter reads this GPU ({why}); CPU time would say nothing about it")
    if require == "measured":
        raise ConfigError(
            f"measure.require=measured, but no meter answers here ({why}); `python -m tsexp.doctor` says "
            "what to permit"
        )
    return CpuTimeMeter(watts_per_core)


def check(device: str, config: MeasureConfig) -> None:
    """Find out before any work whether there is a meter, where `choose` may refuse.

    Raises
    ------
    ConfigError
        As `choose`.
    """
    if config.require == "measured" or config.meter != AUTO or device == "cuda":
        choose(device, config.require, config.watts_per_core, config.meter)


def late(meter: str = AUTO) -> LateMeter | None:
    """Return the meter that is asked for if it knows only later what a window took, else None."""
    own: Any = None if meter == AUTO else look_up(meter, {})
    return own() if hasattr(own, "settle") else None


def counter(device: str, meter: str = AUTO, gpus: int = 1) -> Meter | None:
    """Return a meter that measures, or None where there is only an estimate.

    For stretches of work that nobody pairs: training (on as many GPUs), compression.
    """
    kind = source(device, meter)
    if kind.startswith(ESTIMATED):
        return None
    return _own(meter) if meter != AUTO else ZeusMeter(kind.removeprefix("zeus:"), gpus, watch=True)
