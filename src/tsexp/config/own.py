"""Somebody's own code, named ``module:object``: who may name it, and the file that it is in."""

from __future__ import annotations

import os
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tsexp.config.errors import ConfigError

OWN_CODE = "TSEXP_OWN_CODE"
"""Environment variable: modules, separated by commas, that may be imported because an artifact names them."""

_trusted: dict[str, None] = {}
"""The same of this process, whose environment may be put back as it was (`tsexp.system.guest`)."""


def trust(*names: str) -> None:
    """Let the modules of these names be imported, here and in the processes that are started from now on."""
    known = _allowed()
    new = [name.partition(":")[0] for name in names if ":" in name]
    _trusted.update(dict.fromkeys(new))
    if new:
        os.environ[OWN_CODE] = ",".join(dict.fromkeys([*known, *new]))


def _allowed() -> list[str]:
    told = (module.strip() for module in os.environ.get(OWN_CODE, "").split(","))
    return [module for module in dict.fromkeys([*told, *_trusted]) if module]


def must_be_trusted(module: str, what: str) -> None:
    """Refuse code that data names or holds, unless the user has named it.

    Raises
    ------
    ConfigError
        Beginning with `what` it is, and saying how to allow it.
    """
    if not any(module == known or module.startswith(f"{known}.") for known in ("tsexp", *_allowed())):
        raise ConfigError(
            f"{what}, and was not run; if you trust whoever made it, say so in the environment: "
            f"{OWN_CODE}={','.join([*_allowed(), module])}"
        )


def look_up(name: str, table: Mapping[str, Any]) -> Any:
    """Return what a name stands for.

    An entry of `table`, or somebody's own code, ``module:object`` (``module:`` for the module itself).

    Raises
    ------
    ConfigError
        If it is no name at all, or that of a module that neither the configuration names (`trust`) nor the
        user allows (``TSEXP_OWN_CODE``): names also come from artifacts and stores, and those are data.
    """
    if isinstance(name, str) and ":" in name:
        must_be_trusted(name.partition(":")[0], f"{name!r} is somebody's own code, named by data")
        return pkgutil.resolve_name(name)
    if not isinstance(name, str) or name not in table:
        raise ConfigError(
            f"{name!r} is not known; allowed: {', '.join([*table, 'your own as module:object'])}"
        )
    return table[name]


def like_own(asked: Any) -> list[str]:
    """Return those values, of dictionaries in dictionaries, that look like names of somebody's own code."""
    if isinstance(asked, dict):
        return [name for value in asked.values() for name in like_own(value)]
    return [asked] if isinstance(asked, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[\w.]*", asked) else []


def own_code(*names: str) -> dict[str, Path]:
    """Return name → the file of its module, for those names that are somebody's own code.

    Raises
    ------
    ConfigError
        If it is in no file.
    """
    return {name: file for name, (_, file) in own_modules(*names).items()}


def own_modules(*names: str) -> dict[str, tuple[ModuleType, Path]]:
    """Return name → its module and the file of that, as `own_code` does."""
    return {name: _module_and_file(name) for name in names if ":" in name}


def _module_and_file(name: str) -> tuple[ModuleType, Path]:
    module = look_up(f"{name.split(':')[0]}:", {})
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(
            f"{name} is in no file, and a result is known by the text of the code that made it: write it "
            "into a module of its own, my_module.py, and name it my_module:object"
        )
    return module, Path(file)
