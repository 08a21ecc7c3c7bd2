"""What runs say of themselves, for those who write it and those who look for it."""

import math
from collections.abc import Mapping
from typing import Any

PROTOCOL_VERSION = 3
"""Of measuring (docs/measuring.md). Runs of another one are not read from a store; of frozen results, those
of version 2 are, and are never averaged with these."""
ESTIMATED = "estimated:"
"""How a source of energy begins that no counter measures."""
NOT_FINITE = "scores that are not finite"
CHANGED = "changed while it was measured"
OTHERWISE = "answers otherwise than when it was scored"
NOT_ITS_SCORES = (NOT_FINITE, CHANGED, OTHERWISE)
"""In the reasons to be invalid that spare not even the accuracy."""
SWEEP, COMPARISON, MEASUREMENT = "sweep", "compare", "measure"
OTHERS = {SWEEP: "a sweep", COMPARISON: "a comparison", MEASUREMENT: "a measurement of something else"}
"""Stages (tag ``tsexp.stage``) of runs that are no experiment → what they are."""
ATTACHED_TO = "tsexp.attached_to"
"""Tag of a run that a power log made: the run that it is of."""
FROM_RUN = "tsexp.merged_run"
"""Tag of a run that was brought from another store: the run that it was copied from."""
FROM_STORE = "tsexp.merged_from"
"""Tag of such a run: the store that it was copied from. ``tsexp.host`` says which machine measured it."""
IN_BATCHES = "matmuls_in_batches"
"""What a manifest has beside ``matmuls``, of the graph that runs for batches."""
FEW = 30
"""Fewer validation series than this hardly choose better than chance."""
ENDS = ("", "_lo", "_hi")
"""Of a name: the value itself, and the ends of its interval."""


def products(manifest: Mapping[str, Any], batch_size: int) -> dict[str, int]:
    """Number format → products of the graph that runs for batches of this size; empty where none is known."""
    alone: dict[str, int] = manifest.get("matmuls", {})
    return manifest.get(IN_BATCHES, alone) if batch_size > 1 else alone


def label_order(label: str) -> tuple[float, str]:
    """Key to sort labels of classes by: numbers by size, then words."""
    try:
        number = float(label)
    except ValueError:
        number = math.inf
    return (number if math.isfinite(number) else math.inf), label  # a class may be called nan
