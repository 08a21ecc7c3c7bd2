"""What a command would do, before it does it: jobs, what is there already, hours by part on this machine.

    python -m tsexp plan experiment=paper seed=0

The pipeline itself is walked through, with a cache that builds nothing; so what is counted is what will be
built. How long a training step and an answer take is tried out; the rest follows from the configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from tsexp import subcommand
from tsexp.cache import ENTRY, Cache, Entry, Unfinished
from tsexp.command import called
from tsexp.config import Config, ConfigError, at_once, digest, secret
from tsexp.data import Dataset
from tsexp.system import alive, locking

PARTS = {
    "dense": "train",
    "prune": "prune",
    "finetune": "fine-tune, controls too",
    "qat": "quantization-aware training",
    "artifact": "deploy",
    "scores": "score test and validation series",
    "measure": "measure",
}
"""Stage → what it is called in the table."""
START_S = 2.5
"""A measuring process: fork, libraries, loading, the first calls (1.5 to 3 seen)."""
EXPORT_S = {"eager": 1.0, "onnxruntime": 5.0, "openvino": 8.0, "inductor": 60.0}
"""Exporting, loading and comparing (seen, T1 to T4, on two cores)."""
SHORTER = 0.7
"""Share of a tuning's time that goes with the ratio removed (.3 to 1 seen, T1 to T4)."""
TRIED = 16
"""Training steps and answers that are timed, at most; in CPU time of one thread, so that it matters less
what else runs."""
TRY_S = 3.0
"""As many steps as fit into it, two at least (s)."""


class Stage(NamedTuple):
    """One that a job asks for.

    Attributes
    ----------
    name
        What it makes.
    there
        Whether it is in the cache.
    control
        Whether it is a control's, of which nothing is removed.
    runtime
        Of an artifact: the one that it is for; else empty.
    splits
        Of scores: of which series.
    """

    name: str
    there: bool
    control: bool = False
    runtime: str = ""
    splits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreseen(Cache):
    """A cache that builds nothing, and notes what would be built.

    Attributes
    ----------
    nothing
        A folder that stands for those of stages that are not there.
    stages
        By signature.
    """

    nothing: Path = Path()
    stages: dict[str, Stage] = field(default_factory=dict)

    def stage(
        self,
        name: str,
        version: int,
        key: dict[str, Any],
        build: Callable[[Path], None],
        unfinished: Unfinished | None = None,
    ) -> Entry:
        """Return the entry; of a stage that is not there, one that says nothing but its signature."""
        signature = self.signature(name, version, key)
        folder = self.root / name / signature
        there = (folder / ENTRY).is_file()
        self.stages[signature] = Stage(
            name, there, bool(key.get("control")), key.get("runtime", ""), tuple(key.get("splits", ()))
        )
        return Entry(folder if there else self.nothing, signature, reused=there)


MEASURE = Stage("measure", there=False)


@dataclass
class Part:
    """One row of the table."""

    there: int = 0
    missing: int = 0
    seconds: float = 0.0
    unknown: int = 0
    """Missing ones whose time is not known."""


@dataclass
class Plan:
    """What a command would do.

    Attributes
    ----------
    jobs
        How many it asks for, and of them those that nothing supports.
    measured
        Of them in the store, or on their way to it.
    parts
        Stage → what is there, what is missing, how long that takes (s).
    """

    jobs: int
    unsupported: int
    measured: int
    parts: dict[str, Part]

    @property
    def seconds(self) -> float:
        """All parts, one after the other."""
        return sum(p.seconds for p in self.parts.values())

    def seconds_on(self, cores: int) -> float:
        """All but measuring on so many cores side by side, then measuring on one."""
        measuring = self.parts["measure"].seconds if "measure" in self.parts else 0.0
        return (self.seconds - measuring) / cores + measuring


