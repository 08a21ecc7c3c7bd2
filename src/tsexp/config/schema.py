"""The typed schema of a configuration: its keys, and what is allowed for each by itself.

The YAML files in ``conf/`` hold the values; the dataclasses here hold the types (Hydra merges the files onto
them, so a misspelt key or a wrong type is refused while composing) and, as field metadata, what is allowed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from omegaconf import MISSING

from tsexp.config.own import look_up

MODES = ("none", "dynamic", "static", "qat", "weight_only", "bf16")
"""Number formats, in the order in which they are shown."""

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
    processes: int = number(ge=4)
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
    diff: bool = False


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


def family_module(name: str) -> Any:
    """Return the module of a family of models (`tsexp.models.family` says what it holds)."""
    return look_up(f"{FAMILIES[name]}:" if name in FAMILIES else name, {})


def like(family: str) -> str:
    """Return the family that runtimes and steps treat this one as: its module may say so in ``LIKE``."""
    return str(getattr(family_module(family), "LIKE", family))
