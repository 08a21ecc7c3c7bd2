"""Quantization-aware training.

Fine-tuning with fake quantization, so that the weights know what int8 will do to them.

What is faked is what the runtimes deploy (mode ``static``): linear layers and convolutions, but for the
stem's, on uint8 activations with one range per tensor, fixed beforehand, and int8 weights (at most
`cpu.int8_largest`) with one symmetric range per output channel (Jacob et al. 2018, arXiv 1712.05877).

A batch norm that artifacts fold into a convolution scales its output channels one by one, and those ranges
with them: rounding the weights before the norm is rounding the folded ones. So norms stay, and go on
learning.

Two things of a transformer on features (T4) are not as deployed: what reads each token alone is rounded there
and not here, and views that share an encoder share its ranges here, and have their own there.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsexp import training
from tsexp.config import CALIBRATED, Config, QuantConfig, TrainConfig, Unsupported, like
from tsexp.data import Dataset, IntArray
from tsexp.models import Network
from tsexp.system import cpu
from tsexp.training import Teacher

if TYPE_CHECKING:
    from tsexp.compress.fold import Context

VERSION = 4
FAMILIES = ("transformer", "views", "convolution")
TRAINS = True
EPS = 1e-12
DISTILL, TEMPERATURE = 0.5, 2.0
"""The teacher is the model itself before any rounding: it must only learn to live with it."""


def ready(cfg: Config) -> None:
    """Refuse a model that fits itself."""
    if cfg.quant.mode == "qat" and like(cfg.model.family) in FAMILIES and not cfg.model.gradient:
        raise Unsupported(
            f"qat with model={cfg.model.name} is not supported: it trains, and this model is not fitted by "
            "gradient descent"
        )


def asked(cfg: Config, changed: bool, control: bool) -> dict[str, Any]:
    """In mode ``qat`` its recipe, which series ranges are seen on, and the largest weight but for 127."""
    if cfg.quant.mode != "qat":
        return {}
    rounded: dict[str, int] = {} if control else {"calibration_series": cfg.quant.calibration_series}
    if not control and (largest := cpu.int8_largest()) < 127:
        rounded["largest"] = largest
    return {**rounded, "distill": DISTILL, "temperature": TEMPERATURE, "train": _recipe(cfg).asked()}


def apply(model: Network, context: Context, folder: Path) -> tuple[Network, list[dict[str, float]]]:
    """Train further with fake quantization; the control without.

    What comes out is an ordinary fp32 model: quantizing it is the runtime's work.
    """
    cfg, dataset = context.cfg, context.dataset
    ordinary, teacher = copy.deepcopy(model), copy.deepcopy(model)
    if not context.control:
        chosen = calibration(cfg.quant, dataset)
        fake_quantize(model, torch.from_numpy(dataset.x_train[chosen]))
    title = f"fine-tune {dataset.name} {'without' if context.control else 'with'} fake quantization"
    taught = Teacher(teacher, DISTILL, TEMPERATURE)
    history = training.fit(model, _recipe(cfg), dataset, cfg.seed, title, taught, context.unfinished)
    ordinary.set_state(model.state())
    return ordinary, history


def _recipe(cfg: Config) -> TrainConfig:
    return replace(cfg.train, epochs=cfg.quant.qat_epochs, lr=cfg.quant.qat_lr, warmup=0.0)


def calibration(quant: QuantConfig, dataset: Dataset) -> IntArray:
    """Return which train series ranges of activations come from, in training and in the artifact.

    Indices, none in a mode that does not calibrate. Of the fit split, and at random: the files are sorted by
    class, and ranges seen on one class cost 15 points (docs/log.md).
    """
    return np.random.default_rng(0).permutation(dataset.fit)[
        : quant.calibration_series if quant.mode in CALIBRATED else 0
    ]


@torch.no_grad()
def fake_quantize(model: Network, series: Tensor) -> None:
    """Let the linear layers and convolutions outside of the stem round from now on, in place.

    The parameters and their names stay.

    Parameters
    ----------
    model
        In eval mode.
    series
        Raw series. The ranges of activations are what is seen on them in fp32, smallest to largest whatever
        ``quant.calibration``. They stay as they are: five epochs at 1e-4 move them by less than 4 % (T4,
        whose recipe takes 600 steps at least, was not looked at), and ranges of batches with dropout would
        not be those that are deployed.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        low, high = torch.aminmax(inputs[0][:, :1] if layer in alone else inputs[0])
        if layer in seen:  # views share their encoder
            low, high = torch.minimum(low, seen[layer][0]), torch.maximum(high, seen[layer][1])
        seen[layer] = low, high

    products = {
        n: m
        for n, m in model.named_modules(remove_duplicate=False)  # a layer may have two places
        if isinstance(m, nn.Linear | nn.Conv1d) and not model.in_stem(n)
    }
    places: Counter[nn.Module] = Counter(products.values())
    alone = {layer for layer in model.first_token_layers() if places[layer] == 1}
    hooks = [m.register_forward_pre_hook(see) for m in places]
    for part in series.split(model.at_once):
        model(part)
    for hook in hooks:
        hook.remove()
    unseen = [name for name, product in products.items() if product not in seen]
    if unseen:
        raise Unsupported(
            f"quant.mode=qat cannot round what no module computes: nothing calls {', '.join(unseen)} (as in "
            "nn.MultiheadAttention, which takes their weights alone); use quant.mode=static"
        )
    rounded = {product: Rounded(product, *map(float, seen[product])) for product in products.values()}
    for name, product in products.items():
        model.set_submodule(name, rounded[product])


class Rounded(nn.Module):
    """A linear layer or convolution on rounded activations and weights.

    Gradients pass the rounding, but not what lies outside of the range.

    Parameters
    ----------
    source
        Whose parameters it holds.
    low, high
        Range of the activations.
    """

    def __init__(self, source: nn.Linear | nn.Conv1d, low: float, high: float) -> None:
        super().__init__()
        self.weight, self.bias = source.weight, source.bias
        self.product: Any = F.linear
        if isinstance(source, nn.Conv1d):
            if source.padding_mode != "zeros":
                raise ValueError(f"padding_mode={source.padding_mode} of a convolution is not supported")
            same = {k: getattr(source, k) for k in ("stride", "padding", "dilation", "groups")}
            self.product = partial(F.conv1d, **same)
        self.largest = cpu.int8_largest()
        low, high = min(low, 0.0), max(high, 0.0)  # zero is exact
        self.scale = max((high - low) / 255, EPS)
        self.zero = round(-low / self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Round, multiply, add."""
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, 0, 255)
        scales = self.weight.detach().abs().flatten(1).amax(1).clamp_min(EPS) / self.largest
        weight = torch.fake_quantize_per_channel_affine(
            self.weight, scales, torch.zeros_like(scales, dtype=torch.int32), 0, -self.largest, self.largest
        )
        return self.product(x, weight, self.bias)  # type: ignore[no-any-return]
