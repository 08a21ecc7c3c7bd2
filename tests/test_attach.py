"""A power log laid over a finished run: the twin that is stored, and what the report makes of both."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aeon
import mlflow
import pandas as pd
import pytest

from conftest import TINY
from power_logs import WATTS, Made, make, sample, write
from report_data import Store
from tsexp import attach, merge, tracking
from tsexp.compress import finetune
from tsexp.config import TrackingConfig
from tsexp.energy.statistics import summarize
from tsexp.energy.validity import judge
from tsexp.report import freezing
from tsexp.report.store import Row, minute
from tsexp.system import alive

MADE = make()


@dataclass
class Place:
    """A store with one estimated run whose windows are those of `MADE`, and its log."""

    store: Store
    run: str
    folder: Path

    def log(self, name: str = "plug.csv", **how: Any) -> str:
        return str(write(self.folder / name, sample(MADE, **how)))

    def attach(self, *words: str) -> int:
        return attach.main([*words, f"tracking.uri={self.store.uri}"])

    def runs(self, source: str | None = None) -> list[Any]:
        found = self.store.client.search_runs([self.store.experiment])
        return [r for r in found if source in (None, r.data.tags["tsexp.energy_source"])]

    def read(self, run: Any, name: str) -> str:
        return Path(self.store.client.download_artifacts(run.info.run_id, name)).read_text()


def add_run(store: Store, **changes: Any) -> str:
    """A run that the experiment would have left, had it been measured in these windows."""
    run = store.run(**changes)
    raw = MADE.raw()
    store.client.log_text(run, json.dumps(raw), "windows.json")
    for name, value in summarize(raw).items():
        store.client.log_metric(run, name, value)
    for name, value in {"cost/train_j": 99.0, "cost/break_even_inferences": 9.0, "cost/train_s": 3.0}.items():
        store.client.log_metric(run, name, value)
    return run


@pytest.fixture(scope="module")
def untouched(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """For those that are refused."""
    folder = tmp_path_factory.mktemp("untouched")
    store = Store(empty_store, folder)
    return Place(store, add_run(store), folder)


@pytest.fixture
def place(empty_store: Path, tmp_path: Path) -> Place:
    store = Store(empty_store, tmp_path)
    return Place(store, add_run(store, signature="one"), tmp_path)


def test_the_twin_has_measured_joules_and_all_else_of_the_run(place: Place, capsys: Any) -> None:
    assert place.attach(place.run[:8], place.log()) == 0
    said = capsys.readouterr().out
    (twin,) = place.runs("external:plug")
    assert f"attached to {place.run[:8]} as run {twin.info.run_id}" in " ".join(said.split())
    assert "energy: external:plug" in said
    assert "†" not in said
    old = place.store.client.get_run(place.run).data
    assert twin.data.params == old.params
    assert twin.info.status == "FINISHED"
    tags = twin.data.tags
    assert tags["tsexp.valid"] == "true"
    assert (tags["tsexp.attached_to"], tags["tsexp.config"]) == (place.run, old.tags["tsexp.config"])
    assert tags["tsexp.signature"] != old.tags["tsexp.signature"]

    raw = json.loads(place.read(twin, "windows.json"))
    joules = [w["energy_j"] for w in raw["windows"]]
    assert joules == pytest.approx(MADE.truth_j, rel=0.01)
    assert judge(raw) == ((), ())
    m = twin.data.metrics
    assert m["energy/per_inference_j"] == pytest.approx(WATTS["artifact"] / 1250, rel=0.005)
    assert m["energy/per_correct_j"] == pytest.approx(m["energy/per_inference_j"] / m["test/accuracy"])
    truth = 100 * (1 - WATTS["artifact"] / WATTS["reference"] / 1.25)
    assert m["vs_dense/energy_saving_lo"] < truth < m["vs_dense/energy_saving_hi"]
    same = [
        k for k in old.metrics if k.startswith(("test/", "val/", "size/", "latency/", "vs_dense/speedup"))
    ]
    assert same
    assert {k: m[k] for k in same} == {k: old.metrics[k] for k in same}
    assert m["cost/train_s"] == 3
    estimated = (
        "cost/train_j",
        "cost/compress_j",
        "cost/load_j",
        "cost/first_call_j",
        "cost/break_even_inferences",
    )
    assert not set(estimated) & set(m)
    for name in ("predictions.csv", "manifest.json", "hardware.json", "kept.json"):
        assert place.read(twin, name) == place.read(place.store.client.get_run(place.run), name)


def test_the_same_log_again_stores_nothing_and_what_was_kept_of_it_gives_the_same(
    place: Place, capsys: Any
) -> None:
    log = place.log(offset_s=7.0)
    assert place.attach(place.run, log, "--name", "plug", "--offset-s", "7") == 0
    (twin,) = place.runs("external:plug")
    assert place.attach(place.run, log, "--offset-s", "7", "--name=plug") == 0
    assert "attached before: nothing was stored" in capsys.readouterr().out
    part = place.folder / "part.csv"
    part.write_text(place.read(twin, "power.csv"))
    assert place.attach(place.run, str(part), "--name", "plug", "--offset-s", "7") == 0
    assert [r.info.run_id for r in place.runs("external:plug")] == [twin.info.run_id]


def test_tables_show_both_in_columns_of_their_own_and_average_nothing(place: Place, tmp_path: Path) -> None:
    assert place.attach(place.run, place.log()) == 0
    made = freezing.freeze(place.store.client, "tsexp", tmp_path / "report" / "frozen").results
    assert sorted(made["energy_source"]) == ["estimated:cpu_time", "external:plug"]
    estimated, measured = (row for _, row in made.sort_values("energy_source").iterrows())
    assert measured["measured_j"] == pytest.approx(WATTS["artifact"] / 1250, rel=0.005)
    assert estimated["estimated_j"] == pytest.approx(10 / 1250, rel=1e-3)
    assert math.isnan(measured["estimated_j"])
    assert math.isnan(estimated["measured_j"])
    assert math.isnan(measured["cost_train_j"])
    assert estimated["config"] == measured["config"]
    assert estimated["recipe"] == measured["recipe"] != "-"
    assert estimated["ended"] == measured["ended"] == minute(MADE.raw()["windows"][-1]["end_unix_s"])


def test_what_an_older_version_attached_has_a_recipe_too() -> None:
    twin = Row("id", "name", "FINISHED", {"model.family": "views"}, {}, {"tsexp.attached_to": "another"})
    assert freezing._learned(twin)
    assert not freezing._learned(replace(twin, params={"model.family": "ridge"}))
    assert not freezing._learned(replace(twin, tags={}))
    assert freezing.LEARNED == finetune.FAMILIES  # which the report may not import


@pytest.mark.parametrize("older", [False, True])
def test_it_is_merged_beside_the_run_that_it_is_of(place: Place, capsys: Any, older: bool) -> None:
    place.store.client.set_tag(place.run, "tsexp.record", "a number")  # as all delivered runs have
    for key in alive.me():
        place.store.client.set_tag(place.run, f"tsexp.{key}", "of the process that measured")
    assert place.attach(place.run, place.log()) == 0
    (twin,) = place.runs("external:plug")
    assert "tsexp.record" not in twin.data.tags
    assert {f"tsexp.{k}": v for k, v in alive.me().items() if v}.items() <= twin.data.tags.items()
    if older:
        place.store.client.set_tag(twin.info.run_id, "tsexp.record", "a number")
    command = [place.store.uri, "--into", str(place.folder / "all.db")]
    for said in ("2 brought, 0 there already", "0 brought, 2 there already"):
        assert merge.main(command) == 0
        assert said in capsys.readouterr().out
    client = mlflow.MlflowClient(f"sqlite:///{place.folder}/all.db")
    found = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert {r.data.tags["tsexp.energy_source"] for r in found} == {"estimated:cpu_time", "external:plug"}
    by = {r.data.tags["tsexp.energy_source"]: r for r in found}
    assert by["external:plug"].data.tags["tsexp.attached_to"] == by["estimated:cpu_time"].info.run_id
    brought = by["estimated:cpu_time"].info.run_id  # to which the same log was attached before it came here
    assert attach.main([brought, place.log(), f"tracking.uri=sqlite:///{place.folder}/all.db"]) == 0
    assert "attached before: nothing was stored" in capsys.readouterr().out


def test_what_was_attached_elsewhere_comes_home_to_the_run_that_it_is_of(place: Place, capsys: Any) -> None:
    there, home = f"sqlite:///{place.folder}/all.db", place.store
    assert merge.main([home.uri, "--into", there]) == 0
    client = mlflow.MlflowClient(there)
    (brought,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert attach.main([brought.info.run_id, place.log(), f"tracking.uri={there}"]) == 0
    twins = client.search_runs([brought.info.experiment_id], "tags.`tsexp.energy_source` = 'external:plug'")
    assert not {"tsexp.merged_run", "tsexp.merged_from"} & twins[0].data.tags.keys()
    capsys.readouterr()
    assert merge.main([there, "--into", home.uri]) == 0
    assert "1 brought, 1 there already" in capsys.readouterr().out
    (twin,) = place.runs("external:plug")
    assert twin.data.tags["tsexp.attached_to"] == place.run
    assert f"Run {place.run} " in twin.data.tags["mlflow.note.content"]


def test_what_a_log_was_laid_over_comes_along_although_the_same_was_measured_there(
    place: Place, capsys: Any
) -> None:
    assert merge.main([place.store.uri, "--into", f"sqlite:///{place.folder}/all.db"]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{place.folder}/all.db")
    number = client.get_experiment_by_name("tsexp").experiment_id
    (other,) = client.search_runs([number])  # as if it had been measured there, at another time
    for tag in ("tsexp.merged_run", "tsexp.merged_from", "tsexp.record"):
        if tag in other.data.tags:
            client.delete_tag(other.info.run_id, tag)
    assert place.attach(place.run, place.log()) == 0
    capsys.readouterr()
    for said in ("2 brought, 0 there already", "0 brought, 2 there already"):
        assert merge.main([place.store.uri, "--into", f"sqlite:///{place.folder}/all.db"]) == 0
        assert said in capsys.readouterr().out
    attached = [r for r in client.search_runs([number]) if "tsexp.attached_to" in r.data.tags]
    assert [r.data.tags["tsexp.attached_to"] != other.info.run_id for r in attached] == [True]


def test_of_two_logs_of_one_run_the_newer_is_merged_too(place: Place, capsys: Any) -> None:
    assert place.attach(place.run, place.log(offset_s=0.05), "--name", "plug") == 0
    command = [place.store.uri, "--into", str(place.folder / "all.db")]
    assert merge.main(command) == 0
    assert "2 brought" in capsys.readouterr().out
    assert place.attach(place.run, place.log(), "--name", "plug") == 0
    assert merge.main(command) == 0
    assert "1 brought, 2 there already" in capsys.readouterr().out
    both = tuple(
        freezing.freeze(mlflow.MlflowClient(uri), "tsexp", place.folder / str(i)).results
        for i, uri in enumerate((place.store.uri, f"sqlite:///{place.folder}/all.db"))
    )
    joules = [r.loc[r["energy_source"] == "external:plug", "measured_j"].tolist() for r in both]
    assert joules[0] == joules[1]


@pytest.mark.parametrize(
    ("words", "how", "reason"),
    [
        (("--offset-s", "0"), {"offset_s": 3.0}, "the power log is 3 s late"),
        (("--offset-s", "3"), {}, "the power log is 3 s early"),
        ((), {"interval_s": 3.0}, "too few samples of the power log in 64 of 64 windows"),
    ],
)
def test_an_invalid_twin_says_why_and_none_of_its_joules_count(
    place: Place, capsys: Any, words: tuple[str, ...], how: dict[str, float], reason: str
) -> None:
    assert place.attach(place.run, place.log(**how), *words) == 1
    (twin,) = place.runs("external:plug")
    assert reason in " ".join(capsys.readouterr().out.split())
    assert twin.data.tags["tsexp.valid"] == "false"
    assert reason in twin.data.tags["tsexp.invalid_reasons"]
    assert not [k for k in twin.data.metrics if k.startswith(("energy/", "power/", "vs_dense/energy"))]
    assert twin.data.metrics["test/accuracy"] == 0.75
    # With the right offset, or another log, it is the same experiment, and the valid one counts.
    assert place.attach(place.run, place.log()) == 0
    made = freezing.freeze(place.store.client, "tsexp", place.folder / "frozen").results
    assert list(made["valid"]) == [True, True]
    assert made["measured_j"].notna().sum() == 1


def test_a_live_measurement_by_a_wrong_clock_is_replaced_by_what_is_attached_to_it(place: Place) -> None:
    run = add_run(
        place.store,
        signature="live",
        energy_source="external:plug",
        valid="false",
        invalid_reasons="the power log is 3 s late",
    )
    assert place.attach(run, place.log(offset_s=3.0), "--offset-s", "3") == 0
    (twin,) = (r for r in place.runs("external:plug") if r.info.run_id != run)
    assert twin.data.tags["tsexp.signature"] == "live"
    config = TrackingConfig(place.store.uri, "tsexp")
    assert tracking.finished(config, "live") == twin.info.run_id


def test_what_was_found_of_the_artifact_stays_a_warning(empty_store: Path, tmp_path: Path) -> None:
    store = Store(empty_store, tmp_path)
    warnings = "the artifact answers 'a' for every series; energy of the artifact drifts by 9 %"
    place = Place(store, add_run(store, warnings=warnings), tmp_path)
    assert place.attach(place.run, place.log()) == 0
    (twin,) = place.runs("external:plug")
    assert twin.data.tags["tsexp.warnings"] == "the artifact answers 'a' for every series"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a run and a log, RUN power.csv, not nothing"),
        (("RUN",), "give a run and a log"),
        (("RUN", "LOG", "seed=1"), "seed=1 is not known here; allowed: tracking.…"),
        (
            ("RUN", "LOG", "tracking.url=x"),
            "tracking.url is not a key; allowed in tracking: artifacts, diff, experiment, uri",
        ),
        (("RUN", "LOG", "--name", "my plug"), "'my plug' is no name of a meter"),
        (
            ("RUN", "my log.csv"),
            "'my log' is no name of a meter: letters, digits, _, . and - are allowed; give one",
        ),
        (("RUN", "LOG", "--offset-s", "nan"), "--offset-s is no number of seconds"),
        (("RUN", "/proc/nowhere/log.csv"), "/proc/nowhere/log.csv cannot be read"),
        (("xyz", "LOG"), "xyz is not a run id"),
        (("abcdef0123", "LOG"), "no run of experiment 'tsexp' begins with abcdef0123"),
        (("RUN", "LOG", "tracking.experiment=other"), "no experiment 'other'"),
        (
            ("RUN", "LOG", "tracking.uri=sqlite:////proc/nowhere/x.db"),
            "there is no store at /proc/nowhere/x.db",
        ),
    ],
)
def test_wrong_words_are_told_in_a_line_and_nothing_is_stored(
    untouched: Place, capsys: Any, words: tuple[str, ...], said: str
) -> None:
    real = {"RUN": untouched.run, "LOG": untouched.log()}
    given = [real.get(w, w) for w in words]
    store = (
        [] if any(w.startswith("tracking.uri") for w in given) else [f"tracking.uri={untouched.store.uri}"]
    )
    assert attach.main([*given, *store]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tsexp.attach: error: ")
    assert said in line
    assert len(untouched.runs()) == 1


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, "FAILED", "has not finished (FAILED)"),
        ({"tsexp.stage": "compare"}, "FINISHED", "is a comparison"),
        ({"tsexp.protocol": "1"}, "FINISHED", "older protocol"),
        (
            {"tsexp.attached_to": "0123456789abcdef"},
            "FINISHED",
            "is itself attached; give the one it is of, 01234567",
        ),
        (
            {
                "tsexp.valid": "false",
                "tsexp.invalid_reasons": "the artifact answers series with scores that are not finite",
            },
            "FINISHED",
            "scores that are not finite: run it again",
        ),
    ],
)
def test_a_run_that_nothing_can_be_attached_to_says_why(
    untouched: Place, capsys: Any, changes: dict[str, str], status: str, said: str
) -> None:
    tags = untouched.store.client.get_run(untouched.run).data.tags | {"mlflow.runName": "other"} | changes
    run = untouched.store.client.create_run(untouched.store.experiment, tags=tags).info.run_id
    try:
        untouched.store.client.set_terminated(run, status)
        assert untouched.attach(run, untouched.log()) == 2
        assert said in capsys.readouterr().err
    finally:
        untouched.store.client.delete_run(run)


def test_interrupted_leaves_nothing_behind(
    untouched: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", interrupt)
    assert untouched.attach(untouched.run, untouched.log()) == 130
    assert "interrupted; nothing was stored" in capsys.readouterr().err
    assert [r.info.run_id for r in untouched.runs()] == [untouched.run]


ROOT = Path(__file__).parents[1]


def documented() -> list[list[str]]:
    """Words of the commands of docs/measuring.md that attach."""
    lines = (ROOT / "docs" / "measuring.md").read_text().splitlines()
    start = "    python -m tsexp.attach "
    return [shlex.split(line.removeprefix(start)) for line in lines if line.startswith(start)]


@pytest.mark.slow
def test_a_real_run_its_twin_and_the_tables_as_documented(tmp_path: Path) -> None:
    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=os.environ | {"COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    settings = ("measure.repeats=12", "measure.processes=4", "measure.window_s=0.15", "measure.idle_s=0.4")
    python("-m", "tsexp", *TINY, "data=italy_power_demand", *settings)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    place = [client.get_experiment_by_name("tsexp").experiment_id]
    (run,) = client.search_runs(place)
    raw = json.loads(Path(client.download_artifacts(run.info.run_id, "windows.json")).read_text())
    made = around(raw)
    commands = documented()
    assert commands
    for words in commands:
        offset_s = float(words[words.index("--offset-s") + 1]) if "--offset-s" in words else 0.0
        write(tmp_path / "power.csv", sample(made, 0.005, offset_s=offset_s))
        said = python("-m", "tsexp.attach", *(run.info.run_id if w == "RUN" else w for w in words))
        assert "attached to" in said
        assert "could not be checked" not in said
    twins = client.search_runs(place, "tags.`tsexp.energy_source` LIKE 'external:%'")
    for twin in twins:
        raw = json.loads(Path(client.download_artifacts(twin.info.run_id, "windows.json")).read_text())
        assert [w["energy_j"] for w in raw["windows"]] == pytest.approx(made.truth_j, rel=0.01)
        assert {m.model_id for m in twin.outputs.model_outputs} == {
            m.model_id for m in run.outputs.model_outputs
        }
        assert len(twin.inputs.dataset_inputs) == 2
    twin = twins[0]
    assert ".owner" not in {item.path for item in client.list_artifacts(twin.info.run_id)}
    python("-m", "tsexp.export", twin.info.run_id, "shared")
    assert "external:" in (tmp_path / "shared" / "MODEL_CARD.md").read_text()
    file = Path(aeon.__file__).parent / "datasets/data/ItalyPowerDemand/ItalyPowerDemand_TEST.ts"
    assert "accuracy" in python("-m", "tsexp.predict", twin.info.run_id, str(file), "--output", "answers.csv")
    python("-m", "tsexp.merge", "mlflow.db", "--into", "sqlite:///all.db")
    assert (tmp_path / "all.db").is_file()
    python("-m", "tsexp.report", "freeze")
    python("-m", "tsexp.report", "tables")
    results = pd.read_csv(tmp_path / "report" / "frozen" / "results.csv")
    assert not (results["measured_j"].notna() & results["estimated_j"].notna()).any()
    assert results["measured_j"].notna().sum() == len({t.data.tags["tsexp.energy_source"] for t in twins})
    dense = pd.read_csv(tmp_path / "report" / "tables" / "dense.csv")
    assert len(dense) == len(results)


def around(raw: dict[str, Any]) -> Made:
    """A power curve that follows the windows of a real measurement."""
    windows = sorted(raw["windows"], key=lambda w: w["start_unix_s"])
    edges = [(w["start_unix_s"], w["end_unix_s"], WATTS[w["subject"]]) for w in windows]
    busy = WATTS["warm-up"]
    between = [(a[1], b[0], busy) for a, b in pairwise(edges)]
    before, after = (edges[0][0] - 60, edges[0][0], busy), (edges[-1][1], edges[-1][1] + 60, busy)
    return Made(raw["windows"], sorted([before, *edges, *between, after]))
