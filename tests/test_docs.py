"""What the documents say is true: their examples run, their links lead somewhere, their commands exist."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from conftest import TINY, compose
from tsexp.command import SUBCOMMANDS
from tsexp.config import conf_dir

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INSTALL = re.compile(r"pip install (?:-e )?'(?:\.|CHECKOUT)\[([\w,]+)\]'")
COMMAND = re.compile(r"(?:python -m |^    |`(?=tsexp ))(tsexp[\w.]*)((?: [^\s`]+)*)", re.M)
MAKE = re.compile(r"(?:^    |`)make ((?:[a-z-]+ ?)+)", re.M)
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def examples():
    """The commands of docs/extending.md by heading, in order."""
    found = {}
    for section in (ROOT / "docs" / "extending.md").read_text().split("\n## ")[1:]:
        found[section.splitlines()[0]] = [
            text.strip() for kind, text in BLOCK.findall(section) if kind == "sh"
        ]
    return found


def run(command, folder):
    """Run one command of a document in a folder, with this interpreter as ``python``.

    Return what it printed.
    """
    return python(*shlex.split(command)[1:], "train.progress=false", folder=folder, timeout=240)


def python(*arguments, folder, timeout=600):
    """Run this interpreter to its end in a folder and return what it printed; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(*others):
    """Every command line of the program that a page shows, but those that are run anyway."""
    pages = (page for page in PAGES if page.name not in ("extending.md", "log.md", *others))
    found = {
        f"{module}{arguments}" for page in pages for module, arguments in COMMAND.findall(page.read_text())
    }
    # tsexp report is tsexp.report
    return {re.sub(rf"^tsexp ({'|'.join(SUBCOMMANDS)})(?= |$)", r"tsexp.\1", command) for command in found}


def headings(page):
    """Anchors as GitHub makes them."""
    return {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in page.read_text().splitlines()
        if line.startswith("#")
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = LINK.findall(page.read_text())
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]
    assert not [str(target) for target, _ in targets if not target.exists()]
    assert not [anchor for target, anchor in targets if anchor and anchor not in headings(target)]


@pytest.mark.parametrize("command", sorted(commands()))
def test_commands_are_accepted(command):
    module, *arguments = shlex.split(command)
    if module != "tsexp":
        spec = importlib.util.find_spec(module)
        assert spec.submodule_search_locations is None or importlib.util.find_spec(f"{module}.__main__")
        return
    overrides = OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")])
    swept = [
        list(o.sweep_string_iterator()) if o.is_sweep_override() else [o.get_value_element_as_str()]
        for o in overrides
    ]
    for i in range(max(map(len, swept), default=1)):  # every value once
        compose(
            *(
                f"{'+' * o.is_add()}{o.key_or_group}={values[min(i, len(values) - 1)]}"
                for o, values in zip(overrides, swept, strict=True)
            )
        )


SMALLEST = {
    "company": {"variant": "dense,depth_50", "seed": "0"},
    "paper": {"variant": "dense,pruned_50_static", "seed": "0"},
    "paper_company": {"model": "minirocket", "seed": "0"},
    "paper_pruning": {
        "prune.method": "l1,taylor",
        "prune.scope": "depth",
        "prune.ratio": "0.5",
        "model": "t3",
        "seed": "0",
    },
    "quick": {"prune.ratio": "0,0.5", "quant.mode": "dynamic", "runtime": "eager,onnxruntime", "seed": "0"},
    "pareto": {"hydra.sweeper.n_trials": "3", "quant.mode": "none,dynamic", "runtime": "eager,onnxruntime"},
}
"""Experiment → the part of it that shows that it runs."""


def shrunk(command):
    """A documented command on small embedded data with a tiny model; of a sweep, its ends."""
    flags = [a for a in command.split()[1:] if a.startswith("-")]
    given = dict(a.split("=", 1) for a in command.split()[1:] if not a.startswith("-"))
    asked = SMALLEST.get(given.get("experiment", ""), {}) | given
    if "data.path" not in given:
        asked["data"] = "italy_power_demand"
    if "experiment" in asked:
        asked.setdefault("model", "t3")
    values = {key: value.split(",") for key, value in asked.items()}
    return [
        *flags,
        *tiny(asked.get("model", "t3")),
        *(f"{key}={','.join(dict.fromkeys((v[0], v[-1])))}" for key, v in values.items()),
    ]


