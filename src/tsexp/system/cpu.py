"""Which CPU this is, how it multiplies int8, and how busy it was."""

from __future__ import annotations

import platform
from itertools import takewhile
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
DESIGN = ("cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU part", "CPU revision")
"""What x86 and ARM number their designs by."""
VECTORS = ("avx", "fma", "f16c", "amx", "asimd", "fphp", "sve", "i8mm", "bf16")
"""How the flags begin that products depend on."""
X86 = ("x86_64", "AMD64", "i386", "i686", "x86")
VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Any of these adds products of int8 in 32 bits, on x86."""


def facts() -> dict[str, str]:
    """Return which CPU this is: speed, number formats and rounding depend on it.

    Virtual machines give CPUs of several generations one name, and may hide what they can do.

    Returns
    -------
    dict
        ``cpu``: its name and design, e.g. ``AMD EPYC (family 25, model 17, stepping 1)``; the architecture
        where the system does not tell a name. ``cpu_vectors``: those of `flags` that begin as one of
        `VECTORS`, sorted; empty where they are not told.
    """
    told = _cpuinfo()
    name = told.get("model name") or platform.processor() or platform.machine()
    design = ", ".join(f"{key.split()[-1]} {told[key]}" for key in DESIGN if key in told)
    return {
        "cpu": f"{name} ({design})" if design else name,
        "cpu_vectors": " ".join(sorted(flag for flag in flags() if flag.startswith(VECTORS))),
    }


def flags() -> set[str]:
    """Instruction set flags as Linux names them (``avx512_vnni``, ``avx512_bf16``, ``amx_int8``, …).

    Empty elsewhere.
    """
    told = _cpuinfo()
    return set(told.get("flags", told.get("Features", "")).split())


def int8_largest() -> int:
    """Return how large a weight of an int8 product may be: 127, or 64 on x86 without VNNI.

    There, libraries multiply uint8 with int8 and add two products in 16 bits, which overflow with larger
    ones: of T3's scores 19 to 24 dB were left, of T1's nothing (docs/log.md; ONNX Runtime's manual on
    quantization, "reduce_range"; NNCF's "overflow_fix"). x86 that tells no flags counts as without.
    """
    return 64 if platform.machine() in X86 and flags().isdisjoint(VNNI) else 127


def busy_s() -> float:
    """CPU seconds of all processes since boot, and those that a host gave to others. In ticks of 10 ms."""
    import psutil

    t = psutil.cpu_times()
    kinds = ("user", "system", "nice", "steal", "irq", "softirq")
    return float(sum(getattr(t, kind, 0.0) for kind in kinds))


def _cpuinfo() -> dict[str, str]:
    """What Linux tells of its first CPU; empty elsewhere."""
    if not CPUINFO.exists():
        return {}
    with CPUINFO.open() as lines:
        first = [line.partition(":") for line in takewhile(str.strip, lines)]
    return {key.strip(): value.strip() for key, _, value in first}
