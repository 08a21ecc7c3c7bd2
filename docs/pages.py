"""Tables of README.md and of pages in docs, made of frozen results (`make published`).

Each stands in its page between two comments, of which the first says what makes it: cog (cogapp) calls that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tsexp.report import claims, frozen
from tsexp.report import company as deploying
from tsexp.report.console import between
from tsexp.report.statistics import MARGIN_PT, aggregate, over_seeds_and_series

COMPANY, STUDY = (Path(__file__).parent / part for part in ("company", "study"))
DATASETS = ("RefrigerationDevices", "ACSF1", "PLAID", "ElectricDevices")
WAY = ["model", "runtime", "scope", "ratio", "mode"]
ORT = "onnxruntime"
ACCURACY_AND_ENERGY = "test accuracy %, energy† in mJ a series"
VERDICT = {"kept": "**kept**", "undecided": "open", "lost": "lost", "reference": "–"}
"""Whether a loss of more than a point is ruled out, neither, or seen; of the dense model itself."""

T4 = {
    "T4, eager PyTorch": ("t4", "eager", "-", 0, "none"),
    "T4, ONNX Runtime": ("t4", ORT, "-", 0, "none"),
    "T4, half of heads and units (`local`)": ("t4", ORT, "local", 0.5, "none"),
    "T4, half of its layers (`depth`)": ("t4", ORT, "depth", 0.5, "none"),
    "T4, half of kernels and tokens (`features`)": ("t4", ORT, "features", 0.5, "none"),
    "T4, three quarters of kernels and tokens": ("t4", ORT, "features", 0.75, "none"),
    "T4, 85 % of kernels and tokens": ("t4", ORT, "features", 0.85, "none"),
    "**T4-50**": ("t4", ORT, "all", 0.5, "none"),
    "**T4-75**": ("t4", ORT, "all", 0.75, "none"),
    "T4, dynamic int8": ("t4", ORT, "-", 0, "dynamic"),
    "T4, OpenVINO": ("t4", "openvino", "-", 0, "none"),
    "T4, OpenVINO, bf16": ("t4", "openvino", "-", 0, "bf16"),
}
"""What a row is called → the way to deploy that it is about (`WAY`)."""
IN_OTHERS = {
    "T4, inductor": ("t4", "inductor", "-", 0, "none"),
    "T4, OpenVINO": T4["T4, OpenVINO"],
    "T4, OpenVINO, bf16": T4["T4, OpenVINO, bf16"],
}
"""Other runtimes than ONNX Runtime, not pruned."""
BF16 = {
    "**T4-50**, OpenVINO, bf16": ("t4", "openvino", "all", 0.5, "bf16"),
    "**T4-75**, OpenVINO, bf16": ("t4", "openvino", "all", 0.75, "bf16"),
    "**Ridge-75**, OpenVINO, bf16": ("ridge", "openvino", "all", 0.75, "bf16"),
}
"""Measured in batches alone: pruned T4 is faster in ONNX Runtime for single series (docs/log.md)."""
RIDGE = {
    "Ridge on T4's features, eager PyTorch": ("ridge", "eager", "-", 0, "none"),
    "Ridge on T4's features, ONNX Runtime": ("ridge", ORT, "-", 0, "none"),
    "Ridge on T4's features, OpenVINO, bf16": ("ridge", "openvino", "-", 0, "bf16"),
    "**Ridge-50**": ("ridge", ORT, "all", 0.5, "none"),
    "**Ridge-75**": ("ridge", ORT, "all", 0.75, "none"),
}
ESTIMATORS = {
    "QUANT": ("quant_forest", "eager", "-", 0, "none"),
    "MiniROCKET": ("minirocket", "eager", "-", 0, "none"),
    "MultiROCKET-Hydra": ("multirocket_hydra", "eager", "-", 0, "none"),
    "1-NN DTW": ("dtw_1nn", "eager", "-", 0, "none"),
}
TRANSFORMERS = {
    "T3, eager PyTorch": ("t3", "eager", "-", 0, "none"),
    "T3, ONNX Runtime": ("t3", ORT, "-", 0, "none"),
    "T3, half of heads and units": ("t3", ORT, "local", 0.5, "none"),
    "T3, half of its layers": ("t3", ORT, "depth", 0.5, "none"),
    "T3, OpenVINO": ("t3", "openvino", "-", 0, "none"),
    "T1, converged, ONNX Runtime": ("t1", ORT, "-", 0, "none"),
    "T1, two of eight layers left": ("t1", ORT, "depth", 0.75, "none"),
    "T1, one of eight layers left": ("t1", ORT, "depth", 0.875, "none"),
    "T2, converged, ONNX Runtime": ("t2", ORT, "-", 0, "none"),
    "T2, three of twelve layers left": ("t2", ORT, "depth", 0.75, "none"),
    "T2, two left, a quarter of their heads and units gone": ("t2", ORT, "depth", 0.875, "none"),
}
NETS = {"FCN": "fcn", "ResNet": "resnet", "LITETime": "litetime", "InceptionTime": "inceptiontime"}
OF_A_NET = {
    "eager PyTorch": ("eager", "-", 0, "none"),
    "ONNX Runtime": (ORT, "-", 0, "none"),
    "static int8": (ORT, "-", 0, "static"),
    "half of its channels": (ORT, "local", 0.5, "none"),
    "half of its channels, static int8": (ORT, "local", 0.5, "static"),
}
CONVOLUTIONAL = {
    f"{net}, {how}": (model, *way) for net, model in NETS.items() for how, way in OF_A_NET.items()
}


@functools.cache
def company() -> frozen.Frozen:
    """All records, and all comparisons."""
    return frozen.load(COMPANY / "frozen")


@functools.cache
def averaged(batch_size: int = 1) -> pd.DataFrame:
    """One row for each way and dataset, means over seeds."""
    return _by_way(_aggregated(), batch_size)


@functools.cache
def _aggregated() -> pd.DataFrame:
    return aggregate(company())


def _by_way(rows: pd.DataFrame, batch_size: int = 1) -> pd.DataFrame:
    rows = rows[rows["batch_size"] == batch_size].set_index([*WAY, "dataset"], drop=False).sort_index()
    assert rows.index.is_unique
    return rows


def points_lost(row: Any) -> str:
    """Points lost, with their interval: to a tenth, or to what tells its ends from 0 and from the margin."""
    for digits in (1, 2, 3):
        ends = [float(row[f"drop_pt{end}"]) for end in ("_lo", "_hi")]
        if not any(round(end, digits) in (0, MARGIN_PT) and round(end, 9) != 0 for end in ends):
            break
    return between(row, "drop_pt", f"{{:+z.{digits}f}}")


def table(head: str, rows: Iterable[tuple[str, Iterable[str]]], columns: Iterable[str] = DATASETS) -> None:
    """Print a Markdown table, with the blank lines that it needs."""
    columns = list(columns)
    print(f"\n| {head} | {' | '.join(columns)} |")
    print("| --- " * (1 + len(columns)) + "|")
    for label, cells in rows:
        print(f"| {label} | {' | '.join(cells)} |")
    print()


def by_dataset(
    head: str,
    ways: dict[str, tuple[Any, ...]],
    cell: Callable[[Any], str],
    batch_size: int = 1,
    first: Iterable[tuple[str, list[str]]] = (),
) -> None:
    """Print a table of ways by datasets; – where nothing was measured."""
    rows = averaged(batch_size)
    made = [
        (label, [cell(rows.loc[(*way, d)]) if (*way, d) in rows.index else "–" for d in DATASETS])
        for label, way in ways.items()
    ]
    table(head, [*first, *made])


def mj(row: Any) -> str:
    """Energy of a series, three digits."""
    energy_mj = 1000 * row["estimated_j"]
    return f"{energy_mj:,.0f}" if energy_mj >= 100 else f"{energy_mj:#.3g}"


def accuracy_and_energy(row: Any, usual: int = 5) -> str:
    """With n where it is not what is `usual`."""
    n = "" if row["n"] == usual else f" (n = {row['n']})"
    return f"{row['accuracy_pct']:.1f}, {mj(row)}{n}"


def in_short() -> None:
    """The first table of the README."""
    some = {k.strip("*"): T4[k] for k in ("T4, eager PyTorch", "T4, ONNX Runtime", "**T4-50**", "**T4-75**")}
    some |= {k.strip("*"): way for k, way in RIDGE.items() if way[1] == ORT}
    some |= {"QUANT, a forest on quantiles": ESTIMATORS["QUANT"], "MiniROCKET": ESTIMATORS["MiniROCKET"]}
    some |= {
        f"{net}, half of its channels, static int8": CONVOLUTIONAL[
            f"{net}, half of its channels, static int8"
        ]
        for net in ("FCN", "ResNet")
    }
    by_dataset(ACCURACY_AND_ENERGY, some, accuracy_and_energy, first=[("test series; classes", _sizes())])


def _sizes() -> list[str]:
    of = company().results.set_index("run_id")["dataset"]
    seen = company().predictions.drop_duplicates(["series", "label", "run_id"])
    seen = seen.assign(dataset=seen["run_id"].map(of))
    sizes = seen.groupby("dataset").agg({"series": "nunique", "label": "nunique"})
    return [f"{sizes.loc[d, 'series']:,}; {sizes.loc[d, 'label']}" for d in DATASETS]


def all_models() -> None:
    """Everything that was measured on single series."""
    ways = T4 | RIDGE | ESTIMATORS | TRANSFORMERS | CONVOLUTIONAL
    by_dataset(ACCURACY_AND_ENERGY, ways, accuracy_and_energy)


PRUNED = {k: way for k, way in T4.items() if way[3] or k in ("T4, ONNX Runtime", "T4, dynamic int8")}


def speed() -> None:
    """Times as fast as dense eager PyTorch."""
    by_dataset("times as fast", PRUNED, lambda row: between(row, "speedup", "{:.2f}"))


def speed_by_pruning() -> None:
    """Times as fast as T4 in ONNX Runtime."""
    ways = {k: way for k, way in PRUNED.items() if way[3]}
    by_dataset("times as fast as T4 in ONNX Runtime", ways, lambda row: in_runtime(row, averaged()))


@functools.cache
def _right() -> dict[str, tuple[int, Any]]:
    """Of each run its seed, and which test series it has right."""
    found = {}
    for part in (company(), t4h_records()):
        seeds = part.results.set_index("run_id")["seed"]
        answers = part.predictions.sort_values("series", kind="stable")
        right = answers["predicted"] == answers["label"]
        for run, of in right.groupby(answers["run_id"], sort=False):
            found[run] = seeds[run], of.to_numpy(float)
    return found


def _more(one: Any, other: Any) -> tuple[str, int]:
    """Points that one way has more than another, with an interval, and by how many trainings.

    Over test series and trainings, paired: of a seed both have the same train series.
    """
    a, b = (dict(_right()[run] for run in row["run_ids"].split()) for row in (one, other))
    both = sorted(a.keys() & b.keys())
    value, low, high = (
        100 * v for v in over_seeds_and_series(np.array([a[seed] - b[seed] for seed in both]))
    )
    return f"{value:+z.1f} [{low:+z.1f}, {high:+z.1f}]", len(both)


def without_transformer() -> None:
    """T4 beside ridge regression on the same features: points, and energy.

    With as much gone, for about as much energy, and T4 as trained beside the cheapest.
    """
    rows = averaged()

    def cell(t4: Any, ridge: Any) -> str:
        points, n = _more(t4, ridge)
        few = f" (n = {n})" if n < 5 else ""
        return f"{points}, {t4['estimated_j'] / ridge['estimated_j']:.2f}{few}"

    pairs = {
        "T4 against Ridge": ("T4, ONNX Runtime", "Ridge on T4's features, ONNX Runtime"),
        "T4-50 against Ridge-50": ("**T4-50**", "**Ridge-50**"),
        "T4-75 against Ridge-75": ("**T4-75**", "**Ridge-75**"),
        "T4-75 against Ridge-50": ("**T4-75**", "**Ridge-50**"),
        "T4 in OpenVINO, bf16, against Ridge-75": ("T4, OpenVINO, bf16", "**Ridge-75**"),
    }
    table(
        "points more [95 %], times its energy†",
        (
            (k, [cell(rows.loc[(*T4[t4], d)], rows.loc[(*RIDGE[ridge], d)]) for d in DATASETS])
            for k, (t4, ridge) in pairs.items()
        ),
    )


def lost() -> None:
    """Points lost on test series, and what five seeds say of a loss of more than one."""
    ways = {k: way for k, way in PRUNED.items() if way[3]}
    by_dataset(
        "points lost",
        ways,
        lambda row: f"{points_lost(row)} {VERDICT[row['degradation']]}",
    )


def lost_on_validation() -> None:
    """Points lost on the series that were withheld from the train split."""
    ways = {
        k: T4[k]
        for k in ("T4, half of kernels and tokens (`features`)", "T4, three quarters of kernels and tokens")
    }
    ways |= {k: T4[k] for k in ("**T4-50**", "**T4-75**")}
    rows = averaged()
    seen = [f"{d} ({rows.loc[(*T4['**T4-50**'], d), 'val_series']:.0f} series)" for d in DATASETS]
    table(
        "points lost on validation series",
        (
            (k, [between(rows.loc[(*way, d)], "val_drop_pt", "{:+z.1f}") for d in DATASETS])
            for k, way in ways.items()
        ),
        seen,
    )


def batches() -> None:
    """Energy in batches of 32."""
    ways = {k: ESTIMATORS[k] for k in ("QUANT", "MiniROCKET")} | {"T4, ONNX Runtime": T4["T4, ONNX Runtime"]}
    ways |= IN_OTHERS | {k: T4[k] for k in ("**T4-50**", "**T4-75**")} | BF16
    ways |= {k: way for k, way in RIDGE.items() if way[1] == ORT}
    by_dataset(
        "energy† in mJ a series, batches of 32",
        ways,
        lambda row: mj(row) + ("" if row["n"] == 3 else f" (n = {row['n']})"),
        32,
    )


def faster_in_batches() -> None:
    """Times as fast as dense eager PyTorch in batches of 32."""
    some = ("T4, three quarters of kernels and tokens", "**T4-50**", "**T4-75**")
    ways = {"T4, ONNX Runtime": T4["T4, ONNX Runtime"], **IN_OTHERS, **{k: T4[k] for k in some}, **BF16}
    by_dataset(
        "times as fast, batches of 32",
        ways,
        lambda row: f"{row['speedup']:.1f}" + ("" if row["n"] == 3 else f" (n = {row['n']})"),
        32,
    )


def beside_quant() -> None:
    """Energy as multiples of QUANT's, single series and batches."""
    ways = {k: T4[k] for k in ("T4, ONNX Runtime", "**T4-50**", "**T4-75**")}
    ways["MiniROCKET"] = ESTIMATORS["MiniROCKET"]
    ways["T4, OpenVINO, bf16"] = T4["T4, OpenVINO, bf16"]
    ways |= {k: way for k, way in RIDGE.items() if way[1] == ORT}
    made = []
    for batch_size, how in ((1, "single series"), (32, "batches of 32")):
        rows = averaged(batch_size)["estimated_j"]
        for label, way in (ways | (IN_OTHERS | BF16 if batch_size > 1 else {})).items():
            shares = ((rows.get((*way, d)), rows[(*ESTIMATORS["QUANT"], d)]) for d in DATASETS)
            made.append((f"{label}, {how}", [f"{j / of:.2f}" if j else "–" for j, of in shares]))
    table("energy†, times QUANT's", made)


