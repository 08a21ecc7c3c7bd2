"""Runs as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One run of the store: its name, status, params, metrics and tags as MLflow has them."""

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @property
    def measured(self) -> bool:
        """Its energy comes from a counter, not from an estimate."""
        return self.tags.get("tsexp.energy_source", "").startswith("zeus:")

    @property
    def valid(self) -> bool:
        """It may stand in a table."""
        return self.tags.get("tsexp.valid") == "true"


def read(client: Any, run_ids: list[str]) -> list[Row]:
    """Return the runs with these ids, in this order; `client` is an `mlflow.MlflowClient`."""
    return [row(client.get_run(run_id)) for run_id in run_ids]


def row(run: Any) -> Row:
    """Return an `mlflow.entities.Run` as a row."""
    return Row(run.info.run_id, run.info.run_name, run.info.status, run.data.params, run.data.metrics, run.data.tags)
