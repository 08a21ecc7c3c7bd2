"""The whole model, from raw series to class scores."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tsexp.config import ConfigError, look_up
from tsexp.data import Dataset
from tsexp.models.network import Network
from tsexp.models.preprocess import Preprocess
from tsexp.models.transformer.arch import Arch, Config, architecture
from tsexp.models.transformer.encoder import Encoder
from tsexp.models.transformer.tokenizers import TOKENIZERS


class Positions(nn.Module):
    """Adds a position to every token; learned or sinusoidal (Vaswani et al. 2017).

    The table is 2-D, (tokens, d): as (1, tokens, d), fused int8 kernels have been seen to write into it at
    batch 1.
    """

    table: Tensor

    def __init__(self, kind: str, tokens: int, d_model: int) -> None:
        super().__init__()
        if kind == "learned":
            self.table = nn.Parameter(torch.empty(tokens, d_model).normal_(std=0.02))
            return
        angle = torch.arange(tokens)[:, None] * torch.exp(
            torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model)
        )
        table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Pooling(nn.Module):
    """Tokens (batch, tokens, d) → one vector (batch, d).

    The class token, or the mean over tokens that hold data.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.kind == "cls":
            return x[:, 0]
        if mask is None:
            return x.mean(1)
        weight = mask.to(x.dtype)[..., None]
        return (x * weight).sum(1) / weight.sum(1)


class Classifier(Network):
    """Preprocess → tokenizer → positions → encoder → pooling → head.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    family: ClassVar[str] = "transformer"
    STEM: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch: Arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        self.tokenizer = tokenizer_class(arch.tokenizer)(arch)
        self.cls = (
            nn.Parameter(torch.empty(arch.d_model).normal_(std=0.02)) if arch.pooling == "cls" else None
        )
        self.positions = Positions(
            arch.position, self.tokenizer.tokens + (self.cls is not None), arch.d_model
        )
        self.dropout = nn.Dropout(arch.dropout)
        self.encoder = Encoder(arch)
        self.pooling = Pooling(arch.pooling)
        classes = len(arch.classes)
        if arch.head == "bottleneck":
            # No activation between, as published.
            self.head = nn.Sequential(
                nn.Linear(arch.d_model, arch.head_width), nn.Linear(arch.head_width, classes)
            )
        else:
            self.head = nn.Sequential(nn.Linear(arch.d_model, classes))

    def network(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """All that has weights: preprocessed series (batch, channels, length) and mask → class scores."""
        tokens, mask = self.tokenizer(x, mask)
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(tokens.shape[0], 1, -1), tokens], 1)
            mask = None if mask is None else torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1)
        tokens = self.dropout(self.positions(tokens))
        if self.training and self.arch.token_dropout:
            tokens, mask = self._drop_tokens(tokens, mask)
        return self.head(self.pooling(self.encoder(tokens, mask), mask))  # type: ignore[no-any-return]

    def _drop_tokens(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Keep a random subset of the tokens, the class token always; the others cost nothing."""
        batch, count, width = tokens.shape
        rank = torch.rand(batch, count, device=tokens.device)
        if self.cls is not None:
            rank[:, 0] = -1
        if mask is not None:
            rank = rank.masked_fill(~mask, 2.0)  # padding goes first
        keep = rank.argsort(1)[:, : max(1, round(count * (1 - self.arch.token_dropout)))]
        tokens = tokens.gather(1, keep[..., None].expand(-1, -1, width))
        return tokens, None if mask is None else mask.gather(1, keep)

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """See `rewrite.deployed`."""
        from tsexp.models.transformer import rewrite

        return rewrite.deployed(self, fused, first_only, products, flat)  # type: ignore[return-value]

    def first_token_layers(self) -> tuple[nn.Module, ...]:
        """With a class token, what comes after keys and values in the last block."""
        from tsexp.models.transformer import rewrite

        last: Any = self.encoder.blocks[-1]
        alone = self.cls is not None and rewrite.packable(last)
        return (last.attention.q, last.attention.o, last.fc1, last.fc2) if alone else ()

    def prunable(self) -> int:
        """Channels of heads, and FFN units."""
        return sum(b.heads * self.arch.head_dim + b.ffn for b in self.arch.blocks)

    def lengths(self) -> set[int]:
        """Steps, and tokens without the class token and with it."""
        tokens = self.tokenizer.tokens
        return {self.arch.preprocessing.length, tokens, tokens + (self.cls is not None)}


def build(config: Config, dataset: Dataset) -> Classifier:
    """Return an untrained model for a dataset."""
    return Classifier(architecture(config, dataset))


def rebuild(arch: dict[str, Any]) -> Classifier:
    """Return the model that ``arch.json`` describes."""
    return Classifier(Arch.from_dict(arch)).eval()


def tokenizer_class(name: str) -> Any:
    """Return the class of modules that ``model.tokenizer`` names.

    Raises
    ------
    ConfigError
        If it names anything else: ``arch.json`` may come from elsewhere, and must not call what it likes.
    """
    kind = look_up(name, TOKENIZERS)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(
            f"model.tokenizer={name} is not a class of torch.nn.Module; docs/extending.md has an example"
        )
    return kind
