"""What a run, a sweep and a logged model are in the store."""

import csv
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from scipy.special import softmax

from conftest import TINY, compose
from tsexp import runtimes, tracking, training
from tsexp.cache import Cache
from tsexp.energy import Record
from tsexp.report import Row
from tsexp.report.summary import sweep_metrics
from tsexp.runtimes import Artifact
from tsexp.sweeps import jobs
from tsexp.tracking import model, pictures, run, served, spool
from tsexp.training import Fitted

HISTORY = [
    {"epoch": i, "train_loss": 2.0 - i, "val_loss": 2.5 - i, "val_accuracy": 0.1 * i, "lr": 0.1}
    for i in range(3)
]
TAKES = "this model takes numbers of shape (batch, 1, 24)"
RAGGED = "this model takes numbers of shape (batch, 2, time, at least 2); a shorter series ends in NaN"


@pytest.fixture(scope="module")
def store(tmp_path_factory, italy, tiny_model, empty_store):
    """A store with two runs: what a network leaves, and what an estimator does, by name."""
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    cfg = compose(
        *TINY,
        "data=italy_power_demand",
        "prune.ratio=0.5",
        f"paths.cache={folder}/cache",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        f"paths.spool={folder}/spool",
    )
    cache = Cache(folder / "cache")
    fits = {
        name: Fitted(cache.stage(name, 1, {}, lambda to, h=history: training.save(tiny_model(italy), h, to)))
        for name, history in (("dense", HISTORY), ("prune", []), ("finetune", HISTORY[:2]))
    }
    artifact = runtimes.deploy(fits["dense"], cfg.quant, cfg.runtime, italy, cache)
    bare = Artifact(
        artifact.entry, {k: v for k, v in artifact.manifest.items() if k not in ("channels", "macs")}
    )
    note = folder / "kept.json"
    note.write_text("{}")
    return SimpleNamespace(
        folder=folder,
        cfg=cfg,
        artifact=artifact,
        client=tracking.store(cfg.tracking),
        network=_run(cfg, italy, fits, [note], artifact, {"size/macs": 10.0}),
        estimator=_run(cfg, italy, {"dense": fits["prune"]}, [], bare, {}),
    )


def _run(cfg, dataset, fits, files, artifact, metrics, name="a job"):
    """Log a made-up record of a real artifact and return the run's id."""
    scores = runtimes.load(artifact.folder)(dataset.x_test)
    drop = {f"vs_dense/accuracy_drop_{end}": 0.0 for end in ("pt", "lo", "hi")}
    saving = {f"vs_dense/energy_saving_{end}": 30.0 for end in ("pct", "lo", "hi")}
    speedup = {f"vs_dense/speedup{end}": 1.5 for end in ("", "_lo", "_hi")}
    record = Record(
        metrics={"test/accuracy": 0.7, "test/control_accuracy": 0.7} | drop | saving | speedup | metrics,
        energy_source="estimated:cpu_time",
        invalid_reasons=(),
        warnings=(),
        raw={"scope": "one process"},
        scores=scores,
        reference_scores=scores,
        labels=dataset.y_test,
        manifest=artifact.manifest,
        hardware={"cpu": "a CPU"},
    )
    with tracking.tracked(cfg, "", name, f"signature of {name}, {len(fits)}", None) as run:
        run.log(dataset, fits, files, artifact, record)
    return run.run_id


@pytest.fixture
def load(store):
    """Load a logged model by its address; its code is not left in the path."""
    import mlflow

    before = list(sys.path)
    mlflow.set_tracking_uri(store.cfg.tracking.uri)
    yield mlflow.pyfunc.load_model
    sys.path[:] = before


def names(store, run_id):
    # Of the run alone: the files of its logged model are not among them.
    return {a.path for a in store.client.list_artifacts(run_id)}


def logged(store, run_id):
    (made,) = store.client.get_run(run_id).outputs.model_outputs
    return store.client.get_logged_model(made.model_id)


