"""Raw series, from `.ts` files or at hand: found, checked, made rectangular; nothing is scaled here.

Scaling, padding and resampling belong to the model (`models.Preprocess`), because they are part of what is
deployed and measured. This module only computes the statistics they need, from the train split alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tsexp import tasks
from tsexp.config import ConfigError, DataConfig
from tsexp.data import tsfile
from tsexp.data.archive import ensure

log = logging.getLogger(__name__)

FloatArray = np.ndarray[Any, np.dtype[np.float32]]

IntArray = np.ndarray[Any, np.dtype[np.int64]]

NONE_WITHHELD = (
    "no class has enough train series to withhold one (data.val_fraction): all are fitted on, the last "
    "weights are taken, and nothing can be chosen by validation"
)

LARGEST = 1e15
"""Of values: sums of their squares have to be finite in float32."""

SMALL = 0.1
"""Share of the raw values, without their signs, that is small: what `asinh` takes nearly as it is."""


@dataclass(frozen=True)
class Preprocessing:
    """What the model does to a raw series first; plain numbers, stored in ``arch.json``.

    Attributes
    ----------
    scale
        ``none``; ``znorm`` and ``minmax`` per series and channel; ``standard`` with `mean` and `std` of the
        train split; ``znorm_raw``: ``znorm``, and behind these channels as many of asinh(series / `unit`)
        (large values by their logarithm, in effect), with `mean` and `std` of that on the train split.
    length
        Time steps the network sees. Longer series are cropped, shorter ones padded, or all are resampled to
        it.
    resample
        Linear interpolation of every series to `length` instead of cropping and padding.
    masked
        The data has unequal lengths and is padded: attention and pooling must ignore the padding.
    mean, std
        Per channel, for ``standard`` and ``znorm_raw``; empty otherwise.
    unit
        Per channel, for ``znorm_raw``: what is small there; empty otherwise.
    """

    scale: str
    length: int
    resample: bool
    masked: bool
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()

    @property
    def signals(self) -> int:
        """How many channels the model sees of one of a series."""
        return 2 if self.scale == "znorm_raw" else 1

    @property
    def ragged(self) -> bool:
        """Series may have any length; shorter ones end in NaN."""
        return self.masked or self.resample

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Preprocessing:
        """Rebuild from the plain values of ``arch.json``."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**values)


@dataclass(frozen=True)
class Dataset:
    """A classification problem in its default train/test split.

    Attributes
    ----------
    name
        The archive's name.
    x_train, x_test
        float32, (series, channels, time), raw values; a shorter series ends in NaN.
    y_train, y_test
        int64, (series,), indices into `classes`.
    classes
        The labels, sorted.
    fit, val
        Indices into the train split: what is fitted on, and the stratified, seeded rest for model selection.
    preprocessing
        What the model has to do with the raw series.
    checksum
        SHA-256 over both files, or over the series and labels that were at hand.
    files
        Where they were found; what they are, if they were at hand.
    task
        What is learned from it (`tsexp.tasks`).
    """

    name: str
    x_train: FloatArray
    y_train: IntArray
    x_test: FloatArray
    y_test: IntArray
    classes: tuple[str, ...]
    fit: IntArray
    val: IntArray
    preprocessing: Preprocessing
    checksum: str
    files: tuple[str, str]
    task: str = "classification"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.x_train.shape[1])


def load(config: DataConfig, data_dir: str | Path, seed: int) -> Dataset:
    """Load a dataset with its default split.

    Parameters
    ----------
    config
        The ``data`` group.
    data_dir
        ``paths.data``: the first place looked in, and where a download goes.
    seed
        Of the validation split.

    Raises
    ------
    ConfigError
        If the dataset is nowhere, a file of it has no series or is otherwise not what it should be, has
        missing values and ``data.missing=error``, or cannot be split as asked.
    """
    files = ensure(config, data_dir)
    checksum = _checksum(files)
    train, test = (_read(file, config) for file in files)
    if _checksum(files) != checksum:
        raise ConfigError(f"{files[0]} or {files[1].name} changed while it was read; run it again")
    made = _made(config, train, test, files, seed, checksum)
    if config.val_fraction and not len(made.val):
        log.warning("%s: %s", config.name, NONE_WITHHELD)
    return made


def at_hand(config: DataConfig, series: Sequence[Any], labels: Sequence[str], seed: int) -> Dataset:
    """Make a dataset of train series that are in memory; its test split is empty.

    Parameters
    ----------
    config
        The ``data`` group; ``name`` is what it is called.
    series
        Numbers (channels, time), one array each; NaN is a missing value, or padding (`ended`).
    labels
        One each.
    seed
        Of the validation split.

    Raises
    ------
    ConfigError
        As `load`.
    """
    files = (f"train series of {config.name}", f"test series of {config.name}")
    train = filled(ended(series), config, files[0]), list(labels)
    checksum = hashlib.sha256(_content(*train)).hexdigest()
    return _made(config, train, ([], []), files, seed, checksum)


