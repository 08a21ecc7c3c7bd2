"""What a job and a sweep show in the terminal: tables that fit 80 columns, and lines in words."""

from __future__ import annotations

import math
import os
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tsexp.marks import ENDS, FEW
from tsexp.report.store import Row

ESTIMATE = "†"
FRONT = "◆"
PASTED = 100
"""Columns of what is not shown in a terminal: pasted into an issue or a mail, it does not wrap."""
SAID = 16
"""More lines in words than this nobody reads: then only those of the best."""
LONGEST = 300
"""Characters of a reason why there is no measurement; all of it is in the job's folder."""
NAMED = 3
"""Of more jobs than this, a note says only how many they are."""
NONE = "–"


def terminal() -> Console:
    """Return the console that results are printed on: as wide as the terminal, or `PASTED`."""
    shown = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if shown else PASTED, highlight=False)


def table(row: Row) -> RenderableType:
    """One run: every number with its unit and its 95 % interval against the control."""
    m, p = row.metrics, row.params
    runtime = p["runtime.name"]
    chosen = row.tags.get("tsexp.runtime", runtime)
    made = [p["data.name"], p["model.name"], runtime if chosen == runtime else f"{runtime}: {chosen}"]
    made += [p["quant.mode"], f"pruned {float(p['prune.ratio']):.0%}"]
    out = _table(escape(" · ".join(made)), "", "artifact", "against the control [95 %]")
    mark = "" if row.measured else ESTIMATE

    control = f"control: {_percent(m, 'test/control_accuracy')} %"
    if m.get("test/dense_accuracy") != m.get("test/control_accuracy"):
        control += f", {_percent(m, 'test/dense_accuracy')} % before tuning"
    if row.scored:
        out.add_row("accuracy", f"{_percent(m, 'test/accuracy')} %", f"drop {_drop(row)} points")
    else:
        out.add_row("accuracy", "invalid", "")
    out.add_row("", "", control)
    if "val/accuracy" in m:
        on = f"on {m['val/series']:.0f} validation series"
        out.add_row(on, f"{_percent(m, 'val/accuracy')} %", f"drop {m['val/accuracy_drop_pt']:+.1f} points")
    out.add_row("macro F1", f"{_percent(m, 'test/macro_f1')} %", "")
    if row.valid:
        out.add_row(f"energy per series{mark}", _energy(row), f"saving {_saving(row)} %")
        out.add_row("latency of a call, p50", f"{_number(m, 'latency/p50_ms', '.3f')} ms", "")
        for what, key in (("time", "speedup"), ("CPU time", "cpu_speedup")):
            out.add_row(f"speedup, {what}", "", between(m, f"vs_dense/{key}", "{:.2f}"))
    else:
        out.add_row("energy, latency, speedup", "invalid", "")
    removed = f"{m['prune/achieved_ratio']:.0%}" if "prune/achieved_ratio" in m else NONE
    out.add_row("parameters", _number(m, "size/parameters", ",.0f"), f"channels removed: {removed}")
    out.add_row("MACs per series", _number(m, "size/macs", ",.0f"), "")
    size = times_smaller(m["vs_dense/size_ratio"], ".2f") if "vs_dense/size_ratio" in m else NONE
    out.add_row("bytes on disk", _number(m, "size/bytes", ",.0f"), size)
    for name, unit, factor, label in (
        ("load", "ms", 1e-3, "loading"),
        ("first_call", "ms", 1e-3, "first call"),
        ("train", "s", 1, "training the dense model"),
        ("compress", "s", 1, "compressing"),
    ):
        if f"cost/{name}_{unit}" in m:
            joules = f"{si(m[f'cost/{name}_j'], 'J')}{mark}" if f"cost/{name}_j" in m else ""
            out.add_row(label, si(factor * m[f"cost/{name}_{unit}"], "s"), joules)
    if "cost/break_even_inferences" in m:
        out.add_row("has paid for itself after", f"{m['cost/break_even_inferences']:,.0f}", "series")
    about = "control: dense, fp32, eager, with the same training in total"
    return Group(out, Text(about), *_notes([row], [""]), Text(f"\n{_sentence([row])}"))


