"""Every runtime and mode against dense fp32 eager PyTorch, and against what a user would pick instead.

``make bench-runtimes``: by default both archives' datasets and all three models, about 45 minutes once what
has to be trained is in the cache (``--prepare``). The meter is that of every experiment, `energy.measure`:
windows of an artifact and of its control alternate in several processes. The control is the dense model in
eager fp32 with the same training in total; else what tuning brings could pay for what pruning loses.

All artifacts are measured shortly (`CANDIDATE`), on validation series, at batch 1 and 32. The fastest that
loses at most one point there is measured again, with `REPORTED` and on the test split, which nothing before
has seen: against its control, and against the dense model as ONNX's tools export and quantize it by default.
Writes docs/runtimes.md, and beside it docs/runtimes.json: the rows of every dataset and model that was
measured, of which the document is made, each with its machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import plain_onnx

from conftest import compose
from tsexp import compress, data, energy, pipeline, runtimes, training
from tsexp.cache import Cache
from tsexp.config import Config, MeasureConfig, RuntimeConfig, digest, trust
from tsexp.data import Dataset
from tsexp.energy import Record, hardware
from tsexp.marks import ESTIMATED, PROTOCOL_VERSION
from tsexp.runtimes import Artifact, Predictor, onnxruntime
from tsexp.runtimes.openvino import OpenvinoPredictor
from tsexp.system import processes
from tsexp.system.files import write_json

DATA = "refrigeration_devices,electric_devices"
MODELS = "t1,t2,t3"
PRUNED = {"t3": "0,0.5,0.7,0.9,0.5:depth,0.75:depth,0.9:depth"}
FEWER = "0,0.7,0.75:depth"
"""Of models that are not in `PRUNED`."""
BATCHES = (1, 32)
MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
LOST_PT = 1.0
CANDIDATE = {"processes": 1, "repeats": 4, "window_s": 0.05, "idle_s": 0.01, "latency_calls": 1}
"""What every artifact is measured with: seconds, enough to choose by; processes differ by less than 1 %."""
REPORTED = "quick"
"""The ``measure`` group of what is reported: 8 processes of 10 pairs."""


@dataclass(frozen=True)
class Candidate:
    """An artifact, its control, and by batch size what was seen of them on validation series."""

    name: str
    pruned: str
    artifact: Artifact
    control: Artifact
    seen: dict[int, Record]

    @property
    def format(self) -> str:
        """That its products are computed in."""
        kinds = self.artifact.manifest["matmuls"]
        return "int8" if "int8" in kinds else "bf16" if "bfloat16" in kinds else "fp32"

    @property
    def int8(self) -> str:
        """How many of its products are in int8."""
        kinds = self.artifact.manifest["matmuls"]
        return f"{kinds.get('int8', 0)}/{sum(kinds.values())}"

    def keeps(self, batch: int) -> bool:
        """It may be chosen: a valid record, and no more than a point lost."""
        return self.seen[batch].valid and self.lost_pt(batch) <= LOST_PT

    def lost_pt(self, batch: int) -> float:
        """Points of accuracy lost on validation series."""
        return self.seen[batch].metrics["vs_dense/accuracy_drop_pt"]

    def speedup(self, batch: int) -> float:
        """In CPU time, against the control; NaN of an invalid record."""
        record = self.seen[batch]
        return record.metrics["vs_dense/cpu_speedup"] if record.valid else float("nan")


@dataclass(frozen=True)
class Grid:
    """What to combine: ratio and scope of pruning, number format, runtime."""

    pruned: list[tuple[float, str]]
    modes: list[str]
    runtimes: list[str]


@dataclass(frozen=True)
class Bench:
    """One dataset and model, and where what was made of them is kept."""

    cfg: Config
    dataset: Dataset
    cache: Cache

    def measure(self, a: Artifact, b: Artifact, dataset: Dataset, batch: int, **changes: object) -> Record:
        """Measure one artifact against another on the test split of a dataset."""
        config: MeasureConfig = replace(self.cfg.measure, batch_size=batch, **changes)  # type: ignore[arg-type]
        dataset = replace(dataset, val=dataset.val[:0])
        scores = (energy.score(x, dataset, config, self.cache, False, ("test",)) for x in (a, b))
        return energy.measure(a, b, *scores, dataset, config, self.cfg.seed, progress=False)

    def on_validation(self) -> Dataset:
        """Return the dataset with validation series in the place of the test split."""
        d = self.dataset
        return replace(
            d,
            x_test=d.x_train[d.val],
            y_test=d.y_train[d.val],
            checksum=digest([d.checksum, d.val.tolist()]),  # other series, other scores
        )


def deployed(bench: Bench, grid: Grid) -> Iterator[tuple[str, Candidate | Exception]]:
    """Every supported artifact, or why it could not be had."""
    cfg, dataset, cache = bench.cfg, bench.dataset, bench.cache
    dense = training.train(cfg.model, cfg.train, cfg.seed, dataset, cache)
    for ratio, scope in grid.pruned:
        pruned = f"{ratio:g} {scope}" if ratio else "0"
        for mode in grid.modes:
            one = replace(
                cfg,
                prune=replace(cfg.prune, ratio=ratio, scope=scope),
                quant=replace(cfg.quant, mode=mode),
            )
            for runtime in runtimes.candidates(one.quant, RuntimeConfig(runtimes.AUTO, "cpu")):
                if runtime.name not in grid.runtimes:
                    continue
                name = f"{runtime.name} {mode}"
                try:
                    fitted = [dense, *compress.compress(dense, one, dataset, cache).values()][-1]
                    control = pipeline.plain(
                        compress.control(dense, one, dataset, cache), one, dataset, cache
                    )
                    artifact = runtimes.deploy(fitted, one.quant, runtime, dataset, cache)
                    yield f"{name} {pruned}", Candidate(name, pruned, artifact, control, {})
                except Exception as error:
                    yield f"{name} {pruned}", error


def candidates(bench: Bench, grid: Grid) -> tuple[list[Candidate], list[str]]:
    """Return every artifact, measured on validation series, and what could not be had."""
    view = bench.on_validation()
    found, notes = [], []
    for label, made in deployed(bench, grid):
        try:
            if isinstance(made, Exception):
                raise made
            for batch in BATCHES:
                made.seen[batch] = bench.measure(made.artifact, made.control, view, batch, **CANDIDATE)
        except Exception as error:
            notes.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0]}")
            print("  failed", notes[-1], flush=True)
            continue
        found.append(made)
        speeds = " / ".join(f"{made.speedup(b):.2f}" for b in BATCHES)
        print(f"  {label:34} drop {made.lost_pt(1):+.1f}  speedup {speeds}", flush=True)
    return found, notes


def cell(bench: Bench, grid: Grid, peak: dict[str, float]) -> dict[str, object]:
    """Measure one dataset and model: the rows of the document."""
    start = time.monotonic()
    head = [bench.dataset.name, bench.cfg.model.name]
    found, notes = candidates(bench, grid)
    best_rows, profiles = [], []
    dense = training.train(bench.cfg.model, bench.cfg.train, bench.cfg.seed, bench.dataset, bench.cache)
    plain = [plain_onnx.artifact(dense, mode, bench.cache) for mode in ("none", "dynamic")]
    for batch in BATCHES:
        kept = [c for c in found if c.keeps(batch)]
        if not kept:
            notes.append(
                f"batch {batch}: every artifact loses more than {LOST_PT:g} point on validation series"
            )
            continue
        best = max(kept, key=lambda c: c.speedup(batch))
        against = [
            bench.measure(best.artifact, other, bench.dataset, batch) for other in (best.control, *plain)
        ]
        best_rows.append([*head, str(batch), *row(best, batch, against, peak)])
        print("  best", best_rows[-1], flush=True)
        whom = ("its control", "plain ONNX fp32", "plain ONNX int8")
        notes += [
            f"batch {batch}, the fastest against {name}: {'; '.join(said)}"
            for name, record in zip(whom, against, strict=True)
            if (said := record.invalid_reasons + record.warnings)
        ]
        in_int8 = max((c for c in kept if c.format == "int8"), key=lambda c: c.speedup(batch), default=best)
        for c in {c.name + c.pruned: c for c in (best, in_int8)}.values():
            told = f"{c.name}, pruned {c.pruned}, {share(c, batch, c.seen[batch], peak)}"
            spent = profile(runtimes.load(c.artifact.folder), feed(bench.dataset, batch))
            profiles.append(f"- {', '.join(head)}, batch {batch}: {told}: {spent}")
    return {
        "of": " ".join(head),
        "made_by": [runtimes.STAGE_VERSION, PROTOCOL_VERSION],
        "machine": machine(peak),
        "minutes": (time.monotonic() - start) / 60,
        "estimated": all(c.seen[1].energy_source.startswith(ESTIMATED) for c in found),
        "best": best_rows,
        "all": [[*head, *brief(c)] for c in found],
        "profiles": profiles,
        "notes": [f"{' '.join(head)}, {n}" for n in notes],
    }


def row(best: Candidate, batch: int, against: list[Record], peak: dict[str, float]) -> list[str]:
    """The fastest of a cell, as measured on the test split against its control and the plain exports."""
    m = against[0].metrics
    return [
        best.name,
        best.pruned,
        f"{100 * m['test/accuracy']:.1f}",
        f"{best.lost_pt(batch):+.1f}",
        interval(against[0], "accuracy_drop_pt", "accuracy_drop", "{:+.1f}"),
        interval(against[0], "cpu_speedup", "cpu_speedup", "{:.2f}"),
        interval(against[0], "energy_saving_pct", "energy_saving", "{:.1f}"),
        *(interval(r, "cpu_speedup", "cpu_speedup", "{:.2f}") for r in against[1:]),
        best.int8,
        share(best, batch, against[0], peak),
    ]


def interval(record: Record, key: str, bounds: str, form: str) -> str:
    """A number of a record with its interval."""
    if not record.valid and "drop" not in key:
        return "invalid"
    value, low, high = (
        form.format(record.metrics[f"vs_dense/{k}"]) for k in (key, f"{bounds}_lo", f"{bounds}_hi")
    )
    return f"{value} [{low}, {high}]"


def brief(c: Candidate) -> list[str]:
    """One of all artifacts, as it was measured on validation series."""
    manifest = c.artifact.manifest
    return [
        c.name,
        c.pruned,
        f"{100 * c.seen[1].metrics['test/accuracy']:.1f}",
        f"{c.lost_pt(1):+.1f}",
        *(f"{c.speedup(b):.2f}" if c.seen[b].valid else "invalid" for b in BATCHES),
        c.int8,
        f"{manifest['macs']:,}",
        f"{manifest['bytes']:,}",
    ]


def share(c: Candidate, batch: int, record: Record, peak: dict[str, float]) -> str:
    """Of the peak of the number format that it computes in."""
    cpu_s = [w["cpu_s"] / w["inferences"] for w in record.raw["windows"] if w["subject"] == "artifact"]
    return (
        f"{100 * c.artifact.manifest['macs'] / float(np.median(cpu_s)) / peak[c.format]:.0f} % of {c.format}"
    )


def feed(dataset: Dataset, batch: int) -> list[np.ndarray]:
    """Batches of test series."""
    index = np.resize(np.random.default_rng(0).permutation(len(dataset.x_test)), 32 * batch)
    return [np.ascontiguousarray(dataset.x_test[i]) for i in np.split(index, 32)]


def profile(predictor: Predictor, batches: list[np.ndarray]) -> str:
    """Share of the time by operator, by the runtime's own profiler (ONNX Runtime's: about 1 µs per node)."""
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


def main() -> None:
    """Benchmark the datasets and models asked for, and write the document of all that were."""
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data", default=DATA)
    parse.add_argument("--models", default=MODELS)
    parse.add_argument(
        "--pruned",
        help=f"ratios, each with its scope unless that is local (default: {FEWER}; t3: {PRUNED['t3']})",
    )
    parse.add_argument("--modes", default=",".join(MODES))
    parse.add_argument("--runtimes", default=",".join(runtimes.RUNTIMES))
    parse.add_argument("--measure", default=REPORTED, help="the measure group of what is reported")
    parse.add_argument("--out", default="docs/runtimes.md")
    parse.add_argument(
        "--prepare", action="store_true", help="only train, compress and deploy what will be measured"
    )
    parse.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    # Measuring processes look `plain_onnx` up, which its artifacts name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    trust("plain_onnx:")
    processes.start(energy.PRELOAD)
    for data_name in asked.data.split(","):
        for model_name in asked.models.split(","):
            cfg = compose(
                f"data={data_name}", f"model={model_name}", f"measure={asked.measure}", *asked.overrides
            )
            dataset = data.load(cfg.data, cfg.paths.data, cfg.seed)
            bench = Bench(cfg, dataset, Cache(Path(cfg.paths.cache)))
            ways = (w.partition(":") for w in (asked.pruned or PRUNED.get(model_name, FEWER)).split(","))
            grid = Grid(
                [(float(ratio), scope or "local") for ratio, _, scope in ways],
                asked.modes.split(","),
                asked.runtimes.split(","),
            )
            print(dataset.name, model_name, flush=True)
            if asked.prepare:
                for label, made in deployed(bench, grid):
                    print(" ", label, made if isinstance(made, Exception) else "", flush=True)
                continue
            peak = {k: 1e9 * gmacs for k, gmacs in energy.peaks(cfg.measure, bench.cache).items()}
            store = Path(asked.out).with_suffix(".json")
            cells = json.loads(store.read_text()) if store.exists() else {}
            cells[f"{dataset.name} {model_name}"] = cell(bench, grid, peak)
            write_json(store, cells)
            write(Path(asked.out), [cells[k] for k in sorted(cells)], cfg.measure)


def machine(peak: dict[str, float]) -> str:
    """Processor, system, and what one core can do."""
    tops = {kind: f"{2 * value / 1e9:.0f}" for kind, value in peak.items()}
    return (
        f"{hardware.describe('cpu')['cpu']}, {platform.system()}. Peak of one core, seen in a large product: "
        f"{tops['fp32']} GFLOP/s fp32, {tops['bf16']} bf16, {tops['int8']} GOP/s int8."
    )


def machines(cells: list[dict]) -> list[str]:
    """What was measured where."""
    by: dict[str, list[str]] = {}
    for c in cells:
        by.setdefault(c["machine"], []).append(c["of"])
    return [(f"{', '.join(of)}: " if len(by) > 1 else "") + name for name, of in by.items()]


def write(path: Path, cells: list[dict], measure: MeasureConfig) -> None:
    """Write the tables as Markdown."""
    now = [runtimes.STAGE_VERSION, PROTOCOL_VERSION]
    stale = [c["of"] for c in cells if c["made_by"] != now]
    mark = "†" if any(c["estimated"] for c in cells) else ""
    absent = _absent(cells)
    best_head = [
        *("dataset", "model", "batch", "fastest artifact", "pruned", "accuracy %", "drop on validation"),
        *("drop, points [95 %]", "× control [95 %]", f"energy saved{mark}, % [95 %]"),
        *("× dense ONNX fp32, plain", "× dense ONNX dynamic int8, plain", "int8 products", "share of peak"),
    ]
    all_head = [
        *("dataset", "model", "artifact", "pruned", "accuracy on validation, %", "drop"),
        *("× at batch 1", "× at batch 32", "int8 products", "MACs", "bytes"),
    ]
    short = f"{CANDIDATE['repeats']} pairs in one process"
    whole = f"{measure.repeats} pairs of windows in {measure.processes} processes"
    text = [
        "# Runtimes and number formats",
        "",
        "Made by `make bench-runtimes`; do not edit. Speedups (×) are ratios of CPU time, one thread, "
        f"measured as everything here is ([measuring.md](measuring.md)): {whole} that alternate, "
        "with 95 % intervals.",
        "",
        f"The fastest artifact is the fastest that loses at most {LOST_PT:g} accuracy point on validation "
        "series against the control, the dense model with the same training in total, fp32 in eager PyTorch. "
        f"It is chosen among all by a short measurement on those series ({short}) and then measured anew, on "
        "the test split: against its control, and against the dense model as PyTorch exports it and ONNX "
        "Runtime quantizes it by default.",
        "",
        "Pruned by L1 and fine-tuned; the last table has the ratios and scopes.",
        "",
        *(line for name in machines(cells) for line in (name, "")),
        f"Measuring took {sum(c['minutes'] for c in cells):.0f} minutes.",
        *(["", f"{mark} CPU time, not energy: no counter answers here."] if mark else []),
        *(["", f"Not measured: {'; '.join(absent)}."] if absent else []),
        *(["", f"**To be measured again**, made by an older version: {', '.join(stale)}."] if stale else []),
        "",
        *_table(best_head, [row for c in cells for row in c["best"]]),
        "",
        "## Where the time of the fastest goes, and of the fastest in int8",
        "",
        *[line for c in cells for line in c["profiles"]],
        "",
        "## Every artifact",
        "",
        "By the short measurements on validation series: good enough to choose by, without intervals.",
        "",
        *_table(all_head, [row for c in cells for row in c["all"]]),
        "",
        *(["## Not had, or to be looked at twice", ""] if any(c["notes"] for c in cells) else []),
        *[f"- {n}" for c in cells for n in c["notes"]],
    ]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("\n".join(text).rstrip() + "\n")
    scratch.rename(path)


def _absent(cells: list[dict]) -> list[str]:
    """What the whole benchmark has and these cells have not: cells, and of a cell runtimes and modes."""
    there = {c["of"] for c in cells}
    datasets = [compose(f"data={name}").data.name for name in DATA.split(",")]
    whole = [f"{dataset} {model}" for dataset in datasets for model in MODELS.split(",")]
    absent = [of for of in whole if of not in there]
    for c in cells:
        for part, names in enumerate((runtimes.RUNTIMES, MODES)):
            lacks = [name for name in names if name not in {row[2].split()[part] for row in c["all"]}]
            absent += [f"{c['of']} in {', '.join(lacks)}"] if lacks else []
    return absent


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)]


if __name__ == "__main__":
    main()
