"""Made-up frozen results, the same ones every time: what a report is tested with, without a store."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsexp.config import NOT_ASKED, digest
from tsexp.marks import PROTOCOL_VERSION
from tsexp.report import comparisons
from tsexp.report.frozen import Frozen
from tsexp.report.schema import COLUMNS, FROM_WINDOWS, SCHEMA_VERSION, schema

DATASETS = ("ElectricDevices", "PLAID", "RefrigerationDevices")
MODELS = ("t1", "t2")
SEEDS = (0, 1)
RATIOS = (0.3, 0.5)
METHODS = ("l1", "l2")
SCOPES = ("global", "local")
CELLS = (
    ("none", "eager"),
    ("none", "onnxruntime"),
    ("dynamic", "onnxruntime"),
    ("static", "onnxruntime"),
    ("static", "openvino"),
    ("bf16", "openvino"),
)
OTHERS = {"fcn": CELLS[:2], "minirocket": CELLS[:1]}
"""Models of other families, which are not pruned; the last has no count of multiply-accumulates."""
CLASSES = ("fan", "fridge", "heater")
LAYERS, HEADS, UNITS, PAIRS, PROCESSES = 2, 4, 16, 6, 3
FASTER = {"eager": 1.0, "onnxruntime": 3.0, "openvino": 2.0}
SMALLER = {"none": 1.0, "dynamic": 1.3, "static": 1.35, "bf16": 1.2}


def frozen(
    datasets: tuple[str, ...] = DATASETS,
    models: tuple[str, ...] = MODELS,
    seeds: tuple[int, ...] = SEEDS,
    measured: bool = False,
    series: int = 200,
    about: dict[str, Any] | None = None,
    **columns: object,
) -> Frozen:
    """Make results of `datasets` × `models` × ways to compress × `seeds`.

    Of each dataset and model, one record has invalid energy (static in OpenVINO, the last seed), and one has
    a warning (l2, local, 0.5, the first seed). The control of pruned models is the dense model, tuned: it is
    right 4 points more often. Models of `OTHERS` have fewer ways, nothing to prune, and no product that runs
    in a graph; minirocket has no count of multiply-accumulates. Two of a dataset are compared head to head.

    Parameters
    ----------
    datasets, models, seeds
        What there is of each.
    measured
        Energy comes from a counter (zeus:rapl), not from an estimate.
    series
        In each test split.
    about
        Changes to what the frozen folder says of itself.
    columns
        Values that every row has in these columns of ``results``.
    """
    asked = datasets, models, seeds, measured, series
    results, windows, predictions, channels = (t.copy() for t in _tables(*asked, tuple(columns.items())))
    says = {
        "schema": SCHEMA_VERSION,
        "experiment": "tsexp",
        "experiment_id": "1",
        "where": "",
        "left_out": {},
    } | (about or {})
    beside = [
        _compared(results, predictions, dataset, models[0])
        for dataset in datasets
        if set(models) - set(OTHERS)
    ]
    return Frozen(results, windows, predictions, channels, says, comparisons.table(beside))


@cache
def _tables(
    datasets: tuple[str, ...],
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    measured: bool,
    series: int,
    columns: tuple[tuple[str, object], ...],
) -> tuple[pd.DataFrame, ...]:
    """Results, windows, predictions and channels; made once, for copies."""
    made = [_run(*what, measured, series) for what in _asked(datasets, models, seeds)]
    results = pd.DataFrame([m[0] | dict(columns) for m in made], columns=[c.name for c in COLUMNS])
    rest = (pd.concat([m[i] for m in made], ignore_index=True) for i in (1, 2, 3))
    return schema().validate(results), *rest


def _compared(results: pd.DataFrame, predictions: pd.DataFrame, dataset: str, model: str) -> dict[str, Any]:
    """The first pruned model in ONNX Runtime against minirocket (else the dense model), of the first seed."""
    here = results[(results["dataset"] == dataset) & results["valid"]]
    pruned = here[(here["model"] == model) & (here["ratio"] > 0) & (here["runtime"] == "onnxruntime")]
    other = here[(here["model"].isin(["minirocket", model])) & (here["ratio"] == 0)]
    a, b = pruned.iloc[0], other.sort_values("model").iloc[0]
    right = [
        (of["predicted"] == of["label"]).to_numpy()
        for of in (predictions[predictions["run_id"] == side["run_id"]] for side in (a, b))
    ]
    difference = 100 * float(right[0].mean() - right[1].mean())
    side = "estimated" if a["energy_source"].startswith("estimated") else "measured"
    saving = 100 * (1 - a[f"{side}_j"] / b[f"{side}_j"])
    out = dict.fromkeys(comparisons.KINDS, math.nan) | {
        "run_id": f"{a['run_id']}-{b['run_id']}",
        **{k: a[k] for k in comparisons.KINDS if k in results and k != "run_id"},
        "valid": True,
        "warnings": "",
        "mcnemar_p": 0.0123,
    }
    for name, value in (
        ("difference_pt", difference),
        (f"{side}_saving_pct", saving),
        ("speedup", 2.0),
        ("cpu_speedup", 2.1),
    ):
        out |= {name: value, f"{name}_lo": value - 1, f"{name}_hi": value + 1}
    for key, row, mine, others in (("a", a, *right), ("b", b, *reversed(right))):
        shared = (
            "run_id",
            "model",
            "runtime",
            "method",
            "scope",
            "mode",
            "ratio",
            "macs",
            "seed",
            "accuracy",
        )
        out |= {f"{k}_{key}": row[k] for k in shared}
        out |= {f"{side}_j_{key}": row[f"{side}_j"], f"call_ms_{key}": row["latency_p50_ms"]}
        out[f"only_right_{key}"] = int((mine & ~others).sum())
    return out


def only(whole: Frozen, keep: pd.Series) -> Frozen:
    """The runs for which `keep` holds, with all that belongs to them: only(f, f.results["seed"] == 0)."""
    results = whole.results[keep].reset_index(drop=True)
    rest = [
        t[t["run_id"].isin(results["run_id"])].reset_index(drop=True)
        for t in (whole.windows, whole.predictions, whole.channels)
    ]
    both = [whole.comparisons[f"run_id_{s}"].isin(results["run_id"]) for s in comparisons.SIDES]
    beside = whole.comparisons[both[0] & both[1]].reset_index(drop=True)
    return Frozen(results, *rest, about=whole.about, comparisons=beside)


def beside(whole: Frozen, mark: str = "-b", **values: Any) -> Frozen:
    """The same records again, of other numbers, with these values."""
    rest = {
        name: getattr(whole, name).assign(run_id=getattr(whole, name)["run_id"] + mark)
        for name in ("windows", "predictions", "channels")
    }
    again = whole.results.assign(**values)
    again[["run_id", "signature"]] += mark
    return replace(whole, results=again, comparisons=comparisons.none(), **rest)


def attached(whole: Frozen, source: str = "external:plug", mark: str = "-plug") -> Frozen:
    """What `tsexp.attach` makes of estimates: records beside them, with a counter's joules."""
    estimates = [c.name for c in COLUMNS if c.name.startswith("estimated_")]
    measured = {f"measured_{c.removeprefix('estimated_')}": whole.results[c] for c in estimates}
    return beside(whole, mark, energy_source=source, **measured, **dict.fromkeys(estimates, np.nan))


