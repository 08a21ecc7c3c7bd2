"""The descriptions of what is built on features: plain values, no torch, no pickle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import psutil
from omegaconf import MISSING

from tsexp.config import ConfigError, ModelConfig, number
from tsexp.data import Dataset
from tsexp.models.arch import BaseArch
from tsexp.models.transformer.arch import Block, uneven

SOURCES = (
    *(f"intervals.{signal}" for signal in ("values", "changes", "spectrum", "raw")),
    *(f"kernels.{signal}" for signal in ("values", "changes")),
    "scale",
)
"""What is described of which signal: of the scaled series, its changes over steps, the logarithm of its
amplitude spectrum; and of the raw series, where scaling takes away what may tell classes apart
(`levels_differ`)."""
DIFFERENT = 0.05
"""Levels or spreads of series that vary by more, in spreads, differ."""
KERNELS = 84
"""MiniROCKET's, of 9 steps: all ways to weigh three with 2 and six with -1."""
REACH = 9
NARROWEST = 6
"""Values of the finest intervals."""
SHORTEST = 2
"""Steps of a series: there must be a difference."""
LAG = 5
"""Steps between the values whose difference is a change, or fewer in shorter series: what QUANT gets by
averaging five differences, for those of neighbours are mostly noise where a signal is sampled finely."""

BYTES = 8
"""Of a feature in fp32, when the parts that were described are joined."""

PLACES = 256
"""Where a kernel looks at a signal, at least, unless there are fewer."""


@dataclass
class FeatureConfig(ModelConfig):
    """The ``model`` group of anything on features."""

    levels: int = number(ge=1, le=8)
    value_bins: int = number(ge=1)
    kernel_bins: int = number(ge=1)

    def auto_scale(self) -> str:
        """They see by themselves what scaling takes away."""
        return "znorm"


@dataclass
class Config(FeatureConfig):
    """The ``model`` group of a transformer on features."""

    views: list[list[str]] = field(default=MISSING)
    d_model: int = number(ge=2)
    layers: int = number(ge=1)
    heads: int = number(ge=1)
    ffn: int = number(ge=1)
    dropout: float = number(ge=0, lt=1)
    seen_tokens: int = number(ge=1)
    kept: float = number(gt=0, le=1)

    def packages(self) -> tuple[str, ...]:
        """What chooses features, if they are chosen."""
        return ("scikit-learn",) if self.kept < 1 else ()

    def asked(self) -> dict[str, Any]:
        """Return all keys; what there was no other value of once goes unsaid."""
        return {k: v for k, v in asdict(self).items() if (k, v) != ("kept", 1)}

    def problems(self) -> list[str]:
        """Views of known features, heads that share the width evenly."""
        named = [name for view in self.views for name in view]
        found = misnamed("model.views", named)
        if not named or any(set(view) <= {"scale", "intervals.raw"} for view in self.views):
            found.append(
                "model.views must be one list per view, each with some intervals or kernels of another "
                "signal than raw"
            )
        return found + uneven(self.heads, self.d_model)


def misnamed(key: str, named: list[str]) -> list[str]:
    """Return what is wrong with names of features, one line each."""
    unknown = [name for name in named if name not in SOURCES]
    twice = [name for name in SOURCES if named.count(name) > 1]
    return [f"{key} names {name}, which is not known; allowed: {', '.join(SOURCES)}" for name in unknown] + [
        f"{key} names {name} twice; once is enough" for name in twice
    ]


@dataclass(frozen=True)
class Source:
    """One kind of features of one signal.

    Attributes
    ----------
    name
        ``intervals.SIGNAL``: a token per interval of it, which says how its values are distributed there;
        ``kernels.SIGNAL``: a token per scale, which says so of the responses to all kernels;
        ``scale``: one token of what scaling takes away.
    tokens
        Which of them there are: intervals, coarse to fine and left to right, or scales, fine to coarse.
    kernels
        Which of MiniROCKET's 84 there are; of ``kernels`` only.
    """

    name: str
    tokens: tuple[int, ...]
    kernels: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """``intervals``, ``kernels`` or ``scale``."""
        return self.name.split(".")[0]

    @property
    def signal(self) -> str:
        """What is described."""
        return self.name.split(".")[-1]


