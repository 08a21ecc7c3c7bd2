"""MLflow: one run per experiment, a parent run per sweep, everything needed to recompute a number among its artifacts."""

from __future__ import annotations

import csv
import json
import logging
import os
import socket
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from tsexp import __version__, locking, stores, tasks
from tsexp.config import Config, TrackingConfig, digest, flat, identity, own_code, redact
from tsexp.data import Dataset
from tsexp.energy import PROTOCOL_VERSION, MeasuringFailed, Record
from tsexp.energy.meters import ESTIMATED
from tsexp.runtimes import Artifact
from tsexp.training import Fitted

SQLITE = "sqlite:///"
REQUIREMENTS = requires("tsexp") or []
VIEW = "tsexp"
VIEW_COLUMNS = (
    "metrics.`test/accuracy`",
    "metrics.`vs_dense/accuracy_drop_pt`",
    "metrics.`vs_dense/energy_saving_pct`",
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
)
ABOUT = """Each run is one artifact, measured against the dense architecture with the same training in total,
fp32 in eager PyTorch, in alternating windows of several processes; a sweep is the parent of its jobs.

- `test/*`: 0 to 1, whole test split; `val/*`: the same on validation series, what choices are made by.
  `test/control_accuracy`: of the reference;
  `test/dense_accuracy`: of the dense model before any tuning. `vs_dense/accuracy_drop_pt`: points lost
  against the reference, with its 95 % interval
- `cost/*`: what it took to get there. `invalid/*`: of a record that may not be trusted
- `energy/per_inference_j`: joules per series, by `tsexp.energy_source` (compare like with like).
  `vs_dense/energy_saving_pct`: %, paired
- `vs_dense/speedup`: wall time, `vs_dense/cpu_speedup`: CPU time; times. `latency/*_ms`: one call. `size/*`:
  counted on the artifact itself
- `tsexp.valid`: only `true` may stand in a table; `tsexp.warnings`: why to look twice
"""


FROM_WINDOWS = (
    *(
        "energy/",
        "power/",
        "latency/",
        "throughput/",
        "memory/",
        "measure/",
        "cost/break_even",
        "cost/load",
        "cost/first",
    ),
    *("vs_dense/speedup", "vs_dense/cpu_speedup", "vs_dense/energy"),
)
"""Metrics, by their beginnings, that are worth nothing if the record is invalid; accuracy and sizes are."""


def as_shown(metric: str, valid: bool) -> str:
    """Return the name that a metric has in the store.

    Of an invalid record, nobody may mistake it for a result.
    """
    return metric if valid or not metric.startswith(FROM_WINDOWS) else f"invalid/{metric}"


def store(config: TrackingConfig) -> Any:
    """Return an `mlflow.MlflowClient` on a store that is ready, and make it the current one.

    The first use creates the tables and the experiment; a lock keeps parallel jobs from doing that at the
    same time (they die in the migration otherwise). Artifacts lie in ``mlartifacts`` beside a sqlite store.
    """
    client = _ready(config.uri, config.experiment, os.getpid())
    import mlflow

    mlflow.set_tracking_uri(config.uri)
    return client


@lru_cache
def _ready(uri: str, experiment: str, process: int) -> Any:
    """Make it so once per process: connections do not survive a fork."""
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    file = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = f"{file}.lock" if file is not None else str(locking.for_everybody("store.lock"))
    with FileLock(lock):
        client = stores.client(uri)
        if client.get_experiment_by_name(experiment) is None:
            client.create_experiment(
                experiment, None if file is None else (file.parent / "mlartifacts").as_uri()
            )
        _dress(client, client.get_experiment_by_name(experiment))
    return client


def _dress(client: Any, experiment: Any) -> None:
    """Tell the UI what kind of experiment it is, what its numbers are, and which columns to show (in its own form of a saved view)."""
    widths = {column: 40 + 7 * len(column.split("`")[1]) for column in VIEW_COLUMNS}
    view = {"selectedColumns": VIEW_COLUMNS, "columnOrder": VIEW_COLUMNS, "columnWidths": widths}
    saved = {"name": VIEW, "createdAt": 0, "state": json.dumps(view)}
    tags = {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(saved),
        "mlflow.note.content": ABOUT,
    }
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)


