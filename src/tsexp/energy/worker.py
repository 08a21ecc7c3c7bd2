"""The measuring processes, made by `tsexp.system.processes`.

They load artifact folders or files (`subjects`), and score, time or measure what they loaded.

Each function reads ``request.json`` and ``series.safetensors`` in a folder and writes ``result.json`` there,
or ``error.txt``. A fork of the caller also gets what lies in the caller's memory, by name.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tsexp.data import FloatArray
from tsexp.system import signals
from tsexp.system.files import write_json

Held = Mapping[str, Any]
"""``artifact`` or ``reference`` → what lies in memory (`subjects.InMemory`)."""
NONE_HELD: Held = {}
MANY = 2000
"""Calls that are worth a progress bar."""


def score(folder: str, held: Held = NONE_HELD) -> int:
    """Class scores of ``artifact`` on arrays of series, ``batch_size`` at a time, as it is measured."""
    return _answer(Path(folder), _score, held)


def first(folder: str, held: Held = NONE_HELD) -> int:
    """What is known of ``artifact`` (`subjects.facts`), and how many ``outputs`` it has for each series."""
    return _answer(Path(folder), _first, held)


def compare(folder: str) -> int:
    """Time per series of each of ``candidates``; one that fails is listed with its error."""
    return _answer(Path(folder), _compare)


def measure(folder: str, held: Held = NONE_HELD) -> int:
    """One process' share of a measurement: ``artifact`` against ``reference`` (`windows`)."""
    return _answer(Path(folder), _measure, held)


def peaks(folder: str) -> int:
    """What the CPU reaches in one large product (`hardware.peaks`)."""
    return _answer(Path(folder), _peaks)


def _answer(folder: Path, work: Callable[..., dict[str, Any]], held: Held = NONE_HELD) -> int:
    try:
        request = json.loads((folder / "request.json").read_text())
        with (folder / "watchdog.txt").open("w") as watchdog:
            faulthandler.dump_traceback_later(max(0.1, request["timeout_s"]), exit=True, file=watchdog)
            try:
                import torch

                torch.set_num_threads(request["threads"])
                if held:
                    _hold_back(request["threads"])
                answer = work(folder, request, held) if held else work(folder, request)
            finally:
                faulthandler.cancel_dump_traceback_later()
        write_json(folder / "result.json", answer)
        return 0
    except (signals.Terminated, KeyboardInterrupt):  # its caller is going, and takes the folder along
        raise
    except BaseException as error:
        try:
            (folder / "error.txt").write_text(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        except OSError as full:
            return full.errno or 1
        return 1


def _hold_back(threads: int) -> None:
    """Set the threads of libraries that were imported before the fork, and so before any limit was set."""
    import threadpoolctl

    threadpoolctl.threadpool_limits(threads)
    numba = sys.modules.get("numba")
    if numba is not None:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))


def _loader(name: str, request: dict[str, Any], held: Held) -> Callable[[], Any]:
    """What brings a subject: from its folder or file, or as a copy of what lies in memory."""
    from tsexp.energy import subjects

    if name in held:
        return held[name].copied  # type: ignore[no-any-return]
    return lambda: subjects.load(request[name], request["threads"])


def _first(folder: Path, request: dict[str, Any], held: Held = NONE_HELD) -> dict[str, Any]:
    from safetensors.numpy import load_file

    from tsexp.energy import subjects

    batch = load_file(folder / "series.safetensors")["x"]
    subject = _loader("artifact", request, held)()
    if "artifact" in held:
        facts: dict[str, Any] = {"kind": subject.kind, "device": "cpu", **subject.counted(batch)}
    else:
        facts = subjects.facts(request["artifact"], subject)
        subjects.check_shape(request["artifact"], facts["shape"], batch)
        batch = batch.astype(facts["dtype"])
    return facts | {"outputs": subjects.answers(subject, batch).shape[1]}


