"""Classifiers for time series: families of models, described by an ``arch`` and rebuilt without pickle."""

from tsexp.models.counting import Layer, count_macs, count_parameters, summary
from tsexp.models.family import Model, build, family_of, load, rebuild, save
from tsexp.models.network import Network

__all__ = [
    "Layer",
    "Model",
    "Network",
    "build",
    "count_macs",
    "count_parameters",
    "family_of",
    "load",
    "rebuild",
    "save",
    "summary",
]
