"""Tables: functions of the frozen results, each as LaTeX (booktabs), Markdown and CSV.

Markdown and LaTeX are for readers: value and interval in one cell. The CSV has the same rows with every
number on its own, to ten digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.config import MODES
from tsexp.marks import ENDS, ESTIMATED
from tsexp.report import claims, company, comparisons, costs, machines
from tsexp.report.console import ESTIMATE, si
from tsexp.report.frozen import FROM_WINDOWS, Frozen
from tsexp.report.statistics import MARGIN_PT, aggregate, count, notes
from tsexp.system.files import whole

if TYPE_CHECKING:
    import pandas as pd

WARNING = "⚠"
LINES = ("why", "chosen")
"""Prose of several lines a row."""
LONG = 40
"""A LaTeX table of more rows may break across pages."""
LATEX = {
    "†": r"\textdagger{}",
    "⚠": r"\textsuperscript{!}",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "×": r"$\times$",
    "–": "--",
    "·": r"$\cdot$",
}

SPECIAL = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"})
OURS = {"ours": "ours", "estimate": f"ours, estimated{ESTIMATE}"}
CLAIM_STYLE = {"energy": (1, "+", " %"), "speed": (2, "", "x"), "accuracy": (1, "+", " points")}
"""Digits, sign and unit of a change, by kind of claim."""
CLAIMS_CAPTION = (
    "Claims of arXiv 2502.16627 beside ours: change against dense fp32 in the same runtime [95 % interval]. "
    "Reproduced: the interval shows at least the claimed effect (for accuracy: at most the claimed loss), "
    "with accuracy kept where a saving of pruning or of quantization alone is claimed (a drop of at most "
    f"{MARGIN_PT:g} point against the control, the dense model with the same training in total). One row "
    "answers, chosen on validation series and judged on test series. The study's hardware, meter and numbers "
    "per dataset are not public."
)
ALSO_IN_CSV = ("n_energy", "control_accuracy_pct", "dense_accuracy_pct", "val_drop_pt", "val_series")
WIDTHS = {
    "A": "p{3.4cm}",
    "B": "p{2.4cm}",
    "claim": "p{1.8cm}",
    "paper": "p{1.4cm}",
    "verdict": "p{1.5cm}",
    "why": "p{3.4cm}",
    "chosen": "p{3.4cm}",
    "deployed": "p{3.6cm}",
}
"""Columns of prose break their lines."""


class Show(NamedTuple):
    """One column: heading, text of a row, and the columns of numbers that it stands for in the CSV."""

    head: str
    text: Callable[[Any], str]
    numbers: tuple[str, ...]
    right: bool = True


@dataclass(frozen=True)
class Table:
    """A finished table: `shown` is text, `numbers` what it was made of, the rest paragraphs in Markdown."""

    name: str
    caption: str
    shown: pd.DataFrame
    numbers: pd.DataFrame
    right: tuple[bool, ...]
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()


def tables(frozen: Frozen) -> tuple[list[Table], list[str]]:
    """Make all tables that these results allow.

    Returns
    -------
    list of Table
        Of datasets, dense baselines, pruning, quantization, hybrids, company, comparisons, costs, machines
        and claims: those that have a row.
    list of str
        What is missing, left out or mixed.
    """
    rows = aggregate(frozen)
    said = notes(frozen, rows)
    rows = claims.with_speedup_in_runtime(rows) if len(rows) else rows
    made = [_datasets(frozen)]
    for name, (title, among, columns, fill) in KINDS.items():
        records = frozen.results[among(frozen.results)]
        some = rows[among(rows)] if len(rows) else rows
        if some.empty:
            said.append(f"no table {name}: no record for it; e.g. {fill}")
        else:
            made.append(_of_results(name, title, some, columns, records[~records["valid"]]))
    beside = company.compared(rows)
    if beside.empty:
        said.append(
            "no table company: no dataset has two models measured alike; e.g. python -m tsexp -m "
            "model=t3,minirocket"
        )
    else:
        made.append(_company(frozen, beside))
    if len(frozen.comparisons):
        made.append(_comparisons(frozen.comparisons))
    for name, (title, of, columns, below) in OF_ALL.items():
        own = of(frozen, rows)
        if len(own):
            made.append(
                replace(
                    _of_results(name, title, own, columns, frozen.results.iloc[:0]), below=tuple(below(own))
                )
            )
    if frozen.results["machine"].nunique() > 1 and all(table.name != "machines" for table in made):
        said.append("no table machines: no two machines measured the same with the same seed")
    return [*made, _claims(rows)], said


def write(frozen: Frozen, folder: Path) -> tuple[list[Path], list[str]]:
    """Write every table as ``NAME.tex``, ``NAME.md`` and ``NAME.csv``, and ``notes.md``.

    Return the files and the notes.
    """
    made, said = tables(frozen)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"{t.name}.{ending}": text(t)
        for t in made
        for ending, text in (("tex", latex), ("md", markdown), ("csv", csv))
    }
    files["notes.md"] = "".join(f"- {note}\n" for note in said) or "Nothing is missing or left out.\n"
    for name, text in files.items():
        with whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    names = ("datasets", *KINDS, "company", "comparisons", *OF_ALL, "claims")
    for name in names:  # of an earlier report, without a row now
        for ending in ("tex", "md", "csv"):
            if f"{name}.{ending}" not in files:
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return [folder / name for name in files], said


def without_html(markdown: str) -> str:
    """Return Markdown in which the names of somebody's data make no HTML."""
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", markdown)


