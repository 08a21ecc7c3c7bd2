"""The fold over the steps: which are applied, in which order, to what, and what their entries depend on."""

import importlib
from dataclasses import replace

import pytest
import torch

from conftest import TINY, compose
from tsexp import compress, training
from tsexp.cache import Cache
from tsexp.compress.fold import STEPS
from tsexp.config import Unsupported

ALL = ("prune.ratio=0.5", "quant.mode=qat", "quant.qat_epochs=1")
"""Every step is asked for."""


def config(*overrides):
    return compose(*TINY, "data=italy_power_demand", *overrides)


@pytest.fixture(scope="module")
def home(tmp_path_factory, italy):
    """A cache, and a small trained model in it."""
    cache, cfg = Cache(tmp_path_factory.mktemp("cache")), config()
    return cache, training.train(cfg.model, cfg.train, 0, italy, cache)


@pytest.fixture
def untrained(monkeypatch):
    """Steps do all but train."""
    monkeypatch.setattr(training, "fit", lambda *_: [])


@pytest.fixture
def applied(monkeypatch):
    """Each step only leaves its mark: (name, mark that it found, whether it was the control's)."""
    seen = []

    def spy(name):
        def apply(model, context, folder):
            mark = next(model.parameters()).data
            seen.append((name, mark.max().item(), context.control))
            mark.fill_(len(seen))
            return model, []

        return apply

    for name, place in STEPS.items():
        monkeypatch.setattr(importlib.import_module(place), "apply", spy(name))
    return seen


def test_steps_follow_in_order_each_on_what_the_one_before_made(home, italy, tmp_path, applied):
    made = compress.compress(home[1], config(*ALL), italy, Cache(tmp_path))
    assert list(made) == ["prune", "finetune", "qat"]
    untouched = next(home[1].load().parameters()).max().item()
    assert applied == [("prune", untouched, False), ("finetune", 1, False), ("qat", 2, False)]
    assert next(made["qat"].load().parameters()).max() == 3


def test_the_control_goes_through_the_steps_that_train_alone(home, italy, tmp_path, applied):
    control = compress.control(home[1], config(*ALL), italy, Cache(tmp_path))
    assert [(name, of_control) for name, _, of_control in applied] == [("finetune", True), ("qat", True)]
    assert next(control.load().parameters()).max() == 2


def test_nothing_asked_is_the_dense_model_itself(home, italy):
    cache, dense = home
    assert compress.compress(dense, config(), italy, cache) == {}
    assert compress.control(dense, config(), italy, cache) is dense


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["prune.ratio=0.5"], ["prune", "finetune"]),
        (["prune.ratio=0.5", "prune.finetune_epochs=0"], ["prune"]),
        (["quant.mode=qat"], ["qat"]),
        (["quant.mode=static"], []),
    ],
)
def test_steps_that_are_not_asked_for_are_left_out(home, italy, tmp_path, applied, overrides, steps):
    made = compress.compress(home[1], config(*overrides), italy, Cache(tmp_path))
    assert list(made) == [name for name, *_ in applied] == steps


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["model=minirocket", "prune.ratio=0.5"],
            "prune with model=minirocket .* transformer, views, ridge, convolution; .*: estimator",
        ),
        (["model=minirocket", "quant.mode=qat"], "qat .* transformer, views, convolution; .*: estimator"),
    ],
)
def test_a_family_that_a_step_does_not_take_is_refused(overrides, said):
    with pytest.raises(Unsupported, match=said):
        compress.check(compose(*overrides))


def test_families_that_all_steps_take_are_not_refused():
    compress.check(compose(*ALL))
    compress.check(compose("model=fcn", "quant.mode=qat"))
    compress.check(compose("model=minirocket"))


def signatures(dense, cfg, dataset, cache):
    made = compress.compress(dense, cfg, dataset, cache)
    return [made[name].signature for name in STEPS]


