"""Studies: what the shipped ones ask for, in parts and as a whole; and a search with two objectives."""

import contextlib
import fcntl
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hydra import initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from commands import tsexp
from conftest import TINY, compose
from test_cli import runs
from tsexp import data, pipeline, tracking
from tsexp.config import Config, ConfigError, Unsupported, conf_dir, digest, identity
from tsexp.sweeps import checks, jobs, sweep
from tsexp.system.progress import bar


@pytest.fixture
def checked(monkeypatch):
    """What is asked for by these arguments of ``tsexp -m``, checked.

    But for datasets, which the shipped studies would download.
    """
    monkeypatch.setattr(data, "ensure", lambda *_: None)
    monkeypatch.setattr(checks, "_check_validation", lambda _: None)

    def check(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = (
                GlobalHydra.instance()
                .config_loader()
                .load_configuration("config", list(overrides), RunMode.MULTIRUN)
            )
            return checks.check(config)

    return check


def test_the_quick_study_has_what_it_says(checked):
    names = checked("experiment=quick").names
    assert len(set(names)) == len(names) == 32
    assert names[0] == "seed=0 data=acsf1 prune.ratio=0 quant.mode=none runtime=eager"


def test_jobs_that_are_the_same_whatever_their_names_say_are_told(checked, capsys):
    checked("model=t3", "variant=onnxruntime,static,pruned_50", "quant.mode=none")
    told = (
        "one and the same job, whatever the names say: variant=onnxruntime, variant=static; perhaps another"
    )
    assert told in capsys.readouterr().err
    checked("model=t3", "variant=onnxruntime,static,pruned_50")
    assert not capsys.readouterr().err


def test_a_value_of_the_command_line_narrows_a_study(checked):
    part = checked("experiment=paper", "data=plaid", "model=t1", "seed=0", "variant=static,depth_50")
    assert part.names == ["variant=static", "variant=depth_50"]
    assert part.first.data.name == "PLAID"
    assert part.first.quant.mode == "static"
    assert part.first.measure == compose("measure.target_pct=2").measure
    assert not any("data=" in n or "seed=" in n for n in part.names)
    assert len(checked("experiment=paper_pruning", "seed=0", "data=plaid", "model=t1").names) == 36


@pytest.fixture
def measurements(checked, monkeypatch):
    """Models of an experiment's jobs that something supports, each as often as it is measured."""
    real, kept = checks._check_jobs, []

    def check_jobs(*given):
        kept.append(real(*given))
        return kept[-1]

    def count(*overrides):
        checked(*overrides)
        made = {}
        for cfg, _ in kept[-1]:
            with contextlib.suppress(Unsupported):
                pipeline.check(cfg)
                made[digest(identity(cfg))] = cfg.model.name
        return Counter(made.values())

    monkeypatch.setattr(checks, "_check_jobs", check_jobs)
    return count


@pytest.fixture
def noted(monkeypatch, tmp_path):
    """What a sweep notes of itself, after its jobs were checked."""
    monkeypatch.setattr(tracking, "sweep_run", lambda *_: "parent")
    for name in ("start_server", "tidy"):
        monkeypatch.setattr(sweep, name, lambda *_: None)
    monkeypatch.setattr(sweep.atexit, "register", lambda _: None)

    def note(*overrides, places=()):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            config = (
                GlobalHydra.instance()
                .config_loader()
                .load_configuration(
                    "config", [*overrides, f"hydra.sweep.dir={tmp_path}/sweep"], RunMode.MULTIRUN
                )
            )
            for place in places:  # as --config-dir adds them
                config.hydra.runtime.config_sources.append(ConfigSourceInfo(place, "file", "command-line"))
            sweep.Sweep()._start(config)
            sweep._claims.pop().release()
        return json.loads((tmp_path / "sweep" / jobs.SWEEP).read_text())

    return note


def test_a_sweep_notes_its_command_as_it_was_given(noted):
    given = ["seed=0,1", "prune.ratio=0,0.5", "data=italy_power_demand", *TINY]
    about = noted(*given, places=["/mine"])
    assert about["overrides"] == given  # in another order, its jobs would have other numbers
    assert about["names"][1] == "seed=0 prune.ratio=0.5"
    assert about["options"] == ["--config-dir", "/mine"]
    assert "-m --config-dir /mine seed=0,1" in about["command"]
    about = noted(*given, "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert about["command"].endswith(" hydra/launcher=joblib hydra.launcher.n_jobs=1")


def test_the_folder_of_a_sweep_that_runs_is_refused_to_another(noted, tmp_path, monkeypatch):
    given = ["prune.ratio=0,0.5", "data=italy_power_demand", *TINY]
    before = noted(*given)
    made = []
    monkeypatch.setattr(tracking, "sweep_run", lambda *_: made.append(1) or "other")
    with (tmp_path / "sweep" / f"{jobs.SWEEP}.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as another process has it
        with pytest.raises(
            ConfigError, match=rf"sweep is the folder of a .* runs \(process {os.getpid()} on"
        ):
            noted("prune.ratio=0.5,0", "data=italy_power_demand", *TINY)
    assert not made  # nothing that would stay RUNNING
    assert json.loads((tmp_path / "sweep" / jobs.SWEEP).read_text()) == before
    assert noted(*given)["parent"] == "other"  # free again


def test_a_sweep_and_searches_of_the_same_words_have_runs_of_their_own(noted, monkeypatch):
    signatures = []
    monkeypatch.setattr(tracking, "sweep_run", lambda *a: signatures.append(a[-1]) or "parent")
    given = ["prune.ratio=0,0.5", "data=italy_power_demand", *TINY]
    search = "hydra/sweeper=optuna"
    noted(*given)
    noted(*given, search)
    noted(*given, search, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")  # goes on with the one before
    noted(*given, search, "hydra.sweeper.constraints=['val/accuracy_drop_pt<=1']")
    assert signatures[1] == signatures[2]
    assert len(set(signatures)) == 3


def test_a_search_notes_what_its_values_depend_on(noted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    meter = "class Mine:\n    source, resolution_s, scope = 'mine:watts', 0.1, 'a'\n    begin = end = print\n"
    (tmp_path / "my_search_meter.py").write_text(meter)
    given = ["data=italy_power_demand", "prune.method=l1,l2", "runtime=eager", *TINY]
    about = noted("experiment=pareto", *given)
    assert about["search"] != "mine:watts"
    assert noted("experiment=pareto", *given[::-1])["question"] == about["question"]
    own = noted("experiment=pareto", *given, "measure.meter=my_search_meter:Mine")
    assert own["search"] == "mine:watts"
    assert own["question"] == about["question"]
    others = [noted("experiment=pareto", *given, "train.lr=0.5")["question"]]  # as of a file that was edited
    monkeypatch.setattr(pipeline, "versions", lambda: ["new"])
    others.append(noted("experiment=pareto", *given)["question"])
    dataset = SimpleNamespace(checksum="other", val=range(99))
    monkeypatch.setattr(checks, "dataset_of", lambda _: dataset)
    others.append(noted("experiment=pareto", *given)["question"])
    assert len({about["question"], *others}) == 4


def text_of(experiment):
    """An experiment's file, and how many combinations it sweeps."""
    text = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text()
    params = OmegaConf.create(text).hydra.sweeper.params
    return text, params, math.prod(len(str(v).split(",")) for v in params.values())


def test_the_study_has_as_many_measurements_as_its_file_says(measurements):
    found = measurements("experiment=paper", "seed=0", "data=plaid")
    assert found == {"t1": 13, "t2": 13, "t3": 13, "t4": 17}
    text, params, combinations = text_of("paper")
    assert combinations == 612
    assert found.total() * len(params.seed.split(",")) * len(params.data.split(",")) == 504
    assert all(f" {n} " in text for n in (612, 504))
    company, _, combinations = text_of("paper_company")
    assert combinations == 27
    assert "= 27 measurements" in company
    named = [one.stem for one in (conf_dir() / "variant").glob("*.yaml")]
    more = text_of("company")[1].variant.split(",")
    assert set(named) == {*params.variant.split(","), *more}
    described = text.split("defaults:")[0].split("prune:")[0]
    assert all(re.search(rf"\b{name}\b", described) for name in named)


@pytest.mark.slow
def test_the_study_of_all_models_has_as_many_measurements_as_its_file_says(checked, measurements):
    estimators = dict.fromkeys(("minirocket", "quant_forest", "multirocket_hydra", "dtw_1nn"), 1)
    part = ("experiment=company", "seed=0", "data=acsf1")
    assert measurements(*part) == {"t4": 9, "ridge": 7, "t3": 5} | estimators
    assert measurements("experiment=company", "seed=0", "variant=dense").total() == 28
    assert set(
        measurements(*part, "model=fcn,resnet,litetime,inceptiontime", "train.precision=bf16").values()
    ) == {4}
    assert set(measurements(*part, "model=t1,t2").values()) == {5}
    assert set(measurements(*part, "model=t3,t4", "variant=dynamic,static").values()) == {2}
    text, params, combinations = text_of("company")
    places = len(params.seed.split(",")) * len(params.data.split(","))
    assert combinations == 1260
    assert places * 25 == 500
    assert all(f" {n} " in text for n in (1260, 500))


def test_a_bad_value_anywhere_in_a_study_is_refused(checked):
    with pytest.raises(
        ConfigError, match=r"job .*seed=-1.* seed=-1 is out of range[^\n]*\nnothing was started"
    ):
        checked("experiment=paper", "data=plaid", "model=t1", "variant=dense,static", "seed=0,1,-1")


@pytest.mark.slow
def test_the_whole_study_is_checked_in_seconds(checked):
    start = time.process_time()
    assert len(checked("experiment=paper").names) == 612
    assert (
        time.process_time() - start < 30
    )  # 10 on the machine that this was written on; every job composed by itself, 240


def test_brackets_in_the_name_of_what_is_done_stay():
    shown = bar("job prune=[l1]", 1, show=False)
    shown.start()
    shown.advance("of [l1]")
    (task,) = shown._progress.tasks
    columns = shown._progress.columns
    assert [str(columns[i](task)) for i in (0, 3)] == ["job prune=[l1]", "of [l1]"]


def test_a_group_given_as_null_in_a_sweep_is_refused_in_a_line(checked):
    with pytest.raises(
        ConfigError, match=r"job data=null: null is no option of a group.*\nnothing was started"
    ):
        checked("data=acsf1,null")


def test_a_search_is_refused_with_a_value_that_nothing_takes(checked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checked("experiment=pareto").names is None
    for wrong, told in {
        "hydra.sweeper.n_trials=0": r"n_trials=0 is out of range.*≥ 1",
        "hydra.sweeper.n_jobs=1.5": r"n_jobs=1\.5 is out of range",
        'hydra.sweeper.constraints=["val/accuracy_drop_pt<1"]': "write METRIC<=NUMBER",
        'hydra.sweeper.constraints=["val/accuracy_drop_pt<=nan"]': "write METRIC<=NUMBER",
        "hydra.sweeper.storage=/dev/null/optuna.log": "cannot be opened",
        "hydra.sweeper.sampler.seed=-1": "seed=-1 is out of range",
        "hydra.sweeper.sampler.seed=null": "seed=None is out of range",
        "prune.ratio=interval(0.5,0.1)": r"interval\(0\.5, 0\.1\) is none; allowed: .* the smaller first",
        "train.lr=interval(0.1,inf)": "is none; allowed: two finite numbers",
        "prune.ratio=tag(log, interval(0.0,0.5))": r"interval\(0\.0, 0\.5\)\) has no logarithms",
    }.items():
        with pytest.raises(ConfigError, match=f"{told}.*\nnothing was started"):
            checked("experiment=pareto", wrong)
    with pytest.raises(ConfigError, match="l1, l2, random, taylor"):
        checked("experiment=pareto", "prune.method=l1,l3")
    with pytest.raises(ConfigError, match=r"prune\.ratio=1\.2 is out of range"):
        checked("experiment=pareto", "prune.ratio=interval(0.0,1.2)")


def test_a_search_is_refused_without_validation_series_and_told_if_there_are_few(
    checked, capsys, monkeypatch
):
    monkeypatch.undo()  # this one's dataset is there
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0 leaves none.*\nnothing was started"):
        checked(
            "experiment=pareto", "data=acsf1", "data.val_fraction=0", "train.select=last", "train.patience=0"
        )
    assert checked("experiment=pareto", "data=acsf1", "data.val_fraction=0.2").names is None
    assert (
        "ACSF1 has 20 validation series: the search sees accuracy in steps of 5.0 points"
        in capsys.readouterr().err
    )
    checked("experiment=pareto", "data=acsf1", "data.val_fraction=0.4")
    assert not capsys.readouterr().err


def test_a_search_learns_from_validation_series(monkeypatch, tmp_path, tiny, capsys):
    from tsexp import report

    (tmp_path / jobs.SWEEP).write_text('{"search": "zeus:rapl"}')
    row = SimpleNamespace(
        valid=True,
        tags={"tsexp.energy_source": "zeus:rapl"},
        metrics={"test/accuracy": 0.9, "val/accuracy": 0.7, "energy/per_inference_j": 0.001},
    )
    monkeypatch.setattr(tracking, "store", lambda config: None)
    monkeypatch.setattr(tracking, "has_metric", lambda config, name: known)
    known = True  # of other jobs
    monkeypatch.setattr(report, "read", lambda client, ids: [row])
    cfg = OmegaConf.merge(OmegaConf.structured(Config), asdict(tiny))
    outcome = jobs.Outcome("one", "finished", "run")
    assert sweep.objectives(outcome, cfg, str(tmp_path)) == (0.7, 0.001)
    bounds = ["test/accuracy>=0.95", "val/accuracy <= 1", "val/acuracy_drop_pt<=1"]
    (tmp_path / jobs.SWEEP).write_text(json.dumps({"search": "zeus:rapl", "constraints": bounds}))
    found = sweep.objectives(outcome, cfg, str(tmp_path))
    assert found == (0.7, 0.001, pytest.approx(0.05), pytest.approx(-0.3), math.inf)
    told = capsys.readouterr().err
    assert "val/acuracy_drop_pt: no metric of the run; close to it: val/accuracy" in told
    known = False
    with pytest.raises(
        ConfigError, match=r"acuracy_drop_pt: no metric .*test/accuracy; one is measured, and"
    ):
        sweep.objectives(outcome, cfg, str(tmp_path))
    row.tags["tsexp.energy_source"] = "estimated:cpu_time"
    assert sweep.objectives(outcome, cfg, str(tmp_path)) is None
    assert "one: the search learns nothing from energy of estimated:cpu_time" in capsys.readouterr().err


def test_without_the_optuna_extra_a_search_says_what_to_install():
    code = (
        "import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *more: None if name == 'optuna' else find(name, *more);"
        "from tsexp.__main__ import cli; cli()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "experiment=pareto"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "pip install 'tsexp[optuna]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_search_ends_with_its_front_although_trials_fail(tmp_path):
    # bf16 does not exist in ONNX Runtime: those trials fail, and the search goes on. The others need less
    # energy than their control in eager PyTorch: however little they have learned, they are on the front.
    choices = ["prune.ratio=0,0.5", "prune.method=l1", "quant.mode=none,bf16", "runtime=onnxruntime"]
    size = ["hydra.sweeper.n_trials=4", f"hydra.sweep.dir={tmp_path}/one"]
    done = tsexp(tmp_path, "-m", "experiment=pareto", *TINY, "data=italy_power_demand", *choices, *size)
    measured = [r for r in runs(tmp_path) if "tsexp.valid" in r.data.tags]
    assert 1 <= len(measured) <= 2
    assert "skipped quant.mode=bf16 with runtime=onnxruntime on cpu is not supported" in done.stdout
    assert "◆" in done.stdout
    assert f"{len(measured)} jobs" in done.stdout  # what was proposed twice is shown once
    assert (tmp_path / "one" / "front.png").read_bytes().startswith(b"\x89PNG")
    solutions = (tmp_path / "one" / "optimization_results.yaml").read_text()
    assert "quant.mode: none" in solutions
    assert "bf16" not in solutions
    (parent,) = runs(tmp_path, "tags.`tsexp.stage` = 'sweep'")
    assert parent.info.run_name.startswith("experiment=pareto")

    # docs/cluster.md: it goes on with more trials, within a bound, in a database.
    more = ["hydra.sweeper.n_trials=6", f"hydra.sweep.dir={tmp_path}/two"]
    done = tsexp(tmp_path, "-m", "experiment=pareto", *TINY, "data=italy_power_demand", *choices, *more)
    assert f"{len(measured)} of them measured before" in done.stdout
    assert len([r for r in runs(tmp_path) if "tsexp.valid" in r.data.tags]) <= 2  # nothing measured twice

    bound = ['hydra.sweeper.constraints=["val/accuracy_drop_pt<=-200"]', f"hydra.sweep.dir={tmp_path}/three"]
    bound += ["hydra.sweeper.storage=sqlite:///studies.db", "hydra.sweeper.n_trials=3"]
    done = tsexp(tmp_path, "-m", "experiment=pareto", *TINY, "data=italy_power_demand", *choices, *bound)
    assert (tmp_path / "studies.db").exists()
    assert "◆" not in done.stdout.splitlines()[2]  # which nothing keeps to: the control stands alone
    assert "no job keeps to val/accuracy_drop_pt<=-200" in done.stdout
    ended = len(list((tmp_path / "three").glob("*/outcome.json")))
    assert f"{ended} jobs: " in tsexp(tmp_path, "status", "three").stdout
    assert "solutions: []" in (tmp_path / "three" / "optimization_results.yaml").read_text()


def test_a_name_says_what_was_asked_and_not_where():
    place = ["paths.cache=/home/somebody/cache", "+tracking.uri=sqlite:////somewhere/mlflow.db", "rerun=true"]
    assert checks._names([["seed=0", "model=t4", *place]]) == ["seed=0 model=t4"]
    assert checks._names([place]) == ["job"]
    assert checks._names([["seed=0", *place], ["seed=1", *place]]) == ["seed=0", "seed=1"]
