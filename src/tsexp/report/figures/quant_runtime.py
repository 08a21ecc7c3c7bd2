"""Speedup of each pair of number format and runtime."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tsexp.config import MODES
from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import RUNTIMES, CannotDraw, Drawing
from tsexp.report.figures.pruning import commonest_way
from tsexp.report.points import Study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LONG_NAME = 15
"""Letters of a dataset's name beside which that of the model does not fit."""


def quant_runtime(study: Study) -> Drawing:
    """Draw a heat map per dataset and model that has two pairs; those not measured are blank and hatched."""
    import numpy as np
    from matplotlib.colors import LogNorm

    shown, what = _chosen(study)
    modes, runtimes = words.ordered(shown["mode"], MODES), words.ordered(shown["runtime"], RUNTIMES)
    of = list(shown[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    across = min(3, len(of))
    down = math.ceil(len(of) / across)
    figure = layout.sized(across, (0.19 * len(modes) + 0.32) * down + 1.25)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    between = "\n" if across > 1 and max(len(d) for d, _ in of) > LONG_NAME else " · "
    furthest = max(1.5, float(np.exp(np.abs(np.log(shown["speedup"])).max())))
    norm = LogNorm(1 / furthest, furthest)  # 1, no change, is the middle
    for axes in grid.flat[len(of) :]:
        axes.set_visible(False)
    for axes, (dataset, model) in zip(grid.flat, of, strict=False):
        here = shown[(shown["dataset"] == dataset) & (shown["model"] == model)]
        image = _heat_map(axes, here, modes, runtimes, norm)
        axes.set_title(f"{dataset}{between}{model}{words.seeds(here, study)}")
    for x in range(across):  # panels that end a column need their labels
        [a for a in grid[:, x] if a.get_visible()][-1].tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("speedup", fontsize=7)
    ticks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / furthest <= v <= furthest]
    bar.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
    bar.minorticks_off()
    notes = [
        "Speedup of wall time against the control, fp32 eager.",
        *words.small_print(study),
        what,
        "Hatched: not measured.",
        *(["⚠: a record has a warning."] if shown["warned"].any() else []),
    ]
    layout.finish(figure, notes)
    return Drawing(figure, notes)


def _chosen(study: Study) -> tuple[pd.DataFrame, str]:
    """The points of one pruning ratio and one way of pruning, and what the notes say of it."""
    pairs = study.points.drop_duplicates(["ratio", "mode", "runtime"]).groupby("ratio").size()
    at = 0.0 if pairs.get(0.0, 0) > 1 else float(pairs.idxmax())
    if pairs[at] < 2:
        raise CannotDraw("only one pair of quant.mode and runtime was measured")
    shown = study.points[(study.points["ratio"] == at) & study.points["speedup"].notna()]
    if shown.empty:
        raise CannotDraw("no record of them has a valid speedup")
    method, scope = commonest_way(shown)
    shown = shown[(shown["method"] == method) & (shown["scope"] == scope)]
    shown = shown[shown.groupby(["dataset", "model"])["speedup"].transform("size") > 1]
    if shown.empty:
        raise CannotDraw("no model was measured in two pairs of quant.mode and runtime")
    if at == 0:
        return shown, "Without pruning."
    why = "it has the most pairs, as hardly any was measured without pruning"
    return shown, f"At pruning ratio {at:g} ({method} {scope}): {why}."


def _heat_map(axes: Axes, here: pd.DataFrame, modes: list[str], runtimes: list[str], norm: Any) -> Any:
    from matplotlib.patches import Rectangle

    table = here.pivot(index="mode", columns="runtime", values="speedup")
    table = table.reindex(index=modes, columns=runtimes)
    warned = set(here.loc[here["warned"], ["mode", "runtime"]].itertuples(index=False, name=None))
    image = axes.imshow(table.to_numpy(float), norm=norm, cmap="PuOr", aspect="auto")
    for (y, x), value in ((at, table.iloc[at]) for at in _cells(table)):
        if math.isnan(value):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", ec="0.75", lw=0))
            continue
        text = f"{value:.2f}" if value < 9.95 else f"{value:.1f}"
        text += "⚠" if (modes[y], runtimes[x]) in warned else ""
        colour = layout.readable_on(image.to_rgba(value))
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(runtimes)), runtimes, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(modes)), modes)
    axes.grid(False)
    axes.tick_params(length=0)
    return image


def _cells(table: pd.DataFrame) -> list[tuple[int, int]]:
    return [(y, x) for y in range(table.shape[0]) for x in range(table.shape[1])]
