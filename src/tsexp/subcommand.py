"""What subcommands share: sorting their words, and ending with a status and a line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tsexp import config as configs
from tsexp.config import ConfigError

PLACES = {"tracking.…": "tracking.", "paths.…": "paths.", "data.path": "data.path"}
"""What every command that reads a run lets one set → how it begins: where things are."""


def sort(words: Sequence[str], allowed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Sort the words of a command line into plain ones, paths among them, and settings, ``key=value``.

    Raises
    ------
    ConfigError
        If a key is not among those that are `allowed` (shown → how it begins).
    """
    # A folder that is not there yet is told by the / before the =, as in sweeps/prune.ratio=0.5.
    settings = [w for w in words if "=" in w and "/" not in w.partition("=")[0] and not Path(w).exists()]
    for setting in settings:
        key = setting.partition("=")[0]
        if not any(key == s or (s.endswith(".") and key.startswith(s)) for s in allowed.values()):
            known = [s.rstrip(".") for s in allowed.values()]
            raise ConfigError(
                f"{setting} is not known here; allowed: {', '.join(allowed)}{configs.suggest(key, known)}"
            )
    return [w for w in words if w not in settings], settings


def carried_out(part: str, work: Callable[[], int | None], left: str, unknown: Sequence[str] = ()) -> int:
    """Do the work of a subcommand and return its exit status: 2 for bad input, 1 if something failed.

    Parameters
    ----------
    part
        The subcommand.
    work
        What it does; it may return an exit status.
    left
        What it leaves behind if it is interrupted, in words.
    unknown
        What begins as an option does and is none; there is to be nothing of it.
    """
    from tsexp.report.store import ReportError

    try:
        if unknown:
            raise ConfigError(f"{unknown[0]} is not an option; see --help")
        return work() or 0
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        status, said = 130, f"interrupted; {left}"
    except (ConfigError, ReportError) as error:
        status, said = 2 if isinstance(error, ReportError) else error.status, str(error)
    except Exception as error:  # of a runtime, of the measuring processes, of the store
        status, said = 1, f"{type(error).__name__}: {error}"
    print(f"tsexp.{part}: error: {configs.redact(said)}", file=sys.stderr)
    return status
