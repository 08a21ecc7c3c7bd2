"""The networks by name, as a family of models needs them."""

from __future__ import annotations

from typing import Any

from tsexp.data import Dataset
from tsexp.models.convolution.config import Config
from tsexp.models.convolution.fcn import Arch, Convolutions
from tsexp.models.convolution.inception import InceptionArch, InceptionTime
from tsexp.models.convolution.lite import LiteArch, LiteTime
from tsexp.models.convolution.network import Convolutional
from tsexp.models.convolution.resnet import ResNet, ResNetArch

NETS: dict[str, tuple[Any, Any]] = {
    "fcn": (Arch, Convolutions),
    "resnet": (ResNetArch, ResNet),
    "inception": (InceptionArch, InceptionTime),
    "lite": (LiteArch, LiteTime),
}
"""``model.net`` → its description and its module."""


def build(config: Config, dataset: Dataset) -> Convolutional:
    """Return an untrained model for a dataset."""
    arch, net = NETS[config.net]
    return net(arch.build(config, dataset))  # type: ignore[no-any-return]


def rebuild(raw: dict[str, Any]) -> Convolutional:
    """Return the model that ``arch.json`` describes; FCN was the only one once, and has no ``net`` there."""
    arch, net = NETS[raw.get("net", "fcn")]
    return net(arch.from_dict(raw)).eval()  # type: ignore[no-any-return]
