"""The meter for anything: every kind of subject, what is printed and stored, what is refused."""

import contextlib
import io
import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import Ridge, RidgeClassifier

import tsexp
from conftest import compose
from rapl_tree import add_zone, planted
from report_data import Store
from tsexp import measure, measure_energy, merge, runtimes
from tsexp.cache import Cache
from tsexp.config import ConfigError
from tsexp.energy import subjects
from tsexp.marks import ESTIMATED
from tsexp.report import freezing
from tsexp.report.store import connect

QUICK = {
    "repeats": 4,
    "processes": 4,
    "window_s": 0.02,
    "idle_s": 0.02,
    "latency_calls": 20,
    "progress": False,
}
STEPS = 24
rng = np.random.default_rng(0)
X = rng.normal(size=(30, STEPS)).astype(np.float32)
Y = np.where(X[:, 0] > 0, "up", "down")
WEIGHT = rng.normal(size=(STEPS, 2))


def onnx_file(path, dtype=np.float32, batch="N", weight=WEIGHT, output="who knows"):
    """A linear classifier with odd names."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["in put", "w"], [output])],
        "g",
        [helper.make_tensor_value_info("in put", kind, [batch, STEPS])],
        [helper.make_tensor_value_info(output, kind, [batch, 2])],
        [onnx.numpy_helper.from_array(weight.astype(dtype), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def forest():
    return RandomForestClassifier(5, n_jobs=2, random_state=0).fit(X, Y)


def check(record, energy=True):
    assert record.valid, record.invalid_reasons
    assert record.metrics["energy/per_inference_j"] > 0
    assert record.metrics["latency/p50_ms"] > 0
    assert np.isfinite(list(record.metrics.values())).all()
    windows = [w for w in record.raw["windows"] if w["subject"] != "idle"]
    assert {w["subject"] for w in windows} == {"artifact", "reference"}
    assert len(windows) == 2 * QUICK["repeats"]
    assert record.raw["processes"] == QUICK["processes"]


def test_a_module_in_float64_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"in float64.*give module\.float\(\)"):
        measure_energy(torch.nn.Linear(3, 2).double(), np.zeros((4, 3)), **QUICK)


def test_an_estimator_with_labels_beside_a_torch_module(forest):
    net = torch.nn.Sequential(torch.nn.Linear(STEPS, 8), torch.nn.Dropout(0.9), torch.nn.Linear(8, 2))
    net[1].eval()
    net.train(mode=True)
    net[0].eval()
    record = measure_energy(net, X, forest, Y, batch_size=4, **QUICK)
    check(record)
    np.testing.assert_allclose(record.reference_scores, forest.predict_proba(X), atol=1e-6)
    with torch.no_grad():  # no dropout
        expected = net[2](net[0](torch.from_numpy(X)))
    np.testing.assert_allclose(record.scores, expected, atol=1e-5)
    assert [m.training for m in net] == [False, True, True]  # left as it was
    m = record.metrics
    assert m["test/control_accuracy"] == forest.score(X, Y)
    assert m["test/accuracy"] == (np.array(["down", "up"])[record.scores.argmax(1)] == Y).mean()
    assert m["vs_dense/accuracy_drop_pt"] == pytest.approx(
        100 * (m["test/control_accuracy"] - m["test/accuracy"])
    )
    assert m["size/parameters"] == sum(p.numel() for p in net.parameters())
    assert m["size/macs"] == STEPS * 8 + 8 * 2
    assert not [k for k in m if k.startswith(("null/", "cost/load", "memory/", "test/nll", "size/bytes"))]


def test_few_series_may_be_answered_by_what_their_batch_holds():
    """The first fills the last batch, too: two batches of two in three series."""
    few = X[:3] * np.array([[1.0], [5.0], [20.0]], X.dtype)
    check(measure_energy(lambda batch: batch @ WEIGHT / np.abs(batch).max(), few, batch_size=2, **QUICK))


def test_answers_in_columns_are_those_of_the_series():
    """In memory they are as Fortran has them; safetensors writes what lies there."""
    record = measure_energy(lambda batch: np.asfortranarray(batch @ WEIGHT), X, batch_size=4, **QUICK)
    check(record)
    np.testing.assert_allclose(record.scores, X @ WEIGHT, rtol=1e-5)


def test_without_reference_and_labels_there_is_the_noise_and_no_accuracy():
    record = measure_energy(lambda batch: batch @ WEIGHT, X, **QUICK)
    check(record)
    m = record.metrics
    assert m["null/energy_saving_lo"] <= m["null/energy_saving_pct"] <= m["null/energy_saving_hi"]
    assert not [k for k in m if k.startswith(("vs_dense/", "test/", "size/"))]
    text = str(record)
    assert "accuracy" not in text
    assert "A against itself, which shows the noise:" in text
    assert max(map(len, text.splitlines())) <= 80
    if record.energy_source.startswith(ESTIMATED):
        assert "energy per series†" in text


def test_without_reference_warnings_name_the_metrics_that_there_are(monkeypatch):
    said = "interference: other processes used 1.0 cores: trust {0}cpu_speedup, not {0}speedup"
    monkeypatch.setattr("tsexp.energy.validity.judge", lambda raw: ((), (said.format("vs_dense/"),)))
    record = measure_energy(lambda batch: batch @ WEIGHT, X, **QUICK)
    assert said.format("null/") in record.warnings
    assert {"null/cpu_speedup", "null/speedup"} <= set(record.metrics)


def test_twice_the_work_is_seen_as_half_saved():
    """CPU-time ratio, interval included: what another load on the machine disturbs least."""

    def once(batch, times=1):
        for _ in range(60 * times):
            np.sort(batch * 1.5, axis=1)
        return batch

    some = {**QUICK, "processes": 4, "repeats": 24}
    record = measure_energy(once, X, lambda batch: once(batch, 2), **some)
    assert record.valid
    m = record.metrics
    assert 40 < 100 * (1 - 1 / m["vs_dense/cpu_speedup"]) < 60
    assert m["vs_dense/cpu_speedup_lo"] > 1
    if record.energy_source.startswith(ESTIMATED):
        assert m["vs_dense/energy_saving_lo"] > 0
        assert "less energy† than B" in str(record)


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (
            RidgeClassifier().fit(X, Y),
            lambda e: np.stack([-e.decision_function(X), e.decision_function(X)], 1),
        ),
        (Ridge().fit(X, X[:, 0]), lambda e: e.predict(X)[:, None]),
        (RidgeClassifier().fit(X, Y).predict, None),
    ],
    ids=["decision function", "regressor", "method that answers words"],
)
def test_what_estimators_are_asked(subject, expected):
    if expected is None:
        with pytest.raises(ConfigError, match=r"predict does not answer X.*not an array of numbers"):
            measure_energy(subject, X, **QUICK)
        return
    record = measure_energy(subject, X, **QUICK)
    check(record)
    np.testing.assert_allclose(record.scores, expected(subject), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_objects_that_used_threads_before_are_measured_after_a_script_without_a_guard(tmp_path):
    """GNU OpenMP of Numba and PyTorch, with two threads each; a counter whose reader starts helpers."""
    root = tmp_path / "intel-rapl"
    package = add_zone(root / "intel-rapl:0", "package-0", 1e6)
    script = tmp_path / "script.py"
    script.write_text(
        planted(root, {package: 50.0})
        + textwrap.dedent("""
        print("begins", flush=True)
        import numpy as np, torch
        from aeon.classification.convolution_based import MiniRocketClassifier
        from tsexp import measure_energy
        torch.set_num_threads(2)
        many = torch.randn(300_000)
        shares = lambda batch: np.full((len(batch), 2), (many + 1).exp().sum().item())
        X = np.random.default_rng(0).normal(size=(20, 1, 24))
        y = np.arange(20) % 2
        rocket = MiniRocketClassifier(n_kernels=84, n_jobs=2, random_state=0).fit(X, y)
        rocket.predict(X)
        print("layer", __import__("numba").threading_layer())
        record = measure_energy(
            rocket, X, shares, y, threads=2, repeats=4, processes=4, window_s=0.02, idle_s=0.5,
            latency_calls=20, progress=False, require="measured",
        )
        print(record.energy_source, record.valid, *record.invalid_reasons)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    begins, layer, said = done.stdout.splitlines()
    assert (begins, said) == ("begins", "zeus:rapl True")  # not run again by the counter's helper
    if layer != "layer omp":
        pytest.skip(f"Numba had nothing to be afraid of: {layer}")


