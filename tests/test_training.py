"""Fitting: reproducible, selected as asked, and it learns."""

import json
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conftest import TINY, as_tensor, compose
from tsexp import data, models, training
from tsexp.cache import Cache
from tsexp.config import ConfigError, identity
from tsexp.models import transformer
from tsexp.models.transformer import Classifier
from tsexp.system import signals
from tsexp.tasks import classification
from tsexp.training import Teacher, loop

OURS = compose(*TINY).train
PUBLISHED = compose(*TINY, "train=paper").train
DIVERGING = replace(PUBLISHED, epochs=12, max_steps=0, lr=1.0, warmup=0.99)
"""The learning rate grows until everything is lost: the best epoch is an early one."""


def fitted(tiny_model, dataset, recipe, *overrides, seed=0, teacher=None):
    """A fitted small model and its history."""
    model = tiny_model(dataset, *overrides)
    history = training.fit(model, recipe, dataset, seed, "test", teacher)
    return model, history


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@torch.no_grad()
def evaluate(model, dataset, which):
    """Accuracy and loss on some train series."""
    scores, y = model(as_tensor(dataset.x_train[which])), as_tensor(dataset.y_train[which])
    return float((scores.argmax(1) == y).float().mean()), float(F.cross_entropy(scores, y))


@pytest.mark.parametrize("recipe", [OURS, PUBLISHED], ids=["ours", "published"])
@pytest.mark.parametrize("dataset", ["italy", "pickup"])
def test_same_seed_same_weights(tiny_model, request, recipe, dataset):
    dataset = request.getfixturevalue(dataset)
    runs = [fitted(tiny_model, dataset, recipe, seed=s) for s in (1, 1, 2)]
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_train_depends_on_the_seed_alone(tiny, italy, tmp_path):
    a, b, c = (
        training.train(tiny.model, tiny.train, seed, italy, Cache(tmp_path / where))
        for where, seed in [("a", 1), ("b", 1), ("b", 2)]
    )
    assert a.signature == b.signature != c.signature
    assert not b.entry.reused
    assert same(a.load(), b.load())
    assert not same(a.load(), c.load())


def test_second_train_is_reused_and_equal(tiny, italy, monkeypatch):
    cache = Cache(Path(tiny.paths.cache))
    first = training.train(tiny.model, tiny.train, 0, italy, cache)
    monkeypatch.setattr(training, "fit", None)
    second = training.train(tiny.model, replace(tiny.train, progress=True), 0, italy, cache)
    assert (first.entry.reused, second.entry.reused) == (False, True)
    assert first.history() == second.history()
    assert evaluate(first.load(), italy, italy.fit) == evaluate(second.load(), italy, italy.fit)


def test_what_was_trained_before_there_were_raw_channels_is_not_trained_again(tiny, load_data, tmp_path):
    asked = {}
    for scale in ("znorm", "znorm_raw"):
        dataset = load_data("ItalyPowerDemand", scale=scale)
        fitted = training.train(tiny.model, tiny.train, 0, dataset, Cache(tmp_path))
        asked[scale] = json.loads((fitted.entry.folder / "entry.json").read_text())["key"]["arch"]
    assert asked["znorm"]["preprocessing"].keys() == {"scale", "length", "resample", "masked", "mean", "std"}
    assert asked["znorm_raw"]["preprocessing"].keys() - asked["znorm"]["preprocessing"].keys() == {"unit"}


@pytest.mark.parametrize("change", [{"lr": 0.5}, {"epochs": 3}, {"ema": 0.1}, {"clip": 2.0}])
def test_other_recipe_is_trained_anew(tiny, italy, tmp_path, change):
    cache = Cache(tmp_path)
    first = training.train(tiny.model, tiny.train, 0, italy, cache)
    second = training.train(tiny.model, replace(tiny.train, **change), 0, italy, cache)
    assert not second.entry.reused
    assert not same(first.load(), second.load())


def test_saved_model_is_the_fitted_one(tiny_model, italy, tmp_path):
    model, history = fitted(tiny_model, italy, OURS)
    training.save(model, history, tmp_path)
    again = models.load(tmp_path)
    assert same(model, again)
    assert evaluate(model, italy, italy.val) == evaluate(again, italy, italy.val)


def test_without_validation_series_the_last_weights_are_taken(tiny_model, italy):
    every = np.arange(len(italy.y_train))
    whole = replace(italy, fit=every, val=every[:0])
    recipe = replace(OURS, epochs=3, select="best", patience=1)
    model, history = fitted(tiny_model, whole, recipe)
    last, _ = fitted(tiny_model, whole, replace(recipe, select="last", patience=0))
    assert same(model, last)
    assert history[-1]["epoch"] == 2


