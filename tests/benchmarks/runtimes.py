"""Every runtime and mode against dense fp32 eager PyTorch, and against what a user would pick instead. ``make bench-runtimes``.

One process, one thread, CPU time. All artifacts are screened at batch 1 and 32; the fastest that loses at most one accuracy point is then measured in
alternating rounds against the references. Writes docs/runtimes.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import compose
from tsexp import config as configs
from tsexp import data, pruning, qat, runtimes, training
from tsexp.cache import Cache
from tsexp.config import Config, ConfigError, RuntimeConfig
from tsexp.data import Dataset
from tsexp.energy import hardware, windows
from tsexp.energy.record import score
from tsexp.quiet import quiet
from tsexp.runtimes import Predictor, onnxruntime

BATCHES = (1, 32)
ROUNDS = 15
MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
LOST_PT = 1.0


@dataclass
class Candidate:
    """An artifact, loaded, and what was seen of it."""

    name: str
    ratio: float
    predictor: Predictor
    macs: int
    bytes: int
    int8: str
    quality: dict[str, float]
    cpu_ms: dict[int, float]


def feed(dataset: Dataset, batch: int) -> list[np.ndarray]:
    """Batches of test series."""
    index = np.resize(np.random.default_rng(0).permutation(len(dataset.x_test)), 32 * batch)
    return [np.ascontiguousarray(dataset.x_test[i]) for i in np.split(index, 32)]


def scores(predictor: Predictor, x: np.ndarray) -> np.ndarray:
    """Of the whole split."""
    return np.concatenate([predictor(np.ascontiguousarray(x[i : i + 64])) for i in range(0, len(x), 64)])


def plain_onnx(model: torch.nn.Module, folder: Path) -> dict[str, Predictor]:
    """Dense fp32 and dense dynamic int8, exported and quantized with the tools' own defaults."""
    from onnxruntime.quantization import quantize_dynamic

    (folder / "fp32").mkdir()
    (folder / "int8").mkdir()
    onnxruntime.to_onnx(model, folder / "fp32" / onnxruntime.FILE, opset=18)
    with quiet():
        quantize_dynamic(folder / "fp32" / onnxruntime.FILE, folder / "int8" / onnxruntime.FILE)
    return {k: onnxruntime.OnnxPredictor(folder / k / onnxruntime.FILE, 1, disabled=()) for k in ("fp32", "int8")}


