"""Which tasks there are."""

from __future__ import annotations

import importlib
from typing import Any

from tsexp.data import Dataset

TASKS = {"classification": "tsexp.tasks.classification"}


def of(dataset: Dataset) -> Any:
    """Return the task module of a dataset."""
    return importlib.import_module(TASKS[dataset.task])
