"""Structured pruning of convolutional networks: output channels of convolutions go.

What is left is an ordinary smaller network. Which channels go one by one, and which only together (those that
a residual sum adds up), the network says (`Convolutional.layers`).

Scores: mean absolute weight (``l1``: Li et al. 2017, arXiv 1608.08710) or mean square (``l2``) of the filters
that make a channel, their norm folded in, since before it their scale means nothing, and in units of the
layer's mean, since it depends on how many weights a filter has; a seeded draw (``random``); or first-order
Taylor (``taylor``: Molchanov et al. 2019, arXiv 1906.10771) on series of the train split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tsexp.compress.gradients import gradients
from tsexp.config import ConfigError, PruneConfig, look_up
from tsexp.data import Dataset
from tsexp.models import choose
from tsexp.models.convolution import Convolutional
from tsexp.models.convolution.network import Channels

SCOPES = {"local": choose.local, "global": choose.everywhere}
"""Scope → how many stay in each layer."""

Kept = list[tuple[int, ...]]
"""What stays of each layer, in the order of `Convolutional.layers`: indices, ascending."""


def prune(
    model: Convolutional, config: PruneConfig, dataset: Dataset, seed: int
) -> tuple[Convolutional, list[dict[str, Any]]]:
    """Return the physically smaller network, and a description of what stays."""
    kept = select(score(model, config, dataset, seed), config)
    described = [
        {"layer": name, "of": layer.size, "channels": k}
        for (name, layer), k in zip(model.layers().items(), kept, strict=True)
    ]
    return shrink(model, kept), described


def shrink(model: Convolutional, kept: Kept) -> Convolutional:
    """Return the smaller network.

    Its outputs equal those of `model` with all other channels zero behind norm and activation.

    Raises
    ------
    ValueError
        If another step has replaced layers already: pruning comes first.
    """
    choose.refuse_replaced(model)
    names = list(model.layers())
    stay = dict(zip(names, kept, strict=True))
    make: Any = type(model)
    slim: Convolutional = make(model.narrowed({name: len(k) for name, k in stay.items()}))
    wires, state = model.wires(), {}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if value.ndim:
            value = value[_indices(model, wires[module].outputs, stay)]
            if value.ndim > 1 and wires[module].inputs:
                value = value[:, _indices(model, wires[module].inputs, stay)]
        state[f"{module}.{kind}"] = value
    slim.load_state_dict(state)
    return slim.eval()


def _indices(model: Convolutional, channels: Channels, stay: dict[str, tuple[int, ...]]) -> Tensor:
    """Which of a tensor's channels stay."""
    found = []
    for part, first, count in _parts(model, channels):
        found += [first + i for i in (stay[part] if isinstance(part, str) else range(count))]
    return torch.tensor(found)


def _parts(model: Convolutional, channels: Channels) -> Iterator[tuple[str | int, int, int]]:
    """Of what a tensor's channels consist, with the first one and the number of each part."""
    layers, first = model.layers(), 0
    for part in channels:
        count = layers[part].size if isinstance(part, str) else part
        yield part, first, count
        first += count


def select(scores: list[Tensor], config: PruneConfig) -> Kept:
    """Choose what stays.

    ``local`` removes the same share of every layer, ``global`` the lowest of all layers together; neither
    ever empties a layer, and a higher ratio keeps a subset of what a lower one keeps. With
    ``prune.round_to`` > 1, layers keep a few more, so that their widths are multiples of it where they were
    before.
    """
    counts = SCOPES[config.scope](scores, config.ratio)
    return [
        choose.best(s, choose.rounded(count, len(s), config.round_to))
        for s, count in zip(scores, counts, strict=True)
    ]


def score(model: Convolutional, config: PruneConfig, dataset: Dataset, seed: int) -> list[Tensor]:
    """Importance of every channel, one float tensor per layer."""
    found: list[Tensor] = look_up(config.method, SCORES)(model, config, dataset, seed)
    sizes: list[tuple[int, ...]] = [(layer.size,) for layer in model.layers().values()]
    wrong = _wrong(found, sizes)
    if wrong:
        raise ConfigError(
            f"prune.method={config.method} returned {wrong}; of a convolutional network it must be a list of "
            f"finite float tensors, one per layer, here {', '.join(map(str, sizes))}"
        )
    return found


def _wrong(found: Any, sizes: list[tuple[int, ...]]) -> str:
    """Say what somebody's own method returned instead of scores; empty if it is right."""
    if not isinstance(found, list) or not all(isinstance(s, Tensor) for s in found):
        inside = sorted({type(s).__name__ for s in found}) if isinstance(found, list | tuple) else []
        return type(found).__name__ + (f" of {', '.join(inside)}" if inside else "")
    if [tuple(s.shape) for s in found] != sizes:
        return f"tensors of shapes {', '.join(str(tuple(s.shape)) for s in found) or 'none'}"
    return "" if all(bool(s.isfinite().all()) for s in found) else "tensors that are not finite"


def _magnitude(power: int) -> Callable[..., list[Tensor]]:
    def scores(model: Convolutional, *_: Any) -> list[Tensor]:
        folded = model.folded()
        filters: dict[str, list[Tensor]] = {name: [] for name in model.layers()}
        for name, wires in model.wires().items():
            if wires.inputs:  # a convolution over channels, or the head
                weight: Any = folded.get_submodule(name).weight
                size = weight.detach().abs().pow(power).flatten(1)
                for part, first, count in _parts(model, wires.outputs):
                    if isinstance(part, str):
                        filters[part].append(size[first : first + count])
        found = [torch.cat(parts, 1).mean(1) for parts in filters.values()]
        return [s / s.mean().clamp_min(1e-30) for s in found]

    return scores


def _random(model: Convolutional, config: PruneConfig, dataset: Dataset, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(layer.size, generator=generator) for layer in model.layers().values()]


def _taylor(model: Convolutional, config: PruneConfig, dataset: Dataset, seed: int) -> list[Tensor]:
    """Squared change of the loss, to first order, when a channel is removed; mean over batches."""
    gates = {name: torch.ones(layer.size, requires_grad=True) for name, layer in model.layers().items()}
    with gated(model, gates):
        found = gradients(model, list(gates.values()), config, dataset, seed)
    total = [torch.zeros_like(gate) for gate in gates.values()]
    for slopes in found:
        total = [t + slope.square() / len(found) for t, slope in zip(total, slopes, strict=True)]
    return [t.detach() for t in total]


@contextmanager
def gated(model: Convolutional, gates: dict[str, Tensor]) -> Iterator[None]:
    """Let the channels of each layer be multiplied by these, wherever they can be seen."""
    at: dict[str, list[tuple[int, str]]] = {}
    for name, layer in model.layers().items():
        for place, first in layer.places:
            at.setdefault(place, []).append((first, name))

    def hook(place: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def gate(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            factors = [gates[name] for _, name in sorted(at[place])]
            others = torch.ones(output.shape[1] - sum(map(len, factors)))  # come last, where there are any
            return output * torch.cat([*factors, others])[:, None]

        return gate

    handles = [model.get_submodule(place).register_forward_hook(hook(place)) for place in at]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


SCORES: dict[str, Callable[[Convolutional, PruneConfig, Dataset, int], list[Tensor]]] = {
    "l1": _magnitude(1),
    "l2": _magnitude(2),
    "random": _random,
    "taylor": _taylor,
}