def test_what_a_step_depends_on_is_in_its_key_and_in_those_of_all_after_it(
    home, italy, tmp_path, untrained, monkeypatch
):
    cache, (_, dense), cfg = Cache(tmp_path), home, config(*ALL)
    other = training.train(cfg.model, cfg.train, 1, italy, cache)
    known = [signatures(dense, cfg, italy, cache)]
    changed_from = {"seed": 0, "dense": 0, "prune.ratio": 0, "finetune_lr": 1, "qat_lr": 2, "version": 1}
    known.append(signatures(dense, replace(cfg, seed=1), italy, cache))
    known.append(signatures(other, cfg, italy, cache))
    for override in ("prune.ratio=0.25", "prune.finetune_lr=0.5", "quant.qat_lr=0.5"):
        known.append(signatures(dense, config(*ALL, override), italy, cache))
    monkeypatch.setattr("tsexp.compress.finetune.VERSION", -1)
    known.append(signatures(dense, cfg, italy, cache))
    base, *others = known
    for (what, first), one in zip(changed_from.items(), others, strict=True):
        assert [a == b for a, b in zip(base, one, strict=True)] == [i < first for i in range(3)], what


def test_what_no_step_depends_on_finds_what_was_made_before(home, italy, tmp_path, untrained):
    cache, (_, dense), cfg = Cache(tmp_path), home, config(*ALL)
    first = compress.compress(dense, cfg, italy, cache)
    again = compress.compress(dense, config(*ALL, "measure=paper", "runtime=onnxruntime"), italy, cache)
    assert [made.entry.reused for made in (*first.values(), *again.values())] == [False] * 3 + [True] * 3


def test_what_a_step_wrote_down_is_in_its_notes(home, italy, tmp_path, untrained):
    made = compress.compress(home[1], config(*ALL), italy, Cache(tmp_path))
    assert {name: [note.name for note in step.notes()] for name, step in made.items()} == {
        "prune": ["kept.json"],
        "finetune": [],
        "qat": [],
    }


def control(home, italy, *overrides):
    cache, dense = home
    return compress.control(dense, config("prune.ratio=0.5", *overrides), italy, cache)


def weights(fitted):
    return fitted.load().state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_the_control_is_tuned_with_nothing_removed_once_for_all_ways_of_pruning(home, italy, monkeypatch):
    dense, tuned = home[1], control(home, italy)
    assert tuned.load().arch == dense.load().arch
    assert not same(weights(tuned), weights(dense))
    assert len(tuned.history()) == config().prune.finetune_epochs == 1
    monkeypatch.setattr(training, "fit", None)
    for ways in (
        ["prune.ratio=0.75"],
        ["prune.scope=depth"],
        ["prune.method=taylor", "prune.calibration_series=7"],
        ["prune.round_to=8"],
    ):
        assert control(home, italy, *ways).signature == tuned.signature


@pytest.mark.parametrize("override", ["prune.finetune_lr=0.1", "prune.distill=0.0", "seed=1"])
def test_other_tuning_has_another_control(home, italy, tmp_path, untrained, override):
    home = Cache(tmp_path), home[1]
    assert control(home, italy, override).signature != control(home, italy).signature


@pytest.mark.parametrize("override", ["prune.ratio=0.0", "prune.finetune_epochs=0"])
def test_without_tuning_the_control_is_the_dense_model_itself(home, italy, override):
    assert control(home, italy, override) is home[1]


def test_the_control_is_what_pruning_nothing_would_leave(home, italy, tmp_path, monkeypatch):
    # The same fit, of the same model, by the same teacher, along the same recipe: only `shrink` is missing.
    asked = []

    def fit(model, recipe, dataset, seed, title, teacher, unfinished):
        start = {k: v.clone() for k, v in model.state_dict().items()}
        asked.append((start, teacher.model.state_dict(), (recipe, seed, teacher.weight, teacher.temperature)))
        return []

    monkeypatch.setattr(training, "fit", fit)
    cache, cfg = Cache(tmp_path), config("prune.ratio=1e-9", "prune.finetune_lr=0.0123")
    compress.control(home[1], cfg, italy, cache)
    compress.compress(home[1], cfg, italy, cache)
    tuned, pruned = asked
    assert same(tuned[0], pruned[0])
    assert same(tuned[1], pruned[1])
    assert tuned[2] == pruned[2]
