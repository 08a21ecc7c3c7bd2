"""Bad input, and the words that say so: short, without a password, with what may have been meant."""

from __future__ import annotations

import difflib
import re
from typing import Any


class ConfigError(ValueError):
    """Bad input. The message says what was wrong, what is allowed and what to do."""

    status = 2
    """With which a command ends."""


class Unsupported(ConfigError):
    """A combination that nobody can run.

    Alone it is refused; in a sweep it is skipped, and the sweep succeeds.
    """


SECRETS = (
    *("password", "passwd", "pwd", "token", "secret", "api_?key", "access_?key", "odbc_connect"),
    *("signature", "sig", "credential"),  # of addresses that are signed beforehand: S3, Google, Azure
)
"""Patterns of keys, in the query of a URL, whose values are shown to nobody."""


def redact(text: str) -> str:
    """Replace passwords in URLs by ``***``; of web addresses a user without one, too: a token."""
    # SQLAlchemy takes passwords with a slash in them; of web addresses, digits before one are a port.
    text = re.sub(r"(?<!http)(?<!https)(://[^:/@\s]*:)\S+@", r"\1***@", text, flags=re.I)
    text = re.sub(r"(https?://[^:/?#@\s]*:)(?!\d+(?:[/?#\s]|$))\S+@", r"\1***@", text, flags=re.I)
    text = re.sub(r"(https?://)[^:/?#@\s]+@", r"\1***@", text, flags=re.I)
    return re.sub(rf"([?&;][\w-]*(?:{'|'.join(SECRETS)})=)[^&;\s]+", r"\1***", text, flags=re.I)


def first_line(said: BaseException | str) -> str:
    """The first line, without a password, of what may be long; of an error without words, its type."""
    lines = (" ".join(line.split()) for line in str(said).splitlines())
    return redact(next(filter(None, lines), "" if isinstance(said, str) else type(said).__name__))


def suggest(word: str, known: Any) -> str:
    """Return ``' (did you mean X?)'`` when another known word is close, else an empty string."""
    words = list(known)
    close = [] if word in words else difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
