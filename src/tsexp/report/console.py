"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.markup import escape
from rich.table import Table

from tsexp.report.store import Row

ESTIMATE = "†"
FRONT = "◆"
FEW = 30
"""Fewer validation series than this hardly choose better than chance."""


def table(row: Row) -> Table:
    """One run: every number with its unit and its 95 % interval against the dense reference."""
    m, p = row.metrics, row.params
    chosen = row.tags.get("tsexp.runtime", p["runtime.name"])
    runtime = p["runtime.name"] if chosen == p["runtime.name"] else f"{p['runtime.name']}: {chosen}"
    title = f"{p['data.name']} · {p['model.name']} · {runtime} · {p['quant.mode']} · pruned {float(p['prune.ratio']):.0%}"
    out = Table(title=title, caption=_notes([row]), caption_justify="left", title_justify="left")
    out.add_column("")
    out.add_column("artifact", justify="right")
    out.add_column("against the control [95 %]", justify="right")

    def versus(key: str, text: str, low: str | None = None, high: str | None = None) -> str:
        low, high = low or f"{key}_lo", high or f"{key}_hi"
        return f"{text.format(m[key])} [{text.format(m[low])}, {text.format(m[high])}]" if key in m else "–"

    drop = ("vs_dense/accuracy_drop_pt", "{:+.1f}", "vs_dense/accuracy_drop_lo", "vs_dense/accuracy_drop_hi")
    saving = (
        "vs_dense/energy_saving_pct",
        "{:.1f}",
        "vs_dense/energy_saving_lo",
        "vs_dense/energy_saving_hi",
    )
    mark = "" if row.measured else ESTIMATE
    out.add_row(
        "accuracy",
        f"{100 * m['test/accuracy']:.1f} %" if row.scored else "invalid",
        f"drop {versus(*drop)} points" if row.scored else "",
    )
    before = (
        f", {100 * m['test/dense_accuracy']:.1f} % before tuning"
        if m["test/dense_accuracy"] != m["test/control_accuracy"]
        else ""
    )
    out.add_row("", "", f"control, dense fp32 eager: {100 * m['test/control_accuracy']:.1f} %{before}")
    if "val/accuracy" in m:
        out.add_row(
            f"on {m['val/series']:.0f} validation series",
            f"{100 * m['val/accuracy']:.1f} %",
            f"drop {m['val/accuracy_drop_pt']:+.1f} points",
        )
    out.add_row("macro F1", f"{100 * m['test/macro_f1']:.1f} %", "")
    if row.valid:
        out.add_row(
            f"energy per inference{mark}",
            _si(m["energy/per_inference_j"], "J"),
            f"saving {versus(*saving)} %",
        )
        out.add_row(
            "latency p50, one call",
            f"{m['latency/p50_ms']:.3f} ms",
            f"speedup (windows) {versus('vs_dense/speedup', '{:.2f}')}",
        )
        out.add_row("", "", f"speedup (CPU time) {versus('vs_dense/cpu_speedup', '{:.2f}')}")
    else:
        out.add_row("energy, latency, speedup", "invalid", "")
    out.add_row(
        "parameters", f"{m['size/parameters']:,.0f}", f"channels removed {m['prune/achieved_ratio']:.0%}"
    )
    out.add_row("MACs per series", f"{m['size/macs']:,.0f}", "")
    out.add_row("bytes on disk", f"{m['size/bytes']:,.0f}", f"{m['vs_dense/size_ratio']:.2f} times smaller")
    for name, unit, factor, label in (
        ("load", "ms", 1e-3, "loading"),
        ("first_call", "ms", 1e-3, "first call"),
        ("train", "s", 1, "training the dense model"),
        ("compress", "s", 1, "compressing"),
    ):
        if f"cost/{name}_{unit}" in m:
            joules = f"{_si(m[f'cost/{name}_j'], 'J')}{mark}" if f"cost/{name}_j" in m else ""
            out.add_row(label, _si(factor * m[f"cost/{name}_{unit}"], "s"), joules)
    if "cost/break_even_inferences" in m:
        out.add_row(
            "compressing has paid for itself", f"after {m['cost/break_even_inferences']:,.0f} series", ""
        )
    return out


