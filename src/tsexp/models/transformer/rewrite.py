"""Exact rewrites of a trained model for deployment: the same scores up to float rounding, less work.

What a runtime exports is what `deployed` returns; training, pruning and the dense reference know nothing of
it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.models.transformer.classifier import Classifier, Positions
from tsexp.models.transformer.encoder import Attention, Encoder, EncoderBlock
from tsexp.models.transformer.tokenizers import ConvStemTokenizer, PatchTokenizer, _token_mask


class PackedAttention(nn.Module):
    """q, k and v in one product, heads never split into an axis of their own.

    Parameters
    ----------
    source
        Whose weights are taken over.
    fused
        Use ONNX's Attention operator (opset 23), which takes (batch, tokens, heads × head_dim); else
        PyTorch's, which takes heads as an axis.
    first_only
        Only the first token asks (the others are asked): all that a class token in the last block needs.
    """

    def __init__(self, source: Attention, fused: bool, first_only: bool) -> None:
        super().__init__()
        self.heads, self.head_dim = source.heads, source.head_dim
        self.fused, self.first_only = fused, first_only
        self.o = source.o
        if first_only:
            self.q, self.kv = source.q, _side_by_side(source.k, source.v)
        else:
            self.qkv = _side_by_side(source.q, source.k, source.v)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.first_only:
            k, v = self.kv(x).chunk(2, -1)
            q = self.q(x[:, :1])
        else:
            q, k, v = self.qkv(x).chunk(3, -1)
        return self.o(self.mix(q, k, v, mask))  # type: ignore[no-any-return]

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, added: Tensor | None = None
    ) -> Tensor:
        """Attend: (batch, tokens, heads × head_dim), `q` perhaps with fewer tokens → the shape of `q`.

        `mask` is of the keys, (batch, tokens); without one, `added` is added to what each token (row) has for
        each (column).
        """
        allowed = added if mask is None else mask[:, None, None, :]
        if self.fused:
            if mask is not None and allowed is not None:
                allowed = allowed.expand(-1, 1, q.shape[1], -1)
            mixed: Tensor = torch.onnx.ops.attention(
                q, k, v, allowed, q_num_heads=self.heads, kv_num_heads=self.heads
            )[0]
        else:
            q, k, v = (t.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for t in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
            mixed = mixed.transpose(1, 2).flatten(2)
        return mixed


def _side_by_side(*linears: nn.Linear) -> nn.Linear:
    joined = nn.Linear(linears[0].in_features, sum(m.out_features for m in linears))
    joined.weight = nn.Parameter(torch.cat([m.weight for m in linears]).detach())
    joined.bias = nn.Parameter(torch.cat([m.bias for m in linears]).detach())
    return joined


class FirstTokenBlock(nn.Module):
    """An encoder block whose output is wanted for the first token only."""

    def __init__(self, block: EncoderBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b = self.block
        first = x[:, :1]
        if b.pre:
            first = first + b.attention(b.norm1(x), mask)
            return first + b._ffn(b.norm2(first))  # type: ignore[no-any-return]
        first = b.norm1(first + b.attention(x, mask))
        return b.norm2(first + b._ffn(first))  # type: ignore[no-any-return]


class FlatEncoder(nn.Module):
    """An encoder whose tokens are the rows of one matrix, (batch × tokens, d).

    In two dimensions a product takes its bias, an activation and the residual along (ONNX: Gemm); in three,
    each is an operation of its own.

    Parameters
    ----------
    source
        Whose weights are taken over.
    counts
        Tokens of a series; of several sequences side by side, each of which attends to itself alone, those
        of each.
    """

    def __init__(self, source: Encoder, *counts: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FlatBlock(b, counts) for b in source.blocks)  # type: ignore[arg-type]
        self.norm = source.norm
        self.tokens = sum(counts)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x.reshape(-1, x.shape[-1])
        for block in self.blocks:
            x = block(x, mask)
        last = self.blocks[-1]
        assert isinstance(last, FlatBlock)
        return self.norm(x).unflatten(0, (-1, 1 if last.first_only else self.tokens))  # type: ignore[no-any-return]


TOGETHER = 64
"""So many tokens, of several sequences, attend in one product, of which a mask takes what is between them.

