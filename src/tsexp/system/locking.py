"""One measurement at a time on a machine, and no training meanwhile, by any user.

A reader–writer lock: training and other heavy work share it, measuring owns it. It is the kernel's (``flock``
on files that are only opened for reading), so that it does not matter what is in the files, who made them, or
how somebody who held it ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

SHARED, ALONE = fcntl.LOCK_SH, fcntl.LOCK_EX
TRIES = 100
"""To open a file that others remove at the same time."""

_held = threading.local()
"""How this thread holds the machine: nothing, `SHARED` or `ALONE`."""


def for_everybody(name: str) -> Path:
    """Return the path of a lock of this machine; `flocked` makes the file.

    It lies in a sticky folder in the one for temporary files: every user may make a file there, and remove
    none of somebody else.

    Raises
    ------
    RuntimeError
        If something is in the way that this user cannot remove.
    """
    folder = _seen_by_everybody() / "tsexp-locks"
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            folder.unlink()  # of a link the link itself; in a sticky folder, only one's own
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        about = folder.lstat()
        if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) != 0o1777:
            folder.chmod(0o1777)
    except OSError as error:
        raise _unusable(folder, error) from None
    return folder / name


def _seen_by_everybody() -> Path:
    """The temporary folder; in a job of SLURM, which may have one of its own, the machine's for locks."""
    locks = Path("/run/lock")
    alone = "SLURM_JOB_ID" in os.environ and os.access(locks, os.W_OK)
    return locks if alone else Path(tempfile.gettempdir())


def _unusable(path: Path, error: OSError) -> RuntimeError:
    owner = ""
    with contextlib.suppress(OSError):
        owner = f" of user {path.lstat().st_uid}"
    return RuntimeError(
        f"the lock {path}{owner} cannot be used ({error.strerror}): its owner or an administrator should "
        "remove it, it is made anew; or give all users of this machine another one, TSEXP_LOCK=FILE"
    )


def _opened(path: Path) -> int:
    """Open a lock file for reading; make it if it is not there or is no file.

    Links are not followed and pipes not waited for: the folder is everybody's.
    """
    for _ in range(TRIES):
        try:
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # somebody else was faster
                made = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                os.fchmod(made, 0o644)  # whatever the umask
                os.close(made)
            continue
        except OSError:
            about = path.lstat()
            if stat.S_ISREG(about.st_mode):
                if about.st_uid != os.geteuid():
                    raise
                path.chmod(0o644)
            else:
                _remove(path)
            continue
        if stat.S_ISREG(os.fstat(file).st_mode):
            return file
        os.close(file)
        _remove(path)
    raise BlockingIOError(0, "others keep removing it")


def _remove(path: Path) -> None:
    """Remove what is no file; nobody can hold it as a lock."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


@contextlib.contextmanager
def flocked(path: Path, how: int, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file, `SHARED` or `ALONE`.

    Parameters
    ----------
    path
        The file; made if it is not there.
    how
        One of the two.
    tell
        Called if it is not free, before waiting.

    Raises
    ------
    RuntimeError
        If it cannot be opened or locked.
    """
    try:
        file = _taken(path, how, tell)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        yield
    finally:
        os.close(file)


def _taken(path: Path, how: int, tell: Callable[[], None]) -> int:
    while True:
        file = _opened(path)
        try:
            try:
                fcntl.flock(file, how | fcntl.LOCK_NB)
            except BlockingIOError:
                tell()
                fcntl.flock(file, how)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.lstat()):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # it was removed while this waited: others have another one by now


@contextlib.contextmanager
def _machine(how: int, waiting: str) -> Iterator[None]:
    """Hold the machine; whoever has it already shares it with himself."""
    before = getattr(_held, "how", None)
    if before is not None:
        if (before, how) == (SHARED, ALONE):
            raise RuntimeError("this thread computes: it cannot measure at the same time")
        yield
        return
    # TSEXP_LOCK lets tests have a machine of their own.
    own = os.environ.get("TSEXP_LOCK")
    path = Path(own) if own else for_everybody("machine.lock")
    gate = path.with_name(f"{path.name}.gate")
    tell = functools.cache(lambda: print(waiting, file=sys.stderr))  # once
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as passing:
            # Who waits to measure keeps the gate shut: those who compute would never let it in otherwise.
            passing.enter_context(flocked(gate, how, tell))
            held.enter_context(flocked(path, how, tell))
        _held.how = how
        try:
            yield
        finally:
            _held.how = None


@contextlib.contextmanager
def sharing_the_machine() -> Iterator[None]:
    """Hold this while computing: waits while somebody measures."""
    with _machine(SHARED, "waiting for a measurement on this machine to end"):
        yield


@contextlib.contextmanager
def owning_the_machine() -> Iterator[None]:
    """Hold this while measuring: waits until nobody computes or measures."""
    waiting = "waiting for training or another measurement on this machine to end, to measure undisturbed"
    with _machine(ALONE, waiting):
        yield