WITHOUT_VNNI = {
    **{k: T4[k] for k in ("T4, eager PyTorch", "T4, ONNX Runtime", "T4, OpenVINO", "T4, dynamic int8")},
    **{k: T4[k] for k in ("**T4-50**", "**T4-75**")},
    **{k: RIDGE[k] for k in ("Ridge on T4's features, ONNX Runtime", "**Ridge-75**")},
    "MiniROCKET": ESTIMATORS["MiniROCKET"],
    **{k: TRANSFORMERS[k] for k in ("T3, ONNX Runtime", "T3, half of its layers")},
}


@functools.cache
def two_cpus() -> pd.DataFrame:
    """Seed 0, single series: a row for each way and dataset measured on both CPUs, ``_there`` and here."""
    there = frozen.load(COMPANY / "without_vnni").results
    here = company().results
    here = here[(here["seed"] == 0) & (here["batch_size"] == 1) & here["valid"]]
    told = ["estimated_j", "speedup", "accuracy", "run_id"]
    a, b = (of.set_index([*WAY, "dataset"])[told] for of in (here, there))
    rows = a.join(b, rsuffix="_there", how="inner").sort_index()
    assert rows.index.is_unique
    return rows


def on_another_cpu() -> None:
    """Energy as multiples of QUANT's on the CPU without VNNI, and on the one of all other records."""
    rows = two_cpus()
    energy = rows[["estimated_j_there", "estimated_j"]]
    made = []
    for label, way in WITHOUT_VNNI.items():
        cells = []
        for d in DATASETS[:3]:
            there, here = energy.loc[(*way, d)] / energy.loc[(*ESTIMATORS["QUANT"], d)]
            cells.append(f"{there:.2f} ({here:.2f})")
        made.append((label, cells))
    table("energy†, times QUANT's", made, DATASETS[:3])


