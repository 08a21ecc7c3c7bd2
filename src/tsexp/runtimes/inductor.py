"""PyTorch's own compiler ahead of time (AOTInductor).

Exported with the rewrites of `rewrite`, int8 by torchao's PT2E, run without Python.

The package holds machine code for the CPU it was made on, and the C++ that it was made from. Compiling takes
10 to 60 s, at export.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tsexp import models
from tsexp.config import CALIBRATED, ConfigError, QuantConfig, Unsupported, digest, must_be_trusted
from tsexp.data import FloatArray
from tsexp.models import Network
from tsexp.runtimes import Job, Layer
from tsexp.runtimes.eager import to_bf16
from tsexp.system import cpu
from tsexp.system.quiet import quiet

SUPPORTED = dict.fromkeys(("none", "bf16", "dynamic", "static", "qat"), ("cpu",))
FAMILIES = dict.fromkeys(("convolution", "views", "ridge"), dict.fromkeys(("none", "bf16"), ("cpu",)))
"""No int8. Weights used more than once (views share an encoder) the compiler makes fp32 again. An int8
convolution in one dimension it takes for longer than it is (torch 2.13), and fails where padding is masked
afterwards; `dynamic` PT2E has for linear layers only."""
TRUSTED = "inductor"
PACKAGES = dict.fromkeys(("dynamic", "static", "qat"), ("torchao",))

FILE = "model.pt2"
INPUT = "input.json"

BATCHES = (31, 37, 41, 43, 47, 53, 59, 61)
"""To export with, one that is no other size in the model: freezing has been seen to take a batch of 2 for the
2 tokens, and to fix it."""
PRODUCTS = ("linear", "mm", "scaled_dot_product", "conv")


def ready(quant: QuantConfig, device: str) -> None:
    """Refuse what PT2E does not have, PyTorch whose graphs it does not see into, no C++ compiler."""
    from torch._inductor import cpp_builder, exc

    if quant.mode in PACKAGES and torch.__version__ < "2.12":
        # Its nodes do not know which module they come from, and torchao's quantizer finds no layer by that.
        raise Unsupported(
            f"quant.mode={quant.mode} with runtime=inductor needs PyTorch 2.12 or newer (here: "
            f"{torch.__version__}); update it, or take runtime=onnxruntime"
        )
    if quant.mode in CALIBRATED and quant.calibration != "minmax":
        raise Unsupported(
            f"quant.calibration={quant.calibration} with runtime=inductor is not supported; it has minmax"
        )
    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError) as error:
        raise ConfigError(
            "runtime=inductor compiles C++, and no compiler was found; install one (Debian and Ubuntu: apt "
            "install g++), or name it in CXX"
        ) from error


def machine() -> dict[str, str]:
    """Return what quantization and machine code depend on: the compiler uses all that this CPU has."""
    # The oldest PyTorch that is allowed does not have it.
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    flags = {k: v for k, v in known.items() if isinstance(v, bool | str)}
    return {
        "cpu": f"{torch.backends.cpu.get_cpu_capability()} {digest(flags)[:12]}",
        "int8_largest": str(cpu.int8_largest()),
    }


def export(model: Network, job: Job, folder: Path) -> dict[str, Any]:
    """Write ``model.pt2``; parameters and MACs are those of the rewritten model that was compiled."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor import config as inductor

    lean = rewritten(model, job.quant.mode)
    facts: dict[str, Any] = {"parameters": models.count_parameters(lean), "macs": models.count_macs(lean)}
    pre = model.arch.preprocessing
    ragged = pre.ragged
    taken = model.lengths() | {n for t in lean.state_dict().values() for n in t.shape}
    series = torch.randn(_batch(taken), model.arch.channels, pre.length + ragged)
    options = {
        "freezing": True,
        "cpp.dynamic_threads": True,  # otherwise the number of threads at export is compiled in
        "aot_inductor.enable_line_tables": False,  # debug information, two thirds of the binary
        "aot_inductor.enable_frame_pointer": False,
    }
    started = time.perf_counter()
    with torch.no_grad(), quiet():
        sizes = {0: torch.export.Dim("batch", min=1, max=2**20)}
        if ragged:
            sizes[2] = torch.export.Dim("time", min=2, max=2**20)
        graph: nn.Module = InBf16(lean) if job.quant.mode == "bf16" else lean
        if job.quant.mode in ("dynamic", *CALIBRATED):
            exported = torch.export.export(graph, (series,), dynamic_shapes=(sizes,)).module()
            graph = _quantized(exported, series, job, model.STEM)
        program = torch.export.export(graph, (series,), dynamic_shapes=(sizes,))
        known = inductor.get_config_copy()
        aoti_compile_and_package(
            program,
            package_path=str(folder / FILE),
            inductor_configs={k: v for k, v in options.items() if k in known},
        )
    (folder / INPUT).write_text(
        json.dumps({"channels": model.arch.channels, "length": None if ragged else pre.length} | machine())
    )
    facts["compile_s"] = round(time.perf_counter() - started, 1)
    compiled = load(folder, job.quant.mode, job.device, 1)
    for batch in (1, 3):
        if len(compiled(series[:batch].numpy())) != batch:
            raise RuntimeError(
                "the compiler fixed the batch size; this is a bug, please report it with the configuration"
            )
    return facts


