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
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsexp.system import locking

PATIENCE_S = 60.0
"""For what must happen."""
WHILE_S = 1.0
"""For what must not happen."""

SCRIPT = """
import sys
from tsexp.system import locking
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
    from tsexp.system.locking import owning_the_machine

    monkeypatch.setenv("TSEXP_LOCK", str(tmp_path / "machine.lock"))
    with pytest.raises(ZeroDivisionError), owning_the_machine():
        raise ZeroDivisionError
    start("owning").expect("in")


def test_lock_elsewhere_is_another_machine(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tsexp.system.locking import owning_the_machine

    monkeypatch.setenv("TSEXP_LOCK", str(tmp_path / "other.lock"))
    with owning_the_machine():
        start("owning").expect("in")


@pytest.fixture
def tmp(tmp_path, monkeypatch):
    """A machine's folder for temporary files."""
    monkeypatch.delenv("TSEXP_LOCK", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def both():
    """Take the machine in both ways, and say so."""
    with locking.sharing_the_machine():
        pass
    with locking.owning_the_machine():
        return "taken"


def test_every_user_of_the_machine_may_take_it_and_none_may_write_into_it(tmp):
    """Whatever the umask of the first."""
    before = os.umask(0o077)
    try:
        assert both() == "taken"
    finally:
        os.umask(before)
    (folder,) = tmp.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert {f.name: stat.S_IMODE(f.stat().st_mode) for f in folder.iterdir()} == {
        "machine.lock": 0o644,
        "machine.lock.gate": 0o644,
    }


def garbage(path):
    path.write_bytes(b"\x00garbage" * 999)


def read_only(path):
    path.touch(mode=0o400)


def unreadable(path):
    path.touch(mode=0o000)


def dangling(path):
    path.symlink_to("/proc/nowhere/at/all")


def device(path):
    path.symlink_to("/dev/zero")


WRONG = [garbage, read_only, unreadable, dangling, device, os.mkfifo, Path.mkdir]


@pytest.mark.parametrize("name", ["machine.lock", "machine.lock.gate", "."])
@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_whatever_stands_there_the_lock_is_taken(tmp, make, name):
    folder = tmp / "tsexp-locks"
    if name == ".":
        make(folder)
    else:
        folder.mkdir()
        make(folder / name)
    assert both() == "taken"


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_is_removed_and_its_target_left_alone(tmp, what):
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
    assert both() == "taken"
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "machine.lock").stat().st_mode) == 0o600
    assert (target / "machine.lock").read_text() == "secret"
    assert [p.name for p in target.iterdir()] == ["machine.lock"]


def test_what_cannot_be_removed_is_told_in_a_line(tmp):
    folder = tmp / "tsexp-locks" / "machine.lock" / "full"
    folder.mkdir(parents=True)
    told = r"^the lock .*machine.lock of user \d+ cannot be used \(.*\): its owner .* TSEXP_LOCK=FILE$"
    with pytest.raises(RuntimeError, match=told), locking.owning_the_machine():
        pass


def test_who_waits_to_measure_comes_before_those_who_come_later(start):
    first = start("sharing")
    first.expect("in")
    owner = start("owning")
    owner.expect_to_wait()
    later = start("sharing")
    later.expect_to_wait()
    first.leave()
    owner.expect("in")
    later.expect_to_wait()
    owner.leave()
    later.expect("in")


def test_a_removed_file_is_nobodys_lock(start, tmp_path):
    first, second, third = start("owning"), start("owning"), None
    first.expect("in")
    second.expect_to_wait()
    (tmp_path / "machine.lock").unlink()
    (tmp_path / "machine.lock.gate").unlink()
    first.leave()
    second.expect("in")
    third = start("owning")
    third.expect_to_wait()
    second.leave()
    third.expect("in")


def test_who_has_the_machine_may_ask_again(tmp):
    with locking.owning_the_machine(), locking.sharing_the_machine(), locking.sharing_the_machine():
        pass
    with locking.sharing_the_machine(), locking.sharing_the_machine():
        with pytest.raises(RuntimeError, match="computes"), locking.owning_the_machine():
            pass
    assert both() == "taken"


AS_ANOTHER = """
import os, sys
from tsexp.system import locking
os.setgid(65534)
os.setuid(65534)
try:
    with locking.owning_the_machine():
        print("in", flush=True)
        sys.stdin.readline()
except RuntimeError as error:
    print(error, flush=True)
"""


def as_another(tmp, **more):
    """Take the lock as the user nobody."""
    tmp.chmod(0o1777)
    for folder in tmp.parents:  # pytest's own are its user's alone
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "TSEXP_LOCK"} | {"TMPDIR": str(tmp)}
    return subprocess.Popen(
        [sys.executable, "-c", AS_ANOTHER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@only_root
def test_another_user_waits_for_me(tmp):
    said: queue.Queue[str] = queue.Queue()
    with as_another(tmp) as other:
        assert other.stdout.readline() == "in\n"  # the files are his now
        other.communicate("\n", timeout=PATIENCE_S)
    with locking.owning_the_machine():
        other = as_another(tmp)
        reader = threading.Thread(target=lambda: said.put(other.stdout.readline()), daemon=True)
        reader.start()
        with pytest.raises(queue.Empty):
            said.get(timeout=3 * WHILE_S)
        assert other.poll() is None
    assert said.get(timeout=PATIENCE_S) == "in\n"
    reader.join()
    other.communicate("\n", timeout=PATIENCE_S)


@only_root
def test_i_wait_for_another_user(tmp):
    with as_another(tmp) as other:
        assert other.stdout.readline() == "in\n"
        threading.Timer(WHILE_S, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        begin = time.monotonic()
        assert both() == "taken"
        assert time.monotonic() - begin > WHILE_S / 2


@only_root
@pytest.mark.parametrize(
    "make", [*WRONG[:1], dangling, os.mkfifo, unreadable], ids=lambda make: make.__name__
)
def test_what_another_user_put_there_is_no_hang(tmp, make):
    """What root put there cannot be removed in a sticky folder, and what nobody may read cannot be locked."""
    (tmp / "tsexp-locks").mkdir()
    (tmp / "tsexp-locks").chmod(0o1777)
    make(tmp / "tsexp-locks" / "machine.lock")
    with as_another(tmp) as other:
        said = other.communicate("\n", timeout=PATIENCE_S)[0]
    if make is garbage:
        assert said == "in\n"
    else:
        assert "machine.lock of user 0 cannot be used" in said
        assert len(said.splitlines()) == 1
