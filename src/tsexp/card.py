"""What is told of a model to those who run it: metadata in its file, and a model card (Markdown).

Both come from the record of its run alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsexp import __version__
from tsexp import config as configs
from tsexp.marks import ENDS, products
from tsexp.runtimes import alone, code_in, int8_largest

if TYPE_CHECKING:
    from tsexp.report.store import Row

NONE = "–"
FORMATS = {
    "none": "fp32",
    "dynamic": "int8 weights, activations quantized to int8 while it runs",
    "static": "int8 weights and activations, ranges calibrated on train series",
    "qat": "int8 weights and activations, fine-tuned with fake quantization",
    "bf16": "bf16 weights and activations",
}
SCALES = {
    "none": "none",
    "znorm": "z-normalization per series and channel",
    "minmax": "to 0 to 1 per series and channel",
    "standard": "with mean and standard deviation of the train split, per channel",
    "znorm_raw": "z-normalization per series and channel, and asinh of the raw series beside it",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a model.

    Attributes
    ----------
    row
        Its run.
    name
        Of the logged model.
    manifest, hardware, raw
        ``manifest.json``, ``hardware.json`` and ``windows.json`` of the run.
    takes
        What it takes, in words.
    series
        How many train (validation series included) and test series there are.
    epochs
        Part of the training → epochs that it took.
    finished
        When the run ended, as a date.
    """

    row: Row
    name: str
    manifest: Mapping[str, Any]
    hardware: Mapping[str, Any]
    raw: Mapping[str, Any]
    takes: str
    series: tuple[int, int]
    epochs: Mapping[str, int]
    finished: str

    def accuracy(self) -> tuple[float, float, float] | None:
        """Share of test series answered right, with Wilson's 95 % interval; None where scores are broken."""
        from scipy.stats import binomtest

        if not self.row.scored:
            return None
        share, n = self.row.metrics["test/accuracy"], self.series[1]
        low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
        return share, float(low), float(high)

    def energy_j(self) -> tuple[float, float, float] | None:
        """Joules per series, median over windows, with 95 % interval; None of a record that is invalid.

        The interval is of the mean over processes; it reaches to the median, which may lie beside it where
        processes are of two kinds.
        """
        from tsexp.energy.statistics import energy_interval_j

        if not self.row.valid:
            return None
        value = self.row.metrics["energy/per_inference_j"]
        low, high = energy_interval_j(dict(self.raw))
        return value, min(low, value), max(high, value)  # NaN stays


def metadata(facts: Facts) -> dict[str, str]:
    """Return what a model's own file tells; every value is text, lists are JSON, units are in the names."""
    row, classes = facts.row, facts.manifest["classes"]
    told = {
        "name": facts.name,
        "classes": json.dumps(classes, ensure_ascii=False),
        "input": f"series: {facts.takes}; float32, raw values in the unit of the dataset; scaling is inside",
        "output": f"scores: float32, shape (batch, {len(classes)}), without unit, one per class in the order "
        "of classes; the highest is the answer, softmax makes probabilities of them",
        "dataset": row.params["data.name"],
        "dataset_sha256": row.tags["tsexp.data_checksum"],
    }
    accuracy, energy = facts.accuracy(), facts.energy_j()
    if accuracy:
        told |= {f"accuracy{end}": f"{v:.6g}" for end, v in zip(ENDS, accuracy, strict=True)}
        told["accuracy_is"] = f"share of {facts.series[1]} test series answered right; 95 % Wilson interval"
    if energy:
        told |= {
            f"energy_per_inference{end}_j": f"{v:.6g}"
            for end, v in zip(ENDS, energy, strict=True)
            if math.isfinite(v)
        }
        told["energy_is"] = (
            f"joules per series in batches of {row.params['measure.batch_size']}, gross; median over "
            "windows, 95 % interval over processes"
        )
    return told | {
        "energy_source": row.tags["tsexp.energy_source"],
        "energy_is_estimate": "false" if row.measured else "true",
        "energy_covers": str(facts.raw["scope"]),
        "measured_on": str(facts.hardware["cpu"]),
        "valid": row.tags["tsexp.valid"],
        "invalid_reasons": row.tags.get("tsexp.invalid_reasons", ""),
        "warnings": row.tags.get("tsexp.warnings", ""),
        "tsexp_version": row.tags.get("tsexp.version", __version__),
        "run_id": row.run_id,
    }


