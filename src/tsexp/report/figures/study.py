"""What every figure of the study takes, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tsexp.report.frozen import Frozen
from tsexp.report.points import Points, colours

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RUNTIMES = ("eager", "inductor", "onnxruntime", "openvino")
MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")


class CannotDraw(Exception):
    """The data at hand has not what this figure shows; the message says what is missing."""


class Drawing(NamedTuple):
    """A figure, and what its caption has to say."""

    figure: Figure
    notes: list[str]


@dataclass(frozen=True)
class Study:
    """The data as every figure takes it.

    See `tsexp.report.points.Points`, and `Frozen` for the raw tables.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    controls: pd.DataFrame
    frozen: Frozen
    colours: dict[str, str]
    """Of the models."""


def gather(frozen: Frozen, chosen: Points) -> Study:
    """Put together what is drawn of these results."""
    return Study(chosen.runs, chosen.points, chosen.controls, frozen, colours(frozen))
