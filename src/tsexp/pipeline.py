"""The experiment, one direction: data → fit → compress → deploy → measure → store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from tsexp import compress, data, energy, processes, runtimes, tasks, tracking, training
from tsexp.cache import Cache
from tsexp.config import Config, ConfigError, RuntimeConfig, digest, identity, like, own_digests
from tsexp.data import Dataset
from tsexp.energy import Record, hardware, meters
from tsexp.locking import sharing_the_machine
from tsexp.runtimes import Artifact
from tsexp.training import Fitted


def run(
    cfg: Config, dataset: Dataset, resolved_yaml: str, name: str, parent: str | None = None
) -> tuple[str, bool]:
    """Run one experiment, unless the store has it.

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
    str
        The run's id.
    bool
        It was there before: nothing was run.
    """
    about = signature(cfg, dataset)
    with _alone(cfg, about):  # two sweeps that share a job run it once
        known = None if cfg.rerun else tracking.finished(cfg.tracking, about)
        if known is not None:
            return known, True
        processes.start(energy.PRELOAD)  # imports while this trains; in a sweep it is there already
        cache = Cache(Path(cfg.paths.cache), lambda: meters.counter(cfg.train.device, cfg.measure.meter))
        with tracking.tracked(cfg, resolved_yaml, name, about, parent) as run:
            made = make(cfg, dataset, cache, run.enter)
            record = judge(made, cfg, dataset, cache, run.enter)
            record.raw.update(peak_gmacs=_peaks(cfg, cache))
            run.enter("track")
            notes = [note for step in made.steps.values() for note in step.notes()]
            with sharing_the_machine():
                run.log(cfg, dataset, {"dense": made.dense, **made.steps}, notes, made.artifact, record)
            return run.run_id, False


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
    artifact
        The one that is deployed.
    tried
        Why that one: what `energy.choose` saw; empty if there was no choice.
    """

    dense: Fitted
    steps: dict[str, Fitted]
    artifacts: list[Artifact]
    artifact: Artifact
    tried: list[dict[str, Any]]

    def costs(self) -> list[dict[str, Any]]:
        """`Entry.cost` of everything that made the artifact of the dense model."""
        return [step.entry.cost for step in self.steps.values()] + [a.entry.cost for a in self.artifacts]


def make(
    cfg: Config, dataset: Dataset, cache: Cache, enter: Callable[[str], None] = lambda stage: None
) -> Made:
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
    artifacts = [
        runtimes.deploy(fitted, cfg.quant, runtime, dataset, cache)
        for runtime in runtimes.candidates(cfg.quant, cfg.runtime, like(cfg.model.family))
    ]
    artifact, tried = _chosen(artifacts, fitted, cfg, dataset, cache)
    return Made(dense, steps, artifacts, artifact, tried)


def judge(
    made: Made,
    cfg: Config,
    dataset: Dataset,
    cache: Cache,
    enter: Callable[[str], None] = lambda stage: None,
) -> Record:
    """Measure what was made against the control, on the test split."""
    enter("compress")
    control = compress.control(made.dense, cfg, dataset, cache)
    enter("deploy")
    reference = plain(control, cfg, dataset, cache)
    enter("measure")
    record = _measure(made.artifact, reference, cfg, dataset, cache)
    record = record.with_costs(made.dense.entry.cost, made.costs(), cfg.measure.watts_per_core)
    record.metrics.update(_untuned(made.dense, cfg, dataset, cache))
    record.raw.update(tried=made.tried)
    return record


def plain(fitted: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> Artifact:
    """A model in fp32, run eagerly."""
    eager = RuntimeConfig("eager", cfg.runtime.device)
    return runtimes.deploy(fitted, replace(cfg.quant, mode="none"), eager, dataset, cache)


def _alone(cfg: Config, about: str) -> FileLock:
    locks = Path(cfg.paths.cache) / "jobs"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / f"{about}.lock")


def _chosen(
    artifacts: list[Artifact], fitted: Fitted, cfg: Config, dataset: Dataset, cache: Cache
) -> tuple[Artifact, list[dict[str, Any]]]:
    """Return the one artifact, or with ``runtime=auto`` the fastest that keeps the accuracy."""
    if cfg.runtime.name != runtimes.AUTO:
        return artifacts[0], []
    return energy.choose(artifacts, plain(fitted, cfg, dataset, cache), dataset, cfg.measure, cache)


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


def check(cfg: Config) -> None:
    """Find out before any work whether this machine can run the experiment.

    Brings the dataset if it has to be downloaded.

    Raises
    ------
    ConfigError
        As `able`, or if nothing can be written into the cache, or the dataset is nowhere.
    """
    able(cfg)
    Cache(Path(cfg.paths.cache)).check()
    data.ensure(cfg.data, cfg.paths.data)


def able(cfg: Config) -> None:
    """Find out whether this machine can do what is asked for, whatever the dataset.

    Raises
    ------
    ConfigError
        If somebody's own tokenizer or pruning method is not of the right kind, no step or runtime takes this
        model in this mode on this device, the device is not there, or no meter answers although one is
        required, or not the one that is asked for.
    """
    compress.check(cfg)
    runtimes.check(cfg.quant, cfg.runtime, like(cfg.model.family))
    cfg.model.ready()
    if "cuda" in (cfg.train.device, cfg.runtime.device):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "a device is cuda, but PyTorch sees no GPU here; use train.device=cpu runtime.device=cpu"
            )
    asked = cfg.measure.require == "measured" or cfg.measure.meter != meters.AUTO
    if asked or cfg.runtime.device == "cuda":
        meters.choose(cfg.runtime.device, cfg.measure.require, cfg.measure.watts_per_core, cfg.measure.meter)


def signature(cfg: Config, dataset: Dataset) -> str:
    """Content address of a record: what was asked, of which data, on what hardware, by which meter.

    Where results are kept does not matter.
    """
    return digest(
        {
            "asked": identity(cfg),
            "steps": compress.asked(cfg),
            "data": dataset.checksum,
            "hardware": hardware.describe(cfg.runtime.device),
            "meter": meters.source(cfg.runtime.device, cfg.measure.meter),
            "libraries": runtimes.versions(cfg.quant, cfg.runtime, like(cfg.model.family)),
            "versions": [
                training.STAGE_VERSION,
                compress.versions(),
                runtimes.STAGE_VERSION,
                energy.PROTOCOL_VERSION,
            ],
            **own_digests(cfg.measure.meter),
        }
    )
