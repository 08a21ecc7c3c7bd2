"""The configuration: typed schema, and every range checked before any work starts.

The YAML files in ``conf/`` hold the values; the dataclasses here hold the types (Hydra merges the files onto
them, so a misspelt key or a wrong type is refused while composing) and, as field metadata, what is allowed.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import operator
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_FACTORY
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

PLUGINS = {
    "hydra/sweeper/optuna": ("Hydra's Optuna sweeper, which searches,", "optuna"),
    "hydra/launcher/joblib": ("Hydra's joblib launcher, which runs jobs in parallel,", "parallel"),
}
"""Options of plugins → what they are, and the package's extra that brings them."""

SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

NOT_ASKED = (
    "rerun",
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


class ConfigError(ValueError):
    """Bad input. The message says what was wrong, what is allowed and what to do."""


class Unsupported(ConfigError):
    """A combination that nobody can run.

    Alone it is refused; in a sweep it is skipped, and the sweep succeeds.
    """


def _choice(*allowed: str, own: bool = False) -> Any:
    return field(default=MISSING, metadata={"allowed": allowed, "own": own})


def _number(
    *, ge: float | None = None, gt: float | None = None, le: float | None = None, lt: float | None = None
) -> Any:
    bounds = {"≥": ge, ">": gt, "≤": le, "<": lt}
    return field(default=MISSING, metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}})


@dataclass
class DataConfig:
    """A dataset and how its raw series reach the model."""

    name: str = MISSING
    path: str | None = MISSING
    scale: str = _choice("none", "znorm", "minmax", "standard")
    unequal: str = _choice("pad", "resample")
    length: int | None = _number(ge=8)
    missing: str = _choice("interpolate", "error")
    val_fraction: float = _number(ge=0, lt=0.9)


@dataclass
class ModelConfig:
    """A transformer classifier; `models.architecture` turns it into an `Arch` for a dataset."""

    name: str = MISSING
    tokenizer: str = _choice("patch", "conv_stem", own=True)
    patch: int = _number(ge=1)
    d_model: int = _number(ge=2)
    layers: int = _number(ge=1)
    heads: int = _number(ge=1)
    ffn: int = _number(ge=1)
    dropout: float = _number(ge=0, lt=1)
    token_dropout: float = _number(ge=0, lt=1)
    norm: str = _choice("pre", "post")
    activation: str = _choice("relu", "gelu")
    position: str = _choice("sinusoidal", "learned")
    pooling: str = _choice("cls", "mean")
    head: str = _choice("linear", "bottleneck")


@dataclass
class TrainConfig:
    """How a model is fitted."""

    epochs: int = _number(ge=1)
    max_steps: int = _number(ge=0)
    lr: float = _number(gt=0)
    batch_size: int = _number(ge=1)
    optimizer: str = _choice("adam", "adamw")
    weight_decay: float = _number(ge=0)
    schedule: str = _choice("none", "cosine")
    warmup: float = _number(ge=0, lt=1)
    label_smoothing: float = _number(ge=0, lt=1)
    ema: float = _number(ge=0, lt=1)
    clip: float = _number(ge=0)
    select: str = _choice("best", "last")
    patience: int = _number(ge=0)
    device: str = _choice("cpu", "cuda")
    threads: int = _number(ge=1)
    progress: bool = MISSING


@dataclass
class PruneConfig:
    """Which heads, FFN units and blocks go, and how the rest is tuned afterwards."""

    method: str = _choice("l1", "l2", "random", "taylor", own=True)
    scope: str = _choice("local", "global", "depth")
    ratio: float = _number(ge=0, lt=1)
    round_to: int = _number(ge=1)
    calibration_series: int = _number(ge=1)
    finetune_epochs: int = _number(ge=0)
    finetune_lr: float = _number(gt=0)
    distill: float = _number(ge=0, le=1)
    temperature: float = _number(gt=0)


@dataclass
class QuantConfig:
    """The number format of the deployed artifact. Which modes a runtime has, the runtime says."""

    mode: str = _choice("none", "dynamic", "static", "qat", "weight_only", "bf16")
    calibration: str = _choice("minmax", "percentile", "entropy")
    calibration_series: int = _number(ge=1)
    qat_epochs: int = _number(ge=1)
    qat_lr: float = _number(gt=0)
    weight_bits: int = field(default=MISSING, metadata={"allowed": (4, 8)})


@dataclass
class RuntimeConfig:
    """What executes the artifact."""

    name: str = field(default=MISSING, metadata={"own": True})
    device: str = _choice("cpu", "cuda")


