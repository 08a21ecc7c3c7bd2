"""What a search must keep to: ``val/accuracy_drop_pt<=1``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsexp.config import ConfigError

WRITTEN = re.compile(r"\s*(?P<metric>[\w/.-]+)\s*(?P<sign><=|>=)\s*(?P<bound>\S+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on a metric of a run.

    Attributes
    ----------
    metric
        Its name in the store.
    sign
        1: at most `bound`; -1: at least.
    bound
        In the metric's unit.
    """

    metric: str
    sign: int
    bound: float

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far a run is beyond the bound, in the metric's unit; 0 or less: it keeps to it.

        Infinite for a run that has no such metric.
        """
        value = metrics.get(self.metric, math.nan)
        return math.inf if math.isnan(value) else self.sign * (value - self.bound)


def parse(written: Sequence[str]) -> list[Constraint]:
    """Read constraints.

    Raises
    ------
    ConfigError
        If one is none.
    """
    found = []
    for text in written:
        match = WRITTEN.fullmatch(str(text))
        try:
            if match is None:
                raise ValueError
            bound = float(match["bound"])
            if not math.isfinite(bound):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"hydra.sweeper.constraints: {text} is none; write METRIC<=NUMBER or METRIC>=NUMBER, e.g. "
                "'hydra.sweeper.constraints=[\"val/accuracy_drop_pt<=1\"]'"
            ) from None
        found.append(Constraint(match["metric"], 1 if match["sign"] == "<=" else -1, bound))
    return found


def keeps(metrics: Mapping[str, float], constraints: Sequence[Constraint]) -> bool:
    """Say whether a run keeps to all of them."""
    return all(c.violation(metrics) <= 0 for c in constraints)
