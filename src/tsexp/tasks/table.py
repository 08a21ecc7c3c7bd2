"""Which tasks there are."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsexp.data import Dataset

TASKS = {"classification": "tsexp.tasks.classification"}


def of(dataset: Dataset) -> Any:
    """Return the task of a dataset."""
    return named(dataset.task)


def named(name: str) -> Any:
    """Return a task's module."""
    return importlib.import_module(TASKS[name])
