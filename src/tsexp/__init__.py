"""Energy, accuracy and latency of compressed models for time series, measured on what would be deployed."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tsexp.measure import measure_energy

__version__ = "0.1.0"
__all__ = ["measure_energy"]

_FACE = {
    "measure_energy": "tsexp.measure",
}
"""Name → the module that it is imported from when somebody asks for it."""


def __getattr__(name: str) -> Any:
    if name in _FACE:
        return getattr(import_module(_FACE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE})
