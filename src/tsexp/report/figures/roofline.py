"""How much of what the processor could do is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tsexp.config import MODES
from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import RUNTIMES, CannotDraw, Drawing
from tsexp.report.points import Study
from tsexp.report.style import log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def roofline(study: Study) -> Drawing:
    """Draw multiply-accumulates per second over those of one large product in the same number format.

    Models whose multiply-accumulates are not counted are not in it.
    """
    from matplotlib.lines import Line2D

    means = _shares(study)
    kinds = [
        f"{runtime} · {_format(mode)}"
        for runtime in words.ordered(means["runtime"], RUNTIMES)
        for mode in words.ordered(means.loc[means["runtime"] == runtime, "mode"], MODES)
    ]
    models = sorted(means["model"].unique())
    figure, panels = layout.panels(
        means["dataset"].unique(), height_in=0.2 * len(kinds) + 0.6, legend_in=0.3, share=True
    )
    for dataset, axes in panels:
        _panel(axes, means[means["dataset"] == dataset], kinds, models, study.colours)
        axes.set_title(dataset)
        log_axis(axes.xaxis, means["share_pct"])
    handles = [Line2D([], [], color=study.colours[m], marker="o", ls="none", label=m) for m in models]
    if (means["ratio"] > 0).any():
        handles.append(Line2D([], [], color="0.4", marker="o", mfc="white", ls="none", label="open: pruned"))
    notes = [
        *words.small_print(study),
        "Peak: one large product in the same number format, seen once on this machine.",
    ]
    if above := (means["share_pct"] > 100).sum():
        notes.append(
            "Above 100 %, for the peak is of another hour or fewer products were done than counted: "
            f"{above} of {len(means)}."
        )
    uncounted = sorted(set(study.runs.loc[study.runs["macs"].isna(), "model"]))
    notes += [f"Multiply-accumulates not counted: {', '.join(uncounted)}."] if uncounted else []
    layout.finish(figure, notes, handles, "share of the peak reached (%)")
    return Drawing(
        figure, [*notes, "MACs · series per second of wall time, over the peak of a thread · threads."]
    )


def _shares(study: Study) -> pd.DataFrame:
    """Share of the peak, a row per point."""
    runs = study.runs[study.runs["peak_gmacs"].notna() & study.runs["series_per_s"].notna()]
    if runs.empty:
        raise CannotDraw(
            "no record has the peak of its processor (peak_gmacs): it was measured by an older version"
        )
    runs = runs[runs["macs"].notna()]
    if runs.empty:
        raise CannotDraw("no model here has counted multiply-accumulates (size/macs)")
    peak = 1e9 * runs["peak_gmacs"] * runs["threads"]  # the peak is that of one thread
    runs = runs.assign(share_pct=100 * runs["macs"] * runs["series_per_s"] / peak)
    where = ["dataset", "model", "method", "scope", "ratio", "runtime", "mode"]
    return runs.groupby(where)["share_pct"].mean().reset_index()


def _panel(
    axes: Axes, here: pd.DataFrame, kinds: list[str], models: list[str], colours: dict[str, str]
) -> None:
    for _, p in here.iterrows():
        aside = 0.5 * ((models.index(p["model"]) + 0.5) / len(models) - 0.5)
        colour = colours[p["model"]]
        axes.plot(
            p["share_pct"],
            kinds.index(f"{p['runtime']} · {_format(p['mode'])}") + aside,
            ls="none",
            marker="o",
            ms=3.8,
            color=colour,
            mfc="white" if p["ratio"] > 0 else colour,
        )
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_ylim(len(kinds) - 0.5, -0.5)


def _format(mode: str) -> str:
    return "fp32" if mode == "none" else mode
