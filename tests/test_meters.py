"""Meters: the real Zeus on counters whose power is known, and the estimate."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pynvml
import pytest
import torch
import zeus.device
import zeus.device.cpu
import zeus.device.cpu.rapl as zeus_rapl
import zeus.device.gpu

import rapl_tree
from conftest import compose
from rapl_tree import RANGE_UJ, add_zone, set_counter
from tsexp.config import ConfigError
from tsexp.energy import hardware, meters, statistics, windows
from tsexp.energy.meters import CpuTimeMeter, ZeusMeter


class Clock:
    """Seconds, as the test moves them."""

    now = 0.0


@contextmanager
def drawing(watts: dict[Path, float]) -> Iterator[Clock]:
    """Let each zone's counter rise with a constant power, on a clock of its own."""
    clock = Clock()
    with mock.patch.object(zeus_rapl.RAPLFile, "read", rapl_tree.rising(watts, lambda: clock.now)):
        yield clock


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty RAPL folder that Zeus takes for the machine's."""
    root = tmp_path / "intel-rapl"
    root.mkdir()
    monkeypatch.setattr(zeus_rapl, "RAPL_DIR", str(root))
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    zeus_rapl.rapl_is_available.cache_clear()
    yield root
    for cpu in getattr(zeus.device.cpu._cpus, "cpus", []):
        for zone in (getattr(cpu, "rapl_file", None), getattr(cpu, "dram", None)):
            if zone is not None and zone._wraparound_tracker is not None:
                zone._wraparound_tracker._stop()
    zeus_rapl.rapl_is_available.cache_clear()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def one_window(meter: ZeusMeter, seconds: float) -> tuple[float, float]:
    """Joules and seconds of a window."""
    start = time.perf_counter()
    meter.begin()
    time.sleep(seconds)
    joules = meter.end()
    return joules, time.perf_counter() - start


@pytest.mark.parametrize("dram_w", [0.0, 8.0], ids=["without dram", "with dram"])
def test_rapl_window_reads_package_and_dram_but_not_psys(tree: Path, dram_w: float) -> None:
    watts = {
        add_zone(tree / "intel-rapl:0", "package-0"): 50.0,
        add_zone(tree / "intel-rapl:1", "psys"): 90.0,
    }
    watts[add_zone(tree / "intel-rapl:0" / "intel-rapl:0:0", "core")] = 30.0
    if dram_w:
        watts[add_zone(tree / "intel-rapl:0" / "intel-rapl:0:1", "dram")] = dram_w
    with drawing(watts) as clock:
        meter = meters.choose("cpu", "measured", 10.0)
        assert meter.source == "zeus:rapl"
        assert meter.scope.startswith("1 whole CPU package")
        meter.begin()
        clock.now += 3.0
        assert meter.end() == pytest.approx(3.0 * (50.0 + dram_w))


def test_rapl_window_adds_up_two_packages_whatever_their_order(tree: Path) -> None:
    watts = {
        add_zone(tree / "intel-rapl:0", "psys"): 500.0,
        add_zone(tree / "intel-rapl:1", "package-0"): 50.0,
        add_zone(tree / "intel-rapl:2", "package-1"): 25.0,
    }
    with drawing(watts) as clock:
        meter = ZeusMeter("rapl")
        meter.begin()
        clock.now += 3.0
        assert meter.end() == pytest.approx(3.0 * 75.0)
    assert meter.scope.startswith("2 whole CPU package")


def test_psys_is_no_package_where_zeusd_reads_the_counters(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("package-0", "psys", "package-1")):
        add_zone(tree / f"intel-rapl:{i}", name)
    client = SimpleNamespace(cpu_ids=[0, 1, 2], dram_available=[False] * 3)
    monkeypatch.setenv("ZEUSD_SOCK_PATH", "/proc/nowhere")
    monkeypatch.setattr(zeus_rapl, "ZeusdClient", lambda config: client)
    monkeypatch.setattr(zeus_rapl, "require_capabilities", lambda *_, **__: None)
    assert meters._packages() == [0, 2]
    assert isinstance(zeus.device.cpu._cpus.cpus[1], zeus_rapl.ZeusdRAPLCPU)


