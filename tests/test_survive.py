"""What becomes of results when something dies: the store, the disk, a process, the machine."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from commands import environment
from conftest import TINY, compose
from tsexp import merge, pipeline, runtimes, status, sync, tracking, training
from tsexp.cache import Cache, full
from tsexp.config import Config, ConfigError
from tsexp.config.compose import composed
from tsexp.energy import Record, measuring, worker
from tsexp.sweeps import jobs, sweep
from tsexp.system import alive, signals
from tsexp.tracking import client, spool
from tsexp.tracking import model as tracking_model
from tsexp.training import Fitted

DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def made(tmp_path_factory, italy, tiny_model):
    """A dataset, a model and its artifact: what it takes to have a result without an experiment."""
    folder = tmp_path_factory.mktemp("made")
    cfg, cache = compose(*TINY, "data=italy_power_demand"), Cache(folder)
    history = [{"epoch": i, "train_loss": 2.0 - i} for i in range(3)]
    dense = Fitted(cache.stage("dense", 1, {}, lambda to: training.save(tiny_model(italy), history, to)))
    artifact = runtimes.deploy(dense, cfg.quant, cfg.runtime, italy, cache)
    scores = runtimes.load(artifact.folder)(italy.x_test)
    return SimpleNamespace(dense=dense, artifact=artifact, scores=scores, dataset=italy)


def record_of(made):
    zero = dict.fromkeys((f"vs_dense/accuracy_drop_{end}" for end in ("pt", "lo", "hi")), 0.0)
    saving = dict.fromkeys((f"vs_dense/energy_saving_{end}" for end in ("pct", "lo", "hi")), 30.0)
    speedup = dict.fromkeys((f"vs_dense/speedup{end}" for end in ("", "_lo", "_hi")), 1.5)
    return Record(
        metrics={"test/accuracy": 0.7, "test/control_accuracy": 0.7} | zero | saving | speedup,
        energy_source="estimated:cpu_time",
        invalid_reasons=(),
        warnings=(),
        raw={"scope": "one process"},
        scores=made.scores,
        reference_scores=made.scores,
        labels=made.dataset.y_test,
        manifest=made.artifact.manifest,
        hardware={"cpu": "a CPU"},
    )


def measure(made, cfg, signature="a signature", parent=None):
    """Run a job whose work is made up; return its run."""
    with tracking.tracked(cfg, "a: 1\n", f"job {signature}", signature, parent) as run:
        run.log(made.dataset, {"dense": made.dense}, [], made.artifact, record_of(made))
    return run.run_id


@pytest.fixture
def cfg(tmp_path, empty_store):
    """An experiment whose store, spool and cache lie in a folder of this test."""
    return at(tmp_path, empty_store)


def at(folder, empty_store):
    folder.mkdir(exist_ok=True)
    shutil.copy(empty_store, folder / "mlflow.db")
    return compose(
        *TINY,
        "data=italy_power_demand",
        f"paths.cache={folder}/cache",
        f"paths.spool={folder}/spool",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    )


def dead(cfg):
    """The same, with a store that does not answer."""
    return replace(cfg, tracking=replace(cfg.tracking, uri=DEAD))


def runs(cfg, status="FINISHED"):
    store = tracking.store(cfg.tracking)
    number = client.experiment_of(store, cfg.tracking)
    return store.search_runs([number], f"attributes.status = '{status}'")


def whole(cfg, run):
    """There is all of it, once."""
    store = tracking.store(cfg.tracking)
    names = {a.path for a in store.list_artifacts(run.info.run_id)}
    files = {"config.yaml", "windows.json", "predictions.csv", "manifest.json", "hardware.json", "model"}
    (output,) = run.outputs.model_outputs
    return (
        files <= names
        and run.data.metrics["test/accuracy"] == 0.7
        and len(store.get_metric_history(run.info.run_id, "dense/train_loss")) == 3
        and run.data.params["data.name"] == "ItalyPowerDemand"
        and run.data.tags["tsexp.stage"] == "done"
        and len(run.inputs.dataset_inputs) == 2
        and str(store.get_logged_model(output.model_id).status) == "READY"
        and f"runs:/{run.info.run_id}/model"
        in store.get_logged_model(output.model_id).tags["mlflow.note.content"]
    )


def models(cfg):
    store = tracking.store(cfg.tracking)
    return store.search_logged_models([client.experiment_of(store, cfg.tracking)])


def waiting(cfg):
    return [p for p in Path(cfg.paths.spool).iterdir() if not p.name.startswith(".")]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(spool, "BOUND_S", 0)
    monkeypatch.setattr(spool.deliver, "__defaults__", (0,))


def keep(made, cfg, monkeypatch, signature="a signature"):
    """Measure while the store is gone; return the parcel."""
    before = set(waiting(cfg)) if Path(cfg.paths.spool).exists() else set()
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_until_it_answers", fail)
        with pytest.raises(tracking.NotDelivered, match=r"not lost, it is kept in .*/spool/") as told:
            measure(made, cfg, signature)
    (new,) = set(waiting(cfg)) - before
    assert told.value.folder == new
    assert "\n" not in str(told.value)
    return new


def fail(*_, **__):
    raise ConfigError("the store does not answer")


def test_a_result_is_written_down_before_the_store_gets_it_and_removed_afterwards(made, cfg):
    run_id = measure(made, cfg)
    (run,) = runs(cfg)
    assert run.info.run_id == run_id
    assert whole(cfg, run)
    assert waiting(cfg) == []
    assert Path(cfg.paths.spool).stat().st_mode & 0o077 == 0


def test_a_store_that_is_gone_costs_a_line_and_not_the_result(made, cfg, impatient, caplog):
    gone = dead(cfg)
    with pytest.raises(tracking.NotDelivered, match=r"127\.0\.0\.1:9 does not answer") as told:
        measure(made, gone, parent="a sweep")
    assert "tsexp sync" in str(told.value)
    assert "the result will be kept in" in caplog.text
    (parcel,) = waiting(cfg)
    # At a store that answers, whatever its address is now.
    spool.deliver(parcel, cfg.tracking)
    (run,) = runs(cfg)
    assert whole(cfg, run)
    assert run.data.tags["mlflow.parentRunId"] == "a sweep"


def test_of_a_sweep_a_store_that_is_gone_is_not_made_anew(made, cfg, impatient):
    """Where it was, there is the empty folder that its disk was mounted on."""
    tracking.store(cfg.tracking)
    tracking.expect(cfg.tracking)
    file = client.stores.file_of(cfg.tracking.uri)
    file.rename(file.with_name("away.db"))
    with pytest.raises(tracking.NotDelivered, match="is gone; it was there when this began") as told:
        measure(made, cfg, parent="a sweep")
    assert f"tsexp sync tracking.uri={cfg.tracking.uri} tracking.experiment=tsexp" in str(told.value)
    assert not file.exists()
    (parcel,) = waiting(cfg)
    file.with_name("away.db").rename(file)
    spool.deliver(parcel, cfg.tracking)
    (run,) = runs(cfg)
    assert whole(cfg, run)


def test_of_a_sweep_an_experiment_that_is_gone_is_not_made_anew(cfg, empty_store):
    tracking.store(cfg.tracking)
    tracking.expect(cfg.tracking)
    shutil.copy(empty_store, client.stores.file_of(cfg.tracking.uri))
    client._ready.cache_clear()
    with pytest.raises(ConfigError, match="has no experiment tsexp; it had one when this began"):
        tracking.store(cfg.tracking)


def test_jobs_of_a_sweep_expect_its_store(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(tracking, "expect", lambda store: told.append(store.uri))
    monkeypatch.setattr(pipeline, "run", lambda *_: ("a run", False))
    monkeypatch.setattr(pipeline, "check", lambda cfg: None)
    monkeypatch.setattr(jobs, "_run_apart", lambda *_: ("killed", {}))
    asked = composed("data=italy_power_demand", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    jobs.execute(asked, "alone", tmp_path, None)
    assert told == []
    jobs.execute(asked, "one of several", tmp_path, "a sweep")
    monkeypatch.setattr(jobs, "_at_once", lambda *_: None)
    jobs.execute_apart(asked, "one of several", tmp_path, "a sweep")
    assert told == [f"sqlite:///{tmp_path}/mlflow.db"] * 2


def test_alone_a_job_without_a_store_is_refused_before_any_work(made, cfg):
    with pytest.raises(ConfigError, match="does not answer"):
        measure(made, dead(cfg))
    assert not Path(cfg.paths.spool).exists()


def test_what_was_kept_counts_as_measured_before(made, cfg, monkeypatch):
    keep(made, cfg, monkeypatch)
    assert runs(cfg) == []
    known = spool.known(cfg.paths, cfg.tracking, "a signature")
    assert [run.info.run_id for run in runs(cfg)] == [known]
    assert spool.known(cfg.paths, cfg.tracking, "another") is None


class Killed(BaseException):
    """Nobody catches it, as nobody catches SIGKILL."""


class Failing:
    """A client whose call number ``at`` fails, before or after it has its effect, as all later ones do."""

    def __init__(self, real, at, how, after):
        self.real, self.at, self.how, self.after, self.calls = real, at, how, after, 0

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls > self.at or (self.calls == self.at and not self.after):
                raise self.how
            answer = getattr(self.real, name)(*args, **kwargs)
            if self.calls == self.at:
                raise self.how
            return answer

        return call


CALLS = 15
"""At least, of a delivery."""


@pytest.mark.parametrize(
    ("how", "after"),
    [
        pytest.param(OSError("it is gone"), False, id="gone before"),
        pytest.param(OSError("it is gone"), True, id="gone after", marks=pytest.mark.slow),
        pytest.param(Killed(), False, id="killed before", marks=pytest.mark.slow),
        pytest.param(Killed(), True, id="killed after", marks=pytest.mark.slow),
    ],
)
def test_wherever_a_delivery_breaks_off_the_next_one_is_whole_and_there_is_no_other(
    made, cfg, monkeypatch, impatient, how, after
):
    parcel = keep(made, cfg, monkeypatch)
    copy = parcel.with_name("copy")
    shutil.copytree(parcel, copy)
    real, done, at = spool.store, 0, 0
    while done == 0:
        at += 1
        about = spool.read(parcel)
        about["record"] = about["tags"]["tsexp.signature"] = f"result {at}"
        (parcel / spool.ABOUT).write_text(json.dumps(about))
        failing = Failing(real(cfg.tracking), at, how, after)
        with monkeypatch.context() as patch:
            patch.setattr(spool, "store", lambda _, failing=failing: failing)
            patch.setattr(spool, "finished", lambda *_: None)
            with contextlib.suppress(tracking.NotDelivered, Killed):
                spool.deliver(parcel, cfg.tracking)
                done = at
        if parcel.exists():
            spool.deliver(parcel, cfg.tracking)
        shutil.copytree(copy, parcel)
    assert at > CALLS
    found = runs(cfg)
    assert sorted(r.data.tags[spool.RECORD] for r in found) == sorted(f"result {i + 1}" for i in range(at))
    assert all(whole(cfg, run) for run in found)
    assert runs(cfg, "RUNNING") == []
    assert len(models(cfg)) == at


def test_a_run_that_was_found_dead_while_it_was_filled_keeps_no_model(made, cfg, monkeypatch, impatient):
    parcel = keep(made, cfg, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(spool.model, "_also_in_the_run", lambda *_: (_ for _ in ()).throw(Killed))
        with contextlib.suppress(Killed):
            spool.deliver(parcel, cfg.tracking)
    (begun,) = runs(cfg, "RUNNING")
    assert len(models(cfg)) == 1
    tracking.store(cfg.tracking).set_terminated(begun.info.run_id, "KILLED")
    spool.deliver(parcel, cfg.tracking)
    assert len(models(cfg)) == 1
    assert all(whole(cfg, run) for run in runs(cfg))


@pytest.mark.parametrize("word", [KeyboardInterrupt, signals.Terminated])
def test_a_delivery_that_is_interrupted_leaves_no_run_open(made, cfg, monkeypatch, word):
    def interrupted(*_):
        raise word

    with monkeypatch.context() as patch:
        patch.setattr(spool.model, "_also_in_the_run", interrupted)
        with pytest.raises(word):
            measure(made, cfg)
    (begun,) = runs(cfg, "KILLED")
    assert begun.data.tags["tsexp.error"].startswith("interrupted while it was delivered")
    assert runs(cfg, "RUNNING") == models(cfg) == []
    spool.sync(cfg.paths, cfg.tracking)
    (run,) = runs(cfg)
    assert whole(cfg, run)


def test_an_interruption_after_the_delivery_leaves_the_run_as_it_is(made, cfg, monkeypatch):
    real = spool.deliver

    def interrupted(*given):
        real(*given)
        raise signals.Terminated

    monkeypatch.setattr(spool, "deliver", interrupted)
    with pytest.raises(signals.Terminated):
        measure(made, cfg)
    (run,) = runs(cfg)
    assert whole(cfg, run)


def test_the_same_signature_is_stored_once_but_for_what_is_measured_again_on_purpose(made, cfg, monkeypatch):
    first, second = keep(made, cfg, monkeypatch), keep(made, cfg, monkeypatch)
    assert spool.deliver(first, cfg.tracking) == spool.deliver(second, cfg.tracking)
    again = keep(made, replace(cfg, rerun=True), monkeypatch)
    spool.deliver(again, cfg.tracking)
    assert len(runs(cfg)) == 2
    assert waiting(cfg) == []


def test_two_that_deliver_the_same_at_once_store_it_once(made, cfg, monkeypatch):
    parcel = keep(made, cfg, monkeypatch)
    found = []
    both = [
        threading.Thread(target=lambda: found.append(spool.deliver(parcel, cfg.tracking))) for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 2
    assert len(runs(cfg)) == 1


def test_if_no_disk_takes_a_result_a_line_says_so(made, cfg, monkeypatch, tmp_path):
    (tmp_path / "a file").write_text("")
    full = replace(cfg, paths=replace(cfg.paths, spool=f"{tmp_path}/a file"))
    monkeypatch.setattr(spool.tempfile, "gettempdir", lambda: str(tmp_path / "a file"))
    with pytest.raises(tracking.NotKept, match="no disk takes the result") as told:
        measure(made, full)
    assert "\n" not in str(told.value)


def test_what_a_result_lacks_is_no_fault_of_a_disk(made, cfg, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError(2, "No such file or directory", "cache/artifact")

    monkeypatch.setattr(tracking_model, "save", gone)
    with pytest.raises(FileNotFoundError, match="cache/artifact"):
        measure(made, cfg)
    assert list(Path(cfg.paths.spool).iterdir()) == []


def test_what_another_job_delivers_meanwhile_is_not_damaged(made, cfg, monkeypatch, caplog):
    parcels = [keep(made, cfg, monkeypatch, signature) for signature in ("one", "another")]
    read = spool.read

    def slow(folder):
        shutil.rmtree(parcels[0], ignore_errors=True)
        return read(folder)

    monkeypatch.setattr(spool, "read", slow)
    caplog.clear()
    assert set(spool.waiting(cfg.paths, cfg.tracking)) == {parcels[1]}
    assert not caplog.records


def test_a_run_takes_more_params_than_mlflow_takes_at_once(cfg, monkeypatch):
    monkeypatch.setattr(
        tracking.run.Tracked, "_params", lambda self: {f"model.key{i}": "1" for i in range(150)}
    )
    with pytest.raises(KeyError), tracking.tracked(cfg, "", "a name", "a signature", None):
        raise KeyError
    (run,) = runs(cfg, "FAILED")
    assert len(run.data.params) == 150


def test_a_full_disk_of_the_spool_is_got_around(made, cfg, monkeypatch, tmp_path):
    (tmp_path / "a file").write_text("")
    full = replace(cfg, paths=replace(cfg.paths, spool=f"{tmp_path}/a file"))
    monkeypatch.setattr(spool.tempfile, "gettempdir", lambda: str(tmp_path))
    measure(made, full)
    assert len(runs(full)) == 1
    (other,) = tmp_path.glob("tsexp-spool-*")
    assert list(other.iterdir()) == []
    other.chmod(0o777)
    other.rmdir()
    other.symlink_to(tmp_path)  # of somebody who would like to read it
    with pytest.raises(tracking.NotKept, match="is a link"):
        measure(made, full, "another")


@pytest.fixture
def small_disk(tmp_path):
    """A file system that is full soon."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and os.getuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder):
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_of_the_store_loses_nothing(made, cfg, small_disk, empty_store, impatient, caplog):
    shutil.copy(empty_store, small_disk / "mlflow.db")
    full = replace(cfg, tracking=replace(cfg.tracking, uri=f"sqlite:///{small_disk}/mlflow.db"))
    tracking.store(full.tracking)
    fill_up(small_disk)
    with pytest.raises(tracking.NotDelivered, match="kept in") as told:
        measure(made, full, parent="a sweep")
    assert "\n" not in str(told.value)
    assert "full" in str(told.value)
    assert "sqlalche.me" not in str(told.value)
    assert "Traceback" not in caplog.text
    (small_disk / "filler").unlink()
    taken, left = spool.sync(full.paths, full.tracking)
    assert len(taken) == 1
    assert left == []
    (run,) = runs(full)
    assert whole(full, run)


