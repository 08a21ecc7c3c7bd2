"""The classifier for aeon: aeon's own checks, scikit-learn's tools, and what it says of itself."""

import copy
import gc
import json
import pickle
import re
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from conftest import compose
from tsexp import CompressedTransformerClassifier, pipeline, runtimes
from tsexp import config as configs
from tsexp.classifier import Shipped, _fitting, _goes_with
from tsexp.config import ConfigError, Unsupported
from tsexp.system import alive, processes

ROOT = Path(__file__).parents[1]
TINY = ("debug=smoke", "model.d_model=8", "model.layers=1", "model.heads=2", "model.ffn=8", "model.patch=8")


def tiny(**parameters):
    overrides = TINY + parameters.pop("overrides", ())
    return CompressedTransformerClassifier(**{"random_state": 0, "overrides": overrides} | parameters)


@pytest.fixture(scope="module")
def series():
    """12 + 8 series of length 24 in three classes, told apart by their slope."""
    rng = np.random.default_rng(0)
    labels = np.array(["10", "9", "a"])[np.arange(20) % 3]
    slopes = (np.arange(20) % 3 - 1)[:, None, None]
    X = slopes * np.linspace(-2, 2, 24) + 0.3 * rng.normal(size=(20, 1, 24))
    return X[:12], labels[:12], X[12:], labels[12:]


@pytest.fixture(scope="module")
def fitted(series):
    return tiny(prune_ratio=0.5).fit(*series[:2])


def ragged(count, channels=2):
    """Series of unequal length with gaps, in two classes."""
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(channels, 20 + i)) for i in range(count)]
    for x in X[::3]:
        x[0, 4:7] = np.nan
    return X, np.arange(count) % 2


