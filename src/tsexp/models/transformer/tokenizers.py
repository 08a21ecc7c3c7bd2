"""Preprocessed series → tokens.

A new tokenizer is one more class; ``model.tokenizer=module:Class`` finds it (docs/extending.md).

Contract: constructed from an `Arch`; ``tokens`` is how many it makes; called with x (batch, channels, length)
and a mask (batch, length) or None, it returns tokens (batch, tokens, d_model) and a mask (batch, tokens) or
None.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tsexp.models.transformer.arch import Arch


class PatchTokenizer(nn.Module):
    """Non-overlapping patches: Conv1d with kernel = stride = patch (as in the paper).

    The last patch is zero-padded.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.patch = min(arch.patch, arch.preprocessing.length)
        self.tokens = -(-arch.preprocessing.length // self.patch)
        self.pad = self.tokens * self.patch - arch.preprocessing.length
        self.embed = nn.Conv1d(arch.inputs, arch.d_model, self.patch, self.patch)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        tokens = self.embed(F.pad(x, (0, self.pad))).transpose(1, 2)
        return tokens, _token_mask(mask, self.pad, self.patch)


class ConvStemTokenizer(nn.Module):
    """Two overlapping strided convolutions instead of one patch cut (Xiao et al. 2021, arXiv 2106.14881).

    The first has about the square root of the patch as stride, the second the rest; kernels are twice the
    stride plus one.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        patch = min(arch.patch, arch.preprocessing.length)
        first = max(d for d in range(1, patch + 1) if patch % d == 0 and d * d <= patch)
        second = patch // first
        self.patch = patch
        self.tokens = -(-arch.preprocessing.length // patch)
        self.pad = self.tokens * patch - arch.preprocessing.length
        self.conv1 = nn.Conv1d(arch.inputs, arch.d_model, 2 * first + 1, first, padding=first)
        self.conv2 = nn.Conv1d(arch.d_model, arch.d_model, 2 * second + 1, second, padding=second)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        hidden = F.gelu(self.conv1(F.pad(x, (0, self.pad))))
        tokens = self.conv2(hidden)[..., : self.tokens].transpose(1, 2)
        return tokens, _token_mask(mask, self.pad, self.patch)


def _token_mask(mask: Tensor | None, pad: int, patch: int) -> Tensor | None:
    """A token counts if its patch starts inside the series."""
    return None if mask is None else F.pad(mask, (0, pad))[:, ::patch]


TOKENIZERS: dict[str, type[PatchTokenizer] | type[ConvStemTokenizer]] = {
    "patch": PatchTokenizer,
    "conv_stem": ConvStemTokenizer,
}
