"""The nearest series under dynamic time warping (Sakoe and Chiba 1978, doi 10.1109/TASSP.1978.1163055)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tsexp.config import number
from tsexp.data import FloatArray, IntArray
from tsexp.models.arch import BaseArch
from tsexp.models.estimators.base import PACKAGES as PACKAGES
from tsexp.models.estimators.base import Estimator, EstimatorConfig, tensors_of

LIKE = "estimator"


@dataclass
class Config(EstimatorConfig):
    """The keys of the ``model`` group."""

    window: float = number(ge=0, le=1)


@dataclass(frozen=True)
class Arch(BaseArch):
    """All but what is learned.

    Attributes
    ----------
    window
        How far a step may be aligned with an earlier or a later one, as a share of the series.
    """

    window: float


class NearestNeighbour(Estimator):
    """A class's score is minus aeon's distance to the nearest of its series; channels are warped together."""

    family = "dtw_1nn"
    arch_type = Arch

    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        self._series, self._sizes = x[np.argsort(y, kind="stable")], np.bincount(y)

    def answer(self, x: FloatArray) -> FloatArray:
        from aeon.distances import dtw_pairwise_distance

        # The threads share the first ones: there are many, however small the batch.
        distances = dtw_pairwise_distance(self._series, x, self.arch.window, n_jobs=self.threads)
        firsts = np.cumsum(self._sizes) - self._sizes
        return -np.minimum.reduceat(distances, firsts).T  # type: ignore[no-any-return]

    def state(self) -> dict[str, Tensor]:
        return tensors_of({"series": self._series, "sizes": self._sizes})

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        self._series, self._sizes = tensors["series"].numpy(), tensors["sizes"].numpy()


build, rebuild = NearestNeighbour.build, NearestNeighbour.rebuild
