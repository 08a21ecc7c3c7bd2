"""Accuracy against energy per inference, and the front of what nothing beats in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tsexp.report.figures import layout, words
from tsexp.report.figures.drawing import RUNTIMES, CannotDraw, Drawing
from tsexp.report.front import front
from tsexp.report.points import Study
from tsexp.report.style import MARKERS, log_axis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FEW = 12
"""The bars of more points in a panel would hide the points."""
NEAR = 8
"""Points between the middles of numbers, or of a number and a marker, that would cover each other."""
BESIDE = tuple(
    (reach * math.cos(math.radians(angle)), reach * math.sin(math.radians(angle)))
    for reach in (9, 16, 23, 30)
    for angle in (135, 90, 45, 180, 0, 110, 70, -135, -45, -90)
)
"""Where the middle of a number may be, in points from what it numbers: the first that is free."""
RING: dict[str, Any] = {"marker": "o", "mfc": "none", "mec": "black", "mew": 0.6, "ls": "none"}
SMALL = 2.8
"""Points; the size of what one seed tells, where others have more."""
STAR: dict[str, Any] = {"marker": "*", "ms": 7, "mec": "black", "mew": 0.5, "ls": "none"}


@dataclass(frozen=True)
class _Look:
    """How the points of one figure are drawn, whatever the panel."""

    column: str
    factor: float
    unit: str
    colours: dict[str, str]
    shapes: dict[str, str]
    uneven: bool
    """Points are of different numbers of seeds."""

    def place(self, p: pd.Series) -> tuple[float, float]:
        return p[self.column] * self.factor, p["accuracy_pct"]


def accuracy_energy(study: Study, side: str) -> Drawing:
    """Draw a panel per dataset; the controls take part in the front, whose key is at the foot."""
    shown = study.points[study.points[f"{side}_j"].notna()]
    if shown.empty:
        raise CannotDraw(f"no record has {side} energy")
    sizes = shown.groupby("dataset").size()
    if sizes.max() < 2:
        raise CannotDraw("every dataset has one point only: there is nothing to compare")
    controls = tuned(study, side)
    factor, unit = layout.prefix(shown[f"{side}_j"].median())
    shapes = dict(zip(words.ordered(shown["runtime"], RUNTIMES), MARKERS, strict=False))
    uneven = words.uneven(study)
    look = _Look(f"{side}_j", factor, unit + words.dagger(side), study.colours, shapes, uneven)
    figure, panels = layout.panels(shown["dataset"].unique(), height_in=2.3, legend_in=0.55)
    key, listed, fronts = [], [], []
    for dataset, axes in panels:
        here, stars = (t[t["dataset"] == dataset] for t in (shown, controls))
        best = _panel(axes, dataset, here, stars, look)
        markers = [look.place(p) for _, p in [*here.iterrows(), *stars.iterrows()]]
        fronts.append((axes, [look.place(p) for _, p in best.iterrows()], markers))
        entries = [_said(p, look) for _, p in best.iterrows()]
        numbered = " · ".join(f"({n}) {said}" for n, said in enumerate(entries, 1))
        key.append(f"On the front of {dataset}: {numbered}")
        listed += [f"{dataset}, front {n}: {said}." for n, said in enumerate(entries, 1)]
    notes = words.small_print(study, side, warned=shown["warned"].any())
    if sizes.min() <= FEW:
        notes.append(words.bars(shown, "accuracy_pct"))
    if sizes.max() > FEW:
        notes.append(f"Panels of more than {FEW} points have no bars, which would hide them.")
    notes.append("The front is of test accuracy: what is on it may have been lucky there.")
    energy = f"{side} energy per inference{words.dagger(side)} ({unit})"
    layout.finish(figure, notes, _legend(shown, controls, look), energy, "test accuracy (%)", key)
    figure.draw_without_rendering()  # only now panels have their sizes
    for axes, spots, markers in fronts:
        _number(axes, spots, markers)
    return Drawing(figure, [*notes, *listed])


def tuned(study: Study, side: str) -> pd.DataFrame:
    """The controls with this kind of energy, but for the dense models that are points themselves."""
    p, control = study.points, study.controls
    dense = p[(p["ratio"] == 0) & (p["mode"] == "none") & (p["runtime"] == "eager")]
    there = set(dense[["dataset", "model"]].itertuples(index=False, name=None))
    other = [
        tuning != "-" or (d, m) not in there
        for d, m, tuning in zip(control["dataset"], control["model"], control["tuning"], strict=True)
    ]
    return control[other][lambda t: t[f"{side}_j"].notna()]


def best_of(here: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """Points that no other beats in both, by rising cost; of equal ones the first."""
    best = here.iloc[front(list(zip(here[gain], here[cost], strict=True)))]
    return best.drop_duplicates([gain, cost])


def _panel(axes: Axes, dataset: str, here: pd.DataFrame, stars: pd.DataFrame, look: _Look) -> pd.DataFrame:
    """One dataset; returned are the points on its front."""
    import pandas as pd

    among = pd.concat([here, stars], ignore_index=True) if len(stars) else here
    best = best_of(among, look.column, "accuracy_pct")
    steps = best[look.column] * look.factor, best["accuracy_pct"]
    axes.step(*steps, where="post", color="0.55", lw=1, zorder=1)
    for _, p in here.iterrows():
        _point(axes, p, look, bars=len(here) <= FEW)
    for _, p in stars.iterrows():
        axes.plot(*look.place(p), color=look.colours[p["model"]], **STAR)
    axes.set_title(dataset)
    axes.margins(0.12, 0.15)
    if len(here) <= FEW:
        layout.frame(axes, here, "accuracy_pct")
    log_axis(axes.xaxis, among[look.column] * look.factor)
    return best


def _point(axes: Axes, p: pd.Series, look: _Look, bars: bool) -> None:
    (x, y), colour, fp32 = look.place(p), look.colours[p["model"]], p["mode"] == "none"
    axes.errorbar(
        x,
        y,
        yerr=layout.around(p, "accuracy_pct") if bars else None,
        color=colour,
        marker=look.shapes[p["runtime"]],
        mfc=colour if fp32 else "white",
        mew=1,
        elinewidth=0.5,
        ms=SMALL if look.uneven and p["n"] == 1 else None,
    )
    if p["warned"]:
        layout.warn(axes, x, y, "white" if fp32 else "black")
    if p["ratio"] == 0 and p["runtime"] == "eager" and fp32:
        axes.plot(x, y, ms=9, **RING)


def _number(axes: Axes, spots: Sequence[tuple[float, float]], markers: Sequence[tuple[float, float]]) -> None:
    """Number the points, each where it covers no other number and no marker."""
    point_px = axes.figure.dpi / 72
    taken = [tuple(place) for place in axes.transData.transform(markers) / point_px]
    for number, spot in enumerate(spots, 1):
        x, y = axes.transData.transform(spot) / point_px
        free = [
            (right, up)
            for right, up in BESIDE
            if all(abs(x + right - a) >= NEAR or abs(y + up - b) >= NEAR for a, b in taken)
        ]
        right, up = (free or BESIDE)[0]
        taken.append((x + right, y + up))
        axes.annotate(
            str(number),
            spot,
            xytext=(right, up),
            textcoords="offset points",
            fontsize=7,
            ha="center",
            va="center",
            weight="bold",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "shrinkA": 4, "shrinkB": 2},
            zorder=5,
        )


def _said(p: pd.Series, look: _Look) -> str:
    what = words.describe(p) if isinstance(p["runtime"], str) else f"{p['model']}, control"
    joules, accuracy = look.place(p)
    seeds = f", n = {p['n']}" if look.uneven else ""
    return f"{what}, {accuracy:.1f} %, {joules:.3g} {look.unit}{seeds}"


def _legend(shown: pd.DataFrame, controls: pd.DataFrame, look: _Look) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    models = set(shown["model"])
    grey: dict[str, Any] = {"color": "0.4", "ls": "none"}
    handles: list[Any] = [Patch(fc=c, label=m) for m, c in look.colours.items() if m in models]
    handles += [Line2D([], [], marker=s, label=r, **grey) for r, s in look.shapes.items()]
    if look.uneven and (shown["n"] == 1).any():
        handles.append(Line2D([], [], marker="s", ms=SMALL, label="small: one seed", **grey))
    if (shown["mode"] != "none").any():
        handles.append(Line2D([], [], marker="o", mfc="white", label="open: not fp32", **grey))
    handles.append(Line2D([], [], ms=8, label="as trained", **RING))
    if len(controls):
        handles.append(Line2D([], [], color="0.6", label="control: dense, tuned alike", **STAR))
    return [*handles, Line2D([], [], color="0.55", label="Pareto front")]
