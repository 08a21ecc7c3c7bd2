"""What is special to aeon's estimators; what they share with every family, test_families tells."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import sklearn
import torch
from packaging.version import Version

from conftest import compose
from tsexp import models, runtimes, training
from tsexp.cache import Cache
from tsexp.config import ConfigError
from tsexp.data import at_hand
from tsexp.models.estimators.quantiles import Quantiles

NAMES = ("minirocket", "quant_forest", "multirocket_hydra", "dtw_1nn")
SHORTEST = {"minirocket": 9, "quant_forest": 3, "multirocket_hydra": 10}


def build(name, dataset, *overrides):
    return models.build(compose(f"model={name}", *overrides).model, dataset)


def fitted(name, dataset, *overrides, seed=0):
    model = build(name, dataset, *overrides)
    model.fit(dataset, seed)
    return model


def znormed(x):
    """Scaled over what is there; zeros from there on."""
    z = (x - np.nanmean(x, -1, keepdims=True)) / np.nanstd(x, -1, keepdims=True)
    return np.nan_to_num(z).astype(np.float32)


def of_length(dataset, length):
    return replace(dataset, preprocessing=replace(dataset.preprocessing, length=length, resample=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_others_draw_and_how_many_threads_they_have_stays(name, italy, tmp_path):
    def shared():
        return np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        before = shared()
        models.save(fitted(name, italy), tmp_path)
        assert shared() == before
        models.load(tmp_path).scores(italy.x_test[:2])
        assert shared() == before
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("name", "least"), SHORTEST.items())
def test_series_as_long_as_it_needs_and_no_shorter(name, least, italy):
    model = fitted(name, of_length(italy, least))
    assert (model.scores(italy.x_test).argmax(1) == italy.y_test).mean() > 0.8
    message = (
        rf"model={name} takes .* at least {least} steps, those of ItalyPowerDemand have {least - 1}; data"
    )
    with pytest.raises(ConfigError, match=message):
        build(name, of_length(italy, least - 1))


def test_a_folder_of_minirocket_is_what_it_was_before_there_were_others(italy, tmp_path):
    models.save(fitted("minirocket", italy), tmp_path)
    arch = json.loads((tmp_path / "arch.json").read_text())
    del arch["channels"], arch["classes"], arch["preprocessing"]
    assert arch == {
        "family": "estimator",
        "estimator": "minirocket",
        "n_kernels": 10000,
        "max_dilations": 32,
    }


@pytest.mark.parametrize("source", ["PickupGestureWiimoteZ", "BasicMotions"])
def test_quant_forest_is_aeons(source, load_data):
    """Probabilities to the last bit, though scikit-learn's forest is not asked; the settings are its own."""
    from aeon.classification.interval_based import QUANTClassifier

    data = load_data(source)
    model = fitted("quant_forest", data, seed=3)
    series, x = (model._preprocessed(part) for part in (data.x_train[data.fit], data.x_test))
    theirs = QUANTClassifier(random_state=3).fit(series, data.y_train[data.fit]).predict_proba(x)
    scores = model.scores(data.x_test)
    assert np.array_equal(scores[theirs > 0], np.log(theirs[theirs > 0]).astype(np.float32))
    assert (theirs == 0).any()
    np.testing.assert_allclose(torch.softmax(torch.from_numpy(scores), 1), theirs, atol=1e-5)


@pytest.mark.parametrize(("depth", "divisor"), [(6, 4), (9, 7), (3, 1)])
@pytest.mark.parametrize("source", ["ItalyPowerDemand", "PickupGestureWiimoteZ", "BasicMotions"])
def test_quantiles_are_aeons_in_every_bit(source, depth, divisor, load_data):
    """Also of intervals of one value, and of those that have a median only."""
    from aeon.transformations.collection.interval_based import QUANTTransformer

    data = load_data(source)
    x = build("quant_forest", data)._preprocessed(data.x_test[:20])
    transform = QUANTTransformer(depth, divisor)
    theirs = transform.fit_transform(x)
    quantiles = Quantiles(transform.intervals_, x.shape[-1], divisor)
    assert np.array_equal(quantiles(x), theirs)
    assert np.array_equal(quantiles(x[7:8]), theirs[7:8])


@pytest.mark.parametrize("source", ["ItalyPowerDemand", "PickupGestureWiimoteZ", "BasicMotions"])
def test_minirocket_is_aeons_pipeline(source, load_data):
    """Up to rounding, though scikit-learn is not asked; of two classes and of several."""
    from aeon.classification.convolution_based import MiniRocketClassifier

    data = load_data(source)
    model = fitted("minirocket", data, "model.n_kernels=840", seed=3)
    series, x = (model._preprocessed(part) for part in (data.x_train[data.fit], data.x_test))
    state = np.random.get_state()
    theirs = MiniRocketClassifier(840, random_state=3).fit(series, data.y_train[data.fit]).pipeline_
    np.random.set_state(state)
    expected = theirs.decision_function(x)
    if expected.ndim == 1:
        expected = np.stack([-expected, expected], 1)
    np.testing.assert_allclose(model.scores(data.x_test), expected, atol=1e-4)


