"""Models on disk, and how they come there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tsexp import models
from tsexp.cache import Cache, Entry, Unfinished
from tsexp.config import ModelConfig, TrainConfig, family_module, like, like_own, own_digests
from tsexp.data import Dataset
from tsexp.models import Model, Network, using_threads
from tsexp.system.files import write_json
from tsexp.training.teacher import Teacher

STAGE_VERSION = 5
KEPT_VERSION = 1
"""Raised whenever what an unfinished fit keeps is other than before."""

OF_A_MODEL = ("arch.json", "weights.safetensors", "history.json", "entry.json")


@dataclass(frozen=True)
class Fitted:
    """A fitted model on disk.

    Attributes
    ----------
    entry
        Cache entry holding ``arch.json``, ``weights.safetensors`` and ``history.json``.
    """

    entry: Entry

    @property
    def signature(self) -> str:
        """Content address of everything the weights depend on."""
        return self.entry.signature

    @property
    def family(self) -> str:
        """Of the model, as runtimes and steps know it."""
        return like(models.family_of(self.entry.folder))

    def load(self) -> Model:
        """Return a fresh copy, ready to answer."""
        return models.load(self.entry.folder)

    def history(self) -> list[dict[str, float]]:
        """One dict per epoch: train_loss, val_loss, val_accuracy, lr; none where there were no epochs."""
        return json.loads((self.entry.folder / "history.json").read_text())  # type: ignore[no-any-return]

    def notes(self) -> list[Path]:
        """Return what else the stage that made it wrote down."""
        return sorted(p for p in self.entry.folder.iterdir() if p.name not in OF_A_MODEL)


def train(model: ModelConfig, config: TrainConfig, seed: int, dataset: Dataset, cache: Cache) -> Fitted:
    """Fit a model from scratch, once per (data, model, train, seed).

    Models that are fitted by gradient descent are trained by the ``train`` group; others fit themselves.

    Raises
    ------
    RuntimeError
        If the loss stops being a number.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = models.build(model, dataset)
    arch = json.loads(json.dumps(asdict(fresh.arch)))
    # There were no such keys: what was trained then is not trained again.
    if not arch["preprocessing"]["unit"]:
        del arch["preprocessing"]["unit"]
    if arch.get("kept") == 1:
        del arch["kept"]
    key = {
        "data": dataset.checksum,
        "fit": dataset.fit.tolist(),
        "arch": arch if fresh.family == "transformer" else {"family": fresh.family, **arch},
        "seed": seed,
        **own_digests(*like_own({"family": model.family, **arch})),
    }
    if ":" in model.family:  # what fits it may read more than describes it
        key["config"] = {k: v for k, v in asdict(model).items() if k != "name"}
    if model.gradient:
        key["train"] = config.asked()
    family = family_module(model.family)
    if version := getattr(family, "VERSION", 0):
        key["version"] = version
    if packages := model.packages():
        key["libraries"] = {name: metadata.version(name) for name in packages}

    unfinished = cache.unfinished("dense", STAGE_VERSION, key, keepers())

    def build(folder: Path) -> None:
        own: Any = fresh
        if model.gradient:
            with using_threads(config.threads):
                own = own.adapt(dataset)
                if ":" in model.family:
                    models.check_scores(own.eval(), dataset)
                    own.train()
            title = f"train {dataset.name} {model.name}"
            history = fit(own, config, dataset, seed, title, unfinished=unfinished)
        else:
            with using_threads(config.threads):
                history = own.fit(dataset, seed)
        save(own, history, folder)

    return Fitted(cache.stage("dense", STAGE_VERSION, key, build, unfinished))


def keepers() -> dict[str, Any]:
    """Return the versions of what keeps and restores an unfinished fit: they have to be the same."""
    return {"lightning": metadata.version("lightning"), "kept": KEPT_VERSION}


def save(model: Model, history: list[dict[str, float]], folder: Path) -> None:
    """Write a model and its training curves."""
    models.save(model, folder)
    write_json(folder / "history.json", history)


def fit(
    model: Network,
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    title: str,
    teacher: Teacher | None = None,
    unfinished: Unfinished | None = None,
) -> list[dict[str, float]]:
    """Fit `model` in place and return its training curves.

    Parameters
    ----------
    model
        Ends in eval mode with the selected weights.
    config
        The recipe.
    dataset
        Fitted on ``dataset.fit``, selected on ``dataset.val``; the test split is not touched.
    seed
        Of the order of the batches and of dropout: same seed, same weights.
    title
        Shown by the progress bar.
    teacher
        Distil from it.
    unfinished
        Where to keep what there is, every few minutes, and to go on from if something is there: on the same
        kind of CPU, the weights in the end are the same, bit for bit. For the only fit of a stage; with
        several devices it begins anew.
    """
    from tsexp.training import loop

    return loop.fit(model, config, dataset, seed, title, teacher, unfinished)
