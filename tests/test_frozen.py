"""Freezing a real MLflow store.

What is taken, what is left out and why, and that it is the same every time.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from conftest import compose
from report_data import Store, only
from report_data import frozen as made_up
from tsexp.report import freezing, frozen, schema
from tsexp.report.store import WATTS, ReportError, connect


@pytest.fixture
def store(empty_store, tmp_path):
    return Store(empty_store, tmp_path)


def freeze(store, folder, where=""):
    return freezing.freeze(connect(store.uri), "tsexp", folder, where)


def bytes_of(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def test_a_run_becomes_a_row_with_everything_that_it_is_made_of(store, tmp_path):
    run_id = store.run("one", labels=("NA", "NA", "b", "b"))
    made = freeze(store, tmp_path / "frozen")
    read = frozen.load(tmp_path / "frozen")
    (row,) = read.results.to_dict("records")
    assert list(read.results) == [c.name for c in schema.COLUMNS]
    assert {
        k: row[k]
        for k in (
            "run_id",
            "run_name",
            "dataset",
            "model",
            "ratio",
            "seed",
            "valid",
            "cpu",
            "matmuls",
            "number_format",
        )
    } == {
        **{
            "run_id": run_id,
            "run_name": "one",
            "dataset": "ACSF1",
            "model": "t1",
            "ratio": 0.5,
            "seed": 0,
            "valid": True,
            "cpu": "A CPU",
        },
        **{"matmuls": 27, "number_format": "fp32"},
    }
    assert row["estimated_j"] == 0.01
    assert pd.isna(row["measured_j"])
    assert list(read.predictions["label"]) == ["NA", "NA", "b", "b"]  # a name, not a missing value
    assert list(read.windows["subject"]) == ["reference", "artifact"]
    assert list(read.channels.itertuples(index=False, name=None)) == [
        (run_id, 0, "head", 0, True),
        (run_id, 0, "head", 1, False),
        *((run_id, 0, "ffn", unit, unit != 1) for unit in range(3)),
        *(
            (run_id, 1, kind, unit, False)
            for kind, count in (("head", 2), ("ffn", 3))
            for unit in range(count)
        ),
    ]
    pd.testing.assert_frame_equal(made.results, read.results, check_dtype=False)


def test_equal_stores_freeze_to_equal_bytes_and_an_older_folder_is_replaced(store, tmp_path):
    for seed in (1, 0):
        store.run(f"seed {seed}", seed=seed)
    freeze(store, tmp_path / "a")
    freeze(store, tmp_path / "b")
    before = bytes_of(tmp_path / "a")
    assert before == bytes_of(tmp_path / "b")
    assert list(frozen.load(tmp_path / "a").results["seed"]) == [0, 1]
    store.run("seed 2", seed=2)
    (tmp_path / "a" / "left.txt").write_text("of another version")
    freeze(store, tmp_path / "a")
    assert sorted(bytes_of(tmp_path / "a")) == sorted(before)
    assert len(frozen.load(tmp_path / "a").results) == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_is_not_frozen_results_is_never_replaced(store, tmp_path):
    store.run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ReportError, match="holds no frozen results"):
        freeze(store, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_repetitions_share_the_one_identity_that_the_run_was_tagged_with(store, tmp_path):
    store.run(seed=0, config="one")
    store.run(seed=1, config="one", paths__cache="elsewhere", quant__calibration="entropy")
    store.run(seed=2, config="two", train__epochs=9)
    store.run(seed=0, config="dense", prune__ratio=0, prune__method="taylor")
    results = freeze(store, tmp_path / "frozen").results
    assert {(r.ratio, r.seed): r.config for r in results.itertuples()} == {
        (0, 0): "dense",
        (0.5, 0): "one",
        (0.5, 1): "one",
        (0.5, 2): "two",
    }
    assert set(results.loc[results["ratio"] == 0, "method"]) == {"-"}
    recipes = results.set_index("config")["recipe"]
    assert recipes["two"] != recipes["dense"]


def test_runs_from_before_there_was_a_precision_share_the_recipe_of_fp32(store, tmp_path):
    store.run("older", seed=0)
    store.run("newer", seed=1, train__precision="fp32")
    store.run("rounded", seed=2, train__precision="bf16")
    recipes = freeze(store, tmp_path / "frozen").results.set_index("seed")["recipe"]
    assert recipes[0] == recipes[1] != recipes[2]


def test_what_is_fitted_without_the_train_group_has_no_recipe(store, tmp_path):
    store.run("learned", seed=0)
    for seed, recipe in ((1, "fp32"), (2, "bf16")):
        store.run(
            f"ridge {seed}",
            seed=seed,
            model__name="ridge",
            train__precision=recipe,
            without=("dense/train_loss",),
        )
    recipes = freeze(store, tmp_path / "frozen").results.set_index("seed")["recipe"]
    assert recipes[0] != "-"
    assert recipes[1] == recipes[2] == "-"


def test_older_parts_forget_the_recipes_of_what_is_fitted_without_one():
    newer, older = (made_up(datasets=("PLAID",), models=("t1", "ridge"), seeds=(s,)) for s in (0, 1))
    ridge = newer.results["model"] == "ridge"
    newer.results.loc[ridge, "recipe"] = "-"
    both = frozen.together({"1": older, "2": newer}).results
    assert set(both.loc[both["model"] == "ridge", "recipe"]) == {"-"}
    assert "-" not in set(both.loc[both["model"] == "t1", "recipe"])


def test_the_libraries_of_an_artifact_are_told(store, tmp_path):
    store.run(manifest={"versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"}})
    (told,) = freeze(store, tmp_path / "frozen").results["libraries"]
    assert told == "onnxruntime 1.32.0, torch 2.13.0"


def test_when_a_run_ended_is_told(store, tmp_path):
    run_id = store.run()
    store.client.set_terminated(run_id, end_time=1_796_119_259_000)
    assert list(freeze(store, tmp_path / "frozen").results["ended"]) == ["2026-12-01 10:00"]


def test_of_what_model_and_of_what_data_is_a_setting(store, tmp_path):
    store.run(seed=0)
    store.run(seed=1, data__path="elsewhere", train__epochs=9)
    store.run(seed=2, model__layers=1)
    store.run(seed=3, data__length=50)
    settings = freeze(store, tmp_path / "frozen").results.set_index("seed")["setting"]
    assert settings[0] == settings[1]
    assert settings.nunique() == 3


def test_what_shares_a_tuning_shares_a_control(store, tmp_path):
    store.run("a")
    store.run("b", prune__ratio=0.25, prune__method="l2")
    store.run("longer", prune__ratio=0.25, prune__finetune_epochs=9)
    store.run("not tuned", prune__ratio=0.25, prune__finetune_epochs=0)
    store.run("dense", prune__ratio=0)
    tuning = freeze(store, tmp_path / "frozen").results.set_index("run_name")["tuning"]
    assert tuning["a"] == tuning["b"] != tuning["longer"] != "-"
    assert tuning["dense"] == tuning["not tuned"] == "-"


def test_every_row_has_its_control_its_validation_numbers_and_its_costs(store, tmp_path):
    store.run("all")
    store.run("no validation", seed=1, without=("val/series", "val/accuracy", "val/accuracy_drop_pt"))
    store.run("no control", seed=2, without=("test/control_accuracy",))
    made = freeze(store, tmp_path / "frozen")
    every, blind = made.results.to_dict("records")
    assert [
        every[k] for k in ("control_accuracy", "dense_accuracy", "val_series", "val_accuracy", "val_drop_pt")
    ] == [0.75, 0.75, 40, 0.7, 0.5]
    assert [
        every[k]
        for k in ("estimated_reference_j", "cost_load_ms", "cost_train_j", "cost_break_even_inferences")
    ] == [0.02, 2, 2, 2]
    assert pd.isna(every["cost_load_j"])
    assert blind["val_series"] == 0
    assert pd.isna(blind["val_accuracy"])
    assert (
        "no control: it has no 'test/control_accuracy'"
        in made.about["left_out"]["stored by another version of tsexp, or damaged"]
    )


def test_runs_of_an_older_protocol_are_left_out_with_that_reason(store, tmp_path):
    store.run("new")
    store.run("untagged", seed=1, without=("tsexp.config", "tsexp.protocol"))
    store.run("first", seed=2, protocol="2")
    made = freeze(store, tmp_path / "frozen")
    assert list(made.results["run_name"]) == ["new"]
    assert made.about["left_out"] == {"measured by an older protocol": ["first", "untagged"]}


def test_an_invalid_record_has_its_accuracy_and_nothing_of_its_windows(store, tmp_path):
    store.run("energy", valid="false", invalid_reasons="a window with zero energy")
    store.run(
        "scores",
        seed=1,
        valid="false",
        invalid_reasons="the artifact answers series with scores that are not finite",
    )
    spoilt = (
        "the weights of the artifact changed while it was measured",
        "the reference answers otherwise than when it was scored",
    )
    for seed, reason in enumerate(spoilt, start=2):
        store.run(f"spoilt {seed}", seed=seed, valid="false", invalid_reasons=f"a window; {reason}")
    energy, scores, *others = freeze(store, tmp_path / "frozen").results.to_dict("records")
    assert [(one["valid"], one["scored"]) for one in others] == [(False, False)] * 2
    assert (energy["valid"], energy["scored"], energy["accuracy"], energy["parameters"]) == (
        False,
        True,
        0.75,
        1000,
    )
    assert all(pd.isna(energy[name]) for name in schema.FROM_WINDOWS)
    assert (scores["valid"], scores["scored"]) == (False, False)
    results = frozen.load(tmp_path / "frozen").results
    with pytest.raises(Exception, match="windows of an invalid record"):
        schema.schema().validate(results.assign(speedup=2.0))


def test_runs_without_a_whole_record_are_left_out_with_a_reason(store, tmp_path):
    store.run("good")
    store.run("old", seed=1, without=("test/control_accuracy",))
    store.run("torn", seed=2, without=("kept.json",))
    store.run("absurd", seed=3, test__accuracy=1.5)
    store.run("going", "RUNNING", seed=4)
    store.run("died", "FAILED", seed=5)
    store.run("stopped", "KILLED", seed=6)
    store.run("died first", "FAILED")
    for stage in ("sweep", "compare", "measure"):
        store.client.create_run(store.experiment, run_name=stage, tags={"tsexp.stage": stage})
    made = freeze(store, tmp_path / "frozen")
    assert list(made.results["run_name"]) == ["good"]
    assert (
        set(made.predictions["run_id"])
        == set(made.windows["run_id"])
        == set(made.channels["run_id"])
        == set(made.results["run_id"])
    )
    left_out = made.about["left_out"]
    assert {k: [n.split(":")[0] for n in names] for k, names in left_out.items()} == {
        "measured again since": ["died first"],
        "not finished (FAILED)": ["died"],
        "not finished (KILLED)": ["stopped"],
        "not finished (RUNNING)": ["going"],
        "outside the schema": ["absurd"],
        "stored by another version of tsexp, or damaged": ["old", "torn"],
    }
    assert "accuracy is 1.5" in left_out["outside the schema"][0]
    assert "test/control_accuracy" in left_out["stored by another version of tsexp, or damaged"][0]


def test_a_password_in_what_a_server_answers_is_told_nowhere(store, tmp_path, monkeypatch):
    """An artifact that is not there: the HTTP client's error has the whole address."""
    store.run("good")
    store.run("torn", seed=1)
    real = freezing._read_run

    def not_there(client, row):
        if row.name == "torn":
            raise OSError("404 Client Error for url: http://user:geheim@127.0.0.1:5000/kept.json")
        return real(client, row)

    monkeypatch.setattr(freezing, "_read_run", not_there)
    made = freeze(store, tmp_path / "frozen")
    (said,) = made.about["left_out"]["stored by another version of tsexp, or damaged"]
    assert said.startswith("torn: 404 Client Error")
    assert "geheim" not in said + (tmp_path / "frozen" / frozen.ABOUT).read_text()


