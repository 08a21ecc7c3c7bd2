"""OpenVINO on the CPU: exported as `Network.deployable` rewrites it, quantized by NNCF.

There is no `dynamic`: the plugin quantizes activations of compressed layers while it runs, but drops that
silently, layer by layer, where widths do not suit it, and the graph that it shows does not tell
(docs/log.md).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.config import CALIBRATED, ConfigError, QuantConfig, Unsupported
from tsexp.data import FloatArray
from tsexp.models.network import PREPROCESS, Network
from tsexp.runtimes import FLOATS, Job, Layer
from tsexp.system import cpu
from tsexp.system.quiet import quiet

SUPPORTED = dict.fromkeys(("none", "static", "qat", "weight_only", "bf16"), ("cpu",))
FAMILIES = {
    "convolution": dict.fromkeys(("none", "static", "qat", "bf16"), ("cpu",)),
    "ridge": dict.fromkeys(("none", "static", "weight_only", "bf16"), ("cpu",)),
}
"""No `weight_only` of convolutions: the plugin makes their weights fp32 again when it loads them."""
PACKAGES = {"every": ("openvino",), "static": ("nncf",), "qat": ("nncf",), "weight_only": ("nncf",)}

FILE = "model.xml"
"""The graph; its weights are in the file of the same name that ends in ``.bin``."""
DEVICE = "CPU"
INFO = "tsexp"
"""Where facts are in the ``rt_info`` of a model."""
OUTLIERS = 1e-4
"""Share of the values of a series at either end that `percentile` leaves out."""
SHAPES = 4
"""Of batches, that have a graph of their own: a full one, what is left over, a single series, another."""
GROUP = 32
"""Inputs that share a scale, of int4 weights; fewer, or int8, where this does not divide a layer's inputs."""

PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")
FUSED = ("/MatMul", "/ScaledDotProductAttention")
"""How the names of products end that were fused into one kernel."""
WITH_WEIGHTS = ("MatMul", "Convolution", "GroupConvolution")
"""Of the graph as converted: what modes round."""
NO_BF16 = (
    "quant.mode=bf16 with runtime=openvino is not supported here: OpenVINO finds no bf16 on this CPU, and "
    "would compute in fp32, as quant.mode=none does"
)
COMPUTED = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "i8": "int8", "u8": "int8"}
"""How the name of a kernel ends → what it computes in; a layer's ``runtimePrecision`` is that of its weights
or of its mask."""
STORED = {"i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}


def ready(quant: QuantConfig, device: str) -> None:
    """Refuse entropy calibration, which NNCF has no estimator for."""
    if quant.mode in CALIBRATED and quant.calibration == "entropy":
        raise Unsupported(
            "quant.calibration=entropy with runtime=openvino is not supported; it has minmax and percentile"
        )


def here(quant: QuantConfig) -> None:
    """Refuse bf16 where the CPU has none."""
    if quant.mode == "bf16" and not has_bf16():
        raise Unsupported(NO_BF16)


@cache
def core() -> Any:
    """One for the process, for good.

    The plugin of each has a stack for signals of its own, and puts the one back that it found. Of two that do
    not end in reverse order, the second puts back the first one's, which is gone: the next signal that Python
    handles, SIGTERM for one, is the end of the process (docs/log.md).
    """
    # Else Numba takes OpenVINO's TBB, once that is loaded, for its threads, which no fork survives.
    layers = os.environ.setdefault("NUMBA_THREADING_LAYER_PRIORITY", "omp tbb workqueue")
    if "numba" in sys.modules:
        sys.modules["numba"].config.THREADING_LAYER_PRIORITY = layers.split()
    import openvino as ov

    return ov.Core()


def has_bf16() -> bool:
    """Whether the plugin computes in bf16 on this CPU."""
    return "BF16" in machine()["cpu"].split()


def machine() -> dict[str, str]:
    """Return what quantization and the graph that runs depend on: of a CPU without bf16 it is another."""
    return {
        "cpu": " ".join(sorted(core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))),
        "int8_largest": str(cpu.int8_largest()),
    }


