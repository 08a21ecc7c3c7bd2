"""QUANT (Dempster et al. 2024, arXiv 2308.00928): quantiles of intervals, then extremely randomized trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tsexp.config import number
from tsexp.data import FloatArray, IntArray
from tsexp.models.arch import BaseArch
from tsexp.models.estimators.base import PACKAGES as PACKAGES
from tsexp.models.estimators.base import Estimator, EstimatorConfig, tensors_of
from tsexp.models.estimators.quantiles import Quantiles

LIKE = "estimator"
VERSION = 3


@dataclass
class Config(EstimatorConfig):
    """The keys of the ``model`` group."""

    interval_depth: int = number(ge=1)
    quantile_divisor: int = number(ge=1)
    n_trees: int = number(ge=1)
    max_features: float = number(gt=0, le=1)


@dataclass(frozen=True)
class Arch(BaseArch):
    """All but what is learned.

    Attributes
    ----------
    interval_depth
        How often the series is halved into intervals, the whole series included.
    quantile_divisor
        Steps of an interval to one quantile.
    n_trees
        Of the forest.
    max_features
        Share of the features that are tried at each split.
    """

    interval_depth: int
    quantile_divisor: int
    n_trees: int
    max_features: float


class QuantForest(Estimator):
    """aeon's `QUANTClassifier`, bit for bit, at less work.

    Of aeon's transform only the intervals are kept: `Quantiles` sorts many of them at once. Of scikit-learn's
    forest only the nodes: `Trees`.
    """

    family = "quant_forest"
    arch_type = Arch
    shortest = 3  # of which second differences are left

    NODE = ("left_child", "right_child", "feature", "threshold")
    """Fields of scikit-learn's nodes that answers depend on; the features are never missing."""

    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        from aeon.classification.interval_based import QUANTClassifier
        from sklearn.ensemble import ExtraTreesClassifier

        fresh = QUANTClassifier(
            self.arch.interval_depth,
            self.arch.quantile_divisor,
            ExtraTreesClassifier(self.arch.n_trees, criterion="entropy", max_features=self.arch.max_features),
            random_state=seed,
        ).fit(x, y)
        forest = getattr(fresh, "estimator_", None) or fresh._estimator  # the latter before aeon 1.6
        trees = [tree.tree_ for tree in forest.estimators_]
        nodes = [tree.__getstate__()["nodes"] for tree in trees]
        self._state = tensors_of(
            {"sizes": [len(n) for n in nodes]}
            | {name: np.concatenate([n[name] for n in nodes]) for name in self.NODE}
            | {"frequencies": np.concatenate([tree.value[:, 0] for tree in trees])}
        )

    def answer(self, x: FloatArray) -> FloatArray:
        """Preprocessed series → logarithms of class probabilities; 0 becomes what adds nothing to 1."""
        frequencies = self._trees(self._quantiles(x))
        return np.log(np.maximum(frequencies, np.finfo(np.float32).eps))  # type: ignore[no-any-return]

    def state(self) -> dict[str, Tensor]:
        return self._state

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        from aeon.transformations.collection.interval_based import QUANTTransformer

        from tsexp.models.estimators.trees import Trees

        channels, length = self.arch.channels, self.arch.preprocessing.length
        transform = QUANTTransformer(self.arch.interval_depth, self.arch.quantile_divisor)
        transform.fit_transform(np.zeros((1, channels, length), np.float32))
        self._quantiles = Quantiles(transform.intervals_, length, self.arch.quantile_divisor)
        self._state = tensors
        self._trees = Trees(**{name: t.numpy() for name, t in tensors.items()})


build, rebuild = QuantForest.build, QuantForest.rebuild
