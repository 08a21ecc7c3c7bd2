"""The experiment, one direction: data → train → prune → (qat) → deploy → measure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsexp import data, energy, processes, pruning, qat, runtimes, training
from tsexp.cache import Cache
from tsexp.config import Config, ConfigError, RuntimeConfig, digest, identity, look_up, own_digests
from tsexp.data import Dataset
from tsexp.energy import Record, hardware, meters
from tsexp.energy.record import accuracy
from tsexp.runtimes import Artifact
from tsexp.training import Fitted


@dataclass(frozen=True)
class Result:
    """What an experiment made: the model's way from dense to artifact, and its record.

    ``slim`` is ``dense`` if nothing was pruned, ``tuned`` is ``slim`` but for ``quant.mode=qat``.
    """

    dense: Fitted
    slim: Fitted
    tuned: Fitted
    artifact: Artifact
    record: Record


def run(cfg: Config, dataset: Dataset, enter: Callable[[str], None] = lambda stage: None) -> Result:
    """Run one experiment; `enter` is told each stage as it begins."""
    processes.start(energy.PRELOAD)  # imports while this trains; in a sweep it is there already
    cache = Cache(Path(cfg.paths.cache), lambda: meters.counter(cfg.train.device, cfg.measure.meter))
    enter("train")
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    enter("prune")
    slim = pruning.prune(dense, cfg.prune, cfg.train, cfg.seed, dataset, cache)
    # What accuracy is judged against: the dense architecture with the same training in total.
    control = pruning.tune_alike(dense, cfg.prune, cfg.train, cfg.seed, dataset, cache)
    if cfg.quant.mode == "qat":
        enter("qat")
    tuned = qat.tune(slim, cfg.quant, cfg.train, cfg.seed, dataset, cache)
    control = qat.tune(control, cfg.quant, cfg.train, cfg.seed, dataset, cache, fake=False)
    enter("deploy")
    artifacts = [
        runtimes.deploy(tuned, cfg.quant, one, dataset, cache)
        for one in runtimes.candidates(cfg.quant, cfg.runtime)
    ]
    untuned, reference = (_plain(model, cfg, dataset, cache) for model in (dense, control))
    enter("measure")
    artifact, tried = artifacts[0], list[dict[str, Any]]()
    if cfg.runtime.name == runtimes.AUTO:
        artifact, tried = energy.choose(
            artifacts, _plain(tuned, cfg, dataset, cache), dataset, cfg.measure, cache
        )
    scores, reference_scores, untuned_scores = (
        energy.score(a, dataset, cfg.measure, cache, cfg.train.progress)
        for a in (artifact, reference, untuned)
    )
    title = f"measure {dataset.name} {cfg.model.name} {cfg.runtime.name} {cfg.quant.mode} {cfg.prune.scope} {cfg.prune.ratio:g}"
    record = energy.measure(
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
    made = {f.signature: f.entry.cost for f in (slim, tuned) if f != dense} | {
        a.signature: a.entry.cost for a in artifacts
    }
    record = record.with_costs(dense.entry.cost, list(made.values()), cfg.measure.watts_per_core)
    record.metrics["test/dense_accuracy"] = accuracy(untuned_scores.test, dataset.y_test)
    peaks = energy.peaks(cfg.measure, cache) if cfg.runtime.device == "cpu" else {}
    record.raw.update(tried=tried, peak_gmacs=peaks)
    return Result(dense, slim, tuned, artifact, record)


def _plain(model: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> Artifact:
    """A model in fp32, run eagerly."""
    return runtimes.deploy(
        model, replace(cfg.quant, mode="none"), RuntimeConfig("eager", cfg.runtime.device), dataset, cache
    )


def check(cfg: Config) -> None:
    """Find out before any work whether this machine can run the experiment.

    Brings the dataset if it has to be downloaded.

    Raises
    ------
    ConfigError
        If somebody's own tokenizer or pruning method is not of the right kind, the dataset is nowhere, the
        runtime does not support the mode or the device, the device is not there, or no meter answers although
        one is required.
    """
    runtimes.check(cfg.quant, cfg.runtime)
    if ":" in cfg.model.tokenizer:
        from tsexp.models.classifier import tokenizer_class

        tokenizer_class(cfg.model.tokenizer)
    if ":" in cfg.prune.method and not callable(look_up(cfg.prune.method, {})):
        raise ConfigError(
            f"prune.method={cfg.prune.method} is not a function; docs/extending.md has an example"
        )
    data.ensure(cfg.data, cfg.paths.data)
    if "cuda" in (cfg.train.device, cfg.runtime.device):
        import torch

        if not torch.cuda.is_available():
            raise ConfigError(
                "a device is cuda, but PyTorch sees no GPU here; use train.device=cpu runtime.device=cpu"
            )
    if cfg.measure.require == "measured" or cfg.runtime.device == "cuda":
        meters.choose(cfg.runtime.device, cfg.measure.require, cfg.measure.watts_per_core, cfg.measure.meter)


def signature(cfg: Config, dataset: Dataset) -> str:
    """Content address of a record: what was asked, of which data, on what hardware, by which meter.

    Where results are kept does not matter.
    """
    return digest(
        {
            "asked": identity(cfg),
            "data": dataset.checksum,
            "hardware": hardware.describe(cfg.runtime.device),
            "meter": meters.source(cfg.runtime.device, cfg.measure.meter),
            "libraries": runtimes.versions(cfg.quant, cfg.runtime),
            "versions": [
                training.STAGE_VERSION,
                pruning.STAGE_VERSION,
                qat.STAGE_VERSION,
                runtimes.STAGE_VERSION,
                energy.PROTOCOL_VERSION,
            ],
            **own_digests(cfg.measure.meter),
        }
    )
