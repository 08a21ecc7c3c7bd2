"""Convolutional networks: convolutions with batch norm and ReLU, the mean over time, and a linear layer.

With the settings of ``model=fcn`` that is the FCN of Wang et al. 2017 (arXiv 1611.06455).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tsexp.config import ModelConfig
from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.network import Network
from tsexp.models.preprocess import Preprocess


@dataclass
class Config(ModelConfig):
    """The ``model`` group of a convolutional network."""

    filters: list[int] = field(default=MISSING)
    kernels: list[int] = field(default=MISSING)

    def problems(self) -> list[str]:
        """As many filters as kernels, none of them empty."""
        found = [
            f"model.{name}={values} is out of range; allowed: numbers ≥ 1, at least one"
            for name, values in (("filters", self.filters), ("kernels", self.kernels))
            if not values or min(values) < 1
        ]
        if len(self.filters) != len(self.kernels):
            found.append(
                f"model.filters={self.filters} and model.kernels={self.kernels} have different lengths; "
                "give one of each per convolution"
            )
        return found


@dataclass(frozen=True)
class Arch(BaseArch):
    """Of a convolutional network.

    Attributes
    ----------
    filters, kernels
        Channels and width of each convolution, in order.
    """

    filters: tuple[int, ...]
    kernels: tuple[int, ...]


class Norm(nn.BatchNorm1d):
    """Batch norm whose statistics leave padding out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or not self.training:
            return super().forward(x)
        steps = x.transpose(1, 2)
        normed = torch.zeros_like(steps)
        normed[mask] = super().forward(steps[mask])
        return normed.transpose(1, 2)


class Block(nn.Module):
    """Convolution, batch norm, ReLU; as long as its input, and zero where there is padding."""

    norm: Norm | None

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        # An even kernel sees one step more to the right, as in the published code.
        self.pad = (0, 0) if kernel % 2 else (kernel // 2 - 1, kernel // 2)
        # A bias before a norm does nothing.
        self.conv = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2 * (kernel % 2), bias=False)
        self.norm = Norm(outputs)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.conv(F.pad(x, self.pad) if any(self.pad) else x)
        x = self.relu(x if self.norm is None else self.norm(x, mask))
        return x if mask is None else x * mask[:, None].to(x.dtype)

    def fold(self) -> None:
        """Hold the norm in the convolution, for good: the same outputs in eval mode."""
        assert self.norm is not None
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), None


class Convolutions(Network):
    """Preprocess → blocks → mean over time → head.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    family: ClassVar[str] = "convolution"
    STEM: ClassVar[tuple[str, ...]] = ("blocks.0",)

    arch: Arch

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        inputs = (arch.channels, *arch.filters[:-1])
        self.blocks = nn.ModuleList(map(Block, inputs, arch.filters, arch.kernels))
        self.head = nn.Linear(arch.filters[-1], len(arch.classes))

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        mean = x.mean(-1) if mask is None else x.sum(-1) / mask.to(x.dtype).sum(-1, keepdim=True)
        return self.head(mean)  # type: ignore[no-any-return]

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """Fold each norm into its convolution; there is no attention, and gathering windows does not pay."""
        new = super().deployable()
        for block in new.blocks:
            block.fold()  # type: ignore[operator]
        return new


def build(config: Config, dataset: Dataset) -> Convolutions:
    """Return an untrained model for a dataset."""
    arch = Arch.of(dataset, filters=tuple(config.filters), kernels=tuple(config.kernels))
    return Convolutions(arch)


def rebuild(arch: dict[str, Any]) -> Convolutions:
    """Return the model that ``arch.json`` describes."""
    return Convolutions(Arch.from_dict(arch)).eval()