def view_url(experiment_id: str, server: str = "http://127.0.0.1:5000") -> str:
    """Return the address of an experiment's runs in the UI, with the columns that matter."""
    return (
        f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"
    )


def finished(config: TrackingConfig, signature: str) -> str | None:
    """Return the id of the newest valid, finished run with this signature, or None.

    Runs that a killed process left behind as RUNNING are marked as KILLED on the way.
    """
    client = store(config)
    experiment = client.get_experiment_by_name(config.experiment).experiment_id
    for run in client.search_runs(
        [experiment], f"tags.`tsexp.signature` = '{signature}'", order_by=["attributes.start_time DESC"]
    ):
        tags = run.data.tags
        if run.info.status == "FINISHED" and tags.get("tsexp.valid") == "true":
            return str(run.info.run_id)
        if (
            run.info.status == "RUNNING"
            and tags.get("tsexp.host") == socket.gethostname()
            and not _alive(tags.get("tsexp.pid"))
        ):
            client.set_terminated(run.info.run_id, "KILLED")
    return None


def _alive(pid: str | None) -> bool:
    import psutil

    return pid is not None and psutil.pid_exists(int(pid))


def sweep_run(config: TrackingConfig, name: str, signature: str) -> str:
    """Return the parent run of a sweep; the same command finds the same one again."""
    client = store(config)
    experiment = client.get_experiment_by_name(config.experiment).experiment_id
    found = client.search_runs([experiment], f"tags.`tsexp.sweep` = '{signature}'", max_results=1)
    if found:
        client.update_run(found[0].info.run_id, "RUNNING")
        return str(found[0].info.run_id)
    tags = {
        "tsexp.sweep": signature,
        "tsexp.stage": "sweep",
        "mlflow.runName": redact(name)[:250],
        **_origin(),
    }
    return str(client.create_run(experiment, tags=tags).info.run_id)


def close_sweep(config: TrackingConfig, run_id: str, ok: bool, note: str, files: list[Path]) -> None:
    """End a parent run: its description (Markdown) and its pictures."""
    client = store(config)
    client.set_tag(run_id, "mlflow.note.content", redact(note))
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, "FINISHED" if ok else "FAILED")


@dataclass(frozen=True)
class Tracked:
    """An open run."""

    run_id: str
    client: Any

    def enter(self, stage: str) -> None:
        """Note where the experiment is; a failed or killed run tells from that how far it came."""
        self.client.set_tag(self.run_id, "tsexp.stage", stage)

    def log(
        self,
        cfg: Config,
        dataset: Dataset,
        fits: dict[str, Fitted],
        files: list[Path],
        artifact: Artifact,
        record: Record,
    ) -> None:
        """Store a record: metrics, tags and artifacts."""
        from mlflow.entities import Metric, RunTag

        now = int(1000 * time.time())
        # The UI compares runs by the first, accuracy, until told otherwise.
        values = {as_shown(k, record.valid): v for k, v in record.metrics.items()} | {
            "prune/requested_ratio": cfg.prune.ratio
        }
        metrics = [Metric(k, v, now, 0) for k, v in values.items()]
        for prefix, fitted in fits.items():
            for line in fitted.history():
                names = [k for k in line if k != "epoch"]
                metrics += [Metric(f"{prefix}/{k}", line[k], now, int(line["epoch"])) for k in names]
        tags = {
            "tsexp.energy_source": record.energy_source,
            "tsexp.valid": "true" if record.valid else "false",
            "tsexp.invalid_reasons": "; ".join(record.invalid_reasons),
            "tsexp.warnings": "; ".join(record.warnings),
            "tsexp.data_checksum": dataset.checksum,
            "tsexp.protocol": str(PROTOCOL_VERSION),
            "tsexp.config": digest({k: v for k, v in identity(cfg).items() if k != "seed"}),
            "tsexp.cpu": record.hardware["cpu"],
            "tsexp.artifact": artifact.signature,
            "tsexp.runtime": artifact.manifest["runtime"],
            "mlflow.note.content": _describe(values, record),
        }
        for i in range(0, len(metrics), 900):  # MLflow takes 1000 at once
            self.client.log_batch(self.run_id, metrics=metrics[i : i + 900])
        self.client.log_batch(self.run_id, tags=[RunTag(k, v[:4900]) for k, v in tags.items()])
        with tempfile.TemporaryDirectory(prefix="tsexp-track-") as name:
            folder = Path(name)
            (folder / "windows.json").write_text(json.dumps(record.raw, indent=1))
            (folder / "hardware.json").write_text(json.dumps(record.hardware, indent=1))
            (folder / "manifest.json").write_text(json.dumps(record.manifest, indent=1))
            for file in files:
                (folder / file.name).write_bytes(file.read_bytes())
            write_predictions(folder / "predictions.csv", record, dataset)
            _draw_curves(
                folder / "training.png", [(name, fitted) for name, fitted in fits.items() if fitted.history()]
            )
            _draw_confusion(folder / "confusion.png", record, dataset.classes)
            self.client.log_artifacts(self.run_id, str(folder))
        self._log_model(cfg, dataset, artifact)

    def _log_model(self, cfg: Config, dataset: Dataset, artifact: Artifact) -> None:
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        steps = (
            -1
            if dataset.preprocessing.masked or dataset.preprocessing.resample
            else dataset.preprocessing.length
        )
        series = TensorSpec(np.dtype(np.float32), (-1, dataset.channels, steps))
        scores = TensorSpec(np.dtype(np.float32), (-1, len(dataset.classes)))
        own = {
            _top_level(name, file) for name, file in own_code(cfg.model.tokenizer, cfg.runtime.name).items()
        }
        with warnings.catch_warnings():
            # We give the signature ourselves; an example would be predicted, and written, once more for every
            # job.
            warnings.filterwarnings("ignore", message=".*(type hint|input example)", category=UserWarning)
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("mlflow_model.py")),
                artifacts={"artifact": str(artifact.folder)},
                signature=ModelSignature(Schema([series]), Schema([scores])),
                code_paths=[str(Path(__file__).parent), *map(str, own)],
                pip_requirements=requirements(artifact.manifest["versions"]),
            )


