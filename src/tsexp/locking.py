"""One measurement at a time on a machine, and no training meanwhile, whoever started them.

A reader–writer lock: training and other heavy work share it, measuring owns it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import ReadWriteLock


def _lock() -> ReadWriteLock:
    # TSEXP_LOCK lets tests have a machine of their own.
    return ReadWriteLock(os.environ.get("TSEXP_LOCK", str(Path(tempfile.gettempdir()) / "tsexp-machine.lock")))


@contextmanager
def sharing_the_machine() -> Iterator[None]:
    """Hold this while computing: waits while somebody measures."""
    with _lock().read_lock():
        yield


@contextmanager
def owning_the_machine() -> Iterator[None]:
    """Hold this while measuring: waits until nobody computes or measures."""
    with _lock().write_lock():
        yield
