"""A sweep of the real command line is hit at a random moment, and run again: the table of docs/survive.md.

What was hit is followed by the same command, which may be hit again, until one comes to its end. Then all
that should be there is looked at: every job once, complete, in its sweep; no run left RUNNING, no model of
nobody, nothing half-made in the cache, no process, no temporary folder. Most of the commands are forks of a
process that has the libraries imported, as what forks their jobs is, which saves half a minute each; what is
hit while it starts is ``python -m tsexp``.

    python tests/benchmarks/killed.py [--tries 20] [kill-all kill-parent term-all term-parent kill-job …]
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import TINY, compose
from test_cli import METRICS
from tsexp import cache as caches
from tsexp import energy, finished, tracking
from tsexp.sweeps import jobs
from tsexp.system import alive, processes, signals
from tsexp.tracking import client, spool

FILES = {"config.yaml", "windows.json", "predictions.csv", "manifest.json", "hardware.json", "training.png"}
ENDS_S = 30.0
"""Of what is left after a hit: the jobs of a parent that is gone are killed 10 s later."""
ITALY = [*TINY, "data=italy_power_demand"]
TWO = ["-m", "prune.ratio=0,0.5", *ITALY]
FOUR = ["-m", "seed=0,1,2,3", *ITALY]
FRESH = 7
"""One in so many commands is an interpreter of its own, and is hit while it starts."""
CGROUPS = Path("/sys/fs/cgroup")
GROUP = (CGROUPS / "memory" if (CGROUPS / "memory").is_dir() else CGROUPS) / "tsexp-faults"
LIMIT = 1 << 30
PAUSE_S = 0.005
ROOM = (0.0, 7.0)
"""What a full disk has left: powers of two of 4 kB."""


class Sweep:
    """A command that runs, and all processes that it was ever seen to have.

    Unless it is `fresh`, it and the process that its jobs are forked from are forks of one that has imported
    the libraries, which takes most of the time else.
    """

    def __init__(self, folder: Path, arguments: list[str], fresh: bool = False) -> None:
        self.folder, self.arguments = folder, arguments
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.seen: set[psutil.Process] = set()
        self.status: int | None = None
        (folder / "hit.pid").unlink(missing_ok=True)
        self.thread = threading.Thread(target=self._fresh if fresh else self._forked)
        self.thread.start()
        while not (folder / "hit.pid").exists():
            time.sleep(PAUSE_S)
        self.pid = int((folder / "hit.pid").read_text())

    def _forked(self) -> None:
        self.status = processes.run(f"{__name__}:hit", str(self.folder), *self.arguments)

    def _fresh(self) -> None:
        environment = os.environ | {"TMPDIR": f"{self.folder}/tmp"}
        del environment[processes.ADDRESS]
        with (self.folder / "hit.txt").open("a") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tsexp", *self.arguments],
                cwd=self.folder,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        note(self.folder, process.pid)
        self.status = process.wait()

    def everybody(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            if self.running():
                parent = psutil.Process(self.pid)
                self.seen |= {parent, *parent.children(recursive=True)}
        return [p for p in self.seen if lives(p)]

    def running(self) -> bool:
        return self.thread.is_alive()

    def wait(self) -> int | None:
        """Its status; None if it does not end."""
        self.thread.join(ENDS_S)
        return self.status

    def job(self) -> tuple[str, int] | None:
        """Name and process of the job that runs, if one does."""
        for note in self.folder.glob(f"multirun/*/*/*/{jobs.RUNNING}"):
            with contextlib.suppress(OSError, ValueError, psutil.Error):  # it ends just now, or begins
                job = psutil.Process(int(json.loads(note.read_text())["pid"]))
                if self.pid in (p.pid for p in job.parents()):
                    return note.parent.name, job.pid
        return None

    def send(self, number: signal.Signals, to_all: bool) -> None:
        targets = self.everybody() if to_all else [p for p in self.everybody() if p.pid == self.pid]
        random.shuffle(targets)
        for target in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.send_signal(number)

    def gone(self, within_s: float) -> bool:
        """All of its processes ended by then."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if not any(map(lives, self.seen)):
                return True
            time.sleep(0.1)
        return False


