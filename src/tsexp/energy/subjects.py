"""What can be measured: an artifact folder, an ONNX or OpenVINO file, or an object in memory.

A subject is called with a batch, an array (batch, …), as it is measured. `answers` are what is compared:
class scores or whatever else it answers with, as float32 (batch, outputs).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.config import ConfigError
from tsexp.data import FloatArray, IntArray
from tsexp.runtimes import load as load_artifact
from tsexp.runtimes import read_manifest

METHODS = ("predict_proba", "decision_function", "predict")
"""What an estimator is asked: the first of these that it has."""
FILES = {".onnx": "ONNX", ".xml": "OpenVINO"}
OPENED = {".onnx": ("onnxruntime", "OnnxFile"), ".xml": ("openvino", "OpenvinoFile")}
"""Ending → the library that runs it, of which the extra and our module have the name, and our class."""
KINDS = (
    "a path to an ONNX file (.onnx), an OpenVINO file (.xml) or an artifact folder, a fitted estimator of "
    "aeon or scikit-learn, a torch module, or a callable"
)


def named(subject: Any) -> str | InMemory:
    """Return a subject as measuring processes take it: an absolute path, or what lies in memory.

    Raises
    ------
    ConfigError
        If it is nothing that can be measured.
    """
    if isinstance(subject, str | Path):
        path = Path(subject).expanduser().absolute()
        if not path.exists():
            raise ConfigError(f"{subject} is not there; give {KINDS}")
        if not (path.is_dir() or path.suffix in FILES):
            raise ConfigError(
                f"{subject} is no file that can be measured; give {KINDS}. Nothing is unpickled: load such a "
                "file yourself and give the object"
            )
        return str(path)
    if isinstance(subject, type):
        raise ConfigError(f"{subject.__name__} is a class; give a fitted or loaded instance of it")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(subject, torch.nn.Module):
        return Module(subject)
    method = next((m for m in METHODS if callable(getattr(subject, m, None))), None)
    if method is not None:
        return Estimator(subject, method)
    if callable(subject):
        return InMemory(subject)
    raise ConfigError(f"{type(subject).__name__} cannot be measured; give {KINDS}")


def load(path: str, threads: int) -> Any:
    """Load a folder or a file, told apart by its name.

    Raises
    ------
    ConfigError
        If it is not what its name says, or its library is not installed.
    """
    file = Path(path)
    if file.is_dir():
        return load_artifact(file, threads=threads)
    module, opened = OPENED[file.suffix]
    try:
        importlib.import_module(module)
        made = getattr(importlib.import_module(f"tsexp.runtimes.{module}"), opened)
    except ImportError as error:
        raise ConfigError(f"{error}; pip install 'tsexp[{module}]' brings it") from None
    try:
        return made(file, threads)
    except ConfigError:
        raise
    except Exception as error:  # of the libraries
        raise ConfigError(
            f"{file} is no {FILES[file.suffix]} file that can be run here: {_line(error)}"
        ) from None


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def facts(path: str, predictor: Any) -> dict[str, Any]:
    """What is known of a folder or file, and of what was loaded from it.

    Returns
    -------
    dict
        ``kind``, ``bytes`` (on disk), ``device``, ``dtype`` (that it takes), and where they can be counted
        ``parameters`` and ``macs``; ``shape`` of a batch (None: any size); ``classes``, of an artifact, or
        where a file says them as an exported one does (``classes`` in its metadata, a JSON list).
    """
    if Path(path).is_dir():
        m = read_manifest(Path(path))
        kept = {k: m[k] for k in ("bytes", "parameters", "macs", "device", "classes") if m.get(k) is not None}
        kind = f"artifact, {m['runtime']} {m['mode']}"
        return {"kind": kind, "dtype": "float32", "shape": [None, m["shape"][0], None], **kept}
    classes = _classes(predictor.told("classes"))
    told = {} if classes is None else {"classes": classes}
    return {"kind": FILES[Path(path).suffix], "device": "cpu", **predictor.facts(), **told}


def _classes(text: str | None) -> list[str | float] | None:
    """Read what a file says of its classes, unless it means something else by the word."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    labels = isinstance(found, list) and all(isinstance(one, str | int | float) for one in found)
    return found if labels and found else None