def test_of_repetitions_the_newest_valid_one_counts(store, tmp_path):
    store.run("first")
    second = store.run("second")
    store.run("invalid", valid="false", invalid_reasons="why")
    store.run(
        "invalid alone", seed=1, valid="false", invalid_reasons="why", without=("energy/per_inference_j",)
    )
    store.run("other libraries", seed=2, signature="before")
    newest = store.run("other libraries", seed=2, signature="after")
    results = freeze(store, tmp_path / "frozen").results
    assert set(results.loc[results["valid"], "run_id"]) == {second, newest}
    assert list(results.loc[~results["valid"], "run_name"]) == ["invalid alone"]


def test_measured_and_estimated_energy_have_columns_of_their_own(store, tmp_path):
    store.run(energy_source="zeus:rapl")
    store.run(seed=1)
    results = freeze(store, tmp_path / "frozen").results
    assert results["measured_j"].notna().tolist() == [True, False]
    assert results["estimated_j"].notna().tolist() == [False, True]
    with pytest.raises(Exception, match="measured and estimated energy in one row"):
        schema.schema().validate(results.assign(measured_j=1.0))


def written(part, folder):
    frozen.write(part, folder)
    return folder


def test_a_study_in_parts_is_the_study(tmp_path):
    whole = made_up(datasets=("PLAID",))
    for seed in (0, 1):
        written(only(whole, whole.results["seed"] == seed), tmp_path / "parts" / f"seed{seed}")
    (tmp_path / "parts" / "README.md").write_text("not a part")
    read, at_once = frozen.load(tmp_path / "parts"), frozen.load(written(whole, tmp_path / "whole"))
    in_order = at_once.results.sort_values(list(frozen.ORDER), kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(read.results, in_order)
    for name in schema.PARQUETS[1:]:
        a, b = (getattr(f, name) for f in (read, at_once))
        assert len(a) == len(b)
        for run_id in in_order["run_id"].iloc[::20]:
            rows = [t[t["run_id"] == run_id].reset_index(drop=True) for t in (a, b)]
            pd.testing.assert_frame_equal(*rows)
    assert list(read.about["parts"]) == ["seed0", "seed1"]
    pd.testing.assert_frame_equal(read.comparisons, at_once.comparisons)
    assert len(read.comparisons) == 1


def test_estimates_by_other_watts_are_of_another_source(store, tmp_path):
    store.run(seed=0)
    store.run(seed=1, measure__watts_per_core=10.0)
    store.run(seed=2, measure__watts_per_core=5.0)
    store.run(seed=3, measure__watts_per_core=5.0, energy_source="zeus:rapl")
    sources = freeze(store, tmp_path / "frozen").results.set_index("seed")["energy_source"].to_dict()
    assert sources == {
        0: "estimated:cpu_time",
        1: "estimated:cpu_time",
        2: "estimated:cpu_time, 5 W per core",
        3: "zeus:rapl",
    }
    assert {compose(f"measure={m}").measure.watts_per_core for m in ("quick", "paper")} == {WATTS}


def test_an_estimate_replaces_no_measured_comparison():
    first = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    measured, later = (
        replace(first, comparisons=first.comparisons.assign(run_id=name, energy_source=source))
        for name, source in (("measured", "zeus:rapl"), ("later", "estimated:cpu_time"))
    )
    both = frozen.together({"1": measured, "2": later}).comparisons
    assert sorted(both["run_id"]) == ["later", "measured"]


def test_of_comparisons_of_the_same_two_the_newest_valid_one_counts(tmp_path):
    first = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    again, invalid = (
        replace(first, comparisons=first.comparisons.assign(run_id=name, valid=valid))
        for name, valid in (("again", True), ("invalid", False))
    )
    assert list(frozen.together({"1": first, "2": again}).comparisons["run_id"]) == ["again"]
    assert list(frozen.together({"1": again, "2": invalid}).comparisons["run_id"]) == ["again"]
    batch = replace(first, comparisons=again.comparisons.assign(batch_size=32))
    assert len(frozen.together({"1": first, "2": batch}).comparisons) == 2
    none = replace(first, comparisons=first.comparisons.iloc[:0])
    assert not (written(none, tmp_path / "none") / "comparisons.parquet").exists()
    assert frozen.load(tmp_path / "none").comparisons.empty


def test_the_filter_of_a_study_in_parts_is_that_of_all_parts():
    one, two, all_of_it = (
        made_up(datasets=("PLAID",), models=("t1",), about={"where": where})
        for where in ("params.seed = '0'", "params.seed = '1'", "")
    )
    assert frozen.together({"1": one, "2": two}).about["where"] == "params.seed = '0' or params.seed = '1'"
    assert frozen.together({"1": one, "2": all_of_it}).about["where"] == ""


def test_what_was_measured_again_in_a_later_part_counts_once(tmp_path):
    first = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    again = replace(
        first,
        **{
            n: getattr(first, n).assign(run_id=getattr(first, n)["run_id"] + "-again")
            for n in schema.PARQUETS
        },
        about={**first.about, "left_out": {"not finished (FAILED)": ["one"]}},
    )
    other = replace(
        again, results=again.results.assign(machine="another", signature=again.results["signature"] + "x")
    )
    together = frozen.together({"1": first, "2": again})
    assert len(together.results) == len(first.results)
    assert together.results["run_id"].str.endswith("-again").all()
    assert set(together.windows["run_id"]) == set(together.results["run_id"])
    assert len(together.about["left_out"][frozen.AGAIN]) == len(first.results)
    assert together.about["left_out"]["not finished (FAILED)"] == ["one"]
    same = frozen.together({"1": first, "2": first})  # a store that grew was frozen twice
    assert len(same.results) == len(first.results)
    assert frozen.AGAIN not in same.about["left_out"]
    both = frozen.together({"1": first, "2": other})  # of another machine: nothing is measured again
    assert len(both.results) == 2 * len(first.results)
    assert frozen.AGAIN not in both.about["left_out"]


def test_an_invalid_record_of_a_later_part_replaces_none_that_is_valid():
    first = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    failed = first.results.assign(run_id=first.results["run_id"] + "-again", valid=False)
    again = replace(first, results=failed)
    for parts in ({"1": first, "2": again}, {"1": again, "2": first}):
        together = frozen.together(parts).results
        assert together["valid"].sum() == first.results["valid"].sum() > 0
        valid = first.results.loc[first.results["valid"], "run_id"]
        assert set(together.loc[together["valid"], "run_id"]) == set(valid)


def test_a_part_that_does_not_tell_its_settings_takes_those_that_are_known(tmp_path):
    told = made_up(datasets=("PLAID",), models=("t1", "t2"), seeds=(0,))
    older = made_up(datasets=("PLAID",), models=("t1", "t2"), seeds=(1,))
    for name, part in (("1", told), ("2", older)):
        written(part, tmp_path / name)
    file = tmp_path / "2" / "results.parquet"
    pd.read_parquet(file).drop(columns=["setting", "libraries", "ended"]).to_parquet(file)
    assert set(frozen.load(tmp_path / "2").results["setting"]) == {""}
    assert set(frozen.load(tmp_path / "2").results["ended"]) == {""}
    assert set(frozen.load(tmp_path).results["setting"]) == {"ssssssssssssssss"}
    unsaid = frozen.load(tmp_path / "2")
    dense = told.results["ratio"] == 0
    some = frozen.together({"1": only(told, dense), "2": unsaid}).results  # all of a recipe that is seen
    assert set(some["setting"]) == {"ssssssssssssssss"}
    others = replace(told, results=told.results.assign(config=told.results["config"] + "s"))
    apart = frozen.together({"1": others, "2": unsaid}).results  # of another size, perhaps
    assert set(apart.loc[apart["seed"] == 1, "setting"]) == {""}
    changed = only(others, ~dense)
    changed.results["setting"] = "another"
    three = frozen.together({"1": told, "2": unsaid, "3": changed}).results
    assert set(three.loc[three["seed"] == 1, "setting"]) == {"ssssssssssssssss"}
    three = frozen.together({"1": only(told, dense), "2": unsaid, "3": changed}).results
    of = three[three["seed"] == 1]
    assert set(of.loc[of["ratio"] == 0, "setting"]) == {"ssssssssssssssss"}
    assert set(of.loc[of["ratio"] > 0, "setting"]) == {""}


def test_results_of_before_tell_their_protocol_and_their_reference(tmp_path):
    written(made_up(datasets=("PLAID",), models=("t1",), protocol=3), tmp_path)
    file = tmp_path / "results.parquet"
    told = pd.read_parquet(file)
    told.drop(columns=["protocol", "is_reference"]).to_parquet(file)
    results = frozen.load(tmp_path).results
    assert set(results["protocol"]) == {2}
    assert results.loc[told["is_reference"].to_numpy(), "is_reference"].all()  # same answers, same size
    assert not results.loc[results["ratio"] > 0, "is_reference"].any()


@pytest.mark.parametrize("at", ["new", "frozen"])
def test_what_is_frozen_stays_where_it_cannot_be_replaced(store, tmp_path, monkeypatch, at):
    store.run()
    freeze(store, tmp_path / "frozen")
    before, rename = bytes_of(tmp_path / "frozen"), Path.rename

    def interrupted(self, target):
        if self.name == "new":
            raise KeyboardInterrupt
        renamed = rename(self, target)
        if self.name == at:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        freeze(store, tmp_path / "frozen")
    assert bytes_of(tmp_path / "frozen") == before


def test_a_part_that_is_damaged_is_named(tmp_path):
    part = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    for name in ("a", "b"):
        written(part, tmp_path / name)
    (tmp_path / "b" / "windows.parquet").write_bytes(b"not parquet")
    with pytest.raises(ReportError, match=r"/b is damaged .*; freeze again"):
        frozen.load(tmp_path)


def test_a_part_that_was_copied_by_half_is_named(tmp_path):
    part = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    for name in ("a", "b"):
        written(part, tmp_path / name)
    (tmp_path / "b" / "about.json").unlink()
    with pytest.raises(ReportError, match=r"/b has results and no about\.json"):
        frozen.load(tmp_path)


@pytest.mark.parametrize("name", ["predictions", "windows"])
def test_tables_of_other_runs_are_refused(tmp_path, name):
    part = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,))
    of = getattr(part, name)
    first = of["run_id"].iloc[0]
    for wrong in (of[of["run_id"] != first], of.replace({"run_id": {first: "another"}})):
        written(replace(part, **{name: wrong}), tmp_path / "a")
        with pytest.raises(ReportError, match=rf"damaged .*{name}\.parquet is not of the runs"):
            frozen.load(tmp_path / "a")
        shutil.rmtree(tmp_path / "a")


