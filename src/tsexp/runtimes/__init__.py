"""Model → artifact folder → something that answers raw series with class scores.

One file per runtime. A runtime is a module with `MODES` and `DEVICES` (what it supports), ``export(model, mode, folder, dataset)`` and
``load(folder, device)``, and one line in `RUNTIMES`.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tsexp.cache import Cache, Entry, sha256, write_json
from tsexp.config import ConfigError, QuantConfig, RuntimeConfig, suggest
from tsexp.data import Dataset, FloatArray
from tsexp.locking import sharing_the_machine

if TYPE_CHECKING:  # the measuring process imports this room, and must not pay for Lightning
    from tsexp.training import Fitted

STAGE_VERSION = 1

RUNTIMES = {"eager": "tsexp.runtimes.eager"}


class Predictor(Protocol):
    """A loaded artifact."""

    def __call__(self, series: FloatArray) -> FloatArray:
        """Raw series, float32 (batch, channels, time) → class scores, float32 (batch, classes), for any batch size."""
        ...

    def weights_digest(self) -> str:
        """Hash of the weights as they are in memory now."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A folder that can be shipped.

    Attributes
    ----------
    entry
        Holds ``manifest.json`` and the runtime's own files.
    manifest
        ``runtime``, ``mode``, ``device``, ``classes``, ``shape`` (channels and length of a series), ``channels`` (prunable: heads × head_dim + FFN
        units), ``parameters``, ``macs`` (per series), ``bytes`` (of the files), ``layers``, and ``files`` with their SHA-256: counted on what is in
        the folder.
    """

    entry: Entry
    manifest: dict[str, Any]

    @property
    def signature(self) -> str:
        """Content address of everything the artifact depends on."""
        return self.entry.signature

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.entry.folder


def check(quant: QuantConfig, runtime: RuntimeConfig) -> None:
    """Refuse a combination that no runtime supports.

    Raises
    ------
    ConfigError
        With the table of what is supported.
    """
    if runtime.name not in RUNTIMES:
        raise ConfigError(f"runtime.name={runtime.name} is not known; allowed: {', '.join(RUNTIMES)}{suggest(runtime.name, RUNTIMES)}")
    modules = {name: importlib.import_module(path) for name, path in RUNTIMES.items()}
    chosen = modules[runtime.name]
    if quant.mode not in chosen.MODES or runtime.device not in chosen.DEVICES:
        table = "\n".join(f"  {name:12} modes: {', '.join(m.MODES):30} devices: {', '.join(m.DEVICES)}" for name, m in modules.items())
        raise ConfigError(f"quant.mode={quant.mode} with runtime={runtime.name} on {runtime.device} is not supported; supported:\n{table}")


def deploy(fitted: Fitted, quant: QuantConfig, runtime: RuntimeConfig, dataset: Dataset, cache: Cache) -> Artifact:
    """Export a fitted model for a runtime.

    Parameters
    ----------
    fitted
        The model.
    quant, runtime
        The groups of these names.
    dataset
        Its train split is there for calibration.
    cache
        Where the artifact folder is kept.
    """
    check(quant, runtime)
    module = importlib.import_module(RUNTIMES[runtime.name])

    def build(folder: Path) -> None:
        with sharing_the_machine():
            model = fitted.load()
            facts = module.export(model, quant.mode, folder, dataset)
        files = sorted(p for p in folder.iterdir() if p.is_file())
        manifest = {
            "runtime": runtime.name,
            "mode": quant.mode,
            "device": runtime.device,
            "classes": list(model.arch.classes),
            "shape": [model.arch.channels, model.arch.preprocessing.length],
            "channels": sum(b.heads * model.arch.head_dim + b.ffn for b in model.arch.blocks),
            **facts,
            "bytes": sum(p.stat().st_size for p in files),
            "files": {p.name: sha256(p) for p in files},
        }
        write_json(folder / "manifest.json", manifest)

    key = {"model": fitted.signature, "mode": quant.mode, "runtime": runtime.name, "device": runtime.device}
    entry = cache.stage("artifact", STAGE_VERSION, key, build)
    return Artifact(entry, read_manifest(entry.folder))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact folder."""
    return json.loads((folder / "manifest.json").read_text())  # type: ignore[no-any-return]


def load(folder: Path) -> Predictor:
    """Load an artifact folder, wherever it was copied to.

    Raises
    ------
    ValueError
        If a file is not the one that the manifest lists.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name} is not what the manifest lists; the artifact is damaged")
    module = importlib.import_module(RUNTIMES[manifest["runtime"]])
    predictor: Predictor = module.load(folder, manifest["device"])
    return predictor


def softmax(scores: FloatArray) -> FloatArray:
    """Class scores (batch, classes) → probabilities."""
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)  # type: ignore[no-any-return]
