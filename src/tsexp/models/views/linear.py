"""Ridge regression on features, as a classifier."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PENALTIES = np.logspace(0, 6, 13)
"""Of which that is taken whose squared error is least for a series that is left out, as in MiniROCKET."""


def ridge(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Fit a linear function per class to 1 of its own series and -1 of others.

    Parameters
    ----------
    x
        Features, float32 (series, numbers).
    y
        int64 (series,), indices of classes.
    classes
        How many there are, or were: of which no series is fitted has the score of a wrong one, -1.

    Returns
    -------
    weight, bias
        float32 (classes, numbers) and (classes,).
    """
    from sklearn.linear_model import RidgeClassifierCV
    from threadpoolctl import threadpool_limits

    weight, bias = torch.zeros(classes, x.shape[1]), torch.full((classes,), -1.0)
    if len(y.unique()) == 1:  # nothing to tell apart
        bias[y[0]] = 1
        return weight, bias
    with threadpool_limits(torch.get_num_threads()):
        fitted = RidgeClassifierCV(PENALTIES).fit(x.double().numpy(), y.numpy())
    found, level = np.atleast_2d(fitted.coef_), fitted.intercept_
    if len(found) == 1:  # of two classes, the second
        found, level = np.concatenate([-found, found]), np.concatenate([-level, level])
    weight[fitted.classes_] = torch.from_numpy(found).float()
    bias[fitted.classes_] = torch.from_numpy(level).float()
    return weight, bias
