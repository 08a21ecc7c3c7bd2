"""Training speed of `training.fit`, paired: a bare loop over ours, fp32 over bf16, plain kernels over ours.

``make bench-train``, ``make bench-train ARGS="--data acsf1 --models fcn --kernels ''"``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import compose
from tsexp import data, models, training
from tsexp.models import transformer
from tsexp.models.convolution import blocks, inception
from tsexp.models.transformer import narrow
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


def of_steps(
    name: str, model: str, pairs: int, steps: int, before: Callable[[], str], after: Callable[[], str]
) -> str:
    """Seconds before over those after, of steps alone: nothing is withheld or averaged.

    Each of both makes all as it is to be, and returns the precision.
    """
    cfg = compose(
        *(f"data={name}", f"model={model}", "data.val_fraction=0", "train.progress=false"),
        *("train.ema=0", "train.select=last", "train.patience=0", "train.min_steps=0"),
        f"train.max_steps={steps}",
    )
    dataset = data.load(cfg.data, cfg.paths.data, 0)
    ratios = []
    for pair in range(pairs + 1):
        slow, fast = (
            fitting(models.build(cfg.model, dataset), replace(cfg.train, precision=way()), dataset, pair)
            for way in (before, after)
        )
        ratios.append(slow / fast)
    return f"{spread(ratios)} times as fast"


def in_bf16(name: str, model: str, pairs: int, steps: int) -> str:
    """Seconds in fp32 over those in bf16."""
    found = of_steps(name, model, pairs, steps, lambda: "fp32", lambda: "bf16")
    return f"{name} {model}: in bf16 {found} as in fp32"


def by_our_kernels(name: str, model: str, pairs: int, steps: int, precision: str) -> str:
    """Seconds by PyTorch's own convolutions, pooling and attention over those by what learns faster."""
    with ExitStack() as plain:

        def before() -> str:
            for where, what, how in (
                (narrow, "faster", lambda tokens, head_dim: False),
                (blocks.Convolution, "forward", nn.Conv1d.forward),
                (inception, "largest_of_three", lambda x: F.max_pool1d(x, 3, 1, 1)),
            ):
                plain.enter_context(mock.patch.object(where, what, how))
            return precision

        def after() -> str:
            plain.close()
            return precision

        found = of_steps(name, model, pairs, steps, before, after)
    return f"{name} {model}, {precision}: by our kernels {found} as by PyTorch's"


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
    parse.add_argument("--models", default="t3,t4,fcn,resnet", help="in bf16; '' for none")
    parse.add_argument("--kernels", default="t1,t2", help="models by our kernels; '' for none")
    parse.add_argument("--precision", default="fp32", help="of these")
    parse.add_argument("--pairs", type=int, default=5)
    parse.add_argument("--steps", type=int, default=600, help="at most, of a fit beside a bare loop; 0: none")
    parse.add_argument("--few-steps", type=int, default=12, help="at most, of all other fits")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    for name in asked.data.split(","):
        if asked.steps:
            print(against_a_bare_loop(name, asked.pairs, asked.steps), flush=True)
        for model in filter(None, asked.models.split(",")):
            print(in_bf16(name, model, asked.pairs, asked.few_steps), flush=True)
        for model in filter(None, asked.kernels.split(",")):
            print(by_our_kernels(name, model, asked.pairs, asked.few_steps, asked.precision), flush=True)


if __name__ == "__main__":
    main()
