"""Averages, intervals and verdicts, against what is known of them."""

import re
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
    parts = [
        pd.concat([getattr(f, name) for f in (a, b)], ignore_index=True)
        for name in ("results", "windows", "predictions", "channels")
    ]
    return replace(a, **dict(zip(("results", "windows", "predictions", "channels"), parts, strict=True)))


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [(0, 0, 1.0), (5, 0, 2 / 2**5), (0, 5, 2 / 2**5), (3, 3, 1.0), (1, 7, 2 * 9 / 2**8)],
)
def test_mcnemar_is_exact(lost, gained, p):
    assert st.mcnemar_p(lost, gained) == pytest.approx(p)


def test_no_flip_is_no_proof_and_more_series_and_seeds_say_more():
    few, many, seeds = (
        st.over_seeds_and_series(np.zeros(shape)) for shape in ((1, 100), (1, 10_000), (3, 100))
    )
    assert few.value == many.value == 0
    assert few.high > 0.01 > many.high > 0
    assert few.high > seeds.high > 0
    assert few.low == -few.high
    assert st.over_seeds_and_series(np.zeros((2, 1))).high > 0.5  # a test split of one series


def test_all_right_is_no_proof_either():
    for seeds in (1, 3):
        value, low, high = st._accuracy_pct(np.ones((seeds, 100)))
        assert value == high == 100
        assert 95 < low < 99


def test_the_variance_is_that_of_seeds_and_series_together():
    """By hand: mean squares of a two-way table, t quantiles weighted by their variances."""
    outcomes = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(4, 50)) + np.array(
        [[0.4], [0.0], [-0.4], [0.1]]
    )
    seeds, series = outcomes.shape
    of_seeds = series * outcomes.mean(1).var(ddof=1)
    rest = outcomes - outcomes.mean(1, keepdims=True) - outcomes.mean(0) + outcomes.mean()
    residual = (rest**2).sum() / ((seeds - 1) * (series - 1))
    n, means = series + 2, np.append(outcomes.mean(0), [1 / seeds, -1 / seeds])
    of_series = seeds * ((means**2).sum() - n * (means.sum() / n) ** 2) / (n - 1)
    a, b = (
        of_seeds / (seeds * series),
        max(2 / seeds**2 / (n - 1) / n, of_series / (seeds * n) - residual / (seeds * series)),
    )
    reach = (stats.t.ppf(0.975, seeds - 1) * a + stats.t.ppf(0.975, n - 1) * b) / (a + b) * np.sqrt(a + b)
    value, low, high = st.over_seeds_and_series(outcomes)
    assert value == pytest.approx(outcomes.mean())
    assert (high - low) / 2 == pytest.approx(reach)


def test_seeds_are_averaged_with_a_t_interval():
    values = np.array([1.0, 2.0, 4.0])
    assert st.over_seeds(values)[1:] == pytest.approx(
        stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    )
    assert st.over_seeds(np.array([3.0, 3.0])) == (3.0, 3.0, 3.0)
    assert np.isnan(st.over_seeds(np.array([3.0])).low)


def test_seeds_that_agree_by_chance_are_as_sure_as_measuring_allows():
    own = np.array([[2.8, 3.2], [2.9, 3.1]])
    reach = np.sqrt((0.2**2 + 0.1**2) / 2 / 2)
    assert st.over_seeds(np.array([3.0, 3.0]), own=own) == pytest.approx((3.0, 3.0 - reach, 3.0 + reach))
    unknown = np.array([[2.8, 3.2], [np.nan, np.nan]])
    assert st.over_seeds(np.array([3.0, 3.0]), own=unknown) == (3.0, 3.0, 3.0)


def test_ratios_are_averaged_as_ratios(rows):
    speed = next(m for m in st.METRICS if m.name == "speedup")
    saving = next(m for m in st.METRICS if m.name == "estimated_saving_pct")
    times = np.array([1.1, 3.0])
    value, low, high = st.over_seeds(times, speed)
    assert value == pytest.approx(np.sqrt(3.3))
    assert 0 < low < value < high
    # A saving is the same statement as its speedup.
    assert st.over_seeds(100 * (1 - 1 / times), saving) == pytest.approx(
        [100 * (1 - 1 / t) for t in (value, low, high)]
    )


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (-1, 1.0, "kept"),
        (0.5, 1.01, "undecided"),
        (1.0, 3, "undecided"),
        (1.01, 3, "lost"),
        (-5, -2, "kept"),
        (-9, 9, "undecided"),
    ],
)
def test_minimal_degradation_is_a_test_with_a_margin(low, high, said):
    assert st.degradation(low, high) == said


def test_a_row_per_configuration_with_its_seeds(whole, rows):
    assert len(rows) == whole.results["config"].nunique()
    assert rows["n"].sum() == len(whole.results)
    assert rows.loc[rows["warned"] > 0, ["method", "scope", "ratio", "warned"]].to_numpy().tolist() == [
        ["l2", "local", 0.5, 1]
    ]


