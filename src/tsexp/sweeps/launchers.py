"""Hydra's launchers: can one start here, where do its jobs run, and what becomes of those that it loses."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, open_dict

from tsexp.config import PLUGINS, ConfigError, at_once, first_line, redact
from tsexp.system import signals

INHERITING = ("basic", "joblib")
"""Their jobs run in this process or in its children, which inherit the environment."""
ELSEWHERE = ("submitit_slurm", "ray", "ray_aws")
"""Their jobs may run on other machines."""
Lost = Callable[[int, Sequence[str], str], None]
"""Called with the number of a lost job, its overrides and why in a line."""
LAST_S = 120.0
"""What is left of a job that was told to end, at most; SLURM's KillWait is 30 s."""
SQUEUE_S = 20.0
"""What SLURM may take to say what is in its queue."""
SUBMITIT = ".submitit"
FOLDER = "TSEXP_FOLDER"
"""Environment variable of Ray's processes: where the sweep was started."""


def name(config: DictConfig) -> str:
    """Return the option of ``hydra/launcher``."""
    return str(config.hydra.runtime.choices["hydra/launcher"])


def check(config: DictConfig) -> None:
    """Find out before any work whether the launcher is there.

    Raises
    ------
    ConfigError
        If its plugin, or SLURM, is not installed.
    """
    chosen = name(config)
    what, extra = PLUGINS.get(f"hydra/launcher/{chosen}", ("", ""))
    module = str(config.hydra.launcher._target_).rpartition(".")[0]
    if extra and importlib.util.find_spec(module.rpartition(".")[0]) is None:
        raise ConfigError(f"{what} is not installed; install it: pip install 'tsexp[{extra}]'")
    missing = [p for p in ("sbatch", "srun") if chosen == "submitit_slurm" and shutil.which(p) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher=submitit_slurm needs {' and '.join(missing)}, which is not there; start it on a "
            "login node of the cluster, or try the sweep with hydra/launcher=submitit_local\n"
            "nothing was started"
        )