def markdown(table: Table) -> str:
    """As GitHub and most readers of Markdown take it."""
    cells = table.shown.map(lambda text: text.replace("|", r"\|"))
    align = ["right" if right else "left" for right in table.right]
    text = cells.to_markdown(index=False, disable_numparse=True, colalign=align)
    return without_html("\n\n".join([*table.above, table.caption, text, *table.below]) + "\n")


def csv(table: Table) -> str:
    """Numbers, to ten digits."""
    # Fewer digits than there are: the last ones depend on the CPU's vector instructions.
    return str(table.numbers.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def latex(table: Table) -> str:
    """A ``table`` (a ``longtable`` if it is long) with the rules of booktabs, in ASCII."""
    cells = (
        table.shown.style.format(escape="latex")
        .format_index(escape="latex", axis="columns")
        .hide(axis="index")
    )
    long = len(table.shown) > LONG or any(c in table.shown for c in LINES)
    body = cells.to_latex(
        hrules=True,
        caption=table.caption.translate(SPECIAL),
        label=f"tab:{table.name}",
        column_format="".join(
            WIDTHS.get(head, "r" if right else "l")
            for head, right in zip(table.shown, table.right, strict=True)
        ),
        environment="longtable" if long else None,
        position_float=None if long else "centering",
    )
    for sign, command in LATEX.items():
        body = body.replace(sign, command)
    small = "\\scriptsize\\setlength{\\tabcolsep}{3pt}\n"
    if long:
        width = "\\setlength{\\LTcapwidth}{\\linewidth}"
        return f"% \\usepackage{{booktabs,longtable}}\n{{{small}{width}\n{body}}}\n"
    # A float begins in the normal size again; a table wider than the text is shrunk to it.
    start, end = "\\begin{tabular}", "\\end{tabular}"
    shrunk = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{"
    body = body.replace(start, small + shrunk + start).replace(end, end + "}")
    return f"% \\usepackage{{booktabs,graphicx}}\n{body}"


class _Columns(NamedTuple):
    """Columns of a table of results: those that are shown, and those whose one value goes to the caption."""

    identity: list[Show]
    shown: list[Show]
    constant: list[Show]


def _of_results(
    name: str, title: str, rows: pd.DataFrame, columns: tuple[Show, ...], invalid: pd.DataFrame
) -> Table:
    import pandas as pd

    chosen = _choose(rows, columns)
    rows = rows.sort_values([c.numbers[0] for c in chosen.identity], key=_rank, kind="stable")
    text = pd.DataFrame({c.head: [c.text(row) for _, row in rows.iterrows()] for c in chosen.shown})
    also = (*chosen.constant, *SETTINGS, *FINER, CONFIG)
    numbers = [n for c in chosen.shown for n in c.numbers]
    numbers += [*ALSO_IN_CSV, *(c.numbers[0] for c in also)]
    return Table(
        name,
        _caption(title, rows, chosen, invalid),
        text,
        rows[list(dict.fromkeys(numbers))].reset_index(drop=True),
        tuple(c.right for c in chosen.shown),
    )


def _choose(rows: pd.DataFrame, columns: tuple[Show, ...]) -> _Columns:
    """Of a table's columns those that have something to say of these rows."""
    there = [c for c in columns if c.numbers[0] not in rows or rows[list(c.numbers)].notna().any(axis=None)]
    if (rows["tuning"] == "-").all():
        there = [c for c in there if c is not UNTUNED]  # it is the control
    constant = [c for c in there if c.numbers[0] in PLACES and rows[c.numbers[0]].nunique() == 1]
    identity = [c for c in there if c.numbers[0] in IDENTITY and c not in constant]
    identity += [c for c in SETTINGS if rows[c.numbers[0]].nunique() > 1]
    for c in (*FINER, CONFIG):  # only where two rows are alike in all else
        alike = rows.groupby([i.numbers[0] for i in identity])[c.numbers[0]].nunique()
        if (alike > 1).any():
            identity.append(c)
    return _Columns(identity, [*identity, *(c for c in there if c.numbers[0] not in IDENTITY)], constant)


def _caption(title: str, rows: pd.DataFrame, columns: _Columns, invalid: pd.DataFrame) -> str:
    """The title, and every sentence that one of the columns or rows asks for."""
    of_all = [f"{c.head} {c.text(rows.iloc[0])}" for c in columns.constant]
    of_all += [words.format(rows[key].iloc[0]) for key, words in SAID.items() if rows[key].nunique() == 1]
    shown = columns.shown
    of_one_seed = ", of one seed t over measuring processes" if SPEEDUP in shown else ""
    scored = int(invalid["scored"].sum())
    sentences = (
        (True, f"{title}."),
        (of_all, f"For all: {', '.join(of_all)}."),
        (
            True,
            "Brackets: 95 % intervals, of accuracy and drop over seeds and test series, of all else t over "
            f"seeds{of_one_seed}; n: seeds.",
        ),
        ((rows["n"] > 1).any(), "Numbers without brackets: means over seeds."),
        (DROP in shown, "Drop: against the control, the dense model with the same training in total."),
        (UNTUNED in shown, "Untuned: the dense model before that tuning."),
        (SPEEDUP in shown, "Savings and speedups: against the control, fp32, runtime eager, paired."),
        (IN_RUNTIME in shown, "In its runtime: over the dense model in fp32 there, seed by seed."),
        (
            VERDICT in shown,
            f"Accuracy is kept if the drop is at most {MARGIN_PT:g} point with 95 % confidence, lost if it "
            "is more; p: exact McNemar test, the smallest over seeds times their number.",
        ),
        (WHAT in shown, COMPANY_SAID),
        (any(ESTIMATE in c.head for c in shown), f"{ESTIMATE} estimated from CPU time, not measured."),
        (rows["warned"].any(), f"{WARNING} a record has a warning: look twice."),
        (
            scored,
            f"{count(scored, 'record')} with invalid energy: only the accuracy counts (notes.md says why).",
        ),
        (len(invalid) > scored, f"{count(len(invalid) - scored, 'invalid record')} left out."),
    )
    return " ".join(sentence for asked, sentence in sentences if asked)


def _datasets(frozen: Frozen) -> Table:
    import pandas as pd

    results = frozen.results
    made = []
    for (dataset, checksum), group in results.groupby(["dataset", "data_checksum"], sort=True):
        labels = frozen.predictions.loc[frozen.predictions["run_id"] == group["run_id"].iloc[0], "label"]
        made.append(
            {
                "dataset": dataset,
                "test_series": len(labels),
                "classes": labels.nunique(),
                "largest_class_pct": 100 * labels.value_counts(normalize=True).max(),
                "models": " ".join(sorted(group["model"].unique())),
                "records": len(group),
                "invalid_records": int((~group["valid"]).sum()),
                "seeds": " ".join(map(str, sorted(group["seed"].unique()))),
                "data_checksum": checksum,
            }
        )
    numbers = pd.DataFrame(made)
    columns = (
        DATASET,
        Show("test series", lambda r: f"{r['test_series']:,}", ("test_series",)),
        Show("classes", lambda r: str(r["classes"]), ("classes",)),
        Show("largest class %", lambda r: f"{r['largest_class_pct']:.1f}", ("largest_class_pct",)),
        *(_word(head, head) for head in ("models", "seeds")),
        Show("records", lambda r: str(r["records"]), ("records",)),
        Show("invalid", lambda r: str(r["invalid_records"]), ("invalid_records",)),
        _word("checksum", "data_checksum", 12),
    )
    text = pd.DataFrame({c.head: [c.text(row) for _, row in numbers.iterrows()] for c in columns})
    caption = (
        "Datasets, default train/test split. Largest class: the accuracy of always naming it. Checksum: "
        "start of the SHA-256 of the files."
    )
    return Table(
        "datasets", caption, text, numbers[[c.numbers[0] for c in columns]], tuple(c.right for c in columns)
    )


def _company(frozen: Frozen, rows: pd.DataFrame) -> Table:
    ids = {run_id for of in rows["run_ids"] for run_id in of.split()}
    records = frozen.results[frozen.results["run_id"].isin(ids)]
    title = "Every model beside the others: as trained, in another runtime, and at its best compression"
    table = _of_results("company", title, rows, COMPANY, records[~records["valid"]])
    said = [f"**{label}**: {words}" for label, words in company.advice(frozen, rows)]
    return replace(table, above=tuple(said), below=(company.RULE,))


def _comparisons(rows: pd.DataFrame) -> Table:
    import pandas as pd

    varied = [c for c in SETTINGS if c.numbers[0] in rows and rows[c.numbers[0]].nunique() > 1]
    there = [c for c in VERSUS if rows[list(c.numbers)].notna().any(axis=None)]
    columns = [DATASET, *varied, *there]
    seen = rows.assign(
        energy=["estimated" if s.startswith(ESTIMATED) else "measured" for s in rows["energy_source"]],
        n_energy=rows["valid"].astype(int),
    )
    text = pd.DataFrame({c.head: [c.text(row) for _, row in seen.iterrows()] for c in columns})
    keys = [key for key in SAID if key in rows and rows[key].nunique() == 1]
    of_all = [SAID[key].format(rows[key].iloc[0]) for key in keys]
    sentences = (
        (
            True,
            "Head to head (tsexp.compare): two artifacts on the same series, their windows in alternation.",
        ),
        (of_all, f"For all: {', '.join(of_all)}."),
        (
            True,
            "Points: accuracy of A less that of B; saving, speedup: of A against B. Brackets: 95 % intervals "
            "for these two trainings, of points over test series, of all else t over measuring processes. "
            "p: exact McNemar test.",
        ),
        (any(ESTIMATE in c.head for c in there), f"{ESTIMATE} estimated from CPU time, not measured."),
        ((rows["warnings"] != "").any(), f"{WARNING} has a warning: look twice."),
    )
    caption = " ".join(sentence for asked, sentence in sentences if asked)
    nothing = [c for c in rows if c.startswith(("measured", "estimated")) and rows[c].isna().all()]
    return Table("comparisons", caption, text, rows.drop(columns=nothing), tuple(c.right for c in columns))


def _claims(rows: pd.DataFrame) -> Table:
    import pandas as pd

    found = claims.answers(rows)
    machines_there = rows["machine"].nunique() if len(rows) else 0
    shown, numbers = pd.DataFrame(map(_answer_text, found)), pd.DataFrame(map(_answer_numbers, found))
    for side, there in (("ours", shown["ours"].any()), ("estimate", any(a.estimated for a in found))):
        if not there:
            shown = shown.drop(columns=OURS[side])
        if numbers[side].isna().all():
            numbers = numbers.drop(columns=[f"{side}{end}" for end in ENDS])
    sentences = (
        (True, CLAIMS_CAPTION),
        (
            any(a.estimated for a in found),
            f"{ESTIMATE} estimated from CPU time: neither reproduces nor refutes.",
        ),
        (machines_there > 1, f"Of {machines_there} machines, the one with most rows answers."),
        (any(WARNING in n for n in shown["n"]), f"{WARNING} a record has a warning: look twice."),
    )
    caption = " ".join(sentence for asked, sentence in sentences if asked)
    right = tuple(head.startswith("ours") or head == "n" for head in shown)
    return Table("claims", caption, shown, numbers, right)


def _sides(answer: claims.Answer) -> dict[str, tuple[float, float, float]]:
    """The change that was found, on the side that it is of: a measurement or an estimate."""
    empty = (math.nan,) * 3
    change = answer.change or empty
    return {"ours": empty, "estimate": change} if answer.estimated else {"ours": change, "estimate": empty}


def _answer_numbers(answer: claims.Answer) -> dict[str, Any]:
    row = answer.row
    return {
        "claim": answer.claim.name,
        "paper": answer.claim.paper,
        "dataset": answer.dataset,
        "model": answer.model,
        "unit": claims.UNITS[answer.claim.kind],
        **{
            f"{side}{end}": value
            for side, values in _sides(answer).items()
            for end, value in zip(ENDS, values, strict=True)
        },
        "n": 0 if row is None else row["n"],
        "verdict": answer.verdict,
        "why": answer.why,
        "config": "" if row is None else row["config"],
    }


def _answer_text(answer: claims.Answer) -> dict[str, str]:
    style = CLAIM_STYLE[answer.claim.kind]
    sides, row = _sides(answer), answer.row
    return {
        "claim": answer.claim.name,
        "paper": answer.claim.paper,
        "dataset": answer.dataset,
        "model": answer.model,
        OURS["ours"]: _with_interval(*sides["ours"], *style),
        OURS["estimate"]: _with_interval(*sides["estimate"], *style, ESTIMATE),
        "n": "" if row is None else f"{row['n']}{f' {WARNING}' if row['warned'] else ''}",
        "verdict": answer.verdict,
        "why": answer.why,
    }


def _with_interval(
    value: float, low: float, high: float, digits: int, sign: str = "", unit: str = "", mark: str = ""
) -> str:
    if math.isnan(value):
        return ""
    value, low, high = (round(v, digits) + 0.0 for v in (value, low, high))  # not -0
    interval = "" if math.isnan(low) else f" [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
    return f"{value:{sign}.{digits}f}{unit}{interval}{mark}"


def _interval(head: str, name: str, digits: int, sign: str = "", mark: str = "", scale: float = 1) -> Show:
    def text(row: Any) -> str:
        value, low, high = (scale * row[f"{name}{end}"] for end in ENDS)
        return _with_interval(value, low, high, digits, sign, "", mark) or _nothing(row, name)

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


def _number(
    head: str, name: str, scale: float = 1, text: Callable[[float], str] = _three_digits, mark: str = ""
) -> Show:
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


def _word(head: str, name: str, most: int | None = None) -> Show:
    return Show(head, lambda row: str(row[name])[:most], (name,), False)


def _rank(values: pd.Series) -> pd.Series:
    """Sorting key: number formats from fp32 to int8, all else as it is."""
    return (
        values.map(lambda mode: MODES.index(mode) if mode in MODES else len(MODES))
        if values.name == "mode"
        else values
    )


DATASET, MODEL, METHOD, SCOPE = (_word(name, name) for name in ("dataset", "model", "method", "scope"))
MODE, RUNTIME = (_word(name, name) for name in ("mode", "runtime"))
RATIO = _number("ratio", "ratio", text=lambda v: f"{v:g}")
WHAT = _word("deployed", "what")
IDENTITY = ("dataset", "model", "what", "runtime", "method", "scope", "ratio", "mode")
PLACES = ("runtime", "method", "scope")
"""Of those, what goes to the caption if it is the same in all rows."""
SETTINGS = (
    _word("device", "device"),
    _number("batch", "batch_size", text=lambda v: f"{v:g}"),
    _number("threads", "threads", text=lambda v: f"{v:g}"),
    _word("energy from", "energy_source"),
    _word("machine", "machine", 6),
)
"""Columns where they vary."""
FINER = (
    _word("asked", "runtime_asked"),
    *(
        _number(head, name, text=lambda v: f"{v:g}")
        for head, name in (
            ("pairs", "repeats"),
            ("processes", "processes"),
            ("window s", "window_s"),
            ("tuned epochs", "finetune_epochs"),
        )
    ),
    _word("setting", "setting", 6),
    _word("recipe", "recipe", 6),
    _word("data", "data_checksum", 6),
)
CONFIG = _word("config", "config", 6)
SAID = {
    "device": "{}",
    "batch_size": "batch {}",
    "threads": "threads {}",
    "repeats": "{} pairs of windows at most",
    "processes": "{} processes",
    "window_s": "windows of at least {:g} s",
}
"""What the caption says of the settings that do not vary."""
ACCURACY = _interval("accuracy %", "accuracy_pct", 1)
F1 = _interval("macro F1 %", "macro_f1", 1, scale=100)
DROP = _unless_reference(_interval("drop, points", "drop_pt", 1, "+"))
UNTUNED = _number("untuned %", "dense_accuracy_pct", text=lambda v: f"{v:.1f}")
VERDICT = Show("kept?", lambda row: row["degradation"], ("degradation",), False)
P = _unless_reference(_number("p", "mcnemar_p", text=_p))
JOULES = (
    _number("mJ/series", "measured_j", 1000),
    _number(f"mJ/series{ESTIMATE}", "estimated_j", 1000, mark=ESTIMATE),
)
SAVINGS = (
    _interval("saving %", "measured_saving_pct", 1),
    _interval(f"saving %{ESTIMATE}", "estimated_saving_pct", 1, mark=ESTIMATE),
)
PER_CORRECT = (
    _number("mJ/correct", "measured_per_correct_j", 1000),
    _number(f"mJ/correct{ESTIMATE}", "estimated_per_correct_j", 1000, mark=ESTIMATE),
)
TRAINING = (
    _number("training J", "measured_train_j"),
    _number(f"training J{ESTIMATE}", "estimated_train_j", mark=ESTIMATE),
)
SPEEDUP = _interval("speedup", "speedup", 2)
IN_RUNTIME = _interval("speedup in its runtime", "runtime_speedup", 2)
LATENCY = _number("p50 ms", "latency_p50_ms")
PARAMETERS = _number("parameters", "parameters", text=lambda v: f"{v:,.0f}")
MACS = _number("MACs, M", "macs", 1e-6)
SIZE = _number("kB", "bytes", 1e-3)
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
    *(_word("chosen", "chosen"), N),
)
COMPANY_SAID = (
    "As trained: dense, fp32, runtime eager; an estimator without a runtime. The same model: in the other "
    "runtime in which it takes the least energy, in fp32. Best compression, chosen among all: the least "
    f"energy of all that lose at most {MARGIN_PT:g} point on validation series against their control, or, if "
    "none does, the least loss there. mJ/correct: energy per correct answer, mJ/series over accuracy. "
    "Training: with pruning, tuning and conversion."
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
    *(_number(f"{s.upper()} %", f"accuracy_{s}", 100, lambda v: f"{v:.1f}") for s in comparisons.SIDES),
    _interval("points", "difference_pt", 1, "+"),
    _number("p", "mcnemar_p", text=_p),
    *(
        _number(f"mJ of {s.upper()}{mark}", f"{side}_j_{s}", 1000, mark=mark)
        for side, mark in (("measured", ""), ("estimated", ESTIMATE))
        for s in comparisons.SIDES
    ),
    *SAVINGS,
    SPEEDUP,
    _word("", "warnings")._replace(text=lambda row: WARNING if row["warnings"] else ""),
)

KINDS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series], tuple[Show, ...], str]] = {
    "dense": (
        "Dense baselines: fp32, runtime eager",
        lambda t: (t["ratio"] == 0) & (t["mode"] == "none") & (t["runtime"] == "eager"),
        (DATASET, MODEL, ACCURACY, F1, PARAMETERS, MACS, *JOULES, LATENCY, N),
        "python -m tsexp prune.ratio=0",
    ),
    "pruning": (
        "Structured pruning, fine-tuned, in fp32",
        lambda t: (t["ratio"] > 0) & (t["mode"] == "none"),
        (
            DATASET,
            MODEL,
            RUNTIME,
            METHOD,
            SCOPE,
            RATIO,
            ACCURACY,
            DROP,
            UNTUNED,
            VERDICT,
            P,
            *SAVINGS,
            SPEEDUP,
            IN_RUNTIME,
            PARAMETERS,
            MACS,
            N,
        ),
        "python -m tsexp -m prune.ratio=0.3,0.5",
    ),
    "quantization": (
        "Number formats and runtimes, not pruned",
        lambda t: t["ratio"] == 0,
        (
            DATASET,
            MODEL,
            MODE,
            RUNTIME,
            ACCURACY,
            DROP,
            VERDICT,
            P,
            *SAVINGS,
            SPEEDUP,
            IN_RUNTIME,
            SIZE,
            INT8,
            N,
        ),
        "python -m tsexp -m quant.mode=none,dynamic,static runtime=onnxruntime",
    ),
    "hybrids": (
        "Pruning and quantization together",
        lambda t: (t["ratio"] > 0) & (t["mode"] != "none"),
        (
            DATASET,
            MODEL,
            RUNTIME,
            METHOD,
            SCOPE,
            RATIO,
            MODE,
            ACCURACY,
            DROP,
            UNTUNED,
            VERDICT,
            P,
            *SAVINGS,
            SPEEDUP,
            IN_RUNTIME,
            SIZE,
            N,
        ),
        "python -m tsexp -m prune.ratio=0.5 quant.mode=dynamic,static runtime=onnxruntime",
    ),
}
"""Name → title, which rows, columns, and a command that would fill it."""

