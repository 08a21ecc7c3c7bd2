"""MiniROCKET (Dempster et al. 2021, arXiv 2012.08791), then ridge: aeon's `MiniRocketClassifier`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tsexp.config import choice, number
from tsexp.data import FloatArray, IntArray
from tsexp.models.arch import BaseArch
from tsexp.models.estimators.base import PACKAGES as PACKAGES
from tsexp.models.estimators.base import (
    ROCKET,
    Estimator,
    EstimatorConfig,
    margins,
    ridge_of,
    tensors_of,
)


@dataclass
class Config(EstimatorConfig):
    """The keys of the ``model`` group."""

    estimator: str = choice("minirocket")
    n_kernels: int = number(ge=84)
    max_dilations: int = number(ge=1)


@dataclass(frozen=True)
class Arch(BaseArch):
    """All but what is learned.

    Attributes
    ----------
    estimator
        ``minirocket``.
    n_kernels
        Features of a series; a multiple of 84 is made of it.
    max_dilations
        Of each of the 84 kernels, at most.
    """

    estimator: str
    n_kernels: int
    max_dilations: int


class MiniRocket(Estimator):
    """Of each feature, how often a convolution exceeds a bias; ridge regression on them."""

    family = "estimator"  # the first there was
    arch_type = Arch
    shortest = 9  # as long as the kernels

    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        from aeon.classification.convolution_based import MiniRocketClassifier

        fresh = MiniRocketClassifier(self.arch.n_kernels, self.arch.max_dilations, random_state=seed)
        self._pipeline: Any = fresh.fit(x, y).pipeline_

    def answer(self, x: FloatArray) -> FloatArray:
        return margins(self._pipeline.decision_function(x))

    def state(self) -> dict[str, Tensor]:
        rocket, scaler, ridge = (step for _, step in self._pipeline.steps)
        return tensors_of(
            {f"transform.{k}": v for k, v in zip(ROCKET, rocket.parameters, strict=True)}
            | {"scaler.scale": scaler.scale_}
            | {"ridge.coef": ridge.coef_, "ridge.intercept": ridge.intercept_}
        )

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        from aeon.transformations.collection.convolution_based import MiniRocket as Transform
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        arrays = {name: t.numpy() for name, t in tensors.items()}
        rocket = Transform(self.arch.n_kernels, self.arch.max_dilations)
        rocket.parameters = tuple(arrays[f"transform.{name}"] for name in ROCKET)
        rocket.is_fitted, rocket._n_jobs = True, self.threads
        scaler = StandardScaler(with_mean=False)
        scaler.scale_, scaler.n_features_in_ = arrays["scaler.scale"], len(arrays["scaler.scale"])
        self._pipeline = make_pipeline(
            rocket, scaler, ridge_of(arrays["ridge.coef"], arrays["ridge.intercept"])
        )

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self._pipeline.steps[0][1]._n_jobs = count


build, rebuild = MiniRocket.build, MiniRocket.rebuild
