"""The run of one experiment."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import __version__, compress, tasks
from tsexp.config import Config, ConfigError, TrackingConfig, digest, flat, identity, redact
from tsexp.energy import MeasuringFailed
from tsexp.marks import ESTIMATED, PROTOCOL_VERSION
from tsexp.system import alive, signals
from tsexp.tasks.classification import chosen
from tsexp.tracking import lengths, model, origin, pictures, spool
from tsexp.tracking.client import GONE, experiment_of, said, store

if TYPE_CHECKING:
    from tsexp.data import Dataset
    from tsexp.energy import Record
    from tsexp.runtimes import Artifact
    from tsexp.training import Fitted

log = logging.getLogger(__name__)

FROM_WINDOWS = (
    *("energy/", "power/", "latency/", "throughput/", "memory/", "measure/", "null/"),
    *("cost/break_even", "cost/load", "cost/first"),
    *("vs_dense/speedup", "vs_dense/cpu_speedup", "vs_dense/energy", "vs_dense/net"),
)
"""Metrics, by their beginnings, that are worth nothing if the record is invalid; accuracy and sizes are."""
STAGES = ("start", "train", "compress", "deploy", "measuring", "track", "done")
"""Of a run, in order: the tag ``tsexp.stage``."""
DIGEST = 16
"""Hex digits of a dataset's checksum; MLflow takes 36, and shows them all wherever it names a dataset."""


def as_shown(metric: str, valid: bool) -> str:
    """Return the name that a metric has in the store.

    Of an invalid record, nobody may mistake it for a result.
    """
    return metric if valid or not metric.startswith(FROM_WINDOWS) else f"invalid/{metric}"