T4H = {
    "T4H, ONNX Runtime": ("t4h", ORT, "-", 0, "none"),
    "**T4H-50**": ("t4h", ORT, "all", 0.5, "none"),
    "**T4H-75**": ("t4h", ORT, "all", 0.75, "none"),
}
BESIDE_T4H = {
    **{k: RIDGE[k] for k in ("Ridge on T4's features, ONNX Runtime", "**Ridge-75**")},
    "QUANT": ESTIMATORS["QUANT"],
}


@functools.cache
def t4h_records() -> frozen.Frozen:
    """T4H, and what was measured beside it."""
    return frozen.load(COMPANY / "t4h")


@functools.cache
def t4h(batch_size: int = 1) -> pd.DataFrame:
    """As `averaged`, of `t4h_records`."""
    return _by_way(aggregate(t4h_records()), batch_size)


def beside_t4h() -> None:
    """T4H and others on one CPU: accuracy, energy, and energy as multiples of QUANT's."""
    _beside_quant(t4h(), T4H | BESIDE_T4H)


def _beside_quant(rows: pd.DataFrame, ways: dict[str, tuple[Any, ...]], usual: int = 5) -> None:
    def cell(way: tuple[Any, ...], dataset: str) -> str:
        if (*way, dataset) not in rows.index:
            return "–"
        row, quant = (rows.loc[(*w, dataset)] for w in (way, ESTIMATORS["QUANT"]))
        times = row["estimated_j"] / quant["estimated_j"]
        return f"{accuracy_and_energy(row, usual)}, {times:.{2 if times < 10 else 0}f}"

    table(
        "test accuracy %, energy† in mJ a series, times QUANT's",
        ((k, [cell(way, d) for d in DATASETS]) for k, way in ways.items()),
    )


