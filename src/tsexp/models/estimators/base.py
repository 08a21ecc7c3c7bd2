"""What all estimators share: preprocessing, too short series, and generators that others draw from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from tsexp.config import ConfigError, ModelConfig
from tsexp.data import Dataset, FloatArray, IntArray
from tsexp.models.arch import BaseArch
from tsexp.models.preprocess import Preprocess

PACKAGES = ("aeon", "numba", "scikit-learn")
ROCKET = ("channels_per_combination", "channels", "dilations", "features_per_dilation", "biases")
"""What aeon's transforms with fixed kernels keep, in its order; of one channel, some keep the last three."""


@dataclass
class EstimatorConfig(ModelConfig):
    """The ``model`` group of an estimator."""

    gradient: ClassVar[bool] = False


class Estimator(ABC):
    """A model that fits itself; padding is zeros, which it takes for data.

    Parameters
    ----------
    arch
        The description; ``model.arch`` afterwards. Its own fields are keys of the configuration.
    """

    family: ClassVar[str]
    arch_type: ClassVar[type[BaseArch]]
    shortest: ClassVar[int] = 1
    """Steps of a series, at least."""

    def __init__(self, arch: Any) -> None:
        self.arch = arch
        self.preprocess = Preprocess(arch.preprocessing)
        self.threads = 1

    @classmethod
    def build(cls, config: Any, dataset: Dataset) -> Self:
        """Return an estimator that is still to be fitted.

        Raises
        ------
        ConfigError
            If the series are too short.
        """
        length = dataset.preprocessing.length
        if length < cls.shortest:
            raise ConfigError(
                f"model={config.name} takes series of at least {cls.shortest} steps, those of {dataset.name} "
                f"have {length}; data.length resamples them to more"
            )
        own = {f.name: getattr(config, f.name) for f in fields(cls.arch_type) if hasattr(config, f.name)}
        return cls(cls.arch_type.of(dataset, **own))

    @classmethod
    def rebuild(cls, arch: dict[str, Any]) -> Self:
        """Return what ``arch.json`` describes, without what it learned."""
        return cls(cls.arch_type.from_dict(arch))

    def fit(self, dataset: Dataset, seed: int) -> list[dict[str, float]]:
        """Fit on ``dataset.fit``; there are no training curves."""
        with undisturbed():
            self.learn(self._preprocessed(dataset.x_train[dataset.fit]), dataset.y_train[dataset.fit], seed)
        self.set_state(self.state())  # laid out in memory as after loading: products round alike
        return []

    def scores(self, series: FloatArray) -> FloatArray:
        """Raw series (batch, channels, time) → class scores (batch, classes), both float32."""
        with torch.inference_mode():
            return np.ascontiguousarray(self.answer(self._preprocessed(series)), np.float32)

    def use_threads(self, count: int) -> None:
        """Let one call use so many; PyTorch's are the process's."""
        self.threads = count

    @abstractmethod
    def learn(self, x: FloatArray, y: IntArray, seed: int) -> None:
        """Fit on preprocessed series; global generators may be seeded."""

    @abstractmethod
    def answer(self, x: FloatArray) -> FloatArray:
        """Preprocessed series → class scores."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the arrays that answers depend on, by name."""

    @abstractmethod
    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Build aeon's and scikit-learn's objects as fitting leaves them."""

    @torch.inference_mode()
    def _preprocessed(self, series: FloatArray) -> FloatArray:
        x, _ = self.preprocess(torch.from_numpy(series))
        return x.numpy()  # type: ignore[no-any-return]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave alone what aeon sets for a whole process: NumPy's and PyTorch's generators, PyTorch's threads."""
    before, threads = np.random.get_state(), torch.get_num_threads()
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(before)
        torch.set_num_threads(threads)


def tensors_of(arrays: dict[str, Any]) -> dict[str, Tensor]:
    """Return arrays as a state."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def ridge_of(coef: Any, intercept: Any) -> Any:
    """Build a ridge classifier that has learned this."""
    from sklearn.linear_model import RidgeClassifierCV

    ridge = RidgeClassifierCV()
    ridge.coef_, ridge.intercept_ = coef, intercept
    return ridge


def margins(decision: FloatArray) -> FloatArray:
    """Decision function of a linear classifier → a column for each class."""
    return (
        np.stack([-decision, decision], 1) if decision.ndim == 1 else decision
    )  # of two classes, the second