def test_sync_delivers_and_says_what_is_for_another_store(made, cfg, monkeypatch, capsys, impatient):
    keep(made, cfg, monkeypatch)
    with pytest.raises(tracking.NotDelivered):
        measure(made, dead(cfg), "for another", "a sweep")
    settings = [f"tracking.uri={cfg.tracking.uri}", f"paths.spool={cfg.paths.spool}"]
    assert sync.main(settings) == 0
    said = capsys.readouterr().out
    assert "1 result(s) delivered" in said
    assert "0 for it left" in said
    assert f"1 more for another store: {sync.called('sync')} tracking.uri={DEAD}" in said
    assert sync.main([*settings, "--all"]) == 0
    assert len(runs(cfg)) == 2
    assert sync.main(["epochs=1"]) == 2
    assert "allowed: tracking.uri" in capsys.readouterr().err
    assert sync.main([settings[0], f"{settings[1]}_mistyped"]) == 2
    assert "spool_mistyped is not there" in capsys.readouterr().err


def test_a_store_that_is_gone_is_not_made_anew_for_what_waits_for_it(made, cfg, monkeypatch, capsys):
    """As where its disk is not mounted."""
    parcel = keep(made, cfg, monkeypatch)
    file = Path(cfg.tracking.uri.removeprefix("sqlite:///"))
    file.rename(file.with_name("elsewhere"))
    settings = [f"tracking.uri={cfg.tracking.uri}", f"paths.spool={cfg.paths.spool}"]
    told = f"mlflow.db is gone, and 1 result(s) kept in {cfg.paths.spool} are for it; bring it back"
    assert sync.main(settings) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is gone, and 1 result") as refused:
        jobs.tidy(cfg)
    assert "tsexp sync --all tracking.uri=STORE" in str(refused.value).replace(
        "python -m tsexp.sync", "tsexp sync"
    )
    assert not file.exists()
    file.with_name("elsewhere").rename(file)
    client._ready.cache_clear()
    jobs.tidy(cfg)
    assert len(runs(cfg)) == 1
    assert not parcel.exists()


