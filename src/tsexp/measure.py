"""The meter for anything: `measure_energy`, and ``python -m tsexp.measure model.onnx --data X.npz``.

A fitted estimator, a torch module, a file or any callable is measured as an artifact of this project is: in
fresh processes, in windows that alternate with those of a reference.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import config as configs
from tsexp import subcommand
from tsexp.command import parser_of
from tsexp.config import Config, ConfigError, MeasureConfig, TrackingConfig, secret
from tsexp.config.compose import composed
from tsexp.energy.labels import by_class
from tsexp.energy.record import Record
from tsexp.marks import ESTIMATED, MEASUREMENT
from tsexp.system.guest import guest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tsexp.data import FloatArray, IntArray
    from tsexp.energy.subjects import InMemory

ITSELF = "the same, a second time"
NULL = "null/"
"""Instead of ``vs_dense/``, of a subject against itself: what such metrics say is noise."""
PATIENCE = (30.0, 20.0)
"""Seconds, and times as long as in this process, that a fork may take for its first answer."""
COLD = ("cost/load_", "cost/first_", "memory/")
"""Metrics that say nothing of a subject in a fork of the caller: it is loaded, warm, and not alone there."""
SETTINGS = {
    "measure=quick|paper": "measure",
    "measure.…": "measure.",
    "seed": "seed",
    "tracking.…": "tracking.",
}
"""What may be set → how it begins."""
HELP = """\
The energy of a model that did not come from here: an ONNX file, an OpenVINO file (.xml) or an artifact
folder, on series of your own, in several fresh processes; beside a reference, in windows that alternate.
Prints energy, time and, with labels, accuracy, and stores the measurement as a run of its own. Estimators,
torch modules and callables: from Python, tsexp.measure_energy."""
EXAMPLES = """\
  measure=paper    narrower intervals; every measure.… can be set, e.g. measure.batch_size=32
  tracking.uri=sqlite:////path/mlflow.db tracking.experiment=tsexp    the store
  seed=1           other orders

  python -m tsexp.measure model.onnx --data X.npz --reference other.onnx measure=paper"""


@dataclass(frozen=True, repr=False)
class Measured(Record):
    """A `Record` of anything.

    Without a reference, the subject was measured against itself: what is called ``vs_dense/…`` elsewhere is
    then ``null/…``, and is noise. `manifest` holds what is known of the subject.

    Attributes
    ----------
    name, reference_name
        What both are called; of a subject against itself, the latter is None.
    reference_manifest
        What is known of the reference.
    settings
        As in a configuration: ``measure.…`` and ``seed``.
    data
        ``series``, ``shape``, ``dtype`` and ``checksum`` of what windows were fed from.
    """

    name: str = ""
    reference_name: str | None = None
    reference_manifest: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> RenderableType:
        """Return a table and what it means in words; fits 80 columns. † marks an estimate."""
        from rich.console import Group
        from rich.text import Text

        from tsexp import compare

        raw, mark = self.raw, self._mark()
        answers, windows = self._numbers()
        lines = [f"{end}  {name}" for end, name in zip("AB", self._names(), strict=True)]
        lines.append(
            f"{self.data['series']:,} series, batch {raw['batch_size']}, threads {raw['threads']}, "
            f"{raw['repeats']} pairs of windows in {raw['processes']} processes"
        )
        below = [*compare.remarks(self, mark, _as_here), self.said()]
        if self.reference_name is None and "test/accuracy" in self.metrics:
            lines.append(f"accuracy {100 * self.metrics['test/accuracy']:.1f} %")
        return Group(
            *map(Text, lines),
            compare.table(answers, windows, self.valid, mark),
            *map(Text, below),
        )

    def said(self) -> str:
        """What came out, in words."""
        from tsexp import compare

        answers, windows = self._numbers()
        text = compare.sentence(answers, windows, self.valid, self._mark())
        if self.reference_name is None and self.valid:
            return f"A against itself, which shows the noise: {text}"
        return text

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=80, highlight=False, color_system=None, force_terminal=False)
        with console.capture() as captured:
            console.print(self.summary())
        return "\n".join(line.rstrip() for line in captured.get().splitlines())

    __repr__ = __str__

    def to_mlflow(self, uri: str | None = None, experiment: str = "tsexp", name: str | None = None) -> str:
        """Put it into a store as a run, which tables, figures and sweeps overlook.

        Parameters
        ----------
        uri
            Of the store, or the path of its sqlite file; None: ``mlflow.db`` in the working folder, as
            everything else here.
        experiment
            Its name; made if it is not there.
        name
            Of the run; None: what was measured.

        Returns
        -------
        str
            The run's id.

        Raises
        ------
        ConfigError
            If the store does not answer.
        """
        from tsexp import stores

        where = stores.uri_of(uri) if uri is not None else configs.places(composed())["tracking"].uri
        with guest():
            return _store(self, TrackingConfig(where, experiment), name)

    def _names(self) -> tuple[str, str]:
        return self.name, self.reference_name or ITSELF

    def _mark(self) -> str:
        from tsexp.report.console import ESTIMATE

        return ESTIMATE if self.energy_source.startswith(ESTIMATED) else ""

    def _numbers(self) -> tuple[dict[str, float], dict[str, float]]:
        """What compare's table shows: of answers and sizes, and of windows."""
        from tsexp import compare, tasks
        from tsexp.energy.statistics import summarize

        known = compare.accuracies(self, tasks.named("classification")) if self._compared() else {}
        known |= compare.sizes(self.manifest, "a") | compare.sizes(self.reference_manifest, "b")
        return known, compare.of_windows(summarize(self.raw), self.raw)

    def _compared(self) -> bool:
        return "vs_dense/accuracy_drop_pt" in self.metrics