@pytest.mark.parametrize("model", ["t3", "t4", "fcn", "litetime"])
def test_bf16_rounds_what_training_steps_compute_and_nothing_else(model, italy):
    cfg = compose(f"model={model}", "data=italy_power_demand", "train.progress=false", "train.ema=0")
    recipe = replace(cfg.train, epochs=2, min_steps=0, max_steps=4)
    weights, answers = {}, {}
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = models.build(cfg.model, italy)
        answers[precision] = seen = set()
        for head in (m for m in network.modules() if isinstance(m, torch.nn.Linear)):
            head.register_forward_hook(lambda m, _, out, seen=seen: seen.add((m.training, out.dtype)))
        history = training.fit(network, replace(recipe, precision=precision), italy, 0, "test")
        assert all(np.isfinite(line["val_loss"]) for line in history)
        assert {p.dtype for p in network.parameters()} == {torch.float32}
        weights[precision] = torch.cat([p.detach().flatten() for p in network.parameters()])
    assert answers["fp32"] == {(True, torch.float32), (False, torch.float32)}
    assert answers["bf16"] == {(True, torch.bfloat16), (False, torch.float32)}
    assert not torch.equal(*weights.values())
    assert F.cosine_similarity(*weights.values(), dim=0) > 0.99


def test_fp32_is_no_part_of_what_is_asked_and_bf16_is():
    plain, rounded, written = (
        compose(*TINY, *more) for more in ((), ["train.precision=bf16"], ["train.precision=fp32"])
    )
    assert "precision" not in plain.train.asked()
    assert identity(plain) == identity(written) != identity(rounded)
    with pytest.raises(ConfigError, match=r"train\.precision=fp16 is not known; allowed: fp32, bf16"):
        compose("train.precision=fp16")


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_best_selection_keeps_the_best_weights(tiny_model, italy, ema):
    model, history = fitted(tiny_model, italy, replace(DIVERGING, select="best", ema=ema))
    best = max(history, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    assert best is not history[-1]
    np.testing.assert_allclose(
        evaluate(model, italy, italy.val), (best["val_accuracy"], best["val_loss"]), rtol=1e-4
    )


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_last_selection_keeps_the_last_weights(tiny_model, italy, ema):
    model, history = fitted(tiny_model, italy, replace(DIVERGING, lr=0.01, select="last", ema=ema))
    last = history[-1]
    np.testing.assert_allclose(
        evaluate(model, italy, italy.val), (last["val_accuracy"], last["val_loss"]), rtol=1e-4
    )


def test_averaging_changes_the_weights(tiny_model, italy):
    plain, averaged = (fitted(tiny_model, italy, replace(OURS, ema=ema))[0] for ema in (0.0, 0.9))
    assert not same(plain, averaged)


def averaged(model, decay, steps):
    """What `Averaging` and PyTorch's, which has no warm-up, make of a model.

    Its parameters are all the number of the step.
    """
    with torch.no_grad():
        ours, module = loop.Averaging(decay), loop.Fitting(model, OURS, None, classification)
        theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        ours.on_train_start(None, module)
        for step in range(steps):
            for p in model.parameters():
                p.fill_(step)
            ours.on_train_batch_end(None, module)
            theirs.update_parameters(model)
        ours.on_train_end(None, module)
        return float(model.head[-1].bias[0]), float(theirs.module.head[-1].bias[0])


def test_averaging_of_a_short_fit_is_nearly_the_trained_model(tiny_model, italy):
    ours, plain = averaged(tiny_model(italy), 0.99, 30)
    assert plain < 5, "of 30 steps, a constant decay leaves the first"
    assert 24 < ours < 29


def test_averaging_of_a_long_fit_is_the_plain_average(tiny_model, italy):
    ours, plain = averaged(tiny_model(italy), 0.99, 2000)
    assert abs(ours - plain) < 0.1
    assert ours == pytest.approx(1900, abs=1)


def test_a_model_that_was_ready_to_answer_is_trained_like_a_fresh_one(tiny_model, italy):
    """Fine-tuning begins with a loaded model: dropout must be on, and batch norms must look."""
    fresh, ready = (tiny_model(italy, "model.dropout=0.5") for _ in range(2))
    for model, training_mode in ((fresh, True), (ready, False)):
        model.train(training_mode)
        training.fit(model, OURS, italy, 0, "test")
    assert same(fresh, ready)


@pytest.mark.parametrize(
    ("epochs", "max_steps", "batch_size", "expected"),
    [(5, 0, 16, 5), (5, 8, 16, 2), (5, 11, 16, 2), (5, 1, 16, 1), (2, 1000, 16, 2), (5, 3, 64, 3)],
)
def test_max_steps_caps_epochs(tiny_model, italy, epochs, max_steps, batch_size, expected):
    assert len(italy.fit) == 54  # four batches of 16, one of 64
    recipe = replace(PUBLISHED, epochs=epochs, max_steps=max_steps, batch_size=batch_size)
    _, history = fitted(tiny_model, italy, recipe)
    assert [line["epoch"] for line in history] == list(range(expected))


@pytest.mark.parametrize(
    ("epochs", "min_steps", "max_steps", "expected"),
    [(2, 0, 0, 2), (2, 10, 0, 3), (2, 10, 8, 2), (9, 10, 0, 9)],
)
def test_min_steps_asks_for_more_epochs(epochs, min_steps, max_steps, expected):
    config = replace(OURS, epochs=epochs, min_steps=min_steps, max_steps=max_steps, batch_size=16)
    assert loop.epochs_of(config, 60) == expected  # four steps an epoch


def test_in_a_job_of_slurm_its_tasks_are_no_processes_of_a_fit(tiny_model, italy, monkeypatch):
    handler = signal.getsignal(signal.SIGUSR1)
    for tasks in ("1", "4"):
        monkeypatch.setenv("SLURM_NTASKS", tasks)
        fitted(tiny_model, italy, replace(OURS, epochs=1, max_steps=1))
        assert signal.getsignal(signal.SIGUSR1) is handler


def test_history_has_a_line_per_epoch(tiny_model, italy):
    _, history = fitted(
        tiny_model, italy, replace(OURS, epochs=4, max_steps=0, schedule="cosine", warmup=0.25)
    )
    assert all(line.keys() == {"epoch", "train_loss", "val_loss", "val_accuracy", "lr"} for line in history)
    rates = [line["lr"] for line in history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-6 < rates[0] <= OURS.lr


@pytest.mark.parametrize(("steps", "rates"), [(1, 1.0), (2, 1.5)])
def test_without_warm_up_a_fit_of_a_step_or_two_begins_at_the_full_rate(tiny_model, italy, steps, rates):
    """As quantization-aware training of few series. Adam's first steps are as long as the rate."""
    recipe = replace(OURS, epochs=steps, max_steps=0, batch_size=1000, schedule="cosine", warmup=0.0, ema=0.0)
    model, history = fitted(tiny_model, italy, recipe)
    assert len(history) == steps
    before = dict(tiny_model(italy).named_parameters())
    moved = max(float((p - before[n]).abs().max()) for n, p in model.named_parameters())
    assert moved == pytest.approx(rates * OURS.lr, rel=0.1)
    assert recipe.asked() != replace(recipe, schedule="none").asked() | {"schedule": "cosine"}


def test_no_validation_series(tiny_model, load_data):
    dataset = load_data("ItalyPowerDemand", val_fraction=0.0)
    model, history = fitted(tiny_model, dataset, replace(OURS, patience=1))
    assert [line.keys() for line in history] == [{"epoch", "train_loss", "lr"}] * 2
    assert not same(model, tiny_model(dataset))


@pytest.mark.parametrize("name", ["t1", "t3"])
def test_published_recipe_runs(tiny_model, italy, name):
    model, history = fitted(tiny_model, italy, PUBLISHED, f"model={name}")
    assert len(history) == 2
    assert not model.training
    assert {line["lr"] for line in history} == {PUBLISHED.lr}


def test_test_split_is_not_touched(tiny_model, italy):
    blind = replace(italy, x_test=np.full_like(italy.x_test, np.nan), y_test=italy.y_test[::-1])
    assert same(fitted(tiny_model, italy, OURS)[0], fitted(tiny_model, blind, OURS)[0])


def test_loss_that_is_not_a_number_is_an_error_and_leaves_no_entry(tiny, italy, tmp_path):
    recipe = replace(tiny.train, lr=1e30, clip=0.0, ema=0.0, warmup=0.0)
    with pytest.raises(RuntimeError, match=r"train\.lr"):
        training.train(tiny.model, recipe, 0, italy, Cache(tmp_path / "cache"))
    assert [p.suffix for p in (tmp_path / "cache" / "dense").iterdir()] == [".lock"]


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("fails", [False, True])
def test_random_state_and_threads_are_restored(tiny_model, italy, fails):
    model, seen = tiny_model(italy), []
    model.encoder.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = states()
    torch.set_num_threads(2)
    try:
        if fails:
            with pytest.raises(RuntimeError):
                training.fit(model, replace(OURS, lr=1e30, clip=0.0), italy, 0, "test")
        else:
            training.fit(model, OURS, italy, 0, "test")
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(1)
    assert after == 2
    assert set(seen) == {OURS.threads} == {1}
    assert states() == before


def test_global_random_state_does_not_matter(tiny, italy, tmp_path):
    torch.manual_seed(1)
    first = training.train(tiny.model, tiny.train, 0, italy, Cache(tmp_path / "a"))
    torch.manual_seed(2)
    assert same(first.load(), training.train(tiny.model, tiny.train, 0, italy, Cache(tmp_path / "b")).load())


@pytest.fixture(scope="module")
def teacher(tiny_model, italy):
    return fitted(tiny_model, italy, replace(PUBLISHED, epochs=30, max_steps=0, lr=0.003))[0]


@torch.no_grad()
def divergence(student, teacher, x):
    return float(
        F.kl_div(
            F.log_softmax(student(x), -1),
            F.log_softmax(teacher(x), -1),
            reduction="batchmean",
            log_target=True,
        )
    )


def test_distillation_pulls_towards_the_teacher_whatever_the_labels(tiny_model, italy, teacher):
    x = as_tensor(italy.x_train[italy.fit])
    recipe = replace(PUBLISHED, epochs=20, max_steps=0, select="last")
    liar = replace(italy, y_train=1 - italy.y_train)
    student = tiny_model(italy, seed=1)
    before = divergence(student, teacher, x)
    training.fit(student, recipe, liar, 0, "test", Teacher(teacher, 1.0, 2.0))
    assert divergence(student, teacher, x) < 0.5 * before
    assert evaluate(student, italy, italy.fit)[0] > 0.8


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_distillation_changes_weights_and_leaves_the_teacher_alone(tiny_model, italy, teacher, weight):
    frozen = {k: v.clone() for k, v in teacher.state_dict().items()}
    plain = fitted(tiny_model, italy, OURS)[0]
    distilled = fitted(tiny_model, italy, OURS, teacher=Teacher(teacher, weight, 2.0))[0]
    assert not same(plain, distilled)
    assert all(torch.equal(frozen[k], v) for k, v in teacher.state_dict().items())


def test_it_learns(tiny_model, italy):
    model, _ = fitted(
        tiny_model, italy, replace(OURS, epochs=40, max_steps=0, lr=0.003), "model.token_dropout=0"
    )
    with torch.no_grad():
        accuracy = float((model(as_tensor(italy.x_test)).argmax(1) == as_tensor(italy.y_test)).float().mean())
    assert accuracy > 0.8  # both classes are half of the test split


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_stops_early(tiny_model, italy, patience):
    _, history = fitted(tiny_model, italy, replace(DIVERGING, epochs=40, patience=patience))
    losses = [line["val_loss"] for line in history]
    assert len(losses) < 40
    assert int(np.argmin(losses)) == len(losses) - 1 - patience


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_weight_decay_spares_biases_norms_and_positions(tiny_model, italy, optimizer):
    model = tiny_model(italy, "model.pooling=cls")
    fit = loop.Fitting(model, replace(OURS, optimizer=optimizer, weight_decay=0.1), None, classification)
    fit.trainer = type("Trainer", (), {"estimated_stepping_batches": 10})()
    groups = fit.configure_optimizers()["optimizer"].param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    spared = {n for n, p in model.named_parameters() if id(p) not in decayed}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert spared == {
        n
        for n, _ in model.named_parameters()
        if n.endswith("bias") or "norm" in n or n in ("cls", "positions.table")
    }


def test_uneven_model_can_be_fitted(tiny_model, italy):
    arch = tiny_model(italy).arch
    torch.manual_seed(0)
    model = Classifier(replace(arch, blocks=(transformer.Block(1, 3), transformer.Block(2, 7))))
    assert len(training.fit(model, OURS, italy, 0, "test")) == 2
    assert not model.training


@pytest.mark.slow
def test_the_default_reaches_80_percent_on_acsf1_as_the_mean_of_three_seeds(tmp_path):
    scores = []
    for seed in range(3):
        cfg = compose("train.progress=false", f"seed={seed}")
        dataset = data.load(cfg.data, tmp_path, seed)
        model = training.train(cfg.model, cfg.train, seed, dataset, Cache(tmp_path)).load()
        with torch.no_grad():
            scores.append(
                float((model(torch.from_numpy(dataset.x_test)).argmax(1).numpy() == dataset.y_test).mean())
            )
    assert sum(scores) / 3 >= 0.80, scores


@pytest.mark.parametrize("word", [KeyboardInterrupt, signals.Terminated])
def test_an_interruption_is_one_whatever_lightning_trips_over_as_it_ends(
    italy, tiny_model, monkeypatch, word
):
    class Clumsy(loop.Callback):
        def on_fit_start(self, *_):
            raise word

        def on_exception(self, *_):
            raise RuntimeError("Please call `iter(combined_loader)` first.")

    monkeypatch.setattr(loop, "Progress", lambda *_: Clumsy())
    monkeypatch.setattr(signals, "_terminated", word is signals.Terminated)
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(word):
            fitted(tiny_model, italy, OURS)
    finally:
        signal.signal(signal.SIGINT, ctrl_c)  # which Lightning ignores from then on
