"""LITETime: an ensemble of LITE networks (Ismail-Fawaz et al. 2023, DSAA; arXiv 2409.02869)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.convolution.blocks import Affine, Block, Norm, Same, convolved, fold_apart, mean, zeroed
from tsexp.models.convolution.config import Config
from tsexp.models.convolution.network import Channels, Ensemble, Layer, Wires
from tsexp.models.preprocess import Preprocess


@dataclass(frozen=True)
class Widths:
    """Of a LITE network.

    Attributes
    ----------
    first
        Channels of each of the parallel convolutions of the first layer.
    separable
        Channels that each separable convolution makes.
    """

    first: tuple[int, ...]
    separable: tuple[int, ...]


@dataclass(frozen=True)
class LiteArch(BaseArch):
    """Of LITETime.

    Attributes
    ----------
    net
        Its name among the networks.
    kernels
        Width of each of the parallel convolutions of the first layer.
    separable, dilations
        Width and dilation of each separable convolution.
    fixed
        Lengths of the fixed filters.
    members
        Widths of each network.
    """

    net: str
    kernels: tuple[int, ...]
    separable: tuple[int, ...]
    dilations: tuple[int, ...]
    fixed: tuple[int, ...]
    members: tuple[Widths, ...]

    @classmethod
    def build(cls, config: Config, dataset: Dataset) -> LiteArch:
        """Describe the one that is asked for."""
        assert config.separable is not None
        assert config.dilations is not None
        assert config.fixed is not None
        assert config.members is not None
        widths = Widths((config.filters[0],) * len(config.kernels), tuple(config.filters[1:]))
        return cls.of(
            dataset,
            net=config.net,
            kernels=tuple(config.kernels),
            separable=tuple(config.separable),
            dilations=tuple(config.dilations),
            fixed=tuple(config.fixed),
            members=(widths,) * config.members,
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        members = tuple(Widths(tuple(m["first"]), tuple(m["separable"])) for m in raw["members"])
        return super().from_dict(raw | {"members": members})


def fixed_filters(lengths: tuple[int, ...]) -> list[Tensor]:
    """Filters that answer to an increase, to a decrease and to a peak (Ismail-Fawaz et al. 2022).

    The first two of each length alternate between -1 and 1; the third, of lengths from 4 on, is half as long
    again and has two falling parabolas around a rising one.
    """
    alternating = [torch.tensor([-1.0, 1.0]).repeat(-(-length // 2))[:length] for length in lengths]
    peaks = []
    for quarter in (length // 4 for length in lengths if length >= 4):
        half = torch.linspace(0, 1, quarter + 1)[1:].square()
        bump = torch.cat([half, half.flip(0)])
        peaks.append(torch.cat([-bump, 2 * bump, -bump]))
    return [*alternating, *(-f for f in alternating), *peaks]


class Fixed(nn.Module):
    """Filters that are not learned, ReLU; each as long as its input.

    One convolution for all: shorter filters lie within the longest, among zeros. A filter that is the same
    for all channels sees their sum.
    """

    weight: Tensor

    def __init__(self, lengths: tuple[int, ...]) -> None:
        super().__init__()
        filters = fixed_filters(lengths)
        reach = max(len(f) for f in filters) - 1
        self.pad = (reach // 2, reach - reach // 2)
        weight = torch.zeros(len(filters), 1, reach + 1)
        for row, values in zip(weight, filters, strict=True):
            start = reach // 2 - (len(values) - 1) // 2
            row[0, start : start + len(values)] = values
        self.register_buffer("weight", weight, persistent=False)  # arch.json describes it

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.shape[1] == 1 else x.sum(1, keepdim=True)
        return F.relu(convolved(F.pad(x, self.pad), self.weight))


class First(nn.Module):
    """Convolutions of several widths beside each other and beside the fixed filters, norm and ReLU."""

    norm: Norm | None

    def __init__(self, inputs: int, widths: tuple[int, ...], kernels: tuple[int, ...], fixed: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(map(Same, [inputs] * len(widths), widths, kernels))
        self.norm = Norm(sum(widths) + fixed)
        self.affine: Affine | None = None

    def forward(self, x: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        found = [branch(x) for branch in self.branches]
        if self.norm is None:
            assert self.affine is not None
            return zeroed(torch.cat([F.relu(f) for f in (*found, self.affine(fixed))], 1), mask)
        return zeroed(F.relu(self.norm(torch.cat([*found, fixed], 1), mask)), mask)

    def fold(self) -> None:
        """Hold the norm in the convolutions, for good.

        Of the fixed filters, behind whose ReLU it is, leave what it does.
        """
        assert self.norm is not None
        self.affine, self.norm = Affine(fold_apart(self.branches, self.norm)), None


class Separable(nn.Module):
    """A convolution of each channel by itself, then one over the channels with norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.depthwise = Same(inputs, inputs, kernel, dilation, groups=inputs)
        self.block = Block(inputs, outputs, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.block(self.depthwise(x), mask)  # type: ignore[no-any-return]


class Member(nn.Module):
    """First layer, separable convolutions, the mean over time, and a linear layer."""

    def __init__(self, arch: LiteArch, widths: Widths, fixed: int) -> None:
        super().__init__()
        self.first = First(arch.inputs, widths.first, arch.kernels, fixed)
        inputs = (sum(widths.first) + fixed, *widths.separable)
        self.separables = nn.ModuleList(
            map(Separable, inputs, widths.separable, arch.separable, arch.dilations)
        )
        self.head = nn.Linear(inputs[-1], len(arch.classes))

    def forward(self, x: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
        x = self.first(x, fixed, mask)
        for separable in self.separables:
            x = separable(x, mask)
        return self.head(mean(x, mask))  # type: ignore[no-any-return]


class LiteTime(Ensemble):
    """Preprocess → fixed filters → each member → mean of their class probabilities.

    What the fixed filters answer is the same to all members, and computed once.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    arch: LiteArch

    def __init__(self, arch: LiteArch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        self.fixed = Fixed(arch.fixed)
        self.nets = nn.ModuleList(Member(arch, widths, len(self.fixed.weight)) for widths in arch.members)
        self.STEM = ("fixed", *(f"nets.{m}.first" for m in range(len(self.nets))))  # type: ignore[misc]

    def members(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        fixed = self.fixed(x)
        return tuple(net(x, fixed, mask) for net in self.nets)

    def layers(self) -> dict[str, Layer]:
        """Those of each convolution that is learned, but for the depthwise ones, which follow their input."""
        found: dict[str, Layer] = {}
        for m, widths in enumerate(self.arch.members):
            start = 0
            for b, size in enumerate(widths.first):
                found[f"nets.{m}.first.branches.{b}"] = Layer(size, ((f"nets.{m}.first", start),))
                start += size
            for s, size in enumerate(widths.separable):
                name = f"nets.{m}.separables.{s}"
                found[name] = Layer(size, ((name, 0),))
        return found

    def wires(self) -> dict[str, Wires]:
        found: dict[str, Wires] = {}
        for m, widths in enumerate(self.arch.members):
            first = f"nets.{m}.first"
            branches = tuple(f"{first}.branches.{b}" for b in range(len(widths.first)))
            found |= {f"{name}.conv": Wires((name,), (self.arch.inputs,)) for name in branches}
            before: Channels = (*branches, len(self.fixed.weight))
            found[f"{first}.norm"] = Wires(before)
            for s in range(len(widths.separable)):
                name = f"nets.{m}.separables.{s}"
                found[f"{name}.depthwise.conv"] = Wires(before)
                found[f"{name}.block.conv"] = Wires((name,), before)
                found[f"{name}.block.norm"] = Wires((name,))
                before = (name,)
            found[f"nets.{m}.head"] = Wires((len(self.arch.classes),), before)
        return found

    def narrowed(self, sizes: dict[str, int]) -> LiteArch:
        return replace(
            self.arch,
            members=tuple(
                Widths(
                    tuple(sizes[f"nets.{m}.first.branches.{b}"] for b in range(len(widths.first))),
                    tuple(sizes[f"nets.{m}.separables.{s}"] for s in range(len(widths.separable))),
                )
                for m, widths in enumerate(self.arch.members)
            ),
        )
