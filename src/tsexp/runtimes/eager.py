"""PyTorch as it is: arch.json and safetensors, run eagerly. The dense fp32 model here is what every saving is relative to."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from tsexp import models
from tsexp.data import FloatArray
from tsexp.models import Classifier
from tsexp.runtimes import Job, Layer

SUPPORTED = {"none": ("cpu", "cuda")}
PACKAGES: dict[str, tuple[str, ...]] = {}


def export(model: Classifier, job: Job, folder: Path) -> dict[str, Any]:
    """Write the model; return what was counted on the files that were written."""
    models.save(model, folder)
    written = models.load(folder)
    return {"parameters": models.count_parameters(written), "macs": models.count_macs(written)}


def load(folder: Path, mode: str, device: str, threads: int) -> EagerPredictor:
    """Load what `export` wrote; PyTorch's threads are the process's, see `energy.worker`."""
    return EagerPredictor(models.load(folder).to(device), device)


class EagerPredictor:
    """Raw series → class scores with a `Classifier` in eval mode."""

    def __init__(self, model: Classifier, device: str) -> None:
        self.model, self.device = model, device

    @torch.inference_mode()
    def __call__(self, series: FloatArray) -> FloatArray:
        return self.model(torch.from_numpy(series).to(self.device)).cpu().numpy()  # type: ignore[no-any-return]

    def weights_digest(self) -> str:
        """SHA-256 over all parameters and buffers."""
        total = hashlib.sha256()
        for name, value in sorted([*self.model.named_parameters(), *self.model.named_buffers()]):
            total.update(name.encode())
            total.update(value.detach().cpu().contiguous().numpy().tobytes())
        return total.hexdigest()

    def layers(self) -> list[Layer]:
        return [Layer(r.name, r.kind, r.dtype, r.bytes, r.kind in ("Linear", "Conv1d")) for r in models.summary(self.model)]
