"""Ridge regression in closed form, whose scores are scaled to be logarithms of probabilities.

scikit-learn's `RidgeClassifierCV` finds the same weights (a test), and keeps no scores of series left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PENALTIES = torch.logspace(0, 6, 13, dtype=torch.float64)
"""Of which that is taken whose squared error is least for a series that is left out, as in MiniROCKET."""
SCALES = 2 ** torch.arange(0, 4.5, 0.5, dtype=torch.float64)
"""Of which that is taken whose cross-entropy is least for such a series."""


def ridge(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit one linear function per class to 1 of its own series and -1 of others.

    Parameters
    ----------
    x
        Features, float32 (series, numbers).
    y
        int64 (series,), indices of classes.
    classes
        How many there are, or were: one without a series has the score -1.

    Returns
    -------
    weight, bias
        float32 (classes, numbers) and (classes,), of scores around -1 and 1.
    scale
        Times which scores are logarithms of probabilities, but for a constant; a scalar.
    """
    x = x.double()
    wanted = 2.0 * F.one_hot(y, classes).double() - 1
    mean, level = x.mean(0), wanted.mean(0)
    x, wanted = x - mean, wanted - level
    # x = U √λ Vᵀ, by the smaller of x xᵀ and xᵀ x
    wide = x.shape[1] >= len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    there = values > 1e-10 * values[-1].clamp_min(1e-300)
    values, vectors = values[there], vectors[:, there]
    u = vectors if wide else x @ vectors / values.sqrt()
    along = u.T @ wanted  # (rank, classes)
    best = (torch.inf, PENALTIES[-1], wanted)
    for penalty in PENALTIES:
        shrunk = values / (values + penalty)
        own = u.square() @ shrunk + 1 / len(x)  # how much of its own answer a series decides
        left_out = wanted - (wanted - u @ (shrunk[:, None] * along)) / (1 - own).clamp_min(1e-9)[:, None]
        error = float((left_out - wanted).square().mean())
        if error < best[0]:
            best = (error, penalty, left_out)
    _, penalty, left_out = best
    losses = torch.stack([F.cross_entropy(scale * (left_out + level), y) for scale in SCALES])
    # weight = V √λ / (λ + penalty) Uᵀ wanted
    weight = x.T @ (u @ (along / (values + penalty)[:, None]))
    bias = level - mean @ weight
    return weight.T.float(), bias.float(), SCALES[losses.argmin()].float()