def test_window_with_a_counter_wrap_is_discarded_or_right(tree: Path) -> None:
    package = add_zone(tree / "intel-rapl:0", "package-0", RANGE_UJ - 10e6)
    meter = ZeusMeter("rapl")
    one_window(meter, 0.01)
    tracker = zeus.device.cpu._cpus.cpus[0].rapl_file.wraparound_tracker
    wait_until_it_looks(tracker, package)
    seen = tracker.get_num_wraparounds()

    wrapped = windows._read(
        meter, lambda: set_counter(package, 5e6)
    )  # 10 J up to the end of the range and 5 J more
    noticed = windows._read(
        meter, lambda: wait_for(lambda: tracker.get_num_wraparounds() > seen, "Zeus to notice the wrap")
    )
    after = windows._read(meter, lambda: (set_counter(package, 8e6), time.sleep(0.02)))

    assert wrapped["discarded"] or wrapped["energy_j"] == pytest.approx(15, abs=0.01)
    assert noticed["discarded"] or noticed["energy_j"] == pytest.approx(0, abs=0.01)
    assert wrapped["energy_j"] + noticed["energy_j"] == pytest.approx(15, abs=0.01)
    assert after["energy_j"] == pytest.approx(3, abs=0.01)
    assert not after["discarded"]


def wait_until_it_looks(tracker: zeus_rapl.RaplWraparoundTracker, package: Path) -> None:
    """Let the counter drop until the helper process, which starts slowly, has seen it.

    Near its end, where Zeus looks ten times a second.
    """

    def drop() -> bool:
        set_counter(package, RANGE_UJ - 10e6)
        time.sleep(0.15)
        set_counter(package, RANGE_UJ - 20e6)
        time.sleep(0.15)
        return tracker.get_num_wraparounds() > 0

    wait_for(drop, "Zeus' wrap tracker")
    set_counter(package, RANGE_UJ - 10e6)
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("joules", "source", "discarded"),
    [
        (-0.001, "zeus:rapl", True),
        (0.0, "zeus:rapl", False),
        (40.0, "zeus:rapl", False),
        (1e6, "zeus:rapl", True),
        (RANGE_UJ / 1e6, "mine", True),
        (1e6, "estimated:cpu_time", False),  # of many cores: nothing that could wrap
    ],
)
def test_window_of_negative_or_impossible_power_is_discarded(
    joules: float, source: str, discarded: bool
) -> None:
    meter = SimpleNamespace(begin=lambda: None, end=lambda: joules, source=source, resolution_s=0.001)
    seen = windows._read(meter, lambda: time.sleep(0.02))
    assert seen["discarded"] is discarded
    assert windows._known_j(seen, meter) == (None if discarded else joules)


def test_starting_costs_what_is_known_of_it() -> None:
    each = [{"load_s": 0.1, "load_j": j, "first_call_s": 0.01, "first_call_j": None} for j in (0.3, None)]
    found = statistics._start_up({"started": {"artifact": each}})
    assert found["cost/load_j"] == 0.3
    assert np.isnan(found["cost/first_call_j"])


