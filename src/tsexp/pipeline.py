"""The experiment, one direction: data → fit → compress → deploy → measure → store."""

from __future__ import annotations

import json
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tsexp import compress, data, energy, runtimes, tasks, tracking, training
from tsexp.cache import Cache, CacheError, clear
from tsexp.config import (
    Config,
    ConfigError,
    RuntimeConfig,
    Unsupported,
    check_threads,
    digest,
    first_line,
    identity,
    like,
    own_digests,
)
from tsexp.data import Dataset
from tsexp.energy import MeasuringFailed, Record, hardware, meters
from tsexp.marks import PROTOCOL_VERSION
from tsexp.runtimes import Artifact
from tsexp.system import alive, processes
from tsexp.system.files import write_json
from tsexp.system.guest import guest
from tsexp.system.locking import sharing_the_machine
from tsexp.training import Fitted

log = logging.getLogger(__name__)

SILENT_S = 3.0
"""For so long another process that runs the same job is waited for without a word."""


def run(
    cfg: Config, dataset: Dataset, resolved_yaml: str, name: str, parent: str | None = None
) -> tuple[str | None, bool]:
    """Run one experiment, unless the store has it.

    With ``stop_after=deploy`` only up to the artifact: it lies in the cache then, and nothing in the store.

    Parameters
    ----------
    cfg
        What is asked for; `check` has passed it.
    dataset
        Of ``cfg.data``.
    resolved_yaml
        The configuration as it is to be logged.
    name
        Of the run.
    parent
        Run id of the sweep that it belongs to.

    Returns
    -------
    str or None
        The run's id; None if nothing was to be measured.
    bool
        It was there before: nothing was run.
    """
    about = signature(cfg, dataset)
    with guest(), _alone(cfg, about):  # two sweeps that share a job run it once
        found = _known(cfg, about, parent)
        if found is not None:
            return found, True
        cache = Cache(Path(cfg.paths.cache), lambda: counter(cfg))
        if cfg.stop_after == "deploy":
            reference(make(cfg, dataset, cache), cfg, dataset, cache)
            return None, False
        if counter(cfg) is None:  # which would take what is imported beside a training for a part of it
            processes.start(energy.PRELOAD)  # imports while this trains; in a sweep it is there already
        with tracking.tracked(cfg, resolved_yaml, name, about, parent) as run:
            made = make(cfg, dataset, cache, run.enter)
            processes.start(energy.PRELOAD)
            artifact, tried = choose(made, cfg, dataset, cache)
            record = judge(made, artifact, cfg, dataset, cache, run.enter)
            record.raw.update(tried=tried, peak_gmacs=_peaks(cfg, cache))
            run.enter("track")
            notes = [note for step in made.steps.values() for note in step.notes()]
            with sharing_the_machine():
                run.log(dataset, {"dense": made.dense, **made.steps}, notes, artifact, record)
        assert run.run_id is not None
        return run.run_id, False


def counter(cfg: Config) -> meters.Meter | None:
    """Return what reads the energy of training and all else that is kept, or None."""
    return meters.counter(cfg.train.device, cfg.measure.meter, cfg.train.devices)


def _silent(stage: str) -> None:
    """Tell nobody which stage begins."""


@dataclass(frozen=True)
class Made:
    """What an experiment makes before it measures.

    Attributes
    ----------
    dense
        The trained model.
    steps
        Step of compression → what it made, in order.
    artifacts
        The last of these for each runtime that is asked for: several with ``runtime=auto``.
    device
        That trained.
    failed
        With ``runtime=auto``: each ``runtime`` that could not be deployed, and its ``error``.
    """

    dense: Fitted
    steps: dict[str, Fitted]
    artifacts: list[Artifact]
    device: str
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def fitted(self) -> Fitted:
        """The model that is deployed."""
        return [self.dense, *self.steps.values()][-1]

    def train_cost(self) -> dict[str, Any]:
        """`Entry.cost` of the dense model, with the ``device``."""
        return self.dense.entry.cost | {"device": self.device}

    def costs(self) -> list[dict[str, Any]]:
        """`Entry.cost` of everything that made the artifacts of the dense model; of training, as above."""
        trained = {name: {"device": self.device} if compress.trains(name) else {} for name in self.steps}
        made = [step.entry.cost | trained[name] for name, step in self.steps.items()]
        return made + [a.entry.cost for a in self.artifacts]


