"""What the documents say is true: their examples run, their links lead somewhere, their commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def examples():
    """The commands of docs/extending.md by heading, in order."""
    found = {}
    for section in (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]:
        found[section.splitlines()[0]] = [text.strip() for kind, text in BLOCK.findall(section) if kind == "sh"]
    return found


def run(command, folder):
    """Run one command of a document in a folder, with this interpreter as ``python``; return what it printed."""
    arguments = [sys.executable, *shlex.split(command)[1:]]
    done = subprocess.run([*arguments, "train.progress=false"], cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder of somebody who followed docs/extending.md: every file is written, everything without a file name was run."""
    folder = tmp_path_factory.mktemp("reader")
    for kind, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if name:
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(text)
        elif kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True, timeout=120)
    return folder


def test_everything_of_ones_own_works_together(reader):
    import json

    import mlflow

    (command,) = examples()["All together"]
    assert "Sines · small · my_runtime: · none · pruned 50%" in run(command, reader)
    client = mlflow.MlflowClient(f"sqlite:///{reader}/mlflow.db")
    (done,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    assert done.data.tags["tsexp.energy_source"] == "estimated:machine_cpu"
    assert done.data.metrics["prune/achieved_ratio"] == pytest.approx(0.5)
    manifest = json.loads(Path(client.download_artifacts(done.info.run_id, "manifest.json")).read_text())
    assert manifest["runtime"] == "my_runtime:"
    assert manifest["matmuls"]["float32"] >= 14  # two blocks of six and two products of attention
    logged = {p.name for p in (reader / "mlartifacts").rglob("code/*")}
    assert logged == {"tsexp", "my_tokens.py", "my_runtime.py"}


@pytest.mark.slow
@pytest.mark.parametrize("heading", [h for h in examples() if h != "All together"])
def test_every_example_runs_as_written(reader, heading):
    assert examples()[heading]
    for command in examples()[heading]:
        assert "sqlite:///" in run(command, reader)
