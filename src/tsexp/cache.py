"""Stage cache by content: a stage whose inputs have been seen before is not run again.

An entry is a folder ``<root>/<stage>/<signature>/``. It is built under a temporary name and renamed, so that
it is whole or not there; ``entry.json`` lists the SHA-256 of every file, so that a damaged one is noticed and
rebuilt, and what it cost to build.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from tsexp.config import ConfigError, digest
from tsexp.system import cpu
from tsexp.system.files import different, digests
from tsexp.system.locking import sharing_the_machine

log = logging.getLogger(__name__)

ENTRY = "entry.json"
OTHERS, FEW_S = 0.25, 1.0
"""CPU time of others while something is made, from which on the machine's joules are not its own: this share
of its own, and so many seconds."""


@dataclass(frozen=True)
class Entry:
    """A finished stage.

    Attributes
    ----------
    folder
        Holds what the stage made. Read-only by convention.
    signature
        Content address of the stage's inputs.
    reused
        It was there before; nothing was run.
    """

    folder: Path
    signature: str
    reused: bool

    @property
    def cost(self) -> dict[str, Any]:
        """What building it took.

        ``wall_s``, ``cpu_s`` (child processes included), and ``energy_j`` by source, if a counter was there.
        """
        return json.loads((self.folder / ENTRY).read_text())["cost"]  # type: ignore[no-any-return]


class Counter(Protocol):
    """Reads the energy of a stretch of time: a meter of `tsexp.energy.meters` that is no estimate."""

    source: str

    def begin(self) -> None:
        """Start."""
        ...

    def end(self) -> float:
        """Joules since `begin`."""
        ...


class Unfinished:
    """What a stage that takes long has so far: if its process dies, the next one may go on from there.

    Each time it is kept makes a folder ``<signature>.unfinished/<number>/``, sealed as an entry is; the
    newest whole one counts. The one before stays, for a machine that loses its power may lose what was
    written last. All of them go when the entry is there.

    Attributes
    ----------
    found
        What a process before this one kept, while the stage is built; None if there is nothing.
    before
        What that had cost; without joules, for a counter is not asked in the middle.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.found: Path | None = None
        self.before: dict[str, float] | None = None
        self._about = about
        self._start = _spent()

    def keep(self, write: Callable[[Path], None]) -> None:
        """Keep what `write` puts into the folder that it is given.

        A disk that does not take it is told of, and is no reason to end.
        """
        partial = self.folder / "partial"
        try:
            older = self._all()
            clear(self.folder, unless_folder=True)
            clear(partial)
            partial.mkdir(parents=True)
            write(partial)
            cost = _sum(_since(self._start), self.before) | {"energy_j": {}}
            seal(partial, {"about": self._about, "cost": cost})
            partial.rename(self.folder / str(1 + max(map(_number, older), default=0)))
            for folder in older[:-1]:
                clear(folder)
        except (OSError, MemoryError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                clear(partial)
            log.warning("not kept while unfinished: %s", full(error, self.folder) or repr(error))

    def begin(self) -> None:
        """Look for what is there; what is paid from now on comes on top of what that cost."""
        self.found, self.before, self._start = None, None, _spent()
        for folder in reversed(self._all()):
            problem = _damage(folder)
            if problem is not None:
                log.warning("what was kept in %s is damaged (%s): not used", folder, problem)
                continue
            note = json.loads((folder / ENTRY).read_text())
            if (about := note.get("about")) != self._about:
                log.warning("what was kept in %s is of other libraries (%s): not used", folder, about)
                continue
            self.found, cost = folder, note["cost"]
            self.before = {k: cost[k] for k in self._start}
            break

    def _all(self) -> list[Path]:
        """Oldest first."""
        there = self.folder.glob("*") if self.folder.is_dir() else ()
        return sorted((f for f in there if f.name.isdecimal()), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name)


class CacheError(RuntimeError):
    """The cache cannot keep what was made. The message says why, and what to do."""


@dataclass(frozen=True)
class Cache:
    """The cache folder; safe to share between processes.

    ``counter`` makes what reads the energy of building; None where there is only an estimate, which follows
    from CPU time.
    """

    root: Path
    counter: Callable[[], Counter | None] = lambda: None

    def stage(
        self,
        name: str,
        version: int,
        key: dict[str, Any],
        build: Callable[[Path], None],
        unfinished: Unfinished | None = None,
    ) -> Entry:
        """Return the entry of a stage, running `build` only if there is no whole one.

        Parameters
        ----------
        name
            Of the stage: the folder below the root.
        version
            Raised whenever the stage's code changes what it makes.
        key
            Everything the result depends on but the version of PyTorch; JSON values only.
        build
            Called with an empty folder to fill. Other processes that want the same entry wait. It shares the
            machine with others that build, and waits while somebody measures.
        unfinished
            Of the same stage, if `build` keeps what it has so far and goes on from what it finds.

        Raises
        ------
        CacheError
            If the disk is full. Nothing half-written is left.
        """
        try:
            return self._stage(name, version, key, build, unfinished)
        except Exception as error:
            told = full(error, self.root)
            if told is None:
                raise
            raise CacheError(told) from error

    def signature(self, name: str, version: int, key: dict[str, Any]) -> str:
        """Content address of a stage's inputs."""
        return digest(_about(name, version, key))

    def unfinished(
        self, name: str, version: int, key: dict[str, Any], about: dict[str, Any] | None = None
    ) -> Unfinished:
        """Return where a stage may keep what it has so far; used by those with the same `about` alone."""
        folder = self.root / name / f"{self.signature(name, version, key)}.unfinished"
        return Unfinished(folder, about or {})

    def _stage(
        self,
        name: str,
        version: int,
        key: dict[str, Any],
        build: Callable[[Path], None],
        unfinished: Unfinished | None,
    ) -> Entry:
        about, signature = _about(name, version, key), self.signature(name, version, key)
        folder = self.root / name / signature
        # Whatever stands where a folder is to be: all of this is safe to delete.
        clear(folder.parent, unless_folder=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        clear(lock := folder.with_name(f"{signature}.lock"), unless_file=True)
        with FileLock(lock):
            clear(folder, unless_folder=True)
            if folder.exists():
                problem = _damage(folder)
                if problem is None:
                    if unfinished is not None:  # its process may have died between the two
                        shutil.rmtree(unfinished.folder, ignore_errors=True)
                    return Entry(folder, signature, reused=True)
                log.warning("cache entry %s is damaged (%s): rebuilding it", folder, problem)
                clear(folder)
            # A process that held the lock and was killed left this behind.
            partial = folder.with_name(f"{signature}.partial")
            clear(partial)
            try:
                partial.mkdir()
                with sharing_the_machine():
                    if unfinished is not None:
                        unfinished.begin()
                    cost = self._metered(build, partial, unfinished)
                seal(partial, about | {"cost": cost})
                partial.rename(folder)
                if unfinished is not None:
                    shutil.rmtree(unfinished.folder, ignore_errors=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return Entry(folder, signature, reused=False)

    def check(self) -> None:
        """Find out, before any work, whether something can be kept here, and remove what nobody will finish.

        Raises
        ------
        ConfigError
            If the folder is something else, or cannot be written into.
        """
        try:
            there = next(f for f in (self.root, *self.root.parents) if f.exists() or f.is_symlink())
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise ConfigError(
                f"paths.cache={self.root} cannot be written into ({error.strerror}); give another folder, "
                "paths.cache=…, or have this one permitted"
            ) from None
        for partial in self.root.glob("*/*.partial"):
            # Of a process that was killed; one that is building has the lock.
            with contextlib.suppress(Timeout, OSError), FileLock(partial.with_suffix(".lock"), timeout=0):
                clear(partial)

    def _metered(
        self, build: Callable[[Path], None], folder: Path, unfinished: Unfinished | None
    ) -> dict[str, Any]:
        counter = self.counter()
        start, busy_s = _spent(), cpu.busy_s()
        if counter is not None:
            counter.begin()
        build(folder)
        now = _since(start)
        energy_j = {} if counter is None else {counter.source: _ended(counter)}
        foreign_s = cpu.busy_s() - busy_s - now["cpu_s"]
        shared = getattr(counter, "shared", None)  # a GPU's tells whether somebody else was there
        if foreign_s > max(FEW_S, OTHERS * now["cpu_s"]) if shared is None else shared:
            energy_j = {}  # of all that ran: each of two jobs side by side would pay for both
        before = unfinished.before if unfinished else None  # unless the fit began anew
        if before is not None:  # of whose joules nothing is known
            energy_j = {}
        # More than it can have seen: a counter that wrapped.
        most_j = getattr(counter, "most_w", math.inf) * now["wall_s"]
        return _sum(now, before) | {
            "energy_j": {s: j for s, j in energy_j.items() if 0 <= j <= most_j and math.isfinite(j)}
        }


def _ended(counter: Any) -> float:
    """Joules, or nan: what was built is worth more than what a counter fails to say of it."""
    try:
        return float(counter.end())
    except Exception as error:
        log.warning("joules of what was just made are not known: %s: %s", type(error).__name__, error)
        return math.nan


def _about(name: str, version: int, key: dict[str, Any]) -> dict[str, Any]:
    return {"stage": name, "version": version, "key": key, "torch": metadata.version("torch")}


def clear(path: Path, unless_folder: bool = False, unless_file: bool = False) -> None:
    """Remove what is there, except for a folder or a file if one is wanted; links are not followed."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        if not unless_folder:
            shutil.rmtree(path)
    elif path.exists() and not (unless_file and path.is_file()):
        path.unlink()


FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = 100 << 20
"""Bytes that a disk may have left when what did not fit is removed, and still be the one that was full."""


def full(error: BaseException | None, *folders: Path | str) -> str | None:
    """Tell in a line that a full disk is behind an error, if one is: that of a folder or of `TMPDIR`.

    Libraries in C++ and Rust say so in words.
    """
    while error is not None:
        if getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL):
            every = [Path(folder).absolute() for folder in (*folders, tempfile.gettempdir())]
            where = " or of ".join(map(str, [folder for folder in every if _nearly_full(folder)] or every))
            return (
                f"no space left on the disk of {where}; free some (the cache is safe to delete) or give "
                "another folder, paths.cache=…; the same command goes on where it stopped"
            )
        error = error.__cause__ or error.__context__
    return None


def _nearly_full(folder: Path) -> bool:
    there = next(f for f in (folder, *folder.parents) if f.exists())
    return shutil.disk_usage(there).free < LITTLE


def _spent() -> dict[str, float]:
    """Wall seconds, and CPU seconds of this process and of the children that ended: compilers run as such."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"wall_s": time.perf_counter(), "cpu_s": sum(u.ru_utime + u.ru_stime for u in usages)}


def _since(start: dict[str, float]) -> dict[str, float]:
    return {k: now - start[k] for k, now in _spent().items()}


def _sum(spent: dict[str, float], before: dict[str, float] | None) -> dict[str, Any]:
    return {k: v + (before[k] if before else 0.0) for k, v in spent.items()}


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write ``entry.json``: what the folder is, and the SHA-256 of every file in it."""
    content = about | {"files": digests(folder, ENTRY)}
    (folder / ENTRY).write_text(json.dumps(content, indent=1, sort_keys=True))


def _damage(folder: Path) -> str | None:
    """Return what is wrong with an entry, whatever somebody made of it."""
    try:
        found = digests(folder, ENTRY)
        about = json.loads((folder / ENTRY).read_text())
        wrong = different(about["files"], found)
        cost = about["cost"]
        float(cost["wall_s"] + cost["cpu_s"] + sum(cost["energy_j"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"changed, missing or added: {', '.join(wrong)}" if wrong else None
