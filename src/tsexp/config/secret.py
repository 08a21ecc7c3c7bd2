"""The password in a store's URI.

Kept in the environment, so that Hydra, which writes and shows all of a configuration, has a reference to it
alone.

Jobs inherit the environment and resolve the reference.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tsexp.config.errors import redact

STORE = "TSEXP_TRACKING_URI"
"""Environment variable: the store's URI, if there is a password in it."""
REFERENCE = f"${{oc.env:{STORE}}}"


CREDENTIALS = (
    STORE,
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_BACKEND_STORE_URI",
    "PGPASSWORD",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
)
"""Environment variables that let one into a store, or where its files are: for who writes there, and nobody
else.
"""

SHORTEST = 4
"""Characters of a password that is looked for in texts."""


def out_of_sight() -> None:
    """Start this program anew if there is a password in its arguments: everybody sees those of a process."""
    arguments = hidden(sys.orig_argv[1:])
    if arguments != sys.orig_argv[1:]:
        os.execv(sys.executable, [sys.executable, *arguments])


def scrubbed(text: str) -> str:
    """Return a text without passwords: those in URLs, and those that the environment has."""
    for name in CREDENTIALS:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST and not name.endswith("USERNAME"):
            text = text.replace(value, "***")
    return redact(text)


def given(store: str) -> str:
    """Return the store that an argument names, if it was hidden."""
    found = re.fullmatch(rf"\$\{{oc\.env:({STORE}\w*)\}}", store)
    return os.environ[found[1]] if found else store


def hidden(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with a reference in the place of a URI that has a password."""
    names: dict[str, str] = {}
    return [_hidden(argument, names) for argument in arguments]


def _hidden(argument: str, names: dict[str, str]) -> str:
    """Hide one; `names` has the variables of the URIs before it, for `tsexp merge` takes several stores."""

    def reference(uri: str) -> str:
        name = names.setdefault(uri, f"{STORE}_{len(names) + 1}" if names else STORE)
        os.environ[name] = uri
        return f"${{oc.env:{name}}}"

    if re.match(r"\+{0,2}tracking=\{", argument):
        return re.sub(
            r"""[\w+]+://[^\s"',}]+""",
            lambda m: m[0] if redact(m[0]) == m[0] else reference(m[0]),
            argument,
        )
    found = re.fullmatch(r"""(\+{0,2}tracking\.uri=|(?:--[\w-]+=)?(?=[\w+]+://))(['"]?)(.*)\2""", argument)
    if not found or redact(found[3]) == found[3]:
        return argument
    listed = found[1].endswith("tracking.uri=") and not found[2]
    if listed and "," in found[3]:  # a list to sweep over is refused later on
        return argument
    return f"{found[1]}{reference(found[3])}"


def hide(config: DictConfig) -> None:
    """Do the same in what Hydra has composed: the URI may come from a file."""
    written: Any = OmegaConf.to_container(config.tracking, resolve=False)
    if redact(str(written["uri"])) == written["uri"]:
        return
    os.environ[STORE] = config.tracking.uri
    config.tracking.uri = REFERENCE
    # A job of a sweep is composed anew, from the files and from these.
    keys = [(o.split("=", 1)[0].lstrip("+"), o) for o in as_given(config.hydra.overrides.task)]
    others = [redact(o) if key == "tracking" else o for key, o in keys if key != "tracking.uri"]
    config.hydra.overrides.task = [*others, f"tracking.uri={REFERENCE}"]
    config.hydra.job.override_dirname = redact(config.hydra.job.override_dirname)


def as_given(overrides: Any) -> list[str]:
    """Return a list of overrides that Hydra keeps.

    To read the list itself would resolve what they refer to, passwords included.
    """
    found: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(o) for o in found]
