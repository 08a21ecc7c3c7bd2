from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from test_report import row
from tsexp.report.front import energy_front, front, front_figure

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


def point(name, accuracy, energy, **tags):
    made = row(name, **tags)
    return replace(made, metrics=made.metrics | {"test/accuracy": accuracy, "energy/per_inference_j": energy})


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
