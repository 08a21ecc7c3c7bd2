"""What a figure of the study returns, and what it may refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNTIMES = ("eager", "inductor", "onnxruntime", "openvino")


class CannotDraw(Exception):
    """The data at hand has not what this figure shows; the message says what is missing."""


class Drawing(NamedTuple):
    """A figure, and what its caption has to say."""

    figure: Figure
    notes: list[str]
