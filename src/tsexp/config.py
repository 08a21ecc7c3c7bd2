"""The configuration: typed schema, and every range checked before any work starts.

The YAML files in ``conf/`` hold the values; the dataclasses here hold the types (Hydra merges the files onto
them, so a misspelt key or a wrong type is refused while composing) and, as field metadata, what is allowed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import operator
import os
import pkgutil
import re
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import MISSING as NO_FACTORY
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

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

SQLITE = "sqlite:///"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
"""Number formats, in the order in which they are shown."""

SECRETS = ("password", "passwd", "pwd", "token", "secret", "api_?key", "odbc_connect")
"""Patterns of keys, in the query of a URL, whose values are shown to nobody."""

NOT_ASKED = (
    "rerun",
    "stop_after",
    "paths.",
    "tracking.",
    "train.progress",
    "data.path",
    "measure.timeout_s",
    "measure.meter",
    "measure.require",
)
"""Flat keys, or their beginnings, that say where and how a job ran, not what was asked. (What the meter reads
is known by its source.)"""


OWN_CODE = "TSEXP_OWN_CODE"
"""Environment variable: modules, separated by commas, that may be imported because an artifact names them."""

CALIBRATED = ("static", "qat")
"""Modes whose ranges of activations come from train series."""

FAMILIES = {
    "transformer": "tsexp.models.transformer",
    "views": "tsexp.models.views",
    "ridge": "tsexp.models.views.ridge",
    "convolution": "tsexp.models.convolution",
    "estimator": "tsexp.models.estimators.minirocket",
    "quant_forest": "tsexp.models.estimators.quant_forest",
    "multirocket_hydra": "tsexp.models.estimators.multirocket_hydra",
    "dtw_1nn": "tsexp.models.estimators.dtw_1nn",
}
"""Family of models → its module (`tsexp.models.family`)."""

KINDS = ("transformer", "views", "ridge", "convolution", "estimator")
"""What runtimes and steps of compression tell apart; a family is one of them, or says in ``LIKE`` which."""


class ConfigError(ValueError):
    """Bad input. The message says what was wrong, what is allowed and what to do."""

    status = 2
    """With which a command ends."""


class Unsupported(ConfigError):
    """A combination that nobody can run.

    Alone it is refused; in a sweep it is skipped, and the sweep succeeds.
    """


def choice(*allowed: str, own: bool = False) -> Any:
    """One of these words, or, if `own`, the name of somebody's own code."""
    return field(default=MISSING, metadata={"allowed": allowed, "own": own})


def number(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Any:
    """A number within bounds (``ge``: at least, ``gt``: more than, ``le``: at most, ``lt``: less than)."""
    bounds = {"≥": ge, ">": gt, "≤": le, "<": lt}
    return field(default=MISSING, metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}})


@dataclass
class DataConfig:
    """A dataset and how its raw series reach the model."""

    name: str = MISSING
    path: str | None = MISSING
    scale: str = choice("auto", "none", "znorm", "minmax", "standard", "znorm_raw")
    unequal: str = choice("pad", "resample")
    length: int | None = number(ge=8)
    missing: str = choice("interpolate", "error")
    val_fraction: float = number(ge=0, lt=0.9)


@dataclass
class ModelConfig:
    """What every ``model`` group has; each family of models adds its own keys (`tsexp.models`)."""

    name: str = MISSING
    family: str = choice(*FAMILIES, own=True)

    gradient: ClassVar[bool] = True
    """Fitted by gradient descent: the ``train`` group matters."""
    raw: ClassVar[bool] = False
    """Takes the raw series as channels of their own, ``data.scale=znorm_raw`` (`BaseArch.inputs`)."""

    def problems(self) -> list[str]:
        """Return what is wrong with keys that are right by themselves; one line each."""
        return []

    def auto_scale(self) -> str:
        """What ``data.scale=auto`` means to this model."""
        return "znorm" if self.gradient else "none"

    def packages(self) -> tuple[str, ...]:
        """Return distributions, beside PyTorch, whose version decides what is learned."""
        return tuple(getattr(family_module(self.family), "PACKAGES", ()))

    def ready(self) -> None:
        """Raise `ConfigError` for what only a look at code or libraries can tell, before any work."""


