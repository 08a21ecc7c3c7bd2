"""Which process something belongs to, and whether that one is surely dead.

A number alone does not tell: numbers are given again, containers have their own, and a machine starts anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

OWNER = ".owner"
"""In a temporary folder: whose it is."""
PREFIX = "tsexp-"
WHO = ("host", "machine", "boot", "pid", "started")
"""What `me` tells; tags of the same names, after ``tsexp.``, say it of a run."""
SHORT = "/tmp"
"""Instead of a folder for temporary files whose name is too long for what shall lie there."""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # another system than Linux
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def machine() -> dict[str, str]:
    """Return what tells this machine, its last start and this container from others."""
    node = uuid.getnode()
    number = _read("/etc/machine-id")  # which is not to be told; copies of a machine share it
    known = number and not node >> 40 & 1  # else the address is a random one
    return {
        "host": socket.gethostname(),
        "machine": hashlib.sha256(f"{number} {node}".encode()).hexdigest()[:16] if known else "",
        "boot": _read("/proc/sys/kernel/random/boot_id") + _namespace(),
    }


def me() -> dict[str, str]:
    """Return what tells this process from all others: strings, to be kept as tags or JSON."""
    return machine() | {"pid": str(os.getpid()), "started": _started(os.getpid())}


def _started(pid: int) -> str:
    """Return when a process started; empty if it is gone."""
    if Path("/proc/self/stat").exists():  # in ticks since the machine's start: clocks may be set
        state, *others = _read(f"/proc/{pid}/stat").rpartition(") ")[2].split(" ")
        return others[18] if len(others) > 18 and state != "Z" else ""
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return ""


def surely_dead(who: Mapping[str, str]) -> bool:
    """Say whether the process that `me` described is gone; False if that cannot be known here.

    It can be of this machine's own processes, and of those from before its last start.
    """
    here = machine()
    if who.get("host") != here["host"]:
        return False
    now, then = here["boot"].partition("pid:"), who.get("boot", here["boot"]).partition("pid:")
    if now[0] != then[0]:
        return bool(here["machine"]) and who.get("machine") == here["machine"]
    if now != then or not who.get("pid", "").isdigit():
        return False  # of another container
    started = _started(int(who["pid"]))
    return started != who.get("started", started) or not started  # else another has the number by now


def told(who: Mapping[str, str]) -> str:
    """Return ``process 12 on HOST``."""
    return f"process {who.get('pid', '?')} on {who.get('host', 'another machine')}"


@contextlib.contextmanager
def scratch(kind: str) -> Iterator[Path]:
    """Make a temporary folder that says whose it is, so that `tidy` finds it if this process is killed."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{kind}-") as name:
        own(Path(name))
        yield Path(name)


def own(folder: Path) -> None:
    """Note in a folder that it is this process'."""
    (folder / OWNER).write_text(json.dumps(me()))


def tidy() -> int:
    """Remove this user's temporary folders of processes that are surely dead; return how many."""
    removed = 0
    notes = [n for f in {tempfile.gettempdir(), SHORT} for n in Path(f).glob(f"{PREFIX}*/{OWNER}")]
    for note in notes:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if note.parent.is_symlink() or note.lstat().st_uid != os.getuid():
                continue
            if surely_dead(json.loads(note.read_text())):
                shutil.rmtree(note.parent, ignore_errors=True)
                removed += 1
    return removed
