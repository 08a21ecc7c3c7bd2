"""Every runtime and mode against dense fp32 eager PyTorch, and against what a user would pick instead.

``make bench-runtimes``.

One process, one thread, CPU time. All artifacts are screened at batch 1 and 32; the fastest that loses at
most one point on validation series is then measured in alternating rounds against the references. "One point"
is against the control, the dense model with the same training in total: else what tuning brings could pay for
what pruning loses. Test series are only reported. Writes docs/runtimes.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from scipy.stats import bootstrap

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import compose
from tsexp import data, pruning, qat, runtimes, training
from tsexp.cache import Cache, write_json
from tsexp.config import Config, RuntimeConfig
from tsexp.data import Dataset
from tsexp.energy import hardware, windows
from tsexp.energy.record import accuracy, drop
from tsexp.quiet import quiet
from tsexp.runtimes import Artifact, Predictor, onnxruntime
from tsexp.runtimes.openvino import OpenvinoPredictor

BATCHES = (1, 32)
ROUNDS = 15
MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
LOST_PT = 1.0


@dataclass
class Candidate:
    """An artifact, loaded, and what was seen of it, by batch size.

    Test accuracy, drop against the control with its interval, drop on validation.
    """

    name: str
    pruned: str
    predictor: Predictor
    macs: int
    bytes: int
    int8: str
    format: str
    accuracy: dict[int, float]
    against: dict[int, tuple[float, float, float]]
    val_lost_pt: dict[int, float]
    cpu_ms: dict[int, float]


@dataclass(frozen=True)
class Grid:
    """What to combine: ratio and scope of pruning, number format, runtime.

    Ratio 0 in eager fp32 comes first, as the reference.
    """

    pruned: list[tuple[float, str]]
    modes: list[str]
    runtimes: list[str]


def feed(dataset: Dataset, batch: int) -> list[np.ndarray]:
    """Batches of test series."""
    index = np.resize(np.random.default_rng(0).permutation(len(dataset.x_test)), 32 * batch)
    return [np.ascontiguousarray(dataset.x_test[i]) for i in np.split(index, 32)]


def scores(predictor: Predictor, x: np.ndarray, batch: int) -> np.ndarray:
    """Of all series, in batches as they are timed."""
    return np.concatenate(
        [predictor(np.ascontiguousarray(x[i : i + batch])) for i in range(0, len(x), batch)]
    )


def plain_onnx(model: torch.nn.Module, folder: Path) -> dict[str, Predictor]:
    """Dense fp32 and dense dynamic int8, exported and quantized with the tools' own defaults."""
    from onnxruntime.quantization import quantize_dynamic

    (folder / "fp32").mkdir()
    (folder / "int8").mkdir()
    onnxruntime.to_onnx(model, folder / "fp32" / onnxruntime.FILE, opset=18)
    with quiet():
        quantize_dynamic(folder / "fp32" / onnxruntime.FILE, folder / "int8" / onnxruntime.FILE)
    return {
        k: onnxruntime.OnnxPredictor(folder / k / onnxruntime.FILE, 1, disabled=()) for k in ("fp32", "int8")
    }


