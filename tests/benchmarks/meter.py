"""Does the meter's interval hold?

``make bench-meter``: measurements of an artifact against itself, quiet and with the other core busy, through
the pipeline's meter and through `measure_energy`; and planted work. The true ratio is 1. Each is a whole
measurement (``measure=quick``), and its 95 % interval has to hold 1. Writes docs/meter.md. Nothing else may
run meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsexp import config as configs
from tsexp import data, energy, measure_energy, pipeline
from tsexp.cache import Cache
from tsexp.config.compose import composed
from tsexp.data import Dataset
from tsexp.energy import Record, hardware
from tsexp.runtimes import Artifact
from tsexp.system import cpu, processes

ROOT = Path(__file__).parents[2]
MODELS = {
    "t1": ("model=t1",),
    "t3": ("model=t3",),
    "t4, 75 % pruned": ("model=t4", "prune.ratio=0.75", "prune.scope=all", "prune.finetune_epochs=0"),
}
RUNTIMES = ("eager", "onnxruntime", "openvino")
HARDLY_TRAINED = ("measure=quick", "train.epochs=1", "train.min_steps=0", "train.max_steps=2")
"""A network's cost does not depend on its weights."""
LEAST = 57 / 60
"""Intervals that have to hold the truth."""
WIDEST_PCT, MOST_OFF_PCT = 1.0, 0.3
"""Median half-width of quiet measurements; mean of the estimates of a group, off 1."""
PLANTED, PLANTED_ROUNDS, LEAST_FOUND = 0.02, 10, 9
WARNED = 0.1
"""Of the quiet measurements, at most so many may bear a warning."""


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Let another process compute meanwhile."""
    code = "import torch; torch.set_num_threads(1); a = torch.randn(400, 400)\nwhile True: a @ a"
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        other.kill()
        other.wait()


STATES = {"quiet": contextlib.nullcontext, "busy": busy}


def main() -> int:
    """Measure, print and write what was found; 1 if a target was missed."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--rounds", type=int, default=3, help="measurements of each model, runtime and state")
    parse.add_argument("--states", default=",".join(STATES))
    parse.add_argument("--only", default="", help="model or runtime: only these, and no planted work")
    parse.add_argument("--out", type=Path, help="write every measurement here, as JSON, not docs/meter.md")
    asked = parse.parse_args()
    processes.start(energy.PRELOAD)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tsexp-meter-") as scratch:
        cache = Cache(Path(scratch))
        for state in asked.states.split(","):
            for model, runtime, measure in subjects(cache):
                if asked.only and asked.only not in (model, runtime):
                    continue
                planted = (model, runtime, state) == ("t3", "eager", "quiet") and not asked.only
                shares = [0.0] * asked.rounds + [PLANTED] * (PLANTED_ROUNDS * planted)
                rounds = asked.rounds if runtime != "measure_energy" or state == "quiet" else 0
                with STATES[state]():
                    for seed, share in enumerate(shares[: None if rounds else 0]):
                        found.append(
                            {
                                "state": state,
                                "model": model,
                                "runtime": runtime,
                                "seed": seed,
                                "planted": share,
                            }
                            | summary(measure(seed, share))
                        )
                        print(json.dumps({k: v for k, v in found[-1].items() if k != "raw"}), flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found))
    text, ok = page(found)
    print(text)
    if not asked.out:
        (ROOT / "docs" / "meter.md").write_text(text)
    return 0 if ok else 1


Measure = Callable[[int, float], Record]
"""Seed and planted work → a measurement of something against itself."""


def subjects(cache: Cache) -> Iterator[tuple[str, str, Measure]]:
    """Yield model, runtime and what measures it against itself."""
    for model, choice in MODELS.items():
        for runtime in RUNTIMES:
            cfg = configs.parse(composed(*HARDLY_TRAINED, *choice, f"runtime={runtime}"))
            dataset = data.load(cfg.data, cfg.paths.data, 0)
            artifact = pipeline.make(cfg, dataset, cache).artifacts[0]
            yield model, runtime, _of_artifact(artifact, dataset, cfg, cache)
            if runtime == "onnxruntime":
                file, x = next(artifact.folder.glob("*.onnx")), dataset.x_test
    yield "t4, 75 % pruned, an ONNX file", "measure_energy", _of_anything(file, x)
    from aeon.classification.convolution_based import MiniRocketClassifier

    rocket = MiniRocketClassifier(n_kernels=2000, random_state=0).fit(dataset.x_train, dataset.y_train)
    yield "MiniROCKET, an estimator", "measure_energy", _of_anything(rocket, x)


