"""Model → artifact folder → something that answers raw series with class scores.

One file per runtime. A runtime is a module with one line in `RUNTIMES` (or somebody's own,
``runtime.name=module:``, docs/extending.md) and

``SUPPORTED``
    Quantization mode → devices, for transformers.
``FAMILIES``
    Optional. The same for other families of models: family → mode → devices. Of a family that is not listed,
    a convolution gets mode ``none``, and whatever is no network nothing.
``PACKAGES``
    What it imports, by distribution name, for a mode, a family, or ``every`` artifact; the extra ``runtimes``
    installs all that is no core dependency.
``export(model, job, folder)``
    Write the artifact's files; return ``parameters`` and ``macs``, counted on what was written. Must leave
    `model` as it was.
``load(folder, mode, device, threads)``
    Return a `Predictor`.
``ready(quant, device)``
    Optional. Raise `ConfigError` or `Unsupported` for what SUPPORTED and PACKAGES cannot say, before any
    work.
``here(quant)``
    Optional. The same for what this machine lacks; not asked where a sweep for other machines is started.
``machine()``
    Optional. What of the machine an artifact depends on, text by name; like a version, another one is another
    artifact.
``annotate(folder, facts, target)``, ``script(mode, device)``
    Optional, both: a copy of the files that tells what it is and runs without this package, and how
    (`tsexp.export`). Without them, the artifact folder is exported as it is.
``TRUSTED``
    Optional. Its artifacts are machine code, and run only where ``TSEXP_OWN_CODE`` has this name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tsexp.cache import ENTRY, Cache, Entry
from tsexp.config import (
    ConfigError,
    QuantConfig,
    RuntimeConfig,
    Unsupported,
    look_up,
    own_digests,
    suggest,
    trust,
)
from tsexp.data import Dataset, FloatArray
from tsexp.marks import IN_BATCHES
from tsexp.system import cpu
from tsexp.system.files import different, digests, write_json

if TYPE_CHECKING:
    from tsexp.models import Model

    # The measuring process imports this module, and must not pay for PyTorch Lightning.
    from tsexp.training import Fitted

STAGE_VERSION = 9
STAGE_VERSIONS = {"cpu": STAGE_VERSION, "cuda": STAGE_VERSION + 1}
"""By device: artifacts on a GPU computed in TF32 once, those on a CPU did not change."""
REWRITES = {
    ("onnxruntime", "convolution", "none"): 1,
    ("onnxruntime", "views", "none"): 1,
    ("onnxruntime", "ridge", "none"): 1,
    ("openvino", None, None): 2,
}
"""How often what a runtime makes of a family in a mode (None: of any) has changed, where others did not."""

MANIFEST = "manifest.json"

RUNTIMES = {name: f"tsexp.runtimes.{name}" for name in ("eager", "inductor", "onnxruntime", "openvino")}

AUTO = "auto"
"""Not a runtime: the choice among them, see `pipeline`."""

FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class Layer:
    """One operation with weights, or one matrix product, of the graph that runs.

    Attributes
    ----------
    name
        In that graph.
    kind
        The operation.
    dtype
        That the product is computed in: ``float32``, ``bfloat16``, ``int8``; ``int8 weights`` where they are
        stored as int8 but the product is computed in floating point.
    bytes
        Of its weights as stored.
    matmul
        It is a matrix product (linear layer, attention, convolution as such are; a norm is not).
    """

    name: str
    kind: str
    dtype: str
    bytes: int
    matmul: bool


@dataclass(frozen=True)
class Job:
    """What `export` is asked for.

    Attributes
    ----------
    quant
        The ``quant`` group.
    device
        ``cpu`` or ``cuda``.
    calibration
        Raw train series, float32 (series, channels, time); only for modes that calibrate.
    """

    quant: QuantConfig
    device: str
    calibration: FloatArray


class Predictor(Protocol):
    """A loaded artifact."""

    def __call__(self, series: FloatArray) -> FloatArray:
        """Raw series (batch, channels, time) → class scores (batch, classes), float32, of any batch size."""
        ...

    def weights_digest(self) -> str:
        """Hash of the weights as they are in memory now.

        Of the file, where the runtime keeps them to itself.
        """
        ...

    def layers(self) -> list[Layer]:
        """Read off the graph that runs, after the runtime's own optimizations."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A folder that can be shipped.

    Attributes
    ----------
    entry
        Holds ``manifest.json`` and the runtime's own files.
    manifest
        ``runtime``, ``mode``, ``device``, ``classes``, ``shape`` (channels and length of a series),
        ``channels`` (prunable: heads × head_dim + FFN units), ``calibration`` (indices into the train split),
        ``parameters``, ``macs`` (per series), ``layers`` (of the graph that runs for a single series),
        ``matmuls`` (how many per dtype there), ``matmuls_in_batches`` (in the graph for a batch, which may be
        another), ``sqnr_db`` (of the scores against the model in fp32, by batch size), ``bytes`` (of the
        files), and ``files`` with their SHA-256: counted on what is in the folder.
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


