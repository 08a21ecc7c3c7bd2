"""Fitting a model, and fitting it further. Lightning is imported by the first fit: it takes seconds."""

from tsexp.training.fitted import LIBRARIES, STAGE_VERSION, Fitted, Teacher, fit, save, train

__all__ = ["LIBRARIES", "STAGE_VERSION", "Fitted", "Teacher", "fit", "save", "train"]
