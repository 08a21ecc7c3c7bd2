"""One measurement at a time on a machine, and no training meanwhile, by any user.

A reader–writer lock: training and other heavy work share it, measuring owns it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import ReadWriteLock, Timeout


def for_everybody(name: str) -> Path:
    """Return a file that every user of this machine may lock; made if it is not there.

    It lies in a folder of its own: in a sticky one, such as /tmp itself, Linux may refuse to open a file of
    somebody else for writing (fs.protected_regular). Only what is made here has its mode set, and links are
    not followed: /tmp is everybody's.

    Raises
    ------
    RuntimeError
        If it cannot be made or opened.
    """
    folder = Path(tempfile.gettempdir()) / "tsexp-locks"
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o755)
    path = folder / name
    try:
        if folder.is_symlink():
            raise OSError("it is a symbolic link")
        _make_for_everybody(path)
        os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW))
    except OSError as error:
        raise RuntimeError(
            f"{path} cannot be opened ({error}); the owner of {folder} should remove it: it is made anew"
        ) from None
    return path


def _make_for_everybody(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.fchmod(file, 0o666)
        os.close(file)


def _lock() -> ReadWriteLock:
    # TSEXP_LOCK lets tests have a machine of their own.
    own = os.environ.get("TSEXP_LOCK")
    return ReadWriteLock(own if own else for_everybody("machine.lock"))


@contextlib.contextmanager
def sharing_the_machine() -> Iterator[None]:
    """Hold this while computing: waits while somebody measures."""
    lock = _lock()
    with _told(lock.read_lock, "waiting for a measurement on this machine to end"):
        yield


@contextlib.contextmanager
def owning_the_machine() -> Iterator[None]:
    """Hold this while measuring: waits until nobody computes or measures."""
    lock = _lock()
    with _told(
        lock.write_lock,
        "waiting for training or another measurement on this machine to end, to measure undisturbed",
    ):
        yield


@contextlib.contextmanager
def _told(acquire: Callable[..., contextlib.AbstractContextManager[None]], waiting: str) -> Iterator[None]:
    """Take a lock; if it is not free, say what is waited for."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(acquire(blocking=False))
        except Timeout:
            print(waiting, file=sys.stderr)
            held.enter_context(acquire())
        yield
