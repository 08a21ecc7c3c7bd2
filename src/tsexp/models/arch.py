"""The description of a model: plain values, no torch, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from tsexp.config import ModelConfig
from tsexp.data import Dataset, Preprocessing


@dataclass(frozen=True)
class Block:
    """Widths of one encoder block."""

    heads: int
    ffn: int


@dataclass(frozen=True)
class Arch:
    """Everything needed to rebuild a model except its weights.

    Attributes
    ----------
    channels
        Of a raw series.
    classes
        The labels, in the order of the scores.
    preprocessing
        What happens to a raw series first.
    head_dim
        Width of one attention head; stays what it was when heads are pruned.
    blocks
        One per layer, in order.
    head_width
        Inner width of a ``bottleneck`` head.
    """

    channels: int
    classes: tuple[str, ...]
    preprocessing: Preprocessing
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

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Arch:
        """Rebuild from `to_json`'s text."""
        raw: dict[str, Any] = json.loads(text)
        pre = raw["preprocessing"]
        raw["preprocessing"] = Preprocessing(**(pre | {"mean": tuple(pre["mean"]), "std": tuple(pre["std"])}))
        raw["blocks"] = tuple(Block(**b) for b in raw["blocks"])
        raw["classes"] = tuple(raw["classes"])
        return cls(**raw)


def architecture(config: ModelConfig, dataset: Dataset) -> Arch:
    """Fit a model configuration to a dataset."""
    return Arch(
        channels=dataset.channels,
        classes=dataset.classes,
        preprocessing=dataset.preprocessing,
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
