"""ONNX Runtime: exported as `Network.deployable` rewrites it, quantized by ONNX Runtime's own tools.

What was found out about it is in docs/log.md: which nodes to quantize, which fusion to switch off.
"""

from __future__ import annotations

import ast
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsexp.config import ConfigError, QuantConfig
from tsexp.data import FloatArray
from tsexp.models.network import PREPROCESS, Network
from tsexp.runtimes import Job, Layer
from tsexp.system import alive, cpu
from tsexp.system.quiet import quiet

SUPPORTED = {"none": ("cpu", "cuda"), **dict.fromkeys(("dynamic", "static", "qat", "weight_only"), ("cpu",))}
FAMILIES = {
    "convolution": {"none": ("cpu", "cuda"), "static": ("cpu",), "qat": ("cpu",)},
    "ridge": {"none": ("cpu", "cuda"), "dynamic": ("cpu",), "static": ("cpu",)},
}
"""No `dynamic` of convolutions: if its ranges are found while it runs, one of integers takes three times as
long as one in fp32. No `weight_only`: there is none for convolutions, nor for a product with a bias, the only
one of a ridge regression."""
PACKAGES = {"every": ("onnxruntime", "onnx", "onnxscript")}

FILE = "model.onnx"
OPSET = 23
"""The first with an Attention operator."""
PRODUCTS = ("MatMul", "Gemm")
CONVOLUTIONS = ("Conv", "Relu")
"""With the activation, which rounding to uint8 takes over: what is negative becomes zero."""
DISABLED = ("SkipLayerNormFusion",)
"""Its kernel needs 0.3 to 0.6 µs a row, ten times what the two operators need that it replaces."""

INT8 = {
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QAttention",
    "ConvInteger",
    "QLinearConv",
    "DynamicQuantizeLSTM",
}
FLOAT = {
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "ConvTranspose",
    "GRU",
    "LSTM",
    "RNN",
    "Attention",
    "MultiHeadAttention",
}


PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    # By default all its products are in TF32, which is not the fp32 that they are compared with.
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


def _providers(device: str) -> list[Any]:
    """Return what a session is given, in order of preference: names, or (name, options)."""
    name, options = PROVIDERS[device]
    return [(name, options), PROVIDERS["cpu"][0]] if options else [name]


def ready(quant: QuantConfig, device: str) -> None:
    """Refuse a GPU that this build of ONNX Runtime cannot use: it would take the CPU without a word."""
    import onnxruntime as ort

    wanted = PROVIDERS[device][0]
    if wanted not in ort.get_available_providers():
        raise ConfigError(
            f"runtime.device={device} with runtime=onnxruntime needs {wanted}, which the installed ONNX "
            "Runtime does not have; pip install onnxruntime-gpu in place of onnxruntime"
        )


def machine() -> dict[str, str]:
    """Return what quantization depends on."""
    return {"int8_largest": str(cpu.int8_largest())}


def export(model: Network, job: Job, folder: Path) -> dict[str, Any]:
    """Write ``model.onnx``; parameters and MACs are those of the rewritten model that was exported."""
    from tsexp import models

    lean = rewritten(model, job.quant.mode)
    with alive.scratch("onnx") as scratch:
        plain = scratch / "fp32.onnx"
        _quantize(plain, *to_onnx(lean, plain), job, folder / FILE)
    return {"parameters": models.count_parameters(lean), "macs": models.count_macs(lean)}


def rewritten(model: Network, mode: str) -> Network:
    """Return what is exported in a mode."""
    # In two dimensions biases and residuals come for free, but int8 products are not fused with them, and
    # MatMulNBits does not know Gemm. Convolutions in two dimensions are computed on blocks of channels.
    return model.deployable(fused=True, flat=mode == "none")