def _of_artifact(artifact: Artifact, dataset: Dataset, cfg: configs.Config, cache: Cache) -> Measure:
    scores = energy.score(artifact, dataset, cfg.measure, cache, progress=False)

    def measure(seed: int, planted: float) -> Record:
        return energy.measure(
            artifact, artifact, scores, scores, dataset, cfg.measure, seed, progress=False, planted=planted
        )

    return measure


def _of_anything(subject: Any, x: Any) -> Measure:
    return lambda seed, planted: measure_energy(subject, x, seed=seed, progress=False)


def summary(record: Record) -> dict[str, Any]:
    """What the page is made of."""
    m = {k.replace("null/", "vs_dense/"): v for k, v in record.metrics.items()}
    ends = ("", "_lo", "_hi")
    return {
        "cpu": [m.get(f"vs_dense/cpu_speedup{e}", float("nan")) for e in ends],
        "wall": [m.get(f"vs_dense/speedup{e}", float("nan")) for e in ends],
        "invalid": record.invalid_reasons,
        "warnings": record.warnings,
        "raw": {k: record.raw[k] for k in ("orders", "windows")},
    }


def page(found: list[dict[str, Any]]) -> tuple[str, bool]:
    """The page, and whether every target was reached."""
    nulls = [f for f in found if not f["planted"]]
    quiet = [f for f in nulls if f["state"] == "quiet"]
    lines, groups = [], {}
    for of in dict.fromkeys((f["state"], f["runtime"], f["model"]) for f in nulls):
        some = [f for f in nulls if (f["state"], f["runtime"], f["model"]) == of]
        groups.setdefault(of[:2], []).extend(some)
        cpu_held, wall_held = (sum(holds(f[clock]) for f in some) for clock in ("cpu", "wall"))
        ratios = ", ".join(f"{f['cpu'][0]:.4f}" for f in some)
        lines.append(
            f"| {' | '.join(of)} | {cpu_held} of {len(some)} | {wall_held} of {len(some)} | {ratios} | "
            f"{half_width_pct(some):.2f} | {sum(bool(f['warnings']) for f in some)} |"
        )
    off = {of: 100 * (float(np.mean([f["cpu"][0] for f in some])) - 1) for of, some in groups.items()}
    found_of = [f for f in found if f["planted"]]
    planted = sum(f["cpu"][2] < 1 for f in found_of)
    targets = [
        (
            f"the interval holds 1 in {sum(holds(f['cpu']) for f in nulls)} of {len(nulls)} "
            f"(at least {LEAST * len(nulls):.0f} asked), by wall time in "
            f"{sum(holds(f['wall']) for f in nulls)}",
            sum(holds(f["cpu"]) for f in nulls) >= LEAST * len(nulls),
        ),
        (
            f"half-width, quiet, median: {half_width_pct(quiet):.2f} % (at most {WIDEST_PCT:g})",
            half_width_pct(quiet) <= WIDEST_PCT,
        ),
        (
            f"the mean estimate of a group (machine, runtime) is off by {min(off.values()):+.2f} to "
            f"{max(off.values()):+.2f} % (at most {MOST_OFF_PCT:g})",
            max(map(abs, off.values())) <= MOST_OFF_PCT,
        ),
        (
            f"{sum(bool(f['warnings']) for f in quiet)} of {len(quiet)} quiet measurements bear a warning "
            f"(at most {WARNED:.0%})",
            sum(bool(f["warnings"]) for f in quiet) <= WARNED * len(quiet),
        ),
        ("all are valid", not any(f["invalid"] for f in found)),
    ]
    if found_of:
        targets.append(
            (
                f"{PLANTED:.0%} of planted work is found in {planted} of {len(found_of)} "
                f"(at least {LEAST_FOUND})",
                planted >= LEAST_FOUND,
            )
        )
    head = [
        "# The meter against itself",
        "",
        f"`make bench-meter`: {len(nulls)} measurements (`measure=quick`) of an artifact against itself, on "
        f"{cpu.facts()['cpu']}, {hardware.describe()['cores']} cores. The true ratio is 1. *busy*: another "
        "process computes meanwhile. Energy is estimated here, from CPU time.",
        "",
        *(f"- {line}{'' if reached else ' — **missed**'}" for line, reached in targets),
        "",
        "| machine | runtime | model | held, CPU time | held, wall time | ratios, CPU time | "
        "half-width, median, % | with a warning |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]
    return "\n".join(head), all(reached for _, reached in targets)


def holds(interval: list[float]) -> bool:
    """Whether it holds 1."""
    return interval[1] <= 1 <= interval[2]


def half_width_pct(some: list[dict[str, Any]]) -> float:
    """Median over measurements."""
    return float(np.median([50 * (f["cpu"][2] - f["cpu"][1]) for f in some]))


if __name__ == "__main__":
    sys.exit(main())
