"""The results, frozen: every number that a table or a figure is made of, in files read without a store.

``results.parquet`` (and ``.csv``) has a row per run; ``windows``, ``predictions`` and ``channels`` have what
the statistics are made of, ``comparisons`` what `tsexp.compare` found; ``about.json`` says where it came from
and what was left out. Tables and figures
are functions of this folder and of nothing else. A study that was measured in parts, or on several machines,
is a folder of such folders.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.config import NOT_ASKED, digest, first_line, redact
from tsexp.marks import ATTACHED_TO, COMPARISON, ENDS, OTHERS, PROTOCOL_VERSION, products
from tsexp.report import comparisons
from tsexp.report.store import ReportError, Row, every, minute
from tsexp.report.store import row as as_row
from tsexp.system import alive
from tsexp.system.progress import bar

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
ABOUT = "about.json"
TOLD = ("experiment", "experiment_id", "where", "left_out")
"""What `ABOUT` says of frozen results, beside its schema."""
OLDER = "measured by an older protocol"


class Column(NamedTuple):
    """One column of ``results``: where it comes from in the store, and what it is.

    ``source`` is ``param:…``, ``metric:…``, ``tag:…`` or ``hardware:…``; empty if it is worked out. ``kind``
    is str, int, float or bool.
    """

    name: str
    kind: str
    source: str
    about: str
    optional: bool = False


COLUMNS = (
    Column("run_id", "str", "", "of the run in the store"),
    Column("run_name", "str", "", "what varied in its sweep"),
    Column(
        "signature",
        "str",
        "tag:tsexp.signature",
        "content address of what was asked, of which data, on what hardware",
    ),
    Column(
        "config",
        "str",
        "tag:tsexp.config",
        "content address of what was asked, whatever the seed: rows that share it are repetitions",
    ),
    Column("git_sha", "str", "tag:tsexp.git_sha", "commit of the code that measured it"),
    Column("version", "str", "tag:tsexp.version", "of the package"),
    Column(
        "ended",
        "str",
        "",
        "when its windows ended, UTC: hours differ by more than intervals say (docs/results.md); empty: an "
        "older version froze it",
    ),
    Column("cpu", "str", "hardware:cpu", "name and design of the CPU"),
    Column("gpu", "str", "hardware:gpu", "name of the GPU, if it was measured there", True),
    Column("machine", "str", "", "content address of all that is known of the machine, Python and PyTorch"),
    Column(
        "libraries",
        "str",
        "",
        "that made and ran the artifact, with versions; empty: an older version froze it",
    ),
    Column("dataset", "str", "param:data.name", "the archive's name"),
    Column("data_checksum", "str", "tag:tsexp.data_checksum", "of the files"),
    Column("model", "str", "param:model.name", "its name: t1, fcn, minirocket, …"),
    Column(
        "setting",
        "str",
        "",
        "content address of the model and data groups, but where files are; empty: an older version froze it",
    ),
    Column(
        "recipe", "str", "", "content address of the train group; - for a model that is fitted without it"
    ),
    Column(
        "tuning",
        "str",
        "",
        "content address of the tuning that artifact and control share; - if there is none",
    ),
    Column("method", "str", "param:prune.method", "of importance; - at ratio 0"),
    Column("scope", "str", "param:prune.scope", "local, global, depth, features, all; - at ratio 0"),
    Column("ratio", "float", "param:prune.ratio", "asked for"),
    Column(
        "achieved_ratio",
        "float",
        "metric:prune/achieved_ratio",
        "removed over all that can be pruned, whatever the scope takes from; empty for a model without any",
        True,
    ),
    Column(
        "finetune_epochs",
        "int",
        "param:prune.finetune_epochs",
        "asked for after pruning (train.min_steps may ask for more); 0 at ratio 0",
    ),
    Column("mode", "str", "param:quant.mode", "number format"),
    Column("runtime", "str", "tag:tsexp.runtime", "that executed it"),
    Column("runtime_asked", "str", "param:runtime.name", "the same, or auto"),
    Column("device", "str", "param:runtime.device", "cpu, cuda"),
    Column("batch_size", "int", "param:measure.batch_size", "series per call"),
    Column("threads", "int", "param:measure.threads", ""),
    Column("repeats", "int", "param:measure.repeats", "pairs of windows, at most"),
    Column("processes", "int", "param:measure.processes", "fresh processes that share them"),
    Column("window_s", "float", "param:measure.window_s", "shortest window, s"),
    Column("seed", "int", "param:seed", ""),
    Column("valid", "bool", "", "its energy, times and memory may stand in a table; they are empty if not"),
    Column("scored", "bool", "", "its accuracy may, whatever became of its energy"),
    Column("invalid_reasons", "str", "tag:tsexp.invalid_reasons", "", True),
    Column("warnings", "str", "tag:tsexp.warnings", "why to look twice", True),
    Column("accuracy", "float", "metric:test/accuracy", "0 to 1, whole test split"),
    Column("balanced_accuracy", "float", "metric:test/balanced_accuracy", "0 to 1"),
    Column("macro_f1", "float", "metric:test/macro_f1", "0 to 1"),
    Column("nll", "float", "metric:test/nll", "nats per series"),
    Column(
        "control_accuracy",
        "float",
        "metric:test/control_accuracy",
        "of the control: the dense model tuned alike, nothing removed, fp32 eager",
    ),
    Column(
        "dense_accuracy",
        "float",
        "metric:test/dense_accuracy",
        "of the dense model before any tuning, fp32 eager",
    ),
    Column(
        "accuracy_drop_pt", "float", "metric:vs_dense/accuracy_drop_pt", "points lost against the control"
    ),
    Column("accuracy_drop_lo", "float", "metric:vs_dense/accuracy_drop_lo", "95 %"),
    Column("accuracy_drop_hi", "float", "metric:vs_dense/accuracy_drop_hi", "95 %"),
    Column("val_series", "int", "", "validation series, by which choices are made; 0: there are none"),
    Column("val_accuracy", "float", "metric:val/accuracy", "0 to 1, on them", True),
    Column(
        "val_drop_pt",
        "float",
        "metric:val/accuracy_drop_pt",
        "points lost against the control, on them",
        True,
    ),
    Column(
        "energy_source",
        "str",
        "tag:tsexp.energy_source",
        "zeus:nvml, zeus:rapl, …, estimated:cpu_time; of other watts than 10 a core with those",
    ),
    Column("measured_j", "float", "", "J per series, from a counter", True),
    Column("measured_reference_j", "float", "", "J per series of the reference, in the same windows", True),
    Column("measured_saving_pct", "float", "", "% against the reference", True),
    Column("measured_saving_lo", "float", "", "95 %", True),
    Column("measured_saving_hi", "float", "", "95 %", True),
    Column("estimated_j", "float", "", "J per series, CPU seconds × watts_per_core: not a measurement", True),
    Column("estimated_reference_j", "float", "", "J per series of the reference, in the same windows", True),
    Column("estimated_saving_pct", "float", "", "% against the reference, of CPU time", True),
    Column("estimated_saving_lo", "float", "", "95 %", True),
    Column("estimated_saving_hi", "float", "", "95 %", True),
    Column("latency_p50_ms", "float", "metric:latency/p50_ms", "per call", True),
    Column("latency_p90_ms", "float", "metric:latency/p90_ms", "per call", True),
    Column("latency_p99_ms", "float", "metric:latency/p99_ms", "per call", True),
    Column("series_per_s", "float", "metric:throughput/series_per_s", "1/s", True),
    Column("speedup", "float", "metric:vs_dense/speedup", "wall time, paired", True),
    Column("speedup_lo", "float", "metric:vs_dense/speedup_lo", "95 %", True),
    Column("speedup_hi", "float", "metric:vs_dense/speedup_hi", "95 %", True),
    Column("cpu_speedup", "float", "metric:vs_dense/cpu_speedup", "CPU time, paired", True),
    Column("cpu_speedup_lo", "float", "metric:vs_dense/cpu_speedup_lo", "95 %", True),
    Column("cpu_speedup_hi", "float", "metric:vs_dense/cpu_speedup_hi", "95 %", True),
    Column("parameters", "int", "metric:size/parameters", "counted on the artifact"),
    Column(
        "macs",
        "float",
        "metric:size/macs",
        "per series, counted on the artifact; empty for a model without such a count",
        True,
    ),
    Column("bytes", "int", "metric:size/bytes", "on disk"),
    Column("size_ratio", "float", "metric:vs_dense/size_ratio", "times smaller on disk"),
    Column("peak_mb", "float", "metric:memory/peak_mb", "of the measuring process, MiB", True),
    *(
        Column(f"cost_{name}", "float", f"metric:cost/{name}", about, True)
        for name, about in (
            ("load_ms", "to load the artifact"),
            ("load_j", "to load the artifact, by energy_source"),
            ("first_call_ms", "the first call after that"),
            ("first_call_j", "the first call after that, by energy_source"),
            ("train_s", "to train the dense model"),
            ("train_j", "to train the dense model, by energy_source"),
            ("compress_s", "to prune, tune and convert it"),
            ("compress_j", "to prune, tune and convert it, by energy_source"),
            ("break_even_inferences", "after which compressing has paid for itself; empty if it never does"),
        )
    ),
    Column("matmuls", "int", "", "products in the graph that runs; 0 where there is no such graph"),
    Column("matmuls_int8", "int", "", "of them in int8"),
    Column("number_format", "str", "", "int8 if any product of the graph is, else bf16 if any is, else fp32"),
    Column(
        "peak_gmacs",
        "float",
        "",
        "10⁹ multiply-accumulates per second and thread of one large product in that format, seen on this "
        "machine",
        True,
    ),
)
PARQUETS = ("results", "windows", "predictions", "channels")
COMPARISONS = "comparisons"
"""Not in a folder that an earlier version wrote, nor where there are none."""
REPETITION = ("config", "machine", "data_checksum", "runtime", "energy_source", "seed")
"""One row for each: what names a measurement, whatever code or libraries made it."""
ORDER = ("dataset", "model", "mode", "runtime", "method", "scope", "ratio", "seed", "batch_size", "signature")
AGAIN = "measured again since"
OTHER_VERSION = "stored by another version of tsexp, or damaged"


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


LeftOut = defaultdict[str, list[str]]
"""Runs of the experiment without a row, by reason."""


def freeze(client: Any, experiment: str, folder: Path, where: str = "") -> Frozen:
    """Export the finished jobs of an experiment and return what was written.

    Parameters
    ----------
    client
        An `mlflow.MlflowClient`.
    experiment
        Its name.
    folder
        Written as a whole or not at all; an older one is replaced.
    where
        Which runs, in MLflow's filter language; all by default.

    Raises
    ------
    ReportError
        If the experiment is not there, no run matches, none has a whole record, or something else lies at
        `folder`.
    """
    import pandas as pd

    if folder.exists() and not (folder / ABOUT).exists():
        raise ReportError(
            f"{folder} is there and holds no frozen results, so it is not replaced; move it away or choose "
            "another paths.frozen"
        )
    experiment_id = _experiment_id(client, experiment)
    left_out: LeftOut = defaultdict(list)
    there = _search(client, experiment_id, where)
    rows, tables = _read(client, _newest(there, left_out), left_out)
    results = _whole(pd.DataFrame(rows, columns=[c.name for c in COLUMNS]), left_out)
    if results.empty:
        detail = "; ".join(f"{len(names)} {reason} ({names[0]})" for reason, names in left_out.items())
        raise ReportError(
            f"no run of experiment {experiment!r}{f' where {where}' if where else ''} has a whole record: "
            f"{detail or 'there is none'}; "
            "fill the store first, e.g. python -m tsexp -m experiment=quick"
        )
    results = results.sort_values(list(ORDER), kind="stable").reset_index(drop=True)
    sorted_as_results = {
        name: pd.concat([parts[run_id] for run_id in results["run_id"]], ignore_index=True)
        for name, parts in tables.items()
    }
    beside = _comparisons(client, experiment_id, there, where, left_out)
    about = {
        "schema": SCHEMA_VERSION,
        "store": store_id(str(client.tracking_uri)),
        "experiment": experiment,
        "experiment_id": experiment_id,
        "where": where,
        "left_out": {reason: sorted(names) for reason, names in sorted(left_out.items())},
    }
    frozen = Frozen(results, **sorted_as_results, about=about, comparisons=beside)
    _write(frozen, folder)
    return frozen


def _experiment_id(client: Any, experiment: str) -> str:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        known = sorted(e.name for e in client.search_experiments() if e.name != "Default")
        raise ReportError(
            f"the store has no experiment {experiment!r}; it has: "
            f"{', '.join(known) or 'none: nothing was run with it yet'}"
        )
    return str(found.experiment_id)


def _read(
    client: Any, runs: list[Row], left_out: LeftOut
) -> tuple[list[dict[str, Any]], dict[str, dict[str, pd.DataFrame]]]:
    """Return a row per run, and, by the name of each other table and the run, its part of it."""
    from mlflow.exceptions import MlflowException

    rows: list[dict[str, Any]] = []
    tables: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in PARQUETS[1:]}
    repetitions = set()
    with bar("reading runs", len(runs), show=bool(runs)) as progress:
        for run in runs:
            try:
                result, *parts = _read_run(client, run)
            except (KeyError, ValueError, OSError, MlflowException) as error:
                left_out[OTHER_VERSION].append(f"{run.name}: {_reason(error)}")
                continue
            finally:
                progress.advance(run.name)
            repetition = tuple(result[k] for k in REPETITION)
            if repetition in repetitions:  # by other code or other libraries: one of them is enough
                left_out[AGAIN].append(run.name)
                continue
            repetitions.add(repetition)
            rows.append(result)
            for name, part in zip(tables, parts, strict=True):
                tables[name][run.run_id] = part
    return rows, tables


def store_id(uri: str) -> str:
    """Content address of a store's URI: distinguishes stores without saying where they lie."""
    return digest(redact(uri))


