"""The figures of the study."""

from tsexp.report.figures.draw import FIGURES, draw
from tsexp.report.figures.study import CannotDraw, Drawing, Study

__all__ = ["FIGURES", "CannotDraw", "Drawing", "Study", "draw"]
