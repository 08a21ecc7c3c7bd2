"""Tables: functions of the frozen results, each as LaTeX (booktabs), Markdown and CSV.

Markdown and LaTeX are for readers: value and interval in one cell. The CSV has the same rows with every
number on its own, to ten digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.config import MODES
from tsexp.marks import ENDS, ESTIMATED
from tsexp.report import claims, company, costs, machines
from tsexp.report import columns as col
from tsexp.report.console import ESTIMATE
from tsexp.report.formats import Table, csv, latex, markdown
from tsexp.report.frozen import Frozen
from tsexp.report.statistics import MARGIN_PT, aggregate, count, notes
from tsexp.system.files import whole

if TYPE_CHECKING:
    import pandas as pd

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


class _Columns(NamedTuple):
    """Columns of a table of results: those that are shown, and those whose one value goes to the caption."""

    identity: list[col.Show]
    shown: list[col.Show]
    constant: list[col.Show]


def _of_results(
    name: str, title: str, rows: pd.DataFrame, columns: tuple[col.Show, ...], invalid: pd.DataFrame
) -> Table:
    import pandas as pd

    chosen = _choose(rows, columns)
    rows = rows.sort_values([c.numbers[0] for c in chosen.identity], key=_rank, kind="stable")
    text = pd.DataFrame({c.head: [c.text(row) for _, row in rows.iterrows()] for c in chosen.shown})
    also = (*chosen.constant, *col.SETTINGS, *col.FINER, col.CONFIG)
    numbers = [n for c in chosen.shown for n in c.numbers]
    numbers += [*ALSO_IN_CSV, *(c.numbers[0] for c in also)]
    return Table(
        name,
        _caption(title, rows, chosen, invalid),
        text,
        rows[list(dict.fromkeys(numbers))].reset_index(drop=True),
        tuple(c.right for c in chosen.shown),
    )


def _choose(rows: pd.DataFrame, columns: tuple[col.Show, ...]) -> _Columns:
    """Of a table's columns those that have something to say of these rows."""
    there = [c for c in columns if c.numbers[0] not in rows or rows[list(c.numbers)].notna().any(axis=None)]
    if (rows["tuning"] == "-").all():
        there = [c for c in there if c is not col.UNTUNED]  # it is the control
    constant = [c for c in there if c.numbers[0] in col.PLACES and rows[c.numbers[0]].nunique() == 1]
    identity = [c for c in there if c.numbers[0] in col.IDENTITY and c not in constant]
    identity += [c for c in col.SETTINGS if rows[c.numbers[0]].nunique() > 1]
    for c in (*col.FINER, col.CONFIG):  # only where two rows are alike in all else
        alike = rows.groupby([i.numbers[0] for i in identity])[c.numbers[0]].nunique()
        if (alike > 1).any():
            identity.append(c)
    return _Columns(identity, [*identity, *(c for c in there if c.numbers[0] not in col.IDENTITY)], constant)


def _caption(title: str, rows: pd.DataFrame, columns: _Columns, invalid: pd.DataFrame) -> str:
    """The title, and every sentence that one of the columns or rows asks for."""
    of_all = [f"{c.head} {c.text(rows.iloc[0])}" for c in columns.constant]
    of_all += [words.format(rows[key].iloc[0]) for key, words in col.SAID.items() if rows[key].nunique() == 1]
    shown = columns.shown
    of_one_seed = ", of one seed t over measuring processes" if col.SPEEDUP in shown else ""
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
        (col.DROP in shown, "Drop: against the control, the dense model with the same training in total."),
        (col.UNTUNED in shown, "Untuned: the dense model before that tuning."),
        (col.SPEEDUP in shown, "Savings and speedups: against the control, fp32, runtime eager, paired."),
        (col.IN_RUNTIME in shown, "In its runtime: over the dense model in fp32 there, seed by seed."),
        (
            col.VERDICT in shown,
            f"Accuracy is kept if the drop is at most {MARGIN_PT:g} point with 95 % confidence, lost if it "
            "is more; p: exact McNemar test, the smallest over seeds times their number.",
        ),
        (col.WHAT in shown, COMPANY_SAID),
        (any(ESTIMATE in c.head for c in shown), f"{ESTIMATE} estimated from CPU time, not measured."),
        (rows["warned"].any(), f"{col.WARNING} a record has a warning: look twice."),
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
        col.DATASET,
        col.Show("test series", lambda r: f"{r['test_series']:,}", ("test_series",)),
        col.Show("classes", lambda r: str(r["classes"]), ("classes",)),
        col.Show("largest class %", lambda r: f"{r['largest_class_pct']:.1f}", ("largest_class_pct",)),
        *(col.word(head, head) for head in ("models", "seeds")),
        col.Show("records", lambda r: str(r["records"]), ("records",)),
        col.Show("invalid", lambda r: str(r["invalid_records"]), ("invalid_records",)),
        col.word("checksum", "data_checksum", 12),
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
    table = _of_results("company", title, rows, col.COMPANY, records[~records["valid"]])
    said = [f"**{label}**: {words}" for label, words in company.advice(frozen, rows)]
    return replace(table, above=tuple(said), below=(company.RULE,))


