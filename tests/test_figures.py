"""Figures of the study: what they show, what they leave out, and that equal results give equal bytes."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from report_data import CLASSES, DATASETS, attached, frozen, only
from tsexp.config import conf_dir
from tsexp.report import figures
from tsexp.report.figures import (
    accuracy_energy,
    channels,
    confusion,
    layout,
    pruning,
    quant_runtime,
    ranks,
    roofline,
    windows,
    words,
)
from tsexp.report.figures.drawing import CannotDraw
from tsexp.report.frozen import together
from tsexp.report.points import WAY, study_of
from tsexp.report.schema import FROM_WINDOWS
from tsexp.report.style import COLOURS, STYLE, log_axis

DRAW = (
    "import sys; sys.path.insert(0, sys.argv[1]); from test_figures import *; "
    "figures.draw(small(), Path(sys.argv[2]))"
)


def small(**changes):
    return frozen(**({"models": ("t1",), "series": 60} | changes))


def changed(results, rows, **values):
    """The same with other values in the rows for which `rows` holds."""
    table = results.results.copy()
    for name, value in values.items():
        table.loc[rows, name] = value
    return replace(results, results=table)


def half_measured(**changes):
    """PLAID is measured with a counter, the others are estimated."""
    measured, estimated = small(measured=True, **changes), small(**changes)
    a, b = (
        only(measured, measured.results["dataset"] == "PLAID"),
        only(estimated, estimated.results["dataset"] != "PLAID"),
    )
    tables = ("results", "windows", "predictions", "channels")
    return replace(a, **{t: pd.concat([getattr(a, t), getattr(b, t)], ignore_index=True) for t in tables})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return figures.draw(small(), folder), folder


@pytest.fixture(scope="module", autouse=True)
def _style():
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


@pytest.fixture(scope="module")
def everything():
    """Every figure there is, in memory: name → drawing."""
    of = study_of(half_measured(models=("t1", "t2")))
    return {name: make(of) for name, make in figures.FIGURES.items()}


def texts(figure):
    """All text that is drawn; labels of ticks outside an axis are there but not drawn."""
    hidden = set()
    for axes in figure.axes:
        for axis, (low, high) in (
            (axes.xaxis, sorted(axes.get_xlim())),
            (axes.yaxis, sorted(axes.get_ylim())),
        ):
            ticks = axis.get_major_ticks() + axis.get_minor_ticks()
            hidden |= {
                label
                for tick in ticks
                for label in (tick.label1, tick.label2)
                if not low <= tick.get_loc() <= high or not axes.get_visible()
            }
    there = [
        t
        for t in figure.findobj(matplotlib.text.Text)
        if t.get_visible() and t.get_text().strip() and t not in hidden
    ]
    return [t for t in there if t.axes is None or t.axes.get_visible()]


def test_every_figure_is_drawn_as_pdf_and_png_and_the_notes_say_why_one_is_not(drawn):
    files, folder = drawn
    names = [n for n in figures.FIGURES if not n.endswith("_measured")]
    assert [f.name for f in files] == [f"{n}.{kind}" for n in names for kind in ("pdf", "png")] + ["notes.md"]
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in files)
    assert all(f.read_bytes().startswith({".pdf": b"%PDF", ".png": b"\x89PNG"}[f.suffix]) for f in files[:-1])
    assert all(Image.open(f).mode == "P" for f in files if f.suffix == ".png")  # a third of the bytes
    notes = files[-1].read_text()
    assert "## windows_measured\n\nNot drawn: no record has windows with measured energy." in notes
    assert "Records with invalid energy, which count for accuracy only: 3." in notes
    assert "Setup: A CPU, batch 1, 1 thread." in notes


@pytest.mark.slow
def test_equal_results_give_equal_bytes_in_another_process_too(drawn, tmp_path):
    files, _ = drawn
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    subprocess.run(
        [sys.executable, "-c", DRAW, str(Path(__file__).parent), str(tmp_path)], check=True, env=environment
    )
    assert {f.name: (tmp_path / f.name).read_bytes() == f.read_bytes() for f in files} == {
        f.name: True for f in files
    }


def test_all_text_is_readable_and_inside_the_figure(everything):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for name, drawing in everything.items():
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()
        whole = drawing.figure.bbox.padded(2)
        assert drawing.figure.get_figwidth() in (layout.COLUMN_IN, layout.PAGE_IN), name
        for text in texts(drawing.figure):
            assert text.get_fontsize() >= 7, (name, text.get_text())
            box = text.get_window_extent(canvas.get_renderer())
            assert all(whole.contains(x, y) for x, y in box.corners()), (name, text.get_text())


@pytest.mark.slow
def test_many_models_on_four_datasets_stay_readable():
    """The legend fits, four panels are two rows of two, and no number on a front covers another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    models = ("dtw_1nn", "fcn", "minirocket", "multirocket_hydra", "quant_forest", "resnet", "t3", "t4")
    results = small(datasets=(*DATASETS, "ACSF1"), models=models, seeds=(0,), series=20)
    figure = accuracy_energy.accuracy_energy(study_of(results), "estimated").figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (legend,) = figure.legends
    assert set(models) <= {t.get_text() for t in legend.get_texts()}
    assert figure.bbox.padded(2).containsx(legend.get_window_extent().x0)
    assert figure.bbox.padded(2).containsx(legend.get_window_extent().x1)
    assert len({axes.get_position().x0 for axes in figure.axes}) == 2
    for axes in figure.axes:
        numbers = [t.get_window_extent(canvas.get_renderer()) for t in axes.texts]
        assert not [(a, b) for i, a in enumerate(numbers) for b in numbers[:i] if a.padded(-1).overlaps(b)]


