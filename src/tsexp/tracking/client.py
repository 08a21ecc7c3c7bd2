"""The store: made ready once, dressed for the UI, searched for what was measured before."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock

from tsexp import stores
from tsexp.config import ConfigError, TrackingConfig, first_line, redact
from tsexp.system import alive, locking

VIEW = "tsexp"
VIEW_COLUMNS = (
    "metrics.`test/accuracy`",
    "metrics.`vs_dense/accuracy_drop_pt`",
    "metrics.`vs_dense/energy_saving_pct`",
    "metrics.`sweep/best_saving_pct`",  # of a parent, which has none of the others
    "metrics.`energy/per_inference_j`",
    "tags.`tsexp.energy_source`",  # beside the joules: estimates and measurements cannot be compared
    "tags.`tsexp.valid`",
    "metrics.`vs_dense/speedup`",
    "metrics.`latency/p50_ms`",
    "metrics.`size/parameters`",
    "metrics.`size/bytes`",
    "params.`data.name`",
    "params.`model.name`",
    "params.`prune.method`",
    "params.`prune.ratio`",
    "params.`quant.mode`",
    "params.`runtime.name`",
    "params.`seed`",
    "tags.`tsexp.warnings`",
    "metrics.`sweep/jobs`",
    "metrics.`sweep/kept`",
    "metrics.`sweep/failed`",
    "metrics.`sweep/skipped`",
)
BOUND_S = 15
"""For how long a store that does not answer is waited for: then the result is kept, and nobody waits.

MLflow's own retries take 751 s."""
BOUNDED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(BOUND_S), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""What is set in the environment, unless it is set there already."""
GONE = "killed: "
"""How the error of a run begins whose process was found dead."""
NAME = "attributes.`Run Name`"
NAME_WIDTH = 320
"""Pixels; the UI's own 190 show 18 characters."""
ABOUT = """Each run is one artifact, measured against the dense architecture with the same training in total,
fp32 in eager PyTorch, in alternating windows of several processes; a sweep is the parent of its jobs.

- `test/*`: 0 to 1, whole test split; `val/*`: the same on validation series, what choices are made by.
  `test/control_accuracy`: of the reference; `test/dense_accuracy`: of the dense model before any tuning.
  `vs_dense/accuracy_drop_pt`: points lost against the reference, with its 95 % interval
- `cost/*`: what it took to get there. `invalid/*`: of a record that may not be trusted
- `energy/per_inference_j`: joules per series, by `tsexp.energy_source` (compare like with like).
  `vs_dense/energy_saving_pct`: %, paired
- `vs_dense/speedup`: wall time, `vs_dense/cpu_speedup`: CPU time; times. `latency/*_ms`: one call.
  `size/*`: counted on the artifact itself
- `tsexp.valid`: only `true` may stand in a table; `tsexp.warnings`: why to look twice
- `sweep/*`, of a parent: how many of its jobs were measured (`jobs`), `failed`, were `skipped`, or kept the
  accuracy (`kept`: the interval of the drop ends within 1 point); `best_saving_pct`: the best of those
- the artifact itself: `mlflow.pyfunc.load_model("runs:/RUN_ID/model").predict(series)`
"""


def store(config: TrackingConfig) -> Any:
    """Return an `mlflow.MlflowClient` on a store that is ready, and make it the current one.

    The first use creates the tables and the experiment; a lock keeps parallel jobs from doing that at the
    same time (they die in the migration otherwise). Artifacts lie in ``mlartifacts`` beside a sqlite store.

    Raises
    ------
    ConfigError
        If the store does not answer, or artifacts would lie where only this machine finds them.
    """
    client = opened(config)
    import mlflow

    mlflow.set_tracking_uri(config.uri)
    return client


_expected: set[tuple[str, str]] = set()


def expect(config: TrackingConfig) -> None:
    """Have a store that is not there any more missed from now on, by this process, instead of made anew.

    A sweep has found it. Where it was, there may be the empty folder that a disk was mounted on.
    """
    _expected.add((config.uri, config.experiment))


def check_there(config: TrackingConfig) -> None:
    """Miss a sqlite store that is expected.

    Raises
    ------
    ConfigError
        If its file is gone.
    """
    file = stores.file_of(config.uri)
    if file is not None and (config.uri, config.experiment) in _expected and not file.is_file():
        raise ConfigError(f"the store {redact(config.uri)} is gone; it was there when this began")


def opened(config: TrackingConfig) -> Any:
    """Return what `store` does, and leave MLflow's current store as it is."""
    check_there(config)
    for key, value in BOUNDED.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401 (sets the level of its loggers)

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # A database that fails is an exception, and told in a line; here MLflow also logs its frames and values.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return _ready(config.uri, config.experiment, config.artifacts, os.getpid())


