"""Accuracy, latency and energy of exactly the artifact that would be deployed, against a reference.

`score` says what an artifact answers, `measure` what it costs. Both load its folder in processes of their own
(`worker`, `tsexp.system.processes`) and block until those end; `record` judges what came back. The protocol
itself is in `windows`, the meters are in `meters`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tsexp import tasks
from tsexp.cache import FULL, Cache
from tsexp.config import MeasureConfig, secret
from tsexp.data import Dataset, FloatArray
from tsexp.energy import hardware, meters, statistics, worker
from tsexp.energy import record as records
from tsexp.energy.record import Record
from tsexp.energy.subjects import InMemory
from tsexp.energy.windows import Plan, orders
from tsexp.runtimes import Artifact, installed
from tsexp.system import alive, cpu, processes, signals
from tsexp.system.files import write_json
from tsexp.system.locking import owning_the_machine
from tsexp.system.progress import bar

SCORES_VERSION = 2
PEAKS_VERSION = 1

PROBE = 8
"""Test series, at least, that each process must answer as they were scored, before and after its windows."""
TRIAL_SERIES = 512
"""Series, at most, that an automatic choice is timed on."""
TOLERANCE_PT = 1.0
"""Points of accuracy on validation series that an automatic choice may lose against the model in fp32."""
LEAST_PROCESSES, STEP = 8, 4
"""A measurement may be narrow enough to stop (`measure.target_pct`) after so many processes, and after each
`STEP` more, for orders are balanced then."""
PRELOAD = (
    "torch", "torchao.quantization", "onnxruntime", "openvino", "aeon.classification.convolution_based",
    "zeus.monitor", "psutil", "safetensors.numpy", "safetensors.torch",
    "tsexp.runtimes.eager", "tsexp.runtimes.inductor", "tsexp.runtimes.onnxruntime",
    "tsexp.runtimes.openvino", "tsexp.energy.worker",
)  # fmt: skip
"""What a measuring process would import; the server has it."""


class MeasuringFailed(RuntimeError):
    """A process did not come back with a result. The message says why; `details` holds its traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Scores:
    """What an artifact answers: class scores, float32 (series, classes), of test and validation series.

    And the peak memory of loading it alone and letting it answer (`hardware.peak_memory`), MiB.
    """

    test: FloatArray
    val: FloatArray
    peak_mb: float = float("nan")


SPLITS = ("test", "val")


def score(
    artifact: Artifact,
    dataset: Dataset,
    config: MeasureConfig,
    cache: Cache,
    progress: bool = True,
    splits: tuple[str, ...] = SPLITS,
) -> Scores:
    """Score test and validation series in a process of its own, once per artifact.

    At the batch size that is measured: some formats' answers depend on the other series of the batch, and
    another batch size is then another classifier. Of `splits` that are not asked for, there are no scores.

    Raises
    ------
    MeasuringFailed
        If the process died, ran out of time, or could not load or run the artifact.
    """
    from safetensors.numpy import load_file

    def build(folder: Path) -> None:
        request = {
            "artifact": str(artifact.folder),
            "batch_size": config.batch_size,
            "title": f"score {dataset.name}, {artifact.manifest['runtime']} {artifact.manifest['mode']}",
            "progress": progress,
        }
        arrays = {"test": dataset.x_test, "val": dataset.x_train[dataset.val]}
        arrays = {name: x for name, x in arrays.items() if name in splits and len(x)}
        with _asked("score", request, arrays, artifact.manifest["device"], config) as answer:
            # Not renamed: temporary files may be on another disk.
            shutil.copyfile(answer.folder / "scores.safetensors", folder / "scores.safetensors")
            write_json(folder / "memory.json", answer.result)

    on_gpu = artifact.manifest.get("device") == "cuda"  # a plan's artifacts have no manifest yet
    made_by = artifact.manifest.get("versions", {})
    libraries = {name: installed(name) for name in made_by}
    key = {
        "artifact": artifact.signature,
        "data": dataset.checksum,
        "val": dataset.val.tolist(),
        "batch_size": config.batch_size,
        "threads": config.threads,
        **cpu.facts(),
        **({"gpu": hardware.describe("cuda")["gpu"]} if on_gpu else {}),
        **({"libraries": libraries} if libraries != made_by else {}),  # one from a store, made by others
        "splits": list(splits),
    }
    stage = cache.stage("scores", SCORES_VERSION, key, build).folder
    arrays = load_file(stage / "scores.safetensors")
    nothing = np.zeros((0, len(dataset.classes)), np.float32)
    peak_mb = json.loads((stage / "memory.json").read_text())["peak_mb"]
    test, val = (arrays.get(name, nothing) for name in SPLITS)
    return Scores(test, val, peak_mb)