class Store:
    """A real MLflow store in a folder, to be filled with made-up runs."""

    def __init__(self, empty: Path, folder: Path, experiment: str = "tsexp") -> None:
        from mlflow import MlflowClient

        shutil.copy(empty, folder / "mlflow.db")
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment(experiment, (folder / "mlartifacts").as_uri())

    def run(
        self,
        name: str = "job",
        status: str = "FINISHED",
        without: tuple[str, ...] = (),
        labels: tuple[str, ...] = ("a", "a", "b", "b"),
        **changes: Any,
    ) -> str:
        """Log a run as tsexp does: prune.ratio=0.5 by l1.

        `changes` of params, metrics and tags (with __ for . or /); return its id.

        Names in `without` are of params, metrics, tags or artifacts that are not logged.
        """
        from mlflow.entities import Metric, Param

        changes = {k.replace("__", "."): v for k, v in changes.items()}
        params: dict[str, Any] = {
            **{
                "data.name": "ACSF1",
                "model.name": "t1",
                "model.heads": 2,
                "model.ffn": 3,
                "train.epochs": 2,
                "runtime.name": "eager",
            },
            **{
                "prune.method": "l1",
                "prune.scope": "local",
                "prune.ratio": 0.5,
                "prune.finetune_epochs": 1,
                "quant.mode": "none",
            },
            **{
                "quant.calibration": "minmax",
                "runtime.device": "cpu",
                "measure.batch_size": 1,
                "measure.threads": 1,
                "measure.repeats": 2,
            },
            "measure.processes": 1,
            **{
                "measure.window_s": 0.2,
                "seed": 0,
                "paths.cache": "cache",
                "tracking.uri": self.uri,
                "rerun": False,
            },
        }
        params |= {
            k: v
            for k, v in changes.items()
            if k in params or k.startswith(("train.", "model.", "data.", "measure."))
        }
        metrics = {
            **{
                f"test/{k}": 0.75
                for k in ("accuracy", "balanced_accuracy", "macro_f1", "control_accuracy", "dense_accuracy")
            },
            **{
                "val/accuracy": 0.7,
                "val/accuracy_drop_pt": 0.5,
                "val/series": 40,
                "energy/reference_per_inference_j": 0.02,
            },
            **{
                f"cost/{k}": 2.0
                for k in (
                    "load_ms",
                    "first_call_ms",
                    "train_s",
                    "compress_s",
                    "break_even_inferences",
                    "train_j",
                )
            },
            **{f"vs_dense/accuracy_drop_{k}": v for k, v in (("pt", 0.0), ("lo", -1.0), ("hi", 1.0))},
            **{
                f"vs_dense/{k}": 2.0
                for k in (
                    "speedup",
                    "speedup_lo",
                    "speedup_hi",
                    "cpu_speedup",
                    "cpu_speedup_lo",
                    "cpu_speedup_hi",
                )
            },
            **{f"vs_dense/energy_saving_{k}": 50.0 for k in ("pct", "lo", "hi")},
            **{f"latency/p{k}_ms": 1.5 for k in (50, 90, 99)},
            **{
                "throughput/series_per_s": 700.0,
                "memory/peak_mb": 512.0,
                "energy/per_inference_j": 0.01,
                "test/nll": 0.7,
                "dense/train_loss": 1.0,
            },
            **{f"size/{k}": 1000 for k in ("parameters", "macs", "bytes")},
            **{"vs_dense/size_ratio": 2.0, "prune/achieved_ratio": float(params["prune.ratio"])},
        }
        metrics |= {k.replace(".", "/"): v for k, v in changes.items() if k.replace(".", "/") in metrics}
        asked = {k: v for k, v in params.items() if k != "seed" and not k.startswith(NOT_ASKED)}
        tags = {
            "tsexp.signature": digest({k: str(v) for k, v in params.items()}),
            "tsexp.config": digest({k: str(v) for k, v in asked.items()}),
            "tsexp.protocol": str(PROTOCOL_VERSION),
            **{
                "tsexp.energy_source": "estimated:cpu_time",
                "tsexp.valid": "true",
                "tsexp.invalid_reasons": "",
                "tsexp.warnings": "",
            },
            **{
                "tsexp.data_checksum": "c" * 64,
                "tsexp.runtime": str(params["runtime.name"]),
                "tsexp.git_sha": "0" * 40,
                "tsexp.version": "0.1.0",
            },
            "tsexp.stage": "done",
            "tsexp.is_reference": str(
                (params["prune.ratio"], params["quant.mode"], params["runtime.name"]) == (0, "none", "eager")
            ).lower(),
        }
        tags |= {f"tsexp.{k}": v for k, v in changes.items() if f"tsexp.{k}" in tags}
        run = self.client.create_run(
            self.experiment, run_name=name, tags={k: v for k, v in tags.items() if k not in without}
        )
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(k, v, 0, 0) for k, v in metrics.items() if k not in without],
            params=[Param(k, str(v)) for k, v in params.items() if k not in without],
        )
        if tags["tsexp.valid"] == "false":
            windows = (
                "energy/",
                "latency/",
                "throughput/",
                "memory/",
                "vs_dense/speedup",
                "vs_dense/cpu",
                "vs_dense/energy",
                "cost/break",
            )
            metrics = {f"invalid/{k}" if k.startswith(windows) else k: v for k, v in metrics.items()}
        window = {
            "process": 0,
            "wall_s": 1.0,
            "cpu_s": 1.0,
            "energy_j": 10.0,
            "inferences": 100,
            "discarded": False,
        }
        lines = "".join(f"{label},{label},{labels[0]}\n" for label in labels)
        files = {
            "windows.json": json.dumps(
                {"windows": [{"subject": s, "pair": 0} | window for s in ("reference", "artifact")]}
            ),
            "hardware.json": json.dumps({"cpu": "A CPU", "cores": 2} | changes.get("hardware", {})),
            "manifest.json": json.dumps(changes.get("manifest", {"matmuls": {"float32": 27}})),
            "predictions.csv": f"label,predicted,dense_predicted\n{lines}",
            "kept.json": json.dumps([{"heads": [0], "ffn": [0, 2]}, {"heads": [], "ffn": []}]),
        }
        with tempfile.TemporaryDirectory() as scratch:
            for file, text in files.items():
                if file not in without:
                    (Path(scratch) / file).write_text(text)
            self.client.log_artifacts(run.info.run_id, scratch)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)