def test_a_run_shows_its_curves_its_files_and_its_model(store):
    assert names(store, store.network) == {
        *("config.yaml", "windows.json", "hardware.json", "manifest.json", "predictions.csv", "kept.json"),
        *("training.png", "confusion.png", "model"),
    }
    metrics = store.client.get_run(store.network).data.metrics
    assert metrics["dense/train_loss"] == 0.0
    assert metrics["finetune/val_accuracy"] == 0.1
    assert not any(m.startswith("prune/train") for m in metrics)
    first = store.client.get_metric_history(store.network, "dense/lr")
    assert [m.step for m in first] == [0, 1, 2]


def test_a_model_without_curves_counted_products_and_prunable_channels_is_logged_as_well(store):
    assert "training.png" not in names(store, store.estimator)
    assert {"confusion.png", "predictions.csv", "model"} <= names(store, store.estimator)
    assert "size/macs" not in store.client.get_run(store.estimator).data.metrics
    assert store.client.get_run(store.estimator).info.status == "FINISHED"


def test_both_splits_are_inputs_of_the_run_and_the_model_was_scored_on_one(store, italy):
    splits = {i.tags[0].value: i.dataset for i in store.client.get_run(store.network).inputs.dataset_inputs}
    assert splits.keys() == {"train", "test"}
    assert splits["test"].name == "ItalyPowerDemand_TEST"
    assert italy.checksum.startswith(splits["test"].digest)
    assert italy.files[0] in splits["train"].source
    assert '"series": 1029' in splits["test"].profile
    assert "[-1, 1, 24]" in splits["test"].schema.replace('\\"', '"')
    scored = {m.key: m.dataset_name for m in logged(store, store.network).metrics}
    assert scored["test/accuracy"] == "ItalyPowerDemand_TEST"
    assert scored["vs_dense/speedup"] is None


def test_a_logged_model_is_named_by_what_it_is_and_its_run_has_the_same_files(store):
    one = logged(store, store.network)
    assert (one.name, one.status) == ("ItalyPowerDemand-t3-l1-local-50pct-fp32-eager", "READY")
    assert one.params["prune.ratio"] == "0.5"
    assert f"runs:/{store.network}/model" in one.tags["mlflow.note.content"]
    there = Path(store.client.get_run(store.network).info.artifact_uri.removeprefix("file://")) / "model"
    here = Path(one.artifact_location.removeprefix("file://"))
    files = [f.relative_to(here) for f in here.rglob("*") if f.is_file()]
    assert Path("MLmodel") in files
    assert Path("code/tsexp.zip") in files
    assert len(files) <= 10, files  # a server takes each by a request, twice
    assert all(os.path.samefile(here / f, there / f) for f in files)  # kept once, not twice


def test_the_code_of_a_logged_model_is_this_package_and_runs_from_its_archive(store):
    """Of it, what numba compiles: older ones refuse to keep what lies in no file."""
    here = Path(logged(store, store.network).artifact_location.removeprefix("file://"))
    archive = here / "code" / "tsexp.zip"
    package = Path(tracking.__file__).parents[1]
    with zipfile.ZipFile(archive) as packed:
        there = {name: packed.read(name) for name in packed.namelist()}
        assert {made.date_time[0] for made in packed.infolist()} == {1980}  # whatever the date of a file
    assert there == {str(f.relative_to(package.parent)): f.read_bytes() for f in package.rglob("*.py")}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np\n"
        "from tsexp.models.estimators import trees\n"
        "assert trees.__file__.startswith(sys.argv[1])\n"
        "nodes = np.array([1, -1, -1]), np.array([2, -1, -1]), np.zeros(3, int), np.array([0.5, 0, 0])\n"
        "one = trees.Trees(np.array([3]), *nodes, np.array([[0.5, 0.5], [1, 0], [0, 1]]))\n"
        "print(one(np.array([[0.0], [1.0]], np.float32)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[[1.0, 0.0], [0.0, 1.0]]\n", done.stderr


def test_where_files_cannot_be_linked_they_are_copied(store, italy, load, monkeypatch):
    def fail(*_):
        raise OSError

    monkeypatch.setattr(os, "link", fail)
    run_id = _run(store.cfg, italy, {}, [], store.artifact, {})
    assert len(load(f"runs:/{run_id}/model").predict(italy.x_test[:2])) == 2


