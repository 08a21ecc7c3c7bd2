"""Averages, intervals and verdicts, against what is known of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from report_data import frozen, only
from tsexp.report import statistics as st


@pytest.fixture(scope="module")
def whole():
    return frozen(datasets=("PLAID",), models=("t1",))


@pytest.fixture(scope="module")
def rows(whole):
    return st.aggregate(whole)


def both(a, b):
    parts = [pd.concat([getattr(f, name) for f in (a, b)], ignore_index=True) for name in ("results", "windows", "predictions", "channels")]
    return replace(a, **dict(zip(("results", "windows", "predictions", "channels"), parts, strict=True)))


@pytest.mark.parametrize(("lost", "gained", "p"), [(0, 0, 1.0), (5, 0, 2 / 2**5), (0, 5, 2 / 2**5), (3, 3, 1.0), (1, 7, 2 * 9 / 2**8)])
def test_mcnemar_is_exact(lost, gained, p):
    assert st.mcnemar_p(lost, gained) == pytest.approx(p)


def test_the_interval_of_the_drop_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for n, lost, gained in ((100, 0.02, 0.01), (375, 0.08, 0.05), (2000, 0.01, 0.01)):
        draws = rng.choice([1.0, -1.0, 0.0], p=[lost, gained, 1 - lost - gained], size=(800, n))
        held = [low <= 100 * (lost - gained) <= high for _, low, high in map(st.drop_interval_pt, draws)]
        assert np.mean(held) >= 0.935


def test_no_flip_is_no_proof_and_more_series_say_more():
    few, many = (st.drop_interval_pt(np.zeros(n)) for n in (100, 10_000))
    assert few.value == many.value == 0
    assert few.high > 1 > many.high > 0
    assert few.low == -few.high


def test_seeds_are_averaged_with_a_t_interval():
    values = np.array([1.0, 2.0, 4.0])
    assert st.over_seeds(values)[1:] == pytest.approx(stats.t.interval(0.95, 2, values.mean(), stats.sem(values)))
    assert st.over_seeds(np.array([3.0, 3.0])) == (3.0, 3.0, 3.0)
    assert np.isnan(st.over_seeds(np.array([3.0])).low)


def test_ratios_are_averaged_as_ratios(rows):
    speed = next(m for m in st.METRICS if m.name == "speedup")
    saving = next(m for m in st.METRICS if m.name == "estimated_saving_pct")
    times = np.array([1.1, 3.0])
    value, low, high = st.over_seeds(times, speed)
    assert value == pytest.approx(np.sqrt(3.3))
    assert 0 < low < value < high
    # A saving is the same statement as its speedup.
    assert st.over_seeds(100 * (1 - 1 / times), saving) == pytest.approx([100 * (1 - 1 / t) for t in (value, low, high)])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-1, 1.0, "kept"), (0.5, 1.01, "undecided"), (1.0, 3, "undecided"), (1.01, 3, "lost"), (-5, -2, "kept"), (-9, 9, "undecided")],
)
def test_minimal_degradation_is_a_test_with_a_margin(low, high, said):
    assert st.degradation(low, high) == said


def test_a_row_per_configuration_with_its_seeds_and_without_invalid_records(whole, rows):
    assert len(rows) == whole.results["config"].nunique()
    assert rows["n"].sum() == whole.results["valid"].sum() == len(whole.results) - 1
    alone = rows[rows["n"] == 1]
    assert list(alone["mode"] + " " + alone["runtime"] + " " + alone["seeds"]) == ["static openvino 0"]
    assert rows.loc[rows["warned"] > 0, ["method", "scope", "ratio", "warned"]].to_numpy().tolist() == [["l2", "local", 0.5, 1]]


def test_numbers_are_those_of_the_records(whole, rows):
    for row in rows[rows["n"] == 2].itertuples():
        of = whole.results[whole.results["config"] == row.config]
        assert row.accuracy_pct == pytest.approx(100 * of["accuracy"].mean())
        assert row.drop_pt == pytest.approx(of["accuracy_drop_pt"].mean())
        assert row.estimated_j == pytest.approx(of["estimated_j"].mean())
        seeds = st.over_seeds(of["accuracy_drop_pt"].to_numpy())
        if row.degradation != "reference":
            assert row.drop_pt_lo <= seeds.low + 1e-9
            assert row.drop_pt_hi >= seeds.high - 1e-9


def test_one_seed_has_its_own_intervals(whole):
    one = only(whole, whole.results["seed"] == 0)
    rows = st.aggregate(one)
    assert set(rows["n"]) == {1}
    merged = rows.merge(one.results, on="config", suffixes=("", "_own"))
    assert (merged["speedup_lo"] == merged["speedup_lo_own"]).all()
    assert (merged["estimated_saving_pct_hi"] == merged["estimated_saving_hi"]).all()
    assert "one seed each" in " ".join(st.notes(one, rows))


def test_the_sample_of_the_test_split_counts_however_well_seeds_agree(whole):
    """Two seeds that lose nothing do not prove that nothing is lost."""
    one = only(whole, whole.results["seed"] == 0)
    again = replace(
        one,
        results=one.results.assign(seed=1, run_id=one.results["run_id"] + "x", signature=one.results["signature"] + "x"),
        predictions=one.predictions.assign(run_id=one.predictions["run_id"] + "x"),
    )
    rows = st.aggregate(both(one, again))
    assert set(rows["n"]) == {2}
    other = rows[rows["degradation"] != "reference"]
    assert (other["drop_pt_hi"] - other["drop_pt_lo"] > 0.5).all()


def test_machines_and_sources_of_energy_are_never_averaged_together(whole, rows):
    elsewhere = replace(whole, results=whole.results.assign(machine="bbbb", cpu="Another CPU", signature=whole.results["signature"] + "b"))
    mixed = both(whole, elsewhere)
    mixed = replace(mixed, predictions=whole.predictions)
    made = st.aggregate(mixed)
    assert len(made) == 2 * len(rows)
    assert made["n"].max() == 2
    assert any(note.startswith("2 machines") and "Another CPU" in note for note in st.notes(mixed, made))
    counter = frozen(datasets=("PLAID",), models=("t1",), measured=True)
    mixed = both(only(whole, whole.results["seed"] == 0), only(counter, counter.results["seed"] == 1))
    made = st.aggregate(mixed)
    assert set(made["n"]) == {1}
    assert not (made["measured_j"].notna() & made["estimated_j"].notna()).any()
    assert any("estimated:cpu_time, zeus:rapl" in note for note in st.notes(mixed, made))


def test_notes_tell_what_is_missing(whole):
    whole = replace(whole, about=dict(whole.about))
    part = only(whole, ~((whole.results["mode"] == "dynamic") & (whole.results["ratio"] == 0) & (whole.results["seed"] == 1)))
    part.about.update({"left_out": {"not finished (KILLED)": ["job 7"]}, "where": "params.seed = '1'"})
    said = st.notes(part, st.aggregate(part))
    assert "only runs where params.seed = '1'" in said
    assert "1 run left out, not finished (KILLED): job 7" in said
    assert "1 invalid record left out: outputs on the probe batch differ before and after (1)" in said
    missing = "seed 1 missing in 2 of 20 configurations (1 of them invalid): PLAID t1, dynamic in onnxruntime; PLAID t1, static in openvino"
    assert missing in said
    changed = replace(part, results=part.results.assign(git_sha=["1" * 40, *["0" * 40 + "-dirty"] * (len(part.results) - 1)]))
    assert "measured with 2 commits of the code: 0000000000-dirty, 1111111111" in st.notes(changed, st.aggregate(changed))


def test_nothing_valid_gives_no_rows(whole):
    none = replace(whole, results=whole.results.assign(valid=False, invalid_reasons="why"))
    rows = st.aggregate(none)
    assert rows.empty
    assert "40 invalid records left out: why (40)" in st.notes(none, rows)
