"""Labels against predictions, before and after compression."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tsexp.marks import label_order
from tsexp.report.console import times_smaller
from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.points import Study
from tsexp.report.statistics import MARGIN_PT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_NUMBERS, MOST_NAMES = 12, 20
"""Classes beyond which cells have no numbers, and not every class a name."""


def confusion(study: Study) -> Drawing:
    """Draw the smallest artifact of each dataset that hardly loses, beside its control."""
    small = study.runs[
        ((study.runs["ratio"] > 0) | (study.runs["mode"] != "none"))
        & study.runs["run_id"].isin(study.frozen.predictions["run_id"].unique())
    ]
    if small.empty:
        raise CannotDraw("nothing was compressed")
    picks, notes = [], []
    for dataset, group in small.groupby("dataset"):
        run, note = _pick(group)
        mine = study.frozen.predictions[study.frozen.predictions["run_id"] == run["run_id"]]
        picks.append((dataset, run, mine, classes(mine)))
        notes.append(f"{dataset}: {note}")
    sides_in = [min(2.7, 0.2 * len(names) + 0.7) for *_, names in picks]
    most = max(len(names) for *_, names in picks)
    figure = layout.sized(3 if most > 5 else 1, sum(sides_in) + 0.3 * len(picks) + 0.5)
    grid = figure.subplots(len(picks), 2, squeeze=False, height_ratios=sides_in, sharey="row")
    for (left, right), (dataset, run, mine, names) in zip(grid, picks, strict=True):
        _panel(left, mine, "dense_predicted", names, f"{dataset} · {run['model']}\ncontrol")
        _panel(right, mine, "predicted", names, "compressed")
    foot = [
        words.invalid(study),
        "Above: accuracy. In the cells: % of the series of that class. One run each.",
    ]
    layout.finish(figure, foot, x="predicted class", y="true class")
    return Drawing(figure, [*foot, *notes])


def _pick(group: pd.DataFrame) -> tuple[pd.Series, str]:
    """The run that is shown of a dataset, and why.

    The smallest artifact that hardly loses stands for what compression does: of its seeds, the first.
    """
    on_validation = group["val_drop_pt"].notna().any()
    by, series = ("val_drop_pt", "validation") if on_validation else ("accuracy_drop_pt", "test")
    mean = group.groupby("config")[["bytes", by]].transform("mean")
    group = group.assign(bytes=mean["bytes"], lost_pt=mean[by])
    order = ["bytes", "lost_pt", "model", "mode", "runtime", "config", "seed", "run_id"]
    group = group.sort_values(order, kind="stable")
    good = group[group["lost_pt"] <= MARGIN_PT]
    run = (good if len(good) else group).iloc[0]
    why = "the smallest that loses" if len(good) else "the smallest; none loses"
    seeds = group.loc[group["config"] == run["config"], "seed"].nunique()
    mean_of = f", in the mean of {seeds} seeds" if seeds > 1 else ""
    return run, (
        f"{words.describe(run)}, seed {run['seed']}, {why} at most {MARGIN_PT:g} point on {series} "
        f"series{mean_of}: {run['accuracy_drop_pt']:+.1f} points lost on test series, "
        f"{times_smaller(run['size_ratio'], '.1f')}."
    )


def _panel(axes: Axes, mine: pd.DataFrame, column: str, names: list[str], title: str) -> None:
    import pandas as pd

    counts = pd.crosstab(mine["label"], mine[column]).reindex(index=names, columns=names, fill_value=0)
    share_pct = (100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)).to_numpy()
    image = axes.imshow(share_pct, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    numbered = share_pct.nonzero() if len(names) <= MOST_NUMBERS else ((), ())
    for y, x in zip(*numbered, strict=True):
        colour = layout.readable_on(image.to_rgba(share_pct[y, x]))
        axes.text(x, y, f"{share_pct[y, x]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_title(f"{title}: {100 * (mine['label'] == mine[column]).mean():.1f} %")
    every = math.ceil(len(names) / MOST_NAMES)
    short = [n if len(n) <= 9 else f"{n[:5]}…{n[-3:]}" for n in names[::every]]
    short = [n.replace("$", r"\$") for n in short]  # two would be a formula
    tilted: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, short)) > 2 else {}
    axes.set_xticks(range(0, len(names), every), short, **tilted)
    axes.set_yticks(range(0, len(names), every), short)
    axes.grid(False)
    axes.tick_params(length=0)


def classes(predictions: pd.DataFrame) -> list[str]:
    """Names of the classes of one run: numbers by size, then words."""
    names = {n for column in ("label", "predicted", "dense_predicted") for n in predictions[column]}
    return sorted(names, key=label_order)