def check_shape(path: str, expected: list[int | None], series: FloatArray) -> None:
    """Refuse a batch that a file does not take; None in `expected` is any size, nothing in it not known.

    Raises
    ------
    ConfigError
        With what it takes.
    """
    found = series.shape
    if not expected:
        return
    if expected[0] not in (None, len(series)):
        raise ConfigError(f"{path} takes batches of {expected[0]}; use batch_size={expected[0]}")
    fits = [e in (None, f) for e, f in zip(expected, found, strict=False)]
    if len(expected) != len(found) or not all(fits):
        takes = ", ".join("any" if e is None else str(e) for e in expected)
        raise ConfigError(
            f"{path} takes batches of shape ({takes}), but X makes batches of shape {found}; its first axis "
            "is the series"
        )


def answers(predictor: Any, batch: FloatArray) -> FloatArray:
    """What a subject answers to a batch, as float32 (batch, outputs).

    Raises
    ------
    ConfigError
        If that is not one row for each series of the batch.
    """
    raw = predictor(batch)
    return rows(predictor.scores(raw) if hasattr(predictor, "scores") else raw, len(batch))


def rows(raw: Any, batch: int) -> FloatArray:
    """Return answers as float32 (batch, outputs)."""
    if isinstance(raw, list | tuple):  # two outputs would pass for the answers to a batch of two
        axes = max((one.ndim for one in raw if hasattr(one, "ndim")), default=0)
        if axes > (1 if isinstance(raw, list) else 0):
            raise ConfigError(
                f"the answer to a batch is a {type(raw).__name__} of arrays, not an array (batch, outputs); "
                "give the scores alone, or all in one array"
            )
    try:
        found = np.asarray(raw)
        if found.dtype == object or found.dtype.kind not in "fiub":
            raise TypeError(found.dtype)
        with np.errstate(over="ignore"):
            made = found.astype(np.float32)
    except (TypeError, ValueError):
        kind = f"NumPy array of {raw.dtype}" if isinstance(raw, np.ndarray) else type(raw).__name__
        raise ConfigError(
            f"the answer to a batch is a {kind}, not an array of numbers (batch, outputs); of classes, give "
            "their scores or numbers"
        ) from None
    if not made.ndim or len(made) != batch:
        raise ConfigError(
            f"the answer to a batch of {batch} has shape {made.shape}; its first axis must be the batch"
        )
    return made.reshape(batch, -1)