T4H_IN_BATCHES = T4H | {"T4H, OpenVINO": ("t4h", "openvino", "-", 0, "none")}


def times_quant_in_batches(way: tuple[Any, ...], dataset: str) -> list[float]:
    """Energy over QUANT's of the same hour, batches of 32, by training.

    Seed 0 was measured in an hour of its own, but for OpenVINO: that was the hour of the other two.
    """
    rows = t4h_records().results
    rows = rows[(rows["batch_size"] == 32) & (rows["dataset"] == dataset)].set_index([*WAY, "seed"])
    joules, quant = (rows["estimated_j"].sort_index().loc[key] for key in (way, ESTIMATORS["QUANT"]))
    return [joules[seed] / quant[seed] for seed in (0, 1, 2) if (seed, way[1]) != (0, "openvino")]


def t4h_in_batches() -> None:
    """`times_quant_in_batches`, of T4H and what is left of it when pruned."""

    def cell(way: tuple[Any, ...], dataset: str) -> str:
        numbers = [f"{times:.2f}" for times in times_quant_in_batches(way, dataset)]
        return ", ".join(["–"] * (3 - len(numbers)) + numbers)

    table(
        "energy†, times QUANT's; seeds 0, 1, 2",
        ((k, [cell(way, d) for d in DATASETS]) for k, way in T4H_IN_BATCHES.items()),
    )


def t4h_against_t4() -> None:
    """Points that T4H has more than T4, whose accuracy does not depend on the CPU."""
    pairs = {
        "T4H against T4": ("T4H, ONNX Runtime", "T4, ONNX Runtime"),
        "T4H-50 against T4-50": ("**T4H-50**", "**T4-50**"),
        "T4H-50 against T4-75": ("**T4H-50**", "**T4-75**"),
    }
    table(
        "points more [95 %]",
        (
            (k, [_more(t4h().loc[(*T4H[a], d)], averaged().loc[(*T4[b], d)])[0] for d in DATASETS])
            for k, (a, b) in pairs.items()
        ),
    )


def t4h_pruned() -> None:
    """How much faster than T4H in eager PyTorch, and what of its accuracy is lost."""
    _faster_and_lost(t4h(), T4H)


def _faster_and_lost(rows: pd.DataFrame, ways: dict[str, tuple[Any, ...]]) -> None:
    def cell(way: tuple[Any, ...], dataset: str) -> str:
        row = rows.loc[(*way, dataset)]
        faster = between(row, "speedup", "{:.1f}")
        if not way[3]:
            return faster
        return f"{faster}; {points_lost(row)} {VERDICT[row['degradation']]}"

    table(
        "times as fast as eager; points lost",
        ((k, [cell(way, d) for d in DATASETS]) for k, way in ways.items()),
    )


WITH_AMX = (
    T4H
    | {"T4H, OpenVINO, bf16": ("t4h", "openvino", "-", 0, "bf16")}
    | BESIDE_T4H
    | {"MiniROCKET": ESTIMATORS["MiniROCKET"]}
)


@functools.cache
def amx_records() -> frozen.Frozen:
    """T4H and others on an Intel CPU with AMX."""
    return frozen.load(COMPANY / "t4h_amx")


def t4h_with_amx() -> None:
    """As `beside_t4h`, on that CPU."""
    _beside_quant(_by_way(aggregate(amx_records())), WITH_AMX)


def t4h_pruned_with_amx() -> None:
    """As `t4h_pruned`, on that CPU."""
    ways = {k: WITH_AMX[k] for k in (*T4H, "T4H, OpenVINO, bf16")}
    _faster_and_lost(_by_way(aggregate(amx_records())), ways)