WHOLE = {"curve": "whole"}
"""Without warm-up, as in quantization-aware training, a cosine began a step late once: what was made then is
other than what is asked for now."""


@dataclass
class TrainConfig:
    """How a model is fitted."""

    epochs: int = number(ge=1)
    min_steps: int = number(ge=0)
    max_steps: int = number(ge=0)
    lr: float = number(gt=0)
    batch_size: int = number(ge=1)
    optimizer: str = choice("adam", "adamw")
    weight_decay: float = number(ge=0)
    schedule: str = choice("none", "cosine")
    warmup: float = number(ge=0, lt=1)
    label_smoothing: float = number(ge=0, lt=1)
    ema: float = number(ge=0, lt=1)
    clip: float = number(ge=0)
    select: str = choice("best", "last")
    patience: int = number(ge=0)
    device: str = choice("cpu", "cuda")
    devices: int = number(ge=1)
    threads: int = number(ge=1)
    precision: str = choice("fp32", "bf16")
    progress: bool = MISSING

    def asked(self) -> dict[str, Any]:
        """Return what the weights depend on; what there was no other value of once goes unsaid."""
        once = {"devices": 1, "precision": "fp32"}
        curve = WHOLE if self.schedule == "cosine" and not self.warmup else {}
        return curve | {
            k: v
            for k, v in asdict(self).items()
            if f"train.{k}" not in NOT_ASKED and (k, v) not in once.items()
        }


@dataclass
class PruneConfig:
    """Which heads, FFN units, blocks, channels or features go, and how the rest is tuned afterwards."""

    method: str = choice("l1", "l2", "random", "taylor", own=True)
    scope: str = choice("local", "global", "depth", "features", "all")
    ratio: float = number(ge=0, lt=1)
    round_to: int = number(ge=1)
    calibration_series: int = number(ge=1)
    finetune_epochs: int = number(ge=0)
    finetune_lr: float = number(gt=0)
    distill: float = number(ge=0, le=1)
    temperature: float = number(gt=0)

    def asked(self) -> dict[str, Any]:
        """Return what the weights depend on: nothing at ratio 0."""
        if self.ratio == 0:
            return {}
        idle = set() if self.method == "taylor" or ":" in self.method else {"calibration_series"}
        idle |= set() if self.finetune_epochs else {"finetune_lr", "distill", "temperature"}
        idle |= set() if self.distill else {"temperature"}
        read = replace(self, round_to=1) if self.scope == "features" else self
        return {k: v for k, v in asdict(read).items() if k not in idle}


@dataclass
class QuantConfig:
    """The number format of the deployed artifact. Which modes a runtime has, the runtime says."""

    mode: str = choice(*MODES)
    calibration: str = choice("minmax", "percentile", "entropy")
    calibration_series: int = number(ge=1)
    qat_epochs: int = number(ge=1)
    qat_lr: float = number(gt=0)
    weight_bits: int = field(default=MISSING, metadata={"allowed": (4, 8)})

    def asked(self) -> dict[str, Any]:
        """Return what matters for the mode."""
        matters: dict[str, Any] = {"mode": self.mode}
        if self.mode in CALIBRATED:
            matters |= {"calibration": self.calibration, "calibration_series": self.calibration_series}
        if self.mode == "qat":
            matters |= {"qat_epochs": self.qat_epochs, "qat_lr": self.qat_lr} | WHOLE
        if self.mode == "weight_only":
            matters |= {"weight_bits": self.weight_bits}
        return matters


@dataclass
class RuntimeConfig:
    """What executes the artifact."""

    name: str = field(default=MISSING, metadata={"own": True})
    device: str = choice("cpu", "cuda")


@dataclass
class MeasureConfig:
    """The window protocol."""

    batch_size: int = number(ge=1)
    repeats: int = number(ge=2)
    processes: int = number(ge=2)
    target_pct: float | None = number(gt=0)
    window_s: float = number(gt=0, le=30)
    idle_s: float = number(gt=0, le=30)
    latency_calls: int = number(ge=20)
    threads: int = number(ge=1)
    meter: str = choice("auto", own=True)
    watts_per_core: float = number(gt=0)
    require: str = choice("any", "measured")
    timeout_s: float = number(gt=0)