@pytest.mark.parametrize("address", ["runs:/{run}/model", "runs:/{run}/{name}", "models:/{model}"])
def test_a_logged_model_answers_classes_and_probabilities_by_any_address(store, italy, load, address):
    one = logged(store, store.network)
    found = load(address.format(run=store.network, name=one.name, model=one.model_id))
    scores = runtimes.load(store.artifact.folder)(italy.x_test[:20])
    expected = softmax(scores.astype(np.float64), axis=1)
    for series in (italy.x_test[:20], italy.x_test[:20].astype(np.float64), italy.x_test[:20].tolist()):
        answer = found.predict(series)
        assert list(answer.columns) == ["class", "p_1", "p_2"]
        assert answer["class"].tolist() == [italy.classes[i] for i in scores.argmax(1)]
        assert answer[["p_1", "p_2"]].to_numpy() == pytest.approx(expected)
    raw = found.predict(italy.x_test[:20], params={"scores": True})
    assert raw.dtype == np.float32
    assert np.array_equal(raw, scores)
    assert np.array_equal(found.predict([[list(range(24))]], params={"scores": True}).shape, (1, 2))


def test_the_example_of_the_documentation_runs(store, italy, load):
    page = (Path(__file__).parents[1] / "docs" / "mlflow.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.S)
    said = {"series": italy.x_test[:3]}
    exec(example.replace("RUN_ID", store.network), said)
    assert list(said["answer"].columns) == ["class", "p_1", "p_2"]
    assert said["scores"].shape == (3, 2)


def test_every_artifact_of_a_run_is_explained(store):
    page = (Path(__file__).parents[1] / "docs" / "mlflow.md").read_text()
    assert not [name for name in names(store, store.network) if f"`{name}`" not in page]


def test_a_logged_model_refuses_what_it_cannot_answer_in_one_line(store, load):
    found = load(f"runs:/{store.network}/model")
    with pytest.raises(MlflowException) as error:
        found.predict(np.full((2, 1, 24), np.nan))
    assert str(error.value) == f"series 0 has NaN where a value is needed; {TAKES}"
    assert found.metadata.metadata["input"] in TAKES


def test_a_server_answers_the_line_alone_with_status_400(store, load, italy):
    found = load(f"runs:/{store.network}/model")
    with pytest.raises(MlflowException) as error:
        found.predict(np.zeros((2, 1, 3)))
    error.value.message = f"Failed to predict data\n{italy.x_test}"  # as the server has it
    answer = json.loads(error.value.serialize_as_json())
    assert answer["message"] == f"shape (2, 1, 3) does not fit; {TAKES}"
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert error.value.get_http_status_code() == 400


def test_a_model_is_called_by_one_thread_at_a_time(store, load):
    found = load(f"runs:/{store.network}/model").unwrap_python_model()
    inside, seen = [], []

    def slow(series):
        inside.append(1)
        seen.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return np.zeros((len(series), 2), np.float32)

    found.predictor = slow
    threads = [threading.Thread(target=found.predict, args=(None, np.zeros((1, 1, 24)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]


def test_predictions_are_as_its_task_has_them(store):
    with Path(store.client.download_artifacts(store.network, "predictions.csv")).open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 1029
    assert {"label", "predicted", "dense_predicted", "p_1", "dense_p_2"} == rows[0].keys() - {
        "p_2",
        "dense_p_1",
    }


GOOD = np.arange(48.0).reshape(2, 1, 24)


@pytest.mark.parametrize(
    "series",
    [GOOD, GOOD.astype(np.int16), GOOD.tolist(), torch.from_numpy(GOOD), np.asfortranarray(GOOD), GOOD > 3],
)
def test_any_kind_of_number_is_taken(series):
    taken = served.checked(series, 1, 24, ragged=False)
    assert taken.dtype == np.float32
    assert taken.flags["C_CONTIGUOUS"]
    assert np.array_equal(taken, np.array(series, np.float32))


@pytest.mark.parametrize("many", [1, 256, 600])
def test_many_series_are_answered_some_at_a_time(many):
    """Else memory grows with what is asked; 20,000 series of 324 steps took 18 GB."""
    sizes = []
    model = served.ArtifactModel()
    model.classes, model.channels, model.length, model.ragged = ["a", "b"], 1, 24, False
    model.alone = threading.Lock()

    def predictor(series):
        sizes.append(len(series))
        return series[:, 0, :2]

    model.predictor = predictor
    series = np.random.default_rng(0).normal(size=(many, 1, 24)).astype(np.float32)
    assert (model.predict(None, series, {"scores": True}) == series[:, 0, :2]).all()
    assert max(sizes) <= served.AT_ONCE
    assert sum(sizes) == many


@pytest.mark.parametrize(
    ("series", "what"),
    [
        (GOOD[:0], "an empty batch, of shape (0, 1, 24)"),
        ([], "an empty batch, of shape (0,)"),
        (GOOD[0], "shape (1, 24) has 2 axes instead of 3 (series[:, None] adds the axis of the one channel)"),
        (GOOD[None], "shape (1, 2, 1, 24) has 4 axes instead of 3"),
        (GOOD[:, :, :23], "shape (2, 1, 23) does not fit"),
        (GOOD.reshape(1, 2, 24), "shape (1, 2, 24) does not fit"),
        (np.where(GOOD == 30, np.nan, GOOD), "series 1 has NaN where a value is needed"),
        (
            np.where(GOOD == 30, np.inf, GOOD),
            "series 1 has infinite values, or some that float32 cannot hold",
        ),
        (np.where(GOOD == 3, 1e300, GOOD), "series 0 has infinite values, or some that float32 cannot hold"),
        ([[[None] * 24]], "series 0 has NaN where a value is needed"),
        ([[1, 2], [3]], "not an array: lists of unequal length, or values that are no numbers"),
        ({"series": GOOD}, "not an array: lists of unequal length, or values that are no numbers"),
        (None, "shape () has 0 axes instead of 3"),
        (
            pd.DataFrame(GOOD[:, 0]),
            'a table, which has no axis of channels (a server takes {"inputs": [[[…]]]})',
        ),
        (GOOD.astype(str), "values of type <U32"),
        (GOOD + 1j, "values of type complex128"),
        (
            np.ma.masked_array(GOOD, mask=GOOD == 30),
            "masked values; fill them (series.filled(numpy.nan) where they are gaps)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(series, what):
    with pytest.raises(MlflowException) as error:
        served.checked(series, 1, 24, ragged=False)
    assert str(error.value) == f"{what}; {TAKES}"


def test_series_of_unequal_length_end_in_nan():
    series = np.arange(60.0).reshape(2, 2, 15)
    series[1, :, 9:] = np.nan
    assert np.array_equal(
        served.checked(series, 2, 20, ragged=True), series.astype(np.float32), equal_nan=True
    )
    for place, value, what in (
        ((1, 0, 4), np.nan, "series 1 has NaN before its end, or not in all channels"),
        ((1, 0, 9), 1.0, "series 1 has NaN before its end, or not in all channels"),
        ((0, 1, 14), np.nan, "series 0 has NaN before its end, or not in all channels"),
        ((1,), np.nan, "series 1 has no values"),
        ((1, slice(None), slice(1, None)), np.nan, "series 1 has one value"),
    ):
        wrong = series.copy()
        wrong[place] = value
        with pytest.raises(MlflowException) as error:
            served.checked(wrong, 2, 20, ragged=True)
        assert str(error.value) == f"{what}; {RAGGED}"
    with pytest.raises(MlflowException, match=r"shape \(2, 2, 1\) does not fit"):
        served.checked(series[:, :, :1], 2, 20, ragged=True)


@pytest.mark.parametrize(
    ("overrides", "runtime", "steps", "name"),
    [
        ([], "eager", (), "ACSF1-t3-fp32-eager"),
        (
            ["prune.ratio=0.125", "quant.mode=static"],
            "onnxruntime",
            ("dense", "prune", "finetune"),
            "ACSF1-t3-l1-local-12_5pct-int8static-onnxruntime",
        ),
        (["quant.mode=weight_only", "quant.weight_bits=4"], "openvino", (), "ACSF1-t3-int4weights-openvino"),
        (
            ["data.name='a.b/c: %'"],
            "my.runtime:",
            ("dense", "low_rank"),
            "a_b_c_-t3-low_rank-fp32-my_runtime",
        ),
    ],
)
def test_names_of_models_say_what_they_are_in_letters_that_mlflow_allows(overrides, runtime, steps, name):
    from mlflow.utils.validation import _validate_logged_model_name

    made = model.name_of(compose(*overrides), runtime, steps)
    _validate_logged_model_name(made)
    assert made == name


def test_a_single_run_is_named_by_what_is_varied_most():
    cfg = compose("prune.ratio=0.5", "quant.mode=dynamic", "runtime=onnxruntime")
    assert jobs._name(cfg) == "l1-local-0.5 dynamic onnxruntime t3 ACSF1 seed 0"
    assert jobs._name(compose()).startswith("unpruned none eager")


def test_each_quantity_has_an_axis_of_its_own(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: drawn.append(self))
    assert pictures.curves(tmp_path / "x.png", {"dense": HISTORY, "prune": [], "finetune": HISTORY})
    axes = drawn[0].axes
    assert [a.get_ylabel() for a in axes[::2]] == ["loss", "accuracy, validation", "learning rate"]
    assert [a.get_title() for a in axes[:2]] == ["dense", "finetune"]
    assert [len(a.lines) for a in axes] == [2, 2, 1, 1, 1, 1]
    assert axes[2].lines[0].get_ydata().tolist() == pytest.approx([0, 0.1, 0.2])
    assert axes[2].lines[0].get_color() == axes[0].lines[1].get_color()  # both of validation series


def test_names_of_classes_are_no_formulas(tmp_path):
    pictures.confusion(tmp_path / "x.png", [0, 1, 2], {"said": [0, 2, 1]}, ["$", "$$", "a$x_$"])
    assert (tmp_path / "x.png").stat().st_size


def test_without_a_history_no_curves_are_drawn(tmp_path):
    assert not pictures.curves(tmp_path / "x.png", {"dense": []})
    assert not list(tmp_path.iterdir())


def row(saving, low, high, source="estimated:cpu_time", valid="true", **metrics):
    """A job's row: its saving, and the interval of its drop."""
    values = {"vs_dense/energy_saving_pct": saving, "vs_dense/size_ratio": 2.0}
    values |= {"vs_dense/accuracy_drop_lo": low, "vs_dense/accuracy_drop_hi": high}
    tags = {"tsexp.energy_source": source, "tsexp.valid": valid}
    return Row("id", "a job", "FINISHED", {}, values | metrics, tags)


def test_the_parent_of_a_sweep_has_the_best_saving_at_kept_accuracy():
    rows = [
        row(90.0, -1.0, 1.5),  # undecided
        row(80.0, -1.0, 0.5, valid="false"),
        row(30.0, -2.0, 1.0),
        row(20.0, -2.0, 0.0),
        row(99.0, 0.0, 0.0, **{"vs_dense/size_ratio": 1.0}),  # the reference itself, in noise
    ]
    counts = {"sweep/jobs": 5, "sweep/kept": 3, "sweep/failed": 2, "sweep/skipped": 1}
    best = {"sweep/best_saving_pct": 30.0}
    assert sweep_metrics(rows, failed=2, skipped=1) == (counts | best, "estimated:cpu_time")
    metrics, source = sweep_metrics([*rows, row(1.0, 5.0, 6.0, source="zeus:rapl")], 0, 0)
    assert source == ""
    assert "sweep/best_saving_pct" not in metrics
    assert sweep_metrics([], 1, 0)[0] == {
        "sweep/jobs": 0,
        "sweep/kept": 0,
        "sweep/failed": 1,
        "sweep/skipped": 0,
    }


def test_a_sweep_is_closed_with_its_numbers_and_its_source_of_energy(store, tmp_path):
    config = store.cfg.tracking
    parent = tracking.sweep_run(config, "prune.ratio=0,0.5", "of the command")
    tracking.store(config).set_tag(parent, "tsexp.error", "killed: its process is gone")
    assert tracking.sweep_run(config, "another name", "of the command") == parent
    assert "tsexp.error" not in tracking.store(config).get_run(parent).data.tags
    tracking.close_sweep(config, parent, "FINISHED", "note", [], {"sweep/jobs": 2.0}, "zeus:rapl")
    run = store.client.get_run(parent)
    assert run.data.metrics == {"sweep/jobs": 2.0}
    assert run.data.tags["tsexp.energy_source"] == "zeus:rapl"
    assert run.info.status == "FINISHED"


def test_of_a_sweep_of_many_jobs_the_note_has_whole_lines_and_says_how_many_are_not_in_it(store, caplog):
    config = store.cfg.tracking
    parent = tracking.sweep_run(config, "many" * 100, "of many jobs")
    jobs = [f"- [job {i}](#/experiments/1/runs/{i:032}): finished" for i in range(500)]
    tracking.close_sweep(config, parent, "FINISHED", "\n".join(["`command`", "", *jobs]), [])
    run = store.client.get_run(parent)
    *kept, rest = run.data.tags["mlflow.note.content"].split("\n")
    assert kept[2:] == jobs[: len(kept) - 2]
    assert rest == f"- and {502 - len(kept)} more: below this run"
    assert 4700 < len(run.data.tags["mlflow.note.content"]) <= 4900
    assert len(run.info.run_name) == 250
    assert not caplog.records  # MLflow has cut nothing


def test_a_logged_model_needs_the_libraries_of_its_artifact_and_no_others(monkeypatch):
    lines = ["torch<3,>=2", "onnxruntime<2; extra == 'onnxruntime'", "openvino<3; extra == 'openvino'"]
    monkeypatch.setattr(model, "REQUIREMENTS", lines)
    assert tracking.requirements({"torch": "2.13"}) == ["torch<3,>=2"]
    assert tracking.requirements({"torch": "2.13", "onnxruntime": "1.32"}) == [
        "torch<3,>=2",
        "onnxruntime==1.32",
    ]


def test_a_run_that_cannot_log_its_params_does_not_stay_running(store, monkeypatch):
    from tsexp.tracking import run

    monkeypatch.setattr(run, "flat", lambda cfg: {}["gone"])
    cfg = replace(store.cfg, tracking=replace(store.cfg.tracking, experiment="params"))
    with pytest.raises(KeyError), tracking.tracked(cfg, "", "a job", "signature", None):
        pass
    experiment = store.client.get_experiment_by_name("params").experiment_id
    (left,) = store.client.search_runs([experiment])
    assert left.info.status == "FAILED"


@pytest.mark.slow
def test_a_fresh_store_is_made_without_a_word(tmp_path):
    code = (
        "import sys\n"
        "from tsexp import tracking\n"
        "from tsexp.config import TrackingConfig\n"
        "tracking.store(TrackingConfig(sys.argv[1], 'tsexp'))"
    )
    uri = f"sqlite:///{tmp_path}/a folder/mlflow.db"
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    assert (tmp_path / "a folder" / "mlflow.db").exists()


@pytest.mark.parametrize(("failures", "raised"), [(2, False), (9, True)])
def test_a_dataset_that_another_job_logs_at_the_same_time_fails_nothing(italy, failures, raised):
    calls = []

    class Client:
        def log_inputs(self, run_id, inputs):
            calls.append(run_id)
            if len(calls) <= failures:
                raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name")

    inputs = [spool.input_of(entity) for entity in run.inputs(italy)]
    if raised:
        with pytest.raises(MlflowException):
            spool._log_inputs(Client(), "a run", inputs)
    else:
        spool._log_inputs(Client(), "a run", inputs)
        assert calls == ["a run"] * 3
