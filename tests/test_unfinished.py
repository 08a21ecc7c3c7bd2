"""A training whose process dies goes on where it was last kept, to the same weights, at the summed cost."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import TINY, compose
from test_cache import DAMAGES, WHOLE
from test_training import same
from tsexp import cache as caches
from tsexp import compress, data, training
from tsexp.cache import Cache, CacheError, Meter
from tsexp.training import loop

EPOCHS = 9
RECIPES = {
    "t3": ("model=t3", "train.ema=0.9"),
    "t1 selects the best": ("model=t1", "train=paper", "train.select=best"),
    "t1 may stop early": ("model=t1", "train=paper", "train.patience=3", "train.lr=0.05"),
    "t4": ("model=t4", "model.dropout=0.1"),
    "fcn": ("model=fcn", "train.precision=bf16"),
    "inceptiontime": ("model=inceptiontime", "model.members=2", "model.filters=[4,4,4]"),
}


class Dies(Exception):
    """In the place of a death."""


def small(*overrides):
    cut = [o for o in TINY if not o.startswith("model.")] if "model=" in "".join(overrides) else TINY
    cfg = compose(*cut, "data=italy_power_demand", *overrides)
    return replace(cfg, train=replace(cfg.train, epochs=EPOCHS, min_steps=0, max_steps=0, batch_size=32))


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


@pytest.mark.parametrize(("kept", "died"), [(0, 0), (3, 5), (EPOCHS - 2, EPOCHS - 1)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_fit_that_died_goes_on_to_the_same_weights(italy, tmp_path, monkeypatch, recipe, kept, died):
    cfg = small(*RECIPES[recipe])
    whole = training.train(cfg.model, cfg.train, 0, italy, Cache(tmp_path / "whole"))
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
        (unfinished,) = cache.root.glob("*/*.unfinished/*")
    again = training.train(cfg.model, cfg.train, 0, italy, cache)
    assert unfinished.name == "2"
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


def test_another_lightning_begins_anew(italy, tmp_path, monkeypatch):
    cfg = small("model=t3")
    cache = Cache(tmp_path)
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (note,) = cache.root.glob("*/*.unfinished/1/entry.json")
    assert json.loads(note.read_text())["about"].keys() == {"lightning", "torch"}
    ordinary = caches.metadata.version
    monkeypatch.setattr(caches.metadata, "version", lambda n: "99" if n == "lightning" else ordinary(n))
    begun = []
    monkeypatch.setattr(loop.Progress, "on_train_start", lambda s, t, m: begun.append(t.current_epoch))
    training.train(cfg.model, cfg.train, 0, italy, cache)
    assert begun == [0]


def test_nothing_in_it_is_executed(italy, tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    cfg = small("model=t3")
    cache = Cache(tmp_path)
    train_and_die(monkeypatch, cfg, italy, cache, 3, 3)
    (folder,) = cache.root.glob("*/*.unfinished/1")
    about = json.loads((folder / "entry.json").read_text())
    torch.save({"state_dict": Trap()}, folder / "training.ckpt")
    caches.seal(folder, about)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        training.train(cfg.model, cfg.train, 0, italy, cache)
    assert not (tmp_path / "executed").exists()


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


def test_what_fails_for_another_reason_ends_it(tmp_path):
    cache = Cache(tmp_path)
    unfinished = cache.unfinished("dense", 1, {})

    def build(_folder):
        unfinished.keep(lambda folder: (folder / "no" / "where").write_text("x"))

    with pytest.raises(FileNotFoundError):
        cache.stage("dense", 1, {}, build, unfinished)
    assert not list(tmp_path.glob("*/*.unfinished/*"))
    assert CacheError not in FileNotFoundError.__mro__


class Counter:
    """Counts a joule whenever it is asked, or what `joules` says."""

    most_w = 1e12

    def __init__(self, source="zeus:rapl", *joules):
        self.source, self.joules, self.counting = source, list(joules), False

    def begin(self):
        assert not self.counting
        self.counting = True

    def end(self):
        assert self.counting
        self.counting = False
        return self.joules.pop(0) if self.joules else 1.0


BEFORE = {"wall_s": 100.0, "cpu_s": 50.0, "energy_j": {"zeus:rapl": 7.0}}


@pytest.mark.parametrize(
    ("counter", "before", "energy_j"),
    [
        (Counter(), None, {"zeus:rapl": 3.0}),
        (Counter(), BEFORE, {"zeus:rapl": 10.0}),
        (Counter("mains:plug"), BEFORE, {}),
        (None, BEFORE, {}),
        (Counter(), BEFORE | {"energy_j": {}}, {}),
        (Counter("zeus:rapl", 1.0, -1.0, 1.0), BEFORE, {}),
    ],
    ids=["alone", "both", "another source", "none now", "none then", "wrapped meanwhile"],
)
def test_costs_add_up_over_processes(counter, before, energy_j):
    meter = Meter(counter, before)
    costs = [meter.cost(more=more) for more in (True, True, False)]
    assert costs[-1]["energy_j"] == energy_j
    assert [c["wall_s"] for c in costs] == sorted(c["wall_s"] for c in costs)
    least = before or {"wall_s": 0.0, "cpu_s": 0.0}
    assert all(0 <= costs[-1][k] - least[k] < 1 for k in ("wall_s", "cpu_s"))


def test_an_entry_cost_what_both_processes_took(tmp_path):
    class Died(Exception):
        pass

    cache = Cache(tmp_path, Counter)
    for dies in (True, False):
        unfinished = cache.unfinished("dense", 1, {})

        def build(folder, unfinished=unfinished, dies=dies):
            time.sleep(0.05)
            (folder / "made.txt").write_text(str(unfinished.found and unfinished.found.name))
            unfinished.keep(lambda f: (f / "part.txt").write_text("so far"))
            if dies:
                raise Died

        try:
            entry = cache.stage("dense", 1, {}, build, unfinished)
        except Died:
            assert dies
    assert (entry.folder / "made.txt").read_text() == "1"
    assert entry.cost["wall_s"] >= 0.1
    assert entry.cost["energy_j"] == {"zeus:rapl": 3.0}
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
