"""Does an artifact against itself come out as itself?

``make bench-meter``: null comparisons, quiet and with the other core busy, and planted work.

Of an artifact against itself, the true ratio is 1. Each comparison is a whole measurement
(``measure=quick``), and its 95 % interval has to hold 1. Writes docs/meter.md. ``--rounds 5`` makes 60
comparisons, in about 20 minutes; nothing else may run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tsexp import config as configs
from tsexp import data, energy, runtimes
from tsexp.cache import Cache
from tsexp.config import QuantConfig, RuntimeConfig
from tsexp.config.compose import composed
from tsexp.doctor import untrained
from tsexp.energy import hardware
from tsexp.system import cpu, processes
from tsexp.system.progress import bar

ROOT = Path(__file__).parents[2]
MODELS, RUNTIMES, STATES = ("t1", "t3"), ("eager", "onnxruntime", "openvino"), ("quiet", "busy")
LEAST = 56 / 60
"""Intervals that have to hold the truth: of 60 with a true coverage of 95 %, fewer than 56 do in 18 % of all
cases, of 75 % in all but 0.03 %."""
WIDEST_PCT = {"eager": 1.0, "onnxruntime": 1.0, "openvino": 2.0}
PLANTED = 0.02


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Another process computes, all the time."""
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import torch; torch.set_num_threads(1); a = torch.randn(400, 400)\nwhile True: a @ a",
        ]
    )
    try:
        yield
    finally:
        other.kill()
        other.wait()


