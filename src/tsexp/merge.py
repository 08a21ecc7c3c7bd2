"""Bring the stores of several machines together: what they measured goes into one, each result once."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tsexp import config as configs
from tsexp import finished, stores, subcommand
from tsexp.command import called
from tsexp.config import ConfigError, TrackingConfig, secret
from tsexp.marks import ATTACHED_TO, COMPARISON, FROM_RUN, FROM_STORE, MEASUREMENT
from tsexp.system import alive

SIGNATURE = "tsexp.signature"
COMPARED = ("tsexp.compare_a", "tsexp.compare_b")
"""Tags of a comparison: the runs that it is of."""
OF_THE_STORE = ("mlflow.artifactLocation", "mlflow.parentRunId", "mlflow.user")
"""Tags that mean something in their own store alone."""


def main(arguments: list[str] | None = None) -> int:
    """Merge; return 2 for bad input, 1 if a store did not take something."""
    parser = argparse.ArgumentParser(
        prog=called("merge"),
        description=__doc__,
        epilog="A store is the path of a sqlite file, or any URI that MLflow takes. The same command again "
        "brings only what is new.",
    )
    parser.add_argument("stores", nargs="+", metavar="STORE", help="to read")
    parser.add_argument("--into", required=True, metavar="STORE", help="to write; made if it is not there")
    parser.add_argument("--experiment", default="tsexp", help="of both (default: tsexp)")
    parser.add_argument(
        "--artifacts", metavar="PLACE", help="where those of a new database lie (tracking.artifacts)"
    )
    if arguments is None:
        secret.out_of_sight()
    asked = parser.parse_args(arguments)

    return subcommand.carried_out(
        "merge",
        lambda: _merge_all(asked.stores, asked.into, asked.experiment, asked.artifacts),
        "the same command goes on where it stopped",
    )


def _merge_all(given: Sequence[str], store: str, experiment: str, artifacts: str | None) -> None:
    from tsexp import tracking

    into = TrackingConfig(stores.uri_of(secret.given(store)), experiment, configs.absolute_place(artifacts))
    sources = [stores.uri_of(secret.given(one)) for one in given]
    places = [_place(uri) for uri in (into.uri, *sources)]
    for i, place in enumerate(places):
        if place in places[:i]:
            twice = "is both read and written" if place == places[0] else "is read twice"
            raise ConfigError(f"{configs.redact(sources[i - 1])} {twice}; name each store once")
    opened = [_open(uri, experiment) for uri in sources]
    with tracking.asking(into):
        tracking.store(into)
    missing = []
    for uri, (client, number) in zip(sources, opened, strict=True):
        brought, there, bare = _merge(client, number, uri, into)
        said = f"{configs.redact(uri)}: {brought} brought, {there} there already"
        if bare:
            missing.append(f"{said}, {bare}")
        else:
            print(said)
    if missing:
        raise ConfigError("; ".join(missing))


def _place(uri: str) -> str:
    """Return what two names of one store have in common."""
    file = stores.file_of(uri)
    return uri if file is None else str(file.resolve())


def _open(uri: str, experiment: str) -> tuple[Any, str]:
    from tsexp.report.store import connect

    client = connect(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(e.name for e in client.search_experiments())
        raise ConfigError(f"{configs.redact(uri)} has no experiment {experiment}; it has: {names}")
    return client, found.experiment_id


def _merge(client: Any, number: str, uri: str, into: TrackingConfig) -> tuple[int, int, str]:
    """Return how many results were brought, how many were there, and what was not and why, if any."""
    from tsexp import tracking
    from tsexp.system.progress import bar

    runs = _results(client, number)
    here = {run.info.run_id for run in runs}
    logged = {run.data.tags.get(ATTACHED_TO) for run in runs}
    brought = there = 0
    parents: dict[str, str] = {}
    bare: list[str] = []
    later = 0
    with bar(f"merge {configs.redact(uri)}", len(runs), show=len(runs) > 20) as progress:
        for run in runs:
            tags = run.data.tags
            valid = tags.get("tsexp.valid") == "true"
            with tracking.asking(into):
                known = _brought(into, run.info.run_id) or _at_home(into, _record(run))
                # What a log was laid over comes with it: of another measurement of the same, it were wrong.
                if not known and valid and SIGNATURE in tags and run.info.run_id not in logged:
                    same = tracking.finished(into, tags[SIGNATURE])
                    # From here, it was measured again, or another log was attached: all come, as here.
                    known = None if same is None or _came_from(into, same) in here else same
            parent = tags.get("mlflow.parentRunId")
            if known:
                there += 1
                if parent and parent not in parents:  # it may have ended since
                    parents[parent] = _parent(client, parent, into, make=False)
            elif not {tags.get(side) for side in COMPARED}.isdisjoint(bare):
                later += 1  # it comes with the jobs that it is of
            else:
                with alive.scratch("merge") as folder:
                    parcel = folder / "parcel"
                    if not _collect(client, run, parcel, uri):
                        bare.append(run.info.run_id)
                        progress.advance()
                        continue
                    for other in (ATTACHED_TO, *COMPARED):  # is older, and jobs come first: it is there
                        if other in tags:
                            _renumber(parcel, other, _there(client, into, tags[other]))
                    if parent:
                        if not parents.get(parent):
                            parents[parent] = _parent(client, parent, into)
                        if parents[parent]:
                            _add_tag(parcel, "mlflow.parentRunId", parents[parent])
                    try:
                        tracking.deliver(parcel, into)
                    except tracking.NotDelivered as error:  # the parcel goes with its folder, as this does
                        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
                        raise tracking.NotDelivered(
                            f"{configs.redact(uri)}: {brought} brought, {there} there already, then "
                            f"{tracking.said(into, cause)}; the same command brings the rest",
                            parcel,
                        ) from error
                brought += 1
            progress.advance()
    if bare:
        which = ", ".join(bare[:3]) + (", …" if len(bare) > 3 else "")
        compared = f"; {later} comparison(s) of them neither" if later else ""
        copied = (
            "; if it was copied, copy its folder mlartifacts along, beside it (other folders of this machine "
            "are not read, and no links followed)"
            if stores.file_of(uri)
            else "; of a server or a database, artifacts are read that a server serves, no folders"
        )
        return (
            brought,
            there,
            f"{len(bare)} not, for their files do not lie beside it: {which}{compared}{copied}",
        )
    return brought, there, ""


def _results(client: Any, number: str) -> list[Any]:
    """All finished jobs, oldest first, then comparisons of two of them, and measurements of other things."""
    from tsexp.report.store import every

    jobs, *others = (
        every(
            client,
            number,
            f"attributes.status = 'FINISHED' and tags.`tsexp.stage` = '{stage}'",
            "attributes.start_time ASC",
        )
        for stage in ("done", COMPARISON, MEASUREMENT)
    )
    return [*(run for run in jobs if SIGNATURE in run.data.tags), *(run for some in others for run in some)]


def _there(client: Any, into: TrackingConfig, run_id: str) -> str:
    """Return what a job of the other store is in this one; its own number if it is nowhere."""
    from mlflow.exceptions import MlflowException

    from tsexp import tracking

    with tracking.asking(into):
        if found := _brought(into, run_id):
            return found
        try:
            run = client.get_run(run_id)
        except MlflowException:  # deleted for good; the report says so
            return run_id
        signature = run.data.tags.get(SIGNATURE)
        return _at_home(into, _record(run)) or (signature and tracking.finished(into, signature)) or run_id


def _brought(into: TrackingConfig, run_id: str) -> str | None:
    """Return the run that a run of another store is in this one, or None."""
    from tsexp import tracking

    client = tracking.store(into)
    number = tracking.experiment_of(client, into)
    asked = f"tags.`{FROM_RUN}` = '{run_id}' and attributes.status = 'FINISHED'"
    found = client.search_runs([number], asked, max_results=1)
    return str(found[0].info.run_id) if found else None


def _record(run: Any) -> str:
    """Return the number of a result, which it keeps from store to store.

    What is attached has none of its own, but that of the run that it is of.
    """
    from tsexp.tracking import spool

    tags = run.data.tags
    own = tags.get(FROM_RUN, run.info.run_id)
    return str(own if ATTACHED_TO in tags else tags.get(spool.RECORD, own))


def _came_from(into: TrackingConfig, run_id: str) -> str | None:
    """Return the run that a run of this store was copied from, if it was."""
    from tsexp import tracking

    return tracking.store(into).get_run(run_id).data.tags.get(FROM_RUN)  # type: ignore[no-any-return]


def _at_home(into: TrackingConfig, record: str) -> str | None:
    """Return the run of this store that has a result, be it that it began there and comes home, or None."""
    from mlflow.exceptions import MlflowException

    from tsexp import tracking
    from tsexp.tracking import spool

    if found := spool.delivered(into, record):
        return found
    client = tracking.store(into)
    try:
        run = client.get_run(record)
    except MlflowException:  # no number of a run, or of one that is not there
        return None
    here = (tracking.experiment_of(client, into), "FINISHED", "active")
    same = (run.info.experiment_id, run.info.status, run.info.lifecycle_stage) == here
    return str(run.info.run_id) if same else None


def _parent(source: Any, run_id: str, into: TrackingConfig, make: bool = True) -> str:
    """Return the sweep of the same command in the other store; its numbers are made when it runs again.

    Empty if it was deleted for good, or is not there and none shall be made.
    """
    from mlflow.exceptions import MlflowException

    from tsexp import tracking

    try:
        run = source.get_run(run_id)
    except MlflowException:
        return ""
    client = tracking.store(into)
    tags = run.data.tags
    number = tracking.experiment_of(client, into)
    signature = tags.get("tsexp.sweep", run.info.run_id)
    found = client.search_runs([number], f"tags.`tsexp.sweep` = '{signature}'", max_results=1)
    if found:
        before_its_end = found[0].info.status in ("FAILED", "KILLED")
        if before_its_end and run.info.status == "FINISHED":
            client.set_terminated(found[0].info.run_id, run.info.status, run.info.end_time)
        return str(found[0].info.run_id)
    if not make:
        return ""
    kept = {k: v for k, v in tags.items() if k not in OF_THE_STORE} | {"tsexp.sweep": signature}
    made = client.create_run(number, start_time=run.info.start_time, tags=kept).info.run_id
    status = "KILLED" if run.info.status == "RUNNING" else run.info.status  # nobody would close it here
    client.set_terminated(made, status, run.info.end_time)
    return str(made)


def _collect(client: Any, run: Any, folder: Path, uri: str) -> bool:
    """Make a parcel of a run; False if its files are not there."""
    from tsexp.tracking import spool

    folder.mkdir()
    (folder / "artifacts").mkdir()
    for noisy in ("mlflow", "mlflow.store.artifact"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not _fetch(client, run, folder / "artifacts", uri):
        return False
    one = finished.logged_model(client, run)
    about: dict[str, Any] | None = None
    if one is not None and (folder / "artifacts" / "model").is_dir():
        shutil.move(folder / "artifacts" / "model", folder / "model")
        note = one.tags.get("mlflow.note.content", "").replace(run.info.run_id, "RUN_ID")
        about = {"name": one.name, "note": note, "params": dict(one.params), "type": one.model_type}
    tags = {k: v for k, v in run.data.tags.items() if k not in OF_THE_STORE}
    tags.pop(spool.RECORD, None)
    content = {
        "format": spool.FORMAT,
        "record": _record(run),
        "store": {"uri": configs.redact(uri), "experiment": ""},
        "run_id": None,
        "again": True,  # what is there already was looked for
        "start_ms": run.info.start_time,
        "end_ms": run.info.end_time,
        "params": dict(run.data.params),
        "tags": tags | {FROM_STORE: configs.redact(uri), FROM_RUN: run.info.run_id},
        "metrics": [m for key in run.data.metrics for m in _history(client, run, key)],
        "inputs": [spool.input_of(i) for i in (run.inputs.dataset_inputs if run.inputs else [])],
        "model": about,
    }
    (folder / spool.ABOUT).write_text(json.dumps(content))
    return True


def _fetch(client: Any, run: Any, into: Path, uri: str) -> bool:
    """Bring a run's files, of a store that was copied here from beside its database; say if there are any.

    MLflow takes a folder that is not there for an empty one. A store may name any folder of this machine:
    only one that lies beside it is read, and none that holds a link.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    place = run.info.artifact_uri
    if is_local_uri(place):
        named, database = Path(local_file_uri_to_path(place)), stores.file_of(uri)
        if database is None:
            return False
        # MLART/RUN/artifacts, and a server's MLART/EXPERIMENT/RUN/artifacts
        places = [named, *(database.parent.joinpath(*named.parts[-parts:]) for parts in (3, 4))]
        beside = database.resolve().parent
        for folder in places:
            if folder.is_dir() and folder.resolve().is_relative_to(beside):
                if any(path.is_symlink() for path in folder.rglob("*")):
                    return False
                shutil.copytree(folder, into, dirs_exist_ok=True)
                break
    else:
        client.download_artifacts(run.info.run_id, "", str(into))
    return any(into.iterdir())


def _history(client: Any, run: Any, key: str) -> list[dict[str, Any]]:
    from tsexp.tracking import spool

    return [
        spool.metric(
            key,
            m.value,
            m.timestamp,
            m.step,
            of_model=bool(m.model_id),
            dataset=(m.dataset_name, m.dataset_digest) if m.dataset_name else None,
        )
        for m in client.get_metric_history(run.info.run_id, key)
    ]


def _add_tag(parcel: Path, key: str, value: str) -> None:
    from tsexp.tracking import spool

    about = spool.read(parcel)
    about["tags"][key] = value
    (parcel / spool.ABOUT).write_text(json.dumps(about))


def _renumber(parcel: Path, key: str, value: str) -> None:
    """Name another run in a tag, and in the note, which says the same in words."""
    from tsexp.tracking import spool

    tags = spool.read(parcel)["tags"]
    note = tags.get("mlflow.note.content", "")
    _add_tag(parcel, "mlflow.note.content", note.replace(tags[key], value))
    _add_tag(parcel, key, value)


if __name__ == "__main__":
    sys.exit(main())
