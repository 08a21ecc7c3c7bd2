"""Launchers and `stop_after`, as far as no engine is needed; tests/test_cluster.py has real ones."""

import contextlib
import importlib.util
import json
import os
import pickle
import pkgutil
import shutil
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from conftest import compose
from tsexp import data, energy, pipeline, tracking
from tsexp.config import PLUGINS, ConfigError, TrackingConfig, at_once, conf_dir, identity
from tsexp.config import compose as short
from tsexp.runtimes import openvino
from tsexp.sweeps import checks, jobs, launchers, sweep
from tsexp.system import locking, signals
from tsexp.tracking import client as tracking_client

NAMES = ("joblib", "submitit_local", "submitit_slurm", "ray")


@pytest.fixture
def composed():
    """What ``tsexp -m`` with these arguments composes."""

    def make(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            return loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)

    return make


def test_there_is_a_preset_for_every_launcher_that_has_an_extra(composed):
    assert {f"hydra/launcher/{name}" for name in NAMES} <= PLUGINS.keys()
    for name in NAMES:
        assert launchers.name(composed(f"hydra/launcher={name}")) == name


def test_processes_of_a_launcher_know_the_schema_and_say_nothing_of_it(composed):
    composed()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        sent = pickle.dumps(short.loader())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # as there, before anything of ours is imported
        there = pickle.loads(sent)  # noqa: S301
        job = there.load_configuration("config", ["hydra/launcher=joblib"], RunMode.RUN)
    assert launchers.name(job) == "joblib"
    assert not said, said[0].message


@pytest.mark.parametrize("name", NAMES)
def test_a_launcher_that_is_not_installed_is_refused_in_a_line(composed, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=r"not installed; install it: pip install 'tsexp\[\w+\]'$"):
        launchers.check(composed(f"hydra/launcher={name}"))
    launchers.check(composed())


