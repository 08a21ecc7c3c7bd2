"""Exact rewrites of a trained model on features for deployment: the same scores up to float rounding.

Of a single series, much of a runtime's time goes into many small operations, so there are to be few of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.models.transformer.rewrite import FlatEncoder
from tsexp.models.views.arch import REACH, step_of
from tsexp.models.views.classifier import EACH, View, ViewClassifier
from tsexp.models.views.features import Features, Fourier, Intervals, Kernels, Shares, mean_of


class Flat(ViewClassifier):
    """The tokens of all views are the rows of one matrix, for they share an encoder; they attend apart."""

    @classmethod
    def of(cls, model: ViewClassifier) -> Flat:
        """Change a model whose encoder is packed, in place."""
        views: Any = model.views
        parts: Any = model  # the parts are replaced by others that are called alike
        lean(parts.preprocess)
        parts.encoder = FlatEncoder(parts.encoder, *(view.tokens for view in views))
        parts.tokens = Tokens(views)
        parts.heads = nn.ModuleList(_head(view) for view in views)
        del parts.views
        model.__class__ = cls
        return model  # type: ignore[return-value]

    def members(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features (batch, numbers) → the class scores of each view."""
        heads: Any = self.heads
        rows = self.encoder(self.tokens(x), None).flatten(1)  # type: ignore[operator]
        parts = rows.split([head.in_features for head in heads], 1)
        return tuple(head(part) for head, part in zip(heads, parts, strict=True))

    def lengths(self) -> set[int]:
        """Steps, and tokens of all views."""
        return {self.arch.preprocessing.length, self.encoder.tokens}  # type: ignore[arg-type]


class Tokens(nn.Module):
    """Features (batch, numbers) → the tokens of all views (batch, tokens, d)."""

    def __init__(self, views: nn.ModuleList) -> None:
        super().__init__()
        every: list[View] = list(views)  # type: ignore[arg-type]
        self.shapes = [shape for view in every for shape in view.shapes]
        projections: list[Any] = [project for view in every for project in view.project]
        self.weights = nn.ParameterList(p.weight.detach().T.contiguous() for p in projections)
        biases = [p.bias.expand(count, -1) for p, (count, _) in zip(projections, self.shapes, strict=True)]
        positions = torch.cat([view.positions for view in every])
        self.positions = nn.Parameter((positions + torch.cat(biases)).detach())

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([tokens * numbers for tokens, numbers in self.shapes], 1)
        tokens = [
            part.unflatten(1, shape) @ weight
            for part, shape, weight in zip(parts, self.shapes, self.weights, strict=True)
        ]
        return torch.cat(tokens, 1) + self.positions


def _head(view: View) -> nn.Linear:
    """What a view says of the mean of its tokens and of each of them, as one function of all."""
    classes, d_model = view.head.weight.shape
    joined = nn.Linear(view.tokens * d_model, classes)
    weight = (view.head.weight + EACH * view.each) / view.tokens  # (tokens, classes, d)
    joined.weight = nn.Parameter(weight.detach().transpose(0, 1).flatten(1).contiguous())
    joined.bias = nn.Parameter(view.head.bias.detach())
    return joined


def lean(features: Features) -> None:
    """Put leaner parts into the place of those that have one, in place."""
    parts: Any = features
    if features.fourier is not None:
        parts.fourier = LeanFourier(features.fourier)
    kinds: dict[type, type] = {Intervals: LeanIntervals, Kernels: LeanKernels}
    parts.sources = nn.ModuleList(kinds.get(type(s), lambda same: same)(s) for s in features.sources)


class LeanFourier(nn.Module):
    """`Fourier` with both products of the rotation at once: [re, im] cos + [im, -re] sin."""

    window: Tensor
    first: Tensor
    turn: Tensor
    second: Tensor

    def __init__(self, source: Fourier) -> None:
        super().__init__()
        self.n, self.padding, self.amplitudes = source.n, source.padding, source.amplitudes
        real, imaginary = source.first.split(self.n, 1)
        cos, sin = source.turn
        tables = {
            "window": source.window,
            "first": torch.cat([real, imaginary, imaginary, -real], 1),
            "turn": torch.cat([cos, cos, sin, sin], 1),
            "second": source.second.T.contiguous(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = self.n
        x = F.pad(x * self.window, (0, self.padding)).unflatten(-1, (n, n)).transpose(-1, -2)
        one, other = (x @ self.first * self.turn).split(2 * n, -1)
        # (batch, channels, t2, 2 k1) → (batch, channels, 2 t2, k1)
        turned = (one + other).unflatten(-1, (2, n)).transpose(-2, -3).flatten(-3, -2)
        found = (self.second @ turned).unflatten(-2, (2, -1))
        amplitude: Tensor = found.square().sum(-3).sqrt()  # (batch, channels, k2, k1)
        return amplitude.flatten(-2)[..., : self.amplitudes]


class Filters(nn.Module):
    """The share of each bin (`Shares`) of what a convolution gives, as a convolution: clip it at 0 and 1.

    Its weights are those of the source, less each threshold, over the width of its bin; no parameters.

    Parameters
    ----------
    shares
        Of kinds × bins.
    weight
        Of the convolution, (kinds, channels, reach).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, shares: Shares, weight: Tensor) -> None:
        super().__init__()
        scaled = shares.inverse[..., None, None] * weight[:, None]
        self.register_buffer("weight", scaled.flatten(0, 1), persistent=False)
        self.register_buffer("bias", (-shares.low * shares.inverse).flatten(), persistent=False)

    def forward(self, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        groups = x.shape[1] // self.weight.shape[1]
        less: Tensor = F.conv1d(x, self.weight, self.bias, stride, padding, groups=groups)
        return less.clamp(0, 1)


class LeanIntervals(nn.Module):
    """`Intervals`, the shares of all bins by one convolution: (batch, intervals, channels × bins)."""

    means: Tensor

    def __init__(self, source: Intervals) -> None:
        super().__init__()
        self.signal = source.signal
        self.filters = Filters(source.shares, torch.ones(len(source.shares.low), 1, 1))
        self.register_buffer("means", source.means, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shares: Tensor = self.filters(x)
        return (shares @ self.means).transpose(1, 2)


class LeanKernels(nn.Module):
    """`Kernels`, responses and the shares of their bins by one convolution a scale: (batch, numbers).

    There are as many more products as bins, and less work, for nothing lies between them.
    """

    def __init__(self, source: Kernels) -> None:
        super().__init__()
        self.signal, self.scales = source.signal, source.scales
        shares: list[Shares] = list(source.shares)  # type: ignore[arg-type]
        self.filters = nn.ModuleList(Filters(s, source.weight) for s in shares)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        found, done = [], 0
        for scale, filters in zip(self.scales, self.filters, strict=True):
            if scale > done:
                by = 2 ** (scale - done)
                x = F.avg_pool1d(x, by)
                mask = None if mask is None else mask[:, : x.shape[-1] * by : by]
            done, step = scale, step_of(x.shape[-1])
            found.append(mean_of(filters(x, step, REACH // 2), None if mask is None else mask[:, ::step]))
        return torch.cat(found, 1)
