"""Two runs of the store, head to head: ``python -m tsexp.compare RUN_A RUN_B``.

What a sweep says of two jobs are two comparisons, each with its own control, at different times. Here windows
of the two artifacts alternate, so that a difference between them is seen as one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import config as configs
from tsexp.command import called
from tsexp.config import Config, ConfigError, DataConfig

if TYPE_CHECKING:  # --help need not wait for them
    from rich.table import Table

    from tsexp.data import Dataset
    from tsexp.energy import Record
    from tsexp.report.store import Row
    from tsexp.runtimes import Artifact

STAGE = "compare"
SHORTEST_ID = 6
LEVEL = 0.05
"""A McNemar p below it is called a difference."""
SETTINGS = {
    "measure=quick|paper": "measure",
    "measure.…": "measure.",
    "seed": "seed",
    "tracking.…": "tracking.",
    "paths.…": "paths.",
    "data.path": "data.path",
}
"""What may be set → how it begins."""
HELP = """\
Two finished runs of the store, head to head on this machine: their artifacts are scored and measured anew,
in windows that alternate. Prints accuracy, energy and time of both, with the intervals of their differences,
and stores the comparison as a run of its own."""
EXAMPLES = """\
  RUN_A RUN_B      run ids, or their first characters (at least 6)
  measure=paper    narrower intervals; every measure.… can be set, e.g. measure.batch_size=32
  tracking.uri=sqlite:////path/mlflow.db tracking.experiment=tsexp    the store
  paths.cache=cache paths.data=data    artifacts (else they come from the store), and the series

  python -m tsexp.compare 62bf7186 766f5882 measure=paper"""


@dataclass(frozen=True)
class Side:
    """One of the two: its run, and the artifact that it measured."""

    row: Row
    artifact: Artifact


def main(arguments: list[str] | None = None) -> int:
    """Compare what is asked for and return the exit status: 2 for bad input, 1 if measuring failed."""
    parser = argparse.ArgumentParser(
        prog=called("compare"),
        usage="%(prog)s RUN_A RUN_B [key=value ...]",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="run or key=value", help=argparse.SUPPRESS)
    asked, unknown = parser.parse_known_args(arguments)

    from tsexp.report.store import ReportError

    try:
        if unknown:
            raise ConfigError(f"{unknown[0]} is not an option; see --help")
        runs, settings = _sort(asked.words)
        _compare(runs, configs.parse(configs.composed(*settings)))
    except (ConfigError, ReportError) as error:
        return _end(2, str(error))
    except KeyboardInterrupt:
        return _end(130, "interrupted; nothing was stored")
    except Exception as error:  # of the measuring processes, of the store
        return _end(1, f"{type(error).__name__}: {error}")
    return 0


def _end(status: int, message: str) -> int:
    print(f"tsexp.compare: error: {configs.redact(message)}", file=sys.stderr)
    return status


def _sort(words: Sequence[str]) -> tuple[tuple[str, str], list[str]]:
    """Words into the two runs and the settings."""
    settings = [w for w in words if "=" in w]
    for setting in settings:
        key = setting.partition("=")[0]
        if not any(key == s or (s.endswith(".") and key.startswith(s)) for s in SETTINGS.values()):
            known = [s.rstrip(".") for s in SETTINGS.values()]
            raise ConfigError(
                f"{setting} is not known here; allowed: {', '.join(SETTINGS)}{configs.suggest(key, known)}"
            )
    runs = [w for w in words if "=" not in w]
    if len(runs) != 2:
        raise ConfigError(f"give two runs, RUN_A RUN_B, not {len(runs)}; their ids are in the store's UI")
    for run in runs:
        if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_ID},32}}", run):
            raise ConfigError(
                f"{run} is not a run id: {SHORTEST_ID} to 32 hexadecimal digits, as in the store's UI"
            )
    return (runs[0], runs[1]), settings


def _compare(runs: tuple[str, str], cfg: Config) -> None:
    """Find, check, measure, store, print: nothing is stored before all of it is there."""
    from tsexp import energy, processes, tasks
    from tsexp.cache import Cache
    from tsexp.energy import meters
    from tsexp.report.console import ESTIMATE, terminal
    from tsexp.report.store import connect

    client = connect(cfg.tracking.uri)
    rows = [_find(client, cfg.tracking.experiment, run) for run in runs]
    dataset = _dataset(rows, cfg)
    cache = Cache(Path(cfg.paths.cache))
    with tempfile.TemporaryDirectory(prefix="tsexp-compare-") as scratch:
        a, b = (Side(row, _artifact(client, row, cache.root, Path(scratch))) for row in rows)
        _check(a, b, cfg)
        processes.start(energy.PRELOAD)
        scores, scores_b = (
            energy.score(s.artifact, dataset, cfg.measure, cache, cfg.train.progress, ("test",))
            for s in (a, b)
        )
        title = f"compare {a.row.name} with {b.row.name}"
        record = energy.measure(
            a.artifact,
            b.artifact,
            scores,
            scores_b,
            dataset,
            cfg.measure,
            cfg.seed,
            title,
            cfg.train.progress,
        )
    mark = ESTIMATE if record.energy_source.startswith(meters.ESTIMATED) else ""
    answers, windows = numbers(record, a, b, tasks.of(dataset))
    found = (answers, windows, record.valid, mark)
    run_id = _store(client, cfg, dataset, (a, b), record, answers, windows, sentence(*found))
    console = terminal()
    for name, side in (("A", a), ("B", b)):
        console.print(f"{name}  {side.row.run_id[:8]}  {side.row.name}", markup=False)
    raw = record.raw
    console.print(
        f"{dataset.name}, {len(dataset.x_test):,} test series, batch {raw['batch_size']}, "
        f"{raw['repeats']} pairs of windows in {raw['processes']} processes",
        markup=False,
    )
    console.print(table(*found))
    for line in (*remarks(record, mark), sentence(*found), f"stored as run {run_id}"):
        console.print(line, markup=False)


def _find(client: Any, experiment: str, run: str) -> Row:
    """Return the run whose id begins so, if it can be compared."""
    from tsexp.energy import PROTOCOL_VERSION
    from tsexp.report.store import row as as_row

    place = client.get_experiment_by_name(experiment)
    if place is None:
        raise ConfigError(f"the store has no experiment {experiment!r}; say which: tracking.experiment=…")
    found = client.search_runs([place.experiment_id], f"attributes.run_id LIKE '{run}%'", max_results=3)
    if not found:
        newest = [
            r
            for r in client.search_runs([place.experiment_id], "tags.`tsexp.valid` = 'true'", max_results=4)
            if r.data.tags.get("tsexp.stage") != STAGE
        ]
        known = "; ".join(f"{r.info.run_id[:8]} {r.info.run_name}" for r in newest[:3])
        raise ConfigError(
            f"no run of experiment {experiment!r} begins with {run}; the newest: {known or 'none'}"
        )
    if len(found) > 1:
        raise ConfigError(f"several runs begin with {run}: {', '.join(r.info.run_id for r in found)}; …")
    row = as_row(found[0])
    stage = row.tags.get("tsexp.stage")
    if stage in ("sweep", STAGE):
        kind = "a sweep" if stage == "sweep" else "a comparison"
        raise ConfigError(f"run {run} is {kind}, not an experiment; give two runs that have an artifact")
    what = f"run {run} ({row.name})"
    if row.status != "FINISHED":
        raise ConfigError(f"{what} has not finished ({row.status}): run it again")
    if row.tags.get("tsexp.protocol") != str(PROTOCOL_VERSION):
        raise ConfigError(f"{what} was measured by an older protocol: run it again")
    if not row.valid:
        reasons = row.tags.get("tsexp.invalid_reasons", "")
        raise ConfigError(f"{what} is invalid ({reasons}): run it again")
    return row


def _dataset(rows: Sequence[Row], cfg: Config) -> Dataset:
    """Load the series that both runs are of.

    None are for validation: the two may have been trained on other parts of the train split.
    """
    from omegaconf import OmegaConf

    from tsexp import data

    if len({r.tags["tsexp.data_checksum"] for r in rows}) > 1:
        raise ConfigError(
            "the runs are of different data: "
            + " and ".join(f"{r.params['data.name']} ({r.tags['tsexp.data_checksum'][:8]})" for r in rows)
            + "; only two runs on the same files can be compared"
        )
    params = {f.name: rows[0].params[f"data.{f.name}"] for f in fields(DataConfig)}
    given: Any = OmegaConf.to_object(
        OmegaConf.merge(
            OmegaConf.structured(DataConfig), {k: None if v == "None" else v for k, v in params.items()}
        )
    )
    if cfg.data.path:  # elsewhere than it was
        given.path = cfg.data.path
    dataset = data.load(given, cfg.paths.data, cfg.seed)
    if dataset.checksum != rows[0].tags["tsexp.data_checksum"]:
        raise ConfigError(
            f"{' and '.join(dataset.files)} are not the files that the runs are of; "
            "say where those are: paths.data=… or data.path=…"
        )
    return replace(dataset, val=np.zeros(0, np.int64))


def _artifact(client: Any, row: Row, cache: Path, scratch: Path) -> Artifact:
    """From the cache or, where it is gone from there, from the model in the store."""
    import mlflow

    from tsexp.cache import Entry
    from tsexp.runtimes import Artifact, read_manifest

    signature = row.tags["tsexp.artifact"]
    folder: Path | None = cache / "artifact" / signature
    if not _whole(folder):
        folder = None
        outputs = client.get_run(row.run_id).outputs
        for model in outputs.model_outputs if outputs else ():
            place = scratch / model.model_id
            place.mkdir(exist_ok=True)
            with contextlib.suppress(mlflow.exceptions.MlflowException, OSError):
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{client.get_logged_model(model.model_id).artifact_location}/artifacts",
                    dst_path=str(place),
                    tracking_uri=str(client.tracking_uri),
                )
            folder = next((m.parent for m in place.glob("artifacts/*/manifest.json")), None)
    if not _whole(folder):
        raise ConfigError(
            f"the artifact of run {row.run_id[:8]} ({row.name}) is neither in {cache} nor, whole, in the "
            "store; run it again with rerun=true"
        )
    assert folder is not None
    return Artifact(Entry(folder, signature, reused=True), read_manifest(folder))


def _whole(folder: Path | None) -> bool:
    """Every file is the one that the manifest lists."""
    from tsexp.cache import sha256
    from tsexp.runtimes import read_manifest

    try:
        return folder is not None and all(
            sha256(folder / name) == expected for name, expected in read_manifest(folder)["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _check(a: Side, b: Side, cfg: Config) -> None:
    """Whether both can run here, side by side."""
    from tsexp import runtimes
    from tsexp.config import QuantConfig, RuntimeConfig
    from tsexp.energy import meters

    device, other = (s.artifact.manifest["device"] for s in (a, b))
    if device != other:
        raise ConfigError(f"A runs on {device} and B on {other}: their energy cannot be compared")
    for name, side in (("A", a), ("B", b)):
        manifest = side.artifact.manifest
        try:
            quant = QuantConfig(manifest["mode"], calibration="minmax", weight_bits=8)
            family = configs.like(side.row.params.get("model.family", "transformer"))
            runtimes.check(quant, RuntimeConfig(manifest["runtime"], device), family)
        except (ConfigError, ImportError) as error:
            raise ConfigError(f"{name} cannot run here: {error}") from None
    if cfg.measure.require == "measured" or device == "cuda":
        meters.choose(device, cfg.measure.require, cfg.measure.watts_per_core, cfg.measure.meter)


SUBJECTS = {"a": "artifact", "b": "reference"}
ENDS = ("", "_lo", "_hi")
FROM_WINDOWS = {
    "energy_a_j": "energy/per_inference_j",
    "energy_b_j": "energy/reference_per_inference_j",
    **{f"energy_saving{end or '_pct'}": f"vs_dense/energy_saving{end or '_pct'}" for end in ENDS},
    **{f"{kind}{end}": f"vs_dense/{kind}{end}" for kind in ("speedup", "cpu_speedup") for end in ENDS},
}
"""Name in a comparison → in a record."""
SIZES = {"parameters": "parameters", "macs": "MACs per series", "bytes": "bytes on disk"}
"""Entry of a manifest → what it is called."""


def numbers(record: Record, a: Side, b: Side, task: Any) -> tuple[dict[str, float], dict[str, float]]:
    """What is known of two artifacts: of their answers and files; and of the windows.

    A saving or speedup is that of A against B, a difference that of A less B; the two of a kind end in ``_a``
    and ``_b``. `task` is a module of `tsexp.tasks`.
    """
    from tsexp.report.statistics import mcnemar_p

    m = record.metrics
    loss_a, loss_b = (task.loss_pt(s, record.labels) for s in (record.scores, record.reference_scores))
    only_a, only_b = int((loss_a < loss_b).sum()), int((loss_b < loss_a).sum())
    answers = {
        "accuracy_a": m["test/accuracy"],
        "accuracy_b": m["test/control_accuracy"],
        "accuracy_difference_pt": 0.0 - m["vs_dense/accuracy_drop_pt"],
        "accuracy_difference_lo": 0.0 - m["vs_dense/accuracy_drop_hi"],
        "accuracy_difference_hi": 0.0 - m["vs_dense/accuracy_drop_lo"],
        "only_a_right": only_a,
        "only_b_right": only_b,
        "mcnemar_p": mcnemar_p(only_a, only_b),
    }
    for end, side in (("a", a), ("b", b)):
        sizes = {k: side.artifact.manifest.get(k) for k in SIZES}
        answers |= {f"{k}_{end}": float(v) for k, v in sizes.items() if v is not None}
    windows = {k: m[name] for k, name in FROM_WINDOWS.items() if name in m}
    for end, subject in SUBJECTS.items():
        per_series = [
            w["wall_s"] / w["inferences"]
            for w in record.raw["windows"]
            if w["subject"] == subject and not w["discarded"]
        ]
        if per_series:
            windows[f"call_ms_{end}"] = 1e3 * record.raw["batch_size"] * float(np.median(per_series))
    return answers, windows


def sentence(answers: dict[str, float], windows: dict[str, float], valid: bool, mark: str) -> str:
    """What came out, in words.

    Parameters
    ----------
    answers, windows
        The `numbers`.
    valid
        The windows may be trusted.
    mark
        Of an estimate, or empty.
    """
    if valid:
        saving, low, high = (windows[f"energy_saving{end}"] for end in ("_pct", "_lo", "_hi"))
        if low > 0:
            energy = f"A needs {saving:.1f} % less energy{mark} than B [{low:.1f}, {high:.1f}]"
        elif high < 0:
            energy = f"A needs {-saving:.1f} % more energy{mark} than B [{-high:.1f}, {-low:.1f}]"
        else:
            energy = f"no difference in energy{mark} seen (saving {saving:.1f} % [{low:.1f}, {high:.1f}])"
    else:
        energy = "nothing can be said of energy: the measurement is invalid"
    points, p = answers["accuracy_difference_pt"], answers["mcnemar_p"]
    apart = f"A is {abs(points):.1f} points {'more' if points > 0 else 'less'} accurate"
    accuracy = apart if p < LEVEL else "no difference in accuracy seen"
    return f"{energy}; {accuracy} (McNemar p {_p(p)})."


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"= {p:.2g}".replace("0.", ".")


def table(answers: dict[str, float], windows: dict[str, float], valid: bool, mark: str) -> Table:
    """Both side by side, and A against B; fits 80 columns. Parameters: see `sentence`."""
    from rich import box
    from rich.table import Table

    from tsexp.report.console import si

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("")
    for head in ("A", "B"):
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("A against B [95 %]", no_wrap=True)
    n = answers | windows

    def interval(key: str, form: str, first: str = "") -> str:
        return "{} [{}, {}]".format(*(form.format(n[f"{key}{end}"]) for end in (first, "_lo", "_hi")))

    out.add_row(
        "accuracy, test split",
        *(f"{100 * n[f'accuracy_{end}']:.1f} %" for end in SUBJECTS),
        f"{interval('accuracy_difference', '{:+.1f}', '_pt')} points",
    )
    flips = f"{n['only_a_right']:.0f} : {n['only_b_right']:.0f}"
    out.add_row("only this one right", *flips.split(" : "), f"exact McNemar p {_p(n['mcnemar_p'])}")
    if valid:
        out.add_row(
            f"energy per series{mark}",
            *(si(n[f"energy_{end}_j"], "J") for end in SUBJECTS),
            f"saving {interval('energy_saving', '{:.1f}', '_pct')} %",
        )
        out.add_row(
            "time per call",
            *(si(n[f"call_ms_{end}"] / 1e3, "s") for end in SUBJECTS),
            f"speedup {interval('speedup', '{:.2f}')}",
        )
        out.add_row("", "", "", f"of CPU time {interval('cpu_speedup', '{:.2f}')}")
    else:
        out.add_row("energy, time", "invalid", "invalid", "")
    for key, name in SIZES.items():
        both = [n.get(f"{key}_{end}") for end in SUBJECTS]
        ratio = f"{both[0] / both[1]:.2f} times" if both[0] is not None and both[1] else ""
        out.add_row(name, *("–" if v is None else f"{v:,.0f}" for v in both), ratio)
    return out


def remarks(record: Record, mark: str) -> list[str]:
    """Why to look twice, with the two called by their names here."""
    said = [f"{mark} estimated from CPU time: no energy counter answers here"] if mark else []
    said += [f"energy: {record.energy_source}"] if not mark else []
    said += [f"invalid: {_as_here(why)}" for why in record.invalid_reasons]
    return said + [f"⚠ {_as_here(why)}" for why in record.warnings]


def _as_here(text: str) -> str:
    for there, here in (("the artifact", "A"), ("the reference", "B"), ("vs_dense/", "compare/")):
        text = text.replace(there, here)
    return text


def _store(
    client: Any,
    cfg: Config,
    dataset: Dataset,
    sides: tuple[Side, Side],
    record: Record,
    answers: dict[str, float],
    windows: dict[str, float],
    said: str,
) -> str:
    """Log a finished comparison as a run; an interrupted one leaves none."""
    from mlflow.entities import Metric, Param, RunTag

    from tsexp import __version__
    from tsexp.energy import PROTOCOL_VERSION
    from tsexp.tracking import git_sha
    from tsexp.tracking.run import write_predictions

    now = int(1000 * time.time())
    a, b = sides
    named = {f"compare/{k}": v for k, v in answers.items()}
    named |= {f"{'' if record.valid else 'invalid/'}compare/{k}": v for k, v in windows.items()}
    settings = {k: v for k, v in configs.flat(cfg).items() if k.startswith("measure.") or k == "seed"}
    tags = {
        "tsexp.stage": STAGE,
        "tsexp.compare_a": a.row.run_id,
        "tsexp.compare_b": b.row.run_id,
        "tsexp.energy_source": record.energy_source,
        "tsexp.valid": "true" if record.valid else "false",
        "tsexp.invalid_reasons": "; ".join(map(_as_here, record.invalid_reasons)),
        "tsexp.warnings": "; ".join(map(_as_here, record.warnings)),
        "tsexp.data": dataset.name,
        "tsexp.data_checksum": dataset.checksum,
        "tsexp.protocol": str(PROTOCOL_VERSION),
        "tsexp.cpu": record.hardware["cpu"],
        "tsexp.git_sha": git_sha(),
        "tsexp.version": __version__,
        "mlflow.note.content": "\n\n".join(
            [*(f"{k}: {s.row.run_id}, {s.row.name}" for k, s in zip("AB", sides, strict=True)), said]
        ),
    }
    experiment = client.get_experiment_by_name(cfg.tracking.experiment).experiment_id
    run_id = str(
        client.create_run(experiment, run_name=f"compare {a.row.name} {b.row.name}"[:250]).info.run_id
    )
    try:
        client.log_batch(
            run_id,
            [Metric(k, v, now, 0) for k, v in named.items()],
            [Param(k, str(v)) for k, v in settings.items()],
            [RunTag(k, v[:4900]) for k, v in tags.items()],
        )
        with tempfile.TemporaryDirectory(prefix="tsexp-compare-") as name:
            folder = Path(name)
            (folder / "windows.json").write_text(json.dumps(record.raw, indent=1))
            (folder / "hardware.json").write_text(json.dumps(record.hardware, indent=1))
            write_predictions(folder / "predictions.csv", record, dataset)
            client.log_artifacts(run_id, str(folder))
        client.set_terminated(run_id, "FINISHED")
    except BaseException:
        client.delete_run(run_id)
        raise
    return run_id


if __name__ == "__main__":
    sys.exit(main())