COMPANY_WITH_AMX = (
    T4H
    | BESIDE_T4H
    | {k: ESTIMATORS[k] for k in ("MiniROCKET", "MultiROCKET-Hydra")}
    | {k: TRANSFORMERS[k] for k in ("T3, ONNX Runtime", "T3, half of heads and units")}
    | {
        f"{net}, {how}": (NETS[net], *OF_A_NET[how])
        for net in ("FCN", "ResNet")
        for how in list(OF_A_NET)[1:]
    }
)


@functools.cache
def company_with_amx_records() -> frozen.Frozen:
    """One training of most models, in one hour on that CPU."""
    return frozen.load(COMPANY / "company_amx")


def company_with_amx() -> None:
    """As `_beside_quant`; all are of one training."""
    _beside_quant(_by_way(aggregate(company_with_amx_records())), COMPANY_WITH_AMX, usual=1)


def deployed() -> None:
    """What the report's rule deploys."""
    advice = dict(deploying.advice(company(), deploying.compared(_aggregated())))
    runtimes = {f"{ORT}, fp32": "", "openvino, bf16": " in OpenVINO, bf16"}
    names = {
        f"{model} in {runtime}, pruned {ratio} (taylor all)": f"{called}-{round(100 * ratio)}{where}"
        for model, called in {"t4": "T4", "ridge": "Ridge"}.items()
        for runtime, where in runtimes.items()
        for ratio in (0.5, 0.75)
    }
    names["quant_forest as trained"] = "QUANT"
    names |= {f"{m} in {ORT}, fp32, not pruned": m.capitalize() for m in ("t4", "ridge")}

    def said(dataset: str, batch_size: int) -> str:
        words = advice[f"{dataset} (batch_size {batch_size})"]
        what, accuracy, energy, unit = re.match(
            r"deploy (.*?): ([\d.]+) %, ([\d.]+) ([mµ])J† a series", words
        ).groups()
        return f"{names[what]}: {accuracy} %, {float(energy) / {'m': 1, 'µ': 1000}[unit]:g} mJ†"

    kinds = {1: "single series", 32: "batches of 32"}
    table("deploy", ((how, [said(d, batch) for d in DATASETS]) for batch, how in kinds.items()))


def convolutional() -> None:
    """How much faster runtimes, pruning and int8 make them, and where that leaves them beside T4-75."""
    rows = averaged()
    ways = {how: way for how, way in OF_A_NET.items() if way[0] == ORT}

    def spread(values: list[float], digits: int) -> str:
        low, high = (f"{v:,.{digits}f}" for v in (min(values), max(values)))
        return f"{low} to {high}" if low != high else low

    def cells(model: str, way: tuple[Any, ...]) -> list[str]:
        there = [d for d in DATASETS if (model, *way, d) in rows.index]
        of = [rows.loc[(model, *way, d)] for d in there]
        joules = [
            r["estimated_j"] / rows.loc[(*T4["**T4-75**"], d), "estimated_j"]
            for r, d in zip(of, there, strict=True)
        ]
        lost = [r["drop_pt"] for r in of]
        return [
            str(len(there)),
            spread([r["speedup"] for r in of], 1),
            spread(lost, 1) if way[1] != "-" or way[3] != "none" else "–",
            spread(joules, 1),
        ]

    table(
        "net",
        ((f"{net}, {how}", cells(model, way)) for net, model in NETS.items() for how, way in ways.items()),
        ("datasets", "times as fast as dense eager PyTorch", "points lost", "energy†, times T4-75's"),
    )


def head_to_head() -> None:
    """Every comparison of two artifacts in alternation."""
    _head_to_head("compressed T4 against", company().comparisons)


def t4h_head_to_head() -> None:
    """Every comparison of T4H with another, in alternation."""
    _head_to_head("T4H-50 against", t4h_records().comparisons)


WITH_VNNI = {
    "**T4H-50**, ONNX Runtime, single series": ("t4h", ORT, "all", 0.5, "none", 1),
    "T4H, OpenVINO, bf16, batches of 32": ("t4h", "openvino", "-", 0.0, "bf16", 32),
}


NOT_PRUNED = "T4H, not pruned, both in OpenVINO in bf16"
BESIDE_RIDGE_75 = {
    "**T4H-75**, both in ONNX Runtime": ("t4h", ORT, "all", 0.75, "none"),
    "**T4H-50**, both in ONNX Runtime": ("t4h", ORT, "all", 0.5, "none"),
    "**T4H-75**, both in OpenVINO in bf16": ("t4h", "openvino", "all", 0.75, "bf16"),
    "**T4H-50**, both in OpenVINO in bf16": ("t4h", "openvino", "all", 0.5, "bf16"),
    NOT_PRUNED: ("t4h", "openvino", "-", 0.0, "bf16"),
}


@functools.cache
def beside_ridge_75() -> pd.DataFrame:
    """Comparisons of T4H with Ridge-75; in ONNX Runtime with what both are rewritten into since."""
    before, since = (frozen.load(COMPANY / name).comparisons for name in ("family_26", "ridge_75_family_26"))
    assert set(since["runtime_a"]) == {ORT}
    return pd.concat([before[(before["model_b"] == "ridge") & (before["runtime_a"] != ORT)], since])


def with_vnni(way: tuple[Any, ...], dataset: str, other: str) -> pd.DataFrame:
    """Energy over another's in alternation on the CPU of family 26: a row per training, ``times``, its ends.

    Parameters
    ----------
    way
        Of T4H, and the size of a batch.
    dataset, other
        Names of a dataset and of the other model.
    """
    rows = beside_ridge_75() if other == "ridge" else frozen.load(COMPANY / "family_26").comparisons
    return _times(rows, way, dataset, other)


