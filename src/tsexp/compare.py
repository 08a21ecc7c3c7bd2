"""Two runs of the store, head to head: ``python -m tsexp.compare RUN_A RUN_B``.

What a sweep says of two jobs are two comparisons, each with its own control, at different times. Here windows
of the two artifacts alternate, so that a difference between them is seen as one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import config as configs
from tsexp import finished, subcommand
from tsexp.command import parser_of
from tsexp.config import Config, ConfigError, secret
from tsexp.config.compose import composed
from tsexp.marks import ATTACHED_TO, COMPARISON, ENDS, ESTIMATED
from tsexp.system import alive

if TYPE_CHECKING:  # --help need not wait for them
    from rich.table import Table

    from tsexp.data import Dataset
    from tsexp.energy import Record
    from tsexp.report.store import Row
    from tsexp.runtimes import Artifact

LEVEL = 0.05
"""A McNemar p below it is called a difference."""
SETTINGS = {
    "measure=quick|paper": "measure",
    "measure.…": "measure.",
    "seed": "seed",
    **subcommand.PLACES,
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
    parser = parser_of("compare", "RUN_A RUN_B [key=value ...]", HELP, EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="run or key=value", help=argparse.SUPPRESS)
    if arguments is None:
        secret.out_of_sight()
    asked, unknown = parser.parse_known_args(arguments)

    def work() -> None:
        runs, settings = _sort(asked.words)
        _compare(runs, configs.parse(composed(*settings)))

    return subcommand.carried_out("compare", work, "nothing was stored", unknown)


def _sort(words: Sequence[str]) -> tuple[tuple[str, str], list[str]]:
    """Words into the two runs and the settings."""
    runs, settings = subcommand.sort(words, SETTINGS)
    if len(runs) != 2:
        raise ConfigError(f"give two runs, RUN_A RUN_B, not {len(runs)}; their ids are in the store's UI")
    for run in runs:
        finished.check_id(run)
    return (runs[0], runs[1]), settings


def _compare(runs: tuple[str, str], cfg: Config) -> None:
    """Find, check, measure, print, store: a store that fails in the end loses nothing that was measured."""
    from tsexp import energy, tasks
    from tsexp.cache import Cache
    from tsexp.report.console import ESTIMATE, terminal
    from tsexp.report.store import connect
    from tsexp.system import processes

    client = connect(cfg.tracking.uri)
    rows = [_find(client, cfg.tracking.experiment, run) for run in runs]
    if rows[0].run_id == rows[1].run_id:
        print("tsexp.compare: A and B are one run: what will differ is noise", file=sys.stderr)
    dataset = _dataset(rows, cfg)
    cache = Cache(Path(cfg.paths.cache))
    with alive.scratch("compare") as scratch:
        a, b = (Side(row, finished.artifact(client, row, cache.root, scratch)) for row in rows)
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
    mark = ESTIMATE if record.energy_source.startswith(ESTIMATED) else ""
    answers, windows = numbers(record, a, b, tasks.of(dataset))
    found = (answers, windows, record.valid, mark)
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
    for line in (*remarks(record, mark), sentence(*found)):
        console.print(line, markup=False)
    run_id = _store(client, cfg, dataset, (a, b), record, answers, windows, sentence(*found))
    console.print(f"stored as run {run_id}", markup=False)


def _find(client: Any, experiment: str, run: str) -> Row:
    """Return the run whose id begins so, if it can be compared."""
    row = finished.find(client, experiment, run)
    finished.check_protocol(row)
    if not row.valid:
        reasons = row.tags.get("tsexp.invalid_reasons", "")
        what = "run it again"
        if ATTACHED_TO in row.tags:
            what = f"attach a better power log, or give the one it is of, {row.tags[ATTACHED_TO][:8]}"
        raise ConfigError(f"{finished.called(row)} is invalid ({reasons}): {what}")
    return row


def _dataset(rows: Sequence[Row], cfg: Config) -> Dataset:
    """Load the series that both runs are of.

    None are for validation: the two may have been trained on other parts of the train split.
    """
    if len({r.tags["tsexp.data_checksum"] for r in rows}) > 1:
        raise ConfigError(
            "the runs are of different data: "
            + " and ".join(f"{r.params['data.name']} ({r.tags['tsexp.data_checksum'][:8]})" for r in rows)
            + "; only two runs on the same files can be compared"
        )
    return replace(finished.dataset(rows, cfg), val=np.zeros(0, np.int64))


def _check(a: Side, b: Side, cfg: Config) -> None:
    """Whether both can run here, side by side."""
    from tsexp.energy import meters

    device, other = (s.artifact.manifest["device"] for s in (a, b))
    if device != other:
        raise ConfigError(f"A runs on {device} and B on {other}: their energy cannot be compared")
    for name, side in (("A", a), ("B", b)):
        finished.check_runs_here(side.row, side.artifact, name)
    configs.check_threads(cfg.measure.threads)
    meters.check(device, cfg.measure)


SUBJECTS = {"a": "artifact", "b": "reference"}
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
    answers = accuracies(record, task)
    for end, side in (("a", a), ("b", b)):
        answers |= sizes(side.artifact.manifest, end)
    return answers, of_windows(record.metrics, record.raw)


def accuracies(record: Record, task: Any) -> dict[str, float]:
    """What is known of the answers of both, and of their difference."""
    from tsexp.report.statistics import mcnemar_p

    m = record.metrics
    loss_a, loss_b = (task.loss_pt(s, record.labels) for s in (record.scores, record.reference_scores))
    only_a, only_b = int((loss_a < loss_b).sum()), int((loss_b < loss_a).sum())
    return {
        "accuracy_a": m["test/accuracy"],
        "accuracy_b": m["test/control_accuracy"],
        "accuracy_difference_pt": 0.0 - m["vs_dense/accuracy_drop_pt"],
        "accuracy_difference_lo": 0.0 - m["vs_dense/accuracy_drop_hi"],
        "accuracy_difference_hi": 0.0 - m["vs_dense/accuracy_drop_lo"],
        "only_a_right": only_a,
        "only_b_right": only_b,
        "mcnemar_p": mcnemar_p(only_a, only_b),
    }


def sizes(manifest: Mapping[str, Any], end: str) -> dict[str, float]:
    """What was counted on one of the two, `end`: ``a`` or ``b``."""
    return {f"{k}_{end}": float(manifest[k]) for k in SIZES if manifest.get(k) is not None}


def of_windows(metrics: Mapping[str, float], raw: Mapping[str, Any]) -> dict[str, float]:
    """What windows say of both, by the names that `table` knows; `metrics` are those of a record."""
    windows = {k: metrics[name] for k, name in FROM_WINDOWS.items() if name in metrics}
    for end, subject in SUBJECTS.items():
        per_series = [
            w["wall_s"] / w["inferences"]
            for w in raw["windows"]
            if w["subject"] == subject and not w["discarded"]
        ]
        if per_series:
            windows[f"call_ms_{end}"] = 1e3 * raw["batch_size"] * float(np.median(per_series))
    return windows


def sentence(answers: dict[str, float], windows: dict[str, float], valid: bool, mark: str) -> str:
    """What came out, in words.

    Parameters
    ----------
    answers, windows
        The `numbers`; of `answers`, those that there are.
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
    if "mcnemar_p" not in answers:
        return f"{energy}."
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

    from tsexp.report.console import between, si

    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("")
    for head in ("A", "B"):
        out.add_column(head, justify="right", no_wrap=True)
    out.add_column("A against B [95 %]", no_wrap=True)
    n = answers | windows

    if "mcnemar_p" in answers:
        out.add_row(
            "accuracy, test split",
            *(f"{100 * n[f'accuracy_{end}']:.1f} %" for end in SUBJECTS),
            f"{between(n, 'accuracy_difference', '{:+.1f}', '_pt')} points",
        )
        flips = f"{n['only_a_right']:.0f} : {n['only_b_right']:.0f}"
        out.add_row("only this one right", *flips.split(" : "), f"exact McNemar p {_p(n['mcnemar_p'])}")
    if valid:
        out.add_row(
            f"energy per series{mark}",
            *(si(n[f"energy_{end}_j"], "J") for end in SUBJECTS),
            f"saving {between(n, 'energy_saving', '{:.1f}', '_pct')} %",
        )
        out.add_row(
            "time per call",
            *(si(n[f"call_ms_{end}"] / 1e3, "s") for end in SUBJECTS),
            f"speedup {between(n, 'speedup', '{:.2f}')}",
        )
        out.add_row("", "", "", f"of CPU time {between(n, 'cpu_speedup', '{:.2f}')}")
    else:
        out.add_row("energy, time", "invalid", "invalid", "")
    for key, name in SIZES.items():
        both = [n.get(f"{key}_{end}") for end in SUBJECTS]
        if both == [None, None]:
            continue
        ratio = f"{both[0] / both[1]:.2f} times" if both[0] is not None and both[1] else ""
        out.add_row(name, *("–" if v is None else f"{v:,.0f}" for v in both), ratio)
    return out