@pytest.mark.parametrize(
    ("about", "said"),
    [([], r"about\.json is no record"), ({"schema": 2}, "does not tell experiment, experiment_id")],
)
def test_what_is_not_told_of_frozen_results_is_said(tmp_path, about, said):
    written(made_up(datasets=("PLAID",), models=("t1",), seeds=(0,)), tmp_path / "a")
    (tmp_path / "a" / "about.json").write_text(json.dumps(about))
    with pytest.raises(ReportError, match=said):
        frozen.load(tmp_path / "a")


def test_the_schema_takes_nothing_else():
    results = made_up(datasets=("PLAID",), models=("t1",), seeds=(0,)).results
    schema.schema().validate(results)
    for wrong in (
        results.drop(columns="nll"),
        results.assign(more=1),
        results.assign(ratio=1.0),
        results.assign(seed=None),
        results.assign(signature="x"),
    ):
        with pytest.raises(Exception, match=r"nll|more|ratio|seed|signature"):
            schema.schema().validate(wrong)


def test_a_filter_chooses_and_a_wrong_one_is_told(store, tmp_path):
    store.run()
    store.run(data__name="PLAID")
    made = freeze(store, tmp_path / "frozen", "params.`data.name` = 'PLAID'")
    assert list(made.results["dataset"]) == ["PLAID"]
    with pytest.raises(ReportError, match="does not take where="):
        freeze(store, tmp_path / "frozen", "no such (")
    with pytest.raises(ReportError, match="no run of experiment 'tsexp' where"):
        freeze(store, tmp_path / "frozen", "params.`data.name` = 'Mine'")
    assert list(frozen.load(tmp_path / "frozen").results["dataset"]) == ["PLAID"]  # still whole


