"""The transformer encoder: blocks whose widths may differ."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.models.transformer import narrow
from tsexp.models.transformer.arch import Arch, Block

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class Attention(nn.Module):
    """Multi-head self-attention with separate projections.

    Rows ``h * head_dim : (h + 1) * head_dim`` of q, k and v and the same columns of o belong to head h;
    removing them removes the head. (`nn.MultiheadAttention` packs them and leaves them out of quantization.)
    No dropout on attention weights: it would leave the fused kernel.
    """

    def __init__(self, d_model: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        width = heads * head_dim
        self.q, self.k, self.v = (nn.Linear(d_model, width) for _ in range(3))
        self.o = nn.Linear(width, d_model)
        # PyTorch's own initialisation: with Xavier's, nearly twice as wide, T1 and T2 do not leave chance
        # level as published (docs/log.md).

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # (batch, tokens, heads * head_dim) -> (batch, heads, tokens, head_dim)
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )
        if self.training and x.device.type == "cpu" and narrow.faster(x.shape[1], self.head_dim):
            mixed: Tensor = narrow.attention(q, k, v, mask)
        else:
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if mask is None else mask[:, None, None, :]
            )
        return self.o(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class EncoderBlock(nn.Module):
    """Attention and feed-forward with residuals; pre-norm or post-norm."""

    def __init__(self, arch: Arch, block: Block) -> None:
        super().__init__()
        d = arch.d_model
        self.pre = arch.norm == "pre"
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, block.heads, arch.head_dim)
        self.fc1, self.fc2 = nn.Linear(d, block.ffn), nn.Linear(block.ffn, d)
        self.activation = ACTIVATIONS[arch.activation]()
        self.dropout = nn.Dropout(arch.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pre:
            x = x + self.dropout(self.attention(self.norm1(x), mask))
            return x + self.dropout(self._ffn(self.norm2(x)))  # type: ignore[no-any-return]
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self._ffn(x)))  # type: ignore[no-any-return]

    def _ffn(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """The blocks in order, and the closing norm that pre-norm needs."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(EncoderBlock(arch, b) for b in arch.blocks)
        self.norm = nn.LayerNorm(arch.d_model) if arch.norm == "pre" else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # type: ignore[no-any-return]