def check(quant: QuantConfig, runtime: RuntimeConfig, family: str = "transformer", here: bool = True) -> None:
    """Refuse a combination that no runtime supports, or whose libraries are not there.

    Parameters
    ----------
    quant, runtime
        The groups of these names.
    family
        Of the model (`config.like`).
    here
        False: it will run on another machine, so that what this one's CPU lacks does not matter.

    Raises
    ------
    Unsupported
        With the table of what is supported.
    ConfigError
        If the runtime is not known, is no runtime, cannot calibrate in that way, or a library is missing.
    """
    known = [*RUNTIMES, AUTO]
    if runtime.name not in known and ":" not in runtime.name:
        allowed = f"{', '.join(known)}, or your own as module:"
        raise ConfigError(
            f"runtime.name={runtime.name} is not known; allowed: {allowed}{suggest(runtime.name, known)}"
        )
    if runtime.name == AUTO:
        if not candidates(quant, runtime, family):
            raise Unsupported(
                f"no installed runtime supports quant.mode={quant.mode} of the {family} family on "
                f"{runtime.device}; supported:\n{_table(family)}"
            )
        return
    module = _module(runtime.name)
    tables = [f"table {n}" for n in ("SUPPORTED", "PACKAGES") if not isinstance(getattr(module, n, 0), dict)]
    functions = [f"function {n}" for n in ("export", "load") if not callable(getattr(module, n, None))]
    if lacking := tables + functions:
        raise ConfigError(
            f"runtime.name={runtime.name} cannot be used as a runtime: it has no {', no '.join(lacking)}; "
            "docs/extending.md has an example"
        )
    if runtime.device not in _supported(runtime.name, family).get(quant.mode, ()):
        raise Unsupported(
            f"quant.mode={quant.mode} with runtime={runtime.name} on {runtime.device} is not supported for "
            f"the {family} family; supported:\n{_table(family, runtime.name)}"
        )
    missing = [p for p in _packages(quant, runtime, family) if installed(p) is None]
    if missing:
        hint = "; pip install 'tsexp[runtimes]' brings it" if runtime.name in RUNTIMES else ""
        raise ConfigError(
            f"runtime={runtime.name} quant.mode={quant.mode} needs {', '.join(missing)}, which is not "
            f"installed{hint}"
        )
    if hasattr(module, "ready"):
        module.ready(quant, runtime.device)
    if here and hasattr(module, "here"):
        module.here(quant)


def candidates(
    quant: QuantConfig, runtime: RuntimeConfig, family: str = "transformer"
) -> list[RuntimeConfig]:
    """Return what ``runtime=auto`` chooses from.

    Every installed runtime that supports the mode on the device; else just `runtime`.
    """
    if runtime.name != AUTO:
        return [runtime]
    found = []
    for name in RUNTIMES:
        one = RuntimeConfig(name, runtime.device)
        try:
            check(quant, one, family)
        except ConfigError:
            continue
        found.append(one)
    return found


def available() -> dict[str, dict[str, str]]:
    """Runtime → its modes on the CPU → why it cannot be used here, or an empty string."""
    found: dict[str, dict[str, str]] = {}
    for name in RUNTIMES:
        found[name] = {}
        for mode, devices in _module(name).SUPPORTED.items():
            if "cpu" in devices:
                try:
                    check(QuantConfig(mode, calibration="minmax", weight_bits=8), RuntimeConfig(name, "cpu"))
                    found[name][mode] = ""
                except ConfigError as error:
                    found[name][mode] = str(error)
    return found


def _module(name: str) -> Any:
    return importlib.import_module(RUNTIMES[name]) if name in RUNTIMES else look_up(name, {})


