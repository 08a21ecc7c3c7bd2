"""Energy of every window, in the order of measuring."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.points import Study
from tsexp.report.style import COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SUBJECTS = {"reference": ("0.35", "s"), "artifact": (COLOURS[0], "o")}
OUTLIER: dict[str, Any] = {"ls": "none", "marker": "o", "ms": 7, "mfc": "none", "mec": COLOURS[1], "mew": 1}
TITLE_WIDTH = 52


class _Pick(NamedTuple):
    """A run that is shown, and why: it varies most (``widest``) or is the ``median`` of so many."""

    dataset: str
    what: str
    run: pd.Series
    of: int


def windows(study: Study, side: str) -> Drawing:
    """Draw, of each dataset, the run that varies most and the median one."""
    runs = study.runs[study.runs[f"{side}_j"].notna()]
    table = study.frozen.windows
    table = table[(table["subject"] != "idle") & table["run_id"].isin(runs["run_id"])]
    if table.empty:
        raise CannotDraw(f"no record has windows with {side} energy")
    table = table.assign(each_j=table["energy_j"] / table["inferences"])
    picks = _picks(runs, table)
    datasets = sorted({p.dataset for p in picks})
    across = 2 if any(p.what == "median" for p in picks) else 1
    figure = layout.sized(3 if across > 1 else 1, 1.75 * len(datasets) + 0.95)
    grid = figure.subplots(len(datasets), across, squeeze=False)
    for axes in grid.flat[:]:
        axes.set_visible(False)
    for p in picks:
        axes = grid[datasets.index(p.dataset), 0 if p.what == "widest" else 1]
        axes.set_visible(True)
        _panel(axes, p, table[table["run_id"] == p.run["run_id"]].sort_values("order"))
    small = [
        *([words.ESTIMATED] if side == "estimated" else []),
        words.invalid(study),
        "Outlier: more than 1.5 quartile ranges outside the quartiles.",
        *(["⚠: the record has a warning."] if any(p.run["warnings"] for p in picks) else []),
    ]
    shown = table[table["run_id"].isin([p.run["run_id"] for p in picks])]
    y = f"{side} energy{words.dagger(side)} per\ninference, off its median (%)"
    layout.finish(figure, small, _legend(shown), "window, in the order of measuring", y)
    chosen = "Variation is the standard deviation over the mean, of the worse of artifact and reference."
    notes = [
        f"{p.dataset}, {p.what} of {p.of} runs: {words.describe(p.run)}, seed {p.run['seed']}; varies by "
        f"{p.run['variation_pct']:.1f} %."
        for p in picks
    ]
    return Drawing(figure, [*small, chosen, *notes])


def _picks(runs: pd.DataFrame, table: pd.DataFrame) -> list[_Pick]:
    by = table[~table["discarded"]].groupby(["run_id", "subject"])["each_j"]
    variation_pct = (100 * by.std() / by.mean()).groupby("run_id").max()
    order = ["variation_pct", "model", "mode", "runtime", "ratio", "seed", "run_id"]
    picks = []
    for dataset, group in runs.groupby("dataset"):
        ranked = group.assign(variation_pct=group["run_id"].map(variation_pct))
        ranked = ranked.dropna(subset="variation_pct").sort_values(order, kind="stable")
        of = len(ranked)
        for what, k in (("widest", of - 1), ("median", (of - 1) // 2))[:of]:
            picks.append(_Pick(str(dataset), what, ranked.iloc[k], of))
    if not picks:
        raise CannotDraw("no record has two windows of a subject")
    return picks


def _panel(axes: Axes, pick: _Pick, mine: pd.DataFrame) -> None:
    axes.axhline(0, color="0.6", lw=0.7, zorder=0)
    for subject, (colour, marker) in SUBJECTS.items():
        _subject(axes, mine[mine["subject"] == subject], colour, marker)
    for before, after in borders(mine):
        axes.axvline((before + after) / 2, color="0.6", ls=":", lw=0.8, zorder=0)
    flag = " ⚠" if pick.run["warnings"] else ""
    title = f"{pick.dataset} · {pick.what} variation ({pick.run['variation_pct']:.1f} %){flag}"
    lines = [part for line in (title, words.describe(pick.run)) for part in textwrap.wrap(line, TITLE_WIDTH)]
    axes.set_title("\n".join(lines), fontsize=7.5)
    axes.margins(y=0.15)


def _subject(axes: Axes, windows: pd.DataFrame, colour: str, marker: str) -> None:
    """Windows of the artifact or the reference; medians of the first and last third; outliers; discarded."""
    import numpy as np

    good, gone = windows[~windows["discarded"]], windows[windows["discarded"]]
    if good.empty:
        return
    off = 100 * (good["each_j"] / good["each_j"].median() - 1)
    axes.plot(good["order"], off, color=colour, marker=marker, ms=3, lw=0.6, zorder=2)
    third = max(1, len(good) // 3)
    for part in (slice(None, third), slice(-third, None)):
        order = good["order"].iloc[part]
        axes.plot([order.min(), order.max()], [off.iloc[part].median()] * 2, color=colour, lw=2.4, alpha=0.45)
    low, high = np.percentile(off, [25, 75])
    far = (off < low - 1.5 * (high - low)) | (off > high + 1.5 * (high - low))
    axes.plot(good["order"][far], off[far], **OUTLIER)
    axes.plot(gone["order"], [0] * len(gone), ls="none", marker="x", color=COLOURS[1])


def borders(windows: pd.DataFrame) -> list[tuple[int, int]]:
    """Places in the order of measuring between which another process began."""
    order, process = list(windows["order"]), list(windows["process"])
    return [(order[i - 1], order[i]) for i in range(1, len(order)) if process[i - 1] != process[i]]


def _legend(shown: pd.DataFrame) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=c, marker=m, ms=3, lw=0.6, label=s) for s, (c, m) in SUBJECTS.items()]
    handles += [Line2D([], [], color="0.5", lw=2.4, alpha=0.6, label="median of first and last third")]
    handles += [Line2D([], [], label="outlier", **OUTLIER)]
    if shown["discarded"].any():
        handles.append(Line2D([], [], ls="none", marker="x", color=COLOURS[1], label="discarded"))
    if any(borders(mine) for _, mine in shown.groupby("run_id")):
        handles.append(Line2D([], [], color="0.6", ls=":", lw=0.8, label="another process"))
    return handles
