"""Stage cache by content: a stage whose inputs have been seen before is not run again.

An entry is a folder ``<root>/<stage>/<signature>/``. It is built under a temporary name and renamed, so that
it is whole or not there; ``entry.json`` lists the SHA-256 of every file, so that a damaged one is noticed and
rebuilt, and what it cost to build.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from tsexp.config import digest
from tsexp.locking import sharing_the_machine

log = logging.getLogger(__name__)


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
        return json.loads((self.folder / "entry.json").read_text())["cost"]  # type: ignore[no-any-return]


class Counter(Protocol):
    """Reads the energy of a stretch of time: a meter of `tsexp.energy.meters` that is no estimate."""

    source: str

    def begin(self) -> None:
        """Start."""
        ...

    def end(self) -> float:
        """Joules since `begin`."""
        ...


@dataclass(frozen=True)
class Cache:
    """The cache folder; safe to share between processes.

    ``counter`` makes what reads the energy of building; None where there is only an estimate, which follows
    from CPU time.
    """

    root: Path
    counter: Callable[[], Counter | None] = lambda: None

    def stage(self, name: str, version: int, key: dict[str, Any], build: Callable[[Path], None]) -> Entry:
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
        """
        about = {"stage": name, "version": version, "key": key, "torch": metadata.version("torch")}
        signature = digest(about)
        folder = self.root / name / signature
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.is_file():
                folder.unlink()
            if folder.exists():
                problem = _damage(folder)
                if problem is None:
                    return Entry(folder, signature, reused=True)
                log.warning("cache entry %s is damaged (%s): rebuilding it", folder, problem)
                shutil.rmtree(folder)
            # A process that held the lock and was killed left this behind.
            partial = folder.with_name(f"{signature}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                with sharing_the_machine():
                    cost = self._metered(build, partial)
                seal(partial, about | {"cost": cost})
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return Entry(folder, signature, reused=False)

    def _metered(self, build: Callable[[Path], None], folder: Path) -> dict[str, Any]:
        counter = self.counter()
        wall, cpu = time.perf_counter(), _cpu_s()
        if counter is not None:
            counter.begin()
        build(folder)
        energy_j = {} if counter is None else {counter.source: counter.end()}
        return {"wall_s": time.perf_counter() - wall, "cpu_s": _cpu_s() - cpu, "energy_j": energy_j}


def _cpu_s() -> float:
    """CPU seconds of this process and of the children that ended: compilers run as such."""
    return sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write ``entry.json``: what the folder is, and the SHA-256 of every file in it."""
    content = about | {"files": {p.relative_to(folder).as_posix(): sha256(p) for p in _files(folder)}}
    (folder / "entry.json").write_text(json.dumps(content, indent=1, sort_keys=True))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename.

    A reader sees the old file or the new one, never half of one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False))
    partial.replace(path)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "entry.json")


def _damage(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / "entry.json").read_text())["files"]
        found = {p.relative_to(folder).as_posix(): sha256(p) for p in _files(folder)}
        wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # Whatever somebody made of the file.
        return f"{type(error).__name__}: {error}"
    return f"changed or missing: {', '.join(sorted(wrong))}" if wrong else None
