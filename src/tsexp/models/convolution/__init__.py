"""Convolutional networks for time series, each an ordinary model described by its ``arch``."""

from tsexp.models.convolution.config import Config
from tsexp.models.convolution.fcn import Arch, Convolutions
from tsexp.models.convolution.nets import build, rebuild
from tsexp.models.convolution.network import Convolutional

VERSION = 1

__all__ = ["Arch", "Config", "Convolutional", "Convolutions", "build", "rebuild"]
