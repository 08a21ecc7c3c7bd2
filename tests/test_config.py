import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hydra.errors import HydraException

from conftest import TINY, compose
from tsexp import config as configs
from tsexp import models, pipeline, runtimes
from tsexp.command import SUBCOMMANDS
from tsexp.compress import prune
from tsexp.config import ConfigError, Unsupported, conf_dir, digest, flat, parse
from tsexp.config.compose import composed
from tsexp.models import transformer
from tsexp.models.transformer.encoder import ACTIVATIONS
from tsexp.models.transformer.tokenizers import TOKENIZERS
from tsexp.system import cpu

OPTIONS = sorted(f"{p.parent.name}={p.stem}" for p in conf_dir().glob("*/*.yaml") if p.parent.name != "hydra")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o != "data=ucr"])
def test_every_shipped_config_composes_and_passes_the_checks(option):
    compose(option)


@pytest.mark.parametrize(
    ("overrides", "scale"),
    [
        (("model=t3",), "znorm"),
        (("model=fcn",), "znorm"),
        (("model=ridge",), "znorm"),
        (("model=quant_forest",), "none"),
        (("model=minirocket", "data=plaid"), "none"),
        (("model=minirocket", "data.scale=znorm"), "znorm"),
        (("model=quant_forest", "data=basic_motions"), "standard"),
    ],
)
def test_networks_scale_series_and_estimators_take_them_as_they_are(overrides, scale):
    assert compose(*overrides).data.scale == scale


def test_a_name_of_a_model_is_no_code():
    with pytest.raises(ConfigError, match=r"model.name=t3:small has a colon.*named by model.family"):
        compose("model.name=t3:small")


@pytest.mark.parametrize("model", ["t3", "fcn", "resnet", "litetime", "inceptiontime"])
def test_networks_see_the_raw_series_too_if_they_are_asked_to(model):
    assert compose(f"model={model}", "data.scale=znorm_raw").data.scale == "znorm_raw"


@pytest.mark.parametrize("model", ["t4", "minirocket", "quant_forest", "dtw_1nn"])
def test_models_that_see_levels_by_themselves_see_no_raw_channels(model):
    """A sweep skips them."""
    with pytest.raises(Unsupported, match=f"znorm_raw is not for model={model}.*use data.scale=auto"):
        pipeline.able(compose(f"model={model}", "data.scale=znorm_raw"))


