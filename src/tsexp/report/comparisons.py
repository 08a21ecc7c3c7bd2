"""What `tsexp.compare` found: two deployments head to head, their windows in alternation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsexp.config import digest
from tsexp.marks import ENDS
from tsexp.report.store import Row

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("a", "b")
_INTERVALS = ("difference_pt", "measured_saving_pct", "estimated_saving_pct", "speedup", "cpu_speedup")
KINDS: dict[str, str] = {
    **dict.fromkeys(("run_id", "dataset", "data_checksum", "cpu", "machine", "energy_source"), "str"),
    **{
        f"{name}_{side}": kind
        for name, kind in (
            *((k, "str") for k in ("run_id", "model", "runtime", "method", "scope", "mode")),
            *((k, "float") for k in ("ratio", "macs", "accuracy", "measured_j", "estimated_j", "call_ms")),
            *((k, "int") for k in ("seed", "only_right")),
        )
        for side in SIDES
    },
    **{f"{name}{end}": "float" for name in _INTERVALS for end in ENDS},
    "mcnemar_p": "float",
    **dict.fromkeys(("batch_size", "threads", "repeats", "processes"), "int"),
    "window_s": "float",
    "valid": "bool",
    "warnings": "str",
}
"""Column → kind. Those that end in ``_a`` and ``_b`` are of one side; a difference is A less B, a saving or
speedup that of A against B. What the windows say is empty where the measurement is invalid."""
ONCE = ("run_id_a", "run_id_b", "machine", "energy_source", "batch_size", "threads")
"""One row for each, the newest valid one."""
GONE = "compared with a run that is not there any more"


def none() -> pd.DataFrame:
    """Return a table without a row."""
    return table([])


def table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with the columns and kinds of `KINDS`, in an order that is always the same."""
    import pandas as pd

    made = pd.DataFrame([dict(row) for row in rows], columns=list(KINDS)).astype(KINDS)
    order = ["dataset", "batch_size", *(f"{k}_{s}" for s in SIDES for k in ("model", "ratio", "scope"))]
    return made.sort_values([*order, "seed_a", "run_id"], kind="stable", ignore_index=True)


def once(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of rows that share `ONCE`, the first valid one, or the first; give them the newest first.

    Copies of one, which differ by the numbers that another store gave to its runs, are one.
    """
    kept: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: not row["valid"]):
        kept.setdefault(tuple(row[k] for k in ONCE), row)
    copies: dict[str, Mapping[str, Any]] = {}
    for row in kept.values():
        copies.setdefault(repr([row.get(k) for k in KINDS if not k.startswith("run_id")]), row)
    return list(copies.values())


def of_run(row: Row, sides: Mapping[str, Row], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a stored comparison.

    Parameters
    ----------
    row
        Its run.
    sides
        The runs that it is of, by ``a`` and ``b``.
    hardware
        What is known of the machine and its libraries.
    """
    found = {k.removeprefix("compare/"): v for k, v in row.metrics.items() if k.startswith("compare/")}
    side = "measured" if row.measured else "estimated"
    out: dict[str, Any] = {
        "run_id": row.run_id,
        "dataset": row.tags["tsexp.data"],
        "data_checksum": row.tags["tsexp.data_checksum"],
        "cpu": hardware["cpu"],
        "machine": digest(dict(hardware)),
        "energy_source": row.energy_source,
        "mcnemar_p": found["mcnemar_p"],
        **{k: row.params[f"measure.{k}"] for k in ("batch_size", "threads", "repeats", "processes")},
        "window_s": row.params["measure.window_s"],
        "valid": row.valid,
        "warnings": row.tags.get("tsexp.warnings", ""),
    }
    for key, of in sides.items():
        out |= {f"{k}_{key}": v for k, v in _deployed(of).items()}
        out[f"accuracy_{key}"] = found[f"accuracy_{key}"]
        out[f"only_right_{key}"] = found[f"only_{key}_right"]
        out[f"{side}_j_{key}"] = found.get(f"energy_{key}_j", math.nan)
        out[f"call_ms_{key}"] = found.get(f"call_ms_{key}", math.nan)
    intervals = {
        "difference_pt": ("accuracy_difference", "_pt"),
        f"{side}_saving_pct": ("energy_saving", "_pct"),
        "speedup": ("speedup", ""),
        "cpu_speedup": ("cpu_speedup", ""),
    }
    for name, (stored, first) in intervals.items():
        for end in ENDS:
            out[f"{name}{end}"] = found.get(f"{stored}{end or first}", math.nan)
    return out


def _deployed(of: Row) -> dict[str, Any]:
    """What one side is, by the names that `tsexp.report.statistics.way` knows."""
    ratio = float(of.params["prune.ratio"])
    pruned = {k: of.params[f"prune.{k}"] if ratio else "-" for k in ("method", "scope")}
    return pruned | {
        "run_id": of.run_id,
        "model": of.params["model.name"],
        "runtime": of.tags["tsexp.runtime"],
        "mode": of.params["quant.mode"],
        "ratio": ratio,
        "macs": of.metrics.get("size/macs", math.nan),
        "seed": int(of.params["seed"]),
    }