def _score(folder: Path, request: dict[str, Any], held: Held = NONE_HELD) -> dict[str, Any]:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    from tsexp.energy import hardware, subjects
    from tsexp.system.progress import bar

    arrays = load_file(folder / "series.safetensors")
    own_peak_mb = hardware.peak_memory()
    predictor = _loader("artifact", request, held)()
    calls = sum(-(-len(x) // request["batch_size"]) for x in arrays.values())
    scores: dict[str, FloatArray] = {}
    with bar(request["title"], calls, show=request["progress"] and calls >= MANY) as progress:
        for name, x in arrays.items():
            made = []
            for part in batches(x, request["batch_size"]):
                made.append(subjects.answers(predictor, part))
                progress.advance()
            # safetensors writes what lies in memory: answers in columns would come back in disorder
            scores[name] = np.ascontiguousarray(np.concatenate(made), np.float32)
    peak_mb = own_peak_mb()
    save_file(scores, folder / "scores.safetensors")
    return {"peak_mb": peak_mb}


def batches(series: FloatArray, size: int) -> Iterator[FloatArray]:
    """Cut series (batch, channels, time) into batches of `size`; the last may be smaller."""
    import numpy as np

    return (np.ascontiguousarray(series[i : i + size]) for i in range(0, len(series), size))


def _compare(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import time

    import numpy as np
    from safetensors.numpy import load_file

    from tsexp import runtimes
    from tsexp.energy import windows

    x = load_file(folder / "series.safetensors")["x"]
    index = np.resize(np.arange(len(x)), windows.DISTINCT_BATCHES * request["batch_size"])
    feed = [np.ascontiguousarray(x[i]) for i in np.split(index, windows.DISTINCT_BATCHES)]
    # CPU time hardly feels what else the machine does; but of several threads or a GPU it does not say how
    # long one waits.
    clock = {"cpu": time.process_time, "wall": time.perf_counter}[request["clock"]]
    seen: list[dict[str, Any]] = []
    for candidate in request["candidates"]:
        try:
            predictor = runtimes.load(Path(candidate), threads=request["threads"])
            seen.append({f"{request['clock']}_ms": windows.quick_ms(predictor, feed, clock)})
        except Exception as error:
            seen.append({"error": f"{type(error).__name__}: {error}"})
    return {"seen": seen}


def _measure(folder: Path, request: dict[str, Any], held: Held = NONE_HELD) -> dict[str, Any]:
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    from tsexp.energy import hardware, meters, subjects, windows

    arrays = load_file(folder / "series.safetensors")
    plan = windows.Plan(**request["plan"])
    meter = meters.choose(request["device"], request["require"], request["watts_per_core"], request["meter"])
    if request["source"] not in (None, meter.source):
        raise RuntimeError(
            f"the meter was {request['source']} when this measurement began, and is {meter.source} now: "
            "measure again; `python -m tsexp.doctor` says what answers"
        )
    load = {name: _loader(name, request, held) for name in ("artifact", "reference")}
    probe = list(batches(arrays["probe"], plan.batch_size))

    def check(both: Mapping[str, Any]) -> dict[str, tuple[FloatArray, str]]:
        return {
            n: (np.concatenate([subjects.answers(p, part) for part in probe]), p.weights_digest())
            for n, p in both.items()
        }

    throttled = hardware.throttle_count()
    look = hardware.gpu_disturbances if request["device"] == "cuda" else dict
    measured = windows.run(load, arrays["x"], meter, plan, look, check)
    before, after = measured.pop("before"), measured.pop("after")
    return measured | {
        "same_outputs": {n: bool(np.array_equal(before[n][0], after[n][0])) for n in before},
        "same_weights": {n: before[n][1] == after[n][1] for n in before},
        "as_scored": {n: _near(before[n][0], arrays[f"{n}_scores"]) for n in before},
        "throttle_events": None if throttled is None else (hardware.throttle_count() or 0) - throttled,
        "threads_spin": hardware.threads_spin(request["threads"]),
        "threads": torch.get_num_threads(),
    }


def _near(answers: FloatArray, scores: FloatArray) -> bool:
    """The same but for float rounding, which may differ with where a model lies in memory."""
    import numpy as np

    return bool(
        np.allclose(
            answers, scores, rtol=1e-3, atol=1e-3 * float(np.abs(scores).max(initial=0.0)), equal_nan=True
        )
    )


def _peaks(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    from tsexp.energy import hardware

    return hardware.peaks(request["threads"])
