"""What a store bears: many jobs at once, and a sweep of many jobs.

Each job does what one of a sweep does with its store: looks for itself, opens a run, notes its stages, logs a
record, its files and its model. Its work is stubbed out: the record is that of one real experiment.

    python tests/benchmarks/load.py [--stores sqlite,postgres,server] [--at-once 1,8,64] [--jobs 8,24,64]
    python tests/benchmarks/load.py --store-of 1000 [--folder FOLDER]

The first prints jobs per minute, N at once. PostgreSQL is started here (`tests/engines.py`); `server` is
MLflow's on it, with two workers. Every run is looked for afterwards: none lost, none twice.

The second makes a sqlite store of a sweep of that many jobs (a multiple of 200), whose answers and windows
are those of the real one, changed at random. It prints how large the store is, and how long each command
takes that reads all of it; the sweep given again, too, which finds every job. A store that is in the folder
is not made again.

docs/cluster.md has both tables with their conditions.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import engines
from conftest import TINY, compose
from tsexp import data, pipeline, tracking
from tsexp.config import Config, TrackingConfig
from tsexp.sweeps import jobs
from tsexp.tasks import classification

STORES = ("sqlite", "postgres", "server")
AT_ONCE = 8
"""Processes that make a store of many jobs."""
VARY: dict[str, tuple[object, ...]] = {
    "data.name": ("ACSF1", "ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf"),
    "model": ("t1", "t2"),
    "prune.scope": ("local", "global"),
    "prune.ratio": (0.1, 0.3, 0.5, 0.7, 0.9),
    "runtime": ("eager", "onnxruntime"),
}
"""Of each seed, 200 jobs; the datasets are in aeon's wheel."""
SAME = ("data=ucr", "train.progress=false")
"""Overrides of every job."""
Logged = tuple[Config, tuple[Any, ...]]
"""What a job was asked for, and what it handed to `Tracked.log`."""


def one(folder: Path, *overrides: str) -> Logged:
    """Run one experiment; return its configuration, and what it logged."""
    cfg = compose(*SAME, *overrides, *places(folder))
    kept: list[tuple[Any, ...]] = []
    log = tracking.run.Tracked.log

    def keep(self: Any, *arguments: Any) -> None:
        kept.append(arguments)
        log(self, *arguments)

    tracking.run.Tracked.log = keep  # type: ignore[method-assign]
    try:
        pipeline.run(cfg, data.load(cfg.data, cfg.paths.data, 0), "", "first")
    finally:
        tracking.run.Tracked.log = log  # type: ignore[method-assign]
    return cfg, kept[0]


def places(folder: Path) -> list[str]:
    """Where everything of a benchmark lies, as overrides."""
    return [
        f"paths.cache={folder}/cache",
        f"paths.spool={folder}/spool",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]


def job(logged: Logged, name: str, about: str) -> None:
    """What a job does with its store."""
    cfg, record = logged
    assert tracking.finished(cfg.tracking, about) is None
    with tracking.tracked(cfg, "stub: true\n", name, about, None) as run:
        for stage in ("train", "compress", "deploy", "measure", "track"):
            run.enter(stage)
        run.log(*record)


def at_once(work: Callable[[int], None], count: int, processes: int) -> float:
    """Do `work` for each number below `count` in processes of their own; return how many minutes it took."""

    def some(first: int) -> None:
        for number in range(first, count, processes):
            try:
                work(number)
            except Exception:
                print(traceback.format_exc(limit=-2), file=sys.stderr)

    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=some, args=(first,)) for first in range(min(processes, count))]
    start = time.monotonic()
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    return (time.monotonic() - start) / 60