def test_estimates_carry_a_dagger_and_measurements_share_no_figure_with_them(everything):
    for side, panels in (("measured", {"PLAID"}), ("estimated", set(DATASETS) - {"PLAID"})):
        for name in ("accuracy_energy", "windows"):
            drawing = everything[f"{name}_{side}"]
            assert {d for d in DATASETS for a in drawing.figure.axes if a.get_title().startswith(d)} == panels
            assert any("†" in t.get_text() for t in texts(drawing.figure)) == (side == "estimated")
            assert (words.ESTIMATED in drawing.notes) == (side == "estimated")


def test_savings_of_both_kinds_are_in_rows_of_their_own():
    results = half_measured()
    figure = pruning.ratio(study_of(results)).figure
    labelled = {a.get_ylabel().replace("\n", " "): a for a in figure.axes if a.get_ylabel()}
    assert list(labelled) == [
        "measured energy (control = 1)",
        "estimated energy† (control = 1)",
        "speedup (wall time)",
    ]
    rows = [figure.axes[k : k + 3] for k in (0, 3, 6)]
    lines = [
        [len(a.containers) for a in row] for row in rows
    ]  # the panels are ElectricDevices, PLAID, RefrigerationDevices
    assert lines == [[0, 1, 0], [1, 0, 1], [1, 1, 1]]


def test_energies_and_speedups_are_relative_to_the_control_on_logarithmic_axes():
    """One that takes 8.5 times the energy leaves the others apart."""
    results = small(datasets=("PLAID",), seeds=(0,))
    r = results.results
    worst = (r["ratio"] == 0.5) & (r["method"] == "l1") & (r["runtime"] == "eager")
    of = dict(zip(("pct", "lo", "hi"), (-750.0, -800.0, -700.0), strict=True))
    results = changed(results, worst, **{f"estimated_saving_{end}": v for end, v in of.items()})
    energy, speedup = pruning.ratio(study_of(results)).figure.axes
    assert (energy.get_yscale(), speedup.get_yscale()) == ("log", "log")
    (line,) = energy.containers
    assert line.lines[0].get_ydata()[-1] == pytest.approx(8.5)
    assert sorted(line.lines[2][0].get_segments()[-1][:, 1]) == pytest.approx([8.0, 9.0])
    low, high = energy.get_ylim()
    assert low < 0.7 < 9.0 < high


def test_the_numbers_on_a_front_have_their_key_in_the_figure():
    drawing = accuracy_energy.accuracy_energy(study_of(small()), "estimated")
    foot = " ".join(" ".join(t.get_text().split()) for t in drawing.figure.texts)
    for axes in drawing.figure.axes:
        listed = [n for n in drawing.notes if n.startswith(f"{axes.get_title()}, front ")]
        assert [t.get_text() for t in axes.texts] == [str(k + 1) for k in range(len(listed))] != []
        assert f"On the front of {axes.get_title()}: (1) " in foot
        for number, note in enumerate(listed, 1):
            said = note.split(f"front {number}: ")[1].removesuffix(".")
            assert f"({number}) {said}" in foot