def measure_energy(
    subject: Any,
    X: Any,
    reference: Any = None,
    y: Any = None,
    *,
    batch_size: int = 1,
    preset: str = "quick",
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Measured:
    """Measure what a model needs for an answer, beside a reference.

    Both take turns in windows of several fresh processes, with probes before and after (docs/measuring.md).
    Files are loaded in processes that have nothing else; objects in memory are measured in forks of this
    process, each with a copy of its own (Linux). Nothing is pickled.

    Parameters
    ----------
    subject
        A path to an ONNX file, an OpenVINO file (``.xml``) or an artifact folder; a fitted estimator of aeon
        or scikit-learn, asked for ``predict_proba``, else ``decision_function``, else ``predict``; a torch
        module on the CPU, called in evaluation mode on float32; or a callable, array (batch, …) → array
        (batch, …).
    X
        Series, (series, …): an array or nested lists, float32 or float64 (other numbers become float32); or
        the path of a ``.npz`` with an array ``X`` and perhaps ``y``, or of a ``.ts`` file. What files and
        torch modules take is float32 or float64 as they say.
    reference
        As `subject`; None: the subject against itself, which shows the noise.
    y
        Labels, (series,): then there is accuracy, too.
    batch_size
        Series per call.
    preset
        ``quick`` or ``paper``: files of ``conf/measure/``.
    seed
        Of all orders, and of the series in each window.
    name
        What the subject is called; None: its file, class or function.
    progress
        Show bars.
    **settings
        Other keys of ``conf/measure/``: ``repeats``, ``processes``, ``window_s``, ``threads``, ``meter``,
        ``watts_per_core``, ``require``, …

    Returns
    -------
    Measured
        Metrics with their intervals, every window, and whether it is valid; printed, a table.

    Raises
    ------
    ConfigError
        Before any window: if an input is not what it should be, or a subject does not answer it.
    MeasuringFailed
        If a process died or ran out of time.
    """
    overrides = [f"measure={preset}", f"seed={seed}", f"measure.batch_size={batch_size}"]
    overrides += [f"measure.{k}={'null' if v is None else v}" for k, v in settings.items()]
    with guest():
        cfg = configs.parse(composed(*overrides))
        series, labels = _data(X, y)
        return _measure(subject, series, reference, labels, cfg, name, progress)


def _data(X: Any, y: Any) -> tuple[FloatArray, list[Any] | None]:
    """Return series and labels, checked."""
    import pandas as pd

    if isinstance(X, str | Path):
        X, there = _read(Path(X))
        y = there if y is None else y
    try:
        series = np.asarray(X)
        if series.dtype.kind not in "fiub":
            raise TypeError(f"values of type {series.dtype}")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"X is no array of numbers, (series, …): {str(error).splitlines()[0]}") from None
    if series.ndim < 2 or not series.size:
        raise ConfigError(f"X has shape {series.shape}; it must be (series, …), with at least one series")
    if series.dtype != np.float64:
        series = series.astype(np.float32, copy=False)
    if y is None:
        return series, None
    labels = np.asarray(y)
    if labels.ndim != 1 or len(labels) != len(series):
        raise ConfigError(f"y has shape {labels.shape}; X has {len(series)} series, and each needs one label")
    if len(missing := np.flatnonzero(pd.isna(labels))):
        raise ConfigError(
            f"y has no label for {len(missing)} of {len(labels)} series, the first of index {missing[0]}; "
            "leave these series out, or y altogether: then accuracy is not told"
        )
    return series, labels.tolist()


