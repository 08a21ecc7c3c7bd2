"""Which jobs a command asks for: each is checked before the first starts."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tsexp import config as configs
from tsexp import stores
from tsexp.config import Config, ConfigError, Unsupported, compose, digest, secret
from tsexp.marks import FEW
from tsexp.sweeps import launchers
from tsexp.sweeps.jobs import (
    dataset_of,
)

if TYPE_CHECKING:
    pass

MANY = 100
"""Jobs whose check is worth a progress bar: each takes some milliseconds, and longer where other files have
to be read."""


@dataclass(frozen=True)
class Checked:
    """A sweep whose jobs may start.

    Attributes
    ----------
    jobs
        Configurations of its jobs; of a search, one for each value that it may choose.
    names
        Of all its jobs, if they are known beforehand.
    fixed
        Keys that all its jobs have the same override of.
    """

    jobs: list[Config]
    names: list[str] | None
    fixed: list[str]

    @property
    def first(self) -> Config:
        """Configuration of one of its jobs."""
        return self.jobs[0]


def question(jobs: Sequence[Config]) -> str:
    """Return a digest of what the values of a search depend on, however it was spelt.

    Files of the configuration and of the data may change, and versions, under the same command.
    """
    from tsexp import pipeline

    asked = {digest([configs.identity(cfg), dataset_of(cfg).checksum]) for cfg in jobs}
    return digest([sorted(asked), pipeline.versions()])


def check(config: DictConfig) -> Checked:
    """Check each job of a plain sweep.

    Of a search, which chooses its jobs on the way, each value that it may choose.
    """
    search = is_search(config)
    if search:
        _check_search(config.hydra.sweeper)
    given = config.hydra.sweeper.get("params") or {}
    loader = compose.loader()
    overrides = _overrides(config, secret.as_given(config.hydra.overrides.task), loader)
    for key, override in overrides.items():
        if override.is_interval_sweep():
            _check_interval(key, override.value())
    fixed = [key for key, o in overrides.items() if not o.is_sweep_override()]
    for key in overrides:
        if key.lstrip("+").split(".")[0] == "tracking" and (key not in fixed or key in given):
            raise ConfigError(
                f"{key}: a sweep has one store; give it as one value, and outside of hydra.sweeper.params\n"
                "nothing was started"
            )
    jobs = _one_by_one(list(overrides.values())) if search else _every_job(list(overrides.values()))
    found = _check_jobs(config, jobs, loader)
    checked, unsupported = [cfg for cfg, _ in found], [error for _, error in found if error]
    if search:
        if any(cfg.stop_after for cfg in checked):
            raise ConfigError(
                "a search learns from measurements, and stop_after leaves none; leave it out\n"
                "nothing was started"
            )
        _check_validation(checked)
        return Checked(checked, None, fixed)
    if len(unsupported) == len(jobs):
        raise ConfigError(f"{unsupported[0]}\nno job of this sweep can run; nothing was started")
    names = _names(jobs)
    _tell_of_same(names, found)
    return Checked(checked, names, fixed)


def _tell_of_same(names: Sequence[str], jobs: Sequence[tuple[Config, Unsupported | None]]) -> None:
    """Say which jobs ask the same under several names: ``quant.mode=none variant=static,qat``."""
    same: dict[str, list[str]] = {}
    for name, (cfg, unsupported) in zip(names, jobs, strict=True):
        if unsupported is None:
            same.setdefault(digest(configs.identity(cfg)), []).append(name)
    for several in same.values():
        if len(several) > 1:
            print(
                f"tsexp: one and the same job, whatever the names say: {', '.join(several)}; "
                "perhaps another setting overrules what should tell them apart",
                file=sys.stderr,
            )


def asked(overrides: Sequence[str], config_dir: str | None = None) -> list[Config | Unsupported]:
    """Return the jobs of a command in their order: of one that nothing supports, why.

    Parameters
    ----------
    overrides
        Its ``key=value``.
    config_dir
        Its ``--config-dir``.

    Raises
    ------
    ConfigError
        What the command itself would refuse; or if it is a search, which chooses its jobs on the way.
    """
    configs.register()
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder")
        configs.refuse_hidden(config_dir)
    try:
        with initialize_config_dir(str(configs.conf_dir()), version_base="1.3"):
            if config_dir is not None:  # as Hydra does with its own option
                hydra = GlobalHydra.instance().hydra
                assert hydra is not None
                places = hydra.config_loader.get_search_path()
                own = f"file://{Path(config_dir).absolute()}"
                places.prepend("command-line", own, SearchPathQuery(provider="schema"))
                hydra.config_loader = compose.Loader(places)
            config = (
                GlobalHydra.instance()
                .config_loader()
                .load_configuration("config", list(overrides), RunMode.MULTIRUN)
            )
            if is_search(config):
                raise ConfigError("a search chooses its jobs on the way; it has no plan")
            loader = compose.loader()
            jobs = _every_job(list(_overrides(config, overrides, loader).values()))
            checked = _check_jobs(config, jobs, loader)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(configs.explain(error).split())) from None
    return [unsupported or cfg for cfg, unsupported in checked]


def _overrides(config: DictConfig, task: Sequence[str], loader: compose.Loader) -> dict[str, Override]:
    """Return key → what a sweep's configuration and its command say of it: the last of a key counts."""
    given = [f"{k}={v}" for k, v in (config.hydra.sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*given, *task])
    return {o.get_key_element(): o for o in parsed}