def test_slurm_is_refused_where_there_is_none(composed, monkeypatch):
    config = composed("hydra/launcher=submitit_slurm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(ConfigError, match=r"needs sbatch and srun.*submitit_local\nnothing was started"):
        launchers.check(config)
    monkeypatch.setattr(shutil, "which", lambda program: program)
    launchers.check(config)


def test_cores_are_divided_by_the_threads_of_a_job(composed, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    assert [at_once(*threads) for threads in ((1, 1), (2, 1), (1, 3), (16,))] == [8, 4, 2, 1]
    assert composed("hydra/launcher=joblib", "train.threads=4").hydra.launcher.n_jobs == 2
    assert composed("hydra/launcher=joblib", "hydra.launcher.n_jobs=3").hydra.launcher.n_jobs == 3
    assert composed("hydra/launcher=submitit_slurm", "measure.threads=4").hydra.launcher.cpus_per_task == 4
    local = composed("hydra/launcher=submitit_local", "train.threads=4")
    launchers.prepare(local)
    assert local.hydra.sweeper.max_batch_size == 2
    each_of_two = ("train.threads=2", "train.devices=2")
    assert composed("hydra/launcher=joblib", *each_of_two).hydra.launcher.n_jobs == 2
    assert composed("hydra/launcher=submitit_slurm", *each_of_two).hydra.launcher.cpus_per_task == 4
    local = composed("hydra/launcher=submitit_local", *each_of_two)
    launchers.prepare(local)
    assert local.hydra.sweeper.max_batch_size == 2
    given = composed("hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=5")
    launchers.prepare(given)
    assert given.hydra.sweeper.max_batch_size == 5
    basic = composed()
    launchers.prepare(basic)
    assert basic.hydra.sweeper.max_batch_size is None


def test_jobs_of_a_cluster_are_not_judged_by_the_machine_that_submits_them(composed, monkeypatch):
    monkeypatch.setattr(data, "ensure", lambda *_: None)
    monkeypatch.setattr(launchers, "ELSEWHERE", ("basic",))
    asked = ["prune.ratio=0,0.5", "train.device=cuda"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", asked, RunMode.MULTIRUN)
        assert len(checks.check(config).names) == 2
        monkeypatch.undo()
        if not __import__("torch").cuda.is_available():
            with pytest.raises(ConfigError, match="PyTorch sees no GPU here"):
                checks.check(config)


def test_nor_by_its_cpu(composed, monkeypatch):
    monkeypatch.setattr(data, "ensure", lambda *_: None)
    monkeypatch.setattr(openvino, "machine", lambda: {"cpu": "FP32 INT8"})
    asked = ["runtime=openvino", "quant.mode=bf16", "seed=0,1"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = GlobalHydra.instance().config_loader().load_configuration("config", asked, RunMode.MULTIRUN)
        with pytest.raises(ConfigError, match="no bf16 on this CPU"):
            checks.check(config)
        monkeypatch.setattr(launchers, "ELSEWHERE", ("basic",))
        assert len(checks.check(config).names) == 2


def test_a_search_that_measures_nothing_is_refused(composed):
    asked = ["experiment=pareto", "data=acsf1", "stop_after=deploy"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", asked, RunMode.MULTIRUN)
        with pytest.raises(ConfigError, match="a search learns from measurements"):
            checks.check(config)


def test_an_artifact_made_beforehand_is_measured_as_if_it_had_not_been(tiny, italy, monkeypatch, tmp_path):
    from dataclasses import replace

    first = replace(tiny, stop_after="deploy")
    assert identity(first) == identity(tiny)
    for name in ("score", "measure", "peaks"):
        monkeypatch.setattr(energy, name, lambda *_, **__: pytest.fail("nothing is to be measured"))
    assert pipeline.run(first, italy, "", "one") == (None, False)
    assert not (tmp_path / "mlruns").exists()
    assert tracking.finished(tiny.tracking, pipeline.signature(tiny, italy)) is None
    client = tracking.store(tiny.tracking)
    assert not client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("entry.json")}
    assert {p.parts[-3] for p in made} == {"dense", "artifact"}

    measured = pytest.raises(RuntimeError, match="measured now")
    monkeypatch.setattr(energy, "score", lambda *_: (_ for _ in ()).throw(RuntimeError("measured now")))
    with measured:
        pipeline.run(tiny, italy, "", "one")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("entry.json")} == made


def test_the_end_of_a_sweep_counts_what_was_deployed_apart():
    ended = [jobs.Outcome("a", "deployed"), jobs.Outcome("b", "finished", "run"), jobs.Outcome("c", "failed")]
    assert not ended[0].ok
    skipped, failed = sweep._unmeasured(dict(zip((0, 2, 3), ended, strict=True)), 4)  # one left nothing
    assert list(failed) == ["c (#3)", "1 job(s)"]
    assert "1 deployed and not measured" in sweep._title(1, ended, skipped, failed)


def test_a_wrong_stage_to_stop_after_is_refused():
    assert compose("stop_after=deploy").stop_after == "deploy"
    with pytest.raises(ConfigError, match=r"stop_after=train is not known; allowed: null, deploy"):
        compose("stop_after=train")


def test_jobs_of_slurm_with_temporary_folders_of_their_own_share_the_lock(monkeypatch, tmp_path):
    if not os.access("/run/lock", os.W_OK):
        pytest.skip("/run/lock is not there for everybody")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    seen = []
    for name in ("one", "two"):
        monkeypatch.setattr(locking.tempfile, "tempdir", str(tmp_path / name))
        seen.append(locking._seen_by_everybody())
    assert seen[0] == seen[1]
    monkeypatch.delenv("SLURM_JOB_ID")
    assert locking._seen_by_everybody() == tmp_path / "two"


def test_a_job_that_its_launcher_lost_has_an_outcome_and_its_run_an_end(tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr(tracking, "mark_killed", lambda *told: ended.append(told))
    (tmp_path / jobs.SWEEP).write_text('{"names": ["x", "y"], "parent": "run"}')
    (tmp_path / "1").mkdir()
    who = {"host": "another node", "pid": "1", "started": "2"}
    (tmp_path / "1" / jobs.RUNNING).write_text(json.dumps(who))
    sweep._lost(str(tmp_path), "store", 1, ["prune.ratio=0.5"], "preempted")
    assert jobs.read_outcome(tmp_path / "1") == jobs.Outcome("y", "failed", error="preempted")
    assert ended == [("store", who, "preempted")]
    assert not (tmp_path / "1" / jobs.RUNNING).exists()
    sweep._lost(str(tmp_path), "store", 1, ["prune.ratio=0.5"], "later")  # what is known stays
    assert jobs.read_outcome(tmp_path / "1").error == "preempted"
    assert len(ended) == 1


def submitit_of(monkeypatch, job):
    """Make submitit up, with this class of jobs, and prepare a sweep of SLURM; return what it loses."""
    lost = []
    utils = SimpleNamespace(UncompletedJobError=Uncompleted, FailedJobError=OSError)
    core = SimpleNamespace(core=SimpleNamespace(Job=job), utils=utils)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(core=core))
    monkeypatch.setitem(sys.modules, "submitit.core", core)
    monkeypatch.setattr(launchers, "name", lambda config: "submitit_slurm")
    launchers.keep_going(None, lambda *told: lost.append(told))
    return lost


class Uncompleted(RuntimeError):
    pass


@pytest.mark.parametrize("raised", ["in the job", "by its folder", "refused"])
def test_what_submitit_raises_within_a_job_is_a_lost_job(monkeypatch, raised):
    """Told that its time is over for the last time, a job raises; submitit is made up."""
    time_over = RuntimeError("Job not requeued because: timed-out too many times.\n…")
    job_return = JobReturn(status=JobStatus.FAILED)
    job_return.return_value = ConfigError("no such metric") if raised == "refused" else time_over

    class OfSubmitit:
        paths, state = SimpleNamespace(folder="logs"), "TIMEOUT"

        def submission(self):
            return SimpleNamespace(args=(["prune.ratio=0"], "", 3, ""))

        def results(self):
            if raised == "by its folder":
                raise Uncompleted(str(time_over))
            return [job_return]

    lost = submitit_of(monkeypatch, OfSubmitit)
    (returned,) = OfSubmitit().results()
    if raised == "refused":
        assert returned is job_return
        return
    assert returned.return_value is None
    why = {
        "in the job": "Job not requeued because: timed-out too many times.",
        "by its folder": "it left no result",
    }[raised]
    assert lost == [(3, ["prune.ratio=0"], f"the job was lost ({why}; state TIMEOUT; logs: logs)")]


@pytest.fixture
def queue(monkeypatch, tmp_path):
    """Make SLURM's queue up: the jobs in it, and whether it answers."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(there, status=0):
        (tmp_path / "bin").mkdir()
        script = f"#!/bin/sh\necho {' '.join(there)} | /usr/bin/tr ' ' '\\n'\nexit {status}\n"
        (tmp_path / "bin" / "squeue").write_text(script)
        (tmp_path / "bin" / "squeue").chmod(0o755)

    return make


def test_which_jobs_of_a_sweep_slurm_has(queue, tmp_path):
    for name in ("7", "7_0", "7_1", "12_0"):
        (tmp_path / launchers.SUBMITIT / name).mkdir(parents=True)
    assert launchers.in_slurm(tmp_path) == ""  # no SLURM
    queue(["99", "7", "12", "7"])
    assert launchers.in_slurm(tmp_path) == "12 7"
    assert launchers.in_slurm(tmp_path / "of another launcher") == ""


def test_a_queue_that_does_not_answer_is_none(queue, tmp_path):
    (tmp_path / launchers.SUBMITIT / "7_0").mkdir(parents=True)
    queue(["7"], status=1)
    assert launchers.in_slurm(tmp_path) == ""


@pytest.mark.parametrize("ended", [KeyboardInterrupt, signals.Terminated])
def test_an_interrupted_sweep_says_what_slurm_goes_on_with(monkeypatch, queue, tmp_path, capsys, ended):
    class OfSubmitit:
        paths = SimpleNamespace(folder=tmp_path / launchers.SUBMITIT / "7_0")

        def results(self):
            raise ended

    OfSubmitit.paths.folder.mkdir(parents=True)
    queue(["7"])
    submitit_of(monkeypatch, OfSubmitit)
    with pytest.raises(ended):
        OfSubmitit().results()
    assert capsys.readouterr().err == "tsexp: SLURM goes on with job 7; scancel 7 ends it\n"


def test_a_job_of_ray_whose_process_died_is_a_lost_job(monkeypatch):
    """Ray is made up; what a job raises, and a cluster that is not there, still end the sweep."""

    class WorkerDied(Exception):
        pass

    def get(job):
        if isinstance(job, Exception):
            raise job
        return job

    kinds = dict.fromkeys(["WorkerCrashedError", "NodeDiedError", "OutOfMemoryError"], WorkerDied)
    ray = SimpleNamespace(exceptions=SimpleNamespace(**kinds), get=get)
    of_hydra = SimpleNamespace(launch_job_on_ray=lambda context, remote, config, task, state: task, ray=ray)
    plugin = "hydra_plugins.hydra_ray_launcher"
    made_up = {"ray": ray, plugin: SimpleNamespace(_core=of_hydra), f"{plugin}._core": of_hydra}
    for module, there in made_up.items():
        monkeypatch.setitem(sys.modules, module, there)
    monkeypatch.setattr(launchers, "name", lambda config: "ray")
    lost = []
    launchers.keep_going(None, lambda *told: lost.append(told))
    ended = [WorkerDied("the worker died\n…"), "an answer", ValueError("of a job")]
    begun = [
        of_hydra.launch_job_on_ray(
            None,
            None,
            OmegaConf.create({"hydra": {"job": {"num": n}, "overrides": {"task": [f"seed={n}"]}}}),
            how,
            None,
        )
        for n, how in enumerate(ended)
    ]
    assert of_hydra.ray.get(begun[0]).return_value is None
    assert of_hydra.ray.get(begun[1]) == "an answer"
    with pytest.raises(ValueError, match="of a job"):
        of_hydra.ray.get(begun[2])
    assert lost == [(0, ["seed=0"], "the job was lost (the worker died)")]


@pytest.mark.parametrize("told", [True, False])
def test_a_job_of_slurm_that_is_told_to_end_reports_nothing(monkeypatch, told):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(launchers, "LAST_S", 0.01)
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("submitit"))
    try:
        with pytest.raises(SystemExit) if told else contextlib.nullcontext() as left:
            with launchers.told_to_end() as leave_if_told:
                if told:
                    os.kill(os.getpid(), signal.SIGTERM)
                leave_if_told()
        assert heard == ["submitit"] * told
        assert not told or left.value.code == 143
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["submitit"] * (told + 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_job_of_submitit_that_was_started_in_the_background_can_be_interrupted(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with launchers.told_to_end(), pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("listens", [True, False])
def test_jobs_of_submitit_that_do_not_listen_are_killed(monkeypatch, listens):
    """Processes are made up."""
    done = []

    class Process:
        def __init__(self, name, children=(), command=()):
            self.name, self._children, self.command = name, children, command

        def children(self, recursive=False):
            return self._children

        def cmdline(self):
            return self.command

        def send_signal(self, number):
            done.append((self.name, number))

        def kill(self):
            if self.name == "gone":
                raise ProcessLookupError
            done.append((self.name, "killed"))

    job = Process("job")
    controller = Process("controller", [Process("gone"), job], ["python", "-m", "submitit.local._local"])
    made_up = SimpleNamespace(
        Process=lambda: Process("sweep", [controller, Process("a server")]),
        Error=OSError,
        NoSuchProcess=ProcessLookupError,
        wait_procs=lambda those, timeout: ([], [] if listens else those),
    )
    monkeypatch.setitem(sys.modules, "psutil", made_up)
    launchers.end_local()
    killed = [] if listens else [("job", "killed"), ("controller", "killed")]
    assert done == [("gone", signal.SIGINT), ("job", signal.SIGINT), *killed]


def test_what_is_put_into_the_queue_again_does_not_say_that_it_runs(monkeypatch, tmp_path):
    """Submitit leaves by `SystemExit` when SLURM takes a job back; `tsexp status` called that one missing."""

    def taken_back(*_, **__):
        (tmp_path / jobs.RUNNING).write_text("{}")
        sys.exit(-1)

    monkeypatch.setattr(jobs, "start_server", lambda: None)
    monkeypatch.setattr(jobs.processes, "run", taken_back)
    with pytest.raises(SystemExit):
        jobs._run_apart(OmegaConf.structured(compose()), "job", tmp_path, None)
    assert not (tmp_path / jobs.RUNNING).exists()


def test_processes_of_a_ray_cluster_work_where_the_sweep_was_started(composed, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TSEXP_DATA", "/data")
    there = composed("hydra/launcher=ray", "hydra.launcher.ray.init.address=auto")
    launchers.prepare(there)
    environment = there.hydra.launcher.ray.init.runtime_env
    assert environment.env_vars["TSEXP_DATA"] == "/data"
    monkeypatch.chdir("/")
    monkeypatch.setenv(launchers.FOLDER, environment.env_vars[launchers.FOLDER])
    pkgutil.resolve_name(environment.worker_process_setup_hook)()
    assert Path.cwd() == tmp_path
    here = composed("hydra/launcher=ray")
    launchers.prepare(here)
    assert "runtime_env" not in here.hydra.launcher.ray.init


def test_what_a_cluster_answers_is_told_in_a_line():
    engine = type("FailedSubmissionError", (RuntimeError,), {"__module__": "submitit.core.utils"})
    assert launchers.refused(engine("sbatch: error:\ninvalid partition")) == (
        "SLURM did not take the jobs: sbatch: error: invalid partition"
    )
    assert launchers.refused(RuntimeError("ours")) is None


def store_of(location):
    """A client whose experiment keeps artifacts there."""
    found = SimpleNamespace(artifact_location=location, experiment_id="1", tags={})
    return SimpleNamespace(get_experiment_by_name=lambda _: found, set_experiment_tag=lambda *_: None)


@pytest.mark.parametrize("location", ["mlflow-artifacts:/1", "s3://bucket/1", "dbfs:/1"])
def test_artifacts_lie_where_the_server_says(location, monkeypatch):
    monkeypatch.setattr(tracking_client.stores, "client", lambda uri: store_of(location))
    tracking_client._ready(f"http://x/{location}", "tsexp", None, 1)


def test_a_folder_of_any_name_is_one_of_this_machine(monkeypatch, tmp_path):
    folder = tmp_path / "sp äce" / "1"
    folder.mkdir(parents=True)
    for location in (folder.as_uri(), str(folder)):
        monkeypatch.setattr(tracking_client.stores, "client", lambda uri, at=location: store_of(at))
        tracking_client._ready(f"http://x/{location}", "tsexp", None, 3)


@pytest.mark.parametrize(
    "location", ["./mlruns/1", "mlruns/1", "file:///proc/nowhere/at/all/1", "/proc/nowhere/1"]
)
def test_artifacts_that_would_lie_where_no_other_machine_looks_are_refused(location, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking_client.stores, "client", lambda uri: store_of(location))
    with pytest.raises(ConfigError, match=r"no folder of this machine; let the server serve them"):
        tracking_client._ready(f"http://me:secret@x/{location}", "tsexp", None, 2)
    assert not list(tmp_path.iterdir())


def test_a_database_is_asked_for_a_place_of_artifacts(monkeypatch):
    empty = SimpleNamespace(get_experiment_by_name=lambda _: None)
    monkeypatch.setattr(tracking_client.stores, "client", lambda uri: empty)
    with pytest.raises(ConfigError, match=r"me:\*\*\*@host/db is a database.*tracking.artifacts=/shared"):
        tracking.store(TrackingConfig("postgresql://me:secret@host/db", "tsexp"))
