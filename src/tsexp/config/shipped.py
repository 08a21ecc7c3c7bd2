"""The shipped YAML files, and the schema that Hydra checks them by."""

from __future__ import annotations

import operator
import warnings
from pathlib import Path

from omegaconf import OmegaConf

from tsexp.config.cores import at_once
from tsexp.config.errors import ConfigError
from tsexp.config.schema import Config


def conf_dir() -> Path:
    """Folder of the shipped YAML files: inside an installed package, else ``conf/`` of the checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


def refuse_hidden(folder: str) -> None:
    """Refuse a ``--config-dir`` with files that nobody would read: Hydra finds the shipped ones first.

    Raises
    ------
    ConfigError
        If it has files with the names of shipped ones.
    """
    shipped, own = conf_dir(), Path(folder)
    if own.resolve() == shipped.resolve():
        return
    names = (path.relative_to(shipped) for path in sorted(shipped.rglob("*.yaml")))
    if hidden := [str(name) for name in names if (own / name).is_file()]:
        more = f" and {len(hidden) - 3} more" if len(hidden) > 3 else ""
        raise ConfigError(
            f"--config-dir {folder} has files with the names of shipped ones, which would be read instead: "
            f"{', '.join(hidden[:3])}{more}; give yours names of their own"
        )


def register() -> None:
    """Make the schema known to Hydra as the config named ``tsexp_schema``, and what the files compute with.

    All by names of our own: a program may have a ``schema`` and a ``product``.
    """
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="tsexp_schema", node=Config)
    # The presets of launchers have the names, and the types, of the plugins' own.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    OmegaConf.register_new_resolver("tsexp.at_once", at_once, replace=True)
    OmegaConf.register_new_resolver("tsexp.largest", max, replace=True)
    OmegaConf.register_new_resolver("tsexp.product", operator.mul, replace=True)
