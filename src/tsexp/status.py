"""What a sweep asked for, and what became of it: done, running, failed and why, missing."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexp import subcommand
from tsexp.command import called
from tsexp.config import ConfigError
from tsexp.sweeps import jobs, launchers
from tsexp.system import alive

DONE = ("done", "skipped", "deployed")
UNFINISHED = ("failed", "kept", "missing")
"""What `--retry-failed` runs again."""
GONE = "its parcel is gone: delivered, or lost; --retry-failed, or a search's command, asks the store"


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes
    ----------
    number
        Its folder in the sweep's.
    name
        What varies.
    state
        ``done``, ``deployed`` (all that was asked for), ``skipped`` (nothing supports it), ``failed``,
        ``kept`` (measured, and the store has not taken it), ``running``, ``waiting`` (for its turn) or
        ``missing``: it did not start, or its process is gone.
    why
        A line, where there is something to say.
    """

    number: int
    name: str
    state: str
    why: str = ""


def newest(root: Path) -> Path:
    """Return the folder of the newest sweep below ``root``.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = sorted(root.glob(f"multirun/**/{jobs.SWEEP}"), key=lambda f: f.stat().st_mtime)
    if not found:
        raise ConfigError(
            f"there is no sweep in {root / 'multirun'}; run one (python -m tsexp -m prune.ratio=0,0.5), or "
            f"say where it is: {called('status')} FOLDER"
        )
    return found[-1].parent


def read(folder: Path) -> tuple[dict[str, Any], list[Job]]:
    """Return what a sweep noted of itself, and its jobs in their order.

    Raises
    ------
    ConfigError
        If this is not the folder of a sweep.
    """
    try:
        about = json.loads((folder / jobs.SWEEP).read_text())
        names = dict(enumerate(about["names"])) if about["names"] else _proposed(folder)
        on = "process" in about and _alive(about["process"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is not the folder of a sweep ({type(error).__name__}: {error}); it is "
            "multirun/DAY/TIME, with a sweep.json in it"
        ) from None
    queue = "" if on else launchers.in_slurm(folder, "--states=PENDING")
    return about, [_job(folder / str(n), n, name, on, queue) for n, name in names.items()]


def _proposed(folder: Path) -> dict[int, str]:
    """Return the jobs of a search, which are known when they are proposed, and named when they have ended."""
    numbers = sorted(int(f.name) for f in folder.iterdir() if f.name.isdigit())
    return {n: str(_json(folder / str(n) / jobs.OUTCOME).get("name", f"job {n}")) for n in numbers}


def _alive(who: dict[str, str]) -> bool:
    """As far as can be told from here: a process of another machine counts as alive."""
    return not alive.surely_dead(who)


def _job(folder: Path, number: int, name: str, on: bool, queue: str) -> Job:
    outcome, note = _json(folder / jobs.OUTCOME), _json(folder / jobs.RUNNING)
    if "status" in outcome:  # else it is damaged, and is as good as none
        if outcome["status"] == "kept" and not Path(outcome.get("parcel", "")).is_dir():
            return Job(number, name, "kept", GONE)
        states = {"finished": "done", "found": "done", "refused": "failed"}
        why = " ".join(str(outcome.get("error") or "").split())
        return Job(number, name, states.get(outcome["status"], outcome["status"]), why)
    if note and _alive(note):
        return Job(number, name, "running", alive.told(note))
    if on:
        return Job(number, name, "waiting" if not note else "missing", "" if not note else _gone(note))
    if queue and not note:
        return Job(number, name, "waiting", f"in SLURM's queue, of job {queue}")
    return Job(number, name, "missing", _gone(note) if note else "it did not start, or did not end")


def _gone(note: dict[str, str]) -> str:
    return f"{alive.told(note)} is gone"


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def main(arguments: list[str] | None = None) -> int:
    """Show it; return 0 if everything is done, 1 if not, 2 for bad input."""
    parser = argparse.ArgumentParser(prog=called("status"), description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "folder", nargs="?", help="of the sweep (default: the newest one in multirun/ of this folder)"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="run again what failed or is missing, in the same folder"
    )
    asked = parser.parse_args(arguments)

    def work() -> int:
        folder = Path(asked.folder) if asked.folder else newest(Path.cwd())
        about, found = read(folder)
        _show(folder, about, found)
        if asked.retry_failed:
            return _retry(Path(os.path.abspath(folder)), about, found)  # without .., as Hydra has it
        return 0 if all(job.state in DONE for job in found) else 1

    return subcommand.carried_out("status", work, "nothing was changed")


def _show(folder: Path, about: dict[str, Any], found: list[Job]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("#", "job", "", "why"):
        table.add_column(heading, overflow="fold")
    for job in found:
        table.add_row(str(job.number), escape(job.name), job.state, escape(job.why))
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(f"{folder}: {about.get('command', '')}", markup=False, highlight=False)
    console.print(table)
    counts = Counter(job.state for job in found)
    console.print(f"{len(found)} jobs: {', '.join(f'{n} {state}' for state, n in counts.items())}")


def _retry(folder: Path, about: dict[str, Any], found: list[Job]) -> int:
    """Become the command of this sweep, which leaves out what is done."""
    if not any(job.state in UNFINISHED for job in found):
        return 0 if all(job.state in DONE for job in found) else 1
    again = f"give {'its command' if 'command' in about else 'the command of the sweep'} again"
    again += f": {about['command']}" if "command" in about else ""
    if any(job.state in ("running", "waiting") for job in found):
        who = about.get("process", alive.me())
        raise ConfigError(
            "jobs of the sweep still run or wait; when they have ended, call this again"
            if who.get("host") == alive.machine()["host"] or "command" not in about
            else f"{alive.told(who)} cannot be seen from here, and may still run this sweep; if it "
            f"is gone, give the sweep's command again, which leaves out what is done: {about['command']}"
        )
    if about.get("search"):
        raise ConfigError(f"a search chooses its jobs itself; {again}")
    if "overrides" not in about:
        raise ConfigError(f"this sweep did not note what it takes; {again}")
    for name in re.findall(r"\$\{oc\.env:(\w+)\}", " ".join(about["overrides"])):
        if name not in os.environ:
            raise ConfigError(f"the store's address has a password, which is noted nowhere; set {name} to it")
    try:
        os.chdir(about["folder"])
    except OSError as error:
        raise ConfigError(
            f"the sweep was started in {about['folder']}, which is not there any more ({error.strerror}); "
            f"{again}"
        ) from None
    os.environ[jobs.RETRY] = str(folder)
    words = [*about.get("options", ()), *about["overrides"], *about["hydra"]]
    words.append(f"hydra.sweep.dir={quoted(str(folder))}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "tsexp", "-m", *words])


def quoted(text: str) -> str:
    """Quote a value for Hydra."""
    return text if re.fullmatch(r"[\w/.:-]+", text) else "'" + text.replace("'", r"\'") + "'"


if __name__ == "__main__":
    sys.exit(main())