def test_numbers_are_those_of_the_records(whole, rows):
    for row in rows[rows["n"] == 2].itertuples():
        of = whole.results[whole.results["config"] == row.config]
        assert row.accuracy_pct == pytest.approx(100 * of["accuracy"].mean())
        assert row.drop_pt == pytest.approx(of["accuracy_drop_pt"].mean())
        assert row.estimated_j == pytest.approx(of["estimated_j"].mean())
        assert row.control_accuracy_pct == pytest.approx(100 * of["control_accuracy"].mean())
        assert row.dense_accuracy_pct == pytest.approx(100 * of["dense_accuracy"].mean())
        assert row.val_drop_pt == pytest.approx(of["val_drop_pt"].mean())
        assert row.estimated_reference_j == pytest.approx(of["estimated_reference_j"].mean())


def test_an_invalid_energy_keeps_its_accuracy(whole, rows):
    (row,) = rows[(rows["mode"] == "static") & (rows["runtime"] == "openvino")].to_dict("records")
    of = whole.results[whole.results["config"] == row["config"]]
    valid = of[of["valid"]].iloc[0]
    assert (row["n"], row["n_energy"], row["seeds"]) == (2, 1, "0 1")
    assert row["accuracy_pct"] == pytest.approx(100 * of["accuracy"].mean())
    assert row["estimated_j"] == valid["estimated_j"]
    assert (row["speedup"], row["speedup_lo"]) == pytest.approx((valid["speedup"], valid["speedup_lo"]))
    alone = st.aggregate(only(whole, ~whole.results["valid"])).iloc[0]
    assert (alone["n"], alone["n_energy"], alone["energy"]) == (1, 0, "estimated")
    assert np.isnan(
        alone[["estimated_j", "estimated_saving_pct", "speedup", "speedup_lo"]].astype(float)
    ).all()
    unscored = replace(whole, results=whole.results.assign(scored=whole.results["valid"]))
    assert st.aggregate(unscored)["n"].sum() == len(whole.results) - 1


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
        results=one.results.assign(
            seed=1, run_id=one.results["run_id"] + "x", signature=one.results["signature"] + "x"
        ),
        predictions=one.predictions.assign(run_id=one.predictions["run_id"] + "x"),
    )
    rows = st.aggregate(both(one, again))
    assert set(rows["n"]) == {2}
    other = rows[rows["degradation"] != "reference"]
    assert (other["drop_pt_hi"] - other["drop_pt_lo"] > 0.5).all()


def test_two_meters_are_never_averaged_together():
    rapl = frozen(datasets=("PLAID",), models=("t1",), measured=True)
    plug = replace(
        rapl,
        results=rapl.results.assign(
            energy_source=np.where(rapl.results["seed"] == 0, "zeus:rapl", "mains:plug")
        ),
    )
    made = st.aggregate(plug)
    assert len(made) == 2 * plug.results["config"].nunique()
    assert set(made["n"]) == {1}
    assert set(made["energy"]) == {"measured"}


def test_two_protocols_are_never_averaged_together():
    whole = frozen(datasets=("PLAID",), models=("t1",))
    older = replace(whole, results=whole.results.assign(protocol=np.where(whole.results["seed"] == 0, 2, 3)))
    made = st.aggregate(older)
    assert len(made) == 2 * older.results["config"].nunique()
    assert set(made["n"]) == {1}
    (said,) = [note for note in st.notes(older, made) if "older protocol" in note]
    assert said.startswith(f"{(older.results['protocol'] == 2).sum()} records of an older protocol")
    assert not any("older protocol" in note for note in st.notes(whole, st.aggregate(whole)))


def test_only_the_reference_itself_has_no_drop():
    """Also of a step that is told by neither ratio, mode nor runtime."""
    whole = frozen(datasets=("PLAID",), models=("t1",))
    plain = (whole.results["ratio"] == 0) & (whole.results["mode"] == "none")
    plain &= whole.results["runtime"] == "eager"
    assert plain.sum() == whole.results["is_reference"].sum() == 2
    other = replace(whole, results=whole.results.assign(is_reference=False))
    for made, told in ((whole, True), (other, False)):
        rows = st.aggregate(made)
        assert ("reference" in set(rows["degradation"])) is told