class InMemory:
    """An object that the measuring process finds in its memory, being a fork of the caller.

    Parameters
    ----------
    subject
        A callable: array (batch, …) → array (batch, …).
    """

    kind = "callable"
    takes: tuple[str, ...] = ("float32", "float64")

    def __init__(self, subject: Any) -> None:
        self.subject = subject
        self.call: Callable[[FloatArray], Any] = subject

    @property
    def name(self) -> str:
        """What it is called in tables."""
        found = getattr(self.subject, "__name__", type(self.subject).__name__)
        return "callable" if found == "<lambda>" else str(found)

    def copied(self) -> InMemory:
        """Return it with what it holds copied, so that memory layout is drawn anew in every process."""
        try:
            return type(self)(copy.deepcopy(self.subject))
        except Exception:  # of objects that hold what cannot be copied: it stays where it lies
            return self

    def __call__(self, batch: FloatArray) -> Any:
        """Answer a batch, as it is measured."""
        return self.call(batch)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Inside, it may be called in this process, and is left as it was."""
        yield

    def scores(self, raw: Any) -> Any:
        """Return answers as numbers, outside of windows."""
        return raw.detach().cpu().numpy() if hasattr(raw, "detach") else raw

    def weights_digest(self) -> str:
        """Of a method, that of the object it belongs to; of another callable, nothing is known."""
        return _hashed(self.subject.__self__) if inspect.ismethod(self.subject) else ""

    def classes(self) -> list[Any] | None:
        """Return the labels that its outputs stand for, or None if it does not tell."""
        return None

    def counted(self, batch: FloatArray) -> dict[str, int]:
        """Return ``parameters`` and ``macs``, where they can be counted."""
        return {}


def _hashed(thing: Any) -> str:
    """Hash what an object holds: of one object, before and after."""
    import joblib

    try:
        return str(joblib.hash(thing))
    except Exception:  # of what joblib cannot look into
        return ""


def _parts(value: Any) -> Iterator[Any]:
    """Take apart what holds tensors. joblib hashes one that is unpacked anew by its new address."""
    import torch

    if isinstance(value, tuple | list):
        for one in value:
            yield from _parts(one)
    elif isinstance(value, torch.ScriptObject):
        yield from _parts(value.__getstate__())
    elif hasattr(value, "__tensor_flatten__"):  # torchao's
        for name in value.__tensor_flatten__()[0]:
            yield from _parts(getattr(value, name))
    elif isinstance(value, torch.Tensor) and value.is_quantized:
        yield value.dequantize()
    else:
        yield value


class Estimator(InMemory):
    """A fitted estimator, asked by the first of `METHODS` that it has."""

    kind = "estimator"

    def __init__(self, subject: Any, method: str) -> None:
        super().__init__(subject)
        self.method = method
        self.call = getattr(subject, method)

    def copied(self) -> Estimator:
        """Return a copy."""
        try:
            return Estimator(copy.deepcopy(self.subject), self.method)
        except Exception:
            return self

    def scores(self, raw: Any) -> Any:
        """Class scores: a column for each class, whatever the method answers."""
        classes = self.classes()
        found = np.asarray(raw)
        if classes is None or (found.ndim > 1 and found.shape[1] == len(classes)):
            return raw
        if self.method == "decision_function" and found.ndim == 1:
            return np.stack([-found, found], 1)  # of two classes, the second
        if self.method == "predict":
            return found[:, None] == np.asarray(classes)[None]
        return raw

    def predicted(self, batch: FloatArray) -> IntArray | None:
        """Which of `classes` its ``predict`` answers; None where that is what it is asked by, or has none."""
        classes = self.classes()
        if classes is None or self.method == "predict" or not hasattr(self.subject, "predict"):
            return None
        said = np.asarray(self.subject.predict(batch))
        found = said[:, None] == np.asarray(classes)[None] if said.ndim == 1 else np.zeros((1, 1), bool)
        return found.argmax(1) if found.any(1).all() else None

    def weights_digest(self) -> str:
        """Of all that it holds."""
        return _hashed(self.subject)

    def classes(self) -> list[Any] | None:
        """Of a classifier."""
        named: Any = getattr(self.subject, "classes_", None)
        if named is None:
            return None
        try:
            found = np.asarray(named)
        except ValueError:  # of several outputs
            return None
        return found.tolist() if found.ndim == 1 and len(found) else None


class Module(InMemory):
    """A torch module, in evaluation mode, without gradients, on float32 tensors."""

    kind = "torch module"
    takes = ("float32",)

    def __init__(self, subject: Any) -> None:
        super().__init__(subject)
        import torch

        self._torch = torch
        elsewhere = {str(t.device) for _, t in self._state() if isinstance(t, torch.Tensor)} - {"cpu"}
        if elsewhere:
            raise ConfigError(
                f"the module lies on {', '.join(sorted(elsewhere))}; modules in memory are measured on the "
                "CPU: give module.cpu()"
            )
        if any(t.dtype == torch.float64 for t in subject.parameters()):
            raise ConfigError(
                "the module is in float64, and modules are measured in float32: give module.float()"
            )

    def copied(self) -> Module:
        """Return a copy in evaluation mode (in a fork, where nobody else sees it)."""
        try:
            made = Module(copy.deepcopy(self.subject))
        except Exception:
            made = self
        made.subject.eval()
        return made

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """In evaluation mode."""
        modes = {module: module.training for module in self.subject.modules()}
        self.subject.eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training

    def __call__(self, batch: FloatArray) -> Any:
        """Answer a batch, without gradients."""
        with self._torch.inference_mode():
            return self.subject(self._torch.from_numpy(np.asarray(batch, np.float32)))

    def weights_digest(self) -> str:
        """Of all parameters and buffers."""
        total = hashlib.sha256()
        for name, value in self._state():
            total.update(name.encode())
            if isinstance(value, self._torch.Tensor):
                flat = value.detach().contiguous().view(-1)
                total.update(flat.view(self._torch.uint8).numpy().tobytes())
            else:
                total.update(_hashed(value).encode())
        return total.hexdigest()

    def _state(self) -> Iterator[tuple[str, Any]]:
        """Parameters, buffers and packed weights, of which a state dict holds tuples and dtypes as well."""
        for name, value in sorted(self.subject.state_dict().items()):
            for part in _parts(value):
                yield name, part

    def counted(self, batch: FloatArray) -> dict[str, int]:
        """Parameters, and the multiply–accumulates of a series where the counter sees all products."""
        from tsexp.models.counting import count_parameters, macs_of

        macs = macs_of(self.subject, self._torch.from_numpy(np.asarray(batch, np.float32)))
        packed = not all(isinstance(v, self._torch.Tensor) for v in self.subject.state_dict().values())
        counts = {} if packed else {"parameters": count_parameters(self.subject)}
        return counts if macs is None else counts | {"macs": macs // len(batch)}
