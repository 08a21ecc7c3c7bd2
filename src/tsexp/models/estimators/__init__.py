"""Estimators of aeon: fitted at once, and not exported to other runtimes.

They answer as aeon does; where what it does around the work takes longer than the work, with less of it.
Each is a family of its own, with its own keys; to runtimes and steps of compression all are ``estimator``.
Their folder is that of any model: plain values in ``arch.json``, arrays in safetensors. Loading builds aeon's
objects anew and gives them what they had learned; nothing is unpickled.
"""

from tsexp.models.estimators.base import PACKAGES, Estimator
from tsexp.models.estimators.dtw_1nn import NearestNeighbour
from tsexp.models.estimators.minirocket import MiniRocket
from tsexp.models.estimators.multirocket_hydra import MultiRocketHydra
from tsexp.models.estimators.quant_forest import QuantForest

__all__ = ["PACKAGES", "Estimator", "MiniRocket", "MultiRocketHydra", "NearestNeighbour", "QuantForest"]