def paired(first: Predictor, second: Predictor, batches: list[np.ndarray]) -> str:
    """How many times less CPU time `second` needs: median of alternating rounds and its 95 % interval."""
    strides = [max(1, windows._work(p, batches, 0.15, 1, 0.0) // windows.LOOKS) for p in (first, second)]
    ratios = []
    for i in range(ROUNDS):
        spent = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            calls = windows._work((first, second)[k], batches, 0.15, strides[k], 0.0)
            spent[k] = (time.process_time() - start) / calls
        ratios.append(spent[0] / spent[1])
    r = np.array(ratios)
    low, high = bootstrap(
        (r,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return f"{np.median(r):.2f} [{low:.2f}, {high:.2f}]"


def profile(predictor: Predictor, batches: list[np.ndarray]) -> str:
    """Share of the time by operator, by the runtime's own profiler (ONNX Runtime's costs each node about 1 µs)."""
    if isinstance(predictor, onnxruntime.OnnxPredictor):
        spent = onnx_profile(predictor, batches)
    elif isinstance(predictor, OpenvinoPredictor):
        spent = openvino_profile(predictor, batches)
    else:
        return "no profiler"
    whole = sum(spent.values())
    return ", ".join(f"{op} {100 * t / whole:.0f} %" for op, t in spent.most_common(8))


def openvino_profile(predictor: OpenvinoPredictor, batches: list[np.ndarray]) -> Counter[str]:
    """Microseconds by operator."""
    import openvino as ov

    request = (
        ov.Core()
        .compile_model(predictor.file, "CPU", predictor.settings | {"PERF_COUNT": True})
        .create_infer_request()
    )
    spent: Counter[str] = Counter()
    for i, batch in enumerate(batches):
        request.infer({0: batch}, share_inputs=True)
        for node in request.profiling_info if i else []:  # kernels are chosen in the first
            spent[node.node_type] += int(node.real_time.total_seconds() * 1e6)
    return spent


def onnx_profile(predictor: onnxruntime.OnnxPredictor, batches: list[np.ndarray]) -> Counter[str]:
    """Microseconds by operator."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling, options.profile_file_prefix = True, f"{scratch}/profile"
        session = ort.InferenceSession(
            predictor.file,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=predictor.disabled,
        )
        for batch in batches:
            session.run(None, {"series": batch})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return spent


def deployed(
    cfg: Config, dataset: Dataset, grid: Grid, cache: Cache
) -> Iterator[tuple[str, tuple[str, str, Artifact] | Exception]]:
    """Every supported artifact, or why it could not be had; the dense reference first."""
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    for ratio, scope in grid.pruned:
        slim = pruning.prune(
            dense, replace(cfg.prune, ratio=ratio, scope=scope), cfg.train, cfg.seed, dataset, cache
        )
        pruned = f"{ratio:g} {scope}" if ratio else "0"
        for mode in grid.modes:
            quant = replace(cfg.quant, mode=mode)
            for runtime in runtimes.candidates(quant, RuntimeConfig(runtimes.AUTO, "cpu")):
                if runtime.name not in grid.runtimes:
                    continue
                label = f"{runtime.name} {mode} {pruned}"
                try:
                    tuned = qat.tune(slim, quant, cfg.train, cfg.seed, dataset, cache)
                    yield (
                        label,
                        (
                            f"{runtime.name} {mode}",
                            pruned,
                            runtimes.deploy(tuned, quant, runtime, dataset, cache),
                        ),
                    )
                except Exception as error:
                    yield label, error


def candidates(
    cfg: Config, dataset: Dataset, grid: Grid, cache: Cache
) -> tuple[Candidate, list[Candidate], list[str]]:
    """Return the dense reference, every artifact with accuracy and speed, and what could not be had."""
    controls = control_scores(cfg, grid, dataset, cache)
    x_val, y_val = dataset.x_train[dataset.val], dataset.y_train[dataset.val]
    found: list[Candidate] = []
    notes = []
    for label, made in deployed(cfg, dataset, grid, cache):
        if isinstance(made, Exception):
            notes.append(f"{label}: {type(made).__name__}: {str(made).splitlines()[0]}")
            print("  failed", notes[-1], flush=True)
            continue
        name, pruned, artifact = made
        predictor = runtimes.load(artifact.folder)
        of_test, of_val = controls[pruned != "0", name.endswith(" qat")]
        right, against, val_lost_pt = {}, {}, {}
        for b in BATCHES:
            answers = scores(predictor, dataset.x_test, b)
            lost = drop(answers, of_test, dataset.y_test)
            right[b] = accuracy(answers, dataset.y_test)
            against[b] = tuple(lost[f"vs_dense/accuracy_drop_{k}"] for k in ("pt", "lo", "hi"))
            val_lost_pt[b] = 100 * (accuracy(of_val, y_val) - accuracy(scores(predictor, x_val, b), y_val))
        cpu_ms = {
            b: windows.quick_ms(predictor, feed(dataset, b), time.process_time, 0.1, 3) for b in BATCHES
        }
        m = artifact.manifest
        int8 = f"{m['matmuls'].get('int8', 0)}/{sum(m['matmuls'].values())}"
        format = "int8" if "int8" in m["matmuls"] else "bf16" if "bfloat16" in m["matmuls"] else "fp32"
        found.append(
            Candidate(
                name,
                pruned,
                predictor,
                m["macs"],
                m["bytes"],
                int8,
                format,
                right,
                against,
                val_lost_pt,
                cpu_ms,
            )
        )
        speed = {b: found[0].cpu_ms[b] / cpu_ms[b] for b in BATCHES}
        print(f"  {label:34} drop {against[1][0]:+.1f}  speedup {speed[1]:.2f} / {speed[32]:.2f}", flush=True)
    return found[0], found, notes


def main() -> None:
    """Benchmark the datasets and models asked for, and write the document of all that were."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--data", default="acsf1")
    parse.add_argument("--models", default="t3")
    parse.add_argument(
        "--pruned",
        default="0,0.7,0.75:depth",
        help="ratios, each with its scope unless that is local; 0 comes first",
    )
    parse.add_argument("--modes", default=",".join(MODES))
    parse.add_argument("--runtimes", default=",".join(runtimes.RUNTIMES))
    parse.add_argument("--out", default="docs/runtimes.md")
    parse.add_argument(
        "--prepare", action="store_true", help="only train, prune and deploy what will be measured"
    )
    asked = parse.parse_args()
    torch.set_num_threads(1)
    ways = [
        (float(ratio), scope or "local")
        for ratio, _, scope in (way.partition(":") for way in asked.pruned.split(","))
    ]
    grid = Grid(ways, asked.modes.split(","), asked.runtimes.split(","))
    peak = {kind: 1e9 * gmacs for kind, gmacs in hardware.peaks(1).items()}
    for data_name in asked.data.split(","):
        for model_name in asked.models.split(","):
            cfg = compose(f"data={data_name}", f"model={model_name}")
            dataset = data.load(cfg.data, cfg.paths.data, cfg.seed)
            cache = Cache(Path(cfg.paths.cache))
            print(dataset.name, model_name, flush=True)
            if asked.prepare:
                for label, _ in deployed(cfg, dataset, grid, cache):
                    print(" ", label, flush=True)
                control_scores(cfg, grid, dataset, cache)
                continue
            store = Path(cfg.paths.cache) / "bench-runtimes.json"
            cells = json.loads(store.read_text()) if store.exists() else {}
            before = clocks()
            made = cell(cfg, dataset, grid, cache, peak)
            made["foreign_cores"] = [foreign_cores(before, clocks())]
            cells[f"{dataset.name} {model_name}"] = made
            write_json(store, cells)
            write(Path(asked.out), [cells[k] for k in sorted(cells)], peak)


def share(c: Candidate, batch: int, peak: dict[str, float]) -> str:
    """Of the peak of the number format that it computes in."""
    return f"{100 * c.macs / (c.cpu_ms[batch] / 1e3) / peak[c.format]:.0f} % of {c.format}"


def control_scores(
    cfg: Config, grid: Grid, dataset: Dataset, cache: Cache
) -> dict[tuple[bool, bool], tuple[np.ndarray, np.ndarray]]:
    """Of the dense model in eager fp32, with the tuning of those that were (pruned, trained by QAT).

    On test and on validation series.
    """
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    found = {}
    for pruned in (False, True):
        tuned = pruning.tune_alike(
            dense, replace(cfg.prune, ratio=0.5 * pruned), cfg.train, cfg.seed, dataset, cache
        )
        for by_qat in (False, True) if "qat" in grid.modes else (False,):
            quant = replace(cfg.quant, mode="qat" if by_qat else "none")
            one = qat.tune(tuned, quant, cfg.train, cfg.seed, dataset, cache, fake=False)
            eager = runtimes.deploy(
                one, replace(cfg.quant, mode="none"), RuntimeConfig("eager", "cpu"), dataset, cache
            )
            predictor = runtimes.load(eager.folder)
            found[pruned, by_qat] = (
                scores(predictor, dataset.x_test, 64),
                scores(predictor, dataset.x_train[dataset.val], 64),
            )
    return found


def clocks() -> tuple[float, float, float]:
    """Wall seconds, CPU seconds of this machine, CPU seconds of this process and its children, so far."""
    return time.monotonic(), windows._busy_s(), sum(psutil.Process().cpu_times()[:4])


def foreign_cores(before: tuple[float, ...], after: tuple[float, ...]) -> float:
    """How many cores others kept busy in between."""
    wall, machine, own = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, (machine - own) / wall)


def cell(cfg: Config, dataset: Dataset, grid: Grid, cache: Cache, peak: dict[str, float]) -> dict[str, list]:
    """Measure one dataset and model: the rows of the document."""
    head = [dataset.name, cfg.model.name]
    reference, found, notes = candidates(cfg, dataset, grid, cache)
    rows: dict[str, list] = {
        "stage": [runtimes.STAGE_VERSION],
        "best": [],
        "all": [],
        "profiles": [],
        "notes": [f"{' '.join(head)} {n}" for n in notes],
    }
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache).load()
    with tempfile.TemporaryDirectory() as scratch:
        plain = plain_onnx(dense, Path(scratch))
        for batch in BATCHES:
            batches = feed(dataset, batch)
            kept = [c for c in found if c.val_lost_pt[batch] <= LOST_PT]
            best = min(kept, key=lambda c: c.cpu_ms[batch])
            row = [
                *head,
                str(batch),
                best.name,
                best.pruned,
                f"{100 * best.accuracy[batch]:.1f}",
                f"{best.val_lost_pt[batch]:+.1f}",
            ]
            row.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*best.against[batch]))
            row += [
                paired(p, best.predictor, batches)
                for p in (reference.predictor, plain["fp32"], plain["int8"])
            ]
            rows["best"].append([*row, best.int8, share(best, batch, peak)])
            print("  best", row, flush=True)
            in_int8 = min(
                (c for c in kept if c.format == "int8"), key=lambda c: c.cpu_ms[batch], default=best
            )
            for c in {id(c): c for c in (best, in_int8)}.values():
                told = f"{c.name}, pruned {c.pruned}, {share(c, batch, peak)}"
                rows["profiles"].append(
                    f"- {', '.join(head)}, batch {batch}: {told}: {profile(c.predictor, batches)}"
                )
    for c in found:
        quality = [f"{100 * c.accuracy[1]:.1f}", f"{c.val_lost_pt[1]:+.1f}", f"{c.against[1][0]:+.1f}"]
        speeds = [f"{reference.cpu_ms[b] / c.cpu_ms[b]:.2f}" for b in BATCHES]
        rows["all"].append(
            [*head, c.name, c.pruned, *quality, *speeds, c.int8, f"{c.macs:,}", f"{c.bytes:,}"]
        )
    return rows