def test_a_subject_that_a_fork_breaks_is_told_soon(monkeypatch):
    """A pool of threads does not survive a fork."""
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(measure, "PATIENCE", (1.0, 1.0))
    with ThreadPoolExecutor(1) as pool:
        start = time.monotonic()
        with pytest.raises(ConfigError, match=r"does not answer in a fork.*give files instead"):
            measure_energy(lambda batch: pool.submit(np.copy, batch).result(), X, **QUICK)
        assert time.monotonic() - start < 20
        with pytest.raises(ConfigError, match=r"^callable \(reference\) does not answer in a fork"):
            measure_energy(
                np.copy.__call__,
                X,
                lambda batch: pool.submit(np.copy, batch).result(),
                name="callable",
                **QUICK,
            )


def test_a_meter_that_lacks_what_one_needs_is_refused_before_anything_is_asked(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_a_meter.py").write_text("class Mine:\n    source = 'mains:plug'\n")
    monkeypatch.setenv("TSEXP_OWN_CODE", "half_a_meter")
    asked = []
    with pytest.raises(ConfigError, match="cannot be used as a meter"):
        measure_energy(
            lambda batch: asked.append(batch) or batch, X, **QUICK | {"meter": "half_a_meter:Mine"}
        )
    assert not asked


@pytest.mark.parametrize("kind", ["random", "counting"])
def test_answers_that_change_make_it_invalid(kind):
    calls = [0]

    def unsteady(batch):
        calls[0] += 1
        return batch + (np.random.random() if kind == "random" else calls[0])

    record = measure_energy(unsteady, X, **QUICK)
    assert not record.valid
    assert any("answers" in why for why in record.invalid_reasons)
    assert "nothing can be said of energy: the measurement is invalid" in str(record)


def test_an_estimate_of_a_subject_that_works_in_child_processes_is_invalid():
    burn = [sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.02: pass"]

    def elsewhere(batch):
        subprocess.run(burn, check=True)
        return batch

    record = measure_energy(elsewhere, X, lambda batch: batch @ WEIGHT, **QUICK)
    if record.energy_source == "estimated:cpu_time":
        assert any("processes of its own" in why for why in record.invalid_reasons)


def quantized(kind):
    net = torch.nn.Sequential(torch.nn.Linear(STEPS, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)).eval()
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(net, Int8WeightOnlyConfig(set_inductor_config=False))
        return net
    if kind == "recurrent":
        net = torch.nn.Sequential(torch.nn.LSTM(STEPS, 8))
    return torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear, torch.nn.LSTM})


