"""Artifacts, cache entries and stores are data: whatever somebody put there, no code of it runs."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tsexp import compare, finished, models, runtimes, training
from tsexp import config as configs
from tsexp.cache import Cache, Entry
from tsexp.config import ConfigError, RuntimeConfig
from tsexp.system.files import sha256

ROOT = Path(__file__).parents[1]

LOADERS = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve",
    "skops", "torch.load", "torch.jit.load", "torch.hub", "numpy.load", "np.load", "pd.read_pickle",
    "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "compile",
    "__import__", "runpy", "importlib.reload", "onnx.load_model", "ctypes.CDLL", "allow_pickle",
}  # fmt: skip
ALLOWED = {
    ("config/compose.py", "pickle"): "copies, in memory, of what this process pickled",
    ("system/processes.py", "ctypes.CDLL"): "the C library, by no name",
    ("energy/hardware.py", "ctypes.CDLL"): "the same",
    ("config/cores.py", "joblib"): "counts cores",
    ("energy/subjects.py", "joblib"): "hashes what is in memory",
    ("measure.py", "np.load"): "arrays alone",
    ("measure.py", "allow_pickle"): "False",
    ("training/loop.py", "torch.load"): "weights_only=True, which tests/test_unfinished.py tries",
}
IMPORTERS = {"pkgutil.resolve_name", "importlib.import_module", "load_module", "exec_module"}
IMPORTS = {
    ("config/own.py", "pkgutil.resolve_name"): "look_up, which asks whether the module is trusted",
    ("system/processes.py", "pkgutil.resolve_name"): "what this user asks for over a socket of his own",
    ("system/processes.py", "importlib.import_module"): "the caller's list",
    ("command.py", "pkgutil.resolve_name"): "a table in the code",
    ("__init__.py", "importlib.import_module"): "a table in the code",
    ("tasks/table.py", "importlib.import_module"): "a table in the code",
    ("compress/fold.py", "importlib.import_module"): "a table in the code",
    ("models/counting.py", "importlib.import_module"): "a constant",
    ("energy/subjects.py", "importlib.import_module"): "a table in the code",
    ("runtimes/artifact.py", "importlib.import_module"): "a table in the code; other names go to look_up",
}


def named(tree):
    """Every name that a module imports, calls, or gives as a keyword, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield ast.unparse(node.func)
            yield from (keyword.arg for keyword in node.keywords if keyword.arg)


def uses(words):
    """(file, word) of everything in the source that is one of these words, or inside of one."""
    source = ROOT / "src" / "tsexp"
    found = set()
    for file in source.rglob("*.py"):
        for name in named(ast.parse(file.read_text())):
            found |= {
                (file.relative_to(source).as_posix(), w)
                for w in words
                if name == w or name.startswith(f"{w}.")
            }
    return found


def test_nothing_in_the_source_loads_a_pickle_or_runs_text():
    assert uses(LOADERS) == set(ALLOWED)


def test_what_imports_by_name_is_known():
    assert uses(IMPORTERS) == set(IMPORTS)


@pytest.mark.parametrize(
    "line", ["import joblib", "torch.load(f)", "np.load(f, allow_pickle=True)", "eval(x)"]
)
def test_the_scan_sees_what_it_looks_for(line):
    assert LOADERS & set(named(ast.parse(line)))


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that can be imported and must not be: it leaves a file."""
    folder = tmp_path / "evil"
    folder.mkdir()
    mark = folder / "was here"
    (folder / "evilmod.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nfrom torch.nn import Linear as Layer\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv(configs.OWN_CODE, raising=False)
    monkeypatch.delitem(sys.modules, "evilmod", raising=False)
    yield mark
    sys.modules.pop("evilmod", None)


class Bomb:
    """What a pickle can do."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def made(tmp_path_factory, italy, tiny_model):
    """A fitted model, and its artifacts in two runtimes."""
    cache = Cache(tmp_path_factory.mktemp("cache"))

    def build(folder):
        training.save(tiny_model(italy), [], folder)

    fitted = training.Fitted(cache.stage("dense", 1, {}, build))
    from conftest import TINY, compose

    quant = compose(*TINY).quant
    return {
        name: runtimes.deploy(fitted, quant, RuntimeConfig(name, "cpu"), italy, cache).folder
        for name in ("eager", "onnxruntime")
    } | {"model": fitted.entry.folder}


