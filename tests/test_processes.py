"""Warm processes: forked, isolated, distinguished by how they end, and gone with their caller."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from tsexp.energy import hardware
from tsexp.system import processes

JOBS = """
import os, signal, sys, time

def note(path):
    import threading
    warm = "torch" in sys.modules
    seen = "/proc/self/task"
    tasks = len(os.listdir(seen)) if os.path.isdir(seen) else threading.active_count()
    open(path, "w").write(f"{os.getpid()} {warm} {tasks} {os.environ.get('COLOUR')} {os.getcwd()}")

def seven(): return 7
def leave(): sys.exit(9)
def fail(): raise RuntimeError("broken")
def die(): os.kill(os.getpid(), signal.SIGKILL)
def say(text): print(text)
def nested():
    from tsexp.system import processes
    return 10 + processes.run("jobs:seven")
def forever(path):
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(path + ".new", "w").write(f"{os.getpid()} {child.pid}")
    os.rename(path + ".new", path)
    time.sleep(600)
def alone(path):
    open(path, "w").write("")
    time.sleep(600)
def stubborn(path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    forever(path)
def temporary(path):
    import tempfile
    return int(os.environ["TMPDIR"] != path or tempfile.gettempdir() != path)
def secrets():
    began = open("/proc/self/environ").read()
    return ("PGPASSWORD" in began) + 2 * (os.environ.get("PGPASSWORD") == "swordfish")
def waits_asleep():
    began = open("/proc/self/environ").read().split("\\0")  # libraries read it when they are loaded
    return 0 if {"OMP_WAIT_POLICY=PASSIVE", "GOMP_SPINCOUNT=0"} <= set(began) else 1
def peak():
    from tsexp.energy.hardware import peak_memory
    peak_mb = peak_memory()
    return peak_mb() > 300
def two_threads():
    import torch
    torch.set_num_threads(2)
    a = torch.randn(600, 600)
    assert torch.allclose(a @ a, (a.double() @ a.double()).float(), atol=1e-2)
    return 20 + len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 22
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with functions to call, and a server that knows PyTorch."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "jobs.py").write_text(JOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv(processes.ADDRESS, "")  # other tests need one that knows more
        patch.setenv("PGPASSWORD", "swordfish")
        processes.start(["torch", "filelock"])  # of which one has asked where temporary files go
        yield folder


def wait_for(path: Path) -> list[int]:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(word) for word in path.read_text().split()]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids: list[int], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while any(lives(p) for p in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize(
    ("what", "status"), [("seven", 7), ("leave", 9), ("fail", 1), ("die", -signal.SIGKILL)]
)
def test_status_tells_how_it_ended(jobs: Path, what: str, status: int, fork: bool) -> None:
    assert processes.run(f"jobs:{what}", fork=fork) == status


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
def test_each_is_a_process_of_its_own_warm_with_one_thread_and_the_callers_environment(
    jobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLOUR", "blue")
    monkeypatch.chdir(jobs)
    seen = []
    for i in range(2):
        assert processes.run("jobs:note", str(jobs / f"note{i}")) == 0
        seen.append((jobs / f"note{i}").read_text().split())
    assert seen[0][0] != seen[1][0]
    for pid, warm, tasks, colour, folder in seen:
        assert int(pid) != os.getpid()
        assert (warm, tasks, colour, folder) == ("True", "1", "blue", str(jobs))


@pytest.mark.parametrize("fork", [True, False])
def test_what_it_says_goes_where_the_caller_says_it(
    jobs: Path, fork: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    processes.run("jobs:say", "hello there", fork=fork)
    processes.run("jobs:fail", fork=fork)
    out, error = capfd.readouterr()
    assert out == "hello there\n"
    assert "RuntimeError: broken" in error


def test_one_may_ask_for_another(jobs: Path) -> None:
    assert processes.run("jobs:nested") == 17


@pytest.mark.skipif(not processes.FORKS, reason="only Linux tells")
@pytest.mark.parametrize("fork", [True, False])
def test_threads_that_wait_sleep_whatever_the_caller_says(
    jobs: Path, fork: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "infinite")
    assert processes.run("jobs:waits_asleep", fork=fork) == 0


@pytest.mark.skipif(not processes.FORKS, reason="only Linux tells")
@pytest.mark.parametrize("fork", [True, False])
def test_the_peak_of_memory_is_not_the_callers(jobs: Path, fork: bool) -> None:
    held = bytearray(b"x") * (400 << 20)
    assert processes.run("jobs:peak", fork=fork) == 0
    assert len(held) == 400 << 20


@pytest.mark.skipif(not processes.FORKS, reason="only Linux tells")
def test_the_peak_of_memory_is_of_what_came_since() -> None:
    held = bytearray(b"x") * (100 << 20)  # the other subject, as it were
    peak_mb = hardware.peak_memory()
    mine = bytearray(b"x") * (50 << 20)
    found = peak_mb()
    del mine
    assert found == pytest.approx(50, abs=5)
    assert peak_mb() == pytest.approx(50, abs=5)  # the most there ever was
    assert len(held) == 100 << 20


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
def test_two_threads_after_a_fork(jobs: Path) -> None:
    assert processes.run("jobs:two_threads") >= 22


def caller(jobs: Path, code: str) -> subprocess.Popen[str]:
    """A process that asks for others, and has a server of its own."""
    env = {k: v for k, v in os.environ.items() if k != processes.ADDRESS} | {"PYTHONPATH": str(jobs)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("fork", [True, False])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_everything_goes_with_its_caller(jobs: Path, tmp_path: Path, sent: int, fork: bool) -> None:
    asking = caller(
        jobs,
        f"from tsexp.system import processes; processes.run('jobs:forever', '{tmp_path}/pids', fork={fork})",
    )
    pids = wait_for(tmp_path / "pids")
    asking.send_signal(sent)
    asking.wait(20)
    assert gone(pids, within_s=5)


def test_what_does_not_listen_is_killed(jobs: Path, tmp_path: Path) -> None:
    run = f"processes.run('jobs:stubborn', '{tmp_path}/pids')"
    asking = caller(jobs, f"from tsexp.system import processes; {run}")
    pids = wait_for(tmp_path / "pids")
    asking.kill()
    asking.wait(20)
    assert gone(pids, within_s=processes.GRACE_S + 5)


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
def test_a_server_that_died_is_reported_and_the_next_call_starts_another(jobs: Path, tmp_path: Path) -> None:
    asking = caller(
        jobs,
        f"""
        import os, signal, threading, time
        from tsexp.system import processes
        processes.run("jobs:seven")
        first = os.environ[processes.ADDRESS]
        def kill():
            while not os.path.exists("{tmp_path}/pids"): time.sleep(.02)
            import psutil
            os.kill(psutil.Process().children()[0].pid, signal.SIGKILL)
        threading.Thread(target=kill).start()
        try:
            processes.run("jobs:alone", "{tmp_path}/pids")
        except processes.ServerGone as error:
            assert "is gone" in str(error)
        else:
            raise SystemExit(1)
        assert processes.run("jobs:seven") == 7
        assert os.environ[processes.ADDRESS] != first
        """,
    )
    _, error = asking.communicate(timeout=60)
    assert asking.returncode == 0, error


def test_temporary_folders_may_have_long_names(jobs: Path, tmp_path: Path) -> None:
    (tmp_path / ("x" * 90)).mkdir()
    asking = caller(
        jobs,
        f"""
        import os, tempfile
        tempfile.tempdir = "{tmp_path}/{"x" * 90}"
        from tsexp.system import alive, processes
        assert processes.run("jobs:seven") == 7
        folder = os.path.dirname(os.environ[processes.ADDRESS])
        assert os.stat(folder).st_mode & 0o077 == 0
        owner = f"{{folder}}/{{alive.OWNER}}"
        alive.tidy()
        assert os.path.exists(owner)
        """,
    )
    _, error = asking.communicate(timeout=60)
    assert asking.returncode == 0, error


@pytest.mark.parametrize("fork", [True, False])
def test_a_process_may_have_a_place_of_its_own_for_temporary_files(
    jobs: Path, tmp_path: Path, fork: bool
) -> None:
    assert processes.run("jobs:temporary", str(tmp_path), temporary=str(tmp_path), fork=fork) == 0


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
@pytest.mark.usefixtures("jobs")
def test_a_password_is_for_whom_it_is_meant_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "swordfish")
    assert processes.run("jobs:secrets") == 2
    assert processes.run("jobs:secrets", without=["PGPASSWORD"]) == 0


def test_what_is_spawned_by_a_nameless_script_does_not_run_it_again(tmp_path):
    """As Zeus does, in the process of whoever calls the classifier."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, operator, sys\n"
        "from tsexp.system import processes\n"
        "print('begins', flush=True)\n"
        "with processes.nameless_main():\n"
        "    child = multiprocessing.get_context('spawn').Process(target=print, args=('child',))\n"
        "    child.start()\n"
        "child.join()\n"
        "print(child.exitcode, sys.modules['__main__'].__file__ == sys.argv[0])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["begins", "child", "0", "True"]


@pytest.mark.skipif(not processes.FORKS, reason="only Linux forks")
def test_a_process_that_cannot_start_fails_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    asking, answering = socket.socketpair()
    listener = cast("socket.socket", SimpleNamespace(accept=lambda: (answering, None)))
    server = processes._Server(listener)
    with asking:
        socket.send_fds(asking, [b"{}\n"], [1, 2])
        server._take()
        assert asking.recv(16) == b"1\n"
    assert server.waiting == {}
    assert "could not be started" in capfd.readouterr().err


def test_nobody_else_may_ask(jobs: Path) -> None:
    if not processes.FORKS:
        pytest.skip("only Linux forks")
    assert Path(os.environ[processes.ADDRESS]).parent.stat().st_mode & 0o077 == 0


def test_a_fork_of_this_process_has_its_memory_and_tells_how_it_ended(tmp_path):
    held = {"a list that no file holds": 3}

    def leave():
        (tmp_path / "seen").write_text(f"{len(held)} {os.getppid() == caller}")
        return held.popitem()[1]

    caller = os.getpid()
    assert processes.fork_here(leave) == 3
    assert (tmp_path / "seen").read_text() == "1 False"  # a fork of a fork
    assert held
    assert processes.fork_here(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0) == -signal.SIGTERM
    assert processes.fork_here(lambda: 1 // 0) == 1


def test_what_a_fork_of_this_process_says_is_heard(capfd):
    assert processes.fork_here(lambda: print("said") or 0) == 0
    assert capfd.readouterr().err == "said\n"


def test_a_fork_of_this_process_ends_with_its_caller(tmp_path):
    code = (
        "import os, time; from pathlib import Path; from tsexp.system import processes\n"
        f"def stay(): Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid())); time.sleep(60)\n"
        "processes.fork_here(stay)"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    caller.kill()
    caller.wait()
    assert gone([pid], within_s=30)


def wait(happened, timeout_s=30):
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
