"""docs/security.md as written: a server that asks for a password, a job that has it, one that has not."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import TINY

PAGE = (Path(__file__).parents[1] / "docs" / "security.md").read_text()
BLOCKS = re.findall(r"^```(ini|sh)\n(.*?)^```$", PAGE, re.M | re.S)
REFUSED = re.search(r"^    (tsexp: error: the store .* refuses .*)$", PAGE, re.M)[1]
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "NETRC")


class Place:
    """A folder with the page's files, and a server that the page's commands started there."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.password = secrets.token_hex(16)
        for name, content in (("admin-password", self.password), ("secret-key", secrets.token_hex(32))):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(f"{content}\n")
        (_, settings), (_, self.serve), (_, self.run) = BLOCKS
        (folder / "auth.ini").write_text(settings)

    def here(self, text):
        return text.replace("5000", str(self.port))

    def shell(self, text, *more, **environment):
        """Start lines of the page in a shell; its last command gets `more` arguments."""
        kept = {k: v for k, v in os.environ.items() if k not in CREDENTIALS}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        return subprocess.Popen(
            ["sh", "-ec", f"{self.here(text).strip()} {' '.join(more)}"],
            cwd=self.folder,
            env=kept | {"PATH": path} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def job(self, text, **environment):
        """Run one tiny job and return its status and what it said."""
        process = self.shell(text, *TINY, "data=italy_power_demand", "train.epochs=1", **environment)
        out, err = process.communicate(timeout=900)
        return process.returncode, out, err

    def leaks(self):
        """Files with the password, but for the one that has to have it."""
        files = [
            p for p in self.folder.rglob("*") if p.is_file() and p.name not in ("admin-password", "netrc")
        ]
        return [str(p) for p in files if self.password.encode() in p.read_bytes()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("flask_wtf", reason="MLflow's basic-auth needs mlflow[auth]")
    made = Place(tmp_path_factory.mktemp("auth"))
    with (made.folder / "server.log").open("w") as log:
        server = made.shell(f"exec >{log.name} 2>&1\n{made.serve}", "--workers", "1")
        try:
            end = time.monotonic() + 300
            while time.monotonic() < end:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{made.port}/health", timeout=5).read()
                    break
                except urllib.error.HTTPError:
                    break  # it is there, and asks who one is
                except OSError:
                    assert server.poll() is None, Path(log.name).read_text()
                    time.sleep(0.5)
            yield made
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.communicate()


@pytest.mark.slow
def test_without_credentials_one_line_refuses(place):
    status, out, err = place.job(place.run.splitlines()[-1])
    assert (status, err.strip().splitlines()) == (2, [place.here(REFUSED)])
    assert out == ""


@pytest.mark.slow
def test_a_wrong_password_is_refused_in_the_same_line(place):
    wrong = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "wrong password"}
    status, _, err = place.job(place.run.splitlines()[-1], **wrong)
    assert (status, err.strip().splitlines()) == (2, [place.here(REFUSED)])


@pytest.mark.slow
def test_with_credentials_from_the_environment_a_job_is_stored(place):
    status, out, err = place.job(place.run)
    assert status == 0, out + err
    assert f"compare: http://127.0.0.1:{place.port}/#/experiments/" in out
    assert place.password not in out + err
    assert not place.leaks()


@pytest.mark.slow
def test_a_netrc_file_does_as_well(place):
    file = place.folder / "netrc"
    file.touch(mode=0o600)
    file.write_text(f"machine 127.0.0.1 login admin password {place.password}\n")
    status, out, err = place.job(place.run.splitlines()[-1], NETRC=str(file))
    assert status == 0, out + err
    assert "measured before" in out or "compare: http" in out
    assert place.password not in out + err
    assert not place.leaks()
