"""A run as one folder that others can run: ``python -m tsexp.export RUN DIR``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tsexp import card, finished, subcommand
from tsexp import config as configs
from tsexp.command import parser_of
from tsexp.config import NOT_ASKED, Config, ConfigError, secret
from tsexp.config.compose import composed
from tsexp.marks import FROM_STORE
from tsexp.system import alive
from tsexp.system.files import check_new

if TYPE_CHECKING:  # --help need not wait for them
    from tsexp.report.store import Row
    from tsexp.runtimes import Artifact

HELP = """\
Writes a finished run into a new folder: its model, with what is known of it in the file; a model card; the
record; a few raw series with the scores expected; and run.py, which runs it. ONNX files and OpenVINO's run
without tsexp."""
EXAMPLES = """\
  RUN              run id, or its first characters (at least 6)
  DIR              a folder that is not there yet
  tracking.uri=sqlite:////path/mlflow.db tracking.experiment=tsexp    the store
  paths.cache=cache    artifacts (else they come from the store)
  paths.data=data data.path=FOLDER    the series that the run is of

  python -m tsexp.export 62bf7186 shared/model"""
SERIES = 5
"""Of the example, at least."""
MOST = 64
"""Series that are answered together in the example, at most."""
EXACT = ("none", "weight_only")
"""Modes whose products are fp32, which every CPU computes alike but for the order of sums."""
FOLDER = "artifact"
PRIVATE = (
    *(f"tsexp.{key}" for key in alive.WHO),
    *(FROM_STORE, "mlflow.user", "mlflow.parentRunId", "mlflow.source.", "mlflow.note."),
)
"""Tags, by their beginnings, that say where and by whom a job ran, not what came out."""
SCRIPT = '''\
"""Answers the series of example.npz and checks the answers; needs {needs}."""
{imports}
here = pathlib.Path(__file__).parent
{lines}
example = np.load(here / "example.npz")
scores = np.concatenate([predict(part) for part in np.array_split(example["series"], {parts})])
print(*(classes[i] for i in scores.argmax(1)))
np.testing.assert_allclose(scores, example["scores"], rtol=0, atol={tolerance} * abs(example["scores"]).max())
'''
ARTIFACT = [
    f'predict = runtimes.load(here / "{FOLDER}")',
    f'classes = runtimes.read_manifest(here / "{FOLDER}")["classes"]',
]


def main(arguments: list[str] | None = None) -> int:
    """Export what is asked for and return the exit status: 2 for bad input, 1 if something failed."""
    parser = parser_of("export", "RUN DIR [key=value ...]", HELP, EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="run, folder or key=value", help=argparse.SUPPRESS)
    if arguments is None:
        secret.out_of_sight()
    asked, unknown = parser.parse_known_args(arguments)

    def work() -> None:
        words, settings = subcommand.sort(asked.words, subcommand.PLACES)
        if len(words) != 2:
            raise ConfigError(f"give a run and a folder, RUN DIR, not {len(words)} words")
        folder = Path(words[1]).absolute()
        check_new(folder)
        name, allowed = _export(words[0], folder, configs.parse(composed(*settings)))
        command = shlex.join([*allowed, "python", str(Path(words[1]) / "run.py")])
        print(f"{name} → {words[1]}; try it: {command}")

    return subcommand.carried_out("export", work, "nothing was written", unknown)


def _export(run: str, folder: Path, cfg: Config) -> tuple[str, list[str]]:
    """Find, check, write under a temporary name, rename; return the model's name, and what lets it run."""
    from tsexp.report.store import connect

    client = connect(cfg.tracking.uri)
    row = finished.find(client, cfg.tracking.experiment, run)
    finished.check_protocol(row)  # the card tells what it measured
    dataset = finished.dataset([row], cfg)
    with alive.scratch("export") as scratch:
        artifact = finished.artifact(client, row, Path(cfg.paths.cache), scratch)
        finished.check_runs_here(row, artifact, finished.called(row))
        facts = _facts(client, row, artifact, (len(dataset.x_train), len(dataset.x_test)), scratch)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        partial.mkdir()
        try:
            _write(partial, facts, artifact, dataset.x_test)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return facts.name, _allowed(artifact.manifest["runtime"])


