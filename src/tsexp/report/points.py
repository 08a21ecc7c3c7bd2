"""What is drawn: the runs that are comparable, the mean of their seeds, and their controls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tsexp.marks import ENDS, ESTIMATED
from tsexp.report.frozen import Frozen
from tsexp.report.statistics import aggregate, processor
from tsexp.report.style import COLOURS, LEAST

if TYPE_CHECKING:
    import pandas as pd

PLACE = ["machine", "device", "threads", "batch_size"]
SETUP = [*PLACE, "energy_source"]
"""Energies of different setups are not comparable."""
WAY = ["dataset", "model", "method", "scope", "ratio", "mode", "runtime"]
"""Names a point; seeds are repetitions of it."""
VALUES = {
    **{
        name: name
        for name in (
            "accuracy_pct",
            "measured_j",
            "estimated_j",
            "speedup",
        )
    },
    "accuracy_drop_pt": "drop_pt",
}
"""What a point has, and its column in the tables."""
SIDES = ("measured", "estimated")
COUNTED = [*WAY, "n", "n_energy", "tuning", "macs"]
"""What a point has as the tables do."""
CONTROL = ["dataset", "model", "tuning"]
"""Names a control."""


@dataclass(frozen=True)
class Study:
    """What the figures of a study are made of.

    Attributes
    ----------
    runs
        The rows of ``results`` with finite scores that were measured in the commonest setup, one config for
        each way and seed.
    points
        A row per `WAY`: n (seeds), n_energy (those with valid energy), warned (one of them has a warning),
        macs (NaN of a model that is no network), and for each of `VALUES` its mean, ``_lo`` and ``_hi``, as
        in the tables. measured_relative and estimated_relative, with ``_lo`` and ``_hi``, are the energies
        relative to the control's: of a saving of 75 % .25, and 8.5 of one of -750 %.
    controls
        A row per `CONTROL`: accuracy_pct with ``_lo`` and ``_hi``, dense_accuracy_pct (before any tuning),
        measured_j, estimated_j (of the windows that it was the reference in), n.
    notes
        What was left out, and of which setup this is.
    frozen
        All of the results, with their raw tables.
    colours
        Of the models.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    controls: pd.DataFrame
    notes: tuple[str, ...]
    frozen: Frozen
    colours: dict[str, str]


def colours(frozen: Frozen) -> dict[str, str]:
    """Return the colour of each model: the same wherever these results are shown."""
    return {
        model: COLOURS[i % len(COLOURS)] for i, model in enumerate(sorted(frozen.results["model"].unique()))
    }


def invalid(frozen: Frozen) -> list[str]:
    """Say how many records have no valid energy, or nothing valid at all."""
    results = frozen.results
    said = [
        "Records with invalid energy, which count for accuracy only: "
        f"{(~results['valid'] & results['scored']).sum()}."
    ]
    return said + ([f"Invalid records left out: {n}."] if (n := (~results["scored"]).sum()) else [])


def study_of(frozen: Frozen) -> Study:
    """Choose what is comparable, and take the mean over seeds."""
    runs, notes, left = _comparable(frozen)
    rows = aggregate(replace(frozen, results=runs))
    points, controls = (_points(rows), _controls(rows)) if len(rows) else _none()
    return Study(runs, points, controls, (*notes, *left), frozen, colours(frozen))


def left_out(frozen: Frozen) -> list[str]:
    """Say how many scored records no figure shows, since others are more common, or measured."""
    return _comparable(frozen)[2]