def paired(first: Predictor, second: Predictor, batches: list[np.ndarray]) -> str:
    """How many times less CPU time `second` needs: median of alternating rounds and its 95 % interval."""
    calls = [windows._calibrate(p, batches, 0.15) for p in (first, second)]
    ratios = []
    for i in range(ROUNDS):
        spent = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            windows._work((first, second)[k], batches, calls[k])
            spent[k] = (time.process_time() - start) / calls[k]
        ratios.append(spent[0] / spent[1])
    r = np.array(ratios)
    low, high = bootstrap((r,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{np.median(r):.2f} [{low:.2f}, {high:.2f}]"


def peaks() -> tuple[float, float]:
    """Most fp32 and int8 multiply-accumulates per second that one core does in a large product."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    n = 1024
    a, b = torch.randn(n, n), torch.randn(n, n)
    rng = np.random.default_rng(0)
    weight = helper.make_tensor("b", TensorProto.INT8, (n, n), rng.integers(-127, 127, (n, n), dtype=np.int8).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, (n, n))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (n, n))],
        [weight],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options)
    x = rng.integers(0, 255, (n, n), dtype=np.uint8)

    def best(work: object) -> float:
        times = []
        for _ in range(10):
            start = time.process_time()
            work()  # type: ignore[operator]
            times.append(time.process_time() - start)
        return n**3 / min(times)

    return best(lambda: torch.mm(a, b)), best(lambda: session.run(None, {"a": x}))


def candidates(cfg: Config, dataset: Dataset, ratios: list[float], cache: Cache) -> tuple[Candidate, list[Candidate], list[str]]:
    """Return the dense reference, every supported artifact, and what could not be had."""
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    reference: Candidate | None = None
    base = np.empty(0)
    found, notes = [], []
    for ratio in ratios:
        slim = pruning.prune(dense, replace(cfg.prune, ratio=ratio), cfg.train, cfg.seed, dataset, cache)
        for mode in MODES:
            quant = replace(cfg.quant, mode=mode)
            for name in runtimes.RUNTIMES:
                runtime = RuntimeConfig(name, "cpu")
                try:
                    runtimes.check(quant, runtime)
                except ConfigError:
                    continue
                label = f"{name} {mode} {ratio:g}"
                try:
                    tuned = qat.tune(slim, quant, cfg.train, cfg.seed, dataset, cache)
                    artifact = runtimes.deploy(tuned, quant, runtime, dataset, cache)
                    predictor = runtimes.load(artifact.folder)
                    answers = scores(predictor, dataset.x_test)
                    base = answers if reference is None else base
                    quality = score(answers, base, dataset.y_test)
                    cpu_ms = {b: windows.quick_cpu_ms(predictor, feed(dataset, b), 0.1, 3) for b in BATCHES}
                except Exception as error:
                    notes.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0]}")
                    print("  failed", notes[-1], flush=True)
                    continue
                m = artifact.manifest
                int8 = f"{m['matmuls'].get('int8', 0)}/{sum(m['matmuls'].values())}"
                one = Candidate(f"{name} {mode}", ratio, predictor, m["macs"], m["bytes"], int8, quality, cpu_ms)
                if reference is None:
                    reference = one
                found.append(one)
                drop, speed = quality["vs_dense/accuracy_drop_pt"], {b: reference.cpu_ms[b] / cpu_ms[b] for b in BATCHES}
                print(f"  {label:28} drop {drop:+.1f}  speedup {speed[1]:.2f} / {speed[32]:.2f}", flush=True)
    assert reference is not None
    return reference, found, notes


def main() -> None:
    """Benchmark the datasets and models asked for and write the document."""
    parse = argparse.ArgumentParser()
    parse.add_argument("--data", default="acsf1")
    parse.add_argument("--models", default="t3")
    parse.add_argument("--ratios", default="0,0.5,0.7")
    parse.add_argument("--out", default="docs/runtimes.md")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    fp32, int8 = peaks()
    best_rows, all_rows, notes = [], [], []
    for data_name in asked.data.split(","):
        for model_name in asked.models.split(","):
            cfg = compose(f"data={data_name}", f"model={model_name}")
            dataset = data.load(cfg.data, cfg.paths.data, cfg.seed)
            cache = Cache(Path(cfg.paths.cache))
            print(dataset.name, model_name, flush=True)
            reference, found, failed = candidates(cfg, dataset, [float(r) for r in asked.ratios.split(",")], cache)
            notes += [f"{dataset.name} {model_name} {f}" for f in failed]
            dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache).load()
            with tempfile.TemporaryDirectory() as scratch:
                plain = plain_onnx(dense, Path(scratch))
                kept = [c for c in found if c.quality["vs_dense/accuracy_drop_pt"] <= LOST_PT]
                for batch in BATCHES:
                    best = min(kept, key=lambda c, b=batch: c.cpu_ms[b])
                    batches = feed(dataset, batch)
                    q, rate = best.quality, best.macs / (best.cpu_ms[batch] / 1e3)
                    of_int8 = not best.int8.startswith("0/")
                    row = [dataset.name, model_name, str(batch), best.name, f"{best.ratio:g}", f"{100 * q['test/accuracy']:.1f}"]
                    drop, low, high = (q[f"vs_dense/accuracy_drop_{k}"] for k in ("pt", "lo", "hi"))
                    row.append(f"{drop:+.1f} [{low:+.1f}, {high:+.1f}]")
                    row += [paired(p, best.predictor, batches) for p in (reference.predictor, plain["fp32"], plain["int8"])]
                    row += [best.int8, f"{100 * rate / (int8 if of_int8 else fp32):.0f} % of {'int8' if of_int8 else 'fp32'}"]
                    best_rows.append(row)
                    print("  best", row, flush=True)
            for c in found:
                q = c.quality
                speeds = [f"{reference.cpu_ms[b] / c.cpu_ms[b]:.2f}" for b in BATCHES]
                quality = [f"{100 * q['test/accuracy']:.1f}", f"{q['vs_dense/accuracy_drop_pt']:+.1f}"]
                size = [c.int8, f"{c.macs:,}", f"{c.bytes:,}"]
                all_rows.append([dataset.name, model_name, c.name, f"{c.ratio:g}", *quality, *speeds, *size])
            write(Path(asked.out), best_rows, all_rows, notes, (fp32, int8))


def write(path: Path, best_rows: list[list[str]], all_rows: list[list[str]], notes: list[str], peak: tuple[float, float]) -> None:
    """Write the tables as Markdown."""
    about = hardware.describe("cpu")
    best_head = ["dataset", "model", "batch", "fastest artifact", "ratio", "accuracy %", "drop, points [95 %]"]
    best_head += ["× dense eager [95 %]", "× dense ONNX fp32, plain", "× dense ONNX dynamic int8, plain", "int8 products", "share of peak"]
    all_head = ["dataset", "model", "artifact", "ratio", "accuracy %", "drop", "× at batch 1", "× at batch 32", "int8 products", "MACs", "bytes"]
    text = [
        "# Runtimes and number formats",
        "",
        "Made by `make bench-runtimes`; do not edit. One process, one thread, CPU time; the references ran in alternating rounds with the artifact.",
        "The fastest artifact is the fastest that loses at most one accuracy point on the test split,",
        "chosen on that very split: its accuracy is optimistic.",
        "Speedups in the second table come from a screening (best of three short stretches), not from paired rounds.",
        "",
        f"{about['cpu']}, {platform.system()}. Peak of one core, seen in a large product: "
        f"{2 * peak[0] / 1e9:.0f} GFLOP/s fp32, {2 * peak[1] / 1e9:.0f} GOP/s int8.",
        "",
        *_table(best_head, best_rows),
        "",
        "## Every artifact",
        "",
        *_table(all_head, all_rows),
        "",
        *[f"- not had: {n}" for n in notes],
    ]
    scratch = path.with_suffix(".tmp")
    scratch.write_text(configs.redact("\n".join(text).rstrip() + "\n"))
    scratch.rename(path)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
