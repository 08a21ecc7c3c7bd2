"""What every test shares: a machine lock of its own, one thread, and small real data from aeon's wheel."""

from __future__ import annotations

import functools
import gc
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tsexp import compress, data
from tsexp import config as configs
from tsexp.cache import Cache
from tsexp.config import Config, DataConfig
from tsexp.config.compose import _values
from tsexp.data import Dataset
from tsexp.models import transformer
from tsexp.sweeps import jobs
from tsexp.training import Fitted

configs.register()

TINY = [
    "debug=smoke",
    "train.progress=false",
    "model.d_model=16",
    "model.layers=2",
    "model.heads=4",
    "model.ffn=24",
    "model.patch=8",
]
"""Overrides that make an experiment take seconds."""


@pytest.fixture(scope="session", autouse=True)
def _machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    import os

    os.environ["TSEXP_LOCK"] = str(tmp_path_factory.mktemp("lock") / "machine.lock")
    os.environ.pop("TSEXP_DATA", None)
    # A shell in the background has Ctrl-C ignored, and everything started from here would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if "PYTEST_XDIST_WORKER" in os.environ:  # of many tests, all processes are forked from one server
        jobs.start_server()


@pytest.fixture(autouse=True)
def _nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the configurations of other tests named; the environment has it as long as a process would."""
    monkeypatch.setattr("tsexp.config.own._trusted", {})


@pytest.fixture(scope="module", autouse=True)
def _little_to_collect() -> None:
    """What earlier modules left is not looked through at each of the many collections, two seconds each."""
    gc.collect()
    gc.freeze()  # for good: unfreezing would have the next module's look through all of it


@pytest.fixture(scope="session", autouse=True)
def _operators_once() -> Iterator[None]:
    """PyTorch makes the same registry of ONNX operators for each export, in a second; here for the first."""
    export = torch.onnx.export

    def first(*args: object, **kwargs: object) -> object:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        made = functools.cache(ONNXRegistry.from_torchlib.__func__)  # type: ignore[attr-defined]
        ONNXRegistry.from_torchlib = classmethod(made)  # type: ignore[method-assign, assignment]
        torch.onnx.export = export
        return export(*args, **kwargs)  # type: ignore[arg-type]

    torch.onnx.export = first  # type: ignore[assignment]
    yield
    torch.onnx.export = export


def compose(*overrides: str) -> Config:
    """The checked configuration that these overrides make."""
    return configs.parse(_values(configs.conf_dir(), list(overrides)))


def skip_without_bf16(runtime: str, mode: str) -> None:
    """Skip what OpenVINO refuses on a CPU without bf16; `test_runtimes` has the refusal."""
    from tsexp.runtimes import openvino

    if (runtime, mode) == ("openvino", "bf16") and not openvino.has_bf16():
        pytest.skip("this CPU has no bf16")


@pytest.fixture(scope="session")
def load_data() -> Callable[..., Dataset]:
    """Load one of the datasets in aeon's wheel: load_data("ItalyPowerDemand", scale="minmax")."""

    def load(name: str, seed: int = 0, **changes: object) -> Dataset:
        base = DataConfig(
            name=name,
            path=None,
            scale="znorm",
            unequal="pad",
            length=None,
            missing="interpolate",
            val_fraction=0.2,
        )
        return data.load(replace(base, **changes), "data", seed)  # type: ignore[arg-type]

    return load


@pytest.fixture(scope="session")
def italy(load_data: Callable[..., Dataset]) -> Dataset:
    """67/1029 series of length 24, 2 classes."""
    return load_data("ItalyPowerDemand")


@pytest.fixture(scope="session")
def pickup(load_data: Callable[..., Dataset]) -> Dataset:
    """50/50 series of unequal length, 10 classes."""
    return load_data("PickupGestureWiimoteZ")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., transformer.Classifier]:
    """Make an untrained small model for a dataset: tiny_model(dataset, "model=t1")."""

    def make(dataset: Dataset, *overrides: str, seed: int = 0) -> transformer.Classifier:
        torch.manual_seed(seed)
        return transformer.build(compose(*TINY, *overrides).model, dataset).eval()

    return make


@pytest.fixture
def tiny(tmp_path: Path) -> Config:
    """An experiment of seconds whose cache and store lie in a folder of this test."""
    return compose(
        *TINY,
        "data=italy_power_demand",
        f"paths.cache={tmp_path}/cache",
        f"paths.spool={tmp_path}/spool",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )


def compressed(dense: Fitted, cfg: Config, dataset: Dataset, cache: Cache) -> Fitted:
    """What all steps that are asked for make of a model."""
    return [dense, *compress.compress(dense, cfg, dataset, cache).values()][-1]


def as_tensor(x: np.ndarray) -> torch.Tensor:
    """Shorthand."""
    return torch.from_numpy(x)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables and nothing in them: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
