"""A fit on several devices: what one makes of the same batches, each series once, and nothing left.

Two processes on one CPU, which talk by gloo, stand for GPUs.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from commands import environment, tsexp
from conftest import TINY, as_tensor, compose
from test_cli import ITALY, everybody, runs
from test_training import evaluate, same, states
from tsexp import pipeline, training
from tsexp.cache import Cache
from tsexp.config import ConfigError, Unsupported, identity
from tsexp.training import loop

ALIKE = ["model.dropout=0", "model.token_dropout=0"]
WHOLE = replace(compose(*TINY).train, epochs=6, max_steps=0, batch_size=54, lr=0.01, ema=0.5, select="best")
"""Every batch is all of ItalyPowerDemand's fitted series: their order does not matter."""


def scores_of(model, series):
    with torch.no_grad():
        return model(as_tensor(series)).numpy()


def children():
    """Processes that this one has started, but for `multiprocessing`'s tracker, which stays."""
    started = psutil.Process().children(recursive=True)
    return [p for p in started if "resource_tracker" not in str(p.cmdline())]


@contextlib.contextmanager
def listening():
    """Addresses that child processes are seen to listen on meanwhile."""
    addresses, over = set(), threading.Event()

    def look():
        while not over.wait(0.1):
            for process in children():
                with contextlib.suppress(psutil.Error):
                    for one in process.net_connections():
                        if one.status == psutil.CONN_LISTEN:
                            addresses.add(one.laddr.ip)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield addresses
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def two(tiny_model, italy, tmp_path_factory):
    """A model that was fitted on two devices, its history, and what was left behind."""
    model = tiny_model(italy, *ALIKE)
    dataset = replace(italy, val=italy.val[:13])  # not to be shared evenly
    with pytest.MonkeyPatch.context() as patch, listening() as addresses:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        before = states(), dict(os.environ), set(Path(tempfile.gettempdir()).iterdir()), children()
        history = training.fit(model, replace(WHOLE, devices=2), dataset, 0, "test")
        after = states(), dict(os.environ), set(Path(tempfile.gettempdir()).iterdir()), children()
    return SimpleNamespace(
        model=model, history=history, dataset=dataset, before=before, after=after, addresses=addresses
    )


def test_two_devices_learn_what_one_does_from_the_same_batches(two, tiny_model, italy):
    assert len(italy.fit) == 54
    one = tiny_model(italy, *ALIKE)
    untrained = scores_of(one, italy.x_test)
    history = training.fit(one, WHOLE, two.dataset, 0, "test")
    np.testing.assert_allclose(
        [list(line.values()) for line in two.history], [list(line.values()) for line in history], rtol=1e-3
    )
    expected = scores_of(one, italy.x_test)
    assert np.abs(expected - untrained).max() > 0.1
    np.testing.assert_allclose(scores_of(two.model, italy.x_test), expected, atol=2e-3)


def test_what_was_validated_is_what_one_device_sees_of_the_weights_that_came_back(two):
    best = max(two.history, key=lambda line: (line["val_accuracy"], -line["val_loss"]))
    accuracy, loss = evaluate(two.model, two.dataset, two.dataset.val)
    assert best["val_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert best["val_loss"] == pytest.approx(loss, rel=1e-5)
    assert not two.model.training
    assert all(p.isfinite().all() for p in two.model.parameters())


def test_the_processes_listen_on_loopback_alone(two):
    assert two.addresses == {"127.0.0.1"}


def test_nothing_is_left_of_the_processes(two):
    assert two.after == two.before


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("validated", [3, 10, 13])
def test_all_devices_together_see_each_series_once(tiny_model, italy, devices, validated):
    config = replace(compose(*TINY).train, batch_size=12, devices=devices)
    batches = loop.Batches(tiny_model(italy), config, replace(italy, val=italy.val[:validated]), None, 0)
    fitted, seen = [], []
    for rank in range(devices):
        batches.trainer = SimpleNamespace(world_size=devices, global_rank=rank)
        train, val = batches.train_dataloader(), batches.val_dataloader()
        fitted.append([list(batch) for batch in train.sampler])
        seen += [i for batch in val.sampler for i in batch]
        if devices > 1:
            train.sampler.set_epoch(1)
            assert [list(batch) for batch in train.sampler] != fitted[-1]
    assert sorted(seen) == list(range(validated))
    together = [[i for part in parts for i in part] for parts in zip(*fitted, strict=True)]
    assert [len(batch) for batch in together] == [12, 12, 12, 12, 6]
    assert sorted(i for batch in together for i in batch) == list(range(54))


def test_one_device_is_no_part_of_what_is_asked_and_two_are():
    one, two, written = (compose(*TINY, *more) for more in ((), ["train.devices=2"], ["train.devices=1"]))
    assert "devices" not in one.train.asked()
    assert identity(one) == identity(written) != identity(two)
    assert two.train.asked() == {**one.train.asked(), "devices": 2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.devices=3",
            "train.batch_size=16 cannot be split evenly among train.devices=3; use a multiple",
        ),
        ("train.devices=0", "≥ 1"),
    ],
)
def test_batches_that_cannot_be_split_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        compose(override)


def test_a_model_that_fits_itself_takes_one_device():
    with pytest.raises(Unsupported, match=r"train\.devices=2: model=minirocket is not trained by gradient"):
        pipeline.able(compose("model=minirocket", "train.devices=2"))


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"train\.devices=4, but PyTorch sees 2 GPU\(s\) here"):
        pipeline.able(compose("train.device=cuda", "train.devices=4"))
    pipeline.able(compose("train.device=cuda", "train.devices=2"))


