"""A sweep in a few numbers, for its parent run."""

from __future__ import annotations

from collections.abc import Sequence

from tsexp.report.statistics import degradation
from tsexp.report.store import Row


def sweep_metrics(rows: Sequence[Row], failed: int, skipped: int) -> tuple[dict[str, float], str]:
    """Return the metrics of a sweep's parent run, and the source of energy that they are of.

    Parameters
    ----------
    rows
        Of the jobs that were measured.
    failed, skipped
        How many others there are.

    Returns
    -------
    dict
        ``sweep/jobs``, ``sweep/kept`` (jobs whose accuracy is kept: the interval of the drop ends within
        1 point; the reference itself does not count), ``sweep/failed``, ``sweep/skipped``, and
        ``sweep/best_saving_pct``: the best of the valid ones that kept it; left out if there is none.
    str
        Empty if the energies come from several sources: then there is no best one either.
    """
    kept = [row for row in rows if row.scored and _kept(row) and not row.is_reference]
    counts = {"jobs": len(rows), "kept": len(kept), "failed": failed, "skipped": skipped}
    metrics = {f"sweep/{name}": float(n) for name, n in counts.items()}
    sources = {row.tags.get("tsexp.energy_source", "") for row in rows}
    savings = [row.metrics["vs_dense/energy_saving_pct"] for row in kept if row.valid]
    if savings and len(sources) == 1:
        metrics["sweep/best_saving_pct"] = max(savings)
    return metrics, sources.pop() if len(sources) == 1 else ""


def _kept(row: Row) -> bool:
    low, high = _drop(row)
    return degradation(low, high) == "kept"


def _drop(row: Row) -> tuple[float, float]:
    return row.metrics["vs_dense/accuracy_drop_lo"], row.metrics["vs_dense/accuracy_drop_hi"]