@pytest.fixture
def artifact(made, tmp_path):
    """Copy of an artifact: artifact("eager", evil=…) with a consistent manifest after `change`."""

    def make(name, change=lambda folder: None, consistent=True, **manifest):
        folder = tmp_path / "artifact"
        shutil.copytree(made[name], folder)
        change(folder)
        about = json.loads((folder / "manifest.json").read_text())
        if consistent:
            others = (
                p for p in folder.iterdir() if p.name not in ("manifest.json", "entry.json") and p.is_file()
            )
            about["files"] = {p.name: sha256(p) for p in others}
        (folder / "manifest.json").write_text(json.dumps(about | manifest))
        return folder

    return make


def arch(**changes):
    """Change arch.json."""

    def change(folder):
        file = folder / "arch.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


TELLS = r"is somebody's own code, named by data, and was not run; .* TSEXP_OWN_CODE=evilmod$"


@pytest.mark.parametrize(
    "change",
    [
        arch(tokenizer="evilmod:Layer"),
        arch(family="evilmod:"),
        arch(replaced={"head": {"kind": "evilmod:Layer"}}),
    ],
    ids=["tokenizer", "family", "replaced"],
)
@pytest.mark.parametrize("path", ["artifact", "model", "cache entry"])
def test_the_description_of_a_model_imports_nothing(made, artifact, evil, tmp_path, change, path):
    if path == "artifact":
        folder, load = artifact("eager", change), runtimes.load
    else:
        folder = tmp_path / "model"
        shutil.copytree(made["model"], folder)
        change(folder)
        load = {
            "model": models.load,
            "cache entry": lambda f: training.Fitted(Entry(f, "0" * 16, reused=True)).load(),
        }[path]
    with pytest.raises(ConfigError, match=TELLS) as error:
        load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not evil.exists()


def test_the_manifest_imports_nothing(artifact, evil):
    with pytest.raises(ConfigError, match=TELLS):
        runtimes.load(artifact("eager", runtime="evilmod:"))
    assert not evil.exists()


@pytest.mark.parametrize("allowed", ["evilmod", "other, evilmod", "by the configuration"])
def test_what_the_user_names_is_imported(artifact, evil, monkeypatch, allowed):
    if allowed == "by the configuration":
        configs.trust("evilmod:Layer")
    else:
        monkeypatch.setenv(configs.OWN_CODE, allowed)
    with pytest.raises(AttributeError, match="evilmod"):  # it is no runtime, but that is known only now
        runtimes.load(artifact("eager", runtime="evilmod:"))
    assert evil.exists()
    os.environ.pop(configs.OWN_CODE, None)


@pytest.mark.parametrize(
    ("allowed", "module", "fine"),
    [
        ("my_package", "my_package", True),
        ("my_package", "my_package.layers", True),
        ("my_package", "my_package_2", False),
        ("my_package.layers", "my_package", False),
        ("", "tsexp.models", True),
        ("", "tsexp_evil", False),
        ("", "os", False),
        (" , ", "", False),
    ],
)
def test_a_module_is_allowed_with_all_inside_and_nothing_beside_it(monkeypatch, allowed, module, fine):
    monkeypatch.setenv(configs.OWN_CODE, allowed)
    if fine:
        configs.must_be_trusted(module, "it")
    else:
        with pytest.raises(ConfigError, match=r"^it, and was not run"):
            configs.must_be_trusted(module, "it")


