"""Every model beside its company: as trained, in another runtime, best compressed, and which to deploy.

A compression is chosen on validation series, as `claims` does; which of the models is deployed, on test
series, paired, for there all of them have predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsexp.report import claims
from tsexp.report.console import ESTIMATE, si
from tsexp.report.frozen import Frozen
from tsexp.report.points import SETUP, WAY
from tsexp.report.statistics import MARGIN_PT, Interval, degradation, over_seeds_and_series, way

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = ["dataset", "data_checksum", *SETUP]
"""Only rows that share these are compared."""
AS_TRAINED = "as trained"
RULE = (
    "Deploy: the one with the least energy among those whose mean accuracy is at most "
    f"{MARGIN_PT:g} point below that of the most accurate; a mean over fewer seeds than others have is not "
    "chosen, unless there is but one model of as many. Brackets: 95 % interval of the difference, paired "
    "over test series and seeds where the seeds are the same; seen to be less accurate: all of it is above "
    "that. Of several recipes or settings of a model, that with the most records. The models are compared "
    "on test series, so what is ahead there by little may have been lucky, and whether one is compressed at "
    "all is decided there, too; compressions were chosen on validation series. All that is said is of the "
    "rows of this table. Energies of different models were not measured in alternation, which tsexp.compare "
    "does."
)
ROUNDING = 1e-9
NEAR, OPEN, LOST, FEW = range(4)
SAID = {
    NEAR: f"At most {MARGIN_PT:g} point below the most accurate, too",
    OPEN: f"More than {MARGIN_PT:g} point below it, but that may be chance",
    LOST: f"Seen to be more than {MARGIN_PT:g} point less accurate",
    FEW: "Of fewer seeds, and not chosen for that",
}
"""Of the other models, by how far they are below the most accurate of as many seeds as any."""


class _Rival(NamedTuple):
    """A row that may be deployed, and the points that it has less than the most accurate."""

    row: Any
    joules: float
    lacks: Interval
    few: bool

    @property
    def group(self) -> int:
        """`NEAR`, `OPEN`, `LOST` or `FEW`."""
        if self.few:
            return FEW
        if self.lacks.value <= MARGIN_PT + ROUNDING:
            return NEAR
        return LOST if degradation(self.lacks.low, self.lacks.high) == "lost" else OPEN


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Choose the rows of the table, of what `aggregate` made: up to three of each model.

    The dense model as it was trained; the same, in fp32, in the other runtime in which it takes the least;
    and of all ways to deploy it but the first that have valid energy, and as many seeds as any of them, the
    one that takes the least among those that lose at most the margin on validation series, against their
    control.

    Returns
    -------
    pandas.DataFrame
        With ``what`` (in words), ``chosen`` (how), ``joules`` (per series), and for measured and estimated
        energy ``…_per_correct_j`` (joules per series over accuracy) and ``…_train_j`` (training, pruning,
        tuning and conversion). Empty where no dataset has two models in one setup.
    """
    import pandas as pd

    made: list[dict[str, Any]] = []
    for _, here in rows.groupby(TOGETHER, sort=True) if len(rows) else ():
        if here["model"].nunique() > 1:
            for _, of in here.groupby("model", sort=True):
                made += _of_model(_commonest(of))
    return pd.DataFrame(made)


