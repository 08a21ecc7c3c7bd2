"""The password in a store's URI.

Kept in the environment, so that Hydra, which writes and shows all of a configuration, has a reference to it
alone.

Jobs inherit the environment and resolve the reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tsexp.config import redact

STORE = "TSEXP_TRACKING_URI"
"""Environment variable: the store's URI, if there is a password in it."""
REFERENCE = f"${{oc.env:{STORE}}}"


def hidden(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line with a reference in the place of a URI that has a password."""
    return [_hidden(argument) for argument in arguments]


def _hidden(argument: str) -> str:
    given = re.fullmatch(r"""(\+{0,2}tracking\.uri=)(['"]?)(.*)\2""", argument)
    if not given or redact(given[3]) == given[3]:
        return argument
    if "," in given[3] and not given[2]:  # a list to sweep over is refused later on
        return argument
    os.environ[STORE] = given[3]
    return given[1] + REFERENCE


def hide(config: DictConfig) -> None:
    """Do the same in what Hydra has composed: the URI may come from a file."""
    written: Any = OmegaConf.to_container(config.tracking, resolve=False)
    if redact(str(written["uri"])) == written["uri"]:
        return
    os.environ[STORE] = config.tracking.uri
    config.tracking.uri = REFERENCE
    # A job of a sweep is composed anew, from the files and from these.
    others = [
        o for o in as_given(config.hydra.overrides.task) if o.split("=", 1)[0].lstrip("+") != "tracking.uri"
    ]
    config.hydra.overrides.task = [*others, f"tracking.uri={REFERENCE}"]
    config.hydra.job.override_dirname = redact(config.hydra.job.override_dirname)


def as_given(overrides: Any) -> list[str]:
    """Return a list of overrides that Hydra keeps.

    To read the list itself would resolve what they refer to, passwords included.
    """
    found: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(o) for o in found]
