"""What the columns of the frozen results are: where each comes from in the store, its kind, its range."""

from __future__ import annotations

from typing import Any, NamedTuple

from tsexp.marks import ENDS

SCHEMA_VERSION = 2


class Column(NamedTuple):
    """One column of ``results``: where it comes from in the store, and what it is.

    ``source`` is ``param:…``, ``metric:…``, ``tag:…`` or ``hardware:…``; empty if it is worked out. ``kind``
    is str, int, float or bool.
    """

    name: str
    kind: str
    source: str
    about: str
    optional: bool = False


COLUMNS = (
    Column("run_id", "str", "", "of the run in the store"),
    Column("run_name", "str", "", "what varied in its sweep"),
    Column(
        "signature",
        "str",
        "tag:tsexp.signature",
        "content address of what was asked, of which data, on what hardware",
    ),
    Column(
        "config",
        "str",
        "tag:tsexp.config",
        "content address of what was asked, whatever the seed: rows that share it are repetitions",
    ),
    Column("git_sha", "str", "tag:tsexp.git_sha", "commit of the code that measured it"),
    Column("version", "str", "tag:tsexp.version", "of the package"),
    Column(
        "ended",
        "str",
        "",
        "when its windows ended, UTC: hours differ by more than intervals say (docs/results.md); empty: an "
        "older version froze it",
    ),
    Column("cpu", "str", "hardware:cpu", "name and design of the CPU"),
    Column("gpu", "str", "hardware:gpu", "name of the GPU, if it was measured there", True),
    Column("machine", "str", "", "content address of all that is known of the machine, Python and PyTorch"),
    Column(
        "libraries",
        "str",
        "",
        "that made and ran the artifact, with versions; empty: an older version froze it",
    ),
    Column("dataset", "str", "param:data.name", "the archive's name"),
    Column("data_checksum", "str", "tag:tsexp.data_checksum", "of the files"),
    Column("model", "str", "param:model.name", "its name: t1, fcn, minirocket, …"),
    Column(
        "setting",
        "str",
        "",
        "content address of the model and data groups, but where files are; empty: an older version froze it",
    ),
    Column(
        "recipe", "str", "", "content address of the train group; - for a model that is fitted without it"
    ),
    Column(
        "tuning",
        "str",
        "",
        "content address of the tuning that artifact and control share; - if there is none",
    ),
    Column("method", "str", "param:prune.method", "of importance; - at ratio 0"),
    Column("scope", "str", "param:prune.scope", "local, global, depth, features, all; - at ratio 0"),
    Column("ratio", "float", "param:prune.ratio", "asked for"),
    Column(
        "achieved_ratio",
        "float",
        "metric:prune/achieved_ratio",
        "removed over all that can be pruned, whatever the scope takes from; empty for a model without any",
        True,
    ),
    Column(
        "finetune_epochs",
        "int",
        "param:prune.finetune_epochs",
        "asked for after pruning (train.min_steps may ask for more); 0 at ratio 0",
    ),
    Column("mode", "str", "param:quant.mode", "number format"),
    Column("runtime", "str", "tag:tsexp.runtime", "that executed it"),
    Column("runtime_asked", "str", "param:runtime.name", "the same, or auto"),
    Column("device", "str", "param:runtime.device", "cpu, cuda"),
    Column("batch_size", "int", "param:measure.batch_size", "series per call"),
    Column("threads", "int", "param:measure.threads", ""),
    Column("repeats", "int", "param:measure.repeats", "pairs of windows, at most"),
    Column("processes", "int", "param:measure.processes", "fresh processes that share them"),
    Column("window_s", "float", "param:measure.window_s", "shortest window, s"),
    Column("protocol", "int", "tag:tsexp.protocol", "version of the measuring protocol (docs/measuring.md)"),
    Column("seed", "int", "param:seed", ""),
    Column("is_reference", "bool", "", "the artifact is the reference itself"),
    Column("valid", "bool", "", "its energy, times and memory may stand in a table; they are empty if not"),
    Column("scored", "bool", "", "its accuracy may, whatever became of its energy"),
    Column("invalid_reasons", "str", "tag:tsexp.invalid_reasons", "", True),
    Column("warnings", "str", "tag:tsexp.warnings", "why to look twice", True),
    Column("accuracy", "float", "metric:test/accuracy", "0 to 1, whole test split"),
    Column("balanced_accuracy", "float", "metric:test/balanced_accuracy", "0 to 1"),
    Column("macro_f1", "float", "metric:test/macro_f1", "0 to 1"),
    Column("nll", "float", "metric:test/nll", "nats per series"),
    Column(
        "control_accuracy",
        "float",
        "metric:test/control_accuracy",
        "of the control: the dense model tuned alike, nothing removed, fp32 eager",
    ),
    Column(
        "dense_accuracy",
        "float",
        "metric:test/dense_accuracy",
        "of the dense model before any tuning, fp32 eager",
    ),
    Column(
        "accuracy_drop_pt", "float", "metric:vs_dense/accuracy_drop_pt", "points lost against the control"
    ),
    Column("accuracy_drop_lo", "float", "metric:vs_dense/accuracy_drop_lo", "95 %"),
    Column("accuracy_drop_hi", "float", "metric:vs_dense/accuracy_drop_hi", "95 %"),
    Column("val_series", "int", "", "validation series, by which choices are made; 0: there are none"),
    Column("val_accuracy", "float", "metric:val/accuracy", "0 to 1, on them", True),
    Column(
        "val_drop_pt",
        "float",
        "metric:val/accuracy_drop_pt",
        "points lost against the control, on them",
        True,
    ),
    Column(
        "energy_source",
        "str",
        "tag:tsexp.energy_source",
        "zeus:nvml, zeus:rapl, …, estimated:cpu_time; of other watts than 10 a core with those",
    ),
    Column("measured_j", "float", "", "J per series, from a counter", True),
    Column("measured_reference_j", "float", "", "J per series of the reference, in the same windows", True),
    Column("measured_saving_pct", "float", "", "% against the reference", True),
    Column("measured_saving_lo", "float", "", "95 %", True),
    Column("measured_saving_hi", "float", "", "95 %", True),
    Column("estimated_j", "float", "", "J per series, CPU seconds × watts_per_core: not a measurement", True),
    Column("estimated_reference_j", "float", "", "J per series of the reference, in the same windows", True),
    Column("estimated_saving_pct", "float", "", "% against the reference, of CPU time", True),
    Column("estimated_saving_lo", "float", "", "95 %", True),
    Column("estimated_saving_hi", "float", "", "95 %", True),
    Column("latency_p50_ms", "float", "metric:latency/p50_ms", "per call", True),
    Column("latency_p90_ms", "float", "metric:latency/p90_ms", "per call", True),
    Column("latency_p99_ms", "float", "metric:latency/p99_ms", "per call", True),
    Column("series_per_s", "float", "metric:throughput/series_per_s", "1/s", True),
    Column("speedup", "float", "metric:vs_dense/speedup", "wall time, paired", True),
    Column("speedup_lo", "float", "metric:vs_dense/speedup_lo", "95 %", True),
    Column("speedup_hi", "float", "metric:vs_dense/speedup_hi", "95 %", True),
    Column("cpu_speedup", "float", "metric:vs_dense/cpu_speedup", "CPU time, paired", True),
    Column("cpu_speedup_lo", "float", "metric:vs_dense/cpu_speedup_lo", "95 %", True),
    Column("cpu_speedup_hi", "float", "metric:vs_dense/cpu_speedup_hi", "95 %", True),
    Column("parameters", "int", "metric:size/parameters", "counted on the artifact"),
    Column(
        "macs",
        "float",
        "metric:size/macs",
        "per series, counted on the artifact; empty for a model without such a count",
        True,
    ),
    Column("bytes", "int", "metric:size/bytes", "on disk"),
    Column("size_ratio", "float", "metric:vs_dense/size_ratio", "times smaller on disk"),
    Column("peak_mb", "float", "metric:memory/peak_mb", "of loading and calling it alone, MiB", True),
    *(
        Column(f"cost_{name}", "float", f"metric:cost/{name}", about, True)
        for name, about in (
            ("load_ms", "to load the artifact"),
            ("load_j", "to load the artifact, by energy_source"),
            ("first_call_ms", "the first call after that"),
            ("first_call_j", "the first call after that, by energy_source"),
            ("train_s", "to train the dense model"),
            ("train_j", "to train the dense model, by energy_source"),
            ("compress_s", "to prune, tune and convert it"),
            ("compress_j", "to prune, tune and convert it, by energy_source"),
            ("break_even_inferences", "after which compressing has paid for itself; empty if it never does"),
        )
    ),
    Column("matmuls", "int", "", "products in the graph that runs; 0 where there is no such graph"),
    Column("matmuls_int8", "int", "", "of them in int8"),
    Column("number_format", "str", "", "int8 if any product of the graph is, else bf16 if any is, else fp32"),
    Column(
        "peak_gmacs",
        "float",
        "",
        "10⁹ multiply-accumulates per second and thread of one large product in that format, seen on this "
        "machine",
        True,
    ),
)

