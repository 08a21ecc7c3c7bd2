"""The experiment's stages as a classifier of aeon: fitted on arrays, asked with arrays, measured if wanted.

A face and nothing more: parameters become overrides of the configuration, `fit` is `pipeline.make`,
predictions are the artifact's, and ``report(X, y)`` is `pipeline.judge`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, finalize

import numpy as np
from aeon.classification.base import BaseClassifier
from aeon.utils.validation import check_n_jobs
from sklearn.utils import check_random_state

from tsexp import config as configs
from tsexp.config import Config, ConfigError, Unsupported
from tsexp.marks import products
from tsexp.system import alive
from tsexp.system.files import check_new
from tsexp.system.guest import guest

if TYPE_CHECKING:  # PyTorch, which a parameter grid need not wait for
    from tsexp.cache import Cache
    from tsexp.data import Dataset, FloatArray
    from tsexp.pipeline import Made
    from tsexp.runtimes import Artifact, Predictor

Report = dict[str, Any]

KEYS = {
    "model": "model",
    "prune_ratio": "prune.ratio",
    "prune_scope": "prune.scope",
    "prune_method": "prune.method",
    "finetune_epochs": "prune.finetune_epochs",
    "quant_mode": "quant.mode",
    "runtime": "runtime",
    "epochs": "train.epochs",
    "scale": "data.scale",
    "batch_size": "measure.batch_size",
    "progress": "train.progress",
}
"""Parameter → what it sets."""
LEFT = ("finetune_epochs", "epochs")
"""Parameters that may be None, which leaves them to the configuration."""

ELSEWHERE = {key: name for name, key in KEYS.items()} | {
    "seed": "random_state",
    "measure.threads": "n_jobs",
    "paths.cache": "cache",
}
"""What `overrides` must not set → the parameter that does."""

UNREAD = ("data", "data.name", "data.path", "experiment", "hydra", "paths", "rerun", "tracking", "variant")
"""Keys, or groups, of the configuration that nothing here reads."""

_fitting = threading.Lock()
"""Hydra and PyTorch's generator are the process's: its threads fit one after the other, and so do they load
what is fitted, for a network draws weights before it takes its own."""


@dataclass(frozen=True, eq=False)
class Shipped:
    """An artifact in memory: it goes wherever its classifier is copied, pickled or sent.

    Attributes
    ----------
    files
        Name, below the folder → content.
    """

    files: dict[str, bytes]

    @property
    def manifest(self) -> dict[str, Any]:
        """What is in the folder (`runtimes.Artifact`)."""
        return json.loads(self.files["manifest.json"])  # type: ignore[no-any-return]

    def write(self, folder: Path) -> None:
        """Write the files into an existing folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@dataclass(frozen=True)
class _Kept:
    """What measuring takes beside the artifact: the series, and the cache with all models."""

    cfg: Config
    dataset: Dataset
    cache: Cache
    made: Made
    artifact: Artifact


# By artifact, so that copies start without, and a classifier that is fitted again forgets.
_kept: WeakKeyDictionary[Shipped, _Kept] = WeakKeyDictionary()
_loaded: WeakKeyDictionary[Shipped, Callable[[FloatArray], FloatArray]] = WeakKeyDictionary()