@lru_cache
def _ready(uri: str, experiment: str, artifacts: str | None, process: int) -> Any:
    """Make it so once per process: connections do not survive a fork."""
    file = stores.file_of(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            tempfile.TemporaryFile(dir=file.parent).close()
        except OSError as error:  # the lock would wait for ever
            raise ConfigError(
                f"the store {redact(uri)} cannot be made: {file.parent} takes no file ({error.strerror}); "
                "name one elsewhere: tracking.uri=sqlite:////ELSEWHERE/mlflow.db"
            ) from None
    lock: Any = (
        FileLock(f"{file}.lock")
        if file is not None
        else locking.flocked(locking.for_everybody("store.lock"), locking.ALONE)
    )
    with lock:
        tables = stores.tables_of(file) if file is not None and file.is_file() else set()
        if tables and not tables & stores.TABLES:  # all are not there if one was killed while it made them
            raise ConfigError(f"{file} is a database of something else; give another file")
        client = stores.client(uri)
        if client.get_experiment_by_name(experiment) is None:
            if (uri, experiment) in _expected:
                raise ConfigError(
                    f"the store {redact(uri)} has no experiment {experiment}; it had one when this began"
                )
            beside = None if file is None else (file.parent / "mlartifacts").as_uri()
            if artifacts is None and uri.split(":")[0].split("+")[0] in stores.DATABASES:
                raise ConfigError(
                    f"{redact(uri)} is a database, which holds no artifacts; say where they lie, in a folder "
                    "that all machines see, or in an object store: tracking.artifacts=/shared/artifacts (of "
                    "tsexp merge: --artifacts)"
                )
            if artifacts is not None and ":" not in artifacts:
                Path(artifacts).mkdir(parents=True, exist_ok=True)
                artifacts = Path(artifacts).as_uri()
            client.create_experiment(experiment, artifacts or beside)
        found = client.get_experiment_by_name(experiment)
        if file is None:
            _check_place(found.artifact_location, uri)
        _dress(client, found)
    return client


def _check_place(location: str, uri: str) -> None:
    """Refuse a folder of another machine: MLflow would make one of that name here."""
    root = Path(
        unquote(location.removeprefix("file://")) if location.startswith("file:") else location
    ).parent
    if re.match(r"(?!file:)[a-z][a-z0-9+.-]*:", location) or (root.is_absolute() and root.is_dir()):
        return
    raise ConfigError(
        f"the store {redact(uri)} keeps artifacts in {location}, and {root} is no folder of this machine; "
        "let the server serve them (mlflow server --serve-artifacts), or name a folder that all machines "
        "see, or an object store, for a new experiment: tracking.artifacts=/shared/artifacts "
        "tracking.experiment=NAME"
    )


def _dress(client: Any, experiment: Any) -> None:
    """Tell the UI what kind of experiment it is, what its numbers are, and which columns to show.

    The columns have the UI's own form of a saved view.
    """
    widths = {column: 40 + 7 * len(column.split("`")[1]) for column in VIEW_COLUMNS} | {NAME: NAME_WIDTH}
    view = {
        "selectedColumns": VIEW_COLUMNS,
        "columnOrder": (NAME, *VIEW_COLUMNS),
        "columnWidths": widths,
    }
    saved = {"name": VIEW, "createdAt": 0, "state": json.dumps(view)}
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(saved),
        "mlflow.note.content": ABOUT,
    }
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)


def experiment_of(client: Any, config: TrackingConfig) -> str:
    """Return the number of the experiment that runs are logged to."""
    return str(client.get_experiment_by_name(config.experiment).experiment_id)


def view_url(experiment_id: str, server: str = "http://127.0.0.1:5000") -> str:
    """Return the address of an experiment's runs in the UI, with the columns that matter."""
    return (
        f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    )


def said(config: TrackingConfig, error: Exception) -> str:
    """Tell in a line why a store did not take something."""
    if "Max retries exceeded" in str(error):  # of the HTTP client, in many words
        return stores.silent(config.uri, error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename2 or error.filename or ''}".rstrip(": ")
    else:
        text = str(getattr(error, "orig", error))  # what the driver says, without SQLAlchemy's advice
    line = (first_line(text) or type(error).__name__)[:300]
    return (
        line if line.startswith("the store") else f"the store {redact(config.uri)} did not take it ({line})"
    )


@contextmanager
def asking(config: TrackingConfig) -> Iterator[None]:
    """Have whatever a store and all that lies before it raise told in a line, as a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of MLflow, its HTTP client, a database driver, the disk
        raise ConfigError(said(config, error)) from error


def finished(config: TrackingConfig, signature: str) -> str | None:
    """Return the id of the newest valid, finished run with this signature, or None.

    Runs that a killed process left behind as RUNNING are marked as KILLED on the way.
    """
    client = store(config)
    same = f"tags.`tsexp.signature` = '{signature}'"
    for run in client.search_runs(
        [experiment_of(client, config)], same, order_by=["attributes.start_time DESC"]
    ):
        if run.info.status == "FINISHED" and run.data.tags.get("tsexp.valid") == "true":
            return str(run.info.run_id)
        _end_if_dead(client, run)
    return None


def is_there(client: Any, run_id: str) -> bool:
    """Say whether a store has a run, be it a deleted one that it still keeps."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def has_metric(config: TrackingConfig, name: str) -> bool:
    """Say whether any run of the experiment has a metric of this name."""
    client = store(config)
    some = f"metrics.`{name}` > -1e300"
    return bool(client.search_runs([experiment_of(client, config)], some, max_results=1))


def end_the_dead(config: TrackingConfig) -> int:
    """Mark as KILLED what processes of this machine, surely dead, left RUNNING; return how many runs."""
    client = store(config)
    mine = f"attributes.status = 'RUNNING' and tags.`tsexp.host` = '{socket.gethostname()}'"
    found = client.search_runs([experiment_of(client, config)], mine)
    return sum(_end_if_dead(client, run) for run in found)


def _end_if_dead(client: Any, run: Any) -> bool:
    who = {k.removeprefix("tsexp."): v for k, v in run.data.tags.items()}
    if run.info.status != "RUNNING" or not alive.surely_dead(who):
        return False
    client.set_tag(run.info.run_id, "tsexp.error", f"{GONE}{alive.told(who)} is gone")
    client.set_terminated(run.info.run_id, "KILLED")
    return True
