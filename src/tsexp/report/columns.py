"""What a column of a table shows: its heading, the text of a row, the numbers that it stands for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from tsexp.marks import ENDS
from tsexp.report import company, comparisons
from tsexp.report.console import ESTIMATE, si
from tsexp.report.schema import FROM_WINDOWS

WARNING = "⚠"


class Show(NamedTuple):
    """One column: heading, text of a row, and the columns of numbers that it stands for in the CSV."""

    head: str
    text: Callable[[Any], str]
    numbers: tuple[str, ...]
    right: bool = True


def with_interval(
    value: float, low: float, high: float, digits: int, sign: str = "", unit: str = "", mark: str = ""
) -> str:
    """A number and its interval, ``+1.2 [+0.8, +1.6] %``; empty if there is no number."""
    if math.isnan(value):
        return ""
    value, low, high = (round(v, digits) + 0.0 for v in (value, low, high))  # not -0
    interval = "" if math.isnan(low) else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return f"{value:{sign}.{digits}f}{unit}{interval}{mark}"


def interval(head: str, name: str, digits: int, sign: str = "", mark: str = "", scale: float = 1) -> Show:
    """A number and its interval, of three columns of the rows; times `scale`, with so many `digits`."""

    def text(row: Any) -> str:
        value, low, high = (scale * row[f"{name}{end}"] for end in ENDS)
        return with_interval(value, low, high, digits, sign, "", mark) or _nothing(row, name)

    return Show(head, text, (name, f"{name}_lo", f"{name}_hi"))


def _three_digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    if not value or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _series(value: float, low: float, high: float) -> str:
    """A number of inferences and its interval: ``12 k [11 k, 14 k]``."""
    words = ["never" if math.isinf(v) else si(v, "") for v in (value, low, high)]
    if math.isnan(value):
        return "–"
    return words[0] if math.isnan(low) or math.isinf(low) else f"{words[0]} [{words[1]}, {words[2]}]"


def _nothing(row: Any, name: str) -> str:
    """Where a number would stand that is not there."""
    windows = (name in FROM_WINDOWS or name.endswith("_per_correct_j")) and not (
        name.startswith(("measured", "estimated")) and not name.startswith(row["energy"])
    )
    return "invalid" if windows and row["n_energy"] == 0 else "–"


def number(
    head: str, name: str, scale: float = 1, text: Callable[[float], str] = _three_digits, mark: str = ""
) -> Show:
    """A number of one column of the rows, times `scale`."""
    return Show(
        head,
        lambda row: _nothing(row, name) if math.isnan(row[name]) else text(scale * row[name]) + mark,
        (name,),
    )


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")


def _unless_reference(column: Show) -> Show:
    """The dense model is not compared with itself."""
    return column._replace(text=lambda row: "–" if row["degradation"] == "reference" else column.text(row))


def word(head: str, name: str, most: int | None = None) -> Show:
    """A word of one column of the rows, or its first `most` letters."""
    return Show(head, lambda row: str(row[name])[:most], (name,), False)


DATASET, MODEL, METHOD, SCOPE = (word(name, name) for name in ("dataset", "model", "method", "scope"))
MODE, RUNTIME = (word(name, name) for name in ("mode", "runtime"))
RATIO = number("ratio", "ratio", text=lambda v: f"{v:g}")
WHAT = word("deployed", "what")
IDENTITY = ("dataset", "model", "what", "runtime", "method", "scope", "ratio", "mode")
PLACES = ("runtime", "method", "scope")
"""Of those, what goes to the caption if it is the same in all rows."""
SETTINGS = (
    word("device", "device"),
    number("batch", "batch_size", text=lambda v: f"{v:g}"),
    number("threads", "threads", text=lambda v: f"{v:g}"),
    word("energy from", "energy_source"),
    word("machine", "machine", 6),
)
"""Columns where they vary."""
FINER = (
    word("asked", "runtime_asked"),
    *(
        number(head, name, text=lambda v: f"{v:g}")
        for head, name in (
            ("pairs", "repeats"),
            ("processes", "processes"),
            ("window s", "window_s"),
            ("tuned epochs", "finetune_epochs"),
        )
    ),
    word("setting", "setting", 6),
    word("recipe", "recipe", 6),
    word("data", "data_checksum", 6),
)
CONFIG = word("config", "config", 6)
SAID = {
    "device": "{}",
    "batch_size": "batch {}",
    "threads": "threads {}",
    "repeats": "{} pairs of windows at most",
    "processes": "{} processes",
    "window_s": "windows of at least {:g} s",
}
"""What the caption says of the settings that do not vary."""
ACCURACY = interval("accuracy %", "accuracy_pct", 1)
F1 = interval("macro F1 %", "macro_f1", 1, scale=100)
DROP = _unless_reference(interval("drop, points", "drop_pt", 1, "+"))
UNTUNED = number("untuned %", "dense_accuracy_pct", text=lambda v: f"{v:.1f}")
VERDICT = Show("kept?", lambda row: row["degradation"], ("degradation",), False)
P = _unless_reference(number("p", "mcnemar_p", text=_p))
JOULES = (
    number("mJ/series", "measured_j", 1000),
    number(f"mJ/series{ESTIMATE}", "estimated_j", 1000, mark=ESTIMATE),
)
SAVINGS = (
    interval("saving %", "measured_saving_pct", 1),
    interval(f"saving %{ESTIMATE}", "estimated_saving_pct", 1, mark=ESTIMATE),
)
PER_CORRECT = (
    number("mJ/correct", "measured_per_correct_j", 1000),
    number(f"mJ/correct{ESTIMATE}", "estimated_per_correct_j", 1000, mark=ESTIMATE),
)
TRAINING = (
    number("training J", "measured_train_j"),
    number(f"training J{ESTIMATE}", "estimated_train_j", mark=ESTIMATE),
)
SPEEDUP = interval("speedup", "speedup", 2)
IN_RUNTIME = interval("speedup in its runtime", "runtime_speedup", 2)
LATENCY = number("p50 ms", "latency_p50_ms")
PARAMETERS = number("parameters", "parameters", text=lambda v: f"{v:,.0f}")
MACS = number("MACs, M", "macs", 1e-6)
SIZE = number("kB", "bytes", 1e-3)
INT8 = Show(
    "int8 products",
    lambda row: f"{row['matmuls_int8']:.0f}/{row['matmuls']:.0f}" if row["matmuls"] else "–",
    ("matmuls_int8", "matmuls"),
)
N = Show(
    "n",
    lambda row: (
        str(row["n"])
        + (f" (energy {row['n_energy']})" if row["n_energy"] < row["n"] else "")
        + (f" {WARNING}" if row["warned"] else "")
    ),
    ("n", "seeds", "warned"),
)
COMPANY = (
    *(DATASET, MODEL, WHAT, ACCURACY, *JOULES, *PER_CORRECT, LATENCY, SIZE, *TRAINING),
    *(word("chosen", "chosen"), N),
)


def _side(end: str) -> Show:
    """One of the two that were compared, in words."""

    def text(row: Any) -> str:
        of = {k: row[f"{k}_{end}"] for k in ("model", "macs", "ratio", "method", "scope", "mode", "runtime")}
        return company.in_words(of | {"what": company.deployed(of)})

    return Show(end.upper(), text, (f"model_{end}",), False)


VERSUS = (
    *map(_side, comparisons.SIDES),
    Show("seeds", lambda row: " ".join(dict.fromkeys((str(row["seed_a"]), str(row["seed_b"])))), ("seed_a",)),
    *(number(f"{s.upper()} %", f"accuracy_{s}", 100, lambda v: f"{v:.1f}") for s in comparisons.SIDES),
    interval("points", "difference_pt", 1, "+"),
    number("p", "mcnemar_p", text=_p),
    *(
        number(f"mJ of {s.upper()}{mark}", f"{side}_j_{s}", 1000, mark=mark)
        for side, mark in (("measured", ""), ("estimated", ESTIMATE))
        for s in comparisons.SIDES
    ),
    *SAVINGS,
    SPEEDUP,
    word("", "warnings")._replace(text=lambda row: WARNING if row["warnings"] else ""),
)
WAY = (DATASET, MODEL, RUNTIME, METHOD, SCOPE, RATIO, MODE)
PAYS_AFTER = Show(
    "pays after, series",
    lambda row: _series(row["pays_after"], row["pays_after_lo"], row["pays_after_hi"]),
    ("pays_after", "pays_after_lo", "pays_after_hi"),
)