def make(cfg: Config, dataset: Dataset, cache: Cache, enter: Callable[[str], None] = _silent) -> Made:
    """Train, compress and deploy.

    Parameters
    ----------
    cfg
        What is asked for; `able` has passed it.
    dataset
        Its test split is not touched.
    cache
        Of the stages.
    enter
        Called with the name of each stage when it begins.
    """
    enter("train")
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    enter("compress")
    steps = compress.compress(dense, cfg, dataset, cache)
    enter("deploy")
    fitted = [dense, *steps.values()][-1]
    artifacts, failed = [], []
    for runtime in runtimes.candidates(cfg.quant, cfg.runtime, like(cfg.model.family)):
        try:
            artifacts.append(runtimes.deploy(fitted, cfg.quant, runtime, dataset, cache))
        except (CacheError, OSError):  # of the cache or its disk: no runtime's
            raise
        except Exception as error:
            if cfg.runtime.name != runtimes.AUTO:
                raise
            why = f"{type(error).__name__}: {error}"
            log.warning("runtime=auto goes on without %s: %s", runtime.name, first_line(why)[:200])
            failed.append({"runtime": runtime.name, "error": why})
    if not artifacts:
        raise MeasuringFailed(f"no runtime takes the model: {failed}")
    device = cfg.train.device if cfg.model.gradient else "cpu"
    return Made(dense, steps, artifacts, device, failed)


def choose(made: Made, cfg: Config, dataset: Dataset, cache: Cache) -> tuple[Artifact, list[dict[str, Any]]]:
    """Return the one artifact, or with ``runtime=auto`` the fastest that is accurate; and what was tried."""
    if cfg.runtime.name != runtimes.AUTO:
        return made.artifacts[0], []
    exact = plain(made.fitted, cfg, dataset, cache)
    chosen, tried = energy.choose(made.artifacts, exact, dataset, cfg.measure, cache)
    return chosen, tried + made.failed


def reference(
    made: Made, cfg: Config, dataset: Dataset, cache: Cache, enter: Callable[[str], None] = _silent
) -> Artifact:
    """Make all that an artifact is measured and judged by; return the control."""
    enter("compress")
    control = compress.control(made.dense, cfg, dataset, cache)
    enter("deploy")
    plain(made.dense, cfg, dataset, cache)
    if cfg.runtime.name == runtimes.AUTO:
        plain(made.fitted, cfg, dataset, cache)
    return plain(control, cfg, dataset, cache)


def judge(
    made: Made,
    artifact: Artifact,
    cfg: Config,
    dataset: Dataset,
    cache: Cache,
    enter: Callable[[str], None] = _silent,
) -> Record:
    """Measure what was made against the control, on the test split."""
    control = reference(made, cfg, dataset, cache, enter)
    enter("measuring")
    untuned = _untuned(made.dense, cfg, dataset, cache)
    record = _measure(artifact, control, cfg, dataset, cache)
    record = record.with_costs(made.train_cost(), made.costs(), cfg.measure.watts_per_core)
    record.metrics.update(untuned)
    failed = ((f["runtime"], first_line(f["error"])[:200]) for f in made.failed)
    without = (f"runtime=auto went on without {runtime}: {why}" for runtime, why in failed)
    same = artifact.signature == control.signature
    return replace(record, warnings=(*record.warnings, *without), is_reference=same)


