"""The machine a number belongs to."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tsexp.system import cpu


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return what is recorded of this machine.

    CPU (`cpu.facts`), cores, memory, GPU (only for ``device="cuda"``), system, versions; the `allocator`
    where it is not the default, for records of another allocator are those of another machine.
    """
    import psutil

    facts: dict[str, Any] = {
        **cpu.facts(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    if allocated_by := allocator():
        facts["allocator"] = allocated_by
    if device == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return facts


GPU_SLOWED_BY = {"its power limit": 0x04, "the hardware": 0x08, "heat": 0x20 | 0x40, "the power supply": 0x80}
"""Bits of ``nvmlClocksThrottleReason…`` that hold the clocks down for want of cooling or power."""


def gpu_uuid(device: str = "cuda") -> str:
    """NVML's name of the GPU that PyTorch computes on, or of the one that it calls so.

    Their numbers differ (CUDA_DEVICE_ORDER, CUDA_VISIBLE_DEVICES); this does not.
    """
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def gpu_disturbances() -> dict[str, Any]:
    """What disturbs the GPU that PyTorch computes on, now.

    Returns
    -------
    dict
        ``gpu_slowed_by`` (keys of `GPU_SLOWED_BY`) and ``gpu_foreign`` (how many processes but this one,
        its own, and those that wait for it are there); None where NVML does not tell.
    """
    import psutil
    import pynvml

    slowed_by = foreign = handle = None
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()  # a meter that is not Zeus' did not; it may be called many times
        handle = pynvml.nvmlDeviceGetHandleByUUID(gpu_uuid())
    if handle is None:
        return {"gpu_slowed_by": None, "gpu_foreign": None}
    with contextlib.suppress(pynvml.NVMLError):
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        slowed_by = [name for name, bits in GPU_SLOWED_BY.items() if reasons & bits]
    with contextlib.suppress(pynvml.NVMLError):
        there = {p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        if os.getpid() in there:  # else it counts processes as the machine does, and this is a container
            me = psutil.Process()
            own = {me.pid, *(p.pid for p in (*me.parents(), *me.children(recursive=True)))}
            foreign = len(there - own)
    return {"gpu_slowed_by": slowed_by, "gpu_foreign": foreign}


def throttle_count() -> int | None:
    """How often heat slowed the cores down since boot, or None where the system does not count it."""
    counters = list(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
    return sum(int(c.read_text()) for c in counters) if counters else None


def allocator() -> list[str]:
    """Variables of the environment by which memory is had in another way than by default, by name.

    glibc's thresholds alone made dense models in eager PyTorch 1.7 to 3.1 times as fast in batches of 32, and
    those in ONNX Runtime no faster (docs/log.md, 2026-11-28).
    """
    return sorted(v for v in os.environ if v.startswith("MALLOC_") or v in ("GLIBC_TUNABLES", "LD_PRELOAD"))


def peak_memory() -> Callable[[], float]:
    """Note the memory that this process has, and return what tells the peak beyond it since.

    Returns
    -------
    callable
        Returns MiB (resident), NaN where the system does not tell. Memory that was free before is given back
        first, so that what takes it counts; pages of libraries count when they are first used.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = _peak_mb()
    except (OSError, AttributeError):  # no Linux, no glibc
        return lambda: float("nan")
    return lambda: _peak_mb() - before


def _peak_mb() -> float:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    return int(line.split()[1]) / 1024


def threads_spin(threads: int) -> bool:
    """Whether OpenMP's threads may burn CPU time while they wait: several, of a process that was not told.

    `tsexp.system.processes` tells those that it starts; libraries read it once, when they are loaded.
    """
    return threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"


PEAK_SIZE = 768
PEAK_S = 0.1


def peaks(threads: int) -> dict[str, float]:
    """What the CPU reaches in a large product, by number format.

    The ceiling that an artifact's own products are seen against. It heats the CPU: never call it before or
    between windows.

    Parameters
    ----------
    threads
        That share the product.

    Returns
    -------
    dict
        ``fp32``, ``bf16`` (PyTorch) and ``int8`` (ONNX Runtime, if it is installed), in 10⁹
        multiply–accumulates per second of CPU time, that is per thread; the best of some tries.
    """
    import torch

    from tsexp.models import using_threads

    with using_threads(threads):
        a, b = torch.randn(2, PEAK_SIZE, PEAK_SIZE)
        a16, b16 = a.bfloat16(), b.bfloat16()
        found = {"fp32": _gmacs(lambda: a @ b), "bf16": _gmacs(lambda: a16 @ b16)}
    with contextlib.suppress(ImportError):
        found["int8"] = _gmacs(_int8_product(threads))
    return found


def _gmacs(product: Callable[[], object]) -> float:
    times: list[float] = []
    while len(times) < 2 or sum(times) < PEAK_S:  # twice at least: the first one warms up
        start = time.process_time()
        product()
        times.append(max(time.process_time() - start, 1e-6))  # a coarse clock may not move
    return PEAK_SIZE**3 / min(times) / 1e9


def _int8_product(threads: int) -> Callable[[], object]:
    import numpy as np
    import onnxruntime as ort
    from onnx import TensorProto, helper

    shape, rng = (PEAK_SIZE, PEAK_SIZE), np.random.default_rng(0)
    weight = helper.make_tensor(
        "b", TensorProto.INT8, shape, rng.integers(-127, 127, shape, dtype=np.int8).tobytes(), raw=True
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, shape)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = rng.integers(0, 255, shape, dtype=np.uint8)
    return lambda: session.run(None, {"a": x})