def test_what_one_seed_tells_is_smaller_and_has_its_n():
    """A mean of more is what it may be taken for, on the front above all."""
    results = small(datasets=("PLAID",))
    r = results.results
    l1 = (r["ratio"] == 0.5) & (r["method"] == "l1") & (r["scope"] == "local")
    alone = l1 & (r["runtime"] == "eager") & (r["seed"] > 0)
    uneven = study_of(only(results, ~alone))
    mixed = accuracy_energy.accuracy_energy(uneven, "estimated")
    (axes,) = mixed.figure.axes
    sizes = [c.lines[0].get_markersize() for c in axes.containers]
    assert sizes.count(accuracy_energy.SMALL) == 1 < len(set(sizes))
    assert "small: one seed" in [t.get_text() for t in mixed.figure.legends[0].get_texts()]
    (ways,) = pruning.pruning_ways(uneven).figure.axes
    assert ways.get_title().endswith(" %, n = 1 to 2")
    formats, *_ = quant_runtime.quant_runtime(uneven).figure.axes
    assert formats.get_title() == "PLAID · t1, n = 2"
    said = [n for n in mixed.notes if "front " in n and n.startswith("PLAID")]
    assert said
    assert all(re.search(r", n = [1-9]\.$", n) for n in said)
    alike = accuracy_energy.accuracy_energy(study_of(results), "estimated")
    assert not any("n = " in n for n in alike.notes)


def test_bars_are_explained_by_what_they_are_of():
    of = study_of(small())
    of_accuracy, of_cost = (words.bars(of.points, v) for v in ("accuracy_pct", "speedup"))
    assert "two-way: over seeds and test series" in of_accuracy
    assert of_accuracy in pruning.pruning_ways(of).notes
    assert of_cost in pruning.ratio(of).notes
    for make in (pruning.pruning_ways, figures.FIGURES["accuracy_energy_estimated"]):
        assert of_cost not in make(of).notes


def test_ways_of_pruning_are_lines_that_begin_at_the_dense_model():
    drawing = pruning.pruning_ways(study_of(small(models=("t1", "t2"))))
    assert [a.get_title().split("\n")[0] for a in drawing.figure.axes] == [
        f"{d} · {m}" for m in ("t1", "t2") for d in DATASETS
    ]
    for axes in drawing.figure.axes:
        lines = [c.lines[0] for c in axes.containers]
        assert len(lines) == 4
        assert {line.get_ydata()[0] for line in lines} == {0.0}
        assert all(len(line.get_xdata()) == 3 for line in lines)


def test_the_levels_of_the_control_and_of_the_untuned_model_are_the_rows_own():
    results = small(datasets=("PLAID",))
    drawing = pruning.pruning_ways(study_of(results))
    (axes,) = drawing.figure.axes
    pruned = results.results[results.results["ratio"] > 0]
    control, dense = (100 * pruned[f"{of}_accuracy"].mean() for of in ("control", "dense"))
    assert axes.get_title() == f"PLAID · t1\ncontrol {control:.1f} %"
    level = [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == ":"]
    assert level == [[pytest.approx(control - dense)] * 2]
    assert control > dense + 1
    said = [t.get_text() for t in drawing.figure.legends[0].get_texts()]
    assert said[-2:] == ["control: dense, tuned alike", "dense, not tuned"]


def test_the_control_is_a_point_and_may_be_on_the_front():
    """Trained for as long, the dense model is as accurate.

    Being better than it was before that tuning is no merit of pruning.
    """
    results = small(datasets=("PLAID",))
    predictions = results.predictions.copy()
    pruned = predictions["run_id"].isin(results.results.loc[results.results["ratio"] > 0, "run_id"])
    predictions.loc[pruned & (predictions["series"] < 6), "predicted"] = "something else"
    results = replace(results, predictions=predictions)
    one = study_of(results)
    control = one.controls[one.controls["tuning"] != "-"].iloc[0]
    pruned = results.results[results.results["ratio"] > 0]
    assert control["accuracy_pct"] == pytest.approx(100 * pruned["control_accuracy"].mean())
    assert control["estimated_j"] == pytest.approx(pruned["estimated_reference_j"].mean(), rel=1e-2)
    assert control["accuracy_pct_lo"] < control["accuracy_pct"] < control["accuracy_pct_hi"]
    drawing = accuracy_energy.accuracy_energy(one, "estimated")
    stars = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "*"]
    assert [list(line.get_ydata()) for line in stars] == [[control["accuracy_pct"]]]
    best = accuracy_energy.best_of(one.points, "estimated_j", "accuracy_pct")
    assert best["accuracy_pct"].max() < control["accuracy_pct"]
    assert any("t1, control" in note for note in drawing.notes)


def test_a_dense_model_that_was_measured_itself_is_no_second_point():
    dense = small(datasets=("PLAID",))
    dense = only(dense, dense.results["ratio"] == 0)
    drawing = accuracy_energy.accuracy_energy(study_of(dense), "estimated")
    assert not [line for line in drawing.figure.axes[0].lines if line.get_marker() == "*"]


