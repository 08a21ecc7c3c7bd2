"""The command ``tsexp``: its subcommands, how it was called, and what its shell completion adds to Hydra's.

Imports nothing that takes time: ``--help`` and the shell's completion go through here.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

SUBCOMMANDS = {
    "report": ("tsexp.report.__main__:main", ("freeze", "tables", "figures", "page")),
    "doctor": ("tsexp.doctor:main", ("--selftest", "--meter", "--udev")),
    "compare": ("tsexp.compare:main", ()),
    "export": ("tsexp.export:main", ()),
    "predict": ("tsexp.predict:main", ("--output",)),
    "measure": ("tsexp.measure:main", ("--data", "--reference", "--name", "--no-store")),
    "attach": ("tsexp.attach:main", ("--name", "--offset-s")),
    "plan": ("tsexp.plan:main", ("--config-dir",)),
    "status": ("tsexp.status:main", ("--retry-failed",)),
    "sync": ("tsexp.sync:main", ("--all",)),
    "merge": ("tsexp.merge:main", ("--into", "--experiment", "--artifacts")),
    "ui": ("tsexp.ui:main", ("--port",)),
}
"""First word → what runs, with the other words as its argument; and the words that the shell may offer."""


def called(part: str = "") -> str:
    """Return how this program was called: ``tsexp``, ``tsexp ui`` or ``python -m tsexp.ui``.

    Parameters
    ----------
    part
        The subcommand that asks, if it is one.
    """
    program = Path(sys.argv[0])
    if program.name in ("tsexp", "tsexp.exe"):
        return f"tsexp {part}".rstrip()
    if part and program.parts[-2:] != ("tsexp", "__main__.py"):
        return f"python -m tsexp.{part}"
    return f"python -m tsexp {part}".rstrip()


def parser_of(part: str, usage: str, about: str, examples: str = "") -> argparse.ArgumentParser:
    """Return what reads the arguments of a subcommand; texts are shown by ``--help`` as they are.

    Parameters
    ----------
    part
        The subcommand.
    usage
        What follows its name.
    about, examples
        Above and below the list of its options.
    """
    return argparse.ArgumentParser(
        prog=called(part),
        usage=f"%(prog)s {usage}",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def dispatch(arguments: Sequence[str]) -> int | None:
    """Run the subcommand that the first word names, if it names one.

    Returns
    -------
    int or None
        The exit status, or None if there was nothing to run.
    """
    if not arguments or arguments[0] not in SUBCOMMANDS:
        return None
    run, _ = SUBCOMMANDS[arguments[0]]
    return pkgutil.resolve_name(run)(list(arguments[1:])) or 0


def offered(line: str) -> tuple[Sequence[str], bool]:
    """Return the words that the shell may offer for this command line, and whether Hydra has some to add."""
    words = line.split()
    complete = words if line.endswith(" ") else words[:-1]
    if len(complete) <= 1:
        return tuple(SUBCOMMANDS), True
    if complete[1] in SUBCOMMANDS:
        return SUBCOMMANDS[complete[1]][1], False
    return (), True
