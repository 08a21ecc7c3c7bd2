"""What surrounds the jobs of ``--multirun``.

Checked before the first, one table and one picture after the last.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import json
import os
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from tsexp import config as configs
from tsexp.cache import full
from tsexp.config import Config, ConfigError, TrackingConfig, digest, secret
from tsexp.sweeps import launchers
from tsexp.sweeps.jobs import (
    OUTCOME,
    RUNNING,
    SWEEP,
    Outcome,
    deliver,
    read_outcome,
    start_server,
    tidy,
    to_keep,
)
from tsexp.system import alive, signals
from tsexp.system.files import write_json

if TYPE_CHECKING:
    from tsexp.report import Row

from tsexp.sweeps.checks import check, is_search, question

NOT_THERE = "its run is not in the store any more (restored, or deleted?); the same command makes it again"

_claims: list[FileLock] = []
"""The folder that this process holds; not in `Sweep`, which submitit pickles."""


class Sweep(Callback):
    """Hydra's callback: what surrounds the jobs of a sweep.

    In a single run, too, it keeps passwords out of the files that Hydra writes.
    """

    _open: tuple[TrackingConfig, str] | None = None
    _first: Config | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Hide the store's password."""
        secret.hide(config)

    def _abandon(self) -> None:
        """Close the parent run of a sweep that was interrupted, and end what it left to submitit."""
        if self._open is not None:
            from tsexp import tracking

            launchers.end_local()
            try:
                tracking.close_sweep(
                    *self._open,
                    status="KILLED" if signals.terminated() else "FAILED",
                    note="interrupted; the same command goes on where it stopped",
                    files=[],
                )
            except Exception as error:  # the store, which may be why it was interrupted
                print(configs.redact(f"tsexp: {type(error).__name__}: {error}"), file=sys.stderr)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check every job, then make the store and the parent run."""
        try:
            secret.hide(config)
            self._start(config)
        except ConfigError as error:
            print(f"tsexp: error: {configs.redact(str(error))}", file=sys.stderr)
            sys.exit(2)
        except Exception as error:  # Hydra would only warn, and start the jobs
            _tell(error)
            sys.exit(1)

    def _start(self, config: DictConfig) -> None:
        launchers.check(config)
        checked = check(config)
        first = checked.first
        launchers.prepare(config)
        if launchers.name(config) in launchers.INHERITING:
            start_server()
        from tsexp import tracking
        from tsexp.energy import meters

        overrides = secret.as_given(config.hydra.overrides.task)
        # The UI cuts names: the study comes first, then what varies.
        # What comes after stop_after=deploy belongs to the same sweep.
        asked = sorted(o for o in overrides if o.split("=")[0] != "stop_after")
        shown = [o for o in asked if o.split("=")[0] != "rerun" and not o.startswith("tracking.")]
        shown.sort(key=lambda o: (not o.startswith("experiment="), o.split("=")[0] in checked.fixed))
        name = " ".join(shown) or "sweep"
        tidy(first)
        folder = Path(config.hydra.sweep.dir)
        _claim(folder)
        with tracking.asking(first.tracking):
            parent = tracking.sweep_run(first.tracking, name, digest([*asked, *_how_searched(config)]))
        tracking.expect(first.tracking)
        names = {str(number): name for number, name in enumerate(checked.names or ())}
        for left in folder.glob(f"*/{OUTCOME}"):  # by another sweep, in a folder that hydra.sweep.dir fixes
            if not to_keep(left.parent, names.get(left.parent.name)):
                left.unlink()
        self._open, self._first = (first.tracking, parent), first
        atexit.register(self._abandon)
        search = is_search(config)
        more = [s.path for s in config.hydra.runtime.config_sources if s.provider == "command-line"]
        options = [word for place in more for word in ("--config-dir", place)]
        own = [o for o in secret.as_given(config.hydra.overrides.hydra) if _is_own(o)]
        write_json(
            folder / SWEEP,
            {
                "parent": parent,
                "process": alive.me(),
                "folder": os.getcwd(),
                "options": options,
                "overrides": overrides,
                "hydra": own,
                "names": checked.names,
                "fixed": checked.fixed,
                "search": meters.source(first.runtime.device, first.measure.meter) if search else None,
                "question": question(checked.jobs) if search else None,
                "constraints": list(config.hydra.sweeper.get("constraints") or []),
                "command": shlex.join(["python", "-m", "tsexp", "-m", *options, *overrides, *own]),
            },
        )
        launchers.keep_going(config, partial(_lost, str(folder), first.tracking))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Show the table and the picture; end with status 1 if a job failed."""
        try:
            status = self._end(config)
        except ConfigError as error:  # the store is gone
            print(configs.redact(f"tsexp: error: {error}"), file=sys.stderr)
            status = 1
        except Exception as error:
            _tell(error)
            status = 1
        while _claims:
            _claims.pop().release()
        if status:
            sys.exit(status)

    def _delivered(self, folder: Path, distinct: bool) -> dict[int, Outcome]:
        """How the jobs ended, by their numbers, after what they kept was delivered."""
        from tsexp import tracking

        assert self._first is not None
        patient = True
        for job in sorted(f.parent for f in folder.glob(f"*/{OUTCOME}")):
            known = deliver(self._first, job, patient)
            if known is not None and known.status == "kept":
                patient = False  # the store may be gone: it was asked for long enough
        outcomes = _outcomes(folder, distinct)
        waiting = [o for o in outcomes.values() if o.status == "kept"]
        try:
            with tracking.asking(self._first.tracking):
                tracking.store(self._first.tracking).search_experiments(max_results=1)
        except ConfigError as error:
            self._open = None  # not closed: the same command opens it again
            done = sum(o.ok for o in outcomes.values())
            raise ConfigError(
                f"{error}; {done} of {len(outcomes)} results are in it, {len(waiting)} are kept in "
                f"{self._first.paths.spool}, none is lost; the same command, or "
                f"{tracking.by_hand(self._first.tracking)}, delivers them"
            ) from None
        return outcomes

    def _end(self, config: DictConfig) -> int:
        """Bring the store what it has not taken yet, show what came out, close the parent run.

        Returns
        -------
        int
            The exit status.

        Raises
        ------
        ConfigError
            If the store is gone; it is told where the results are.
        """
        from tsexp import report, tracking
        from tsexp.report import constraints
        from tsexp.report.console import terminal
        from tsexp.report.summary import sweep_metrics

        assert self._open is not None
        store, parent = self._open
        folder = Path(config.hydra.sweep.dir)
        about = json.loads((folder / SWEEP).read_text())
        numbered = self._delivered(folder, distinct=bool(about["search"]))
        client = tracking.store(store)
        rows = _rows(client, folder, numbered)
        outcomes = list(numbered.values())
        skipped, failed = _unmeasured(numbered, expected=len(about["names"] or outcomes))
        kept_to = constraints.parse(about["constraints"])
        front = report.energy_front(rows, kept_to) if about["search"] else set()

        console = terminal()
        title = _title(len(rows), outcomes, skipped, failed)
        console.print(report.sweep_table(rows, failed, title, skipped, front))
        valid = [row for row in rows if row.valid]
        if valid and not any(constraints.keeps(row.metrics, kept_to) for row in valid):
            bounds = ", ".join(about["constraints"])
            console.print(f"no job keeps to {bounds}", markup=False, soft_wrap=True)
        drawn = [
            report.sweep_figure(rows, folder / "sweep.png"),
            report.front_figure(rows, folder / "front.png", kept_to) if about["search"] else None,
        ]
        pictures = [p for p in drawn if p is not None]
        for picture in pictures:
            console.print(f"picture: {picture.absolute()}", soft_wrap=True, markup=False)
        console.print(ui_line(store), soft_wrap=True, markup=False)
        number = tracking.experiment_of(client, store)
        note = _note(about["command"], outcomes, number)
        unsupported = sum(o.status == "skipped" for o in outcomes)
        deployed = sum(o.status == "deployed" for o in outcomes)
        lost = len(about["names"] or outcomes) - len(rows) - unsupported - deployed
        metrics, source = sweep_metrics(rows, lost, unsupported)
        status = "FAILED" if failed else "FINISHED"
        self._open = None
        closed = tracking.close_sweep(store, parent, status, note, pictures, metrics, source)
        if not (sys.stdout.isatty() and sys.stderr.isatty()):  # else they stand below the table
            for name, error in failed.items():
                print(f"tsexp: failed: {name}: {error}", file=sys.stderr)
        if not closed:
            print(f"tsexp: failed: the sweep itself: {NOT_THERE}", file=sys.stderr)
        return 1 if failed or not closed else 0