def card(facts: Facts, files: Mapping[str, str], needs: str) -> str:
    """Return the model card.

    Parameters
    ----------
    facts
        What is known.
    files
        Name → what it is, of the folder that the card lies in.
    needs
        What running it takes.
    """
    parts = {
        "Use": f"`python run.py` answers the series in `example.npz`, and checks them; it needs {needs}.",
        "Data": _table(_data(facts)),
        "Training": _table(_training(facts)),
        "Compression": _table(_compression(facts)),
        "Accuracy": _accuracy(facts),
        "Energy and time": _energy(facts),
        "Limits and intended use": _limits(facts),
        "Files": _table([(f"`{name}`", what) for name, what in files.items()]),
    }
    doubts = _doubts(facts.row)
    head = [f"# {facts.name}", _what(facts), *([doubts] if doubts else [])]
    from tsexp.report.formats import without_html

    text = "\n\n".join([*head, *(f"## {title}\n\n{text}" for title, text in parts.items())]) + "\n"
    return without_html(text)


def _what(facts: Facts) -> str:
    row, m = facts.row, facts.manifest
    library = m["versions"].get(m["runtime"])
    with_version = (
        f"{m['runtime']} {library}" if library else f"{m['runtime']} (PyTorch {m['versions']['torch']})"
    )
    return "A classifier of time series.\n\n" + _table(
        [
            ("takes", f"{facts.takes}; raw values, float32"),
            (
                "answers",
                f"scores, float32 (batch, {len(m['classes'])}): the highest is the class; softmax → p",
            ),
            ("classes", ", ".join(f"`{name}`" for name in m["classes"])),
            ("model", f"{row.params['model.name']} ({row.params['model.family']} family)"),
            ("runs in", f"{with_version}, on {m['device']}"),
            ("made by", f"tsexp {row.tags.get('tsexp.version')}, commit {row.tags.get('tsexp.git_sha')}"),
            ("run", f"`{row.run_id}` ({row.name}), {facts.finished}"),
        ]
    )


def _doubts(row: Row) -> str:
    lines = []
    if not row.valid:
        reasons = row.tags.get("tsexp.invalid_reasons", "")
        lines.append(f"**The record is invalid** ({reasons}): neither energy nor time is told.")
    if row.tags.get("tsexp.warnings"):
        lines.append(f"⚠ {row.tags['tsexp.warnings']}")
    return "\n\n".join(lines)


def _data(facts: Facts) -> list[tuple[str, str]]:
    p, m = facts.row.params, facts.row.metrics
    train, test = facts.series
    held = int(m.get("val/series", 0))
    channels, length = facts.manifest["shape"]
    return [
        ("dataset", f"{p['data.name']}, its default split"),
        ("series", f"{train - held} fitted, {held} for validation, {test} for the test"),
        ("channels; steps, as the model sees them", f"{channels}; {length}"),
        ("scaling, inside the model", SCALES.get(p["data.scale"], p["data.scale"])),
        (
            "missing values",
            {"interpolate": "interpolated before the model"}.get(p["data.missing"], "refused"),
        ),
        ("SHA-256 of its files", f"`{facts.row.tags['tsexp.data_checksum']}`"),
    ]


