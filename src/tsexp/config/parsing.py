"""From what Hydra composed to a checked `Config`: every key and range, before any work starts."""

from __future__ import annotations

import math
import operator
from dataclasses import MISSING as NO_FACTORY
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    MissingMandatoryValue,
    ValidationError,
)

from tsexp.config.addresses import absolute_place, absolute_uri, refuse_escapes, wrong_store
from tsexp.config.errors import ConfigError, suggest
from tsexp.config.fingerprint import own_names
from tsexp.config.hydra_errors import elsewhere
from tsexp.config.own import look_up, trust
from tsexp.config.schema import FAMILIES, KINDS, Config, ModelConfig, PathsConfig, family_module, like


def parse(cfg: DictConfig) -> Config:
    """Turn a composed configuration into a checked `Config` with absolute paths.

    Parameters
    ----------
    cfg
        What Hydra composed (without the ``hydra`` node).

    Returns
    -------
    Config
        Typed, resolved; relative paths and the default tracking store are made absolute.

    Raises
    ------
    ConfigError
        With one line per problem: the key, its value, what is allowed.
    """
    strange = _unknown(cfg, Config)
    if strange:
        raise ConfigError("\n".join(strange))
    config = _to_object(cfg)
    assert isinstance(config, Config)
    trust(*own_names(asdict(config)))
    config.model = _model(config.model)
    problems = [
        *_out_of_range(config),
        *config.model.problems(),
        *wrong_store(config.tracking.uri),
        *_at_odds(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    data = config.data
    if data.path:
        data = replace(data, path=str(Path(data.path).expanduser().absolute()))
    if data.scale == "auto":
        data = replace(data, scale=config.model.auto_scale())
    config = replace(config, data=data, **places(cfg))
    for name in ("cache", "spool"):  # of both MLflow copies
        refuse_escapes(f"paths.{name}", getattr(config.paths, name), f"paths.{name}=/ELSEWHERE")
    return config


def places(cfg: DictConfig) -> dict[str, Any]:
    """Return the groups ``paths`` and ``tracking`` with absolute paths: all that reading results takes."""
    paths, tracking = _to_object(cfg.paths), _to_object(cfg.tracking)
    wrong = wrong_store(tracking.uri)
    if wrong:
        raise ConfigError(wrong[0])
    absolute = {
        f.name: str(Path(getattr(paths, f.name)).expanduser().absolute()) for f in fields(PathsConfig)
    }
    return {
        "paths": PathsConfig(**absolute),
        "tracking": replace(
            tracking, uri=absolute_uri(tracking.uri), artifacts=absolute_place(tracking.artifacts)
        ),
    }


def _to_object(cfg: DictConfig) -> Any:
    try:
        return OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(f"{key} has no value; give it on the command line, e.g. {key}=...") from None


def _model(keys: dict[str, Any]) -> ModelConfig:
    """Type the ``model`` group by its family."""
    family = str(keys.setdefault("family", "transformer"))  # the only one there was once
    if family not in FAMILIES and ":" not in family:
        raise ConfigError(
            f"model.family={family} is not known; allowed: {', '.join(FAMILIES)}, or your own as module:"
            f"{suggest(family, FAMILIES)}"
        )
    wrong = _unreachable("model.family", family) if ":" in family else []
    if wrong:
        raise ConfigError(wrong[0])
    missing = [name for name in ("Config", "build", "rebuild") if not hasattr(family_module(family), name)]
    if like(family) not in KINDS:
        missing.append(f"LIKE ({', '.join(KINDS)})")
    if missing:
        raise ConfigError(
            f"model.family={family} lacks {', '.join(missing)}; docs/extending.md has an example"
        )
    kind = family_module(family).Config
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), keys))
    except ConfigKeyError as error:
        known = [f.name for f in fields(kind)]
        strange = str(error.key)
        raise ConfigError(
            f"model.{strange} is not a key of the {family} family; allowed: {', '.join(known)}"
            f"{suggest(strange, known)}"
        ) from None
    except ValidationError as error:
        raise ConfigError(f"model.{error.full_key}: {str(error).splitlines()[0]}") from None
    except MissingMandatoryValue as error:
        raise ConfigError(f"model.{error.full_key} has no value") from None
    assert isinstance(typed, ModelConfig)
    return typed


