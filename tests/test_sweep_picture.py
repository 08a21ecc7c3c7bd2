"""The picture of a sweep: what it shows, what its title names, and which marks it explains."""

from dataclasses import replace

import pytest

from test_report import invalid, row
from tsexp.report import sweep_picture
from tsexp.report.sweep_picture import _lines, sweep_figure


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draw rows; return the figure."""

    def drawn(*rows):
        figures = []
        monkeypatch.setattr(sweep_picture, "save", lambda figure, path: figures.append(figure))
        sweep_figure(list(rows), tmp_path / "a.png")
        return figures[0]

    return drawn


def with_metrics(made, **metrics):
    return replace(made, metrics=made.metrics | {k.replace("__", "/"): v for k, v in metrics.items()})


def saving(ratio, value, low, high, **params):
    of = dict(zip(("pct", "lo", "hi"), (value, low, high), strict=True))
    made = row(f"job {ratio}", ratio=ratio, **params)
    return with_metrics(made, **{f"vs_dense__energy_saving_{end}": v for end, v in of.items()})


def test_energy_is_relative_to_the_control_on_a_logarithmic_axis_with_its_interval(draw):
    _, axes = draw(saving(0.3, -750.0, -800.0, -700.0), saving(0.5, 75.0, 70.0, 80.0)).axes
    assert axes.get_yscale() == "log"
    (line,) = axes.containers
    assert list(line.lines[0].get_ydata()) == pytest.approx([8.5, 0.25])
    bars = [sorted(segment[:, 1]) for segment in line.lines[2][0].get_segments()]
    assert bars == [pytest.approx([8.0, 9.0]), pytest.approx([0.2, 0.3])]


def test_points_without_a_difference_seen_are_open_and_the_legend_says_so(draw):
    seen = saving(0.3, 30.0, 20.0, 40.0)
    unseen = with_metrics(
        saving(0.5, 1.0, -2.0, 4.0),
        vs_dense__accuracy_drop_pt=1.0,
        vs_dense__accuracy_drop_lo=-1.0,
        vs_dense__accuracy_drop_hi=3.0,
    )
    for axes in draw(seen, unseen).axes:
        (open_marks,) = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert list(open_marks.get_xdata()) == [0.5]
    left, _ = draw(seen, unseen).axes
    assert legend(left) == ["open: no difference to its control seen (interval holds 0)"]
    assert legend(draw(seen).axes[0]) == []
    far = with_metrics(seen, test__accuracy=0.98, vs_dense__accuracy_drop_lo=-9.0)
    figure = draw(far, unseen)
    figure.draw_without_rendering()
    left, box = figure.axes[0], figure.axes[0].get_legend().get_window_extent()
    assert box.y0 >= left.get_window_extent().y1, "no mark explains itself on the data"
    assert left.get_ylim()[1] <= 102, "no accuracy is more than 100 %"


def test_the_title_names_dataset_model_and_what_is_fixed(draw):
    shared = {"prune.scope": "local", "measure.batch_size": "1", "seed": "0"}
    jobs = [row(ratio=r, **shared) for r in (0.3, 0.5)]
    title = draw(*jobs).get_suptitle()
    assert title == "ACSF1 · t3 · pruned by l1 · scope local · fp32 · eager · batch 1 · seed 0"
    other = [row(ratio=0.5, **shared | {"model.name": "t1", "seed": "1", "runtime.name": "openvino"})]
    assert (
        draw(*jobs, *other).get_suptitle() == "ACSF1 · 2 models · pruned by l1 · scope local · fp32 · batch 1"
    )
    assert draw(row(ratio=0, **shared)).get_suptitle() == "ACSF1 · t3 · fp32 · eager · batch 1 · seed 0"


def test_models_that_are_not_pruned_stand_side_by_side_with_their_joules(draw):
    """Other families have no pruning ratio to vary, other params, and each model a control of its own."""
    one, other = (saving(0, 50.0, 40.0, 60.0) for _ in range(2))
    other = replace(other, run_id="other", params={"data.name": "ACSF1", "model.name": "minirocket"})
    figure = draw(one, with_metrics(other, energy__per_inference_j=0.002))
    for axes in figure.axes:
        assert [t.get_text() for t in axes.get_xticklabels()] == ["t3", "minirocket"]
        assert [list(c.lines[0].get_xdata()) for c in axes.containers] == [[0], [1]]
    energy = figure.axes[1]
    assert energy.get_ylabel() == "energy per inference† (mJ)"
    values = [c.lines[0].get_ydata()[0] for c in energy.containers]
    bars = [sorted(c.lines[2][0].get_segments()[0][:, 1]) for c in energy.containers]
    assert values == pytest.approx([12.3, 2.0])
    assert bars[1] == pytest.approx([1.6, 2.4])
    runtimes = draw(one, replace(one, run_id="b", params=one.params | {"runtime.name": "openvino"}))
    assert runtimes.axes[1].get_ylabel() == "energy per inference† (control = 1)"


def test_the_picture_has_the_accuracy_of_records_with_invalid_energy_and_is_not_drawn_without_rows(
    tmp_path, monkeypatch
):
    assert sweep_figure([], tmp_path / "a.png") is None
    assert sweep_figure([invalid("scores that are not finite")], tmp_path / "a.png") is None
    assert sweep_figure([row(), row(ratio=0.5)], tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(sweep_picture, "save", lambda figure, path: drawn.append(figure))
    sweep_figure([row(), invalid(ratio=0.5)], tmp_path / "a.png")
    left, right = drawn[0].axes
    ringed = [line for line in left.lines if line.get_markersize() == 11]
    assert [list(line.get_xdata()) for line in ringed] == [[0.5]]
    assert [len(a.containers[0].lines[0].get_xdata()) for a in (left, right)] == [2, 1]
    assert "ringed: energy invalid" in legend(left)


def test_lines_are_named_by_what_varies_and_not_by_what_follows_from_it():
    rows = [
        row(**{"model.name": m, "train.epochs": e, "data.name": d})
        for m, e in (("t1", "20"), ("t3", "200"))
        for d in ("ACSF1", "PLAID")
    ]
    assert set(_lines(rows)) == {"ACSF1 t1", "ACSF1 t3", "PLAID t1", "PLAID t3"}
    assert set(_lines([row(), row(ratio=0.5)])) == {"t3"}
    rows = [row(**{"prune.method": m}) for m in ("l1", "l2")]
    assert set(_lines(rows)) == {"method=l1", "method=l2"}


def test_a_dense_job_is_on_every_line_that_starts_from_it():
    def pruned(method, model="t3", ratio=0.5):
        return row(
            f"{method} {model}",
            ratio=ratio,
            **{"prune.method": method, "prune.finetune_epochs": "30", "model.name": model},
        )

    # The one dense t3 was measured in a sweep over taylor, and stands in this one for both its jobs at ratio
    # 0.
    dense = row("dense t3", ratio=0, **{"prune.method": "taylor", "prune.finetune_epochs": "5"})
    other = row("dense t1", ratio=0, **{"prune.method": "l1", "model.name": "t1"})
    lines = _lines(
        [dense, pruned("l1"), dense, pruned("l2"), pruned("l1", ratio=0.3), other, pruned("l1", "t1")]
    )
    assert {
        label: [(r.name, float(r.params["prune.ratio"])) for r in members] for label, members in lines.items()
    } == {
        "t3 method=l1": [("dense t3", 0), ("l1 t3", 0.3), ("l1 t3", 0.5)],
        "t3 method=l2": [("dense t3", 0), ("l2 t3", 0.5)],
        "t1 method=l1": [("dense t1", 0), ("l1 t1", 0.5)],
    }


def test_a_dense_job_alone_has_a_line_of_its_own():
    assert list(map(len, _lines([row("dense", ratio=0), row("dense", ratio=0)]).values())) == [1]