def of(overrides: list[str], config_dir: str | None = None, progress: bool = True) -> Plan:
    """Return the plan of a command.

    Parameters
    ----------
    overrides
        As after ``python -m tsexp -m``.
    config_dir
        Its ``--config-dir``.
    progress
        Show a bar.

    Raises
    ------
    ConfigError
        What the command itself would refuse.
    """
    from tsexp import pipeline, tracking
    from tsexp.sweeps import checks
    from tsexp.sweeps.jobs import dataset_of
    from tsexp.system.progress import bar

    jobs = checks.asked(overrides, config_dir)
    seen: set[str] = set()
    counted: set[str] = set()
    parts: dict[str, Part] = defaultdict(Part)
    supported = [cfg for cfg in jobs if isinstance(cfg, Config)]
    if not supported:
        raise ConfigError(f"{jobs[0]}\nno job of this command can run")
    speeds = _Speeds()
    measured = 0
    there = _store_is_there(supported[0])
    with (
        alive.scratch("plan") as scratch,
        bar(f"plan {len(jobs)} jobs", len(supported), show=progress) as shown,
    ):
        for cfg in supported:
            dataset = dataset_of(cfg)
            about = pipeline.signature(cfg, dataset)
            known = not cfg.rerun and (
                tracking.waits(cfg.paths, cfg.tracking, about)
                or (there and tracking.finished(cfg.tracking, about))
            )
            again = about in counted and not cfg.rerun  # jobs that ask the same are measured once
            counted.add(about)
            parts["measure"].there += bool(known) and not again
            measured += bool(known)
            shown.advance()
            if known:
                continue
            for signature, stage in _walk(cfg, dataset, scratch).items():
                if signature in seen:
                    continue
                seen.add(signature)
                part = parts[stage.name]
                if stage.there:
                    part.there += 1
                    continue
                part.missing += 1
                _add(part, speeds.seconds(stage, cfg, dataset))
            if cfg.stop_after == "deploy" or again:
                continue
            parts["measure"].missing += 1
            _add(parts["measure"], speeds.seconds(MEASURE, cfg, dataset))
    order = [name for name in PARTS if name in parts]
    return Plan(len(jobs), len(jobs) - len(supported), measured, {name: parts[name] for name in order})


def _add(part: Part, seconds: float | None) -> None:
    if seconds is None:
        part.unknown += 1
    else:
        part.seconds += seconds


def _store_is_there(cfg: Config) -> bool:
    """Say whether there is a store to look into; neither a file nor an experiment is made for that."""
    from tsexp import stores, tracking

    uri = cfg.tracking.uri
    file = stores.file_of(uri)
    if file is not None and not file.exists():
        return False
    with tracking.asking(cfg.tracking):
        return stores.client(uri).get_experiment_by_name(cfg.tracking.experiment) is not None


def _walk(cfg: Config, dataset: Dataset, scratch: Path) -> dict[str, Stage]:
    """Return the stages of a job, as `Foreseen.stages` has them."""
    from tsexp import energy, pipeline, runtimes
    from tsexp.energy.measuring import SPLITS
    from tsexp.runtimes import Artifact

    nothing = scratch / cfg.model.family
    if not nothing.exists():
        nothing.mkdir()
        (nothing / "arch.json").write_text(json.dumps({"family": cfg.model.family}))
        (nothing / "manifest.json").write_text("{}")
    cache = Foreseen(Path(cfg.paths.cache), nothing=nothing)
    made = pipeline.make(cfg, dataset, cache)
    control = pipeline.reference(made, cfg, dataset, cache)
    if cfg.stop_after == "deploy":
        return cache.stages
    measured = made.artifacts[0]  # of several, any: which one it will be is not known
    scored: list[tuple[Artifact, tuple[str, ...]]] = [
        (a, SPLITS) for a in (measured, control, pipeline.plain(made.dense, cfg, dataset, cache))
    ]
    if cfg.runtime.name == runtimes.AUTO and len(dataset.val):
        exact = pipeline.plain(made.fitted, cfg, dataset, cache)
        scored += [(artifact, ("val",)) for artifact in (*made.artifacts, exact)]
    for artifact, splits in scored:
        with contextlib.suppress(FileNotFoundError):  # there are none to be read
            energy.score(artifact, dataset, cfg.measure, cache, splits=splits)
    return cache.stages


