"""What runs inside the logged model: raw series in, class names and probabilities out.

MLflow stores this file, this package as an archive and the artifact folder, and pickles nothing.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

CODE = "tsexp.zip"
"""This package, among the code that MLflow stores with the model."""
AT_ONCE = 256
"""Series that are answered as one batch, at most: one takes about a megabyte meanwhile."""
FloatArray = np.ndarray[Any, np.dtype[np.float32]]


class Refused(MlflowException):  # type: ignore[misc]
    """What a model cannot answer, in one line; MLflow's server answers it with status 400."""

    def __init__(self, message: str) -> None:
        super().__init__(message, INVALID_PARAMETER_VALUE)

    def serialize_as_json(self) -> str:
        """Answer the line alone: the server puts the whole batch before it, in `message`."""
        answer = json.loads(super().serialize_as_json())  # type: ignore[no-untyped-call]
        return json.dumps(answer | {"message": str(self)})


class ArtifactModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Raw series, numbers (batch, channels, time) → a table with a row per series.

    Its columns are ``class``, the most probable class by name, and ``p_NAME``, the probability of each class.
    """

    def load_context(self, context: Any) -> None:
        """Load the artifact folder that was logged.

        The code that travels along may be imported, this file is part of it; no other that the folder names.
        """
        sys.path.insert(0, str(Path(__file__).with_name("code") / CODE))
        from tsexp import runtimes
        from tsexp.config import trust

        trust(*(context.model_config or {}).get("code", ()))
        folder = Path(context.artifacts["artifact"])
        self.predictor = runtimes.load(folder)
        manifest = runtimes.read_manifest(folder)
        self.classes: list[str] = manifest["classes"]
        self.channels, self.length = manifest["shape"]
        self.ragged = bool((context.model_config or {})["ragged"])
        self.alone = threading.Lock()  # a server answers in threads, and OpenVINO refuses a second call

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:  # type: ignore[type-arg]
        """Answer a batch.

        Parameters
        ----------
        context
            Of MLflow.
        model_input
            What `checked` takes.
        params
            ``{"scores": True}``: answer the raw class scores instead, float32 (batch, classes), in the order
            of ``classes`` in the artifact's manifest.
        """
        import pandas as pd
        from scipy.special import softmax

        series = checked(model_input, self.channels, self.length, self.ragged)
        with self.alone:  # some at a time: memory grows with a batch
            scores = np.concatenate(
                [self.predictor(series[i : i + AT_ONCE]) for i in range(0, len(series), AT_ONCE)]
            )
        if not np.isfinite(scores).all():
            wrong = int((~np.isfinite(scores)).any(1).argmax())
            raise Refused(f"series {wrong} gets scores that are not finite; its values may be too large")
        if (params or {}).get("scores"):
            return scores
        probabilities = softmax(scores.astype(np.float64), axis=-1)
        columns = {f"p_{name}": column for name, column in zip(self.classes, probabilities.T, strict=True)}
        return pd.DataFrame({"class": [self.classes[i] for i in scores.argmax(1)], **columns})


def takes(channels: int, length: int, ragged: bool) -> str:
    """Say in words what a model takes."""
    steps = "time, at least 2" if ragged else str(length)
    what = f"numbers of shape (batch, {channels}, {steps})"
    return f"{what}; a shorter series ends in NaN" if ragged else what


def checked(series: Any, channels: int, length: int, ragged: bool) -> FloatArray:
    """Return series as a model takes them: float32, finite but for the NaN that shorter series end in.

    Parameters
    ----------
    series
        An array or nested lists, of any kind of number.
    channels, length
        Of each series.
    ragged
        Series may have any length, and end in NaN.

    Raises
    ------
    Refused
        In one line: what was wrong, and what is allowed.
    """

    def refuse(what: str) -> Refused:
        return Refused(f"{what}; this model takes {takes(channels, length, ragged)}")

    if hasattr(series, "columns"):  # what the server makes of CSV, and of dataframe_split and its like
        raise refuse('a table, which has no axis of channels (a server takes {"inputs": [[[…]]]})')
    from tsexp.data import LARGEST

    try:
        found = np.asarray(series)
        if np.ma.is_masked(series):
            raise refuse("masked values; fill them (series.filled(numpy.nan) where they are gaps)")
        if found.dtype == object:  # a list with None, which is what JSON makes of NaN
            if any(isinstance(value, str | bytes) for value in found.flat):
                raise ValueError
            found = found.astype(np.float64)
    except (TypeError, ValueError):
        raise refuse("not an array: lists of unequal length, or values that are no numbers") from None
    if found.dtype.kind not in "fiub":
        raise refuse(f"values of type {found.dtype}")
    if found.size == 0:
        raise refuse(f"an empty batch, of shape {found.shape}")
    if found.ndim != 3:
        hint = (
            " (series[:, None] adds the axis of the one channel)" if (found.ndim, channels) == (2, 1) else ""
        )
        raise refuse(f"shape {found.shape} has {found.ndim} axes instead of 3{hint}")
    if found.shape[1] != channels or (found.shape[2] < 2 if ragged else found.shape[2] != length):
        raise refuse(f"shape {found.shape} does not fit")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        x = np.ascontiguousarray(found, dtype=np.float32)
    if np.isinf(x).any():
        raise refuse(f"series {_first(np.isinf(x))} has infinite values, or some that float32 cannot hold")
    if (np.abs(x) > LARGEST).any():
        what = f"values beyond ±{LARGEST:g}, sums of whose squares float32 may not hold"
        raise refuse(f"series {_first(np.abs(x) > LARGEST)} has {what}")
    missing = np.isnan(x)
    if not missing.any():
        return x
    if not ragged:
        raise refuse(f"series {_first(missing)} has NaN where a value is needed")
    lengths = (~missing).any(1).sum(1)
    if lengths.min() < 2:
        few = "one value" if lengths.min() else "no values"
        raise refuse(f"series {int(lengths.argmin())} has {few}")
    wrong = missing != (np.arange(x.shape[2]) >= lengths[:, None])[:, None]
    if wrong.any():
        raise refuse(f"series {_first(wrong)} has NaN before its end, or not in all channels")
    return x


def _first(found: np.ndarray[Any, Any]) -> int:
    """Return the number of the first series in which something was found."""
    return int(found.any((1, 2)).argmax())


mlflow.models.set_model(ArtifactModel())