def _training(facts: Facts) -> list[tuple[str, str]]:
    p, m = facts.row.params, facts.row.metrics
    rows = []
    if configs.family_module(p["model.family"]).Config.gradient:
        took = ", ".join(f"{part} {n}" for part, n in facts.epochs.items())
        kept = p["train.select"] if m.get("val/series") else "last"  # as `training.fit` keeps them
        rows = [
            ("optimizer", f"{p['train.optimizer']}, learning rate {p['train.lr']} ({p['train.schedule']})"),
            ("batches of", p["train.batch_size"]),
            ("epochs", took or "not recorded"),
            ("weights kept", f"{kept}, average with decay {p['train.ema']}"),
        ]
    rows.append(("seed", f"{p['seed']} (one)"))
    for what, name in (("the dense model", "train"), ("compressing it", "compress")):
        if f"cost/{name}_s" in m:
            rows.append(
                (f"{what} took", _both(m[f"cost/{name}_s"], m.get(f"cost/{name}_j"), _mark(facts.row)))
            )
    return rows


def _compression(facts: Facts) -> list[tuple[str, str]]:
    p, m, manifest = facts.row.params, facts.row.metrics, facts.manifest
    steps = [step for step in facts.row.tags.get("tsexp.steps", "").split(",") if step]
    rows = [("steps", ", ".join(steps) or "none")]
    if "prune" in steps:
        of_all = m.get("prune/achieved_ratio")
        removed = "" if of_all is None else f"; {100 * of_all:.0f} % of all that can be pruned removed"
        asked = f"{p['prune.method']}, {p['prune.scope']}, ratio {p['prune.ratio']}"
        rows.append(("pruning", f"{asked}{removed}"))
    mode = manifest["mode"]
    rows.append(
        ("number format", FORMATS.get(mode, f"int{p['quant.weight_bits']} weights, products in fp32"))
    )
    ran = products(manifest, int(p["measure.batch_size"]))
    ratio = m.get("vs_dense/size_ratio")
    noise = ", ".join(f"{db:g} dB in batches of {n}" for n, db in manifest["sqnr_db"].items())
    return [
        *rows,
        (
            "products of the graph that runs",
            ", ".join(f"{n} in {dtype}" for dtype, n in ran.items()) or "not listed",
        ),
        ("scores against the model in fp32", noise),
        ("parameters", f"{manifest['parameters']:,}"),
        ("MACs per series", NONE if manifest["macs"] is None else f"{manifest['macs']:,}"),
        (
            "bytes on disk",
            f"{manifest['bytes']:,}" + (f" (the dense model: {ratio:.2f} times)" if ratio else ""),
        ),
    ]


def _accuracy(facts: Facts) -> str:
    m, found = facts.row.metrics, facts.accuracy()
    if found is None:
        return "None: its scores are not finite."
    from tsexp.report.console import between

    share, low, high = (100 * v for v in found)
    rows = [
        ("accuracy, test split", f"{share:.1f} % [{low:.1f}, {high:.1f}]"),
        ("of the control", f"{100 * m['test/control_accuracy']:.1f} %"),
        (
            "lost against the control (negative: gained)",
            between(m, "vs_dense/accuracy_drop", "{:+.1f}", "_pt") + " points",
        ),
    ]
    for name, what in (("balanced_accuracy", "balanced accuracy"), ("macro_f1", "macro F1")):
        if f"test/{name}" in m:
            rows.append((what, f"{100 * m[f'test/{name}']:.1f} %"))
    if "test/nll" in m:
        rows.append(("negative log-likelihood", f"{m['test/nll']:.3f} nats"))
    if "val/accuracy" in m:
        n = m["val/series"]
        rows.append(("on validation series", f"{100 * m['val/accuracy']:.1f} % of {n:.0f}"))
    return (
        f"{_table(rows)}\n\nThe control is the dense model with the same training in total, fp32, in eager "
        f"PyTorch. Brackets: 95 %, of the accuracy by Wilson over {facts.series[1]} test series, of the loss "
        "over the same series, paired. One training seed: another may differ by more."
    )


