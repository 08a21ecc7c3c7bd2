"""What a model on features sees, and how it comes to see less: whole kernels and tokens go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tsexp.models import choose
from tsexp.models.network import Network
from tsexp.models.views.arch import FeatureArch, Source

M = TypeVar("M", bound=Network)


@dataclass(frozen=True)
class Importance:
    """In one source of features: float (tokens,) and float (kernels,), the latter empty of intervals."""

    tokens: Tensor
    kernels: Tensor


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
    kind: Any = type(model)
    slim: M = kind(replace(model.arch, views=views))
    before = model.state_dict()
    encoded = hasattr(model, "views")  # else ridge regression; neither class can be imported here
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
                if encoded:
                    project = f"views.{v}.project.{index[0]}"
                    state[f"{project}.weight"] = before[f"views.{v}.project.{s}.weight"][:, columns]
                    state[f"{project}.bias"] = before[f"views.{v}.project.{s}.bias"]
                rows.append(count + stay)
                numbers.append((start + stay[:, None] * width + columns).flatten())
            count += tokens
            start += tokens * width
        if encoded:
            for name in ("positions", "each"):
                state[f"views.{v}.{name}"] = before[f"views.{v}.{name}"][torch.cat(rows)]
        place += len(old)
    stays = torch.cat(numbers)
    for name in ("mean", "scale"):
        state[f"preprocess.{name}"] = before[f"preprocess.{name}"][stays]
    if not encoded:
        state["head.weight"] = before["head.weight"][:, stays]
    slim.load_state_dict(state)
    return slim.eval()


def parts(arch: FeatureArch, values: Tensor) -> list[tuple[Tensor, Tensor]]:
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


def by_ridge(arch: FeatureArch, weight: Tensor, x: Tensor, scores: Tensor, y: Tensor) -> list[Importance]:
    """How much the loss changes, to first order, if the features are what they are on average.

    The loss is the cross-entropy of what ridge regression says, its scores taken for logarithms; the change
    is that of each series by itself, its absolute value, on average: ``prune.method=taylor`` of ridge.

    Parameters
    ----------
    arch
        What there is.
    weight
        (classes, numbers).
    x
        Features (series, numbers).
    scores
        What it says of them (series, classes).
    y
        (series,), indices of classes.
    """
    wrong = scores.softmax(1)
    wrong[torch.arange(len(y)), y] -= 1
    return first_order(arch, wrong @ weight * x)


def first_order(arch: FeatureArch, changes: Tensor) -> list[Importance]:
    """How much a loss changes without each feature (series, numbers) → without a token or kernel.

    Absolute values of single series, on average: sums over series would cancel.
    """
    return [Importance(t.sum(2).abs().mean(0), k.sum(2).abs().mean(0)) for t, k in parts(arch, changes)]