@pytest.mark.slow
def test_an_invalid_energy_changes_nothing_but_its_own_and_its_accuracy_counts():
    results = small()
    invalid = ~results.results["valid"]
    without, points_of = study_of(only(results, ~invalid)), study_of(results)
    both = points_of.points.merge(without.points, on=WAY, suffixes=("", "_without"))
    assert (both["estimated_j"] == both["estimated_j_without"]).all()
    assert (both["speedup_hi"] == both["speedup_hi_without"]).all()
    changed_rows = both[both["n"] != both["n_without"]]
    assert set(changed_rows["mode"] + changed_rows["runtime"]) == {"staticopenvino"}
    assert (changed_rows["accuracy_pct"] != changed_rows["accuracy_pct_without"]).any()
    assert (
        points_of.notes[0] == f"Records with invalid energy, which count for accuracy only: {invalid.sum()}."
    )
    unscored = study_of(changed(results, invalid, scored=False))
    pd.testing.assert_frame_equal(unscored.points, without.points)
    assert f"Invalid records left out: {invalid.sum()}." in unscored.notes


def test_a_point_has_the_mean_and_the_interval_of_the_tables():
    from tsexp.report.statistics import aggregate

    for seeds in ((0,), (0, 1), (0, 1, 2)):
        results = frozen(DATASETS[:1], ("t1",), seeds)
        table = study_of(results).points.set_index(WAY)
        rows = aggregate(results).set_index(WAY)
        for name, of in (
            ("speedup", "speedup"),
            ("accuracy_drop_pt", "drop_pt"),
            ("accuracy_pct", "accuracy_pct"),
            ("estimated_j", "estimated_j"),
        ):
            for end in ("", "_lo", "_hi"):
                pd.testing.assert_series_equal(
                    table[f"{name}{end}"], rows[f"{of}{end}"].sort_index(), check_names=False
                )


def test_the_wide_bars_of_two_seeds_do_not_hide_the_rest():
    axes = pruning.pruning_ways(study_of(small(datasets=("PLAID",)))).figure.axes[0]
    low, high = axes.get_ylim()
    values = [y for c in axes.containers for y in c.lines[0].get_ydata()]
    ends = [
        y for c in axes.containers for bar in c.lines[2] for path in bar.get_segments() for y in path[:, 1]
    ]
    assert low < min(values) < max(values) < high
    assert max(ends) - min(ends) > 2 * (high - low)  # of which some are cut, and the small print says so
    wide = "Those of two seeds are wide"
    assert wide in words.bars(study_of(small(datasets=("PLAID",))).points, "accuracy_pct")
    three = study_of(small(datasets=("PLAID",), seeds=(0, 1, 2)))
    assert wide not in words.bars(three.points, "accuracy_pct")
    assert wide in words.bars(three.points, "speedup")  # one of three records has invalid energy
    axes = pruning.pruning_ways(three).figure.axes[0]
    low, high = axes.get_ylim()
    assert all(
        low < y < high
        for c in axes.containers
        for bar in c.lines[2]
        for path in bar.get_segments()
        for y in path[:, 1]
    )


def test_two_meters_share_no_panel_and_no_mean():
    results = small(datasets=("PLAID",), seeds=(0, 1, 2), measured=True)
    rare = results.results["seed"] == 2
    chosen = study_of(
        changed(results, rare, energy_source="mains:plug", measured_j=9.0, measured_reference_j=99.0)
    )
    assert set(chosen.runs["energy_source"]) == {"zeus:rapl"}
    assert chosen.points["measured_j"].max() < 1
    assert f"Records with less common sources of energy left out: {rare.sum()}." in chosen.notes


def test_measured_energy_is_shown_before_its_estimates_unless_there_is_far_less_of_it():
    estimates = small(datasets=("PLAID", "ElectricDevices"))
    both = together({"1": estimates, "2": attached(estimates)})
    chosen = study_of(both)
    assert set(chosen.runs["energy_source"]) == {"external:plug"}
    assert f"Estimates of energy left out where it was measured: {len(chosen.runs)}." in chosen.notes
    assert accuracy_energy.accuracy_energy(chosen, "measured").figure.axes
    few = only(
        both, (both.results["dataset"] == "PLAID") | both.results["energy_source"].str.startswith("est")
    )
    kinds = study_of(few).runs.groupby("dataset")["energy_source"].unique()
    assert {name: list(of) for name, of in kinds.items()} == {
        "ElectricDevices": ["estimated:cpu_time"],
        "PLAID": ["external:plug"],
    }
    bad = attached(estimates)
    emptied = bad.results.assign(valid=False, **dict.fromkeys(FROM_WINDOWS, np.nan))
    chosen = study_of(together({"1": estimates, "2": replace(bad, results=emptied)}))
    assert set(chosen.runs["energy_source"]) == {"estimated:cpu_time"}
    part = attached(only(estimates, estimates.results["ratio"] == 0))
    chosen = study_of(together({"1": estimates, "2": part}))
    assert set(chosen.runs["energy_source"]) == {"estimated:cpu_time"}
    assert any("Measured energy left out in datasets with more than twice as many" in n for n in chosen.notes)