def _read(file: Path) -> tuple[Any, Any]:
    from tsexp.data import tsfile

    if not file.is_file():
        raise ConfigError(f"{file} is not there; X is an array, or the path of a .npz or .ts file")
    if file.suffix == ".ts":
        series, labels = tsfile.read(file, labelled=False)
        labels = tsfile.as_written(file, labels)
        lengths = {s.shape for s in series}
        if len(lengths) > 1:
            raise ConfigError(
                f"{file} has series of different shapes; a batch is one array: pad or cut them, and give that"
            )
        return np.stack(list(series)), None if "" in labels else labels
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if "X" not in arrays:
                raise ConfigError(f"{file} has no array X; it has: {', '.join(arrays.files) or 'nothing'}")
            return arrays["X"], arrays.get("y")
    except ConfigError:
        raise
    except Exception:  # not a .npz, or objects in it; NumPy would have it unpickled
        raise ConfigError(f"{file} is no .npz of plain arrays (numpy.savez), and none is unpickled") from None


@dataclass(frozen=True)
class _Side:
    """One of the two, and what is known of it before the windows."""

    name: str
    subject: str | InMemory
    facts: dict[str, Any]

    @property
    def classes(self) -> list[Any] | None:
        """The labels that its outputs stand for, if it tells."""
        return self.facts.get("classes") if isinstance(self.subject, str) else self.subject.classes()


@dataclass(frozen=True)
class _Answered:
    """Both sides, and what they answered before the windows.

    Attributes
    ----------
    sides
        The subject and its reference; twice the same where there is none.
    answers
        Of each, to all of `batches`.
    series
        In the type that windows are fed with.
    batches
        The same in whole batches, the first ones again in the last: some graphs take no others.
    device
        Of both: ``cpu`` or ``cuda``.
    in_memory
        At least one subject lies in this process.
    peak_mb
        Peak memory of the subject, loaded and called alone.
    """

    sides: tuple[_Side, _Side]
    answers: tuple[FloatArray, FloatArray]
    series: FloatArray
    batches: FloatArray
    device: str
    in_memory: bool
    peak_mb: float


def _measure(
    subject: Any,
    series: FloatArray,
    reference: Any,
    labels: list[Any] | None,
    cfg: Config,
    name: str | None,
    progress: bool,
) -> Measured:
    """Check, ask, score, measure, judge."""
    from tsexp.energy import hardware, validity
    from tsexp.energy.record import combined
    from tsexp.energy.statistics import summarize

    alone = reference is None
    asked = _answered([subject] if alone else [subject, reference], series, cfg, name, progress)
    answers, otherwise = _as_predicted(asked) if labels is not None else (asked.answers, [])
    targets, judged = by_class(asked.sides, [one[: len(series)] for one in answers], labels)
    raw = _windows(asked, cfg, progress)
    invalid, warnings = validity.judge(raw)
    measured = summarize(raw) | {"memory/peak_mb": asked.peak_mb}
    if asked.in_memory:
        measured = {k: v for k, v in measured.items() if not k.startswith(COLD)}
    qualities = _qualities(judged, targets, compared=not alone)
    metrics = combined(qualities | _sizes(asked.sides), measured)
    if alone:
        metrics = {k.replace("vs_dense/", NULL): v for k, v in metrics.items()}
        warnings = tuple(w.replace("vs_dense/", NULL) for w in warnings)  # name metrics
    one, other = asked.sides
    return Measured(
        metrics=metrics,
        energy_source=raw["source"],
        invalid_reasons=invalid,
        warnings=warnings if invalid else (*warnings, *otherwise),
        raw=raw,
        scores=judged[0],
        reference_scores=judged[1],
        labels=targets,
        manifest=one.facts,
        hardware=hardware.describe(asked.device),
        name=one.name,
        reference_name=None if alone else other.name,
        reference_manifest=other.facts,
        settings={k: v for k, v in configs.flat(cfg).items() if k.startswith("measure.") or k == "seed"},
        data={
            "series": len(asked.series),
            "shape": list(asked.series.shape),
            "dtype": str(asked.series.dtype),
            "checksum": hashlib.sha256(np.ascontiguousarray(asked.series).tobytes()).hexdigest(),
        },
    )