def plain(fitted: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> Artifact:
    """A model in fp32, run eagerly."""
    eager = RuntimeConfig("eager", cfg.runtime.device)
    return runtimes.deploy(fitted, replace(cfg.quant, mode="none"), eager, dataset, cache)


def _known(cfg: Config, about: str, parent: str | None) -> str | None:
    """Return the run that has it; None also if a store that the sweep has found does not answer now."""
    if cfg.rerun:
        return None
    try:
        with tracking.asking(cfg.tracking):
            return tracking.known(cfg.paths, cfg.tracking, about)
    except tracking.NotDelivered:
        raise
    except ConfigError:
        if parent is None:
            raise
        return None


@contextmanager
def _alone(cfg: Config, about: str) -> Iterator[None]:
    """Hold the lock of a job of one store; if another process has it, say which one is waited for.

    A job of another store does the same on its own: what this one waits for would not appear there. What
    both train they share, through the cache.
    """
    locks = Path(cfg.paths.cache) / "jobs"
    clear(locks, unless_folder=True)
    locks.mkdir(parents=True, exist_ok=True)
    name = f"{about}-{digest(tracking.address(cfg.tracking))}"
    file, owner = locks / f"{name}.lock", locks / f"{name}.json"
    clear(file, unless_file=True)
    clear(owner, unless_file=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=SILENT_S)
    except Timeout:
        print(f"waiting for {_who(owner)}, which is running the same job for the same store", file=sys.stderr)
        lock.acquire()
    try:
        write_json(owner, alive.me())
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _who(owner: Path) -> str:
    try:
        return alive.told(json.loads(owner.read_text()))
    except (OSError, ValueError, AttributeError):  # it ends just now
        return "another process"


def _measure(artifact: Artifact, reference: Artifact, cfg: Config, dataset: Dataset, cache: Cache) -> Record:
    scores, reference_scores = (
        energy.score(a, dataset, cfg.measure, cache, cfg.train.progress) for a in (artifact, reference)
    )
    title = f"measure {dataset.name} {cfg.model.name} {cfg.runtime.name} {cfg.quant.mode}"
    if cfg.prune.ratio:
        title += f" {cfg.prune.scope} {cfg.prune.ratio:g}"
    return energy.measure(
        artifact,
        reference,
        scores,
        reference_scores,
        dataset,
        cfg.measure,
        cfg.seed,
        title,
        cfg.train.progress,
    )


def _untuned(dense: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> dict[str, float]:
    """What the dense model reaches before any tuning."""
    artifact, task = plain(dense, cfg, dataset, cache), tasks.of(dataset)
    scores = energy.score(artifact, dataset, cfg.measure, cache, cfg.train.progress)
    quality: dict[str, float] = task.quality(scores.test, dataset.y_test, "test")
    return {f"test/dense_{task.HEADLINE}": quality[f"test/{task.HEADLINE}"]}


def _peaks(cfg: Config, cache: Cache) -> dict[str, float]:
    return energy.peaks(cfg.measure, cache) if cfg.runtime.device == "cpu" else {}


def check(cfg: Config, here: bool = True) -> None:
    """Find out before any work whether this machine can run the experiment.

    Brings the dataset if it has to be downloaded.

    Parameters
    ----------
    cfg
        The experiment.
    here
        False: it will run on another machine, so that this one's CPU, devices and meters do not matter.

    Raises
    ------
    ConfigError
        As `able`, or if nothing can be written into the cache, or the dataset is nowhere.
    """
    able(cfg, here)
    Cache(Path(cfg.paths.cache)).check()
    data.ensure(cfg.data, cfg.paths.data)


def able(cfg: Config, here: bool = True) -> None:
    """Find out whether this machine (another, if not `here`) can do what is asked, whatever the dataset.

    Raises
    ------
    ConfigError
        If somebody's own tokenizer or pruning method is not of the right kind, no step or runtime takes this
        model in this mode on this device, the device is not there, or not as many as asked for, or no meter
        answers although one is required, or not the one that is asked for; if the model does not take
        series so scaled, and if more threads are to be measured than there are cores.
    """
    compress.check(cfg)
    runtimes.check(cfg.quant, cfg.runtime, like(cfg.model.family), here)
    cfg.model.ready()
    devices = cfg.train.devices
    if devices > 1 and not cfg.model.gradient:
        raise Unsupported(
            f"train.devices={devices}: model={cfg.model.name} is not trained by gradient descent, and fits "
            "itself on one device; use train.devices=1"
        )
    if devices > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            f"train.devices={devices} starts processes that run this script again: put what it does under "
            "if __name__ == '__main__':"
        )
    if cfg.data.scale == "znorm_raw" and not cfg.model.raw:
        raise Unsupported(
            f"data.scale=znorm_raw is not for model={cfg.model.name}, which takes series as they are or sees "
            "their levels by itself; use data.scale=auto"
        )
    if not here:
        return
    if "cuda" in (cfg.train.device, cfg.runtime.device):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "a device is cuda, but PyTorch sees no GPU here; use train.device=cpu runtime.device=cpu"
            )
        if cfg.train.device == "cuda" and devices > (there := torch.cuda.device_count()):
            raise ConfigError(
                f"train.devices={devices}, but PyTorch sees {there} GPU(s) here; use at most so many"
            )
    if cfg.stop_after == "deploy":
        return
    check_threads(cfg.measure.threads)
    meters.check(cfg.runtime.device, cfg.measure)


def versions(device: str = "cpu") -> list[Any]:
    """Return those of the stages, artifacts on a device among them, and of the protocol of measuring."""
    return [
        training.STAGE_VERSION,
        compress.versions(),
        runtimes.STAGE_VERSIONS[device],
        PROTOCOL_VERSION,
    ]


def _chosen_among(cfg: Config, family: str) -> dict[str, list[str]]:
    """Of ``runtime=auto``, what can be used here: one more may be chosen tomorrow."""
    if cfg.runtime.name != runtimes.AUTO:
        return {}
    return {"among": [one.name for one in runtimes.candidates(cfg.quant, cfg.runtime, family)]}


def _fits_with(cfg: Config) -> dict[str, str | None]:
    """Libraries that decide what is learned, and their versions."""
    return {p: runtimes.installed(p) for p in cfg.model.packages()}


def signature(cfg: Config, dataset: Dataset) -> str:
    """Content address of a record: what was asked, of which data, on what hardware, by which meter.

    Where results are kept does not matter.
    """
    family = like(cfg.model.family)
    return digest(
        {
            "asked": identity(cfg),
            "steps": compress.asked(cfg),
            "data": dataset.checksum,
            "hardware": hardware.describe(cfg.runtime.device),
            "meter": meters.source(cfg.runtime.device, cfg.measure.meter),
            "libraries": runtimes.versions(cfg.quant, cfg.runtime, family) | _fits_with(cfg),
            "versions": versions(cfg.runtime.device),
            **runtimes.rewrites(cfg.quant, cfg.runtime, family),
            **_chosen_among(cfg, family),
            **own_digests(cfg.measure.meter),
        }
    )
