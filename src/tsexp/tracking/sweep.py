"""The parent run of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tsexp.config import TrackingConfig
from tsexp.marks import SWEEP
from tsexp.tracking import lengths, origin
from tsexp.tracking.client import experiment_of, is_there, store


def sweep_run(config: TrackingConfig, name: str, signature: str) -> str:
    """Return the parent run of a sweep; the same command finds the same one again."""
    client = store(config)
    experiment = experiment_of(client, config)
    found = client.search_runs([experiment], f"tags.`tsexp.sweep` = '{signature}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
        client.update_run(run_id, "RUNNING")
        if "tsexp.error" in found[0].data.tags:
            client.delete_tag(run_id, "tsexp.error")
        for key, value in origin.tags().items():  # whose it is now
            client.set_tag(run_id, key, value)
        return run_id
    tags = {
        "tsexp.sweep": signature,
        "tsexp.stage": SWEEP,
        "mlflow.runName": name,
        **origin.tags(),
    }
    return str(client.create_run(experiment, tags=lengths.tags(tags)).info.run_id)


def close_sweep(
    config: TrackingConfig,
    run_id: str,
    status: str,
    note: str,
    files: Sequence[Path],
    metrics: Mapping[str, float] | None = None,
    energy_source: str = "",
) -> bool:
    """End a parent run; False if it is not there any more.

    Parameters
    ----------
    config
        The store.
    run_id
        Of the parent.
    status
        ``FINISHED``; ``FAILED`` if a job is not measured, or ``KILLED``.
    note
        Its description (Markdown).
    files
        Its pictures.
    metrics
        What came out (`report.sweep_metrics`).
    energy_source
        Where the joules of all its jobs come from.
    """
    client = store(config)
    if not is_there(client, run_id):
        return False
    client.set_tag(run_id, "mlflow.note.content", lengths.lines(note, "- and {} more: below this run"))
    if energy_source:
        client.set_tag(run_id, "tsexp.energy_source", energy_source)
    for name, value in (metrics or {}).items():
        client.log_metric(run_id, name, value)
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, status)
    return True