PARQUETS = ("results", "windows", "predictions", "channels")

COMPARISONS = "comparisons"
"""Not in a folder that an earlier version wrote, nor where there are none."""


def schema() -> Any:
    """Return the pandera schema of ``results``: exactly `COLUMNS`, of these kinds, with ranges."""
    import pandera.pandas as pa

    bounds = {
        "accuracy": pa.Check.in_range(0, 1),
        "balanced_accuracy": pa.Check.in_range(0, 1),
        "control_accuracy": pa.Check.in_range(0, 1),
        "dense_accuracy": pa.Check.in_range(0, 1),
        "val_accuracy": pa.Check.in_range(0, 1),
        "val_series": pa.Check.ge(0),
        "macro_f1": pa.Check.in_range(0, 1),
        "ratio": pa.Check.in_range(0, 1, include_max=False),
        "achieved_ratio": pa.Check.in_range(0, 1, include_max=False),
        "parameters": pa.Check.ge(0),
        "macs": pa.Check.gt(0),
        "bytes": pa.Check.gt(0),
    }
    columns = {
        c.name: pa.Column(c.kind, bounds.get(c.name), nullable=c.optional, coerce=True, description=c.about)
        for c in COLUMNS
    }
    apart = pa.Check(
        lambda t: ~(t["measured_j"].notna() & t["estimated_j"].notna()),
        error="measured and estimated energy in one row",
    )
    unmarked = pa.Check(
        lambda t: t["valid"] | t[list(FROM_WINDOWS)].isna().all(axis=1),
        error="numbers of the windows of an invalid record",
    )
    return pa.DataFrameSchema(columns, checks=[apart, unmarked], strict=True, unique=["signature"])


ENERGY = {
    "j": "energy/per_inference_j",
    "reference_j": "energy/reference_per_inference_j",
    "saving_pct": "vs_dense/energy_saving_pct",
    "saving_lo": "vs_dense/energy_saving_lo",
    "saving_hi": "vs_dense/energy_saving_hi",
}

FROM_WINDOWS = (
    *(f"{side}_{name}" for side in ("measured", "estimated") for name in ENERGY),
    *("latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "series_per_s", "peak_mb"),
    *("cost_load_ms", "cost_load_j", "cost_first_call_ms", "cost_first_call_j", "cost_break_even_inferences"),
    *(f"{kind}speedup{end}" for kind in ("", "cpu_") for end in ENDS),
)
"""Columns that an invalid record does not have."""
