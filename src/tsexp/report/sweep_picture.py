"""The picture of a sweep: accuracy and energy of its jobs against the pruning ratio, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.config import NOT_ASKED
from tsexp.report.console import ESTIMATE
from tsexp.report.store import Row
from tsexp.report.style import COLOURS, MARKERS, log_axis, relative, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VARIES_ALONG_X = "prune.ratio"
NAMED_LINES = 24
"""More lines than this are not named: the legend would fill the picture, and colours repeat. Reports split
them into tables and figures."""
LETTER_IN = 0.075
"""Width of a letter of the legend, for which the picture grows."""
BARS = "bars: 95 % intervals of the paired difference to the control (dense, the same training in total)"
FIXED = {
    "prune.method": "pruned by {}",
    "prune.scope": "scope {}",
    "quant.mode": "{}",
    "runtime.name": "{}",
    "measure.batch_size": "batch {}",
    "measure.threads": "threads {}",
    "seed": "seed {}",
}
"""Which params the title names, after dataset and model, where they are the same in all jobs."""
EDGE_PT = 2
"""Beyond accuracies that there may be."""
OPEN: dict[str, Any] = {"marker": "o", "ls": "none", "mfc": "white", "mec": "0.3"}
RING: dict[str, Any] = {"marker": "o", "ls": "none", "ms": 11, "mfc": "none", "mec": "black", "mew": 0.8}


class _Point(NamedTuple):
    """A value with its 95 % interval, and whether that shows a difference to the control."""

    value: float
    low: float
    high: float
    differs: bool


def sweep_figure(rows: list[Row], path: Path) -> Path | None:
    """Draw accuracy and energy against the pruning ratio, a line per combination of what else varies.

    Energy is relative to the control's, on a logarithmic axis. A point whose interval holds "no difference"
    is open. Where the ratio does not vary, the combinations stand side by side, and several models with their
    joules, as each has a control of its own. Of a record with invalid energy there is the accuracy, ringed,
    and no energy.

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
    along_ratio = len({_ratio(r) for r in rows}) > 1
    named = list(lines) if len(lines) <= NAMED_LINES else []
    in_legend = named if along_ratio and len(named) > 1 else []
    width_in = 9.5 + LETTER_IN * max(map(len, in_legend), default=0)
    figure = Figure(figsize=(width_in, 4.3 if along_ratio else 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    in_joules = not along_ratio and len({r.params.get("model.name") for r in rows}) > 1
    energy = _joules if in_joules else _energy
    _draw(left, right, lines, along_ratio, energy)
    estimated = any(not r.measured for r in rows)
    left.set_ylabel("test accuracy (%)")
    low, high = left.get_ylim()
    left.set_ylim(max(low, -EDGE_PT), min(high, 100 + EDGE_PT))  # intervals of a difference go further
    unit = "mJ" if in_joules else "control = 1"
    right.set_ylabel(f"energy per inference{ESTIMATE if estimated else ''} ({unit})")
    _scale(right, [energy(r) for r in rows if r.valid], None if in_joules else 1.0)
    for axes in (left, right):
        _along(axes, named, along_ratio)
    if in_legend:
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    _explain_the_marks(left, rows)
    figure.suptitle(_title(rows), fontsize=10.5, x=0.01, ha="left")
    figure.supxlabel(_small_print(lines, estimated), fontsize=7, color="0.4", x=0.01, ha="left")
    save(figure, path)
    return path


def _draw(
    left: Axes,
    right: Axes,
    lines: dict[str, list[Row]],
    along_ratio: bool,
    energy: Callable[[Row], _Point],
) -> None:
    """Accuracy at the left, energy at the right: a line each, at its ratios or in a place of its own."""
    for i, (label, members) in enumerate(lines.items()):
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i // len(COLOURS) % len(MARKERS)],
            "label": label,
        }

        def place(row: Row, aside: int = i) -> float:
            return _ratio(row) if along_ratio else aside

        _line(left, members, place, _accuracy, style)
        _line(right, [r for r in members if r.valid], place, energy, style)
        unsure = [r for r in members if not r.valid]
        left.plot([place(r) for r in unsure], [_accuracy(r).value for r in unsure], **RING)


def _small_print(lines: dict[str, list[Row]], estimated: bool) -> str:
    many = [f"{len(lines)} combinations, too many to name"] if len(lines) > NAMED_LINES else []
    return "; ".join([*many, BARS, *([f"{ESTIMATE} estimated from CPU time"] if estimated else [])])


def subject(rows: Sequence[Row]) -> str:
    """Name the dataset and the model of these rows, or say how many there are."""
    said = []
    for key, several in (("data.name", "datasets"), ("model.name", "models")):
        values = {r.params.get(key, "") for r in rows}
        said.append(f"{len(values)} {several}" if len(values) > 1 else values.pop())
    return " · ".join(filter(None, said))


def _line(
    axes: Axes,
    rows: Sequence[Row],
    place: Callable[[Row], float],
    point: Callable[[Row], _Point],
    style: dict[str, Any],
) -> None:
    x, points = [place(r) for r in rows], [point(r) for r in rows]
    reach = [[max(0.0, p.value - p.low) for p in points], [max(0.0, p.high - p.value) for p in points]]
    axes.errorbar(x, [p.value for p in points], yerr=reach, capsize=3, ms=5, **style)
    alike = [(a, p.value) for a, p in zip(x, points, strict=True) if not p.differs]
    axes.plot(
        *zip(*alike, strict=True) if alike else ([], []),
        ls="none",
        ms=5,
        marker=style["marker"],
        mfc="white",
        mec=style["color"],
        zorder=3,
    )


def _accuracy(row: Row) -> _Point:
    """The interval is that of the drop, around the accuracy that it leads to."""
    value = 100 * row.metrics["test/accuracy"]
    drop, low, high = (row.metrics[f"vs_dense/accuracy_drop_{end}"] for end in ("pt", "lo", "hi"))
    return _Point(value, value - (high - drop), value + (drop - low), not low <= 0 <= high)


def _energy(row: Row) -> _Point:
    saving, low, high = (row.metrics[f"vs_dense/energy_saving_{end}"] for end in ("pct", "lo", "hi"))
    return _Point(relative(saving), relative(high), relative(low), not low <= 0 <= high)


def _joules(row: Row) -> _Point:
    """In mJ; the interval is still that of the paired difference."""
    of_control, joules = _energy(row), 1000 * row.metrics["energy/per_inference_j"]
    value, low, high = (joules * v / of_control.value for v in of_control[:3])
    return _Point(value, low, high, of_control.differs)


def _scale(axes: Axes, points: Sequence[_Point], level: float | None) -> None:
    """A logarithmic axis that names values among these, and a line at `level`."""
    levels = [] if level is None else [level]
    log_axis(axes.yaxis, [*levels, *(p.low for p in points), *(p.high for p in points)])
    for one in levels:
        axes.axhline(one, color="0.6", lw=0.8, zorder=0)


def _along(axes: Axes, names: list[str], along_ratio: bool) -> None:
    """What runs along x: the pruning ratio, or the combinations themselves."""
    axes.grid(alpha=0.3)
    if along_ratio:
        axes.set_xlabel("pruning ratio")
    else:
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
        axes.margins(x=0.15)


def _explain_the_marks(axes: Axes, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    points = [*map(_accuracy, rows), *(_energy(r) for r in rows if r.valid)]
    handles = []
    if not all(p.differs for p in points):
        handles.append(
            Line2D([], [], label="open: no difference to its control seen (interval holds 0)", **OPEN)
        )
    if any(not r.valid for r in rows):
        handles.append(Line2D([], [], label="ringed: energy invalid", **RING))
    if handles:
        axes.legend(
            handles=handles,
            fontsize=7.5,
            frameon=False,
            loc="lower left",
            bbox_to_anchor=(0, 1),  # above: bars leave no place inside
            borderaxespad=0.2,
        )


def _title(rows: Sequence[Row]) -> str:
    """Dataset and model, and what else all jobs share."""
    said = [subject(rows)]
    pruned = any(map(_ratio, rows))
    for key, words in FIXED.items():
        # A dense job is pruned in no way, whatever its params say.
        of = [r for r in rows if _ratio(r)] if key.startswith("prune.") and pruned else rows
        values = {r.params.get(key, "") for r in of}
        if len(values) == 1 and "" not in values and (pruned or not key.startswith("prune.")):
            value = values.pop()
            said.append(words.format("fp32" if (key, value) == ("quant.mode", "none") else value))
    return " · ".join(filter(None, said))


def _lines(rows: list[Row]) -> dict[str, list[Row]]:
    """Label → its rows, by rising ratio."""
    rows = _with_dense_on_every_line(rows)
    several = len({r.energy_source for r in rows}) > 1
    lines: dict[str, list[Row]] = defaultdict(list)
    shown: dict[frozenset[str], list[str]] = {}  # depends on the names of a row's params alone
    for row in sorted(rows, key=_ratio):
        names = frozenset(row.params)
        if names not in shown:
            shown[names] = _shown(names, rows)
        # Measured and estimated energy never share a line.
        source = f" ({row.energy_source})" if several else ""
        lines[_label(row, shown[names]) + source].append(row)
    return lines


def _with_dense_on_every_line(rows: list[Row]) -> list[Row]:
    """Repeat each row at ratio 0 with every way of pruning that its like has.

    It is measured once for all of them.
    """
    out = [r for r in rows if _ratio(r)]
    ways: dict[_Params, dict[_Params, None]] = defaultdict(dict)  # in the order of the rows, each once
    for row in out:
        ways[_all_else(row)][_pruning(row)] = None
    for dense in {r.run_id: r for r in rows if not _ratio(r)}.values():
        of_it = ways.get(_all_else(dense), {})
        out += [replace(dense, params=dense.params | dict(way)) for way in of_it] or [dense]
    return out


_Params = tuple[tuple[str, str], ...]


def _pruning(row: Row) -> _Params:
    return tuple(
        sorted((k, v) for k, v in row.params.items() if k.startswith("prune.") and k != VARIES_ALONG_X)
    )


def _all_else(row: Row) -> _Params:
    return tuple(sorted((k, v) for k, v in row.params.items() if not k.startswith(("prune.", *NOT_ASKED))))


def _ratio(row: Row) -> float:
    return float(row.params.get(VARIES_ALONG_X, 0))


def _shown(names: Collection[str], rows: Sequence[Row]) -> list[str]:
    """Which of these params distinguish a line from the others.

    Those that vary, apart from the ratio and from what follows from those shown.
    """
    shown: list[str] = []
    keys = [k for k in names if k != VARIES_ALONG_X and not k.startswith(NOT_ASKED)]
    for key in sorted(keys, key=lambda k: (not k.endswith(".name"), k)):
        so_far = {tuple(r.params.get(k) for k in shown) for r in rows}
        if len({(*(r.params.get(k) for k in shown), r.params.get(key)) for r in rows}) > len(so_far):
            shown.append(key)
    return shown


def _label(row: Row, shown: Sequence[str]) -> str:
    return (
        " ".join(
            row.params[k] if k.endswith(".name") else f"{k.split('.')[-1]}={row.params[k]}" for k in shown
        )
        or row.params["model.name"]
    )