def export(model: Network, job: Job, folder: Path) -> dict[str, Any]:
    """Write ``model.xml`` and ``model.bin``.

    Parameters and MACs are those of the rewritten model that was exported.
    """
    import openvino as ov

    from tsexp import models

    lean = rewritten(model, job.quant.mode)
    with _quiet():
        ov.save_model(_quantized(*convert(lean), job), folder / FILE, compress_to_fp16=False)
    return {"parameters": models.count_parameters(lean), "macs": models.count_macs(lean)}


def rewritten(model: Network, mode: str) -> Network:
    """Return what is exported in a mode."""
    # Its convolutions are faster than products on gathered windows.
    return model.deployable(products=False)


def convert(model: Network) -> tuple[Any, dict[str, list[str]]]:
    """Convert as it is: raw series (batch, channels, time) → scores (batch, classes), for any batch size.

    Return the names of nodes, too: of each part of the stem, and of preprocessing.
    """
    import openvino as ov
    import torch
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
    from torch.export.decomp_utils import CustomDecompTable

    pre = model.arch.preprocessing
    series = torch.randn(2, model.arch.channels, pre.length)
    free = {0: torch.export.Dim("batch", min=1, max=2**20)}
    if pre.ragged:
        free[2] = torch.export.Dim("time", min=2, max=2**20)  # series may be shorter or longer
    program = torch.export.export(model, (series,), dynamic_shapes=(free,))
    # As the conversion does first; nodes keep these names, not those they have before.
    table = CustomDecompTable()
    for op in ops_to_not_decompose():
        table.pop(op, None)
    program = program.run_decompositions(table)
    converted = ov.convert_model(program)
    converted.reshape([-1 if i in free else size for i, size in enumerate(series.shape)])
    # A node is called after the one it was made from: linear_1/aten.linear.default/MatMul
    parts = {
        n.name: {path for path, _ in n.meta.get("nn_module_stack", {}).values()} for n in program.graph.nodes
    }
    made_from = {n.get_friendly_name(): n.get_friendly_name().split("/")[0] for n in converted.get_ops()}
    return converted, {
        part: [name for name, node in made_from.items() if part in parts.get(node, ())]
        for part in (*model.STEM, PREPROCESS)
    }


def _quantized(model: Any, parts: dict[str, list[str]], job: Job) -> Any:
    if job.quant.mode == "none":
        return model
    if job.quant.mode == "bf16":
        return _store_bf16(model)
    import nncf

    if job.quant.mode != "weight_only":
        return _static(model, [name for names in parts.values() for name in names], job)
    # What preprocessing multiplies with are no weights.
    ignored = nncf.IgnoredScope(names=parts[PREPROCESS], validate=False)
    if job.quant.weight_bits == 8:
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM, ignored_scope=ignored)
    fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    return nncf.compress_weights(
        model,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=GROUP,
        all_layers=True,
        ignored_scope=ignored,
        advanced_parameters=fallback,
    )


def _store_bf16(model: Any) -> Any:
    """Round the weights of products in the file.

    The plugin does so anyway, after folding norms into them: as exact, not the same bits.
    """
    import openvino as ov
    from openvino import opset13 as ops

    for node in model.get_ops():
        if node.get_type_name() in WITH_WEIGHTS:
            weight = node.input_value(1).get_node()
            if weight.get_type_name() == "Constant":
                node.input(1).replace_source_output(
                    ops.convert(ops.constant(weight.data, dtype=ov.Type.bf16), ov.Type.f32).output(0)
                )
    return model


