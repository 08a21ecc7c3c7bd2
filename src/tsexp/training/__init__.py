"""Fitting: the dense baseline, and the fine-tuning of a pruned model (optionally distilled from the dense one).

Lightning is imported by `fit` alone: it takes seconds, and most jobs find their models in the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from tsexp import models
from tsexp.cache import Cache, Entry, write_json
from tsexp.config import ModelConfig, TrainConfig, asked_of_training, own_digests
from tsexp.data import Dataset
from tsexp.models import Classifier

STAGE_VERSION = 4


@dataclass(frozen=True)
class Fitted:
    """A trained model on disk.

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

    def load(self) -> Classifier:
        """Return a fresh copy in eval mode."""
        return models.load(self.entry.folder)

    def history(self) -> list[dict[str, float]]:
        """One dict per epoch: train_loss, val_loss, val_accuracy, lr."""
        return json.loads((self.entry.folder / "history.json").read_text())  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Teacher:
    """The model to distil from (Hinton et al. 2015, arXiv 1503.02531).

    Loss = (1 - weight) · task + weight · T² · KL.
    """

    model: Classifier
    weight: float
    temperature: float


def train(model: ModelConfig, config: TrainConfig, seed: int, dataset: Dataset, cache: Cache) -> Fitted:
    """Train a model from scratch, once per (data, model, train, seed).

    Raises
    ------
    RuntimeError
        If the loss stops being a number.
    """
    arch = models.architecture(model, dataset)

    def build(folder: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fresh = Classifier(arch)
        history = fit(fresh, config, dataset, seed, title=f"train {dataset.name} {model.name}")
        save(fresh, history, folder)

    key = {
        "data": dataset.checksum,
        "fit": dataset.fit.tolist(),
        "arch": json.loads(arch.to_json()),
        "train": asked_of_training(config),
        "seed": seed,
        **own_digests(arch.tokenizer),
    }
    return Fitted(cache.stage("dense", STAGE_VERSION, key, build))


def save(model: Classifier, history: list[dict[str, float]], folder: Path) -> None:
    """Write a model and its training curves."""
    models.save(model, folder)
    write_json(folder / "history.json", history)


def fit(
    model: Classifier,
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    title: str,
    teacher: Teacher | None = None,
) -> list[dict[str, float]]:
    """Fit `model` in place and return its training curves.

    Parameters
    ----------
    model
        Any `Classifier`; ends in eval mode with the selected weights.
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
    """
    from tsexp.training import task

    return task.fit(model, config, dataset, seed, title, teacher)
