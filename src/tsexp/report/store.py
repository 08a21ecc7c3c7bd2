"""The store as the report sees it: opened to be read, its runs as rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsexp import stores
from tsexp.config import ConfigError, first_line, redact
from tsexp.marks import ESTIMATED, NOT_ITS_SCORES

UNSAID = {"train.precision": "fp32"}
"""What runs of before there was a choice do not say; a row does not, either, whoever made its run."""
WATTS = 10.0
"""``measure.watts_per_core`` as shipped."""
AT_ONCE = 100
"""Ids in one question; the parser of MLflow's filters takes some thousands at most."""


class ReportError(ValueError):
    """There is nothing to report, or what is there cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Row:
    """One run of the store: its name, status, params (but `UNSAID`), metrics and tags as MLflow has them.

    ``artifacts`` is the URI of the folder that its files are in, ``ended`` the minute in which it ended, UTC.
    """

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    artifacts: str = ""
    ended: str = ""

    @property
    def measured(self) -> bool:
        """Its energy comes from a counter, not from an estimate."""
        return not self.tags.get("tsexp.energy_source", ESTIMATED).startswith(ESTIMATED)

    @property
    def energy_source(self) -> str:
        """Where its energy comes from; an estimate by other watts than usual is of another source."""
        source = self.tags.get("tsexp.energy_source", "")
        watts = float(self.params.get("measure.watts_per_core", WATTS))
        return source if self.measured or watts == WATTS else f"{source}, {watts:g} W per core"

    @property
    def valid(self) -> bool:
        """Its energy may stand in a table."""
        return self.tags.get("tsexp.valid") == "true"

    @property
    def scored(self) -> bool:
        """Its accuracy may, whatever became of its energy."""
        why = self.tags.get("tsexp.invalid_reasons", "")
        return self.valid or not any(reason in why for reason in NOT_ITS_SCORES)

    @property
    def is_reference(self) -> bool:
        """Its artifact is the reference itself; runs of before that was told say it by their metrics."""
        told = self.tags.get("tsexp.is_reference")
        if told is None:
            return bool(same_artifact(*(self.metrics.get(f"vs_dense/{key}") for key in SAME_BY)))
        return told == "true"


SAME_BY = "accuracy_drop_lo", "accuracy_drop_hi", "size_ratio"


def same_artifact(drop_lo: Any, drop_hi: Any, size_ratio: Any) -> Any:
    """Whether the very same answers (only then has the drop no interval) come from files of the same size."""
    return (drop_lo == 0) & (drop_hi == 0) & (size_ratio == 1)


def connect(uri: str) -> Any:
    """Return an `mlflow.MlflowClient` on a store that is there.

    MLflow itself would make one, and an empty one looks like lost results.

    Raises
    ------
    ReportError
        If it is not there, is none, is one of another version of MLflow, or does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own default waits for minutes
    file = stores.file_of(uri)
    if file is not None:
        _check_sqlite(file)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        client = stores.client(uri)
        client.search_experiments(max_results=1)
    except ConfigError as error:
        raise ReportError(str(error)) from None
    except Exception as error:  # of MLflow, of its HTTP client, of a database driver
        reason = first_line(error)
        upgrade = (
            f"; another version of MLflow wrote it: mlflow db upgrade {redact(uri)}"
            if "schema" in reason
            else ""
        )
        raise ReportError(redact(f"the store {uri} does not answer: {reason}{upgrade}")) from None
    return client


def _check_sqlite(file: Path) -> None:
    if not file.is_file():
        raise ReportError(
            f"there is no store at {file}; fill one first (python -m tsexp -m experiment=quick), or name "
            "another: tracking.uri=…, or its file where a command takes that"
        )
    try:
        missing = stores.TABLES - stores.tables_of(file)
    except ConfigError as error:
        raise ReportError(str(error)) from None
    if missing:
        raise ReportError(
            f"{file} is not a store of MLflow: it has no table of {sorted(missing)[0]}; fill one first: "
            "python -m tsexp -m experiment=quick"
        )


def read(client: Any, run_ids: Sequence[str]) -> list[Row]:
    """Return the runs with these ids, in this order; `client` is an `mlflow.MlflowClient`.

    Those of a sweep lie in one experiment, and are asked for many at a time.
    """
    found: dict[str, Row] = {}
    if len(run_ids) > 1:
        place = client.get_run(run_ids[0]).info.experiment_id
        for start in range(0, len(run_ids), AT_ONCE):
            names = ", ".join(f"'{i}'" for i in run_ids[start : start + AT_ONCE])
            some = client.search_runs([place], f"attributes.run_id IN ({names})", max_results=AT_ONCE)
            found |= {run.info.run_id: row(run) for run in some}
    return [found[i] if i in found else row(client.get_run(i)) for i in run_ids]


def every(client: Any, experiment_id: str, where: str, order: str) -> Iterator[Any]:
    """Yield all runs of an experiment that a filter takes, page by page: `mlflow.entities.Run`."""
    token = None
    while True:
        page = client.search_runs([experiment_id], where, order_by=[order], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def minute(unix_s: float) -> str:
    """``2026-12-01 10:00``, UTC."""
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M}"


def row(run: Any) -> Row:
    """Return an `mlflow.entities.Run` as a row."""
    info, of_it = run.info, run.data
    params = {k: v for k, v in of_it.params.items() if UNSAID.get(k) != v}
    ended = minute(info.end_time / 1000) if info.end_time else ""
    return Row(
        info.run_id, info.run_name, info.status, params, of_it.metrics, of_it.tags, info.artifact_uri, ended
    )