def _batch(taken: set[int]) -> int:
    return next(n for n in itertools.chain(BATCHES, itertools.count(BATCHES[-1], 2)) if n not in taken)


def rewritten(model: Network, mode: str) -> Network:
    """Return what is exported in a mode."""
    # A deep copy: frozen int8 kernels have been seen to write into parameters that models share. In int8, a
    # product of the class tokens alone reads the wrong rows from the second series on (torch 2.13): there,
    # all tokens are computed. Convolutions stay convolutions there, which PT2E leaves in fp32: raw series
    # have peaks that int8 ranges do not bear.
    exact = mode in ("none", "bf16")
    return model.deployable(first_only=exact, products=exact)


class InBf16(nn.Module):
    """A classifier in bf16 behind preprocessing in fp32; scores in fp32."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = to_bf16(model)

    def forward(self, series: Tensor) -> Tensor:
        x, mask = self.model.preprocess(series)
        return self.model.network(x.bfloat16(), mask).float()


def _quantized(graph: Any, series: Tensor, job: Job, stems: tuple[str, ...]) -> Any:
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    dynamic = job.quant.mode == "dynamic"
    config = x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic)
    if (largest := cpu.int8_largest()) < 127:  # its own `reduce_range` takes a bit of activations instead
        config = replace(config, weight=replace(config.weight, quant_min=-largest, quant_max=largest))
    if not dynamic:  # its default is a histogram, which is none of the calibrations there are
        config = replace(
            config,
            input_activation=replace(
                config.input_activation, observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12)
            ),
        )
    # Raw series have peaks that int8 ranges do not bear: the stem stays fp32.
    quantizer = x86.X86InductorQuantizer().set_global(config)
    for stem in stems:
        quantizer.set_module_name_qconfig(stem, None)
    prepared = prepare_pt2e(graph, quantizer)
    # Weights, too, are observed only when the model runs.
    prepared(series if dynamic else torch.from_numpy(job.calibration))
    return convert_pt2e(prepared)


def load(folder: Path, mode: str, device: str, threads: int) -> InductorPredictor:
    """Load what `export` wrote; PyTorch's threads are the process's, see `energy.worker`."""
    must_be_trusted(TRUSTED, f"{folder / FILE} is machine code")
    expected = json.loads((folder / INPUT).read_text())
    if expected["cpu"] != machine()["cpu"]:
        raise ValueError(
            f"{folder / FILE} was compiled for another CPU ({expected['cpu']}; here: {machine()['cpu']}); "
            "deploy it on this machine"
        )
    return InductorPredictor(folder / FILE, expected["channels"], expected["length"])


class InductorPredictor:
    """Raw series → class scores with a compiled package."""

    def __init__(self, file: Path, channels: int, length: int | None) -> None:
        from torch._inductor import aoti_load_package

        self.file, self.channels, self.length = file, channels, length
        with quiet():
            self.model = aoti_load_package(str(file))

    @torch.inference_mode()
    def __call__(self, series: FloatArray) -> FloatArray:
        # The compiled code trusts its input: a wrong shape would read beyond the end.
        if (
            series.dtype != np.float32
            or series.shape[1] != self.channels
            or self.length not in (None, series.shape[2])
        ):
            raise ValueError(
                f"series {series.dtype} {series.shape}; this model takes float32 (batch, {self.channels}, "
                f"{self.length or 'time'})"
            )
        return self.model(torch.from_numpy(np.ascontiguousarray(series))).numpy()  # type: ignore[no-any-return]

    def weights_digest(self) -> str:
        """Of the file: the package keeps its constants to itself."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def layers(self) -> list[Layer]:
        """Read off the C++ that the compiler wrote, and that lies in the package beside the binary."""
        with zipfile.ZipFile(self.file) as package:
            (wrapper,) = (n for n in package.namelist() if n.endswith("wrapper.cpp"))
            return read_layers(package.read(wrapper).decode())