@pytest.mark.parametrize("model", ["t1", "t2", "t3"])
@pytest.mark.parametrize("data", ["italy_power_demand", "pickup_gesture", "basic_motions"])
def test_every_model_config_instantiates_on_every_kind_of_data(model, data, load_data):
    cfg = compose(f"model={model}", f"data={data}")
    dataset = load_data(cfg.data.name, scale=cfg.data.scale)
    scores = models.build(cfg.model, dataset).eval()(__import__("torch").from_numpy(dataset.x_test[:3]))
    assert scores.shape == (3, len(dataset.classes))
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prune.ratio=1.5", ["prune.ratio=1.5", "≥ 0 and < 1"]),
        ("prune.ratio=-0.1", ["out of range"]),
        ("prune.ratio=nan", ["out of range"]),
        (
            "measure.timeout_s=inf train.lr=inf",
            ["measure.timeout_s=inf", "train.lr=inf is out of range", "> 0"],
        ),
        ("prune.method=l3", ["l1, l2, random, taylor, or your own"]),
        ("prune.scope=layer", ["local, global, depth"]),
        ("prune.method=nowhere:best", ["cannot be imported", "No module named 'nowhere'", "working folder"]),
        ("model.tokenizer=json:Tokens", ["cannot be imported", "has no attribute 'Tokens'"]),
        ("runtime.name=nowhere:", ["cannot be imported"]),
        ("measure.meter=nvml", ["allowed: auto, or your own as module:object"]),
        ("model.heads=5", ["does not divide", "1, 2, 4, 8, 16"]),
        ("prune.method=none", ["l1, l2, random, taylor"]),
        ("measure.repeats=1 measure.processes=1", ["out of range"]),
        ("measure.repeats=4 measure.processes=6", ["at least as many pairs as processes"]),
        ("measure.processes=7", ["is odd", "an even number, best a multiple of 4"]),
        ("measure.processes=2", ["out of range", "≥ 4"]),
        ("measure.window_s=25", ["measure.repeats=80", "4000 s", "measure.timeout_s=3600", "fewer pairs"]),
        ("quant.mode=int8", ["dynamic"]),
        ("tracking.uri=ftp://x", ["sqlite"]),
        ("+prune.ration=0.1", ["prune.ration", "did you mean ratio"]),
        ("+colour=red", ["colour"]),
        ("+epochs=5", ["epochs is not a key", "did you mean train.epochs?"]),
        ("data=ucr", ["data.name"]),
        ("train.select=best data.val_fraction=0", ["nothing to select on"]),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(override, words):
    with pytest.raises(ConfigError) as error:
        compose(*override.split())
    assert all(w in str(error.value) for w in words)


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        compose("prune.ratio=2", "prune.method=x", "train.lr=0")
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prune.ration=1", "did you mean ratio"),
        ("prune.ratio=abc", "prune.ratio=abc is no number"),
        ("train.epochs=1.5", "train.epochs=1.5 is no whole number"),
        ("train.progress=x", "train.progress=x is neither true nor false"),
        ("prune.ratio=null", "prune.ratio=null: it cannot go without a value"),
        ("data=plad", "(did you mean plaid?); any other of the archive: data=ucr data.name=NAME"),
        (
            "experiment=quik",
            "allowed: company, paper, paper_company, paper_pruning, pareto, quick (did you mean quick?)",
        ),
        ("epochs=5", "did you mean train.epochs?"),
        ("ratio=0.5", "did you mean prune.ratio?"),
        ("name=x", "did you mean data.name or model.name or runtime.name?"),
        ("experiment=null", "null is no option of a group; leave the group out"),
        ("data.name=Mein Sët", "if it is one value, quote it: 'data.name=\"Mein Sët\"'"),
        ("data.path=../Daten (1)", "(mismatched input ' (' expecting <EOF>); if it is one value, quote it: "),
        ("acsf1", "acsf1 is no setting: those are key=value"),
    ],
)
def test_hydras_own_errors_are_explained(override, words):
    with pytest.raises((HydraException, ValueError)) as error:
        compose(override)
    assert configs.is_known(error.value)
    said = configs.explain(error.value)
    assert words in said
    assert "experiment" in override or len(said.splitlines()) == 1


def test_composing_leaves_the_hydra_of_the_callers_program_alone(tmp_path):
    from hydra import compose as theirs
    from hydra import initialize_config_dir

    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert composed("seed=3").seed == 3
        with pytest.raises(ConfigError):
            composed("seeds=3")
        assert theirs("config") == {"mine": 1}


def test_a_fault_of_ours_is_no_error_of_the_configuration():
    assert not configs.is_known(ValueError("something else"))


def test_changed_code_of_ones_own_is_another_experiment(tmp_path, monkeypatch, italy):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_best.py").write_text("def best(*_): ...\n")
    cfg = compose("data=italy_power_demand", "prune.method=my_best:best", "prune.ratio=0.5")
    before = pipeline.signature(cfg, italy)
    assert pipeline.signature(cfg, italy) == before
    (tmp_path / "my_best.py").write_text("def best(*_): return []\n")
    del sys.modules["my_best"]  # as in a new process
    assert pipeline.signature(cfg, italy) != before


def test_another_cpu_of_the_same_name_is_another_experiment(italy, monkeypatch):
    cfg = compose("data=italy_power_demand")
    here = cpu.facts()
    before = pipeline.signature(cfg, italy)
    monkeypatch.setattr(cpu, "facts", lambda: here | {"cpu_vectors": "mmx"})
    assert pipeline.signature(cfg, italy) != before