def _top_level(name: str, file: Path) -> Path:
    """What has to lie in the path for ``package.module:object`` to be imported.

    The package's folder, or the module's file.
    """
    dots = name.split(":")[0].count(".")
    return file.parents[dots] if file.name == "__init__.py" else file.parents[dots - 1] if dots else file


def requirements(libraries: dict[str, str]) -> list[str]:
    """What a logged model needs beside its code.

    The package's own requirements, and the libraries that made and run the artifact.
    """
    return [line for line in REQUIREMENTS if "extra ==" not in line] + [
        f"{name}=={version}" for name, version in libraries.items() if name != "torch"
    ]


@contextmanager
def tracked(
    cfg: Config, resolved_yaml: str, name: str, signature: str, parent: str | None
) -> Iterator[Tracked]:
    """Open a run; it ends FINISHED, or FAILED with the traceback as its artifact ``traceback.txt``.

    Parameters
    ----------
    cfg
        Logged as flat params.
    resolved_yaml
        Logged as ``config.yaml``.
    name
        What varies.
    signature
        Of the record.
    parent
        Run id of the sweep, if there is one.
    """
    import mlflow
    from mlflow.entities import Param, RunTag

    client = store(cfg.tracking)
    experiment = client.get_experiment_by_name(cfg.tracking.experiment).experiment_id
    tags = {
        "tsexp.signature": signature,
        "tsexp.stage": "start",
        "mlflow.runName": redact(name)[:250],
        **({"mlflow.parentRunId": parent} if parent else {}),
        **_origin(),
    }
    run_id = client.create_run(experiment, tags=tags).info.run_id
    with mlflow.start_run(run_id=run_id, log_system_metrics=False):
        try:
            params = [Param(k, redact(str(v))[:6000]) for k, v in flat(cfg).items()]
            client.log_batch(run_id, params=params, tags=[RunTag("tsexp.data", cfg.data.name)])
            client.log_text(run_id, redact(resolved_yaml), "config.yaml")
            yield Tracked(run_id, client)
        except BaseException as error:
            details = error.details if isinstance(error, MeasuringFailed) else ""
            client.log_text(run_id, redact(f"{traceback.format_exc()}\n{details}"), "traceback.txt")
            client.set_tag(run_id, "tsexp.error", redact(f"{type(error).__name__}: {error}")[:4900])
            raise
        client.set_tag(run_id, "tsexp.stage", "done")


