"""The figures of the study: PDF and PNG, functions of the frozen results and of nothing else, in one style (``tsexp.mplstyle``)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tsexp.report.console import ESTIMATE
from tsexp.report.front import front
from tsexp.report.frozen import Frozen
from tsexp.report.points import BARS, colours, invalid, points
from tsexp.report.style import COLOURS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("tsexp.mplstyle")
NOTES = "notes.md"
WAYS = "pruning_ways"
COLUMN_IN, PAGE_IN, PAGE_HIGH_IN = 3.4, 7.0, 8.6
"""Widths of a column and of a page of a paper, and what of its height a figure may take; inches."""
MOST_PANELS, MOST_RATIOS = 9, 6
"""In the figure of heads and units."""
LOSES_AT_MOST_PT = 1.0
"""The smallest artifact that loses no more than this stands for what compression does."""
RUNTIMES = ("eager", "inductor", "onnxruntime", "openvino")
MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
APART = 0.006
"""Between the lines of a panel at one pruning ratio, in units of the ratio."""
MARKERS = "osD^vP*X"
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
ESTIMATED = f"{ESTIMATE} Estimated from CPU time, not measured: compare only with other estimates."
WARNED = "A dot in a marker: one of its records has a warning."


class CannotDraw(Exception):
    """The data at hand has not what this figure shows; the message says what is missing."""


class Drawing(NamedTuple):
    """A figure, and what its caption has to say."""

    figure: Figure
    notes: list[str]


@dataclass(frozen=True)
class Study:
    """The data as every figure takes it.

    See `tsexp.report.points.Points`, and `Frozen` for the raw tables.
    """

    runs: pd.DataFrame
    points: pd.DataFrame
    controls: pd.DataFrame
    frozen: Frozen
    colours: dict[str, str]
    """Of the models."""


def draw(frozen: Frozen, folder: Path) -> list[Path]:
    """Draw every figure that the data allows; equal results give equal bytes.

    Parameters
    ----------
    frozen
        The results.
    folder
        Gets NAME.pdf and NAME.png, and ``notes.md``: what each caption has to say, and why a figure is not
        there. Older figures of the study that can no longer be drawn are removed.

    Returns
    -------
    list of Path
        The files, notes last.
    """
    import matplotlib.style

    folder.mkdir(parents=True, exist_ok=True)
    chosen = points(frozen)
    study = Study(chosen.runs, chosen.points, chosen.controls, frozen, colours(frozen))
    files, lines = [], ["# Notes to the figures", "", *(f"- {note}" for note in chosen.notes), ""]
    for name, make in FIGURES.items():
        try:
            if chosen.points.empty:
                raise CannotDraw("there is no record with finite scores")
            with matplotlib.style.context(STYLE, after_reset=True):
                drawing = make(study)
                _settle(drawing.figure)
                files += [_save(drawing.figure, folder / f"{name}.{kind}") for kind in ("pdf", "png")]
            lines += [f"## {name}", "", *(f"- {note}" for note in drawing.notes), ""]
        except CannotDraw as reason:
            lines += [f"## {name}", "", f"Not drawn: {reason}.", ""]
            for kind in ("pdf", "png"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    partial = folder / f".{NOTES}"
    partial.write_text("\n".join(lines))
    return [*files, partial.replace(folder / NOTES)]


def _settle(figure: Figure) -> None:
    """Lay out once and for all: the layout's solver differs in the last digits from one process to the next."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(v, 5) for v in axes.get_position(original=True).bounds], which="original")  # type: ignore[arg-type]


def _save(figure: Figure, path: Path) -> Path:
    # Neither the date nor the version of the drawing library: they would change the bytes and not the
    # picture.
    metadata = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "png": {"Software": None}}
    kind = path.suffix.removeprefix(".")
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format=kind, metadata=metadata[kind])
    return partial.replace(path)


