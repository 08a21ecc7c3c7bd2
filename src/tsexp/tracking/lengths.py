"""So many characters of a text does any store take; and none of a password."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tsexp.config import redact

NAME, PARAM, TAG = 250, 6000, 4900


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return parameters as they are logged."""
    return {k: redact(str(v))[:PARAM] for k, v in values.items()}


def tags(values: Mapping[str, str]) -> dict[str, str]:
    """Return what fits of tags, and of a run's name, which is one."""
    return {k: redact(v)[: NAME if k == "mlflow.runName" else TAG] for k, v in values.items()}


def lines(text: str, rest: str) -> str:
    """Return the whole lines that fit into a tag; ``rest`` says of so many others (``{}``) where they are."""
    text = redact(text)
    if len(text) <= TAG:
        return text
    kept = text[: TAG - len(rest) - 20].split("\n")[:-1]
    return "\n".join([*kept, rest.format(text.count("\n") + 1 - len(kept))])
