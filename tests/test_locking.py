"""The machine lock, between processes."""

from __future__ import annotations

import os
import queue
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsexp import locking

PATIENCE_S = 60.0
"""For what must happen."""
WHILE_S = 1.0
"""For what must not happen."""

SCRIPT = """
import sys
from tsexp import locking
print("trying", flush=True)
with getattr(locking, sys.argv[1])():
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
"""


class Process:
    """Takes the lock in a process of its own, and keeps it until it is told to leave."""

    def __init__(self, how: str, lock: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, how],
            env=os.environ | {"TSEXP_LOCK": str(lock)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.expect("trying")

    def _read(self) -> None:
        for line in self.popen.stdout or ():
            self.said.put(line.strip())

    def expect(self, word: str) -> None:
        assert self.said.get(timeout=PATIENCE_S) == word

    def expect_to_wait(self) -> None:
        with pytest.raises(queue.Empty):
            self.said.get(timeout=WHILE_S)
        assert self.popen.poll() is None

    def leave(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()
        self.expect("out")
        assert self.popen.wait(PATIENCE_S) == 0

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """start("owning") or start("sharing"), all on one machine."""
    processes = []

    def begin(how: str) -> Process:
        processes.append(Process(f"{how}_the_machine", tmp_path / "machine.lock"))
        return processes[-1]

    yield begin
    for p in processes:
        if p.popen.poll() is None:
            p.kill()
        p.reader.join(PATIENCE_S)
        for stream in (p.popen.stdin, p.popen.stdout):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize(
    ("first", "second"), [("owning", "sharing"), ("sharing", "owning"), ("owning", "owning")]
)
def test_second_waits_until_the_first_leaves(start, first: str, second: str) -> None:
    a = start(first)
    a.expect("in")
    b = start(second)
    b.expect_to_wait()
    a.leave()
    b.expect("in")
    b.leave()


def test_two_share_the_machine_at_once(start) -> None:
    a, b = start("sharing"), start("sharing")
    a.expect("in")
    b.expect("in")
    assert a.popen.poll() is None
    a.leave()
    b.leave()


def test_owner_waits_for_the_last_of_two_sharers(start) -> None:
    a, b = start("sharing"), start("sharing")
    a.expect("in")
    b.expect("in")
    owner = start("owning")
    a.leave()
    owner.expect_to_wait()
    b.leave()
    owner.expect("in")


@pytest.mark.parametrize(
    ("first", "second"), [("owning", "sharing"), ("owning", "owning"), ("sharing", "owning")]
)
def test_lock_of_a_killed_process_is_free(start, first: str, second: str) -> None:
    a = start(first)
    a.expect("in")
    a.kill()
    b = start(second)
    b.expect("in")
    b.leave()


def test_lock_is_free_after_an_error(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsexp.locking import owning_the_machine

    monkeypatch.setenv("TSEXP_LOCK", str(tmp_path / "machine.lock"))
    with pytest.raises(ZeroDivisionError), owning_the_machine():
        raise ZeroDivisionError
    start("owning").expect("in")


def test_lock_elsewhere_is_another_machine(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsexp.locking import owning_the_machine

    monkeypatch.setenv("TSEXP_LOCK", str(tmp_path / "other.lock"))
    with owning_the_machine():
        start("owning").expect("in")


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    """A machine's folder for temporary files."""
    monkeypatch.delenv("TSEXP_LOCK", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_every_user_of_the_machine_may_take_it(tmp):
    """Whatever the umask of the first.

    And not in a sticky folder, where a file of somebody else may not be opened for writing.
    """
    before = os.umask(0o077)
    try:
        with locking.owning_the_machine():
            pass
    finally:
        os.umask(before)
    (folder,) = tmp.iterdir()
    (lock,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_is_refused_and_its_target_left_alone(tmp, what):
    target = tmp / "somebody"
    target.mkdir(mode=0o700)
    (target / "machine.lock").write_text("secret")
    (target / "machine.lock").chmod(0o600)
    folder = tmp / "tsexp-locks"
    if what == "folder":
        folder.symlink_to(target)
    else:
        folder.mkdir()
        (folder / "machine.lock").symlink_to(target / "machine.lock")
    with (
        pytest.raises(RuntimeError, match=r"cannot be opened .* should remove it"),
        locking.owning_the_machine(),
    ):
        pass
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "machine.lock").stat().st_mode) == 0o600
    assert (target / "machine.lock").read_text() == "secret"
