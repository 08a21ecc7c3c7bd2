"""What the doctor says of a machine, and when the self-test passes."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from rich.console import Console

from tsexp import doctor, energy
from tsexp.energy import meters
from tsexp.energy.windows import SUBJECTS
from tsexp.system import cpu


def seen(saving: float, half: float = 0.5, valid: bool = True, scatter: float = 0.0) -> SimpleNamespace:
    metrics = {}
    for key, bounds, value in (
        ("energy_saving_pct", "energy_saving", saving),
        ("speedup", "speedup", 1.0),
        ("cpu_speedup", "cpu_speedup", 1.0),
    ):
        metrics |= {
            f"vs_dense/{key}": value,
            f"vs_dense/{bounds}_lo": value - half,
            f"vs_dense/{bounds}_hi": value + half,
        }
    windows = [
        {
            "process": p,
            "pair": p,
            "subject": s,
            "discarded": False,
            "inferences": 1,
            "wall_s": 1.0,
            "cpu_s": 1.0,
            "energy_j": joules,
        }
        for p, wobble in enumerate((-1, 1) * 4)
        for s, joules in (
            ("reference", 1.0),
            ("artifact", (1 - saving / 100) * math.exp(wobble * half / 115)),
        )
    ]
    turns = [{"load": [a], "use": [b]} for a in SUBJECTS for b in SUBJECTS for _ in range(2)]
    raw = {"windows": windows, "orders": turns}
    return SimpleNamespace(metrics=metrics, valid=valid, invalid_reasons=(), warnings=(), raw=raw)


NOTHING = SimpleNamespace(
    metrics={}, valid=False, invalid_reasons=("every window was discarded",), warnings=(), raw={"windows": []}
)


@pytest.mark.parametrize(
    ("itself", "planted", "passes"),
    [
        ([seen(0.1), seen(-0.1)] * 10, seen(-2), True),
        ([seen(0.1, half=1.0)] * 19 + [seen(0.6)], seen(-2), True),  # one of twenty just misses: chance
        ([seen(0.6), seen(-0.6)] * 10, seen(-2), False),  # all just miss: the intervals are too narrow
        ([seen(0.4)] * 20, seen(-2), False),  # each holds 0, but all lean to one side
        ([seen(0.1), seen(-0.1)] * 10, seen(-0.4), False),
        ([seen(0.1), seen(-0.1)] * 10, seen(-6), False),
        ([seen(0.1), seen(-0.1)] * 10, seen(-2, half=40), False),
        ([seen(0.1)] * 19 + [seen(0.1, valid=False)], seen(-2), False),
        ([seen(0.1)] * 19 + [NOTHING], seen(-2), False),
        ([seen(0.1), seen(-0.1)] * 10, NOTHING, False),
    ],
)
def test_selftest_passes_only_on_what_is_right_and_what_was_planted(monkeypatch, itself, planted, passes):
    records = iter([*itself, *[planted] * 20])
    monkeypatch.setattr(energy, "measure", lambda *_, **__: next(records))
    console = Console(file=io.StringIO(), width=200)
    assert doctor.selftest(console) is passes
    assert ("self-test passed" in console.file.getvalue()) is passes


def test_selftest_plants_until_it_would_be_seen(monkeypatch):
    asked = []

    def measure(*_, planted, **__):
        asked.append(planted)
        return seen(-2, half=3) if planted else seen((-1) ** len(asked) * 0.1)

    monkeypatch.setattr(energy, "measure", measure)
    console = Console(file=io.StringIO(), width=200)
    assert doctor.selftest(console)
    assert asked[:20] == [0.0] * 20
    assert 1 < len(asked[20:]) < 20
    assert set(asked[20:]) == {doctor.PLANTED}


def test_selftest_takes_a_meter_of_ones_own(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_plug.py").write_text("class Plug:\n    source = 'mains:plug'\n")
    asked = []
    monkeypatch.setattr(energy, "measure", lambda *args, **__: asked.append(args[5].meter) or NOTHING)
    assert doctor.main(["--selftest", "--meter", "my_plug:Plug"]) == 1
    assert set(asked) == {"my_plug:Plug"}
    with pytest.raises(SystemExit, match="2"):
        doctor.main(["--selftest", "--meter", "my_plug:Socket"])
    assert "has no attribute 'Socket'" in capsys.readouterr().err


def test_a_selftest_that_cannot_be_made_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.delenv("TSEXP_POWER_LOG", raising=False)
    assert doctor.main(["--selftest", "--meter", "tsexp.energy.external:Csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TSEXP_POWER_LOG" in line


def test_why_a_meter_does_not_answer_is_shown_letter_by_letter(monkeypatch):
    monkeypatch.setattr(
        meters,
        "available",
        lambda device: {"nvml" if device == "cuda" else "rapl": "Error: [library] not found in [/usr/lib]"},
    )
    console = Console(file=io.StringIO(), width=250)
    console.print(doctor.findings())
    assert console.file.getvalue().count("[library] not found in [/usr/lib]") == 2


@pytest.mark.parametrize(("largest", "told"), [(64, True), (127, False)])
def test_where_int8_products_overflow_the_doctor_says_so(monkeypatch, largest, told):
    monkeypatch.setattr(cpu, "int8_largest", lambda: largest)
    console = Console(file=io.StringIO(), width=250)
    console.print(doctor.findings())
    assert ("products of int8 overflow here" in console.file.getvalue()) == told


def test_the_udev_rule_is_one_and_says_how_to_use_it(capsys, tmp_path):
    assert doctor.main(["--udev"]) == 0
    file = tmp_path / "70-rapl.rules"
    file.write_text(capsys.readouterr().out)
    comments, rules = (
        [x for x in file.read_text().splitlines() if (x[0] == "#") is c] for c in (True, False)
    )
    (rule,) = rules
    for part in rule.split(", "):
        assert re.fullmatch(r'[A-Z]+(==|\+=)"[^"]+"', part), part
    for command in ("groupadd --system rapl", "tsexp.doctor --udev >", "udevadm trigger"):
        assert any(command in line for line in comments)
    if shutil.which("udevadm"):
        done = subprocess.run(["udevadm", "verify", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "Unknown command" in done.stderr, done.stderr  # systemd before 254