def accuracy_energy(study: Study, side: str) -> Drawing:
    """Accuracy against energy per inference, a panel per dataset, with the front of those that nothing beats in both, the controls among them."""
    import pandas as pd
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shown = study.points[study.points[f"{side}_j"].notna()]
    if shown.empty:
        raise CannotDraw(f"no record has {side} energy")
    if shown.groupby("dataset").size().max() < 2:
        raise CannotDraw("every dataset has one point only: there is nothing to compare")
    controls = _tuned(study, side)
    factor, unit = _prefix(shown[f"{side}_j"].median())
    runtimes = _ordered(shown["runtime"], RUNTIMES)
    shapes = dict(zip(runtimes, MARKERS, strict=False))
    figure, panels = _panels(shown["dataset"].unique(), height_in=2.3, legend_in=0.55)
    fronts = []
    for dataset, axes in panels:
        here = shown[shown["dataset"] == dataset]
        tuned = controls[controls["dataset"] == dataset]
        best = _front(
            pd.concat([here, tuned], ignore_index=True) if len(tuned) else here, f"{side}_j", "accuracy_pct"
        )
        axes.step(
            best[f"{side}_j"] * factor, best["accuracy_pct"], where="post", color="0.55", lw=1, zorder=1
        )
        for _, p in here.iterrows():
            x, colour, reduced = p[f"{side}_j"] * factor, study.colours[p["model"]], p["mode"] != "none"
            bars = (
                _around(p, "accuracy_pct") if len(here) <= 12 else None
            )  # of more, they would hide the points
            axes.errorbar(
                x,
                p["accuracy_pct"],
                yerr=bars,
                color=colour,
                marker=shapes[p["runtime"]],
                mfc="white" if reduced else colour,
                mew=1,
                elinewidth=0.5,
            )
            if p["warned"]:
                _warn(axes, x, p["accuracy_pct"], "black" if reduced else "white")
            if p["ratio"] == 0 and p["runtime"] == "eager" and not reduced:
                axes.plot(x, p["accuracy_pct"], marker="o", ms=9, mfc="none", mec="black", mew=0.6, ls="none")
        for _, p in tuned.iterrows():
            style: dict[str, Any] = {
                "marker": "*",
                "ms": 7,
                "color": study.colours[p["model"]],
                "mec": "black",
                "mew": 0.5,
                "ls": "none",
            }
            axes.plot(p[f"{side}_j"] * factor, p["accuracy_pct"], **style)
        axes.set_title(dataset)
        axes.margins(0.12, 0.15)
        if len(here) <= 12:
            _frame([axes], here, "accuracy_pct")
        _log_ticks(axes.xaxis, pd.concat([here[f"{side}_j"], tuned[f"{side}_j"]]) * factor)
        last, lift = (-math.inf, -math.inf), 0
        for number, (_, p) in enumerate(best.iterrows(), 1):
            spot = (p[f"{side}_j"] * factor, p["accuracy_pct"])
            at = axes.transData.transform(
                spot
            )  # pixels, before the layout: near enough to keep numbers apart
            lift = 8 - lift if abs(at[0] - last[0]) < 14 and abs(at[1] - last[1]) < 14 else 0
            last = (at[0], at[1])
            axes.annotate(
                str(number),
                spot,
                xytext=(-5, 4 + lift),
                textcoords="offset points",
                fontsize=7,
                ha="right",
                weight="bold",
                zorder=5,
            )
            said = _describe(p) if isinstance(p["runtime"], str) else f"{p['model']}, control"
            fronts.append(
                f"{dataset}, front {number}: {said}, {p['accuracy_pct']:.1f} %, {spot[0]:.3g} "
                f"{unit}{_dagger(side)}."
            )
    handles: list[Any] = [Patch(fc=c, label=m) for m, c in study.colours.items() if m in set(shown["model"])]
    handles += [Line2D([], [], color="0.4", marker=s, ls="none", label=r) for r, s in shapes.items()]
    handles += (
        [Line2D([], [], color="0.4", marker="o", mfc="white", ls="none", label="open: not fp32")]
        if (shown["mode"] != "none").any()
        else []
    )
    handles += [
        Line2D(
            [], [], marker="o", ms=8, mfc="none", mec="black", mew=0.6, ls="none", label="dense fp32 eager"
        )
    ]
    if len(controls):
        handles += [
            Line2D(
                [],
                [],
                color="0.6",
                marker="*",
                ms=7,
                mec="black",
                mew=0.5,
                ls="none",
                label="control: dense, tuned alike",
            )
        ]
    handles += [Line2D([], [], color="0.55", label="Pareto front")]
    sizes = shown.groupby("dataset").size()
    explained = [BARS] if sizes.min() <= 12 else []
    explained += (
        ["Panels of more than 12 points have no bars, which would hide them."] if sizes.max() > 12 else []
    )
    notes = [*_small_print(study, side), *([WARNED] if shown["warned"].any() else []), *explained]
    notes += ["The front is of test accuracy: what is on it may have been lucky there."]
    _finish(
        figure, notes, handles, f"{side} energy per inference{_dagger(side)} ({unit})", "test accuracy (%)"
    )
    return Drawing(figure, [*notes, *fronts])


