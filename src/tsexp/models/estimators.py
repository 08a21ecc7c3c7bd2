"""Estimators of aeon, which run as they are: fitted at once, and not exported to other runtimes.

Their folder is that of any model: plain values in ``arch.json``, arrays in safetensors. Loading builds aeon's
object anew and gives it what it had learned; nothing is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tsexp.config import ConfigError, ModelConfig, choice, number
from tsexp.data import Dataset, FloatArray
from tsexp.models.arch import BaseArch
from tsexp.models.preprocess import Preprocess

PACKAGES = ("aeon", "numba", "scikit-learn")
SHORTEST = 9
"""Steps of a series: MiniROCKET's kernels are as long."""


@dataclass
class Config(ModelConfig):
    """The ``model`` group of an estimator."""

    estimator: str = choice("minirocket")
    n_kernels: int = number(ge=84)
    max_dilations: int = number(ge=1)

    gradient: ClassVar[bool] = False


@dataclass(frozen=True)
class Arch(BaseArch):
    """Of an estimator; padding is zeros, which it takes for data.

    Attributes
    ----------
    n_kernels
        Features of a series; a multiple of 84 is made of it.
    max_dilations
        Of each of the 84 kernels, at most.
    """

    estimator: str
    n_kernels: int
    max_dilations: int


class MiniRocket:
    """aeon's `MiniRocketClassifier`: MiniROCKET (Dempster et al. 2021, arXiv 2012.08791), then ridge.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards.
    """

    family = "estimator"

    TRANSFORM = ("channels_per_combination", "channels", "dilations", "features_per_dilation", "biases")
    """What `aeon.…MiniRocket.parameters` holds, in its order."""

    def __init__(self, arch: Arch) -> None:
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        self._pipeline: Any = None

    def fit(self, dataset: Dataset, seed: int) -> list[dict[str, float]]:
        """Fit on ``dataset.fit``; there are no training curves."""
        from aeon.classification.convolution_based import MiniRocketClassifier

        fresh = MiniRocketClassifier(self.arch.n_kernels, self.arch.max_dilations, random_state=seed)
        before = np.random.get_state()  # aeon seeds NumPy's global generator
        try:
            fresh.fit(self._preprocessed(dataset.x_train[dataset.fit]), dataset.y_train[dataset.fit])
        finally:
            np.random.set_state(before)
        self._pipeline = fresh.pipeline_
        self.set_state(self.state())  # laid out in memory as after loading: products round alike
        return []

    def scores(self, series: FloatArray) -> FloatArray:
        """Raw series (batch, channels, time) → what ridge regression says (batch, classes), both float32."""
        said = self._pipeline.decision_function(self._preprocessed(series))
        if said.ndim == 1:  # of two classes, the second
            said = np.stack([-said, said], 1)
        return np.ascontiguousarray(said, np.float32)

    def state(self) -> dict[str, Tensor]:
        """Return the arrays that answers depend on, by name."""
        rocket, scaler, ridge = (step for _, step in self._pipeline.steps)
        arrays = {f"transform.{k}": v for k, v in zip(self.TRANSFORM, rocket.parameters, strict=True)}
        arrays |= {"scaler.scale": scaler.scale_}
        arrays |= {"ridge.coef": ridge.coef_, "ridge.intercept": ridge.intercept_}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Build aeon's and scikit-learn's objects as fitting leaves them."""
        from aeon.transformations.collection.convolution_based import MiniRocket as Transform
        from sklearn.linear_model import RidgeClassifierCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        arrays = {name: t.numpy() for name, t in tensors.items()}
        rocket = Transform(self.arch.n_kernels, self.arch.max_dilations)
        rocket.parameters = tuple(arrays[f"transform.{name}"] for name in self.TRANSFORM)
        rocket.is_fitted, rocket._n_jobs = True, 1
        scaler, ridge = StandardScaler(with_mean=False), RidgeClassifierCV()
        scaler.scale_, ridge.coef_, ridge.intercept_ = (
            arrays[name] for name in ("scaler.scale", "ridge.coef", "ridge.intercept")
        )
        scaler.n_features_in_ = len(scaler.scale_)
        self._pipeline = make_pipeline(rocket, scaler, ridge)

    def use_threads(self, count: int) -> None:
        """Let one call use so many."""
        self._pipeline.steps[0][1]._n_jobs = count

    @torch.inference_mode()
    def _preprocessed(self, series: FloatArray) -> FloatArray:
        x, _ = self.preprocess(torch.from_numpy(series))
        return x.numpy()  # type: ignore[no-any-return]


ESTIMATORS = {"minirocket": MiniRocket}


def build(config: Config, dataset: Dataset) -> MiniRocket:
    """Return an estimator that is still to be fitted.

    Raises
    ------
    ConfigError
        If the series are too short.
    """
    length = dataset.preprocessing.length
    if length < SHORTEST:
        raise ConfigError(
            f"model={config.name} takes series of at least {SHORTEST} steps, those of {dataset.name} have "
            f"{length}; data.length={SHORTEST} resamples them"
        )
    return ESTIMATORS[config.estimator](
        Arch.of(
            dataset,
            estimator=config.estimator,
            n_kernels=config.n_kernels,
            max_dilations=config.max_dilations,
        )
    )


def rebuild(arch: dict[str, Any]) -> MiniRocket:
    """Return what ``arch.json`` describes, without what it learned."""
    made = Arch.from_dict(arch)
    return ESTIMATORS[made.estimator](made)