def test_what_does_not_matter_makes_no_other_experiment(italy):
    def signature(*overrides):
        return pipeline.signature(compose("data=italy_power_demand", *overrides), italy)

    assert signature("prune.method=taylor", "prune.scope=depth") == signature("prune.finetune_epochs=3")
    half = signature("prune.ratio=0.5")
    assert half == signature("prune.ratio=0.5", "prune.calibration_series=9")  # which l1 does not use
    others = (("prune.scope=depth",), ("prune.method=l2",), ("prune.finetune_epochs=3",), ("seed=1",))
    assert len({half, *(signature("prune.ratio=0.5", *o) for o in others)}) == 5
    features = ("model=t4", "prune.ratio=0.5", "prune.scope=features")
    assert signature(*features) == signature(*features, "prune.round_to=8")  # there are no widths to round
    assert half != signature("prune.ratio=0.5", "prune.round_to=8")


@pytest.mark.parametrize("override", ["model.tokenizer=os:getcwd", "prune.method=os:sep"])
def test_ones_own_code_of_the_wrong_kind_is_refused_before_any_work(override):
    with pytest.raises(
        ConfigError,
        match=rf"^{override} is not a (class of torch.nn.Module|function); docs/extending.md has an example",
    ):
        pipeline.check(compose("data=italy_power_demand", override))


def test_code_that_was_changed_after_its_import_is_not_taken_for_what_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(configs.OWN_CODE, "my_edited")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of one second, edits of one length look alike
    file = tmp_path / "my_edited.py"
    file.write_text("kept = 1\n")
    first = configs.own_digests("my_edited:kept")
    file.write_text("kept = 22\n")
    with pytest.raises(
        ConfigError, match=r"my_edited.py was changed after it was imported.*reload\(my_edited"
    ):
        configs.own_digests("my_edited:kept")
    importlib.reload(sys.modules["my_edited"])
    assert configs.own_digests("my_edited:kept") != first
    file.write_text("kept = 1\n")
    del sys.modules["my_edited"]
    assert configs.own_digests("my_edited:kept") == first


@pytest.mark.parametrize("name", ["my_notebook", "my_package"])
def test_code_of_ones_own_that_is_in_no_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(configs.OWN_CODE, name)
    (tmp_path / "my_package").mkdir()
    monkeypatch.setitem(sys.modules, "my_notebook", ModuleType("my_notebook"))
    with pytest.raises(ConfigError, match=f"{name}:f is in no file.*write it into a module of its own"):
        configs.own_digests(f"{name}:f")