def _rows(client: Any, folder: Path, outcomes: dict[int, Outcome]) -> list[Row]:
    """Return the runs of the jobs, by their names in this sweep; one that is gone is a failed job."""
    from mlflow.exceptions import MlflowException

    from tsexp import report, tracking

    measured = {n: o for n, o in outcomes.items() if o.ok and o.run_id}
    try:
        rows = report.read(client, [o.run_id or "" for o in measured.values()])
    except MlflowException:
        gone = [n for n, o in measured.items() if not tracking.is_there(client, o.run_id or "")]
        if not gone:
            raise
        for number in gone:
            outcomes[number] = replace(outcomes[number], status="failed", run_id=None, error=NOT_THERE)
            write_json(folder / str(number) / OUTCOME, asdict(outcomes[number]), lasting=True)
        return _rows(client, folder, outcomes)
    return [replace(row, name=outcome.name) for outcome, row in zip(measured.values(), rows, strict=True)]


def _claim(folder: Path) -> None:
    """Make the folder of a sweep, and hold it: its jobs find their names and their sweep there.

    Raises
    ------
    ConfigError
        If another sweep that runs has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{SWEEP}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _about(str(folder)).get("process")
        raise ConfigError(
            f"{folder} is the folder of a sweep that still runs{f' ({alive.told(who)})' if who else ''}; "
            "wait for its end, or give hydra.sweep.dir another folder"
        ) from None
    _claims.append(lock)


def _tell(error: Exception) -> None:
    """Say that a disk is full, or whatever else is a fault here."""
    told = full(error, os.getcwd())
    text = traceback.format_exc() if told is None else f"tsexp: error: {told}"
    print(configs.redact(text), file=sys.stderr)


def _how_searched(config: DictConfig) -> list[str]:
    """What makes another search of the same overrides; nothing in a plain sweep.

    Its study is the same however many trials it is to have, and wherever it is kept.
    """
    if not is_search(config):
        return []
    given = [o for o in secret.as_given(config.hydra.overrides.hydra) if o.startswith("hydra")]
    keys = tuple(f"hydra.sweeper.{key}=" for key in ("n_trials", "n_jobs", "storage"))
    return sorted(o for o in given if "sweeper" in o.split("=")[0] and not o.startswith(keys))


def _is_own(override: str) -> bool:
    """Given on the command line: not where this sweep's files go, or what Hydra adds itself."""
    return not override.startswith(("hydra.sweep.dir=", "hydra.mode=", "hydra.run.dir="))


