"""Hydra's launchers: whether one can start here, where its jobs run, and what becomes of those that it loses."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from tsexp.config import PLUGINS, ConfigError, at_once, redact

INHERITING = ("basic", "joblib")
"""Their jobs run in this process or in its children, which inherit the environment."""
ELSEWHERE = ("submitit_slurm", "ray", "ray_aws")
"""Their jobs may run on other machines."""


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
    """Let submitit start no more jobs on this machine at once than it has cores for, and Ray call nobody."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sweeper = config.hydra.sweeper
    if name(config) == "submitit_local" and sweeper.get("max_batch_size", 0) is None:
        with open_dict(sweeper):
            sweeper.max_batch_size = at_once(config.train.threads, config.measure.threads)


def keep_going(config: DictConfig, lost: Callable[[int, Sequence[str], str], None]) -> None:
    """Let the sweep go on when submitit loses a job: the others' results count.

    Parameters
    ----------
    config
        Of the sweep.
    lost
        Called with the number of such a job, its overrides and why in a line.
    """
    if not name(config).startswith("submitit_"):
        return
    from hydra.core.utils import JobReturn, JobStatus
    from submitit.core import core, utils

    results = core.Job.results

    def patient(job: Any) -> list[Any]:
        try:
            return results(job)  # type: ignore[no-any-return]
        except utils.UncompletedJobError as error:
            overrides, _, number, *_ = job.submission().args
            why = next((s for line in str(error).splitlines() if (s := line.strip())), type(error).__name__)
            folder = Path(job.paths.folder)
            lost(number, overrides, redact(f"the job was lost ({why}; state {job.state}; logs: {folder})"))
            return [JobReturn(status=JobStatus.COMPLETED)]  # None: to a search, a failed trial

    core.Job.results = patient


def refused(error: BaseException) -> str | None:
    """Return what a launcher's engine answered, if this is its error and nothing of this program's."""
    if not type(error).__module__.startswith("submitit"):
        return None
    told = " ".join(str(error).split()) or type(error).__name__
    return f"SLURM did not take the jobs: {told}" if "sbatch" in told else told
