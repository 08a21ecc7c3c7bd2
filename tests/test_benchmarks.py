"""The benchmarks that `make` names run to their end; what they measure is for people to look at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(folder, name, *arguments):
    """Run a benchmark in an empty folder; return what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=600, env=os.environ | {"COLUMNS": "170"}
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_meter_is_held_against_itself(tmp_path):
    out = run(
        tmp_path,
        "meter.py",
        "--rounds",
        "1",
        "--models",
        "t3",
        "--runtimes",
        "eager",
        "--states",
        "quiet,busy",
        "--out",
        "found.json",
    )
    assert "| quiet | t3 | eager |" in out
    assert "| busy | t3 | eager |" in out
    assert "work planted into the artifact" in out
    assert (tmp_path / "found.json").exists()


@pytest.mark.slow
def test_runtimes_are_held_against_the_control(tmp_path):
    asked = (
        "--data",
        "italy_power_demand",
        "--models",
        "t3",
        "--pruned",
        "0,0.5",
        "--modes",
        "none,qat",
        "--runtimes",
        "eager,onnxruntime",
    )
    run(tmp_path, "runtimes.py", *asked, "--out", "runtimes.md")
    text = (tmp_path / "runtimes.md").read_text()
    assert "| ItalyPowerDemand | t3 | onnxruntime qat | 0.5 local |" in text
    assert "control" in text
