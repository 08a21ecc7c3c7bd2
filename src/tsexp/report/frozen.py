"""The results, frozen: every number that a table or a figure is made of, in files read without a store.

``results.parquet`` (and ``.csv``) has a row per run; ``windows``, ``predictions`` and ``channels`` have what
the statistics are made of, ``comparisons`` what `tsexp.compare` found; ``about.json`` says where it came from
and what was left out. Tables and figures are functions of this folder and of nothing else. A study that was
measured in parts, or on several machines, is a folder of such folders.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.config import first_line
from tsexp.report import comparisons
from tsexp.report.schema import COMPARISONS, PARQUETS, SCHEMA_VERSION, schema
from tsexp.report.store import SAME_BY, ReportError, same_artifact

if TYPE_CHECKING:
    import pandas as pd

ABOUT = "about.json"
TOLD = ("experiment", "experiment_id", "where", "left_out")
"""What `ABOUT` says of frozen results, beside its schema."""
REPETITION = ("config", "machine", "data_checksum", "runtime", "energy_source", "seed")
"""One row for each: what names a measurement, whatever code or libraries made it."""
ORDER = ("dataset", "model", "mode", "runtime", "method", "scope", "ratio", "seed", "batch_size", "signature")
AGAIN = "measured again since"
BEFORE = 2
"""The protocol of what was frozen before its version was."""


@dataclass(frozen=True)
class Frozen:
    """What a report is made of.

    Attributes
    ----------
    results
        A row per run, see `COLUMNS`; sorted, so that equal stores freeze to equal bytes.
    windows
        run_id, order, process (the fresh process that it was measured in), subject (idle, artifact,
        reference), pair, wall_s, cpu_s, energy_j, inferences, discarded.
    predictions
        run_id, series (index in the test split), label, predicted, dense_predicted (by the control).
    channels
        run_id, layer, kind (head, ffn), unit, kept.
    about
        schema; store (content address of its URI), experiment, experiment_id, where; left_out: reason → names
        of runs.
    comparisons
        A row per comparison of two runs, see `comparisons.KINDS`.
    """

    results: pd.DataFrame
    windows: pd.DataFrame
    predictions: pd.DataFrame
    channels: pd.DataFrame
    about: dict[str, Any]
    comparisons: pd.DataFrame = field(default_factory=comparisons.none)


def load(folder: Path) -> Frozen:
    """Read what `freeze` wrote: a folder of it, or a folder of such folders, in the order of their names.

    Of a result that several parts have, the last part's counts.

    Raises
    ------
    ReportError
        If it is not there, damaged, or was written by another version.
    """
    if (folder / ABOUT).exists():
        return _load(folder)
    parts = sorted(about.parent for about in folder.glob(f"*/{ABOUT}"))
    for half in sorted({file.parent for file in folder.glob("*/results.parquet")} - set(parts)):
        raise ReportError(f"{half} has results and no {ABOUT}: copy all of it, or take it away")
    if not parts:
        raise ReportError(f"{folder} has no frozen results; make them: python -m tsexp.report freeze")
    return together({part.name: _load(part) for part in parts})


def together(parts: Mapping[str, Frozen]) -> Frozen:
    """Join what was frozen in parts, each result once; the names of `parts` tell them apart.

    Runs of different machines stay different rows: nothing is averaged here.
    """
    import pandas as pd

    results = pd.concat([part.results for part in parts.values()], ignore_index=True)
    # What an older version froze has recipes for models that are fitted without one.
    fitted = results.loc[results["recipe"] == "-", "model"]
    results.loc[results["model"].isin(fitted), "recipe"] = "-"
    results = _settings_told(results)
    by_worth = results.sort_values("valid", kind="stable")  # an invalid record replaces none that is valid
    last = ~by_worth.duplicated(list(REPETITION), keep="last").sort_index()
    left_out: dict[str, list[str]] = {}
    filters = list(dict.fromkeys(part.about["where"] for part in parts.values()))
    for part in parts.values():
        for reason, names in part.about["left_out"].items():
            left_out[reason] = left_out.get(reason, []) + names
    # The same run may be in two parts.
    again = results[~last & ~results["run_id"].isin(results.loc[last, "run_id"])]
    if len(again):
        left_out[AGAIN] = left_out.get(AGAIN, []) + list(again["run_name"])
    results = results[last].sort_values(list(ORDER), kind="stable", ignore_index=True)
    about = {
        "schema": SCHEMA_VERSION,
        "parts": {name: part.about for name, part in parts.items()},
        "experiment": " + ".join(dict.fromkeys(part.about["experiment"] for part in parts.values())),
        "where": "" if "" in filters else " or ".join(filters),
        "experiment_id": next(iter(parts.values())).about["experiment_id"],
        "experiment_ids": {
            run_id: part.about["experiment_id"]
            for part in parts.values()
            for run_id in part.results["run_id"]
        },
        "left_out": {reason: sorted(names) for reason, names in sorted(left_out.items())},
    }
    tables = {}
    for name in PARQUETS[1:]:
        of = {
            run_id: rows
            for part in parts.values()
            for run_id, rows in getattr(part, name).groupby("run_id", sort=False)
        }
        there = [of[run_id] for run_id in results["run_id"] if run_id in of]
        empty = getattr(next(iter(parts.values())), name).iloc[:0]
        tables[name] = pd.concat(there, ignore_index=True) if there else empty
    beside = [row for part in reversed(list(parts.values())) for row in part.comparisons.to_dict("records")]
    return Frozen(results, **tables, about=about, comparisons=comparisons.table(comparisons.once(beside)))


def _settings_told(results: pd.DataFrame) -> pd.DataFrame:
    """What an older version does not say is that of repetitions, which are of the same model and data.

    And where all that is known of a recipe is one setting, and some of the older rows are of it, all are.
    """
    of = [results[name] for name in ("dataset", "model", "recipe")]
    said = results["setting"].where(results["setting"] != "")
    known = said.fillna(said.groupby(results["config"]).transform("first"))
    one = known.groupby(of).transform("nunique") == 1
    seen = (said.isna() & known.notna()).groupby(of).transform("any")
    known = known.where(known.notna() | ~(one & seen), known.groupby(of).transform("first"))
    return results.assign(setting=known.fillna(""))


def _load(folder: Path) -> Frozen:
    import pandas as pd
    from pandera.errors import SchemaError

    again = "freeze again: python -m tsexp.report freeze"
    try:
        about = json.loads((folder / ABOUT).read_text())
        if not isinstance(about, dict):
            raise ValueError(f"{ABOUT} is no record")
        if about.get("schema") != SCHEMA_VERSION:
            other = (
                f"{folder} was frozen with schema {about.get('schema')}, this version reads {SCHEMA_VERSION}"
            )
            raise ReportError(
                f"{other}; the reference that accuracy is compared with is another one since; {again}"
            )
        if lacking := [key for key in TOLD if key not in about]:
            raise ValueError(f"{ABOUT} does not tell {', '.join(lacking)}")
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in PARQUETS}
        _belong_together(tables)
        for name, before in (("ended", "cpu"), ("libraries", "dataset"), ("setting", "recipe")):
            if name not in (results := tables["results"]):
                results.insert(results.columns.get_loc(before), name, "")
        if "protocol" not in results:
            results.insert(results.columns.get_loc("seed"), "protocol", BEFORE)
        if "is_reference" not in results:
            same = same_artifact(*(results[name] for name in SAME_BY))
            results.insert(results.columns.get_loc("valid"), "is_reference", same)
        file = folder / f"{COMPARISONS}.parquet"
        beside = pd.read_parquet(file).to_dict("records") if file.exists() else []
        return Frozen(
            schema().validate(tables.pop("results")),
            **tables,
            about=about,
            comparisons=comparisons.table(beside),
        )
    except (OSError, ValueError, SchemaError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{folder} is damaged ({reason(error)}); {again}") from None


def _belong_together(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse what lies beside results that it is not of."""
    results = tables["results"]
    expected = {"predictions": results["scored"], "windows": results["valid"]}
    for name in PARQUETS[1:]:
        there = set(tables[name]["run_id"])
        of = set(results.loc[expected[name], "run_id"]) if name in expected else set()
        if not of <= there <= set(results["run_id"]):
            raise ValueError(f"{name}.parquet is not of the runs in results.parquet")