def read_layers(wrapper: str) -> list[Layer]:
    """List the products that generated C++ calls, and the fused kernels that own weights.

    Every call is one line, with constants and buffers by name::

        aoti_torch_empty_strided(3, ..., cached_torch_dtype_float32, ..., &buf0_handle)
        aoti_torch_cpu__linear_pointwise(..., _frozen_param19, ..., &var_1, &buf6_handle)
        auto buf7 = std::move(buf0);  // reuse
        cpp_fused_native_layer_norm_0((const float*)(encoder_norm_weight.data_ptr()), ...)
    """
    reused = dict(re.findall(r"auto (\w+) = .*?\((buf\w+).*// (?:reuse|alias)", wrapper))
    variables = dict(re.findall(r"int32_t (var_\d+) = cached_torch_dtype_(\w+);", wrapper))
    buffers: dict[str, str] = {}  # number format of each
    layers = []
    for call in _calls(wrapper):
        if call.fused:
            layers += _fused_kernel(call)
            continue
        read = [buffers[first] for w in call.words if (first := _origin(w, reused)) in buffers]
        products = _product(call, read)
        layers += products
        made = call.formats(variables) or [p.dtype for p in products] or read or ["unknown"]
        buffers |= dict.fromkeys(call.written, made[-1])
    return layers


def _origin(buffer: str, reused: dict[str, str]) -> str:
    """Return the first name of a buffer."""
    while buffer in reused:
        buffer = reused[buffer]
    return buffer


@dataclass(frozen=True)
class _Call:
    """A line of generated C++ that calls an operator or a fused kernel.

    Attributes
    ----------
    words
        All names in its arguments, in order.
    owned
        The constants among them, as `_constants` describes them.
    """

    op: str
    fused: bool
    words: list[str]
    owned: list[dict[str, str]]

    @property
    def written(self) -> list[str]:
        """Buffers that it fills."""
        return [w.removesuffix("_handle") for w in self.words if w.endswith("_handle")]

    @property
    def weight_dtype(self) -> str | None:
        """Of its largest constant; integers are zero points, sums, or weights that scales go with."""
        weights = [c for c in self.owned if not c["dtype"].startswith("int")]
        return max(weights, key=lambda c: int(c["data_size"]))["dtype"] if weights else None

    def formats(self, variables: dict[str, str]) -> list[str]:
        """Number formats that it is asked for, by their own name or in variables."""
        prefix = "cached_torch_dtype_"
        spelled = [w.removeprefix(prefix) for w in self.words if w.startswith(prefix)]
        return spelled + [variables[w] for w in self.words if w in variables]

    def layer(self, dtype: str, matmul: bool) -> Layer:
        """Describe it, by the name of the module that a constant comes from, else of what it fills."""
        modules = [c["original_fqn"].removeprefix("model.").rpartition(".")[0] for c in self.owned]
        name = next(filter(None, [*modules, *self.written[-1:], self.op]))
        size = sum(int(c["data_size"]) for c in self.owned)
        return Layer(name, "fused kernel" if self.fused else self.op, dtype, size, matmul)


def _calls(wrapper: str) -> Iterator[_Call]:
    constants = _constants(wrapper)
    for line in wrapper.splitlines():
        call = re.search(r"aoti_torch_(?:cpu_|mkldnn_)?_?(\w+)\(|^\s*(cpp_fused\w+)\(", line)
        if call is not None:
            words = re.findall(r"\w+", line[call.end() :])
            owned = [constants[w] for w in dict.fromkeys(words) if w in constants]
            yield _Call(call[1] or call[2], bool(call[2]), words, owned)


def _constants(wrapper: str) -> dict[str, dict[str, str]]:
    """Name → ``dtype``, ``data_size``, ``original_fqn`` and ``shape``."""
    keys = "name|dtype|data_size|original_fqn|shape"
    value = r'["{]?(?:cached_torch_dtype_)?([\w., ]*)'
    facts: dict[str, dict[str, str]] = {}
    for index, key, said in re.findall(rf"constants_info_\[(\d+)\]\.({keys}) = {value}", wrapper):
        facts.setdefault(index, {})[key] = said
    return {c["name"]: c for c in facts.values()}


def _fused_kernel(call: _Call) -> list[Layer]:
    """Describe it if it owns weights."""
    if call.weight_dtype is None:
        return []
    # A product of few rows is spelled out in a fused kernel, which is called after what it fuses.
    product = "mm_" in call.op and any("," in c["shape"] for c in call.owned)
    return [call.layer(call.weight_dtype, product)]


def _product(call: _Call, read: list[str]) -> list[Layer]:
    """Describe it if it is a product; without weights, it computes in the format of what it reads."""
    if not any(product in call.op for product in PRODUCTS):
        return []
    int8 = "qlinear" in call.op or "qconv" in call.op
    dtype = "int8" if int8 else call.weight_dtype or next(iter(read), None)
    if dtype is None:
        raise RuntimeError(f"what {call.op} computes in cannot be seen; this is a bug, please report it")
    return [call.layer(dtype, True)]
