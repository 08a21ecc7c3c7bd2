"""What the doctor says of a machine, and when the self-test passes."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tsexp import doctor, energy
from tsexp.energy import meters


def seen(saving: float, half: float = 0.5, valid: bool = True) -> SimpleNamespace:
    metrics = {}
    for key, bounds, value in (("energy_saving_pct", "energy_saving", saving), ("speedup", "speedup", 1.0), ("cpu_speedup", "cpu_speedup", 1.0)):
        metrics |= {f"vs_dense/{key}": value, f"vs_dense/{bounds}_lo": value - half, f"vs_dense/{bounds}_hi": value + half}
    return SimpleNamespace(metrics=metrics, valid=valid, invalid_reasons=(), warnings=())


NOTHING = SimpleNamespace(metrics={}, valid=False, invalid_reasons=("every window was discarded",), warnings=())


@pytest.mark.parametrize(
    ("itself", "planted", "passes"),
    [
        ([seen(0.1)] * 5, seen(-10), True),
        ([seen(0.1)] * 4 + [seen(1.0)], seen(-10), True),  # one in five may miss, and one in twenty does
        ([seen(0.1)] * 3 + [seen(1.0)] * 2, seen(-10), False),
        ([seen(0.1)] * 5, seen(-6), False),
        ([seen(0.1)] * 5, seen(-8, half=9), False),
        ([seen(0.1)] * 4 + [seen(0.1, valid=False)], seen(-10), False),
        ([seen(0.1)] * 4 + [NOTHING], seen(-10), False),
        ([seen(0.1)] * 5, NOTHING, False),
    ],
)
def test_selftest_passes_only_on_what_was_planted(monkeypatch, itself, planted, passes):
    records = iter([*itself, planted])
    monkeypatch.setattr(energy, "measure", lambda *_, **__: next(records))
    console = Console(file=io.StringIO(), width=200)
    assert doctor.selftest(console, with_paper=False) is passes
    assert ("self-test passed" in console.file.getvalue()) is passes


def test_selftest_takes_a_meter_of_ones_own(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_plug.py").write_text("class Plug:\n    source = 'mains:plug'\n")
    asked = []
    monkeypatch.setattr(energy, "measure", lambda a, b, dataset, config, *_, **__: asked.append(config.meter) or NOTHING)
    assert doctor.main(["--selftest", "--quick", "--meter", "my_plug:Plug"]) == 1
    assert set(asked) == {"my_plug:Plug"}
    with pytest.raises(SystemExit, match="2"):
        doctor.main(["--selftest", "--meter", "my_plug:Socket"])
    assert "has no attribute 'Socket'" in capsys.readouterr().err


def test_why_a_meter_does_not_answer_is_shown_letter_by_letter(monkeypatch):
    monkeypatch.setattr(meters, "available", lambda device: {"nvml" if device == "cuda" else "rapl": "Error: [library] not found in [/usr/lib]"})
    console = Console(file=io.StringIO(), width=250)
    console.print(doctor.findings())
    assert console.file.getvalue().count("[library] not found in [/usr/lib]") == 2
