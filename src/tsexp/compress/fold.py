"""The steps in their order, and the fold over them.

A step is a module with one line in `STEPS` and

``VERSION``
    Raised when the same input is to give another result.
``FAMILIES``
    Families of models that it takes.
``TRAINS``
    It trains: the control, too, goes through it, so that what is compared had the same training in total.
``asked(cfg, changed, control)``
    All of the configuration that its result depends on, besides the seed and the model; empty if the step is
    not asked for. `changed`: some step before it is. `control`: see `Context`.
``ready(cfg)``
    Optional. Raise `ConfigError`, before any work, for what the ranges of the configuration cannot say.
``apply(model, context, folder)``
    Return the model that the step makes, and its training curves. It may change `model`, and write notes into
    `folder`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tsexp import training
from tsexp.cache import Cache, Unfinished
from tsexp.config import Config, Unsupported, like
from tsexp.data import Dataset
from tsexp.models import using_threads
from tsexp.training import Fitted

STEPS = {
    "prune": "tsexp.compress.prune",
    "finetune": "tsexp.compress.finetune",
    "qat": "tsexp.compress.qat",
}
"""In their order: what changes the architecture, fine-tuning, what changes the numbers."""


@dataclass(frozen=True)
class Context:
    """What a step may know besides the model.

    Attributes
    ----------
    cfg
        The configuration; also its seed.
    dataset
        Steps look at the train split only.
    dense
        The model before the first step: what a fine-tuned one may learn from.
    control
        Nothing is to be removed or rounded, only trained alike.
    unfinished
        Where a step that takes long may keep what it has so far: for the only fit that it makes.
    """

    cfg: Config
    dataset: Dataset
    dense: Fitted
    control: bool
    unfinished: Unfinished | None = None


def compress(dense: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> dict[str, Fitted]:
    """Apply the steps that are asked for, one after the other; each result is kept by content.

    Returns
    -------
    dict
        Step → the model that it made, in order; empty if nothing is asked for.
    """
    return _fold(Context(cfg, dataset, dense, control=False), cache)


def control(dense: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> Fitted:
    """Return what accuracy is judged by: `dense` with the training that `compress` gives, nothing removed."""
    return [dense, *_fold(Context(cfg, dataset, dense, control=True), cache).values()][-1]


def _fold(context: Context, cache: Cache) -> dict[str, Fitted]:
    model, made = context.dense, dict[str, Fitted]()
    for name, step, asked in _asked(context.cfg, context.control):
        if step.TRAINS or not context.control:
            model = made[name] = _stage(name, step, asked, model, context, cache)
    return made


def _stage(
    name: str, step: Any, asked: dict[str, Any], model: Fitted, context: Context, cache: Cache
) -> Fitted:
    key = {
        "model": model.signature,
        "dense": context.dense.signature,
        "asked": asked,
        "seed": context.cfg.seed,
        "control": context.control,
    }
    unfinished = cache.unfinished(name, step.VERSION, key, training.keepers())

    def build(folder: Path) -> None:
        with torch.random.fork_rng(devices=[]), using_threads(context.cfg.train.threads):
            changed, history = step.apply(model.load(), replace(context, unfinished=unfinished), folder)
        training.save(changed, history, folder)

    return Fitted(cache.stage(name, step.VERSION, key, build, unfinished))


def _asked(cfg: Config, control: bool = False) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    changed = False
    for name, step in _steps():
        asked = step.asked(cfg, changed, control)
        if asked:
            changed = True
            yield name, step, asked


def asked(cfg: Config) -> dict[str, Any]:
    """Return the steps that are asked for, in order, and all of the configuration that each depends on."""
    return {name: what for name, _, what in _asked(cfg)}


def check(cfg: Config) -> None:
    """Refuse steps that do not take this family of models.

    Raises
    ------
    Unsupported
        Naming the step and what it takes.
    ConfigError
        If somebody's own code is not of the right kind.
    """
    for _, step in _steps():
        if hasattr(step, "ready"):
            step.ready(cfg)
    for name, step, _ in _asked(cfg):
        family = like(cfg.model.family)
        if family not in step.FAMILIES:
            raise Unsupported(
                f"{name} with model={cfg.model.name} is not supported: it takes models of these families: "
                f"{', '.join(step.FAMILIES)}; this one is: {family}"
            )


def trains(step: str) -> bool:
    """Whether a step of that name trains."""
    return bool(dict(_steps())[step].TRAINS)


def versions() -> dict[str, int]:
    """Return the version of each step."""
    return {name: step.VERSION for name, step in _steps()}


def _steps() -> list[tuple[str, Any]]:
    return [(name, importlib.import_module(place)) for name, place in STEPS.items()]
