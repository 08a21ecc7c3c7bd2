"""Fine-tuning of what the steps before have changed, optionally distilled from the dense model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp import training
from tsexp.config import Config
from tsexp.models import Network
from tsexp.training import Teacher

if TYPE_CHECKING:
    from tsexp.compress.fold import Context

VERSION = 4
FAMILIES = ("transformer", "views", "convolution")
TRAINS = True


def asked(cfg: Config, changed: bool, control: bool) -> dict[str, Any]:
    """Epochs, learning rate and teacher, and the rest of the ``train`` recipe.

    What is not fitted by gradient descent has been fitted anew where it was pruned.
    """
    p = cfg.prune
    if not changed or not p.finetune_epochs or not cfg.model.gradient:
        return {}
    teacher = {"distill": p.distill, "temperature": p.temperature} if p.distill else {}
    return {"epochs": p.finetune_epochs, "lr": p.finetune_lr, **teacher, "train": cfg.train.asked()}


def apply(model: Network, context: Context, folder: Path) -> tuple[Network, list[dict[str, float]]]:
    """Train further, by the recipe of the dense model."""
    p, dataset = context.cfg.prune, context.dataset
    tuning = replace(context.cfg.train, epochs=p.finetune_epochs, lr=p.finetune_lr)
    teacher = None
    if p.distill:
        dense = context.dense.load()
        assert isinstance(dense, Network)
        teacher = Teacher(dense, p.distill, p.temperature)
    title = f"fine-tune {dataset.name} {context.cfg.model.name}" + (" (control)" if context.control else "")
    seed = context.cfg.seed
    return model, training.fit(model, tuning, dataset, seed, title, teacher, context.unfinished)