def write(path: Path, cells: list[dict[str, list]], peak: dict[str, float]) -> None:
    """Write the tables as Markdown."""
    about = hardware.describe("cpu")
    loads = ", ".join(
        f"{' '.join(c['best'][0][:2])} {c['foreign_cores'][0]:.1f}" for c in cells if "foreign_cores" in c
    )
    stale = [" ".join(c["best"][0][:2]) for c in cells if c.get("stage") != [runtimes.STAGE_VERSION]]
    best_head = [
        "dataset",
        "model",
        "batch",
        "fastest artifact",
        "pruned",
        "accuracy %",
        "drop on validation",
        "drop, points [95 %]",
    ]
    best_head += [
        "× dense eager [95 %]",
        "× dense ONNX fp32, plain",
        "× dense ONNX dynamic int8, plain",
        "int8 products",
        "share of peak",
    ]
    all_head = [
        "dataset",
        "model",
        "artifact",
        "pruned",
        "accuracy %",
        "drop on validation",
        "drop",
        "× at batch 1",
        "× at batch 32",
    ]
    all_head += ["int8 products", "MACs", "bytes"]
    text = [
        "# Runtimes and number formats",
        "",
        "Made by `make bench-runtimes`; do not edit. One process, one thread, CPU time; the references ran "
        "in alternating rounds with the artifact.",
        "The fastest artifact is the fastest that loses at most one accuracy point on validation series "
        "against the control, the dense model with",
        "the same training in total (tuned as the pruned ones are, and as long as those of QAT). Accuracy "
        "and drop are those of the test split,",
        "in batches as they are timed (in the second table, of one series).",
        "Pruned by L1 and fine-tuned: T1 and T2 with `--pruned 0,0.7,0.75:depth`, T3 with `--pruned "
        "0,0.5,0.7,0.9,0.5:depth,0.75:depth,0.9:depth`.",
        "Speedups in the second table come from a screening (best of three short stretches), not from paired "
        "rounds.",
        "",
        f"{about['cpu']}, {platform.system()}. Peak of one core, seen in a large product: "
        f"{2 * peak['fp32'] / 1e9:.0f} GFLOP/s fp32, {2 * peak['bf16'] / 1e9:.0f} bf16, "
        f"{2 * peak['int8'] / 1e9:.0f} GOP/s int8.",
        f"Cores that others kept busy meanwhile (CPU time hardly feels them, caches and memory do): {loads}.",
        "",
        *(
            [f"**To be measured again**, for artifacts are exported otherwise since: {', '.join(stale)}.", ""]
            if stale
            else []
        ),
        *_table(best_head, [row for c in cells for row in c["best"]]),
        "",
        "## Where the time of the fastest goes, and of the fastest in int8",
        "",
        *[line for c in cells for line in c["profiles"]],
        "",
        "## Every artifact",
        "",
        *_table(all_head, [row for c in cells for row in c["all"]]),
        "",
        *[f"- not had: {n}" for c in cells for n in c["notes"]],
    ]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("\n".join(text).rstrip() + "\n")
    scratch.rename(path)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
