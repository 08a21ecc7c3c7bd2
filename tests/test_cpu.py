"""Which CPU it is, and what overflows on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsexp.energy import hardware
from tsexp.system import cpu

ZEN_3 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
microcode\t: 0xa0011d1
cpu MHz\t\t: 2445.426
flags\t\t: fpu smep fma avx avx2 vaes

processor\t: 1
cpu family\t: 26
flags\t\t: amx_int8
"""
ZEN_4 = ZEN_3.replace("model\t\t: 1\n", "model\t\t: 17\n").replace("avx2", "avx512_vnni avx512_bf16 avx2")
ARM = """\
processor\t: 0
Features\t: fp asimd bf16 sve2
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.mark.parametrize(
    ("told", "machine", "design", "vectors", "largest"),
    [
        (ZEN_3, "x86_64", "AMD EPYC (family 25, model 1, stepping 1)", "avx avx2 fma", 64),
        (
            ZEN_4,
            "x86_64",
            "AMD EPYC (family 25, model 17, stepping 1)",
            "avx avx2 avx512_bf16 avx512_vnni fma",
            127,
        ),
        (ARM, "aarch64", "aarch64 (implementer 0x41, part 0xd4f)", "asimd bf16 sve2", 127),
        (None, "arm64", "arm64", "", 127),  # no Linux
        (None, "AMD64", "AMD64", "", 64),
    ],
    ids=["without VNNI", "with VNNI", "ARM", "macOS", "Windows"],
)
def test_which_cpu_it_is_and_what_its_int8_products_bear(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    told: str | None,
    machine: str,
    design: str,
    vectors: str,
    largest: int,
) -> None:
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert cpu.facts() == {"cpu": design, "cpu_vectors": vectors}
    assert cpu.facts().items() <= hardware.describe().items()
    assert cpu.int8_largest() == largest
