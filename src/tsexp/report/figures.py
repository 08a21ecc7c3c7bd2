"""Pictures."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexp.config import NOT_ASKED
from tsexp.report.console import ESTIMATE
from tsexp.report.store import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
VARIES_ALONG_X = "prune.ratio"
NAMED_LINES = 24
"""More lines than this are not named: the legend would leave no room for them, and colours repeat. Reports
split them into tables and figures."""


def sweep_figure(rows: list[Row], path: Path) -> Path | None:
    """Draw accuracy and energy saving against the pruning ratio, a line per combination of what else varies.

    Of a record with invalid energy there is the accuracy, ringed, and no saving.

    Returns
    -------
    Path or None
        `path`, or None if there is no row to draw.
    """
    from matplotlib.figure import Figure

    rows = [r for r in rows if r.scored]
    if not rows:
        return None
    lines = _lines(rows)
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    markers = "osD^vP*X"
    for i, (label, members) in enumerate(lines.items()):
        x = [_ratio(r) for r in members]
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": markers[i // len(COLOURS) % len(markers)],
            "ms": 5,
            "label": label,
        }
        accuracy = [100 * r.metrics["test/accuracy"] for r in members]
        # The interval of the drop, around the accuracy that it leads to.
        less = [
            r.metrics["vs_dense/accuracy_drop_hi"] - r.metrics["vs_dense/accuracy_drop_pt"] for r in members
        ]
        more = [
            r.metrics["vs_dense/accuracy_drop_pt"] - r.metrics["vs_dense/accuracy_drop_lo"] for r in members
        ]
        left.errorbar(x, accuracy, yerr=[less, more], capsize=3, **style)
        unsure = [(a, b) for a, b, r in zip(x, accuracy, members, strict=True) if not r.valid]
        left.plot(
            [a for a, _ in unsure],
            [b for _, b in unsure],
            ls="none",
            marker="o",
            ms=11,
            mfc="none",
            mec="black",
            mew=0.8,
        )
        members = [r for r in members if r.valid]
        x = [_ratio(r) for r in members]
        y = [r.metrics["vs_dense/energy_saving_pct"] for r in members]
        low = [a - r.metrics["vs_dense/energy_saving_lo"] for a, r in zip(y, members, strict=True)]
        high = [r.metrics["vs_dense/energy_saving_hi"] - a for a, r in zip(y, members, strict=True)]
        right.errorbar(x, y, yerr=[[max(0, v) for v in low], [max(0, v) for v in high]], capsize=3, **style)
    mark = ESTIMATE if any(not r.measured for r in rows) else ""
    left.set(
        xlabel="pruning ratio (share of heads and FFN units)", ylabel="test accuracy (%)", title="accuracy"
    )
    right.set(xlabel="pruning ratio", ylabel=f"energy saving{mark} against the control (%)", title="energy")
    right.axhline(0, color="0.6", lw=0.8, zorder=0)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    if 1 < len(lines) <= NAMED_LINES:
        figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    many = f"{len(lines)} combinations, too many to name; " if len(lines) > NAMED_LINES else ""
    note = (
        many
        + "bars: 95 % intervals of the paired difference to the control (dense, the same training in total)"
    )
    note += f"; {ESTIMATE} estimated from CPU time" if mark else ""
    note += "; ringed: energy invalid" if any(not r.valid for r in rows) else ""
    figure.supxlabel(note, fontsize=7, color="0.4", x=0.01, ha="left")
    save(figure, path)
    return path


def save(figure: Figure, path: Path) -> None:
    """Write a picture as a whole or not at all; its name tells the format."""
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, dpi=150, format=path.suffix.removeprefix("."))
    partial.replace(path)


def _lines(rows: list[Row]) -> dict[str, list[Row]]:
    """Label → its rows, by rising ratio."""
    rows = _with_dense_on_every_line(rows)
    several = len({r.tags["tsexp.energy_source"] for r in rows}) > 1
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=_ratio):
        # Measured and estimated energy never share a line.
        lines[_label(row, rows) + (f" ({row.tags['tsexp.energy_source']})" if several else "")].append(row)
    return lines


def _with_dense_on_every_line(rows: list[Row]) -> list[Row]:
    """Repeat each row at ratio 0 with every way of pruning that its like has.

    It is measured once for all of them.
    """
    pruned = [r for r in rows if _ratio(r)]
    out = list(pruned)
    for dense in {r.run_id: r for r in rows if not _ratio(r)}.values():
        ways = [_pruning(r) for r in pruned if _all_else(r) == _all_else(dense)]
        out += [
            replace(dense, params=dense.params | way) for i, way in enumerate(ways) if way not in ways[:i]
        ] or [dense]
    return out


def _pruning(row: Row) -> dict[str, str]:
    return {k: v for k, v in row.params.items() if k.startswith("prune.") and k != VARIES_ALONG_X}


def _all_else(row: Row) -> dict[str, str]:
    return {k: v for k, v in row.params.items() if not k.startswith(("prune.", *NOT_ASKED))}


def _ratio(row: Row) -> float:
    return float(row.params[VARIES_ALONG_X])


def _label(row: Row, rows: list[Row]) -> str:
    """What distinguishes this row's line from the others.

    The params that vary, apart from the ratio and from what follows from those shown.
    """
    shown: list[str] = []
    keys = [k for k in row.params if k != VARIES_ALONG_X and not k.startswith(NOT_ASKED)]
    for key in sorted(keys, key=lambda k: (not k.endswith(".name"), k)):
        told = {tuple(r.params.get(k) for k in shown) for r in rows}
        if len({(*(r.params.get(k) for k in shown), r.params.get(key)) for r in rows}) > len(told):
            shown.append(key)
    return (
        " ".join(
            row.params[k] if k.endswith(".name") else f"{k.split('.')[-1]}={row.params[k]}" for k in shown
        )
        or row.params["model.name"]
    )
