"""Sweeps on real engines: SLURM, Ray, PostgreSQL, MLflow's server. `make test-cluster`; minutes.

An engine that cannot start here is skipped, with the reason.
"""

import contextlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import optuna
import psutil
import pytest

import engines
from conftest import TINY
from test_cli import runs
from test_docs import shrunk
from tsexp.compress import fold

pytestmark = pytest.mark.cluster

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
COMMANDS = [
    command
    for command in re.findall(r"^    python -m (tsexp .*)$", PAGE.read_text(), re.M)
    # test_sweep.py and a test below search; GPUs, the page says, were not tried.
    if "experiment=pareto" not in command and "cuda" not in command
]
SMALL = [*TINY, "data=italy_power_demand"]


def _benchmark(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark("launchers")


@contextlib.contextmanager
def started(engine, *arguments):
    """An engine in a folder of its own, or a skipped test."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(engines.place())
        try:
            found = stack.enter_context(engine(folder, *arguments))
        except engines.Missing as why:
            pytest.skip(str(why))
        yield found


@pytest.fixture(scope="module")
def slurm():
    with started(engines.slurm) as environment:
        yield environment


@pytest.fixture(scope="module")
def ray():
    with started(engines.ray_cluster) as address:
        yield address


@pytest.fixture(scope="module")
def postgres():
    with started(engines.postgres) as uri:
        yield uri


def tsexp(folder, *arguments, environment=None, status=0):
    """The program in a folder, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "tsexp", *arguments],
        cwd=folder,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The small sweep of the benchmark by one process."""
    return benchmark.sweep("basic", tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_every_launcher_makes_what_one_process_makes(launcher, alone, tmp_path, request):
    if launcher == "submitit_slurm":
        more, environment = [], request.getfixturevalue("slurm")
    elif launcher == "ray":
        more, environment = [f"hydra.launcher.ray.init.address={request.getfixturevalue('ray')}"], {}
    else:
        more, environment = [], {}
    found = benchmark.sweep(launcher, tmp_path, *more, environment=environment)
    assert found.answers == alone.answers
    assert len(found.answers) == 4
    assert benchmark.meeting(alone, found) == 4
    assert benchmark.alone(found)


def test_artifacts_are_made_anywhere_and_measured_on_the_nodes_with_the_meter(slurm, tmp_path):
    asked = ["-m", *SMALL, "prune.ratio=0,0.5", "hydra/launcher=submitit_slurm"]
    where = ["hydra.launcher.setup=['echo $SLURM_JOB_NODELIST >> nodes']"]
    first = tsexp(tmp_path, *asked, *where, "stop_after=deploy", environment=slurm)
    assert "0 jobs, 2 deployed and not measured" in first.stdout
    (parent,) = runs(tmp_path)
    assert parent.data.tags["tsexp.stage"] == "sweep"
    assert parent.info.status == "FINISHED"
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("entry.json")}
    anywhere = (tmp_path / "nodes").read_text().split()
    (tmp_path / "nodes").unlink()

    there = ["hydra.launcher.partition=meter", "+hydra.launcher.additional_parameters.exclusive=true"]
    second = tsexp(tmp_path, *asked, *where, *there, environment=slurm)
    assert "\n2 jobs" in second.stdout
    assert len(anywhere) == 2
    assert set((tmp_path / "nodes").read_text().split()) == {"n2"}
    assert {p: p.stat().st_mtime_ns for p in made} == made
    stages = {p.parts[-3] for p in (tmp_path / "cache").rglob("entry.json") if p not in made}
    assert not stages & {"dense", *fold.STEPS, "artifact"}
    measured = [r for r in runs(tmp_path) if "tsexp.valid" in r.data.tags]
    assert len(measured) == 2
    assert {r.data.tags["mlflow.parentRunId"] for r in measured} == {parent.info.run_id}


@pytest.mark.parametrize("how", ["requeued by hand", "preempted, or out of time"])
def test_a_job_that_is_put_back_into_the_queue_goes_on(slurm, tmp_path, how):
    asked = ["-m", *SMALL, "prune.ratio=0,0.5", "measure.repeats=60", "hydra/launcher=submitit_slurm"]
    command = [sys.executable, "-m", "tsexp", *asked]
    out = (tmp_path / "out").open("w+")
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | slurm, stdout=out, stderr=out)

    def ask(*words):
        return subprocess.run(
            words, env=os.environ | slurm, capture_output=True, text=True, check=True
        ).stdout

    try:
        end = time.monotonic() + 300
        # once something lies in the cache
        while not list(tmp_path.glob("cache/dense/*/entry.json")):
            assert process.poll() is None, out.seek(0) or out.read()
            assert time.monotonic() < end
            time.sleep(0.2)
        trained = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cache/dense/*/entry.json")}
        number = ask("squeue", "-h", "-t", "running", "-o", "%i").split()[0]
        ask(*(("scontrol", "requeue") if "hand" in how else ("scancel", "--signal=USR2")), number)
        while process.poll() is None:  # SLURM lets a job that was put back wait for two minutes
            now = ["scontrol", "update", f"JobId={number}", "StartTime=now"]
            subprocess.run(now, env=os.environ | slurm, capture_output=True)
            assert time.monotonic() < end + 300
            time.sleep(1)
        said = (out.seek(0), out.read())[1]
        assert process.returncode == 0, said
    finally:
        process.kill()
    assert "2 jobs" in said
    assert "failed" not in said
    logs = "".join(log.read_text() for log in tmp_path.glob("multirun/*/*/.submitit/*/*_log.out"))
    assert logs.count("Starting with JobEnvironment") == 3  # one of the two, twice
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    done = [
        r for r in runs(tmp_path) if r.data.tags.get("tsexp.valid") == "true" and r.info.status == "FINISHED"
    ]
    assert len({r.data.tags["tsexp.signature"] for r in done}) == len(done) == 2


def test_a_job_that_is_lost_is_told_and_the_others_count(tmp_path):
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed; pip install 'tsexp[slurm]'")
    asked = [
        "-m",
        *SMALL,
        "prune.ratio=0,0.5",
        "hydra/launcher=submitit_local",
        "hydra.sweeper.max_batch_size=2",
    ]
    command = [sys.executable, "-m", "tsexp", *asked]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    victims = []
    while not victims:
        assert time.monotonic() < end
        time.sleep(0.2)
        lines = [(p, p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
        victims = [
            p
            for p, words in lines
            if "submitit.core._submit" in words and str(tmp_path) in " ".join([*words, p.cwd()])
        ]
    victims[0].send_signal(signal.SIGKILL)
    out, error = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "1 jobs, 1 failed" in out
    assert re.search(r"tsexp: failed: prune.ratio=\S+ \(#\d\): the job was lost \(", error)
    again = tsexp(tmp_path, *asked)
    assert "2 jobs, 1 of them measured before" in again.stdout


@pytest.mark.parametrize(("word", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_sweep_that_is_told_to_end_leaves_no_local_job(word, status, tmp_path):
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("submitit is not installed; pip install 'tsexp[slurm]'")
    asked = [*SMALL, "train.epochs=100000", "train.max_steps=100000", "prune.ratio=0,0.5"]
    command = [sys.executable, "-m", "tsexp", "-m", *asked, "hydra/launcher=submitit_local"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def here():
        found = []
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if one.cwd() == str(tmp_path) and one.pid != process.pid:
                    found.append(one)
        return found

    end = time.monotonic() + 300
    while not list(tmp_path.glob("multirun/*/*/*/running.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(3)  # it trains
    assert here()
    process.send_signal(word)  # to it alone
    _, error = process.communicate(timeout=120)
    assert process.returncode == status, error
    assert "Traceback" not in error
    psutil.wait_procs(here(), timeout=20)
    assert not here()
    assert {run.info.status for run in runs(tmp_path)} <= {"KILLED", "FAILED"}


def test_what_slurm_does_not_take_is_told_in_a_line(slurm, tmp_path):
    done = tsexp(
        tmp_path, "-m", *SMALL, "prune.ratio=0,0.5", "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=nowhere", environment=slurm, status=1,
    )  # fmt: skip
    assert "tsexp: error: SLURM did not take the jobs: " in done.stderr
    assert "invalid partition" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", ["submitit_slurm", "ray"])
def test_two_commands_search_together_on_a_cluster(launcher, tmp_path, request):
    """One search, eight trials in all, two at a time of each command; what both propose is measured once."""
    more, environment = [f"hydra/launcher={launcher}"], {}
    if launcher == "ray":
        more += [f"hydra.launcher.ray.init.address={request.getfixturevalue('ray')}"]
    else:
        environment = request.getfixturevalue("slurm")
    choices = ["prune.ratio=0,0.3,0.5,0.7", "prune.method=l1,l2", "quant.mode=none", "runtime=onnxruntime"]
    size = [
        "hydra.sweeper.n_trials=8",
        "hydra.sweeper.n_jobs=2",
        'hydra.sweeper.constraints=["size/bytes<=1e9"]',
    ]
    command = [sys.executable, "-m", "tsexp", "-m", "experiment=pareto", *SMALL, *choices, *size, *more]
    running = [
        subprocess.Popen(
            [*command, f"hydra.sweep.dir={tmp_path / name}"],
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "two")
    ]
    try:
        said = [one.communicate(timeout=900)[0] for one in running]
    finally:
        for one in running:
            one.kill()
    assert [one.returncode for one in running] == [0, 0], said
    measured = [r for r in runs(tmp_path) if "tsexp.valid" in r.data.tags]
    assert all(r.info.status == "FINISHED" for r in runs(tmp_path))
    signatures = [r.data.tags["tsexp.signature"] for r in measured]
    assert len(set(signatures)) == len(signatures)
    shown = [int(number) for text in said for number in re.findall(r"^(\d+) jobs", text, re.M)]
    assert len(shown) == 2
    assert max(shown) == len(measured)  # of the one that ended last
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "cache" / "searches" / "optuna.log"))
    )
    (summary,) = storage.get_all_studies()
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    assert 8 <= len(trials) <= 11  # both may begin a last round
    assert {t.state.name for t in trials} == {"COMPLETE"}
    assert len({t.user_attrs["process"]["pid"] for t in trials}) == 2


@pytest.fixture(scope="module")
def visitor(tmp_path_factory):
    """A folder of somebody who gives every command of the page, one after the other."""
    return tmp_path_factory.mktemp("visitor")


def test_the_page_has_commands_for_every_launcher_and_store():
    text = "\n".join(COMMANDS)
    assert len(COMMANDS) == 8
    for word in ("joblib", "submitit_local", "submitit_slurm", "ray", "http://", "postgresql://"):
        assert word in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_runs(command, visitor, request, tmp_path):
    environment = request.getfixturevalue("slurm") if "submitit_slurm" in command else {}
    with contextlib.ExitStack() as stack:
        folder = visitor
        if "address=auto" in command:
            command = command.replace("address=auto", f"address={request.getfixturevalue('ray')}")
        elif "launcher=ray" in command and importlib.util.find_spec("ray") is None:
            pytest.skip("Ray is not installed; pip install 'tsexp[ray]'")
        if "tracking.uri=" in command:
            folder, database = tmp_path, request.getfixturevalue("postgres")
            command = command.replace("/shared/artifacts", f"{tmp_path}/artifacts")
            command = command.replace(
                "postgresql://USER@HOST/DATABASE", f"{database} tracking.experiment=direct"
            )
        if "http://127.0.0.1:5000" in command:
            (serve,) = re.findall(r"^    mlflow server (.*)$", PAGE.read_text(), re.M)
            serve = serve.replace("/shared/artifacts", f"{tmp_path}/served")
            words = shlex.split(serve.replace("postgresql://USER@HOST/DATABASE", database))
            assert words[:4] == ["--host", "127.0.0.1", "--port", "5000"]  # which may be taken here
            assert words[4:6] == ["--backend-store-uri", database]
            address = stack.enter_context(engines.mlflow_server(tmp_path, database, *words[6:]))
            command = command.replace("http://127.0.0.1:5000", address)
        done = tsexp(folder, *shrunk(command), environment=environment)
    assert "compare: " in done.stdout
    if "tracking.uri=" in command:
        places = [tmp_path / name for name in ("artifacts", "served")]
        assert any(list(place.rglob("windows.json")) for place in places if place.exists())
        assert not {"mlruns", "mlartifacts"} & {p.name for p in tmp_path.iterdir()}


def test_artifacts_of_a_server_that_does_not_serve_them_lie_where_it_says_or_are_refused(tmp_path):
    store = f"sqlite:///{tmp_path}/server.db"
    asked = [*SMALL, "measure.repeats=4"]
    with started(engines.mlflow_server, store, "--no-serve-artifacts", "--default-artifact-root",
                 str(tmp_path / "root")) as address:  # fmt: skip
        (tmp_path / "here").mkdir()
        refused = tsexp(tmp_path / "here", *asked, f"tracking.uri={address}", status=2)
        assert "is no folder of this machine; let the server serve them" in refused.stderr
        (tmp_path / "root").mkdir()
        tsexp(tmp_path / "here", *asked, f"tracking.uri={address}")
        assert list((tmp_path / "root").rglob("windows.json"))
        assert not (tmp_path / "here" / "mlruns").exists()
        client = mlflow.MlflowClient(address)
        (run,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id],
                                    "tags.`tsexp.valid` = 'true'")  # fmt: skip
        assert client.list_artifacts(run.info.run_id)


def test_the_load_of_a_store_is_measured(tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "benchmarks" / "load.py"), "--jobs", "4,4"]
    done = subprocess.run(
        [*command, "--stores", "sqlite", "--at-once", "1,4"], cwd=tmp_path, capture_output=True, text=True
    )
    rows = re.findall(r"^\| sqlite \| (\d) \| 4 \| (\d+) \| (\d) \| (\d) \|$", done.stdout, re.M)
    assert [(at_once, lost, twice) for at_once, _, lost, twice in rows] == [("1", "0", "0"), ("4", "0", "0")]
    assert all(int(rate) > 0 for _, rate, *_ in rows)
