"""Which code and which process a run comes from."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tsexp import __version__


def tags() -> dict[str, str]:
    """Return what every run says of where it comes from."""
    return {
        "tsexp.git_sha": git_sha(),
        "tsexp.version": __version__,
        "tsexp.pid": str(os.getpid()),
        "tsexp.host": socket.gethostname(),
        "mlflow.source.name": "python -m tsexp",
        "mlflow.source.type": "LOCAL",
    }


def git_sha() -> str:
    """Commit of the code that runs, with ``-dirty`` if it was changed since.

    The package's version outside a checkout.
    """
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return f"v{__version__}"

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            ).stdout.strip()
        except OSError:  # no git on this machine
            return ""

    return (git("rev-parse", "HEAD") or f"v{__version__}-unknown") + (
        "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
