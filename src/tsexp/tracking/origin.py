"""Which code and which process a run comes from."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from pathlib import Path

from tsexp import __version__
from tsexp.config import secret
from tsexp.system import alive

ROOT = Path(__file__).parents[3]
"""Of the checkout, if the package lies in one."""
CODE = ("src", "conf", "pyproject.toml")
"""What a result depends on."""
MOST = 1_000_000


def tags() -> dict[str, str]:
    """Return what every run says of where it comes from."""
    return {
        "tsexp.git_sha": git_sha(),
        "tsexp.version": __version__,
        **_dirty(),
        **{f"tsexp.{key}": value for key, value in alive.me().items() if value},
        "mlflow.source.name": "python -m tsexp",
        "mlflow.source.type": "LOCAL",
    }


@cache
def git_sha() -> str:
    """Commit of the code that runs, with ``-dirty`` if it was changed since.

    The package's version outside a checkout. Asked once: what is changed later is not what was imported.
    """
    if not (ROOT / ".git").exists():
        return f"v{__version__}"
    return (_git("rev-parse", "HEAD").strip() or f"v{__version__}-unknown") + (
        "-dirty" if _git("status", "--porcelain", "--untracked-files=no").strip() else ""
    )


@cache
def _dirty() -> dict[str, str]:
    """Whether the code that runs was changed since its commit; if so, the digest of `changes`."""
    if not (text := changes()):
        return {"tsexp.dirty": str(git_sha().endswith("-dirty")).lower()}
    return {"tsexp.dirty": "true", "tsexp.diff_sha256": hashlib.sha256(text.encode()).hexdigest()}


@cache
def changes() -> str:
    """Return what was changed in the code that runs since its commit, as ``git diff`` tells it.

    Of code and configuration alone, without passwords, at most `MOST` characters; of files that git does not
    know, the names. Empty outside a checkout and of a clean one.
    """
    if not (ROOT / ".git").exists():
        return ""
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--", *CODE)
    unknown = _git("ls-files", "--others", "--exclude-standard", "--", *CODE).splitlines()
    text = secret.scrubbed(diff + "".join(f"# not known to git: {name}\n" for name in unknown))
    if len(text) <= MOST:
        return text
    return f"{text[:MOST]}\n# cut: {len(text):,} characters, the first {MOST:,} are here\n"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
    except OSError:  # no git on this machine
        return ""
    return done.stdout.decode(errors="replace")