def _energy(facts: Facts) -> str:
    row, found = facts.row, facts.energy_j()
    if found is None:
        return "The record is invalid: no energy, no latency and no speedup are told."
    from tsexp.report.console import between, si

    m, p, mark = row.metrics, row.params, _mark(row)
    value, low, high = found
    within = f" [{si(low, 'J')}, {si(high, 'J')}]" if math.isfinite(low + high) else ""
    rows = [
        (f"energy per series{mark}", f"{si(value, 'J')}{within}, gross"),
        (
            f"saving against the control{mark}",
            between(m, "vs_dense/energy_saving", "{:.1f}", "_pct") + " %",
        ),
        ("times as fast as the control", between(m, "vs_dense/speedup", "{:.2f}")),
        ("the same, of CPU time", between(m, "vs_dense/cpu_speedup", "{:.2f}")),
        ("latency of a call", ", ".join(f"p{n} {m[f'latency/p{n}_ms']:.3f} ms" for n in (50, 90, 99))),
        ("loading", _both(m["cost/load_ms"] / 1e3, m.get("cost/load_j"), mark)),
        ("source of the energy", f"`{row.tags['tsexp.energy_source']}`: {facts.raw['scope']}"),
        ("series in a batch; threads", f"{p['measure.batch_size']}; {p['measure.threads']}"),
        ("windows", f"{m['measure/pairs']:.0f} pairs in {m['measure/processes']:.0f} processes"),
        ("machine", ", ".join(f"{k} {v}" for k, v in facts.hardware.items())),
        ("libraries", ", ".join(f"{k} {v}" for k, v in facts.manifest["versions"].items())),
    ]
    about = "Brackets: 95 %, over measuring processes of one session on this machine."
    if mark:
        about += (
            f"\n\n{mark} **An estimate, not a measurement**: CPU time times a guessed power of a busy core. "
            "Read a saving as less CPU time, and joules not in absolute terms."
        )
    return f"{_table(rows)}\n\n{about}"


def _limits(facts: Facts) -> str:
    p, m = facts.row.params, facts.manifest
    lines = [
        f"Made to compare accuracy and energy of small classifiers on {p['data.name']}; not tried elsewhere.",
        f"It answers one of its {len(m['classes'])} classes to whatever it is given, also to what is none of "
        "them. Its probabilities were not calibrated.",
        "Accuracy holds for series like those of the test split; energy and time for the machine above.",
    ]
    by_itself = alone(m["runtime"])
    if by_itself:
        lines.append(
            "A file of a model checks nothing: NaN, infinite values and other shapes have to be kept out."
        )
        if m["runtime"] == "openvino" and m["mode"] != "bf16":
            lines.append(
                "OpenVINO computes in bf16 by itself where the CPU can: give it `INFERENCE_PRECISION_HINT: "
                "f32`, as `run.py` does. So it was measured."
            )
    elif code_in(m["runtime"]):
        lines.append(
            "It brings code, which runs only where it is trusted, and machine code on its own CPU alone."
        )
    if m["mode"] != "none":
        lines.append(
            "Other CPUs may round otherwise in this number format: scores may differ a little there."
        )
    if (int8_largest(m) or 0) > 64 and by_itself:
        lines.append(
            "Its int8 weights have 8 bits. On x86 without VNNI (none of `avx512_vnni`, `avx_vnni`, "
            "`amx_int8` among the flags of the CPU) products overflow with them, and answers are worse or "
            "wrong, without an error: make it anew on such a machine."
        )
    lines.append("Nothing is known of its fitness where a wrong answer harms somebody: do not use it there.")
    lines.append("The terms of the dataset are its own.")
    return "\n".join(f"- {line}" for line in lines)


def _mark(row: Row) -> str:
    from tsexp.report.console import ESTIMATE

    return "" if row.measured else ESTIMATE


def _both(seconds: float, joules: float | None, mark: str) -> str:
    from tsexp.report.console import si

    return si(seconds, "s") + ("" if joules is None else f", {si(joules, 'J')}{mark}")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
