"""One job of the command line.

From a composed configuration to a run in the store, and what becomes of failures.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tsexp import config as configs
from tsexp.cache import full
from tsexp.config import Config, ConfigError, DataConfig, Unsupported
from tsexp.sweeps import launchers
from tsexp.system import alive, processes, signals
from tsexp.system.files import write_json

if TYPE_CHECKING:  # the command line imports this module before it knows that it has work
    from tsexp.data import Dataset

log = logging.getLogger(__name__)

OUTCOME = "outcome.json"
RUNNING = "running.json"
"""In a job's folder: its process (`alive.me`), which a killed one cannot tell any more."""
SWEEP = "sweep.json"
RETRY = "TSEXP_RETRY"
"""Environment variable: folder of the sweep of which only the jobs that failed are to run again."""
PRELOAD = (
    "tsexp.sweeps.jobs", "tsexp.pipeline", "tsexp.tracking", "tsexp.training.loop", "tsexp.sweeps.warm",
    "aeon.datasets", "sklearn.model_selection", "matplotlib.backends.backend_agg", "PIL.PngImagePlugin",
    "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "alembic", "IPython", "git", "httpx",
    "opentelemetry.sdk.trace",
)  # fmt: skip
"""What jobs import, beside what the processes that measure for them do (`energy.PRELOAD`)."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended; kept as ``outcome.json`` in its folder.

    Attributes
    ----------
    name
        What varies in its sweep, or the main choices.
    status
        ``finished``, ``found`` (measured before, nothing was run), ``deployed`` (as asked, not measured),
        ``kept`` (measured, and the store did not take it), ``skipped`` (a combination that no runtime
        supports), ``refused`` (bad input) or ``failed``.
    run_id
        In the store, if it got that far.
    error
        One line, if it did not finish.
    parcel
        Where a result is kept that the store did not take.
    """

    name: str
    status: str
    run_id: str | None = None
    error: str | None = None
    parcel: str | None = None

    @property
    def ok(self) -> bool:
        """There is a measurement."""
        return self.status in ("finished", "found")


def execute(cfg: DictConfig, name: str | None, folder: Path, parent: str | None) -> Outcome:
    """Run one job and return how it ended; nothing leaves this function but Ctrl-C and SIGTERM.

    Parameters
    ----------
    cfg
        What Hydra composed.
    name
        Of the run; by default made of the main choices.
    folder
        Hydra's output folder of the job.
    parent
        Run id of the sweep.
    """
    from tsexp import tracking
    from tsexp.tracking import NotDelivered, NotKept

    label = name or "experiment"
    try:
        checked = configs.parse(cfg)
        label = name or _name(checked)
        if parent is not None:
            tracking.expect(checked.tracking)
        run_id, found = _experiment(checked, OmegaConf.to_yaml(cfg, resolve=True), label, parent)
        status = "found" if found else "deployed" if run_id is None else "finished"
        outcome = Outcome(label, status, run_id)
    except NotDelivered as error:
        outcome = Outcome(label, "kept", error=configs.redact(str(error)), parcel=str(error.folder))
        log.error("%s: %s", label, outcome.error)
    except NotKept as error:
        outcome = Outcome(label, "failed", error=str(error))
        log.error("%s failed: %s", label, error)
    except Unsupported as error:
        outcome = Outcome(label, "skipped", error=str(error))
    except ConfigError as error:
        outcome = Outcome(label, "refused", error=configs.redact(str(error)))
    except Exception as error:
        what = full(error, str(cfg.paths.cache), folder) or f"{type(error).__name__}: {error}"
        outcome = Outcome(label, "failed", error=configs.redact(what))
        log.error("%s failed: %s%s", label, outcome.error, _keep_traceback(folder))
    _note(folder, outcome)
    return outcome


def _keep_traceback(folder: Path) -> str:
    """Return where it is, as the end of a line."""
    try:
        (folder / "traceback.txt").write_text(configs.redact(traceback.format_exc()))
    except OSError as error:  # the disk is full
        return f" (no traceback: {error.strerror})"
    return f" (traceback: {folder / 'traceback.txt'})"