def test_machines_and_sources_of_energy_are_never_averaged_together(whole, rows):
    elsewhere = replace(
        whole,
        results=whole.results.assign(
            machine="bbbb", cpu="Another CPU", signature=whole.results["signature"] + "b"
        ),
    )
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
    part = only(
        whole,
        ~(
            (whole.results["mode"] == "dynamic")
            & (whole.results["ratio"] == 0)
            & (whole.results["seed"] == 1)
        ),
    )
    part.about.update({"left_out": {"not finished (KILLED)": ["job 7"]}, "where": "params.seed = '1'"})
    said = st.notes(part, st.aggregate(part))
    assert "only runs where params.seed = '1'" in said
    assert "1 run left out, not finished (KILLED): job 7" in said
    assert (
        "1 invalid record, energy and times left out, accuracy counts: outputs on the probe batch differ "
        "before and after (1)" in said
    )
    assert "seed 1 missing in 1 of 20 configurations: PLAID t1, dynamic in onnxruntime" in said
    alike = part.results.assign(scope="local", method="l1")
    alike.loc[alike["ratio"] > 0, "ratio"] = 0.5
    alike = replace(part, results=alike[(alike["seed"] == 0) | (alike["ratio"] == 0)])
    (told,) = (note for note in st.notes(alike, st.aggregate(alike)) if note.startswith("seed 1 missing"))
    names = told.split(": ")[1].split("; ")
    assert len(set(names)) == len(names)
    assert any(re.search(r" l1 local 0.5, none in \w+ \(\d+\)$", name) for name in names)
    assert not any("validation" in note for note in said)
    assert (
        "one seed in 1 of 20 rows: the intervals tell of the test sample and of the measuring processes, not "
        "of another training" in said
    )
    few = replace(part, results=part.results.assign(val_series=9))
    assert (
        "fewer than 30 validation series, so what is chosen by them is chosen by little: PLAID (9)"
        in st.notes(few, st.aggregate(few))
    )
    libraries = [
        "onnxruntime 1.32.0, torch 2.13.0",
        *["onnxruntime 1.31.0, torch 2.13.0"] * (len(part.results) - 1),
    ]
    updated = replace(part, results=part.results.assign(libraries=libraries))
    assert "measured with several versions of onnxruntime (1.31.0, 1.32.0); they are averaged" in st.notes(
        updated, st.aggregate(updated)
    )
    changed = replace(
        part,
        results=part.results.assign(git_sha=["1" * 40, *["0" * 40 + "-dirty"] * (len(part.results) - 1)]),
    )
    assert "measured with 2 commits of the code: 0000000000-dirty, 1111111111" in st.notes(
        changed, st.aggregate(changed)
    )


def test_libraries_of_several_machines_are_not_averaged(whole):
    part = only(whole, whole.results["dataset"] == "PLAID")
    there = part.results["seed"] == 1
    apart = part.results.assign(
        machine=part.results["machine"].mask(there, "b" * 16),
        libraries=part.results["libraries"]
        .mask(there, "onnxruntime 1.31.0")
        .where(there, "onnxruntime 1.32.0"),
    )
    made = replace(part, results=apart)
    assert not any("several versions" in note for note in st.notes(made, st.aggregate(made)))


def test_a_model_without_a_count_of_products_may_be_deployed_in_several_ways():
    row = {
        "ratio": 0.0,
        "method": "-",
        "scope": "-",
        "mode": "none",
        "runtime": "eager",
        "macs": float("nan"),
    }
    assert st.way(row) == "as trained"
    assert st.way(row | {"runtime": "onnxruntime"}) == "onnxruntime, fp32, not pruned"
    assert st.way(row | {"macs": 1.0}) == "eager, fp32, not pruned"


def test_a_model_without_one_of_the_seeds_is_told(whole):
    more = frozen(datasets=("PLAID",), models=("t1", "t2"))
    part = only(more, ~((more.results["model"] == "t2") & (more.results["seed"] == 1)))
    said = st.notes(part, st.aggregate(part))
    assert any(note.startswith("seed 1 missing in 20 of 40 configurations: PLAID t2, ") for note in said)


def test_an_hour_in_which_the_machine_was_another_is_told(whole):
    def said(values):
        with_values = replace(whole, results=whole.results.assign(estimated_reference_j=values))
        return [note for note in st.notes(with_values, st.aggregate(with_values)) if "control" in note]

    values = whole.results["valid"].map({True: 2.0, False: np.nan})
    assert not said(values)
    values[whole.results[whole.results["valid"]].index[3]] = 2.4
    (told,) = said(values)
    assert told.startswith("the control took more than 10 % more or less than its median in 1 of 39 records")
    assert told.endswith("PLAID t1 (1.00 to 1.20 times)")


def test_no_share_leaves_0_to_1(whole):
    far = whole.results["seed"].map({0: 0.99, 1: 0.8})
    made = st.aggregate(replace(whole, results=whole.results.assign(macro_f1=far)))
    assert (made["macro_f1_hi"] == 1).all()
    assert (made["macro_f1_lo"] == 0).all()  # t of two seeds is 12.7
    made = st.aggregate(replace(whole, results=whole.results.assign(macro_f1=0.1)))
    assert (made["macro_f1"] == 0.1).all()
    assert made[["macro_f1_lo", "macro_f1_hi"]].isna().all(axis=None)  # equal by chance is not sure
    assert (made["bytes_lo"] == made["bytes_hi"]).any()  # which is what every training has
    share = st.Metric("macro_f1", least=0.0, most=1.0)
    assert all(np.isnan(st.over_seeds(np.full(n, 0.1), share).low) for n in range(2, 9))


def test_nothing_scored_gives_no_rows(whole):
    none = replace(whole, results=whole.results.assign(valid=False, scored=False, invalid_reasons="why"))
    rows = st.aggregate(none)
    assert rows.empty
    assert "40 invalid records, left out: why (40)" in st.notes(none, rows)
