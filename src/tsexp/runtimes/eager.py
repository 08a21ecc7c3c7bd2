"""PyTorch as it is: arch.json and safetensors, run eagerly; and whatever is no network, as it is.

The dense fp32 model here is what every saving is relative to.

int8 is torchao's, without a compiler: smaller on disk, but on a CPU no faster than fp32, dynamic at batch 1
several times slower. It stays as the row that says so.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tsexp import models
from tsexp.config import QuantConfig, Unsupported
from tsexp.data import FloatArray
from tsexp.models import Model, Network, estimators
from tsexp.models.network import PREPROCESS
from tsexp.runtimes import Job, Layer
from tsexp.system.quiet import quiet

SUPPORTED = {"none": ("cpu", "cuda"), "bf16": ("cpu",), "dynamic": ("cpu",), "weight_only": ("cpu",)}
FAMILIES = {
    "convolution": {"none": ("cpu", "cuda"), "bf16": ("cpu",)},  # torchao rounds linear layers only
    "estimator": {"none": ("cpu",)},
}
PACKAGES = {
    "dynamic": ("torchao",),
    "weight_only": ("torchao",),
    "estimator": estimators.PACKAGES,
}
MULTIPLY = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
"""Modules with products of their weights."""


def ready(quant: QuantConfig, device: str) -> None:
    """Refuse 4-bit weights: torchao's kernels for them are for GPUs."""
    if quant.mode == "weight_only" and quant.weight_bits != 8:
        raise Unsupported(
            f"quant.weight_bits={quant.weight_bits} with runtime=eager is not supported on cpu; "
            "runtime=onnxruntime has it"
        )


def export(model: Model, job: Job, folder: Path) -> dict[str, Any]:
    """Write the model; return what was counted on the files that were written."""
    if not isinstance(model, Network):
        models.save(model, folder)
        return {"parameters": models.count_parameters(model), "macs": models.count_macs(model)}
    # A number format changes neither count, and the flop counter knows fp32 only.
    plain = rewritten(model, job.quant.mode)
    facts = {"parameters": models.count_parameters(plain), "macs": models.count_macs(plain)}
    written = _in_format(plain, job.quant.mode)
    models.save(model, folder)
    save_file(
        {name: t.detach().cpu().contiguous().clone() for name, t in _tensors(written.state_dict())},
        folder / "weights.safetensors",
    )
    return facts


def rewritten(model: Network, mode: str) -> Network:
    """Return what is exported in a mode: a copy."""
    return copy.deepcopy(model).eval()


def load(folder: Path, mode: str, device: str, threads: int) -> EagerPredictor | EstimatorPredictor:
    """Load what `export` wrote; PyTorch's threads are the process's, see `energy.worker`."""
    plain = models.rebuild(folder)
    if not isinstance(plain, Network):
        own: Any = models.load(folder)
        own.use_threads(threads)
        return EstimatorPredictor(own)
    model = _in_format(plain.eval(), mode)
    stored = load_file(folder / "weights.safetensors")
    state = {}
    for name, t in model.state_dict().items():
        if _is_plain(t):
            state[name] = stored[name]
        else:
            parts, context = t.__tensor_flatten__()
            state[name] = type(t).__tensor_unflatten__(
                {p: stored[f"{name}.{p}"] for p in parts}, context, None, None
            )
    model.load_state_dict(state)
    kind = CudaPredictor if device == "cuda" else EagerPredictor
    return kind(model.requires_grad_(False).to(device), mode, device)


def _in_format(model: Network, mode: str) -> Network:
    """Bring a model into the number format of a mode, in place."""
    if mode == "bf16":
        return to_bf16(model)
    if mode != "none":
        with quiet():
            from torchao.quantization import (
                Int8DynamicActivationInt8WeightConfig,
                Int8WeightOnlyConfig,
                quantize_,
            )

        # By default it changes inductor's settings, for the whole process.
        config = {"dynamic": Int8DynamicActivationInt8WeightConfig, "weight_only": Int8WeightOnlyConfig}[mode]
        # Raw series have peaks, which int8 ranges do not bear: as in every runtime, the stem's
        # activations stay fp32.
        quantize_(
            model,
            config(set_inductor_config=False),
            lambda m, name: isinstance(m, nn.Linear) and not (mode == "dynamic" and model.in_stem(name)),
        )
    return model


def to_bf16(model: Network) -> Network:
    """Cast all that has weights, in place.

    Not preprocessing: of a raw series with mean 1e4 and spread 1, bf16 leaves nothing.
    """
    for name, child in model.named_children():
        if name != PREPROCESS:
            child.bfloat16()
    for parameter in model.parameters(recurse=False):
        parameter.data = parameter.data.bfloat16()
    return model


def _is_plain(t: Any) -> bool:
    return not hasattr(t, "__tensor_flatten__")


def _tensors(named: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Take torchao's tensors apart: int8 values, scales, zero points."""
    for name, t in named.items():
        if _is_plain(t):
            yield name, t
        else:
            yield from _tensors({f"{name}.{part}": getattr(t, part) for part in t.__tensor_flatten__()[0]})


class EagerPredictor:
    """Raw series → class scores with a `Network` in eval mode."""

    def __init__(self, model: Network, mode: str, device: str) -> None:
        self.model, self.device = model, device
        self.dtype = torch.bfloat16 if mode == "bf16" else torch.float32

    @torch.inference_mode()
    def __call__(self, series: FloatArray) -> FloatArray:
        x, mask = self.model.preprocess(torch.from_numpy(series).to(self.device))
        return self.model.network(x.to(self.dtype), mask).float().cpu().numpy()

    def weights_digest(self) -> str:
        """SHA-256 over all parameters and buffers, of what they are made of where they are quantized."""
        return _digest(dict(_tensors(dict([*self.model.named_parameters(), *self.model.named_buffers()]))))

    def layers(self) -> list[Layer]:
        """Modules with parameters, as loaded."""
        layers = []
        for name, module in self.model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if own:
                size = sum(t.numel() * t.element_size() for _, t in _tensors(own))
                matmul = isinstance(module, MULTIPLY)
                layers.append(
                    Layer(
                        name or "cls", type(module).__name__, _dtype(next(iter(own.values()))), size, matmul
                    )
                )
        return layers


class CudaPredictor(EagerPredictor):
    """On a GPU in fp32 as IEEE has it; by default, cuDNN convolves in TF32."""

    def __call__(self, series: FloatArray) -> FloatArray:
        # Not once and for all: models are trained in this process, too.
        cudnn = torch.backends.cudnn
        before, cudnn.allow_tf32 = cudnn.allow_tf32, False
        try:
            return super().__call__(series)
        finally:
            cudnn.allow_tf32 = before


class EstimatorPredictor:
    """Raw series → class scores with what is no network."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, series: FloatArray) -> FloatArray:
        return self.model.scores(series)

    def weights_digest(self) -> str:
        """SHA-256 over all that it learned."""
        return _digest(self.model.state())

    def layers(self) -> list[Layer]:
        """Arrays that it learned: which of them take part in products is its own affair."""
        kind = type(self.model).__name__
        return [
            Layer(name, kind, str(t.dtype).removeprefix("torch."), t.numel() * t.element_size(), False)
            for name, t in self.model.state().items()
        ]


def _digest(named: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, value in sorted(named.items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _dtype(weight: Any) -> str:
    """Of the product with this weight."""
    if _is_plain(weight):
        return str(weight.dtype).removeprefix("torch.")
    return "int8" if weight.act_quant_kwargs is not None else "int8 weights"