def sweep_table(
    rows: list[Row],
    failed: dict[str, str],
    title: str,
    skipped: dict[str, str] | None = None,
    front: Collection[str] = (),
) -> Table:
    """All jobs of a sweep, one line each.

    `failed` and `skipped` map the name of a job without a row to its reason; `front` has the ids of the runs
    to be marked as such.
    """
    reasons = [f"skipped, {name}: {reason}" for name, reason in (skipped or {}).items()]
    if front:
        reasons.insert(
            0,
            f"{FRONT} on the Pareto front: neither another nor the control has more accuracy for less "
            f"energy; {chosen_by(rows)}",
        )
    out = Table(
        title=title,
        caption="\n".join([_notes(rows), *map(escape, reasons)]),
        caption_justify="left",
        title_justify="left",
    )
    out.add_column("job", overflow="fold")
    val = ["val. acc. %"] if front and any("val/accuracy" in r.metrics for r in rows) else []
    heads = [
        *val,
        "accuracy %",
        "drop, points",
        "F1 %",
        "energy/series",
        "saving %",
        "p50 ms",
        "speedup",
        "params",
        "MACs",
        "bytes",
    ]
    for head in heads:
        out.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        m = row.metrics
        mark = "" if row.measured else ESTIMATE
        name = (
            escape(row.name)
            + (f" {FRONT}" if row.run_id in front else "")
            + (" ⚠" if row.tags.get("tsexp.warnings") else "")
        )
        quality = ["invalid", "–", "–"]
        if row.scored:
            quality = [
                f"{100 * m['test/accuracy']:.1f}",
                f"{m['vs_dense/accuracy_drop_pt']:+.1f} [{m['vs_dense/accuracy_drop_lo']:+.1f}, "
                f"{m['vs_dense/accuracy_drop_hi']:+.1f}]",
                f"{100 * m['test/macro_f1']:.1f}",
            ]
        if val:
            quality.insert(0, f"{100 * m['val/accuracy']:.1f}" if row.scored and "val/accuracy" in m else "–")
        cost = ["invalid", "–", "–", "–"]
        if row.valid:
            cost = [
                _si(m["energy/per_inference_j"], "J") + mark,
                f"{m['vs_dense/energy_saving_pct']:.1f} [{m['vs_dense/energy_saving_lo']:.1f}, "
                f"{m['vs_dense/energy_saving_hi']:.1f}]{mark}",
                f"{m['latency/p50_ms']:.2f}",
                f"{m['vs_dense/speedup']:.2f} [{m['vs_dense/speedup_lo']:.2f}, "
                f"{m['vs_dense/speedup_hi']:.2f}]",
            ]
        out.add_row(
            name, *quality, *cost, *(_si(m[k], "") for k in ("size/parameters", "size/macs", "size/bytes"))
        )
    for name in skipped or {}:
        out.add_row(escape(name), "skipped", *[""] * (len(heads) - 1))
    for name, error in failed.items():
        out.add_row(escape(name), f"[red]FAILED[/red]: {escape(error)}", *[""] * (len(heads) - 1))
    return out


def chosen_by(rows: Sequence[Row]) -> str:
    """Say on which series the front of these rows is chosen, and whether they are enough."""
    series = int(min((r.metrics.get("val/series", 0) for r in rows), default=0))
    if not series:
        return "there are no validation series: chosen on the test split itself, so optimistic; data.val_fraction sets series aside"
    few = (
        f"; so few hardly choose better than chance, more: data.val_fraction (fewer than {FEW})"
        if series < FEW
        else ""
    )
    return f"chosen by the accuracy on {series} validation series, that on test series is only reported{few}"


def _notes(rows: list[Row]) -> str:
    notes = []
    if any(not r.measured for r in rows):
        notes.append(
            f"{ESTIMATE} estimated from CPU time (no energy counter answers here): compare only with other "
            f"estimates"
        )
    notes += sorted({f"energy: {r.tags['tsexp.energy_source']}" for r in rows if r.measured})
    for r in rows:
        notes += [f"invalid, {r.name}: {r.tags['tsexp.invalid_reasons']}"] if not r.valid else []
        notes += [f"⚠ {r.name}: {r.tags['tsexp.warnings']}"] if r.tags.get("tsexp.warnings") else []
    return escape("\n".join(notes))


def _si(value: float, unit: str) -> str:
    """Three significant digits with an SI prefix."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