@pytest.mark.parametrize("source", ["PickupGestureWiimoteZ", "BasicMotions"])
def test_multirocket_hydra_is_aeons(source, load_data):
    from aeon.classification.convolution_based import MultiRocketHydraClassifier

    data = load_data(source)
    model = fitted("multirocket_hydra", data, seed=3)
    series, x = (model._preprocessed(part) for part in (data.x_train[data.fit], data.x_test))
    with torch.random.fork_rng():
        theirs = MultiRocketHydraClassifier(random_state=3).fit(series, data.y_train[data.fit])
    features = np.concatenate(
        [
            theirs._scale_hydra.transform(theirs._transform_hydra.transform(x)),
            theirs._scale_multirocket.transform(theirs._transform_multirocket.transform(x)),
        ],
        1,
    )
    np.testing.assert_allclose(
        model.scores(data.x_test), theirs.classifier.decision_function(features), atol=1e-4
    )


def warped(a, b, width):
    """Squared Euclidean distance (channels, time) along the best path that stays within the band."""
    cost = ((a[:, :, None] - b[:, None]) ** 2).sum(0)
    total = np.full([n + 1 for n in cost.shape], np.inf)
    total[0, 0] = 0
    for i, j in np.argwhere(np.abs(np.subtract.outer(*map(np.arange, cost.shape))) <= width):
        total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return total[-1, -1]


@pytest.mark.parametrize(
    ("source", "window"), [("ItalyPowerDemand", 0.0), ("ItalyPowerDemand", 1.0), ("BasicMotions", 0.1)]
)
def test_dtw_scores_are_distances_to_the_nearest_of_a_class(source, window, load_data):
    """Those of single and of several channels: warped together."""
    data = load_data(source)
    data = replace(data, fit=data.fit[::4])
    x, y = data.x_train[data.fit], data.y_train[data.fit]
    assert set(y) == set(range(len(data.classes)))
    assert (np.diff(y) < 0).any(), "not in the order of their classes"
    scores = fitted("dtw_1nn", data, f"model.window={window}").scores(data.x_test[:2])
    width = int(window * x.shape[-1])
    for series, row in zip(znormed(data.x_test[:2]), scores, strict=True):
        distances = np.array([warped(series, other, width) for other in znormed(x)])
        np.testing.assert_allclose(-row, [distances[y == c].min() for c in range(len(row))], rtol=1e-4)


@pytest.mark.parametrize("name", ["quant_forest", "dtw_1nn"])
def test_answers_without_products_do_not_depend_on_batch_mates_in_any_bit(name, pickup):
    model, x = fitted(name, pickup), pickup.x_test[:10]
    assert np.array_equal(
        np.concatenate([model.scores(x[i : i + 1]) for i in range(len(x))]), model.scores(x)
    )


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [("left_child", 0, 0), ("right_child", 0, 10**6), ("left_child", 1, 1), ("feature", 0, -7)],
)
def test_damaged_trees_are_refused_not_followed(name, row, value, italy):
    """Round in a circle, or out of memory."""
    model = fitted("quant_forest", italy)
    state = {key: tensor.clone() for key, tensor in model.state().items()}
    inner = (state["left_child"] >= 0).nonzero()[row]
    state[name][inner] = value
    with pytest.raises(ValueError, match="a decision tree is damaged: a node leads to no other"):
        model.set_state(state)


def test_trees_that_ask_for_more_than_there_is_are_refused(italy):
    model = fitted("quant_forest", italy)
    state = {key: tensor.clone() for key, tensor in model.state().items()}
    state["feature"][0] = 10**6
    model.set_state(state)
    with pytest.raises(ValueError, match=r"ask for 1000001 features, there are \d+"):
        model.scores(italy.x_test[:1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-15, 1e12])
def test_series_of_any_size_can_be_deployed(name, size, italy, tmp_path):
    """The artifact is compared by scores, which have the size of the series; of zeros there is no signal."""
    sized = replace(
        italy,
        x_train=italy.x_train * np.float32(size),
        x_test=italy.x_test * np.float32(size),
        preprocessing=replace(italy.preprocessing, scale="none"),
    )
    cfg, cache = compose(f"model={name}"), Cache(tmp_path)
    trained = training.train(cfg.model, cfg.train, 0, sized, cache)
    artifact = runtimes.deploy(trained, cfg.quant, cfg.runtime, sized, cache)
    assert min(artifact.manifest["sqnr_db"].values()) > 80


def test_features_that_hardly_vary_do_not_drown_minirockets_answer():
    """One long series, one step of it changed: scaled features of tens of thousands, which cancel."""
    rng = np.random.default_rng(0)
    walk, y = rng.standard_normal((1, 3000)).cumsum(1), np.arange(60) % 2
    series = [walk.copy() for _ in y]
    for one, k in zip(series, y, strict=True):
        one[0, rng.integers(100, 2900)] += 1 + k
    data = at_hand(compose("model=minirocket").data, series, y.astype(str), 0)
    model = fitted("minirocket", data)
    together, x = model.scores(data.x_train), data.x_train
    alone = np.concatenate([model.scores(x[i : i + 1]) for i in range(len(x))])
    assert abs(alone - together).max() < 1e-6 * abs(together).max()


def test_differences_that_trees_do_not_see_are_seen_where_series_are_scaled(italy):
    """As docs/usage.md tells of QUANT, and as aeon's own does; 1e-7 is scikit-learn's, from 1.8 on."""
    small = replace(italy, x_train=italy.x_train * np.float32(1e-10), x_test=italy.x_test * np.float32(1e-10))
    right = {}
    for scale in ("none", "znorm"):
        seen = replace(small.preprocessing, scale=scale)
        model = fitted("quant_forest", replace(small, preprocessing=seen))
        answers = model.scores(small.x_test).argmax(1)
        right[scale] = len(set(answers)), (answers == small.y_test).mean()
    assert (right["none"][0] == 1) == (Version(sklearn.__version__) >= Version("1.8"))
    assert right["znorm"][1] > 0.9