def test_the_configuration_says_what_may_be_imported(evil):
    from conftest import compose

    with pytest.raises(ConfigError, match="evilmod:nothing cannot be imported"):
        compose("prune.method=evilmod:nothing")
    assert evil.exists()
    assert os.environ.pop(configs.OWN_CODE) == "evilmod"


def test_the_store_imports_nothing(evil, artifact):
    """What `compare` reads of a run: its family, and the runtime of its artifact."""
    manifest = {"device": "cpu", "mode": "none", "runtime": "eager"}
    honest = SimpleNamespace(artifact=SimpleNamespace(manifest=manifest), row=SimpleNamespace(params={}))
    family = replace_row(honest, {"model.family": "evilmod:"})
    runtime = SimpleNamespace(
        artifact=SimpleNamespace(manifest=manifest | {"runtime": "evilmod:"}), row=honest.row
    )
    for side in (family, runtime):
        with pytest.raises(ConfigError, match=f"^B cannot run here: .*{TELLS}"):
            compare._check(honest, side, SimpleNamespace(measure=SimpleNamespace(require="any")))
    assert not evil.exists()


def replace_row(side, params):
    return SimpleNamespace(artifact=side.artifact, row=SimpleNamespace(params=params))


@pytest.mark.parametrize("signature", ["../../elsewhere", "/etc", "", "0" * 15, "g" * 16])
def test_a_run_cannot_say_that_its_artifact_is_anywhere(tmp_path, signature):
    row = SimpleNamespace(tags={"tsexp.artifact": signature}, run_id="0" * 32, name="x")
    with pytest.raises(ConfigError, match="names no artifact"):
        finished.artifact(None, row, tmp_path, tmp_path)


def pickled(mark, name):
    def change(folder):
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))

    return change


def torch_pickled(mark, name):
    def change(folder):
        import torch

        torch.save({"weights": Bomb(mark)}, folder / name)

    return change


@pytest.mark.parametrize(
    ("runtime", "name"), [("eager", "weights.safetensors"), ("onnxruntime", "model.onnx")]
)
@pytest.mark.parametrize("how", [pickled, torch_pickled])
def test_a_pickle_by_whatever_name_is_no_model(artifact, tmp_path, runtime, name, how):
    mark = tmp_path / "was here"
    folder = artifact(runtime, how(mark, name))
    with pytest.raises(Exception, match=r"(?i)header|protobuf"):
        runtimes.load(folder)
    assert not mark.exists()
    if how is pickled:  # a bomb it is
        pickle.loads((folder / name).read_bytes())  # noqa: S301 (of this test)
        assert mark.exists()


@pytest.mark.parametrize("location", ["../secret.bin", "{secret}", "inside.bin"])
@pytest.mark.parametrize("where", ["weight", "constant"])
def test_an_onnx_model_reads_no_other_file(artifact, tmp_path, location, where):
    import onnx
    from onnx import TensorProto, helper

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(16))
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location.format(secret=secret), "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)

    def change(folder):
        (folder / "inside.bin").write_bytes(bytes(16))
        nodes = [helper.make_node("Add", ["series", "w"], ["scores"])]
        if where == "constant":
            nodes = [helper.make_node("Constant", [], ["w"], value=tensor), *nodes]
        ends = [helper.make_tensor_value_info(name, 1, [4]) for name in ("series", "scores")]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [] if where == "constant" else [tensor])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "m"
        )
        (folder / "m").replace(folder / "model.onnx")

    with pytest.raises(ValueError, match=r"model.onnx has weights in another file"):
        runtimes.load(artifact("onnxruntime", change))


def changed(folder):
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def elsewhere(folder):
    """The weights are a link to a file of somebody."""
    weights = folder / "weights.safetensors"
    weights.rename(folder.parent / "weights.safetensors")
    weights.symlink_to(folder.parent / "weights.safetensors")


