"""Energy, accuracy and latency of compressed models for time series, measured on what would be deployed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsexp.classifier import CompressedTransformerClassifier
    from tsexp.measure import measure_energy

__version__ = "0.1.0"
__all__ = ["CompressedTransformerClassifier", "__version__", "measure_energy"]

LAZY = {
    "CompressedTransformerClassifier": "tsexp.classifier",
    "measure_energy": "tsexp.measure",
}
"""Name → its module, which imports libraries that take seconds: only when somebody asks."""


def __getattr__(name: str) -> Any:
    if name in LAZY:
        from tsexp.system.guest import guest

        with guest():  # what is imported changes the environment, and more
            return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