def sweep_table(
    rows: list[Row],
    failed: dict[str, str],
    title: str,
    skipped: dict[str, str] | None = None,
    front: Collection[str] = (),
) -> RenderableType:
    """All jobs of a sweep: what matters in one table, the details in another, and what it means in words.

    Parameters
    ----------
    rows
        Of the jobs that were measured.
    failed, skipped
        Name of a job without a row → why.
    title
        Above it all.
    front
        Ids of the runs to be marked as such.
    """
    labels = short([r.name for r in rows])
    out = _table(title, "job", "acc. %", "drop, points", "saving %", "speedup")
    details = _table(
        "details: per series; latency of one call",
        "job",
        "F1 %",
        "energy",
        "p50 ms",
        "params",
        "MACs",
        "bytes",
    )
    validated = any("val/accuracy" in r.metrics for r in rows)
    if validated:
        details.add_column("val. %", justify="right", no_wrap=True)
    for job, row in zip(labels, rows, strict=True):
        m = row.metrics
        marks = (f" {FRONT}" if row.run_id in front else "") + (
            " ⚠" if row.tags.get("tsexp.warnings") else ""
        )
        quality = [_percent(m, "test/accuracy"), _drop(row)] if row.scored else ["invalid", NONE]
        cost = ["invalid", NONE]
        if row.valid:
            cost = [_saving(row) + ("" if row.measured else ESTIMATE), _number(m, "vs_dense/speedup", ".2f")]
        out.add_row(escape(job + marks), *quality, *cost)
        details.add_row(
            escape(job),
            _percent(m, "test/macro_f1") if row.scored else NONE,
            _energy(row) + ("" if row.measured else ESTIMATE) if row.valid else "invalid",
            _number(m, "latency/p50_ms", ".2f") if row.valid else NONE,
            *(si(m[k], "") if k in m else NONE for k in ("size/parameters", "size/macs", "size/bytes")),
            *([_percent(m, "val/accuracy") if row.scored else NONE] if validated else []),
        )
    chosen = (
        f"{FRONT} on the Pareto front: neither another nor the control has more accuracy for less energy; "
    )
    below: list[RenderableType] = []
    if front:
        below.append(Text(chosen + chosen_by(rows)))
    below += _notes(rows, labels)
    below += [Text(f"skipped {line}") for line in _shared(list((skipped or {}).items()))]
    below += [Text(textwrap.shorten(f"FAILED {job}: {why}", LONGEST), "red") for job, why in failed.items()]
    tables = [out, details] if rows else [Text(title)]
    return Group(*tables, *below, Text(""), *map(Text, in_words(rows)))


