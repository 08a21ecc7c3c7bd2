"""A finished run of the store: found by the beginning of its id, with its artifact and its series."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import config as configs
from tsexp.config import Config, ConfigError, DataConfig
from tsexp.marks import OTHERS, PROTOCOL_VERSION

if TYPE_CHECKING:  # --help need not wait for them
    from tsexp.data import Dataset, FloatArray
    from tsexp.report.store import Row
    from tsexp.runtimes import Artifact

SHORTEST_ID = 6


def check_id(run: str) -> None:
    """Refuse what cannot be the beginning of a run's id."""
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_ID},32}}", run):
        raise ConfigError(
            f"{run} is not a run id: {SHORTEST_ID} to 32 hexadecimal digits, as in the store's UI"
        )


def find(client: Any, experiment: str, run: str) -> Row:
    """Return the finished run whose id begins so.

    Raises
    ------
    ConfigError
        If there is none or several, or it is no experiment that has an artifact.
    """
    from tsexp.report.store import row as as_row

    check_id(run)
    place = client.get_experiment_by_name(experiment)
    if place is None:
        raise ConfigError(f"the store has no experiment {experiment!r}; say which: tracking.experiment=…")
    found = client.search_runs([place.experiment_id], f"attributes.run_id LIKE '{run}%'", max_results=3)
    if not found:
        newest = [
            r
            for r in client.search_runs([place.experiment_id], "tags.`tsexp.valid` = 'true'", max_results=4)
            if r.data.tags.get("tsexp.stage") not in OTHERS
        ]
        known = "; ".join(f"{r.info.run_id[:8]} {r.info.run_name}" for r in newest[:3])
        raise ConfigError(
            f"no run of experiment {experiment!r} begins with {run}; the newest: {known or 'none'}"
        )
    if len(found) > 1:
        raise ConfigError(f"several runs begin with {run}: {', '.join(r.info.run_id for r in found)}; …")
    row = as_row(found[0])
    kind = OTHERS.get(row.tags.get("tsexp.stage", ""))
    if kind is not None:
        raise ConfigError(f"run {run} is {kind}, not an experiment; give one that has an artifact")
    if row.status != "FINISHED":
        raise ConfigError(f"{called(row)} has not finished ({row.status}): run it again")
    return row


def check_protocol(row: Row) -> None:
    """Refuse a run whose numbers mean something else than they do now."""
    if row.tags.get("tsexp.protocol") != str(PROTOCOL_VERSION):
        raise ConfigError(f"{called(row)} was measured by an older protocol: run it again")


def called(row: Row) -> str:
    """Name a run in a message."""
    return f"run {row.run_id[:8]} ({row.name})"


def data_config(row: Row) -> DataConfig:
    """Return the ``data`` group of a run."""
    from omegaconf import OmegaConf

    params = {f.name: row.params[f"data.{f.name}"] for f in fields(DataConfig)}
    given = {k: None if v == "None" else v for k, v in params.items()}
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), given))  # type: ignore[return-value]


def dataset(rows: Sequence[Row], cfg: Config) -> Dataset:
    """Load the series that runs are of, from where they are now.

    Raises
    ------
    ConfigError
        If they are nowhere, or not the same files.
    """
    from tsexp import data

    given = data_config(rows[0])
    if cfg.data.path:  # elsewhere than it was
        given.path = cfg.data.path
    found = data.load(given, cfg.paths.data, cfg.seed)
    if any(row.tags["tsexp.data_checksum"] != found.checksum for row in rows):
        whose = "the run is" if len(rows) == 1 else "the runs are"
        raise ConfigError(
            f"{' and '.join(found.files)} are not the files that {whose} of; "
            "say where those are: paths.data=… or data.path=…"
        )
    return found