There are fewer operations then, and more work: of more tokens, it takes longer (docs/log.md, 2026-12-02)."""


class FlatBlock(nn.Module):
    """An encoder block on (batch × tokens, d); see `FlatEncoder`."""

    apart: Tensor | None

    def __init__(self, block: EncoderBlock | FirstTokenBlock, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.first_only = isinstance(block, FirstTokenBlock)
        source = block.block if isinstance(block, FirstTokenBlock) else block
        self.tokens, self.pre = sum(counts), source.pre
        self.attention, self.norm1, self.norm2 = source.attention, source.norm1, source.norm2
        self.activation = source.activation
        self.fc1, self.back = _with_bias_unit(source.fc1, source.fc2, source.activation)
        self.parts = [self.tokens] if self.tokens <= TOGETHER else list(counts)
        apart = None
        if len(self.parts) < len(counts):  # 0, and -inf between sequences
            apart = torch.block_diag(*(torch.ones(count, count) for count in counts)).log()
        self.register_buffer("apart", apart, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        ask = x.unflatten(0, (-1, self.tokens))[:, 0] if self.first_only else x
        if self.pre:
            x = ask + self._attend(self.norm1(x), mask)
            return torch.addmm(x, self.activation(self.fc1(self.norm2(x))), self.back)
        x = self.norm1(ask + self._attend(x, mask))
        return self.norm2(torch.addmm(x, self.activation(self.fc1(x)), self.back))  # type: ignore[no-any-return]

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        a = self.attention
        assert isinstance(a, PackedAttention)
        if a.first_only:
            rows = x.unflatten(0, (-1, self.tokens))
            k, v = a.kv(x).unflatten(0, (-1, self.tokens)).chunk(2, -1)
            mixed = a.mix(a.q(rows[:, 0])[:, None], k, v, mask)
        else:
            asked = a.qkv(x).unflatten(0, (-1, self.tokens))
            parts = asked.split(self.parts, 1) if len(self.parts) > 1 else (asked,)
            each = [part.chunk(3, -1) for part in parts]
            several = [a.mix(q, k, v, mask, self.apart) for q, k, v in each]
            mixed = torch.cat(several, 1) if len(several) > 1 else several[0]
        return a.o(mixed.flatten(0, 1))  # type: ignore[no-any-return]


def _with_bias_unit(fc1: nn.Linear, fc2: nn.Linear, activation: nn.Module) -> tuple[nn.Linear, nn.Parameter]:
    """Hold the second bias in the weights of one more hidden unit, always the same.

    The addend of the product is then free for the residual.
    """
    wider = nn.Linear(fc1.in_features, fc1.out_features + 1)
    wider.weight = nn.Parameter(F.pad(fc1.weight.detach(), (0, 0, 0, 1)))
    wider.bias = nn.Parameter(F.pad(fc1.bias.detach(), (0, 1), value=1.0))
    always = activation(torch.ones(1, dtype=torch.float64)).float()
    back = torch.cat([fc2.weight.detach().T, fc2.bias.detach()[None] / always])
    return wider, nn.Parameter(back.contiguous())


class PositionsWithClass(nn.Module):
    """Class token and positions in one addition: no expanding, no concatenation."""

    def __init__(self, positions: Positions, cls: nn.Parameter) -> None:
        super().__init__()
        self.positions, self.cls = positions, cls

    def forward(self, x: Tensor) -> Tensor:
        table = self.positions.table
        constant = table + F.pad(self.cls[None], (0, 0, 0, table.shape[0] - 1))  # runtimes fold it
        return F.pad(x, (0, 0, 1, 0)) + constant


class MaskWithClass(nn.Module):
    """A tokenizer whose mask has a place for the class token."""

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        tokens, mask = self.tokenizer(x, mask)
        return tokens, None if mask is None else F.pad(mask, (1, 0), value=True)


def deployed(
    model: Classifier, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
) -> Classifier:
    """Return a deep copy of a classifier in eval mode, rewritten; shares no tensor with `model`.

    Parameters
    ----------
    model
        Stays as it is.
    fused
        Attention as ONNX's operator, see `PackedAttention`.
    first_only
        With a class token, compute nothing else in the last block.
    products
        Convolutions as matrix products, see `ProductTokenizer`.
    flat
        All tokens as rows of one matrix, see `FlatEncoder`.
    """
    new = copy.deepcopy(model).eval().requires_grad_(False)
    parts: Any = new  # the parts are replaced by others that are called alike
    # Of somebody's own nothing is known, of a subclass as little.
    known = type(parts.tokenizer) in (PatchTokenizer, ConvStemTokenizer)
    if products and known and all(type(conv) is nn.Conv1d for conv in parts.tokenizer.children()):
        parts.tokenizer = ProductTokenizer(parts.tokenizer)
    if new.cls is not None:
        parts.tokenizer = MaskWithClass(parts.tokenizer)
        parts.positions = PositionsWithClass(new.positions, new.cls)
        parts.cls = None
    flat = flat and flattenable(new.encoder)
    pack(new.encoder, fused, last_first_only=first_only and model.cls is not None)
    if flat:
        parts.encoder = FlatEncoder(parts.encoder, model.tokenizer.tokens + (model.cls is not None))
    return new


def pack(encoder: Encoder, fused: bool, last_first_only: bool = False) -> None:
    """Put `PackedAttention` into every block where nothing speaks against it, in place.

    Parameters
    ----------
    encoder
        Its blocks are changed.
    fused
        See `PackedAttention`.
    last_first_only
        Of the last block, the first token alone is wanted.
    """
    blocks: Any = encoder.blocks
    for i, block in enumerate(blocks):
        if packable(block):
            last = last_first_only and i == len(blocks) - 1
            block.attention = PackedAttention(block.attention, fused, first_only=last)
            if last:
                blocks[i] = FirstTokenBlock(block)


def flattenable(encoder: Encoder) -> bool:
    """Whether `FlatEncoder` takes it, before or after `pack`."""
    blocks: Any = encoder.blocks
    return all(
        (isinstance(b.attention, PackedAttention) or packable(b)) and plain(b.fc1, b.fc2) for b in blocks
    )


def packable(block: EncoderBlock) -> bool:
    """Whether queries, keys and values are what they were built as: nothing is known of replacements."""
    a = block.attention
    return plain(a.q, a.k, a.v)


def plain(*layers: nn.Module) -> bool:
    """Whether these are linear layers of PyTorch's own: of somebody's own nothing is known."""
    return all(type(layer) is nn.Linear for layer in layers)


class ProductTokenizer(nn.Module):
    """Convolutions as matrix products on gathered windows, channels last throughout.

    No transposes, and int8 kernels for them.
    """

    def __init__(self, source: PatchTokenizer | ConvStemTokenizer) -> None:
        super().__init__()
        self.patch, self.pad, self.tokens = source.patch, source.pad, source.tokens
        self.length = source.tokens * source.patch - source.pad
        convs = [source.embed] if isinstance(source, PatchTokenizer) else [source.conv1, source.conv2]
        self.windows = nn.ModuleList()
        length = source.tokens * source.patch
        for i, conv in enumerate(convs):
            (kernel,), (stride,), padding = conv.kernel_size, conv.stride, int(conv.padding[0])
            length = length // stride
            self.windows.append(
                Windows(length, kernel, stride, conv.in_channels, padding, padding + (0 if i else self.pad))
            )
        self.products = nn.ModuleList(_as_product(c) for c in convs)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # (batch, channels, length) -> (batch, length, channels); one channel needs no transpose. Sizes are
        # constants, not read off x: each reading is an operation of its own in the exported graph.
        x = x.reshape(-1, self.length, 1) if x.shape[1] == 1 else x.transpose(1, 2)
        for i, (windows, product) in enumerate(zip(self.windows, self.products, strict=True)):
            x = product(windows(F.gelu(x) if i else x))
        return x, _token_mask(mask, self.pad, self.patch)


class Windows(nn.Module):
    """(batch, length, channels) → (batch, windows, kernel × channels), zero-padded."""

    index: Tensor

    def __init__(self, count: int, kernel: int, stride: int, channels: int, before: int, after: int) -> None:
        super().__init__()
        self.count, self.width, self.padding = count, kernel * channels, (0, 0, before, after)
        self.disjoint = kernel == stride
        index = torch.arange(count)[:, None] * stride + torch.arange(kernel)
        self.register_buffer("index", index.flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.padding):
            x = F.pad(x, self.padding)
        if not self.disjoint:
            x = x.index_select(1, self.index)
        return x.reshape(-1, self.count, self.width)


def _as_product(conv: nn.Conv1d) -> nn.Linear:
    # (out, in, kernel) -> (out, kernel * in): a window lies channels last
    linear = nn.Linear(conv.in_channels * conv.kernel_size[0], conv.out_channels)
    linear.weight = nn.Parameter(conv.weight.detach().transpose(1, 2).flatten(1).contiguous())
    assert conv.bias is not None
    linear.bias = nn.Parameter(conv.bias.detach().clone())
    return linear