def in_words(rows: Sequence[Row]) -> list[str]:
    """Say of each job, or of each group of jobs that differ in the seed alone, what came out.

    Of many only those that save energy without a loss of accuracy that can be seen, the best first, and how
    many there are of the others.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:  # a name is what varies; without the seed, of a group
        groups[" ".join(w for w in row.name.split() if not w.startswith("seed="))].append(row)
    lines = {}
    for label, (name, members) in zip(short(list(groups)), groups.items(), strict=True):
        seeds = len({member.name for member in members})
        told = f"{seeds} seeds" if seeds > 1 else ""
        if seeds < len(members):
            told = f"{told}, {len(members)} measurements".removeprefix(", ")
        what = ", ".join(filter(None, [label.replace("=", " "), told])) or members[0].name
        lines[name] = f"{what}: {_sentence(members)}"
    if len(lines) <= SAID:
        return list(lines.values())
    kept = [n for n, g in groups.items() if all(_saves(r) > 0 and _loses(r) <= 0 for r in g)]
    kept.sort(key=lambda n: -min(r.metrics["vs_dense/energy_saving_pct"] for r in groups[n]))
    rest = len(lines) - min(len(kept), SAID)
    return [*(lines[n] for n in kept[:SAID]), f"… and {rest} more, in the table: {_counts(groups, kept)}"]


def short(names: Sequence[str]) -> list[str]:
    """Shorten the names of jobs, which are overrides: ``data=acsf1 prune.ratio=0.5`` → ``acsf1 ratio=0.5``.

    A word stands for itself, a number needs its key. Names that would no longer differ stay as they are.
    """
    out = [" ".join(map(_short, name.split())) for name in names]
    return out if len(set(out)) == len(set(names)) else list(names)


def _short(override: str) -> str:
    key, equals, value = override.partition("=")
    if (
        equals
        and value[:1].isalpha()
        and value.lower() not in ("true", "false", "null", "none", "nan", "inf")
    ):
        return value
    group, _, last = key.rpartition(".")
    return f"{group if group and last in ('mode', 'name') else last}{equals}{value}"


def chosen_by(rows: Sequence[Row]) -> str:
    """Say on which series the front of these rows is chosen, and whether they are enough."""
    series = int(min((r.metrics.get("val/series", 0) for r in rows), default=0))
    if not series:
        return (
            "there are no validation series: chosen on the test split itself, so optimistic; "
            "data.val_fraction sets series aside"
        )
    few = (
        f"; so few hardly choose better than chance, more: data.val_fraction (fewer than {FEW})"
        if series < FEW
        else ""
    )
    return f"chosen by the accuracy on {series} validation series, that on test series is only reported{few}"


def _table(title: str, first: str, *heads: str) -> Table:
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    out.add_column(first, overflow="fold")
    for head in heads:
        out.add_column(head, justify="right", no_wrap=True)
    return out


def _notes(rows: Sequence[Row], labels: Sequence[str]) -> list[Text]:
    notes = []
    if any(not r.measured for r in rows):
        notes.append(
            f"{ESTIMATE} estimated from CPU time (no energy counter answers here): compare only with other "
            "estimates"
        )
    notes += sorted({f"energy: {r.tags['tsexp.energy_source']}" for r in rows if r.measured})
    for tag, mark in (("tsexp.invalid_reasons", "invalid"), ("tsexp.warnings", "⚠")):
        said = [
            (label, reason)
            for label, r in zip(labels, rows, strict=True)
            for reason in re.split("; (?!more )", r.tags.get(tag) or "")  # of older runs, one has a semicolon
            if reason
        ]
        notes += [f"{mark} {line}" for line in _shared(said)]
    return list(map(Text, notes))


def _shared(said: Sequence[tuple[str, str]]) -> list[str]:
    """What was said of several jobs, once, with the range of each number in it.

    Parameters
    ----------
    said
        Pairs of a job and a thing that is said of it.
    """
    jobs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    numbers: dict[tuple[str, ...], list[list[str]]] = defaultdict(list)
    for job, reason in said:
        parts = re.split(r"(\d+(?:\.\d+)?)", reason)
        jobs[tuple(parts[::2])].append(job)
        numbers[tuple(parts[::2])].append(parts[1::2])
    out = []
    for words, names in jobs.items():
        ranges = [sorted(column, key=float) for column in zip(*numbers[words], strict=True)]
        filled = [c[0] if c[0] == c[-1] else f"{c[0]} to {c[-1]}" for c in ranges]
        text = "".join(w for pair in zip_longest(words, filled, fillvalue="") for w in pair)
        which = ", ".join(filter(None, names)) if len(names) <= NAMED else f"{len(names)} jobs"
        out.append(f"{text} ({which})" if which else text)
    return out


def _sentence(members: Sequence[Row]) -> str:
    """Energy and accuracy of jobs that are repeats of each other, as far as their intervals go."""
    return f"{_energy_in_words(members)}, {_accuracy_in_words(members)}"


def _energy_in_words(members: Sequence[Row]) -> str:
    valid = [r for r in members if r.valid]
    if not valid:
        return "energy invalid"
    seen = [_saves(r) for r in valid]
    percent = [abs(r.metrics["vs_dense/energy_saving_pct"]) for r, s in zip(valid, seen, strict=True) if s]
    mark = "" if all(r.measured for r in valid) else ESTIMATE
    if not percent:
        return "no saving seen"
    if len(set(seen) - {0}) > 1:
        return "less energy in some, more in others"
    often = "" if len(percent) == len(members) else f" in {len(percent)} of {len(members)}"
    return f"{_range(percent, '.0f')} % {'less' if max(seen) > 0 else 'more'} energy{mark}{often}"


def _accuracy_in_words(members: Sequence[Row]) -> str:
    scored = [r for r in members if r.scored]
    if not scored:
        return "accuracy invalid"
    seen = [_loses(r) for r in scored]
    points = [abs(r.metrics["vs_dense/accuracy_drop_pt"]) for r, s in zip(scored, seen, strict=True) if s]
    if not points:
        return "no difference in accuracy seen"
    if len(set(seen) - {0}) > 1:
        return "accuracy lost in some, gained in others"
    often = "" if len(points) == len(members) else f" in {len(points)} of {len(members)}"
    return f"accuracy {'lost' if max(seen) > 0 else 'gained'}: {_range(points, '.1f')} points{often}"


def _counts(groups: dict[str, list[Row]], kept: Collection[str]) -> str:
    """How many groups there are of each outcome."""
    lost = sum(any(_loses(r) > 0 for r in g) for g in groups.values())
    unseen = sum(not any(_loses(r) > 0 for r in g) for n, g in groups.items() if n not in kept)
    repeated = any(len(g) > 1 for g in groups.values())
    return (
        f"{len(kept)} save energy with no loss of accuracy seen, {lost} lose accuracy, "
        f"in {unseen} no saving was seen{', or not in each repetition' if repeated else ''}"
    )


def _saves(row: Row) -> int:
    """1 if the interval of the saving is above 0, −1 if it is below, else 0."""
    return _side(row.metrics, "vs_dense/energy_saving") if row.valid else 0


def _loses(row: Row) -> int:
    """1 if the interval of the accuracy drop is above 0, −1 if it is below, else 0."""
    return _side(row.metrics, "vs_dense/accuracy_drop") if row.scored else 0


def _side(metrics: dict[str, float], key: str) -> int:
    low, high = metrics.get(f"{key}_lo", math.nan), metrics.get(f"{key}_hi", math.nan)
    return (low > 0) - (high < 0)


def _drop(row: Row) -> str:
    return between(row.metrics, "vs_dense/accuracy_drop", "{:+.1f}", "_pt")


def _saving(row: Row) -> str:
    return between(row.metrics, "vs_dense/energy_saving", "{:.1f}", "_pct")


def between(metrics: Mapping[str, float], key: str, form: str, first: str = "") -> str:
    """Return ``value [low, high]`` of what is called `key`, its value with `first` at the end."""
    if f"{key}{first}" not in metrics:
        return NONE
    middle, *ends = (form.format(metrics.get(f"{key}{end}", math.nan)) for end in (first, *ENDS[1:]))
    return f"{middle} [{', '.join(ends)}]"


def _energy(row: Row) -> str:
    return si(row.metrics["energy/per_inference_j"], "J")


def _percent(metrics: dict[str, float], key: str) -> str:
    return f"{100 * metrics[key]:.1f}" if key in metrics else NONE


def _number(metrics: dict[str, float], key: str, form: str) -> str:
    return format(metrics[key], form) if key in metrics else NONE


def _range(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def times_smaller(ratio: float, form: str) -> str:
    """Say how the bytes of something compare with those of the dense model."""
    return f"{ratio:{form}} times smaller" if ratio >= 1 else f"{1 / ratio:{form}} times larger"


def si(value: float, unit: str) -> str:
    """Three significant digits with an SI prefix."""
    value = float(f"{value:.3g}")  # .9999 m is 1 m, not 1e+03 µ
    prefixes = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ", 1e-9: "n"}
    for factor, prefix in prefixes.items():
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