def peaks(config: MeasureConfig, cache: Cache) -> dict[str, float]:
    """What this CPU reaches in a large product (`hardware.peaks`), once per machine and number of threads."""

    def build(folder: Path) -> None:
        with _asked("peaks", {}, {}, "cpu", config) as answer:
            write_json(folder / "peaks.json", answer.result)

    key = {
        "hardware": hardware.describe("cpu"),
        "libraries": {name: installed(name) for name in ("onnxruntime", "onnx")},  # int8's
        "threads": config.threads,
    }
    return json.loads((cache.stage("peaks", PEAKS_VERSION, key, build).folder / "peaks.json").read_text())  # type: ignore[no-any-return]


def measure(
    artifact: Artifact,
    reference: Artifact,
    scores: Scores,
    reference_scores: Scores,
    dataset: Dataset,
    config: MeasureConfig,
    seed: int,
    title: str = "measure",
    progress: bool = True,
    planted: float = 0.0,
) -> Record:
    """Measure an artifact against a reference, in fresh processes that have the machine for themselves.

    Parameters
    ----------
    artifact, reference
        Folders that each process loads.
    scores, reference_scores
        What they were seen to answer (`score`); each process has to answer likewise.
    dataset
        Windows are fed from its test split.
    config
        The ``measure`` group.
    seed
        Of all orders, and of the series in each window.
    title, progress
        Of the bar.
    planted
        Extra work of the artifact that does nothing, as a share (for the self-test).

    Raises
    ------
    MeasuringFailed
        If a process died, ran out of time, could not load or run an artifact, or found no meter although one
        is required (`pipeline.check` refuses that earlier).
    """
    first = -(-PROBE // config.batch_size) * config.batch_size  # whole batches, as they were scored
    arrays = {
        "x": dataset.x_test,
        "probe": dataset.x_test[:first],
        "artifact_scores": scores.test[:first],
        "reference_scores": reference_scores.test[:first],
    }
    pair = {"artifact": str(artifact.folder), "reference": str(reference.folder)}
    raw = take_turns(pair, artifact.manifest["device"], arrays, config, seed, title, progress, planted)
    return records.assemble(raw, scores, reference_scores, artifact.manifest, reference.manifest, dataset)


def take_turns(
    pair: Mapping[str, str | InMemory],
    device: str,
    arrays: Mapping[str, FloatArray],
    config: MeasureConfig,
    seed: int,
    title: str,
    progress: bool = True,
    planted: float = 0.0,
) -> dict[str, Any]:
    """Let two subjects take turns in windows of several processes, which have the machine for themselves.

    Parameters
    ----------
    pair
        ``artifact`` and ``reference``: a path, or what lies in this process's memory; then every process is a
        fork of this one.
    device
        That both run on.
    arrays
        ``x``, which windows are fed from, (series, …); ``probe``, whole batches of it, and
        ``artifact_scores`` and ``reference_scores``, what both were seen to answer to these.
    config, seed, title, progress, planted
        See `measure`.

    Returns
    -------
    dict
        JSON values only: every window and check, for `record`.
    """
    late = meters.late(config.meter)
    settled = late.settle if late else lambda raw: raw
    seen: list[dict[str, Any]] = []
    with owning_the_machine(), bar(title, config.processes, show=progress) as progress_bar:
        end = time.monotonic() + config.timeout_s
        for process, order in enumerate(orders(config.processes, seed)):
            pairs = (
                config.repeats * (process + 1) // config.processes
                - config.repeats * process // config.processes
            )
            latency_calls = -(-config.latency_calls // config.processes)
            plan = Plan(
                config.batch_size,
                pairs,
                config.window_s,
                config.idle_s,
                latency_calls,
                process,
                seed,
                order.loaded,
                order.used,
                planted,
            )
            request = {
                **pair,
                "device": device,
                "watts_per_core": config.watts_per_core,
                "require": config.require,
                "meter": config.meter,
                "source": seen[0]["source"] if seen else None,
                "plan": asdict(plan),
                "timeout_s": end - time.monotonic(),
            }
            with _asked("measure", request, arrays, device, config) as answer:
                seen.append(answer.result)
            progress_bar.advance()
            if (
                config.target_pct is not None
                and len(seen) >= LEAST_PROCESSES
                and len(seen) % STEP == 0
                and statistics.reach_pct(settled(_together(seen, config))) <= config.target_pct
            ):
                break
    return settled(_together(seen, config)) | {"planted": planted, "device": device}


def first_answer(
    subject: str | InMemory,
    batch: FloatArray,
    device: str,
    config: MeasureConfig,
    timeout_s: float,
    beside: Sequence[InMemory] = (),
) -> dict[str, Any]:
    """Find out in a process of its own whether a subject answers, and what is known of it (`worker.first`).

    If something in memory will be measured `beside` it, then in a fork of this process.

    Raises
    ------
    MeasuringFailed
        If it does not; within `timeout_s`, or at all.
    """
    request = {"artifact": subject, "timeout_s": timeout_s} | dict(zip(("reference",), beside, strict=False))
    with _asked("first", request, {"x": batch}, device, config) as answer:
        return answer.result


def answers_of(
    subject: str | InMemory,
    series: FloatArray,
    device: str,
    config: MeasureConfig,
    title: str,
    progress: bool,
) -> tuple[FloatArray, float]:
    """What a subject answers to all series, (series, outputs), and its peak memory, MiB; in its own process.

    Raises
    ------
    MeasuringFailed
        As `score`.
    """
    from safetensors.numpy import load_file

    request = {
        "artifact": subject,
        "batch_size": config.batch_size,
        "title": title,
        "progress": progress,
    }
    with _asked("score", request, {"x": series}, device, config) as answer:
        return load_file(answer.folder / "scores.safetensors")["x"], answer.result["peak_mb"]


def _together(seen: list[dict[str, Any]], config: MeasureConfig) -> dict[str, Any]:
    """One measurement of the processes' shares: windows in one list, pairs numbered through."""
    windows, before = [], 0
    for one in seen:
        windows += [w | {"pair": w["pair"] + before if w["pair"] >= 0 else -1} for w in one["windows"]]
        before += 1 + max((w["pair"] for w in one["windows"]), default=-1)
    subjects = ("artifact", "reference")
    throttled = [one["throttle_events"] for one in seen if one["throttle_events"] is not None]
    return {
        "windows": windows,
        "latencies_ms": [v for one in seen for v in one["latencies_ms"]],
        "started": {s: [one["started"][s] for one in seen] for s in subjects},
        "orders": [one["orders"] for one in seen],
        "meter_overhead_s": [v for one in seen for v in one["meter_overhead_s"]],
        "children_cpu_s": sum(one["children_cpu_s"] for one in seen),
        **{
            kind: {s: all(one[kind][s] for one in seen) for s in subjects}
            for kind in ("same_outputs", "same_weights", "as_scored")
        },
        "throttle_events": sum(throttled) if throttled else None,
        "threads_spin": seen[0]["threads_spin"],
        "threads": seen[0]["threads"],
        "window_s": min(one["window_s"] for one in seen),
        "source": seen[0]["source"],
        "scope": seen[0]["scope"],
        "batch_size": config.batch_size,
        "processes": len(seen),
        "repeats": sum(one["pairs"] for one in seen),
        "target_pct": config.target_pct,
    }


def choose(
    candidates: list[Artifact], exact: Artifact, dataset: Dataset, config: MeasureConfig, cache: Cache
) -> tuple[Artifact, list[dict[str, Any]]]:
    """Take the fastest of several artifacts of one model that keeps its accuracy.

    On validation series, which the model was not fitted on.

    Parameters
    ----------
    candidates
        To choose from.
    exact
        The same model in fp32, run eagerly: what accuracy is compared with.
    dataset
        Its validation series are used; where there are none, nothing can be said of accuracy, and the fastest
        is taken. Nothing of the test split.
    config
        The ``measure`` group: batch size and threads.
    cache
        Of the scores.

    Returns
    -------
    Artifact
        The fastest (by CPU time; of several threads or on a GPU by wall time) among those that lose at most
        one point; if all lose more, the most accurate.
    list of dict
        What was seen, per candidate: ``runtime``, ``accuracy_drop_pt``, ``val_series``, and ``cpu_ms`` or
        ``wall_ms`` (per series), or ``error``.
    """
    clock = "cpu" if config.threads == 1 and exact.manifest["device"] == "cpu" else "wall"
    chosen_on = dataset.val if len(dataset.val) else dataset.fit
    some = np.random.default_rng(0).permutation(chosen_on)[:TRIAL_SERIES]  # the files are sorted by class
    request = {
        "candidates": [str(a.folder) for a in candidates],
        "batch_size": config.batch_size,
        "clock": clock,
    }
    with (
        owning_the_machine(),
        _asked("compare", request, {"x": dataset.x_train[some]}, exact.manifest["device"], config) as answer,
    ):
        seen: list[dict[str, Any]] = answer.result["seen"]
    labels, task = dataset.y_train[dataset.val], tasks.of(dataset)

    def lost_pt(artifact: Artifact) -> float:
        if not len(labels):
            return 0.0
        return float(
            task.loss_pt(score(artifact, dataset, config, cache, False, ("val",)).val, labels).mean()
        )

    tried = []
    for artifact, one in zip(candidates, seen, strict=True):
        drop = (
            {}
            if "error" in one
            else {"accuracy_drop_pt": lost_pt(artifact) - lost_pt(exact), "val_series": len(labels)}
        )
        tried.append({"runtime": artifact.manifest["runtime"], **drop, **one})
    working = [i for i, t in enumerate(tried) if "error" not in t]
    if not working:
        raise MeasuringFailed(f"none of the runtimes works: {tried}")
    good = [i for i in working if tried[i]["accuracy_drop_pt"] <= TOLERANCE_PT]
    best = (
        min(good, key=lambda i: tried[i][f"{clock}_ms"])
        if good
        else min(working, key=lambda i: tried[i]["accuracy_drop_pt"])
    )
    return candidates[best], tried


@dataclass(frozen=True)
class _Answer:
    """What a measuring process left: its folder, as long as it is needed, and what it said."""

    folder: Path
    result: dict[str, Any]


@contextlib.contextmanager
def _asked(
    function: str, request: dict[str, Any], arrays: Mapping[str, Any], device: str, config: MeasureConfig
) -> Iterator[_Answer]:
    """Ask a function of `worker` in a process of its own.

    If something in the request lies in memory, the process is a fork of this one.
    """
    from safetensors.numpy import save_file

    held = {k: v for k, v in request.items() if isinstance(v, InMemory)}
    said = {k: v for k, v in request.items() if k not in held}
    with alive.scratch("measure") as folder:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "series.safetensors")
        limits = {"threads": config.threads, "timeout_s": config.timeout_s}
        write_json(folder / "request.json", limits | said)
        # Blocks without polling (a timeout here would poll; the process has a watchdog of its own): this
        # process must not disturb the other. CUDA does not survive a fork.
        if held:
            work = getattr(worker, function)
            code = processes.fork_here(lambda: work(str(folder), held))
        else:
            code = processes.run(
                f"{WORKER}:{function}",
                str(folder),
                preload=PRELOAD,
                fork=device == "cpu",
                without=secret.CREDENTIALS,  # it loads what may come from elsewhere, and asks no store
                temporary=str(folder),  # where a compiled model is unpacked, and stays if killed
            )
        yield _Answer(folder, _result(folder, code, config.timeout_s))


def _result(folder: Path, code: int, timeout_s: float) -> dict[str, Any]:
    """Return what the process that ended so said in its folder."""
    result, error, watchdog = (folder / name for name in ("result.json", "error.txt", "watchdog.txt"))
    if code == 0 and result.exists():
        return json.loads(result.read_text())  # type: ignore[no-any-return]
    if watchdog.exists() and watchdog.read_text():
        raise MeasuringFailed(
            f"measuring took longer than measure.timeout_s={timeout_s:g} and was stopped",
            watchdog.read_text(),
        )
    details = error.read_text() if error.exists() else ""
    if details:
        raise MeasuringFailed(f"the measuring process failed: {details.splitlines()[0]}", details)
    if code == signals.STATUS:
        raise MeasuringFailed("the measuring process was terminated (SIGTERM)")
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise MeasuringFailed(f"the measuring process was killed by {name}{hint}")
    hint = f" ({os.strerror(code)})" if code in FULL else ""
    raise MeasuringFailed(f"the measuring process ended with status {code} and no result{hint}")


WORKER = "tsexp.energy.worker"