@pytest.mark.parametrize("kind", ["packed", "recurrent", "torchao"])
def test_quantized_modules_have_a_digest_of_their_weights(kind):
    first, second = (subjects.Module(quantized(kind)) for _ in range(2))
    digest = first.weights_digest()
    assert digest == first.weights_digest() == first.copied().weights_digest()
    assert digest != second.weights_digest()


def test_a_quantized_module_is_measured():
    record = measure_energy(quantized("packed"), X, **QUICK)
    check(record)
    assert "size/parameters" not in record.metrics  # packed ones are not counted


@pytest.fixture(scope="module")
def artifact(italy, tiny_model, tmp_path_factory):
    """A folder of this project."""
    model = tiny_model(italy)
    cfg = compose()
    folder = tmp_path_factory.mktemp("artifact")

    class Fitted:
        family, signature = "transformer", "x"

        def load(self):
            return model

    return runtimes.deploy(Fitted(), cfg.quant, cfg.runtime, italy, Cache(folder)).folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    import openvino as ov

    folder = tmp_path_factory.mktemp("files")
    plain = onnx_file(folder / "plain.onnx")
    onnx_file(folder / "double.onnx", np.float64, batch=4)
    ov.save_model(ov.convert_model(plain), folder / "graph.xml", compress_to_fp16=False)
    (folder / "text.onnx").write_text("no graph")
    (folder / "text.xml").write_text("<no/>")
    (folder / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/never'\ntR.")
    (folder / "empty").mkdir()
    onnx_file(folder / "nan.onnx", weight=WEIGHT * np.nan)
    np.savez(folder / "data.npz", X=X, y=Y)
    np.savez(folder / "other.npz", series=X)
    np.savez(folder / "objects.npz", X=np.array([None, "a"], object))
    return folder


def test_files_of_all_kinds(files, artifact, italy):
    """ONNX in float64 and of a fixed batch, OpenVINO, a folder of this project, and one beside an object."""
    double = measure_energy(files / "double.onnx", X, files / "graph.xml", Y, batch_size=4, **QUICK)
    check(double)
    np.testing.assert_allclose(double.scores, X @ WEIGHT, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(double.reference_scores, X @ WEIGHT, rtol=1e-4, atol=1e-4)
    m = double.metrics
    assert m["size/bytes"] == (files / "double.onnx").stat().st_size
    assert m["size/parameters"] == WEIGHT.size
    graph = (files / "graph.xml").stat().st_size + (files / "graph.bin").stat().st_size
    assert m["vs_dense/size_ratio"] == pytest.approx(graph / m["size/bytes"])
    assert {"cost/load_ms", "memory/peak_mb"} <= set(m)
    assert m["vs_dense/accuracy_drop_pt"] == 0
    labels = [italy.classes[i] for i in italy.y_test[:30]]
    folder = measure_energy(str(artifact), italy.x_test[:30], None, labels, **QUICK)
    check(folder)
    expected = runtimes.load(artifact)(italy.x_test[:30])
    np.testing.assert_allclose(folder.scores, expected, rtol=1e-3, atol=1e-4)
    assert folder.metrics["test/accuracy"] == (expected.argmax(1) == italy.y_test[:30]).mean()
    assert folder.metrics["size/macs"] > 0
    mixed = measure_energy(lambda batch: batch @ WEIGHT, X, files / "plain.onnx", **QUICK)
    check(mixed)
    assert mixed.metrics["vs_dense/speedup"] > 0


def test_the_peak_memory_is_that_of_the_subject_alone(files, tmp_path):
    """A graph of 96 MB beside one of a few hundred bytes, either way round."""
    inner = np.zeros((STEPS, 1_000_000), np.float32)
    graph = onnx.load(onnx_file(tmp_path / "large.onnx"))
    (node,) = graph.graph.node
    node.input[1], node.output[0] = "wide", "inside"
    graph.graph.node.append(helper.make_node("MatMul", ["inside", "back"], [graph.graph.output[0].name]))
    for name, weight in (("wide", inner), ("back", inner[:2].T.copy())):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(graph, tmp_path / "large.onnx")
    both = files / "plain.onnx", tmp_path / "large.onnx"
    small, large = (
        measure_energy(one, X, other, **QUICK).metrics["memory/peak_mb"] for one, other in (both, both[::-1])
    )
    assert 0 < small < 60
    assert large > 96


def test_exported_files_say_which_classes_their_columns_are(files, tmp_path):
    """As `runtimes.annotate` writes them; without, labels 0 and 1 are taken for columns."""
    import openvino as ov

    from tsexp.energy import subjects
    from tsexp.energy.labels import by_class
    from tsexp.measure import _Side
    from tsexp.runtimes.openvino import core

    columns = ["1", "0"]
    model = onnx.load(files / "plain.onnx")
    onnx.helper.set_model_props(model, {"classes": json.dumps(columns)})
    onnx.save(model, tmp_path / "told.onnx")
    graph = core().read_model(files / "graph.xml")
    graph.set_rt_info(json.dumps(columns), ["tsexp", "classes"])
    ov.save_model(graph, tmp_path / "told.xml", compress_to_fp16=False)
    labels = [int(columns[i]) for i in (X @ WEIGHT).argmax(1)]
    sides, scores = [], []
    for file in (str(tmp_path / "told.onnx"), str(tmp_path / "told.xml")):
        predictor = subjects.load(file, 1)
        sides.append(_Side(file, file, subjects.facts(file, predictor)))
        scores.append(subjects.answers(predictor, X))
    targets, ordered = by_class(sides, scores, labels)
    assert all((one.argmax(1) == targets).all() for one in ordered)


@pytest.mark.parametrize("text", [None, "", "one, two", '{"a": 1}', "[]", "[[1], [2]]", "3"])
def test_another_meaning_of_classes_is_none(text):
    from tsexp.energy.subjects import _classes

    assert _classes(text) is None


class Odd:
    """Answers what it was told to."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, batch):
        return self.answer(batch)


class Flips(torch.nn.Module):
    """Works in place."""

    def forward(self, x):
        return x.neg_()


@pytest.mark.parametrize(
    ("subject", "given", "more", "said"),
    [
        (RandomForestClassifier(), X, {}, r"RandomForestClassifier does not answer X.*not fitted"),
        (RandomForestClassifier, X, {}, "is a class; give a fitted or loaded instance"),
        (3, X, {}, "int cannot be measured; give a path"),
        ("nowhere.onnx", X, {}, "nowhere.onnx is not there"),
        (Odd(lambda b: b[:, 0]), [[1.0], [2.0, 3.0]], {}, "X is no array of numbers"),
        (Odd(np.copy), [["a"]], {}, "X is no array of numbers"),
        (Odd(np.copy), X[0], {}, "X has shape .24,.; it must be"),
        (Odd(np.copy), X[:0], {}, "X has shape .0, 24.; it must be"),
        (Odd(np.copy), X, {"y": Y[:-1]}, "y has shape .29,.; X has 30 series"),
        (Odd(np.copy), X, {"y": [*Y[:28], None, None]}, "no label for 2 of 30 series, the first of index 28"),
        (Odd(np.copy), X, {"y": np.full(30, np.nan)}, "no label for 30 of 30 series, the first of index 0"),
        (Odd(np.copy), X, {"y": Y}, "y has 2 classes, but Odd answers 24 numbers"),
        (Odd(lambda b: (b[:, :1], b[:, :1])), X, {"batch_size": 2}, "a tuple of arrays, not an array .batch"),
        (Odd(lambda b: [b[:, :2], b[:, :2]]), X, {"batch_size": 2}, "a list of arrays, not an array .batch"),
        (Odd(lambda b: b[:0]), X, {}, "answer to a batch of 1 has shape .0, 24.; its first axis must be"),
        (Odd(lambda b: "no"), X, {}, "Odd does not answer X.* is a str, not an array of numbers"),
        (
            Odd(lambda b: np.full(len(b), "a")),
            X,
            {},
            "is a NumPy array of <U1, not an .*give their scores or num",
        ),
        (Odd(lambda b: b / 0 if b[0, 0] == X[7, 0] else b), X, {}, "1 of 30 series with NaN.*series 7;"),
        (Odd(lambda b: 1 // 0), X, {}, "does not answer X.*ZeroDivisionError"),
        (Odd(lambda b: b if b[0, 0] != X[7, 0] else 1 // 0), X, {}, "Odd does not answer all of X: ZeroDiv"),
        (Odd(lambda b: np.negative(b, out=b)), X, {}, "Odd does not answer X.*changes the series that it is"),
        (
            Flips(),
            X,
            {},
            "Flips does not answer X.*changes the series that it is given; let it",
        ),
        (Odd(np.copy), X, {"batch_size": 0}, "measure.batch_size=0 is out of range"),
        (Odd(np.copy), X, {"threads": 999}, r"measure.threads=999, but \d+ core\(s\) can be used here"),
        (Odd(np.copy), X, {"repeat": 3}, "measure.repeat is not a key"),
        (Odd(np.copy), X, {"preset": "papr"}, "measure=papr is not there; allowed: paper, quick"),
        (torch.nn.Linear(3, 2), X, {}, r"Linear does not answer X, batches of shape \(1, 24\)"),
        (torch.nn.Linear(3, 2, device="meta"), X, {}, "lies on meta; modules in memory are measured on the"),
    ],
)
def test_bad_input_is_told_in_a_line_before_any_work(subject, given, more, said, monkeypatch):
    monkeypatch.setattr("tsexp.energy.measuring.take_turns", None)
    with pytest.raises(ConfigError, match=said) as caught:
        measure_energy(subject, given, **{**QUICK, **more})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("text.onnx", "--data", "data.npz"), "text.onnx is no ONNX file that can be run here"),
        (("text.xml", "--data", "data.npz"), "text.xml is no OpenVINO file that can be run here"),
        (("empty", "--data", "data.npz"), "empty is no artifact folder of tsexp"),
        (("model.pkl", "--data", "data.npz"), "Nothing is unpickled"),
        (("double.onnx", "--data", "data.npz"), "takes batches of 4; use batch_size=4"),
        (("nan.onnx", "--data", "data.npz"), "nan.onnx answers 30 of 30 series with NaN"),
        (("plain.onnx", "--data", "wide.npz"), "takes batches of shape (any, 24), but X makes"),
        (("plain.onnx",), "give the series: --data FILE"),
        (("plain.onnx", "--data", "no.npz"), "no.npz is not there"),
        (("plain.onnx", "--data", "text.onnx"), "text.onnx is no .npz of plain arrays"),
        (("plain.onnx", "--data", "objects.npz"), "objects.npz is no .npz of plain arrays"),
        (("plain.onnx", "--data", "other.npz"), "has no array X; it has: series"),
        ((), "give one file or folder to measure, not 0"),
        (("plain.onnx", "--dta", "data.npz"), "--dta is not an option"),
        (("plain.onnx", "--data", "data.npz", "model=t1"), "model=t1 is not known here; allowed: measure="),
        (("plain.onnx", "--data", "data.npz", "tracking.uri=x:/y"), "is not a store MLflow takes"),
    ],
)
def test_wrong_words_are_told_in_a_line(files, capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(files)
    np.savez(files / "wide.npz", X=np.zeros((9, 5)))
    fast = [f"measure.{k}={v}" for k, v in QUICK.items() if k != "progress"]
    assert measure.main([*words, "--no-store", *fast]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("tsexp.measure: error: ")
    assert said in line
    assert not (files / "mlflow.db").exists()


def test_the_command_prints_and_stores(files, monkeypatch, tmp_path, empty_store):
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", "80")
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    before = mlflow.get_tracking_uri()
    fast = [f"measure.{k}={v}" for k, v in QUICK.items() if k != "progress"]
    asked = ["plain.onnx", "--data", "data.npz", "--reference", "graph.xml", f"tracking.uri={uri}", *fast]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert measure.main(asked) == 0
    said = out.getvalue()
    assert "A  plain.onnx\nB  graph.xml\n30 series, batch 1" in said
    assert "accuracy, test split" in said
    assert mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert f"stored as run {run.info.run_id}" in said
    assert run.info.run_name == "measure plain.onnx graph.xml"
    assert run.info.status == "FINISHED"
    tags, params, m = run.data.tags, run.data.params, run.data.metrics
    assert tags["tsexp.stage"] == "measure"
    assert tags["tsexp.valid"] == "true"
    assert tags["tsexp.invalid_reasons"] == ""
    assert "than B" in tags["mlflow.note.content"] or "no difference" in tags["mlflow.note.content"]
    assert params["measure.repeats"] == "4"
    assert params["measured.subject_kind"] == "ONNX"
    assert params["measured.reference"] == "graph.xml"
    assert not [k for k in params if k.startswith(("data.", "model.", "prune."))]
    assert m["energy/per_inference_j"] > 0
    raw = json.loads(Path(client.download_artifacts(run.info.run_id, "windows.json")).read_text())
    from tsexp.energy.statistics import summarize

    assert summarize(raw)["vs_dense/energy_saving_pct"] == pytest.approx(m["vs_dense/energy_saving_pct"])
    answers = np.load(client.download_artifacts(run.info.run_id, "answers.npz"), allow_pickle=False)
    np.testing.assert_allclose(answers["answers"], X @ WEIGHT, rtol=1e-4, atol=1e-4)
    assert "cpu" in json.loads(Path(client.download_artifacts(run.info.run_id, "hardware.json")).read_text())


@pytest.fixture(scope="module")
def invalid():
    return measure_energy(lambda batch: batch + np.random.random(), X, **QUICK)


def test_it_is_merged_with_its_answers(invalid, tmp_path, empty_store, capsys):
    store = Store(empty_store, tmp_path)
    invalid.to_mlflow(store.uri, name="mine")
    into = f"sqlite:///{tmp_path}/all.db"
    for said in ("1 brought, 0 there already", "0 brought, 1 there already"):
        assert merge.main([store.uri, "--into", into]) == 0
        assert said in capsys.readouterr().out
    client = mlflow.MlflowClient(into)
    (run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert (run.info.run_name, run.data.tags["tsexp.stage"]) == ("mine", "measure")
    assert "answers.npz" in {f.path for f in client.list_artifacts(run.info.run_id)}


def test_an_invalid_one_is_stored_as_such_and_tables_overlook_it(invalid, tmp_path, empty_store):
    store = Store(empty_store, tmp_path)
    store.run("good")
    run = store.client.get_run(invalid.to_mlflow(store.uri, name="mine"))
    assert run.info.run_name == "mine"
    assert run.data.tags["tsexp.valid"] == "false"
    assert "A answers" in run.data.tags["tsexp.invalid_reasons"]
    shown = {k for k in run.data.metrics if k.startswith(("energy/", "null/", "latency/"))}
    assert not shown
    assert run.data.metrics["invalid/energy/per_inference_j"] > 0
    assert "invalid/null/energy_saving_pct" in run.data.metrics
    made = freezing.freeze(connect(store.uri), "tsexp", tmp_path / "frozen", "")
    assert list(made.results["run_name"]) == ["good"]
    assert made.about["left_out"] == {}


def test_the_store_of_the_working_folder_is_the_default(invalid, tmp_path, monkeypatch, empty_store):
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    run_id = invalid.to_mlflow(experiment="mine")
    assert mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run_id).info.status == "FINISHED"


def test_a_ts_file_brings_its_labels(tmp_path, italy):
    import aeon

    from tsexp.measure import _data

    file = Path(aeon.__file__).parent / "datasets/data/ItalyPowerDemand/ItalyPowerDemand_TEST.ts"
    series, labels = _data(file, None)
    np.testing.assert_array_equal(series.astype(np.float32), italy.x_test)
    assert [italy.classes.index(label) for label in labels] == italy.y_test.tolist()
    unequal = file.parents[1] / "PickupGestureWiimoteZ/PickupGestureWiimoteZ_TEST.ts"
    with pytest.raises(ConfigError, match="has series of different shapes"):
        _data(unequal, None)


def test_labels_of_a_ts_file_are_spelt_as_they_are_written(tmp_path):
    from tsexp.measure import _data

    (tmp_path / "mixed.ts").write_text(
        "@problemName mixed\n@timeStamps false\n@univariate true\n@equalLength true\n"
        "@classLabel true Walk run\n@data\n1,2,3:Walk\n4,5,6:run\n"
    )
    assert _data(tmp_path / "mixed.ts", None)[1] == ["Walk", "run"]


def test_a_ts_file_without_labels_brings_none(tmp_path):
    from tsexp.measure import _data

    (tmp_path / "new.ts").write_text(
        "@problemName new\n@timeStamps false\n@univariate true\n@equalLength true\n@classLabel false\n"
        "@data\n1,2,3\n4,5,6\n"
    )
    series, labels = _data(tmp_path / "new.ts", None)
    assert series.shape == (2, 1, 3)
    assert labels is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 2], [0, 1, 2]),
        ([1, 2, 3], [1, 2, 3]),
        (["c", "a", "b"], ["a", "b", "c"]),
        ([1, 2], None),  # the first two columns, or the last?
        (["a", "b"], None),
    ],
)
def test_what_columns_stand_for_where_nobody_says(labels, classes):
    from tsexp.energy.labels import guessed

    if classes is None:
        with pytest.raises(ConfigError, match="y has 2 classes, but model answers 3 numbers per series"):
            guessed(labels, 3, "model")
    else:
        assert guessed(labels, 3, "model") == classes


def test_columns_are_not_guessed_of_words_that_sort_otherwise_than_as_numbers():
    """Who encodes '1' to '12' by NumPy or scikit-learn has '10' in the second column."""
    from tsexp.energy.labels import guessed

    few = [str(i) for i in range(1, 10)]
    assert guessed([float(w) for w in few], 9, "model", set(few)) == [float(w) for w in few]
    for words in ([*few, "10"], ["0", *few, "10"]):
        with pytest.raises(
            ConfigError, match=r"sorted otherwise as numbers or .* \(.*1, 10, 2.*\); give y as"
        ):
            guessed([float(w) for w in words], len(words), "model", set(words))
    with pytest.raises(ConfigError, match=r"without capitals \(Walk, run, …\); give y as"):
        guessed(["run", "Walk"], 2, "model", {"Walk", "run"})
    assert guessed(["Walk", "Run"], 2, "model", {"Walk", "Run"}) == ["Run", "Walk"]


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        ([10**17, 10**17 + 1], [10**17 + 1, 10**17]),
        (["01", "1"], ["1", "01"]),
        (["Run", "Walk"], ["walk", "run"]),  # of a .ts file
        (["run", "walk"], ["Walk", "Run"]),
        (["A", "a"], ["a", "A"]),
    ],
)
def test_labels_that_are_one_number_or_differ_by_case_are_told_apart(classes, labels):
    from tsexp.energy.labels import by_class
    from tsexp.measure import _Side

    side = _Side("model", "model.onnx", {"classes": classes})
    scores = np.array([[0.0, 1], [1, 0]], np.float32)  # the second class, then the first
    targets, (judged,) = by_class([side], [scores], labels)
    assert (judged.argmax(1) == targets).all()
    assert sorted(targets) == [0, 1]


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Index])
def test_classes_may_be_any_list(kind):
    made = RandomForestClassifier(2, random_state=0).fit(X, Y)
    subject = subjects.named(made)
    assert subject.classes() == ["down", "up"]
    made.classes_ = kind(["pos", "neg"])
    assert subject.classes() == ["pos", "neg"]
    for several in ([["a", "b"], ["c", "d"]], [["a"], ["b", "c"]], []):
        made.classes_ = several
        assert subject.classes() is None


@pytest.mark.parametrize("kind", ["pairs of classes", "a threshold of its own", "as usual"])
def test_an_estimator_is_judged_by_what_it_predicts(kind):
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import FixedThresholdClassifier
    from sklearn.svm import SVC

    from tsexp.energy.labels import by_class
    from tsexp.measure import _Answered, _as_predicted, _Side

    series, labels = load_iris(return_X_y=True)
    if kind == "a threshold of its own":
        series, labels = series[50:], labels[50:]
    made = {
        "pairs of classes": SVC(decision_function_shape="ovo"),
        "a threshold of its own": FixedThresholdClassifier(LogisticRegression(), threshold=0.9),
        "as usual": LogisticRegression(max_iter=500),
    }[kind].fit(series, labels)
    subject = subjects.named(made)
    answers = subjects.answers(subject, series)
    sides = (_Side("mine", subject, {}),) * 2
    answered = _Answered(sides, (answers, answers), series, series, "cpu", True, peak_mb=1.0)
    found, said = _as_predicted(answered)
    targets, judged = by_class(sides, found, labels.tolist())
    assert (judged[0].argmax(1) == targets).mean() == made.score(series, labels)
    assert said == (
        []
        if kind == "as usual"
        else [f"accuracy of mine is that of predict, which is not the largest of {subject.method}"]
    )


def test_gaps_are_no_ends():
    """What takes series of any length takes NaN for their ends, and answers."""
    from tsexp.measure import _without_gaps

    ends = np.ones((2, 2, 5), np.float32)
    ends[1, :, 3:] = np.nan
    _without_gaps("artifact", ends)
    for place in ((0, slice(None), 2), (0, 0, 4)):
        gaps = ends.copy()
        gaps[place] = np.nan
        with pytest.raises(ConfigError, match=r"in 1 of 2 series, first series 0; artifact is an artifact"):
            _without_gaps("artifact", gaps)


def test_numbers_of_a_file_are_counted_wherever_they_are(tmp_path):
    """In a node as in a list of its own, and in graphs within it; indices are none."""
    from onnx import TensorProto, numpy_helper

    def constant(name, values):
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name))

    def branch(name):
        nodes = [constant(f"{name}_w", WEIGHT.astype(np.float32))]
        nodes.append(helper.make_node("MatMul", ["x", f"{name}_w"], [name]))
        output = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", WEIGHT.shape[1]])
        return helper.make_graph(nodes, name, [], [output])

    nodes = [
        constant("axes", np.array([0, 1], np.int64)),
        helper.make_node("ReduceMax", ["x", "axes"], ["most"], keepdims=0),
        constant("zero", np.float32(0)),
        helper.make_node("Greater", ["most", "zero"], ["which"]),
        helper.make_node("If", ["which"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", WEIGHT.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", WEIGHT.shape[1]])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "in_nodes.onnx")
    file = subjects.load(str(tmp_path / "in_nodes.onnx"), 1)
    assert file.facts()["parameters"] == 2 * WEIGHT.size + 1


def test_an_output_without_the_axis_of_the_batch_is_no_answer(tmp_path):
    from onnx import TensorProto

    model = onnx.load(onnx_file(tmp_path / "plain.onnx"))
    name = model.graph.output[0].name
    model.graph.node.append(helper.make_node("ReduceMean", [name], ["mean"], keepdims=1))
    model.graph.output.insert(0, helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 1]))
    onnx.save(model, tmp_path / "two.onnx")
    check(measure_energy(tmp_path / "two.onnx", X, **QUICK))


@pytest.mark.parametrize("unknown", ["output", "input"])
def test_a_file_need_not_say_how_many_axes_there_are(unknown, tmp_path):
    model = onnx.load(onnx_file(tmp_path / "plain.onnx"))
    value = model.graph.output[0] if unknown == "output" else model.graph.input[0]
    value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "unknown.onnx")
    check(measure_energy(tmp_path / "unknown.onnx", X, **QUICK))


def test_an_openvino_file_need_not_either(tmp_path):
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter(ov.PartialShape.dynamic(), np.float32)
    product = ops.matmul(x, ops.constant(WEIGHT.astype(np.float32)), False, False)
    ov.save_model(ov.Model([product], [x]), tmp_path / "graph.xml", compress_to_fp16=False)
    check(measure_energy(tmp_path / "graph.xml", X, **QUICK))


def test_labels_are_the_same_only_if_they_mean_the_same():
    from tsexp.energy.labels import _key

    assert _key(1) == _key(1.0) == _key("1") == _key(np.int64(1)) == _key(" 1.0")
    assert [_key(word) for word in ("nan", "1_0", "inf", "a")] == ["nan", "1_0", "inf", "a"]


def test_importing_the_face_imports_nothing_heavy():
    heavy = {"torch", "aeon", "mlflow", "numpy"}
    code = f"import tsexp, sys; tsexp.__version__, dir(tsexp); print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    with pytest.raises(AttributeError, match="has no attribute 'measure_enrgy'"):
        tsexp.measure_enrgy  # noqa: B018