@dataclass
class MeasureConfig:
    """The window protocol."""

    batch_size: int = _number(ge=1)
    repeats: int = _number(ge=2)
    processes: int = _number(ge=2)
    target_pct: float | None = _number(gt=0)
    window_s: float = _number(gt=0, le=30)
    idle_s: float = _number(gt=0, le=30)
    latency_calls: int = _number(ge=20)
    threads: int = _number(ge=1)
    meter: str = _choice("auto", own=True)
    watts_per_core: float = _number(gt=0)
    require: str = _choice("any", "measured")
    timeout_s: float = _number(gt=0)


@dataclass
class PathsConfig:
    """Where data is looked for and where results go; relative to the working directory."""

    data: str = MISSING
    cache: str = MISSING
    report: str = MISSING


@dataclass
class TrackingConfig:
    """The MLflow store."""

    uri: str = MISSING
    experiment: str = MISSING


@dataclass
class Config:
    """Everything an experiment depends on; `parse` makes it from what Hydra composed."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = _number(ge=0, lt=2**32)
    rerun: bool = MISSING


def conf_dir() -> Path:
    """Folder of the shipped YAML files: inside an installed package, else ``conf/`` of the checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def register() -> None:
    """Make the schema known to Hydra as the config named ``schema``."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


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
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(f"{key} has no value; give it on the command line, e.g. {key}=...") from None
    assert isinstance(config, Config)
    problems = _problems(config)
    scheme = config.tracking.uri.split(":")[0].split("+")[0]
    if scheme not in SCHEMES:
        problems.append(
            f"tracking.uri={redact(config.tracking.uri)} is not a store MLflow takes; allowed: "
            f"{', '.join(f'{s}:...' for s in SCHEMES)}"
        )
    m = config.model
    if m.d_model % m.heads:
        good = [h for h in range(1, m.d_model + 1) if m.d_model % h == 0 and h <= 16]
        problems.append(
            f"model.heads={m.heads} does not divide model.d_model={m.d_model}; allowed here: "
            f"{', '.join(map(str, good))}"
        )
    if m.position == "sinusoidal" and m.d_model % 2:
        problems.append(
            f"model.position=sinusoidal needs an even model.d_model, not {m.d_model}; use position=learned "
            f"or an even width"
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
    if problems:
        raise ConfigError("\n".join(problems))
    paths = PathsConfig(
        **{
            f.name: str(Path(getattr(config.paths, f.name)).expanduser().absolute())
            for f in fields(PathsConfig)
        }
    )
    data = (
        replace(config.data, path=str(Path(config.data.path).expanduser().absolute()))
        if config.data.path
        else config.data
    )
    return replace(
        config,
        paths=paths,
        data=data,
        tracking=replace(config.tracking, uri=_absolute_uri(config.tracking.uri)),
    )


def explain(error: BaseException) -> str:
    """Tell an error of Hydra or OmegaConf in a line.

    What is allowed where a key is wrong, else the part of the message that is for people.
    """
    for option, (what, extra) in PLUGINS.items():
        if f"Could not find '{option}'" in str(error):
            return f"{what} is not installed; install it: pip install 'tsexp[{extra}]'"
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if (
        isinstance(cause, ConfigKeyError | ConfigAttributeError)
        and cause.full_key
        and cause.parent_node is not None
    ):
        group, _, key = cause.full_key.rpartition(".")
        known = sorted(map(str, cause.parent_node.keys()))
        return f"{cause.full_key} is not a key; allowed in {group or 'the configuration'}: {', '.join(known)}{suggest(key, known)}"
    lines = [line.strip() for line in str(error).split("Config search path:")[0].splitlines()]
    lines += [str(cause).splitlines()[0]] if cause is not None and str(cause) else []
    kept = [
        line
        for line in lines
        if line and not line.startswith(("full_key", "reference_type", "object_type", "To append"))
    ]
    return "\n  ".join(dict.fromkeys(kept))


def _unknown(node: DictConfig, schema: Any, prefix: str = "") -> list[str]:
    """Keys that were added with ``+``: nothing reads them."""
    nested = {f.name: f.default_factory for f in fields(schema) if f.default_factory is not NO_FACTORY}
    known = [f.name for f in fields(schema)]
    found = [
        f"{prefix}{k} is not a key; allowed: {', '.join(known)}{suggest(k, known)}"
        for k in map(str, node)
        if k not in known
    ]
    for name, factory in nested.items():
        found += _unknown(node[name], factory, f"{prefix}{name}.")
    return found


def _absolute_uri(uri: str) -> str:
    prefix = "sqlite:///"
    return f"{prefix}{Path(uri.removeprefix(prefix)).absolute()}" if uri.startswith(prefix) else uri


def _problems(node: Any, prefix: str = "") -> list[str]:
    found = []
    for f in fields(node):
        key, value = f"{prefix}{f.name}", getattr(node, f.name)
        if is_dataclass(value):
            found += _problems(value, f"{key}.")
        elif f.metadata.get("own") and ":" in value:
            found += _unreachable(key, value)
        elif "allowed" in f.metadata and value not in f.metadata["allowed"]:
            allowed = [str(a) for a in f.metadata["allowed"]]
            own = ", or your own as module:object" if f.metadata.get("own") else ""
            found.append(
                f"{key}={value} is not known; allowed: "
                f"{', '.join(allowed)}{own}{suggest(str(value), allowed)}"
            )
        elif "bounds" in f.metadata and value is not None:
            holds = {"≥": operator.ge, ">": operator.gt, "≤": operator.le, "<": operator.lt}
            if not all(holds[relation](value, bound) for relation, bound in f.metadata["bounds"].items()):
                found.append(
                    f"{key}={value} is out of range; allowed: "
                    f"{' and '.join(f'{k} {v:g}' for k, v in f.metadata['bounds'].items())}"
                )
    return found


def _unreachable(key: str, name: str) -> list[str]:
    try:
        look_up(name, {})
    except Exception as error:  # whatever somebody's module raises
        return [
            f"{key}={name} cannot be imported ({type(error).__name__}: {error}); it is read as "
            f"module:object, "
            "and the module is looked for in the working folder, in PYTHONPATH and among the installed "
            "packages"
        ]
    return []


def look_up(name: str, table: Mapping[str, Any]) -> Any:
    """Return what a name stands for.

    An entry of `table`, or somebody's own code, ``module:object`` (``module:`` for the module itself).
    """
    return pkgutil.resolve_name(name) if ":" in name else table[name]


def own_code(*names: str) -> dict[str, Path]:
    """Return name → the file of its module, for those names that are somebody's own code."""
    own = {name: look_up(f"{name.split(':')[0]}:", {}) for name in names if ":" in name}
    return {name: Path(module.__file__) for name, module in own.items()}