class _Tried(NamedTuple):
    """CPU time (s) of a training step, of preparing a series for training, of an answer to a batch.

    NaN of what a model that fits itself does not tell: its steps, and, if it is no network, its answers.
    """

    step_s: float
    series_s: float
    answer_s: float


class _Speeds:
    """How long things take here, tried out once for each model and dataset."""

    def __init__(self) -> None:
        self._tried: dict[str, _Tried] = {}

    def seconds(self, stage: Stage, cfg: Config, dataset: Dataset) -> float | None:
        """Return how long a stage of a job takes (s); None: not known."""
        part, ratio = stage.name, 0.0 if stage.control else cfg.prune.ratio
        tried = self._of(cfg, dataset)
        answer_s = tried.answer_s
        series = {"test": len(dataset.y_test), "val": len(dataset.val)}
        calls = sum(-(-series[split] // cfg.measure.batch_size) for split in stage.splits)
        if part in ("dense", "finetune", "qat"):
            epochs = (cfg.train.epochs, cfg.prune.finetune_epochs, cfg.quant.qat_epochs)
            trained = dict(zip(("dense", "finetune", "qat"), epochs, strict=True))[part]
            steps = _steps(cfg, trained, dataset) * (1 if part == "dense" else 1 - SHORTER * ratio)
            took = tried.series_s * len(dataset.y_train) + tried.step_s * steps
            return None if math.isnan(took) else took
        if part == "prune" and not cfg.model.gradient:  # which fits it anew
            return None
        known = {
            "artifact": EXPORT_S.get(stage.runtime, max(EXPORT_S.values())),
            "scores": START_S + calls * answer_s,
            "measure": _measuring_s(cfg, 0.0 if math.isnan(answer_s) else answer_s),
        }
        took = known.get(part, 1.0)
        return None if math.isnan(took) else took

    def _of(self, cfg: Config, dataset: Dataset) -> _Tried:
        about = digest({"model": asdict(cfg.model), "train": cfg.train.asked(), "data": dataset.checksum})
        key = f"{about} {cfg.measure.batch_size}"
        if key not in self._tried:
            with locking.sharing_the_machine():
                self._tried[key] = _try(cfg, dataset)
        return self._tried[key]


def _try(cfg: Config, dataset: Dataset) -> _Tried:
    """Train on one batch for a while, and answer some.

    Of a model that fits itself no step is known, and if it is no network no answer, either.
    """
    import numpy as np
    import torch

    from tsexp import models, training
    from tsexp.models import Network, using_threads

    # Drawn: files are sorted by class, and some models ask what tells classes apart.
    batch = np.random.default_rng(0).permutation(dataset.fit)[: cfg.train.batch_size]
    some = replace(
        dataset,
        x_train=dataset.x_train[batch],
        y_train=dataset.y_train[batch],
        fit=np.arange(len(batch)),
        val=dataset.val[:0],
    )
    recipe = replace(
        cfg.train,
        min_steps=0,
        max_steps=0,
        patience=0,
        select="last",
        progress=False,
        device="cpu",
        devices=1,
    )
    built = models.build(cfg.model, dataset)
    if not isinstance(built, Network):
        return _Tried(math.nan, math.nan, math.nan)
    model = built.adapt(some) if cfg.model.gradient else built
    # Of a batch larger than the split, series come several times.
    question = torch.from_numpy(dataset.x_train[np.arange(cfg.measure.batch_size) % len(dataset.x_train)])

    def answer_s() -> float:
        with torch.inference_mode(), using_threads(cfg.measure.threads):
            model(question)
            return _cpu_s(lambda: [model(question) for _ in range(TRIED)]) / TRIED

    if not cfg.model.gradient:
        return _Tried(math.nan, math.nan, answer_s())

    def fit_s(steps: int) -> float:
        return _cpu_s(lambda: training.fit(model, replace(recipe, epochs=steps), some, 0, "trial"))

    fit_s(1)  # the first brings the libraries
    one = fit_s(1)
    more = min(TRIED, max(2, round(TRY_S / one)))
    step_s = max(0.0, fit_s(1 + more) - one) / more
    with torch.inference_mode(), using_threads(cfg.measure.threads):
        series_s = _cpu_s(lambda: model.preprocess(torch.from_numpy(some.x_train))) / len(batch)
    return _Tried(step_s, series_s, answer_s())


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _steps(cfg: Config, epochs: int, dataset: Dataset) -> int:
    from tsexp.training import loop

    series = len(dataset.fit)
    return loop.epochs_of(replace(cfg.train, epochs=epochs), series) * math.ceil(
        series / cfg.train.batch_size
    )


def _measuring_s(cfg: Config, answer_s: float) -> float:
    """All pairs of windows; less where `measure.target_pct` is reached before."""
    m = cfg.measure
    windows = 2 * m.repeats * max(m.window_s, answer_s) + m.processes * 1.5 * max(m.window_s, answer_s)
    return m.processes * (START_S + m.idle_s) + windows + m.latency_calls * answer_s


def show(plan: Plan) -> None:
    """Print it."""
    from rich.table import Table

    from tsexp.report.console import terminal

    console = terminal()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("there", "to do", "time"):
        table.add_column(heading, justify="right")
    for name, part in plan.parts.items():
        unknown = f" + {part.unknown} ?" if part.unknown else ""
        taken = f"{_told(part.seconds)}{unknown}" if part.missing else ""
        table.add_row(PARTS[name], str(part.there), str(part.missing), taken)
    console.print(table)
    counts = f"{plan.jobs} job{'' if plan.jobs == 1 else 's'}"
    counts += f", {plan.unsupported} that nothing supports" if plan.unsupported else ""
    cores = at_once(1)
    some_unknown = any(part.unknown for part in plan.parts.values())
    about = "at least" if some_unknown else "about"
    console.print(
        f"{counts}, {plan.measured} measured; {about} {_told(plan.seconds)}, one after the other, here"
        + (
            f"; {_told(plan.seconds_on(cores))} if all {cores} cores make what is to be measured "
            "(stop_after=deploy hydra/launcher=joblib), and the same command then measures"
            if cores > 1 and plan.seconds and "measure" in plan.parts
            else ""
        )
    )
    console.print(
        "From steps and answers that were tried out just now, in CPU time: for a machine that does nothing "
        "else. Other runtimes than eager are faster, and measure.target_pct may end a measurement earlier."
    )
    if some_unknown:
        console.print("?: of models that fit themselves, whose times are not known beforehand.")


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> int:
    """Plan what is asked for and return the exit status: 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog=called("plan"),
        usage="%(prog)s [-m] [--config-dir DIR] [key=value ...]",
        description="Say what a sweep would do: jobs, what is there already, hours by part on this machine.",
    )
    parser.add_argument("-m", "--multirun", action="store_true", help="as in the command that is planned")
    parser.add_argument("--config-dir", "-cd", metavar="DIR", help="as in the command that is planned")
    parser.add_argument("words", nargs="*", metavar="key=value", help=argparse.SUPPRESS)
    if arguments is None:
        secret.out_of_sight()
    asked = parser.parse_args(arguments)
    return subcommand.carried_out(
        "plan", lambda: show(of(asked.words, asked.config_dir)), "nothing was begun"
    )


if __name__ == "__main__":
    sys.exit(main())
