"""Accuracy, latency and energy of exactly what would be deployed, against a reference (`measuring`)."""

from tsexp.energy.measuring import (
    LEAST_PROCESSES,
    PRELOAD,
    MeasuringFailed,
    Scores,
    choose,
    measure,
    peaks,
    score,
)
from tsexp.energy.record import Record, costs_of, sizes_of

__all__ = [
    "LEAST_PROCESSES",
    "PRELOAD",
    "MeasuringFailed",
    "Record",
    "Scores",
    "choose",
    "costs_of",
    "measure",
    "peaks",
    "score",
    "sizes_of",
]
