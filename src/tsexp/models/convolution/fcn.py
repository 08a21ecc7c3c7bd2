"""FCN: convolutions with batch norm and ReLU, the mean over time, and a linear layer.

With the settings of ``model=fcn`` that of Wang et al. 2017 (arXiv 1611.06455).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.convolution.blocks import Block, mean
from tsexp.models.convolution.config import Config
from tsexp.models.convolution.network import Channels, Convolutional, Layer, Wires
from tsexp.models.preprocess import Preprocess


@dataclass(frozen=True)
class Arch(BaseArch):
    """Of an FCN.

    Attributes
    ----------
    filters, kernels
        Channels and width of each convolution, in order.
    """

    filters: tuple[int, ...]
    kernels: tuple[int, ...]

    @classmethod
    def build(cls, config: Config, dataset: Dataset) -> Arch:
        """Describe the one that is asked for."""
        return cls.of(dataset, filters=tuple(config.filters), kernels=tuple(config.kernels))


class Convolutions(Convolutional):
    """Preprocess → blocks → mean over time → head.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    STEM: ClassVar[tuple[str, ...]] = ("blocks.0",)

    arch: Arch

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        inputs = (arch.inputs, *arch.filters[:-1])
        self.blocks = nn.ModuleList(map(Block, inputs, arch.filters, arch.kernels))
        self.head = nn.Linear(arch.filters[-1], len(arch.classes))

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.head(mean(x, mask))  # type: ignore[no-any-return]

    def layers(self) -> dict[str, Layer]:
        names = [f"blocks.{i}" for i in range(len(self.blocks))]
        return {n: Layer(size, ((n, 0),)) for n, size in zip(names, self.arch.filters, strict=True)}

    def wires(self) -> dict[str, Wires]:
        found: dict[str, Wires] = {}
        before: Channels = (self.arch.inputs,)
        for name in self.layers():
            found[f"{name}.conv"] = Wires((name,), before)
            found[f"{name}.norm"] = Wires((name,))
            before = (name,)
        return found | {"head": Wires((len(self.arch.classes),), before)}

    def narrowed(self, sizes: dict[str, int]) -> Arch:
        return replace(self.arch, filters=tuple(sizes[name] for name in self.layers()))
