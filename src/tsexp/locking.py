"""One measurement at a time on a machine, and no training meanwhile, whoever started them.

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


def _lock() -> ReadWriteLock:
    # TSEXP_LOCK lets tests have a machine of their own.
    path = Path(os.environ.get("TSEXP_LOCK", str(Path(tempfile.gettempdir()) / "tsexp" / "machine.lock")))
    with contextlib.suppress(PermissionError):  # somebody else made them, for everybody
        # A folder of its own: in one that is sticky, such as /tmp, Linux refuses to open a file of somebody else for writing (fs.protected_regular).
        path.parent.mkdir(parents=True, exist_ok=True)
        if "TSEXP_LOCK" not in os.environ:
            path.parent.chmod(0o777)
        path.touch()
        path.chmod(0o666)
    return ReadWriteLock(path)


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
    with _told(lock.write_lock, "waiting for training or another measurement on this machine to end, to measure undisturbed"):
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