def test_the_commonest_setup_is_shown_and_the_others_are_counted():
    results = small(seeds=(0, 1, 2))
    rare = results.results["seed"] == 2
    chosen = study_of(changed(results, rare, batch_size=32, speedup=1e6))
    assert set(chosen.runs["batch_size"]) == {1}
    assert chosen.points["speedup"].max() < 100
    assert f"The commonest of 2 setups; records of the others left out: {rare.sum()}." in chosen.notes


def test_records_of_another_recipe_are_not_averaged_in():
    results = small(seeds=(0, 1, 2))
    rare = results.results["seed"] == 2
    chosen = study_of(changed(results, rare, recipe="other", accuracy=0.0))
    assert chosen.points["accuracy_pct"].min() > 10
    assert any("training recipes left out" in note for note in chosen.notes)


def test_the_front_has_what_nothing_beats_in_both():
    table = pd.DataFrame(
        {"j": [1, 2, 2, 3, 4, 5], "accuracy": [50, 60, 55, 58, 70, 70], "name": list("abcdef")}
    )
    assert list(accuracy_energy.best_of(table, "j", "accuracy")["name"]) == ["a", "b", "e"]


def test_pairs_that_were_not_measured_are_hatched_and_not_zero():
    results = small()
    figure = quant_runtime.quant_runtime(study_of(results)).figure
    valid = results.results[results.results["valid"] & (results.results["ratio"] == 0)]
    for axes, dataset in zip(figure.axes, DATASETS, strict=False):
        there = valid[valid["dataset"] == dataset].drop_duplicates(["mode", "runtime"])
        modes, runtimes = there["mode"].nunique(), there["runtime"].nunique()
        shown = axes.images[0].get_array()
        assert shown.count() == len(there) == len(axes.texts)
        assert len(axes.patches) == modes * runtimes - len(there) == shown.mask.sum()


def test_a_model_with_one_pair_has_no_heat_map():
    results = small(datasets=("PLAID",), models=("t1", "minirocket"))
    titles = [axes.get_title() for axes in quant_runtime.quant_runtime(study_of(results)).figure.axes]
    assert "PLAID · t1" in titles
    assert not [title for title in titles if "minirocket" in title]
    one = only(results, results.results["model"] == "minirocket")
    with pytest.raises(CannotDraw):
        quant_runtime.quant_runtime(study_of(one))


def test_what_was_pruned_in_another_runtime_alone_is_drawn_there():
    results = small(datasets=("PLAID",), models=("t1",))
    r = results.results
    in_ort = only(results, (r["runtime"] == "onnxruntime") & ((r["method"] == "l1") | (r["ratio"] == 0)))
    drawing = pruning.ratio(study_of(in_ort))
    assert drawing.notes[0].startswith("onnxruntime, fp32, pruned by l1 global")
    (line,) = [c.lines[0] for c in drawing.figure.axes[-1].containers]
    kept = in_ort.results[in_ort.results["mode"] == "none"]
    assert list(line.get_xdata()) == pytest.approx(sorted(kept["ratio"].unique()))
    assert drawing.figure.axes[-1].get_ylabel().startswith("speedup")
    assert min(line.get_ydata()) > 1.5  # of the runtime itself, for the control is in eager PyTorch


def test_a_heat_map_without_dense_pairs_says_at_which_ratio_it_is():
    results = small()
    pruned = only(
        results,
        (results.results["ratio"] > 0)
        | (results.results["mode"] + results.results["runtime"] == "noneeager"),
    )
    assert any(
        note.startswith("At pruning ratio 0.3 (l1 global)")
        for note in quant_runtime.quant_runtime(study_of(pruned)).notes
    )


def test_a_unit_has_the_colour_of_the_smallest_ratio_at_which_it_is_gone():
    results = small(datasets=("PLAID",), seeds=(0,))
    drawing = channels.channels(study_of(results))
    heads = drawing.figure.axes[0].images[0].get_array()
    r = results.results
    ids = {
        q: r[(r["method"] == "l1") & (r["scope"] == "global") & (r["ratio"] == q) & (r["mode"] == "bf16")][
            "run_id"
        ]
        for q in (0.3, 0.5)
    }
    assert all(len(found) == 0 for found in ids.values())
    # Several runtimes have that ratio; the figure takes the first by mode and runtime: dynamic in ONNX
    # Runtime.
    of = r[(r["method"] == "l1") & (r["scope"] == "global") & (r["mode"] == "dynamic")].set_index("ratio")[
        "run_id"
    ]
    kept = results.channels[results.channels["kind"] == "head"].set_index(["run_id", "layer", "unit"])["kept"]
    for layer in range(2):
        for unit in range(4):
            gone = [k for k, q in enumerate((0.3, 0.5)) if not kept[of[q], layer, unit]]
            assert heads[layer, unit] == (gone[0] if gone else 2)


