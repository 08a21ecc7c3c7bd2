"""The benchmarks that `make` names run to their end; what they measure is for people to look at."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def run(folder, name, *arguments, timeout_s=600):
    """Run a benchmark in an empty folder; return what it printed."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"COLUMNS": "170"},
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


def test_training_is_held_against_a_bare_loop_fp32_and_kernels_of_pytorch(tmp_path):
    asked = (
        "--data italy_power_demand --models t4,fcn --kernels t1,fcn --precision bf16 "
        "--pairs 2 --steps 4 --few-steps 4"
    )
    ratio = r"\d+\.\d{3} \(median of 2; \d+\.\d{3} to \d+\.\d{3}\)"
    expected = (
        rf"italy_power_demand t3: {ratio} of a bare loop's speed; \d+ epochs",
        *(rf"italy_power_demand {m}: in bf16 {ratio} times as fast as in fp32" for m in ("t4", "fcn")),
        *(
            rf"italy_power_demand {m}, bf16: by our kernels {ratio} times as fast as by PyTorch's"
            for m in ("t1", "fcn")
        ),
    )
    found = run(tmp_path, "train.py", *asked.split()).splitlines()
    assert len(found) == 5
    assert all(re.fullmatch(*both) for both in zip(expected, found, strict=True)), found


@pytest.mark.slow
def test_runtimes_are_held_against_the_control(tmp_path):
    asked = (
        "--data italy_power_demand --models t3 --pruned 0,0.5 --modes none,qat --runtimes eager,onnxruntime"
    )
    settings = ("debug=smoke", "measure.repeats=8", "measure.processes=4")
    printed = run(tmp_path, "runtimes.py", *asked.split(), "--out", "runtimes.md", *settings)
    text = (tmp_path / "runtimes.md").read_text()
    tables = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")
    ]
    best = [dict(zip(tables[0], row, strict=True)) for row in tables[2:4]]
    assert [row["batch"] for row in best] == ["1", "32"], printed
    for row in best:
        for key in ("× control [95 %]", "× dense ONNX fp32, plain", "× dense ONNX dynamic int8, plain"):
            value, low, high = map(float, re.findall(r"[\d.]+", row[key]))
            assert low <= value <= high
        assert row["drop, points [95 %]"].endswith("]")
        assert float(row["drop on validation"]) <= 1
        assert row["share of peak"].split(" of ")[1] in ("fp32", "int8")
    every = {(row[2], row[3]) for row in tables[6:]}
    asked_for = {"eager none", "onnxruntime none", "onnxruntime qat"}
    assert every == {(name, pruned) for name in asked_for for pruned in ("0", "0.5 local")}
    assert "6 pairs of windows in 3 processes" in text
    assert "ItalyPowerDemand, t3, batch 1: onnxruntime" in text
    kept = json.loads((tmp_path / "runtimes.json").read_text())
    assert [row[2:4] for row in kept["ItalyPowerDemand t3"]["all"]] == [row[2:4] for row in tables[6:]]
    assert kept["ItalyPowerDemand t3"]["machine"] in text


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill-parent", "kill-worker"])
def test_a_sweep_that_is_hit_is_whole_after_the_same_command(tmp_path, fault):
    printed = run(tmp_path, "killed.py", "--tries", "1", fault)
    (row,) = [line for line in printed.splitlines() if line.startswith("| ")]
    assert row.endswith("| 1 | 0 | 0 | {} []"), printed


@pytest.mark.slow
def test_what_dies_leaves_nothing_lost_and_nothing_twice(tmp_path):
    printed = run(tmp_path, "faults.py", "--tries", "1", "kill")
    (row,) = [line for line in printed.splitlines() if line.startswith("| ")]
    assert "| 1 | 0 | 0 | " in row, printed
    assert row.endswith("0 incomplete |"), printed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_large_store_is_read(tmp_path):
    printed = run(tmp_path, "load.py", "--store-of", "200", timeout_s=3600)
    assert "cores, 200 jobs" in printed
    assert re.search(r"\| page \| [\d.]+ MB \|.*\| `status` \| [\d.]+ s", printed, re.S), printed
