"""The whole model, from raw series to class scores."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import Dataset
from tsexp.models.network import Network
from tsexp.models.transformer.encoder import Encoder
from tsexp.models.views import linear
from tsexp.models.views.arch import Arch, Config, Source, architecture
from tsexp.models.views.features import Features
from tsexp.models.views.seen import by_ridge, select, shrink

EACH = 6.0
"""How much faster what single tokens say is learned than what their mean says."""
SERIES = 2048
"""Ridge regression chooses by so many, at most: what it takes grows with their cube."""


class ViewClassifier(Network):
    """Features → tokens of each view → encoder, the same for all views → head; the mean of their answers.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    family: ClassVar[str] = "views"
    STEM: ClassVar[tuple[str, ...]] = ("preprocess",)

    arch: Arch

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Features(arch)  # type: ignore[assignment]
        self.views = nn.ModuleList(View(arch, view) for view in arch.views)
        self.encoder = Encoder(arch)  # type: ignore[arg-type]
        self.sizes = [sum(len(s.tokens) * arch.numbers(s) for s in view) for view in arch.views]

    @property
    def at_once(self) -> int:
        """As its features."""
        return self.preprocess.at_once  # type: ignore[return-value]

    @torch.no_grad()
    def adapt(self, dataset: Dataset) -> Self:
        """Take thresholds, means and spreads of the features from the series that are fitted.

        Ridge regression on all of them chooses which kernels and tokens the model is to see, as features are
        in Detach-ROCKET (Uribarri et al. 2024, arXiv 2309.14518), here in one step.
        """
        features: Any = self.preprocess
        features.adapt(torch.from_numpy(dataset.x_train[dataset.fit]))
        if self.arch.kept == 1:
            return self
        draw = torch.Generator().manual_seed(0)
        some = dataset.fit[torch.randperm(len(dataset.fit), generator=draw)[:SERIES].numpy()]
        x, y = features.of(dataset.x_train[some]), torch.from_numpy(dataset.y_train[some])
        weight, bias = linear.ridge(x, y, len(self.arch.classes))
        scores = by_ridge(self.arch, weight, x, F.linear(x, weight, bias), y)
        return shrink(self, select(scores, self.arch.views, 1 - self.arch.kept))

    def members(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features (batch, numbers) → the class scores of each view."""
        parts = x.split(self.sizes, 1)
        return tuple(view(part, self.encoder) for view, part in zip(self.views, parts, strict=True))

    def network(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (batch, numbers) → logarithms of the views' mean probabilities."""
        said = torch.stack(self.members(x), 1).log_softmax(-1)
        return said.logsumexp(1) - math.log(said.shape[1])

    def prunable(self) -> int:
        """Channels of heads, FFN units, tokens and kernels."""
        seen = sum(len(s.tokens) + len(s.kernels) for s in self.arch.sources)
        return seen + sum(b.heads * self.arch.head_dim + b.ffn for b in self.arch.blocks)

    def lengths(self) -> set[int]:
        """Steps, and tokens of each view."""
        return {self.arch.preprocessing.length} | {view.tokens for view in self.views}  # type: ignore[misc]

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """Rewrite the encoder as that of any transformer; with `flat`, the rest, too (`views.rewrite`)."""
        from tsexp.models.transformer import rewrite
        from tsexp.models.views.rewrite import Flat

        new = copy.deepcopy(self).eval().requires_grad_(False)
        rewrite.pack(new.encoder, fused)
        views: Any = new.views
        known = [layer for view in views for layer in (view.head, *view.project)]
        if flat and rewrite.flattenable(new.encoder) and rewrite.plain(*known):
            return Flat.of(new)  # type: ignore[return-value]
        return new


class View(nn.Module):
    """Features of a view (batch, numbers) → class scores (batch, classes).

    What a view says is a linear function of the mean of its encoded tokens, and one of each of them.
    """

    def __init__(self, arch: Arch, sources: tuple[Source, ...]) -> None:
        super().__init__()
        self.shapes = [(len(s.tokens), arch.numbers(s)) for s in sources]
        self.tokens = sum(count for count, _ in self.shapes)
        # At most half of them, and at least four.
        self.seen = min(self.tokens, max(4, min(arch.seen_tokens, -(-self.tokens // 2))))
        self.project = nn.ModuleList(nn.Linear(numbers, arch.d_model) for _, numbers in self.shapes)
        self.positions = nn.Parameter(torch.empty(self.tokens, arch.d_model).normal_(std=0.02))
        classes = len(arch.classes)
        self.head = nn.Linear(arch.d_model, classes)
        self.each = nn.Parameter(torch.zeros(self.tokens, classes, arch.d_model))

    def forward(self, x: Tensor, encoder: nn.Module) -> Tensor:
        # Contiguous, else PyTorch multiplies (and rounds) in another way once no gradient is asked for.
        parts = [
            part.contiguous().unflatten(1, shape)
            for part, shape in zip(x.split([a * b for a, b in self.shapes], 1), self.shapes, strict=True)
        ]
        positions: Tensor = self.positions
        each: Tensor = self.each
        if self.training:
            seen = torch.zeros(self.tokens, dtype=torch.bool, device=x.device)
            seen[torch.randperm(self.tokens, device=x.device)[: self.seen]] = True
            positions, each = positions[seen], each[seen]
            counts = [count for count, _ in self.shapes]
            parts = [part[:, some] for part, some in zip(parts, seen.split(counts), strict=True)]
        tokens = torch.cat([p(part) for p, part in zip(self.project, parts, strict=True)], 1) + positions
        tokens = encoder(tokens, None)
        alone = F.linear(tokens.flatten(1), each.transpose(0, 1).flatten(1))
        return self.head(tokens.mean(1)) + EACH / tokens.shape[1] * alone  # type: ignore[no-any-return]


def build(config: Config, dataset: Dataset) -> ViewClassifier:
    """Return an untrained model for a dataset."""
    return ViewClassifier(architecture(config, dataset))


def rebuild(arch: dict[str, Any]) -> ViewClassifier:
    """Return the model that ``arch.json`` describes."""
    return ViewClassifier(Arch.from_dict(arch)).eval()