def _times(rows: pd.DataFrame, way: tuple[Any, ...], dataset: str, other: str) -> pd.DataFrame:
    rows = rows[rows["model_b"] == other]
    rows = rows.set_index([*(f"{column}_a" for column in WAY), "batch_size", "dataset"]).sort_index()
    rows = rows.loc[(*way, dataset)].sort_values("seed_a")
    assert rows["valid"].all()
    assert (rows["seed_a"] == rows["seed_b"]).all()
    ends = {"times": "", "times_lo": "_hi", "times_hi": "_lo"}
    return pd.DataFrame({k: 1 - rows[f"estimated_saving_pct{end}"] / 100 for k, end in ends.items()})


def with_amx(way: tuple[Any, ...], dataset: str, other: str) -> pd.DataFrame:
    """As `with_vnni`, on the Intel CPU."""
    return _times(amx_records().comparisons, way, dataset, other)


def _each(rows: pd.DataFrame) -> str:
    return "; ".join(between(row, "times", "{:.2f}") for _, row in rows.iterrows())


def t4h_against_quant_with_amx() -> None:
    """As `t4h_with_vnni`, on the Intel CPU."""
    table(
        "energy†, times QUANT's [95 %]; seeds 0, 1, 2",
        ((k, [_each(with_amx(way, d, "quant_forest")) for d in DATASETS]) for k, way in WITH_VNNI.items()),
    )


def t4h_with_vnni() -> None:
    """T4H beside QUANT, of what is compared there."""
    table(
        "energy†, times QUANT's [95 %]; seeds 0, 1, 2",
        ((k, [_each(with_vnni(way, d, "quant_forest")) for d in DATASETS]) for k, way in WITH_VNNI.items()),
    )


def t4h_beside_ridge_75() -> None:
    """T4H beside Ridge-75 on RefrigerationDevices, of what is compared there."""
    _beside_ridge_75(with_vnni, BESIDE_RIDGE_75)


def t4h_beside_ridge_75_with_amx() -> None:
    """As `t4h_beside_ridge_75`, on the Intel CPU."""
    measured = ("**T4H-75**, both in ONNX Runtime", "**T4H-50**, both in ONNX Runtime", NOT_PRUNED)
    _beside_ridge_75(with_amx, {k: BESIDE_RIDGE_75[k] for k in measured})


def _beside_ridge_75(times: Callable[..., pd.DataFrame], ways: dict[str, tuple[Any, ...]]) -> None:
    table(
        "RefrigerationDevices, energy†, times Ridge-75's [95 %]; seeds 0, 1, 2",
        (
            (label, [_each(times((*way, size), "RefrigerationDevices", "ridge")) for size in (1, 32)])
            for label, way in ways.items()
        ),
        ("single series", "batches of 32"),
    )


def _head_to_head(head: str, rows: pd.DataFrame) -> None:
    names = {"quant_forest": "QUANT", "minirocket": "MiniROCKET", "ridge": "Ridge"}
    pruned = rows["model_a"].str.upper() + "-" + (100 * rows["ratio_a"]).map("{:.0f}".format)
    rows = rows.assign(place=rows["dataset"].map((*DATASETS, "PigCVP").index), pruned=pruned)
    assert set(rows["scope_a"]) == {"all"}
    made = []
    for _, row in rows.sort_values(
        ["model_b", "place", "pruned", "seed_a"], ascending=[False, True, True, True]
    ).iterrows():
        p = row["mcnemar_p"]
        made.append(
            (
                f"{row['dataset']}, {row['pruned']} against {names[row['model_b']]}",
                [
                    str(row["seed_a"]),
                    f"{100 * row['accuracy_a']:.1f}, {100 * row['accuracy_b']:.1f}",
                    between(row, "difference_pt", "{:+z.1f}"),
                    "< 0.001" if p < 0.001 else f"{p:.2g}",
                    between(row, "estimated_saving_pct", "{:.1f}"),
                ],
            )
        )
    columns = ("seed", "accuracy %", "difference, points [95 %]", "McNemar p", "less energy†, % [95 %]")
    table(head, made, columns)


PIGCVP = {k: T4[k] for k in ("T4, ONNX Runtime", "**T4-50**", "**T4-75**")} | {
    "Ridge on T4's features, ONNX Runtime": RIDGE["Ridge on T4's features, ONNX Runtime"],
    **{k: ESTIMATORS[k] for k in ("QUANT", "MiniROCKET")},
}


@functools.cache
def pigcvp_records() -> frozen.Frozen:
    """T4 and others on a dataset that nobody had looked at."""
    return frozen.load(COMPANY / "pigcvp")


@functools.cache
def of_pigcvp() -> pd.DataFrame:
    """One row for each way, means over seeds."""
    return _by_way(aggregate(pigcvp_records())).droplevel("dataset")


def pigcvp() -> None:
    """Accuracy, energy and what pruning brings, one dataset."""
    rows = of_pigcvp()
    made = []
    for label, way in PIGCVP.items():
        row, quant = rows.loc[way], rows.loc[ESTIMATORS["QUANT"]]
        t4 = way[0] == "t4"
        made.append(
            (
                label,
                [
                    between(row, "accuracy_pct", "{:.1f}"),
                    mj(row),
                    f"{row['estimated_j'] / quant['estimated_j']:.2f}",
                    between(row, "speedup", "{:.1f}") if t4 else "–",
                    points_lost(row) if t4 and way[3] else "–",
                ],
            )
        )
    columns = ("accuracy %", "energy† in mJ a series", "times QUANT's", "times as fast as dense eager")
    table("PigCVP", made, (*columns, "points lost"))