def _static(model: Any, stem: list[str], job: Job) -> Any:
    import nncf
    from nncf.quantization import advanced_parameters as advanced
    from nncf.quantization import range_estimator as ranges

    kind = {
        "minmax": (ranges.StatisticsType.MIN, ranges.StatisticsType.MAX),
        "percentile": (ranges.StatisticsType.QUANTILE,) * 2,
    }
    low, high = (
        ranges.StatisticsCollectorParameters(statistic, over_series, quantile_outlier_prob=OUTLIERS)
        for statistic, over_series in zip(
            kind[job.quant.calibration], (ranges.AggregatorType.MIN, ranges.AggregatorType.MAX), strict=True
        )
    )
    # Linear layers and convolutions only, and not the stem's: raw series in int8 cost ten decibels, and what
    # lies between is not faster in int8.
    others = [
        n.get_friendly_name()
        for n in model.get_ops()
        if n.get_type_name() not in (*WITH_WEIGHTS, "Constant", "Parameter", "Result")
    ]
    return nncf.quantize(
        model,
        nncf.Dataset(np.split(job.calibration, len(job.calibration))),
        subset_size=len(job.calibration),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=others + stem, validate=False),
        advanced_parameters=advanced.AdvancedQuantizationParameters(
            activations_range_estimator_params=ranges.RangeEstimatorParameters(low, high),
            # Off: it leaves nothing of T3 (docs/log.md).
            smooth_quant_alphas=advanced.AdvancedSmoothQuantParameters(matmul=-1, convolution=-1),
            disable_bias_correction=True,
            **({"overflow_fix": advanced.OverflowFix.ENABLE} if cpu.int8_largest() < 127 else {}),
        ),
    )


def load(folder: Path, mode: str, device: str, threads: int) -> OpenvinoPredictor:
    """Load what `export` wrote."""
    if mode == "bf16" and not has_bf16():
        raise Unsupported(NO_BF16)
    return OpenvinoPredictor(folder / FILE, mode, threads)


def annotate(folder: Path, facts: Mapping[str, str], target: Path) -> None:
    """Write a copy of the artifact's model with these facts under ``tsexp`` in its ``rt_info``."""
    import openvino as ov

    model = core().read_model(folder / FILE)
    for key, value in facts.items():
        model.set_rt_info(value, [INFO, key])
    ov.save_model(model, target / FILE, compress_to_fp16=False)


def script(mode: str, device: str) -> tuple[str, list[str]]:
    """Return what a script imports, and its lines that make ``classes`` and ``predict`` of an annotated copy.

    ``here`` is the folder of the copy.
    """
    return "openvino", [
        f'model = openvino.Core().read_model(here / "{FILE}")',
        f"compiled = openvino.compile_model(model, {DEVICE!r}, {settings(mode, 1)})",
        f'classes = json.loads(model.get_rt_info(["{INFO}", "classes"]).astype(str))',
        "predict = lambda series: compiled(series)[0]",
    ]