def logged_model(client: Any, run: Any) -> Any:
    """Return the logged model of an `mlflow.entities.Run`; None if there is none.

    A run still names one that was deleted.
    """
    from mlflow.exceptions import MlflowException

    for model in run.outputs.model_outputs if run.outputs else ():
        try:
            return client.get_logged_model(model.model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None


def artifact(client: Any, row: Row, cache: Path, scratch: Path) -> Artifact:
    """Return a run's artifact, from the cache or, where it is gone from there, from the model in the store.

    Parameters
    ----------
    client
        An `mlflow.MlflowClient`.
    row
        Of `find`.
    cache
        Root of the cache.
    scratch
        Folder for what has to be fetched; it must outlive the artifact.

    Raises
    ------
    ConfigError
        If it is in neither, or damaged in both.
    """
    import mlflow

    from tsexp.cache import Entry
    from tsexp.runtimes import Artifact, read_manifest

    signature = row.tags["tsexp.artifact"]
    if not re.fullmatch(r"[0-9a-f]{16}", signature):  # a path that leads elsewhere
        raise ConfigError(f"{called(row)} names no artifact: {signature!r}; run it again with rerun=true")
    folder: Path | None = cache / "artifact" / signature
    if not _whole(folder):
        folder = None
        outputs = client.get_run(row.run_id).outputs
        for model in outputs.model_outputs if outputs else ():
            place = Path(tempfile.mkdtemp(dir=scratch))
            with contextlib.suppress(mlflow.exceptions.MlflowException, OSError):
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{client.get_logged_model(model.model_id).artifact_location}/artifacts",
                    dst_path=str(place),
                    tracking_uri=str(client.tracking_uri),
                )
            folder = next((m.parent for m in place.glob("artifacts/*/manifest.json")), None)
            if _whole(folder):
                break
    if not _whole(folder):
        raise ConfigError(
            f"the artifact of {called(row)} is neither in {cache} nor, whole, in the store; run it again "
            "with rerun=true"
        )
    assert folder is not None
    manifest = read_manifest(folder)
    if folder.is_relative_to(scratch):
        # A store can say anything of where it comes from: what is remembered of it goes by its files.
        signature = configs.digest(manifest["files"])
    return Artifact(Entry(folder, signature, reused=True), manifest)


def _whole(folder: Path | None) -> bool:
    """Every file is the one that the manifest lists, and there are no others."""
    from tsexp.runtimes import verified

    try:
        return folder is not None and bool(verified(folder))
    except ConfigError:  # code that nobody allowed
        raise
    except ValueError:
        return False


def check_runs_here(row: Row, artifact: Artifact, what: str) -> None:
    """Refuse an artifact whose runtime is not there, or not for its device or CPU; `what` names it."""
    from tsexp import runtimes
    from tsexp.config import QuantConfig, RuntimeConfig

    manifest = artifact.manifest
    try:
        quant = QuantConfig(manifest["mode"], calibration="minmax", weight_bits=8)
        family = configs.like(row.params.get("model.family", "transformer"))
        runtimes.check(quant, RuntimeConfig(manifest["runtime"], manifest["device"]), family)
        runtimes.refuse_overflow(manifest, "it")
        if code := runtimes.code_in(manifest["runtime"]):
            configs.must_be_trusted(code, "it holds code")
    except (ConfigError, ImportError) as error:
        raise ConfigError(f"{what} cannot run here: {error}") from None


def takes(client: Any, row: Row, scratch: Path) -> tuple[str, bool]:
    """Return what a run's model takes, in words, and whether series may have any length and end in NaN.

    As its logged model says, which is fetched into the folder ``scratch``.
    """
    from mlflow.models import Model

    about = Model.load(client.download_artifacts(row.run_id, "model/MLmodel", str(scratch)))
    assert about.metadata is not None
    return about.metadata["input"], about.flavors["python_function"]["config"]["ragged"]


def answers(folder: Path, series: FloatArray, row: Row) -> FloatArray:
    """Return an artifact's class scores, float32 (series, classes), as its run scored it.

    At the batch size that was measured, on as many threads: some formats' answers depend on the batch.
    """
    from tsexp import runtimes
    from tsexp.energy.worker import batches
    from tsexp.models import using_threads
    from tsexp.system.locking import sharing_the_machine

    threads = int(row.params["measure.threads"])
    with sharing_the_machine(), using_threads(threads):
        predictor = runtimes.load(folder, threads=threads)
        parts = [predictor(part) for part in batches(series, int(row.params["measure.batch_size"]))]
    return np.concatenate(parts).astype(np.float32)
