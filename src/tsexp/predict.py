"""What the model of a run answers to the series of a file: ``python -m tsexp.predict RUN FILE.ts``."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from tsexp import config as configs
from tsexp import finished, subcommand
from tsexp.command import parser_of
from tsexp.config import Config, ConfigError, secret
from tsexp.config.compose import composed
from tsexp.system import alive
from tsexp.system.files import whole

if TYPE_CHECKING:  # --help need not wait for them
    from tsexp.data import FloatArray

HELP = """\
Reads series from a .ts file, with or without labels, answers them with the artifact of a finished run, and
writes a CSV: the number of the series, its label where the file has one, the predicted class, and the
probability of each class. Says how many were right, if there are labels."""
EXAMPLES = """\
  RUN              run id, or its first characters (at least 6)
  tracking.uri=sqlite:////path/mlflow.db tracking.experiment=tsexp    the store
  paths.cache=cache    artifacts (else they come from the store)

  python -m tsexp.predict 62bf7186 new.ts --output answers.csv"""
SHOWN = 3
"""Labels that a message names."""


def main(arguments: list[str] | None = None) -> int:
    """Predict what is asked for and return the exit status: 2 for bad input, 1 if the model failed."""
    parser = parser_of("predict", "RUN FILE.ts [--output OUT.csv] [key=value ...]", HELP, EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="run, file or key=value", help=argparse.SUPPRESS)
    parser.add_argument("--output", metavar="OUT.csv", help="write there, not to the terminal")
    if arguments is None:
        secret.out_of_sight()
    asked, unknown = parser.parse_known_intermixed_args(arguments)

    def work() -> None:
        words, settings = subcommand.sort(asked.words, subcommand.PLACES)
        if len(words) != 2:
            raise ConfigError(f"give a run and a file, RUN FILE.ts, not {len(words)} words")
        file, output = Path(words[1]), Path(asked.output) if asked.output else None
        _check_files(file, output)
        said = _predict(words[0], file, output, configs.parse(composed(*settings)))
        print("\n".join(said), file=sys.stdout if output else sys.stderr)

    return subcommand.carried_out("predict", work, "nothing was written", unknown)


def _check_files(file: Path, output: Path | None) -> None:
    if not file.is_file():
        raise ConfigError(f"{file} is not there, or no file; give a .ts file")
    if output is None:
        return
    parent = output.resolve().parent
    if (output.exists() and not output.is_file()) or not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConfigError(
            f"--output={output} cannot be written: give a file in a folder that is there and yours"
        )
    if output.exists() and output.samefile(file):
        raise ConfigError(f"--output={output} is the file with the series; give another")


def _predict(run: str, file: Path, output: Path | None, cfg: Config) -> list[str]:
    """Find, read, check, answer, write; return what is to be said of it."""
    from tsexp import data
    from tsexp.report.store import connect

    client = connect(cfg.tracking.uri)
    row = finished.find(client, cfg.tracking.experiment, run)
    config = finished.data_config(row)
    series, labels = data.read_one(file, config)
    with alive.scratch("predict") as scratch:
        artifact = finished.artifact(client, row, Path(cfg.paths.cache), scratch)
        finished.check_runs_here(row, artifact, finished.called(row))
        takes, ragged = finished.takes(client, row, scratch)
        channels, length = artifact.manifest["shape"]
        check(file, series, channels, length, ragged, takes)
        scores = finished.answers(artifact.folder, data.stack(series), row)
    if not (finite := np.isfinite(scores).all(1)).all():
        raise ConfigError(
            f"{file}, series {finite.argmin()}: scores that are not finite; its values may be too large"
        )
    classes = artifact.manifest["classes"]
    if output is None:
        write(sys.stdout, scores, classes, labels)
        where = ""
    else:
        with whole(output.resolve()) as partial, partial.open("w", newline="") as to:  # what a link leads to
            write(to, scores, classes, labels)
        where = f" → {output}"
    said = [f"{len(scores):,} series, {finished.called(row)}{where}", *judged(scores, classes, labels)]
    longer = sum(one.shape[1] > length for one in series)
    if longer and config.length is None and config.unequal != "resample":
        said.append(f"{longer} of them are longer than the {length} steps that the model sees: cut there")
    return said


def check(
    file: Path, series: Sequence[FloatArray], channels: int, length: int, ragged: bool, takes: str
) -> None:
    """Refuse series that a model does not take.

    Parameters
    ----------
    file
        Where they are from.
    series
        float32 (channels, time) each.
    channels, length
        What the model sees.
    ragged
        It takes series of any length.
    takes
        The same in words.

    Raises
    ------
    ConfigError
        For the first series that does not fit.
    """
    for i, one in enumerate(series):
        wrong = ""
        if one.shape[0] != channels:
            wrong = f"{one.shape[0]} channels"
            wrong += "" if one.shape[0] else " (a file without labels says @classLabel false)"
        elif one.shape[1] < 2 if ragged else one.shape[1] != length:
            wrong = f"{one.shape[1]} values"
        if wrong:
            raise ConfigError(f"{file}, series {i}: {wrong}; this model takes {takes}")


def write(to: TextIO, scores: FloatArray, classes: Sequence[str], labels: Sequence[str]) -> None:
    """Write a line per series, under the names of ``predictions.csv``, the ``label`` only if there is any."""
    from scipy.special import softmax

    from tsexp.tasks.classification import chosen

    known = any(labels)
    out: Any = csv.writer(to)
    out.writerow(["series", *(["label"] if known else []), "predicted", *(f"p_{c}" for c in classes)])
    answers = zip(chosen(scores), softmax(scores.astype(np.float64), axis=-1), strict=True)
    for i, (answer, p) in enumerate(answers):
        label = [labels[i]] if known else []
        out.writerow([i, *label, classes[answer], *map(repr, p.tolist())])


def judged(scores: FloatArray, classes: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Say how many series that have a label were answered right; nothing if none has."""
    from tsexp.tasks.classification import chosen

    strange = sorted({label for label in labels if label} - set(classes))
    if strange:
        some = f"{', '.join(strange[:SHOWN])}{', …' if len(strange) > SHOWN else ''}"
        return [f"no accuracy: the file has labels that this model does not know ({some})"]
    right = [classes[i] == label for i, label in zip(chosen(scores), labels, strict=True) if label]
    return [f"accuracy {100 * np.mean(right):.1f} % ({sum(right)} of {len(right)})"] if right else []


if __name__ == "__main__":
    sys.exit(main())