@pytest.mark.parametrize(("threads", "share_pct"), [(1, 5.0), (2, 2.5)])
def test_the_share_of_the_peak_is_what_it_says(threads, share_pct):
    results = small(datasets=("PLAID",), seeds=(0,))
    results = changed(
        results,
        results.results["valid"],
        macs=2_000_000,
        series_per_s=1000.0,
        peak_gmacs=40.0,
        threads=threads,
    )
    axes = roofline.roofline(study_of(results)).figure.axes[0]
    assert {round(float(x), 9) for line in axes.lines for x in line.get_xdata()} == {share_pct}


def test_the_widest_run_is_shown_with_its_outlier_ringed():
    results = small(datasets=("PLAID",), series=20)
    r = results.results
    run = r[(r["mode"] == "bf16") & (r["seed"] == 1)].iloc[0]
    table = results.windows.copy()
    planted = table[(table["run_id"] == run["run_id"]) & (table["subject"] == "artifact")].index[2]
    table.loc[planted, "energy_j"] *= 1.5
    drawing = windows.windows(study_of(replace(results, windows=table)), "estimated")
    assert any(
        note.startswith("PLAID, widest") and "openvino, bf16, not pruned, seed 1" in note
        for note in drawing.notes
    )
    rings = [
        line
        for line in drawing.figure.axes[0].lines
        if line.get_markeredgecolor() == COLOURS[1] and line.get_marker() == "o" and len(line.get_xdata())
    ]
    assert table.loc[planted, "order"] in [x for line in rings for x in line.get_xdata()]


def test_classes_are_in_the_order_of_their_numbers():
    labels = ["10", "-1", "1e1", "b", "2", "nan", "1"]
    some = pd.DataFrame(dict.fromkeys(("label", "predicted", "dense_predicted"), labels))
    assert confusion.classes(some) == ["-1", "1", "2", "10", "1e1", "b", "nan"]


def test_names_of_classes_are_no_formulas():
    results = small(datasets=("PLAID",))
    names = {label: "$" * i for i, label in enumerate(CLASSES, 1)}
    named = results.predictions.replace(dict.fromkeys(("label", "predicted", "dense_predicted"), names))
    drawing = confusion.confusion(study_of(replace(results, predictions=named)))
    drawing.figure.draw_without_rendering()
    assert [
        label.get_text().replace("\\", "") for label in drawing.figure.axes[0].get_yticklabels()
    ] == sorted(names.values())


def test_the_confusion_is_of_the_smallest_artifact_that_loses_at_most_a_point_on_validation_series():
    results = small(datasets=("PLAID",))
    results = changed(
        results, results.results["ratio"] == 0.5, val_drop_pt=1.5, accuracy_drop_pt=0.0, bytes=10
    )
    mild = results.results["ratio"] == 0.3
    config, lucky = results.results.loc[mild, "config"].unique()[:2]
    for seed, lost_pt, by_luck in ((0, 1.4, -0.5), (1, 0.4, 4.0)):  # of one seed alone, neither would be
        of = mild & (results.results["seed"] == seed)
        mine, other = (of & (results.results["config"] == c) for c in (config, lucky))
        results = changed(results, mine, val_drop_pt=lost_pt, accuracy_drop_pt=1.4, bytes=20)
        results = changed(results, other, val_drop_pt=by_luck, bytes=15)
    drawing = confusion.confusion(study_of(results))
    run = results.results[results.results["config"] == config].sort_values("seed").iloc[0]
    assert any(
        f"{run['runtime']}" in n
        and "pruned 0.3" in n
        and "seed 0, the smallest that loses at most 1 point on validation series, in the mean of 2 seeds: "
        "+1.4"
        in n
        for n in drawing.notes
    )
    before, after = (a.images[0].get_array() for a in drawing.figure.axes[:2])
    mine = results.predictions[results.predictions["run_id"] == run["run_id"]]
    for shown, column in ((before, "dense_predicted"), (after, "predicted")):
        for y, label in enumerate(CLASSES):
            for x, said in enumerate(CLASSES):
                share_pct = (
                    100
                    * ((mine["label"] == label) & (mine[column] == said)).sum()
                    / (mine["label"] == label).sum()
                )
                assert shown[y, x] == pytest.approx(share_pct)


