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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tsexp import tasks
from tsexp.compress import choose
from tsexp.config import PruneConfig
from tsexp.data import Dataset
from tsexp.models.views import EACH, FeatureArch, Source, ViewClassifier
from tsexp.models.views.ridge import RidgeClassifier

OnFeatures = ViewClassifier | RidgeClassifier
M = TypeVar("M", ViewClassifier, RidgeClassifier)
SCOPES = ("features", "all")
"""Of a ridge regression features are all that there is to prune."""
RANKINGS = {"l1": 2, "l2": 2}
"""Methods that did not always rank as they do, and their version: before, tokens of all views were ranked by
their weights as they are, and those of small views went first, which count most (docs/log.md)."""


@dataclass(frozen=True)
class Importance:
    """In one source of features: float (tokens,) and float (kernels,), the latter empty of intervals."""

    tokens: Tensor
    kernels: Tensor


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


def select(
    scores: list[Importance], views: tuple[tuple[Source, ...], ...], ratio: float
) -> tuple[tuple[Source, ...], ...]:
    """Choose what stays.

    The same share of the kernels of every source goes, and that share of all tokens, the lowest of all views
    together; a source without tokens goes, a view keeps one at least.
    """
    sources = [source for view in views for source in view]
    of_view = [v for v, view in enumerate(views) for _ in view]
    pool = sorted(
        (float(score), i, j) for i, s in enumerate(scores) for j, score in enumerate(s.tokens.tolist())
    )
    left = [sum(len(s.tokens) for s in view) for view in views]
    stay = [set(range(len(s.tokens))) for s in sources]
    to_go = round(ratio * len(pool))
    for _, i, j in pool:
        if to_go and left[of_view[i]] > 1:
            stay[i].remove(j)
            left[of_view[i]] -= 1
            to_go -= 1
    kept: list[list[Source]] = [[] for _ in views]
    for i, (source, score) in enumerate(zip(sources, scores, strict=True)):
        kernels = source.kernels
        if kernels:
            (count,) = choose.local([score.kernels], ratio)
            kernels = tuple(kernels[k] for k in choose.best(score.kernels, count))
        if stay[i]:
            tokens = tuple(source.tokens[j] for j in sorted(stay[i]))
            kept[of_view[i]].append(replace(source, tokens=tokens, kernels=kernels))
    return tuple(map(tuple, kept))


def shrink(model: M, views: tuple[tuple[Source, ...], ...]) -> M:
    """Return the model with these sources, each of them part of one that it has.

    Its outputs are those of `model` if the tokens that go were never there, and the features that go are what
    they are on average.

    Raises
    ------
    ValueError
        If another step has replaced layers already: pruning comes first.
    """
    choose.refuse_replaced(model)
    slim = type(model)(replace(model.arch, views=views))
    before = model.state_dict()
    state = {name: before[name] for name in slim.state_dict() if name in before}
    numbers: list[Tensor] = []
    place = start = 0
    for v, (old, new) in enumerate(zip(model.arch.views, views, strict=True)):
        rows, count = [], 0
        for s, source in enumerate(old):
            tokens, width = len(source.tokens), model.arch.numbers(source)
            index = [i for i, n in enumerate(new) if n.name == source.name]
            if index:
                of = new[index[0]]
                stay = torch.tensor([source.tokens.index(t) for t in of.tokens])
                columns = torch.arange(width)
                if source.kernels:
                    stay_kernels = torch.tensor([source.kernels.index(k) for k in of.kernels])
                    bins = torch.arange(model.arch.kernel_bins)
                    columns = (stay_kernels[:, None] * model.arch.kernel_bins + bins).flatten()
                    for i, t in enumerate(stay.tolist()):
                        for name in ("low", "inverse"):
                            held = before[f"preprocess.sources.{place + s}.shares.{t}.{name}"]
                            target = f"preprocess.sources.{len(numbers)}.shares.{i}.{name}"
                            state[target] = held[stay_kernels]
                elif source.kind == "intervals":
                    for name in ("low", "inverse"):
                        target = f"preprocess.sources.{len(numbers)}.shares.{name}"
                        state[target] = before[f"preprocess.sources.{place + s}.shares.{name}"]
                if isinstance(model, ViewClassifier):
                    project = f"views.{v}.project.{index[0]}"
                    state[f"{project}.weight"] = before[f"views.{v}.project.{s}.weight"][:, columns]
                    state[f"{project}.bias"] = before[f"views.{v}.project.{s}.bias"]
                rows.append(count + stay)
                numbers.append((start + stay[:, None] * width + columns).flatten())
            count += tokens
            start += tokens * width
        if isinstance(model, ViewClassifier):
            for name in ("positions", "each"):
                state[f"views.{v}.{name}"] = before[f"views.{v}.{name}"][torch.cat(rows)]
        place += len(old)
    stays = torch.cat(numbers)
    for name in ("mean", "scale"):
        state[f"preprocess.{name}"] = before[f"preprocess.{name}"][stays]
    if isinstance(model, RidgeClassifier):
        state["head.weight"] = before["head.weight"][:, stays]
    slim.load_state_dict(state)
    return slim.eval()


def _magnitude(power: int) -> Callable[..., list[Importance]]:
    def scores(model: OnFeatures, *_: Any) -> list[Importance]:
        if isinstance(model, RidgeClassifier):
            parts = _parts(model.arch, model.head.weight.detach().abs().pow(power))
            return [Importance(t.sum((0, 2)), k.sum((0, 2))) for t, k in parts]
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
    with torch.no_grad():
        x, _ = model.preprocess(torch.from_numpy(dataset.x_train[index]))
    x.requires_grad_(True)
    with torch.enable_grad():
        y, task = torch.from_numpy(dataset.y_train[index]), tasks.of(dataset)
        # Of each series by itself: the sum of gradients would cancel.
        loss = sum(task.loss(scores, y) for scores in model.members(x, None)) * len(index)
        (slope,) = torch.autograd.grad(loss, x)
    parts = _parts(model.arch, (slope * x).detach())
    return [Importance(t.sum(2).abs().mean(0), k.sum(2).abs().mean(0)) for t, k in parts]


def _parts(arch: FeatureArch, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each source (rows, numbers): its tokens' (rows, tokens, …), its kernels' (rows, kernels, …)."""
    found = []
    sizes = [len(s.tokens) * arch.numbers(s) for s in arch.sources]
    for source, part in zip(arch.sources, values.split(sizes, 1), strict=True):
        tokens = part.unflatten(1, (len(source.tokens), -1))
        kernels = part.new_empty(len(part), 0, 1)
        if source.kernels:
            kernels = tokens.unflatten(2, (len(source.kernels), -1)).transpose(1, 2).flatten(2)
        found.append((tokens, kernels))
    return found


SCORES: dict[str, Callable[..., list[Importance]]] = {
    "l1": _magnitude(1),
    "l2": _magnitude(2),
    "random": _random,
    "taylor": _taylor,
}
