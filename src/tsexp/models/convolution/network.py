"""What all convolutional networks share: how they are prepared for a runtime, and which channels may go."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from tsexp.models.arch import BaseArch
from tsexp.models.convolution import blocks
from tsexp.models.network import Network

Channels = tuple[str | int, ...]
"""Channels of a tensor, in order: those of a layer, by its name, or a number of others, which always stay."""


@dataclass(frozen=True)
class Layer:
    """Channels that pruning may remove one by one.

    Attributes
    ----------
    size
        How many there are.
    places
        Where they can be seen after norm and activation: modules, by name, and which of a module's output
        channels is the first. There are several where a residual sum makes layers share their channels.
    """

    size: int
    places: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Wires:
    """Of a module with weights.

    Attributes
    ----------
    outputs
        What its rows are.
    inputs
        What its columns are; none of a norm or a depthwise convolution, which have rows alone.
    """

    outputs: Channels
    inputs: Channels = ()


class Convolutional(Network):
    """A network of convolutions over time."""

    family: ClassVar[str] = "convolution"
    planar = False
    """Series are images one step high, (batch, channels, 1, time), behind the preprocessing."""

    def forward(self, x: Tensor) -> Tensor:
        """Raw series (batch, channels, time) → class scores (batch, classes), unnormalised."""
        x, mask = self.preprocess(x)
        if self.planar:
            x, mask = x[:, :, None], None if mask is None else mask[:, None]
        return self.network(x, mask)

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """Fold the norms; `flat` is of images here: ONNX Runtime's fast convolutions are of these alone.

        There is no attention, and gathering windows does not pay. Networks and layers that are not of this
        package may not know images.
        """
        new = self.folded()
        ours = type(self).__module__.startswith(f"{__package__}.") and not self.replaced
        new.planar = flat and ours
        return new

    def folded(self) -> Self:
        """Return a copy in eval mode without norms: the same scores up to float rounding."""
        new = copy.deepcopy(self).eval().requires_grad_(False)
        blocks.fold(new)
        return new

    def layers(self) -> dict[str, Layer]:
        """All that pruning may remove channels from."""
        raise NotImplementedError

    def wires(self) -> dict[str, Wires]:
        """Of all modules with weights, by name."""
        raise NotImplementedError

    def narrowed(self, sizes: dict[str, int]) -> BaseArch:
        """Describe the network whose `layers` have these sizes."""
        raise NotImplementedError

    def prunable(self) -> int:
        """Channels that go with no other, in all layers."""
        return sum(layer.size for layer in self.layers().values())

    def lengths(self) -> set[int]:
        """Steps, and steps with what even kernels need around them."""
        length = self.arch.preprocessing.length
        return {length} | {length + sum(m.pad) for m in self.modules() if isinstance(m, blocks.Same)}


class Ensemble(Convolutional):
    """Networks that learn each for itself, but that their gradient is clipped as one, and answer together.

    Attributes
    ----------
    nets
        Its members.
    """

    nets: nn.ModuleList

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Logarithm of the mean of the members' class probabilities."""
        members = torch.stack(self.members(x, mask)).log_softmax(-1)
        return members.logsumexp(0) - math.log(len(self.nets))
