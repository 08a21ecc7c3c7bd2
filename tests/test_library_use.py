"""A program of somebody else's is as it was after each thing that tsexp does in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOST = '''
"""Somebody's program: it has settings of its own, uses tsexp four ways, and looks at them after each."""

import logging
import os
import signal
import sys
import threading
import warnings

import mlflow
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


def levels():
    return {n: logging.getLogger(n).level for n in ("", "mlflow", "alembic", "lightning.pytorch", "hydra")}


def found():
    return {
        "environment": dict(os.environ),
        "levels": levels(),
        "filters": list(warnings.filters),
        "product": OmegaConf.create({"a": "${product:2,3}"}).a,
        "largest": OmegaConf.create({"a": "${largest:2,3}"}).a,
        "schema": ConfigStore.instance().repo["schema.yaml"].node,
        "hydra": GlobalHydra.instance().hydra,
        "threads": torch.get_num_threads(),
        "active": mlflow.active_run(),
        "store": mlflow.get_tracking_uri(),
        "signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
    }


def unchanged(what):
    now = found()
    changed = {k: (v, now[k]) for k, v in before.items() if v != now[k]}
    if isinstance(changed.get("environment"), tuple):
        a, b = map(set, (x.items() for x in changed["environment"]))
        changed["environment"] = a ^ b
    assert not changed, f"after {what}: {changed}"


if __name__ == "__main__":
    OmegaConf.register_new_resolver("product", lambda a, b: "the host's own")
    OmegaConf.register_new_resolver("largest", lambda a, b: "the host's own")
    ConfigStore.instance().store(name="schema", node={"of": "the host"})
    torch.set_num_threads(2)
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    mlflow.set_tracking_uri("sqlite:///hosts.db")
    before = found()

    import tsexp

    unchanged("import")
    from tsexp import CompressedTransformerClassifier, measure_energy

    unchanged("import of names")
    X = np.random.default_rng(0).normal(size=(24, 1, 32))
    y = np.array(["a", "b"] * 12)
    X[::2] += 1
    classifier = CompressedTransformerClassifier(
        prune_ratio=0.5,
        model="t4",
        epochs=1,
        finetune_epochs=1,
        cache="cache",
        overrides=["train.min_steps=0"],
    )
    classifier.fit(X, y)
    unchanged("fit")
    classifier.predict(X)
    unchanged("predict")
    quick = dict(processes=4, repeats=4, window_s=0.01, latency_calls=20, idle_s=0.01, progress=False)
    record = measure_energy(lambda batch: batch.sum(axis=2), X[:4].astype(np.float32), **quick)
    unchanged("measure_energy")
    record.to_mlflow("mine.db")
    unchanged("to_mlflow")

    from tsexp import config, data, pipeline
    from tsexp.config.compose import composed

    smoke = ["debug=smoke", "train.progress=false", "tracking.uri=sqlite:///runs.db", "paths.cache=cache"]
    cfg = config.parse(composed(*smoke))
    unchanged("compose")
    told = []
    try:
        pipeline.run(cfg, data.load(cfg.data, cfg.paths.data, cfg.seed), "a: 1", "a job", None)
    finally:
        unchanged("run")

    for ways in range(2):  # a good one, and one that fails
        threads = []
        for number in range(4):
            def ask(number=number, ways=ways):
                try:
                    told.append(composed(f"seed={number}", *["nothing=1"] * ways).seed)
                except config.ConfigError:
                    told.append("refused")
            threads.append(threading.Thread(target=ask))
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        unchanged("four threads")
    assert sorted(map(str, told)) == ["0", "1", "2", "3", *["refused"] * 4], told
'''


def test_a_program_that_uses_it_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(HOST)
    done = subprocess.run(
        [sys.executable, "host.py"], cwd=tmp_path, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
