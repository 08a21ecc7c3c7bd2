"""Jobs per minute that a store takes, with the work stubbed out, N at once.

Each does what a job of a sweep does with its store: looks for itself, opens a run, notes its stages, logs a
record, its files and its model.

    python tests/benchmarks/load.py [--stores sqlite,postgres,server] [--at-once 1,8,64] [--jobs 64]

PostgreSQL is started here (`tests/engines.py`); `server` is MLflow's on it, with two workers. Prints a table,
which docs/cluster.md has with its conditions. Every run is looked for afterwards: none lost, none twice.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import engines
from conftest import TINY, compose
from tsexp import data, pipeline, tracking
from tsexp.config import Config, TrackingConfig

STORES = ("sqlite", "postgres", "server")


def one(folder: Path) -> tuple[Config, tuple[Any, ...]]:
    """Run one tiny experiment; return its configuration, and what it logged."""
    store = [f"paths.cache={folder}/cache", f"tracking.uri=sqlite:///{folder}/first.db"]
    cfg = compose(*TINY, "data=italy_power_demand", *store)
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


def job(cfg: Config, record: tuple[Any, ...], number: int) -> None:
    """What a job does with its store."""
    about = f"load-{number}"
    assert tracking.finished(cfg.tracking, about) is None
    with tracking.tracked(cfg, "stub: true\n", f"job {number}", about, None) as run:
        for stage in ("train", "compress", "deploy", "measure", "track"):
            run.enter(stage)
        run.log(cfg, *record[1:])


def worker(cfg: Config, record: tuple[Any, ...], numbers: list[int]) -> None:
    """Some of the jobs, one after the other, in a process of their own."""
    for number in numbers:
        try:
            job(cfg, record, number)
        except Exception:
            print(traceback.format_exc(limit=-2), file=sys.stderr)


def rate(
    store: TrackingConfig, cfg: Config, record: tuple[Any, ...], jobs: int, at_once: int
) -> tuple[float, int, int]:
    """Return jobs per minute, and how many runs were lost and doubled."""
    mine = replace(cfg, tracking=replace(store, experiment=f"load-{at_once}"))
    fork = multiprocessing.get_context("fork")
    shares = [list(range(i, jobs, at_once)) for i in range(at_once)]
    workers = [fork.Process(target=worker, args=(mine, record, share)) for share in shares if share]
    start = time.monotonic()
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    minutes = (time.monotonic() - start) / 60

    found = fork.SimpleQueue()
    asking = fork.Process(target=_ask, args=(mine.tracking, found))  # this process opens no store: it forks
    asking.start()
    finished: list[str] = found.get()
    asking.join()
    return jobs / minutes, jobs - len(set(finished)), len(finished) - len(set(finished))


def _ask(store: TrackingConfig, found: Any) -> None:
    client = tracking.store(store)
    place = [client.get_experiment_by_name(store.experiment).experiment_id]
    runs = client.search_runs(place, "attributes.status = 'FINISHED'", max_results=50000)
    found.put([run.data.tags["tsexp.signature"] for run in runs])


@contextlib.contextmanager
def started(store: str, folder: Path) -> Any:
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


def main() -> None:
    """Measure all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", default=",".join(STORES))
    parser.add_argument("--at-once", default="1,8,64")
    parser.add_argument("--jobs", type=int, default=64)
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, {asked.jobs} jobs, work stubbed out\n")
    print("| store | at once | jobs per minute | lost | twice |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as first:
        cfg, record = one(Path(first))
        for store in asked.stores.split(","):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    with started(store, Path(folder)) as config:
                        for at_once in map(int, asked.at_once.split(",")):
                            per_minute, lost, twice = rate(config, cfg, record, asked.jobs, at_once)
                            print(
                                f"| {store} | {at_once} | {per_minute:.0f} | {lost} | {twice} |", flush=True
                            )
                except engines.Missing as why:
                    print(f"| {store} | not run: {why} |", flush=True)


if __name__ == "__main__":
    main()
