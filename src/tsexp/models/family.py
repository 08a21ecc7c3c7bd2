"""What a family of models is, and the folder that any model is kept in.

A family is a module with one line in `schema.FAMILIES` (or somebody's own, ``model.family=module:``) and

``Config``
    Dataclass of its ``model`` group: a subclass of `config.ModelConfig` with its own keys and their ranges.
``build(config, dataset)``
    An unfitted `Model` for a dataset; a network draws its weights from PyTorch's global generator.
``rebuild(arch)``
    The `Model` that an ``arch.json`` describes, without its weights.
``LIKE``
    Of a family whose name is not in `schema.KINDS`: as which of these runtimes and steps are to treat it.
``PACKAGES``
    Optional. Distributions, beside PyTorch, whose version decides what is learned; where that hangs on the
    configuration, ``Config.packages``.
``VERSION``
    Optional. Raised when what was fitted or measured before a change of its code no longer holds.

Which families a step of compression or a runtime takes, that step or runtime says.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tsexp.config import ConfigError, ModelConfig, family_module
from tsexp.data import Dataset, FloatArray


class Model(Protocol):
    """A classifier, fitted or not.

    Torch models are `Network`, and Lightning fits them. A model whose ``Config`` says that it is not fitted
    by gradient descent has ``fit(dataset, seed)``, which returns its training curves
    (`training.Fitted.history`; perhaps none). What is no torch model has ``use_threads(count)``, which says
    how many one call of `scores` may use.

    Attributes
    ----------
    family
        Name of its family.
    arch
        A frozen dataclass of plain values: all but the weights. It has ``channels``, ``classes`` and
        ``preprocessing``.
    """

    family: ClassVar[str]
    arch: Any

    def scores(self, series: FloatArray) -> FloatArray:
        """Raw series, float32 (batch, channels, time) → class scores, float32 (batch, classes)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything that was learned, by name."""
        ...

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        ...


def build(config: ModelConfig, dataset: Dataset) -> Model:
    """Fit a configuration to a dataset; nothing is learned yet.

    Raises
    ------
    ConfigError
        If the model says that it is of another family (as which it would be loaded again), or cannot be
        fitted as its configuration says.
    """
    model: Model = family_module(config.family).build(config, dataset)
    if model.family != config.family:
        raise ConfigError(
            f"model.family={config.family} builds a model whose `family` is {model.family}; "
            f'set family = "{config.family}" in its class'
        )
    if not (isinstance(model, nn.Module) if config.gradient else hasattr(model, "fit")):
        raise ConfigError(
            f"model.family={config.family}: `gradient` of its Config is {config.gradient}, and its model "
            f"{'is not a torch module' if config.gradient else 'has no fit(dataset, seed)'}; one of them is "
            "wrong"
        )
    return model


def check_scores(model: Model, dataset: Dataset) -> None:
    """Refuse a model of somebody's own with other scores: all that reads them would read them shifted.

    Raises
    ------
    ConfigError
        If two series are not answered by an array or a tensor with one score for each class.
    """
    series = dataset.x_train[dataset.fit[:2]]
    with torch.no_grad():
        raw: Any = model(torch.from_numpy(series)) if isinstance(model, nn.Module) else model.scores(series)
    wanted = (len(series), len(dataset.classes))
    found = tuple(raw.shape) if isinstance(raw, np.ndarray | Tensor) else None
    if found != wanted:
        answers = f"scores of shape {found}" if found is not None else f"a {type(raw).__name__}"
        raise ConfigError(
            f"the model of the family {model.family} answers {len(series)} series with {answers}, where "
            f"{wanted} is needed: one score for each of {dataset.name}'s classes"
        )


def save(model: Model, folder: Path) -> None:
    """Write ``arch.json`` and ``weights.safetensors`` into an existing folder."""
    arch = {"family": model.family, **asdict(model.arch)}
    if getattr(model, "replaced", None):
        arch["replaced"] = model.replaced  # type: ignore[attr-defined]
    (folder / "arch.json").write_text(json.dumps(arch, indent=1))
    # Copies: of what two names share, safetensors takes no second.
    weights = {k: v.detach().cpu().contiguous().clone() for k, v in model.state().items()}
    save_file(weights, folder / "weights.safetensors")


def family_of(folder: Path) -> str:
    """Return the family of a saved model."""
    # Before there were families, there were transformers.
    return str(json.loads((folder / "arch.json").read_text()).get("family", "transformer"))


def rebuild(folder: Path) -> Model:
    """Rebuild what `save` wrote, but for its weights."""
    arch = json.loads((folder / "arch.json").read_text())
    arch.pop("family", None)
    replaced = arch.pop("replaced", {})
    with torch.random.fork_rng(devices=[]):  # weights are drawn, and then those of the file are taken
        model: Any = family_module(family_of(folder)).rebuild(arch)
        if replaced:
            model.replace_again(replaced)
    return model  # type: ignore[no-any-return]


def load(folder: Path) -> Model:
    """Rebuild, ready to answer and bit-equal, what `save` wrote."""
    model = rebuild(folder)
    model.set_state(load_file(folder / "weights.safetensors"))
    return model
