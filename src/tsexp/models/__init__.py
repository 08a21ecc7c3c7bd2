"""Classifiers for time series: families of models, described by an ``arch`` and rebuilt without pickle."""

from tsexp.models.counting import count_macs, count_parameters
from tsexp.models.family import Model, build, check_scores, family_of, load, rebuild, save
from tsexp.models.network import Network, using_threads

__all__ = [
    "Model",
    "Network",
    "build",
    "check_scores",
    "count_macs",
    "count_parameters",
    "family_of",
    "load",
    "rebuild",
    "save",
    "using_threads",
]