def _check_interval(key: str, interval: Any) -> None:
    """Of what a search draws from an interval: the smaller end first, above 0 where logarithms are drawn."""
    start, end = interval.start, interval.end
    if not (math.isfinite(start) and math.isfinite(end) and start <= end):
        raise ConfigError(
            f"{key}=interval({start}, {end}) is none; allowed: two finite numbers, the smaller first\n"
            "nothing was started"
        )
    if "log" in interval.tags and start <= 0:
        raise ConfigError(
            f"{key}=tag(log, interval({start}, {end})) has no logarithms; allowed: numbers > 0\n"
            "nothing was started"
        )


def _check_search(sweeper: Any) -> None:
    """Of a search: Optuna is there, its study can be kept, its constraints are some."""
    if importlib.util.find_spec("optuna") is None:
        what, extra = configs.PLUGINS["hydra/sweeper/optuna"]
        raise ConfigError(f"{what} is not installed; install it: pip install 'tsexp[{extra}]'")
    from tsexp.report import constraints

    for key in ("n_trials", "n_jobs"):
        if not (isinstance(sweeper[key], int) and sweeper[key] > 0):
            raise ConfigError(
                f"hydra.sweeper.{key}={sweeper[key]} is out of range; allowed: whole numbers ≥ 1\n"
                "nothing was started"
            )
    seed = sweeper.sampler.get("seed")
    if not (isinstance(seed, int) and 0 <= seed < 2**31):  # each trial's follows from it
        raise ConfigError(
            f"hydra.sweeper.sampler.seed={seed} is out of range; allowed: whole numbers ≥ 0 and < 2**31\n"
            "nothing was started"
        )
    try:
        constraints.parse(list(sweeper.constraints))
        stores.of_studies(str(sweeper.storage))
    except ConfigError as error:
        raise ConfigError(f"{error}\nnothing was started") from None


def _check_jobs(
    config: DictConfig, jobs: list[list[str]], loader: compose.Loader
) -> list[tuple[Config, Unsupported | None]]:
    """Return the configuration of each job; beside one that nothing supports, and is skipped, why."""
    from tsexp import pipeline
    from tsexp.system.progress import bar

    checked: list[tuple[Config, Unsupported | None]] = []
    with bar(f"check {len(jobs)} jobs", len(jobs), show=len(jobs) >= MANY) as progress:
        for job in jobs:
            try:
                cfg = configs.parse(loader.values(config, list(job)))
                unsupported = None
                try:
                    pipeline.check(cfg, here=launchers.name(config) not in launchers.ELSEWHERE)
                except Unsupported as error:  # skipped when its turn comes
                    unsupported = error
            except Exception as error:
                if not (isinstance(error, ConfigError) or configs.is_known(error)):
                    raise
                what = str(error) if isinstance(error, ConfigError) else configs.explain(error)
                raise ConfigError(
                    configs.redact(f"job {' '.join(job)}: {what}\nnothing was started")
                ) from None
            checked.append((cfg, unsupported))
            progress.advance()
    return checked


def _every_job(overrides: list[Override]) -> list[list[str]]:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def _names(jobs: list[list[str]]) -> list[str]:
    """Name each job by what varies: every one has the same overrides in the same order.

    If nothing does, by all that was asked for; places say nothing of it, and names are published.
    """
    varying = [i for i, values in enumerate(zip(*jobs, strict=True)) if len(set(values)) > 1]
    named = [
        [job[i] for i in varying] or [o for o in job if not o.lstrip("+~").startswith(configs.NOT_ASKED)]
        for job in jobs
    ]
    return [configs.redact(" ".join(words) or "job") for words in named]


def _check_validation(configurations: list[Config]) -> None:
    """A search chooses by accuracy on the validation split.

    Refuse to search without one, say if it is tiny.
    """
    sizes = {(cfg.data.name, cfg.data.val_fraction, len(dataset_of(cfg).val)) for cfg in configurations}
    for name, fraction, size in sorted(sizes):
        if not size:
            raise ConfigError(
                f"a search chooses by accuracy on the validation split, and data.val_fraction={fraction:g} "
                f"leaves none of {name}; use a larger one\nnothing was started"
            )
        if size < FEW:
            print(
                f"tsexp: {name} has {size} validation series: the search sees accuracy in steps of "
                f"{100 / size:.1f} points",
                file=sys.stderr,
            )


def _one_by_one(overrides: list[Override]) -> list[list[str]]:
    """Each value that is searched over, by itself; of an interval, its ends."""
    fixed = [
        f"{o.get_key_element()}={o.get_value_element_as_str()}"
        for o in overrides
        if not o.is_sweep_override()
    ]
    values = []
    for o in overrides:
        if o.is_interval_sweep():
            interval = o.value()
            assert isinstance(interval, IntervalSweep)
            values += [f"{o.get_key_element()}={end}" for end in (interval.start, interval.end)]
        elif o.is_sweep_override():
            values += [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
    return [[*fixed, value] for value in values] or [fixed]


def is_search(config: DictConfig) -> bool:
    """The command chooses its jobs on the way."""
    return not str(config.hydra.sweeper._target_).endswith(".BasicSweeper")