def to_onnx(model: Network, file: Path, opset: int = OPSET) -> tuple[list[str], list[str]]:
    """Export as it is: raw series (batch, channels, time) → scores (batch, classes), for any batch size.

    Returns
    -------
    list of str
        Names of the nodes whose activations stay in fp32: those of the stem (raw series have peaks, and int8
        ranges that hold them cost up to 20 dB and 9 points), and activations of no convolution.
    list of str
        Of preprocessing among them: constants, too, stay as they are.
    """
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    pre = model.arch.preprocessing
    series = torch.randn(2, model.arch.channels, pre.length)
    dims = {0: torch.export.Dim("batch", min=1, max=2**20)}
    if pre.ragged:  # series may be shorter or longer
        dims[2] = torch.export.Dim("time", min=2, max=2**20)
    with quiet():
        program = torch.onnx.export(
            model,
            (series,),
            dynamo=True,
            opset_version=opset,
            input_names=["series"],
            output_names=["scores"],
            dynamic_shapes=(dims,),
            external_data=False,
            verbose=False,
        )
        assert program is not None
        # Lists of modules, as text.
        scopes = {
            str(n.name): set(ast.literal_eval(n.metadata_props["pkg.torch.onnx.name_scopes"]))
            for n in program.model.graph
            if n.op_type in (*PRODUCTS, *CONVOLUTIONS)
        }
        free = {
            n.name for n in program.model.graph if n.op_type == "Relu" and _producer(n) not in CONVOLUTIONS
        }
        ClearMetadataAndDocStringPass()(program.model)  # stack traces of the exporter: a third of the file
        program.save(file)
    stem = [name for name, scope in scopes.items() if name in free or set(model.STEM) & scope]
    return stem, [name for name, scope in scopes.items() if PREPROCESS in scope]


def _producer(node: Any) -> str | None:
    """Return the kind of operation that a node's first input comes from."""
    before = node.inputs[0].producer()
    return None if before is None else str(before.op_type)


def _quantize(source: Path, stem: list[str], preprocess: list[str], job: Job, target: Path) -> None:
    quant = job.quant
    if quant.mode == "none":
        target.write_bytes(source.read_bytes())
        return
    with quiet():
        if quant.mode == "weight_only":
            _weight_only(source, preprocess, quant.weight_bits, target)
        elif quant.mode == "dynamic":
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(PRODUCTS),
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=cpu.int8_largest() < 127,
                nodes_to_exclude=stem,
                extra_options={"MatMulConstBOnly": True},
            )
        else:
            _static(source, stem, job, target)


def _static(source: Path, stem: list[str], job: Job, target: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, series: FloatArray) -> None:
            self.feed: Iterator[FloatArray] = iter(np.split(series, len(series)))

        def get_next(self) -> dict[str, FloatArray] | None:
            batch = next(self.feed, None)
            return None if batch is None else {"series": batch}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }
    quantize_static(
        prepared,
        target,
        Reader(job.calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=[*PRODUCTS, *CONVOLUTIONS],
        nodes_to_exclude=stem,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=cpu.int8_largest() < 127,
        calibrate_method=method[job.quant.calibration],
        extra_options={
            # Only products with weights, and their outputs stay float: what lies between them is faster and
            # more exact in float. (A convolution is computed in int8 only if its output is rounded.)
            "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
            "WeightSymmetric": True,
        },
    )
    _unround_residuals(target)


def _unround_residuals(file: Path) -> None:
    """Let only products read rounded tensors: the tool makes everybody read them who read the tensor before.

    Residuals lose 10 dB in T1, and time.
    """
    import onnx

    model = onnx.load(file)
    convolved = {n.output[0] for n in model.graph.node if n.op_type in CONVOLUTIONS}
    before = {
        n.output[0]: n.input[0]
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in convolved
    }
    before |= {
        n.output[0]: before[n.input[0]]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in before
    }
    for node in model.graph.node:
        if node.op_type not in (*PRODUCTS, *CONVOLUTIONS, "DequantizeLinear"):
            for i, name in enumerate(node.input):
                node.input[i] = before.get(name, name)
    onnx.save(model, file)


def _weight_only(source: Path, preprocess: list[str], bits: int, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    # accuracy_level 1: products in fp32; higher ones quantize the activations as well, which is `dynamic`.
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source),
        bits=bits,
        block_size=32,
        is_symmetric=True,
        accuracy_level=1,
        nodes_to_exclude=preprocess,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), False)