def _comparable(frozen: Frozen) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The records of one setup, with one config for each way and seed; what is to be said, and left out."""
    results = frozen.results
    runs = results[results["scored"]]
    notes, left = invalid(frozen), []
    setups = len(runs[PLACE].drop_duplicates())
    runs, others = _commonest(runs, [], PLACE)
    if len(runs):
        notes.append(_setup(runs.iloc[0]))
    if others:
        left.append(f"The commonest of {setups} setups; records of the others left out: {others}.")
    runs = runs.assign(estimated=runs["energy_source"].str.startswith(ESTIMATED))
    runs, others = _commonest(runs, ["estimated"], ["energy_source"])
    if others:
        left.append(f"Records with less common sources of energy left out: {others}.")
    runs, said = _one_side(runs)
    left += said
    for by, columns, what in (
        (["dataset"], ["data_checksum"], "data files"),
        (["dataset", "model"], ["recipe"], "training recipes"),
        (["dataset", "model"], ["setting"], "settings of model and data"),
        (WAY, ["config"], "settings"),
    ):
        runs, others = _commonest(runs, by, columns)
        if others:
            left.append(f"Records with less common {what} left out: {others}.")
    runs = runs.drop(columns="estimated")
    runs = runs.sort_values([*WAY, "seed", "run_id"], kind="stable", ignore_index=True)
    return runs, notes, left


def _one_side(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Of each dataset the records with measured energy, or the estimates if there are far more of them."""
    estimated = runs["estimated"]
    shown = {
        name: prefer_measured((of["valid"] & of["estimated"]).sum(), (of["valid"] & ~of["estimated"]).sum())
        or not of["estimated"].any()
        for name, of in runs.groupby("dataset")
    }
    left = estimated == runs["dataset"].map(shown).astype(bool)
    notes = []
    if n := int((left & estimated).sum()):
        notes.append(f"Estimates of energy left out where it was measured: {n}.")
    if n := int((left & ~estimated).sum()):
        notes.append(f"Measured energy left out in datasets with more than twice as many estimates: {n}.")
    return runs[~left], notes


def prefer_measured(estimated: int, measured: int) -> bool:
    """Whether to show what a counter measured, by the valid records of both: one is to be seen at a time."""
    return measured > 0 and 2 * measured >= estimated


def _setup(record: pd.Series) -> str:
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return f"Setup: {processor(record)}, batch {record['batch_size']}, {threads}."


def _none() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points and controls of no records."""
    import pandas as pd

    values = [f"{v}{end}" for v in (*VALUES, *(f"{s}_relative" for s in SIDES)) for end in ENDS]
    return pd.DataFrame(columns=[*COUNTED, "warned", *values]), pd.DataFrame(columns=CONTROL)


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `Study.points` of the rows of `aggregate`."""
    rows = rows.sort_values(WAY, kind="stable", ignore_index=True)
    return rows[COUNTED].assign(
        warned=rows["warned"] > 0,
        **{f"{ours}{end}": rows[f"{theirs}{end}"] for ours, theirs in VALUES.items() for end in ENDS},
        **{f"{side}_relative{end}": of for side in SIDES for end, of in _relative(rows, side).items()},
    )


def _relative(rows: pd.DataFrame, side: str) -> dict[str, pd.Series]:
    """Energy relative to the control's; the most that is saved is the least that is left."""
    left = {end: (1 - rows[f"{side}_saving_pct{end}"] / 100).clip(lower=LEAST) for end in ENDS}
    return {"": left[""], "_lo": left["_hi"], "_hi": left["_lo"]}


def _controls(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracy is that of the row with the most seeds.

    The energy, which was measured anew with every artifact, the mean.
    """
    energies = {side: f"{side}_reference_j" for side in SIDES}
    most = rows.sort_values("n", ascending=False, kind="stable").drop_duplicates(CONTROL)
    of = {f"accuracy_pct{end}": most[f"control_accuracy_pct{end}"] for end in ENDS}
    table = most[[*CONTROL, "n", "dense_accuracy_pct"]].assign(**of)
    joules = (
        rows.groupby(CONTROL)[list(energies.values())]
        .mean()
        .rename(columns={v: f"{k}_j" for k, v in energies.items()})
    )
    return table.merge(joules, left_on=CONTROL, right_index=True).sort_values(
        CONTROL, kind="stable", ignore_index=True
    )


def _commonest(runs: pd.DataFrame, by: list[str], columns: list[str]) -> tuple[pd.DataFrame, int]:
    """Of each group, the rows with its commonest values in these columns; and how many others there are.

    Of equally common values, the smallest.
    """
    counts = (
        runs.groupby(by + columns)
        .size()
        .reset_index(name="n")
        .sort_values("n", ascending=False, kind="stable")
    )
    best = counts.drop_duplicates(by) if by else counts.head(1)
    kept = runs.merge(best.drop(columns="n"), on=by + columns, how="inner")
    return kept, len(runs) - len(kept)
