"""The features of QUANT (Dempster et al. 2024, arXiv 2308.00928): quantiles of dyadic intervals."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tsexp.data import FloatArray


class Quantiles:
    """aeon's `QUANTTransformer`, bit for bit: (batch, channels, time) → (batch, features of all channels).

    aeon takes the quantiles of one interval at a time, some 500 calls of PyTorch for any batch; here all
    intervals of the same length are sorted together, by NumPy's vectorised sort, and all quantiles
    interpolated at once. Every other quantile is less the mean of its interval.

    Parameters
    ----------
    intervals
        Start and end, (intervals, 2), of those of the series, of its smoothed first differences, of its
        second differences and of its spectrum.
    length
        Of a series.
    divisor
        Values of an interval to one quantile.
    """

    def __init__(self, intervals: list[Tensor], length: int, divisor: int) -> None:
        firsts = [0, length, 2 * length - 1, 3 * length - 3]  # of the four signals, one after the other
        shifted = [part + first for part, first in zip(intervals, firsts, strict=True)]
        spans = torch.cat(shifted).tolist()
        ordered = sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
        sizes = [spans[i][1] - spans[i][0] for i in ordered]
        self._groups = [(size, len(list(same))) for size, same in groupby(sizes)]
        self._values = np.concatenate([np.arange(*spans[i]) for i in ordered])
        starts = np.cumsum([0, *sizes])
        places = {i: (number, int(starts[number])) for number, i in enumerate(ordered)}
        below, above, shares, means, odd = [], [], [], [], []
        for i, (a, b) in enumerate(spans):
            number, start = places[i]
            count = 1 + (b - a - 1) // divisor
            grid = torch.linspace(0, 1, count) if count > 1 else torch.tensor([0.5])
            ranks = grid * (b - a - 1)
            below.append(start + ranks.floor().long())
            above.append(start + ranks.ceil().long())
            shares.append(ranks - ranks.floor())
            means.append(torch.full((count,), number))
            odd.append(torch.arange(count).remainder(2).float())
        self._below, self._above, self._means = (torch.cat(part) for part in (below, above, means))
        self._shares, self._odd = torch.cat(shares), torch.cat(odd)

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the features of preprocessed series, float32."""
        series = torch.from_numpy(x)
        smooth = F.avg_pool1d(F.pad(series.diff(), (2, 2), "replicate"), 5, 1)
        spectrum = torch.fft.rfft(series).abs()
        signals = torch.cat([series, smooth, series.diff(n=2), spectrum], -1)
        values = signals.numpy().take(self._values, -1)
        means, start = [], 0
        for size, count in self._groups:
            end = start + size * count
            rows = values[..., start:end].reshape(*x.shape[:2], count, size)  # a view
            means.append(torch.from_numpy(rows).mean(-1))
            rows.sort(-1)
            start = end
        below, above = (torch.from_numpy(values).index_select(-1, i) for i in (self._below, self._above))
        quantiles = below.lerp_(above, self._shares)
        quantiles -= torch.cat(means, -1).index_select(-1, self._means) * self._odd
        return quantiles.flatten(1).numpy()  # type: ignore[no-any-return]