def settings(mode: str, threads: int) -> dict[str, Any]:
    """Return what a graph is compiled with."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if mode == "bf16" else "f32",  # else bf16 wherever the CPU has it
        "ENABLE_CPU_PINNING": False,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else weight_only quantizes activations as well
    }


class OpenvinoPredictor:
    """Raw series → class scores. The first `SHAPES` shapes have a graph each, all others share one.

    At every call the plugin works out anew what a graph for any shape does with this one, which takes longer
    than a small model's products; to compile takes some tenths of a second (docs/log.md). A shape keeps its
    graph: two round differently.
    """

    def __init__(self, file: Path, mode: str, threads: int) -> None:
        self.file, self.settings = file, settings(mode, threads)
        self.model = core().read_model(file)
        self.own: dict[tuple[int, ...], Any] = {}

    def __call__(self, series: FloatArray) -> FloatArray:
        request = self._request(series.shape)
        return request.infer({0: series}, share_inputs=True, share_outputs=False)[0]  # type: ignore[no-any-return]

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self.own:
            import openvino as ov

            free = self.model.input(0).partial_shape
            if len(self.own) == SHAPES or free.is_static or not free.compatible(ov.PartialShape(list(shape))):
                return self._any
            model = self.model.clone()
            model.reshape(list(shape))
            self.own[shape] = self._compiled(model)
        return self.own[shape]

    @cached_property
    def _any(self) -> Any:
        return self._compiled(self.model)

    def _compiled(self, model: Any) -> Any:
        return core().compile_model(model, DEVICE, self.settings).create_infer_request()

    def weights_digest(self) -> str:
        """Of the files: a compiled graph keeps its constants to itself."""
        total = hashlib.sha256(self.file.read_bytes())
        total.update(self.file.with_suffix(".bin").read_bytes())
        return total.hexdigest()

    def layers(self) -> list[Layer]:
        """Read off the graph that runs, of the newest shape; its kernels are chosen at the first call."""
        shape = next(
            reversed(self.own),
            tuple(1 if d.is_dynamic else d.get_length() for d in self.model.input(0).partial_shape),
        )
        self(np.zeros(shape, np.float32))
        graph = self._request(shape).get_compiled_model().get_runtime_model()
        return [layer for node in graph.get_ordered_ops() for layer in _read(node)]


class OpenvinoFile(OpenvinoPredictor):
    """Somebody's own OpenVINO file (``.xml``, with its ``.bin`` beside it), computed in float32.

    One input, of any name, shape and kind of float; of several outputs, the first counts.

    Raises
    ------
    ConfigError
        If it has several inputs, or another kind of input.
    """

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__(file, "none", threads)
        inputs = self.model.inputs
        kinds: dict[str, Any] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
        found = [i.get_element_type().get_type_name() for i in inputs]
        if len(inputs) != 1 or found[0] not in kinds:
            raise ConfigError(
                f"{file} has inputs of type {', '.join(found)}; one of float32 or float64 can be fed"
            )
        self.dtype = kinds[found[0]]
        shape = inputs[0].partial_shape
        self.shape = (
            [] if shape.rank.is_dynamic else [None if d.is_dynamic else d.get_length() for d in shape]
        )

    def __call__(self, series: FloatArray) -> FloatArray:
        return super().__call__(np.asarray(series, self.dtype))

    def told(self, key: str) -> str | None:
        """Return what its ``rt_info`` says under ``tsexp``."""
        there = self.model.has_rt_info([INFO, key])
        return self.model.get_rt_info([INFO, key]).astype(str) if there else None

    def facts(self) -> dict[str, Any]:
        """Bytes on disk, and the kind and shape of the input."""
        return {
            "bytes": sum(f.stat().st_size for f in (self.file, self.file.with_suffix(".bin")) if f.exists()),
            "dtype": str(self.dtype),
            "shape": self.shape,
        }


def _read(node: Any) -> Iterator[Layer]:
    info = {
        key: node.rt_info[key].astype(str)
        for key in ("layerType", "primitiveType", "originalLayersNames")
        if key in node.rt_info
    }
    kind, kernel = info["layerType"], info.get("primitiveType", "")
    made_from = info.get("originalLayersNames", "").split(",")
    # A Subgraph is an attention, products in a row (of a single series), or elementwise operations alone.
    fused = [name for name in made_from if name.endswith(FUSED)] if kind == "Subgraph" else []
    owned = [
        i
        for i in node.input_values()
        if i.get_node().rt_info["layerType"].astype(str) == "Const" and i.get_element_type().is_static()
    ]
    dtype = COMPUTED.get(kernel.rpartition("_")[2].lower(), kernel)
    width = {"bfloat16": 16}.get(dtype, 32)
    size = sum(math.prod(i.get_shape()) * min(i.get_element_type().bitwidth, width) for i in owned) // 8
    stored = {i.get_element_type().get_type_name() for i in owned} & set(STORED)
    if fused:
        # Its kernel is named after what it answers in. Of integers it makes products of integers, and scales
        # these: so the names of what it was made from say.
        whole_numbers = stored and any("/Dequantization" in name for name in made_from)
        for name in fused:
            last = name == fused[-1]  # tells the bytes of all
            yield Layer(name, kind, "int8" if whole_numbers else dtype, size if last else 0, True)
    elif kind in PRODUCTS:
        in_floats = stored and dtype in FLOATS
        yield Layer(
            node.get_friendly_name(),
            kind,
            f"{STORED[stored.pop()]} weights" if in_floats else dtype,
            size,
            True,
        )
    elif kind in ("Eltwise", "MVN", "Subgraph") and any(
        i.get_element_type().is_real() and math.prod(i.get_shape()) > 1 for i in owned
    ):
        yield Layer(node.get_friendly_name(), kind, dtype, size, False)


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF draws progress bars, too."""
    with quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield
