"""A runtime to compare with: ONNX as PyTorch exports it and ONNX Runtime quantizes it, all by default."""

from __future__ import annotations

from pathlib import Path

from tsexp.cache import Cache
from tsexp.runtimes import Artifact, onnxruntime, read_manifest
from tsexp.system.files import sha256, write_json
from tsexp.system.quiet import quiet
from tsexp.training import Fitted

VERSION = 1
OPSET = 18
SUPPORTED = {"none": ("cpu",), "dynamic": ("cpu",)}


def artifact(fitted: Fitted, mode: str, cache: Cache) -> Artifact:
    """Export a fitted model: mode ``none`` or ``dynamic``.

    Not by `runtimes.deploy`, which refuses what quantization has made as wrong as these defaults may.
    """
    from onnxruntime.quantization import quantize_dynamic

    def build(folder: Path) -> None:
        model, file = fitted.load(), folder / onnxruntime.FILE
        exported = file if mode == "none" else folder / "fp32.onnx"
        onnxruntime.to_onnx(model, exported, opset=OPSET)
        if mode == "dynamic":
            with quiet():
                quantize_dynamic(exported, file)
            exported.unlink()
        manifest = {
            "runtime": f"{__name__}:",
            "mode": mode,
            "device": "cpu",
            "parameters": sum(p.numel() for p in model.parameters()),
            "macs": None,
            "bytes": file.stat().st_size,
            "files": {file.name: sha256(file)},
        }
        write_json(folder / "manifest.json", manifest)

    entry = cache.stage("plain_onnx", VERSION, {"model": fitted.signature, "mode": mode}, build)
    return Artifact(entry, read_manifest(entry.folder))


def load(folder: Path, mode: str, device: str, threads: int) -> onnxruntime.OnnxPredictor:
    """Load it with all of ONNX Runtime's own optimizations."""
    return onnxruntime.OnnxPredictor(folder / onnxruntime.FILE, threads, disabled=(), device=device)