def prepare(config: DictConfig) -> None:
    """Let submitit start no more jobs on this machine at once than it has cores for.

    Ray calls nobody, and processes of a cluster that is there work in this folder, with this code and data.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if name(config) == "ray" and config.hydra.launcher.ray.init.get("address") is not None:
        given = {
            key: os.environ[key] for key in ("PYTHONPATH", "TSEXP_DATA", "TSEXP_LOCK") if key in os.environ
        }
        with open_dict(config.hydra.launcher):
            config.hydra.launcher.ray.init.setdefault(
                "runtime_env",
                {
                    "env_vars": {**given, FOLDER: os.getcwd()},
                    "worker_process_setup_hook": f"{__name__}.enter",
                },
            )
    sweeper = config.hydra.sweeper
    if name(config) == "submitit_local" and sweeper.get("max_batch_size", 0) is None:
        with open_dict(sweeper):
            training = config.train.threads * config.train.devices
            sweeper.max_batch_size = at_once(training, config.measure.threads)


def enter() -> None:
    """Go where the sweep was started; called by Ray in each of its processes."""
    os.chdir(os.environ[FOLDER])


def keep_going(config: DictConfig, lost: Lost) -> None:
    """Let the sweep go on when submitit or Ray loses a job: the others' results count.

    Parameters
    ----------
    config
        Of the sweep.
    lost
        Called with the number of such a job, its overrides and why in a line.
    """
    if name(config).startswith("submitit_"):
        _with_submitit(lost)
    elif name(config) == "ray":
        _with_ray(lost)


def _with_submitit(lost: Lost) -> None:
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.core import core, utils

    results = core.Job.results

    def patient(job: Any) -> list[Any]:
        try:
            returned: list[Any] = results(job)
            # Told in the job that its time is over for the last time, submitit raises within what it runs.
            (error,) = [r._return_value for r in returned if r.status == JobStatus.FAILED] or [None]
        except (utils.UncompletedJobError, utils.FailedJobError) as ended:
            returned, error = [], ended
        except (KeyboardInterrupt, signals.Terminated):
            if arrays := in_slurm(Path(job.paths.folder).parent.parent):
                print(f"tsexp: SLURM goes on with job {arrays}; scancel {arrays} ends it", file=sys.stderr)
            raise
        if error is None or isinstance(error, ConfigError):
            return returned
        overrides, _, number, *_ = job.submission().args
        why = "it left no result" if isinstance(error, utils.UncompletedJobError) else first_line(error)
        where = f"state {job.state}; logs: {Path(job.paths.folder)}"
        lost(number, overrides, f"the job was lost ({why}; {redact(where)})")
        return [JobReturn(status=JobStatus.COMPLETED)]  # None: to a search, a failed trial

    setattr(core.Job, "results", patient)  # noqa: B010 (a method of theirs)


def _with_ray(lost: Lost) -> None:
    from hydra.core.utils import JobReturn, JobStatus
    from hydra_plugins.hydra_ray_launcher import _core as of_hydra
    from ray import exceptions

    launch, get = of_hydra.launch_job_on_ray, of_hydra.ray.get
    begun: dict[Any, tuple[int, Sequence[str]]] = {}
    # What ends a process, not what a job raises, nor what is wrong with the cluster.
    ended = (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError)

    def noted(context: Any, remote: Any, config: DictConfig, *rest: Any) -> Any:
        job = launch(context, remote, config, *rest)
        begun[job] = config.hydra.job.num, list(config.hydra.overrides.task)
        return job

    def patient(job: Any) -> Any:
        try:
            return get(job)
        except ended as error:
            lost(*begun[job], f"the job was lost ({first_line(error)})")
            return JobReturn(status=JobStatus.COMPLETED)  # None, as above

    of_hydra.launch_job_on_ray, of_hydra.ray = noted, SimpleNamespace(get=patient)


def in_slurm(folder: Path, *options: str) -> str:
    """Return which jobs of SLURM, an array each, a sweep has that have not ended; separated by blanks.

    Parameters
    ----------
    folder
        Of the sweep, in which submitit has a folder for each of its jobs.
    options
        Of ``squeue``: which to look for (``--states=PENDING``).
    """
    arrays = {f.name.partition("_")[0] for f in (folder / SUBMITIT).glob("*_*")}
    if not arrays:
        return ""
    asked = ["squeue", "--me", "--noheader", "--format=%F", *options]
    try:
        there = subprocess.run(asked, capture_output=True, text=True, timeout=SQUEUE_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # it is not here, or does not answer
        return ""
    return " ".join(sorted(arrays & set(there.split())))


def end_local() -> None:
    """Interrupt the jobs of ``submitit_local`` that run: they would go on without their sweep."""
    import psutil

    ended = []
    for controller in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "submitit.local._local" in controller.cmdline():
                ended.append(controller)
                for job in controller.children():
                    job.send_signal(signal.SIGINT)
    _, deaf = psutil.wait_procs(ended, timeout=LAST_S)
    for controller in deaf:
        with contextlib.suppress(psutil.Error):
            for process in (*controller.children(recursive=True), controller):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@contextlib.contextmanager
def told_to_end() -> Iterator[Callable[[], None]]:
    """In a job of SLURM: note that it is told to end (requeued, preempted, cancelled).

    A job of ``submitit_local`` hears SIGINT in it, which what a script starts in the background ignores.

    Every process of a job is told so, and what computes dies of it; this one, which submitit lets live, must
    not report that as how the job ended. Yields a function that, if it was told, never returns: it waits for
    submitit to put the job into the queue again, or for SLURM to kill it, and leaves with status 143.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        if "SUBMITIT_EXECUTOR" in os.environ and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # `end_local` sends it
        yield lambda: None
        return
    told: list[int] = []

    def leave() -> None:
        time.sleep(0.5)  # this process may hear of it last
        if told:
            time.sleep(LAST_S)
            sys.exit(128 + signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)

    def note(number: int, frame: Any) -> None:
        told.append(number)
        if callable(before):
            before(number, frame)

    signal.signal(signal.SIGTERM, note)
    try:
        yield leave
    finally:
        signal.signal(signal.SIGTERM, before)


def refused(error: BaseException) -> str | None:
    """Return what a launcher's engine answered, if this is its error and nothing of this program's."""
    if not type(error).__module__.startswith("submitit"):
        return None
    told = " ".join(str(error).split()) or type(error).__name__
    return f"SLURM did not take the jobs: {told}" if "sbatch" in told else told
