"""Accuracy, latency and energy of exactly the artifact that would be deployed, against the dense reference.

`measure` writes a request, starts a fresh process that loads both artifacts (`worker`), blocks until it ends, and judges what came back
(`record`). The protocol itself is in `windows`, the meters are in `meters`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.cache import write_json
from tsexp.config import MeasureConfig
from tsexp.data import Dataset
from tsexp.energy import hardware
from tsexp.energy import record as records
from tsexp.energy.record import Record
from tsexp.energy.windows import Plan
from tsexp.runtimes import Artifact

PROTOCOL_VERSION = 1

TRIAL_SERIES = 512
TOLERANCE_PT = 1.0
"""Points of accuracy, on train series, that an automatic choice may lose against the same model in fp32."""

__all__ = ["PROTOCOL_VERSION", "MeasuringFailed", "Record", "choose", "measure"]


class MeasuringFailed(RuntimeError):
    """The worker did not come back with a result. The message says why; `details` holds its traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def measure(
    artifact: Artifact,
    reference: Artifact,
    dataset: Dataset,
    config: MeasureConfig,
    seed: int,
    title: str = "measure",
    progress: bool = True,
    planted: float = 0.0,
) -> Record:
    """Measure an artifact against the reference in a fresh process that has the machine for itself.

    Parameters
    ----------
    artifact, reference
        Folders that the process loads.
    dataset
        Its whole test split is scored; windows are fed from it.
    config
        The ``measure`` group.
    seed
        Of the order within pairs, the series in each window, and the bootstrap.
    title, progress
        Of the bar.
    planted
        Uncounted extra work of the artifact, as a share (for the self-test).

    Raises
    ------
    MeasuringFailed
        If the process died, ran out of time, could not load or run an artifact, or found no meter although one is required
        (`pipeline.check` refuses that earlier).
    """
    from safetensors.numpy import load_file, save_file

    plan = Plan(config.batch_size, config.repeats, config.window_s, config.idle_s, config.latency_calls, seed, planted)
    with tempfile.TemporaryDirectory(prefix="tsexp-measure-") as name:
        folder = Path(name)
        save_file({"x": dataset.x_test}, folder / "test.safetensors")
        request = {
            "artifact": str(artifact.folder),
            "reference": str(reference.folder),
            "device": artifact.manifest["device"],
            "threads": config.threads,
            "watts_per_core": config.watts_per_core,
            "require": config.require,
            "meter": config.meter,
            "plan": asdict(plan),
            "title": title,
            "progress": progress,
            "timeout_s": config.timeout_s,
        }
        write_json(folder / "request.json", request)
        raw = _run_worker(folder, config)
        scores = load_file(folder / "scores.safetensors")
    return assemble(raw, scores["artifact"], scores["reference"], artifact.manifest, reference.manifest, dataset, seed)


def choose(candidates: list[Artifact], exact: Artifact, dataset: Dataset, config: MeasureConfig) -> tuple[Artifact, list[dict[str, Any]]]:
    """Take the fastest of several artifacts of one model that keeps its accuracy, tried in a fresh process on train series.

    Parameters
    ----------
    candidates
        To choose from.
    exact
        The same model in fp32, run eagerly: what accuracy is compared with.
    dataset
        Up to 512 series of its train split are used, none of the test split.
    config
        The ``measure`` group: batch size and threads.

    Returns
    -------
    Artifact
        The fastest by CPU time among those that lose at most one point; if all lose more, the most accurate.
    list of dict
        What was seen, per candidate: ``runtime``, ``accuracy_drop_pt``, ``cpu_ms`` (per series), or ``error``.
    """
    from safetensors.numpy import save_file

    with tempfile.TemporaryDirectory(prefix="tsexp-choose-") as name:
        folder = Path(name)
        some = np.random.default_rng(0).permutation(len(dataset.x_train))[:TRIAL_SERIES]  # the files are sorted by class
        save_file({"x": dataset.x_train[some], "y": dataset.y_train[some]}, folder / "test.safetensors")
        request = {
            "candidates": [str(a.folder) for a in candidates],
            "exact": str(exact.folder),
            "threads": config.threads,
            "batch_size": config.batch_size,
            "timeout_s": config.timeout_s,
        }
        write_json(folder / "request.json", request)
        seen: list[dict[str, Any]] = _run_worker(folder, config)["tried"]
    tried = [{"runtime": a.manifest["runtime"], **s} for a, s in zip(candidates, seen, strict=True)]
    working = [i for i, t in enumerate(tried) if "error" not in t]
    if not working:
        raise MeasuringFailed(f"none of the runtimes works: {tried}")
    good = [i for i in working if tried[i]["accuracy_drop_pt"] <= TOLERANCE_PT]
    best = min(good, key=lambda i: tried[i]["cpu_ms"]) if good else min(working, key=lambda i: tried[i]["accuracy_drop_pt"])
    return candidates[best], tried