def test_fewer_validation_series_than_devices_are_refused(tiny_model, italy):
    few = replace(italy, val=italy.val[:1])
    with pytest.raises(ConfigError, match="cannot share 1 validation series"):
        training.fit(tiny_model(italy), replace(WHOLE, devices=2), few, 0, "test")


@pytest.mark.slow
def test_same_seed_and_devices_same_weights(tiny, italy, tmp_path):
    """With dropout, random order and a last batch that is not full."""
    fits = [
        training.train(tiny.model, replace(tiny.train, devices=n), seed, italy, Cache(tmp_path / where))
        for where, seed, n in (("a", 1, 2), ("b", 1, 2), ("b", 2, 2), ("b", 1, 1))
    ]
    a, b, other_seed, one = (fit.load() for fit in fits)
    assert fits[0].signature == fits[1].signature
    assert len({fit.signature for fit in fits}) == 3
    assert same(a, b)
    assert fits[0].history() == fits[1].history()
    assert not same(a, other_seed)
    assert not same(a, one)
    # The processes' own time, which the operating system adds when they have ended: two start and compute.
    assert fits[1].entry.cost["cpu_s"] > fits[3].entry.cost["cpu_s"] + 1


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_batch_norms_are_kept_as_they_were_validated(load_data, ema):
    from tsexp import models

    cfg = compose(*TINY[:2], "model=fcn", "model.filters=[8,8]", "model.kernels=[5,3]")
    dataset = load_data("ItalyPowerDemand")
    model = models.build(cfg.model, dataset)
    recipe = replace(cfg.train, devices=2, ema=ema, select="last", patience=1, epochs=3)
    history = training.fit(model, recipe, dataset, 0, "test")
    accuracy, loss = evaluate(model, dataset, dataset.val)
    assert history[-1]["val_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert history[-1]["val_loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_an_error_on_a_device_is_told_in_a_line_and_leaves_no_process(tiny_model, italy):
    before = children()  # where tests run side by side, what starts their processes
    recipe = replace(WHOLE, devices=2, lr=1e30, clip=0.0, ema=0.0, warmup=0.0, select="last")
    with pytest.raises(
        RuntimeError, match=r"on one of the devices: RuntimeError: the loss is not a number.*"
    ):
        training.fit(tiny_model(italy), recipe, italy, 0, "test")
    assert children() == before


LEARNING = [
    "data=italy_power_demand",
    *TINY,
    *ALIKE,
    "train.epochs=40",
    "train.max_steps=0",
    "train.lr=0.003",
]


@pytest.mark.slow
def test_from_the_command_line_it_learns_about_as_much_as_on_one_device(tmp_path):
    for more in ([], ["train.devices=2"]):
        done = tsexp(tmp_path, *LEARNING, *more, "train.progress=true", fresh=True)
        assert "Traceback" not in done.stderr
        assert "distributed" not in done.stderr
        assert done.stderr.count("train ItalyPowerDemand") == 1
    one, two = sorted(runs(tmp_path), key=lambda run: run.info.start_time)
    assert [run.data.params["train.devices"] for run in (one, two)] == ["1", "2"]
    accuracies = [run.data.metrics["test/accuracy"] for run in (one, two)]
    assert min(accuracies) > 0.8
    assert abs(accuracies[0] - accuracies[1]) < 0.1
    again = tsexp(tmp_path, *LEARNING, "train.devices=2", fresh=True)
    assert "measured before" in again.stdout


@pytest.mark.slow
def test_jobs_of_a_sweep_train_and_fine_tune_on_two_devices(tmp_path):
    """They are forks of a warm server; what a job has trained comes back in the next."""
    done = tsexp(tmp_path, "-m", "train.devices=2", "prune.ratio=0,0.5", *ITALY)
    assert "Traceback" not in done.stderr
    jobs = runs(tmp_path, "tags.`tsexp.stage` != 'sweep'")
    assert {(run.info.status, run.data.params["prune.ratio"]) for run in jobs} >= {
        ("FINISHED", "0.0"),
        ("FINISHED", "0.5"),
    }
    dense = list((tmp_path / "cache" / "dense").glob("*/entry.json"))
    assert [json.loads(entry.read_text())["key"]["train"]["devices"] for entry in dense] == [2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "swept", "code"),
    [(signal.SIGINT, [], 130), (signal.SIGTERM, ["-m"], 143), (signal.SIGKILL, [], -signal.SIGKILL)],
    ids=["interrupted", "sweep terminated", "killed"],
)
def test_all_processes_of_a_fit_end_with_it(tmp_path, sent, swept, code):
    forever = ["train.devices=2", "train.epochs=1000000", "train.max_steps=0", "train.patience=0"]
    command = [sys.executable, "-m", "tsexp", *swept, *ITALY, *forever]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        contextlib.ExitStack() as whatever_fails,
    ):
        whatever_fails.callback(process.kill)
        until = time.monotonic() + 200
        fitting = []
        # Until both compute: their imports take less.
        while len(fitting) < 2 or min(sum(p.cpu_times()[:2]) for p in fitting) < 10:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.5)
            with contextlib.suppress(psutil.NoSuchProcess):
                fitting = [
                    p
                    for p in psutil.Process(process.pid).children(recursive=True)
                    if "spawn_main" in str(p.cmdline())
                ]
        all_of_it = [psutil.Process(pid) for pid in everybody(process)]
        os.kill(process.pid, sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    assert not psutil.wait_procs(all_of_it, 10)[1]  # `multiprocessing`'s tracker ends just after the others
    assert sent == signal.SIGKILL or not list(tmp_path.glob("cache/dense/*.partial"))