@dataclass
class Tracked:
    """A job that is being done: an open run, if the store answers, and in the end a parcel for it.

    Attributes
    ----------
    run_id
        In the store; None while it is in none.
    client
        Of the store; None if it does not answer: it is asked again when there is a result.
    """

    cfg: Config
    tags: dict[str, str]
    run_id: str | None
    client: Any
    resolved_yaml: str = ""
    start_ms: int = field(default_factory=lambda: int(1000 * time.time()))
    parcel: Path | None = None
    stage: str = "start"

    def enter(self, stage: str) -> None:
        """Note where the experiment is; a failed or killed run tells from that how far it came.

        The control goes through stages that the artifact has behind it: they are not told again.
        """
        if STAGES.index(stage) <= STAGES.index(self.stage):
            return
        self.stage = stage
        self._tell(lambda: self.client.set_tag(self.run_id, "tsexp.stage", stage))

    def _tell(self, what: Callable[[], object]) -> None:
        """Tell the store something that no result depends on: if it is gone, it is not asked again."""
        if self.client is None:
            return
        try:
            what()
        except Exception as error:  # of MLflow, its HTTP client, a database driver, the disk
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.client = None
        where = self.cfg.paths.spool
        log.warning("%s; the result will be kept in %s", said(self.cfg.tracking, error), where)

    def _open(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        for part in spool.parts([Param(k, v) for k, v in params.items()], spool.FEW_AT_ONCE):
            self.client.log_batch(self.run_id, params=part)
        self.client.log_batch(self.run_id, tags=[RunTag("tsexp.data", self.cfg.data.name)])
        self.client.log_text(self.run_id, redact(self.resolved_yaml), "config.yaml")
        if self.cfg.tracking.diff and (changes := origin.changes()):
            self.client.log_text(self.run_id, changes, "dirty.diff")

    def _params(self) -> dict[str, str]:
        return lengths.params(flat(self.cfg))

    def log(
        self,
        dataset: Dataset,
        fits: Mapping[str, Fitted],
        files: Iterable[Path],
        artifact: Artifact,
        record: Record,
    ) -> None:
        """Write down a record, complete: inputs, metrics, tags, artifacts, and the model itself.

        Parameters
        ----------
        dataset
            What the model was fitted and scored on.
        fits
            Prefix of their curves → the models on the way to the artifact, in the order of their making.
        files
            Attached as they are.
        artifact
            What was measured.
        record
            What came out.

        Raises
        ------
        NotKept
            If no disk takes it.
        """
        histories = {prefix: fitted.history() for prefix, fitted in fits.items()}

        def fill(folder: Path) -> dict[str, Any]:
            name = model.name_of(self.cfg, artifact.manifest["runtime"], fits)
            saved = model.save(folder / model.FOLDER, name, self.cfg, dataset, artifact)
            self._write_files(folder / "artifacts", dataset, histories, files, record)
            return {
                "store": spool.address(self.cfg.tracking),
                "run_id": self.run_id,
                "again": self.cfg.rerun,
                "start_ms": self.start_ms,
                "end_ms": int(1000 * time.time()),
                "params": self._params(),
                "tags": self.tags | self._result_tags(dataset, artifact, record),
                "metrics": self._metrics(dataset, histories, record),
                "inputs": [spool.input_of(entity) for entity in inputs(dataset)],
                "model": saved,
            }

        with spool.parcel(self.cfg.paths, fill) as folder:
            self.parcel = folder

    def _write_files(
        self,
        folder: Path,
        dataset: Dataset,
        histories: Mapping[str, list[dict[str, float]]],
        files: Iterable[Path],
        record: Record,
    ) -> None:
        folder.mkdir()
        (folder / "config.yaml").write_text(redact(self.resolved_yaml))
        if self.cfg.tracking.diff and (changes := origin.changes()):
            (folder / "dirty.diff").write_text(changes)
        (folder / "windows.json").write_text(json.dumps(record.raw, indent=1))
        (folder / "hardware.json").write_text(json.dumps(record.hardware, indent=1))
        (folder / "manifest.json").write_text(json.dumps(record.manifest, indent=1))
        for file in files:
            if (folder / file.name).exists():
                raise RuntimeError(f"a step's note is called {file.name}, as another file of the run")
            shutil.copyfile(file, folder / file.name)
        write_predictions(folder / "predictions.csv", record, dataset)
        pictures.curves(folder / "training.png", histories)
        answers = {"dense": chosen(record.reference_scores), "artifact": chosen(record.scores)}
        pictures.confusion(folder / "confusion.png", record.labels, answers, dataset.classes)

    def _metrics(
        self, dataset: Dataset, histories: Mapping[str, list[dict[str, float]]], record: Record
    ) -> list[dict[str, Any]]:
        now = int(1000 * time.time())
        # The UI compares runs by the first, accuracy, by default.
        values = {as_shown(k, record.valid): v for k, v in record.metrics.items()}
        values["prune/requested_ratio"] = self.cfg.prune.ratio
        on_test = _split_name(dataset, "test"), dataset.checksum[:DIGEST]
        metrics = [
            spool.metric(k, v, now, of_model=True, dataset=on_test if k.startswith("test/") else None)
            for k, v in values.items()
        ]
        for prefix, history in histories.items():
            for line in history:
                names = [k for k in line if k != "epoch"]
                metrics += [spool.metric(f"{prefix}/{k}", line[k], now, int(line["epoch"])) for k in names]
        return metrics

    def _result_tags(self, dataset: Dataset, artifact: Artifact, record: Record) -> dict[str, str]:
        asked = identity(self.cfg) | {"steps": compress.asked(self.cfg)}
        values = {as_shown(k, record.valid): v for k, v in record.metrics.items()}
        tags = said_of(record) | {
            "tsexp.stage": "done",
            "tsexp.data": self.cfg.data.name,
            "tsexp.data_checksum": dataset.checksum,
            "tsexp.config": digest({k: v for k, v in asked.items() if k != "seed"}),
            "tsexp.steps": ",".join(asked["steps"]),
            "tsexp.artifact": artifact.signature,
            "tsexp.is_reference": str(record.is_reference).lower(),
            "tsexp.runtime": artifact.manifest["runtime"],
            "mlflow.note.content": _describe(values, record),
        }
        return lengths.tags(tags)

    def _fail(self, error: BaseException) -> None:
        """End the run without a result."""
        details = error.details if isinstance(error, MeasuringFailed) else ""
        text = redact(f"{traceback.format_exc()}\n{details}")
        killed = isinstance(error, signals.Terminated)
        reason = str(error) if killed else f"{type(error).__name__}: {error}"
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else reason
        told = lengths.tags({"tsexp.error": reason})
        self._tell(lambda: self.client.set_tag(self.run_id, *told.popitem()))
        self._tell(lambda: self.client.set_terminated(self.run_id, "KILLED" if killed else "FAILED"))
        self._tell(lambda: self.client.log_text(self.run_id, text, "traceback.txt"))


@contextmanager
def tracked(
    cfg: Config, resolved_yaml: str, name: str, signature: str, parent: str | None
) -> Iterator[Tracked]:
    """Open a run; it ends FINISHED, with all that was logged, or FAILED with its traceback, or KILLED.

    Within a sweep, a store that does not answer stops nothing: the sweep has found it before. What was logged
    is kept in ``paths.spool`` until the store has it.

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

    Raises
    ------
    NotDelivered
        At the end, if the store does not take the result.
    """
    tags = lengths.tags(
        {
            "tsexp.signature": signature,
            "tsexp.stage": "start",
            "mlflow.runName": name,
            **({"mlflow.parentRunId": parent} if parent else {}),
            **origin.tags(),
        }
    )
    run = Tracked(cfg, tags, None, None, resolved_yaml)
    try:
        run.client = store(cfg.tracking)
        experiment = experiment_of(run.client, cfg.tracking)
        run.run_id = run.client.create_run(experiment, tags=tags).info.run_id
    except Exception as error:
        if parent is None:
            raise ConfigError(said(cfg.tracking, error)) from error
        run._lose(error)
    try:
        params = run._params()
        run._tell(lambda: run._open(params))
        yield run
    except BaseException as error:
        run._fail(error)
        raise
    assert run.parcel is not None
    try:
        run.run_id = spool.deliver(run.parcel, cfg.tracking)
    except (KeyboardInterrupt, signals.Terminated):
        reason = "interrupted while it was delivered; the same command delivers it, in another run"
        run._tell(lambda: spool.give_up(run.client, run.run_id, reason))
        raise


def mark_killed(config: TrackingConfig, who: Mapping[str, str], reason: str) -> None:
    """End as FAILED what a process that is gone, as `alive.me` told of it, left RUNNING."""
    if not who:
        return
    client = store(config)
    its = " and ".join(f"tags.`tsexp.{key}` = '{value}'" for key, value in who.items() if value)
    for run in client.search_runs([experiment_of(client, config)], its):
        found = run.info.status == "KILLED" and run.data.tags.get("tsexp.error", "").startswith(GONE)
        if run.info.status != "RUNNING" and not found:  # found to be dead by somebody who did not know why
            continue
        client.set_tag(run.info.run_id, "tsexp.error", reason)
        client.set_terminated(run.info.run_id, "FAILED")
        client.log_text(run.info.run_id, f"{reason}\n", "traceback.txt")


def inputs(dataset: Dataset) -> list[Any]:
    """Return both splits of a dataset as MLflow's dataset inputs, named and kept apart as their files are.

    The digest is the beginning of the checksum over both files.
    """
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.types import Schema, TensorSpec

    steps = -1 if dataset.preprocessing.ragged else dataset.x_train.shape[2]
    series = Schema([TensorSpec(dataset.x_train.dtype, (-1, dataset.channels, steps))])
    schema = TensorDatasetSchema(series, Schema([TensorSpec(dataset.y_train.dtype, (-1,))]))
    made = []
    for split, file, x, y in (
        ("train", dataset.files[0], dataset.x_train, dataset.y_train),
        ("test", dataset.files[1], dataset.x_test, dataset.y_test),
    ):
        counts = np.bincount(y, minlength=len(dataset.classes)).tolist()
        profile = {
            "series": len(x),
            "channels": dataset.channels,
            "longest": x.shape[2],
            "classes": dict(zip(dataset.classes, counts, strict=True)),
        }
        entity = Entity(
            name=_split_name(dataset, split),
            digest=dataset.checksum[:DIGEST],
            source_type="local",
            source=json.dumps({"uri": file}),
            schema=json.dumps(schema.to_dict()),
            profile=json.dumps(profile),
        )
        made.append(DatasetInput(entity, [InputTag("mlflow.data.context", split)]))
    return made


def _split_name(dataset: Dataset, split: str) -> str:
    return f"{dataset.name}_{split.upper()}"


def said_of(record: Record, put: Callable[[str], str] = str) -> dict[str, str]:
    """Return the tags that every measurement has: its source, whether it is valid, its machine, this code.

    `put` rewords reasons and warnings.
    """
    return {
        "tsexp.energy_source": record.energy_source,
        "tsexp.valid": "true" if record.valid else "false",
        "tsexp.invalid_reasons": "; ".join(map(put, record.invalid_reasons)),
        "tsexp.warnings": "; ".join(map(put, record.warnings)),
        "tsexp.protocol": str(PROTOCOL_VERSION),
        "tsexp.cpu": record.hardware["cpu"],
        "tsexp.git_sha": origin.git_sha(),
        "tsexp.version": __version__,
    }


@contextmanager
def being_written(client: Any, experiment: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Make a run that ends FINISHED and hand out its id; an interrupted one is deleted.

    Of a killed process, the next command ends it: tags say whose it is.
    """
    whose = {f"tsexp.{key}": value for key, value in alive.me().items() if value}
    run_id = str(client.create_run(experiment, tags=lengths.tags(tags) | whose).info.run_id)
    try:
        yield run_id
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        client.delete_run(run_id)
        raise


def log_record(
    client: Any,
    experiment: str,
    name: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    record: Record,
    more: Callable[[Path], None],
) -> str:
    """Log a finished measurement that is no experiment as a run; an interrupted one leaves none.

    Parameters
    ----------
    client, experiment
        The store, and the number of its experiment.
    name
        Of the run.
    metrics, params, tags
        As they are to be called.
    record
        Its windows and its hardware become files.
    more
        Writes other files into a folder.

    Returns
    -------
    str
        The run's id.
    """
    from mlflow.entities import Metric, Param

    now = int(1000 * time.time())
    tags = {**tags, "mlflow.runName": name}
    with being_written(client, experiment, tags) as run_id, alive.scratch("track") as scratch:
        client.log_batch(
            run_id,
            [Metric(k, v, now, 0) for k, v in metrics.items()],
            [Param(k, v) for k, v in lengths.params(params).items()],
        )
        folder = scratch / "files"
        folder.mkdir()
        (folder / "windows.json").write_text(json.dumps(record.raw, indent=1))
        (folder / "hardware.json").write_text(json.dumps(record.hardware, indent=1))
        more(folder)
        client.log_artifacts(run_id, str(folder))
    return run_id


def _describe(values: Mapping[str, float], record: Record) -> str:
    mark = "" if not record.energy_source.startswith(ESTIMATED) else " (estimate)"
    lines = [
        f"Accuracy **{100 * values['test/accuracy']:.1f} %**, drop "
        f"{values['vs_dense/accuracy_drop_pt']:+.1f} points "
        f"[{values['vs_dense/accuracy_drop_lo']:+.1f}, {values['vs_dense/accuracy_drop_hi']:+.1f}] "
        f"against the dense model trained as long ({100 * values['test/control_accuracy']:.1f} %).",
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
    task = tasks.of(dataset)
    heading, rows = task.predictions(record.scores, record.reference_scores, record.labels, dataset)
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([heading, *rows])
