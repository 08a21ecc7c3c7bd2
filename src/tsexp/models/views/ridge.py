"""Ridge regression on the features that T4's tokens are made of: what a transformer on them has to beat.

As in MiniROCKET (Dempster et al. 2021, arXiv 2012.08791), where features are plenty and series few.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from tsexp.data import Dataset
from tsexp.models.network import Network
from tsexp.models.views import linear
from tsexp.models.views.arch import FeatureArch, FeatureConfig, misnamed, sources
from tsexp.models.views.features import Features
from tsexp.models.views.rewrite import lean

VERSION = 1
PACKAGES = ("scikit-learn",)


@dataclass
class Config(FeatureConfig):
    """The ``model`` group."""

    gradient: ClassVar[bool] = False

    features: list[str] = field(default=MISSING)

    def problems(self) -> list[str]:
        """Some known features, each once."""
        return misnamed("model.features", self.features) or (
            [] if set(self.features) - {"intervals.raw"} else ["model.features must name one that is not raw"]
        )


class RidgeClassifier(Network):
    """Features → class scores, linear in all of them.

    Parameters
    ----------
    arch
        The description, of one view; ``model.arch`` afterwards.
    """

    family: ClassVar[str] = "ridge"
    STEM: ClassVar[tuple[str, ...]] = ("preprocess",)

    arch: FeatureArch

    def __init__(self, arch: FeatureArch) -> None:
        super().__init__()
        self.arch = arch
        self.preprocess = Features(arch)  # type: ignore[assignment]
        self.head = nn.Linear(self.preprocess.mean.numel(), len(arch.classes))  # type: ignore[operator,union-attr]

    @property
    def at_once(self) -> int:
        """As its features."""
        return self.preprocess.at_once  # type: ignore[return-value]

    def fit(self, dataset: Dataset, seed: int) -> list[dict[str, float]]:
        """Fit on ``dataset.fit``; nothing is drawn, and there are no training curves."""
        features: Any = self.preprocess
        features.adapt(torch.from_numpy(dataset.x_train[dataset.fit]))
        self.refit(dataset)
        return []

    @torch.no_grad()
    def refit(self, dataset: Dataset) -> None:
        """Fit the linear function alone, to the features that there are."""
        features: Any = self.preprocess
        x = features.of(dataset.x_train[dataset.fit])
        y = torch.from_numpy(dataset.y_train[dataset.fit])
        weight, bias = linear.ridge(x, y, len(self.arch.classes))
        self.head.weight.copy_(weight)
        self.head.bias.copy_(bias)
        self.eval()

    def network(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features (batch, numbers) → class scores."""
        return self.head(x)  # type: ignore[no-any-return]

    def prunable(self) -> int:
        """Tokens and kernels."""
        return sum(len(s.tokens) + len(s.kernels) for s in self.arch.sources)

    def deployable(
        self, fused: bool = False, first_only: bool = True, products: bool = True, flat: bool = False
    ) -> Self:
        """With `flat`, features in fewer operations (`views.rewrite`)."""
        new = copy.deepcopy(self).eval().requires_grad_(False)
        if flat:
            lean(new.preprocess)  # type: ignore[arg-type]
        return new


def build(config: Config, dataset: Dataset) -> RidgeClassifier:
    """Return an unfitted model for a dataset."""
    arch = FeatureArch.of(dataset, **sources(config, [config.features], dataset)).check(dataset)
    return RidgeClassifier(arch)


def rebuild(arch: dict[str, Any]) -> RidgeClassifier:
    """Return the model that ``arch.json`` describes."""
    return RidgeClassifier(FeatureArch.from_dict(arch)).eval()
