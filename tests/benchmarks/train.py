"""Training speed of `training.fit` against a bare PyTorch loop: same model, same batches, paired.

``make bench-train``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import compose
from tsexp import data, training
from tsexp.models import transformer
from tsexp.training import loop

PAIRS = 5
STEPS = 600


def bare(model: transformer.Classifier, config: training.TrainConfig, dataset: data.Dataset) -> float:
    """Seconds of the shortest loop that follows the same recipe step by step and validates as often.

    No metrics, no progress.
    """
    with torch.no_grad():
        x, mask = model.preprocess(torch.from_numpy(dataset.x_train))
    y = torch.from_numpy(dataset.y_train)
    (x_val, mask_val, y_val), (x, mask, y) = (
        (x[i], None if mask is None else mask[i], y[i]) for i in (dataset.val, dataset.fit)
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    steps = config.epochs * -(-len(y) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    model.train()
    every = max(1, config.epochs // loop.VALIDATIONS)
    start = time.perf_counter()
    for epoch in range(config.epochs):
        for i in torch.randperm(len(y)).split(config.batch_size):
            loss = F.cross_entropy(
                model.network(x[i], None if mask is None else mask[i]),
                y[i],
                label_smoothing=config.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(model)
        if (epoch + 1) % every == 0 and len(dataset.val):
            averaged.eval()
            with torch.no_grad():
                F.cross_entropy(averaged.module.network(x_val, mask_val), y_val)
            averaged.train()
    return time.perf_counter() - start


def main() -> None:
    """Print the ratio per dataset: bare seconds over ours, each from a fresh model."""
    torch.set_num_threads(1)
    for name in ("acsf1", "basic_motions", *sys.argv[1:]):
        cfg = compose(f"data={name}", "train.progress=false", f"train.max_steps={STEPS}")
        dataset = data.load(cfg.data, cfg.paths.data, 0)
        epochs = loop.epochs_of(cfg.train, len(dataset.fit))
        recipe = replace(cfg.train, epochs=epochs, max_steps=0)
        ratios = []
        for pair in range(PAIRS + 1):
            arch = transformer.architecture(cfg.model, dataset)
            theirs, ours = transformer.Classifier(arch), transformer.Classifier(arch)
            reference = bare(theirs, recipe, dataset)
            start = time.perf_counter()
            training.fit(ours, recipe, dataset, pair, name)
            seconds = time.perf_counter() - start
            if pair:  # the first pays for imports
                ratios.append(reference / seconds)
        print(
            f"{name}: {np.median(ratios):.3f} of a bare loop's speed (median of {PAIRS}; {min(ratios):.3f} "
            f"to {max(ratios):.3f}); {epochs} epochs"
        )


if __name__ == "__main__":
    main()
