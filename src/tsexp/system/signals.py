"""SIGTERM: the word of SLURM, of Kubernetes, of `timeout`, that this is the end. Treated as Ctrl-C is.

A module of its own, for the one that makes processes is also run as a program: there would be two of it.
"""

from __future__ import annotations

import signal
import threading

STATUS = 128 + signal.SIGTERM
"""Exit status of what was terminated, as a shell has it."""


class Terminated(BaseException):
    """SIGTERM came."""

    def __init__(self) -> None:
        super().__init__("terminated (SIGTERM)")


_terminated = False


def terminated() -> bool:
    """SIGTERM came to this process."""
    return _terminated


def heed_sigterm() -> None:
    """Have SIGTERM raise `Terminated` in the main thread, once; not if somebody else has a use for it."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    global _terminated
    if not _terminated:  # its sender, or this process' caller, may send another while this one is heeded
        _terminated = True
        raise Terminated
