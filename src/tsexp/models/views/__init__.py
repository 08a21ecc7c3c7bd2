"""A transformer whose tokens are features of a series, in views that answer apart and are averaged.

`ridge` is a family of its own: what a linear classifier makes of the same features.
"""

from tsexp.models.views.arch import Arch, Config, FeatureArch, FeatureConfig, Source
from tsexp.models.views.classifier import EACH, ViewClassifier, build, rebuild

VERSION = 4
"""A change of the features raises that of `ridge`, too."""

__all__ = [
    "EACH",
    "Arch",
    "Config",
    "FeatureArch",
    "FeatureConfig",
    "Source",
    "ViewClassifier",
    "build",
    "rebuild",
]
