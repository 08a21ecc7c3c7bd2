"""Patch transformers, each an ordinary model described by its `Arch`.

A pruned one is nothing special: heads and FFN widths may differ per block, so that ``arch.json`` and a
safetensors file rebuild any of them.
"""

from tsexp.models.transformer.arch import Arch, Block, Config, architecture
from tsexp.models.transformer.classifier import Classifier, build, rebuild

__all__ = ["Arch", "Block", "Classifier", "Config", "architecture", "build", "rebuild"]
