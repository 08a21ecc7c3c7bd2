"""Quantization-aware training: fine-tuning with fake quantization, so that the weights know what int8 will do to them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tsexp import training
from tsexp.cache import Cache
from tsexp.config import QuantConfig, TrainConfig
from tsexp.data import Dataset
from tsexp.models import Classifier
from tsexp.quiet import quiet
from tsexp.training import Fitted, Teacher

STAGE_VERSION = 1
DISTILL, TEMPERATURE = 0.5, 2.0
"""The teacher is the model itself before any rounding: it must only learn to live with it."""


def tune(model: Fitted, quant: QuantConfig, recipe: TrainConfig, seed: int, dataset: Dataset, cache: Cache) -> Fitted:
    """Return a model of the same architecture, fine-tuned with fake quantization; in every mode but ``qat`` the model itself.

    Weights per channel symmetric, activations per token asymmetric, as torchao fakes them (Jacob et al. 2018, arXiv 1712.05877). What comes out is an
    ordinary fp32 model: quantizing it is the runtime's work.

    Parameters
    ----------
    model
        Dense or pruned; also the teacher.
    quant
        The ``quant`` group: ``qat_epochs``, ``qat_lr``.
    recipe
        The ``train`` group, followed with those two.
    seed
        Of the fine-tuning.
    dataset
        Only the train split is used.
    cache
        Where the result is kept.
    """
    if quant.mode != "qat":
        return model
    tuning = replace(recipe, epochs=quant.qat_epochs, lr=quant.qat_lr, warmup=0.0)

    def build(folder: Path) -> None:
        fake, before = model.load(), model.load()
        _fake_quantize(fake)
        title = f"fine-tune {dataset.name} with fake quantization"
        history = training.fit(fake, tuning, dataset, seed, title, Teacher(before, DISTILL, TEMPERATURE))
        plain = Classifier(fake.arch)
        plain.load_state_dict(fake.state_dict())
        training.save(plain, history, folder)

    key = {"model": model.signature, "tuning": training.recipe(tuning), "seed": seed, "distill": [DISTILL, TEMPERATURE]}
    return Fitted(cache.stage("qat", STAGE_VERSION, key, build))


def _fake_quantize(model: Classifier) -> None:
    import torch

    with quiet():
        from torchao.quantization import quantize_
        from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    activations = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    weights = IntxFakeQuantizeConfig(torch.int8, "per_channel")
    quantize_(model, QATConfig(activation_config=activations, weight_config=weights, step="prepare"))
