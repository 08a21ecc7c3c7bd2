"""What Hydra and OmegaConf say of a wrong command line, for people."""

from __future__ import annotations

import re
import shlex
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
)

from tsexp.config.errors import suggest

PLUGINS = {
    "hydra/sweeper/optuna": ("Optuna, which searches,", "optuna"),
    "hydra/launcher/joblib": ("Hydra's joblib launcher, which runs jobs in parallel,", "parallel"),
    "hydra/launcher/submitit_local": ("Hydra's submitit launcher", "slurm"),
    "hydra/launcher/submitit_slurm": ("Hydra's submitit launcher, which runs jobs on SLURM,", "slurm"),
    "hydra/launcher/ray": ("Hydra's Ray launcher", "ray"),
}
"""Options of plugins → what they are, and the package's extra that brings them."""

NO_OPTION = "Config group override must be a string or a list"
"""What Hydra says, as a mere ValueError, if a group is given as ``null``."""

NOT_OF_TYPE = {"Float": "no number", "Integer": "no whole number", "bool": "neither true nor false"}
"""What OmegaConf calls a type → what a value is that is none."""


def is_known(error: BaseException) -> bool:
    """It is an error of the configuration, which `explain` tells in a line; anything else is a fault here."""
    from hydra.errors import HydraException

    return isinstance(error, HydraException | OmegaConfBaseException) or NO_OPTION in str(error)


def explain(error: BaseException) -> str:
    """Tell an error of Hydra or OmegaConf in a line.

    What is allowed where a key or an option is wrong, else the part of the message that is for people.
    """
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        key, assigned, value = str(error.override).partition("=")
        if not assigned:
            return f"{error.override} is no setting: those are key=value (--help lists groups and keys)"
        lines = [line.strip() for line in str(error.message).splitlines()]
        why = next((line for line in reversed(lines) if line.strip("^") and not line.startswith("See ")), "")
        quoted = value.strip("\"'").replace('"', '\\"')
        hint = shlex.quote(f'{key}="{quoted}"')
        return f"{error.override} cannot be read ({why}); if it is one value, quote it: {hint}"
    for option, (what, extra) in PLUGINS.items():
        if f"Could not find '{option}'" in str(error):
            return f"{what} is not installed; install it: pip install 'tsexp[{extra}]'"
    if NO_OPTION in str(error):
        return "null is no option of a group; leave the group out to have its default (--help lists options)"
    missing = re.search(r"Could not find '([^']+)/([^'/]+)'", str(error))
    if isinstance(error, MissingConfigException) and missing and error.options:
        group, name = missing.groups()
        archive = "; any other of the archive: data=ucr data.name=NAME" if group == "data" else ""
        allowed = f"{', '.join(error.options)}{suggest(name, error.options)}"
        return f"{group}={name} is not there; allowed: {allowed}{archive}"
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if (
        isinstance(cause, ConfigKeyError | ConfigAttributeError)
        and cause.full_key
        and cause.parent_node is not None
    ):
        group, _, key = cause.full_key.rpartition(".")
        known = sorted(map(str, cause.parent_node.keys()))
        hint = elsewhere(key, cause.parent_node._get_root()) or suggest(key, known)
        return (
            f"{cause.full_key} is not a key; allowed in {group or 'the configuration'}: "
            f"{', '.join(known)}{hint}"
        )
    override = re.search(r"Error merging override (.+)", str(error))
    kind = re.search(r"could not be converted to (Float|Integer)|is not a valid (bool)", str(cause))
    if override and kind:
        return f"{override[1]} is {NOT_OF_TYPE[kind[1] or kind[2]]}"
    if override and "is not Optional" in str(cause):
        return f"{override[1]}: it cannot go without a value"
    lines = [line.strip() for line in str(error).split("Config search path:")[0].splitlines()]
    lines += [str(cause).splitlines()[0]] if cause is not None and str(cause) else []
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key", "reference_type", "object_type", "To append"))
    ]
    return "\n  ".join(dict.fromkeys(kept))


def elsewhere(key: str, root: Any) -> str:
    """Return ``' (did you mean train.epochs?)'`` when other groups have this key, else an empty string."""
    found = [
        f"{group}.{key}"
        for group in sorted(map(str, root))
        if group != "hydra" and OmegaConf.is_dict(root._get_node(group)) and key in root[group]
    ]
    return f" (did you mean {' or '.join(found)}?)" if found else ""
