"""ResNet: blocks of convolutions with a residual sum around each, the mean over time, and a linear layer.

With the settings of ``model=resnet`` that of Wang et al. 2017 (arXiv 1611.06455).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.convolution.blocks import Affine, Block, Norm, mean, zeroed
from tsexp.models.convolution.config import Config
from tsexp.models.convolution.network import Channels, Convolutional, Layer, Wires
from tsexp.models.preprocess import Preprocess


@dataclass(frozen=True)
class ResNetArch(BaseArch):
    """Of a ResNet.

    Attributes
    ----------
    net
        Its name among the networks.
    filters
        Channels of each convolution, by block.
    kernels
        Width of each convolution of a block, in order.
    projected
        Blocks around which a convolution makes as many channels as the block has; around the others there
        is a norm alone.
    """

    net: str
    filters: tuple[tuple[int, ...], ...]
    kernels: tuple[int, ...]
    projected: tuple[bool, ...]

    @classmethod
    def build(cls, config: Config, dataset: Dataset) -> ResNetArch:
        """Describe the one that is asked for: a sum of as many channels as before needs no projection."""
        widths = (dataset.channels * dataset.preprocessing.signals, *config.filters)
        return cls.of(
            dataset,
            net=config.net,
            filters=tuple((width,) * len(config.kernels) for width in config.filters),
            kernels=tuple(config.kernels),
            projected=tuple(before != after for before, after in pairwise(widths)),
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        return super().from_dict(raw | {"filters": tuple(map(tuple, raw["filters"]))})


class Residual(nn.Module):
    """Convolutions, and a sum with what came in."""

    shortcut: Block | Norm | Affine

    def __init__(
        self, inputs: int, filters: tuple[int, ...], kernels: tuple[int, ...], projected: bool
    ) -> None:
        super().__init__()
        last = len(filters) - 1
        self.blocks = nn.ModuleList(
            Block(width, filters[i], kernels[i], active=i < last)
            for i, width in enumerate((inputs, *filters[:-1]))
        )
        self.shortcut = Block(inputs, filters[-1], 1, active=False) if projected else Norm(filters[-1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        around = self.shortcut(x, mask)
        for block in self.blocks:
            x = block(x, mask)
        return zeroed(F.relu(x + around), mask)

    def fold(self) -> None:
        """Where there is no convolution to hold the norm, leave what it does."""
        if isinstance(self.shortcut, Norm):
            self.shortcut = Affine(self.shortcut)


class ResNet(Convolutional):
    """Preprocess → residual blocks → mean over time → head.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    STEM: ClassVar[tuple[str, ...]] = ("residuals.0.blocks.0", "residuals.0.shortcut")

    arch: ResNetArch

    def __init__(self, arch: ResNetArch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        widths = (arch.inputs, *(filters[-1] for filters in arch.filters))
        self.residuals = nn.ModuleList(
            Residual(inputs, filters, arch.kernels, projected)
            for inputs, filters, projected in zip(widths, arch.filters, arch.projected, strict=False)
        )
        self.head = nn.Linear(widths[-1], len(arch.classes))

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for residual in self.residuals:
            x = residual(x, mask)
        return self.head(mean(x, mask))  # type: ignore[no-any-return]

    def layers(self) -> dict[str, Layer]:
        """Those inside of a block, and those of a sum together with all that are added to it."""
        found: dict[str, Layer] = {}
        for r, (filters, owner) in enumerate(zip(self.arch.filters, self._owners(), strict=True)):
            for c, size in enumerate(filters[:-1]):
                name = f"residuals.{r}.blocks.{c}"
                found[name] = Layer(size, ((name, 0),))
            places = found[owner].places if owner in found else ()
            if owner:
                found[owner] = Layer(filters[-1], (*places, (f"residuals.{r}", 0)))
        return found

    def _owners(self) -> list[str]:
        """Of each block, the layer that its sum belongs to: that of the block before where nothing projects.

        None, an empty name, where that is the series itself.
        """
        owners: list[str] = []
        for r, projected in enumerate(self.arch.projected):
            owners.append(f"residuals.{r}" if projected else owners[-1] if owners else "")
        return owners

    def wires(self) -> dict[str, Wires]:
        found: dict[str, Wires] = {}
        before: Channels = (self.arch.inputs,)
        for r, owner in enumerate(self._owners()):
            block, total = f"residuals.{r}", (owner or self.arch.inputs,)
            inside: Channels = before
            last = len(self.arch.kernels) - 1
            for c in range(last + 1):
                name = f"{block}.blocks.{c}"
                outputs = total if c == last else (name,)
                found |= {f"{name}.conv": Wires(outputs, inside), f"{name}.norm": Wires(outputs)}
                inside = outputs
            if self.arch.projected[r]:
                around = f"{block}.shortcut"
                found |= {f"{around}.conv": Wires(total, before), f"{around}.norm": Wires(total)}
            else:
                found[f"{block}.shortcut"] = Wires(total)
            before = total
        return found | {"head": Wires((len(self.arch.classes),), before)}

    def narrowed(self, sizes: dict[str, int]) -> ResNetArch:
        filters = []
        for r, owner in enumerate(self._owners()):
            inner = [sizes[f"residuals.{r}.blocks.{c}"] for c in range(len(self.arch.kernels) - 1)]
            filters.append((*inner, sizes[owner] if owner else self.arch.inputs))
        return replace(self.arch, filters=tuple(filters))