def test_a_script_that_several_devices_would_run_again_is_told_so(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    pipeline.able(compose())
    with pytest.raises(ConfigError, match=r"train.devices=2 .*under if __name__ == '__main__':"):
        pipeline.able(compose("train.devices=2"))


def test_more_threads_than_cores_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    pipeline.able(compose("measure.threads=2"))
    with pytest.raises(ConfigError, match=r"measure.threads=3, but 2 core\(s\) can be used here"):
        pipeline.able(compose("measure.threads=3"))
    pipeline.able(compose("measure.threads=3", "stop_after=deploy"))
    pipeline.able(compose("measure.threads=3"), here=False)


OWN = """
import functools, numpy

SUPPORTED = {"none": ("cpu",)}
FEW = None

def two(model, config):
    return []

def four(model, config, dataset, seed):
    return []

class Mute:
    source, resolution_s, scope = "mine", 0.1, "all"

class Named:
    source, resolution_s, scope = "zeus:rapl", 0, "all"
    def begin(self): ...
    def end(self): ...

class Good(Named):
    source, resolution_s = "mine:watts", numpy.float32(0.1)

class Asks(Good):
    def __init__(self, host): ...

class Gone(Good):
    def __init__(self):
        raise OSError("no such device")

made = Good()
PACKAGES = "torch"

@functools.wraps(two)
def wrapped(model, config, dataset, seed):
    return two(model, config)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("prune.method={}:two prune.ratio=0.5", r"cannot be called with \(model, config, dataset, seed\)"),
        ("prune.method={}:FEW", "is not a function"),
        ("runtime.name={}:", "it has no table PACKAGES, no function export, no function load; docs"),
        ("measure.meter={}:Mute", "it has no method begin; no method end; docs"),
        ("measure.meter={}:FEW", "is no class; docs"),
        ("measure.meter={}:made", "is no class; docs"),
        ("measure.meter={}:Asks", r"cannot be made, without arguments \(TypeError: .*'host'"),
        ("measure.meter={}:Gone", r"cannot be made, without arguments \(OSError: no such device\)"),
        (
            "measure.meter={}:Named",
            "it has source='zeus:rapl', which stands for what Zeus reads; resolution_s=0",
        ),
        ("prune.method={}:four measure.meter={}:Good", None),
        ("prune.method={}:wrapped", None),
    ],
)
def test_code_of_ones_own_that_cannot_be_used_is_told_before_any_work(tmp_path, monkeypatch, words, said):
    """It was told after the training, as an error of Python."""
    (tmp_path / "my_parts_of_all_kinds.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose(*words.replace("{}", "my_parts_of_all_kinds").split())
    if said is None:
        pipeline.able(cfg)
    else:
        with pytest.raises(ConfigError, match=said):
            pipeline.able(cfg)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="of Linux")
def test_cores_are_those_that_this_process_may_use():
    all_of_them = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(all_of_them)})
        assert configs.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, all_of_them)


@pytest.mark.parametrize("name", ["My%20Project", "x?y"])
def test_a_folder_whose_name_means_another_in_an_address_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    said = rf"tracking.uri is .*/{re.escape(name)}/mlflow.db, in which (%20|\?) .*name one: tracking.uri="
    for override in ("seed=0", f"tracking.uri='sqlite:////a/{name}/mlflow.db'"):
        with pytest.raises(ConfigError, match=said):
            compose(override)
    elsewhere = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"paths.spool={tmp_path}/spool"]
    if "%" in name:
        with pytest.raises(ConfigError, match=rf"paths.cache is {tmp_path}/{name}/cache, in which %20 would"):
            compose(*elsewhere)
    assert compose(*elsewhere, f"paths.cache={tmp_path}/cache").paths.data == f"{tmp_path}/{name}/data"


def test_names_that_mean_themselves_and_options_of_a_store_are_taken(tmp_path, monkeypatch):
    (tmp_path / "Größe #1 100% x").mkdir()
    monkeypatch.chdir(tmp_path / "Größe #1 100% x")
    assert compose().tracking.uri == f"sqlite:///{tmp_path}/Größe #1 100% x/mlflow.db"
    asked = compose("tracking.uri='sqlite:///a.db?timeout=30'")
    assert asked.tracking.uri == f"sqlite:///{tmp_path}/Größe #1 100% x/a.db?timeout=30"
    with pytest.raises(ConfigError, match=r"tracking.artifacts is /a%20b, .*tracking.artifacts=/ELSEWHERE"):
        compose("tracking.artifacts=/a%20b")


def test_names_of_data_and_of_places_are_no_code(monkeypatch):
    monkeypatch.delenv(configs.OWN_CODE, raising=False)
    cfg = compose("data=ucr", "data.name='Mine:v2'", "tracking.experiment=team:x", "paths.report='to:day'")
    assert configs.identity(cfg)["code"] == {}
    assert configs.OWN_CODE not in os.environ


def test_a_module_of_ones_own_that_fails_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_broken.py").write_text("def best(:\n")
    with pytest.raises(
        ConfigError, match=r"^prune.method=my_broken:best cannot be imported \(SyntaxError: .*\)"
    ) as error:
        compose("prune.method=my_broken:best")
    assert len(str(error.value).splitlines()) == 1


def test_a_module_of_ones_own_that_exits_is_told_too(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_exit.py").write_text("import sys\nsys.exit()\n")
    with pytest.raises(ConfigError, match=r"^prune.method=my_exit:best cannot be imported \(SystemExit"):
        compose("prune.method=my_exit:best")


def test_names_allowed_by_the_schema_are_the_ones_the_parts_know():
    allowed = {
        f"{g}.{k}": f.metadata.get("allowed")
        for g, c in _groups().items()
        for k, f in c.__dataclass_fields__.items()
    }
    assert set(allowed["prune.method"]) == set(prune.SCORES)
    assert set(allowed["model.tokenizer"]) == set(TOKENIZERS)
    assert set(allowed["model.activation"]) == set(ACTIVATIONS)
    supported = [__import__(path, fromlist=["SUPPORTED"]).SUPPORTED for path in runtimes.RUNTIMES.values()]
    assert {mode for modes in supported for mode in modes} <= set(allowed["quant.mode"])
    assert {device for modes in supported for devices in modes.values() for device in devices} <= set(
        allowed["runtime.device"]
    )


def _groups():
    names = ("data", "train", "prune", "quant", "runtime", "measure")
    return {n: getattr(configs, f"{n.capitalize()}Config") for n in names} | {"model": transformer.Config}


def test_every_key_of_the_base_files_is_commented():
    plain = (
        "#",
        " ",
        "defaults",
        "name",
        "d_model",
        "layers",
        "ffn",
        "epochs",
        "lr",
        "batch_size",
        "threads",
        "label_smoothing",
    )
    for file in ("data/ucr", "model/t1", "train/default", "prune/default", "measure/quick"):
        for line in (conf_dir() / f"{file}.yaml").read_text().splitlines():
            if ":" in line and not line.startswith(plain):
                assert "#" in line, f"{file}: {line}"


def test_relative_paths_and_the_store_become_absolute():
    cfg = compose()
    assert Path(cfg.paths.cache) == Path("cache").absolute()
    assert cfg.tracking.uri == f"sqlite:///{Path('mlflow.db').absolute()}"


def test_flat_and_digest():
    assert flat(compose(*TINY))["prune.ratio"] == 0.0
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_parse_refuses_what_is_not_complete():
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"), pytest.raises(ConfigError):
        parse(hydra_compose("config", ["data.name=???"]))


def test_help_names_every_group_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['tsexp', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('tsexp', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'lightning', 'mlflow', 'aeon', 'zeus', 'torchmetrics', 'sklearn'} & "
        "set(sys.modules)))"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    print(f"--help took {time.perf_counter() - start:.2f} s")
    assert "HEAVY []" in out
    assert all(f"\n{group}: " in out for group in {o.split("=")[0] for o in OPTIONS})
    for line in (
        "tsexp -m prune.ratio=",
        "tsexp compare RUN_A RUN_B",
        *(f"tsexp {word} " for word in SUBCOMMANDS if word not in ("status", "merge")),
    ):
        assert f"\n  {line}" in out
    assert all(f" tsexp {word} " in out for word in SUBCOMMANDS)
    assert 'eval "$(tsexp -sc install=bash)"' in out


def test_the_papers_models_bring_the_papers_recipe_unless_another_is_given():
    assert compose("model=t1").train == compose("model=t2").train == compose("train=paper").train
    assert (
        compose("model=t1", "train=default").train == compose("model=t3").train != compose("model=t1").train
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (RuntimeError("\n  no   compiler\nat line 3"), "no compiler"),
        (RuntimeError(), "RuntimeError"),
        ("http://me:secret@host is gone\n", "http://me:***@host is gone"),
        ("", ""),
    ],
)
def test_the_first_line_of_what_may_be_long(said, line):
    assert configs.first_line(said) == line


def test_passwords_are_not_logged():
    assert configs.redact("postgresql+psycopg2://me:secret@host/db") == "postgresql+psycopg2://me:***@host/db"
    assert configs.redact("sqlite:////home/me/mlflow.db") == "sqlite:////home/me/mlflow.db"
    assert compose("tracking.uri=mysql+pymysql://u:p@h/d").tracking.uri.startswith("mysql+pymysql")
