"""What making a model smaller costs, and after how many inferences that has paid for itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tsexp.marks import ENDS
from tsexp.report.points import SIDES

if TYPE_CHECKING:
    import pandas as pd


def of(rows: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows that cost something and have valid energy, of what `statistics.aggregate` made.

    Returns
    -------
    pandas.DataFrame
        With ``…_train_j`` (of the dense model), ``…_compress_j`` (pruning, tuning, conversion) and
        ``…_saved_j`` (per series, against the control) for measured and estimated energy, and ``pays_after``
        (series), inf where it never does. ``pays_after_lo`` and ``_hi`` are by the 95 % interval of the
        saving alone: what training takes is known of these trainings only.
    """
    import pandas as pd

    made = [_costs(row) for _, row in rows.iterrows() if row["degradation"] != "reference"]
    return pd.DataFrame([row for row in made if row["n_energy"] and row["cost_compress_j"] > 0])


def _costs(row: Any) -> dict[str, Any]:
    side = row["energy"]
    dense_j = row[f"{side}_reference_j"]
    saved = {end: dense_j * row[f"{side}_saving_pct{end}"] / 100 for end in ENDS}
    after = {
        end: row["cost_compress_j"] / j if j > 0 else math.nan if math.isnan(j) else math.inf
        for end, j in saved.items()
    }
    joules = {"train_j": row["cost_train_j"], "compress_j": row["cost_compress_j"], "saved_j": saved[""]}
    return {
        **row,
        **{f"{s}_{name}": j if s == side else math.nan for s in SIDES for name, j in joules.items()},
        "pays_after": after[""],
        "pays_after_lo": after["_hi"],
        "pays_after_hi": after["_lo"],
    }
