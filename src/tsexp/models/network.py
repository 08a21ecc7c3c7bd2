"""What all torch models share: raw series in, class scores out, and how they are prepared for a runtime."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tsexp.config import look_up
from tsexp.data import Dataset, FloatArray
from tsexp.models.preprocess import Preprocess

PREPROCESS = "preprocess"
"""Part of every network; what it multiplies with are no weights, and no mode rounds them to integers."""


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Let PyTorch use so many inside the ``with``: they are the process's."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Network(nn.Module):
    """Preprocessing, then `network`, which is what a family defines.

    Attributes
    ----------
    arch
        All but the weights: a frozen dataclass.
    preprocess
        From raw series to what `network` takes; it has no parameters.
    replaced
        Modules that a step of compression has put in the place of the family's own, by name.
    """

    family: ClassVar[str]
    STEM: ClassVar[tuple[str, ...]] = ()
    """Modules, by name, whose products stay in floating point where all others are int8: raw series have
    peaks that int8 ranges do not bear."""

    arch: Any
    preprocess: Preprocess
    replaced: dict[str, dict[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.replaced = {}

    @property
    def at_once(self) -> int:
        """How many series go through it at a time where nothing else says so: memory is to suffice."""
        return 256

    def replace(self, name: str, module: nn.Module, **sizes: Any) -> None:
        """Put another module where `name` is now; a saved model remembers.

        Parameters
        ----------
        name
            Of a submodule.
        module
            Its class has ``like(original, **sizes)``, which makes one of these sizes for `original`, with any
            weights.
        sizes
            JSON values.
        """
        kind = type(module)
        self.set_submodule(name, module)
        self.replaced[name] = {"kind": f"{kind.__module__}:{kind.__qualname__}", **sizes}

    def replace_again(self, replaced: dict[str, dict[str, Any]]) -> None:
        """Replace as a saved model says; weights come later.

        Raises
        ------
        ValueError
            If it names anything but a module: the file may come from elsewhere, and must not call what it
            likes.
        """
        for name, sizes in replaced.items():
            kind = look_up(sizes["kind"], {})
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise ValueError(f"{sizes['kind']} is not a class of torch.nn.Module")
            sizes = {k: v for k, v in sizes.items() if k != "kind"}
            like: Any = kind
            self.replace(name, like.like(self.get_submodule(name), **sizes), **sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Raw series (batch, channels, time) → class scores (batch, classes), unnormalised."""
        return self.network(*self.preprocess(x))

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """All that has weights: preprocessed series (batch, channels, length) and mask → class scores."""
        raise NotImplementedError

    def members(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """As `network`, of each part that answers by itself: the loss is the mean of theirs.

        A model of one part has its answer alone; in an ensemble each member learns for itself,
        but that the gradient is clipped as one.
        """
        return (self.network(x, mask),)

    def adapt(self, dataset: Dataset) -> Self:
        """Take from ``dataset.fit`` what no gradient finds; return the model to train: this one, or another.

        Called once, before Lightning trains from scratch; what is found is part of `state` and ``arch``.
        """
        return self

    @torch.no_grad()
    def scores(self, series: FloatArray) -> FloatArray:
        """As `forward`, on arrays."""
        return self(torch.from_numpy(series)).numpy()  # type: ignore[no-any-return]

    def state(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers."""
        return self.state_dict()

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Take them over, and leave training mode."""
        self.load_state_dict(tensors)
        self.eval()

    def in_stem(self, name: str) -> bool:
        """Whether a module or parameter of this name belongs to the stem."""
        return any(name == stem or name.startswith(f"{stem}.") for stem in self.STEM)

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """Return a copy in eval mode, rewritten exactly: the same scores up to float rounding, less work.

        What a family has no use for, it ignores.

        Parameters
        ----------
        fused
            Attention as ONNX's operator.
        first_only
            With a class token, compute nothing else in the last block.
        products
            Convolutions as matrix products where that is cheaper.
        flat
            All tokens as rows of one matrix; convolutions of images one step high.
        """
        return copy.deepcopy(self).eval().requires_grad_(False)

    def first_token_layers(self) -> tuple[nn.Module, ...]:
        """Layers that `deployable` computes for the first token alone: it alone makes their int8 ranges."""
        return ()

    def prunable(self) -> int:
        """Channels that structured pruning counts: as wide as its layers are inside."""
        return 0

    def lengths(self) -> set[int]:
        """Sizes of axes inside, beside those of the weights: a batch to export with must have another one."""
        return {self.arch.preprocessing.length}