@dataclass
class PathsConfig:
    """Where data is looked for and where results go; relative to the working directory."""

    data: str = MISSING
    cache: str = MISSING
    spool: str = MISSING
    report: str = MISSING
    frozen: str = MISSING


@dataclass
class TrackingConfig:
    """The MLflow store."""

    uri: str = MISSING
    experiment: str = MISSING
    artifacts: str | None = None


@dataclass
class Config:
    """Everything an experiment depends on; `parse` makes it from what Hydra composed."""

    data: DataConfig = field(default_factory=DataConfig)
    model: Any = MISSING
    """The family's own subclass of `ModelConfig`."""
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = number(ge=0, lt=2**32)
    rerun: bool = MISSING
    stop_after: str | None = field(default=MISSING, metadata={"allowed": (None, "deploy")})


def conf_dir() -> Path:
    """Folder of the shipped YAML files: inside an installed package, else ``conf/`` of the checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


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
    """Make the schema known to Hydra as the config named ``schema``."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    # The presets of launchers have the names, and the types, of the plugins' own.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    OmegaConf.register_new_resolver("at_once", at_once, replace=True)
    OmegaConf.register_new_resolver("largest", max, replace=True)
    OmegaConf.register_new_resolver("product", operator.mul, replace=True)


def at_once(*threads: int) -> int:
    """Return how many jobs with so many threads the cores are enough for that this process may use."""
    return max(1, usable_cores() // max(threads))


def usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the quota of a container."""
    import joblib

    return int(joblib.cpu_count())


def check_threads(threads: int) -> None:
    """Refuse to measure with more threads than cores.

    Raises
    ------
    ConfigError
        If there are so many.
    """
    if threads > (cores := usable_cores()):
        raise ConfigError(
            f"measure.threads={threads}, but {cores} core(s) can be used here: threads would wait for each "
            "other, and the waiting of the dense model would count as saved; take no more"
        )


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
    trust(*_own_names(asdict(config)))
    config.model = _model(config.model)
    problems = _problems(config) + config.model.problems()
    problems += _no_store(config.tracking.uri)
    if config.train.max_steps and config.train.min_steps > config.train.max_steps:
        problems.append(
            f"train.min_steps={config.train.min_steps} is more than train.max_steps={config.train.max_steps}"
        )
    if config.train.devices > 1 and config.train.batch_size % config.train.devices:
        problems.append(
            f"train.batch_size={config.train.batch_size} cannot be split evenly among "
            f"train.devices={config.train.devices}; use a multiple"
        )
    if config.data.val_fraction == 0 and (config.train.select == "best" or config.train.patience):
        problems.append(
            "data.val_fraction=0 leaves nothing to select on; use train.select=last train.patience=0, or a "
            "fraction > 0"
        )
    if config.measure.repeats < config.measure.processes:
        problems.append(
            f"measure.repeats={config.measure.repeats} pairs cannot be shared among "
            f"measure.processes={config.measure.processes}; "
            "use at least as many pairs as processes"
        )
    at_least_s = 2 * config.measure.repeats * config.measure.window_s
    if config.measure.target_pct is None and at_least_s > config.measure.timeout_s:
        problems.append(
            f"measure.repeats={config.measure.repeats} pairs of windows of "
            f"measure.window_s={config.measure.window_s:g} take {at_least_s:.4g} s and more, longer than "
            f"measure.timeout_s={config.measure.timeout_s:g}; use fewer pairs, shorter windows, or more time"
        )
    if ":" in config.model.name:  # elsewhere, that is somebody's own code
        problems.append(
            f"model.name={config.model.name} has a colon; a model of your own is named by model.family, "
            "its name is any word without one"
        )
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
    wrong = _no_store(tracking.uri)
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


def like(family: str) -> str:
    """Return the family that runtimes and steps treat this one as: its module may say so in ``LIKE``."""
    return str(getattr(family_module(family), "LIKE", family))


def family_module(name: str) -> Any:
    """Return the module of a family of models (`tsexp.models.family` says what it holds)."""
    return look_up(f"{FAMILIES[name]}:" if name in FAMILIES else name, {})


def is_known(error: BaseException) -> bool:
    """It is an error of the configuration, which `explain` tells in a line; anything else is a fault here."""
    from hydra.errors import HydraException

    return isinstance(error, HydraException | OmegaConfBaseException) or NO_OPTION in str(error)


NOT_OF_TYPE = {"Float": "no number", "Integer": "no whole number", "bool": "neither true nor false"}
"""What OmegaConf calls a type → what a value is that is none."""


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
        hint = _elsewhere(key, cause.parent_node._get_root()) or suggest(key, known)
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


def _elsewhere(key: str, root: Any) -> str:
    """Return ``' (did you mean train.epochs?)'`` when other groups have this key, else an empty string."""
    found = [
        f"{group}.{key}"
        for group in sorted(map(str, root))
        if group != "hydra" and OmegaConf.is_dict(root._get_node(group)) and key in root[group]
    ]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _unknown(node: DictConfig, schema: Any, prefix: str = "") -> list[str]:
    """Keys that were added with ``+``: nothing reads them."""
    nested = {f.name: f.default_factory for f in fields(schema) if f.default_factory is not NO_FACTORY}
    known = [f.name for f in fields(schema)]
    found = [
        f"{prefix}{k} is not a key; allowed: {', '.join(known)}"
        f"{('' if prefix else _elsewhere(k, node)) or suggest(k, known)}"
        for k in map(str, node)
        if k not in known
    ]
    for name, factory in nested.items():
        found += _unknown(node[name], factory, f"{prefix}{name}.")
    return found


def _no_store(uri: str) -> list[str]:
    if uri.split(":")[0].split("+")[0] in SCHEMES:
        return []
    allowed = ", ".join(f"{s}:..." for s in SCHEMES)
    return [f"tracking.uri={redact(uri)} is not a store MLflow takes; allowed: {allowed}"]


def absolute_uri(uri: str) -> str:
    """A sqlite file is named from the working folder.

    Raises
    ------
    ConfigError
        If its name means another file where it is read as an address.
    """
    if not uri.startswith(SQLITE):
        return uri
    name, mark, query = uri.removeprefix(SQLITE).partition("?")
    path = str(Path(name).absolute())
    if mark and "=" not in query:  # a folder's, not that of options
        path, mark, query = path + mark + query, "", ""
    refuse_escapes("tracking.uri", path, "tracking.uri=sqlite:////ELSEWHERE/mlflow.db", also=r"|\?")
    return f"{SQLITE}{path}{mark}{query}"


def absolute_place(place: str | None) -> str | None:
    """A folder is made absolute; the URI of something else stays.

    Raises
    ------
    ConfigError
        As `absolute_uri`.
    """
    if place is None or ":" in place:
        return place
    path = str(Path(place).expanduser().absolute())
    refuse_escapes("tracking.artifacts", path, "tracking.artifacts=/ELSEWHERE")
    return path


def refuse_escapes(key: str, path: str, instead: str, also: str = "") -> None:
    """Refuse what SQLAlchemy and MLflow, who read a path as an address, take for that of something else."""
    found = re.search("%[0-9A-Fa-f]{2}" + also, path)
    if found:
        raise ConfigError(
            f"{key} is {path}, in which {found[0]} would be read as something else, so that results would "
            f"lie in another folder, or be lost; work in a folder without it, or name one: {instead}"
        )


def _problems(node: Any, prefix: str = "") -> list[str]:
    found = []
    for f in fields(node):
        key, value = f"{prefix}{f.name}", getattr(node, f.name)
        if is_dataclass(value):
            found += _problems(value, f"{key}.")
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


def trust(*names: str) -> None:
    """Let the modules of these names be imported, here and in the processes that are started from now on."""
    known = _allowed()
    new = [name.partition(":")[0] for name in names if ":" in name]
    if missing := [module for module in dict.fromkeys(new) if module not in known]:
        os.environ[OWN_CODE] = ",".join([*known, *missing])


def _allowed() -> list[str]:
    return [module.strip() for module in os.environ.get(OWN_CODE, "").split(",") if module.strip()]


def own_code(*names: str) -> dict[str, Path]:
    """Return name → the file of its module, for those names that are somebody's own code.

    Raises
    ------
    ConfigError
        If it is in no file.
    """
    return {name: _file_of(name, module) for name, module in _own_modules(*names).items()}


def _own_modules(*names: str) -> dict[str, Any]:
    return {name: look_up(f"{name.split(':')[0]}:", {}) for name in names if ":" in name}


def _file_of(name: str, module: Any) -> Path:
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(
            f"{name} is in no file, and a result is known by the text of the code that made it: write it "
            "into a module of its own, my_module.py, and name it my_module:object"
        )
    return Path(file)


_texts: dict[str, tuple[Any, str]] = {}
"""Somebody's own module → its import, and the digest of its text then."""


def own_digests(*names: str) -> dict[str, str]:
    """Return name → digest of its module's text, for those names that are somebody's own code.

    Changed code makes another result.

    Raises
    ------
    ConfigError
        If it is in no file, or that has been changed since it was imported: it is not what runs.
    """
    found = {}
    for name, module in _own_modules(*names).items():
        file = _file_of(name, module)
        text = digest(file.read_text())
        known = _texts.get(module.__name__)
        if known is None or known[0] is not module.__spec__:  # a new import, or a reload
            _texts[module.__name__] = module.__spec__, text
        elif known[1] != text:
            raise ConfigError(
                f"{file} was changed after it was imported, so that this process still runs what it was: "
                f"start Python anew, or importlib.reload({module.__name__})"
            )
        found[name] = text
    return found


def suggest(word: str, known: Any) -> str:
    """Return ``' (did you mean X?)'`` when another known word is close, else an empty string."""
    words = list(known)
    close = [] if word in words else difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def identity(cfg: Config) -> dict[str, Any]:
    """Return what a result depends on, of everything that was asked: one spelling for all that ask the same.

    Cache, store and report know an experiment by this and by nothing else. Own code counts by its text.
    """
    asked: dict[str, Any] = {}
    for key, value in flat(cfg).items():
        if not key.startswith(NOT_ASKED):
            group, _, name = key.rpartition(".")
            (asked.setdefault(group, {}) if group else asked)[name] = value
    for f in fields(cfg):
        group = getattr(cfg, f.name)
        if hasattr(group, "asked"):
            asked[f.name] = group.asked()
    if not cfg.model.gradient:  # it is not tuned either
        del asked["train"]
        tuning = ("finetune_", "distill", "temperature")
        asked["prune"] = {k: v for k, v in asked["prune"].items() if not k.startswith(tuning)}
    if version := getattr(family_module(cfg.model.family), "VERSION", 0):
        asked["family_version"] = version
    return asked | {"code": own_digests(*_own_names(asked))}


def _own_names(asked: dict[str, Any]) -> list[str]:
    """Return all values that name somebody's own code, ``module:object``."""
    return like_own({group: of for group, of in asked.items() if group not in ("data", "tracking", "paths")})


def like_own(asked: Any) -> list[str]:
    """Return those values, of dictionaries in dictionaries, that look like names of somebody's own code."""
    if isinstance(asked, dict):
        return [name for value in asked.values() for name in like_own(value)]
    return [asked] if isinstance(asked, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[\w.]*", asked) else []


def flat(node: Any) -> dict[str, Any]:
    """Flatten nested dataclasses into dotted keys, as they are logged: ``{"prune.ratio": 0.3, ...}``."""
    out: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, f"{key}.{k}" if key else k)
        else:
            out[key] = value

    walk(asdict(node), "")
    return out


def redact(text: str) -> str:
    """Replace passwords in URLs by ``***``; of web addresses a user without one, too: a token."""
    text = re.sub(r"(://[^:/@\s]*:)\S+@", r"\1***@", text)  # SQLAlchemy takes passwords with a slash in them
    text = re.sub(r"(https?://)[^:/?#@\s]+@", r"\1***@", text, flags=re.I)
    return re.sub(rf"([?&;][\w-]*(?:{'|'.join(SECRETS)})=)[^&;\s]+", r"\1***", text, flags=re.I)


def first_line(said: BaseException | str) -> str:
    """The first line, without a password, of what may be long; of an error without words, its type."""
    lines = (" ".join(line.split()) for line in str(said).splitlines())
    return redact(next(filter(None, lines), "" if isinstance(said, str) else type(said).__name__))


def digest(content: Any) -> str:
    """Content address of anything JSON can hold: 16 hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