def main() -> int:
    """Run, print and write what was found; 1 if a target was missed."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--rounds", type=int, default=5, help="comparisons of each model, runtime and state")
    parse.add_argument("--models", default=",".join(MODELS))
    parse.add_argument("--runtimes", default=",".join(RUNTIMES))
    parse.add_argument("--states", default=",".join(STATES))
    parse.add_argument(
        "--out", type=Path, help="write every comparison here, as JSON; docs/meter.md is left alone"
    )
    asked = parse.parse_args()
    models, names, states = (getattr(asked, k).split(",") for k in ("models", "runtimes", "states"))
    processes.start(energy.PRELOAD)
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="tsexp-meter-") as scratch,
        bar("null comparisons", 1, show=False),
    ):
        cache = Cache(Path(scratch))
        todo = [(s, m, r) for s in states for m in models for r in names]
        for state, model, runtime in todo:
            cfg = configs.parse(composed(f"model={model}", "measure=quick"))
            dataset = data.load(cfg.data, cfg.paths.data, 0)
            fitted = untrained(cfg, dataset, cache)
            artifact = runtimes.deploy(
                fitted, QuantConfig("none"), RuntimeConfig(runtime, "cpu"), dataset, cache
            )
            scores = energy.score(artifact, dataset, cfg.measure, cache, progress=False)
            plans = [0.0] * asked.rounds + ([PLANTED] if (runtime, state) == ("eager", "quiet") else [])
            with busy() if state == "busy" else contextlib.nullcontext():
                for seed, planted in enumerate(plans):
                    config = replace(cfg.measure, require="any")
                    record = energy.measure(
                        artifact,
                        artifact,
                        scores,
                        scores,
                        dataset,
                        config,
                        seed,
                        f"{state} {model} {runtime}",
                        True,
                        planted,
                    )
                    m = record.metrics
                    found.append(
                        {
                            "state": state, "model": model, "runtime": runtime, "seed": seed,
                            "planted": planted, "valid": record.valid,
                            "speedup": [
                                m.get(f"vs_dense/cpu_speedup{e}", float("nan")) for e in ("", "_lo", "_hi")
                            ],
                            "wall": [m.get(f"vs_dense/speedup{e}", float("nan")) for e in ("", "_lo", "_hi")],
                            "orders": record.raw["orders"],
                            "cpu_logs": logs(record.raw, "cpu_s"), "wall_logs": logs(record.raw, "wall_s"),
                            "invalid": record.invalid_reasons,
                        }
                    )  # fmt: skip
                    print(
                        json.dumps(
                            {
                                k: found[-1][k]
                                for k in ("state", "model", "runtime", "planted", "speedup", "wall")
                            }
                        ),
                        flush=True,
                    )
    if asked.out:
        asked.out.write_text(json.dumps(found))
    text, ok = table(found)
    print(text)
    if not asked.out:
        (ROOT / "docs" / "meter.md").write_text(text)
    return 0 if ok else 1


def logs(raw: dict, key: str) -> list[float]:
    """Median log ratio of each process."""
    windows = [w for w in raw["windows"] if w["subject"] != "idle" and not w["discarded"]]
    each = {(w["process"], w["pair"], w["subject"]): w[key] / w["inferences"] for w in windows}
    pairs: dict[int, list[float]] = {}
    for process, pair, subject in each:
        if subject == "artifact":
            pairs.setdefault(process, []).append(
                float(np.log(each[process, pair, "reference"] / each[process, pair, "artifact"]))
            )
    return [float(np.median(v)) for v in pairs.values()]


def table(found: list[dict]) -> tuple[str, bool]:
    """The page, and whether every target was reached."""
    lines, ok, held_in_all = [], True, 0
    nulls = [f for f in found if not f["planted"]]
    for state, model, runtime in dict.fromkeys((f["state"], f["model"], f["runtime"]) for f in nulls):
        some = [f for f in nulls if (f["state"], f["model"], f["runtime"]) == (state, model, runtime)]
        ratios = np.array([f["speedup"] for f in some])
        held = int(((ratios[:, 1] <= 1) & (ratios[:, 2] >= 1)).sum())
        wall = np.array([f["wall"] for f in some])
        held_wall = int(((wall[:, 1] <= 1) & (wall[:, 2] >= 1)).sum())
        half = 50 * (ratios[:, 2] - ratios[:, 1])
        held_in_all += held
        narrow = state != "quiet" or np.median(half) <= WIDEST_PCT[runtime]
        ok &= bool(narrow) and all(f["valid"] for f in some)
        width = (
            f"{np.median(half):.2f} ({half.min():.2f} to {half.max():.2f}){'' if narrow else ' **too wide**'}"
        )
        seen = f"{ratios[:, 0].min():.4f} to {ratios[:, 0].max():.4f}"
        valid = sum(f["valid"] for f in some)
        lines.append(
            f"| {state} | {model} | {runtime} | {held} of {len(some)} | {held_wall} of {len(some)} | {seen} "
            f"| {width} | {valid} |"
        )
    ok &= held_in_all >= LEAST * len(nulls)
    planted = []
    for f in found:
        if f["planted"]:
            value, low, high = f["speedup"]
            seen = high < 1
            ok &= seen
            planted.append(
                f"- {f['model']}, {f['runtime']}, {f['state']}: {value:.4f} [{low:.4f}, "
                f"{high:.4f}]{'' if seen else ' **not found**'}"
            )
    head = [
        "# The meter against itself",
        "",
        f"`make bench-meter`: {len(nulls)} measurements (`measure=quick`) of an untrained artifact against "
        f"itself, on {cpu.facts()['cpu']}, {hardware.describe()['cores']} cores. The true speedup is 1. "
        "*busy*: another process computes on the other core meanwhile. CPU time decides (energy is estimated "
        "from it here); wall time beside it.",
        "",
        f"**The 95 % interval held 1 in {held_in_all} of {len(nulls)}**"
        + (f" (at least {LEAST:.0%} asked)." if nulls else "."),
        "",
        "| machine | model | runtime | held, CPU time | held, wall | speedups, CPU time | half-width, median "
        "(range), % | valid |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
        f"With {PLANTED:.0%} more work planted into the artifact, the true speedup is "
        f"{1 / (1 + PLANTED):.4f}:",
        "",
        *planted,
        "",
    ]
    return "\n".join(head), bool(ok)


if __name__ == "__main__":
    sys.exit(main())