def tiny(models):
    """Overrides that make these models tiny; other families than transformers have other keys."""
    names = set(models.split(","))
    if names <= {"t1", "t2", "t3"}:
        return TINY
    other = "model.patch" if names <= {"t1", "t2", "t3", "t4", "t4h"} else "model."
    return [override for override in TINY if not override.startswith(other)]


@pytest.fixture(scope="module")
def visitor(tmp_path_factory):
    """A folder of somebody who tries every command of the documents, one after the other."""
    return tmp_path_factory.mktemp("visitor")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    # test_cluster.py has the engines that docs/cluster.md wants, test_external.py a power log, test_auth.py a
    # server that asks for a password.
    sorted(
        c
        for c in commands("cluster.md")
        if c.split()[0] == "tsexp" and "tsexp.energy.external" not in c and "http://" not in c
    ),
)
def test_commands_run_to_their_end(visitor, command):
    bundled = Path(importlib.util.find_spec("aeon").origin).parent / "datasets/data/ItalyPowerDemand"
    (visitor / "FOLDER").mkdir(exist_ok=True)
    for name in re.findall(r"data\.name=(\w+) data\.path=FOLDER", command):
        for part in ("TRAIN", "TEST"):
            shutil.copy(bundled / f"ItalyPowerDemand_{part}.ts", visitor / "FOLDER" / f"{name}_{part}.ts")
    said = python("-m", "tsexp", *shrunk(command), folder=visitor)
    assert "compare: mlflow ui" in said or {"--help", "--cfg", "--version"} & set(command.split())


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(c for c in commands() if c.startswith("tsexp.plan ")))
def test_plans_are_made(visitor, command):
    said = python("-m", "tsexp", "plan", *shrunk(command), folder=visitor)
    assert re.search(r"\d+ jobs", said)


@pytest.mark.parametrize("command", sorted(c for c in commands() if c.startswith("tsexp.") and " --" in c))
def test_options_of_subcommands_are_known(command):
    module, *words = shlex.split(command)
    known = python("-m", module, "--help", folder=ROOT)
    assert [w for w in words if w.startswith("--")]
    assert not [w for w in words if w.startswith("--") and w.split("=")[0] not in known]


@pytest.mark.slow
def test_a_finished_run_is_read_as_measuring_says(visitor):
    import mlflow

    page = (ROOT / "docs" / "measuring.md").read_text()
    (code,) = (text for kind, text in BLOCK.findall(page) if kind == "python" and "summarize" in text)
    python("-m", "tsexp", *shrunk("tsexp"), folder=visitor)
    client = mlflow.MlflowClient(f"sqlite:///{visitor}/mlflow.db")
    place = [client.get_experiment_by_name("tsexp").experiment_id]
    run = client.search_runs(place, "tags.`tsexp.valid` = 'true'")[0]
    client.download_artifacts(run.info.run_id, "windows.json", str(visitor))
    code = code.replace("summarize(raw)", "print(summarize(raw)['vs_dense/speedup'])")
    assert float(python("-c", code, folder=visitor)) == run.data.metrics["vs_dense/speedup"]


