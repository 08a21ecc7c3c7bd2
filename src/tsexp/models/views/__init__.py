"""A transformer whose tokens are features of a series, in views that answer apart and are averaged."""

from tsexp.models.views.arch import Arch, Config, Source
from tsexp.models.views.classifier import EACH, ViewClassifier, build, rebuild

VERSION = 4

__all__ = ["EACH", "Arch", "Config", "Source", "ViewClassifier", "build", "rebuild"]
