"""Parameters and multiply–accumulates, counted on a model as it is."""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tsexp.models.family import Model
from tsexp.models.network import Network


def count_parameters(model: Model | nn.Module) -> int:
    """Number of parameters (buffers are none); of what is no network, all numbers that it learned."""
    if isinstance(model, nn.Module):
        return sum(p.numel() for p in model.parameters())
    return sum(t.numel() for t in model.state().values())


def count_macs(model: Model) -> int | None:
    """Multiply–accumulates of one series, as the model executes them.

    Convolutions, linear layers, and both products of attention.

    Counted by PyTorch's flop counter on a run. So a rewritten model counts what it does instead of what it
    was made from: a last block that computes the class token alone counts less, the hidden unit that holds a
    bias, and attention between views that a mask takes away (`transformer.rewrite.FlatBlock`), more. Padding
    that a mask hides is computed, and counts. Not counted: what is no product (norms, activations, softmax,
    additions, scaling, resampling). None where some products cannot be seen (`OPAQUE`, `UNSEEN`), and of what
    is no network.
    """
    return _counted(model) if isinstance(model, Network) and not _opaque(model) else None


def _onnx_attention(q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
    """Flops of `torch.onnx.ops.attention` on shapes (batch, tokens, heads × head_dim).

    An opaque operator, into which the counter does not see.
    """
    return 2 * q[0] * q[1] * k[1] * (q[2] + v[2])


class _UncountedError(Exception):
    """Of a run that met an operator whose products are not counted here."""


def _uncounted(*_: Any, **__: Any) -> int:
    raise _UncountedError


UNSEEN = (
    "_trilinear",  # of bilinear layers
    *("_cdist_forward", "_pdist_forward", "conv_tbc"),
    *("_embedding_bag", "_embedding_bag_forward_only", "_sparse_addmm"),
    *("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"),
    *("_linalg_solve_ex", "linalg_inv_ex", "linalg_pinv", "linalg_lstsq", "linalg_solve_triangular"),
    *("linalg_matrix_exp", "_linalg_det", "_linalg_slogdet", "linalg_lu", "linalg_lu_factor_ex"),
    *("linalg_lu_solve", "linalg_ldl_factor_ex", "linalg_ldl_solve", "linalg_householder_product", "ormqr"),
    *("_linalg_svd", "linalg_qr", "geqrf", "_linalg_eigh", "linalg_eig", "_linalg_eigvals"),
    *("linalg_cholesky_ex", "cholesky_solve", "cholesky_inverse", "triangular_solve"),
)
"""Operators of ATen with products that are not counted here: of a model with one of them, nothing is told."""

_aten = torch.ops.aten
FORMULAS = {
    _aten.mv: lambda matrix, _vector, **_: 2 * math.prod(matrix),
    _aten.addmv: lambda _added, matrix, _vector, **_: 2 * math.prod(matrix),
    _aten.dot: lambda one, _other, **_: 2 * one[0],
    _aten.vdot: lambda one, _other, **_: 2 * one[0],
    _aten.addbmm: lambda _added, one, other, **_: 2 * math.prod(one) * other[-1],
    _aten._addmm_activation: lambda _added, one, other, **_: 2 * math.prod(one) * other[-1],
    _aten._int_mm: lambda one, other, **_: 2 * math.prod(one) * other[-1],
    **{getattr(_aten, name): _uncounted for name in UNSEEN if hasattr(_aten, name)},
}
"""Flops of products that PyTorch's counter leaves out without a word."""


OPAQUE = (nn.RNNBase, nn.EmbeddingBag)
"""Modules whose products the counter does not see."""


def _opaque(module: nn.Module) -> bool:
    opaque = (*OPAQUE, torch.jit.ScriptModule)
    if any(isinstance(m, opaque) or "quantized" in type(m).__module__ for m in module.modules()):
        return True
    tensors = (*module.parameters(), *module.buffers())
    return any(t.layout != torch.strided for t in tensors)  # the counter takes sparse ones for full ones


def macs_of(module: nn.Module, batch: torch.Tensor) -> int | None:
    """Multiply–accumulates of any module on a batch, or None if some of its products cannot be seen.

    Counted as `count_macs` does, on a run of the module as it is (its mode included).
    """
    if _opaque(module):
        return None
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer
    try:
        return _macs(module, batch) or None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _macs(module: nn.Module, batch: torch.Tensor, known: dict[Any, Any] | None = None) -> int | None:
    # The maths backend spells attention out as matrix products, which the counter knows on every device.
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS | (known or {}))
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            module(batch)
    except _UncountedError:
        return None
    return int(counter.get_total_flops()) // 2


def _counted(model: Network) -> int | None:
    importlib.import_module("torch.onnx.ops")  # registers its operators; takes .3 s
    pre = model.arch.preprocessing
    device = next(model.parameters()).device
    series = torch.zeros(1, model.arch.channels, pre.length, device=device)
    training = model.training
    macs = _macs(model.eval(), series, {torch.ops.onnx.Attention: _onnx_attention})
    model.train(training)
    return macs
