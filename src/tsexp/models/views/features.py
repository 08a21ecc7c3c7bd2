"""Raw series → the numbers that tokens are made of. Part of the model, so part of what is measured.

Every number says which share of the values of something lies above a threshold: of a signal within an
interval (dyadic intervals, as in QUANT: Dempster et al. 2024, arXiv 2308.00928), or of the responses of a
signal to one of MiniROCKET's kernels (Dempster et al. 2021, arXiv 2012.08791). Thresholds are quantiles of
the series that were fitted, and soft: between two of them a share grows linearly.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import SMALL, FloatArray
from tsexp.models.preprocess import Preprocess
from tsexp.models.views.arch import (
    KERNELS,
    REACH,
    FeatureArch,
    Source,
    fourier_points,
    lag_of,
    signal_length,
    step_of,
)

TAIL = 0.002
"""Outermost thresholds leave out this share of the values on either side; so does the floor of amplitudes."""
LOOKED_AT = 256
"""Series that thresholds are taken from, and"""
VALUES = 20_000
"""responses of each kernel."""
NARROW = 1e-3
"""Narrowest bin, in widths of all bins together."""
NOISE = 1e-5
"""What varies less, in parts of the largest value that it is the sum of, is rounding."""
NUMBERS = 2**26
"""That are held at a time, about: of many long series of many channels, all would be too many."""
LARGEST = 4.0
"""Standardised features are clipped there."""
CONSTANT = 1e-4
"""A feature that varies less from series to series says nothing; nor does one that"""
ROUNDED = 0.02
"""rounding moves so far, standardised, in one of"""
COMPARED = 64
"""series: each runtime rounds otherwise. Where values are no ramp, flat or a large level, 0.012 is seen."""
ULPS = 2**-21
"""By so much, in all, scaled values may be rounded otherwise."""


class Features(nn.Module):
    """Scaled, then described: raw series (batch, channels, time) → (batch, numbers), standardised; no mask.

    The numbers of `Arch.sources` lie one after the other, each (tokens, numbers). There are no parameters;
    buffers hold what `adapt` has taken from the fit series.
    """

    mean: Tensor
    scale: Tensor
    floor: Tensor
    unit: Tensor

    def __init__(self, arch: FeatureArch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        signals = {source.signal for source in arch.sources}
        length = arch.preprocessing.length
        self.unscaled = None
        if "raw" in signals:
            self.unscaled = Preprocess(replace(arch.preprocessing, scale="none"))
            self.register_buffer("unit", torch.ones(arch.channels, 1))
        self.lag = lag_of(length)
        self.fourier = Fourier(length) if "spectrum" in signals else None
        kinds = {"intervals": Intervals, "kernels": Kernels, "scale": Scale}
        self.sources = nn.ModuleList(kinds[s.kind](arch, s) for s in arch.sources)
        numbers = sum(len(s.tokens) * arch.numbers(s) for s in arch.sources)
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.register_buffer("floor", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        described = (self._described(x) - self.mean) * self.scale
        return described.clamp(-LARGEST, LARGEST), None

    @torch.no_grad()
    def of(self, series: FloatArray) -> Tensor:
        """Describe any number of raw series, some at a time: (series, channels, time) → (series, numbers)."""
        return torch.cat([self(part)[0] for part in torch.from_numpy(series).split(self.at_once)])

    def _described(self, x: Tensor) -> Tensor:
        signals = self._signals(x)
        return torch.cat([s(*signals[s.signal]).flatten(1) for s in self.sources], 1)  # type: ignore[operator,index]

    def _signals(self, x: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Each with a mask (batch, values), True where there are any, or None."""
        scaled, mask = self.preprocess(x)
        changes = scaled[..., self.lag :] - scaled[..., : -self.lag]
        both = None if mask is None else mask[:, self.lag :]
        if both is not None:
            changes = changes * both[:, None].to(x.dtype)
        signals = {"scale": (x, None), "values": (scaled, mask), "changes": (changes, both)}
        if self.unscaled is not None:
            # Levels may differ by orders of magnitude: large ones by their logarithm, in effect.
            signals["raw"] = torch.asinh(self.unscaled(x)[0] / self.unit), mask
        if self.fourier is not None:
            signals["spectrum"] = torch.log(self.fourier(scaled) + self.floor), None
        return signals

    @property
    def at_once(self) -> int:
        """How many series are described at a time: what lies between is bins times as large as they."""
        each = self.arch.channels * self.arch.preprocessing.length * self.arch.value_bins
        return max(1, min(LOOKED_AT, NUMBERS // each))

    @torch.no_grad()
    def adapt(self, series: Tensor) -> None:
        """Take thresholds, means and spreads from raw series (series, channels, time)."""
        draw = torch.Generator().manual_seed(0)
        some = series[torch.randperm(len(series), generator=draw)[:LOOKED_AT]]
        if self.unscaled is not None:
            for unit, values in zip(self.unit, some.transpose(0, 1).flatten(1).abs(), strict=True):
                values = values[values > 0]  # nor where there are none
                if len(values):
                    few = values[torch.randint(len(values), (VALUES,), generator=draw)]
                    # So large a range that the ratio were infinite is left.
                    unit.copy_(torch.quantile(few, SMALL).clamp_min(1e-30 * values.amax()))
        if self.fourier is not None:
            self.floor.zero_()
            amplitudes = self.fourier(self.preprocess(some)[0]).flatten()
            few = amplitudes[torch.randint(len(amplitudes), (VALUES,), generator=draw)]
            # Below, it is rounding noise: without a floor, logarithms would show little else.
            self.floor.copy_(torch.quantile(few, TAIL).clamp_min(1e-6 * few.amax().clamp_min(1)))
        signals = self._signals(some)
        for source in self.sources:
            source.adapt(*signals[source.signal], draw)  # type: ignore[operator,index]
        described = torch.cat([self._described(part) for part in series.split(self.at_once)])
        columns = max(1, NUMBERS // len(series))
        for mean, scale, part in zip(
            *(t.split(columns, -1) for t in (self.mean, self.scale, described)), strict=True
        ):
            part = part.double()
            spread = part.std(0, correction=0)
            mean.copy_(part.mean(0))
            scale.copy_(torch.where(spread > CONSTANT, 1 / spread.clamp_min(CONSTANT), 0.0))
        self.scale.mul_(self._rounding(some[:COMPARED]) < ROUNDED)

    def _rounding(self, series: Tensor) -> Tensor:
        """How far rounding moves each feature of these series, here or deployed, at most: (numbers,)."""
        from tsexp.models.views.rewrite import lean

        exact, deployed = copy.deepcopy(self).double(), copy.deepcopy(self)
        lean(deployed)
        for name in ("preprocess", "unscaled"):
            if (part := getattr(deployed, name)) is not None:
                setattr(deployed, name, Disturbed(part))
        largest = torch.zeros_like(self.mean)
        for part in series.split(-(-self.at_once // 2)):  # whose numbers are twice as large
            expected = exact(part.double())[0]
            for found in (self(part)[0], deployed(part)[0]):
                largest = torch.maximum(largest, (found - expected).abs().amax(0).to(largest.dtype))
        return largest


class Disturbed(nn.Module):
    """What a runtime that rounds otherwise may make of scaled series."""

    def __init__(self, source: Preprocess) -> None:
        super().__init__()
        self.source = source
        self.draw = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        scaled, mask = self.source(x)
        return scaled * (1 + ULPS * (torch.rand(scaled.shape, generator=self.draw) - 0.5)), mask


class Fourier(nn.Module):
    """Amplitude spectrum under a Hann window: (batch, channels, length) → (batch, channels, points // 2 + 1).

    The series is padded with zeros to n² points, and transformed by two products with matrices of n points
    (Cooley & Tukey 1965): one matrix of all points would be twice as large as the rest of the model.
    """

    window: Tensor
    first: Tensor
    turn: Tensor
    second: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.n = n = fourier_points(length)
        self.padding = n * n - length
        self.amplitudes = n * n // 2 + 1
        grid = torch.arange(n, dtype=torch.float64)
        turns = 2 * math.pi * torch.outer(grid, grid) / n
        half = turns[:, : n // 2 + 1]
        twiddle = turns / n  # (t2, k1)
        window = torch.hann_window(length, periodic=False, dtype=torch.float64) / math.sqrt(length)
        tables = {
            "window": window,
            "first": torch.cat([turns.cos(), -turns.sin()], 1),  # t1 → k1, real and imaginary
            "turn": torch.stack([twiddle.cos(), twiddle.sin()]),
            "second": torch.cat(
                [torch.cat([half.cos(), -half.sin()], 1), torch.cat([half.sin(), half.cos()], 1)]
            ),  # t2, real and imaginary → k2, real and imaginary
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = self.n
        # t = n t1 + t2, k = k1 + n k2
        x = F.pad(x * self.window, (0, self.padding)).unflatten(-1, (n, n)).transpose(-1, -2)
        real, imaginary = (x @ self.first).split(n, -1)  # (batch, channels, t2, k1)
        cos, sin = self.turn[0], self.turn[1]
        real, imaginary = real * cos + imaginary * sin, imaginary * cos - real * sin
        turned = torch.cat([real, imaginary], -2).transpose(-1, -2)  # (batch, channels, k1, 2 t2)
        real, imaginary = (turned @ self.second).split(n // 2 + 1, -1)
        amplitude = (real.square() + imaginary.square()).sqrt()  # (batch, channels, k1, k2)
        found: Tensor = amplitude.transpose(-1, -2).flatten(-2)[..., : self.amplitudes]
        return found


class Shares(nn.Module):
    """Which share of each bin lies below a value, between 0 and 1.

    (…, kinds, values) → (…, kinds, bins, values). Its mean over values is a distribution function, and so
    says as much as quantiles do.
    """

    low: Tensor
    inverse: Tensor

    def __init__(self, kinds: int, bins: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(kinds, bins))
        self.register_buffer("inverse", torch.ones(kinds, bins))

    def forward(self, x: Tensor) -> Tensor:
        return ((x[..., None, :] - self.low[..., None]) * self.inverse[..., None]).clamp(0, 1)

    def adapt(
        self, x: Tensor, mask: Tensor | None, draw: torch.Generator, noise: Tensor | float = 0.0
    ) -> None:
        """Take thresholds from (series, kinds, values); of a kind that varies by less than noise, none."""
        rows = x.transpose(1, 2)[mask] if mask is not None else x.transpose(1, 2).flatten(0, 1)
        if not len(rows):  # no series is long enough for a change
            return
        if len(rows) > VALUES:
            rows = rows[torch.randint(len(rows), (VALUES,), generator=draw)]
        thresholds = torch.quantile(rows, torch.linspace(TAIL, 1 - TAIL, self.low.shape[1] + 1), 0).T
        # Where values repeat, thresholds coincide: a step there would turn rounding errors into features.
        whole = thresholds[:, -1:] - thresholds[:, :1]
        least = NARROW * whole.clamp_min(1e-6)
        width = torch.maximum(thresholds[:, 1:] - thresholds[:, :-1], least)
        self.low.copy_(thresholds[:, :-1])
        self.inverse.copy_(torch.where(whole < noise, 0.0, 1 / width))


class Intervals(nn.Module):
    """How the values of a signal are distributed in dyadic intervals.

    → (batch, intervals, channels × bins).
    """

    means: Tensor

    def __init__(self, arch: FeatureArch, source: Source) -> None:
        super().__init__()
        self.signal = source.signal
        length = signal_length(source.signal, arch.preprocessing.length)
        self.shares = Shares(arch.channels, arch.value_bins)
        means = torch.zeros(length, len(source.tokens))
        for column, token in enumerate(source.tokens):
            parts = 2 ** ((token + 1).bit_length() - 1)
            part = token + 1 - parts
            inside = slice(length * part // parts, -(-length * (part + 1) // parts))
            means[inside, column] = 1 / (inside.stop - inside.start)
        self.register_buffer("means", means, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shares: Tensor = self.shares(x)
        return (shares @ self.means).flatten(1, 2).transpose(1, 2)

    def adapt(self, x: Tensor, mask: Tensor | None, draw: torch.Generator) -> None:
        """Take thresholds."""
        self.shares.adapt(x, mask, draw)


class Kernels(nn.Module):
    """How the responses to kernels are distributed, scale by scale: → (batch, scales, kernels × bins).

    A coarser scale is the signal averaged in pairs: MiniROCKET's dilations, at half the work each. Where a
    signal is long, a kernel looks at some of the places only: shares of them are as good. Of several channels
    a kernel adds up some, drawn at random, as in MiniROCKET.
    """

    weight: Tensor

    def __init__(self, arch: FeatureArch, source: Source) -> None:
        super().__init__()
        self.signal, self.scales = source.signal, source.tokens
        chosen = torch.full((KERNELS, REACH), -1.0)
        for row, three in zip(chosen, itertools.combinations(range(REACH), 3), strict=True):
            row[list(three)] = 2.0
        weight = chosen[:, None] * channels(arch.channels)[..., None]
        self.register_buffer("weight", weight[list(source.kernels)], persistent=False)
        self.shares = nn.ModuleList(Shares(len(source.kernels), arch.kernel_bins) for _ in self.scales)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.stack(
            [
                mean_of(shares(r), m).flatten(1)
                for shares, (r, m) in zip(self.shares, self._responses(x, mask), strict=True)
            ],
            1,
        )

    def _responses(self, x: Tensor, mask: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        found = []
        for scale in range(self.scales[-1] + 1):
            if scale in self.scales:
                step = step_of(x.shape[-1])
                seen = F.conv1d(x, self.weight, stride=step, padding=REACH // 2)
                found.append((seen, None if mask is None else mask[:, ::step]))
            if scale < self.scales[-1]:
                x = F.avg_pool1d(x, 2)
                mask = None if mask is None else mask[:, : x.shape[-1] * 2 : 2]
        return found

    def adapt(self, x: Tensor, mask: Tensor | None, draw: torch.Generator) -> None:
        """Take thresholds; of three values of mean 0, some kernels see nothing but what rounding left."""
        largest = x.abs().amax((0, 2))  # of each channel
        noise = NOISE * ((self.weight != 0).any(-1) * largest).amax(1, keepdim=True)  # (kernels, 1)
        for shares, (r, m) in zip(self.shares, self._responses(x, mask), strict=True):
            shares.adapt(r, m, draw, noise)  # type: ignore[operator]


def channels(count: int) -> Tensor:
    """Which channels each kernel adds up: 0 or 1, (kernels, channels); their number is drawn, too."""
    if count == 1:
        return torch.ones(KERNELS, 1)
    draw = torch.Generator().manual_seed(0)
    some = torch.zeros(KERNELS, count)
    most = math.log2(min(count, REACH) + 1)
    for row in some:
        chosen = int(2 ** (most * float(torch.rand(1, generator=draw))))
        row[torch.randperm(count, generator=draw)[:chosen]] = 1
    return some


class Scale(nn.Module):
    """What scaling takes away: → (batch, 1, 4 × channels).

    Logarithms of standard deviation, largest value and number of values, and the mean in standard deviations,
    at most 10: beyond, the logarithms tell it, and one flat series would outweigh all others.
    """

    def __init__(self, arch: FeatureArch, source: Source) -> None:
        super().__init__()
        self.signal = source.signal
        self.ragged = arch.preprocessing.ragged

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        valid = ~x[:, :1].isnan() if self.ragged else torch.ones_like(x[:, :1], dtype=torch.bool)
        x = x.masked_fill(~valid, 0)
        count = valid.to(x.dtype).sum(-1)  # (batch, 1)
        largest = x.abs().amax(-1)
        mean = x.sum(-1) / count
        x = (x - mean[..., None]) * valid
        rest = x.sum(-1) / count  # what rounding left, in every runtime another
        spread = ((x - rest[..., None]).square() * valid).sum(-1).div(count).sqrt()
        # Clamped, not added to: the exporter to ONNX takes so small an addend for 0.
        spread = torch.maximum(spread, 1e-5 * largest).clamp_min(1e-12)
        ratio = ((mean + rest) / spread).clamp(-10, 10)
        numbers = [spread.log(), largest.clamp_min(1e-12).log(), count.log().expand_as(mean), ratio]
        return torch.cat(numbers, 1)[:, None]

    def adapt(self, x: Tensor, mask: Tensor | None, draw: torch.Generator) -> None:
        """There is nothing to take."""


def mean_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Over the values that there are: (batch, …, values) → (batch, …); `mask` is (batch, values)."""
    if mask is None:
        return x.mean(-1)
    weight = mask.to(x.dtype)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1)  # a series may be shorter than a change
    for _ in range(x.dim() - 3):
        weight = weight[:, None]
    return (x @ weight[..., None])[..., 0]