def _supported(name: str, family: str) -> dict[str, tuple[str, ...]]:
    """Mode → devices."""
    module = _module(name)
    modes: dict[str, tuple[str, ...]] = module.SUPPORTED
    special = {"convolution": {"none": modes.get("none", ())}, "estimator": {}}
    plain = special.get(family, modes)
    found: dict[str, tuple[str, ...]] = getattr(module, "FAMILIES", {}).get(family, plain)
    return found


def _table(family: str, *also: str) -> str:
    lines = []
    for name in dict.fromkeys([*RUNTIMES, *also]):
        supported = _supported(name, family)
        for device in sorted({d for devices in supported.values() for d in devices}):
            modes = ", ".join(mode for mode, devices in supported.items() if device in devices)
            lines.append(f"  {name:12} {device:5} {modes}")
    return "\n".join(lines)


def _packages(quant: QuantConfig, runtime: RuntimeConfig, family: str) -> tuple[str, ...]:
    packages: dict[str, tuple[str, ...]] = _module(runtime.name).PACKAGES
    return tuple(p for key in ("every", quant.mode, family) for p in packages.get(key, ()))


BUILDS = {"onnxruntime": ("onnxruntime-gpu",)}
"""Other distributions that bring the same library."""


def distribution(package: str) -> str | None:
    """Return the name under which a library is installed: its own, or another build's; None if it is not."""
    names: tuple[str, ...] = (package, *BUILDS.get(package, ()))
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            return name
    return None


def installed(package: str) -> str | None:
    """Return the version of a library, of whatever build; None if there is none."""
    name = distribution(package)
    return metadata.version(name) if name else None


def rewrites(quant: QuantConfig, runtime: RuntimeConfig, family: str) -> dict[str, Any]:
    """Return what artifacts and their records depend on besides `STAGE_VERSIONS`; empty for most."""
    found = {
        one.name: count
        for one in candidates(quant, runtime, family)
        for (name, of, mode), count in REWRITES.items()
        if name == one.name and of in (None, family) and mode in (None, quant.mode)
    }
    return {"rewrites": found} if found else {}


def versions(
    quant: QuantConfig, runtime: RuntimeConfig, family: str = "transformer"
) -> dict[str, str | None]:
    """Versions of the libraries that make and run this artifact: another version is another artifact."""
    packages = [p for one in candidates(quant, runtime, family) for p in _packages(quant, one, family)]
    return {p: installed(p) for p in dict.fromkeys(["torch", *packages])}


def deploy(
    fitted: Fitted, quant: QuantConfig, runtime: RuntimeConfig, dataset: Dataset, cache: Cache
) -> Artifact:
    """Export a fitted model for a runtime, load what was written, and list what it executes.

    Parameters
    ----------
    fitted
        The model.
    quant, runtime
        The groups of these names.
    dataset
        Calibration takes series of its fit split, and no others.
    cache
        Where the artifact folder is kept.

    Raises
    ------
    RuntimeError
        If the mode changed nothing (no product of the graph that runs is in another number format than fp32),
        or if the artifact's scores have nothing to do with those of the model.
    """
    from tsexp import models  # PyTorch, which checking need not wait for
    from tsexp.compress.qat import calibration

    trust(f"{runtime.name.rstrip(':')}:")  # what is asked for may be loaded, here and in measuring processes
    check(quant, runtime, fitted.family)
    module = _module(runtime.name)
    chosen = calibration(quant, dataset)
    compared = np.random.default_rng(1).permutation(dataset.fit)

    def build(folder: Path) -> None:
        model = fitted.load()
        models.check_scores(model, dataset)
        facts = module.export(model, Job(quant, runtime.device, dataset.x_train[chosen]), folder)
        predictor: Predictor = module.load(folder, quant.mode, runtime.device, 1)
        some = compared[: min(64, getattr(model, "at_once", 64))]  # memory is to suffice
        sqnr_db, layers = _compare(
            model, predictor, dataset.x_train[some], f"{runtime.name} {quant.mode}", least_db(quant)
        )
        products = {batch: _matmuls(of, quant.mode, runtime.name) for batch, of in layers.items()}
        files = digests(folder)
        manifest = {
            **asked,
            "mode": quant.mode,
            "classes": list(model.arch.classes),
            "shape": [model.arch.channels, model.arch.preprocessing.length],
            **({"channels": model.prunable()} if hasattr(model, "prunable") else {}),
            **facts,
            "sqnr_db": sqnr_db,
            "layers": [asdict(layer) for layer in layers["1"]],
            "matmuls": products["1"],
            IN_BATCHES: products[str(len(some))],
            "bytes": sum((folder / name).stat().st_size for name in files),
            "files": files,
        }
        write_json(folder / MANIFEST, manifest)

    asked = {
        "runtime": runtime.name,
        "device": runtime.device,
        "versions": versions(quant, runtime, fitted.family),
        "machine": module.machine() if hasattr(module, "machine") else None,
        "calibration": chosen.tolist(),
    }
    key = {
        "model": fitted.signature,
        "quant": quant.asked(),
        **asked,
        **rewrites(quant, runtime, fitted.family),
        **own_digests(runtime.name),
    }
    entry = cache.stage("artifact", STAGE_VERSIONS[runtime.device], key, build)
    return Artifact(entry, read_manifest(entry.folder))


def _matmuls(layers: list[Layer], mode: str, runtime: str) -> dict[str, int]:
    """Number format → how many matrix products of the graph that runs are computed in it."""
    found = dict(Counter(layer.dtype for layer in layers if layer.matmul))
    if mode != "none" and not set(found) - set(FLOATS):
        raise RuntimeError(
            f"quant.mode={mode} changed nothing in {runtime}: every product of the graph that runs is {found}"
        )
    return found


LEAST_DB = {
    # rounding of fp32 alone: 117 to 143 dB seen; with one bias left out 9, with one value of it 19
    "none": 60.0,
    "bf16": 15.0,  # 8 bits of mantissa: 29 to 54 seen
    # 8 bits, ranges by call: 26 to 53 seen, less where layers are many and series have peaks
    "dynamic": 12.0,
    "static": 10.0,  # 8 bits, ranges from other series: 24 to 52 seen
    "qat": 10.0,  # as static: compared with itself in fp32, tuned for it or not
    "weight_only": 20.0,  # 8 bits, of the weights alone: 31 to 67 seen
    "weight_only 4": 5.0,  # 4 bits: 10 to 44 seen
}
"""Less signal than this over the noise of a mode (dB) is no rounding any more, but an error of the export.
Seen on T1, T2 and T3, six datasets."""


def least_db(quant: QuantConfig) -> float:
    """Return the entry of `LEAST_DB` for a mode."""
    return LEAST_DB["weight_only 4" if (quant.mode, quant.weight_bits) == ("weight_only", 4) else quant.mode]