def forks_of(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def lives(process: psutil.Process) -> bool:
    """It has not ended; one whose end nobody has asked for yet has."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def note(folder: Path, pid: int) -> None:
    (folder / ".pid").write_text(str(pid))
    (folder / ".pid").rename(folder / "hit.pid")


class Forked:
    """Stands for `subprocess.Popen` where the server starts: a fork of this process, warm as it is."""

    def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
        read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.dup2(read, 0)
            os.close(write)
            sys.stdin = open(0)  # noqa: SIM115
            os.environ.update(env)
            os._exit(processes.main(command[3:4]))
        os.close(read)
        self.stdin = os.fdopen(write, "wb")

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def hit(folder: str, *arguments: str) -> None:
    """Run the command as if it were a process of its own."""
    atexit._clear()
    os.environ.pop(processes.ADDRESS)
    greedy(Path(folder))
    processes.subprocess = SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE)  # type: ignore[assignment]
    note(Path(folder), os.getpid())
    try:
        again(folder, *arguments, said="hit.txt")
    finally:
        atexit._run_exitfuncs()


def greedy(folder: Path) -> None:
    """In a folder that says so: this and its forks have a limit, and one of them takes more, once."""
    asked = folder / "greedy"
    if not asked.exists():
        return
    from tsexp.energy import worker
    from tsexp.training import loop

    (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    module, name = {"job": (loop, "fit"), "worker": (worker, "_measure")}[asked.read_text()]
    real = getattr(module, name)

    def more(*args: Any, **kwargs: Any) -> Any:
        if asked.exists():
            asked.unlink()
            held = []
            while True:
                held.append(b"x" * (16 << 20))
        return real(*args, **kwargs)

    setattr(module, name, more)


def again(folder: str, *arguments: str, said: str = "again.txt") -> None:
    """Run the command, in a fork of what has everything imported."""
    from tsexp.__main__ import cli

    os.chdir(folder)
    with Path(said).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["TMPDIR"] = f"{folder}/tmp"
    tempfile.tempdir = None
    sys.argv = ["tsexp", *arguments]
    cli()


def look(folder: str, *names: str) -> None:
    """Write what the store, the cache, the spool and the temporary folder hold into ``found.json``."""
    os.chdir(folder)
    tempfile.tempdir = f"{folder}/tmp"
    cfg = compose(*ITALY, f"tracking.uri=sqlite:///{folder}/mlflow.db", f"paths.spool={folder}/spool")
    store = tracking.store(cfg.tracking)
    number = client.experiment_of(store, cfg.tracking)
    runs = store.search_runs([number])
    done = [r for r in runs if r.info.status == "FINISHED" and r.data.tags.get("tsexp.stage") == "done"]
    sweeps = [r for r in runs if r.data.tags.get("tsexp.stage") == "sweep"]
    valid = [r for r in done if r.data.tags["tsexp.valid"] == "true"]
    kept = Counter(r.data.tags["tsexp.signature"] for r in valid)
    models = store.search_logged_models([number])
    entries = [f for f in Path("cache").glob("*/*/entry.json") if f.parent.suffix != ".partial"]
    tidied = alive.tidy()
    found: dict[str, Any] = {
        "lost": len(set(names) - {r.info.run_name for r in done}),
        "twice": sum(kept.values()) - len(kept),
        "incomplete": [r.info.run_id for r in done if not complete(store, r, sweeps)],
        "running": [r.info.run_id for r in runs if r.info.status == "RUNNING"],
        "sweeps": [r.info.status for r in sweeps],
        "invalid": len(done) - len(valid),
        "models of nobody": len(models) - len(done),
        "half-made": [str(p) for p in Path("cache").rglob("*.partial")],
        "damaged": [str(f) for f in entries if caches._damage(f.parent)],
        "undelivered": len(list(spool.kept(cfg.paths))),
        "temporary": tidied + len([p for p in Path("tmp").glob("tsexp-*") if p.name != "tsexp-locks"]),
        "ended": dict(Counter(r.info.status for r in runs)),
    }
    Path("found.json").write_text(json.dumps(found))


def complete(store: Any, run: Any, sweeps: list[Any]) -> bool:
    """There is all of it: numbers, files, inputs, and a model whose files are those that were measured."""
    from tsexp.report import read

    (output,) = run.outputs.model_outputs
    prefix = "" if run.data.tags["tsexp.valid"] == "true" else "invalid/"
    missing = {m for m in METRICS if not {m, f"{prefix}{m}"} & run.data.metrics.keys()}
    with tempfile.TemporaryDirectory() as name:
        (row,) = read(store, [run.info.run_id])
        artifact = finished.artifact(store, row, Path(name) / "no cache", Path(name))
        same = artifact.manifest["runtime"] == run.data.tags["tsexp.runtime"]
    return (
        same
        and not missing
        and {a.path for a in store.list_artifacts(run.info.run_id)} >= FILES
        and len(store.get_metric_history(run.info.run_id, "dense/train_loss")) == 2
        and len(run.inputs.dataset_inputs) == 2
        and str(store.get_logged_model(output.model_id).status) == "READY"
        and run.data.tags.get("mlflow.parentRunId") in {s.info.run_id for s in sweeps}
    )


class Row:
    """What came of the tries of a fault."""

    def __init__(self, what: str) -> None:
        self.what, self.tries, self.sums = what, 0, Counter()
        self.odd: list[str] = []

    def add(self, sweep: Sweep, names: list[str], hits: int) -> None:
        """Run the command again to its end, and look."""
        status = processes.run(f"{__name__}:again", str(sweep.folder), *sweep.arguments)
        left = not sweep.gone(ENDS_S)
        for process in sweep.seen:
            with contextlib.suppress(psutil.Error):
                process.kill()
        processes.run(f"{__name__}:look", str(sweep.folder), *names)
        found = json.loads((sweep.folder / "found.json").read_text())
        self.tries += hits
        self.sums.update(
            {k: v if isinstance(v, int) else len(v) for k, v in found.items() if k not in ("sweeps", "ended")}
        )
        self.sums["processes"] += left
        if found["sweeps"] != ["FINISHED"] or status:
            self.odd.append(
                f"{sweep.folder.name}: the same command ended with {status}, sweeps {found['sweeps']}"
            )
        wrong = {k: v for k, v in found.items() if v and k not in ("sweeps", "ended")}
        print(
            f"{self.what}: {self.tries}, {found['ended']} {wrong or ''} {'processes left' if left else ''}",
            flush=True,
        )
        if not (wrong or left or status):
            shutil.rmtree(sweep.folder, ignore_errors=True)

    def show(self) -> None:
        rest = {k: v for k, v in self.sums.items() if v and k not in ("lost", "twice")}
        print(
            f"| {self.what} | {self.tries} | {self.sums['lost']} | {self.sums['twice']} | {rest} {self.odd}"
        )


def folders(root: Path, fault: str) -> Iterator[tuple[int, Path]]:
    """Of one try after another: half of them find a cache and a store, some nothing at all."""
    for i in range(10_000):
        folder = root / f"{fault}-{i}"
        folder.mkdir()
        if i % 5:
            shutil.copy(root / "empty.db", folder / "mlflow.db")
        if i % 2:
            shutil.copytree(root / "warm" / "cache", folder / "cache")
        yield i, folder


def command(root: Path, number: signal.Signals, to_all: bool, fault: str, row: Row, tries: int) -> None:
    """The sweep itself is hit, all of its processes or the parent alone; the same command is hit again.

    That goes on until it once comes to its end, or there were tries enough.
    """
    lasts = json.loads((root / "lasts.json").read_text())
    for _, folder in folders(root, fault):
        if row.tries >= tries:
            return
        hits, seen = 0, set()
        while row.tries + hits < tries:
            starting = hits % FRESH == FRESH - 1
            sweep = Sweep(folder, FOUR, fresh=starting)
            if not starting:
                while sweep.running() and sweep.job() is None:
                    time.sleep(0.02)
            time.sleep(random.uniform(0, lasts["start_s"] if starting else 1.5 * lasts["job_s"]))
            sweep.everybody()
            seen |= sweep.seen
            if not sweep.running():
                break
            hits += 1
            where = f"{sweep.job()}, {time.time():.0f} s"
            sweep.send(number, to_all)
            status = sweep.wait()
            seen |= sweep.seen
            if number == signal.SIGTERM:
                row.odd += heeded(sweep, status, starting)
            elif random.random() < 0.5:  # else the same command comes while some of it is still ending
                sweep.gone(ENDS_S)
            print(f"{row.what}: hit {hits} in this store, at job {where}, ended with {status}", flush=True)
        sweep.seen = seen
        row.add(sweep, [f"seed={i}" for i in range(4)], hits)


def heeded(sweep: Sweep, status: int | None, starting: bool) -> list[str]:
    """What is not as it should be after SIGTERM."""
    name = sweep.folder.name
    odd = [] if sweep.gone(1) else [f"{name}: processes left"]
    # Before it can heed anything, it just ends.
    if status not in ((signals.STATUS, -signal.SIGTERM) if starting else (signals.STATUS,)):
        odd.append(f"{name}: ended with {status}")
    with sqlite3.connect(sweep.folder / "mlflow.db") as store, contextlib.suppress(sqlite3.OperationalError):
        ended = Counter(row[0] for row in store.execute("SELECT status FROM runs"))
        if "RUNNING" in ended:
            odd.append(f"{name}: {dict(ended)}")
    return odd


def parts(root: Path, which: str, fault: str, row: Row, tries: int) -> None:
    """Of a sweep with many jobs, one process of each is hit."""
    lasts = json.loads((root / "lasts.json").read_text())
    for _, folder in folders(root, fault):
        if row.tries >= tries:
            return
        seeds = range(max(2, tries - row.tries))
        sweep = Sweep(folder, ["-m", f"seed={','.join(map(str, seeds))}", *ITALY])
        names = [f"seed={i}" for i in seeds]
        hits, of, target, due = 0, "", 0, 0.0
        workers: set[int] = set()
        while sweep.running():
            time.sleep(PAUSE_S)
            job = sweep.job()
            if job is None:
                continue
            if job[0] != of:  # another one has begun
                try:
                    server = psutil.Process(job[1]).ppid()
                except psutil.NoSuchProcess:
                    continue
                of, workers, nth = job[0], set(), random.randint(1, 5)
                sweep.everybody()
                target = due = 0
                if which != "worker":
                    target = job[1] if which == "job" else server
                    due = time.monotonic() + random.uniform(0, lasts["job_s"])
            if which == "worker" and not target:
                workers |= set(forks_of(server)) - {job[1]}
                if len(workers) >= nth:
                    target = max(workers)
                    due = time.monotonic() + random.uniform(0, lasts["job_s"] / 20)
            if target and time.monotonic() >= due:
                with contextlib.suppress(psutil.Error):
                    if lives(victim := psutil.Process(target)):
                        victim.kill()
                        hits += 1
                target, due = 0, float("inf")
                nth = 1000
        sweep.everybody()
        row.add(sweep, names, min(hits, tries - row.tries))


def full(root: Path, which: str, fault: str, row: Row, tries: int) -> None:
    """The disk of a folder of the sweep has a random amount of room left."""
    for _, folder in folders(root, fault):
        if row.tries >= tries:
            return
        small = folder / which
        shutil.rmtree(small, ignore_errors=True)
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
        try:
            room = int(2 ** random.uniform(*ROOM))
            (small / "filler").write_bytes(bytes(shutil.disk_usage(small).free - room * 4096))
            sweep = Sweep(folder, TWO)
            sweep.thread.join()
            said = (folder / "hit.txt").read_text()
            print(f"{4 * room} kB left, status {sweep.status}", flush=True)
            print(*[line for line in said.splitlines() if "tsexp: " in line or "space" in line], sep="\n")
            if "Traceback" in said:
                row.odd.append(f"{folder.name}: frames")
                print(said)
            (small / "filler").unlink()
            row.add(sweep, ["prune.ratio=0", "prune.ratio=0.5"], int(bool(sweep.status)))
        finally:
            subprocess.run(["umount", "-l", small], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def memory(root: Path, which: str, fault: str, row: Row, tries: int) -> None:
    """The first process of a kind takes more memory than all of the sweep may have."""
    GROUP.mkdir(exist_ok=True)
    limit = "memory.limit_in_bytes" if GROUP.parent.name == "memory" else "memory.max"
    (GROUP / limit).write_text(str(LIMIT))
    for _, folder in folders(root, fault):
        if row.tries >= tries:
            break
        (folder / "greedy").write_text(which)
        sweep = Sweep(folder, TWO)
        sweep.thread.join()
        said = (folder / "hit.txt").read_text()
        print(f"status {sweep.status}", *[line for line in said.splitlines() if "memory" in line], sep="\n")
        if "Traceback" in said:
            row.odd.append(f"{folder.name}: frames")
        row.add(sweep, ["prune.ratio=0", "prune.ratio=0.5"], int(not (folder / "greedy").exists()))
    GROUP.rmdir()


def warm_up(root: Path) -> None:
    """Run the sweep unharmed: its cache is there then, and how long it takes is known."""
    folder = root / "warm"
    start = time.monotonic()
    sweep = Sweep(folder, FOUR)
    began: dict[str, float] = {}
    while sweep.running():
        time.sleep(0.02)
        job = sweep.job()
        if job is not None:
            began.setdefault(job[0], time.monotonic())
    if sweep.wait():
        raise SystemExit((folder / "hit.txt").read_text())
    end = time.monotonic()
    lasts = {"start_s": began["0"] - start, "jobs_s": end - began["0"], "job_s": (end - began["1"]) / 3}
    print(f"unharmed: {lasts}, load {os.getloadavg()}", flush=True)
    (root / "lasts.json").write_text(json.dumps(lasts))


FAULTS: dict[str, tuple[Any, ...]] = {
    "kill-all": ("`kill -9` of all processes of a sweep at once", command, signal.SIGKILL, True),
    "kill-parent": ("`kill -9` of the sweep's parent alone", command, signal.SIGKILL, False),
    "term-all": ("SIGTERM to all processes of a sweep, as SLURM sends it", command, signal.SIGTERM, True),
    "term-parent": ("SIGTERM to the sweep's parent alone", command, signal.SIGTERM, False),
    "kill-job": ("`kill -9` of a job's process", parts, "job"),
    "kill-worker": ("`kill -9` of a measuring process", parts, "worker"),
    "kill-server": ("`kill -9` of the process that jobs are forked from", parts, "server"),
    "memory-job": ("a job needs more memory than its cgroup may have", memory, "job"),
    "memory-worker": ("a measuring process needs more memory than its cgroup may have", memory, "worker"),
    "full-cache": ("the disk of the cache full, with 4 to 512 kB left", full, "cache"),
    "full-tmp": ("the disk of `TMPDIR` full, with 4 to 512 kB left", full, "tmp"),
}
"""Fault → what it is, what tries it, and what that is given."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("faults", nargs="*", default=list(FAULTS), metavar="fault")
    parser.add_argument("--tries", type=int, default=20)
    asked = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="killed-"))
    os.environ["TSEXP_LOCK"] = str(root / "machine.lock")
    processes.start(("tsexp.__main__", "tsexp.sweeps.sweep", "tsexp.report", *jobs.PRELOAD, *energy.PRELOAD))
    warm_up(root)
    processes.run(f"{__name__}:empty", str(root / "empty.db"))
    for fault in asked.faults:
        what, run, *given = FAULTS[fault]
        row = Row(what)
        run(root, *given, fault, row, asked.tries)
        row.show()
    if not list(root.glob("*-*")):  # what something was wrong with is to be looked at
        shutil.rmtree(root)


def empty(file: str) -> None:
    """Make a store with MLflow's tables and nothing in them."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{file}").search_experiments()


if __name__ == "__main__":
    import killed  # so that forks find its functions by the module's name

    killed.main()
