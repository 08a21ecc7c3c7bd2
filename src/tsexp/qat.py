"""Quantization-aware training.

Fine-tuning with fake quantization, so that the weights know what int8 will do to them.

What is faked is what the runtimes deploy (mode ``static``): linear layers, but for the tokenizer's, on uint8
activations with one range per tensor, fixed beforehand, and int8 weights with one symmetric range per output
channel (Jacob et al. 2018, arXiv 1712.05877).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp import training
from tsexp.cache import Cache
from tsexp.config import CALIBRATED, QuantConfig, TrainConfig, asked_of_training
from tsexp.data import Dataset, IntArray
from tsexp.models import Classifier
from tsexp.training import Fitted, Teacher

STAGE_VERSION = 2
EPS = 1e-12
DISTILL, TEMPERATURE = 0.5, 2.0
"""The teacher is the model itself before any rounding: it must only learn to live with it."""


def tune(
    model: Fitted,
    quant: QuantConfig,
    recipe: TrainConfig,
    seed: int,
    dataset: Dataset,
    cache: Cache,
    fake: bool = True,
) -> Fitted:
    """Return a model of the same architecture, fine-tuned with fake quantization.

    In every mode but ``qat`` the model itself.

    What comes out is an ordinary fp32 model: quantizing it is the runtime's work.

    Parameters
    ----------
    model
        Dense or pruned; also the teacher.
    quant
        The ``quant`` group: ``qat_epochs``, ``qat_lr``, ``calibration_series``.
    recipe
        The ``train`` group, followed with the first two.
    seed
        Of the fine-tuning.
    dataset
        Only the train split is used.
    cache
        Where the result is kept.
    fake
        False: the same tuning without any rounding, to tell what the rounding costs from what longer training
        brings.
    """
    if quant.mode != "qat":
        return model
    tuning = replace(recipe, epochs=quant.qat_epochs, lr=quant.qat_lr, warmup=0.0)
    chosen = calibration(quant, dataset)

    def build(folder: Path) -> None:
        tuned, before = model.load(), model.load()
        if fake:
            fake_quantize(tuned, torch.from_numpy(dataset.x_train[chosen]))
        title = f"fine-tune {dataset.name} {'with' if fake else 'without'} fake quantization"
        history = training.fit(tuned, tuning, dataset, seed, title, Teacher(before, DISTILL, TEMPERATURE))
        before.load_state_dict(tuned.state_dict())
        training.save(before, history, folder)

    key = {
        "model": model.signature,
        "tuning": asked_of_training(tuning),
        "seed": seed,
        "distill": [DISTILL, TEMPERATURE],
    }
    key["ranges"] = chosen.tolist() if fake else None
    return Fitted(cache.stage("qat", STAGE_VERSION, key, build))


def calibration(quant: QuantConfig, dataset: Dataset) -> IntArray:
    """Return which train series ranges of activations come from, in training and in the artifact.

    Indices, none in a mode that does not calibrate.

    Of the fit split, and at random: the files are sorted by class, and ranges seen on one class cost 15
    points (docs/log.md).
    """
    return np.random.default_rng(0).permutation(dataset.fit)[
        : quant.calibration_series if quant.mode in CALIBRATED else 0
    ]


@torch.no_grad()
def fake_quantize(model: Classifier, series: Tensor) -> None:
    """Let the linear layers of encoder and head round from now on, in place.

    The parameters and their names stay.

    Parameters
    ----------
    model
        In eval mode.
    series
        Raw series. The ranges of activations are what is seen on them in fp32, smallest to largest whatever
        ``quant.calibration``. They stay as they are: five epochs at 1e-4 move them by less than 4 %, and
        ranges of batches with dropout would not be those that are deployed.
    """
    # With a class token, artifacts compute nothing else in the last block once its keys and values are there
    # (`runtimes.rewrite`).
    last: Any = model.encoder.blocks[-1]
    alone = (last.attention.q, last.attention.o, last.fc1, last.fc2) if model.cls is not None else ()
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = torch.aminmax(inputs[0][:, :1] if layer in alone else inputs[0])
        seen[layer] = low, high

    linears = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith("tokenizer.")
    }
    hooks = [m.register_forward_pre_hook(see) for m in linears.values()]
    model(series)
    for hook in hooks:
        hook.remove()
    for name, linear in linears.items():
        model.set_submodule(name, Rounded(linear, *map(float, seen[linear])))


class Rounded(nn.Linear):
    """A linear layer on rounded activations and weights.

    Gradients pass the rounding, but not what lies outside of the range.

    Parameters
    ----------
    source
        Whose parameters it holds.
    low, high
        Range of the activations.
    """

    def __init__(self, source: nn.Linear, low: float, high: float) -> None:
        super().__init__(source.in_features, source.out_features, device="meta")
        self.weight, self.bias = source.weight, source.bias
        low, high = min(low, 0.0), max(high, 0.0)  # zero is exact
        self.scale = max((high - low) / 255, EPS)
        self.zero = round(-low / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Round, multiply, add."""
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, 0, 255)
        scales = self.weight.detach().abs().amax(1).clamp_min(EPS) / 127
        weight = torch.fake_quantize_per_channel_affine(
            self.weight, scales, torch.zeros_like(scales, dtype=torch.int32), 0, -127, 127
        )
        return F.linear(x, weight, self.bias)