def _outcomes(folder: Path, distinct: bool) -> dict[int, Outcome]:
    """Return how the jobs of a sweep ended, by their numbers and in that order.

    Parameters
    ----------
    folder
        Hydra's, of the sweep.
    distinct
        It is a search, which may propose the same job again: each result is to be there once, and what failed
        only if no other try was measured.
    """
    numbers = sorted(int(f.parent.name) for f in folder.glob(f"*/{OUTCOME}") if f.parent.name.isdigit())
    read = {n: read_outcome(folder / str(n)) for n in numbers}
    outcomes = {n: o for n, o in read.items() if o is not None}
    if distinct:
        first = {o.run_id or o.parcel or n: n for n, o in reversed(outcomes.items())}
        done = {o.name for o in outcomes.values() if o.ok}
        outcomes = {n: o for n in sorted(first.values()) if (o := outcomes[n]).ok or o.name not in done}
    return outcomes


def _unmeasured(outcomes: Mapping[int, Outcome], expected: int) -> tuple[dict[str, str], dict[str, str]]:
    """Return name → reason of the jobs that were skipped, and of those that failed or are missing."""
    skipped = {
        o.name: (o.error or "").splitlines()[0].removesuffix("; supported:")
        for o in outcomes.values()
        if o.status == "skipped"
    }
    failed = {
        f"{o.name} (#{n})": o.error or o.status
        for n, o in outcomes.items()
        if not o.ok and o.status not in ("skipped", "deployed")
    }
    if expected > len(outcomes):
        failed[f"{expected - len(outcomes)} job(s)"] = "did not start or did not end"
    return skipped, failed