def test_the_package_stays_light_and_knows_the_name():
    code = (
        "import sys, tsexp\n"
        "assert 'CompressedTransformerClassifier' in dir(tsexp)\n"
        "assert not {'aeon', 'torch', 'sklearn', 'numpy'} & set(sys.modules), sys.modules\n"
        "from tsexp import CompressedTransformerClassifier as C\n"
        "assert C.__module__ == 'tsexp.classifier' and 'lightning' not in sys.modules\n"
        "try: tsexp.Nothing\n"
        "except AttributeError as error: assert 'Nothing' in str(error)\n"
        "else: raise SystemExit('found')\n"
        "from tsexp import cache"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def checked(**how):
    from aeon.testing.estimator_checking import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_estimator(CompressedTransformerClassifier, **how)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_all_checks_of_aeon_pass_and_none_is_skipped(every):
    """Of a pruned transformer; slow: of a model that is no network, too."""
    results = checked(use_first_parameter_set=not every)
    assert {what for what in results.values() if what != "PASSED"} == set()
    assert len(results) >= (44 if every else 28)  # fewer: aeon sees fewer capabilities than there are


@pytest.mark.slow
def test_answers_do_not_depend_on_the_number_of_threads(monkeypatch):
    """aeon's own check of it, which it leaves out unless it is told to run it."""
    from aeon.testing.estimator_checking import _yield_multithreading_checks as checks

    monkeypatch.setattr(checks, "MULTITHREAD_TESTING", True)
    results = checked(checks_to_run="check_estimator_multithreading")
    assert len(results) >= 16
    assert set(results.values()) == {"PASSED"}


@pytest.mark.parametrize("n_jobs", [-1, 4])
def test_no_more_threads_measure_than_there_are_cores(monkeypatch, n_jobs):
    """A container may have fewer than the machine, which -1 means."""
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    cfg = CompressedTransformerClassifier(n_jobs=n_jobs)._config()
    pipeline.able(cfg)
    assert cfg.measure.threads == 1


def test_defaults_are_the_configurations():
    mine = configs.flat(CompressedTransformerClassifier(random_state=0)._config())
    theirs = configs.flat(compose("data=ucr", "data.name=series", "train.progress=false"))
    assert {k: v for k, v in mine.items() if theirs[k] != v} == {}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"prune_ratio": 1.5}, "prune_ratio=1.5 is out of range; allowed: ≥ 0 and < 1"),
        ({"model": "t9"}, "model=t9 is not there; allowed: dtw_1nn,"),
        ({"quant_mode": "int3"}, "quant_mode=int3 is not known; allowed: none, dynamic,"),
        ({"random_state": -1}, "random_state=-1 is out of range"),
        ({"random_state": np.random.default_rng(0)}, "an integer, a numpy.random.RandomState or None"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"batch_size": "2"}, "batch_size='2': an integer from 1 on is needed"),
        ({"model": None}, "model=None: a value is needed"),
        ({"batch_size": None}, "batch_size=None: an integer from 1 on is needed"),
        ({"prune_ratio": [0.1, 0.2]}, "prune_ratio"),
        ({"overrides": ("train.lrr=1",)}, "train.lrr is not a key; allowed in train: batch_size,"),
        ({"overrides": ("prune.ratio=0.3",)}, "this is what the parameter prune_ratio is for"),
        ({"overrides": ("seed=3",)}, "this is what the parameter random_state is for"),
        ({"overrides": ("tracking.uri=sqlite:///x",)}, "the classifier does not read tracking.uri"),
        ({"overrides": ("variant=pruned_50",)}, "the classifier does not read variant"),
        ({"overrides": ("data.path=x",)}, "the classifier does not read data.path"),
        ({"overrides": "train.lr=1"}, "a tuple of strings is needed"),
        ({"overrides": None}, "a tuple of strings is needed"),
        ({"cache": __file__}, "cannot be written into (Not a directory); give another folder"),
        ({"overrides": ("data.missing=error",)}, "3 missing values; data.missing=interpolate fills them"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_by_fit(parameters, said):
    X, y = ragged(6)
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        CompressedTransformerClassifier(**parameters).fit(X, y)
    assert "\n" not in str(error.value)


def test_what_no_step_or_runtime_takes_is_refused_before_training(series):
    with pytest.raises(Unsupported, match="prune with model=minirocket is not supported"):
        CompressedTransformerClassifier("minirocket", prune_ratio=0.5).fit(*series[:2])


def test_classes_keep_their_order_and_learn(series):
    """aeon sorts labels as text, this package as numbers where they are some."""
    X, y, X_test, y_test = series
    quick = CompressedTransformerClassifier("minirocket", random_state=0).fit(X, y)
    assert quick.classes_.tolist() == ["10", "9", "a"]
    assert quick.artifact_.manifest["classes"] == ["9", "10", "a"]
    assert quick.score(X_test, y_test) == 1.0
    assert (quick.classes_[quick.predict_proba(X_test).argmax(1)] == y_test).all()


def test_probabilities_are_those_of_the_logged_model(series, tmp_path):
    from tsexp.tracking.served import ArtifactModel

    X, y, X_test, _ = series
    classifier = tiny(batch_size=8).fit(X, y)
    served = ArtifactModel()
    folder = str(classifier.export(tmp_path / "artifact"))
    served.load_context(SimpleNamespace(artifacts={"artifact": folder}, model_config={"ragged": False}))
    table = served.predict(None, X_test)
    assert (
        table[[f"p_{name}" for name in classifier.classes_]].to_numpy() == classifier.predict_proba(X_test)
    ).all()
    assert (table["class"] == classifier.predict(X_test)).all()


def test_one_series_is_answered_whatever_the_others_are(fitted, series):
    X = series[2]
    assert (fitted.predict_proba(X)[3:5] == fitted.predict_proba(X[3:5])).all()
    together = copy.deepcopy(fitted).set_params(batch_size=5)
    np.testing.assert_allclose(together.predict_proba(X), fitted.predict_proba(X), atol=1e-5)
    with pytest.raises(ConfigError, match="batch_size=-4: an integer from 1 on is needed"):
        together.set_params(batch_size=-4).predict(X)


def test_copies_answer_alike_and_carry_no_series(fitted, series, tmp_path):
    answers = fitted.predict_proba(series[2])
    joblib.dump(fitted, tmp_path / "classifier.joblib")
    for other in (
        pickle.loads(pickle.dumps(fitted)),  # noqa: S301
        copy.deepcopy(fitted),
        joblib.load(tmp_path / "classifier.joblib"),
    ):
        assert (other.predict_proba(series[2]) == answers).all()
        assert other.report() == fitted.report()
        with pytest.raises(ConfigError, match="ask the one that was fitted"):
            other.report(*series[2:])
    assert series[0].astype(np.float32).tobytes()[:64] not in pickle.dumps(fitted)
    assert not clone(fitted).is_fitted


def test_export_is_the_artifact_that_answers(fitted, series, tmp_path):
    folder = fitted.export(tmp_path / "new" / "artifact")
    scores = runtimes.load(str(folder))(series[2][:1].astype(np.float32))
    assert (scores == fitted._scores(series[2][:1])[:, [1, 0, 2]]).all()
    assert [p.name for p in folder.parent.iterdir()] == ["artifact"]
    with pytest.raises(FileExistsError, match="is there already"):
        fitted.export(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/x cannot be made: .*file is no folder"):
        fitted.export(tmp_path / "file" / "x")
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        fitted.export(tmp_path / ("x" * 999))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is there already"):
        fitted.export(tmp_path / "link")
    with pytest.raises(NotFittedError):
        tiny().export(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_it_reports_what_pruning_left(fitted, series):
    report = json.loads(json.dumps(fitted.report()))
    dense = tiny().fit(*series[:2]).report()
    assert report["prune/achieved_ratio"] == 0.5
    assert dense["prune/achieved_ratio"] == 0.0
    assert report["size/parameters"] < dense["size/parameters"]
    assert report["size/macs"] < dense["size/macs"]
    assert report["size/bytes"] == fitted.artifact_.manifest["bytes"]
    assert report["matmuls"] == {"float32": dense["matmuls"]["float32"]}
    assert report["fit_series"] + report["val_series"] == 12
    assert report["cost/compress_s"] > 0 < report["cost/train_j"]
    assert not [name for name in report if name.startswith(("test/", "energy/"))]


def test_labels_of_its_report_are_those_that_equal_what_was_fitted(series, monkeypatch):
    judged = []

    def judge(made, artifact, cfg, dataset, cache):
        judged.append(dataset.y_test.tolist())
        raise ConfigError("enough")

    monkeypatch.setattr(pipeline, "judge", judge)
    numbers = np.unique(series[1], return_inverse=True)[1]
    model = tiny().fit(series[0], numbers)
    for labels in (numbers, numbers.astype(float), numbers.astype(str)):
        with pytest.raises(ConfigError, match="enough"):
            model.report(series[0], labels)
    assert judged == [numbers.tolist()] * 3


def test_with_test_series_it_is_measured_against_the_control(fitted, series):
    report = json.loads(json.dumps(fitted.report(*series[2:])))
    assert report["test/accuracy"] == pytest.approx(fitted.score(*series[2:]))
    assert report["energy/per_inference_j"] > 0 < report["latency/p50_ms"]
    assert report["vs_dense/energy_saving_lo"] <= report["vs_dense/energy_saving_pct"]
    assert report["measure/processes"] == 4
    assert report["cost/train_s"] == fitted.report()["cost/train_s"]
    for X, y, said in (
        (series[2], ["b"] * 8, "labels that train series do not have: b"),
        (series[2][..., :20], series[3], "series 0 has 20 steps"),
        (series[2], None, "test series and their labels, or neither"),
    ):
        with pytest.raises(ConfigError, match=said):
            fitted.report(X, None if y is None else np.array(y))


def test_unequal_lengths_channels_and_gaps(series):
    X, y = ragged(14)
    classifier = tiny(prune_ratio=0.5).fit(X, y)
    shorter, longer = X[0][:, :11], np.concatenate([X[0], X[1]], axis=1)
    assert classifier.predict_proba([shorter, longer]).shape == (2, 2)
    assert classifier.predict(X).dtype == y.dtype
    longest = max(x.shape[1] for x in X)
    padded = np.stack([np.pad(x, ((0, 0), (0, longest - x.shape[1])), constant_values=np.nan) for x in X])
    same = tiny(prune_ratio=0.5).fit(padded, y)
    for one in (classifier, same):
        for held in (X, padded):
            np.testing.assert_array_equal(one.predict_proba(held), classifier.predict_proba(X))
    with pytest.raises(ConfigError, match="series 0: infinite values"):
        classifier.predict([X[0] * np.inf])
    one_length = tiny().fit(*series[:2])
    with pytest.raises(ConfigError, match=r"series 0 has 25 steps; all train series had 24.*data.length=24"):
        one_length.predict(np.zeros((1, 1, 25)))
    wide = np.pad(series[0], ((0, 0), (0, 0), (0, 6)), constant_values=np.nan)  # of one length all the same
    padded = tiny().fit(wide, series[1])
    for held in (series[0], wide):
        np.testing.assert_array_equal(padded.predict_proba(held), one_length.predict_proba(series[0]))
    resamples = tiny(overrides=("data.length=24",)).fit(*series[:2])
    assert resamples.predict(np.arange(25.0)[None, None]).shape == (1,)


@pytest.mark.parametrize("overrides", [(), ("train.select=best", "train.patience=3")])
def test_where_no_validation_series_can_be_spared_all_are_fitted_on(series, overrides):
    X, y = series[0][:3], series[1][:3]
    with pytest.warns(UserWarning, match="no class has enough train series to withhold one"):
        classifier = tiny(overrides=overrides).fit(X, y)
    assert (classifier.report()["fit_series"], classifier.report()["val_series"]) == (3, 0)
    assert classifier.predict(X).shape == (3,)
    with pytest.raises(ValueError, match="at least 2 unique labels"):
        tiny().fit(X, np.array(["a"] * 3))


def test_seeds(series):
    X, y, X_test, _ = series

    def answers(random_state):
        return tiny(random_state=random_state).fit(X, y).predict_proba(X_test)

    assert (answers(1) == answers(1)).all()
    assert (answers(1) != answers(2)).any()
    np.random.seed(5)
    first, second = answers(None), answers(None)
    np.random.seed(5)
    assert (answers(None) == first).all()
    assert (first != second).any()
    assert (answers(np.random.RandomState(5)) == first).all()


def test_a_cache_is_kept_and_a_temporary_one_goes_with_the_classifier(series, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first, again = (tiny(cache=cache).fit(*series[:2]).report() for _ in range(2))
    assert first == again  # the costs, too: nothing was trained again
    assert {p.name for p in cache.iterdir()} == {"dense", "artifact"}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    classifier = tiny().fit(*series[:2])
    classifier.predict(series[2])
    left = list((tmp_path / "temporary").iterdir())
    assert len(left) == 2  # its cache, and the artifact that answers
    assert all((folder / alive.OWNER).is_file() for folder in left)  # a command finds them if this is killed
    del classifier
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that somebody should have closed
        gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
def test_a_fork_leaves_the_folders_of_the_process_that_it_is_a_fork_of(tmp_path):
    (tmp_path / "cache").mkdir()
    owners = [Shipped({})]
    _goes_with(owners[0], tmp_path / "cache")
    assert processes.fork_here(lambda: (owners.clear(), gc.collect(), 0)[-1]) == 0
    assert (tmp_path / "cache").is_dir()
    owners.clear()
    gc.collect()
    assert not (tmp_path / "cache").exists()


def test_a_fit_that_fails_leaves_no_folder(series, tmp_path, monkeypatch):
    def fail(*_):
        assert len(list(tmp_path.iterdir())) == 1
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tsexp.pipeline.make", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        tiny().fit(*series[:2])
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_grid_search(series):
    X, y, X_test, _ = series
    search = GridSearchCV(tiny(), {"prune_ratio": [0, 0.5], "epochs": [1, 2]}, cv=2, error_score="raise")
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.report()["prune/achieved_ratio"] == search.best_params_["prune_ratio"]
    assert search.predict(X_test).shape == (8,)


def test_threads_get_the_answers_of_one_after_the_other(series):
    X, y = series[:2]
    alone = cross_val_score(tiny(), X, y, cv=3, scoring="neg_log_loss", error_score="raise")
    with joblib.parallel_backend("threading", n_jobs=3):
        together = cross_val_score(tiny(), X, y, cv=3, scoring="neg_log_loss", error_score="raise")
    assert (alone == together).all()


def test_loading_waits_for_a_fit_elsewhere(fitted, series):
    """Networks are rebuilt with weights that are drawn, by the generator of whatever trains meanwhile."""
    loading = threading.Thread(target=copy.deepcopy(fitted).predict, args=[series[2]])
    with _fitting:
        loading.start()
        loading.join(1)
        waits = loading.is_alive()
    loading.join(60)
    assert (waits, loading.is_alive()) == (True, False)


def test_one_fitted_classifier_answers_one_thread_at_a_time(series, monkeypatch):
    at_once, most = [], []

    class Busy:
        def __call__(self, batch):
            at_once.append(1)
            most.append(len(at_once))
            time.sleep(0.01)
            at_once.pop()
            return np.zeros((len(batch), 3), np.float32)

    X, y, X_test, _ = series
    fitted = tiny().fit(X, y)
    monkeypatch.setattr(runtimes, "load", lambda *_, **__: Busy())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fitted.predict, [X_test] * 8))
    assert len(most) >= 8
    assert max(most) == 1


@pytest.mark.slow
def test_processes_get_the_answers_of_one_after_the_other(series):
    X, y = series[:2]
    how = {"cv": 3, "scoring": "neg_log_loss", "error_score": "raise"}
    assert (cross_val_score(tiny(), X, y, n_jobs=2, **how) == cross_val_score(tiny(), X, y, **how)).all()


def test_aeons_resampling_ensembles_and_pipelines(series):
    from aeon.benchmarking.resampling import stratified_resample_data
    from aeon.classification.compose import ClassifierPipeline
    from aeon.transformations.collection import Normalizer

    piped = ClassifierPipeline([Normalizer()], tiny(prune_ratio=0.5))
    accuracies = []
    for resample in range(2):
        X, y, X_test, y_test = stratified_resample_data(*series, random_state=resample)
        accuracies.append(clone(piped).fit(X, y).score(X_test, y_test))
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    estimates = tiny().fit_predict_proba(*series[:2], cv_size=2)
    np.testing.assert_allclose(estimates.sum(1), 1)


BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


@pytest.mark.slow
def test_the_page_runs_as_written(tmp_path):
    blocks = BLOCK.findall((ROOT / "docs" / "aeon.md").read_text())
    assert len(blocks) >= 4
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "smaller" / "manifest.json").is_file()


def test_the_page_has_every_parameter_and_capability():
    page = (ROOT / "docs" / "aeon.md").read_text()
    assert {
        name for name in CompressedTransformerClassifier().get_params() if f"`{name}`" not in page
    } == set()