def _unknown(node: DictConfig, schema: Any, prefix: str = "") -> list[str]:
    """Keys that were added with ``+``: nothing reads them."""
    nested = {f.name: f.default_factory for f in fields(schema) if f.default_factory is not NO_FACTORY}
    known = [f.name for f in fields(schema)]
    found = [
        f"{prefix}{k} is not a key; allowed: {', '.join(known)}"
        f"{('' if prefix else elsewhere(k, node)) or suggest(k, known)}"
        for k in map(str, node)
        if k not in known
    ]
    for name, factory in nested.items():
        found += _unknown(node[name], factory, f"{prefix}{name}.")
    return found


def _out_of_range(node: Any, prefix: str = "") -> list[str]:
    """Return what is wrong with a value by itself; one line each."""
    found = []
    for f in fields(node):
        key, value = f"{prefix}{f.name}", getattr(node, f.name)
        if is_dataclass(value):
            found += _out_of_range(value, f"{key}.")
        elif f.metadata.get("own") and ":" in value:
            found += _unreachable(key, value)
        elif "allowed" in f.metadata and value not in f.metadata["allowed"]:
            allowed = ["null" if a is None else str(a) for a in f.metadata["allowed"]]
            own = ", or your own as module:object" if f.metadata.get("own") else ""
            found.append(
                f"{key}={value} is not known; allowed: "
                f"{', '.join(allowed)}{own}{suggest(str(value), allowed)}"
            )
        elif "bounds" in f.metadata and value is not None:
            holds = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}
            bounds = f.metadata["bounds"]
            if not (math.isfinite(value) and all(holds[k](value, bound) for k, bound in bounds.items())):
                found.append(
                    f"{key}={value} is out of range; allowed: "
                    f"{' and '.join(f'{k} {v:g}' for k, v in bounds.items())}"
                )
    return found


def _unreachable(key: str, name: str) -> list[str]:
    try:
        look_up(name, {})
    except (Exception, SystemExit) as error:  # whatever somebody's module raises, and one that exits
        return [
            f"{key}={name} cannot be imported ({type(error).__name__}: {error}); it is read as "
            "module:object, and the module is looked for in the working folder (of a script: in the "
            "script's), in PYTHONPATH and among the installed packages"
        ]
    return []


def _at_odds(config: Config) -> list[str]:
    """Return which values, right by themselves, cannot be together; one line each."""
    found = []
    if config.train.max_steps and config.train.min_steps > config.train.max_steps:
        found.append(
            f"train.min_steps={config.train.min_steps} is more than train.max_steps={config.train.max_steps}"
        )
    if config.train.devices > 1 and config.train.batch_size % config.train.devices:
        found.append(
            f"train.batch_size={config.train.batch_size} cannot be split evenly among "
            f"train.devices={config.train.devices}; use a multiple"
        )
    if config.data.val_fraction == 0 and (config.train.select == "best" or config.train.patience):
        found.append(
            "data.val_fraction=0 leaves nothing to select on; use train.select=last train.patience=0, or a "
            "fraction > 0"
        )
    if config.measure.processes % 2:
        found.append(
            f"measure.processes={config.measure.processes} is odd: in half of the processes the artifact is "
            "loaded first; use an even number, best a multiple of 4"
        )
    if config.measure.repeats < config.measure.processes:
        found.append(
            f"measure.repeats={config.measure.repeats} pairs cannot be shared among "
            f"measure.processes={config.measure.processes}; "
            "use at least as many pairs as processes"
        )
    at_least_s = 2 * config.measure.repeats * config.measure.window_s
    if config.measure.target_pct is None and at_least_s > config.measure.timeout_s:
        found.append(
            f"measure.repeats={config.measure.repeats} pairs of windows of "
            f"measure.window_s={config.measure.window_s:g} take {at_least_s:.4g} s and more, longer than "
            f"measure.timeout_s={config.measure.timeout_s:g}; use fewer pairs, shorter windows, or more time"
        )
    if ":" in config.model.name:  # elsewhere, that is somebody's own code
        found.append(
            f"model.name={config.model.name} has a colon; a model of your own is named by model.family, "
            "its name is any word without one"
        )
    return found
