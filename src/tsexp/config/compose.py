"""Composing configurations: Hydra reads every YAML file again for each.

Here, once per choice of files, for the jobs of a sweep and for what Python asks for.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import OmegaConfBaseException

from tsexp.config.errors import ConfigError
from tsexp.config.hydra_errors import explain
from tsexp.config.secret import as_given
from tsexp.config.shipped import conf_dir, register

_bases: dict[tuple[str, ...], tuple[bytes, bytes]] = {}
"""What was asked of the files → the configuration that they make, with and without Hydra's own; pickled, as
unpickling is the fastest copy."""
_defaults: dict[Path, tuple[list[tuple[Path, int]], DictConfig]] = {}
"""Folder → its files, when each was changed, and what they make if nothing is asked for."""


class Loader(ConfigLoaderImpl):
    """Hydra's own, but for the jobs of a sweep.

    Those that differ in values alone share what was read, and have their values put onto a copy.

    Hydra does the same in the same order for each job anew: it composes the files that the overrides of
    groups choose, then applies the others.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process of a launcher: what Hydra was told of our schema does not travel along."""
        register()
        self.__dict__.update(state)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of one job."""
        cfg = self._quick(master_config, sweep_overrides, hydra=True)
        return super().load_sweep_config(master_config, sweep_overrides) if cfg is None else cfg

    def values(self, master: DictConfig, job: list[str]) -> DictConfig:
        """Return the same without the ``hydra`` node: what the job itself is handed."""
        cfg = self._quick(master, job, hydra=False)
        return _without_hydra(super().load_sweep_config(master, job)) if cfg is None else cfg

    def _quick(self, master: DictConfig, job: list[str], hydra: bool) -> DictConfig | None:
        """Compose in the short way; None if that does not go, so that Hydra does it, or says why not."""
        try:
            overrides = [_parsed(line) for line in job]
            if any(o.is_hydra_override() or o.is_sweep_override() for o in overrides):
                return None
            groups = [
                not isinstance(o.value(), dict) and self.repository.group_exists(o.key_or_group)
                for o in overrides
            ]
            cfg = self._copy(master, [line for line, group in zip(job, groups, strict=True) if group], hydra)
            self._apply_overrides_to_config(
                [o for o, group in zip(overrides, groups, strict=True) if not group], cfg
            )
            if hydra:
                cfg.hydra.overrides.task = list(job)
                how = cfg.hydra.job.config.override_dirname
                cfg.hydra.job.override_dirname = get_overrides_dirname(
                    overrides, list(how.exclude_keys), how.item_sep, how.kv_sep
                )
        except Exception:
            return None
        OmegaConf.copy_cache(from_config=master, to_config=cfg)
        return cfg

    def _copy(self, master: DictConfig, chosen: list[str], hydra: bool) -> DictConfig:
        key = (
            str(self.config_search_path),
            master.hydra.job.config_name,
            *as_given(master.hydra.overrides.hydra),
            *chosen,
        )
        if key not in _bases:
            whole = super().load_sweep_config(master, chosen)
            _bases[key] = pickle.dumps(whole), pickle.dumps(_without_hydra(whole))
        copy = pickle.loads(_bases[key][0 if hydra else 1])  # noqa: S301 (pickled by this process)
        assert isinstance(copy, DictConfig)
        return copy


def _without_hydra(cfg: DictConfig) -> DictConfig:
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@cache
def _parsed(line: str) -> Override:
    return OverridesParser.create().parse_override(line)


def loader() -> Loader:
    """Return a `Loader` of what Hydra loads.

    From now on Hydra uses it, too: it composes each job when it starts, and all before the first.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    if not isinstance(hydra.config_loader, Loader):
        hydra.config_loader = Loader(hydra.config_loader.get_search_path())
    assert isinstance(hydra.config_loader, Loader)
    return hydra.config_loader


def composed(*overrides: str) -> DictConfig:
    """Compose what these overrides make, as the main command does; `config.parse` or `places` reads it.

    YAML files are read again when one of them has changed.

    Raises
    ------
    ConfigError
        Hydra's own error in one line.
    """
    with _hydra_to_itself():
        register()
        try:
            return _values(conf_dir(), list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(explain(error).split())) from None


_one_at_a_time = threading.RLock()
"""Hydra has one global state."""


@contextmanager
def _hydra_to_itself() -> Iterator[None]:
    """Have Hydra's global state as if nobody used it, one thread at a time; leave what was there."""
    with _one_at_a_time, warnings.catch_warnings():
        theirs = GlobalHydra.instance().hydra  # of a program of @hydra.main, or of hydra.initialize
        resolvers = dict(BaseContainer._resolvers)  # Hydra replaces some, as `now`
        GlobalHydra.instance().clear()
        try:
            yield
        finally:
            GlobalHydra.instance().hydra = theirs
            BaseContainer._resolvers.update(resolvers)


def _values(folder: Path, overrides: list[str]) -> DictConfig:
    files = [(file, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*.yaml"))]
    with initialize_config_dir(str(folder), version_base="1.3"):
        short = loader()
        if _defaults.get(folder, (None,))[0] != files:
            _bases.clear()
            _defaults[folder] = files, short.load_configuration("config", [], RunMode.RUN)
        return short.values(_defaults[folder][1], overrides)