def ratio(study: Study) -> Drawing:
    """Saving and speedup against the pruning ratio, a line per model.

    The way of pruning that was measured most, eager PyTorch, fp32.
    """
    from matplotlib.lines import Line2D

    shown = _eager_fp32(study)
    ways = _ways(shown)
    way = _commonest_way(shown[shown["ratio"] > 0])
    shown = shown[(shown["ratio"] == 0) | ((shown["method"] == way[0]) & (shown["scope"] == way[1]))]
    shown = shown[shown["dataset"].isin(shown.loc[shown["ratio"] > 0, "dataset"])]
    sides = [s for s in ("measured", "estimated") if shown[f"{s}_saving_pct"].notna().any()]
    rows = [(f"{s}_saving_pct", f"{s} energy\nsaving{_dagger(s)} (%)", 0) for s in sides] + [
        ("speedup", "speedup\n(wall time)", 1)
    ]
    datasets = list(shown["dataset"].unique())
    across = min(3, len(datasets))
    blocks = math.ceil(len(datasets) / across)
    figure = _figure(across, 1.55 * len(rows) * blocks + 0.9)
    grid = figure.subplots(
        len(rows) * blocks, across, squeeze=False, sharex=True, sharey="row" if blocks == 1 else False
    )
    for axes in grid.flat[:]:
        axes.set_visible(False)
    models = sorted(shown.loc[shown["ratio"] > 0, "model"].unique())
    for i, dataset in enumerate(datasets):
        for j, (value, label, neutral) in enumerate(rows):
            axes = grid[i // across * len(rows) + j, i % across]
            axes.set_visible(True)
            axes.axhline(neutral, color="0.5", lw=0.7, zorder=0)
            for (model, *_), line in _lines(shown[(shown["dataset"] == dataset) & shown[value].notna()]):
                k = models.index(model)
                _line(
                    axes,
                    line,
                    value,
                    k - (len(models) - 1) / 2,
                    color=study.colours[model],
                    marker=MARKERS[k % len(MARKERS)],
                )
            if j == 0:
                axes.set_title(dataset)
            if i % across == 0:
                axes.set_ylabel(label)
            _ratio_ticks(axes, shown)
            axes.tick_params(labelbottom=j == len(rows) - 1)
            of_row = shown if blocks == 1 else shown[shown["dataset"] == dataset]
            _frame([axes], of_row, value, neutral)
    figure.align_ylabels()
    handles = [
        Line2D([], [], color=study.colours[m], marker=MARKERS[k % len(MARKERS)], label=m)
        for k, m in enumerate(models)
    ]
    others = (
        f" The others are in {WAYS}: {', '.join(' '.join(w) for w in ways if w != way)}."
        if len(ways) > 1
        else ""
    )
    notes = [
        f"Eager PyTorch, fp32, pruned by {' '.join(way)}.",
        *_small_print(study, *sides),
        *([WARNED] if shown["warned"].any() else []),
        BARS,
    ]
    _finish(figure, notes, handles, "pruning ratio (share of heads and FFN units)")
    return Drawing(figure, [*notes, f"Against the control, in the same windows.{others}"])


def pruning_ways(study: Study) -> Drawing:
    """Accuracy lost against the pruning ratio, a line per importance method and scope, and the control's level; eager PyTorch, fp32."""
    from matplotlib.lines import Line2D

    shown = _eager_fp32(study)
    ways = _ways(shown)
    if len(ways) < 2:
        raise CannotDraw(
            f"there is one way of pruning only, {' '.join(ways[0])}: there is nothing to compare"
        )
    of = sorted(
        {(p["model"], p["dataset"]) for _, p in shown.iterrows() if p["ratio"] > 0}
    )  # with three datasets, a row per model
    methods, scopes = (list(dict.fromkeys(w[i] for w in ways)) for i in (0, 1))
    styles: dict[tuple[str, str], dict[str, Any]] = {
        (m, s): {
            "color": COLOURS[methods.index(m) % len(COLOURS)],
            "marker": MARKERS[scopes.index(s) % len(MARKERS)],
            "ls": DASHES[scopes.index(s) % len(DASHES)],
        }
        for m, s in ways
    }
    figure, panels = _panels(
        [f"{dataset} · {model}" for model, dataset in of], height_in=1.85, legend_in=0.45
    )
    levels = []
    for (model, dataset), (title, axes) in zip(of, panels, strict=True):
        lines = {
            (method, scope): line
            for (_, method, scope), line in _lines(
                shown[(shown["dataset"] == dataset) & (shown["model"] == model)]
            )
        }
        for k, way in enumerate(ways):
            if way in lines:
                _line(axes, lines[way], "accuracy_drop_pt", k - (len(ways) - 1) / 2, **styles[way])
        here = shown[(shown["dataset"] == dataset) & (shown["model"] == model) & (shown["ratio"] > 0)]
        control = _only_control(study, here)
        untuned = control["accuracy_pct"] - control["dense_accuracy_pct"]
        axes.axhline(0, color="0.3", lw=0.9, zorder=0)
        axes.axhline(untuned, color="0.3", ls=":", lw=0.9, zorder=0)
        _frame([axes], here, "accuracy_drop_pt", 0, untuned)
        levels.append(
            f"{title}: control {control['accuracy_pct']:.1f} %, dense before tuning "
            f"{control['dense_accuracy_pct']:.1f} %."
        )
        axes.set_title(f"{title}\ncontrol {control['accuracy_pct']:.1f} %")
        _ratio_ticks(axes, shown)
    handles = [Line2D([], [], label=" ".join(w), **styles[w]) for w in ways]
    handles += [Line2D([], [], label="control: dense, tuned alike", color="0.3", lw=0.9)]
    handles += [Line2D([], [], label="dense, not tuned", color="0.3", ls=":", lw=0.9)]
    notes = [
        "Eager PyTorch, fp32, against the control of the same seed: the dense model with the same training "
        "in total.",
        *_small_print(study),
        *([WARNED] if shown["warned"].any() else []),
        BARS,
        "Points of one ratio stand side by side.",
    ]
    _finish(figure, notes, handles, "pruning ratio (share of heads and FFN units)", "accuracy lost (points)")
    return Drawing(figure, [*notes, *levels])


def quant_runtime(study: Study) -> Drawing:
    """Speedup of each pair of number format and runtime.

    Pairs that were not measured are blank and hatched.
    """
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    pairs = study.points.drop_duplicates(["ratio", "mode", "runtime"]).groupby("ratio").size()
    at = 0.0 if pairs.get(0.0, 0) > 1 else float(pairs.idxmax())
    if pairs[at] < 2:
        raise CannotDraw("only one pair of quant.mode and runtime was measured")
    shown = study.points[(study.points["ratio"] == at) & study.points["speedup"].notna()]
    if shown.empty:
        raise CannotDraw("no record of them has a valid speedup")
    way = _commonest_way(shown)
    shown = shown[(shown["method"] == way[0]) & (shown["scope"] == way[1])]
    modes, runtimes = _ordered(shown["mode"], MODES), _ordered(shown["runtime"], RUNTIMES)
    of = list(shown[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    across = min(3, len(of))
    figure = _figure(across, (0.19 * len(modes) + 0.32) * math.ceil(len(of) / across) + 1.25)
    grid = figure.subplots(math.ceil(len(of) / across), across, squeeze=False, sharex=True, sharey=True)
    between = "\n" if across > 1 and max(len(d) for d, _ in of) > 15 else " · "
    furthest = max(1.5, float(np.exp(np.abs(np.log(shown["speedup"])).max())))
    norm = LogNorm(1 / furthest, furthest)  # 1, no change, is the middle
    for axes in grid.flat[len(of) :]:
        axes.set_visible(False)
    for axes, (dataset, model) in zip(grid.flat, of, strict=False):
        here = shown[(shown["dataset"] == dataset) & (shown["model"] == model)]
        table = here.pivot(index="mode", columns="runtime", values="speedup").reindex(
            index=modes, columns=runtimes
        )
        warned = {(p["mode"], p["runtime"]) for _, p in here.iterrows() if p["warned"]}
        image = axes.imshow(table.to_numpy(float), norm=norm, cmap="PuOr", aspect="auto")
        for y, mode in enumerate(modes):
            for x, runtime in enumerate(runtimes):
                value = table.iloc[y, x]
                if math.isnan(value):
                    axes.add_patch(
                        Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="////", ec="0.75", lw=0)
                    )
                    continue
                text = f"{value:.2f}" if value < 9.95 else f"{value:.1f}"
                text += "⚠" if (mode, runtime) in warned else ""
                axes.text(
                    x, y, text, ha="center", va="center", fontsize=7, color=_readable_on(image.to_rgba(value))
                )
        axes.set_xticks(range(len(runtimes)), runtimes, rotation=35, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(modes)), modes)
        axes.grid(False)
        axes.tick_params(length=0)
        axes.set_title(f"{dataset}{between}{model}")
    for x in range(across):  # panels that end a column need their labels
        below = [a for a in grid[:, x] if a.get_visible()]
        below[-1].tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=list(grid.flat), shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("speedup", fontsize=7)
    ticks = [v for v in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / furthest <= v <= furthest]
    bar.set_ticks(ticks, labels=[f"{v:g}" for v in ticks])
    bar.minorticks_off()
    what = (
        "Without pruning."
        if at == 0
        else f"At pruning ratio {at:g} ({way[0]} {way[1]}): it has the most pairs, as hardly any was measured without pruning."
    )
    notes = [
        "Speedup of wall time against the control, fp32 eager.",
        *_small_print(study),
        what,
        "Hatched: not measured.",
    ]
    notes += ["⚠: a record has a warning."] if shown["warned"].any() else []
    _finish(figure, notes)
    return Drawing(figure, notes)


def channels(study: Study) -> Drawing:
    """Which attention heads and FFN units went, per layer: the smallest ratio at which each is gone."""
    import matplotlib
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.patches import Patch

    runs = study.runs[(study.runs["ratio"] > 0) & study.runs["run_id"].isin(study.frozen.channels["run_id"])]
    if runs.empty:
        raise CannotDraw("nothing was pruned")
    common = (
        runs.drop_duplicates(["dataset", "model", "method", "scope", "ratio"])
        .groupby("ratio")
        .size()
        .sort_values(ascending=False, kind="stable")
    )
    ratios = sorted(common.index[:MOST_RATIOS])
    runs = runs[runs["ratio"].isin(ratios)]
    of = list(runs[["dataset", "model"]].drop_duplicates().itertuples(index=False, name=None))
    tables, notes, used, chosen, returns = [], [], set(), set(), False
    for dataset, model in of[:MOST_PANELS]:
        here = runs[(runs["dataset"] == dataset) & (runs["model"] == model)]
        here = here[here["seed"] == here["seed"].min()]
        method, scope = _commonest_way(here.drop_duplicates(["method", "scope", "ratio"]))
        here = here[(here["method"] == method) & (here["scope"] == scope)]
        # Every runtime and number format of a ratio has the same smaller model: one of them tells it all.
        here = here.sort_values(["ratio", "mode", "runtime"], kind="stable").drop_duplicates("ratio")
        kept = study.frozen.channels.merge(here[["run_id", "ratio"]], on="run_id")
        gone_at = kept["ratio"].where(~kept["kept"].astype(bool))
        gone = kept.assign(gone_at=gone_at).groupby(["kind", "layer", "unit"])["gone_at"].min()
        tables.append((dataset, model, gone["head"].unstack("unit"), gone["ffn"].unstack("unit")))
        told = ", ".join(f"{r:g}" for r in here["ratio"])
        notes.append(f"{dataset} {model}: {method} {scope}, seed {here['seed'].iloc[0]}, ratios {told}.")
        used |= set(here["ratio"])
        chosen.add(f"{method} {scope}")
        returns |= scope == "depth" and len(here) > 1
    ratios = sorted(used)
    around_in = 0.45 * len(tables) + 0.8
    layer_in = min(0.09, (PAGE_HIGH_IN - around_in) / sum(len(heads) for _, _, heads, _ in tables))
    heights = [layer_in * len(heads) for _, _, heads, _ in tables]
    figure = _figure(3, sum(heights) + around_in)
    grid = figure.subplots(len(tables), 2, squeeze=False, width_ratios=[1, 3.4], height_ratios=heights)
    shades = matplotlib.colormaps["cividis"]([k / max(1, len(ratios)) for k in range(len(ratios))])
    palette = ListedColormap([*shades, (0.93, 0.93, 0.93, 1)])
    codes = {r: k for k, r in enumerate(ratios)}
    norm = BoundaryNorm([k - 0.5 for k in range(len(ratios) + 2)], len(ratios) + 1)
    for (dataset, model, heads, units), (left, right) in zip(tables, grid, strict=True):
        for axes, table, what in ((left, heads, "head"), (right, units, "FFN unit")):
            coded = table.map(lambda r: len(ratios) if math.isnan(r) else codes[r]).to_numpy()
            axes.imshow(coded, cmap=palette, norm=norm, aspect="auto", interpolation="none")
            for edge in range(1, len(table)):
                axes.axhline(edge - 0.5, color="white", lw=min(0.8, 10 * layer_in))
            if what == "head":
                for edge in range(1, table.shape[1]):
                    axes.axvline(edge - 0.5, color="white", lw=min(0.8, 10 * layer_in))
            axes.grid(False)
            axes.tick_params(length=2)
            axes.yaxis.get_major_locator().set_params(
                integer=True, nbins=max(1, min(4, int(layer_in * len(table) / 0.16)))
            )
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_title(f"{dataset} · {model}" if what == "head" else "", loc="left")
        left.set_ylabel("layer")
    grid[-1, 0].set_xlabel("attention head")
    grid[-1, 1].set_xlabel("FFN unit")
    handles = [Patch(fc=shades[k], label=f"gone at {r:g}") for k, r in enumerate(ratios)] + [
        Patch(fc="0.93", ec="0.7", lw=0.4, label="always kept")
    ]
    small = [
        *([f"Pruned by {chosen.pop()}."] if len(chosen) == 1 else []),
        "Colour: the smallest pruning ratio at which it is gone.",
        "One seed: units of differently trained models are not the same.",
    ]
    small += (
        ["By depth, a unit may be back at a higher ratio, where more whole layers went."] if returns else []
    )
    small += (
        [f"Of {len(of)} pairs of dataset and model, the first {MOST_PANELS} are shown."]
        if len(of) > MOST_PANELS
        else []
    )
    small += (
        [f"Of {len(common)} ratios, the {MOST_RATIOS} that were measured most."]
        if len(common) > MOST_RATIOS
        else []
    )
    _finish(figure, small, handles)
    return Drawing(figure, [*small, *notes])


def roofline(study: Study) -> Drawing:
    """How much of what the processor could do is done.

    Multiply-accumulates per second over those of one large product in the same number format.
    """
    from matplotlib.lines import Line2D

    runs = study.runs[study.runs["peak_gmacs"].notna() & study.runs["series_per_s"].notna()]
    if runs.empty:
        raise CannotDraw(
            "no record has the peak of its processor (peak_gmacs): it was measured by an older version"
        )
    runs = runs.assign(
        share_pct=100
        * runs["macs"]
        * runs["series_per_s"]
        / (1e9 * runs["peak_gmacs"] * runs["threads"]),  # the peak is that of one thread
        kind=[
            f"{r} · {m}" if m != "none" else f"{r} · fp32"
            for r, m in zip(runs["runtime"], runs["mode"], strict=True)
        ],
    )
    where = ["dataset", "model", "method", "scope", "ratio", "runtime", "mode", "kind"]
    means = runs.groupby(where)["share_pct"].mean().reset_index()
    order = [(r, m) for r in _ordered(means["runtime"], RUNTIMES) for m in _ordered(means["mode"], MODES)]
    kinds = [
        k
        for r, m in order
        for k in means.loc[(means["runtime"] == r) & (means["mode"] == m), "kind"].unique()
    ]
    models = sorted(means["model"].unique())
    figure, panels = _panels(
        means["dataset"].unique(), height_in=0.2 * len(kinds) + 0.6, legend_in=0.3, share=True
    )
    for dataset, axes in panels:
        here = means[means["dataset"] == dataset]
        for i, model in enumerate(models):
            for pruned in (False, True):
                some = here[(here["model"] == model) & ((here["ratio"] > 0) == pruned)]
                y = [kinds.index(k) + 0.5 * ((i + 0.5) / len(models) - 0.5) for k in some["kind"]]
                axes.plot(
                    some["share_pct"],
                    y,
                    ls="none",
                    marker="o",
                    ms=3.8,
                    color=study.colours[model],
                    mfc="white" if pruned else study.colours[model],
                )
        axes.set_yticks(range(len(kinds)), kinds)
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.set_title(dataset)
        _log_ticks(axes.xaxis, means["share_pct"])
    handles = [Line2D([], [], color=study.colours[m], marker="o", ls="none", label=m) for m in models]
    handles += (
        [Line2D([], [], color="0.4", marker="o", mfc="white", ls="none", label="open: pruned")]
        if (means["ratio"] > 0).any()
        else []
    )
    notes = [*_small_print(study), "Peak: one large product in the same number format, seen on this machine."]
    _finish(figure, notes, handles, "share of the peak reached (%)")
    return Drawing(
        figure, [*notes, "MACs · series per second of wall time, over the peak of a thread · threads."]
    )


def windows(study: Study, side: str) -> Drawing:
    """Energy of every window in the order of measuring.

    Of each dataset the run that varies most and the median one.
    """
    import numpy as np
    from matplotlib.lines import Line2D

    runs = study.runs[study.runs[f"{side}_j"].notna()]
    table = study.frozen.windows[
        (study.frozen.windows["subject"] != "idle") & study.frozen.windows["run_id"].isin(runs["run_id"])
    ]
    if table.empty:
        raise CannotDraw(f"no record has windows with {side} energy")
    table = table.assign(each_j=table["energy_j"] / table["inferences"])
    whole = table[~table["discarded"]]
    by = whole.groupby(["run_id", "subject"])["each_j"]
    variation_pct = (100 * by.std() / by.mean()).groupby("run_id").max()
    picks, notes = [], []
    for dataset, group in runs.groupby("dataset"):
        ranked = group.assign(variation_pct=group["run_id"].map(variation_pct)).dropna(subset="variation_pct")
        ranked = ranked.sort_values(
            ["variation_pct", *("model", "mode", "runtime", "ratio", "seed", "run_id")], kind="stable"
        )
        for what, k in (("widest", len(ranked) - 1), ("median", (len(ranked) - 1) // 2))[: len(ranked)]:
            run = ranked.iloc[k]
            picks.append((dataset, what, run))
            notes.append(
                f"{dataset}, {what} of {len(ranked)} runs: {_describe(run)}, seed {run['seed']}; varies by "
                f"{run['variation_pct']:.1f} %."
            )
    if not picks:
        raise CannotDraw("no record has two windows of a subject")
    datasets = sorted({d for d, _, _ in picks})
    across = 2 if any(what == "median" for _, what, _ in picks) else 1
    figure = _figure(3 if across > 1 else 1, 1.75 * len(datasets) + 0.95)
    grid = figure.subplots(len(datasets), across, squeeze=False)
    for axes in grid.flat[:]:
        axes.set_visible(False)
    subjects = {"reference": ("0.35", "s"), "artifact": (COLOURS[0], "o")}
    for dataset, what, run in picks:
        axes = grid[datasets.index(dataset), 0 if what == "widest" else 1]
        axes.set_visible(True)
        axes.axhline(0, color="0.6", lw=0.7, zorder=0)
        for subject, (colour, marker) in subjects.items():
            mine = table[(table["run_id"] == run["run_id"]) & (table["subject"] == subject)].sort_values(
                "order"
            )
            good = mine[~mine["discarded"]]
            if good.empty:
                continue
            off = 100 * (good["each_j"] / good["each_j"].median() - 1)
            axes.plot(good["order"], off, color=colour, marker=marker, ms=3, lw=0.6, zorder=2)
            third = max(1, len(good) // 3)
            for part in (slice(None, third), slice(-third, None)):
                axes.plot(
                    [good["order"].iloc[part].min(), good["order"].iloc[part].max()],
                    [off.iloc[part].median()] * 2,
                    color=colour,
                    lw=2.4,
                    alpha=0.45,
                )
            low, high = np.percentile(off, [25, 75])
            far = (off < low - 1.5 * (high - low)) | (off > high + 1.5 * (high - low))
            axes.plot(
                good["order"][far], off[far], ls="none", marker="o", ms=7, mfc="none", mec=COLOURS[1], mew=1
            )
            gone = mine[mine["discarded"]]
            axes.plot(gone["order"], [0] * len(gone), ls="none", marker="x", color=COLOURS[1])
        mine = table[table["run_id"] == run["run_id"]].sort_values("order")
        for before, after in _borders(mine):
            axes.axvline((before + after) / 2, color="0.6", ls=":", lw=0.8, zorder=0)
        flag = " ⚠" if run["warnings"] else ""
        title = f"{dataset} · {what} variation ({run['variation_pct']:.1f} %){flag}\n{_describe(run)}"
        axes.set_title(
            "\n".join(textwrap.wrap(title.split("\n")[0], 52) + textwrap.wrap(title.split("\n")[1], 52)),
            fontsize=7.5,
        )
        axes.margins(y=0.15)
    handles = [Line2D([], [], color=c, marker=m, ms=3, lw=0.6, label=s) for s, (c, m) in subjects.items()]
    handles += [Line2D([], [], color="0.5", lw=2.4, alpha=0.6, label="median of first and last third")]
    handles += [Line2D([], [], ls="none", marker="o", ms=7, mfc="none", mec=COLOURS[1], label="outlier")]
    handles += (
        [Line2D([], [], ls="none", marker="x", color=COLOURS[1], label="discarded")]
        if table["discarded"].any()
        else []
    )
    shown = table[table["run_id"].isin([run["run_id"] for _, _, run in picks])]
    if any(_borders(mine) for _, mine in shown.groupby("run_id")):
        handles += [Line2D([], [], color="0.6", ls=":", lw=0.8, label="another process")]
    small = [
        *([ESTIMATED] if _dagger(side) else []),
        _invalid(study),
        "Outlier: more than 1.5 quartile ranges outside the quartiles.",
    ]
    small += ["⚠: the record has a warning."] if any(run["warnings"] for _, _, run in picks) else []
    _finish(
        figure,
        small,
        handles,
        "window, in the order of measuring",
        f"{side} energy{_dagger(side)} per\ninference, off its median (%)",
    )
    chosen = "Variation is the standard deviation over the mean, of the worse of artifact and reference."
    return Drawing(figure, [*small, chosen, *notes])


def confusion(study: Study) -> Drawing:
    """Labels against predictions before and after compression."""
    import pandas as pd

    small = study.runs[
        ((study.runs["ratio"] > 0) | (study.runs["mode"] != "none"))
        & study.runs["run_id"].isin(study.frozen.predictions["run_id"])
    ]
    if small.empty:
        raise CannotDraw("nothing was compressed")
    picks, notes = [], []
    for dataset, group in small.groupby("dataset"):
        by, of = (
            ("val_drop_pt", "validation")
            if group["val_drop_pt"].notna().any()
            else ("accuracy_drop_pt", "test")
        )
        group = group.sort_values(["bytes", by, "model", "mode", "runtime", "seed", "run_id"], kind="stable")
        good = group[group[by] <= LOSES_AT_MOST_PT]
        run = (good if len(good) else group).iloc[0]
        picks.append((dataset, run))
        why = f"the smallest{' that' if len(good) else '; none'} loses at most {LOSES_AT_MOST_PT:g} point on {of} series"
        change = f"{run['accuracy_drop_pt']:+.1f} points lost on test series, {run['size_ratio']:.1f} times smaller"
        notes.append(f"{dataset}: {_describe(run)}, seed {run['seed']}, {why}: {change}.")
    classes = {d: _classes(study.frozen.predictions, run["run_id"]) for d, run in picks}
    sides_in = [min(2.7, 0.2 * len(classes[d]) + 0.7) for d, _ in picks]
    figure = _figure(3 if max(map(len, classes.values())) > 5 else 1, sum(sides_in) + 0.3 * len(picks) + 0.5)
    grid = figure.subplots(len(picks), 2, squeeze=False, height_ratios=sides_in, sharey="row")
    for row, (dataset, run) in zip(grid, picks, strict=True):
        names = classes[dataset]
        mine = study.frozen.predictions[study.frozen.predictions["run_id"] == run["run_id"]]
        for axes, column, title in (
            (row[0], "dense_predicted", f"{dataset} · {run['model']}\ncontrol"),
            (row[1], "predicted", "compressed"),
        ):
            counts = pd.crosstab(mine["label"], mine[column]).reindex(
                index=names, columns=names, fill_value=0
            )
            share_pct = (100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)).to_numpy()
            image = axes.imshow(share_pct, vmin=0, vmax=100, cmap="Blues", aspect="auto")
            for y in range(len(names) if len(names) <= 12 else 0):
                for x in range(len(names)):
                    if counts.iloc[y, x]:
                        axes.text(
                            x,
                            y,
                            f"{share_pct[y, x]:.0f}",
                            ha="center",
                            va="center",
                            fontsize=7,
                            color=_readable_on(image.to_rgba(share_pct[y, x])),
                        )
            right = 100 * (mine["label"] == mine[column]).mean()
            axes.set_title(f"{title}: {right:.1f} %")
            every = math.ceil(len(names) / 20)
            short = [n if len(n) <= 9 else f"{n[:5]}…{n[-3:]}" for n in names[::every]]
            axes.set_xticks(
                range(0, len(names), every),
                short,
                **({"rotation": 45, "ha": "right"} if max(map(len, short)) > 2 else {}),
            )
            axes.set_yticks(range(0, len(names), every), short)
            axes.grid(False)
            axes.tick_params(length=0)
    foot = [_invalid(study), "Above: accuracy. In the cells: % of the series of that class. One run each."]
    _finish(figure, foot, x="predicted class", y="true class")
    return Drawing(figure, [*foot, *notes])


def critical_difference(study: Study) -> Drawing:
    """Mean ranks in accuracy over datasets; bars join what no test tells apart."""
    import numpy as np
    from scipy.stats import friedmanchisquare

    if study.points["dataset"].nunique() < 3:
        raise CannotDraw(f"ranks need at least 3 datasets, there are {study.points['dataset'].nunique()}")
    # The runtime changes the accuracy of a number format by rounding only: its runtimes are one competitor.
    names = study.points.assign(name=[_describe(p, runtime=False) for _, p in study.points.iterrows()])
    scores = names.pivot_table(index="dataset", columns="name", values="accuracy_pct", aggfunc="mean").dropna(
        axis=1
    )
    if scores.shape[1] < 3:
        raise CannotDraw(
            f"only {scores.shape[1]} configurations were measured on all {len(scores)} datasets: ranks need "
            f"at least 3"
        )
    most, total = 10, scores.shape[1]
    ranks = scores.rank(axis=1, ascending=False).mean().sort_values(kind="stable")
    scores = scores[ranks.index[:most]]
    if not np.isfinite(friedmanchisquare(*scores.to_numpy().T).pvalue):
        raise CannotDraw("all configurations are equally accurate on all datasets")
    import matplotlib.pyplot as plt
    from aeon.visualisation import plot_critical_difference

    figure, axes = plot_critical_difference(
        scores.to_numpy(),
        list(scores.columns),
        test="wilcoxon",
        correction="holm",
        alpha=0.05,
        width=PAGE_IN,
        textspace=2.6,
    )
    plt.close(figure)
    for text in (
        axes.texts
    ):  # drawn for a poster: to the sizes of the other figures, and ranks with as many digits as they deserve
        text.set_fontsize(7.5)
        if "." in text.get_text() and text.get_text().replace(".", "").isdigit():
            text.set_text(f"{float(text.get_text()):.2f}")
    for line in axes.lines:
        line.set_linewidth(min(line.get_linewidth(), 3) / 1.5)
    notes = [_invalid(study), "Means over seeds and runtimes; 1 is the best rank."]
    notes += [
        f"{len(scores)} datasets. Bars join what is not told apart (Friedman, then Wilcoxon with Holm, α = "
        f"0.05)."
    ]
    smallest = 2 / 2 ** len(scores)
    if smallest > 0.05:
        notes.append(
            f"With {len(scores)} datasets Wilcoxon's test can tell no pair apart: its smallest p is "
            f"{smallest:.2g}."
        )
    if total > most:
        notes.append(
            f"The {most} best mean ranks of {total} configurations, chosen by the scores that are compared."
        )
    figure.set_layout_engine("none")
    figure.text(0.02, 0.02, _wrapped(notes, PAGE_IN), fontsize=7, color="0.35", ha="left", va="bottom")
    return Drawing(figure, notes)


FIGURES: dict[str, Callable[[Study], Drawing]] = {
    "accuracy_energy_measured": lambda study: accuracy_energy(study, "measured"),
    "accuracy_energy_estimated": lambda study: accuracy_energy(study, "estimated"),
    "ratio": ratio,
    WAYS: pruning_ways,
    "quant_runtime": quant_runtime,
    "channels": channels,
    "roofline": roofline,
    "windows_measured": lambda study: windows(study, "measured"),
    "windows_estimated": lambda study: windows(study, "estimated"),
    "confusion": confusion,
    "critical_difference": critical_difference,
}
"""Name of the files → what draws it."""


def _figure(across: int, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(COLUMN_IN if across == 1 else PAGE_IN, height_in))


def _panels(
    names: Iterable[str], height_in: float, legend_in: float, share: bool = False
) -> tuple[Figure, list[tuple[str, Axes]]]:
    """A panel per name, three in a row at most."""
    names = list(names)
    across = min(3, len(names))
    down = math.ceil(len(names) / across)
    figure = _figure(across, height_in * down + legend_in + 0.35)
    grid = figure.subplots(down, across, squeeze=False, sharex=share, sharey=share)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    return figure, list(zip(names, grid.flat, strict=False))


def _finish(
    figure: Figure, notes: Sequence[str], handles: Sequence[Any] = (), x: str = "", y: str = ""
) -> None:
    """Legend above; labels that all panels share below and at the left.

    The small print at the foot, for which the figure grows.
    """
    small = _wrapped(notes, figure.get_figwidth())
    foot_in = 0.135 * (small.count("\n") + 1) + 0.05
    label_in = 0.18 if x else 0.0
    height_in = figure.get_figheight() + foot_in + label_in
    figure.set_figheight(height_in)
    foot = (foot_in + label_in) / height_in
    figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))  # type: ignore[union-attr,call-arg]
    figure.text(0.02, 0.01, small, fontsize=7, color="0.35", ha="left", va="bottom")
    if handles:
        rows = math.ceil(len(handles) / (7 if figure.get_figwidth() >= PAGE_IN else 3))
        figure.legend(handles=handles, loc="outside upper center", ncols=math.ceil(len(handles) / rows))
    if x:  # not a supxlabel: the layout puts that under the foot
        figure.text(0.55, (foot_in + 0.03) / height_in, x, fontsize=8, ha="center", va="bottom")
    if y:
        figure.supylabel(y, fontsize=8)


def _wrapped(notes: Sequence[str], width_in: float) -> str:
    return "\n".join(textwrap.wrap(" ".join(notes), int(18.5 * width_in)))


def _invalid(study: Study) -> str:
    return " ".join(invalid(study.frozen))


def _small_print(study: Study, *sides: str) -> list[str]:
    seeds = sorted(study.points["n"].unique())
    means = (
        "One seed."
        if seeds[-1] == 1
        else f"Means of {seeds[0]} seeds."
        if len(seeds) == 1
        else f"Means of {seeds[0]} to {seeds[-1]} seeds."
    )
    return [*([ESTIMATED] if "estimated" in sides else []), _invalid(study), means]


def _readable_on(colour: Sequence[float]) -> str:
    return "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5 else "white"


def _dagger(side: str) -> str:
    return ESTIMATE if side == "estimated" else ""


def _describe(p: pd.Series, runtime: bool = True) -> str:
    """What a point or a run is, in words."""
    pruned = f"pruned {p['ratio']:.3g} ({p['method']} {p['scope']})" if p["ratio"] else "not pruned"
    return ", ".join(
        [
            p["model"],
            *([p["runtime"]] if runtime else []),
            "fp32" if p["mode"] == "none" else p["mode"],
            pruned,
        ]
    )


def _around(p: pd.Series, value: str) -> list[list[float]]:
    """Lengths of the error bars of one point, below and above."""
    return [[max(0.0, p[value] - p[f"{value}_lo"])], [max(0.0, p[f"{value}_hi"] - p[value])]]


def _warn(axes: Axes, x: float, y: float, colour: str = "white") -> None:
    axes.plot(x, y, marker="o", ms=1.6, mfc=colour, mec=colour, mew=0, ls="none", zorder=4)


def _front(here: pd.DataFrame, cost: str, gain: str) -> pd.DataFrame:
    """Points that no other beats in both, by rising cost; of equal ones the first."""
    best = here.iloc[front(list(zip(here[gain], here[cost], strict=True)))]
    return best.drop_duplicates([gain, cost])


def _tuned(study: Study, side: str) -> pd.DataFrame:
    """The controls with this kind of energy, but for the dense models that are points themselves."""
    p = study.points
    dense = set(
        p.loc[
            (p["ratio"] == 0) & (p["mode"] == "none") & (p["runtime"] == "eager"), ["dataset", "model"]
        ].itertuples(index=False, name=None)
    )
    control = study.controls
    other = [
        tuning != "-" or (d, m) not in dense
        for d, m, tuning in zip(control["dataset"], control["model"], control["tuning"], strict=True)
    ]
    return control[other][lambda t: t[f"{side}_j"].notna()]


def _only_control(study: Study, here: pd.DataFrame) -> pd.Series:
    """The control of these points of one dataset and model; if they have several, that of most of them."""
    first, tuning = here.iloc[0], here["tuning"].mode()[0]
    c = study.controls
    return c[
        (c["dataset"] == first["dataset"]) & (c["model"] == first["model"]) & (c["tuning"] == tuning)
    ].iloc[0]


def _borders(windows: pd.DataFrame) -> list[tuple[int, int]]:
    """Places in the order of measuring between which another process began."""
    pairs = zip(
        windows["order"],
        windows["order"].iloc[1:],
        windows["process"],
        windows["process"].iloc[1:],
        strict=False,
    )
    return [(before, after) for before, after, process, other in pairs if process != other]


def _frame(axes: Sequence[Axes], shown: pd.DataFrame, value: str, *levels: float) -> None:
    """Limits in which all points, these levels and all bars have room, but for the bars of two seeds, which would hide the rest."""
    sure = shown[shown["n"] != 2]
    inside = [*shown[value], *sure[f"{value}_lo"], *sure[f"{value}_hi"], *levels]
    low, high = (f(v for v in inside if not math.isnan(v)) for f in (min, max))
    room = 0.12 * (high - low) or 1.0
    for one in axes:
        one.set_ylim(low - room, high + room)


def _eager_fp32(study: Study) -> pd.DataFrame:
    shown = study.points[(study.points["runtime"] == "eager") & (study.points["mode"] == "none")]
    if not (shown["ratio"] > 0).any():
        raise CannotDraw(
            "nothing was pruned in eager PyTorch without quantization (runtime=eager quant.mode=none)"
        )
    return shown


def _ways(shown: pd.DataFrame) -> list[tuple[str, str]]:
    """Methods and scopes of pruning."""
    return sorted(set(shown.loc[shown["ratio"] > 0, ["method", "scope"]].itertuples(index=False, name=None)))


def _line(axes: Axes, line: pd.DataFrame, value: str, place: float, **style: Any) -> None:
    """A line over the pruning ratio with its error bars, `place` steps aside so that none hides another."""
    x = line["ratio"] + APART * place
    error = [[_around(p, value)[end][0] for _, p in line.iterrows()] for end in (0, 1)]
    axes.errorbar(x, line[value], yerr=error, ms=3.6, capsize=1.5, elinewidth=0.7, **style)
    for spot, (_, p) in zip(x, line.iterrows(), strict=True):
        if p["warned"]:
            _warn(axes, spot, p[value])


def _ratio_ticks(axes: Axes, shown: pd.DataFrame) -> None:
    ratios = sorted(shown["ratio"].unique())
    if len(ratios) <= 6:  # more would overlap
        axes.set_xticks(ratios)


def _lines(here: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.DataFrame]]:
    """Pruned points by model and way of pruning, each beginning at the dense point, which is measured once for all of them."""
    import pandas as pd

    for (model, method, scope), line in here[here["ratio"] > 0].groupby(["model", "method", "scope"]):
        dense = here[(here["ratio"] == 0) & (here["model"] == model)]
        yield (model, method, scope), pd.concat([dense, line]).sort_values("ratio", kind="stable")