def own_digests(*names: str) -> dict[str, str]:
    """Return name → digest of its module's text, for those names that are somebody's own code.

    Changed code makes another result.
    """
    return {name: digest(file.read_text()) for name, file in own_code(*names).items()}


def suggest(word: str, known: Any) -> str:
    """Return ``' (did you mean X?)'`` when a known word is close, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def identity(cfg: Config) -> dict[str, Any]:
    """Return what a result depends on, of everything that was asked.

    One spelling for configurations that ask for the same.

    Cache, store and report know an experiment by this and by nothing else. Own code counts by its text.
    """
    asked: dict[str, Any] = {}
    for key, value in flat(cfg).items():
        if not key.startswith(NOT_ASKED):
            group, _, name = key.rpartition(".")
            (asked.setdefault(group, {}) if group else asked)[name] = value
    asked |= {"prune": asked_of_pruning(cfg.prune), "quant": asked_of_quantization(cfg.quant)}
    code = own_digests(
        cfg.model.tokenizer, cfg.runtime.name, *([cfg.prune.method] if cfg.prune.ratio else [])
    )
    return asked | {"code": code}


def asked_of_training(train: TrainConfig) -> dict[str, Any]:
    """Return the part of the ``train`` group that the weights depend on."""
    return {k: v for k, v in asdict(train).items() if f"train.{k}" not in NOT_ASKED}


def asked_of_pruning(prune: PruneConfig) -> dict[str, Any]:
    """Return the part of the ``prune`` group that the weights depend on: nothing at ratio 0."""
    if prune.ratio == 0:
        return {}
    idle = set() if prune.method == "taylor" or ":" in prune.method else {"calibration_series"}
    idle |= set() if prune.finetune_epochs else {"finetune_lr", "distill", "temperature"}
    idle |= set() if prune.distill else {"temperature"}
    return {k: v for k, v in asdict(prune).items() if k not in idle}


CALIBRATED = ("static", "qat")
"""Modes whose ranges of activations come from train series."""


def asked_of_quantization(quant: QuantConfig) -> dict[str, Any]:
    """Return the part of the ``quant`` group that matters for its mode."""
    matters: dict[str, Any] = {"mode": quant.mode}
    if quant.mode in CALIBRATED:
        matters |= {"calibration": quant.calibration, "calibration_series": quant.calibration_series}
    if quant.mode == "qat":
        matters |= {"qat_epochs": quant.qat_epochs, "qat_lr": quant.qat_lr}
    if quant.mode == "weight_only":
        matters |= {"weight_bits": quant.weight_bits}
    return matters


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
    """Replace passwords in URLs by ``***``."""
    text = re.sub(r"(://[^:/@\s]*:)[^\s/]+@", r"\1***@", text)
    return re.sub(r"([?&](?:password|pwd|token)=)[^&\s]+", r"\1***", text)


def digest(content: Any) -> str:
    """Content address of anything JSON can hold: 16 hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
