"""Ridge regression on T4's features: what is fitted, what is counted, what is pruned."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import compose
from tsexp import card, compress, models, pipeline, training
from tsexp.cache import Cache
from tsexp.compress import features
from tsexp.config import Unsupported, identity
from tsexp.models.views.arch import fourier_points, signal_length
from tsexp.models.views.linear import PENALTIES
from tsexp.models.views.ridge import RidgeClassifier

DATASETS = ("ItalyPowerDemand", "PickupGestureWiimoteZ", "BasicMotions")


def config(*overrides):
    return compose("model=ridge", "model.levels=2", *overrides)


def fitted(dataset, *overrides):
    model = models.build(config(*overrides).model, dataset)
    assert isinstance(model, RidgeClassifier)
    assert model.fit(dataset, 0) == []
    return model


@torch.no_grad()
def features_of(model, series):
    return model.preprocess(torch.from_numpy(series))[0].double().numpy()


@pytest.mark.parametrize("source", DATASETS)
def test_the_penalty_is_the_best_for_a_series_that_is_left_out(source, load_data):
    """Each is left out once, and the rest is solved for it, for each penalty."""
    dataset = load_data(source)
    dataset = replace(dataset, fit=dataset.fit[:: max(1, len(dataset.fit) // 12)])
    model = fitted(dataset)
    x, y = features_of(model, dataset.x_train[dataset.fit]), dataset.y_train[dataset.fit]
    targets = np.where(y[:, None] == np.arange(len(dataset.classes)), 1.0, -1.0)

    def solved(rows, penalty):
        mean, level = x[rows].mean(0), targets[rows].mean(0)
        gram = (x[rows] - mean) @ (x[rows] - mean).T
        dual = np.linalg.solve(gram + penalty * np.eye(len(gram)), targets[rows] - level)
        return lambda new: (new - mean) @ ((x[rows] - mean).T @ dual) + level

    def error(penalty):
        return sum(
            np.square(solved(np.arange(len(x)) != i, penalty)(x[i : i + 1]) - targets[i]).sum()
            for i in range(len(x))
        )

    best = min(PENALTIES, key=error)
    expected = solved(np.arange(len(x)), best)(features_of(model, dataset.x_test[:20]))
    np.testing.assert_allclose(model.scores(dataset.x_test[:20]), expected, atol=1e-3)


def test_a_class_of_which_no_series_is_fitted_is_never_the_answer(load_data):
    dataset = load_data("BasicMotions")
    some = replace(dataset, fit=dataset.fit[dataset.y_train[dataset.fit] != 1])
    scores = fitted(some).scores(dataset.x_test)
    assert (scores[:, 1] == -1).all()
    assert 1 not in scores.argmax(1)
    two = replace(dataset, fit=dataset.fit[np.isin(dataset.y_train[dataset.fit], (1, 3))])
    assert set(fitted(two).scores(dataset.x_test).argmax(1)) <= {1, 3}


def test_parameters_and_macs_by_hand(load_data):
    """Series of 24 steps and two classes; five values of intervals of the whole and of halves."""
    model = fitted(load_data("ItalyPowerDemand"), "model.value_bins=5")
    spectrum, points = signal_length("spectrum", 24), fourier_points(24)
    intervals = 5 * 3 * (24 + 19 + spectrum)  # bins × intervals × values of series, changes, amplitudes
    kernels = 84 * 9 * ((24 + 12) + (19 + 9))  # as they are and halved
    half = points // 2 + 1
    fourier = points * points * 2 * points + points * 2 * points * 2 * half
    numbers = 3 * 3 * 5 + 4 + 2 * 2 * 84 * 4
    assert models.count_parameters(model) == 2 * (numbers + 1)
    assert models.count_macs(model) == intervals + kernels + fourier + 2 * numbers


@pytest.mark.parametrize("source", DATASETS)
def test_pruned_it_answers_as_if_the_rest_were_average_and_is_fitted_anew(source, load_data):
    dataset = load_data(source)
    model = fitted(dataset)
    views = features.select(features.SCORES["l1"](model), model.arch.views, 0.5)
    slim = features.shrink(model, views)
    x = features_of(model, dataset.x_test[:9])
    stays, (view,) = [], views
    for source_ in model.arch.sources:
        left = {s.name: s for s in view}.get(source_.name)
        for token in source_.tokens:
            for kernel in source_.kernels or (None,):
                there = left and token in left.tokens and (kernel is None or kernel in left.kernels)
                width = model.arch.kernel_bins if source_.kernels else model.arch.numbers(source_)
                stays += [bool(there)] * width
    weight, bias = (t.detach().double().numpy() for t in (model.head.weight, model.head.bias))
    np.testing.assert_allclose(slim.scores(dataset.x_test[:9]), (x * stays) @ weight.T + bias, atol=1e-3)
    before = slim.head.weight.clone()
    slim.refit(dataset)
    assert not torch.equal(slim.head.weight, before)
    cfg = config("prune.ratio=0.5", "prune.scope=features").prune
    pruned, said = features.prune(model, cfg, dataset, 0)
    assert torch.equal(pruned.head.weight, slim.head.weight)
    assert [(s["source"], s["tokens"], s["kernels"]) for s in said] == [
        (s.name, s.tokens, s.kernels) for s in view
    ]


@pytest.mark.parametrize("method", ["l1", "l2", "taylor"])
def test_what_is_not_read_is_what_goes(method, load_data):
    dataset = load_data("ItalyPowerDemand")
    model = fitted(dataset)
    draw = torch.Generator().manual_seed(0)
    unread, start = [], 0
    with torch.no_grad():
        model.head.weight.normal_(generator=draw)
        for source in model.arch.sources:
            read = torch.ones(len(source.tokens), model.arch.numbers(source))
            read[::2] = 0
            if source.kernels:
                read.view(len(source.tokens), -1, model.arch.kernel_bins)[:, 1::2] = 0
            model.head.weight[:, start : start + read.numel()] *= read.flatten()
            unread.append(source.tokens[::2])
            start += read.numel()
    cfg = config("prune.ratio=0.5").prune
    scores = features.SCORES[method](model, cfg, dataset, 0)
    gone, every = (sum(map(len, of)) for of in (unread, [s.tokens for s in model.arch.sources]))
    (kept,) = features.select(scores, model.arch.views, gone / every)
    left = {s.name: s for s in kept}
    for source, score in zip(model.arch.sources, scores, strict=True):
        stays = left[source.name].tokens if source.name in left else ()
        assert stays == source.tokens[1::2]
        assert sorted(score.kernels.argsort()[: len(source.kernels) // 2].tolist()) == list(
            range(1, len(source.kernels), 2)
        )


@pytest.mark.parametrize("scope", ["features", "all"])
def test_it_is_pruned_without_any_training(scope, load_data, tmp_path):
    dataset, cache = load_data("ItalyPowerDemand"), Cache(tmp_path)
    cfg = config("prune.ratio=0.75", f"prune.scope={scope}", "prune.method=taylor", "prune.finetune_epochs=9")
    dense = training.train(cfg.model, cfg.train, 0, dataset, cache)
    steps = compress.compress(dense, cfg, dataset, cache)
    assert list(steps) == ["prune"]
    slim, whole = steps["prune"].load(), dense.load()
    assert models.count_macs(slim) < 0.5 * models.count_macs(whole)
    accuracy = [(m.scores(dataset.x_test).argmax(1) == dataset.y_test).mean() for m in (slim, whole)]
    assert min(accuracy) > 0.9
    assert not steps["prune"].history()
    assert not dense.history()


def test_what_is_not_tuned_does_not_depend_on_how_it_would_be():
    pruned = ("prune.ratio=0.5", "prune.scope=features")
    one, other = (identity(config(*pruned, f"prune.finetune_epochs={n}", "train.lr=0.1")) for n in (3, 9))
    assert one == other
    assert one != identity(config("prune.ratio=0.75", "prune.scope=features"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("prune.ratio=0.5",),
            "prune with model=own is not supported: of models that fit themselves it takes",
        ),
        (("quant.mode=qat",), "qat with model=own is not supported: it trains"),
    ],
)
def test_other_networks_that_fit_themselves_are_not_pruned_or_trained(
    tmp_path, monkeypatch, overrides, message
):
    (tmp_path / "fits_itself.py").write_text(
        "from tsexp.models.transformer import *\n"
        "from tsexp.models import transformer\n"
        "LIKE = 'transformer'\n"
        "class Config(transformer.Config):\n"
        "    gradient = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = compose("model=t3", "model.name=own", "model.family='fits_itself:'", *overrides)
    with pytest.raises(Unsupported, match=message):
        pipeline.able(own)


def test_a_card_tells_no_optimizer_of_what_is_not_trained_by_one():
    row = SimpleNamespace(params={"model.family": "ridge", "seed": "0"}, metrics={})
    assert card._training(SimpleNamespace(row=row)) == [("seed", "0 (one)")]
