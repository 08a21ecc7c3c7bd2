"""InceptionTime: an ensemble of Inception networks (Ismail Fawaz et al. 2020, arXiv 1909.04939)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.convolution.blocks import Block, Norm, Same, fold_apart, mean, zeroed
from tsexp.models.convolution.config import Config
from tsexp.models.convolution.network import Channels, Ensemble, Layer, Wires
from tsexp.models.preprocess import Preprocess

RESIDUAL = 3
"""Modules that a sum goes around."""


@dataclass(frozen=True)
class Module:
    """Widths of an inception module.

    Attributes
    ----------
    bottleneck
        Channels that its wide convolutions see; 0: those of the input.
    filters
        Channels of each of its parallel convolutions: one per kernel, and the one behind the pooling.
    """

    bottleneck: int
    filters: tuple[int, ...]


@dataclass(frozen=True)
class InceptionArch(BaseArch):
    """Of InceptionTime.

    Attributes
    ----------
    net
        Its name among the networks.
    kernels
        Width of each of the parallel convolutions of a module.
    members
        Modules of each network, in order.
    """

    net: str
    kernels: tuple[int, ...]
    members: tuple[tuple[Module, ...], ...]

    @classmethod
    def build(cls, config: Config, dataset: Dataset) -> InceptionArch:
        """Describe the one that is asked for: a single channel needs no bottleneck."""
        assert config.bottleneck is not None
        assert config.members is not None
        modules = tuple(
            Module(
                config.bottleneck if i or dataset.channels * dataset.preprocessing.signals > 1 else 0,
                (width,) * (1 + len(config.kernels)),
            )
            for i, width in enumerate(config.filters)
        )
        return cls.of(
            dataset, net=config.net, kernels=tuple(config.kernels), members=(modules,) * config.members
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        members = tuple(
            tuple(Module(m["bottleneck"], tuple(m["filters"])) for m in member) for member in raw["members"]
        )
        return super().from_dict(raw | {"members": members})


class Inception(nn.Module):
    """A module: convolutions of several widths beside each other, and one behind a pooling."""

    norm: Norm | None

    def __init__(self, inputs: int, module: Module, kernels: tuple[int, ...], first: bool) -> None:
        super().__init__()
        *widths, pooled = module.filters
        seen = module.bottleneck or inputs
        self.bottleneck = Same(inputs, seen, 1) if module.bottleneck else None
        self.branches = nn.ModuleList(map(Same, [seen] * len(widths), widths, kernels))
        self.branches.append(Same(inputs, pooled, 1))
        self.norm = Norm(sum(module.filters))
        self.first = first

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        seen = x if self.bottleneck is None else self.bottleneck(x)
        *wide, last = self.branches
        found = [*(branch(seen) for branch in wide), last(self._pooled(x, mask))]
        if self.norm is None:
            return zeroed(torch.cat([F.relu(f) for f in found], 1), mask)
        return zeroed(F.relu(self.norm(torch.cat(found, 1), mask)), mask)

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Largest of three steps. Zeros as padding do not matter where nothing is negative."""
        if mask is None or not self.first:
            learns_on_cpu = self.training and x.device.type == "cpu"
            return largest_of_three(x) if learns_on_cpu else pooled(x)
        x = pooled(x.masked_fill(~mask[:, None], -torch.inf))
        return x.masked_fill(~mask[:, None], 0)

    def fold(self) -> None:
        """Hold the norm in the convolutions, for good: the same outputs in eval mode."""
        assert self.norm is not None
        fold_apart(self.branches, self.norm)
        self.norm = None


def pooled(x: Tensor) -> Tensor:
    """Largest of three steps, of images one step high, too."""
    return F.max_pool1d(x, 3, 1, 1) if x.ndim == 3 else F.max_pool2d(x, (1, 3), 1, (0, 1))


def largest_of_three(x: Tensor) -> Tensor:
    """`F.max_pool1d`, but for rounding, out of operations whose gradients are fast on CPUs.

    Of equals the middle one gets the gradient, where `F.max_pool1d` gives it to the first.
    """
    beside = F.pad(x, (1, 1), "replicate")
    left = x + F.relu(beside[..., :-2] - x)
    return left + F.relu(beside[..., 2:] - left)