def _note(folder: Path, outcome: Outcome) -> None:
    """Write down how a job ended; on a full disk, its sweep says that it did not end."""
    try:
        write_json(folder / OUTCOME, asdict(outcome), lasting=True)
    except OSError as error:
        log.error("%s: %s cannot be written (%s)", outcome.name, folder / OUTCOME, error.strerror)


def _name(cfg: Config) -> str:
    """Name a single run; what is varied most comes first: the UI cuts names."""
    p = cfg.prune
    pruned = f"{p.method}-{p.scope}-{p.ratio:g}" if p.ratio else "unpruned"
    return f"{pruned} {cfg.quant.mode} {cfg.runtime.name} {cfg.model.name} {cfg.data.name} seed {cfg.seed}"


def _experiment(cfg: Config, resolved_yaml: str, name: str, parent: str | None) -> tuple[str | None, bool]:
    """Return what `pipeline.run` does."""
    from tsexp import pipeline

    pipeline.check(cfg)
    if parent is None:  # a sweep has done so
        tidy(cfg)
    return pipeline.run(cfg, dataset_of(cfg), resolved_yaml, name, parent)


def tidy(cfg: Config) -> None:
    """Sweep up what killed processes of this machine left, and bring the store what it has not taken yet.

    Says so in a line each, and that alone if it does not work.

    Raises
    ------
    ConfigError
        If the store does not answer, or is gone while results wait for it.
    """
    from tsexp import tracking

    folders = alive.tidy()
    tracking.check_home(cfg.paths, cfg.tracking)
    with tracking.asking(cfg.tracking):
        ended = tracking.end_the_dead(cfg.tracking)
    if folders or ended:
        left = f"{ended} run(s), now KILLED, and {folders} temporary folder(s), now removed"
        print(f"tsexp: processes of this machine that were killed had left {left}", file=sys.stderr)
    taken, left_behind = tracking.sync(cfg.paths, cfg.tracking)
    if taken:
        print(f"tsexp: {len(taken)} result(s) that were kept in {cfg.paths.spool} delivered", file=sys.stderr)
    for error in left_behind:
        print(f"tsexp: {error}", file=sys.stderr)


def dataset_of(cfg: Config) -> Dataset:
    """Return the dataset of a job, loaded once for all jobs that share it."""
    from tsexp import data

    stats = [file.stat() for file in data.ensure(cfg.data, cfg.paths.data)]
    return _loaded(
        astuple(cfg.data), cfg.paths.data, cfg.seed, tuple((s.st_mtime_ns, s.st_size) for s in stats)
    )


@lru_cache(maxsize=2)
def _loaded(
    config: tuple[Any, ...], data_dir: str, seed: int, stamps: tuple[tuple[int, int], ...]
) -> Dataset:
    """Load it; files that changed meanwhile are other arguments."""
    from tsexp import data

    return data.load(DataConfig(*config), data_dir, seed)


def _at_once(cfg: DictConfig, name: str) -> Outcome | None:
    """How the job ends if nothing has to be run: measured before, or supported by no runtime.

    None also if that is not known here.
    """
    from tsexp import compress, pipeline, runtimes, tracking

    try:
        checked = configs.parse(cfg)
        compress.check(checked)
        runtimes.check(checked.quant, checked.runtime, configs.like(checked.model.family))
        about = pipeline.signature(checked, dataset_of(checked))
        known = None if checked.rerun else tracking.known(checked.paths, checked.tracking, about)
    except Unsupported as error:
        return Outcome(name, "skipped", error=str(error))
    except Exception:  # the job itself will say why
        return None
    return Outcome(name, "found", known) if known else None


