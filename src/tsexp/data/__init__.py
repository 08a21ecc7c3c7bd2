"""Datasets: where their files are (`archive`), how one is read (`tsfile`), what a model gets (`series`)."""

from tsexp.data.archive import ensure, find
from tsexp.data.series import (
    LARGEST,
    NONE_WITHHELD,
    SMALL,
    Dataset,
    FloatArray,
    IntArray,
    Preprocessing,
    at_hand,
    ended,
    filled,
    load,
    read_one,
    small_of,
    stack,
    with_test,
)

__all__ = [
    "LARGEST",
    "NONE_WITHHELD",
    "SMALL",
    "Dataset",
    "FloatArray",
    "IntArray",
    "Preprocessing",
    "at_hand",
    "ended",
    "ensure",
    "filled",
    "find",
    "load",
    "read_one",
    "small_of",
    "stack",
    "with_test",
]