@pytest.mark.slow
def test_models_of_other_families_are_drawn_beside_the_transformer_and_alone(tmp_path):
    results = small(models=("t1", "fcn", "minirocket"))
    notes = figures.draw(results, tmp_path)[-1].read_text()
    assert notes.count("Not drawn: ") == 2  # those of measured energy
    assert "Multiply-accumulates not counted: minirocket." in notes
    shown = roofline.roofline(study_of(results)).figure.legends[0].get_texts()
    assert [t.get_text() for t in shown] == ["fcn", "t1", "open: pruned"]
    alone = figures.draw(small(models=("minirocket",)), tmp_path)[-1].read_text()
    assert "Not drawn: no model here has counted multiply-accumulates (size/macs)." in alone


def test_nothing_worth_a_figure_is_a_note_and_no_crash_and_old_figures_go(tmp_path):
    results = small(datasets=("PLAID",), seeds=(0,), series=20)
    dense = only(
        results,
        (results.results["ratio"] == 0)
        & (results.results["mode"] + results.results["runtime"] == "noneeager"),
    )
    dense = replace(dense, results=dense.results.assign(peak_gmacs=float("nan")))
    (tmp_path / "ratio.pdf").write_text("of an older store")
    (tmp_path / "mine.pdf").write_text("not of the study")
    files = figures.draw(dense, tmp_path)
    assert [f.name for f in files] == ["windows_estimated.pdf", "windows_estimated.png", "notes.md"]
    assert not (tmp_path / "ratio.pdf").exists()
    assert (tmp_path / "mine.pdf").exists()
    notes = files[-1].read_text()
    assert notes.count("Not drawn: ") == len(figures.FIGURES) - 1
    for reason in (
        "nothing was pruned",
        "nothing was compressed",
        "ranks need at least 3 datasets, there are 1",
        "(peak_gmacs)",
        "nothing to compare",
    ):
        assert reason in notes


def test_without_a_valid_record_there_are_only_notes(tmp_path):
    results = small(datasets=("PLAID",), seeds=(0,), series=20)
    files = figures.draw(changed(results, results.results["scored"], scored=False), tmp_path)
    assert [f.name for f in files] == ["notes.md"]
    assert files[0].read_text().count("Not drawn: there is no record with finite scores.") == len(
        figures.FIGURES
    )


def test_ranks_say_what_so_few_datasets_can_tell(everything):
    notes = everything["critical_difference"].notes
    assert any(
        "With 3 datasets Wilcoxon's test can tell no pair apart: its smallest p is 0.25" in note
        for note in notes
    )


def test_bars_of_ranks_seldom_part_what_is_equal():
    """One of six is better by far, five are alike: how often two of these are told apart (at most .05)."""
    from aeon.visualisation.results import _critical_difference as drawn

    rng, wrong, told, draws = np.random.default_rng(0), 0, 0, 150
    for _ in range(draws):
        scores = rng.normal(0.8, 0.05, (20, 1)) + rng.normal(0, 0.02, (20, 6))
        scores[:, 0] += 0.2
        ranked = drawn._compute_ranks(scores, lower_better=False)
        labels, means, ordered = drawn._sort_by_average_rank(scores, [*"abcdef"], ranked)
        asked = {"ranks": ranked, "ordered_scores": ordered, "ordered_labels": labels}
        cliques, _ = drawn._find_cliques(
            **asked,
            ordered_avg_ranks=means,
            n_datasets=20,
            n_estimators=6,
            lower_better=False,
            **ranks.TEST,
        )
        wrong += not any(all(c[1:]) for c in cliques)
        told += not any(c[0] for c in cliques)
    assert ranks.TEST["alpha"] == ranks.ALPHA / 2 == 0.025, "one-sided, but the direction is looked up"
    assert wrong / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)
    assert told / draws > 0.9


def test_ranks_without_anything_unpruned_show_more_than_the_best_of_each_model():
    """One of each of two models is fewer than ranks need."""
    pruned = frozen(series=60)
    drawing = ranks.critical_difference(study_of(only(pruned, pruned.results["ratio"] > 0)))
    names = [t.get_text() for t in drawing.figure.axes[0].texts if "pruned" in t.get_text()]
    assert len(names) == ranks.MOST
    assert {name.split(",")[0].split()[0] for name in names} == set(pruned.results["model"])