WAY = (DATASET, MODEL, RUNTIME, METHOD, SCOPE, RATIO, MODE)
PAYS_AFTER = Show(
    "pays after, series",
    lambda row: _series(row["pays_after"], row["pays_after_lo"], row["pays_after_hi"]),
    ("pays_after", "pays_after_lo", "pays_after_hi"),
)
OF_ALL: dict[
    str, tuple[str, Callable[[Frozen, pd.DataFrame], pd.DataFrame], tuple[Show, ...], Callable[[Any], Any]]
]
OF_ALL = {
    "costs": (
        "What compression costs, and after how many series it has paid for itself. Training: of the dense "
        "model; compression: pruning, tuning and conversion; brackets of the last column: by the interval of "
        "the saving alone",
        lambda _, rows: costs.of(rows),
        (
            *WAY,
            *(
                _number(f"{head}{mark}", f"{side}_{name}", scale, mark=mark)
                for head, name, scale in (
                    ("training J", "train_j", 1),
                    ("compression J", "compress_j", 1),
                    ("saves mJ/series", "saved_j", 1000),
                )
                for side, mark in (("measured", ""), ("estimated", ESTIMATE))
            ),
            PAYS_AFTER,
            N,
        ),
        lambda rows: (),
    ),
    "machines": (
        "The same on several machines. There: on the other one; times: the speedup there over that here; "
        "within: the same of speedups over the dense model in fp32 in the same runtime",
        lambda frozen, _: machines.compared(frozen),
        (
            _word("there", "other_name"),
            *WAY,
            SPEEDUP,
            _interval("speedup there", "other_speedup", 2),
            _interval("times", "times", 2),
            _number("within", "times_within", text=lambda v: f"{v:.2f}"),
            ACCURACY,
            _interval("accuracy there %", "other_accuracy_pct", 1),
            N,
        ),
        machines.said,
    ),
}
"""Name → title, the rows made of all records and the aggregated ones, columns, paragraphs below."""
