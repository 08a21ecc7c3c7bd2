"""Mean ranks in accuracy over datasets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import CannotDraw, Drawing
from tsexp.report.points import Study

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from matplotlib.text import Text

MOST = 10
LEAST = 3
"""Datasets, and configurations, of which ranks say anything."""
POINTS = 7.5
"""Size of names; smaller where one would leave the picture."""
DPI = 600
"""That texts are measured at: the widths of letters are whole dots."""
EDGE_IN = 0.08
"""Beside the longest name; letters are as wide as there, but for that rounding."""
ALPHA = 0.05
"""How often something is told apart at most where nothing differs."""
TEST: dict[str, Any] = {"test": "wilcoxon", "correction": "bonferroni", "alpha": ALPHA / 2}
"""aeon's test of a pair is one-sided, in the direction that was seen, and its Holm one level for all, of as
many as are compared less one: so half of `ALPHA`, over all pairs. ``tests/test_figures.py`` simulates it,
with one ahead and all others alike. aeon parts what stands beyond something told apart without a test."""


def critical_difference(study: Study) -> Drawing:
    """Draw mean ranks; bars join what no test distinguishes."""
    import matplotlib.pyplot as plt
    from aeon.visualisation import plot_critical_difference

    scores, total = _scores(study)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimators .* have the same performance")  # their p is 1
        figure, axes = plot_critical_difference(
            scores.to_numpy(),
            list(scores.columns),
            **TEST,
            width=layout.PAGE_IN,
            textspace=2.6,
        )
    plt.close(figure)
    # Drawn for a poster: to the sizes of the other figures, and ranks with as many digits as they deserve.
    for text in axes.texts:
        text.set_fontsize(POINTS)
        if "." in text.get_text() and text.get_text().replace(".", "").isdigit():
            text.set_text(f"{float(text.get_text()):.2f}")
    fits = _share_inside(figure, axes.texts)
    for text in axes.texts:
        text.set_fontsize(POINTS * fits)
    for line in axes.lines:
        line.set_linewidth(min(line.get_linewidth(), 3) / 1.5)
    notes = [
        words.invalid(study),
        "Means over seeds (n of them, where some have more) and runtimes; 1 is the best rank.",
        f"{len(scores)} datasets. Bars join what is not distinguished (Friedman, α = {TEST['alpha']}, then "
        f"Wilcoxon of each pair, two-sided, with Bonferroni, α = {ALPHA}); what stands beyond something "
        "distinguished counts as distinguished, too.",
    ]
    pairs = math.comb(len(scores.columns), 2)
    if (smallest := 2 / 2 ** len(scores)) > ALPHA / pairs:
        notes.append(
            f"With {len(scores)} datasets Wilcoxon's test can tell no pair apart: its smallest p is "
            f"{smallest:.2g}, and of {pairs} pairs each is asked for {ALPHA / pairs:.2g}."
        )
    if total > MOST:
        notes.append(
            f"Of {total} configurations {len(scores.columns)}, chosen by the scores that are compared: the "
            "best mean ranks, and of several models each as trained and in its best other way only, where "
            f"that makes {LEAST}."
        )
    figure.set_layout_engine("none")
    foot = layout.wrapped(notes, layout.PAGE_IN)
    _grow(figure, layout.LINE_IN * (foot.count("\n") + 1))
    figure.text(0.02, 0.02, foot, fontsize=7, color="0.35", ha="left", va="bottom")
    return Drawing(figure, notes)


def _share_inside(figure: Figure, texts: Iterable[Text]) -> float:
    """How much of the widest text lies inside the figure, at most 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    dpi = figure.dpi
    figure.set_dpi(DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    edge, width = EDGE_IN * DPI, figure.get_figwidth() * DPI
    shares = [1.0]
    for box in (text.get_window_extent(renderer) for text in texts):
        outside = max(edge - box.x0, box.x1 + edge - width, 0)
        shares.append(1 - outside / max(box.width, 1))
    figure.set_dpi(dpi)
    return min(shares)


def _grow(figure: Figure, foot_in: float) -> None:
    """Make room below what is drawn."""
    drawn_in = figure.get_figheight()
    height_in = drawn_in + foot_in
    figure.set_figheight(height_in)
    for axes in figure.axes:
        place = axes.get_position()
        bottom_in, tall_in = place.y0 * drawn_in + foot_in, place.height * drawn_in
        axes.set_position((place.x0, bottom_in / height_in, place.width, tall_in / height_in))


def _scores(study: Study) -> tuple[pd.DataFrame, int]:
    """Accuracy by dataset and configuration, the best ones; and how many configurations there are."""
    if (n := study.points["dataset"].nunique()) < LEAST:
        raise CannotDraw(f"ranks need at least {LEAST} datasets, there are {n}")
    # The runtime changes the accuracy of a number format by rounding only: its runtimes are one competitor.
    named = study.points.assign(name=[words.describe(p, runtime=False) for _, p in study.points.iterrows()])
    scores = named.pivot_table(index="dataset", columns="name", values="accuracy_pct", aggfunc="mean")
    scores = scores.dropna(axis=1)
    total = scores.shape[1]
    if total < LEAST:
        raise CannotDraw(
            f"only {total} configurations were measured on all {len(scores)} datasets: ranks need at least "
            f"{LEAST}"
        )
    ranks = scores.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    scores = scores[_chosen(ranks, named)]
    if (scores.nunique(axis=1) == 1).all():
        raise CannotDraw("all configurations are equally accurate on all datasets")
    seeds = named.groupby("name")["n"].agg(["min", "max"])
    few = {
        name: f"{name} (n = {least})" if least == most else f"{name} (n ≥ {least})"
        for name, least, most in seeds.itertuples()
        if least < seeds["max"].max()
    }
    return scores.rename(columns=few), total


def _chosen(ranks: pd.Series, named: pd.DataFrame) -> list[str]:
    """At most `MOST` names, the best first: the ways of one model would leave no room for the others."""
    names = list(ranks.index)
    of = named.drop_duplicates("name").set_index("name").loc[names]
    if len(names) > MOST and of["model"].nunique() > 1:
        other = (of["ratio"] > 0) | (of["mode"] != "none")
        best = of[other].drop_duplicates("model").index
        first = [name for name in names if not other[name] or name in best]
        names = first if len(first) >= LEAST else first + [name for name in names if name not in first]
    return names[:MOST]