def _whole(results: pd.DataFrame, left_out: LeftOut) -> pd.DataFrame:
    """The rows that fit the schema; the others are left out, with what does not fit."""
    from pandera.errors import SchemaErrors

    try:
        return schema().validate(results, lazy=True)
    except SchemaErrors as error:
        cases = error.failure_cases.dropna(subset=["index"])
        if cases.empty:  # no row is to blame
            raise ReportError(f"the results do not fit their schema: {_reason(error)}") from None
    for index, of in cases.groupby("index"):
        what = ", ".join(sorted({f"{c.column} is {c.failure_case} ({c.check})" for c in of.itertuples()}))
        left_out["outside the schema"].append(f"{results.loc[index, 'run_name']}: {what}")
    return schema().validate(results.drop(index=cases["index"].unique()))


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
        raise ReportError(f"{folder} is damaged ({_reason(error)}); {again}") from None


def _belong_together(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse what lies beside results that it is not of."""
    results = tables["results"]
    expected = {"predictions": results["scored"], "windows": results["valid"]}
    for name in PARQUETS[1:]:
        there = set(tables[name]["run_id"])
        of = set(results.loc[expected[name], "run_id"]) if name in expected else set()
        if not of <= there <= set(results["run_id"]):
            raise ValueError(f"{name}.parquet is not of the runs in results.parquet")


def schema() -> Any:
    """Return the pandera schema of ``results``: exactly `COLUMNS`, of these kinds, with ranges."""
    import pandera.pandas as pa

    bounds = {
        "accuracy": pa.Check.in_range(0, 1),
        "balanced_accuracy": pa.Check.in_range(0, 1),
        "control_accuracy": pa.Check.in_range(0, 1),
        "dense_accuracy": pa.Check.in_range(0, 1),
        "val_accuracy": pa.Check.in_range(0, 1),
        "val_series": pa.Check.ge(0),
        "macro_f1": pa.Check.in_range(0, 1),
        "ratio": pa.Check.in_range(0, 1, include_max=False),
        "achieved_ratio": pa.Check.in_range(0, 1, include_max=False),
        "parameters": pa.Check.ge(0),
        "macs": pa.Check.gt(0),
        "bytes": pa.Check.gt(0),
    }
    columns = {
        c.name: pa.Column(c.kind, bounds.get(c.name), nullable=c.optional, coerce=True, description=c.about)
        for c in COLUMNS
    }
    apart = pa.Check(
        lambda t: ~(t["measured_j"].notna() & t["estimated_j"].notna()),
        error="measured and estimated energy in one row",
    )
    unmarked = pa.Check(
        lambda t: t["valid"] | t[list(FROM_WINDOWS)].isna().all(axis=1),
        error="numbers of the windows of an invalid record",
    )
    return pa.DataFrameSchema(columns, checks=[apart, unmarked], strict=True, unique=["signature"])


def _search(client: Any, experiment_id: str, where: str) -> list[Row]:
    """All runs, the newest first."""
    from mlflow.exceptions import MlflowException

    try:
        return [as_row(run) for run in every(client, experiment_id, where, "attributes.start_time DESC")]
    except MlflowException as error:
        raise ReportError(
            f"the store does not take where={where!r}: {_reason(error)}; an example that it takes: "
            "where=\"params.`data.name` = 'ACSF1'\""
            if where
            else f"the store does not answer: {_reason(error)}"
        ) from None


def _newest(rows: list[Row], left_out: LeftOut) -> list[Row]:
    """The newest valid run of each signature (an invalid one if there is no other) of this protocol."""
    jobs = []
    for row in rows:
        if row.tags.get("tsexp.stage") in OTHERS:
            continue
        if row.status == "FINISHED" and not (
            row.tags.get("tsexp.protocol") == str(PROTOCOL_VERSION) and row.tags.get("tsexp.config")
        ):
            left_out[OLDER].append(row.name)
        else:
            jobs.append(row)
    done = {r.tags.get("tsexp.signature") for r in jobs if r.status == "FINISHED"}
    for row in jobs:
        if row.status != "FINISHED":
            again = row.tags.get("tsexp.signature", "") in done
            left_out[AGAIN if again else f"not finished ({row.status})"].append(row.name)
    best: dict[str, Row] = {}
    finished = [r for r in jobs if r.status == "FINISHED"]
    for row in sorted(finished, key=lambda r: not r.valid):  # stable: the newest first among the valid
        signature = row.tags.get("tsexp.signature", row.run_id)
        if signature in best:
            left_out[AGAIN].append(row.name)
        else:
            best[signature] = row
    return list(best.values())


def _comparisons(
    client: Any, experiment_id: str, rows: list[Row], where: str, left_out: LeftOut
) -> pd.DataFrame:
    """The newest valid comparison of each two runs; where runs are chosen, of two that are."""
    from mlflow.exceptions import MlflowException

    known = {row.run_id: row for row in rows}
    made = []
    # A filter is of runs: a comparison has neither their dataset nor their seeds among its params.
    every_one = _search(client, experiment_id, f"tags.`tsexp.stage` = '{COMPARISON}'") if where else rows
    for row in every_one:
        if row.tags.get("tsexp.stage") != COMPARISON or row.status != "FINISHED":
            continue
        sides = {s: row.tags.get(f"tsexp.compare_{s}", "") for s in comparisons.SIDES}
        if where and not all(run_id in known for run_id in sides.values()):
            continue
        try:
            of = {s: known.get(i) or as_row(client.get_run(i)) for s, i in sides.items()}
        except MlflowException:
            left_out[comparisons.GONE].append(row.name)
            continue
        try:
            with alive.scratch("freeze") as scratch:
                file = _file(row, "hardware.json", scratch, str(client.tracking_uri))
                made.append(comparisons.of_run(row, of, json.loads(file.read_text())))
        except (KeyError, ValueError, OSError, MlflowException) as error:
            left_out[OTHER_VERSION].append(f"{row.name}: {_reason(error)}")
    return comparisons.table(comparisons.once(made))


def _read_run(client: Any, row: Row) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    with alive.scratch("freeze") as scratch:

        def artifact(name: str) -> Path:
            return _file(row, name, scratch, str(client.tracking_uri))

        raw = json.loads(artifact("windows.json").read_text())
        hardware = json.loads(artifact("hardware.json").read_text())
        manifest = json.loads(artifact("manifest.json").read_text())
        predictions = pd.read_csv(  # a class may be called NA
            artifact("predictions.csv"),
            usecols=["label", "predicted", "dense_predicted"],
            dtype=str,
            keep_default_na=False,
        )
        pruned = _ratio(row) > 0
        channels = _channels(json.loads(artifact("kept.json").read_text()), row) if pruned else []
    windows = pd.DataFrame(raw["windows"])[
        ["process", "subject", "pair", "wall_s", "cpu_s", "energy_j", "inferences", "discarded"]
    ]
    windows.insert(0, "order", range(len(windows)))
    predictions.insert(0, "series", range(len(predictions)))
    kept = pd.DataFrame(channels, columns=["layer", "kind", "unit", "kept"]).astype(
        {"layer": int, "kind": str, "unit": int, "kept": bool}
    )
    for table in (windows, predictions, kept):
        table.insert(0, "run_id", row.run_id)
    return _result(row, raw, hardware, manifest), windows, predictions, kept


def _file(row: Row, name: str, scratch: Path, store: str) -> Path:
    """One of a run's files: where it lies if that is a folder, else fetched into `scratch`.

    `MlflowClient.download_artifacts` would ask for the run again, and keep threads for each.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import append_to_uri_path, is_local_uri

    if is_local_uri(row.artifacts):
        return Path(local_file_uri_to_path(row.artifacts)) / name
    uri = append_to_uri_path(row.artifacts, name)
    return Path(download_artifacts(artifact_uri=uri, dst_path=str(scratch), tracking_uri=store))


def _result(
    row: Row, raw: dict[str, Any], hardware: dict[str, Any], manifest: dict[str, Any]
) -> dict[str, Any]:
    places: dict[str, dict[str, Any]] = {
        "param": row.params,
        "metric": row.metrics,
        "tag": row.tags,
        "hardware": hardware,
    }
    out: dict[str, Any] = {}
    for c in COLUMNS:
        if c.source:
            place, key = c.source.split(":", 1)
            out[c.name] = places[place].get(key) if c.optional else places[place][key]
    if _ratio(row) == 0:  # nothing else about pruning matters then
        out |= {"method": "-", "scope": "-", "finetune_epochs": 0}
    elif "finetune" not in row.tags.get("tsexp.steps", "finetune").split(","):  # of ridge, say
        out["finetune_epochs"] = 0
    if not row.valid:
        out |= dict.fromkeys(FROM_WINDOWS)
    kinds = products(manifest, int(row.params["measure.batch_size"]))
    format = "int8" if "int8" in kinds else "bf16" if "bfloat16" in kinds else "fp32"
    side = "measured" if row.measured else "estimated"
    m = row.metrics if row.valid else {}
    return out | {
        "run_id": row.run_id,
        "run_name": row.name,
        "ended": _ended(raw) or row.ended,
        "energy_source": row.energy_source,
        "setting": _asked(row, "model.", "data."),
        "recipe": _asked(row, "train.") if _learned(row) else "-",
        "tuning": _tuning(row, out["finetune_epochs"]),
        "machine": digest(hardware),
        "libraries": ", ".join(f"{k} {v}" for k, v in sorted(manifest.get("versions", {}).items())),
        "valid": row.valid,
        "scored": row.scored,
        "val_series": int(row.metrics.get("val/series", 0)),
        **{f"{side}_{k}": m.get(key) for k, key in ENERGY.items()},
        "matmuls": sum(kinds.values()),
        "matmuls_int8": kinds.get("int8", 0),
        "number_format": format,
        "peak_gmacs": raw.get("peak_gmacs", {}).get(format),
    }


def _ended(raw: dict[str, Any]) -> str:
    """When the last window ended: of an attached log, that was before its run was made."""
    ends = [w["end_unix_s"] for w in raw["windows"] if w.get("end_unix_s")]
    return minute(max(ends)) if ends else ""


ONCE = {"model.kept": "1.0"}
"""Keys that there were not, and the value that says what was done then."""


def _asked(row: Row, *groups: str) -> str:
    said = {k: v for k, v in row.params.items() if k.startswith(groups) and not k.startswith(NOT_ASKED)}
    return digest({k: v for k, v in said.items() if (k, v) not in ONCE.items()})


LEARNED = ("transformer", "views", "convolution")
"""Families that are trained by gradient descent."""


def _learned(row: Row) -> bool:
    """Whether the train group mattered: an estimator, or ridge, has no history."""
    return any(key.startswith("dense/") for key in row.metrics) or (
        ATTACHED_TO in row.tags and row.params.get("model.family") in LEARNED  # by an older version
    )


def _ratio(row: Row) -> float:
    return float(row.params["prune.ratio"])


def _tuning(row: Row, finetune_epochs: Any) -> str:
    tuned: tuple[str, ...] = (
        ("prune.finetune_", "prune.distill", "prune.temperature") if int(finetune_epochs) else ()
    )
    tuned += ("quant.qat_",) if row.params["quant.mode"] == "qat" else ()
    return digest({k: v for k, v in row.params.items() if k.startswith(tuned)}) if tuned else "-"


ENERGY = {
    "j": "energy/per_inference_j",
    "reference_j": "energy/reference_per_inference_j",
    "saving_pct": "vs_dense/energy_saving_pct",
    "saving_lo": "vs_dense/energy_saving_lo",
    "saving_hi": "vs_dense/energy_saving_hi",
}


FROM_WINDOWS = (
    *(f"{side}_{name}" for side in ("measured", "estimated") for name in ENERGY),
    *("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "series_per_s", "peak_mb"),
    *("cost_load_ms", "cost_load_j", "cost_first_call_ms", "cost_first_call_j", "cost_break_even_inferences"),
    *(f"{kind}speedup{end}" for kind in ("", "cpu_") for end in ENDS),
)
"""Columns that an invalid record does not have."""


def _channels(kept: list[dict[str, list[int]]], row: Row) -> list[tuple[int, str, int, bool]]:
    there = {"head": int(row.params.get("model.heads", 0)), "ffn": int(row.params.get("model.ffn", 0))}
    names = {"head": "heads", "ffn": "ffn"}
    return [
        (layer, kind, unit, unit in set(block[names[kind]]))
        for layer, block in enumerate(k for k in kept if "heads" in k)  # of other networks, none is drawn
        for kind, count in there.items()
        for unit in range(count)
    ]


def _reason(error: Exception) -> str:
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


def _write(frozen: Frozen, folder: Path) -> None:
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
