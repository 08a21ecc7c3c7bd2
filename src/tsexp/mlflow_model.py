"""The deployable artifact as an MLflow model, from code.

MLflow stores this file, this package and the artifact folder, and pickles nothing.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np


class ArtifactModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc,name-defined]
    """Raw series, float32 (batch, channels, time) → class scores, float32 (batch, classes)."""

    def load_context(self, context: Any) -> None:
        """Load the artifact folder that was logged."""
        from tsexp import runtimes

        self.predictor = runtimes.load(Path(context.artifacts["artifact"]))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:  # type: ignore[type-arg]
        """Class scores, in the order of ``classes`` in the artifact's manifest."""
        return self.predictor(np.ascontiguousarray(model_input, dtype=np.float32))


mlflow.models.set_model(ArtifactModel())