class CompressedTransformerClassifier(BaseClassifier):  # type: ignore[misc]
    """Train a time series classifier, compress it, and answer with what would be deployed.

    Parameters mirror the configuration of ``python -m tsexp``, and so do their defaults: nothing is
    compressed unless asked for. What has no parameter is set by `overrides`. Bad values are refused by `fit`,
    in one line.

    Parameters
    ----------
    model
        ``t1`` to ``t4``, ``t4h``, ``ridge``, ``fcn``, ``resnet``, ``inceptiontime``, ``litetime``,
        ``minirocket``, ``multirocket_hydra``, ``quant_forest``, ``dtw_1nn``.
    prune_ratio
        Share of what `prune_scope` names that is removed, 0 ≤ ratio < 1.
    prune_scope
        ``local``, ``global``, ``depth``; of ``t4`` and ``t4h`` also ``features``, ``all``, the only ones of
        ``ridge``.
    prune_method
        ``l1``, ``l2``, ``random``, ``taylor``, or your own as ``module:function``.
    finetune_epochs
        After pruning; None: the configuration's (30).
    quant_mode
        ``none``, ``dynamic``, ``static``, ``qat``, ``weight_only``, ``bf16``.
    runtime
        ``eager``, ``inductor``, ``onnxruntime``, ``openvino``; ``auto``: the fastest that keeps the accuracy
        on validation series.
    epochs
        None: the recipe of the model. Its bounds on optimizer steps hold, too.
    scale
        Of raw series: ``none``; ``znorm``, ``minmax`` per series and channel; ``standard`` per channel, by
        the train series; ``znorm_raw``: ``znorm`` and, beside it, the raw series (plain transformers,
        convolutional nets); ``auto``: ``znorm`` for networks, ``none`` for estimators, as they were
        published.
    batch_size
        Series per call of the artifact, in prediction as in measurement. With 1, what one series is answered
        does not depend on others, in any number format.
    overrides
        Further overrides, e.g. ``("train.lr=5e-4", "model.layers=2")``.
    cache
        Folder in which trained models are found again. None: a temporary one, which goes with the classifier.
    progress
        Show what is being trained or measured, on stderr.
    n_jobs
        Threads of prediction and measurement; no more measure than there are cores. What is learned does not
        depend on it: training has threads of its own (``train.threads``), of which small models want one.
    random_state
        Seed of the validation split, the weights, the batches, the pruning and the measurement's order.
        None: a new one from NumPy's generator in each `fit`.

    Attributes
    ----------
    artifact_
        `Shipped`: the files of the artifact, with its manifest.
    seed_
        That was used.

    Notes
    -----
    A class of so few train series that one were more than twice its share of the validation split
    (``data.val_fraction``) keeps them all. Where all classes do, the last weights are taken; a `UserWarning`
    says so.

    Examples
    --------
    >>> from aeon.datasets import load_italy_power_demand
    >>> from tsexp import CompressedTransformerClassifier
    >>> X, y = load_italy_power_demand(split="train")
    >>> classifier = CompressedTransformerClassifier(prune_ratio=0.5, epochs=20, random_state=0).fit(X, y)
    >>> classifier.predict_proba(X).shape
    (67, 2)
    """

    _tags = {  # noqa: RUF012 (aeon's convention)
        "X_inner_type": ["np-list", "numpy3D"],
        "algorithm_type": "deeplearning",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
        "capability:multithreading": True,
    }

    def __init__(
        self,
        model: str = "t3",
        prune_ratio: float = 0.0,
        prune_scope: str = "local",
        prune_method: str = "l1",
        finetune_epochs: int | None = None,
        quant_mode: str = "none",
        runtime: str = "eager",
        epochs: int | None = None,
        scale: str = "auto",
        batch_size: int = 1,
        overrides: Sequence[str] = (),
        cache: str | Path | None = None,
        progress: bool = False,
        n_jobs: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.model = model
        self.prune_ratio = prune_ratio
        self.prune_scope = prune_scope
        self.prune_method = prune_method
        self.finetune_epochs = finetune_epochs
        self.quant_mode = quant_mode
        self.runtime = runtime
        self.epochs = epochs
        self.scale = scale
        self.batch_size = batch_size
        self.overrides = overrides
        self.cache = cache
        self.progress = progress
        self.n_jobs = n_jobs
        self.random_state = random_state
        super().__init__()

    def export(self, path: str | Path) -> Path:
        """Write the artifact's folder: what `tsexp.runtimes.load` loads.

        Parameters
        ----------
        path
            Of the folder, which is whole or not there.

        Returns
        -------
        Path
            The same.

        Raises
        ------
        FileExistsError
            If something is there already.
        ConfigError
            If no folder can be made there.
        NotFittedError
            Before `fit`.
        """
        self._check_is_fitted()
        path = Path(path).expanduser()
        if os.path.lexists(path):
            raise FileExistsError(f"{path} is there already; give another path, or remove it first")
        try:
            check_new(path.absolute())
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as partial:
                folder = Path(partial) / path.name
                folder.mkdir()
                self.artifact_.write(folder)
                folder.rename(path)
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    def report(self, X: Any = None, y: Any = None) -> Report:
        """Say what the artifact is and what it took; with test series, also what it answers and needs.

        Parameters
        ----------
        X, y
            Test series and their labels. With them, the control (the dense model with the same training in
            total) is trained, and accuracy, latency and energy are measured against it, alone on this
            machine: training and measurements of other processes are waited for.

        Returns
        -------
        dict
            JSON values. ``model``, ``runtime``, ``quant_mode``, ``seed``, ``fit_series``, ``val_series``,
            ``matmuls`` (number format → products that are computed in it), ``energy_source``; sizes (bytes,
            and MACs per series) and costs (s, J) by the names that they have in the store: ``size/…``,
            ``prune/achieved_ratio``, ``cost/…``. With test series, all metrics of a run, and ``valid``,
            ``invalid_reasons`` and ``warnings``.

        Raises
        ------
        ConfigError
            If a copy is asked to measure: train series are not copied.
        NotFittedError
            Before `fit`.
        """
        self._check_is_fitted()
        if X is None and y is None:
            return dict(self._facts)
        if X is None or y is None:
            raise ConfigError("report takes test series and their labels, or neither")
        kept = _kept.get(self.artifact_)
        if kept is None:
            raise ConfigError(
                "the control is trained on the train series, which copies and pickles of a classifier do not "
                "carry; ask the one that was fitted, or fit this one again"
            )
        from tsexp import data, pipeline

        series = self._preprocess_collection(X, store_metadata=False)
        self._check_shape(series)
        labels = self._check_y(y, len(series), update_classes=False, allow_single_class=True)
        series = self._ended(series)
        spelled = {label: str(label) for label in self.classes_.tolist()}  # 1.0 is 1 here, and in fit was "1"
        words = [spelled.get(label, str(label)) for label in np.asarray(labels).tolist()]
        tested = data.with_test(kept.dataset, kept.cfg.data, series, words)
        with guest(), _fitting:
            record = pipeline.judge(kept.made, kept.artifact, kept.cfg, tested, kept.cache)
        judged = {
            "energy_source": record.energy_source,
            "valid": record.valid,
            "invalid_reasons": list(record.invalid_reasons),
            "warnings": list(record.warnings),
        }
        return self._facts | record.metrics | judged

    def _fit(self, X: Any, y: Any) -> CompressedTransformerClassifier:
        with guest():
            from tsexp import data, pipeline
            from tsexp.cache import Cache

        self._n_jobs = check_n_jobs(self.n_jobs)
        with guest(), _fitting, _by_parameters():
            self._at_once()
            cfg = self._config()
            pipeline.able(cfg)
            labels = [str(label) for label in y]
            dataset = data.at_hand(cfg.data, X, labels, cfg.seed)
            if cfg.data.val_fraction and not len(dataset.val):
                warnings.warn(data.NONE_WITHHELD, stacklevel=4)
            root = Path(_scratch("fit") if self.cache is None else str(self.cache)).expanduser().absolute()
            cache = Cache(root, lambda: pipeline.counter(cfg))
            if self.cache is None:
                _goes_with(cache, root)
            cache.check()
            made = pipeline.make(cfg, dataset, cache)
            artifact, _ = pipeline.choose(made, cfg, dataset, cache)
        folder = artifact.folder
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        self.artifact_ = Shipped({p.relative_to(folder).as_posix(): p.read_bytes() for p in files})
        self.seed_ = cfg.seed
        self._data, self._ragged = cfg.data, dataset.preprocessing.ragged
        self._facts = _facts(cfg, dataset, made, artifact)
        _kept[self.artifact_] = _Kept(cfg, dataset, cache, made, artifact)
        return self

    def _predict(self, X: Any) -> np.ndarray[Any, Any]:
        return self.classes_[self._scores(X).argmax(1)]  # type: ignore[no-any-return]

    def _predict_proba(self, X: Any) -> FloatArray:
        from scipy.special import softmax

        return softmax(self._scores(X).astype(np.float64), axis=-1)  # type: ignore[no-any-return]

    def _scores(self, X: Any) -> FloatArray:
        """Class scores, float32 (series, classes), in the order of `classes_`."""
        with guest():
            from tsexp import data
            from tsexp.models import using_threads

        series = data.filled(self._ended(X), self._data, "series to predict")
        names = self.artifact_.manifest["classes"]
        size = self._at_once()
        parts = (series[i : i + size] for i in range(0, len(series), size))
        with guest(), using_threads(self._n_jobs):
            predictor = _predictor(self.artifact_, self._n_jobs)
            scores = np.concatenate([predictor(data.stack(part)) for part in parts])
        return scores[:, [names.index(str(label)) for label in self.classes_]]  # type: ignore[no-any-return]

    def _at_once(self) -> int:
        if not isinstance(self.batch_size, Integral) or self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size!r}: an integer from 1 on is needed")
        return int(self.batch_size)

    def _ended(self, X: Any) -> list[Any]:
        """Return series that end where they do; of one length, if all train series had one."""
        from tsexp import data

        if self._ragged:
            return data.ended(X)
        length = self.artifact_.manifest["shape"][1]
        series = data.ended(X, length)
        for i, one in enumerate(series):
            if one.shape[-1] != length:
                raise ConfigError(
                    f"series {i} has {one.shape[-1]} steps; all train series had {length}, and this model "
                    f"takes no others; overrides=('data.length={length}',) fits one that resamples"
                )
        return series

    def _config(self) -> Config:
        """Compose what the parameters ask for."""
        lines = self.overrides
        several = isinstance(lines, Iterable) and not isinstance(lines, str)
        if not several or any(not isinstance(line, str) for line in lines):
            raise ConfigError(
                f"overrides={self.overrides!r}: a tuple of strings is needed, e.g. ('train.lr=5e-4',)"
            )
        for line in self.overrides:
            key = line.split("=")[0].lstrip("+~")
            if key in ELSEWHERE:
                raise ConfigError(f"overrides: {line}: this is what the parameter {ELSEWHERE[key]} is for")
            if key in UNREAD or key.split(".")[0] in set(UNREAD) - {"data"}:
                raise ConfigError(f"overrides: {line}: the classifier does not read {key}; leave it out")
        random = self.random_state
        if random is None or isinstance(random, np.random.RandomState):
            random = int(check_random_state(random).randint(2**31))
        elif not isinstance(random, Integral):
            raise ConfigError(
                f"random_state={random!r}: an integer, a numpy.random.RandomState or None is needed"
            )
        for name in KEYS.keys() - set(LEFT):
            if getattr(self, name) is None:
                raise ConfigError(f"{name}=None: a value is needed")
        given = {key: value for name, key in KEYS.items() if (value := getattr(self, name)) is not None}
        from tsexp.config.compose import composed

        threads = min(check_n_jobs(self.n_jobs), configs.usable_cores())  # -1 means those of the machine
        given |= {"seed": random, "measure.threads": threads}
        lines = [f"{key}={value}" for key, value in given.items()]
        return configs.parse(composed("data=ucr", "data.name=series", *lines, *self.overrides))

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Return parameters that aeon's checks are quick with: a pruned transformer; no transformer."""
        tiny = ("debug=smoke", "model.d_model=8", "model.layers=1", "model.heads=2", "model.ffn=8")
        return [
            {"prune_ratio": 0.5, "overrides": tiny},
            {"model": "minirocket", "scale": "none", "overrides": ("model.n_kernels=84",)},
        ]


