"""Raw series → what the tokenizer sees. Part of the model, so part of what is measured."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.data import Preprocessing

EPS = 1e-30


def _spread(std: Tensor, largest: Tensor) -> Tensor:
    """Standard deviation to divide by.

    Never so small, against the largest value, that a flat series becomes amplified rounding noise.
    """
    return torch.maximum(std, 1e-5 * largest).clamp_min(EPS)


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Over the values that there are, (batch, channels, 1)."""
    if valid is None:
        return x.mean(-1, keepdim=True)
    return x.masked_fill(~valid, 0).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True)


def _znormed(x: Tensor, valid: Tensor | None) -> Tensor:
    largest = (x if valid is None else x.masked_fill(~valid, 0)).abs().amax(-1, keepdim=True)
    x = x - _mean(x, valid)
    x = x - _mean(x, valid)  # of a flat series, the first leaves noise, in every runtime another
    return x / _spread(_mean(x.square(), valid).sqrt(), largest)


class Preprocess(nn.Module):
    """Scale, then crop, pad or resample; no parameters.

    Input: float (batch, channels, time), NaN after the end of a shorter series (only if ``spec.masked`` or
    ``spec.resample``). Output: float (batch, channels × ``spec.signals``, ``spec.length``) with zeros as
    padding, and a bool mask (batch, ``spec.length``), True where there is data, or None if ``spec.masked`` is
    false.
    """

    mean: Tensor
    std: Tensor
    unit: Tensor

    def __init__(self, spec: Preprocessing) -> None:
        super().__init__()
        self.spec = spec
        # (channels, 1); not persistent: arch.json holds them.
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None], persistent=False)
        self.register_buffer("std", torch.tensor(spec.std)[:, None], persistent=False)
        self.register_buffer("unit", torch.tensor(spec.unit)[:, None], persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        spec = self.spec
        ragged = spec.ragged
        if not ragged and x.shape[-1] != spec.length:
            raise ValueError(
                f"series of length {x.shape[-1]}; this model takes exactly {spec.length} "
                "(data.length resamples)"
            )
        valid = ~x[:, :1].isnan() if ragged else None  # (batch, 1, time)
        x = self._scale(x, valid)
        if spec.resample:
            assert valid is not None
            lengths = valid.to(x.dtype).sum(-1)  # in float: OpenVINO gets integers here wrong
            return self._resample(x, lengths), None
        if valid is None:
            return x, None
        short = spec.length - x.shape[-1]
        x, valid = F.pad(x, (0, short)), F.pad(valid, (0, short))  # a negative pad crops
        return x, valid[:, 0]

    def _scale(self, x: Tensor, valid: Tensor | None) -> Tensor:
        if self.spec.scale == "standard":
            x = (x - self.mean) / self.std
        elif self.spec.scale == "znorm":
            x = _znormed(x, valid)
        elif self.spec.scale == "znorm_raw":
            raw = (torch.asinh(x / self.unit) - self.mean) / self.std
            x = torch.cat([_znormed(x, valid), raw], 1)
        elif self.spec.scale == "minmax":
            inf = float("inf")
            low = (x if valid is None else x.masked_fill(~valid, inf)).amin(-1, keepdim=True)
            high = (x if valid is None else x.masked_fill(~valid, -inf)).amax(-1, keepdim=True)
            x = (x - low) / (high - low).clamp_min(EPS)
        return x if valid is None else x.masked_fill(~valid, 0)

    def _resample(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Interpolate (batch, channels, time) linearly on ``spec.length`` points, first to last value.

        `lengths` is (batch, 1).
        """
        shares = torch.linspace(0, 1, self.spec.length, dtype=x.dtype, device=x.device)
        grid = shares * (lengths - 1)  # (batch, length)
        left = grid.floor()
        after = torch.minimum(left + 1, lengths - 1)
        shape = (-1, x.shape[1], -1)
        lower, upper = (x.gather(-1, i.long()[:, None].expand(shape)) for i in (left, after))
        return torch.lerp(lower, upper, (grid - left)[:, None])
