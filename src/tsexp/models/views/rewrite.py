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
    frequencies = None
    if features.fourier is not None:
        parts.fourier = LeanFourier(features.fourier)
        frequencies = parts.fourier.frequencies
    sources: list[Any] = list(features.sources)
    for i, source in enumerate(sources):
        if type(source) is Intervals:
            sources[i] = LeanIntervals(source, frequencies if source.signal == "spectrum" else None)
        elif type(source) is Kernels:
            sources[i] = LeanKernels(source)
    parts.sources = nn.ModuleList(sources)


class LeanFourier(nn.Module):
    """`Fourier` without transposes, amplitudes in the order in which they come.

    Matrices from the left, and both products of the rotation at once: [re, im] cos + [im, -re] sin.

    Attributes
    ----------
    frequencies
        int64 (n × (n // 2 + 1),): of which each amplitude is. Some lie beyond those of `Fourier`.
    """

    window: Tensor
    first: Tensor
    turn: Tensor
    second: Tensor

    def __init__(self, source: Fourier) -> None:
        super().__init__()
        self.n = n = source.n
        self.padding = source.padding
        self.frequencies = (torch.arange(n)[:, None] + n * torch.arange(n // 2 + 1)).flatten()
        real, imaginary = source.first.T.split(n)  # (k1, t1)
        cos, sin = source.turn.transpose(1, 2).repeat_interleave(2, 1)  # (2 k1, t2)
        one = torch.stack([real, imaginary], 1).flatten(0, 1)  # (2 k1, t1)
        other = torch.stack([imaginary, -real], 1).flatten(0, 1)
        tables = {
            "window": F.pad(source.window, (0, self.padding)).unflatten(0, (n, n)),
            "first": torch.cat([one, other]),
            "turn": torch.cat([cos, sin]),
            "second": source.second,
        }
        for name, table in tables.items():
            self.register_buffer(name, table.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = self.n
        x = F.pad(x, (0, self.padding)).unflatten(-1, (n, n)) * self.window  # (batch, channels, t1, t2)
        one, other = (self.first @ x * self.turn).split(2 * n, -2)
        turned = (one + other).unflatten(-2, (n, 2)).flatten(-2)  # (batch, channels, k1, 2 t2)
        found = (turned @ self.second).unflatten(-1, (2, -1))
        amplitude: Tensor = torch.linalg.vector_norm(found, dim=-2)  # (batch, channels, k1, k2)
        return amplitude.flatten(-2)


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
    """`Intervals`, the shares of all bins by one convolution: (batch, intervals, channels × bins).

    Parameters
    ----------
    source
        Whose thresholds and intervals are taken over.
    order
        Where the values of the signal come in another order: which each is. Those beyond the source's are
        left out.
    """

    means: Tensor

    def __init__(self, source: Intervals, order: Tensor | None = None) -> None:
        super().__init__()
        self.signal = source.signal
        self.filters = Filters(source.shares, torch.ones(len(source.shares.low), 1, 1))
        means = source.means.T
        if order is not None:
            means = F.pad(means, (0, int(order.max()) + 1 - means.shape[1]))[:, order]
        self.register_buffer("means", means.contiguous(), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shares: Tensor = self.filters(x)
        return self.means @ shares.transpose(1, 2)


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
