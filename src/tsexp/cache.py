"""Stage cache by content: a stage whose inputs have been seen before is not run again.

An entry is a folder ``<root>/<stage>/<signature>/``. It is built under a temporary name and renamed, so that it is whole or
not there; ``entry.json`` lists the SHA-256 of every file, so that a damaged one is noticed and rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tsexp.config import digest

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


@dataclass(frozen=True)
class Cache:
    """The cache folder; safe to share between processes."""

    root: Path

    def stage(self, name: str, version: int, key: dict[str, Any], build: Callable[[Path], None]) -> Entry:
        """Return the entry of a stage, running `build` only if there is no whole one.

        Parameters
        ----------
        name
            Of the stage: the folder below the root.
        version
            Raised whenever the stage's code changes what it makes.
        key
            Everything the result depends on; JSON values only.
        build
            Called with an empty folder to fill. Other processes that want the same entry wait.
        """
        signature = digest({"stage": name, "version": version, "key": key})
        folder = self.root / name / signature
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if folder.exists():
                problem = _damage(folder)
                if problem is None:
                    return Entry(folder, signature, reused=True)
                log.warning("cache entry %s is damaged (%s): rebuilding it", folder, problem)
                shutil.rmtree(folder)
            # Whoever held the lock before and was killed left this behind.
            partial = folder.with_name(f"{signature}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                build(partial)
                seal(partial, {"stage": name, "version": version, "key": key})
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return Entry(folder, signature, reused=False)


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Write ``entry.json``: what the folder is, and the SHA-256 of every file in it."""
    content = about | {"files": {p.relative_to(folder).as_posix(): sha256(p) for p in _files(folder)}}
    (folder / "entry.json").write_text(json.dumps(content, indent=1, sort_keys=True))


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename: a reader sees the old file or the new one, never half of one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False))
    partial.replace(path)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / "entry.json")


def _damage(folder: Path) -> str | None:
    try:
        expected = json.loads((folder / "entry.json").read_text())["files"]
        found = {p.relative_to(folder).as_posix(): sha256(p) for p in _files(folder)}
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    wrong = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    return f"changed or missing: {', '.join(sorted(wrong))}" if wrong else None