def _compare(
    model: Model, predictor: Predictor, series: FloatArray, what: str, least: float
) -> tuple[dict[str, float], dict[str, list[Layer]]]:
    """Signal to quantization noise (dB) of the scores against the model in fp32, and what ran for them.

    Both by batch size, one series at a time and all at once: libraries corrupt silently, and some make a
    graph for each.
    """
    exact = model.scores(series)
    found, layers = {}, {}
    for batch in dict.fromkeys((1, len(series))):
        parts = np.split(series, len(series) // batch)
        scores = np.concatenate([predictor(np.ascontiguousarray(part)) for part in parts])
        layers[str(batch)] = predictor.layers()
        found[str(batch)] = db = _ratio_db(exact, scores)
        if not db >= least:
            raise RuntimeError(
                f"{what} answers batches of {batch} with other scores than the model: {db} dB, at least "
                f"{least:g} expected"
            )
    return found, layers


SAME_DB = 300.0
"""What equal scores have, which are without noise."""


def _ratio_db(exact: FloatArray, scores: FloatArray) -> float:
    """Signal over noise, at most `SAME_DB`, of scores of any size: distances have that of the series."""
    signal = float((exact.astype(np.float64) ** 2).sum())
    noise = float(((exact.astype(np.float64) - scores) ** 2).sum())
    if noise <= signal * 10 ** (-SAME_DB / 10):
        return SAME_DB
    return round(10 * math.log10(max(signal, sys.float_info.min) / noise), 1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact folder."""
    return json.loads((folder / MANIFEST).read_text())  # type: ignore[no-any-return]


def verified(folder: Path) -> dict[str, Any]:
    """Return the manifest of an artifact folder, if the files in it are those that it lists, and no others.

    Nothing is loaded, and nothing outside of the folder is read.

    Raises
    ------
    ValueError
        In a line that says what is wrong.
    """
    try:
        found = digests(folder, MANIFEST, ENTRY)
        manifest = read_manifest(folder)
        wrong = different(manifest["files"], found)
        runtime, mode, device = (manifest[key] for key in ("runtime", "mode", "device"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder} is no artifact ({type(error).__name__}: {error})") from None
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} is not what the manifest lists; the artifact {folder} is damaged"
        )
    if not all(isinstance(word, str) for word in (runtime, mode, device)) or (
        mode not in _supported(runtime, "transformer") or device not in ("cpu", "cuda")
    ):
        raise ValueError(f"{folder} is no artifact: its manifest says {runtime!r}, {mode!r}, {device!r}")
    return manifest


def load(folder: Path | str, device: str | None = None, threads: int = 1) -> Predictor:
    """Load an artifact folder, wherever it was copied to.

    What is in it is data: no code of its own is imported or run, unless the user has named it.

    Parameters
    ----------
    folder
        With a ``manifest.json``.
    device
        If not the one it was exported for.
    threads
        That one call may use.

    Raises
    ------
    ValueError
        If a file is not the one that the manifest lists, the artifact brings code that nobody allowed, or its
        int8 products would overflow on this CPU (`refuse_overflow`).
    """
    folder = Path(folder)
    manifest = verified(folder)
    refuse_overflow(manifest, str(folder))
    predictor: Predictor = _module(manifest["runtime"]).load(
        folder, manifest["mode"], device or manifest["device"], threads
    )
    return predictor


OVERFLOWING = ("inductor", "onnxruntime", "openvino")
"""Runtimes whose int8 products overflow with large weights, on some CPUs."""


def int8_largest(manifest: Mapping[str, Any]) -> int | None:
    """How large weights of an artifact's int8 products may be (`cpu.int8_largest`); None of any other."""
    products, machine = (
        told if isinstance(told := manifest.get(key), Mapping) else {} for key in ("matmuls", "machine")
    )
    if manifest["runtime"] not in OVERFLOWING or "int8" not in products:
        return None
    return 64 if machine.get("int8_largest") == "64" else 127  # older artifacts do not tell


def refuse_overflow(manifest: Mapping[str, Any], what: str) -> None:
    """Refuse an artifact whose int8 products would overflow on this CPU, without a word; `what` names it."""
    if (int8_largest(manifest) or 0) > cpu.int8_largest():
        raise ConfigError(
            f"{what} has int8 weights of 8 bits, with which products overflow on x86 without VNNI, as this "
            "CPU is; make it on this machine, where weights get 7 bits"
        )


def alone(runtime: str) -> bool:
    """Whether a copy of its artifacts runs without this package, which would check what it is given."""
    return hasattr(_module(runtime), "annotate")


def code_in(runtime: str) -> str | None:
    """Return what ``TSEXP_OWN_CODE`` has to name for its artifacts to run; None where they are data alone."""
    if ":" in runtime:
        return runtime.rstrip(":")
    name: str | None = getattr(_module(runtime), "TRUSTED", None)
    return name


def standalone(
    folder: Path, facts: Mapping[str, str], target: Path, probe: FloatArray
) -> tuple[str, list[str]] | None:
    """Write a copy of an artifact's files that tells what it is and runs without this package.

    Parameters
    ----------
    folder
        Of the artifact; nothing in it is changed.
    facts
        What the copy tells.
    target
        Folder for the copy.
    probe
        Raw series (batch, channels, time) that the copy has to answer as the artifact does.

    Returns
    -------
    tuple or None
        What a script imports and its lines (``script`` of the runtime), or None if the runtime has no such
        copy; then nothing is written.

    Raises
    ------
    RuntimeError
        If the copy answers otherwise.
    """
    manifest = read_manifest(folder)
    module, mode, device = _module(manifest["runtime"]), manifest["mode"], manifest["device"]
    if not alone(manifest["runtime"]):
        return None
    module.annotate(folder, facts, target)
    before, after = (module.load(one, mode, device, 1)(probe) for one in (folder, target))
    # The same but for rounding, which differs with where a model lies in memory.
    if not np.allclose(before, after, rtol=1e-4, atol=1e-4 * float(np.abs(before).max()), equal_nan=True):
        raise RuntimeError(f"the copy of {folder} with metadata answers otherwise than the artifact")
    script: tuple[str, list[str]] = module.script(mode, device)
    return script