def _title(
    measured: int, outcomes: Sequence[Outcome], skipped: dict[str, str], failed: dict[str, str]
) -> str:
    found = sum(o.status == "found" for o in outcomes)
    deployed = sum(o.status == "deployed" for o in outcomes)
    counts = {
        "of them measured before": found,
        "deployed and not measured (the same without stop_after=deploy measures)": deployed,
        "skipped": len(skipped),
        "failed": len(failed),
    }
    return ", ".join([f"{measured} jobs", *(f"{n} {what}" for what, n in counts.items() if n)])


def _note(command: str, outcomes: Sequence[Outcome], experiment: str) -> str:
    """What the UI shows of a sweep: the command, and every job with a link to its run."""
    lines = [f"`{command}`", "", "Pictures: among the artifacts.", ""]
    for o in outcomes:
        name = f"[{o.name}](#/experiments/{experiment}/runs/{o.run_id})" if o.run_id else o.name
        lines.append(f"- {name}: {o.status}{f', {o.error}' if o.error else ''}")
    return "\n".join(lines)


def ui_line(store: TrackingConfig) -> str:
    """Say how to open the MLflow UI on this store, at the runs of its experiment."""
    from tsexp import tracking

    number = tracking.experiment_of(tracking.store(store), store)
    if store.uri.startswith("http"):
        return f"compare: {tracking.view_url(number, configs.redact(store.uri).rstrip('/'))}"
    uri = shlex.quote(configs.redact(store.uri))
    served = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
    return f"compare: {served}\n         then {tracking.view_url(number)}"


def _lost(sweep_dir: str, store: TrackingConfig, number: int, overrides: Sequence[str], why: str) -> None:
    """Note how a job ended that its launcher lost, unless the job itself could; its run ends so, too."""
    from tsexp import tracking

    job = Path(sweep_dir) / str(number)
    if read_outcome(job) is not None:
        return
    job.mkdir(parents=True, exist_ok=True)
    lost = Outcome(place(sweep_dir, number, overrides)[1], "failed", error=why)
    write_json(job / OUTCOME, asdict(lost), lasting=True)
    note = job / RUNNING
    if note.exists():
        with contextlib.suppress(Exception):  # a store that is gone, too
            tracking.mark_killed(store, json.loads(note.read_text()), why)
        note.unlink(missing_ok=True)


def place(sweep_dir: str, number: int, overrides: Sequence[str]) -> tuple[str | None, str]:
    """Return the run id of the sweep whose folder this is, and the name of the job of this number."""
    about = _about(sweep_dir)
    if about.get("names"):
        return about["parent"], about["names"][number]
    name = " ".join(o for o in overrides if o.split("=", 1)[0] not in about.get("fixed", ()))
    return about.get("parent"), configs.redact(name or "job")


def objectives(outcome: Outcome, cfg: DictConfig, sweep_dir: str) -> tuple[float, ...] | None:
    """What a search learns from a job.

    Accuracy on the validation split (0 to 1), energy per inference (J), and how far it is beyond each
    constraint of the search.

    None, a failed trial, if there is no valid measurement, or if its energy comes from another source than
    the rest of the search; and in a plain sweep, where nobody asks.
    """
    about = _about(sweep_dir)
    if not about.get("search") or not outcome.ok or outcome.run_id is None:
        return None
    from tsexp import report, tracking
    from tsexp.report import constraints

    store = configs.parse(cfg).tracking
    (row,) = report.read(tracking.store(store), [outcome.run_id])
    source = row.tags["tsexp.energy_source"]
    if row.valid and source != about["search"]:
        print(
            f"tsexp: {outcome.name}: the search learns nothing from energy of {source}; the rest of it is of "
            f"{about['search']}",
            file=sys.stderr,
        )
    if not row.valid or source != about["search"]:
        return None
    m = row.metrics
    kept_to = constraints.parse(about.get("constraints", []))
    for missing in sorted({c.metric for c in kept_to} - m.keys()):
        near = ", ".join(difflib.get_close_matches(missing, m, 3, 0.3)) or "none"
        told = f"constraint on {missing}: no metric of the run; close to it: {near}"
        if not tracking.has_metric(store, missing):  # else other jobs may have it
            raise ConfigError(f"{told}; {outcome.name} is measured, and is found again")
        print(f"tsexp: {told}", file=sys.stderr)
    return m["val/accuracy"], m["energy/per_inference_j"], *(c.violation(m) for c in kept_to)


def _about(sweep_dir: str) -> dict[str, Any]:
    file = Path(sweep_dir) / SWEEP
    return json.loads(file.read_text()) if file.exists() else {}