def test_what_is_gone_from_the_store_when_a_sweep_ends_is_a_failed_job(made, cfg, tmp_path):
    there = measure(made, cfg)
    outcomes = {0: jobs.Outcome("seed=0", "finished", there), 1: jobs.Outcome("seed=1", "found", "f" * 32)}
    for number in outcomes:
        (tmp_path / str(number)).mkdir()
    store = tracking.store(cfg.tracking)
    (row,) = sweep._rows(store, tmp_path, outcomes)
    assert (row.name, row.run_id) == ("seed=0", there)
    assert outcomes[1] == jobs.read_outcome(tmp_path / "1")
    assert (outcomes[1].status, outcomes[1].error) == ("failed", sweep.NOT_THERE)
    assert outcomes[0].status == "finished"
    ended = {"status": "FINISHED", "note": "", "files": []}
    assert not tracking.close_sweep(cfg.tracking, "f" * 32, **ended)
    parent = tracking.sweep_run(cfg.tracking, "a sweep", "of the command")
    assert tracking.close_sweep(cfg.tracking, parent, **ended)


def test_of_a_search_each_result_is_there_once_and_no_try_that_failed_before_it(tmp_path):
    ends = [
        ("a", "failed", None),
        ("a", "finished", "1"),
        ("b", "kept", None),
        ("b", "kept", None),
        ("c", "failed", None),
    ]
    for number, (name, ended, run_id) in enumerate(ends):
        (tmp_path / str(number)).mkdir()
        kept = jobs.Outcome(name, ended, run_id, parcel="a parcel" if ended == "kept" else None)
        jobs._note(tmp_path / str(number), kept)
    assert [*sweep._outcomes(tmp_path, distinct=True)] == [1, 2, 4]
    assert [*sweep._outcomes(tmp_path, distinct=False)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_a_result_that_cannot_be_delivered_does_not_keep_the_others_from_the_store(
    made, cfg, monkeypatch, tmp_path, fault
):
    parcels = [keep(made, cfg, monkeypatch, signature) for signature in ("one", "another")]
    folder = tmp_path / "sweep"
    for number, parcel in enumerate(parcels):
        (folder / str(number)).mkdir(parents=True)
        kept = jobs.Outcome(f"seed={number}", "kept", error="kept", parcel=str(parcel))
        jobs._note(folder / str(number), kept)
    if fault == "damaged":
        (parcels[0] / spool.ABOUT).write_text("{")
    else:
        shutil.rmtree(parcels[0])
    end = sweep.Sweep()
    end._first, end._open = cfg, (cfg.tracking, "a sweep")
    outcomes = end._delivered(folder, distinct=False)
    assert [outcomes[n].status for n in (0, 1)] == ["kept", "finished"]
    told = {
        "gone": "is gone, and the store does not have it",
        "damaged": "is no result that can be delivered",
    }
    assert told[fault] in outcomes[0].error
    assert len(runs(cfg)) == 1


def test_a_result_has_an_owner_until_it_is_whole_on_the_disk(made, cfg, monkeypatch):
    owned = []
    to_disk = spool.to_disk
    monkeypatch.setattr(
        spool, "to_disk", lambda f: (owned.append(bool(list(f.glob(f"**/{alive.OWNER}")))), to_disk(f))
    )
    parcel = keep(made, cfg, monkeypatch)
    assert owned[-2:] == [True, False]  # the parcel's folder, and after that the spool's
    assert not (parcel / alive.OWNER).exists()


def test_a_process_is_dead_only_if_that_is_sure():
    me = alive.me()
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    assert not alive.surely_dead(me)
    assert alive.surely_dead(me | {"pid": str(other.pid)})
    assert alive.surely_dead(me | {"started": "1"})  # its number was given again
    assert not alive.surely_dead(me | {"pid": str(other.pid), "host": "another"})
    assert not alive.surely_dead(me | {"pid": str(other.pid), "boot": f"{me['boot']}0"})  # in a container
    assert alive.surely_dead({"host": me["host"], "pid": str(other.pid)})  # what older versions noted
    assert not alive.surely_dead({})


def test_a_machine_that_started_anew_has_no_process_of_before(monkeypatch):
    me = alive.me() | {"boot": "another startpid:[1]"}
    here = alive.machine()
    monkeypatch.setattr(alive, "machine", lambda: here | {"machine": "ours"})
    assert alive.surely_dead(me | {"machine": "ours"})
    assert not alive.surely_dead(me | {"machine": "a copy of it, with the same name"})
    monkeypatch.setattr(alive, "machine", lambda: here | {"machine": ""})
    assert not alive.surely_dead(me | {"machine": ""})


def test_a_killed_job_ends_its_own_run_and_no_other_of_the_same_number(made, cfg):
    """Numbers of processes are given again, after a start of the machine and in every container."""
    store = tracking.store(cfg.tracking)
    number = client.experiment_of(store, cfg.tracking)
    me = alive.me()
    before, beside = me | {"boot": "another start"}, me | {"started": "1"}
    made = [
        store.create_run(number, tags={f"tsexp.{k}": v for k, v in who.items()}).info.run_id
        for who in (me, before, beside)
    ]
    store.set_terminated(made[1], "KILLED")
    tracking.mark_killed(cfg.tracking, me, "killed by SIGKILL")
    tracking.mark_killed(cfg.tracking, {}, "it did not even start")
    assert [store.get_run(run).info.status for run in made] == ["FAILED", "KILLED", "RUNNING"]
    assert store.get_run(made[0]).data.tags["tsexp.error"] == "killed by SIGKILL"


def test_runs_and_folders_of_killed_processes_are_swept_up_and_no_others(made, cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(alive.tempfile, "gettempdir", lambda: str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    monkeypatch.setattr(alive, "SHORT", str(tmp_path))
    gone = alive.me() | {"pid": str(other.pid)}
    store = tracking.store(cfg.tracking)
    number = client.experiment_of(store, cfg.tracking)
    for who in (gone, alive.me(), gone | {"host": "another"}):
        store.create_run(number, tags={f"tsexp.{k}": v for k, v in who.items()})
        folder = tmp_path / f"tsexp-measure-{who['host']}{who['pid']}"
        folder.mkdir()
        (folder / alive.OWNER).write_text(json.dumps(who))
    (tmp_path / "tsexp-measure-unknown").mkdir()
    assert tracking.end_the_dead(cfg.tracking) == 1
    assert alive.tidy() == 1
    (killed,) = runs(cfg, "KILLED")
    assert f"process {other.pid} on" in killed.data.tags["tsexp.error"]
    assert len(runs(cfg, "RUNNING")) == 2
    assert len(list(tmp_path.glob("tsexp-measure-*"))) == 3


def test_what_is_no_job_says_whose_it_is_while_it_is_written(made, cfg):
    store = tracking.store(cfg.tracking)
    number = client.experiment_of(store, cfg.tracking)
    seen = []
    tracking.log_record(
        store,
        number,
        "A and B",
        {},
        {},
        {"tsexp.stage": "compare"},
        record_of(made),
        lambda _: seen.extend(runs(cfg, "RUNNING")),
    )
    expected = {f"tsexp.{k}": v for k, v in alive.me().items() if v} | {"tsexp.stage": "compare"}
    assert expected.items() <= seen[0].data.tags.items()
    assert [r.info.run_name for r in runs(cfg)] == ["A and B"]


def test_one_that_waits_for_the_same_job_says_for_whom_and_another_store_does_not_wait(
    cfg, monkeypatch, capsys
):
    monkeypatch.setattr(pipeline, "SILENT_S", 0.1)
    with pipeline._alone(cfg, "job"):
        other = replace(cfg, tracking=replace(cfg.tracking, experiment="another"))
        with pipeline._alone(other, "job"):
            pass
        assert capsys.readouterr().err == ""

        def wait():
            with pipeline._alone(cfg, "job"):
                pass

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.5)
    thread.join()
    said = capsys.readouterr().err
    assert said.startswith(f"waiting for process {os.getpid()} on ")
    assert "the same job for the same store" in said


@pytest.mark.parametrize(
    "damage", [Path.touch, lambda p: p.symlink_to("/proc/nowhere"), os.mkfifo, Path.mkdir]
)
@pytest.mark.parametrize("where", ["folder", "lock", "owner"])
def test_whatever_stands_where_a_job_keeps_its_lock_it_is_made_anew(cfg, where, damage):
    locks = Path(cfg.paths.cache) / "jobs"
    with pipeline._alone(cfg, "job"):
        (owner,), (lock,) = locks.glob("*.json"), locks.glob("*.lock")
    if where == "folder":
        shutil.rmtree(locks)
    lock.unlink(missing_ok=True)
    damage({"folder": locks, "lock": lock, "owner": owner}[where])
    with pipeline._alone(cfg, "job"):
        assert json.loads(owner.read_text())["pid"] == str(os.getpid())


def sweep_folder(folder, process=None):
    """What a sweep of five jobs leaves."""
    names = [f"seed={i}" for i in range(5)]
    about = {"names": names, "command": "python -m tsexp -m seed=0,1,2,3,4", "parent": "p"}
    (folder / "sweep.json").write_text(json.dumps(about | ({"process": process} if process else {})))
    ends = [("finished", None), ("failed", "RuntimeError: lower train.lr\nnow"), ("skipped", "not supported")]
    for i, (end, error) in enumerate(ends):
        (folder / str(i)).mkdir()
        outcome = {"name": names[i], "status": end, "run_id": None, "error": error}
        (folder / str(i) / "outcome.json").write_text(json.dumps(outcome))
    (folder / "3").mkdir()
    return folder


def test_status_tells_what_became_of_each_job(tmp_path, capsys):
    folder = sweep_folder(tmp_path)
    (folder / "3" / "running.json").write_text(json.dumps(alive.me() | {"pid": "999999"}))
    assert [j.state for j in status.read(folder)[1]] == ["done", "failed", "skipped", "missing", "missing"]
    assert status.main([str(folder)]) == 1
    said = capsys.readouterr().out
    assert "lower train.lr now" in said
    assert "process 999999" in said
    assert "5 jobs: 1 done, 1 failed, 1 skipped, 2 missing" in said


def test_a_job_in_the_queue_of_slurm_waits_though_its_sweep_was_interrupted(tmp_path, capsys, monkeypatch):
    folder = sweep_folder(tmp_path)
    (folder / "3" / "running.json").write_text(json.dumps(alive.me() | {"pid": "999999"}))
    monkeypatch.setattr(status.launchers, "in_slurm", lambda folder, *options: "7")
    assert [j.state for j in status.read(folder)[1]] == ["done", "failed", "skipped", "missing", "waiting"]
    assert status.main([str(folder)]) == 1
    assert "in SLURM's queue, of job 7" in capsys.readouterr().out


def test_one_damaged_job_does_not_hide_the_others(tmp_path, capsys):
    folder = sweep_folder(tmp_path)
    (folder / "0" / "outcome.json").write_text('{"a": 1}')
    assert status.main([str(folder)]) == 1
    assert "5 jobs: 3 missing, 1 failed, 1 skipped" in capsys.readouterr().out


def test_a_sweep_that_noted_no_command_is_told_apart(tmp_path):
    folder = sweep_folder(tmp_path)
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({"names": about["names"]}))
    with pytest.raises(ConfigError, match="did not note what it takes; give the command of the sweep again"):
        status._retry(folder, *status.read(folder))


@pytest.mark.parametrize("about", ['{"names": 5}', "[]", '{"names": ["a"], "process": []}'])
def test_a_damaged_sweep_is_told_in_a_line(tmp_path, capsys, about):
    folder = sweep_folder(tmp_path)
    (folder / "sweep.json").write_text(about)
    assert status.main([str(folder)]) == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err


def test_jobs_of_a_search_are_those_that_it_proposed(tmp_path, capsys):
    folder = sweep_folder(tmp_path)
    about = {"names": None, "command": "python -m tsexp -m experiment=pareto", "search": "zeus:rapl"}
    (folder / "sweep.json").write_text(json.dumps(about))
    shutil.rmtree(folder / "0")
    found = status.read(folder)[1]
    assert [(j.number, j.name, j.state) for j in found] == [
        (1, "seed=1", "failed"),
        (2, "seed=2", "skipped"),
        (3, "job 3", "missing"),
    ]
    assert status.main([str(folder), "--retry-failed"]) == 2
    assert "a search chooses its jobs itself; give its command again" in capsys.readouterr().err


def test_what_was_to_be_deployed_is_all_that_was_asked_for(tmp_path, monkeypatch):
    folder = sweep_folder(tmp_path)
    for number in range(5):
        (folder / str(number)).mkdir(exist_ok=True)
        outcome = {"name": f"seed={number}", "status": "deployed", "run_id": None, "error": None}
        (folder / str(number) / "outcome.json").write_text(json.dumps(outcome))
    assert {job.state for job in status.read(folder)[1]} == {"deployed"}
    assert status.main([str(folder)]) == 0
    monkeypatch.setenv(jobs.RETRY, str(folder))
    assert jobs.to_keep(folder / "0", "seed=0")


def test_what_was_kept_is_done_when_the_store_says_that_it_has_it(tmp_path, monkeypatch):
    folder, parcel = sweep_folder(tmp_path), tmp_path / "parcel"
    parcel.mkdir()
    outcome = {"name": "seed=3", "status": "kept", "run_id": None, "error": "gone", "parcel": str(parcel)}
    (folder / "3" / "outcome.json").write_text(json.dumps(outcome))
    assert status.read(folder)[1][3] == status.Job(3, "seed=3", "kept", "gone")
    monkeypatch.setenv(jobs.RETRY, str(folder))
    assert not jobs.to_keep(folder / "3", "seed=3")
    parcel.rmdir()
    assert status.read(folder)[1][3] == status.Job(3, "seed=3", "kept", status.GONE)  # nobody asked the store
    assert jobs.to_keep(folder / "3", "seed=3")
    asked = composed("data=italy_power_demand", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(jobs, "_at_once", lambda cfg, name: jobs.Outcome(name, "found", "measured"))
    note = (folder / "3" / "outcome.json").read_text()
    assert jobs.execute_apart(asked, "seed=3", folder / "3", None).status == "found"  # this store lacks it
    (folder / "3" / "outcome.json").write_text(note)
    monkeypatch.setattr(tracking, "deliver", lambda parcel, config: "there")
    assert jobs.execute_apart(asked, "seed=3", folder / "3", None) == jobs.Outcome(
        "seed=3", "finished", "there"
    )


def test_status_of_a_sweep_that_is_going_on(tmp_path):
    folder = sweep_folder(tmp_path, alive.me())
    (folder / "3" / "running.json").write_text(json.dumps(alive.me()))
    assert [j.state for j in status.read(folder)[1]] == ["done", "failed", "skipped", "running", "waiting"]
    with pytest.raises(ConfigError, match="still run"):
        status._retry(folder, *status.read(folder))


def test_a_sweep_of_another_machine_may_be_given_again(tmp_path):
    folder = sweep_folder(tmp_path, alive.me() | {"host": "3f2a9c1b7d55", "pid": "17"})
    command = json.loads((folder / "sweep.json").read_text())["command"]
    said = f"process 17 on 3f2a9c1b7d55 cannot be seen from here.*give the sweep's command again.*{command}"
    with pytest.raises(ConfigError, match=said):
        status._retry(folder, *status.read(folder))


def test_status_without_a_sweep_says_where_it_looks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status.main([]) == 2
    assert "there is no sweep in" in capsys.readouterr().err
    assert status.main([str(tmp_path)]) == 2
    assert "is not the folder of a sweep" in capsys.readouterr().err


def test_only_what_is_done_is_left_out_of_a_retry(tmp_path, monkeypatch):
    folder = sweep_folder(tmp_path)
    assert not jobs.to_keep(folder / "0", "seed=0")
    monkeypatch.setenv(jobs.RETRY, str(folder))
    kept = [jobs.to_keep(folder / str(i), f"seed={i}") for i in range(5)]
    assert kept == [True, False, True, False, False]
    assert not jobs.to_keep(folder / "0", "seed=1")  # the folder has the number, and not the job


def test_a_retry_is_the_command_as_it_was_given(tmp_path, monkeypatch):
    class Became(BaseException): ...

    def become(_, words):
        raise Became(words[4:])

    folder = sweep_folder(tmp_path)
    about, found = status.read(folder)
    about |= {"folder": os.getcwd(), "hydra": [], "overrides": ["seed=0,1", "data=acsf1"]}
    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setenv(jobs.RETRY, "")
    words = ["seed=0,1", "data=acsf1", f"hydra.sweep.dir={folder}"]
    with pytest.raises(ConfigError, match="/gone, which is not there any more"):
        status._retry(folder, about | {"folder": f"{tmp_path}/gone"}, found)
    with pytest.raises(Became, match="seed") as told:  # of a sweep that was started before options were noted
        status._retry(folder, about, found)
    assert told.value.args == (words,)
    with pytest.raises(Became) as told:
        status._retry(folder, about | {"options": ["--config-dir", "/mine"]}, found)
    assert told.value.args == (["--config-dir", "/mine", *words],)
    (folder / "sweep.json").write_text(json.dumps(about))
    with pytest.raises(Became) as told:  # a sweep of another folder
        status.main([f"{folder}/../{folder.name}", "--retry-failed"])
    assert told.value.args == (words,)
    assert jobs.to_keep(folder / "0", "seed=0")


def test_stores_are_merged_each_result_once_and_nothing_twice(made, tmp_path, empty_store, capsys):
    one, two, both = (at(tmp_path / name, empty_store) for name in ("one", "two", "both"))
    measure(made, one, "a")
    parent = tracking.sweep_run(two.tracking, "a sweep", "of the command")
    brought = measure(made, two, "b", parent)
    measure(made, two, "a")
    command = [one.tracking.uri, two.tracking.uri.removeprefix("sqlite:///"), "--into", both.tracking.uri]
    assert merge.main(command) == 0
    assert "1 brought, 0 there already" in capsys.readouterr().out
    assert merge.main(command) == 0
    assert "0 brought, 2 there already" in capsys.readouterr().out
    found = {r.data.tags["tsexp.signature"]: r for r in runs(both)}
    assert len(runs(both)) == 2
    assert found.keys() == {"a", "b"}
    assert all(whole(both, run) for run in found.values())
    tags = found["b"].data.tags
    assert tags["tsexp.merged_from"] == two.tracking.uri
    assert tags["tsexp.merged_run"] == brought
    assert tags["tsexp.host"] == alive.me()["host"]
    sweep = tracking.store(both.tracking).get_run(tags["mlflow.parentRunId"])
    assert sweep.data.tags["tsexp.sweep"] == "of the command"


@pytest.mark.parametrize("last", ["a job more", "nothing more"])
def test_a_sweep_that_was_merged_before_its_end_is_ended_by_the_next_merge(made, tmp_path, empty_store, last):
    one, both = (at(tmp_path / name, empty_store) for name in ("one", "both"))
    parent = tracking.sweep_run(one.tracking, "a sweep", "of the command")
    states = []
    for signature in ("a", "b" if last == "a job more" else ""):
        if signature:
            measure(made, one, signature, parent)
        assert merge.main([one.tracking.uri, "--into", both.tracking.uri]) == 0
        store = tracking.store(both.tracking)
        (found,) = store.search_runs(
            [client.experiment_of(store, both.tracking)], "tags.`tsexp.sweep` = 'of the command'"
        )
        states.append(found.info.status)
        tracking.close_sweep(one.tracking, parent, status="FINISHED", note="", files=[])
    assert states == ["KILLED", "FINISHED"]


def test_what_was_measured_again_is_merged_too_and_the_newest_counts(made, tmp_path, empty_store, capsys):
    one, both = (at(tmp_path / name, empty_store) for name in ("one", "both"))
    again = replace(one, rerun=True)
    command = [one.tracking.uri, "--into", both.tracking.uri]
    measure(made, one, "a")
    second = measure(made, again, "a")
    assert merge.main(command) == 0
    assert "2 brought, 0 there already" in capsys.readouterr().out

    def newest():
        run_id = tracking.finished(both.tracking, "a")
        return tracking.store(both.tracking).get_run(run_id).data.tags["tsexp.merged_run"]

    assert newest() == second
    third = measure(made, again, "a")
    assert merge.main(command) == 0
    assert "1 brought, 2 there already" in capsys.readouterr().out
    assert newest() == third
    assert merge.main([both.tracking.uri, "--into", one.tracking.uri]) == 0  # home again
    assert "0 brought, 3 there already" in capsys.readouterr().out


def test_a_run_whose_sweep_was_deleted_for_good_is_merged_without_one(
    made, tmp_path, empty_store, monkeypatch
):
    from mlflow.exceptions import MlflowException

    one, both = (at(tmp_path / name, empty_store) for name in ("one", "both"))
    measure(made, one, "a", "0123456789abcdef0123456789abcdef")
    assert merge.main([one.tracking.uri, "--into", both.tracking.uri]) == 0
    (run,) = runs(both)
    assert "mlflow.parentRunId" not in run.data.tags
    with pytest.raises(MlflowException):
        tracking.store(one.tracking).get_run("0123456789abcdef0123456789abcdef")


def test_a_database_of_something_else_is_left_as_it_is(tmp_path, empty_store, capsys):
    one = at(tmp_path / "one", empty_store)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("create table experiments(a int)")
    before = other.read_bytes()
    assert merge.main([str(other), "--into", one.tracking.uri]) == 2
    assert "is not a store of MLflow: it has no table of metrics" in capsys.readouterr().err
    assert merge.main([one.tracking.uri, "--into", str(other)]) == 2
    assert "has no experiment tsexp" in capsys.readouterr().err
    tracking.store(one.tracking)
    assert other.read_bytes() == before
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("alter table experiments rename to mine")
    before = other.read_bytes()
    assert merge.main([one.tracking.uri, "--into", str(other)]) == 2
    assert "is a database of something else; give another file" in capsys.readouterr().err
    assert other.read_bytes() == before


def test_a_run_whose_model_was_deleted_is_merged_with_its_files(made, tmp_path, empty_store, capsys):
    one, both = (at(tmp_path / name, empty_store) for name in ("one", "both"))
    from_store = tracking.store(one.tracking)
    run = from_store.get_run(measure(made, one, "a"))
    from_store.delete_logged_model(run.outputs.model_outputs[0].model_id)
    assert merge.main([one.tracking.uri, "--into", both.tracking.uri]) == 0
    (brought,) = runs(both)
    files = {f.path for f in tracking.store(both.tracking).list_artifacts(brought.info.run_id)}
    assert {"model", "windows.json"} <= files


def test_what_the_other_store_does_not_take_is_merged_by_the_same_command_again(
    made, tmp_path, empty_store, capsys, monkeypatch
):
    """Nothing is said to be kept: what was on its way is in the first store."""
    one, two = (at(tmp_path / name, empty_store) for name in ("one", "two"))
    measure(made, one, "a")
    command = [one.tracking.uri, "--into", two.tracking.uri]
    with monkeypatch.context() as patched:
        patched.setattr(spool, "_deliver", no_room)
        assert merge.main(command) == 1
    said = capsys.readouterr().err
    assert "0 brought, 0 there already, then the store" in said
    assert "No space left on device" in said
    assert "the same command brings the rest" in said
    assert "kept in" not in said
    assert merge.main(command) == 0
    assert "1 brought, 0 there already" in capsys.readouterr().out


def test_files_of_a_store_that_was_copied_are_beside_it_or_missed(made, tmp_path, empty_store, capsys):
    from mlflow.utils.file_utils import local_file_uri_to_path

    one, two = (at(tmp_path / name, empty_store) for name in ("one", "two"))
    measure(made, one, "a")
    (run,) = runs(one)
    measure(made, one, "b")
    (tmp_path / "copied").mkdir()
    shutil.copy(tmp_path / "one" / "mlflow.db", tmp_path / "copied")
    folder = Path(local_file_uri_to_path(run.info.artifact_uri)).parent
    beside = tmp_path / "copied" / "mlartifacts"
    shutil.copytree(folder.parent, beside)
    shutil.rmtree(beside / run.info.run_id)  # those where the store says are of this machine, and not read
    command = [f"{tmp_path}/copied/mlflow.db", "--into", two.tracking.uri]
    assert merge.main(command) == 2
    said = capsys.readouterr().err
    assert "1 brought, 0 there already, 1 not, for their files do not lie beside it" in said
    assert run.info.run_id in said
    assert [r.data.tags["tsexp.signature"] for r in runs(two)] == ["b"]
    shutil.move(folder, beside)
    assert merge.main(command) == 0
    assert "1 brought, 1 there already" in capsys.readouterr().out
    assert all(whole(two, run) for run in runs(two))


@pytest.mark.parametrize("fault", ["elsewhere", "a link", "a link inside"])
def test_of_somebody_s_store_only_what_lies_beside_it_is_read(made, tmp_path, empty_store, capsys, fault):
    """It may name any folder of this machine, and has it copied otherwise."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    one, two = (at(tmp_path / name, empty_store) for name in ("one", "two"))
    measure(made, one, "a")
    (run,) = runs(one)
    files = Path(local_file_uri_to_path(run.info.artifact_uri))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "secret.txt").write_text("my own")
    if fault == "a link inside":
        (files / "link").symlink_to(tmp_path / "mine")
    else:
        shutil.rmtree(files)
        if fault == "a link":
            files.symlink_to(tmp_path / "mine")
        else:
            with contextlib.closing(sqlite3.connect(tmp_path / "one" / "mlflow.db")) as db:
                db.execute("update runs set artifact_uri = ?", [(tmp_path / "mine").as_uri()])
                db.commit()
    assert merge.main([one.tracking.uri, "--into", two.tracking.uri]) == 2
    assert "1 not, for their files do not lie beside it" in capsys.readouterr().err
    assert not list((tmp_path / "two").rglob("secret.txt"))


def test_merging_says_what_is_wrong(tmp_path, empty_store, capsys):
    one = at(tmp_path / "one", empty_store)
    assert merge.main([one.tracking.uri, "--into", one.tracking.uri]) == 2
    assert "both read and written" in capsys.readouterr().err
    assert merge.main([f"{tmp_path}/none.db", "--into", one.tracking.uri]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert merge.main([one.tracking.uri, "--into", f"{tmp_path}/new.db", "--experiment", "strange"]) == 2
    assert "has no experiment strange" in capsys.readouterr().err


def test_a_store_may_be_named_from_here(made, tmp_path, empty_store, monkeypatch, capsys):
    one = at(tmp_path / "one", empty_store)
    measure(made, one, "a")
    monkeypatch.chdir(tmp_path)
    assert merge.main([one.tracking.uri, "--into", "sqlite:///new.db", "--artifacts", "elsewhere"]) == 0
    assert "1 brought" in capsys.readouterr().out
    (run,) = runs(replace(one, tracking=replace(one.tracking, uri=f"sqlite:///{tmp_path}/new.db")))
    assert run.info.artifact_uri.startswith((tmp_path / "elsewhere").as_uri())


def test_what_a_server_that_is_gone_is_told_in(cfg, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = dead(cfg).tracking
    with pytest.raises(ConfigError) as told, tracking.asking(gone):
        mlflow.MlflowClient(DEAD).search_experiments()
    assert str(told.value) == (
        f"the store {DEAD} does not answer (Connection refused); is it running, and is the address right?"
    )


def test_the_store_is_asked_with_a_bound(monkeypatch, cfg):
    for key in client.BOUNDED:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(client, "_ready", lambda *_: None)
    tracking.store(cfg.tracking)
    assert {key: os.environ[key] for key in client.BOUNDED} == client.BOUNDED


def until_the_first_job_runs(folder):
    end = time.monotonic() + 120
    while not list(folder.glob("multirun/*/*/0/running.json")) and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.slow
def test_a_sweep_whose_server_dies_keeps_its_results_and_the_same_command_delivers_them(tmp_path):
    from benchmarks.faults import Server
    from test_cli import tsexp

    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    server.answers()
    command = ["-m", "seed=0,1", *TINY, "data=italy_power_demand", f"tracking.uri={server.uri}"]
    try:

        def die():
            until_the_first_job_runs(tmp_path)
            time.sleep(3)
            server.kill()

        thread = threading.Thread(target=die)
        thread.start()
        done = tsexp(tmp_path, *command, check=False)
        thread.join()
        assert done.returncode == 1
        assert "Traceback" not in done.stdout + done.stderr
        assert "the result is not lost, it is kept in" in done.stdout + done.stderr
        assert "0 of 2 results are in it, 2 are kept in" in done.stderr
        shown = tsexp(tmp_path, "status", check=False)
        assert shown.returncode == 1
        assert "2 jobs: 2 kept" in shown.stdout
        server.start()
        server.answers()
        again = tsexp(tmp_path, *command)
        assert "2 result(s) that were kept in" in again.stderr
        assert "2 jobs, 2 of them measured before" in again.stdout
        cfg = compose(*TINY, "data=italy_power_demand", f"tracking.uri={server.uri}")
        assert len(runs(cfg)) == 3  # and the sweep
        assert runs(cfg, "RUNNING") == []
    finally:
        server.kill()


@pytest.mark.slow
def test_a_sweep_whose_disk_is_unmounted_keeps_its_results_and_fills_no_other_store(tmp_path):
    from test_cli import tsexp

    share, away = tmp_path / "share", tmp_path / "away"
    share.mkdir()
    command = ["-m", "seed=0,1", *TINY, "data=italy_power_demand", "tracking.uri=sqlite:///share/mlflow.db"]

    def unmount():
        until_the_first_job_runs(tmp_path)
        share.rename(away)
        share.mkdir()

    thread = threading.Thread(target=unmount)
    thread.start()
    done = tsexp(tmp_path, *command, check=False)
    thread.join()
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "0 of 2 results are in it, 2 are kept in" in done.stderr
    assert "2 jobs: 2 kept" in tsexp(tmp_path, "status", check=False).stdout
    assert not (share / "mlflow.db").exists()
    shutil.rmtree(share)
    away.rename(share)
    assert "2 jobs, 2 of them measured before" in tsexp(tmp_path, *command).stdout
    found = compose(*TINY, "data=italy_power_demand", f"tracking.uri=sqlite:///{share}/mlflow.db")
    assert len(runs(found)) == 3  # and the sweep
    assert runs(found, "RUNNING") == []


@pytest.mark.slow
def test_retry_failed_runs_what_failed_and_leaves_out_what_is_done(tmp_path):
    from test_cli import runs as stored

    # The second seed fails as long as there is a file.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'tsexp.system.processes' in sys.orig_argv:\n"
        "    import tsexp.pipeline as p\n"
        "    real = p.run\n"
        "    def run(cfg, *a, **k):\n"
        "        if cfg.seed == 1 and os.path.exists('broken'): raise RuntimeError('it is broken')\n"
        "        return real(cfg, *a, **k)\n"
        "    p.run = run\n"
    )
    (tmp_path / "broken").write_text("")
    env = environment() | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "170"}

    def tsexp(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tsexp", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    assert tsexp("-m", "seed=0,1", "rerun=true", *TINY, "data=italy_power_demand").returncode == 1
    shown = tsexp("status")
    assert "failed  RuntimeError: it is broken" in shown.stdout
    assert "2 jobs: 1 done, 1 failed" in shown.stdout
    (tmp_path / "broken").unlink()
    again = tsexp("status", "--retry-failed")
    assert again.returncode == 0, again.stdout + again.stderr
    measured = stored(tmp_path, "tags.`tsexp.stage` = 'done' and attributes.status = 'FINISHED'")
    assert sorted(r.info.run_name for r in measured) == ["seed=0", "seed=1"]  # rerun=true, and yet once
    assert len(list(tmp_path.glob("multirun/*/*"))) == 1
    assert tsexp("status").returncode == 0


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_is_told_of_wherever_a_job_meets_it(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(jobs, "_experiment", no_room)
    outcome = jobs.execute(
        OmegaConf.merge(OmegaConf.structured(Config), asdict(tiny)), "a job", tmp_path, None
    )
    where = f"{tiny.paths.cache} or of {tmp_path} or of {tempfile.gettempdir()}"
    assert outcome.error.startswith(f"no space left on the disk of {where}; free some")
    assert "\n" not in outcome.error


def test_the_disk_that_is_full_is_named_and_no_other(small_disk):
    with pytest.raises(OSError, match="No space left") as told:
        (small_disk / "filler").write_bytes(bytes(5 << 20))
    assert full(told.value, small_disk).startswith(f"no space left on the disk of {small_disk}; free some")


@pytest.mark.parametrize(("begins", "part"), [("on_multirun_start", "_start"), ("on_multirun_end", "_end")])
def test_a_sweep_that_meets_a_full_disk_says_so_in_a_line(monkeypatch, capsys, begins, part):
    monkeypatch.setattr(sweep.secret, "hide", lambda _: None)
    monkeypatch.setattr(sweep.Sweep, part, no_room)
    with pytest.raises(SystemExit) as end:
        getattr(sweep.Sweep(), begins)(None)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tsexp: error: no space left on the disk of {os.getcwd()} or of ")


def test_a_measuring_process_that_cannot_write_says_why(tmp_path, monkeypatch):
    (tmp_path / "request.json").write_text('{"threads": 1, "timeout_s": 60}')
    # Neither what it found nor what went wrong has room.
    monkeypatch.setattr(worker, "write_json", no_room)
    monkeypatch.setattr(Path, "write_text", no_room)
    status = worker._answer(tmp_path, lambda *_: {})
    with pytest.raises(measuring.MeasuringFailed, match=r"no result \(No space left on device\)"):
        measuring._result(tmp_path, status, timeout_s=60)


def test_scores_are_kept_where_the_temporary_folder_is_on_another_disk(made, cfg, monkeypatch):
    from safetensors.numpy import save_file

    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == Path(cfg.paths.spool).parent.stat().st_dev:
        pytest.skip("there is no other disk")

    @contextlib.contextmanager
    def asked(*_):
        with tempfile.TemporaryDirectory(dir=elsewhere) as name:
            save_file({"test": made.scores}, Path(name) / "scores.safetensors")
            yield SimpleNamespace(folder=Path(name), result={"peak_mb": 1.0})

    monkeypatch.setattr(measuring, "_asked", asked)
    found = measuring.score(made.artifact, made.dataset, cfg.measure, Cache(Path(cfg.paths.cache)), False)
    assert (found.test == made.scores).all()


def test_a_temporary_folder_of_an_export_says_whose_it_is(made, monkeypatch, italy, tiny_model):
    from tsexp.runtimes import onnxruntime

    def look(_, file):
        raise Killed((file.parent / alive.OWNER).exists())

    monkeypatch.setattr(onnxruntime, "to_onnx", look)
    with pytest.raises(Killed) as seen:
        onnxruntime.export(tiny_model(italy), SimpleNamespace(quant=SimpleNamespace(mode="none")), Path())
    assert seen.value.args == (True,)