def _answered(
    given: Sequence[Any], series: FloatArray, cfg: Config, name: str | None, progress: bool
) -> _Answered:
    """Let one or two subjects answer all series; one alone is both sides."""
    from tsexp.system import locking

    found, device = _placed(given, cfg.measure)
    held = [one for one in found if not isinstance(one, str)]
    size = cfg.measure.batch_size
    whole = np.resize(np.arange(len(series)), -(-len(series) // size) * size)
    names = [_name(g, f) for g, f in zip(given, found, strict=True)]
    names[0] = name or names[0]
    if len(names) > 1 and names[0] == names[1]:
        names[1] += " (reference)"
    for one, of in zip(names, found, strict=True):
        if isinstance(of, str) and Path(of).is_dir():
            _without_gaps(one, series)
    with locking.sharing_the_machine():
        sides = [
            _asked(n, f, series[whole[:size]], device, held, cfg) for n, f in zip(names, found, strict=True)
        ]
        series = series.astype(_dtype(series, sides), copy=False)
        batches = series[whole]
        answers, peaks_mb = zip(
            *(_all_answers(side, batches, device, cfg, progress) for side in sides), strict=True
        )
    for side, theirs in zip(sides, answers, strict=True):
        _finite(side.name, theirs[: len(series)])
    both = (sides[0], sides[-1]), (answers[0], answers[-1])
    return _Answered(*both, series, batches, device, bool(held), peaks_mb[0])


def _all_answers(
    side: _Side, batches: FloatArray, device: str, cfg: Config, progress: bool
) -> tuple[FloatArray, float]:
    from tsexp.energy import MeasuringFailed, measuring

    try:
        return measuring.answers_of(
            side.subject, batches, device, cfg.measure, f"score {side.name}", progress
        )
    except MeasuringFailed as error:
        if not error.details:  # it died, or took too long
            raise
        first = error.details.splitlines()[0].removeprefix("ConfigError: ")
        raise ConfigError(f"{side.name} does not answer all of X: {first}") from error


def _windows(asked: _Answered, cfg: Config, progress: bool) -> dict[str, Any]:
    """Measure both in turns; every window."""
    from tsexp.energy import measuring

    size = cfg.measure.batch_size
    # With what fills the last batch, which has other neighbours there than where it stands first.
    probe = slice(-(-measuring.PROBE // size) * size)
    return measuring.take_turns(
        dict(zip(("artifact", "reference"), (side.subject for side in asked.sides), strict=True)),
        asked.device,
        {
            "x": asked.series,
            "probe": asked.batches[probe],
            "artifact_scores": asked.answers[0][probe],
            "reference_scores": asked.answers[1][probe],
        },
        cfg.measure,
        cfg.seed,
        f"measure {asked.sides[0].name}",
        progress,
    )


def _placed(given: Sequence[Any], config: MeasureConfig) -> tuple[list[str | InMemory], str]:
    """Return the subjects as they are measured and their device, with all ready to measure them there."""
    from tsexp import energy
    from tsexp.energy import meters, subjects
    from tsexp.system import processes

    configs.check_threads(config.threads)
    found = [subjects.named(one) for one in given]
    in_memory = [one for one in found if not isinstance(one, str)]
    if in_memory and not processes.FORKS:
        raise ConfigError(
            f"objects in memory are measured in forks, which is safe on Linux only, not on {sys.platform}; "
            "give files (ONNX, OpenVINO, artifact folders)"
        )
    devices = [_device(one) if isinstance(one, str) else "cpu" for one in found]
    if len(set(devices)) > 1:
        raise ConfigError("one of the two runs on cpu and the other on cuda: they cannot be compared")
    meters.check(devices[0], config)
    if len(in_memory) < len(found):
        processes.start(energy.PRELOAD)
    return found, devices[0]


def _without_gaps(name: str, series: FloatArray) -> None:
    """Refuse what an artifact would take for the end of a series; files of others may know gaps."""
    if series.ndim != 3:
        return
    missing = np.isnan(series)
    ends = np.flip(np.logical_and.accumulate(np.flip(missing.all(1), -1), axis=-1), -1)
    gaps = (missing & ~ends[:, None]).any((1, 2))
    if gaps.any():
        raise ConfigError(
            f"X has NaN before the end, or not in all channels, in {int(gaps.sum())} of {len(series)} "
            f"series, first series {int(gaps.argmax())}; {name} is an artifact, which takes NaN for the end "
            "of a shorter series: fill the gaps first, as tsexp.predict does, by interpolation"
        )


def _finite(name: str, answers: FloatArray) -> None:
    wrong = ~np.isfinite(answers).all(1)
    if wrong.any():
        raise ConfigError(
            f"{name} answers {int(wrong.sum())} of {len(answers)} series with NaN or infinite values, "
            f"first series {int(wrong.argmax())}; nothing was measured"
        )


def _name(given: Any, found: str | InMemory) -> str:
    return Path(given).name if isinstance(found, str) else found.name


def _device(path: str) -> str:
    from tsexp.runtimes import read_manifest

    if not Path(path).is_dir():
        return "cpu"
    try:
        return str(read_manifest(Path(path))["device"])
    except (OSError, ValueError, KeyError):
        raise ConfigError(
            f"{path} is no artifact folder of tsexp: it has no manifest.json that says so"
        ) from None


def _asked(
    name: str, subject: str | InMemory, batch: FloatArray, device: str, held: Sequence[InMemory], cfg: Config
) -> _Side:
    """Let a subject answer once, here if it lies in memory, and where it will be measured."""
    from tsexp.energy import MeasuringFailed, measuring, subjects

    limit = cfg.measure.timeout_s
    try:
        if isinstance(subject, subjects.InMemory):
            # Of a type that it need not convert: a conversion is a copy.
            given = batch.astype(batch.dtype if str(batch.dtype) in subject.takes else subject.takes[0])
            start = time.perf_counter()
            with subject.here():
                subjects.answers(subject, given)
            if not np.array_equal(given, batch.astype(given.dtype), equal_nan=True):
                raise ConfigError("it changes the series that it is given; let it work on a copy")
            limit = min(limit, PATIENCE[0] + PATIENCE[1] * (time.perf_counter() - start))
    except Exception as error:  # whatever somebody's model raises
        what = (
            str(error)
            if isinstance(error, ConfigError)
            else " ".join(f"{type(error).__name__}: {error}".split())
        )
        raise ConfigError(
            f"{name} does not answer X, batches of shape {batch.shape}: {what[:300]}"
        ) from error
    try:
        facts = measuring.first_answer(subject, batch, device, cfg.measure, limit, beside=held[:1])
    except MeasuringFailed as error:
        if held and "took longer" in str(error):
            raise ConfigError(
                f"{name} does not answer in a fork of this process within {limit:.0f} s: something here "
                "holds threads or locks of its own (a session of ONNX Runtime or OpenVINO, a pool); give "
                "files instead, of a classifier of this package the folder that its export writes"
            ) from error
        first = (error.details or str(error)).splitlines()[0]
        raise ConfigError(f"{name}: {first.removeprefix('ConfigError: ')}") from error
    return _Side(name, subject, facts)


def _dtype(series: FloatArray, sides: Sequence[_Side]) -> str:
    """What no subject has to convert, as far as there is such a type."""
    takes = [(s.facts["dtype"],) if "dtype" in s.facts else s.subject.takes for s in sides]  # type: ignore[union-attr]
    fits = [d for d in (str(series.dtype), "float32", "float64") if all(d in t for t in takes)]
    return fits[0] if fits else str(series.dtype)


def _as_predicted(asked: _Answered) -> tuple[Sequence[FloatArray], list[str]]:
    """Judge an estimator by its ``predict`` where that is not the largest of the scores that are timed.

    So it is where it has a threshold of its own, or scores of pairs of classes. Also returns what to warn of.
    """
    from tsexp.energy.subjects import Estimator

    judged, said = list(asked.answers), {}
    for i, side in enumerate(asked.sides):
        if i and side is asked.sides[0]:  # measured against itself
            judged[i] = judged[0]
            continue
        subject = side.subject
        if not isinstance(subject, Estimator):
            continue
        own = subject.predicted(asked.series)
        if own is None or np.array_equal(own, asked.answers[i][: len(own)].argmax(1)):
            continue
        judged[i] = np.eye(len(side.classes or ()), dtype=np.float32)[own]
        said[side.name] = (
            f"accuracy of {side.name} is that of predict, which is not the largest of {subject.method}"
        )
    return judged, list(said.values())


def _qualities(scores: Sequence[FloatArray], targets: IntArray, compared: bool) -> dict[str, float]:
    """Accuracy, where there are labels; what may be probabilities or not has no likelihood here."""
    if not len(targets):
        return {}
    from tsexp import tasks

    task = tasks.named("classification")
    found = {k: v for k, v in task.quality(scores[0], targets, "test").items() if not k.endswith("/nll")}
    if not compared:
        return found
    control = task.quality(scores[1], targets, "test")
    found[f"test/control_{task.HEADLINE}"] = control[f"test/{task.HEADLINE}"]
    return found | task.drop(*scores, targets)  # type: ignore[no-any-return]


def _sizes(sides: Sequence[_Side]) -> dict[str, float]:
    facts = [s.facts for s in sides]
    found = {f"size/{k}": facts[0][k] for k in ("parameters", "bytes", "macs") if k in facts[0]}
    if all("bytes" in f for f in facts):
        found["vs_dense/size_ratio"] = facts[1]["bytes"] / facts[0]["bytes"]
    return found


def _store(record: Measured, config: TrackingConfig, name: str | None = None) -> str:
    from tsexp import tracking

    client = tracking.opened(config)
    tags = {
        "tsexp.stage": MEASUREMENT,
        "tsexp.subject": record.name,
        **({"tsexp.reference": record.reference_name} if record.reference_name is not None else {}),
        **tracking.said_of(record, _as_here),
        "tsexp.data_checksum": record.data["checksum"],
        "mlflow.note.content": "\n\n".join(
            [*(f"{end}: {n}" for end, n in zip("AB", record._names(), strict=True)), record.said()]
        ),
    }
    params = {f"measured.{k}": record.data[k] for k in ("series", "shape", "dtype")}
    for side, what, facts in (
        ("subject", record.name, record.manifest),
        ("reference", record.reference_name, record.reference_manifest),
    ):
        if what is not None:
            params |= {f"measured.{side}": what, f"measured.{side}_kind": facts["kind"]}
    title = f"measure {record.name}" + (f" {record.reference_name}" if record.reference_name else "")
    return tracking.log_record(
        client,
        tracking.experiment_of(client, config),
        name or title,
        {tracking.as_shown(k, record.valid): v for k, v in record.metrics.items()},
        record.settings | params,
        tags,
        record,
        lambda folder: _write_answers(folder / "answers.npz", record),
    )


def _write_answers(path: Path, record: Measured) -> None:
    """Plain arrays: what both answered, and the labels, if there are any."""
    arrays: dict[str, Any] = {"answers": record.scores, "reference_answers": record.reference_scores}
    if len(record.labels):
        arrays["labels"] = record.labels
    np.savez_compressed(path, **arrays)


def _as_here(text: str) -> str:
    """Call the two as the table does."""
    return text.replace("the artifact", "A").replace("the reference", "B")


def main(arguments: list[str] | None = None) -> int:
    """Measure a file and return the exit status: 2 for bad input, 1 if measuring failed."""
    parser = parser_of(
        "measure",
        "SUBJECT --data FILE [--reference SUBJECT] [--name NAME] [--no-store] [key=value ...]",
        HELP,
        EXAMPLES,
    )
    parser.add_argument("words", nargs="*", metavar="subject or key=value", help=argparse.SUPPRESS)
    parser.add_argument("--data", metavar="FILE", help=".npz with X (series, ...) and perhaps y; or .ts")
    parser.add_argument("--reference", metavar="SUBJECT", help="beside what (default: itself: the noise)")
    parser.add_argument("--name", help="of the subject, and in the store (default: its file)")
    parser.add_argument("--no-store", action="store_true", help="print only")
    if arguments is None:
        secret.out_of_sight()
    asked, unknown = parser.parse_known_intermixed_args(arguments)
    return subcommand.carried_out("measure", lambda: _run(asked), "nothing was stored", unknown)


def _run(asked: argparse.Namespace) -> None:
    from tsexp import tracking
    from tsexp.report.console import terminal

    subjects, settings = subcommand.sort(asked.words, SETTINGS)
    if len(subjects) != 1:
        raise ConfigError(f"give one file or folder to measure, not {len(subjects)}; see --help")
    if asked.data is None:
        raise ConfigError("give the series: --data FILE, a .npz with an array X, (series, …), or a .ts file")
    cfg = configs.parse(composed(*settings))
    series, labels = _data(asked.data, None)
    if not asked.no_store:
        tracking.opened(cfg.tracking)  # before any work
    record = _measure(subjects[0], series, asked.reference, labels, cfg, asked.name, cfg.train.progress)
    console = terminal()
    console.print(record.summary())
    if not asked.no_store:
        console.print(f"stored as run {_store(record, cfg.tracking)}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
