"""The store's password: in no file that a run or a sweep leaves, and in nothing that it says."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from conftest import TINY
from test_cli import tsexp

PASSWORD = "ThePassword4711"
NOBODY = f"postgresql://me:{PASSWORD}@127.0.0.1:1/db"
"""A store that does not answer: nothing listens there, and its driver may be missing."""


def leaks(folder, done):
    """The files below the folder, and the streams, that have the password."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".db"]
    found = [str(p.relative_to(folder)) for p in files if PASSWORD.encode() in p.read_bytes()]
    return found + [
        name for name, text in (("stdout", done.stdout), ("stderr", done.stderr)) if PASSWORD in text
    ]


def own_conf(folder, uri):
    """The option tracking=mine, in a folder of somebody's own."""
    (folder / "conf" / "tracking").mkdir(parents=True)
    (folder / "conf" / "tracking" / "mine.yaml").write_text(f"defaults: [default]\nuri: {uri}\n")
    return folder / "conf"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([f"tracking.uri={NOBODY}"], 2),
        (["-m", f"tracking.uri={NOBODY}", "seed=0,1"], 2),
        (["-m", f"tracking.uri={NOBODY},sqlite:///mlflow.db"], 2),
        (["--cfg", "job", f"tracking.uri={NOBODY}"], 0),
        ([f"tracking.uri={NOBODY}", "data=nowhere"], 2),
        ([f"tracking.uri={NOBODY}", "-m", "seed=0,1"], 2),
        ([f"+tracking.uri='{NOBODY}'='"], 2),
    ],
    ids=["run", "sweep", "two stores", "cfg", "bad option", "bad order", "bad syntax"],
)
def test_what_fails_or_only_shows_leaves_no_password(tmp_path, arguments, status):
    done = tsexp(tmp_path, *arguments, *TINY, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert not leaks(tmp_path, done), done.stdout + done.stderr


def test_a_configuration_that_has_the_password_in_a_file_is_shown_without(tmp_path):
    done = tsexp(
        tmp_path, "--config-dir", str(own_conf(tmp_path / "mine", NOBODY)), "--cfg=job", "tracking=mine"
    )
    assert "uri: postgresql://me:***@127.0.0.1:1/db" in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def test_a_run_whose_configuration_has_the_password_in_a_file_leaves_none(tmp_path):
    conf = own_conf(tmp_path / "mine", NOBODY)
    work = tmp_path / "work"
    work.mkdir()
    done = tsexp(
        work, "--config-dir", str(conf), "tracking=mine", *TINY, "data=italy_power_demand", check=False
    )
    assert done.returncode == 2
    assert not leaks(work, done), done.stdout + done.stderr
    (written,) = work.rglob(".hydra/config.yaml")
    assert "uri: ${oc.env:TSEXP_TRACKING_URI}" in written.read_text()


def test_a_study_whose_parameters_have_the_store_is_refused_without_its_password(tmp_path):
    conf = tmp_path / "mine" / "experiment"
    conf.mkdir(parents=True)
    (conf / "mine.yaml").write_text(
        f"# @package _global_\nhydra: {{sweeper: {{params: {{tracking.uri: '{NOBODY}', seed: '0,1'}}}}}}\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    done = tsexp(work, "-m", "--config-dir", str(conf.parent), "experiment=mine", check=False)
    assert done.returncode == 2
    assert "tracking.uri: a sweep has one store" in done.stderr
    assert not leaks(work, done), done.stdout + done.stderr


def test_the_ui_on_a_store_that_does_not_answer_says_so_without_the_password(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tsexp.ui", NOBODY], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "me:***@127.0.0.1:1/db " in done.stderr
    assert "Traceback" not in done.stderr
    assert not leaks(tmp_path, done)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server; it lets everybody in, with whatever password."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            end = time.monotonic() + 90
            while time.monotonic() < end:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    break
                except OSError:
                    time.sleep(0.3)
            yield f"http://me:{PASSWORD}@127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep",
    [[], ["-m", "prune.ratio=0,0.5"], ["-m", "prune.ratio=0,0.5", "hydra/launcher=joblib"]],
    ids=["run", "sweep", "joblib"],
)
def test_what_succeeds_leaves_no_password(tmp_path, server, sweep):
    done = tsexp(
        tmp_path, *sweep, f"tracking.uri={server}", "train.epochs=1", *TINY, "data=italy_power_demand"
    )
    assert not leaks(tmp_path, done), done.stdout + done.stderr
    again = tsexp(
        tmp_path, *sweep, f"tracking.uri={server}", "train.epochs=1", *TINY, "data=italy_power_demand"
    )
    assert "measured before" in again.stdout
    assert not leaks(tmp_path, again)


@pytest.mark.slow
def test_a_sweep_whose_store_is_named_in_a_file_leaves_no_password_when_its_jobs_fail(tmp_path, server):
    conf = own_conf(tmp_path / "mine", server)
    work = tmp_path / "work"
    work.mkdir()
    done = tsexp(
        work,
        "-m",
        "--config-dir",
        str(conf),
        "tracking=mine",
        "train.lr=1e30",
        "train.clip=0",
        *TINY,
        "data=italy_power_demand",
        check=False,
    )
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert not leaks(work, done), done.stdout + done.stderr
