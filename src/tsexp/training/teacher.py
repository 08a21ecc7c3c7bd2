"""From whom a model learns beside its labels."""

from __future__ import annotations

from dataclasses import dataclass

from tsexp.models import Network


@dataclass(frozen=True)
class Teacher:
    """The model to distil from (Hinton et al. 2015, arXiv 1503.02531).

    The loss is (1 - weight) · task + weight · T² · KL.
    """

    model: Network
    weight: float
    temperature: float