def load(folder: Path, mode: str, device: str, threads: int) -> OnnxPredictor:
    """Load what `export` wrote, all of it in one file."""
    _whole(folder / FILE)
    return OnnxPredictor(folder / FILE, threads, device=device)


def annotate(folder: Path, facts: Mapping[str, str], target: Path) -> None:
    """Write a copy of the artifact's model with these facts in its metadata."""
    import onnx

    model = onnx.load(folder / FILE)
    onnx.helper.set_model_props(model, {p.key: p.value for p in model.metadata_props} | dict(facts))
    onnx.save(model, target / FILE)


def script(mode: str, device: str) -> tuple[str, list[str]]:
    """Return what a script imports, and its lines that make ``classes`` and ``predict`` of an annotated copy.

    ``here`` is the folder of the copy.
    """
    session = f'here / "{FILE}", providers={_providers(device)}, disabled_optimizers={list(DISABLED)}'
    return "onnxruntime", [
        f"session = onnxruntime.InferenceSession({session})",
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        'predict = lambda series: session.run(None, {"series": series})[0]',
    ]


def _whole(file: Path) -> None:
    """Refuse a model with weights elsewhere: it could read any file."""
    if b"location" not in file.read_bytes():  # the key that says where; looking takes no import of onnx
        return
    import onnx

    if _refers(onnx.load(file, load_external_data=False)):
        raise ValueError(f"{file} has weights in another file; no artifact of this program does")


def _refers(message: Any) -> bool:
    """Whether a part of a protobuf message, wherever it is, has ``external_data``."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            return True
        parts = value if isinstance(value, Iterable) else [value]
        if field.message_type is not None and any(map(_refers, parts)):
            return True
    return False


class OnnxPredictor:
    """Raw series → class scores with an ONNX file.

    Raises
    ------
    RuntimeError
        If the session does not run on the device: ONNX Runtime falls back on the CPU silently.
    """

    def __init__(
        self, file: Path, threads: int, disabled: tuple[str, ...] = DISABLED, device: str = "cpu"
    ) -> None:
        self.file, self.threads = file, threads
        self.disabled, self.device = list(disabled), device
        self.session = self._session()

    def __call__(self, series: FloatArray) -> FloatArray:
        return self.session.run(None, {"series": series})[0]  # type: ignore[no-any-return]

    def _session(self, optimized: Path | None = None) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        # Idle threads that spin burn CPU time in somebody else's window: 38 ms after every call, seen with
        # two threads.
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        session = ort.InferenceSession(
            self.file, options, providers=_providers(self.device), disabled_optimizers=self.disabled
        )
        found, wanted = session.get_providers()[0], PROVIDERS[self.device][0]
        if found != wanted:
            raise RuntimeError(
                f"ONNX Runtime runs this model on {found}, not on {wanted}: CUDA or cuDNN cannot be loaded"
            )
        return session

    def weights_digest(self) -> str:
        """Of the file: a session keeps its constants to itself."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def layers(self) -> list[Layer]:
        """Read off the graph that a session with the same options writes after its optimizations."""
        import onnx

        with alive.scratch("onnx") as scratch:
            optimized = scratch / "optimized.onnx"
            self._session(optimized)
            graph = onnx.load(optimized).graph
        return read_layers(graph)


