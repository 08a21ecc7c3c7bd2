"""The store's password: in no file that a run or a sweep leaves, and in nothing that it says."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from base64 import b64encode
from pathlib import Path

import pytest

from commands import tsexp
from conftest import TINY
from tsexp import merge, plan, stores, sync, tracking
from tsexp.config import ConfigError, redact, secret

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
        pytest.param(["-m", f"tracking.uri={NOBODY}", "seed=0,1"], 2, marks=pytest.mark.slow),
        (["-m", f"tracking={{uri:'{NOBODY}'}}", "seed=0,1"], 2),
        (["--info", "all", f"tracking.uri={NOBODY}"], 0),
        (["-m", f"tracking.uri={NOBODY},sqlite:///mlflow.db"], 2),
        (["--cfg", "job", f"tracking.uri={NOBODY}"], 0),
        ([f"tracking.uri={NOBODY}", "data=nowhere"], 2),
        ([f"tracking.uri={NOBODY}", "-m", "seed=0,1"], 2),
        ([f"+tracking.uri='{NOBODY}'='"], 2),
    ],
    ids=[
        "run",
        "sweep",
        "group in a sweep",
        "info",
        "two stores",
        "cfg",
        "bad option",
        "bad order",
        "bad syntax",
    ],
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


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql://me:{PASSWORD}@host/db",
        f"postgresql://me:{PASSWORD}/with/slashes@host/db",
        f"postgresql://me:with@sign{PASSWORD}@host/db",
        f"postgresql://:{PASSWORD}@host/db",
        f"postgresql:///db?user=me&password={PASSWORD}&host=h",
        f"postgresql:///db?sslpassword={PASSWORD}",
        f"mysql://h/db?PassWd={PASSWORD}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3D{PASSWORD}",
        f"https://{PASSWORD}@host/mlflow",
        f"https://host/mlflow?access_token={PASSWORD}",
        f"https://host/mlflow?api_key={PASSWORD}",
        f"https://bucket.s3.amazonaws.com/a?X-Amz-Signature={PASSWORD}&X-Amz-Date=1",
        f"https://storage.googleapis.com/a?X-Goog-Credential={PASSWORD}&x=1",
        f"https://account.blob.core.windows.net/a?sv=2020&sig={PASSWORD}",
        f"https://host/mlflow?refresh_token={PASSWORD}",
    ],
)
def test_a_password_is_seen_wherever_a_uri_has_it(uri, monkeypatch):
    assert PASSWORD not in redact(f"before {uri} after")
    assert redact(f"before {uri} after").startswith("before ")
    assert redact(f"before {uri} after").endswith(" after")
    monkeypatch.setenv(secret.STORE, "")
    for given in (f"tracking.uri={uri}", uri, f"--into={uri}"):
        assert PASSWORD not in secret.hidden([given])[0]
        assert os.environ[secret.STORE] == uri
    (told,) = secret.hidden([f'tracking={{uri: "{uri}", experiment: mine}}'])
    assert told == f'tracking={{uri: "{secret.REFERENCE}", experiment: mine}}'
    assert secret.hidden([f"--into={uri}"]) == [f"--into={secret.REFERENCE}"]
    assert secret.given(secret.REFERENCE) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000/team@prod",
        "https://host:443/a?mail=me@host",
        "http://host/team@prod",
        "sqlite:///a@b.db",
    ],
)
def test_what_is_no_password_stays(uri):
    assert redact(f"at {uri}: gone") == f"at {uri}: gone"


def test_several_stores_are_hidden_each_for_itself(monkeypatch, capsys):
    for name in (secret.STORE, f"{secret.STORE}_2"):
        monkeypatch.setenv(name, "")
    a, b = (f"postgresql://me:{PASSWORD}@127.0.0.1:1/{name}" for name in "ab")
    words = secret.hidden([a, a, "--into", b])
    assert PASSWORD not in " ".join(words)
    assert [secret.given(word) for word in words] == [a, a, "--into", b]
    assert (
        merge.main(words) == 2
    )  # nothing listens there; with one variable for both, "both read and written"
    said = capsys.readouterr().err
    assert "127.0.0.1:1/a" in said
    assert PASSWORD not in said


@pytest.mark.parametrize("command", [merge, sync])
def test_what_mlflow_raises_leaves_no_password_in_a_traceback(command, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError(f"cannot reach {NOBODY}")

    monkeypatch.setattr(command, "_open" if command is merge else "_sync", fail)
    assert command.main(["one.db", "--into", "two.db"] if command is merge else []) == 1
    name = command.__name__
    assert capsys.readouterr().err.startswith(
        f"{name}: error: RuntimeError: cannot reach postgresql://me:***@"
    )


def test_a_result_that_is_not_delivered_is_told_by_the_status_of_merge(monkeypatch, tmp_path):
    def fail(*_):
        raise tracking.NotDelivered("it is kept", tmp_path)

    monkeypatch.setattr(merge, "_open", fail)
    assert merge.main(["one.db", "--into", "two.db"]) == 1


@pytest.mark.parametrize("command", [plan, merge, sync])
def test_commands_that_take_a_store_look_for_a_password_first(command, monkeypatch):
    def leave():
        raise SystemExit(77)

    monkeypatch.setattr(secret, "out_of_sight", leave)
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 77


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments/1?viewStateShareKey=tsexp",
        "https://host/users/me@host",
        "postgresql://me@host/db",
        "sqlite:////a/b.db",
    ],
)
def test_what_is_no_password_is_shown(text):
    assert redact(text) == text
    assert secret.hidden([text, f"tracking.uri={text}"]) == [text, f"tracking.uri={text}"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "command",
    [
        ["tsexp", "tracking.uri={}", "data=italy_power_demand"],
        pytest.param(["tsexp.ui", "{}"], marks=pytest.mark.slow),
        pytest.param(["tsexp.compare", "0123456", "1234567", "tracking.uri={}"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_process_that_waits_for_its_store_shows_no_password(tmp_path, command):
    """Whoever lists the processes of a machine sees their arguments."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = f"http://me:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}"
        module, *words = (word.format(store) for word in command)
        with subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                silent.settimeout(120)
                connection, _ = silent.accept()
                shown = Path(f"/proc/{process.pid}/cmdline").read_text()
                asked = connection.recv(65536).decode()
                connection.close()
                said = process.communicate(timeout=120)[0].decode()
            finally:
                process.kill()
    assert secret.STORE in shown
    assert PASSWORD not in shown + said
    assert b64encode(f"me:{PASSWORD}".encode()).decode() in asked  # it did go where it belongs