def _comparisons(rows: pd.DataFrame) -> Table:
    import pandas as pd

    varied = [c for c in col.SETTINGS if c.numbers[0] in rows and rows[c.numbers[0]].nunique() > 1]
    there = [c for c in col.VERSUS if rows[list(c.numbers)].notna().any(axis=None)]
    columns = [col.DATASET, *varied, *there]
    seen = rows.assign(
        energy=["estimated" if s.startswith(ESTIMATED) else "measured" for s in rows["energy_source"]],
        n_energy=rows["valid"].astype(int),
    )
    text = pd.DataFrame({c.head: [c.text(row) for _, row in seen.iterrows()] for c in columns})
    keys = [key for key in col.SAID if key in rows and rows[key].nunique() == 1]
    of_all = [col.SAID[key].format(rows[key].iloc[0]) for key in keys]
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
        ((rows["warnings"] != "").any(), f"{col.WARNING} has a warning: look twice."),
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
        (any(col.WARNING in n for n in shown["n"]), f"{col.WARNING} a record has a warning: look twice."),
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
        OURS["ours"]: col.with_interval(*sides["ours"], *style),
        OURS["estimate"]: col.with_interval(*sides["estimate"], *style, ESTIMATE),
        "n": "" if row is None else f"{row['n']}{f' {col.WARNING}' if row['warned'] else ''}",
        "verdict": answer.verdict,
        "why": answer.why,
    }


def _rank(values: pd.Series) -> pd.Series:
    """Sorting key: number formats from fp32 to int8, all else as it is."""
    return (
        values.map(lambda mode: MODES.index(mode) if mode in MODES else len(MODES))
        if values.name == "mode"
        else values
    )


COMPANY_SAID = (
    "As trained: dense, fp32, runtime eager; an estimator without a runtime. The same model: in the other "
    "runtime in which it takes the least energy, in fp32. Best compression, chosen among all: the least "
    f"energy of all that lose at most {MARGIN_PT:g} point on validation series against their control, or, if "
    "none does, the least loss there. mJ/correct: energy per correct answer, mJ/series over accuracy. "
    "Training: with pruning, tuning and conversion."
)

KINDS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series], tuple[col.Show, ...], str]] = {
    "dense": (
        "Dense baselines: fp32, runtime eager",
        lambda t: (t["ratio"] == 0) & (t["mode"] == "none") & (t["runtime"] == "eager"),
        (
            col.DATASET,
            col.MODEL,
            col.ACCURACY,
            col.F1,
            col.PARAMETERS,
            col.MACS,
            *col.JOULES,
            col.LATENCY,
            col.N,
        ),
        "python -m tsexp prune.ratio=0",
    ),
    "pruning": (
        "Structured pruning, fine-tuned, in fp32",
        lambda t: (t["ratio"] > 0) & (t["mode"] == "none"),
        (
            col.DATASET,
            col.MODEL,
            col.RUNTIME,
            col.METHOD,
            col.SCOPE,
            col.RATIO,
            col.ACCURACY,
            col.DROP,
            col.UNTUNED,
            col.VERDICT,
            col.P,
            *col.SAVINGS,
            col.SPEEDUP,
            col.IN_RUNTIME,
            col.PARAMETERS,
            col.MACS,
            col.N,
        ),
        "python -m tsexp -m prune.ratio=0.3,0.5",
    ),
    "quantization": (
        "Number formats and runtimes, not pruned",
        lambda t: t["ratio"] == 0,
        (
            col.DATASET,
            col.MODEL,
            col.MODE,
            col.RUNTIME,
            col.ACCURACY,
            col.DROP,
            col.VERDICT,
            col.P,
            *col.SAVINGS,
            col.SPEEDUP,
            col.IN_RUNTIME,
            col.SIZE,
            col.INT8,
            col.N,
        ),
        "python -m tsexp -m quant.mode=none,dynamic,static runtime=onnxruntime",
    ),
    "hybrids": (
        "Pruning and quantization together",
        lambda t: (t["ratio"] > 0) & (t["mode"] != "none"),
        (
            col.DATASET,
            col.MODEL,
            col.RUNTIME,
            col.METHOD,
            col.SCOPE,
            col.RATIO,
            col.MODE,
            col.ACCURACY,
            col.DROP,
            col.UNTUNED,
            col.VERDICT,
            col.P,
            *col.SAVINGS,
            col.SPEEDUP,
            col.IN_RUNTIME,
            col.SIZE,
            col.N,
        ),
        "python -m tsexp -m prune.ratio=0.5 quant.mode=dynamic,static runtime=onnxruntime",
    ),
}
"""Name → title, which rows, columns, and a command that would fill it."""

OF_ALL: dict[
    str,
    tuple[str, Callable[[Frozen, pd.DataFrame], pd.DataFrame], tuple[col.Show, ...], Callable[[Any], Any]],
]
OF_ALL = {
    "costs": (
        "What compression costs, and after how many series it has paid for itself. Training: of the dense "
        "model; compression: pruning, tuning and conversion; brackets of the last column: by the interval of "
        "the saving alone",
        lambda _, rows: costs.of(rows),
        (
            *col.WAY,
            *(
                col.number(f"{head}{mark}", f"{side}_{name}", scale, mark=mark)
                for head, name, scale in (
                    ("training J", "train_j", 1),
                    ("compression J", "compress_j", 1),
                    ("saves mJ/series", "saved_j", 1000),
                )
                for side, mark in (("measured", ""), ("estimated", ESTIMATE))
            ),
            col.PAYS_AFTER,
            col.N,
        ),
        lambda rows: (),
    ),
    "machines": (
        "The same on several machines. There: on the other one; times: the speedup there over that here; "
        "within: the same of speedups over the dense model in fp32 in the same runtime",
        lambda frozen, _: machines.compared(frozen),
        (
            col.word("there", "other_name"),
            *col.WAY,
            col.SPEEDUP,
            col.interval("speedup there", "other_speedup", 2),
            col.interval("times", "times", 2),
            col.number("within", "times_within", text=lambda v: f"{v:.2f}"),
            col.ACCURACY,
            col.interval("accuracy there %", "other_accuracy_pct", 1),
            col.N,
        ),
        machines.said,
    ),
}
"""Name → title, the rows made of all records and the aggregated ones, columns, paragraphs below."""