def remarks(record: Record, mark: str, put: Callable[[str], str] | None = None) -> list[str]:
    """Why to look twice, with the two called by their names here (`put`: `as_here`)."""
    put = put or as_here
    said = [f"{mark} estimated from CPU time: no energy counter answers here"] if mark else []
    said += [f"energy: {record.energy_source}"] if not mark else []
    said += [f"invalid: {put(why)}" for why in record.invalid_reasons]
    return said + [f"⚠ {put(why)}" for why in record.warnings]


def as_here(text: str) -> str:
    """Call the two by their names here, in a sentence of a record."""
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
    from tsexp.tracking import experiment_of, log_record, said_of
    from tsexp.tracking.run import write_predictions

    a, b = sides
    named = {f"compare/{k}": v for k, v in answers.items()}
    named |= {f"{'' if record.valid else 'invalid/'}compare/{k}": v for k, v in windows.items()}
    settings = {k: v for k, v in configs.flat(cfg).items() if k.startswith("measure.") or k == "seed"}
    tags = {
        "tsexp.stage": COMPARISON,
        "tsexp.compare_a": a.row.run_id,
        "tsexp.compare_b": b.row.run_id,
        **said_of(record, as_here),
        "tsexp.data": dataset.name,
        "tsexp.data_checksum": dataset.checksum,
        "mlflow.note.content": "\n\n".join(
            [*(f"{k}: {s.row.run_id}, {s.row.name}" for k, s in zip("AB", sides, strict=True)), said]
        ),
    }
    title = f"compare {a.row.name} {b.row.name}"
    return log_record(
        client,
        experiment_of(client, cfg.tracking),
        title,
        named,
        settings,
        tags,
        record,
        lambda folder: write_predictions(folder / "predictions.csv", record, dataset),
    )


if __name__ == "__main__":
    sys.exit(main())