@pytest.mark.parametrize("name", [n for n in secret.CREDENTIALS if not n.endswith("USERNAME")])
def test_what_lets_one_into_a_store_or_its_files_is_in_no_text(monkeypatch, name):
    monkeypatch.setenv(name, PASSWORD)
    assert PASSWORD not in secret.scrubbed(f"it was {PASSWORD}, said the client")


def test_stores_and_places_of_files_have_their_credentials_listed():
    """Of `config.SCHEMES`, and of where MLflow lets artifacts lie."""
    assert {"PGPASSWORD", "DATABRICKS_TOKEN", "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCESS_KEY"} <= set(
        secret.CREDENTIALS
    )


def test_a_measuring_process_has_no_credentials(tmp_path, monkeypatch):
    from tsexp.system import processes

    (tmp_path / "asks.py").write_text(
        "import os\ndef credentials():\n    from tsexp.config import secret\n"
        "    return 40 + sum(name in os.environ for name in secret.CREDENTIALS)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    for name in secret.CREDENTIALS:
        monkeypatch.setenv(name, PASSWORD)
    for fork in (True, False):
        assert processes.run("asks:credentials", fork=fork, without=secret.CREDENTIALS) == 40
        assert processes.run("asks:credentials", fork=fork) == 40 + len(secret.CREDENTIALS)


def test_measuring_asks_for_that(monkeypatch, tmp_path):
    from conftest import compose
    from tsexp import energy
    from tsexp.cache import Cache
    from tsexp.system import processes

    seen = []

    def run(target, *words, without=(), **_):
        seen.append(without)
        return processes.call(target, words)

    monkeypatch.setattr(processes, "run", run)
    energy.peaks(compose(*TINY).measure, Cache(tmp_path))
    assert seen == [secret.CREDENTIALS]


class Database(threading.Thread):
    """Says that it is PostgreSQL, asks for the password in clear, and remembers it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.told = []

    def run(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                (size,) = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL) or bytes(4))
                if not size:  # only asked whether somebody is there
                    continue
                if connection.recv(size - 4, socket.MSG_WAITALL)[:4] == struct.pack("!I", 80877103):
                    connection.sendall(b"N")  # no TLS
                    (size,) = struct.unpack("!I", connection.recv(4, socket.MSG_WAITALL))
                    connection.recv(size - 4, socket.MSG_WAITALL)
                connection.sendall(b"R" + struct.pack("!II", 8, 3))
                self.told.append(connection.recv(65536)[5:-1].decode())
                text = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0"
                connection.sendall(b"E" + struct.pack("!I", 4 + len(text)) + text)


@pytest.fixture
def database(monkeypatch):
    pytest.importorskip("psycopg")
    for name in ("PGPASSWORD", "PGPASSFILE", secret.STORE):
        monkeypatch.delenv(name, raising=False)
    found = Database()
    found.start()
    yield found
    found.listener.close()


@pytest.mark.parametrize("how", ["PGPASSWORD", "PGPASSFILE", "uri"])
def test_a_database_is_told_the_password_and_nobody_else(database, monkeypatch, tmp_path, how):
    user = "me"
    if how == "PGPASSWORD":
        monkeypatch.setenv(how, PASSWORD)
    elif how == "PGPASSFILE":
        file = tmp_path / "pgpass"
        file.write_text(f"127.0.0.1:{database.port}:*:me:{PASSWORD}\n")
        file.chmod(0o600)
        monkeypatch.setenv(how, str(file))
    else:
        user = f"me:{PASSWORD}"
    with pytest.raises(ConfigError, match=r"does not answer \(.*password authentication failed.*\)") as error:
        stores.client(f"postgresql+psycopg://{user}@127.0.0.1:{database.port}/db")
    assert database.told == [PASSWORD]
    assert PASSWORD not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_ui_on_a_store_that_does_not_answer_says_so_without_the_password(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tsexp.ui", NOBODY], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
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