class Sum(nn.Module):
    """Adds what came in before some modules, as a convolution sees it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.block = Block(inputs, outputs, 1, active=False)

    def forward(self, x: Tensor, before: Tensor, mask: Tensor | None) -> Tensor:
        return zeroed(F.relu(x + self.block(before, mask)), mask)


class Member(nn.Module):
    """Modules, a sum around every third, the mean over time, and a linear layer."""

    def __init__(self, arch: InceptionArch, modules: tuple[Module, ...]) -> None:
        super().__init__()
        widths = (arch.inputs, *(sum(m.filters) for m in modules))
        self.inceptions = nn.ModuleList(
            Inception(inputs, module, arch.kernels, first=not i)
            for i, (inputs, module) in enumerate(zip(widths, modules, strict=False))
        )
        self.sums = nn.ModuleList(
            Sum(widths[i - RESIDUAL], widths[i]) for i in range(RESIDUAL, len(widths), RESIDUAL)
        )
        self.head = nn.Linear(widths[-1], len(arch.classes))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        before = x
        for i, inception in enumerate(self.inceptions):
            x = inception(x, mask)
            if i % RESIDUAL == RESIDUAL - 1:
                before = x = self.sums[i // RESIDUAL](x, before, mask)
        return self.head(mean(x, mask))  # type: ignore[no-any-return]


class InceptionTime(Ensemble):
    """Preprocess → each member → mean of their class probabilities.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    arch: InceptionArch

    def __init__(self, arch: InceptionArch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        self.nets = nn.ModuleList(Member(arch, modules) for modules in arch.members)
        self.STEM = tuple(  # type: ignore[misc]
            f"nets.{m}.{first}" for m in range(len(self.nets)) for first in ("inceptions.0", "sums.0")
        )

    def members(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(net(x, mask) for net in self.nets)

    def layers(self) -> dict[str, Layer]:
        """Those of each convolution; where a module ends in a sum, the sum shares them."""
        found: dict[str, Layer] = {}
        for m, modules in enumerate(self.arch.members):
            for i, module in enumerate(modules):
                name, start = f"nets.{m}.inceptions.{i}", 0
                if module.bottleneck:
                    inner = f"{name}.bottleneck"
                    found[inner] = Layer(module.bottleneck, ((inner, 0),))
                ends = i % RESIDUAL == RESIDUAL - 1
                place = f"nets.{m}.sums.{i // RESIDUAL}" if ends else name
                for b, size in enumerate(module.filters):
                    found[f"{name}.branches.{b}"] = Layer(size, ((place, start),))
                    start += size
        return found

    def wires(self) -> dict[str, Wires]:
        found: dict[str, Wires] = {}
        for m, modules in enumerate(self.arch.members):
            before: Channels = (self.arch.inputs,)
            around = before
            for i, module in enumerate(modules):
                name, seen = f"nets.{m}.inceptions.{i}", before
                if module.bottleneck:
                    seen = (f"{name}.bottleneck",)
                    found[f"{name}.bottleneck.conv"] = Wires(seen, before)
                outputs = tuple(f"{name}.branches.{b}" for b in range(len(module.filters)))
                for branch in outputs:
                    inputs = before if branch == outputs[-1] else seen
                    found[f"{branch}.conv"] = Wires((branch,), inputs)
                found[f"{name}.norm"] = Wires(outputs)
                before = outputs
                if i % RESIDUAL == RESIDUAL - 1:
                    block = f"nets.{m}.sums.{i // RESIDUAL}.block"
                    found |= {f"{block}.conv": Wires(outputs, around), f"{block}.norm": Wires(outputs)}
                    around = outputs
            found[f"nets.{m}.head"] = Wires((len(self.arch.classes),), before)
        return found

    def narrowed(self, sizes: dict[str, int]) -> InceptionArch:
        return replace(
            self.arch,
            members=tuple(
                tuple(
                    Module(
                        sizes.get(f"nets.{m}.inceptions.{i}.bottleneck", 0),
                        tuple(
                            sizes[f"nets.{m}.inceptions.{i}.branches.{b}"] for b in range(len(module.filters))
                        ),
                    )
                    for i, module in enumerate(modules)
                )
                for m, modules in enumerate(self.arch.members)
            ),
        )