def test_ranks_leave_room_for_every_model():
    """As trained, and in its best other way."""
    drawing = ranks.critical_difference(study_of(half_measured(models=("t1", "t2", "t3"))))
    names = [t.get_text() for t in drawing.figure.axes[0].texts if t.get_text().startswith("t")]
    assert sorted(name[:2] for name in names) == ["t1", "t1", "t2", "t2", "t3", "t3"]
    assert sum(name.endswith("fp32, not pruned") for name in names) == 3
    assert any("each as trained and in its best other way only" in note for note in drawing.notes)


BETWEEN = ("litetime", "resnet18", "litetimes1", "inceptiontime")


@pytest.mark.parametrize(
    "long",
    ["t1", *(pytest.param(name, marks=pytest.mark.slow) for name in BETWEEN), "inceptiontime_of_mine"],
)
def test_names_of_ranks_are_in_the_picture(long):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    made = half_measured(models=("t1", "t2", "t3"))
    named = replace(made, results=made.results.replace({"model": {"t1": long}}))
    fewer = named.results["model"].eq(long) & named.results["seed"].ne(0)
    figure = ranks.critical_difference(study_of(only(named, ~fewer))).figure
    figure.draw_without_rendering()
    texts = [t for t in figure.axes[0].texts if t.get_text().startswith(long)]
    assert any("(n = 1)" in t.get_text() and "pruned" in t.get_text() for t in texts)
    figure.set_dpi(200)  # as it is saved
    renderer = FigureCanvasAgg(figure).get_renderer()
    edges = [t.get_window_extent(renderer) for t in figure.axes[0].texts]
    assert max(e.width for e in edges) > 100
    assert all(e.x0 >= 0 and e.x1 <= 200 * figure.get_figwidth() for e in edges)


@pytest.mark.parametrize("height_in", [2.0, 18.0])
def test_no_line_of_the_foot_covers_another_however_tall_the_figure(height_in):
    figure = layout.sized(2, height_in)
    figure.subplots()
    figure.set_layout_engine("constrained")
    layout.finish(figure, ["Small print. " * 30], x="pruning ratio", key=["1  the first way"])
    figure.draw_without_rendering()
    small, key, label = (t.get_window_extent() for t in figure.texts)
    assert 0 <= small.y0 < small.y1 <= key.y0 < key.y1 <= label.y0
    assert label.y1 < figure.axes[0].get_position().y0 * figure.bbox.height


def test_ranks_of_one_model_have_room_for_its_best_ways():
    alone = ranks.critical_difference(study_of(half_measured(models=("t1",))))
    assert sum(t.get_text().startswith("t1") for t in alone.figure.axes[0].texts) == ranks.MOST


def test_ranks_name_those_of_fewer_seeds(monkeypatch):
    monkeypatch.setattr(ranks, "MOST", 1000)
    results = half_measured(models=("t1", "t2"))
    fewer = results.results["model"].eq("t2") & results.results["seed"].ne(0)
    for some, few in ((results, set()), (only(results, ~fewer), {"t2"})):
        texts = figures.FIGURES["critical_difference"](study_of(some)).figure.axes[0].texts
        names = [t.get_text() for t in texts if t.get_text().startswith("t")]
        assert {name[:2] for name in names} == {"t1", "t2"}
        assert {name[:2] for name in names if name.endswith("(n = 1)")} == few
        assert all(name.endswith("(n = 1)") == (name[:2] in few) for name in names)


def test_ranks_name_those_of_fewer_seeds_on_some_datasets():
    results = half_measured(models=("t1", "t2", "t3"))
    of = results.results
    fewer = of["model"].eq("t2") & of["seed"].ne(0) & of["dataset"].eq(of["dataset"].iloc[0])
    texts = ranks.critical_difference(study_of(only(results, ~fewer))).figure.axes[0].texts
    names = [t.get_text() for t in texts if t.get_text().startswith("t")]
    assert {name.endswith("(n ≥ 1)") for name in names if name.startswith("t2")} == {True}
    assert not [name for name in names if "(n" in name and not name.startswith("t2")]


def test_the_style_has_the_colours_of_all_pictures():
    style = matplotlib.rc_params_from_file(STYLE, use_default_template=False)
    assert style["axes.prop_cycle"].by_key()["color"] == COLOURS


def test_every_model_that_comes_with_the_package_has_a_colour_of_its_own():
    assert len(set(COLOURS)) == len(COLOURS) >= len(list((conf_dir() / "model").glob("*.yaml")))


@pytest.mark.parametrize("highest", [1.05, 1.3, 2, 4, 30, 2000])
def test_an_axis_of_energies_names_at_least_two_values_however_near_they_are(highest):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot([7.0, 7.0 * highest], [0, 1])
    log_axis(axes.xaxis, pd.Series([7.0, 7.0 * highest]))
    low, high = axes.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in axes.xaxis.get_majorticklocs()) <= 6