def rate(store: TrackingConfig, logged: Logged, count: int, processes: int) -> tuple[float, int, int]:
    """Return jobs per minute, and how many runs were lost and doubled."""
    cfg = replace(logged[0], tracking=replace(store, experiment=f"load-{processes}"))
    minutes = at_once(lambda n: job((cfg, logged[1]), f"job {n}", f"load-{n}"), count, processes)
    finished = apart(_ask, cfg.tracking)
    return count / minutes, count - len(set(finished)), len(finished) - len(set(finished))


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns, in a process of its own: this one opens no store, as it forks."""
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()
    asking = fork.Process(target=lambda: found.put(work(*arguments)))
    asking.start()
    answer = found.get()
    asking.join()
    return answer


def _ask(store: TrackingConfig) -> list[str]:
    client = tracking.store(store)
    place = [client.get_experiment_by_name(store.experiment).experiment_id]
    runs = client.search_runs(place, "attributes.status = 'FINISHED'", max_results=50000)
    return [run.data.tags["tsexp.signature"] for run in runs]


@contextlib.contextmanager
def started(store: str, folder: Path) -> Iterator[TrackingConfig]:
    """A store of this kind, empty."""
    with contextlib.ExitStack() as stack:
        if store == "sqlite":
            yield TrackingConfig(f"sqlite:///{folder}/mlflow.db", "")
            return
        place = stack.enter_context(engines.place())
        uri = stack.enter_context(engines.postgres(place))
        if store == "server":
            options = ["--artifacts-destination", f"{folder}/served", "--workers", "2"]
            uri = stack.enter_context(engines.mlflow_server(folder, uri, *options))
        yield TrackingConfig(uri, "", None if store == "server" else f"{folder}/artifacts")


def varied(first: Logged, overrides: list[str], folder: Path, number: int) -> Logged:
    """What the job of a sweep would have logged: as the first did, but other answers, windows and joules."""
    (dataset, fits, files, artifact, record), rng = first[1], np.random.default_rng(number)
    cfg = compose(*SAME, *overrides, *places(folder))
    own = jobs.dataset_of(cfg)
    scores = record.reference_scores + cfg.prune.ratio * rng.normal(size=record.scores.shape).astype("f4")
    less = 1 - 0.8 * cfg.prune.ratio * rng.uniform(0.8, 1)
    windows = [
        w
        | {
            k: w[k] * rng.normal(less if w["subject"] == "artifact" else 1, 0.01)
            for k in ("energy_j", "cpu_s")
        }
        for w in record.raw["windows"]
    ]
    saving = {
        f"vs_dense/energy_saving_{k}": 100 * (1 - less) + d for k, d in (("pct", 0), ("lo", -1), ("hi", 1))
    }
    metrics = {
        **record.metrics,
        **classification.quality(scores, record.labels, "test"),
        **classification.drop(scores, record.reference_scores, record.labels),
        **saving,
        "energy/per_inference_j": less * record.metrics["energy/reference_per_inference_j"],
        "prune/achieved_ratio": cfg.prune.ratio,
    }
    made = replace(
        record, metrics=metrics, scores=scores, raw=record.raw | {"windows": windows}, invalid_reasons=()
    )
    manifest = artifact.manifest | {"runtime": cfg.runtime.name}
    own = replace(dataset, name=own.name, checksum=own.checksum)
    return cfg, (own, fits, files, replace(artifact, manifest=manifest), made)


def store_of(count: int, folder: Path) -> None:
    """Make a store of the runs of a sweep, and print what it costs to read it."""
    seeds = tuple(range(count // 200))
    keys = ("seed", *VARY)
    every = list(itertools.product(seeds, *VARY.values()))

    def timed(what: str, *command: str) -> float:
        start, before = time.time(), os.times()
        done = subprocess.run(
            [sys.executable, "-m", "tsexp", *command], cwd=folder, capture_output=True, text=True
        )
        wall, after = time.time() - start, os.times()
        cpu = sum(after[2:4]) - sum(before[2:4])  # of children
        said(what, f"{wall:.1f} s, of CPU time {cpu:.1f} s")
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
        return start

    def said(what: str, value: str) -> None:
        print(f"| {what} | {value} |", flush=True)

    print(f"{os.cpu_count()} cores, {len(every)} jobs\n\n| | |\n| --- | --- |")
    if not (folder / "mlflow.db").exists():
        first = one(folder, "data.name=ItalyPowerDemand", "prune.ratio=0.5", "tracking.experiment=first")

        def make(number: int) -> None:
            overrides = [f"{k}={v}" for k, v in zip(keys, every[number], strict=True)]
            cfg, record = varied(first, overrides, folder, number)
            job((cfg, record), " ".join(overrides), pipeline.signature(cfg, jobs.dataset_of(cfg)))

        said(f"made, {AT_ONCE} at once", f"{60 * at_once(make, len(every), AT_ONCE):.0f} s")
    said("database", f"{(folder / 'mlflow.db').stat().st_size / 1e6:.0f} MB")
    said("artifacts", f"{_bytes(folder / 'mlartifacts') / 1e6:.0f} MB")
    where = places(folder)
    for part in ("freeze", "tables", "figures", "page"):
        timed(f"`report {part}`", "report", part, *(where[2:] if part == "freeze" else ()))
    timed("`report`: all of it", "report", where[2])
    said("page", f"{(folder / 'report/index.html').stat().st_size / 1e6:.1f} MB")
    asked = [f"{k}={','.join(map(str, values))}" for k, values in {"seed": seeds, **VARY}.items()]
    started = timed("the sweep again: all its jobs are found", "-m", *asked, *SAME, *where)
    ended, (about, *outcomes) = time.time(), _times(folder / "multirun")
    said("of that: check of the jobs; the jobs; the end", f"{about - started:.0f}, "
         f"{outcomes[-1] - about:.0f} and {ended - outcomes[-1]:.0f} s")  # fmt: skip
    timed("`status`", "status")


def _times(folder: Path) -> list[float]:
    """When the newest sweep began, and when its jobs ended."""
    sweep = max(folder.glob("*/*/sweep.json"), key=lambda file: file.stat().st_mtime)
    outcomes = sorted(file.stat().st_mtime for file in sweep.parent.glob("*/outcome.json"))
    return [sweep.stat().st_mtime, *outcomes]


def _bytes(folder: Path) -> int:
    """As the disk counts: the files of a model are in two places, and on it once."""
    found = {
        (s.st_dev, s.st_ino): 512 * s.st_blocks for s in (p.stat() for p in folder.rglob("*") if p.is_file())
    }
    return sum(found.values())


def main() -> None:
    """Measure all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--at-once", default="1,8,64")
    parser.add_argument("--jobs", default="8,24,64", help="for each of --at-once")
    parser.add_argument("--store-of", type=int, metavar="JOBS")
    parser.add_argument("--folder", type=Path, help="of the store; kept")
    asked = parser.parse_args()
    if asked.store_of:
        with (
            contextlib.nullcontext(asked.folder) if asked.folder else tempfile.TemporaryDirectory() as folder
        ):
            Path(folder).mkdir(exist_ok=True)
            store_of(asked.store_of, Path(folder).absolute())
        return
    levels = list(zip(map(int, asked.at_once.split(",")), map(int, asked.jobs.split(",")), strict=True))
    print(f"{os.cpu_count()} cores, work stubbed out\n")
    print(
        "| store | at once | jobs | jobs per minute | lost | twice |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as first:
        logged = one(Path(first), *TINY, "data.name=ItalyPowerDemand")
        for store in asked.stores.split(","):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with started(store, Path(folder)) as config:
                        for processes, count in levels:
                            per_minute, lost, twice = rate(config, logged, count, processes)
                            found = f"{per_minute:.0f} | {lost} | {twice}"
                            print(f"| {store} | {processes} | {count} | {found} |", flush=True)
                except engines.Missing as why:
                    print(f"| {store} | not run: {why} |", flush=True)


if __name__ == "__main__":
    main()
