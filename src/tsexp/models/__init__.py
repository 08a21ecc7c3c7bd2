"""Transformer classifiers for time series, each an ordinary model described by its `Arch`.

A pruned model is nothing special here: heads and FFN widths may differ per block, so that ``arch.json`` and a
safetensors file rebuild any of them.
"""

from tsexp.models.arch import Arch, Block, architecture
from tsexp.models.classifier import Classifier, load, save
from tsexp.models.counting import Layer, count_macs, count_parameters, summary

__all__ = [
    "Arch",
    "Block",
    "Classifier",
    "Layer",
    "architecture",
    "count_macs",
    "count_parameters",
    "load",
    "save",
    "summary",
]
