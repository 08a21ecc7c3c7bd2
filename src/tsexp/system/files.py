"""Files: written as a whole or not at all, and known by what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsexp.config import ConfigError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under; in the end it becomes ``path``, or it is gone.

    A reader sees the old file or the new one, never half of one. Of two who write, each has its own name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")  # of this host, or another
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any, lasting: bool = False) -> None:
    """Write JSON: the whole of it, or nothing; if `lasting`, it outlives a loss of power."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False))
        if lasting:
            to_disk(partial)
    if lasting:
        to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: else a machine without power may leave it empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_new(folder: Path) -> None:
    """Refuse the place of a folder that is to be made where something is, or where none can be made.

    Raises
    ------
    ConfigError
        In a line.
    """
    if folder.exists() or folder.is_symlink():
        raise ConfigError(f"{folder} is there already; give a folder that is not, or remove it")
    above = next(p for p in folder.parents if p.exists())
    if not os.access(above, os.W_OK) or not above.is_dir():
        raise ConfigError(f"{folder} cannot be made: {above} is no folder that can be written to")


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def digests(folder: Path, *without: str) -> dict[str, str]:
    """Return name → SHA-256 of every file in a folder, those in folders inside it included.

    Parameters
    ----------
    folder
        Nothing outside of it is read, whatever it holds.
    *without
        Files, by name, that are left out.

    Raises
    ------
    ValueError
        If there is something that is neither a file nor a folder (a link, a pipe), or a file in the place of
        the folder.
    """
    found = {}
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder")
        if path.is_file() and name not in without:
            found[name] = sha256(path)
    return found


def different(expected: Any, found: dict[str, str]) -> list[str]:
    """Return the names of files that are not there, are others, or are not listed.

    Raises
    ------
    ValueError
        If what is expected is no list of files at all.
    """
    if not isinstance(expected, dict):
        raise ValueError("there is no list of its files")
    return sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
