"""The same small sweep by every launcher: one process, joblib, submitit, SLURM, Ray.

Each has a cache and a store of its own. Engines are started here (`tests/engines.py`) and stopped.

    python tests/benchmarks/launchers.py [--launchers basic,joblib,submitit_local,submitit_slurm,ray]

Prints a table, which docs/cluster.md has with its conditions: wall time, whether every test series is
answered as by one process, and whether the intervals of the savings meet.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import engines

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm", "ray")
SWEEP = (
    *("debug=smoke", "train.progress=false", "data=italy_power_demand", "prune.ratio=0,0.3,0.5,0.7"),
    *("model.d_model=16", "model.layers=2", "model.heads=4", "model.ffn=24", "model.patch=8"),
    *("measure.processes=4", "measure.repeats=12", "measure.window_s=0.05"),
)


@dataclass(frozen=True)
class Result:
    """What a sweep left: seconds, and by job the answers to every test series, the saving, the windows."""

    launcher: str
    wall_s: float
    answers: dict[str, list[str]]
    savings: dict[str, tuple[float, float]]
    windows: list[tuple[float, float, str]]
    """Begin and end (seconds since 1970), and the run."""


def sweep(launcher: str, folder: Path, *more: str, environment: dict[str, str] | None = None) -> Result:
    """Run the sweep in a folder and read its store."""
    engine = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
    command = [sys.executable, "-m", "tsexp", "-m", *SWEEP, *engine, *more]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
        timeout=1800,
    )
    wall_s = time.monotonic() - start
    if done.returncode:
        raise RuntimeError(f"{launcher}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return read(launcher, wall_s, f"sqlite:///{folder}/mlflow.db")


def read(launcher: str, wall_s: float, store: str) -> Result:
    """Read what a sweep left in a store."""
    import json

    import mlflow

    client = mlflow.MlflowClient(store)
    place = [client.get_experiment_by_name("tsexp").experiment_id]
    found: dict[str, dict[str, Any]] = {"answers": {}, "savings": {}}
    windows = []
    for run in client.search_runs(place, "tags.`tsexp.stage` = 'done' and attributes.status = 'FINISHED'"):
        name, metrics = run.info.run_name, run.data.metrics
        with tempfile.TemporaryDirectory() as here:
            file = Path(client.download_artifacts(run.info.run_id, "predictions.csv", here))
            with file.open(newline="") as lines:
                found["answers"][name] = [line["predicted"] for line in csv.DictReader(lines)]
            raw = json.loads(
                Path(client.download_artifacts(run.info.run_id, "windows.json", here)).read_text()
            )
        low, high = (metrics.get(f"vs_dense/energy_saving_{end}", float("nan")) for end in ("lo", "hi"))
        found["savings"][name] = low, high
        windows += [(w["start_unix_s"], w["end_unix_s"], run.info.run_id) for w in raw["windows"]]
    return Result(launcher, wall_s, windows=sorted(windows), **found)


def meeting(one: Result, other: Result) -> int:
    """How many jobs have intervals of the saving that meet."""
    return sum(
        max(low, other.savings[name][0]) <= min(high, other.savings[name][1])
        for name, (low, high) in one.savings.items()
    )


def alone(result: Result) -> bool:
    """No window of a run lies in the time of a window of another: measurements took place one at a time."""
    return all(
        before[1] <= after[0]
        for before, after in zip(result.windows, result.windows[1:], strict=False)
        if before[2] != after[2]
    )


@contextlib.contextmanager
def engine(launcher: str) -> Any:
    """Start what a launcher needs; yields further arguments and the environment."""
    with engines.place() as folder, contextlib.ExitStack() as started:
        if launcher == "submitit_slurm":
            yield [], started.enter_context(engines.slurm(folder))
        elif launcher == "ray":
            address = started.enter_context(engines.ray_cluster(folder))
            yield [f"hydra.launcher.ray.init.address={address}"], {}
        else:
            yield [], {}


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launchers", default=",".join(LAUNCHERS))
    asked = parser.parse_args().launchers.split(",")
    first = None
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    print("| launcher | wall time, s | jobs | answers as by one process | savings agree | one at a time |")
    print("| --- | --- | --- | --- | --- | --- |")
    for launcher in asked:
        try:
            with tempfile.TemporaryDirectory() as folder, engine(launcher) as (more, environment):
                result = sweep(launcher, Path(folder), *more, environment=environment)
        except engines.Missing as why:
            print(f"| {launcher} | not run: {why} |", flush=True)
            continue
        first = first or result
        same = sum(result.answers[name] == answers for name, answers in first.answers.items())
        print(
            f"| {launcher} | {result.wall_s:.0f} | {len(result.answers)} | {same} of {len(first.answers)} | "
            f"{meeting(first, result)} of {len(first.savings)} | {'yes' if alone(result) else 'NO'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