def with_test(dataset: Dataset, config: DataConfig, series: Sequence[Any], labels: Sequence[str]) -> Dataset:
    """Give a dataset another test split, of series that are in memory; what was trained stays what it is.

    Raises
    ------
    ConfigError
        If a series or a label does not go with the train split.
    """
    if not len(series):
        raise ConfigError(f"{dataset.files[1]}: there are none")
    x_test = filled(ended(series) if dataset.preprocessing.ragged else series, config, dataset.files[1])
    strange = sorted({s.shape[0] for s in x_test} - {dataset.channels})
    if strange:
        raise ConfigError(
            f"{dataset.files[1]}: {strange[0]} channels; the train series have {dataset.channels}"
        )
    unknown = sorted(set(labels) - set(dataset.classes))
    if unknown:
        raise ConfigError(f"{dataset.files[1]}: labels that train series do not have: {', '.join(unknown)}")
    return replace(
        dataset,
        x_test=stack(x_test),
        y_test=np.array([dataset.classes.index(label) for label in labels], np.int64),
        checksum=hashlib.sha256(dataset.checksum.encode() + _content(x_test, list(labels))).hexdigest(),
    )


def _content(series: list[FloatArray], labels: list[str]) -> bytes:
    about = json.dumps([[s.shape for s in series], labels]).encode()
    return hashlib.sha256(about + b"".join(s.tobytes() for s in series)).digest()


def _made(
    config: DataConfig,
    train: tuple[list[FloatArray], list[str]],
    test: tuple[list[FloatArray], list[str]],
    files: tuple[Any, Any],
    seed: int,
    checksum: str,
) -> Dataset:
    (x_train, labels_train), (x_test, labels_test) = train, test
    judge = tasks.named(Dataset.task)
    y_train, y_test, classes = judge.targets((labels_train, labels_test), files)
    channels = {s.shape[0] for s in (*x_train, *x_test)}
    if len(channels) > 1:
        raise ConfigError(
            f"{Path(files[0]).parent if x_test else files[0]}: series with "
            f"{' and '.join(map(str, sorted(channels)))} channels; all must have the same"
        )
    fit, val = _split(judge.strata(y_train), config.val_fraction, seed)
    return Dataset(
        name=config.name,
        x_train=stack(x_train),
        y_train=y_train,
        x_test=stack(x_test) if x_test else np.zeros((0, *x_train[0].shape), np.float32),
        y_test=y_test,
        classes=classes,
        fit=fit,
        val=val,
        preprocessing=_fitting_test(_preprocessing(config, x_train, fit), x_test, files[1]),
        checksum=checksum,
        files=(str(files[0]), str(files[1])),
    )


def _checksum(files: tuple[Path, Path]) -> str:
    try:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror})") from None


def read_one(file: Path, config: DataConfig) -> tuple[list[FloatArray], list[str]]:
    """Read one ``.ts`` file by itself, labelled or not.

    Parameters
    ----------
    file
        To read.
    config
        The ``data`` group; of it only ``missing`` counts.

    Returns
    -------
    list of array
        Its series, float32 (channels, time), without gaps; `stack` makes one array of them.
    list of str
        Their labels, empty where there is none.

    Raises
    ------
    ConfigError
        As `load` does, of this file.
    """
    return _read(file, config, labelled=False)


def _read(file: Path, config: DataConfig, labelled: bool = True) -> tuple[list[FloatArray], list[str]]:
    """Return the series of one file, without gaps, and their labels."""
    raw, labels = tsfile.read(file, labelled)
    return filled(raw, config, str(file)), labels


def filled(series: Iterable[Any], config: DataConfig, where: str) -> list[FloatArray]:
    """Return series as float32 (channels, time) without gaps, or refuse what cannot be filled.

    Parameters
    ----------
    series
        Numbers (channels, time), one array each; NaN is a missing value.
    config
        The ``data`` group.
    where
        They are from: errors begin with it.

    Raises
    ------
    ConfigError
        If there are infinite values or some beyond `LARGEST`, a channel has no value, or any is missing and
        ``data.missing=error``.

    Warns
    -----
    UserWarning
        If a channel varies so little around its level that float32 does not keep its shape.
    """
    series = [np.asarray(x) for x in series]
    _tell_of_levels(series, where)
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        return [
            _fill(np.asarray(x, np.float32), config, f"{where}, series {i}") for i, x in enumerate(series)
        ]


def ended(series: Iterable[Any], least: int = 2) -> list[Any]:
    """Cut series (channels, time) where all channels are NaN to the end.

    So one array holds series of unequal length. So many steps of each stay, and all of one without any value.
    """
    cut = []
    for one in map(np.asarray, series):
        there = np.flatnonzero(~np.isnan(one.astype(np.float64)).all(0))
        cut.append(one[:, : max(least, there[-1] + 1)] if len(there) else one)
    return cut


