"""Attention of narrow heads that learns faster on CPUs: the same numbers, but for rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDEST = 8
"""Channels of a head up to which this is the faster way: PyTorch's kernels multiply by blocks of more."""
FEWEST = 32
"""Tokens from which it is: with fewer, calls take longer than what they compute."""
AT_ONCE = 250_000
"""Numbers of a matrix (queries × keys) that fit the cache."""


def faster(tokens: int, head_dim: int) -> bool:
    """Whether this is the faster way."""
    return tokens >= FEWEST and head_dim <= WIDEST


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Mix values as `scaled_dot_product_attention` does, some heads at a time.

    Channels come before tokens here, so that each product with a matrix (queries × keys) has few rows, which
    is five times as fast as few columns (docs/log.md, 2026-11-28).

    Parameters
    ----------
    q, k, v
        (batch, heads, tokens, head_dim), float32; under autocast, they are made so.
    mask
        (batch, tokens), True where a key holds data; each series has one at least.

    Returns
    -------
    Tensor
        (batch, heads, tokens, head_dim), float32.
    """
    batch, heads = q.shape[:2]
    padding = None if mask is None else ~mask.repeat_interleave(heads, 0)[:, None]
    flat = [x.transpose(2, 3).flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v)]
    mixed: Tensor = _Mixing.apply(*flat, padding)  # type: ignore[no-untyped-call]
    return mixed.unflatten(0, (batch, heads)).transpose(2, 3)  # type: ignore[no-any-return]


class _Mixing(torch.autograd.Function):
    """q, k, v: (batch × heads, head_dim, tokens); padding: (batch × heads, 1, tokens)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None) -> Tensor:
        mixed = torch.empty_like(q)
        for some in _slices(q):
            torch.bmm(v[some], _shares(q, k, padding, some).transpose(1, 2), out=mixed[some])
        ctx.save_for_backward(q, k, v, padding, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[override]
        q, k, v, padding, mixed = ctx.saved_tensors
        gradient = grad_outputs[0].contiguous()
        common = (gradient * mixed).sum(1)[..., None]
        of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for some in _slices(q):
            # Made again: kept, they would fill gigabytes where series are long.
            shares, g = _shares(q, k, padding, some), gradient[some]
            torch.bmm(g, shares, out=of_v[some])
            # Of the scores, through the softmax.
            of_scores = torch.bmm(g.transpose(1, 2), v[some]).sub_(common[some]).mul_(shares)
            torch.bmm(k[some], of_scores.transpose(1, 2), out=of_q[some])
            torch.bmm(q[some], of_scores, out=of_k[some])
        return of_q, of_k, of_v, None


def _shares(q: Tensor, k: Tensor, padding: Tensor | None, some: slice) -> Tensor:
    """What each query of some heads takes of each key: (heads, queries, keys)."""
    scores = torch.bmm(q[some].transpose(1, 2), k[some])
    if padding is not None:
        scores.masked_fill_(padding[some], -torch.inf)
    return torch.softmax(scores, -1, out=scores)


def _slices(q: Tensor) -> list[slice]:
    step = max(1, AT_ONCE // q.shape[2] ** 2)
    return [slice(i, i + step) for i in range(0, len(q), step)]