def _allowed(runtime: str) -> list[str]:
    """Return what has to be in the environment for code in an artifact to run, as words of a command."""
    from tsexp import runtimes

    name = runtimes.code_in(runtime)
    return [f"{configs.OWN_CODE}={name}"] if name else []


def _facts(client: Any, row: Row, artifact: Artifact, series: tuple[int, int], scratch: Path) -> card.Facts:
    run = client.get_run(row.run_id)
    model = finished.logged_model(client, run)
    parts = [key.removesuffix("/train_loss") for key in row.metrics if key.endswith("/train_loss")]

    def read(name: str) -> dict[str, Any]:
        return json.loads(  # type: ignore[no-any-return]
            Path(client.download_artifacts(row.run_id, name, str(scratch))).read_text()
        )

    return card.Facts(
        row=row,
        name=model.name if model else row.name,
        manifest=artifact.manifest,
        hardware=read("hardware.json"),
        raw=read("windows.json"),
        takes=finished.takes(client, row, scratch)[0],
        series=series,
        epochs={p: len(client.get_metric_history(row.run_id, f"{p}/train_loss")) for p in parts},
        finished=f"{datetime.fromtimestamp(run.info.end_time / 1000, UTC):%Y-%m-%d}",
    )


def _write(folder: Path, facts: card.Facts, artifact: Artifact, test: np.ndarray[Any, Any]) -> None:
    """Fill the folder."""
    from tsexp import runtimes

    row = facts.row
    together = min(int(row.params["measure.batch_size"]), MOST)
    parts = -(-SERIES // together)
    series = np.ascontiguousarray(test[: together * parts])
    parts = -(-len(series) // together)  # of fewer test series
    alone = runtimes.standalone(artifact.folder, card.metadata(facts), folder, series[:together])
    if alone:
        files = {p.name: "the model; what is known of it is in the file" for p in sorted(folder.iterdir())}
        needs = f"numpy and {alone[0]}"
        imports, lines = f"import json, pathlib, numpy as np, {alone[0]}", alone[1]
    else:
        shutil.copytree(artifact.folder, folder / FOLDER)
        files = {FOLDER: "the model, as tsexp loads it (`tsexp.runtimes.load`)"}
        needs, lines = f"tsexp {row.tags.get('tsexp.version')}", ARTIFACT
        runtime = artifact.manifest["runtime"]
        if allowed := _allowed(runtime):
            own = f"the module of the runtime {runtime}"
            needs += f" and {own if ':' in runtime else 'a CPU like the one that its code was compiled for'}"
            needs += f", with {allowed[0]} in the environment, which lets its code run"
        imports = "import pathlib, numpy as np\nfrom tsexp import runtimes"
    scores = np.concatenate(
        [finished.answers(artifact.folder, one, row) for one in np.array_split(series, parts)]
    )
    np.savez(folder / "example.npz", series=series, scores=scores)
    tolerance = 1e-3 if artifact.manifest["mode"] in EXACT else 5e-2
    text = SCRIPT.format(
        needs=needs, imports=imports, lines="\n".join(lines), parts=parts, tolerance=tolerance
    )
    (folder / "run.py").write_text(text)
    (folder / "record.json").write_text(json.dumps(_record(facts), indent=1))
    files |= {
        "record.json": "the record: metrics, params, tags, what the model executes, the machine",
        "example.npz": f"`series`: the first {len(series)} of the test split, raw; `scores`: those expected",
        "run.py": "runs the model",
    }
    (folder / "MODEL_CARD.md").write_text(card.card(facts, files, needs))


def _record(facts: card.Facts) -> dict[str, Any]:
    """What came out and what was asked, without where it ran and who ran it."""
    row = facts.row
    return {
        "run_id": row.run_id,
        "name": row.name,
        "metrics": row.metrics,
        "params": {k: v for k, v in row.params.items() if not k.startswith(NOT_ASKED)},
        "tags": {k: v for k, v in row.tags.items() if not k.startswith(PRIVATE)},
        "manifest": facts.manifest,
        "hardware": facts.hardware,
    }


if __name__ == "__main__":
    sys.exit(main())
