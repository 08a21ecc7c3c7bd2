"""Two runs head to head: what is printed and stored, where artifacts come from, what is refused."""

import contextlib
import csv
import io
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest

from commands import tsexp
from conftest import TINY
from tsexp import compare, energy, finished, merge, runtimes, tracking
from tsexp.config import ConfigError, TrackingConfig
from tsexp.energy.record import Record
from tsexp.report import freezing, frozen
from tsexp.tasks import classification

QUICK = {
    "measure.processes": 4,
    "measure.repeats": 6,
    "measure.window_s": 0.02,
    "measure.idle_s": 0.05,
    "measure.latency_calls": 20,
}


@dataclass(frozen=True)
class Place:
    """A folder with a store of a sweep over two ratios, and what the sweep left in it."""

    folder: Path
    dense: str
    pruned: str
    sweep: str

    @property
    def uri(self):
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def client(self):
        return mlflow.MlflowClient(self.uri)

    @property
    def experiment(self):
        return self.client.get_experiment_by_name("tsexp").experiment_id

    def runs(self, condition=""):
        return self.client.search_runs([self.experiment], condition)

    def compare(self, *words):
        settings = QUICK | {"paths.cache": f"{self.folder}/cache", "tracking.uri": self.uri}
        given = {w.split("=")[0] for w in words}
        return compare.main([*words, *(f"{k}={v}" for k, v in settings.items() if k not in given)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tsexp(folder, "-m", "prune.ratio=0,0.5", *TINY, "data=italy_power_demand")
    place = Place(folder, "", "", "")
    found = {
        run.data.params.get("prune.ratio", "sweep"): run.info.run_id
        for run in place.runs("attributes.status = 'FINISHED'")
    }
    return Place(folder, found["0.0"], found["0.5"], found["sweep"])


@pytest.fixture(scope="module")
def compared(place):
    """What was printed, and the run that was stored, of the pruned model against the dense one."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        assert place.compare(place.pruned[:8], place.dense, "measure.batch_size=4") == 0
    (run,) = place.runs(f"tags.`tsexp.stage` = 'compare' and tags.`tsexp.compare_b` = '{place.dense}'")
    return out.getvalue(), run


def read(place, run, name):
    return Path(place.client.download_artifacts(run.info.run_id, name)).read_text()


def refused(capsys, place, *words):
    """The one line of an error, which left nothing in the store."""
    before = len(place.runs())
    assert place.compare(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tsexp.compare: error: ")
    assert len(place.runs()) == before
    return line


def test_a_run_beside_itself_is_told_before_anything_is_measured(place, monkeypatch, capsys):
    def stop(*_):
        raise compare.ConfigError("so far")

    monkeypatch.setattr(compare, "_dataset", stop)
    assert place.compare(place.dense, place.dense[:8]) == 2
    told, error = capsys.readouterr().err.splitlines()
    assert told == "tsexp.compare: A and B are one run: what will differ is noise"
    assert error == "tsexp.compare: error: so far"


def test_what_is_stored_can_be_recomputed_from_what_was_seen(place, compared):
    _, run = compared
    m = run.data.metrics
    rows = list(csv.DictReader(read(place, run, "predictions.csv").splitlines()))
    a, b = (np.array([r[who] == r["label"] for r in rows]) for who in ("predicted", "dense_predicted"))
    assert len(rows) == 1029
    assert m["compare/accuracy_a"] == pytest.approx(a.mean())
    assert m["compare/accuracy_b"] == pytest.approx(b.mean())
    assert m["compare/accuracy_difference_pt"] == pytest.approx(100 * (a.mean() - b.mean()))
    assert m["compare/accuracy_difference_lo"] <= m["compare/accuracy_difference_pt"]
    assert m["compare/accuracy_difference_hi"] >= m["compare/accuracy_difference_pt"]
    raw = json.loads(read(place, run, "windows.json"))
    assert raw["batch_size"] == 4
    middles, first = [], []
    for process, turns in enumerate(raw["orders"]):
        ratios = {}
        for w in raw["windows"]:
            if w["process"] == process and w["subject"] != "idle" and not w["discarded"]:
                ratios.setdefault(w["pair"], {})[w["subject"]] = math.log(w["energy_j"] / w["inferences"])
        middles.append(np.median([r["artifact"] - r["reference"] for r in ratios.values()]))
        first.append([1, *((0.5 if turns[t][0] == "artifact" else -0.5) for t in ("load", "use"))])
    middle = np.linalg.lstsq(np.array(first), np.array(middles))[0][0]
    assert m["compare/energy_saving_pct"] == pytest.approx(100 * (1 - math.exp(middle)))
    manifest = json.loads(Path(place.client.download_artifacts(place.pruned, "manifest.json")).read_text())
    assert m["compare/parameters_a"] == manifest["parameters"] < m["compare/parameters_b"]
    assert m["compare/bytes_a"] == manifest["bytes"]


def test_the_stored_run_says_what_it_is(place, compared):
    _, run = compared
    tags = run.data.tags
    assert run.info.run_name == "compare prune.ratio=0.5 prune.ratio=0"
    assert run.info.status == "FINISHED"
    assert (tags["tsexp.compare_a"], tags["tsexp.compare_b"]) == (place.pruned, place.dense)
    assert tags["tsexp.valid"] == "true"
    assert tags["tsexp.energy_source"]
    assert run.data.params["measure.batch_size"] == "4"
    assert all(name.startswith("compare/") for name in run.data.metrics)
    assert "McNemar" in tags["mlflow.note.content"]


def test_what_is_printed_fits_80_columns_and_says_it_in_words(place, compared):
    out, run = compared
    assert max(map(len, out.splitlines())) <= 80
    assert f"A  {place.pruned[:8]}  prune.ratio=0.5" in out
    assert "ItalyPowerDemand, 1,029 test series, batch 4" in out
    assert f"{100 * run.data.metrics['compare/accuracy_a']:.1f} %" in out
    assert "exact McNemar p" in out
    assert run.info.run_id in out
    if run.data.tags["tsexp.energy_source"].startswith("estimated:"):
        assert "energy per series†" in out
        assert "† estimated" in out


def test_a_run_against_itself_differs_in_nothing(place, capsys, tmp_path):
    # Of another cache, so that the artifact comes from the store; which is not that of this process.
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    assert place.compare(place.dense, place.dense, f"paths.cache={place.folder}/another") == 0
    assert "no difference in accuracy seen (McNemar p = 1)" in " ".join(capsys.readouterr().out.split())
    (run,) = place.runs(f"tags.`tsexp.compare_a` = '{place.dense}'")
    m = run.data.metrics
    assert [m[f"compare/accuracy_difference_{end}"] for end in ("pt", "lo", "hi")] == [0, 0, 0]
    assert m["compare/mcnemar_p"] == 1
    assert m["compare/bytes_a"] == m["compare/bytes_b"]
    low, high = m["compare/energy_saving_lo"], m["compare/energy_saving_hi"]
    # The interval holds 0 in 95 %, this in more than 99.9 %.
    assert low - 4 * (high - low) <= 0 <= high + 4 * (high - low)
    assert not (place.folder / "another" / "artifact").exists()


def test_a_damaged_artifact_of_the_cache_is_taken_from_the_store(place, monkeypatch):
    def seen(a, b, *_):
        folders.extend(s.folder for s in (a, b))
        raise KeyboardInterrupt

    folders = []
    monkeypatch.setattr(energy, "score", lambda *_: energy.Scores(*2 * [np.zeros((0, 2), np.float32)]))
    monkeypatch.setattr(energy, "measure", seen)
    cache = place.folder / "damaged"
    shutil.copytree(place.folder / "cache" / "artifact", cache / "artifact")
    signature = place.client.get_run(place.pruned).data.tags["tsexp.artifact"]
    (cache / "artifact" / signature / "weights.safetensors").write_bytes(b"")
    assert place.compare(place.pruned, place.dense, f"paths.cache={cache}") == 130
    assert folders[0].name == signature
    assert cache not in folders[0].parents
    assert cache in folders[1].parents


def test_an_artifact_that_is_nowhere_is_told(place, capsys, monkeypatch):
    def gone(**_):
        raise mlflow.exceptions.MlflowException("gone")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", gone)
    line = refused(capsys, place, place.pruned, place.dense, f"paths.cache={place.folder}/none")
    assert f"the artifact of run {place.pruned[:8]} (prune.ratio=0.5) is neither in" in line
    assert "rerun=true" in line


def test_an_output_without_files_does_not_hide_the_one_before(place, tmp_path, monkeypatch):
    """As of a logged model that was deleted."""
    real, run = mlflow.artifacts.download_artifacts, place.client.get_run(place.pruned)
    outputs = SimpleNamespace(model_outputs=[*run.outputs.model_outputs, *run.outputs.model_outputs])
    tried = []

    def once(**asked):
        tried.append(asked)
        if len(tried) > 1:
            raise mlflow.exceptions.MlflowException("gone")
        return real(**asked)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", once)
    client = SimpleNamespace(
        get_run=lambda _: SimpleNamespace(outputs=outputs),
        get_logged_model=place.client.get_logged_model,
        tracking_uri=place.client.tracking_uri,
    )
    row = SimpleNamespace(run_id=place.pruned, tags=run.data.tags)
    assert finished.artifact(client, row, tmp_path / "no cache", tmp_path).folder.is_dir()


def test_the_next_sweep_overlooks_comparisons_and_the_report_has_them_apart(place, compared, tmp_path):
    made = freezing.freeze(place.client, "tsexp", tmp_path / "frozen")
    assert set(made.results["run_id"]) == {place.dense, place.pruned}
    pd.testing.assert_frame_equal(frozen.load(tmp_path / "frozen").comparisons, made.comparisons)
    _, run = compared
    (row,) = made.comparisons[made.comparisons["run_id"] == run.info.run_id].to_dict("records")
    m = run.data.metrics
    assert (row["run_id_a"], row["run_id_b"]) == (place.pruned, place.dense)
    assert (row["ratio_a"], row["scope_a"], row["ratio_b"], row["scope_b"]) == (0.5, "local", 0, "-")
    assert (row["model_a"], row["runtime_a"], row["batch_size"], row["valid"]) == ("t3", "eager", 4, True)
    for name, stored_as in (
        ("accuracy_a", "accuracy_a"),
        ("difference_pt_hi", "accuracy_difference_hi"),
        ("only_right_b", "only_b_right"),
        ("mcnemar_p", "mcnemar_p"),
        ("estimated_j_a", "energy_a_j"),
        ("estimated_saving_pct", "energy_saving_pct"),
        ("estimated_saving_pct_lo", "energy_saving_lo"),
        ("speedup", "speedup"),
        ("cpu_speedup_hi", "cpu_speedup_hi"),
        ("call_ms_b", "call_ms_b"),
    ):
        assert row[name] == m[f"compare/{stored_as}"], name
    assert math.isnan(row["measured_j_a"])
    assert not any("compare" in name for names in made.about["left_out"].values() for name in names)
    signature = place.client.get_run(place.dense).data.tags["tsexp.signature"]
    assert tracking.finished(TrackingConfig(place.uri, "tsexp"), signature) == place.dense


def test_of_chosen_runs_comparisons_of_two_that_are_chosen_stay(place, compared, tmp_path):

    _, run = compared
    for where, there in (
        ("params.`data.name` = 'ItalyPowerDemand'", True),  # which a comparison has no param of
        ("params.`prune.ratio` = '0.5'", False),
    ):
        made = freezing.freeze(place.client, "tsexp", tmp_path / "frozen", where)
        assert (run.info.run_id in set(made.comparisons["run_id"])) is there
        assert not any("compare" in name for names in made.about["left_out"].values() for name in names)


def test_it_is_merged_with_the_runs_that_it_is_of(place, compared, tmp_path, capsys):

    _, run = compared
    into = f"sqlite:///{tmp_path}/all.db"
    count = len(place.runs("attributes.status = 'FINISHED'")) - 1  # but the sweep
    for brought in (count, 0):
        assert merge.main([place.uri, "--into", into]) == 0
        assert f"{brought} brought, {count - brought} there already" in capsys.readouterr().out
    one, two = (
        freezing.freeze(mlflow.MlflowClient(uri), "tsexp", tmp_path / name)
        for name, uri in (("one", place.uri), ("two", into))
    )
    assert set(two.comparisons["run_id_a"]) <= set(two.results["run_id"])
    places = ["run_id", "run_id_a", "run_id_b"]
    there, here = (f.comparisons.drop(columns=places) for f in (one, two))
    order = ["batch_size", "accuracy_a", "accuracy_b", "estimated_j_a", "measured_j_a"]
    pd.testing.assert_frame_equal(*(c.sort_values(order, ignore_index=True) for c in (there, here)))
    (moved,) = mlflow.MlflowClient(into).search_runs(
        [mlflow.MlflowClient(into).get_experiment_by_name("tsexp").experiment_id],
        f"tags.`tsexp.merged_run` = '{run.info.run_id}'",
    )
    note = moved.data.tags["mlflow.note.content"]
    assert moved.data.tags["tsexp.compare_a"] in note
    assert place.pruned not in note


def test_it_comes_home_to_the_store_that_it_began_in(place, compared, tmp_path, capsys):
    shutil.copytree(place.folder, tmp_path / "home")
    home, away, third = (f"sqlite:///{tmp_path}/{name}.db" for name in ("home/mlflow", "away", "third"))
    count = len(place.runs("attributes.status = 'FINISHED'")) - 1  # but the sweep
    for source, into, new in (
        (home, away, count),
        (away, home, 0),
        (away, third, count),
        (home, third, 0),
        (third, home, 0),
        (third, away, 0),
    ):
        assert merge.main([source, "--into", into]) == 0
        assert f"{new} brought, {count - new} there already" in capsys.readouterr().out
    for name, uri in (("a", home), ("b", away)):
        freezing.freeze(mlflow.MlflowClient(uri), "tsexp", tmp_path / "parts" / name)
    parts = {name: frozen.load(tmp_path / "parts" / name) for name in "ab"}
    assert set(parts["a"].comparisons["run_id"]).isdisjoint(parts["b"].comparisons["run_id"])
    both = frozen.load(tmp_path / "parts").comparisons
    assert len(both) == len(parts["a"].comparisons) > 0
    assert set(both["run_id_a"]) <= set(frozen.load(tmp_path / "parts").results["run_id"])


def test_one_store_by_two_names_is_refused(place, tmp_path, capsys):
    (tmp_path / "link.db").symlink_to(place.folder / "mlflow.db")
    into = ["--into", f"{tmp_path}/all.db"]
    for command, said in (
        ([f"{tmp_path}/link.db", "--into", place.uri], "is both read and written"),
        ([place.uri, f"{tmp_path}/link.db", *into], "is read twice"),
    ):
        assert merge.main(command) == 2
        assert said in capsys.readouterr().err


def test_a_store_without_its_files_does_not_keep_others_from_being_merged(place, compared, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    shutil.copy(place.folder / "mlflow.db", tmp_path / "bare" / "mlflow.db")
    shutil.copytree(place.folder, tmp_path / "whole")
    files = Path(place.client.get_run(place.pruned).info.artifact_uri.removeprefix("file://"))
    shutil.copytree(files, tmp_path / "bare" / "mlartifacts" / place.pruned / "artifacts")
    command = [f"{tmp_path}/bare/mlflow.db", f"{tmp_path}/whole/mlflow.db"]
    assert merge.main([*command, "--into", f"{tmp_path}/all.db"]) == 2
    said = capsys.readouterr()
    assert f"{tmp_path}/whole/mlflow.db: 3 brought, 1 there already" in said.out
    assert "1 brought, 0 there already, 1 not, for their files do not lie beside it" in said.err
    assert "; 2 comparison(s) of them neither" in said.err


def test_it_is_merged_no_sooner_than_the_runs_that_it_is_of(place, compared, tmp_path, capsys):

    into = f"sqlite:///{tmp_path}/all.db"
    files = Path(place.client.get_run(place.dense).info.artifact_uri.removeprefix("file://"))
    files.rename(tmp_path / "away")
    try:
        assert merge.main([place.uri, "--into", into]) == 2
        assert "for their files do not lie beside it" in capsys.readouterr().err
    finally:
        (tmp_path / "away").rename(files)
    assert merge.main([place.uri, "--into", into]) == 0
    made = freezing.freeze(mlflow.MlflowClient(into), "tsexp", tmp_path / "frozen")
    assert len(made.comparisons)
    assert set(made.comparisons["run_id_b"]) <= set(made.results["run_id"])


def test_a_comparison_of_a_run_that_is_gone_is_left_out(place, compared, tmp_path):
    from tsexp.report import comparisons

    _, run = compared
    shutil.copytree(place.folder, tmp_path / "copy")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/copy/mlflow.db")
    client.set_tag(run.info.run_id, "tsexp.compare_a", "0" * 32)
    made = freezing.freeze(client, "tsexp", tmp_path / "frozen")
    assert run.info.run_id not in set(made.comparisons["run_id"])
    assert run.info.run_name in made.about["left_out"][comparisons.GONE]
    assert set(made.results["run_id"]) == {place.dense, place.pruned}


@pytest.mark.parametrize("where", ["measuring", "storing"])
def test_interrupted_leaves_nothing_behind(place, capsys, monkeypatch, where):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    before = {run.info.run_id for run in place.runs()}
    if where == "measuring":
        monkeypatch.setattr(energy, "measure", interrupt)
    else:
        monkeypatch.setattr(mlflow.MlflowClient, "log_artifacts", interrupt)
    assert place.compare(place.pruned, place.dense) == 130
    assert "interrupted; nothing was stored" in capsys.readouterr().err
    assert {run.info.run_id for run in place.runs()} == before


def test_a_failed_measurement_is_told_in_a_line(place, capsys):
    assert place.compare(place.pruned, place.dense, "measure.timeout_s=0.5", "seed=1") == 1
    assert "longer than measure.timeout_s=0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give two runs"),
        (("abcdef",), "give two runs"),
        (("abcdef", "xyz"), "xyz is not a run id"),
        (("abcd", "abcdef"), "abcd is not a run id: 6 to 32"),
        (("abcdef", "abcdef", "model=t1"), "model=t1 is not known here; allowed: measure="),
        (("abcdef", "abcdef", "measrue.seed=1"), "measrue.seed=1 is not known here"),
        (("abcdef", "abcdef", "measure=papr"), "measure=papr is not there; allowed: paper, quick"),
        (("abcdef", "abcdef", "measure.repeats=0"), "measure.repeats=0 is out of range"),
        (
            ("abcdef", "abcdef", "tracking.uri=sqlite:////proc/nowhere/x.db"),
            "there is no store at /proc/nowhere/x.db",
        ),
        (("abcdef", "abcdef", "tracking.experiment=other"), "no experiment 'other'"),
        (("--fast", "abcdef", "abcdef"), "--fast is not an option"),
    ],
)
def test_wrong_words_are_told_in_a_line(place, capsys, words, said):
    assert place.compare(*words) == 2
    assert said in capsys.readouterr().err.splitlines()[0]


def test_a_run_that_is_not_there_is_told_with_those_that_are(place, capsys):
    line = refused(capsys, place, place.dense, "0123456789")
    assert "no run of experiment 'tsexp' begins with 0123456789" in line
    assert f"{place.pruned[:8]} prune.ratio=0.5" in line


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, "FAILED", "has not finished (FAILED): run it again"),
        ({}, "RUNNING", "has not finished (RUNNING)"),
        ({"tsexp.stage": "sweep"}, "FINISHED", "is a sweep"),
        ({"tsexp.stage": "compare"}, "FINISHED", "is a comparison"),
        ({"tsexp.stage": "measure"}, "FINISHED", "is a measurement of something else"),
        ({"tsexp.protocol": "1"}, "FINISHED", "was measured by an older protocol: run it again"),
        ({"tsexp.valid": "false", "tsexp.invalid_reasons": "it lied"}, "FINISHED", "(it lied): run it again"),
        (
            {
                "tsexp.valid": "false",
                "tsexp.invalid_reasons": "gaps",
                "tsexp.attached_to": "0123456789abcdef",
            },
            "FINISHED",
            "(gaps): attach a better power log, or give the one it is of, 01234567",
        ),
        ({"tsexp.data_checksum": "other"}, "FINISHED", "the runs are of different data"),
    ],
)
def test_a_run_that_cannot_be_compared_says_why(place, capsys, changes, status, said):
    good = place.client.get_run(place.dense).data
    tags = good.tags | {"tsexp.signature": "none", "mlflow.runName": "other"} | changes
    run = place.client.create_run(place.experiment, tags=tags)
    try:
        place.client.log_param(run.info.run_id, "data.name", "Other")
        place.client.set_terminated(run.info.run_id, status)
        assert said in refused(capsys, place, place.dense, run.info.run_id)
    finally:
        place.client.delete_run(run.info.run_id)


def test_other_files_than_the_runs_are_of_are_refused(place, capsys, tmp_path):
    import aeon

    source = Path(aeon.__file__).parent / "datasets" / "data" / "ItalyPowerDemand"
    copy = tmp_path / "ItalyPowerDemand"
    shutil.copytree(source, copy)
    train = copy / "ItalyPowerDemand_TRAIN.ts"
    lines = train.read_text().rstrip().splitlines()
    train.write_text("\n".join(lines[:-1]) + "\n")
    line = refused(capsys, place, place.dense, place.pruned, f"paths.data={tmp_path}")
    assert "are not the files that the runs are of; say where those are: paths.data=" in line
    # The same files where they are now.
    assert place.compare(place.dense, place.pruned, f"paths.data={tmp_path}", f"data.path={source}") == 0


def side(**manifest):
    sizes = {"parameters": 10, "macs": None, "bytes": 100}
    return SimpleNamespace(artifact=SimpleNamespace(manifest=sizes | manifest))


def record(right_a, right_b, valid=True, **metrics):
    """Of two artifacts that answer these series right, for two classes."""
    labels = np.zeros(len(right_a), np.int64)
    answer = {True: [1.0, 0.0], False: [0.0, 1.0]}
    scores, reference = (np.array([answer[r] for r in right], np.float32) for right in (right_a, right_b))
    windows = [
        {"subject": s, "wall_s": t, "inferences": 10, "discarded": False}
        for s, t in (("artifact", 0.1), ("reference", 0.2))
    ]
    saving = {"energy_saving_pct": 24.0, "energy_saving_lo": 23.0, "energy_saving_hi": 25.0}
    speedup = {f"{kind}speedup{end}": 2.0 for kind in ("", "cpu_") for end in ("", "_lo", "_hi")}
    seen = {f"vs_dense/{k}": v for k, v in (saving | speedup | metrics).items()}
    right = {"test/accuracy": np.mean(right_a), "test/control_accuracy": np.mean(right_b)}
    joules = {"energy/per_inference_j": 0.001, "energy/reference_per_inference_j": 0.002}
    return Record(
        right | classification.drop(scores, reference, labels) | (seen | joules if valid else {}),
        "estimated:cpu_time",
        () if valid else ("the weights of the artifact changed while it was measured",),
        ("interference: other processes used 1.0 cores: trust vs_dense/cpu_speedup, not vs_dense/speedup",),
        {"windows": windows if valid else [], "batch_size": 2},
        scores,
        reference,
        labels,
        {},
        {},
    )


def told(*arguments, **metrics):
    """The sentence about two artifacts."""
    one = record(*arguments, **metrics)
    return compare.sentence(*compare.numbers(one, side(), side(), classification), one.valid, "†")


def test_mcnemar_by_hand():
    # Of six series that only one has right, five are A's: 2 (C(6, 0) + C(6, 1)) / 2⁶.
    right_a = [True] * 10 + [True] * 5 + [False]
    right_b = [True] * 10 + [False] * 5 + [True]
    answers, windows = compare.numbers(record(right_a, right_b), side(parameters=20), side(), classification)
    assert answers["mcnemar_p"] == pytest.approx(14 / 64)
    assert (answers["only_a_right"], answers["only_b_right"]) == (5, 1)
    assert answers["accuracy_difference_pt"] == pytest.approx(100 * 4 / 16)
    assert (answers["parameters_a"], answers["parameters_b"]) == (20, 10)
    assert "macs_a" not in answers
    assert (windows["call_ms_a"], windows["call_ms_b"]) == pytest.approx((20, 40))


ALIKE = [True] * 8 + [False] * 2


def test_the_sentence_names_what_differs_and_how_sure_that_is():
    same = "no difference in accuracy seen (McNemar p = 1)."
    assert told(ALIKE, ALIKE) == f"A needs 24.0 % less energy† than B [23.0, 25.0]; {same}"
    more = {"energy_saving_pct": -24.0, "energy_saving_lo": -25.0, "energy_saving_hi": -23.0}
    assert told(ALIKE, ALIKE, **more).startswith("A needs 24.0 % more energy† than B [23.0, 25.0]; ")
    none = {"energy_saving_pct": 0.5, "energy_saving_lo": -1.0, "energy_saving_hi": 2.0}
    assert told(ALIKE, ALIKE, **none).startswith("no difference in energy† seen (saving 0.5 % [-1.0, 2.0]); ")
    better = told([True] * 20, [True] * 8 + [False] * 12)
    assert better.endswith("A is 60.0 points more accurate (McNemar p < .001).")
    worse = told([True] * 13 + [False] * 7, [True] * 20)
    assert worse.endswith("A is 35.0 points less accurate (McNemar p = .016).")


def test_an_invalid_comparison_says_nothing_of_energy():
    one = record(ALIKE, ALIKE, valid=False)
    found = *compare.numbers(one, side(), side(), classification), one.valid, "†"
    assert compare.sentence(*found).startswith("nothing can be said of energy: the measurement is invalid; ")
    assert "invalid: the weights of A changed while it was measured" in compare.remarks(one, "†")
    from rich.console import Console

    console = Console(width=80)
    with console.capture() as printed:
        console.print(compare.table(*found))
    assert "energy, time" in printed.get()
    assert "saving" not in printed.get()


def test_warnings_name_the_two_as_the_table_does():
    said = compare.remarks(record(ALIKE, ALIKE), "†")
    assert (
        "⚠ interference: other processes used 1.0 cores: trust compare/cpu_speedup, not compare/speedup"
        in said
    )


def test_an_artifact_that_holds_machine_code_is_refused_before_any_work(monkeypatch):
    monkeypatch.delenv("TSEXP_OWN_CODE", raising=False)
    monkeypatch.setattr(runtimes, "check", lambda *_: None)  # whether there is a compiler here
    artifact = SimpleNamespace(manifest={"mode": "none", "runtime": "inductor", "device": "cpu"})
    row = SimpleNamespace(params={})
    why = r"A cannot run here: it holds code, and was not run; .*TSEXP_OWN_CODE=inductor"
    with pytest.raises(ConfigError, match=why):
        finished.check_runs_here(row, artifact, "A")
    monkeypatch.setenv("TSEXP_OWN_CODE", "inductor")
    finished.check_runs_here(row, artifact, "A")
