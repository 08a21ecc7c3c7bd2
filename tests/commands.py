"""The command line, as tests call it."""

from __future__ import annotations

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from tsexp.system import processes


def environment() -> dict[str, str]:
    """As a user has it: without a server of warm processes that another test has left."""
    return {k: v for k, v in os.environ.items() if k != processes.ADDRESS}


def tsexp(
    folder: Path,
    *arguments: str,
    check: bool = True,
    env: Mapping[str, str] = os.environ,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, to its end.

    In a process that is forked from this worker's server, if it has one (`conftest`): it does what ``python
    -m tsexp`` does, but its libraries are imported already, which takes ten seconds on a slow CPU. With
    ``environment()``, or `fresh`, where the start belongs to what is tested, in an interpreter of its own.
    """
    env = dict(env) | {"COLUMNS": "170"}
    if processes.ADDRESS in env and not fresh:
        done = _forked(folder, arguments, env)
    else:
        command = [sys.executable, "-m", "tsexp", *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=env)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def _forked(
    folder: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`; the server takes this process's standard output and error, so they are changed."""
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            with mock.patch.dict(os.environ, env, clear=True):
                code = processes.run(f"{__name__}:_main", str(folder), json.dumps(arguments))
        finally:
            for number, stream in zip((1, 2), kept, strict=True):
                os.dup2(stream, number)
                os.close(stream)
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def _main(folder: str, arguments: str) -> None:
    """In the fork: be ``python -m tsexp``."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = ["", *json.loads(arguments)]
    atexit._clear()  # what is the server's
    try:
        runpy.run_module("tsexp", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
