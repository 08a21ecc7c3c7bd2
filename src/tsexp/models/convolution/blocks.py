"""What convolutional networks are made of; all of it leaves padding zero, and out of statistics."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Norm(nn.BatchNorm1d):
    """Batch norm whose statistics leave padding out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None or not self.training:
            return self._normed(x)
        steps = x.transpose(1, 2)
        normed = torch.zeros_like(steps)
        normed[mask] = self._normed(steps[mask])
        return normed.transpose(1, 2)

    def _normed(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:  # a single value says nothing of a spread
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Affine(nn.Module):
    """What a norm does in eval mode: a scale and a shift per channel."""

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.weight = nn.Parameter(scale[:, None], requires_grad=False)
        self.bias = nn.Parameter(
            (norm.bias.detach() - norm.running_mean * scale)[:, None], requires_grad=False
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        weight, bias = (w if x.ndim == 3 else w[..., None] for w in (self.weight, self.bias))
        return x * weight + bias


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, pad: int = 0, dilation: int = 1, groups: int = 1
) -> Tensor:
    """`F.conv1d`; of images one step high (batch, channels, 1, time) the same, as one of two dimensions."""
    if x.ndim == 3:
        return F.conv1d(x, weight, bias, padding=pad, dilation=dilation, groups=groups)
    kernel = weight[:, :, None]
    return F.conv2d(x, kernel, bias, padding=(0, pad), dilation=(1, dilation), groups=groups)


NARROW = 10
"""Steps of a kernel up to which oneDNN's gradients are fast: twice as many take four times as long."""


class Convolution(nn.Conv1d):
    """A convolution that learns faster on CPUs: the same numbers, but for rounding.

    While it learns, a wide kernel is the sum of narrow ones, and a dilated one looks, without dilation, at
    every so-many-th step of each phase (docs/log.md, 2026-11-28: half the time).
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu":
            reach = {"pad": int(self.padding[0]), "dilation": self.dilation[0]}
            return convolved(input, self.weight, self.bias, groups=self.groups, **reach)
        padding, dilation = int(self.padding[0]), self.dilation[0]
        x = F.pad(input, (padding, padding)) if padding else input
        if dilation == 1:
            return self._undilated(x)
        batch, _, steps = x.shape
        # (batch × dilation, channels, steps / dilation)
        phases = F.pad(x, (0, -steps % dilation)).unflatten(2, (-1, dilation)).movedim(3, 1).flatten(0, 1)
        found: Tensor = self._undilated(phases).unflatten(0, (batch, dilation)).movedim(1, 3).flatten(2)
        return found[..., : steps - dilation * (self.kernel_size[0] - 1)]

    def _undilated(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] <= NARROW or self.in_channels == 1 or self.groups > 1:
            return F.conv1d(x, self.weight, self.bias, groups=self.groups)
        steps = x.shape[-1] - self.kernel_size[0] + 1
        parts = [
            F.conv1d(x[..., i * NARROW :][..., : steps + part.shape[-1] - 1], part)
            for i, part in enumerate(self.weight.split(NARROW, -1))
        ]
        found = reduce(torch.add, parts)
        return found if self.bias is None else found + self.bias[:, None]


class Same(nn.Module):
    """Convolution without bias (before a norm it does nothing), as long as its input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        reach = dilation * (kernel - 1)
        # An even kernel sees one step more to the right, as in the published code.
        self.pad = (reach // 2, reach - reach // 2) if reach % 2 else (0, 0)
        self.conv = Convolution(
            inputs,
            outputs,
            kernel,
            padding=0 if reach % 2 else reach // 2,
            dilation=dilation,
            groups=groups,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad) if any(self.pad) else x)  # type: ignore[no-any-return]


class Block(Same):
    """Convolution, batch norm and, if `active`, ReLU."""

    norm: Norm | None

    def __init__(self, inputs: int, outputs: int, kernel: int, active: bool = True) -> None:
        super().__init__(inputs, outputs, kernel)
        self.norm = Norm(outputs)
        self.relu = nn.ReLU() if active else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x, mask)
        return zeroed(x if self.relu is None else self.relu(x), mask)

    def fold(self) -> None:
        """Hold the norm in the convolution, for good: the same outputs in eval mode."""
        assert self.norm is not None
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), None


def fold(module: nn.Module) -> None:
    """Hold each norm inside in what comes before it, for good: the same outputs in eval mode."""
    for part in [m for m in module.modules() if hasattr(m, "fold")]:
        own: Any = part
        own.fold()


def fold_apart(convolutions: nn.ModuleList, norm: Norm) -> Norm:
    """Hold a norm in the convolutions whose outputs, beside each other, it sees first.

    Return what it does to the channels that come after those; there may be none.
    """
    each: list[Any] = list(convolutions)
    sizes = [one.conv.out_channels for one in each]
    *own, rest = torch.arange(norm.num_features).split([*sizes, norm.num_features - sum(sizes)])
    for one, channels in zip(each, own, strict=True):
        one.conv = fuse_conv_bn_eval(one.conv, _part(norm, channels))
    return _part(norm, rest)


def _part(norm: Norm, channels: Tensor) -> Norm:
    part = Norm(len(channels), norm.eps).eval()
    part.load_state_dict({k: v[channels] if v.ndim else v for k, v in norm.state_dict().items()})
    return part


def zeroed(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set padding to zero."""
    return x if mask is None else x * mask[:, None].to(x.dtype)


def mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Average (batch, channels, time), with zeros as padding, over the time that holds data."""
    found = x.mean(-1) if mask is None else x.sum(-1) / mask.to(x.dtype).sum(-1, keepdim=True)
    return found.flatten(1)