def reason(error: Exception) -> str:
    """In a line; an HTTP client's tells the whole address, of a store with a password, too."""
    return first_line(f"it has no {error}" if isinstance(error, KeyError) else error)


def _parquet(table: pd.DataFrame, file: Path) -> None:
    """As small as it goes, for it is kept in repositories: a fifth to three fifths of the usual encoding."""
    from pandas.api.types import is_float_dtype, is_integer_dtype

    numbers = {c: "DELTA_BINARY_PACKED" for c in table if is_integer_dtype(table[c])}
    numbers |= {c: "BYTE_STREAM_SPLIT" for c in table if is_float_dtype(table[c])}
    table.to_parquet(
        file,
        engine="pyarrow",
        index=False,
        compression="zstd",
        compression_level=19,
        use_dictionary=[c for c in table if c not in numbers],
        column_encoding=numbers,
    )


def write(frozen: Frozen, folder: Path) -> None:
    """Write the files of a folder, as a whole or not at all; an older one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        partial = Path(scratch) / "new"
        partial.mkdir()
        for name in PARQUETS:
            _parquet(getattr(frozen, name), partial / f"{name}.parquet")
        if len(frozen.comparisons):
            _parquet(frozen.comparisons, partial / f"{COMPARISONS}.parquet")
        frozen.results.to_csv(partial / "results.csv", index=False, lineterminator="\n")
        (partial / ABOUT).write_text(json.dumps(frozen.about, indent=1, ensure_ascii=False) + "\n")
        old = Path(scratch) / "old"
        try:
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