def _facts(cfg: Config, dataset: Dataset, made: Made, artifact: Artifact) -> Report:
    from tsexp import energy
    from tsexp.energy import meters

    manifest, dense = artifact.manifest, made.dense.load()
    source = meters.source(cfg.train.device, cfg.measure.meter)
    channels = dense.prunable() if hasattr(dense, "prunable") else 0
    numbers = energy.sizes_of(manifest, channels)
    numbers |= energy.costs_of(made.train_cost(), made.costs(), source, cfg.measure.watts_per_core)
    return {
        "model": cfg.model.name,
        "runtime": manifest["runtime"],
        "quant_mode": manifest["mode"],
        "seed": cfg.seed,
        "fit_series": len(dataset.fit),
        "val_series": len(dataset.val),
        "matmuls": products(manifest, cfg.measure.batch_size),
        "energy_source": source,
        **{name: value for name, value in numbers.items() if np.isfinite(value)},
    }


@contextlib.contextmanager
def _by_parameters() -> Iterator[None]:
    """Say what is wrong by the names that parameters have here."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        if text.startswith("overrides"):  # those are keys
            raise
        for key, name in ELSEWHERE.items():
            # `seed` is a word, too, where no value follows.
            end = r"(?!\.?\w)" if "." in key else "(?==)"
            text = re.sub(rf"(?<![\w.]){re.escape(key)}{end}", name, text)
        kind = Unsupported if isinstance(error, Unsupported) else ConfigError
        raise kind(text) from None


def _scratch(kind: str) -> Path:
    """Make a temporary folder of this process."""
    folder = Path(tempfile.mkdtemp(prefix=f"{alive.PREFIX}{kind}-"))
    alive.own(folder)
    return folder


def _goes_with(owner: Shipped | Cache, folder: Path) -> None:
    """Remove a folder when its owner is forgotten, or this process ends; not when a fork of it does."""
    finalize(owner, _remove, folder, os.getpid())


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:
        shutil.rmtree(folder, ignore_errors=True)


def _one_at_a_time(predictor: Predictor) -> Callable[[FloatArray], FloatArray]:
    """OpenVINO refuses a second call while one goes on."""
    alone = threading.Lock()

    def answer(series: FloatArray) -> FloatArray:
        with alone:
            return predictor(series)

    return answer


def _predictor(artifact: Shipped, threads: int) -> Callable[[FloatArray], FloatArray]:
    """Load an artifact, once in each process; its folder stays as long as it does."""
    from tsexp import runtimes

    if artifact in _loaded:
        return _loaded[artifact]
    with _fitting:
        if artifact not in _loaded:
            scratch = _scratch("artifact")
            _goes_with(artifact, scratch)
            folder = scratch / "artifact"  # in which there may be nothing else
            folder.mkdir()
            artifact.write(folder)
            _loaded[artifact] = _one_at_a_time(runtimes.load(folder, threads=threads))
        return _loaded[artifact]
