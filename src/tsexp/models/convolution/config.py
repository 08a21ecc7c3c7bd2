"""The ``model`` group of the convolutional networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from omegaconf import MISSING

from tsexp.config import ModelConfig

TAKES = {
    "fcn": (),
    "resnet": (),
    "inception": ("bottleneck", "members"),
    "lite": ("separable", "dilations", "fixed", "members"),
}
"""Network → its own keys, beside `filters` and `kernels`, which all have."""

OWN = ("bottleneck", "separable", "dilations", "fixed", "members")
SAME_LENGTH = {"fcn": ("filters", "kernels"), "lite": ("separable", "dilations")}


def _above(least: int) -> Any:
    return field(default=None, metadata={"bounds": {"≥": least}})


@dataclass
class Config(ModelConfig):
    """Keys of all networks; what each of them means to a network, its file in ``conf/model`` says."""

    raw: ClassVar[bool] = True

    net: str = field(default="fcn", metadata={"allowed": tuple(TAKES)})
    filters: list[int] = field(default=MISSING)
    kernels: list[int] = field(default=MISSING)
    bottleneck: int | None = _above(0)
    separable: list[int] | None = None
    dilations: list[int] | None = None
    fixed: list[int] | None = None
    members: int | None = _above(1)

    def problems(self) -> list[str]:
        """The keys that the network has, no others, no list empty, and of one length what goes together."""
        if self.net not in TAKES:  # which the range of `net` tells
            return []
        given = {name for name in OWN if getattr(self, name) is not None}
        found = [
            f"model.{name} is not a key of model.net={self.net}; it has filters, kernels"
            f"{''.join(f', {own}' for own in TAKES[self.net])}"
            for name in OWN
            if name in given - set(TAKES[self.net])
        ]
        found += [
            f"model.{name} has no value; model.net={self.net} needs it"
            for name in TAKES[self.net]
            if name not in given
        ]
        lists = {k: v for k, v in asdict(self).items() if isinstance(v, list)}
        found += [
            f"model.{name}={values} is out of range; allowed: numbers ≥ 1, at least one"
            for name, values in lists.items()
            if not values or min(values) < 1
        ]
        for one, other in [SAME_LENGTH[self.net]] if self.net in SAME_LENGTH else []:
            a, b = lists.get(one, []), lists.get(other, [])
            if len(a) != len(b):
                found.append(
                    f"model.{one}={a} and model.{other}={b} have different lengths; give one of each per "
                    "convolution"
                )
        if self.net == "lite" and len(self.filters) != 1 + len(self.separable or []):
            found.append(
                f"model.filters={self.filters} must be one number for the first layer and one for each of "
                f"model.separable={self.separable}"
            )
        return found

    def asked(self) -> dict[str, Any]:
        """Return what the weights depend on; FCN was the only one once, and had no ``net``."""
        idle = {"net"} if self.net == "fcn" else set()
        return {k: v for k, v in asdict(self).items() if k not in idle and v is not None}
