"""MultiROCKET (Tan et al. 2022, arXiv 2102.00457), Hydra (Dempster et al. 2023, arXiv 2203.13652), ridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tsexp.config import number
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
    undisturbed,
)

LIKE = "estimator"


@dataclass
class Config(EstimatorConfig):
    """The keys of the ``model`` group."""

    n_kernels: int = number(ge=2)
    n_groups: int = number(ge=1)


@dataclass(frozen=True)
class Arch(BaseArch):
    """All but what is learned.

    Attributes
    ----------
    n_kernels
        Of Hydra, in a group: they compete.
    n_groups
        Of Hydra, for each dilation.
    """

    n_kernels: int
    n_groups: int


class MultiRocketHydra(Estimator):
    """aeon's `MultiRocketHydraClassifier`."""

    family = "multirocket_hydra"
    arch_type = Arch
    shortest = 10  # first differences are still as long as the kernels

    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        from aeon.classification.convolution_based import MultiRocketHydraClassifier

        made = MultiRocketHydraClassifier(self.arch.n_kernels, self.arch.n_groups, random_state=seed)
        made.fit(x, y)
        self._hydra, self._hydra_scaler = made._transform_hydra, made._scale_hydra
        self._rocket, self._rocket_scaler = made._transform_multirocket, made._scale_multirocket
        self._ridge: Any = made.classifier

    def answer(self, x: FloatArray) -> FloatArray:
        hydra = self._hydra_scaler.transform(self._hydra.transform(x)).numpy()
        rocket = self._rocket_scaler.transform(self._rocket.transform(x))
        return margins(self._ridge.decision_function(np.concatenate([hydra, rocket], 1)))

    def state(self) -> dict[str, Tensor]:
        hydra, rocket = self._hydra._hydra, self._rocket
        return tensors_of(
            {"hydra.kernels": hydra.W, "hydra.channels": np.stack(hydra.idx)}
            | {"hydra.mean": self._hydra_scaler.mu, "hydra.spread": self._hydra_scaler.sigma}
            | _named("series", rocket.parameter)
            | _named("differences", rocket.parameter1)
            | {"rocket.mean": self._rocket_scaler.mean_, "rocket.spread": self._rocket_scaler.scale_}
            | {"ridge.coef": self._ridge.coef_, "ridge.intercept": self._ridge.intercept_}
        )

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        from aeon.classification.convolution_based._hydra import _SparseScaler
        from aeon.transformations.collection.convolution_based import MultiRocket
        from aeon.transformations.collection.convolution_based._hydra import HydraTransformer
        from sklearn.preprocessing import StandardScaler

        arrays = {name: t.numpy() for name, t in tensors.items()}
        self._hydra = HydraTransformer(self.arch.n_kernels, self.arch.n_groups)
        with undisturbed():  # it draws kernels
            self._hydra.fit(np.zeros((1, self.arch.channels, self.arch.preprocessing.length), np.float32))
        self._hydra._hydra.W, self._hydra._hydra.idx = tensors["hydra.kernels"], [*tensors["hydra.channels"]]
        self._hydra_scaler = _SparseScaler()
        self._hydra_scaler.mu, self._hydra_scaler.sigma = tensors["hydra.mean"], tensors["hydra.spread"]
        self._rocket = MultiRocket(random_state=0)  # which decides nothing any more
        self._rocket.parameter, self._rocket.parameter1 = (
            tuple(arrays[f"{part}.{name}"] for name in ROCKET if f"{part}.{name}" in arrays)
            for part in ("series", "differences")
        )
        self._rocket.is_fitted, self._rocket.random_state_, self._rocket._n_jobs = True, 0, self.threads
        self._rocket_scaler = StandardScaler()
        self._rocket_scaler.mean_, self._rocket_scaler.scale_ = arrays["rocket.mean"], arrays["rocket.spread"]
        self._rocket_scaler.n_features_in_ = len(arrays["rocket.mean"])
        self._ridge = ridge_of(arrays["ridge.coef"], arrays["ridge.intercept"])

    def use_threads(self, count: int) -> None:
        super().use_threads(count)
        self._rocket._n_jobs = count


def _named(part: str, parameters: tuple[Any, ...]) -> dict[str, Any]:
    return {f"{part}.{k}": v for k, v in zip(ROCKET[-len(parameters) :], parameters, strict=True)}


build, rebuild = MultiRocketHydra.build, MultiRocketHydra.rebuild
