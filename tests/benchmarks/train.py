"""Training speed of `training.fit`: against a bare PyTorch loop, and in bf16 against fp32; paired.

``make bench-train``, ``make bench-train ARGS="--data acsf1 --models fcn"``.
"""

from __future__ import annotations

import argparse
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
from tsexp import data, models, training
from tsexp.models import transformer
from tsexp.training import loop


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


def against_a_bare_loop(name: str, pairs: int, steps: int) -> str:
    """Bare seconds over ours, of T3."""
    cfg = compose(f"data={name}", "model=t3", "train.progress=false", f"train.max_steps={steps}")
    dataset = data.load(cfg.data, cfg.paths.data, 0)
    recipe = replace(cfg.train, epochs=loop.epochs_of(cfg.train, len(dataset.fit)), max_steps=0)
    ratios = []
    for pair in range(pairs + 1):
        arch = transformer.architecture(cfg.model, dataset)
        reference = bare(transformer.Classifier(arch), recipe, dataset)
        ratios.append(reference / fitting(transformer.Classifier(arch), recipe, dataset, pair))
    return f"{name} t3: {spread(ratios)} of a bare loop's speed; {recipe.epochs} epochs"


def in_bf16(name: str, model: str, pairs: int, steps: int) -> str:
    """Seconds in fp32 over those in bf16; of steps alone: nothing is withheld or averaged."""
    cfg = compose(
        *(f"data={name}", f"model={model}", "data.val_fraction=0", "train.progress=false"),
        *("train.ema=0", "train.min_steps=0", f"train.max_steps={steps}"),
    )
    dataset = data.load(cfg.data, cfg.paths.data, 0)
    ratios = []
    for pair in range(pairs + 1):
        exact, rounded = (
            fitting(models.build(cfg.model, dataset), replace(cfg.train, precision=p), dataset, pair)
            for p in ("fp32", "bf16")
        )
        ratios.append(exact / rounded)
    return f"{name} {model}: in bf16 {spread(ratios)} times as fast as in fp32"


def fitting(model: models.Network, recipe: training.TrainConfig, dataset: data.Dataset, seed: int) -> float:
    """Seconds of a fit."""
    start = time.perf_counter()
    training.fit(model, recipe, dataset, seed, "fit")
    return time.perf_counter() - start


def spread(ratios: list[float]) -> str:
    """Median and range, without the first pair, which pays for imports."""
    kept = ratios[1:]
    return f"{np.median(kept):.3f} (median of {len(kept)}; {min(kept):.3f} to {max(kept):.3f})"


def main() -> None:
    """Print the ratios, each fit from a fresh model."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--data", default="acsf1,basic_motions")
    parse.add_argument("--models", default="t3,t4,fcn,resnet", help="in bf16")
    parse.add_argument("--pairs", type=int, default=5)
    parse.add_argument("--steps", type=int, default=600, help="at most, of a fit beside a bare loop")
    parse.add_argument("--rounded-steps", type=int, default=12, help="at most, of a fit in bf16")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    for name in asked.data.split(","):
        print(against_a_bare_loop(name, asked.pairs, asked.steps), flush=True)
        for model in asked.models.split(","):
            print(in_bf16(name, model, asked.pairs, asked.rounded_steps), flush=True)


if __name__ == "__main__":
    main()
