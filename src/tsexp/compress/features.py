"""Structured pruning of what a model on features sees: kernels and tokens go, with all that makes them.

Scores: of a kernel, the weights that project its features; of a token, the weights that read it alone, times
what that counts for in its view's answer, which is less among many tokens; of either in a ridge
regression, all weights that read its features: absolute values (``l1``) or squares (``l2``); a seeded draw
(``random``); or how much the loss changes, to first order, if the features are what they are on average
(``taylor``: Molchanov et al. 2019, arXiv 1906.10771; standardised, that is zero) on series of the train
split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tsexp import tasks
from tsexp.config import PruneConfig
from tsexp.data import Dataset
from tsexp.models.views import EACH, ViewClassifier
from tsexp.models.views.ridge import RidgeClassifier
from tsexp.models.views.seen import Importance, first_order, parts, select, shrink

OnFeatures = ViewClassifier | RidgeClassifier
M = TypeVar("M", ViewClassifier, RidgeClassifier)
SCOPES = ("features", "all")
"""Of a ridge regression features are all that there is to prune."""
RANKINGS = {"l1": 2, "l2": 2}
"""Methods that did not always rank as they do, and their version: before, tokens of all views were ranked by
their weights as they are, and those of small views went first, which count most (docs/log.md)."""


def prune(model: M, config: PruneConfig, dataset: Dataset, seed: int) -> tuple[M, list[dict[str, Any]]]:
    """Return the model that sees less, and a description of what it still sees."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        scores = SCORES[config.method](model, config, dataset, seed)
    views = select(scores, model.arch.views, config.ratio)
    described = [
        {"view": v, "source": s.name, "tokens": s.tokens, "kernels": s.kernels}
        for v, view in enumerate(views)
        for s in view
    ]
    slim = shrink(model, views)
    if isinstance(slim, RidgeClassifier):
        slim.refit(dataset)
    return slim, described


def _magnitude(power: int) -> Callable[..., list[Importance]]:
    def scores(model: OnFeatures, *_: Any) -> list[Importance]:
        if isinstance(model, RidgeClassifier):
            of = parts(model.arch, model.head.weight.detach().abs().pow(power))
            return [Importance(t.sum((0, 2)), k.sum((0, 2))) for t, k in of]
        found = []
        for view, module in zip(model.arch.views, model.views, strict=True):
            each: Any = module.each
            project: Any = module.project
            weights = (each.detach() * EACH / module.tokens).abs().pow(power)
            reads = weights.flatten(1).mean(1).split([len(s.tokens) for s in view])
            for source, read, layer in zip(view, reads, project, strict=True):
                weight = layer.weight.detach().abs().pow(power)
                shape = (-1, len(source.kernels), model.arch.kernel_bins)
                kernels = weight.view(shape).mean((0, 2)) if source.kernels else torch.empty(0)
                found.append(Importance(read, kernels))
        return found

    return scores


def _random(model: OnFeatures, config: PruneConfig, dataset: Dataset, seed: int) -> list[Importance]:
    return [Importance(torch.rand(len(s.tokens)), torch.rand(len(s.kernels))) for s in model.arch.sources]


def _taylor(model: OnFeatures, config: PruneConfig, dataset: Dataset, seed: int) -> list[Importance]:
    chosen = torch.randperm(len(dataset.fit))[: config.calibration_series].numpy()
    index = dataset.fit[chosen]
    features: Any = model.preprocess
    x = features.of(dataset.x_train[index]).requires_grad_(True)
    with torch.enable_grad():
        y, task = torch.from_numpy(dataset.y_train[index]), tasks.of(dataset)
        # Of each series by itself: the sum of gradients would cancel.
        loss = sum(task.loss(scores, y) for scores in model.members(x, None)) * len(index)
        (slope,) = torch.autograd.grad(loss, x)
    return first_order(model.arch, (slope * x).detach())


SCORES: dict[str, Callable[..., list[Importance]]] = {
    "l1": _magnitude(1),
    "l2": _magnitude(2),
    "random": _random,
    "taylor": _taylor,
}