def _commonest(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one model: recipe and setting with the most records, and of each way the row with the most."""
    of = rows["recipe"] + rows["setting"]
    most = rows[of == rows["n"].groupby(of).sum().idxmax()].sort_values("n", ascending=False, kind="stable")
    return most.drop_duplicates(WAY).sort_index()


def _of_model(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Of one model and setup."""
    as_trained = rows["degradation"] == "reference"
    made = [_numbers(row) | {"what": AS_TRAINED, "chosen": "–"} for _, row in rows[as_trained].iterrows()]
    others = rows[~as_trained & (rows["n_energy"] > 0)]
    others = others[others["n"] == others["n"].max()]
    if len(others):
        choice = claims.best(others, [-row[f"{row['energy']}_j"] for _, row in others.iterrows()])
        same = [_numbers(row) for _, row in others.iterrows() if _is_dense(row)]
        least = min(same, key=lambda row: row["joules"], default=None)
        if least is not None and least["run_ids"] != choice.row["run_ids"]:
            made.append(least | {"what": way(least), "chosen": "the same model"})
        how = ", ".join(filter(None, [choice.how, choice.loss]))
        made.append(_numbers(choice.row) | {"what": way(choice.row), "chosen": how})
    return made


def _numbers(row: Any) -> dict[str, Any]:
    side = row["energy"]
    joules = row[f"{side}_j"]
    right = row["accuracy_pct"] / 100 or np.nan
    made_j = np.nansum([row["cost_train_j"], row["cost_compress_j"]])
    of = {"per_correct_j": joules / right, "train_j": made_j if row["cost_train_j"] >= 0 else np.nan}
    return {
        **row,
        "joules": joules,
        **{
            f"{s}_{name}": v if s == side else np.nan
            for s in ("measured", "estimated")
            for name, v in of.items()
        },
    }


def advice(frozen: Frozen, company: pd.DataFrame) -> list[tuple[str, str]]:
    """Say of each dataset, in words, what one should deploy.

    Parameters
    ----------
    frozen
        All records.
    company
        What `compared` made of them.

    Returns
    -------
    list of tuple
        Dataset (of several setups, with what they differ in), and the words; they follow `RULE`.
    """
    if company.empty:
        return []
    right = (frozen.predictions["predicted"] == frozen.predictions["label"]).to_numpy()
    places = frozen.predictions.groupby("run_id", sort=False).indices
    runs = {
        seen.run_id: (seen.seed, right[places[seen.run_id]])
        for seen in frozen.results[["run_id", "seed"]].itertuples()
        if seen.run_id in places
    }
    groups = [here for _, here in company.groupby(TOGETHER, sort=True)]
    return [(label, _advise(here, runs)) for label, here in zip(_labels(groups), groups, strict=True)]


def _labels(groups: Sequence[pd.DataFrame]) -> list[str]:
    """Datasets; of several setups, with what they differ in."""
    firsts = [here.iloc[0] for here in groups]
    names = [first["dataset"] for first in firsts]
    vary = [
        k
        for k in TOGETHER[1:]
        if len({(n, str(of[k])) for n, of in zip(names, firsts, strict=True)}) > len(set(names))
    ]
    if len(set(names)) == len(names):
        return names
    return [
        f"{first['dataset']} ({', '.join(f'{k} {str(first[k])[:20]}' for k in vary)})" for first in firsts
    ]


def _advise(here: pd.DataFrame, runs: dict[str, tuple[int, Any]]) -> str:
    """Of one dataset and setup."""
    there, without = here[here["joules"].notna()], here[here["joules"].isna()]
    left_out = "; ".join(f"{in_words(row)} ({row['accuracy_pct']:.1f} %)" for _, row in without.iterrows())
    left_out = f"Left out, for its energy is invalid: {left_out}." if left_out else ""
    if there.empty:
        return f"nothing can be said. {left_out}"
    few = there["n"] < there["n"].max()
    if there.loc[~few, "model"].nunique() == 1:
        few[:] = False
    there = there.assign(few=few)
    ranked = there.sort_values(
        ["few", "accuracy_pct", "joules"], ascending=[True, False, True], kind="stable"
    )
    rivals = [
        _Rival(row, row["joules"], _lacks(ranked.iloc[0], row, runs), row["few"])
        for _, row in ranked.iterrows()
    ]
    enough = [r for r in rivals if not r.few]
    chosen = min((r for r in enough if r.group == NEAR), key=lambda r: r.joules)
    named: dict[str, _Rival] = {}  # of each other model what comes nearest
    for r in sorted(rivals, key=lambda r: (r.group, r.joules)):
        if r is not rivals[0] and r.row["model"] != chosen.row["model"]:
            named.setdefault(r.row["model"], r)
    said = [
        f"deploy {in_words(chosen.row)}: {chosen.row['accuracy_pct']:.1f} %, {_joules(chosen.row)} a series"
        + (f", {_per_correct(chosen.row)} per correct answer." if chosen.row["accuracy_pct"] else "."),
        _beside_the_top(chosen, enough, _nothing(of_as_many=few.any(), with_energy=not without.empty)),
    ]
    for group, words in SAID.items():
        some = [_with_energy(r, chosen) for r in named.values() if r.group == group]
        said += [f"{words}: {'; '.join(some)}."] if some else []
    right = [r for r in enough if r.row["accuracy_pct"]]
    thrifty = min(right, key=lambda r: r.row[f"{r.row['energy']}_per_correct_j"], default=chosen)
    if thrifty is not chosen:
        said.append(
            f"The least energy per correct answer: {in_words(thrifty.row)}, {_per_correct(thrifty.row)}."
        )
    if chosen.row["what"] != AS_TRAINED and math.isnan(chosen.row["val_drop_pt"]):
        said.append("There were no validation series to choose its compression on.")
    return " ".join(filter(None, [*said, left_out]))


def _nothing(*, of_as_many: bool, with_energy: bool) -> str:
    what = [w for w, asked in (("with valid energy", with_energy), ("of as many seeds", of_as_many)) if asked]
    return f"Nothing {' and '.join(what) or 'here'}"


def _beside_the_top(chosen: _Rival, rivals: Sequence[_Rival], nothing: str) -> str:
    """The most accurate, which is the first of the rivals, beside what is deployed."""
    if chosen is rivals[0]:
        least = chosen.joules <= min(r.joules for r in rivals)
        return f"{nothing} is more accurate{', or needs less energy' if least else ''}."
    value, low, high = (round(v, 1) + 0.0 for v in chosen.lacks)  # not -0
    sure = degradation(chosen.lacks.low, chosen.lacks.high) == "kept"
    return (
        f"That is {value:.1f} points [{low:.1f}, {high:.1f}] below the most accurate: "
        f"{_with_energy(rivals[0], chosen)}; a difference of more than {MARGIN_PT:g} point is "
        f"{'' if sure else 'not '}excluded."
    )


def _with_energy(rival: _Rival, chosen: _Rival) -> str:
    ratio = rival.joules / chosen.joules
    times = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"
    energy = "as much energy" if times == "1" else f"{times} times the energy"
    seeds = f", n = {rival.row['n']}" if rival.few else ""
    return f"{in_words(rival.row)}, {rival.row['accuracy_pct']:.1f} %, {energy}{seeds}"


def _lacks(top: Any, row: Any, runs: dict[str, tuple[int, Any]]) -> Interval:
    """Points that `row` has less than `top`: paired over test series and seeds, where these are the same."""
    if row["run_ids"] == top["run_ids"]:
        return Interval(0.0, 0.0, 0.0)
    ours, tops = (dict(runs[run_id] for run_id in r["run_ids"].split()) for r in (row, top))
    if ours.keys() == tops.keys():
        lost = np.array([tops[seed].astype(float) - ours[seed] for seed in sorted(ours)])
        return Interval(*(100 * v for v in over_seeds_and_series(lost)))
    lacks = top["accuracy_pct"] - row["accuracy_pct"]
    half = math.hypot(*((r["accuracy_pct_hi"] - r["accuracy_pct_lo"]) / 2 for r in (row, top)))
    return Interval(lacks, lacks - half, lacks + half)


def deployed(row: Any) -> str:
    """How one way to deploy a model is called, by what `statistics.way` asks for."""
    return AS_TRAINED if _is_dense(row) and row["runtime"] == "eager" else way(row)


def _is_dense(row: Any) -> bool:
    return not row["ratio"] and bool(row["mode"] == "none")


def in_words(row: Any) -> str:
    """A model and ``what`` it is deployed as."""
    what = row["what"]
    return f"{row['model']} {what if what == AS_TRAINED else f'in {what}'}"


def _joules(row: Any, name: str = "j") -> str:
    side = row["energy"]
    return si(row[f"{side}_{name}"], "J") + (ESTIMATE if side == "estimated" else "")


def _per_correct(row: Any) -> str:
    return _joules(row, "per_correct_j")
