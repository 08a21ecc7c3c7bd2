"""MiniROCKET (Dempster et al. 2021, arXiv 2012.08791), then ridge: aeon's `MiniRocketClassifier`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tsexp.config import choice, number
from tsexp.data import FloatArray, IntArray
from tsexp.models.arch import BaseArch
from tsexp.models.estimators.base import PACKAGES as PACKAGES
from tsexp.models.estimators.base import ROCKET, Estimator, EstimatorConfig, margins, tensors_of

VERSION = 2


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
    """Of each feature, how often a convolution exceeds a bias; ridge regression on them.

    aeon's transform is asked directly, scaling and ridge are a division and a product: with what aeon and
    scikit-learn do around them, the same but for rounding, a single series takes up to 1.8 times as long.
    """

    family = "estimator"  # the first there was
    arch_type = Arch
    shortest = 9  # as long as the kernels

    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        from aeon.classification.convolution_based import MiniRocketClassifier

        fresh = MiniRocketClassifier(self.arch.n_kernels, self.arch.max_dilations, random_state=seed)
        rocket, scaler, ridge = (step for _, step in fresh.fit(x, y).pipeline_.steps)
        self._rocket: Any = rocket
        self._scale, self._coef, self._intercept = scaler.scale_, ridge.coef_, ridge.intercept_

    def answer(self, x: FloatArray) -> FloatArray:
        features = self._rocket._transform(x)
        features /= self._scale.astype(features.dtype)
        decision = features.astype(np.float64) @ self._columns + self._intercept
        return margins(decision.reshape(len(x)) if decision.size == len(x) else decision)

    def state(self) -> dict[str, Tensor]:
        return tensors_of(
            {f"transform.{k}": v for k, v in zip(ROCKET, self._rocket.parameters, strict=True)}
            | {"scaler.scale": self._scale}
            | {"ridge.coef": self._coef, "ridge.intercept": self._intercept}
        )

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        from aeon.transformations.collection.convolution_based import MiniRocket as Transform

        arrays = {name: t.numpy() for name, t in tensors.items()}
        self._rocket = Transform(self.arch.n_kernels, self.arch.max_dilations)
        self._rocket.parameters = tuple(arrays[f"transform.{name}"] for name in ROCKET)
        self._rocket.is_fitted, self._rocket._n_jobs = True, self.threads
        self._scale, self._coef = arrays["scaler.scale"], arrays["ridge.coef"]
        self._intercept = arrays["ridge.intercept"]
        # In double: features that hardly vary are scaled to tens of thousands, and cancel.
        self._columns = self._coef.T.astype(np.float64)

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self._rocket._n_jobs = count


build, rebuild = MiniRocket.build, MiniRocket.rebuild