def _tell_of_levels(series: list[Any], where: str) -> None:
    """Warn of the first channel of which float32 keeps less than 256 steps between smallest and largest."""
    for i, x in enumerate(series):
        if x.dtype == np.float32 or x.dtype.itemsize < 4 or x.dtype.kind not in "fiu" or not x.size:
            continue
        with np.errstate(invalid="ignore"):  # gaps; infinite ones are refused
            low, high = (end.reduce(x, -1).astype(np.float64) for end in (np.fmin, np.fmax))
            flat = (high > low) & (high - low < np.maximum(abs(low), abs(high)) * 2.0**-16)
        for channel in np.flatnonzero(flat):
            warnings.warn(
                f"{where}, series {i}: channel {channel} varies by {high[channel] - low[channel]:.3g} around "
                f"{low[channel]:.10g}, which float32 hardly keeps; subtract a constant first",
                stacklevel=3,
            )
            return


def _fill(series: FloatArray, config: DataConfig, where: str) -> FloatArray:
    """Interpolate missing values of one (channels, time) series linearly; the ends take the nearest value."""
    if np.isinf(series).any():
        raise ConfigError(
            f"{where}: infinite values, or some that float32 cannot hold; remove or replace them"
        )
    if (np.abs(series) > LARGEST).any():
        raise ConfigError(
            f"{where}: values beyond ±{LARGEST:g}, sums of whose squares float32 may not hold; divide all "
            "series by the same number"
        )
    gaps = np.isnan(series)
    if not gaps.any():
        return series
    if config.missing == "error":
        raise ConfigError(f"{where}: {int(gaps.sum())} missing values; data.missing=interpolate fills them")
    series, time = series.copy(), np.arange(series.shape[1])
    for channel, gap in zip(series, gaps, strict=True):
        if gap.all():
            raise ConfigError(f"{where}: a channel without a single value; remove the series or the channel")
        channel[gap] = np.interp(time[gap], time[~gap], channel[~gap])
    return series


def stack(series: list[FloatArray]) -> FloatArray:
    """Stack (channels, time) series of unequal length; NaN marks the padding."""
    out = np.full((len(series), series[0].shape[0], max(s.shape[1] for s in series)), np.nan, np.float32)
    for row, s in zip(out, series, strict=True):
        row[:, : s.shape[1]] = s
    return out


def _split(y: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    from sklearn.model_selection import train_test_split

    every = np.arange(len(y), dtype=np.int64)
    if fraction == 0:
        return every, every[:0]
    counts = np.bincount(y)
    # A class of which one series were more than twice the share stays where it is fitted on.
    small = counts < max(2, 1 / (2 * fraction))
    rest, classes = every[~small[y]], int((counts[~small] > 0).sum())
    if not classes:
        return every, rest
    size = max(round(fraction * len(rest)), classes)
    if size > len(rest) - classes:
        raise ConfigError(
            f"data.val_fraction={fraction} leaves no series of some class to fit on ({len(y)} train series); "
            "lower it or use 0"
        )
    fit, val = train_test_split(rest, test_size=size, stratify=y[rest], random_state=seed)
    if set(y[rest]) - set(y[fit]):
        raise ConfigError(
            f"data.val_fraction={fraction} leaves the smallest class no series to fit on; lower it or use 0"
        )
    return np.sort(np.concatenate([fit, every[small[y]]])), np.sort(val)


def _preprocessing(config: DataConfig, train: list[FloatArray], fit: IntArray) -> Preprocessing:
    """Fit it to train series alone: what is trained does not depend on how long test series are."""
    lengths = {s.shape[1] for s in train}
    resample = config.length is not None or (config.unequal == "resample" and len(lengths) > 1)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    unit: tuple[float, ...] = ()
    if config.scale in ("standard", "znorm_raw"):
        values = np.concatenate([train[i] for i in fit], axis=1).astype(np.float64)
        if config.scale == "znorm_raw":
            unit = tuple(map(small_of, np.abs(values)))
            values = np.arcsinh(values / np.array(unit)[:, None])
        mean = tuple(map(float, values.mean(1)))
        rounding = np.minimum(1e-8, 1e-6 * np.abs(values).max(1))  # of a constant, in whatever unit
        std = tuple(float(v) if v > r else 1.0 for v, r in zip(values.std(1), rounding, strict=True))
    return Preprocessing(
        scale=config.scale,
        length=config.length or max(s.shape[1] for s in train),
        resample=resample,
        masked=not resample and len(lengths) > 1,
        mean=mean,
        std=std,
        unit=unit,
    )


def _fitting_test(made: Preprocessing, test: list[FloatArray], where: Any) -> Preprocessing:
    """Return it, unless it refuses a test series, as it would a stranger's."""
    strange = [] if made.ragged else [s.shape[1] for s in test if s.shape[1] != made.length]
    if strange:
        raise ConfigError(
            f"{where}: a series of {strange[0]} steps; all train series have {made.length}, and what is "
            f"trained on them takes no others; data.length={made.length} resamples"
        )
    return made


def small_of(sizes: FloatArray) -> float:
    """What is a small one of these absolute values; 1 where all are zero."""
    sizes = sizes[sizes > 0]  # nor where there are none
    # So large a range that the ratio were infinite is left.
    return max(float(np.quantile(sizes, SMALL)), 1e-30 * float(sizes.max())) if len(sizes) else 1.0