def test_unreadable_counters_are_told_and_fall_back_to_the_estimate(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_zone(tree / "intel-rapl:0", "package-0")

    def refuse(path: str, *args: object) -> object:
        if os.fspath(path).endswith("energy_uj"):
            raise PermissionError(13, "Permission denied", path)
        return open(path, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(zeus_rapl, "open", refuse, raising=False)
    answers = meters.available("cpu")
    assert set(answers) == {"rapl", "soc"}
    assert "permission" in answers["rapl"].lower()
    assert "\n" not in answers["rapl"]
    assert meters.choose("cpu", "any", 12.0) == CpuTimeMeter(12.0)
    with pytest.raises(ConfigError, match=r"measure\.require=measured.*[Pp]ermission"):
        meters.choose("cpu", "measured", 12.0)


def test_folder_without_any_counter_is_told_and_falls_back_to_the_estimate(tree: Path) -> None:
    assert meters.available("cpu")["rapl"] == "no counter found"
    assert meters.choose("cpu", "any", 10.0).source == "estimated:cpu_time"


MINE = (
    "class Mine:\n    source, scope, resolution_s = '{}', 'mine', 0.01\n    begin = end = lambda self: 0.0\n"
)


def test_a_meter_of_ones_own_is_taken_instead_and_an_estimate_is_refused_where_none_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_counter.py").write_text(MINE.format("mains:plug"))
    (tmp_path / "my_guess.py").write_text(MINE.format("estimated:weather"))
    monkeypatch.setenv("TSEXP_OWN_CODE", "my_counter,my_guess")  # as a configuration that names them does
    assert (
        meters.choose("cpu", "measured", 10.0, "my_counter:Mine").source
        == meters.source("cpu", "my_counter:Mine")
        == "mains:plug"
    )
    assert meters.choose("cpu", "any", 10.0, "my_guess:Mine").source == "estimated:weather"
    with pytest.raises(ConfigError, match=r"measure\.meter=my_guess:Mine estimates"):
        meters.choose("cpu", "measured", 10.0, "my_guess:Mine")


@pytest.mark.parametrize("what", ["require=measured", "meter=half_counter:Mine", "device=cuda"])
def test_where_a_meter_may_be_refused_it_is_so_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_counter.py").write_text("class Mine:\n    source = 'mains:plug'\n")
    monkeypatch.setenv("TSEXP_OWN_CODE", "half_counter")
    key, value = what.split("=")
    device, asked = ("cuda", []) if key == "device" else ("cpu", [f"measure.{key}={value}"])
    with pytest.raises(ConfigError, match=r"no meter|cannot be used as a meter"):
        meters.check(device, compose(*asked).measure)
    meters.check("cpu", compose().measure)


def test_counters_without_a_package_do_not_count_as_available(tree: Path) -> None:
    add_zone(tree / "intel-rapl:0", "psys")
    assert meters.available("cpu")["rapl"] == "no counter found"


def test_machine_without_rapl_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAPL_DIR", "CONTAINER_RAPL_DIR"):
        monkeypatch.setattr(zeus_rapl, name, str(tmp_path / "nowhere"))
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    zeus_rapl.rapl_is_available.cache_clear()
    try:
        assert meters.available("cpu")["rapl"].startswith("ZeusCPUInitError")
    finally:
        zeus_rapl.rapl_is_available.cache_clear()


class Machine:
    """Two GPUs, as NVML numbers them, of 100 W and 300 W on a clock that the test moves.

    PyTorch computes on `computing`.
    """

    uuids = ("GPU-aaaa", "GPU-bbbb")

    def __init__(self) -> None:
        self.now = 0.0
        self.computing = "aaaa"
        self.waited = 0
        self.initialised = False
        self.reasons: list[object] = [0, 0]
        self.processes: list[object] = [[], []]

    def wait(self) -> None:
        self.waited += 1

    def init(self) -> None:
        self.initialised = True

    def by_uuid(self, uuid: str) -> int:
        if not self.initialised:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        if uuid not in self.uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.uuids.index(uuid)


def answer_or_raise(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The real Zeus on this NVML; a GPU's handle is its number."""
    fake = Machine()
    for name, answer in {
        "nvmlInit": fake.init,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: len(fake.uuids),
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetUUID": lambda handle: fake.uuids[handle],
        "nvmlDeviceGetC2cModeInfoV": lambda handle: SimpleNamespace(isC2cEnabled=False),
        "nvmlDeviceGetArchitecture": lambda handle: pynvml.NVML_DEVICE_ARCH_AMPERE,
        "nvmlDeviceGetHandleByUUID": fake.by_uuid,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: answer_or_raise(fake.reasons[handle]),
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            SimpleNamespace(pid=p) for p in answer_or_raise(fake.processes[handle])
        ],
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: round(
            1000 * (5e6 + (100.0, 300.0)[handle] * fake.now)
        ),
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(zeus.device.gpu, "_gpus", None)
    monkeypatch.setattr(zeus.device.gpu, "nvml_is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=fake.computing)
    )
    monkeypatch.setattr(torch.cuda, "synchronize", fake.wait)
    for variable in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(variable, raising=False)
    return fake


@pytest.mark.parametrize(
    ("computing", "visible", "watts"),
    [
        ("aaaa", None, 100.0),
        ("bbbb", None, 300.0),
        ("bbbb", "1", 300.0),
        ("bbbb", "1,0", 300.0),
        ("aaaa", "1,0", 100.0),
    ],
)
def test_nvml_meter_reads_the_gpu_that_computes_whatever_its_number(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, computing: str, visible: str | None, watts: float
) -> None:
    machine.computing = computing
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    meter = meters.choose("cuda", "measured", 10.0)
    assert meter.source == "zeus:nvml"
    for seconds in (2.0, 0.5):
        meter.begin()
        machine.now += seconds
        assert meter.end() == pytest.approx(watts * seconds)
    assert machine.waited == 4


@pytest.mark.parametrize("order", ["aaaa bbbb", "bbbb aaaa"])
def test_counter_of_a_fit_on_two_gpus_reads_both(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    names = {f"cuda:{i}": SimpleNamespace(uuid=name) for i, name in enumerate(order.split())}
    monkeypatch.setattr(torch.cuda, "get_device_properties", names.get)
    machine.computing = order.split()[0]
    names["cuda"] = names["cuda:0"]
    meter = meters.counter("cuda", gpus=2)
    assert meter is not None
    assert meter.scope == "2 whole GPU boards"
    assert meter.most_w == 2 * windows.IMPOSSIBLE_W
    meter.begin()
    machine.now += 2.0
    assert meter.end() == pytest.approx((100.0 + 300.0) * 2.0)


@pytest.mark.parametrize(("computing", "visible"), [("aaaa", "1"), ("bbbb", "GPU-bbbb"), ("slice", None)])
def test_gpu_that_zeus_does_not_see_is_refused_with_what_to_set(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, computing: str, visible: str | None
) -> None:
    machine.computing = computing
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(
        ConfigError, match=f"does not see the GPU .*GPU-{computing}.*CUDA_DEVICE_ORDER=PCI_BUS_ID"
    ):
        meters.choose("cuda", "any", 10.0)


def test_gpu_without_a_meter_is_refused_whatever_is_required(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeus.device.gpu, "nvml_is_available", lambda: False)
    monkeypatch.setattr(zeus.device.gpu, "amdsmi_is_available", lambda: False)
    assert meters.available("cuda")["nvml"].startswith("ZeusGPUInitError: NVML")
    for require in ("any", "measured"):
        with pytest.raises(ConfigError, match=r"no meter reads this GPU.*NVML"):
            meters.choose("cuda", require, 10.0)


@pytest.mark.parametrize(
    ("reasons", "slowed_by"),
    [
        (pynvml.nvmlClocksThrottleReasonNone, []),
        (
            pynvml.nvmlClocksThrottleReasonGpuIdle | pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting,
            [],
        ),
        (pynvml.nvmlClocksThrottleReasonSwPowerCap, ["its power limit"]),
        (pynvml.nvmlClocksThrottleReasonSwThermalSlowdown, ["heat"]),
        (
            pynvml.nvmlClocksThrottleReasonHwSlowdown | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
            ["the hardware", "heat"],
        ),
        (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown, ["the power supply"]),
        (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), None),
    ],
)
def test_gpu_that_is_held_down_says_by_what(
    machine: Machine, reasons: object, slowed_by: list[str] | None
) -> None:
    machine.reasons[0] = reasons
    assert hardware.gpu_disturbances()["gpu_slowed_by"] == slowed_by


ME, WHO_WAITS_FOR_ME, STRANGER = os.getpid(), os.getppid(), 2**22 + 1


@pytest.mark.parametrize(
    ("there", "foreign"),
    [
        ([ME], 0),
        ([ME, WHO_WAITS_FOR_ME], 0),
        ([ME, STRANGER, STRANGER + 1], 2),
        ([STRANGER], None),  # we are there under another number
        (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), None),
    ],
)
def test_foreign_processes_on_the_gpu_are_counted(
    machine: Machine, there: object, foreign: int | None
) -> None:
    machine.processes[0] = there
    assert hardware.gpu_disturbances()["gpu_foreign"] == foreign


def test_a_gpu_that_nvml_does_not_know_is_no_obstacle(machine: Machine) -> None:
    machine.computing = "slice"
    assert hardware.gpu_disturbances() == {"gpu_slowed_by": None, "gpu_foreign": None}


def test_joules_of_a_system_on_chip_add_up_without_counting_twice() -> None:
    from zeus.device.soc.apple import AppleSiliconMeasurement
    from zeus.device.soc.jetson import JetsonMeasurement

    whole = {
        "cpu_total_mj": 4000,
        "efficiency_cores_mj": [500, 500],
        "performance_cores_mj": [3000],
        "dram_mj": 300,
        "gpu_mj": 200,
        "ane_mj": None,
    }
    assert meters._soc_joules(AppleSiliconMeasurement(**whole)) == pytest.approx(4.5)
    assert meters._soc_joules(
        JetsonMeasurement(cpu_energy_mj=900.0, gpu_energy_mj=600.0, total_energy_mj=2000.0)
    ) == pytest.approx(2.0)
    assert meters._soc_joules(JetsonMeasurement(cpu_energy_mj=900.0, gpu_energy_mj=600.0)) == pytest.approx(
        1.5
    )


def test_estimate_counts_cpu_time_and_not_time_asleep() -> None:
    meter = CpuTimeMeter(20.0)
    meter.begin()
    time.sleep(0.5)
    asleep = meter.end()
    assert 0 <= asleep < 0.2 * 0.5 * 20.0

    outer = time.process_time()
    meter.begin()
    inner = time.process_time()
    while time.process_time() < inner + 0.2:
        pass
    inner = time.process_time() - inner
    joules = meter.end()
    assert 20.0 * inner <= joules <= 20.0 * (time.process_time() - outer)
    assert "estimate" in meter.scope


def test_estimate_counts_all_threads() -> None:
    meter = CpuTimeMeter(10.0)
    burnt = []

    def burn() -> None:
        start = time.thread_time()
        while time.thread_time() < start + 0.1:
            pass
        burnt.append(time.thread_time() - start)

    threads = [threading.Thread(target=burn) for _ in range(2)]
    meter.begin()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert meter.end() >= 10.0 * sum(burnt) * 0.99


@pytest.mark.rapl
def test_real_rapl_counter_rises() -> None:
    meter = ZeusMeter("rapl")
    one_window(meter, 0.01)
    joules, seconds = one_window(meter, 1.0)
    assert 0 < joules < windows.IMPOSSIBLE_W * seconds


@pytest.mark.gpu
def test_real_gpu_counter_rises() -> None:
    meter = ZeusMeter("nvml")
    one_window(meter, 0.01)
    joules, seconds = one_window(meter, 2.0)
    assert 0 < joules < windows.IMPOSSIBLE_W * seconds


@pytest.mark.parametrize(
    ("there", "shared"), [([], False), ([7], True), (pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED), None)]
)
def test_a_long_window_tells_whether_its_gpu_was_another_s_too(
    machine: Machine, there: Any, shared: bool | None
) -> None:
    """Its joules are the board's: of two trainings side by side, neither has joules of its own."""
    alone = [os.getpid()]
    seen = there if isinstance(there, Exception) else alone + there
    machine.processes = [seen, seen]
    meter = meters.counter("cuda")
    assert isinstance(meter, ZeusMeter)
    for _ in range(2):  # each window for itself
        meter.begin()
        meter.end()
        assert meter.shared is shared
    if shared:
        machine.processes = [alone, alone]
        meter.begin()
        meter.end()
        assert meter.shared is False
