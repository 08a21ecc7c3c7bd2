"""A power log, laid over a finished run: ``python -m tsexp.attach RUN power.csv``.

Windows keep when they began and ended. What something outside wrote meanwhile turns them into measured
joules, which are stored as a run beside the old one: the same experiment by another meter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexp import config as configs
from tsexp import finished, subcommand
from tsexp.command import parser_of
from tsexp.config import ConfigError, TrackingConfig, secret
from tsexp.config.compose import composed
from tsexp.marks import ATTACHED_TO, FROM_RUN, FROM_STORE
from tsexp.system import alive

if TYPE_CHECKING:  # --help need not wait for them
    from tsexp.energy.powerlog import PowerLog
    from tsexp.report.store import Row

HELP = """\
Lay a power log (smart plug, PDU, Joulescope, INA219) over the windows of a finished run and store what comes
out as a run beside it, with measured joules. RUN is a run id, or its first characters (at least 6). LOG is a
CSV file with a header, a column of time (UNIX time, or ISO 8601 with its zone) and one of watts. Its clock,
gaps and samples are checked; if a window cannot be told from it, the new run is invalid and says why (exit
status 1)."""
EXAMPLES = """\
  tracking.uri=sqlite:////path/mlflow.db tracking.experiment=tsexp    the store

  python -m tsexp.attach 62bf7186 power.csv --name plug --offset-s -0.4"""
LOG = "power.csv"
"""The part of the log that was used, among the artifacts of the new run."""
AROUND_S = 120.0
"""Of the log before the first window and after the last that is kept: offsets are looked for there."""
KEPT = (
    *("test/", "val/", "size/", "vs_dense/accuracy", "vs_dense/size", "prune/achieved_ratio"),
    *("prune/requested_ratio", "cost/train_s", "cost/compress_s", "dense/", "memory/"),
)
"""Metrics, by their beginnings, that do not come out of windows (of ``dense/`` the report sees that the train
group mattered). Joules of training and compressing do not, either, but nothing measured them."""
WITHOUT_WINDOWS = ("the artifact answers",)
"""Beginnings of warnings that do not come out of windows."""
NOT_TAKEN = (
    *("tsexp.error", "tsexp.record", "mlflow.user", "mlflow.log-model.history"),
    *(f"tsexp.{key}" for key in alive.WHO),
    FROM_RUN,
    FROM_STORE,
)
"""Tags of the old run that are of its process, or its own number."""


def main(arguments: list[str] | None = None) -> int:
    """Attach what is asked for.

    Returns
    -------
    int
        Exit status: 0; 1 if what came out is invalid, or the store failed; 2 for bad input.
    """
    parser = parser_of(
        "attach", "RUN LOG [--name NAME] [--offset-s S] [tracking.…=value ...]", HELP, EXAMPLES
    )
    parser.add_argument("words", nargs="*", metavar="RUN LOG", help=argparse.SUPPRESS)
    parser.add_argument(
        "--name", help="of what wrote the log: joules are then from external:NAME (default: the file's)"
    )
    parser.add_argument(
        "--offset-s",
        type=float,
        default=0.0,
        metavar="S",
        help="the log's clock less that of the machine that was measured, seconds (default: 0)",
    )
    if arguments is None:
        secret.out_of_sight()
    asked = parser.parse_intermixed_args(arguments)
    return subcommand.carried_out(
        "attach", lambda: int(not _attach(asked.words, asked.name, asked.offset_s)), "nothing was stored"
    )


def _attach(words: Sequence[str], name: str | None, offset_s: float) -> bool:
    """Find, read, fill, store, print; return whether what came out may be trusted."""
    from tsexp import report
    from tsexp.energy import external, powerlog
    from tsexp.report.console import terminal
    from tsexp.report.store import connect, row
    from tsexp.tracking import experiment_of

    (run, file), tracking = _sort(words)
    try:
        name = external.named(Path(file).stem if name is None else name)
    except ConfigError as error:
        raise ConfigError(f"{error}; give one: --name NAME" if name is None else str(error)) from None
    if not math.isfinite(offset_s):
        raise ConfigError("--offset-s is no number of seconds")
    client = connect(tracking.uri)
    old = finished.find(client, tracking.experiment, run)
    finished.check_protocol(old)
    if ATTACHED_TO in old.tags:
        raise ConfigError(
            f"run {run} ({old.name}) is itself attached; give the one it is of, {old.tags[ATTACHED_TO][:8]}"
        )
    if not old.scored:
        raise ConfigError(f"run {run} ({old.name}) has {old.tags['tsexp.invalid_reasons']}: run it again")
    with alive.scratch("attach") as folder:
        raw = json.loads(Path(client.download_artifacts(old.run_id, "windows.json", str(folder))).read_text())
        log = powerlog.read(Path(file), offset_s)
        filled = external.fill(raw, log, name)
        part = _part(log, filled["windows"])
        first = old.tags.get(FROM_RUN, old.run_id)  # attached before it was brought here, it is the same
        about = configs.digest([first, filled["source"], offset_s, part])
        known = client.search_runs(
            [experiment_of(client, tracking)],
            f"tags.`tsexp.attachment` = '{about}' and attributes.status = 'FINISHED'",
        )
        run_id = known[0].info.run_id if known else _store(client, old, filled, part, about, folder)
    console = terminal()
    if known:
        console.print("attached before: nothing was stored", markup=False)
    new = row(client.get_run(run_id))
    console.print(report.table(new))
    console.print(_seen(filled), markup=False, soft_wrap=True)
    console.print(f"attached to {old.run_id[:8]} as run {run_id}", markup=False)
    return new.valid


def _sort(words: Sequence[str]) -> tuple[tuple[str, str], TrackingConfig]:
    """Words into run, log and store."""
    rest, settings = subcommand.sort(words, {"tracking.…": "tracking."})
    if len(rest) != 2:
        raise ConfigError(f"give a run and a log, RUN power.csv, not {' '.join(rest) or 'nothing'}")
    tracking: TrackingConfig = configs.places(composed(*settings))["tracking"]
    return (rest[0], rest[1]), tracking


def _part(log: PowerLog, windows: list[dict[str, Any]]) -> str:
    """The part of the log that windows are of, as a log that can be attached again with the same offset."""
    first = min(w["start_unix_s"] for w in windows) - AROUND_S
    last = max(w["end_unix_s"] for w in windows) + AROUND_S
    kept = [
        f"{when + log.offset_s:.6f},{watts:.9g}\n"
        for when, watts in zip(log.unix_s, log.watts, strict=True)
        if first <= when <= last
    ]
    return "".join(["unix_s,watts\n", *kept])


def metrics(old: Row, raw: dict[str, Any], valid: bool) -> dict[str, float]:
    """Return what the old run had from elsewhere than windows, and what windows say now.

    Parameters
    ----------
    old
        The run that was attached to.
    raw
        Its measurement with other joules.
    valid
        They may be trusted; of an invalid one, names begin with ``invalid/``.
    """
    from tsexp import tracking
    from tsexp.energy.record import combined
    from tsexp.energy.statistics import summarize

    kept = {k: v for k, v in old.metrics.items() if k.startswith(KEPT)}
    return {tracking.as_shown(k, valid): v for k, v in combined(kept, summarize(raw)).items()}


def _store(client: Any, old: Row, raw: dict[str, Any], part: str, about: str, folder: Path) -> str:
    """Log the run beside the old one; an interrupted one leaves none."""
    from mlflow.entities import LoggedModelOutput, Metric, Param

    from tsexp import tracking
    from tsexp.energy import validity

    invalid, warnings = validity.judge(raw)
    before = old.tags.get("tsexp.warnings", "").split("; ")
    kept = [w for w in before if w.startswith(WITHOUT_WINDOWS)]
    values = metrics(old, raw, not invalid)
    now = int(1000 * time.time())
    same_meter = raw["source"] == old.tags.get("tsexp.energy_source")
    signature = old.tags["tsexp.signature"]
    tags = {k: v for k, v in old.tags.items() if k not in NOT_TAKEN}
    tags |= {
        # A live log that was laid wrongly is measured again by this; by another meter, it is another record.
        "tsexp.signature": signature if same_meter else configs.digest([signature, raw["source"]]),
        "tsexp.energy_source": raw["source"],
        "tsexp.valid": "false" if invalid else "true",
        "tsexp.invalid_reasons": "; ".join(invalid),
        "tsexp.warnings": "" if invalid else "; ".join([*kept, *warnings]),
        ATTACHED_TO: old.run_id,
        "tsexp.attachment": about,
        "mlflow.runName": f"{old.name} {raw['source']}",
        "mlflow.note.content": _note(old, raw, invalid, warnings),
    }
    source = client.get_run(old.run_id)
    with tracking.being_written(client, source.info.experiment_id, tags) as run_id:
        if source.inputs and source.inputs.dataset_inputs:
            client.log_inputs(run_id, source.inputs.dataset_inputs)
        if source.outputs and source.outputs.model_outputs:
            models = [LoggedModelOutput(m.model_id, step=0) for m in source.outputs.model_outputs]
            client.log_outputs(run_id, models)
        client.log_batch(
            run_id,
            [Metric(k, v, now, 0) for k, v in values.items()],
            [Param(k, v) for k, v in old.params.items()],
        )
        files = folder / "files"  # beside what `alive` notes of the folder
        files.mkdir()
        client.download_artifacts(old.run_id, "", str(files))
        (files / "windows.json").write_text(json.dumps(raw, indent=1))
        (files / LOG).write_text(part)
        client.log_artifacts(run_id, str(files))
    return run_id


def _note(old: Row, raw: dict[str, Any], invalid: Sequence[str], warnings: Sequence[str]) -> str:
    lines = [f"Run {old.run_id} ({old.name}), with joules from the power log `{LOG}`."]
    lines += [f"- **invalid**: {why}" for why in invalid] or [f"- warning: {why}" for why in warnings]
    return "\n".join([*lines, f"\nEnergy covers {raw['scope']}."])


def _seen(raw: dict[str, Any]) -> str:
    """What was seen of the log, in words."""
    seen = raw["meter"]
    line = f"log: a sample every {seen['interval_s']:.3g} s, at least {seen['samples']} in a window"
    if seen["clock_offset_s"] is not None:
        line += f"; by the steps that it shows, its clock is {seen['clock_offset_s']:+.2g} s off"
    return line


if __name__ == "__main__":
    sys.exit(main())