BROKEN = {
    "no files are listed": ({}, changed),
    "files are no list of names": ({"files": [1]}, changed),
    "files is null": ({"files": None}, changed),
    "changed": (None, changed),
    "a link": (None, elsewhere),
    "a pipe": (None, lambda f: [(f / "weights.safetensors").unlink(), os.mkfifo(f / "weights.safetensors")]),
    "a folder": (None, lambda f: [(f / "weights.safetensors").unlink(), (f / "weights.safetensors").mkdir()]),
    "one more": (None, lambda f: (f / "stranger.so").touch()),
    "one more further down": (None, lambda f: [(f / "sub").mkdir(), (f / "sub" / "stranger.so").touch()]),
    "one less": (None, lambda f: (f / "arch.json").unlink()),
    "not json": (None, lambda f: (f / "manifest.json").write_text("[" * 20_000)),
    "no manifest": (None, lambda f: (f / "manifest.json").unlink()),
    "a list": (None, lambda f: (f / "manifest.json").write_text("[]")),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_artifact_whose_files_are_others_is_refused(artifact, what):
    files, change = BROKEN[what]
    folder = artifact("eager", consistent=False)
    if files is not None:
        about = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(about | {"files": files.get("files", files)}))
    change(folder)
    with pytest.raises(ValueError, match=r"is not what the manifest lists|is no artifact") as error:
        runtimes.load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert not finished._whole(folder)


def test_a_name_that_leads_elsewhere_is_not_followed(artifact, monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("mine")
    folder = artifact("eager")
    about = json.loads((folder / "manifest.json").read_text())
    read = []
    monkeypatch.setattr(
        "tsexp.system.files.sha256", lambda path, real=sha256: [read.append(path), real(path)][1]
    )
    for name in ("../secret", str(tmp_path / "secret"), "sub/../../secret"):
        files = about["files"] | {name: sha256(tmp_path / "secret")}
        (folder / "manifest.json").write_text(json.dumps(about | {"files": files}))
        with pytest.raises(ValueError, match=f"{re.escape(name)} is not what the manifest lists"):
            runtimes.load(folder)
    assert read
    assert all(path.parent == folder for path in read)


@pytest.mark.parametrize(
    "manifest",
    [
        {"runtime": "nothing"},
        {"runtime": ["eager"]},
        {"runtime": None},
        {"mode": "../../x"},
        {"mode": {}},
        {"device": "tpu"},
        {"device": 1},
    ],
    ids=str,
)
def test_a_manifest_that_says_something_else_is_refused_in_a_line(artifact, manifest):
    with pytest.raises(ValueError, match=r"is no artifact|is not known") as error:
        runtimes.load(artifact("eager", **manifest))
    assert len(str(error.value).splitlines()) == 1


def test_machine_code_from_elsewhere_is_not_run(tmp_path, monkeypatch):
    """A compiled package is code, whatever its manifest says."""
    monkeypatch.delenv(configs.OWN_CODE, raising=False)
    (tmp_path / "model.pt2").write_bytes(b"\x7fELF")
    (tmp_path / "input.json").write_text("{}")
    files = {p.name: sha256(p) for p in tmp_path.iterdir()}
    manifest = {"runtime": "inductor", "mode": "none", "device": "cpu", "files": files}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ConfigError, match=r"model.pt2 is machine code, and was not run; .* TSEXP_OWN_CODE=inductor$"
    ):
        runtimes.load(tmp_path)
    monkeypatch.setenv(configs.OWN_CODE, "inductor")
    with pytest.raises(KeyError, match="cpu"):  # it is read now
        runtimes.load(tmp_path)


def test_measuring_processes_know_what_may_be_imported(tmp_path, evil, monkeypatch):
    """They are forked from a server, which was there before."""
    code = "import os; from tsexp import config; config.trust('evilmod:')\n"
    code += "from tsexp.system import processes\nraise SystemExit(processes.run('evilmod:check', preload=()))"
    (evil.parent / "evilmod.py").write_text(
        "from tsexp import config\ndef check():\n    config.must_be_trusted('evilmod', 'it')\n    return 7\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(evil.parent), *sys.path])}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 7