def test_an_empty_store_and_one_without_a_whole_record_say_what_to_do(store, tmp_path):
    with pytest.raises(ReportError, match=r"there is none; fill the store first"):
        freeze(store, tmp_path / "frozen")
    store.run("half", "KILLED")
    with pytest.raises(ReportError, match=r"1 not finished \(KILLED\) \(half\)"):
        freeze(store, tmp_path / "frozen")
    with pytest.raises(ReportError, match="no experiment 'other'; it has: tsexp"):
        freezing.freeze(connect(store.uri), "other", tmp_path / "frozen")
    assert not (tmp_path / "frozen").exists()


def test_what_another_version_froze_or_what_is_damaged_is_refused(store, tmp_path):
    store.run()
    folder = tmp_path / "frozen"
    with pytest.raises(ReportError, match="has no frozen results"):
        frozen.load(folder)
    freeze(store, folder)
    (folder / "windows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ReportError, match="is damaged"):
        frozen.load(folder)
    (folder / "about.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(
        ReportError,
        match=r"frozen with schema 1.* the reference that accuracy is compared with is another one since",
    ):
        frozen.load(folder)


def test_a_model_of_another_family_has_a_row_though_some_counts_are_missing(store, tmp_path):
    """What an estimator has not: channels to prune, multiply-accumulates, a graph of products."""
    missing = ("size/macs", "prune/achieved_ratio", "model.heads", "model.ffn", "kept.json")
    store.run("pruned")
    store.run("other", without=missing, model__name="minirocket", prune__ratio=0, manifest={})
    freeze(store, tmp_path / "frozen")
    read = frozen.load(tmp_path / "frozen")
    assert read.about["left_out"] == {}
    (row,) = read.results[read.results["model"] == "minirocket"].to_dict("records")
    assert pd.isna(row["macs"])
    assert pd.isna(row["achieved_ratio"])
    assert (row["matmuls"], row["number_format"], row["parameters"]) == (0, "fp32", 1000)
    assert set(read.channels["run_id"]) == set(read.results.loc[read.results["model"] == "t1", "run_id"])


def test_results_that_were_frozen_when_every_model_had_these_counts_are_read(store, tmp_path):
    store.run()
    freeze(store, tmp_path / "frozen")
    file = tmp_path / "frozen" / "results.parquet"
    before = pd.read_parquet(file).astype({"macs": "int64", "achieved_ratio": "float64"})
    before.to_parquet(file, index=False)
    assert list(frozen.load(tmp_path / "frozen").results["macs"]) == [1000.0]


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(ReportError, match="there is no store at"):
        connect(f"sqlite:///{tmp_path}/sub/mlflow.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "text.db").write_text("not a database, but long enough to look at" * 10)
    (tmp_path / "empty.db").touch()
    for name in ("text.db", "empty.db"):
        with pytest.raises(ReportError, match="is not a store of MLflow"):
            connect(f"sqlite:///{tmp_path}/{name}")
    assert (tmp_path / "empty.db").stat().st_size == 0


def test_a_store_of_another_mlflow_is_told(empty_store, tmp_path):
    with closing(sqlite3.connect(shutil.copy(empty_store, tmp_path / "mlflow.db"))) as db:
        db.execute("update alembic_version set version_num = '451aebb31d03'")
        db.commit()
    with pytest.raises(ReportError, match="mlflow db upgrade"):
        connect(f"sqlite:///{tmp_path}/mlflow.db")


def test_words_that_measuring_and_reports_share_are_the_same():
    from types import SimpleNamespace

    import numpy as np

    from test_record import make
    from tsexp import energy
    from tsexp.energy.record import assemble
    from tsexp.marks import NOT_FINITE

    scores = energy.Scores(np.full((4, 2), np.nan, np.float32), np.zeros((0, 2), np.float32))
    manifest = {"parameters": 1, "macs": 1, "bytes": 1, "channels": 1, "device": "cpu"}
    dataset = SimpleNamespace(
        task="classification", y_test=np.array([0, 1, 0, 1]), y_train=np.array([0]), val=np.array([], int)
    )
    reasons = assemble(
        make() | {"source": "mains:plug"}, scores, scores, manifest, manifest, dataset
    ).invalid_reasons
    assert any(NOT_FINITE in reason for reason in reasons)


def test_a_job_that_fails_as_it_is_measured_is_told_from_what_is_no_job(monkeypatch):
    from tsexp import pipeline
    from tsexp.marks import OTHERS

    entered = []
    monkeypatch.setattr(pipeline, "reference", lambda *_: None)
    monkeypatch.setattr(pipeline, "_untuned", lambda *_: {})
    monkeypatch.setattr(pipeline, "_measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.judge(SimpleNamespace(dense=None), None, None, None, None, entered.append)
    assert entered
    assert not OTHERS.keys() & set(entered)