class OnnxFile(OnnxPredictor):
    """Somebody's own ONNX file, as ONNX Runtime takes it: one input, of any name, shape and kind of float.

    Of several outputs, the first of floats with a batch axis counts.

    Raises
    ------
    ConfigError
        If it has several inputs, another kind of input, or no such output.
    """

    def __init__(self, file: Path, threads: int) -> None:
        super().__init__(file, threads, disabled=())
        inputs = self.session.get_inputs()
        kinds: dict[str, Any] = {
            "tensor(float)": np.dtype(np.float32),
            "tensor(double)": np.dtype(np.float64),
        }
        if len(inputs) != 1 or inputs[0].type not in kinds:
            found = ", ".join(f"{i.name} ({i.type})" for i in inputs)
            raise ConfigError(f"{file} has the inputs {found}; one of float32 or float64 can be fed")
        outputs = [o for o in self.session.get_outputs() if o.type in (*kinds, "tensor(float16)")]
        batch = inputs[0].shape[:1]
        # Of how many axes may be unknown; a first one of another size is none of a batch.
        outputs.sort(key=lambda o: not o.shape or (isinstance(o.shape[0], int) and o.shape[:1] != batch))
        if not outputs:
            found = ", ".join(f"{o.name} ({o.type})" for o in self.session.get_outputs())
            raise ConfigError(f"{file} has the outputs {found}; one of floats (batch, …) is needed")
        self.input, self.outputs = inputs[0].name, [outputs[0].name]
        self.dtype = kinds[inputs[0].type]
        self.shape = [size if isinstance(size, int) else None for size in inputs[0].shape]

    def __call__(self, series: FloatArray) -> FloatArray:
        return self.session.run(self.outputs, {self.input: np.asarray(series, self.dtype)})[0]  # type: ignore[no-any-return]

    def told(self, key: str) -> str | None:
        """Return what its metadata say."""
        return self.session.get_modelmeta().custom_metadata_map.get(key)  # type: ignore[no-any-return]

    def facts(self) -> dict[str, Any]:
        """Bytes on disk, kind and shape of the input, and all numbers in it but indices."""
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data

        found = list(_constants(onnx.load(self.file, load_external_data=False).graph))
        tensors = [c for c in found if isinstance(c, onnx.TensorProto)]
        lists = [c for c in found if not isinstance(c, onnx.TensorProto)]
        indices = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
        beside = {ExternalDataInfo(t).location for t in tensors if uses_external_data(t)}
        files = [self.file, *(self.file.parent / name for name in beside)]
        return {
            "bytes": sum(f.stat().st_size for f in files),
            "dtype": str(self.dtype),
            "shape": self.shape,
            "parameters": sum(math.prod(t.dims) for t in tensors if t.data_type not in indices)
            + sum(map(len, lists)),
        }


def _constants(graph: Any) -> Iterator[Any]:
    """Yield what a graph, and those within it, hold: tensors, and lists of floats (thresholds of trees)."""
    yield from graph.initializer
    yield from (sparse.values for sparse in graph.sparse_initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor.values
            yield from attribute.tensors
            yield attribute.floats
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _constants(inner)


def read_layers(graph: Any) -> list[Layer]:
    """List the products of an ONNX graph, and the other nodes that own weights."""
    from onnx import numpy_helper

    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    dequantized = {
        n.output[0]: n.input[0]
        for n in graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in constants
    }
    layers = []
    for node in graph.node:
        owned = [constants[dequantized.get(i, i)] for i in node.input if dequantized.get(i, i) in constants]
        size = sum(a.nbytes for a in owned)
        if node.op_type in INT8:
            dtype = "int8"
        elif node.op_type == "MatMulNBits":
            bits = next(a.i for a in node.attribute if a.name == "bits")
            dtype = f"int{bits} weights"
        elif node.op_type in FLOAT:
            stored = {str(a.dtype) for a in owned if a.ndim > 1}
            dtype = "int8 weights" if stored & {"int8", "uint8"} else "float32"
        elif any(a.ndim and a.dtype.kind == "f" for a in owned) and node.op_type not in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Gather",
            "Expand",
            "Pad",
        ):
            layers.append(Layer(node.name, node.op_type, "float32", size, False))
            continue
        else:
            continue
        layers.append(Layer(node.name, node.op_type, dtype, size, True))
    return layers
