"""From the store to frozen results: which runs, and every number of theirs that a report is made of."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp.config import NOT_ASKED, digest, redact
from tsexp.marks import ATTACHED_TO, COMPARISON, OTHERS, PROTOCOL_VERSION, products
from tsexp.report import comparisons
from tsexp.report.frozen import ABOUT, AGAIN, ORDER, REPETITION, Frozen, reason, write
from tsexp.report.schema import COLUMNS, ENERGY, FROM_WINDOWS, PARQUETS, SCHEMA_VERSION, schema
from tsexp.report.store import ReportError, Row, every, minute
from tsexp.report.store import row as as_row
from tsexp.system import alive
from tsexp.system.progress import bar

if TYPE_CHECKING:
    import pandas as pd

OLDER = "measured by an older protocol"
OTHER_VERSION = "stored by another version of tsexp, or damaged"

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
    write(frozen, folder)
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
                left_out[OTHER_VERSION].append(f"{run.name}: {reason(error)}")
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
            raise ReportError(f"the results do not fit their schema: {reason(error)}") from None
    for index, of in cases.groupby("index"):
        what = ", ".join(sorted({f"{c.column} is {c.failure_case} ({c.check})" for c in of.itertuples()}))
        left_out["outside the schema"].append(f"{results.loc[index, 'run_name']}: {what}")
    return schema().validate(results.drop(index=cases["index"].unique()))


def _search(client: Any, experiment_id: str, where: str) -> list[Row]:
    """All runs, the newest first."""
    from mlflow.exceptions import MlflowException

    try:
        return [as_row(run) for run in every(client, experiment_id, where, "attributes.start_time DESC")]
    except MlflowException as error:
        raise ReportError(
            f"the store does not take where={where!r}: {reason(error)}; an example that it takes: "
            "where=\"params.`data.name` = 'ACSF1'\""
            if where
            else f"the store does not answer: {reason(error)}"
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
            left_out[OTHER_VERSION].append(f"{row.name}: {reason(error)}")
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
        "is_reference": row.is_reference,
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


def _channels(kept: list[dict[str, list[int]]], row: Row) -> list[tuple[int, str, int, bool]]:
    there = {"head": int(row.params.get("model.heads", 0)), "ffn": int(row.params.get("model.ffn", 0))}
    names = {"head": "heads", "ffn": "ffn"}
    return [
        (layer, kind, unit, unit in set(block[names[kind]]))
        for layer, block in enumerate(k for k in kept if "heads" in k)  # of other networks, none is drawn
        for kind, count in there.items()
        for unit in range(count)
    ]
