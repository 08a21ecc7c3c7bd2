"""Finished runs in a store, without an experiment: real artifacts of untrained models, made-up windows."""

import contextlib
import io
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from conftest import TINY, compose
from tsexp import runtimes, tracking, training
from tsexp.cache import Cache
from tsexp.data import Dataset
from tsexp.energy import Record
from tsexp.energy.windows import orders
from tsexp.models import transformer
from tsexp.runtimes import Artifact
from tsexp.tasks import classification
from tsexp.training import Fitted

JOULES = ((1e-3, 2e-3, 4e-3), (2e-3, 3e-3, 9e-3)) * 4
"""Per series, of each window of each of eight processes."""
HISTORY = [{"epoch": i, "train_loss": 1.0} for i in range(3)]


@dataclass(frozen=True)
class Made:
    """A run, and what it was made of."""

    run_id: str
    folder: Path
    artifact: Artifact
    dataset: Dataset
    scores: np.ndarray

    @property
    def settings(self):
        """Where its store and its cache are, as a command takes it."""
        return [f"tracking.uri=sqlite:///{self.folder}/mlflow.db", f"paths.cache={self.folder}/cache"]

    @property
    def client(self):
        import mlflow

        return mlflow.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    @property
    def accuracy(self):
        return float((self.scores.argmax(1) == self.dataset.y_test).mean())


def windows(processes=JOULES):
    """What the measuring processes return, as far as it is read."""
    made = [
        {
            "subject": subject,
            "process": p,
            "pair": i,
            "discarded": False,
            "wall_s": 0.1,
            "cpu_s": 0.1,
            "energy_j": 100 * joules * factor,
            "inferences": 100,
        }
        for p, each in enumerate(processes)
        for i, joules in enumerate(each)
        for subject, factor in (("artifact", 1), ("reference", 2))
    ]
    turns = [{"load": [loaded], "use": [used]} for loaded, used in orders(len(processes), 0)]
    return {
        "windows": made,
        "orders": turns,
        "scope": "CPU time of the worker: an estimate, not a measurement",
    }


METRICS = {
    "energy/per_inference_j": 2.5e-3,
    **{f"vs_dense/energy_saving{end}": v for end, v in (("_pct", 50.0), ("_lo", 45.0), ("_hi", 55.0))},
    **{f"vs_dense/{k}speedup{e}": 2.0 for k in ("", "cpu_") for e in ("", "_lo", "_hi")},
    **{f"latency/p{n}_ms": 0.125 for n in (50, 90, 99)},
    "cost/load_ms": 7.0,
    "cost/load_j": 0.07,
    "measure/pairs": 6.0,
    "measure/processes": 8.0,
    "val/series": 13.0,
}


def make(folder, dataset, *overrides, invalid=(), warnings=(), source="estimated:cpu_time", model=None):
    """Log a finished run of a tiny untrained model of a dataset, as these overrides ask for it."""
    cfg = compose(
        *TINY,
        *overrides,
        f"paths.cache={folder}/cache",
        f"paths.spool={folder}/spool",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    )
    cache = Cache(folder / "cache")

    def build(to):
        torch.manual_seed(0)
        training.save(model or transformer.build(cfg.model, dataset).eval(), HISTORY, to)

    fitted = Fitted(cache.stage("dense", 1, {"data": dataset.name, "of": str(cfg.model)}, build))
    artifact = runtimes.deploy(fitted, cfg.quant, cfg.runtime, dataset, cache)
    scores = scored(artifact, dataset, cfg.measure.batch_size)
    drop = classification.drop(scores, scores, dataset.y_test)
    record = Record(
        classification.quality(scores, dataset.y_test, "test")
        | drop
        | METRICS
        | {"test/control_accuracy": 0.9},
        source,
        tuple(invalid),
        tuple(warnings),
        windows(),
        scores,
        scores,
        dataset.y_test,
        artifact.manifest,
        {"cpu": "a CPU", "cores": 2},
    )
    job = tracking.tracked(cfg, "", "a job", uuid.uuid4().hex, None)  # each is a measurement of its own
    with contextlib.redirect_stdout(io.StringIO()), job as run:
        run.log(dataset, {"dense": fitted}, [], artifact, record)
    return Made(run.run_id, folder, artifact, dataset, scores)


def scored(artifact, dataset, batch_size):
    """As a scoring process does."""
    predictor, x = runtimes.load(artifact.folder), dataset.x_test
    parts = (np.ascontiguousarray(x[i : i + batch_size]) for i in range(0, len(x), batch_size))
    return np.concatenate([predictor(part) for part in parts])


def refused(capsys, command: ModuleType, *words):
    """The one line of an error of a subcommand."""
    assert command.main(list(map(str, words))) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"{command.__name__}: error: ")
    return line