def pigcvp_head_to_head() -> None:
    """T4-75 and others in alternation."""
    _head_to_head("T4-75 against", pigcvp_records().comparisons)


CONVERGED = {
    "t1": {
        "ElectricDevices, two of eight layers left (n = 1)": (ORT, 0.75, "none", "ElectricDevices"),
        "ACSF1, two left (n = 3)": (ORT, 0.75, "none", "ACSF1"),
        "ACSF1, two left, `prune.ratio=0.78` (n = 3)": (ORT, 0.78, "none", "ACSF1"),
        "ACSF1, two left, `prune.ratio=0.79` (n = 3)": (ORT, 0.79, "none", "ACSF1"),
        "ACSF1, two left, `prune.ratio=0.795` (n = 3)": (ORT, 0.795, "none", "ACSF1"),
        "ACSF1, two left, a fifth of their heads and units gone (n = 3)": (ORT, 0.8, "none", "ACSF1"),
    },
    "t1_family_26": {
        "two of eight layers left, ONNX Runtime": (ORT, 0.75, "none", "ACSF1"),
        "two left, `prune.ratio=0.79`, ONNX Runtime": (ORT, 0.79, "none", "ACSF1"),
        "two left, OpenVINO": ("openvino", 0.75, "none", "ACSF1"),
        "two left, OpenVINO in bf16": ("openvino", 0.75, "bf16", "ACSF1"),
        "two left, ONNX Runtime, static int8": (ORT, 0.75, "static", "ACSF1"),
    },
    "t2": {
        "RefrigerationDevices, three of twelve layers left (n = 2)": (
            ORT,
            0.75,
            "none",
            "RefrigerationDevices",
        ),
        "ElectricDevices, three left (n = 1)": (ORT, 0.75, "none", "ElectricDevices"),
    },
}
"""Of each folder of records what is told: the runtime, how much is gone, the mode, the dataset."""


def of_converged(part: str) -> list[pd.Series]:
    """What is told of T1 or T2 with `train=converged`, in the order of `CONVERGED`: means over seeds."""
    rows = _by_way(aggregate(frozen.load(COMPANY / part)))
    model = part.split("_")[0]
    return [
        rows.loc[(model, runtime, "depth", ratio, mode, dataset)]
        for runtime, ratio, mode, dataset in CONVERGED[part].values()
    ]


def converged(part: str, head: str) -> None:
    """What is left of it, and how fast that is."""
    made = []
    for label, row in zip(CONVERGED[part], of_converged(part), strict=True):
        lost = f"{points_lost(row)} {VERDICT[row['degradation']]}"
        fast = between(row, "speedup", "{:.1f}")
        made.append((label, [f"{row['accuracy_pct']:.1f}", f"{row['control_accuracy_pct']:.1f}", lost, fast]))
    columns = ("accuracy %", "its control's", "points lost", "times as fast as dense eager")
    table(head, made, columns)


def spread_over_seeds() -> None:
    """Accuracy as deployed, mean and standard deviation over five seeds."""
    results = company().results
    results = results[results["batch_size"] == 1]
    made = []
    for label in ("T4, ONNX Runtime", "**T4-50**", "**T4-75**"):
        rows = results[(results[WAY] == list(T4[label])).all(axis=1)]
        of = 100 * rows.groupby("dataset")["accuracy"].agg(["mean", "std"])
        made.append((label, [f"{of.loc[d, 'mean']:.1f} ± {of.loc[d, 'std']:.1f}" for d in DATASETS]))
    table("test accuracy %", made)


# ── the study: docs/results.md ──────────────────────────────────────────────────────────────────────────────

STUDIED = ("RefrigerationDevices", "PLAID", "ElectricDevices")
KINDS = ("t1", "t2", "t3", "t4")
GONE = {
    "half of heads and units": ("local", 0.5),
    "half of its layers": ("depth", 0.5),
    "three quarters of its layers": ("depth", 0.75),
    "half of its kernels and tokens": ("features", 0.5),
    "T4-50": ("all", 0.5),
    "T4-75": ("all", 0.75),
}


@functools.cache
def study() -> frozen.Frozen:
    """All records of the study."""
    return frozen.load(STUDY / "frozen")


@functools.cache
def studied() -> pd.DataFrame:
    """One row for each way and dataset, means over seeds."""
    return _by_way(aggregate(study()))


def in_runtime(row: Any, rows: pd.DataFrame) -> str:
    """Times as fast as dense fp32 in the same runtime, with its interval; `rows`: all, of all datasets."""
    change = claims.change_in_runtime("speed", row, rows[rows["dataset"] == row["dataset"]])
    assert change is not None
    return "{:.2f} [{:.2f}, {:.2f}]".format(*change)


def study_runtimes() -> None:
    """What a runtime alone brings."""
    ways = {f"{kind.upper()} in ONNX Runtime": (kind, ORT, "-", 0, "none") for kind in KINDS}
    ways |= {f"{kind.upper()} in OpenVINO": (kind, "openvino", "-", 0, "none") for kind in KINDS}
    rows = studied()
    table(
        "times as fast as dense eager PyTorch",
        (
            (k, [between(rows.loc[(*way, d)], "speedup", "{:.2f}") for d in STUDIED])
            for k, way in ways.items()
        ),
        STUDIED,
    )


def study_int8() -> None:
    """Int8 beside fp32, both in ONNX Runtime."""
    rows = studied()
    made = [
        (
            f"{kind.upper()}, {mode}",
            [in_runtime(rows.loc[(kind, ORT, "-", 0, mode, d)], rows) for d in STUDIED],
        )
        for mode in ("static", "dynamic")
        for kind in KINDS
    ]
    table("int8, times as fast as fp32", made, STUDIED)