def _asked(
    datasets: tuple[str, ...], models: tuple[str, ...], seeds: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    for dataset in datasets:
        for model in models:
            ways = [("-", "-", 0.0, mode, runtime) for mode, runtime in OTHERS.get(model, CELLS)]
            ways += (
                []
                if model in OTHERS
                else [
                    (method, scope, ratio, "none", "eager")
                    for method in METHODS
                    for scope in SCOPES
                    for ratio in RATIOS
                ]
            )
            ways += (
                []
                if model in OTHERS
                else [
                    ("l1", "global", ratio, mode, "onnxruntime")
                    for ratio in RATIOS
                    for mode in ("none", "dynamic", "static")
                ]
            )
            for way in ways:
                for seed in seeds:
                    yield dataset, model, *way, seed, seed == seeds[0], seed == seeds[-1]


@cache
def _run(
    dataset: str,
    model: str,
    method: str,
    scope: str,
    ratio: float,
    mode: str,
    runtime: str,
    seed: int,
    first: bool,
    last: bool,
    measured: bool,
    series: int,
) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    asked = [dataset, model, method, scope, ratio, mode, runtime]
    run_id = digest([*asked, seed]) * 2
    rng = np.random.default_rng(int(digest([*asked, seed]), 16))
    speedup = FASTER[runtime] * SMALLER[mode] * (1 + 1.2 * ratio) * rng.uniform(0.97, 1.03)
    dense_j = {"t1": 0.02, "t2": 0.04}.get(model, 0.01)
    labels, dense = _dense(dataset, model, seed, series)
    control = _tuned(dataset, model, seed, series) if ratio else dense
    worse = 0.02 * ratio + (0.01 if mode in ("dynamic", "static") else 0)
    predicted = control.copy()
    changed = rng.random(series) < worse
    predicted[changed] = rng.integers(0, len(CLASSES), int(changed.sum()))
    right, control_right = predicted == labels, control == labels
    drop = 100 * (control_right.mean() - right.mean())
    spread = 196 * (control_right.astype(float) - right).std() / math.sqrt(series)
    saving = 100 * (1 - 1 / speedup)
    side = "measured" if measured else "estimated"
    result: dict[str, Any] = {c.name: None for c in COLUMNS} | {
        "run_id": run_id,
        "run_name": f"prune.ratio={ratio:g} quant.mode={mode} runtime={runtime} seed={seed}",
        "signature": digest([*asked, seed]),
        "config": digest(asked),
        "git_sha": "0" * 40,
        "version": "0.1.0",
        "ended": "2026-12-01 10:00",
        "cpu": "A CPU",
        "machine": "aaaaaaaaaaaaaaaa",
        "libraries": "torch 2.13.0",
        "dataset": dataset,
        "data_checksum": digest(dataset) * 4,
        "model": model,
        "setting": "ssssssssssssssss",
        "recipe": "rrrrrrrrrrrrrrrr",
        "tuning": "tttttttttttttttt" if ratio else "-",
        "method": method,
        "scope": scope,
        "ratio": ratio,
        "achieved_ratio": ratio,
        "finetune_epochs": 5 if ratio else 0,
        "mode": mode,
        "runtime": runtime,
        "runtime_asked": runtime,
        "device": "cpu",
        "batch_size": 1,
        "threads": 1,
        "repeats": PAIRS,
        "processes": PROCESSES,
        "window_s": 0.2,
        "protocol": PROTOCOL_VERSION,
        "seed": seed,
        "is_reference": (ratio, mode, runtime) == (0, "none", "eager"),
        "valid": True,
        "scored": True,
        "invalid_reasons": "",
        "warnings": "",
        "accuracy": right.mean(),
        "balanced_accuracy": right.mean(),
        "macro_f1": right.mean(),
        "nll": 0.7,
        "control_accuracy": control_right.mean(),
        "dense_accuracy": (dense == labels).mean(),
        "val_series": 40,
        "val_accuracy": 0.7,
        "val_drop_pt": 100 * worse + 0.1 * rng.standard_normal(),
        "accuracy_drop_pt": drop,
        "accuracy_drop_lo": drop - spread,
        "accuracy_drop_hi": drop + spread,
        "energy_source": "zeus:rapl" if measured else "estimated:cpu_time",
        f"{side}_j": dense_j / speedup,
        f"{side}_reference_j": dense_j * rng.uniform(0.99, 1.01),
        f"{side}_saving_pct": saving,
        f"{side}_saving_lo": saving - 0.5,
        f"{side}_saving_hi": saving + 0.5,
        "latency_p50_ms": 1000 * dense_j / 10 / speedup,
        "latency_p90_ms": 1100 * dense_j / 10 / speedup,
        "latency_p99_ms": 1300 * dense_j / 10 / speedup,
        "series_per_s": 10 * speedup / dense_j,
        **{
            f"{kind}speedup{end}": speedup * by
            for kind in ("", "cpu_")
            for end, by in (("", 1), ("_lo", 0.99), ("_hi", 1.01))
        },
        "parameters": round({"t1": 180041, "t2": 263625}.get(model, 178122) * (1 - ratio)),
        "macs": round({"t1": 4e6, "t2": 9e6}.get(model, 2e7) * (1 - ratio)),
        "bytes": round(720000 * (1 - ratio) / (3.2 if mode in ("dynamic", "static") else 1)),
        "size_ratio": (3.2 if mode in ("dynamic", "static") else 1) / (1 - ratio),
        "peak_mb": 700.0,
        **{
            "cost_load_ms": 20.0,
            "cost_first_call_ms": 5.0,
            "cost_train_s": 60.0,
            "cost_compress_s": 10.0 * (ratio > 0),
            "cost_train_j": 600.0,
            "cost_compress_j": 5.0 + 100.0 * (ratio > 0),
        },
        "matmuls": 27,
        "matmuls_int8": 25 if mode in ("dynamic", "static") else 0,
        "number_format": "int8" if mode in ("dynamic", "static") else "bf16" if mode == "bf16" else "fp32",
        "peak_gmacs": {"dynamic": 200.0, "static": 200.0, "bf16": 100.0}.get(mode, 50.0),
    }
    if model in OTHERS:
        result |= {"achieved_ratio": None, "matmuls": 0}
    if model == "minirocket":
        result |= {"macs": None, "parameters": 0}
    if (mode, runtime) == ("static", "openvino") and last:
        result |= {
            "valid": False,
            "invalid_reasons": "outputs on the probe batch differ before and after",
        } | dict.fromkeys(FROM_WINDOWS)
    if (method, scope, ratio) == ("l2", "local", 0.5) and first:
        result |= {"warnings": "interference: other processes used 0.7 cores"}
    names = np.array(CLASSES)
    predictions = pd.DataFrame(
        {
            "run_id": run_id,
            "series": np.arange(series),
            "label": names[labels],
            "predicted": names[predicted],
            "dense_predicted": names[control],
        }
    )
    return result, _windows(run_id, dense_j, speedup, rng), predictions, _channels(run_id, ratio, rng)


@cache
def _dense(dataset: str, model: str, seed: int, series: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the test split, and what the dense model says, which is right for about 70 %."""
    labels = np.random.default_rng(int(digest(dataset), 16)).integers(0, len(CLASSES), series)
    rng = np.random.default_rng(int(digest([dataset, model, seed]), 16))
    return labels, np.where(rng.random(series) < 0.7, labels, (labels + 1) % len(CLASSES))


@cache
def _tuned(dataset: str, model: str, seed: int, series: int) -> np.ndarray:
    labels, dense = _dense(dataset, model, seed, series)
    better = np.random.default_rng(int(digest([dataset, model, seed, "tuned"]), 16)).random(series) < 0.13
    return np.where(better, labels, dense)


def _windows(run_id: str, dense_j: float, speedup: float, rng: np.random.Generator) -> pd.DataFrame:
    lines: list[tuple[Any, ...]] = [("idle", -1, 0.5, 0.0001, 0.001, 0, False)]
    for subject, each in (("reference", dense_j), ("artifact", dense_j / speedup)):
        inferences = math.ceil(2.0 / each)
        for pair in range(PAIRS):
            joules = inferences * each * rng.uniform(0.98, 1.02)
            lines.append((subject, pair, joules / 10, joules / 10, joules, inferences, False))
    lines = [lines[0], *sorted(lines[1:], key=lambda w: w[1]), lines[0]]
    table = pd.DataFrame(
        lines, columns=["subject", "pair", "wall_s", "cpu_s", "energy_j", "inferences", "discarded"]
    )
    table.insert(0, "process", table["pair"].clip(0) * PROCESSES // PAIRS)
    table.loc[table.index[-1], "process"] = PROCESSES - 1
    table.insert(0, "order", range(len(table)))
    table.insert(0, "run_id", run_id)
    return table


def _channels(run_id: str, ratio: float, rng: np.random.Generator) -> pd.DataFrame:
    lines = []
    for layer in range(LAYERS if ratio else 0):
        for kind, count in (("head", HEADS), ("ffn", UNITS)):
            gone = set(rng.permutation(count)[: int(ratio * count)].tolist())
            lines += [(run_id, layer, kind, unit, unit not in gone) for unit in range(count)]
    kinds = {"run_id": str, "layer": int, "kind": str, "unit": int, "kept": bool}
    return pd.DataFrame(lines, columns=list(kinds)).astype(kinds)
