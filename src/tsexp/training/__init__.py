"""Fitting a model, and fitting it further. Lightning is imported by the first fit: it takes seconds."""

from tsexp.training.fitted import STAGE_VERSION, Fitted, fit, keepers, save, train
from tsexp.training.teacher import Teacher

__all__ = ["STAGE_VERSION", "Fitted", "Teacher", "fit", "keepers", "save", "train"]
