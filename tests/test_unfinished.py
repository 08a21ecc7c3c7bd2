"""A training whose process dies goes on where it was last kept, to the same weights, at the summed cost."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import TINY, compose
from test_cache import DAMAGES, WHOLE
from test_training import same
from tsexp import cache as caches
from tsexp import compress, data, training
from tsexp.cache import Cache
from tsexp.training import loop

EPOCHS = 9
RECIPES = {
    "t3": ("model=t3", "train.ema=0.9"),
    "t1 selects the best": ("model=t1", "train=paper", "train.select=best"),
    "t1 may stop early": ("model=t1", "train=paper", "train.patience=3", "train.lr=0.05"),
    "t4": ("model=t4", "model.dropout=0.1"),
    "fcn": ("model=fcn", "model.filters=[8,16,8]", "train.precision=bf16"),
    "validated now and then": ("model=t3", "train.ema=0", "train.epochs=52"),
    "inceptiontime": ("model=inceptiontime", "model.members=2", "model.filters=[4,4,4]"),
}


class Dies(Exception):
    """In the place of a death."""


def small(*overrides):
    cut = [o for o in TINY if not o.startswith("model.")] if "model=" in "".join(overrides) else TINY
    cfg = compose(*cut, "data=italy_power_demand", *overrides)
    epochs = cfg.train.epochs if "train.epochs=52" in overrides else EPOCHS
    return replace(cfg, train=replace(cfg.train, epochs=epochs, min_steps=0, max_steps=0, batch_size=32))


def dying(monkeypatch, kept, died):
    """Let fits keep what they have at the end of epoch `kept`, and die at the end of epoch `died`."""
    ordinary = loop.Keeping.on_train_epoch_end

    def on_train_epoch_end(self, trainer, pl_module):
        monkeypatch.setattr(loop, "KEEP_S", 0.0 if trainer.current_epoch == kept else float("inf"))
        ordinary(self, trainer, pl_module)
        if trainer.current_epoch == died:
            raise Dies

    monkeypatch.setattr(loop.Keeping, "on_train_epoch_end", on_train_epoch_end)


def train_and_die(monkeypatch, cfg, dataset, cache, kept, died):
    with monkeypatch.context() as patched:
        dying(patched, kept, died)
        with pytest.raises(Dies):
            training.train(cfg.model, cfg.train, 0, dataset, cache)


def left(root):
    return sorted(f.name for f in root.glob("*/*") if f.suffix not in (".lock",))


@pytest.fixture(scope="module")
def never_died(tmp_path_factory):
    """What fits are held against, each made once."""
    return Cache(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("kept", "died"), [(0, 0), (3, 5), (EPOCHS - 2, EPOCHS - 1)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fit_that_died_goes_on_to_the_same_weights(
    italy, never_died, tmp_path, monkeypatch, recipe, kept, died
):
    cfg = small(*RECIPES[recipe])
    whole = training.train(cfg.model, cfg.train, 0, italy, never_died)
    if died >= len(whole.history()):
        pytest.skip("it stops before")
    cache = Cache(tmp_path / "died")
    train_and_die(monkeypatch, cfg, italy, cache, kept, died)
    assert left(cache.root) == [f"{whole.signature}.unfinished"]
    steps = []
    ordinary = loop.Fitting.training_step
    monkeypatch.setattr(
        loop.Fitting, "training_step", lambda self, *args: [steps.append(1), ordinary(self, *args)][1]
    )
    again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert not again.entry.reused
    assert same(again.load(), whole.load())
    assert again.history() == whole.history()
    assert len(steps) == (len(whole.history()) - kept - 1) * -(-len(italy.fit) // 32)
    assert left(cache.root) == [whole.signature]


def test_one_that_died_twice_goes_on_from_the_second_death(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    cache = Cache(tmp_path / "died")
    for kept in (1, 4):
        train_and_die(monkeypatch, cfg, italy, cache, kept, kept)
    again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert same(again.load(), whole.load())


@pytest.mark.parametrize("step", ["finetune", "qat"])
def test_steps_of_a_compression_go_on_too(italy, tmp_path, monkeypatch, step):
    asked = {"finetune": ("prune.ratio=0.5", f"prune.finetune_epochs={EPOCHS}", "prune.distill=0.5")}
    asked["qat"] = ("quant.mode=qat", f"quant.qat_epochs={EPOCHS}", "quant.calibration_series=16")
    cfg = small("train.warmup=0", *asked[step])
    made = {}
    for where in ("whole", "died"):
        cache = Cache(tmp_path / where)
        dense = training.train(cfg.model, cfg.train, 0, italy, cache)
        if where == "died":
            with monkeypatch.context() as patched:
                dying(patched, 3, 5)
                with pytest.raises(Dies):
                    compress.compress(dense, cfg, italy, cache)
            assert list(cache.root.glob(f"{step}/*.unfinished/1/training.ckpt"))
        made[where] = compress.compress(dense, cfg, italy, cache)[step]
        assert not list(cache.root.glob("*/*.unfinished"))
    assert same(made["died"].load(), made["whole"].load())
    assert made["died"].history() == made["whole"].history()


def cut(folder):
    os.truncate(folder / "training.ckpt", 1000)


def unseal(folder):
    (folder / "entry.json").unlink()


def mistake(folder):
    (folder / "entry.json").write_text("{")


@pytest.mark.parametrize("damage", [cut, unseal, mistake])
def test_what_is_damaged_is_told_and_not_used(italy, tmp_path, monkeypatch, caplog, damage):
    cfg = small("model=t3")
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    cache = Cache(tmp_path / "died")
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (folder,) = cache.root.glob("*/*.unfinished/1")
    damage(folder)
    with caplog.at_level(logging.WARNING, "tsexp"):
        again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert [str(folder) in r.getMessage() and "not used" in r.getMessage() for r in caplog.records] == [True]
    assert same(again.load(), whole.load())
    assert left(cache.root) == [whole.signature]


@pytest.mark.parametrize("damage", [d for d in DAMAGES if d not in WHOLE])
def test_whatever_happens_to_it_a_stage_begins_anew_and_can_keep_more(tmp_path, damage):
    cache = Cache(tmp_path)

    def build(folder, unfinished, dies):
        found.append(unfinished.found and (unfinished.found / "made.txt").read_text())
        unfinished.keep(lambda f: write(f / "made.txt"))
        if dies:
            raise Dies
        write(folder / "made.txt")

    def write(file):
        file.write_text("so far" * 100)

    def run(dies):
        unfinished = cache.unfinished("dense", 1, {})
        return cache.stage("dense", 1, {}, lambda folder: build(folder, unfinished, dies), unfinished)

    found = []
    with pytest.raises(Dies):
        run(dies=True)
    (folder,) = tmp_path.glob("*/*.unfinished/1")
    DAMAGES[damage](folder)
    with pytest.raises(Dies):
        run(dies=True)
    run(dies=False)
    assert found == [None, None, "so far" * 100]
    assert len(left(tmp_path)) == 1


def test_without_validation_series_it_goes_on_as_well(load_data, tmp_path, monkeypatch):
    cfg, italy = small("model=t3"), load_data("ItalyPowerDemand", val_fraction=0.0)
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    train_and_die(monkeypatch, cfg, italy, Cache(tmp_path / "died"), 3, 3)
    again = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "died"))
    assert same(again.load(), whole.load())
    assert again.history() == whole.history()


def test_what_does_not_say_who_kept_it_is_told_and_not_used(tmp_path, caplog):
    cache = Cache(tmp_path)
    unfinished = cache.unfinished("dense", 1, {}, {"kept": 1})
    folder = unfinished.folder / "1"
    folder.mkdir(parents=True)
    caches.seal(folder, {"cost": {"wall_s": 1.0, "cpu_s": 1.0, "energy_j": {}}})
    with caplog.at_level(logging.WARNING, "tsexp"):
        cache.stage("dense", 1, {}, lambda f: (f / "made.txt").touch(), unfinished)
    assert ["of other libraries (None)" in r.getMessage() for r in caplog.records] == [True]
    assert unfinished.found is None


@pytest.mark.parametrize("what", ["lightning", "kept"])
def test_what_another_version_kept_is_told_and_not_used(italy, tmp_path, monkeypatch, caplog, what):
    cfg = small("model=t3")
    cache = Cache(tmp_path)
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (note,) = cache.root.glob("*/*.unfinished/1/entry.json")
    assert json.loads(note.read_text())["about"] == training.keepers()
    now = training.keepers() | {what: "99"}
    monkeypatch.setattr(training.fitted, "keepers", lambda: now)
    begun = []
    monkeypatch.setattr(loop.Progress, "on_train_start", lambda s, t, m: begun.append(t.current_epoch))
    with caplog.at_level(logging.WARNING, "tsexp"):
        training.train(cfg.model, cfg.train, 0, italy, cache)
    assert begun == [0]
    assert ["of other libraries" in r.getMessage() for r in caplog.records] == [True]


def kept_instead(cache, content):
    """Put something else in the place of what was kept, sealed as if it were that."""
    (folder,) = cache.root.glob("*/*.unfinished/1")
    about = json.loads((folder / "entry.json").read_text())
    torch.save(content, folder / "training.ckpt")
    caches.seal(folder, about)
    return folder


def test_nothing_in_it_is_executed(italy, tmp_path, monkeypatch, caplog):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    cfg = small("model=t3")
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    cache = Cache(tmp_path / "died")
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    kept_instead(cache, {"state_dict": Trap()})
    with caplog.at_level(logging.WARNING, "tsexp"):
        again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert ["cannot be read" in r.getMessage() for r in caplog.records] == [True]
    assert same(again.load(), whole.load())
    assert not (tmp_path / "executed").exists()


def test_a_fit_that_begins_anew_costs_what_it_costs_alone(tmp_path):
    (tmp_path / "training.ckpt").write_text("no checkpoint")
    unfinished = SimpleNamespace(found=tmp_path, before={"cpu_s": 5.0})
    assert loop.Keeping(unfinished).checkpoint() is None
    assert unfinished.before is None


def test_a_fit_does_not_go_on_with_other_features(italy, tmp_path, monkeypatch, caplog):
    """Another machine may have chosen others."""
    cfg = small("model=t4h", "model.d_model=16", "model.heads=4", "model.ffn=24")
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    for other, warned in ((False, []), (True, [True])):
        caplog.clear()
        cache = Cache(tmp_path / str(other))
        train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
        (file,) = cache.root.glob("*/*.unfinished/1/training.ckpt")
        content = torch.load(file, weights_only=True)
        assert content["callbacks"]["Keeping"]["arch"]
        if other:
            kept_instead(
                cache, content | {"callbacks": content["callbacks"] | {"Keeping": {"arch": "another"}}}
            )
        again = training.train(cfg.model, cfg.train, 0, italy, cache)
        assert ["sees other features" in r.getMessage() for r in caplog.records] == warned
        assert same(again.load(), whole.load())


def test_what_does_not_fit_is_named(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    cache = Cache(tmp_path)
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (file,) = cache.root.glob("*/*.unfinished/1/training.ckpt")
    content = torch.load(file, weights_only=True)
    folder = kept_instead(cache, {k: v for k, v in content.items() if k != "optimizer_states"})
    with pytest.raises(RuntimeError, match=f"cannot go on from what is kept in {folder.parent}; delete it"):
        training.train(cfg.model, cfg.train, 0, italy, cache)


def test_the_one_before_stays_for_a_machine_that_loses_its_power(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    cache = Cache(tmp_path / "died")
    for epoch in (1, 3, 5):
        train_and_die(monkeypatch, cfg, italy, cache, epoch, epoch)
    (unfinished,) = cache.root.glob("*/*.unfinished")
    assert sorted(f.name for f in unfinished.iterdir()) == ["2", "3"]
    cut(unfinished / "3")
    begun = []
    ordinary = loop.Progress.on_train_start
    monkeypatch.setattr(
        loop.Progress,
        "on_train_start",
        lambda s, t, m: [begun.append(t.current_epoch), ordinary(s, t, m)][1],
    )
    again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert begun == [4]
    assert same(again.load(), whole.load())


def test_what_is_left_beside_an_entry_goes(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    cache = Cache(tmp_path)
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (unfinished,) = cache.root.glob("*/*.unfinished")
    with monkeypatch.context() as patched:
        patched.setattr(caches.shutil, "rmtree", lambda *_, **__: None)
        made = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert unfinished.exists()
    assert training.train(cfg.model, cfg.train, 0, italy, cache).entry.reused
    assert left(tmp_path) == [made.signature]


def test_a_full_disk_ends_no_fit_that_could_not_be_kept(italy, tmp_path, monkeypatch, caplog):
    cfg = small("model=t3")
    monkeypatch.setattr(loop, "KEEP_S", 0.0)

    def full(self, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(loop.L.Trainer, "save_checkpoint", full)
        with caplog.at_level(logging.WARNING, "tsexp"):
            made = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path))
    assert {r.getMessage()[:35] for r in caplog.records} == {"not kept while unfinished: no space"}
    assert left(tmp_path) == [made.signature]


@pytest.mark.parametrize("error", [OSError("stale file handle"), MemoryError(), RuntimeError("enough")])
def test_nor_does_anything_else_that_a_disk_may_have(tmp_path, caplog, error):
    unfinished = Cache(tmp_path).unfinished("dense", 1, {})

    def build(folder):
        (folder / "made.txt").touch()
        unfinished.keep(refuse)

    def refuse(folder):
        (folder / "half.txt").touch()
        raise error

    with caplog.at_level(logging.WARNING, "tsexp"):
        made = Cache(tmp_path).stage("dense", 1, {}, build, unfinished)
    assert [repr(error) in r.getMessage() for r in caplog.records] == [True]
    assert left(tmp_path) == [made.signature]


def test_a_mistake_ends_it(tmp_path):
    unfinished = Cache(tmp_path).unfinished("dense", 1, {})
    with pytest.raises(TypeError):
        Cache(tmp_path).stage("dense", 1, {}, lambda _: unfinished.keep(None), unfinished)


class Counter:
    """Of a plug: asked while it counts, or twice, it fails."""

    source = "mains:plug"

    def __init__(self):
        self.counting = None

    def begin(self):
        assert self.counting is None
        self.counting = True

    def end(self):
        assert self.counting
        self.counting = False
        return 7.0


@pytest.mark.parametrize("dies", [False, True])
def test_an_entry_cost_what_both_processes_took(tmp_path, dies):
    cache = Cache(tmp_path, Counter)

    def build(folder, unfinished, dies):
        time.sleep(0.05)
        (folder / "made.txt").write_text(str(unfinished.found and unfinished.found.name))
        unfinished.keep(lambda f: (f / "part.txt").write_text("so far"))
        if dies:
            time.sleep(0.3)
            raise Dies

    for death in (True, False) if dies else (False,):
        unfinished = cache.unfinished("dense", 1, {})
        with pytest.raises(Dies) if death else contextlib.nullcontext():
            entry = cache.stage("dense", 1, {}, lambda f, u=unfinished, d=death: build(f, u, d), unfinished)
    assert (entry.folder / "made.txt").read_text() == ("1" if dies else "None")
    # What came after the last time that it was kept is in no sum; nor are joules where a process died.
    least = 0.1 if dies else 0.05
    assert least <= entry.cost["wall_s"] < least + 0.25
    assert 0 < entry.cost["cpu_s"] < 0.3
    assert entry.cost["energy_j"] == ({} if dies else {"mains:plug": 7.0})
    assert left(tmp_path) == [entry.signature]


@pytest.mark.parametrize(("patience", "recipe"), [(0, ()), (1, ("train.lr=1e-30",))])
def test_the_end_is_not_kept(italy, tmp_path, monkeypatch, patience, recipe):
    cfg = small("model=t1", "train=paper", *recipe)
    cfg = replace(cfg, train=replace(cfg.train, patience=patience))
    monkeypatch.setattr(loop, "KEEP_S", 0.0)
    kept = []
    monkeypatch.setattr(caches.Unfinished, "keep", lambda self, write: kept.append(1))
    made = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path))
    assert len(kept) == len(made.history()) - 1
    assert (len(made.history()) < EPOCHS) == bool(patience)


def test_without_interruption_nothing_is_kept_within_minutes(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    assert loop.KEEP_S >= 60
    monkeypatch.setattr(loop.L.Trainer, "save_checkpoint", None)
    training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import compose
from test_unfinished import small
from tsexp import data, training
from tsexp.cache import Cache
from tsexp.training import loop

loop.KEEP_S = 0.0
ordinary = loop.Keeping.on_train_epoch_end

def slowly(self, trainer, pl_module):
    ordinary(self, trainer, pl_module)
    if trainer.current_epoch == 4:
        print("kept", flush=True)
        time.sleep(600)

loop.Keeping.on_train_epoch_end = slowly
cfg = small("model=t3")
training.train(cfg.model, cfg.train, 0, data.load(cfg.data, {datasets!r}, cfg.seed), Cache(Path(sys.argv[1])))
"""


def test_kill_9_in_the_middle_of_a_training(tmp_path):
    cfg = small("model=t3")
    italy = data.load(cfg.data, cfg.paths.data, cfg.seed)
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
    code = KILLED.format(tests=str(Path(__file__).parent), datasets=cfg.paths.data)
    command = [sys.executable, "-c", code, str(tmp_path / "died")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "kept\n"
        os.kill(process.pid, signal.SIGKILL)
    cache = Cache(tmp_path / "died")
    assert len(list(cache.root.glob("*/*.unfinished/5/training.ckpt"))) == 1
    again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert same(again.load(), whole.load())
    assert again.history() == whole.history()
    assert left(cache.root) == [whole.signature]
