"""Gradients of the loss on train series, of which Taylor importance is made (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tsexp import tasks

if TYPE_CHECKING:
    from tsexp.config import PruneConfig
    from tsexp.data import Dataset

BATCH_SIZE = 16


def gradients(
    model: nn.Module, of: Sequence[Tensor], config: PruneConfig, dataset: Dataset, seed: int
) -> list[tuple[Tensor, ...]]:
    """Return a gradient by each of these tensors, for each batch of ``calibration_series`` drawn series."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.from_numpy(dataset.fit)[torch.randperm(len(dataset.fit), generator=generator)]
    found = []
    with torch.enable_grad():
        for part in order[: config.calibration_series].split(BATCH_SIZE):
            scores = model(torch.from_numpy(dataset.x_train)[part])
            loss = tasks.of(dataset).loss(scores, torch.from_numpy(dataset.y_train)[part])
            found.append(torch.autograd.grad(loss, of))
    return found
