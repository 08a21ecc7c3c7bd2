"""The figures of the study."""

from tsexp.report.figures.draw import FIGURES, draw
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.points import Study

__all__ = ["FIGURES", "CannotDraw", "Drawing", "Study", "draw"]
