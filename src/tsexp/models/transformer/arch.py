"""The description of a model: plain values, no torch, no pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tsexp.config import ModelConfig, choice, number
from tsexp.data import Dataset
from tsexp.models.arch import BaseArch


@dataclass
class Config(ModelConfig):
    """The ``model`` group of a transformer; `architecture` makes an `Arch` of it for a dataset."""

    raw: ClassVar[bool] = True

    tokenizer: str = choice("patch", "conv_stem", own=True)
    patch: int = number(ge=1)
    d_model: int = number(ge=2)
    layers: int = number(ge=1)
    heads: int = number(ge=1)
    ffn: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)
    token_dropout: float = number(ge=0, lt=1)
    norm: str = choice("pre", "post")
    activation: str = choice("relu", "gelu")
    position: str = choice("sinusoidal", "learned")
    pooling: str = choice("cls", "mean")
    head: str = choice("linear", "bottleneck")

    def ready(self) -> None:
        """Refuse a tokenizer that is no module."""
        from tsexp.models.transformer.classifier import tokenizer_class

        tokenizer_class(self.tokenizer)

    def problems(self) -> list[str]:
        """Heads must share the width evenly; sines come in pairs."""
        found = uneven(self.heads, self.d_model)
        if self.position == "sinusoidal" and self.d_model % 2:
            found.append(
                f"model.position=sinusoidal needs an even model.d_model, not {self.d_model}; "
                "use position=learned or an even width"
            )
        return found


def uneven(heads: int, d_model: int) -> list[str]:
    """Return what is wrong if heads cannot share the width evenly."""
    if d_model % heads == 0:
        return []
    good = [str(h) for h in range(1, min(d_model, 16) + 1) if d_model % h == 0]
    return [f"model.heads={heads} does not divide model.d_model={d_model}; allowed here: {', '.join(good)}"]


@dataclass(frozen=True)
class Block:
    """Widths of one encoder block."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Arch(BaseArch):
    """Of a transformer.

    Attributes
    ----------
    head_dim
        Width of one attention head; stays what it was when heads are pruned.
    blocks
        One per layer, in order.
    head_width
        Inner width of a ``bottleneck`` head.
    """

    tokenizer: str
    patch: int
    d_model: int
    head_dim: int
    blocks: tuple[Block, ...]
    dropout: float
    token_dropout: float
    norm: str
    activation: str
    position: str
    pooling: str
    head: str
    head_width: int

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        return super().from_dict(raw | {"blocks": [Block(**b) for b in raw["blocks"]]})


def architecture(config: Config, dataset: Dataset) -> Arch:
    """Fit a model configuration to a dataset."""
    return Arch.of(
        dataset,
        tokenizer=config.tokenizer,
        patch=config.patch,
        d_model=config.d_model,
        head_dim=config.d_model // config.heads,
        blocks=(Block(config.heads, config.ffn),) * config.layers,
        dropout=config.dropout,
        token_dropout=config.token_dropout,
        norm=config.norm,
        activation=config.activation,
        position=config.position,
        pooling=config.pooling,
        head=config.head,
        head_width=config.ffn,
    )
