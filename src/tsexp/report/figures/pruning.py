"""Lines over the pruning ratio: what it saves, and what accuracy each way of pruning costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.points import Study
from tsexp.report.style import COLOURS, MARKERS, log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WAYS = "pruning_ways"
APART = 0.006
"""Between the lines of a panel at one pruning ratio, in units of the ratio."""
MOST_TICKS = 6
CLOSE = 0.11
"""Ratios nearer than that to the one before have a tick without a number."""
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
RATIO = "pruning ratio"


def ratio(study: Study) -> Drawing:
    """Draw energy and speedup against the pruning ratio, on logarithmic axes, a line per model.

    The way of pruning that was measured most, in fp32, in eager PyTorch or else the runtime with most of it.
    """
    from matplotlib.lines import Line2D

    shown, runtime = _fp32(study)
    ways, way = _ways(shown), commonest_way(shown[shown["ratio"] > 0])
    shown = shown[(shown["ratio"] == 0) | ((shown["method"] == way[0]) & (shown["scope"] == way[1]))]
    shown = shown[shown["dataset"].isin(shown.loc[shown["ratio"] > 0, "dataset"])]
    sides = [s for s in ("measured", "estimated") if shown[f"{s}_relative"].notna().any()]
    rows = [(f"{s}_relative", f"{s} energy{words.dagger(s)}\n(control = 1)") for s in sides]
    rows.append(("speedup", "speedup\n(wall time)"))
    datasets = list(shown["dataset"].unique())
    across = min(3, len(datasets))
    blocks = math.ceil(len(datasets) / across)
    figure = layout.sized(across, 1.55 * len(rows) * blocks + 0.9)
    grid = figure.subplots(
        len(rows) * blocks, across, squeeze=False, sharex=True, sharey="row" if blocks == 1 else False
    )
    for axes in grid.flat[:]:
        axes.set_visible(False)
    marks = dict(zip(sorted(shown.loc[shown["ratio"] > 0, "model"].unique()), 3 * MARKERS, strict=False))
    for i, dataset in enumerate(datasets):
        here = shown[shown["dataset"] == dataset]
        for j, (value, label) in enumerate(rows):
            axes = grid[i // across * len(rows) + j, i % across]
            axes.set(visible=True, title=dataset if j == 0 else "", ylabel="" if i % across else label)
            axes.tick_params(labelbottom=j == len(rows) - 1)
            _against_one(axes, here, value, marks, study.colours, scale=shown if blocks == 1 else here)
    figure.align_ylabels()
    handles = [Line2D([], [], color=study.colours[m], marker=mark, label=m) for m, mark in marks.items()]
    others = ", ".join(" ".join(w) for w in ways if w != way)
    notes = [
        f"{runtime}, fp32, pruned by {' '.join(way)}.",
        *words.small_print(study, *sides, warned=shown["warned"].any()),
        words.bars(shown, "speedup"),
    ]
    layout.finish(figure, notes, handles, RATIO)
    paired = "Against the control, in the same windows."
    return Drawing(figure, [*notes, paired + (f" The others are in {WAYS}: {others}." if others else "")])


def _against_one(
    axes: Axes,
    here: pd.DataFrame,
    value: str,
    marks: dict[str, str],
    colours: dict[str, str],
    scale: pd.DataFrame,
) -> None:
    """One panel of factors against the control, which is 1; the axis holds what `scale` has."""
    log_axis(axes.yaxis, [1.0, *scale[value].dropna()])
    axes.axhline(1, color="0.5", lw=0.7, zorder=0)
    models = list(marks)
    for (model, *_), line in _lines(here[here[value].notna()]):
        place = models.index(model) - (len(models) - 1) / 2
        _line(axes, line, value, place, color=colours[model], marker=marks[model])
    _ratio_ticks(axes, scale)
    layout.frame(axes, scale, value, 1)


def pruning_ways(study: Study) -> Drawing:
    """Draw accuracy lost against the pruning ratio, a line per importance method and scope, and the control.

    In fp32, in eager PyTorch or else the runtime with most of it.
    """
    from matplotlib.lines import Line2D

    shown, runtime = _fp32(study)
    ways = _ways(shown)
    if len(ways) < 2:
        way = " ".join(ways[0])
        raise CannotDraw(f"there is one way of pruning only, {way}: there is nothing to compare")
    pruned = shown[shown["ratio"] > 0]
    # With three datasets, a row per model.
    of = sorted(set(pruned[["model", "dataset"]].itertuples(index=False, name=None)))
    styles = _styles(ways)
    titles = [f"{dataset} · {model}" for model, dataset in of]
    figure, panels = layout.panels(titles, height_in=1.85, legend_in=0.45)
    levels = []
    for (model, dataset), (title, axes) in zip(of, panels, strict=True):
        here = shown[(shown["dataset"] == dataset) & (shown["model"] == model)]
        control = _only_control(study, here[here["ratio"] > 0])
        tuned, untuned = control["accuracy_pct"], control["dense_accuracy_pct"]
        _lost(axes, here, styles, tuned - untuned)
        axes.set_title(f"{title}\ncontrol {tuned:.1f} %{words.seeds(here, study)}")
        _ratio_ticks(axes, shown)
        levels.append(f"{title}: control {tuned:.1f} %, dense before tuning {untuned:.1f} %.")
    handles = [Line2D([], [], label=" ".join(w), **style) for w, style in styles.items()]
    handles += [Line2D([], [], label="control: dense, tuned alike", color="0.3", lw=0.9)]
    handles += [Line2D([], [], label="dense, not tuned", color="0.3", ls=":", lw=0.9)]
    notes = [
        f"{runtime}, fp32, against the control of the same seed: the dense model with the same training "
        "in total.",
        *words.small_print(study, warned=shown["warned"].any()),
        words.bars(pruned, "accuracy_drop_pt"),
        "Points of one ratio stand side by side.",
    ]
    layout.finish(figure, notes, handles, RATIO, "accuracy lost (points)")
    return Drawing(figure, [*notes, *levels])


def _lost(
    axes: Axes, here: pd.DataFrame, styles: dict[tuple[str, str], dict[str, Any]], untuned: float
) -> None:
    """One panel: the ways that one dataset and model have, between the control and the untuned model."""
    places = {way: k - (len(styles) - 1) / 2 for k, way in enumerate(styles)}
    lines = {(method, scope): line for (_, method, scope), line in _lines(here)}
    for way in styles:
        if way in lines:
            _line(axes, lines[way], "accuracy_drop_pt", places[way], **styles[way])
    axes.axhline(0, color="0.3", lw=0.9, zorder=0)
    axes.axhline(untuned, color="0.3", ls=":", lw=0.9, zorder=0)
    layout.frame(axes, here[here["ratio"] > 0], "accuracy_drop_pt", 0, untuned)


def _styles(ways: list[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """A colour per method (per scope, if there is one method), a marker and dashes per scope."""
    methods, scopes = (list(dict.fromkeys(w[i] for w in ways)) for i in (0, 1))
    hues = methods if len(methods) > 1 else scopes
    return {
        (m, s): {
            "color": COLOURS[hues.index(m if len(methods) > 1 else s) % len(COLOURS)],
            "marker": MARKERS[scopes.index(s) % len(MARKERS)],
            "ls": DASHES[scopes.index(s) % len(DASHES)],
        }
        for m, s in ways
    }


def _only_control(study: Study, here: pd.DataFrame) -> pd.Series:
    """The control of these points of one dataset and model; if they have several, that of most of them."""
    first, tuning = here.iloc[0], here["tuning"].mode()[0]
    c = study.controls
    return c[
        (c["dataset"] == first["dataset"]) & (c["model"] == first["model"]) & (c["tuning"] == tuning)
    ].iloc[0]


def _fp32(study: Study) -> tuple[pd.DataFrame, str]:
    """The points in fp32 in one runtime, and its name: eager PyTorch, or else where most were pruned."""
    fp32 = study.points[study.points["mode"] == "none"]
    pruned = fp32.loc[fp32["ratio"] > 0, "runtime"].value_counts().sort_index()
    if pruned.empty:
        raise CannotDraw("nothing was pruned without quantization (prune.ratio=0.5 quant.mode=none)")
    runtime = "eager" if "eager" in pruned else str(pruned.idxmax())
    return fp32[fp32["runtime"] == runtime], "Eager PyTorch" if runtime == "eager" else runtime


def _ways(shown: pd.DataFrame) -> list[tuple[str, str]]:
    """Methods and scopes of pruning."""
    return sorted(set(shown.loc[shown["ratio"] > 0, ["method", "scope"]].itertuples(index=False, name=None)))


def commonest_way(rows: pd.DataFrame) -> tuple[str, str]:
    """Method and scope of pruning that most rows have, the first in order of equally common ones."""
    return rows.groupby(["method", "scope"]).size().idxmax()  # type: ignore[no-any-return]


def _lines(here: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Pruned points by model and way of pruning.

    Each line begins at the dense point, which is measured once for all of them.
    """
    import pandas as pd

    for (model, method, scope), line in here[here["ratio"] > 0].groupby(["model", "method", "scope"]):
        dense = here[(here["ratio"] == 0) & (here["model"] == model)]
        yield (model, method, scope), pd.concat([dense, line]).sort_values("ratio", kind="stable")


def _line(axes: Axes, line: pd.DataFrame, value: str, place: float, **style: Any) -> None:
    """A line over the pruning ratio with its error bars, `place` steps aside so that none hides another."""
    x = line["ratio"] + APART * place
    error = [[layout.around(p, value)[end][0] for _, p in line.iterrows()] for end in (0, 1)]
    axes.errorbar(x, line[value], yerr=error, ms=3.6, capsize=1.5, elinewidth=0.7, **style)
    for spot, (_, p) in zip(x, line.iterrows(), strict=True):
        if p["warned"]:
            layout.warn(axes, spot, p[value])


def _ratio_ticks(axes: Axes, shown: pd.DataFrame) -> None:
    ratios = sorted(shown["ratio"].unique())
    if len(ratios) <= MOST_TICKS:  # more would overlap
        near = [b - a < CLOSE for a, b in zip([-1.0, *ratios], ratios, strict=False)]
        axes.set_xticks(ratios, ["" if n else f"{r:g}" for r, n in zip(ratios, near, strict=True)])