@dataclass(frozen=True)
class FeatureArch(BaseArch):
    """Of anything on features.

    Attributes
    ----------
    views
        What is described; of a transformer, each is encoded by itself and answers by itself.
    value_bins, kernel_bins
        Into how many, of about equal size, the values of a signal and the responses to a kernel fall.
    """

    views: tuple[tuple[Source, ...], ...]
    value_bins: int
    kernel_bins: int

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        views = tuple(
            tuple(Source(s["name"], tuple(s["tokens"]), tuple(s["kernels"])) for s in view)
            for view in raw["views"]
        )
        return super().from_dict(raw | {"views": views})

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of all views, in order."""
        return tuple(source for view in self.views for source in view)

    def numbers(self, source: Source) -> int:
        """Features of a token."""
        if source.kind == "scale":
            return 4 * self.channels
        if source.kind == "kernels":
            return len(source.kernels) * self.kernel_bins
        return self.channels * self.value_bins

    @property
    def width(self) -> int:
        """Features of a series."""
        return sum(len(s.tokens) * self.numbers(s) for s in self.sources)

    def check(self, dataset: Dataset) -> Self:
        """Return this, if the features of all fit series may find room in memory.

        Raises
        ------
        ConfigError
            If not even they do; fitting wants more.
        """
        needed, there = BYTES * self.width * len(dataset.fit), psutil.virtual_memory().total
        if needed > there:
            raise ConfigError(
                f"{len(dataset.fit):,} series of {self.channels:,} channels have {self.width:,} features "
                f"each, which takes {needed / 2**30:,.0f} GiB of memory at least; there are "
                f"{there / 2**30:,.0f}. Smaller model.value_bins and model.levels make them fewer"
            )
        return self


@dataclass(frozen=True)
class Arch(FeatureArch):
    """Of a transformer on features.

    Attributes
    ----------
    d_model, head_dim, blocks, dropout
        Of the encoder, as in `transformer.Arch`.
    seen_tokens
        Tokens of a view that a training step sees: at most so many, at most half of them, at least four.
    kept
        Share of kernels and tokens that is left before training: of a fitted model, `views` are what is left.
    """

    d_model: int
    head_dim: int
    blocks: tuple[Block, ...]
    dropout: float
    seen_tokens: int
    norm: str = "pre"
    activation: str = "gelu"
    kept: float = 1.0

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Rebuild from the plain values of ``arch.json``."""
        return super().from_dict(raw | {"blocks": tuple(Block(**b) for b in raw["blocks"])})


def signal_length(signal: str, length: int) -> int:
    """Values of a signal of a series of this length."""
    if signal == "changes":
        return length - lag_of(length)
    return length if signal in ("values", "raw") else fourier_points(length) ** 2 // 2 + 1


def lag_of(length: int) -> int:
    """Steps between the values whose difference is a change."""
    return min(LAG, length - 1)


def fourier_points(length: int) -> int:
    """The square root of the number of points of the Fourier transform, rounded up."""
    return next(n for n in range(2, length + 2) if n * n >= length)


def step_of(length: int) -> int:
    """Steps from one place that a kernel looks at to the next."""
    return max(1, length // PLACES)


def levels_of(length: int, most: int) -> int:
    """How often an interval can be halved, the whole counted, down to `NARROWEST` values."""
    return max(1, sum(length >= NARROWEST << level for level in range(most)))


def scales_of(length: int) -> int:
    """How often a signal can be halved, as it is counted, and still be as long as a kernel."""
    return max(1, sum(length >> scale >= REACH for scale in range(length.bit_length())))


def levels_differ(dataset: Dataset) -> bool:
    """Whether each series is scaled by itself, and that takes away levels or spreads that differ."""
    if dataset.preprocessing.scale not in ("znorm", "minmax"):
        return False
    series = dataset.x_train[dataset.fit].astype(np.float64)
    levels, spreads = np.nanmean(series, -1), np.nanstd(series, -1)  # (series, channels)
    vary = np.maximum(levels.std(0), spreads.std(0))
    return bool((vary > DIFFERENT * spreads.mean(0)).any())


def sources(config: FeatureConfig, views: list[list[str]], dataset: Dataset) -> dict[str, Any]:
    """Fit features to a dataset: the fields of `FeatureArch`.

    Raises
    ------
    ConfigError
        If its series are too short.
    """
    length = dataset.preprocessing.length
    if length < SHORTEST:
        raise ConfigError(
            f"model={config.name} takes series of at least {SHORTEST} steps, those of {dataset.name} have "
            f"{length}; data.length resamples them to more"
        )

    def source(name: str) -> Source:
        kind, _, signal = name.partition(".")
        if kind == "scale":
            return Source(name, (0,))
        size = signal_length(signal, length)
        if kind == "intervals":
            return Source(name, tuple(range(2 ** levels_of(size, config.levels) - 1)))
        return Source(name, tuple(range(scales_of(size))), tuple(range(KERNELS)))

    differ = levels_differ(dataset)
    return {
        "views": tuple(
            tuple(source(name) for name in view if differ or name != "intervals.raw") for view in views
        ),
        "value_bins": config.value_bins,
        "kernel_bins": config.kernel_bins,
    }


def architecture(config: Config, dataset: Dataset) -> Arch:
    """Fit a model configuration to a dataset."""
    return Arch.of(
        dataset,
        **sources(config, config.views, dataset),
        d_model=config.d_model,
        head_dim=config.d_model // config.heads,
        blocks=(Block(config.heads, config.ffn),) * config.layers,
        dropout=config.dropout,
        seen_tokens=config.seen_tokens,
        kept=config.kept,
    ).check(dataset)