def assemble(
    raw: dict[str, Any], scores: Any, reference_scores: Any, manifest: dict[str, Any], dense: dict[str, Any], dataset: Dataset, seed: int
) -> Record:
    """Make a `Record` of what the worker returned and of what was counted on both artifacts."""
    invalid, warnings = records.doubts(raw)
    for name, values in (("artifact", scores), ("reference", reference_scores)):
        if not np.isfinite(values).all():
            invalid += (f"the {name} answers test series with scores that are not finite",)
    if np.ptp(dataset.y_test) and not np.ptp(scores.argmax(1)):
        warnings += ("the artifact answers the same class for every test series: it has learned nothing, or lost everything",)
    quality = records.score(scores, reference_scores, dataset.y_test, seed)
    sizes = {
        "size/parameters": manifest["parameters"],
        "size/macs": manifest["macs"],
        "size/bytes": manifest["bytes"],
        "vs_dense/size_ratio": dense["bytes"] / manifest["bytes"],
        "prune/achieved_ratio": 1 - manifest["channels"] / dense["channels"],
    }
    return Record(
        metrics={k: float(v) for k, v in (quality | sizes | _finite(records.summarize(raw, seed))).items()},
        energy_source=raw["source"],
        invalid_reasons=invalid,
        warnings=warnings,
        raw=raw,
        scores=scores,
        reference_scores=reference_scores,
        labels=dataset.y_test,
        manifest=manifest,
        hardware=hardware.describe(manifest["device"]),
    )


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """An invalid record may divide by zero; what is not a number is not stored as one."""
    import math

    return {k: v for k, v in metrics.items() if math.isfinite(v)}


def _run_worker(folder: Path, config: MeasureConfig) -> dict[str, Any]:
    threads = str(config.threads)
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), threads)
    command = [sys.executable, "-m", "tsexp.energy.worker", str(folder)]
    # Blocks without polling (a timeout here would poll; the worker has a watchdog of its own): this process must not disturb the other.
    # A process group of its own, so that Zeus' helper processes end with it however it ends.
    worker = subprocess.Popen(command, env=os.environ | pinned, stdin=subprocess.DEVNULL, process_group=0)
    try:
        code = worker.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    if code == 0 and (folder / "result.json").exists():
        return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]
    error, watchdog = folder / "error.txt", folder / "watchdog.txt"
    if watchdog.exists() and watchdog.read_text():
        raise MeasuringFailed(f"measuring took longer than measure.timeout_s={config.timeout_s:g} and was stopped", watchdog.read_text())
    if error.exists():
        details = error.read_text()
        raise MeasuringFailed(f"the measuring process failed: {details.splitlines()[0]}", details)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise MeasuringFailed(f"the measuring process was killed by {name}{hint}")
    raise MeasuringFailed(f"the measuring process ended with status {code} and no result")