def execute_apart(cfg: DictConfig, name: str, folder: Path, parent: str | None) -> Outcome:
    """`execute` in a process of its own.

    A job that is killed (out of memory, a crash in native code) does not take its sweep along.
    """
    from tsexp import tracking

    if parent is not None:
        with contextlib.suppress(Exception):  # the job itself will say why
            tracking.expect(configs.parse(cfg).tracking)
    if to_keep(folder, name):
        known = read_outcome(folder)
        if known is not None and known.status == "kept":  # its parcel is gone: the store knows whether to it
            known = deliver(configs.parse(cfg), folder)
        if known is not None and known.status != "kept":
            return known
    (folder / OUTCOME).unlink(missing_ok=True)
    outcome = _at_once(cfg, name)
    if outcome is not None:
        _note(folder, outcome)
        return outcome
    with launchers.told_to_end() as leave_if_told:
        reason, who = _run_apart(cfg, name, folder, parent)
        known = read_outcome(folder)
        if known is not None:
            return known
        leave_if_told()
    written = _at_once(cfg, name)  # it may have died when its result was written down already
    if written is not None and written.ok:
        outcome = Outcome(name, "finished", written.run_id)
        _note(folder, outcome)
        return outcome
    log.error("%s failed: %s", name, reason)
    outcome = Outcome(name, "failed", error=reason)
    _note(folder, outcome)
    with contextlib.suppress(Exception):  # a store that is gone, too; the next command marks it
        tracking.mark_killed(configs.parse(cfg).tracking, who, reason)
    return outcome


def to_keep(folder: Path, name: str | None) -> bool:
    """Say whether the job in this folder, if it has this name, is done, and only what failed is asked for."""
    if os.environ.get(RETRY) != os.path.abspath(folder.parent):
        return False
    known = read_outcome(folder)
    if known is None or known.name != name:
        return False
    delivered = known.status == "kept" and known.parcel is not None and not Path(known.parcel).exists()
    return known.ok or delivered or known.status in ("skipped", "deployed")


def deliver(cfg: Config, folder: Path, patient: bool = True) -> Outcome | None:
    """Return how the job in this folder ended, after what the store did not take was delivered.

    Parameters
    ----------
    cfg
        Has the store.
    folder
        Of the job.
    patient
        Wait for a store that does not answer.
    """
    from tsexp import tracking

    known = read_outcome(folder)
    if known is None or known.status != "kept" or known.parcel is None:
        return known
    parcel = Path(known.parcel)
    try:
        run_id = (
            tracking.deliver(parcel, cfg.tracking) if patient else tracking.deliver(parcel, cfg.tracking, 0)
        )
    except ConfigError as error:  # the store does not take it, or it cannot be read
        outcome = replace(known, error=configs.redact(str(error)))
        _note(folder, outcome)
        return outcome
    outcome = Outcome(known.name, "finished", run_id)
    _note(folder, outcome)
    return outcome


def start_server() -> None:
    """Start the server that this sweep's jobs are forked from; workers of a launcher inherit where it is."""
    from tsexp import energy

    processes.start((*PRELOAD, *energy.PRELOAD))


def _run_apart(cfg: DictConfig, name: str, folder: Path, parent: str | None) -> tuple[str, dict[str, str]]:
    """Return how the job's process ended, and which it was (empty if it did not even start)."""
    arguments = json.dumps(OmegaConf.to_container(cfg)), name, str(folder), parent or ""
    cuda = "cuda" in (cfg.train.device, cfg.runtime.device)  # it does not bear a fork
    note = folder / RUNNING
    note.unlink(missing_ok=True)
    start_server()  # is there already, unless it died
    try:
        code = processes.run(f"{__name__}:_apart", *arguments, fork=not cuda)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        how = "was terminated (SIGTERM)" if code == signals.STATUS else how
        reason = f"the job's process {how}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    except processes.ServerGone as error:
        reason = str(error)
    except SystemExit:  # of submitit, which has put the job into the queue again: nothing runs
        note.unlink(missing_ok=True)
        raise
    who = json.loads(note.read_text()) if note.exists() else {}
    note.unlink(missing_ok=True)
    return reason, who


def _apart(container: str, name: str, folder: str, parent: str) -> int:
    """In the job's process; its exit status counts only if it leaves no outcome."""
    write_json(Path(folder) / RUNNING, alive.me())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    cfg = OmegaConf.merge(OmegaConf.structured(Config), json.loads(container))
    assert isinstance(cfg, DictConfig)
    execute(cfg, name, Path(folder), parent or None)
    return 0


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the job in this folder ended; None if it has not, or its file tells nothing that we know."""
    with contextlib.suppress(OSError, ValueError, TypeError):  # empty, cut off, of a newer version
        return Outcome(**json.loads((folder / OUTCOME).read_text()))
    return None