def study_pruned() -> None:
    """Pruning, fine-tuned, in ONNX Runtime and fp32."""
    rows = studied()
    states = {"kept": " **kept**", "undecided": "", "lost": " lost"}
    made = []
    for kind in KINDS:
        for label, (scope, ratio) in GONE.items():
            way = (kind, ORT, scope, ratio, "none")
            if (*way, STUDIED[0]) in rows.index:
                of = [rows.loc[(*way, d)] for d in STUDIED]
                name = label if label.startswith("T4") else f"{kind.upper()}, {label}"
                cells = [
                    f"{in_runtime(r, rows)}; {between(r, 'drop_pt', '{:+z.1f}')}{states[r['degradation']]}"
                    for r in of
                ]
                made.append((name, cells))
    table("times as fast in its runtime; points lost", made, STUDIED)


def study_together() -> None:
    """T4-50 and T4-75 against dense eager PyTorch."""
    rows = studied()
    made = []
    for label, ratio in (("T4-50", 0.5), ("T4-75", 0.75)):
        of = [rows.loc[("t4", ORT, "all", ratio, "none", d)] for d in STUDIED]
        made.append((f"{label}, times as fast", [between(r, "speedup", "{:.2f}") for r in of]))
        less = [between(r, "estimated_saving_pct", "{:.1f}") for r in of]
        made.append((f"{label}, less energy†, %", less))
    table("against dense eager PyTorch", made, STUDIED)


def study_tuned() -> None:
    """What tuning alone brings: nothing removed."""
    rows = studied()
    made = []
    for kind in KINDS:
        of = [rows.loc[(kind, ORT, "local", 0.5, "none", d)] for d in STUDIED]
        cells = [f"{r['dense_accuracy_pct']:.1f} → {r['control_accuracy_pct']:.1f}" for r in of]
        made.append((kind.upper(), cells))
    table("accuracy % as trained → tuned", made, STUDIED)


def study_by_seed() -> None:
    """Points lost against the control, each training."""
    of = study().results
    of = of[(of["runtime"] == ORT) & (of["mode"] == "none") & (of["ratio"] > 0)]
    of = of.set_index(["model", "scope", "ratio", "dataset", "seed"])["accuracy_drop_pt"].sort_index() + 0.0
    ways = [("t1", "local", 0.3), ("t1", "local", 0.5), ("t1", "local", 0.7), ("t1", "depth", 0.75)]
    ways += [("t2", "local", 0.5), ("t2", "depth", 0.5), ("t2", "depth", 0.75)]
    ways += [("t3", "local", 0.5), ("t3", "depth", 0.75)]
    ways += [("t4", scope, ratio) for scope, ratio in GONE.values() if (scope, ratio) != ("depth", 0.75)]
    made = [
        (
            f"{model.upper()}, `{scope}` {ratio}",
            [", ".join(f"{v:+.1f}" for v in of.loc[model, scope, ratio, d]) for d in STUDIED],
        )
        for model, scope, ratio in ways
    ]
    table("points lost: seed 0, seed 1, seed 2", made, STUDIED)


def study_hours() -> None:
    """How far other seeds, and their hours, are from seed 0: T1 to T3."""
    of = study().results
    of = of[of["model"].isin(KINDS[:3])]
    parts = {seed: part.set_index("config") for seed, part in of.groupby("seed")}
    itself = parts[0][["ratio", "mode", "runtime"]].eq([0, "none", "eager"]).all(axis=1)

    def nine_of_ten(times: pd.Series) -> str:
        low, middle, high = times.dropna().quantile([0.05, 0.5, 0.95])
        return f"{low:.2f} to {high:.2f}; {middle:.2f}"

    made = []
    for seed in (1, 2):
        here, first = parts[seed], parts[0]
        control = (here["latency_p50_ms"] * here["speedup"]) / (first["latency_p50_ms"] * first["speedup"])
        over_eager = (here["speedup"] / first["speedup"])[~itself]
        within = _within_a_runtime(here) / _within_a_runtime(first)
        cells = [nine_of_ten(times) for times in (control, over_eager, within)]
        made.append((f"seed {seed}", cells))
    columns = ("time of the control", "speedup over eager PyTorch", "speedup within a runtime")
    table("as multiples of seed 0's, in nine of ten ways; in the median", made, columns)


def _within_a_runtime(results: pd.DataFrame) -> pd.Series:
    """Speedup over the dense model in fp32 in the same runtime, by config."""
    where = ["dataset", "model", "runtime"]
    plain = results[["ratio", "mode"]].eq([0, "none"]).all(axis=1)
    dense = results[plain].set_index(where)["speedup"]
    others = results[~plain & (results["runtime"] != "eager")]
    others = others.set_index([*where, others.index])["speedup"]
    return (others / dense).dropna().droplevel(where)


def study_company() -> None:
    """QUANT and MiniROCKET beside T4."""
    rows = studied()
    ways = {k: ESTIMATORS[k] for k in ("QUANT", "MiniROCKET", "MultiROCKET-Hydra")}
    ways |= {k.strip("*"): T4[k] for k in ("T4, ONNX Runtime", "**T4-50**", "**T4-75**")}
    ways["T3, three quarters of its layers"] = ("t3", ORT, "depth", 0.75, "none")
    made = []
    for label, way in ways.items():
        of = [rows.loc[(*way, d)] for d in STUDIED]
        quant = [rows.loc[(*ESTIMATORS["QUANT"], d)] for d in STUDIED]
        times = [r["estimated_j"] / q["estimated_j"] for r, q in zip(of, quant, strict=True)]
        cells = [f"{r['accuracy_pct']:.1f}, {mj(r)}, {t:.2f}" for r, t in zip(of, times, strict=True)]
        made.append((label, cells))
    table("accuracy %, energy† in mJ a series, times QUANT's", made, STUDIED)