def _commonest_way(rows: pd.DataFrame) -> tuple[str, str]:
    """Method and scope of pruning that most rows have, the first in order of equally common ones."""
    return rows.groupby(["method", "scope"]).size().idxmax()  # type: ignore[no-any-return]


def _ordered(values: pd.Series, known: Sequence[str]) -> list[str]:
    """Distinct values, the known ones in their order, then others."""
    there = set(values)
    return [k for k in known if k in there] + sorted(there - set(known))


def _classes(predictions: pd.DataFrame, run_id: str) -> list[str]:
    mine = predictions[predictions["run_id"] == run_id]
    names = set(mine["label"]) | set(mine["predicted"]) | set(mine["dense_predicted"])
    return sorted(names, key=lambda n: (0, float(n), n) if n.replace(".", "", 1).isdigit() else (1, 0.0, n))


def _prefix(joules: float) -> tuple[float, str]:
    for factor, unit in ((1.0, "J"), (1e3, "mJ"), (1e6, "µJ")):
        if joules * factor >= 1:
            return factor, unit
    return 1e9, "nJ"


def _log_ticks(axis: Any, values: pd.Series) -> None:
    """A logarithmic axis with plain numbers, and as many of them as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axis.axes.set_xscale("log")
    decades = math.log10(values.max() / values.min())
    subs = (1,) if decades > 1.8 else (1, 2, 5) if decades > 0.8 else (1, 1.5, 2, 3, 4, 5, 7)
    # Of less than a factor of 3, the round numbers of a decade show one or none.
    axis.set_major_locator(LogLocator(subs=subs) if decades > 0.5 else MaxNLocator(4, steps=(1, 2, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