def mark_killed(config: TrackingConfig, pid: int, reason: str) -> None:
    """End as FAILED what a process that is gone left RUNNING."""
    client = store(config)
    experiment = client.get_experiment_by_name(config.experiment).experiment_id
    mine = f"attributes.status = 'RUNNING' and tags.`tsexp.pid` = '{pid}' and tags.`tsexp.host` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], mine):
        client.set_tag(run.info.run_id, "tsexp.error", reason)
        client.log_text(run.info.run_id, f"{reason}\n", "traceback.txt")
        client.set_terminated(run.info.run_id, "FAILED")


def _origin() -> dict[str, str]:
    return {
        "tsexp.git_sha": git_sha(),
        "tsexp.version": __version__,
        "tsexp.pid": str(os.getpid()),
        "tsexp.host": socket.gethostname(),
        "mlflow.source.name": "python -m tsexp",
        "mlflow.source.type": "LOCAL",
    }


def git_sha() -> str:
    """Commit of the code that runs, with ``-dirty`` if it was changed since.

    The package's version outside a checkout.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return f"v{__version__}"

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            ).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    return (git("rev-parse", "HEAD") or f"v{__version__}-unknown") + (
        "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    )


def _describe(values: dict[str, float], record: Record) -> str:
    mark = "" if not record.energy_source.startswith(ESTIMATED) else " (estimate)"
    lines = [
        f"Accuracy **{100 * values['test/accuracy']:.1f} %**, drop "
        f"{values['vs_dense/accuracy_drop_pt']:+.1f} points "
        f"[{values['vs_dense/accuracy_drop_lo']:+.1f}, {values['vs_dense/accuracy_drop_hi']:+.1f}] against "
        f"the dense model trained as long "
        f"({100 * values['test/control_accuracy']:.1f} %).",
    ]
    if record.valid:
        lines.append(
            f"Energy saving{mark} **{values['vs_dense/energy_saving_pct']:.1f} %** "
            f"[{values['vs_dense/energy_saving_lo']:.1f}, {values['vs_dense/energy_saving_hi']:.1f}], "
            f"speedup **{values['vs_dense/speedup']:.2f}** "
            f"[{values['vs_dense/speedup_lo']:.2f}, {values['vs_dense/speedup_hi']:.2f}]."
        )
    lines += [f"- **invalid**: {r}" for r in record.invalid_reasons] + [
        f"- warning: {w}" for w in record.warnings
    ]
    return "\n".join([*lines, f"\nEnergy covers {record.raw['scope']}."])


def write_predictions(path: Path, record: Record, dataset: Dataset) -> None:
    """One line per test series, as its task has it (`tsexp.tasks`)."""
    heading, rows = tasks.of(dataset).predictions(
        record.scores, record.reference_scores, record.labels, dataset
    )
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([heading, *rows])


DPI = 80
"""Drawn for every job, to be looked at in a browser; laying out and drawing in print quality would take as
long as all else that is logged."""


def _draw_curves(path: Path, parts: list[tuple[str, Fitted]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(parts), 3.2))
    for axis, (name, fitted) in zip(np.atleast_1d(figure.subplots(1, len(parts))), parts, strict=True):
        history = fitted.history()
        for key, label in (
            ("train_loss", "train loss"),
            ("val_loss", "validation loss"),
            ("val_accuracy", "validation accuracy"),
        ):
            points = [(line["epoch"], line[key]) for line in history if key in line]
            if points:
                axis.plot(*zip(*points, strict=True), label=label)
        axis.set(title=name, xlabel="epoch")
        if history:
            axis.legend()
    figure.subplots_adjust(left=0.35 / (5 * len(parts)), right=0.98, bottom=0.16, top=0.9)
    figure.savefig(path, dpi=DPI)


def _draw_confusion(path: Path, record: Record, classes: tuple[str, ...]) -> None:
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = max(4.0, 0.45 * len(classes) + 1.5)
    figure = Figure(figsize=(2 * side, side))
    for axis, name, scores in zip(
        figure.subplots(1, 2), ("dense", "artifact"), (record.reference_scores, record.scores), strict=True
    ):
        ConfusionMatrixDisplay.from_predictions(
            record.labels,
            scores.argmax(1),
            labels=range(len(classes)),
            display_labels=classes,
            ax=axis,
            colorbar=False,
            cmap="Blues",
        )
        axis.set_title(name)
    figure.savefig(path, dpi=DPI)
