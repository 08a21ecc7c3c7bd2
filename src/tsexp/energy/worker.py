"""The measuring process: ``python -m tsexp.energy.worker FOLDER``, started fresh by `measure`, threads pinned by its environment.

Reads ``request.json`` and ``test.safetensors`` in FOLDER; writes ``scores.safetensors``, then ``result.json``, or ``error.txt``.
What was measured is what was loaded from the artifact folders, and so is what was scored.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

from tsexp.cache import write_json
from tsexp.locking import owning_the_machine

SCORED_AT_ONCE = 64


def main(folder: Path) -> int:
    """Do what ``request.json`` asks; return the exit status."""
    try:
        request = json.loads((folder / "request.json").read_text())
        # Held here and not by the parent: whatever becomes of the parent, nobody else measures while this process does.
        with owning_the_machine(), (folder / "watchdog.txt").open("w") as watchdog:
            faulthandler.dump_traceback_later(request["timeout_s"], exit=True, file=watchdog)
            measured = _choose(folder, request) if "candidates" in request else _measure(folder, request)
            faulthandler.cancel_dump_traceback_later()
        write_json(folder / "result.json", measured)
        return 0
    except BaseException as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
        return 1


def _measure(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch
    from safetensors.numpy import load_file, save_file

    from tsexp import runtimes
    from tsexp.energy import hardware, meters, windows
    from tsexp.progress import bar

    torch.set_num_threads(request["threads"])
    torch.set_num_interop_threads(1)
    plan = windows.Plan(**request["plan"])
    series = load_file(folder / "test.safetensors")["x"]
    meter = meters.choose(request["device"], request["require"], request["watts_per_core"], request["meter"])
    artifact, reference = (runtimes.load(Path(request[k]), threads=request["threads"]) for k in ("artifact", "reference"))
    both = {"artifact": artifact, "reference": reference}

    with bar(request["title"], windows.steps(plan) + 2, show=request["progress"]) as progress:
        # On the very objects that are measured; in eval mode a score does not depend on the rest of the batch.
        parts = [series[i : i + SCORED_AT_ONCE] for i in range(0, len(series), SCORED_AT_ONCE)]
        scores = {}
        for name, predictor in both.items():
            scores[name] = np.concatenate([predictor(np.ascontiguousarray(p)) for p in parts]).astype(np.float32)
            progress.advance("accuracy")
        probe = np.ascontiguousarray(series[: windows.PROBE])
        before = {n: (p(probe).copy(), p.weights_digest()) for n, p in both.items()}
        throttled = hardware.throttle_count()
        look = hardware.gpu_disturbances if request["device"] == "cuda" else dict
        measured = windows.run(artifact, reference, series, meter, plan, progress.advance, look)
        slowed = None if throttled is None else (hardware.throttle_count() or 0) - throttled
        after = {n: (p(probe).copy(), p.weights_digest()) for n, p in both.items()}
    peak_mb = _peak_bytes() / 2**20  # before the peaks of the CPU, which bring matrices and libraries of their own

    save_file(scores, folder / "scores.safetensors")
    return measured | {
        "same_outputs": {n: bool(np.array_equal(before[n][0], after[n][0])) for n in both},
        "same_weights": {n: before[n][1] == after[n][1] for n in both},
        "throttle_events": slowed,
        "peak_mb": peak_mb,
        "threads": torch.get_num_threads(),
        "device": request["device"],
        "peak_gmacs": hardware.peaks(request["threads"]) if request["device"] == "cpu" else {},
    }


def _choose(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Accuracy and CPU time of each candidate; one that fails is listed with its error."""
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    from tsexp import runtimes
    from tsexp.energy import windows

    torch.set_num_threads(request["threads"])
    data = load_file(folder / "test.safetensors")
    x, y = data["x"], data["y"]
    index = np.resize(np.arange(len(x)), windows.DISTINCT_BATCHES * request["batch_size"])
    batches = [np.ascontiguousarray(x[i]) for i in np.split(index, windows.DISTINCT_BATCHES)]

    def accuracy(predictor: runtimes.Predictor) -> float:
        parts = [predictor(np.ascontiguousarray(x[i : i + SCORED_AT_ONCE])) for i in range(0, len(x), SCORED_AT_ONCE)]
        return float((np.concatenate(parts).argmax(1) == y).mean())

    exact = accuracy(runtimes.load(Path(request["exact"]), threads=request["threads"]))
    tried: list[dict[str, Any]] = []
    for candidate in request["candidates"]:
        try:
            predictor = runtimes.load(Path(candidate), threads=request["threads"])
            drop = 100 * (exact - accuracy(predictor))
            tried.append({"accuracy_drop_pt": drop, "cpu_ms": windows.quick_cpu_ms(predictor, batches)})
        except Exception as error:
            tried.append({"error": f"{type(error).__name__}: {error}"})
    return {"tried": tried}


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
