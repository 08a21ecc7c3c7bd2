"""The claims of the study that this project re-does, each beside what was found here.

Source: Kermani, Zeraatkar, Irani: Energy-Efficient Transformer Inference: Optimization Strategies for Time
Series Classification, arXiv 2502.16627 (2025), IJCA 186(81), doi 10.5120/ijca2025924771. Its hardware, its
meter and its numbers per dataset are not public.

Every effect is that of the compression alone: against fp32 in the same runtime, so that a faster runtime is
not taken for a saving of pruning or quantization; and its accuracy against the control, which was trained for
as long. A saving counts only where accuracy was kept, if the claim says so: at a high enough ratio, any
saving can be had.

One row answers for a claim on a dataset with a model, chosen on validation series and judged on test series:
the best of many, looked for on the series that it is judged by, is found by chance. For a saving or a speedup
it is the largest one among the rows that lose at most the margin on validation series, or, if none does, the
one that loses the least there; for a loss of accuracy it is the one that loses the most there, as it has to
hold for all. Without validation series it is the first by ratio, number format, runtime (eager first), scope
and batch size, which nobody chose by a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsexp.marks import ENDS
from tsexp.report.console import ESTIMATE
from tsexp.report.statistics import MARGIN_PT, Interval, describe, difference, first_machine, over_seeds

if TYPE_CHECKING:
    import pandas as pd

DATASETS = ("RefrigerationDevices", "ElectricDevices", "PLAID")
MODELS = ("t1", "t2")
EIGHT_BIT = ("dynamic", "static", "qat")
COMPARABLE = (
    *("dataset", "model", "runtime", "machine", "data_checksum", "setting", "recipe", "device"),
    *("batch_size", "threads", "repeats", "processes", "window_s", "energy_source", "protocol"),
)
"""What a row shares with the fp32 row that it is compared with."""
FILL = "python -m tsexp -m experiment=paper"


class Choice(NamedTuple):
    """One row of many, how it was chosen, and what it loses on the series that chose it."""

    row: Any
    how: str
    loss: str = ""

    @property
    def said(self) -> str:
        """All of that, with what it is that was chosen."""
        return ", ".join(filter(None, [f"{self.how}: {_way(self.row)}", self.loss]))


class Claim(NamedTuple):
    """One claim: `reach` is the change (%, times or points) that reproduces it, on the side of the better."""

    name: str
    paper: str
    kind: str
    reach: float
    with_accuracy: bool
    among: Callable[[pd.DataFrame], pd.Series]
    called: str


CLAIMS = (
    Claim(
        "static quantization: energy",
        "-29.14 %, accuracy kept",
        "energy",
        -29.14,
        True,
        lambda t: (t["ratio"] == 0) & (t["mode"] == "static"),
        "static",
    ),
    Claim(
        "L1 pruning: speed", "1.63x, accuracy kept", "speed", 1.63, True, lambda t: _l1(t), "L1-pruned fp32"
    ),
    Claim("L1 pruning: energy", "-37.08 %", "energy", -37.08, True, lambda t: _l1(t), "L1-pruned fp32"),
    Claim(
        "8-bit quantization: accuracy",
        "-1.4 to -1.8 points",
        "accuracy",
        -1.8,
        False,
        lambda t: (t["ratio"] == 0) & t["mode"].isin(EIGHT_BIT),
        "8-bit",
    ),
    Claim(
        "pruning + quantization: energy",
        "up to -45.7 %",
        "energy",
        -45.7,
        False,
        lambda t: _width(t) & (t["mode"] != "none"),
        "hybrid",
    ),
)
LEAST_LOSS_PT = -1.4
UNITS = {"energy": "%", "speed": "times", "accuracy": "points"}


def _width(rows: pd.DataFrame) -> pd.Series:
    """Pruned as in the study, which removes no whole layers."""
    return (rows["ratio"] > 0) & (rows["scope"] != "depth")


def _l1(rows: pd.DataFrame) -> pd.Series:
    return _width(rows) & (rows["mode"] == "none") & (rows["method"] == "l1")


@dataclass(frozen=True)
class Answer:
    """What was found about one claim, on one dataset with one model (or on all: the verdicts counted).

    ``change`` is in the claim's unit and sign; it is an estimate if ``estimated``. ``row`` is of what
    `statistics.aggregate` made.
    """

    claim: Claim
    verdict: str
    why: str
    dataset: str = "all"
    model: str = ""
    change: Interval | None = None
    estimated: bool = False
    row: Any = None


def answers(rows: pd.DataFrame) -> list[Answer]:
    """Answer every claim from aggregated rows.

    First over all, then for each of the study's datasets and models that were measured. Of several machines,
    the one with most rows answers.
    """
    out = []
    rows = rows[rows["machine"] == first_machine(rows)] if len(rows) else rows
    for claim in CLAIMS:
        each = [_answer(claim, rows, dataset, model) for dataset in DATASETS for model in MODELS]
        there = [a for a in each if a is not None]
        out += [_over_all(claim, there, rows), *there]
    return out


def _over_all(claim: Claim, there: list[Answer], rows: pd.DataFrame) -> Answer:
    if not there:
        others = (
            sorted({f"{d} {m}" for d, m in zip(rows["dataset"], rows["model"], strict=True)})
            if len(rows)
            else []
        )
        instead = f"; there is {', '.join(others[:4])}{' …' if len(others) > 4 else ''}" if others else ""
        return Answer(
            claim,
            "not measured",
            f"no {claim.called} rows of {', '.join(DATASETS)} with {' or '.join(MODELS)}{instead}; run "
            f"{FILL}",
        )
    counts = {
        v: sum(a.verdict == v for a in there)
        for v in ("reproduced", "not reproduced", "undecided", "not measurable here", "not measured")
    }
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    best = [v for v, n in counts.items() if n == len(there)]
    verdict = best[0] if best else f"reproduced in {counts['reproduced']} of {len(there)}"
    values = [a.change.value for a in there if a.change is not None]
    mark = ESTIMATE if any(a.estimated for a in there) else ""
    said += f"; from {min(values):+.3g} to {max(values):+.3g} {UNITS[claim.kind]}{mark}" if values else ""
    missing = [
        f"{d} {m}" for d in DATASETS for m in MODELS if (d, m) not in {(a.dataset, a.model) for a in there}
    ]
    return Answer(
        claim, verdict, "; ".join([said, *([f"not measured: {', '.join(missing)}"] if missing else [])])
    )


def _answer(claim: Claim, rows: pd.DataFrame, dataset: str, model: str) -> Answer | None:
    """Of one dataset and model; None if there is no row that the claim is about."""
    if rows.empty:
        return None
    here = rows[(rows["dataset"] == dataset) & (rows["model"] == model)]
    mine = here[claim.among(here)]
    if mine.empty:
        return None
    how = _of_accuracy(claim, mine) if claim.kind == "accuracy" else _of_cost(claim, mine, here)
    return replace(how, dataset=dataset, model=model)


def _of_accuracy(claim: Claim, mine: pd.DataFrame) -> Answer:
    """What the row that loses the most on validation series loses on test series."""
    choice = _chosen(mine, list(mine["val_drop_pt"]))
    row = choice.row
    change = _negative(row["drop_pt"], row["drop_pt_lo"], row["drop_pt_hi"])
    why = [choice.said] + (["it costs less than claimed"] if change.low > LEAST_LOSS_PT else [])
    verdict = _verdict(claim, row, change)
    why += ["the interval holds the claimed value"] if verdict == "undecided" else []
    return Answer(claim, verdict, "; ".join(why), change=change, row=row)


def _of_cost(claim: Claim, mine: pd.DataFrame, here: pd.DataFrame) -> Answer:
    """What the row gains within its runtime that gains the most of those that keep accuracy."""
    mine = mine[mine["n_energy"] > 0]
    if mine.empty:
        return Answer(claim, "not measured", "every record has invalid energy")
    changes = {
        place: found
        for place, row in mine.iterrows()
        if (found := change_in_runtime(claim.kind, row, here)) is not None
    }
    if not changes:
        return Answer(claim, "not measured", "no fp32 row at ratio 0 in the same runtime to compare with")
    pool = mine.loc[list(changes)]
    if claim.kind == "energy" and (pool["energy"] == "measured").any():
        pool = pool[pool["energy"] == "measured"]
    # The commonest: those of others are not comparable.
    pool = pool[pool["energy_source"] == pool["energy_source"].mode()[0]]
    sign = -1 if claim.kind == "energy" else 1
    choice = best(pool, [sign * changes[place].value for place in pool.index])
    row = choice.row
    effect = changes[row.name]
    state = _reached(claim, effect)
    why = [choice.said, _lost(row)]
    why += [f"{_total(claim, row)} against the control in eager"] if row["runtime"] != "eager" else []
    if claim.kind == "energy" and row["energy"] == "estimated":
        direction = {
            "yes": "reaches it",
            "unclear": "may reach it",
            "no": "points the same way, but does not reach it",
        }[state]
        direction = "points the other way" if effect.value >= 0 else direction
        why = [f"energy is estimated from CPU time; the estimate {direction}", *why]
        verdict = "not measurable here"
        return Answer(claim, verdict, "; ".join(why), change=effect, estimated=True, row=row)
    verdict = _verdict(claim, row, effect)
    if verdict == "undecided":
        open_ = (
            "the interval holds the claimed value" if state == "unclear" else "accuracy may be kept or not"
        )
        why = [open_, *why]
    return Answer(claim, verdict, "; ".join(why), change=effect, row=row)


def _lost(row: Any) -> str:
    drop = f"{_with_sign(row['drop_pt'])} [{row['drop_pt_lo']:+.1f}, {row['drop_pt_hi']:+.1f}]"
    return f"on test series accuracy {row['degradation']}, drop {drop}"


def _total(claim: Claim, row: Any) -> str:
    """Of runtime and compression together."""
    if claim.kind == "speed":
        return f"{row['speedup']:.2f}x"
    return f"{-row[row['energy'] + '_saving_pct']:+.1f} %"


def best(rows: pd.DataFrame, gains: Sequence[float]) -> Choice:
    """Choose the row with the largest gain among those that lose at most the margin on validation series.

    If none does, the one that loses the least there; without such series, the first in a fixed order.
    """
    within = [
        gain if lost <= MARGIN_PT else -math.inf
        for gain, lost in zip(gains, rows["val_drop_pt"], strict=True)
    ]
    return _chosen(rows, list(zip(within, -rows["val_drop_pt"], strict=True)))


def _chosen(rows: pd.DataFrame, ranks: Sequence[Any]) -> Choice:
    """Return the row of the highest rank among those that have validation numbers.

    If none has, it is the first in a fixed order.
    """
    order = ["ratio", "mode", "runtime", "scope", "batch_size", "config"]
    fixed = rows.sort_values(
        order, key=lambda v: v.map(_first_of) if v.name in ("mode", "runtime") else v, kind="stable"
    )
    rank = dict(zip(rows.index, ranks, strict=True))
    judged = [place for place in fixed.index if not math.isnan(rows.loc[place, "val_drop_pt"])]
    row = rows.loc[max(judged, key=lambda place: rank[place]) if judged else fixed.index[0]]
    if len(rows) == 1:
        return Choice(row, "the only one")
    if not judged:
        return Choice(row, f"no validation series to choose on, so the first of {len(rows)} in a fixed order")
    of = f"{len(judged)}" if len(judged) == len(rows) else f"the {len(judged)} of {len(rows)} that have any"
    fewest, most = (int(f(rows.loc[judged, "n"])) for f in (min, max))
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    each = f" of each of {seeds}" if most > 1 else ""
    return Choice(
        row,
        f"chosen on {row['val_series']} validation series{each} among {of}",
        f"drop {_with_sign(row['val_drop_pt'])} there",
    )


def _first_of(name: str) -> str:
    return {"none": "", "eager": ""}.get(name, name)


def _with_sign(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # not -0


def _verdict(claim: Claim, row: Any, change: Interval) -> str:
    reached = _reached(claim, change)
    if reached == "no" or (claim.with_accuracy and row["degradation"] == "lost"):
        return "not reproduced"
    return (
        "reproduced"
        if reached == "yes" and (not claim.with_accuracy or row["degradation"] == "kept")
        else "undecided"
    )


def _reached(claim: Claim, change: Interval) -> str:
    """Say if the interval shows at least the claimed change (``yes``), less (``no``), or is ``unclear``."""
    at_least, at_most = (-change.high, -change.low) if claim.kind == "energy" else (change.low, change.high)
    reach = -claim.reach if claim.kind == "energy" else claim.reach
    return "yes" if at_least >= reach else "no" if at_most < reach else "unclear"


def with_speedup_in_runtime(rows: pd.DataFrame) -> pd.DataFrame:
    """Add what pruning and the number format bring apart from the runtime, to what `aggregate` made.

    ``runtime_speedup``, with ``_lo`` and ``_hi``: over the dense model in fp32 in the same runtime, each
    against its own control; NaN for that model itself, in eager PyTorch (it is the speedup there), and where
    it was not measured.
    """
    names = [f"runtime_speedup{end}" for end in ENDS]
    itself = (rows["ratio"] == 0) & (rows["mode"] == "none") | (rows["runtime"] == "eager")
    found = [
        None if alone else change_in_runtime("speed", row, rows)
        for alone, (_, row) in zip(itself, rows.iterrows(), strict=True)
    ]
    return rows.assign(**{n: [math.nan if f is None else f[i] for f in found] for i, n in enumerate(names)})


def change_in_runtime(kind: str, row: Any, rows: pd.DataFrame) -> Interval | None:
    """Effect of a row's compression: against dense fp32 in its own runtime, by seed where both have the same.

    Of ``energy`` in %, of ``speed`` in times; None if there is no such row in `rows`, or no valid number.
    """
    if row["runtime"] == "eager":  # what it was paired with is just that
        alone = _log_cost(kind, row)
    else:
        shared = {key: row[key] for key in COMPARABLE} | {"ratio": 0, "mode": "none"}
        like = np.flatnonzero(np.logical_and.reduce([rows[key] == value for key, value in shared.items()]))
        if not len(like):
            return None
        # Of several, as of a runtime that was asked for and one that was chosen: the most of the same seeds.
        shared_seeds = [rows.iloc[i]["each"].index.isin(row["each"].index).sum() for i in like]
        alone = _apart(kind, row, rows.iloc[like[int(np.argmax(shared_seeds))]])
    if any(math.isnan(v) for v in alone):
        return None
    if kind == "energy":
        return Interval(*(100 * math.expm1(v) for v in alone))
    return Interval(math.exp(-alone.value), math.exp(-alone.high), math.exp(-alone.low))


def _apart(kind: str, row: Any, other: Any) -> Interval:
    """Logarithm of what a row costs less that of another.

    Seeds that both have are compared one by one: what a training, or the hour that it was measured in, does
    to both does not count. Without such a seed the two are taken as independent. Coverage, simulated:
    ``tests/test_coverage_seeds.py``.
    """
    seeds = row["each"].index.intersection(other["each"].index)
    if seeds.empty:
        return difference(_log_cost(kind, row), _log_cost(kind, other))
    pairs = np.array(
        [difference(*(_log_cost(kind, of["each"].loc[seed]) for of in (row, other))) for seed in seeds]
    )
    pairs = pairs[~np.isnan(pairs[:, 0])]
    return Interval(*pairs[0]) if len(pairs) == 1 else over_seeds(pairs[:, 0], own=pairs[:, 1:])


def _log_cost(kind: str, row: Any) -> Interval:
    """Logarithm of the time or energy that is left of the dense reference's."""
    if kind == "speed":
        return Interval(*(-math.log(v) for v in (row["speedup"], row["speedup_hi"], row["speedup_lo"])))
    name = f"{row['energy']}_saving_pct"
    left = (max(1 - row[f"{name}{end}"] / 100, 1e-9) for end in ("", "_hi", "_lo"))  # NaN stays
    return Interval(*map(math.log, left))


def _negative(value: float, low: float, high: float) -> Interval:
    return Interval(0 - value, 0 - high, 0 - low)  # not -0


def _way(row: Any) -> str:
    return describe(row).removeprefix(f"{row['dataset']} {row['model']}, ") + (
        f", batch {row['batch_size']}" if row["batch_size"] != 1 else ""
    )