@pytest.mark.slow
def test_a_run_alone_may_end_with_its_artifact(visitor):
    """docs/cluster.md: stop_after=deploy of no sweep."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (command,) = re.findall(r"`python -m (tsexp [^`]*stop_after=deploy)`", page)
    said = python("-m", "tsexp", *shrunk(command), folder=visitor)
    assert "deployed" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    sorted(c for c in commands() if c.split()[0] in ("tsexp.report", "tsexp.doctor") and "--" not in c),
)
def test_commands_that_read_run_to_their_end(visitor, command):
    python("-m", "tsexp", *shrunk("tsexp"), folder=visitor)
    if "freeze" not in command and len(command.split()) > 1:
        python("-m", "tsexp.report", "freeze", folder=visitor)
    python("-m", *shlex.split(command), folder=visitor)


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(c for c in commands() if "tsexp.compare RUN_A" in c))
def test_commands_that_compare_run_to_their_end(visitor, command):
    import mlflow

    python("-m", "tsexp", "-m", *TINY, "data=italy_power_demand", "prune.ratio=0,0.5", folder=visitor)
    client = mlflow.MlflowClient(f"sqlite:///{visitor}/mlflow.db")
    asked = "tags.`tsexp.valid` = 'true' and params.`prune.ratio` = '{}'"
    asked += " and params.`data.name` = 'ItalyPowerDemand' and tags.`tsexp.stage` = 'done'"
    place = [client.get_experiment_by_name("tsexp").experiment_id]
    runs = {
        name: client.search_runs(place, asked.format(ratio))[0].info.run_id
        for name, ratio in (("RUN_A", "0.5"), ("RUN_B", "0.0"))
    }
    smaller = ["measure.repeats=8", "measure.processes=4", "measure.window_s=0.02"]
    words = (runs.get(word, word) for word in command.split())
    assert "McNemar" in python("-m", *words, *smaller, folder=visitor)


@pytest.fixture(scope="module")
def measurer(tmp_path_factory):
    """A folder of somebody who ran the examples of docs/measure_anything.md, and what they printed."""
    folder = tmp_path_factory.mktemp("measurer")
    blocks = BLOCK.findall((ROOT / "docs" / "measure_anything.md").read_text())
    return folder, [python("-c", text, folder=folder) for kind, text in blocks if kind == "python"]


@pytest.mark.slow
def test_estimators_are_measured_as_the_page_shows(measurer):
    page = (ROOT / "docs" / "measure_anything.md").read_text()
    said = measurer[1][0].splitlines()
    assert said[:3] == page.split("```\n")[2].splitlines()[:3]
    (line,) = (text for text in said if text.startswith(" energy per series"))
    assert float(re.search(r"saving ([\d.]+)", line)[1]) > 80  # aeon's QUANT takes ten times as long


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path):
    ((_, code),) = (b for b in BLOCK.findall((ROOT / "README.md").read_text()) if b[0] == "python")
    said = python("-c", code, folder=tmp_path)
    assert "A against B" in said
    assert "energy per series" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(c for c in commands() if c.split()[0] == "tsexp.measure"))
def test_commands_that_measure_run_to_their_end(measurer, command):
    words = command.split() if len(command.split()) > 1 else [command, "--help"]
    said = python("-m", *words, folder=measurer[0])
    assert "stored as run" in said or "--help" in words


OPTIONS = [
    f"{p.parent.name}={p.stem}"
    for g in ("measure", "model", "runtime", "train", "variant")
    for p in sorted((conf_dir() / g).glob("*.yaml"))
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "option", [*OPTIONS, "data=basic_motions", "data=pickup_gesture", "hydra/launcher=basic"]
)
def test_every_option_runs(visitor, option):
    data = [] if option.startswith("data=") else ["data=italy_power_demand"]
    flags = ["-m"] if option.startswith("hydra") else []
    model = option.removeprefix("model=") if option.startswith("model=") else "t3"
    if option.startswith(("variant=features", "variant=all")):  # which only T4 has
        model, data = "t4", [*data, "model=t4"]
    python("-m", "tsexp", *flags, *tiny(model), option, *data, folder=visitor)


def test_extras_that_are_told_are_there():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    told = [name for page in PAGES for of in INSTALL.findall(page.read_text()) for name in of.split(",")]
    assert {"slurm", "ray", "postgres", "report", "runtimes"} <= set(told) <= set(extras)


def test_another_python_can_be_taken(tmp_path):
    (word,) = set(re.findall(r"`make (PYTHON=\S+) run`", (ROOT / "README.md").read_text()))
    (tmp_path / "pyproject.toml").touch()
    command = ["make", "-n", "-f", ROOT / "Makefile", word, "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f"{word.removeprefix('PYTHON=')} -m venv .venv" in done.stdout


def test_the_main_job_is_what_the_page_says():
    (command,) = re.findall(r"`make run` is\s+`python (-m tsexp -m [^`]+)`", (ROOT / "README.md").read_text())
    makefile = re.search(
        r"^run:.*\n\t\$\(BIN\)/python (.*) \$\(ARGS\)$", (ROOT / "Makefile").read_text(), re.M
    )
    assert makefile is not None
    assert makefile[1] == command


@pytest.mark.parametrize(
    "target",
    sorted(
        {f"make {t}" for page in PAGES for words in MAKE.findall(page.read_text()) for t in words.split()}
    ),
)
def test_targets_of_make_are_there_and_ask_for_what_there_is(target):
    assert re.search(f"^{target.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.M)
    done = subprocess.run(["make", "-n", *target.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for script in re.findall(r"\S+/python (\S+\.py)", done.stdout):
        assert (ROOT / script).exists()
    for module in re.findall(r"\S+/python -m (\S+)", done.stdout):
        assert importlib.util.find_spec(module)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder of somebody who followed docs/extending.md.

    Every file is written, everything without a file name was run.
    """
    folder = tmp_path_factory.mktemp("reader")
    for kind, text in BLOCK.findall((ROOT / "docs" / "extending.md").read_text()):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", text)
        if name:
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(text)
        elif kind == "python":
            subprocess.run([sys.executable, "-c", text], cwd=folder, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def together(reader):
    """What the last example leaves: a client of its store, and its run."""
    import mlflow

    (command,) = examples()["All together"]
    assert "Sines · small · my_runtime: · none · pruned 50%" in run(command, reader)
    client = mlflow.MlflowClient(f"sqlite:///{reader}/mlflow.db")
    (done,) = client.search_runs([client.get_experiment_by_name("tsexp").experiment_id])
    return client, done


def test_everything_of_ones_own_works_together(reader, together):
    client, done = together
    assert done.data.tags["tsexp.energy_source"] == "estimated:machine_cpu"
    assert done.data.metrics["prune/achieved_ratio"] == pytest.approx(0.5)
    manifest = json.loads(Path(client.download_artifacts(done.info.run_id, "manifest.json")).read_text())
    assert manifest["runtime"] == "my_runtime:"
    assert manifest["matmuls"]["float32"] >= 14  # two blocks of six and two products of attention
    logged = {p.name for p in (reader / "mlartifacts").rglob("code/*")}
    assert logged == {"tsexp.zip", "my_tokens.py", "my_runtime.py"}


@pytest.mark.slow
def test_the_logged_model_takes_ones_own_code_along(reader, together, tmp_path):
    code = (
        "import mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri('sqlite:///{reader}/mlflow.db')\n"
        f"model = mlflow.pyfunc.load_model('runs:/{together[1].info.run_id}/model')\n"
        "assert list(model.predict(np.zeros((3, 1, 96))).columns)[0] == 'class'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("heading", [h for h in examples() if h != "All together"])
def test_every_example_runs_as_written(reader, heading):
    assert examples()[heading]
    for command in examples()[heading]:
        assert "sqlite:///" in run(command, reader)


def test_the_table_of_runtimes_is_what_they_support():
    from tsexp.runtimes import RUNTIMES, artifact

    page = (ROOT / "docs" / "usage.md").read_text()
    columns = [["none"], ["dynamic"], ["static", "qat"], ["weight_only"], ["bf16"]]
    for name in RUNTIMES:
        (line,) = (text for text in page.splitlines() if text.startswith(f"| `runtime={name}`"))
        for cell, modes in zip(line.split("|")[2:-1], columns, strict=True):
            for letter, family in {
                "T": "transformer",
                "V": "views",
                "C": "convolution",
                "E": "estimator",
            }.items():
                supported = {mode in artifact._supported(name, family) for mode in modes}
                assert supported == {letter in cell.split()}, (name, modes, family)


def test_the_locked_environment_is_what_pyproject_allows_and_names_no_host():
    import tomllib

    from packaging.requirements import Requirement

    text = (ROOT / "requirements" / "study.txt").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    chosen = ("dev", "notebooks", "onnxruntime", "openvino", "optuna", "parallel", "report", "torchao")
    for line in project["dependencies"] + [line for extra in chosen for line in extras[extra]]:
        asked = Requirement(line)
        assert asked.specifier.contains(locked[asked.name.lower()]), line
    assert not re.search(r"://|--(extra-)?index|--find-links|/\w+/", text)
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
