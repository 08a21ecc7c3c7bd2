"""Which attention heads and FFN units went, per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.report.figures import layout
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.figures.pruning import commonest_way
from tsexp.report.points import Study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_PANELS, MOST_RATIOS = 9, 6
STEPS = (1, 2, 5, 10)
KEPT = (0.93, 0.93, 0.93, 1)


class _Gone(NamedTuple):
    """Of a dataset and model: the smallest ratio at which each head and unit is gone, NaN if it stays."""

    dataset: str
    model: str
    method: str
    scope: str
    seed: int
    ratios: list[float]
    heads: pd.DataFrame
    units: pd.DataFrame


def channels(study: Study) -> Drawing:
    """Draw the smallest ratio at which each head and unit is gone."""
    from matplotlib.patches import Patch

    there = study.frozen.channels["run_id"].unique()
    runs = study.runs[(study.runs["ratio"] > 0) & study.runs["run_id"].isin(there)]
    if runs.empty:
        raise CannotDraw("nothing was pruned")
    ways = runs.drop_duplicates(["dataset", "model", "method", "scope", "ratio"])
    common = ways.groupby("ratio").size().sort_values(ascending=False, kind="stable")
    runs = runs[runs["ratio"].isin(common.index[:MOST_RATIOS])]
    of = list(runs[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    shown = [
        _gone(study, runs[(runs["dataset"] == dataset) & (runs["model"] == model)])
        for dataset, model in of[:MOST_PANELS]
    ]
    ratios = sorted({r for s in shown for r in s.ratios})
    figure, shades = _draw(shown, ratios)
    handles = [Patch(fc=shade, label=f"gone at {r:g}") for shade, r in zip(shades, ratios, strict=True)]
    handles.append(Patch(fc=KEPT, ec="0.7", lw=0.4, label="always kept"))
    small = _small_print(shown)
    if len(of) > MOST_PANELS:
        small.append(f"Of {len(of)} pairs of dataset and model, the first {MOST_PANELS} are shown.")
    if len(common) > MOST_RATIOS:
        small.append(f"Of {len(common)} ratios, the {MOST_RATIOS} that were measured most.")
    layout.finish(figure, small, handles)
    notes = [
        f"{s.dataset} {s.model}: {s.method} {s.scope}, seed {s.seed}, "
        f"ratios {', '.join(f'{r:g}' for r in s.ratios)}."
        for s in shown
    ]
    return Drawing(figure, [*small, *notes])


def _gone(study: Study, here: pd.DataFrame) -> _Gone:
    """Of one dataset and model, the first seed pruned in the commonest way."""
    here = here[here["seed"] == here["seed"].min()]
    method, scope = commonest_way(here.drop_duplicates(["method", "scope", "ratio"]))
    here = here[(here["method"] == method) & (here["scope"] == scope)]
    # Every runtime and number format of a ratio has the same smaller model: any of them will do.
    here = here.sort_values(["ratio", "mode", "runtime"], kind="stable").drop_duplicates("ratio")
    kept = study.frozen.channels.merge(here[["run_id", "ratio"]], on="run_id")
    gone_at = kept["ratio"].where(~kept["kept"].astype(bool))
    gone = kept.assign(gone_at=gone_at).groupby(["kind", "layer", "unit"])["gone_at"].min()
    first = here.iloc[0]
    heads, units = (gone[kind].unstack("unit") for kind in ("head", "ffn"))
    return _Gone(
        first["dataset"], first["model"], method, scope, first["seed"], list(here["ratio"]), heads, units
    )


def _small_print(shown: Sequence[_Gone]) -> list[str]:
    ways = {f"{s.method} {s.scope}" for s in shown}
    small = [f"Pruned by {ways.pop()}."] if len(ways) == 1 else []
    small += [
        "Colour: the smallest pruning ratio at which it is gone.",
        "One seed: units of differently trained models are not the same.",
    ]
    if any(s.scope == "depth" and len(s.ratios) > 1 for s in shown):
        small.append("By depth, a unit may be back at a higher ratio, where more whole layers went.")
    return small


def _draw(shown: Sequence[_Gone], ratios: list[float]) -> tuple[Any, list[Any]]:
    """The figure, and the colour of each ratio."""
    import matplotlib
    from matplotlib.colors import BoundaryNorm, ListedColormap

    around_in = 0.45 * len(shown) + 0.8
    layer_in = min(0.09, (layout.PAGE_HIGH_IN - around_in) / sum(len(s.heads) for s in shown))
    heights = [layer_in * len(s.heads) for s in shown]
    figure = layout.sized(3, sum(heights) + around_in)
    grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[1, 3.4], height_ratios=heights)
    shades = list(matplotlib.colormaps["cividis"]([k / max(1, len(ratios)) for k in range(len(ratios))]))
    colours = {
        "cmap": ListedColormap([*shades, KEPT]),
        "norm": BoundaryNorm([k - 0.5 for k in range(len(ratios) + 2)], len(ratios) + 1),
    }
    for s, (left, right) in zip(shown, grid, strict=True):
        for axes, table in ((left, s.heads), (right, s.units)):
            _panel(axes, table, ratios, layer_in, colours)
        for edge in range(1, s.heads.shape[1]):
            left.axvline(edge - 0.5, color="white", lw=min(0.8, 10 * layer_in))
        left.set_title(f"{s.dataset} · {s.model}", loc="left")
        left.set_ylabel("layer")
    grid[-1, 0].set_xlabel("attention head")
    grid[-1, 1].set_xlabel("FFN unit")
    return figure, shades


def _panel(
    axes: Axes, table: pd.DataFrame, ratios: list[float], layer_in: float, colours: dict[str, Any]
) -> None:
    from matplotlib.ticker import MaxNLocator

    coded = table.map(lambda r: len(ratios) if math.isnan(r) else ratios.index(r)).to_numpy()
    axes.imshow(coded, aspect="auto", interpolation="none", **colours)
    for edge in range(1, len(table)):
        axes.axhline(edge - 0.5, color="white", lw=min(0.8, 10 * layer_in))
    axes.grid(False)
    axes.tick_params(length=2)
    fitting = max(1, min(4, int(layer_in * len(table) / 0.16)))
    axes.yaxis.set_major_locator(MaxNLocator(fitting, integer=True, steps=STEPS))
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=STEPS))
