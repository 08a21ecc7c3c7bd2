"""Results on their way to the store: each is a folder, whole or not there, until the store has taken it.

A store that is gone, full or starting anew takes no result along. Such a folder, a parcel, holds
``run.json`` (params, metrics, tags, inputs and what the run and its model are called), ``artifacts/`` and
``model/``; nothing in it is more than text and the artifact's own files.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tsexp import stores
from tsexp.command import called
from tsexp.config import ConfigError, PathsConfig, TrackingConfig, redact
from tsexp.system import alive
from tsexp.system.files import to_disk
from tsexp.tracking import model
from tsexp.tracking.client import BOUND_S, check_there, experiment_of, finished, said, store

log = logging.getLogger(__name__)

FORMAT = 1
ABOUT = "run.json"
ATTEMPT = "attempt"
"""In a parcel: the run that was being filled; it is there after an attempt that did not end."""
RECORD = "tsexp.record"
"""Tag: number of the measurement, so that nothing is delivered twice."""
AT_ONCE = 900
"""Metrics; MLflow takes 1000."""
FEW_AT_ONCE = 100
"""Params or tags, as MLflow takes them."""
RETRIES = 3
"""Of what fails only because another job was faster."""


class NotDelivered(ConfigError):
    """A result that the store has not taken. It is kept: ``folder`` says where."""

    status = 1

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class NotKept(RuntimeError):
    """A result that could be written nowhere."""


def places(paths: PathsConfig) -> list[Path]:
    """Return where parcels may lie: ``paths.spool``, and where they go if its disk is full."""
    return [Path(paths.spool), Path(tempfile.gettempdir()) / f"tsexp-spool-{os.getuid()}"]


def address(config: TrackingConfig) -> dict[str, str]:
    """Return which store a parcel is for; without a password."""
    return {"uri": redact(config.uri), "experiment": config.experiment}


@contextmanager
def parcel(paths: PathsConfig, fill: Callable[[Path], dict[str, Any]]) -> Iterator[Path]:
    """Make a parcel and hand out its folder.

    Parameters
    ----------
    paths
        Where it goes.
    fill
        Fills an empty folder with ``artifacts/`` and ``model/`` and returns what goes into ``run.json``.

    Raises
    ------
    NotKept
        If no disk takes it.
    """
    problems = []
    for spool in places(paths):
        name = uuid.uuid4().hex
        partial = spool / f".{name}.partial"
        try:
            _mine(spool)
            partial.mkdir(mode=0o700)
            alive.own(partial)
            about = fill(partial) | {"format": FORMAT, "record": name}
            (partial / ABOUT).write_text(json.dumps(about, indent=1))
            for path in [*(p for p in partial.rglob("*") if p.is_file()), partial]:
                to_disk(path)
            (partial / alive.OWNER).unlink()
            partial.rename(spool / name)
            to_disk(spool)
        except FileNotFoundError:  # what goes into it is gone: no disk's fault
            shutil.rmtree(partial, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            problems.append(f"{spool}: {error.strerror or error}")
            continue
        yield spool / name
        return
    raise NotKept(
        f"no disk takes the result ({'; '.join(problems)}); make room, or say where: paths.spool=FOLDER; the "
        "same command measures again, and trains nothing again"
    )


def _mine(spool: Path) -> None:
    """Make a folder that nobody else reads."""
    spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _trusted(spool):
        raise OSError("it belongs to somebody else, or is a link")


def _trusted(spool: Path) -> bool:
    """Where everybody may write, it may be a trap."""
    if spool.parent != Path(tempfile.gettempdir()):
        return spool.is_dir()
    return spool.is_dir() and not spool.is_symlink() and spool.lstat().st_uid == os.getuid()


def read(folder: Path) -> dict[str, Any]:
    """Return what a parcel says of itself.

    Raises
    ------
    ConfigError
        If it is none, or of a version that this code does not know.
    """
    try:
        about = json.loads((folder / ABOUT).read_text())
        if about["format"] == FORMAT:
            return about  # type: ignore[no-any-return]
        problem = f"format {about['format']}, and this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ConfigError(f"{folder} is no result that can be delivered ({problem})")


def kept(paths: PathsConfig) -> Iterator[tuple[Path, dict[str, Any] | None]]:
    """Yield all parcels that wait, and remove what killed processes left beside them.

    Yields
    ------
    Path
        The parcel.
    dict or None
        What it says of itself; None if it is damaged, which is told.
    """
    for spool in places(paths):
        if not _trusted(spool):
            continue
        for folder in sorted(spool.iterdir()):
            if folder.name.endswith(".done"):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name.endswith(".partial"):
                with suppress(OSError, ValueError, AttributeError):
                    if alive.surely_dead(json.loads((folder / alive.OWNER).read_text())):
                        shutil.rmtree(folder, ignore_errors=True)
            elif (folder / ABOUT).exists():
                try:
                    yield folder, read(folder)
                except ConfigError as error:
                    if folder.exists():  # else another job has delivered it
                        log.warning("%s", error)
                        yield folder, None


def waiting(
    paths: PathsConfig, config: TrackingConfig, signature: str | None = None
) -> dict[Path, dict[str, Any]]:
    """Return the parcels for a store, all or those with this signature → what they say of themselves."""
    return {
        folder: about
        for folder, about in kept(paths)
        if about is not None
        and about["store"] == address(config)
        and signature in (None, about["tags"]["tsexp.signature"])
    }


def waits(paths: PathsConfig, config: TrackingConfig, signature: str) -> bool:
    """Say whether a valid result with this signature is kept for a store; nothing is delivered."""
    found = waiting(paths, config, signature).values()
    return any(about["tags"].get("tsexp.valid") == "true" for about in found)


def check_home(paths: PathsConfig, config: TrackingConfig) -> None:
    """Miss a sqlite store that results wait for: none is made anew where a disk is not mounted.

    Raises
    ------
    ConfigError
        If its file is gone.
    """
    file = stores.file_of(config.uri)
    if file is None or file.is_file() or not (count := len(waiting(paths, config))):
        return
    raise ConfigError(
        f"the store {redact(config.uri)} is gone, and {count} result(s) kept in {paths.spool} are for it; "
        f"bring it back, or have them in another: {called('sync')} --all tracking.uri=STORE"
    )


def by_hand(config: TrackingConfig) -> str:
    """The command that delivers what waits for a store."""
    settings = (f"tracking.{key}={value}" for key, value in address(config).items())
    return shlex.join(["tsexp", "sync", *settings])


def known(paths: PathsConfig, config: TrackingConfig, signature: str) -> str | None:
    """Return the run that holds this signature, delivering first what was kept of it; None if there is none.

    Raises
    ------
    NotDelivered
        If it was measured, and the store does not take it now, either.
    """
    for folder in waiting(paths, config, signature):
        deliver(folder, config)
    return finished(config, signature)


def sync(paths: PathsConfig, config: TrackingConfig) -> tuple[dict[str, str], list[NotDelivered]]:
    """Deliver what waits for a store.

    Returns
    -------
    dict
        Name of the parcel → run.
    list of NotDelivered
        What the store did not take. After one that it did not answer to, it is not asked again.
    """
    taken, left = {}, []
    patience_s = BOUND_S
    for folder in waiting(paths, config):
        try:
            taken[folder.name] = deliver(folder, config, patience_s)
        except NotDelivered as error:
            left.append(error)
            patience_s = 0
    return taken, left


def deliver(folder: Path, config: TrackingConfig, patience_s: float = BOUND_S) -> str:
    """Bring a parcel to the store and remove it; return the run.

    What is there already, by its number or, unless it was measured again on purpose, by its signature, is not
    stored twice.

    Parameters
    ----------
    folder
        The parcel.
    config
        The store.
    patience_s
        For how long to wait for a store that does not answer.

    Raises
    ------
    NotDelivered
        If the store does not take it.
    """
    deadline = time.monotonic() + patience_s
    with FileLock(folder.with_name(f".{folder.name}.lock")) as lock:
        if not folder.exists():  # somebody else was faster
            run_id = delivered(config, folder.name)
            Path(lock.lock_file).unlink(missing_ok=True)
            if run_id is None:
                raise NotDelivered(f"{folder} is gone, and the store does not have it", folder)
            return run_id
        about = read(folder)
        try:
            try:
                _until_it_answers(config, deadline)
                run_id = _deliver(folder, about, config)
            except Exception:
                if time.monotonic() >= deadline or stores.file_of(config.uri):
                    raise
                time.sleep(1)  # it may be starting anew
                _until_it_answers(config, deadline)
                run_id = _deliver(folder, about, config)
        except Exception as error:  # of MLflow, its HTTP client, a database driver, the disk
            raise NotDelivered(
                f"the result is not lost, it is kept in {folder}: {said(config, error)}; the same command, "
                f"or {by_hand(config)}, delivers it",
                folder,
            ) from error
        done = folder.with_name(f".{folder.name}.done")
        folder.rename(done)
        shutil.rmtree(done, ignore_errors=True)
        Path(lock.lock_file).unlink(missing_ok=True)
    return run_id


def _until_it_answers(config: TrackingConfig, deadline: float) -> None:
    while True:
        try:
            check_there(config)
            stores.client(config.uri)
            return
        except ConfigError:
            if time.monotonic() + 1 >= deadline:
                raise
            time.sleep(1)


def delivered(config: TrackingConfig, record: str) -> str | None:
    """Return the run that holds the measurement with this number, or None."""
    client = store(config)
    asked = f"tags.`{RECORD}` = '{record}' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment_of(client, config)], asked, max_results=1)
    return str(found[0].info.run_id) if found else None


def _deliver(folder: Path, about: Mapping[str, Any], config: TrackingConfig) -> str:
    there = delivered(config, about["record"])
    if there is None and not about["again"]:
        there = finished(config, about["tags"]["tsexp.signature"])
    if there is not None:
        give_up(store(config), about["run_id"], f"run {there} has this result", there)
        return there
    client = store(config)
    before = (folder / ATTEMPT).read_text() if (folder / ATTEMPT).exists() else ""
    first = None if before else _run(client, about["run_id"])
    run_id = first.info.run_id if first is not None and first.info.status == "RUNNING" else None
    if run_id is None:
        number = experiment_of(client, config)
        begun = client.search_runs(
            [number], f"tags.`{RECORD}` = '{about['record']}' and attributes.status = 'RUNNING'"
        )  # made, and the answer was lost
        for other in {before, about["run_id"] or "", *(r.info.run_id for r in begun)} - {""}:
            give_up(client, other, "its delivery was interrupted; another run has the result")
        run_id = client.create_run(
            number,
            start_time=about["start_ms"],
            tags={"mlflow.runName": about["tags"]["mlflow.runName"], RECORD: about["record"]},
        ).info.run_id
    (folder / ATTEMPT).write_text(run_id)
    fill(client, run_id, folder, about)
    return str(run_id)


def _run(client: Any, run_id: str | None) -> Any:
    """Return a run, or None if the store has no such one."""
    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except Exception as error:
        if "RESOURCE_DOES_NOT_EXIST" in str(getattr(error, "error_code", "")):
            return None
        raise


def give_up(client: Any, run_id: str | None, reason: str, there: str | None = None) -> None:
    """End a run that will not get its result, and remove the models that it got."""
    run = None if run_id == there else _run(client, run_id)
    if run is None or run.info.status == "FINISHED":
        return
    # Not those that the run names: it names a model last of all.
    for found in client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(found.model_id)
    if run.info.status == "RUNNING":  # else its process was found dead
        client.set_tag(run_id, "tsexp.error", reason)
        client.set_terminated(run_id, "KILLED")


def fill(client: Any, run_id: str, folder: Path, about: Mapping[str, Any]) -> None:
    """Fill an open run with what a parcel holds, and end it as FINISHED."""
    from mlflow.entities import Metric, Param, RunTag

    params = [Param(k, v) for k, v in about["params"].items()]
    for part in parts(params, FEW_AT_ONCE):
        client.log_batch(run_id, params=part)
    _log_inputs(client, run_id, about["inputs"])
    run = client.get_run(run_id)
    model_id = model.log(client, run, folder / model.FOLDER, about["model"]) if about["model"] else None
    metrics = [
        Metric(
            m["key"], m["value"], m["timestamp"], m["step"],
            model_id=model_id if m["of_model"] else None,
            dataset_name=m["dataset_name"],
            dataset_digest=m["dataset_digest"],
        )
        for m in about["metrics"]
    ]  # fmt: skip
    for part in parts(metrics, AT_ONCE):
        client.log_batch(run_id, metrics=part)
    client.log_artifacts(run_id, str(folder / "artifacts"))
    tags = [RunTag(k, v) for k, v in (about["tags"] | {RECORD: about["record"]}).items()]
    for part in parts(tags, FEW_AT_ONCE):
        client.log_batch(run_id, tags=part)
    client.set_terminated(run_id, "FINISHED", about["end_ms"])


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield all items, some at a time."""
    return (items[i : i + size] for i in range(0, len(items), size))


def _log_inputs(client: Any, run_id: str, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Log the dataset; of jobs that bring the same one at the same time, MLflow refuses all but one."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    made = [
        DatasetInput(Dataset(**i["dataset"]), [InputTag(k, v) for k, v in i["tags"].items()]) for i in inputs
    ]
    for left in range(RETRIES, -1, -1):
        try:
            client.log_inputs(run_id, made)
            return
        except MlflowException as error:
            if not left or "IntegrityError" not in str(error):
                raise


def input_of(entity: Any) -> dict[str, Any]:
    """Return an `mlflow.entities.DatasetInput` as JSON."""
    return {"dataset": dict(entity.dataset), "tags": {t.key: t.value for t in entity.tags}}


def metric(
    key: str,
    value: float,
    timestamp: int,
    step: int = 0,
    *,
    of_model: bool = False,
    dataset: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return a metric as JSON."""
    name, digest = dataset or (None, None)
    return {"key": key, "value": value, "timestamp": timestamp, "step": step, "of_model": of_model,
            "dataset_name": name, "dataset_digest": digest}  # fmt: skip
