from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from test_report import row
from tsexp.report import constraints, front_picture
from tsexp.report.front import energy_front, front
from tsexp.report.front_picture import front_figure

VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(allow_nan=True, allow_infinity=False))


def dominates(p, q):
    return p[0] >= q[0] and p[1] <= q[1] and p != q


@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_the_front_is_what_no_point_dominates_by_rising_cost(points):
    there = [i for i, p in enumerate(points) if p[0] == p[0] and p[1] == p[1]]
    best = front(points)
    assert set(best) == {i for i in there if not any(dominates(points[j], points[i]) for j in there)}
    assert len(set(best)) == len(best)
    assert [points[i][1] for i in best] == sorted(points[i][1] for i in best)


def point(name, accuracy, energy, test=0.6, control=0.0, control_j=9.0, **tags):
    """A job with this accuracy on validation series; its control is out of the way."""
    made = row(name, **tags)
    of = {
        "val/accuracy": accuracy,
        "test/accuracy": test,
        "val/accuracy_drop_pt": 100 * (control - accuracy),
        "test/control_accuracy": control,
    }
    return replace(
        made,
        metrics=made.metrics
        | of
        | {"energy/per_inference_j": energy, "energy/reference_per_inference_j": control_j},
    )


def test_each_source_of_energy_has_its_own_front_and_invalid_records_have_none(tmp_path):
    rows = [
        point("best", 0.9, 2e-3),
        point("cheap", 0.8, 1e-3),
        point("dominated", 0.8, 2e-3),
        point("invalid", 1.0, 1e-6, valid=False),
        point("measured", 0.5, 5.0, source="zeus:rapl"),
    ]
    assert energy_front(rows) == {"best", "cheap", "measured"}
    assert front_figure(rows, tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert front_figure(rows[3:4], tmp_path / "none.png") is None


def test_the_front_is_chosen_on_validation_series_and_without_them_on_test_series():
    lucky, good = point("lucky", 0.6, 2e-3, test=0.9), point("good", 0.7, 2e-3, test=0.5)
    assert energy_front([lucky, good]) == {"good"}
    blind = [
        replace(r, metrics={k: v for k, v in r.metrics.items() if not k.startswith("val/")})
        for r in (lucky, good)
    ]
    assert energy_front(blind) == {"lucky"}


def test_the_control_takes_part_in_the_front(tmp_path, monkeypatch):
    """Pruned and better than the untuned dense model is no merit.

    Not where the dense model, tuned alike, is as good for the same energy.
    """
    pruned, small = (
        point(name, a, j, control=0.8, control_j=2e-3)
        for name, a, j in (("pruned", 0.75, 2.1e-3), ("small", 0.7, 1e-3))
    )
    assert energy_front([pruned, small]) == {"small"}
    drawn = []
    monkeypatch.setattr(front_picture, "save", lambda figure, path: drawn.append(figure))
    front_figure([pruned, small], tmp_path / "front.png")
    (axes,) = drawn[0].axes
    (star,) = [line for line in axes.lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([2.0], [80.0])
    assert [t.get_text() for t in axes.texts[:-1]] == ["1", "2"]
    assert axes.texts[-1].get_text().splitlines() == [
        "1  small: 70.0 %, 1 mJ†",
        "2  control: 80.0 %, 2 mJ†",
    ]
    open_marks = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert sorted(y for line in open_marks for y in line.get_ydata()) == [
        60.0,
        80.0,
    ]  # on test series, of the front's two
    assert axes.get_ylabel() == "accuracy on validation series (%)"


def test_the_numbers_on_the_front_have_their_key_in_the_picture(tmp_path, monkeypatch):
    rows = [
        point("prune.ratio=0.5 quant.mode=static", 0.7, 1e-3),
        point("prune.ratio=0 quant.mode=none", 0.8, 4e-3, source="zeus:rapl"),
    ]
    drawn = []
    monkeypatch.setattr(front_picture, "save", lambda figure, path: drawn.append(figure))
    front_figure(rows, tmp_path / "front.png")
    keys = [axes.texts[-1].get_text() for axes in drawn[0].axes]
    assert keys == ["1  ratio=0.5 static: 70.0 %, 1 mJ†", "1  ratio=0 quant=none: 80.0 %, 4 mJ"]
    assert drawn[0].get_suptitle() == "ACSF1 · t3"


def test_what_breaks_a_constraint_is_on_no_front_and_marked_so(tmp_path, monkeypatch):
    kept, broken = point("kept", 0.75, 2e-3, control=0.8), point("broken", 0.7, 1e-3, control=0.8)
    bound = constraints.parse(["val/accuracy_drop_pt <= 6"])
    assert energy_front([kept, broken]) == {"kept", "broken"}
    assert energy_front([kept, broken], bound) == {"kept"}
    drawn = []
    monkeypatch.setattr(front_picture, "save", lambda figure, path: drawn.append(figure))
    front_figure([kept, broken], tmp_path / "front.png", bound)
    (axes,) = drawn[0].axes
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(crosses.get_ydata()) == [70.0]
    assert "breaks a constraint" in [t.get_text() for t in axes.get_legend().get_texts()]
    assert axes.texts[-1].get_text().startswith("1  kept: 75.0 %")
