"""The plan of a command against what the command then does."""

from collections import Counter

import mlflow
import pytest

from commands import tsexp
from conftest import TINY, compose
from test_cli import runs
from tsexp import command, models, pipeline, plan, tracking
from tsexp.config import Config, ConfigError, Unsupported
from tsexp.sweeps import checks
from tsexp.sweeps.jobs import dataset_of
from tsexp.system import locking
from tsexp.tracking import spool

ITALY = [*TINY, "data=italy_power_demand"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder):
    """Stage → how many are in the cache."""
    entries = (folder / "cache").glob("*/*/entry.json")
    return Counter(entry.parts[-3] for entry in entries) - Counter(peaks=1)


@pytest.mark.slow
def test_of_a_runtime_to_be_chosen_validation_series_are_scored_for_each(here):
    asked = [*ITALY, "runtime=auto", "prune.ratio=0.5"]
    foreseen = plan.of(asked, progress=False)
    tsexp(here, "-m", *asked)
    assert {name: part.missing for name, part in foreseen.parts.items() if name != "measure"} == made(here)


@pytest.mark.slow
def test_what_is_planned_is_what_is_done(here):
    asked = [*ITALY, "prune.ratio=0,0.5", "quant.mode=none,dynamic", "runtime=onnxruntime,inductor"]
    before = plan.of(asked, progress=False)
    assert not (here / "mlflow.db").exists()
    assert (before.jobs, before.unsupported, before.measured) == (8, 0, 0)
    first = [*ITALY, "prune.ratio=0,0.5", "runtime=onnxruntime"]
    foreseen = plan.of(first, progress=False)
    tsexp(here, "-m", *first)
    there = made(here)
    assert {name: part.missing for name, part in foreseen.parts.items() if name != "measure"} == there
    assert foreseen.parts["measure"].missing == len([r for r in runs(here) if "tsexp.valid" in r.data.tags])
    after = plan.of(first, progress=False)
    assert all(part.missing == 0 for part in after.parts.values())
    assert (after.measured, after.seconds) == (2, 0)
    rest = plan.of(asked, progress=False)
    assert rest.measured == 2
    assert rest.parts["dense"].missing == 0
    assert rest.parts["artifact"].missing == before.parts["artifact"].missing - there["artifact"]
    assert made(here) == there  # planning builds nothing


def test_no_experiment_is_made_to_plan(here, empty_store):
    (here / "mlflow.db").write_bytes(empty_store.read_bytes())
    plan.of([*ITALY, "tracking.experiment=try"], progress=False)
    client = mlflow.MlflowClient(f"sqlite:///{here}/mlflow.db")
    assert "try" not in {e.name for e in client.search_experiments()}


def test_configurations_of_ones_own_are_planned_too(here, capsys):
    (here / "mine" / "data").mkdir(parents=True)
    (here / "mine" / "data" / "my_set.yaml").write_text("defaults: [italy_power_demand]\n")
    assert plan.main(["--config-dir", "mine", *TINY, "data=my_set", "prune.ratio=0,0.5"]) == 0
    assert "2 jobs" in capsys.readouterr().out
    assert plan.main(["--config-dir", "nowhere", *TINY]) == 2
    assert "--config-dir nowhere is not a folder" in capsys.readouterr().err
    (here / "mine" / "data" / "plaid.yaml").write_text("defaults: [italy_power_demand]\n")
    assert plan.main(["--config-dir", "mine", *TINY, "data=my_set"]) == 2
    assert "data/plaid.yaml; give yours names of their own" in capsys.readouterr().err


def test_a_store_is_looked_for_whatever_else_its_address_says(here, empty_store):
    (here / "mlflow.db").write_bytes(empty_store.read_bytes())
    cfg = compose(*ITALY, "tracking.uri='sqlite:///mlflow.db?timeout=5'", "tracking.experiment=Default")
    assert plan._store_is_there(cfg)
    cfg.tracking.uri = f"sqlite:///{here}/none.db?timeout=5"
    assert not plan._store_is_there(cfg)
    assert [f.name for f in here.iterdir()] == ["mlflow.db"]


def test_times_follow_from_the_configuration(here):
    one = plan.of([*ITALY, "prune.ratio=0.5"], progress=False)
    assert set(one.parts) == {"dense", "prune", "finetune", "artifact", "scores", "measure"}
    assert one.parts["finetune"].missing == 2  # of the pruned model, and of its control
    assert all(part.seconds > 0 for part in one.parts.values())
    assert not list(here.iterdir())


def test_steps_are_tried_while_nobody_measures(here, monkeypatch):
    held = []
    monkeypatch.setattr(plan, "_try", lambda *_: held.append(locking._held.how) or plan._Tried(1.0, 0.0, 0.0))
    plan.of(ITALY, progress=False)
    assert held == [locking.SHARED]


def test_tuning_a_smaller_model_is_shorter_and_its_control_is_not_smaller(here, monkeypatch):
    monkeypatch.setattr(plan, "_try", lambda cfg, dataset: plan._Tried(1.0, 0.0, 0.0))
    dense = plan.of([*ITALY, "prune.ratio=0"], progress=False).parts["dense"].seconds
    half = plan.of([*ITALY, "prune.ratio=0.5"], progress=False)
    cfg = checks.asked([*ITALY, "prune.ratio=0.5"])[0]
    control = dense * cfg.prune.finetune_epochs / cfg.train.epochs
    assert half.parts["dense"].seconds == dense
    assert half.parts["finetune"].seconds == pytest.approx(control * (1 + 1 - plan.SHORTER * 0.5))


def test_an_artifact_takes_as_long_as_its_own_runtime(here, monkeypatch):
    """The control and the dense model are in eager PyTorch, whatever is asked for."""
    monkeypatch.setattr(plan, "_try", lambda cfg, dataset: plan._Tried(1.0, 0.0, 0.0))
    asked = [*ITALY, "prune.ratio=0.5", "runtime=openvino"]
    part = plan.of(asked, progress=False).parts["artifact"]
    assert (part.missing, part.seconds) == (3, plan.EXPORT_S["openvino"] + 2 * plan.EXPORT_S["eager"])


def test_a_sweep_is_planned_by_its_own_words(here, monkeypatch, capsys):
    monkeypatch.setattr(plan, "_try", lambda cfg, dataset: plan._Tried(1.0, 0.0, 0.0))
    assert plan.main(["-m", *ITALY, "prune.ratio=0,0.5"]) == 0
    assert "2 jobs, 0 measured" in capsys.readouterr().out
    assert plan.main(ITALY) == 0
    assert "1 job, 0 measured" in capsys.readouterr().out


def test_what_is_measured_is_counted_once_and_not_at_all_without_measuring(here, monkeypatch):
    monkeypatch.setattr(plan, "_try", lambda cfg, dataset: plan._Tried(1.0, 0.0, 0.0))
    same = [*ITALY, "prune.ratio=0", "prune.method=l1,l2"]

    def measuring(*more):
        found = plan.of([*same, *more], progress=False)
        return found.jobs, found.parts["measure"].missing, found.parts["measure"].seconds > 0

    assert measuring() == (2, 1, True)
    assert measuring("rerun=true") == (2, 2, True)
    assert measuring("stop_after=deploy") == (2, 0, False)


def test_all_cores_make_what_one_then_measures(here):
    found = plan.Plan(1, 0, 0, {"dense": plan.Part(0, 1, 60.0), "measure": plan.Part(0, 1, 10.0)})
    assert (found.seconds, found.seconds_on(1), found.seconds_on(4)) == (70, 70, 25)


def test_the_cores_are_those_that_this_process_may_use(capsys, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    plan.show(plan.Plan(1, 0, 0, {"dense": plan.Part(0, 1, 60.0), "measure": plan.Part(0, 1, 10.0)}))
    assert "if all 3 cores make" in " ".join(capsys.readouterr().out.split())


def test_models_that_fit_themselves_take_an_unknown_time(here, capsys):
    assert plan.main(["model=minirocket", "data=italy_power_demand", "debug=smoke"]) == 0
    said = capsys.readouterr().out
    assert "+ 1 ?" in said
    assert "1 job, 0 measured" in said


def test_what_answers_of_such_models_take_is_unknown_and_measuring_takes_its_windows(here, capsys):
    assert plan.main(["model=dtw_1nn", "data=italy_power_demand", "debug=smoke"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert lines["score"].rstrip().endswith("+ 1 ?")
    assert "?" not in lines["measure"]
    assert "measured; at least" in " ".join(said.split())


def test_a_result_that_waits_for_its_store_is_measured(here, monkeypatch):
    cfg = compose(*ITALY)
    about = pipeline.signature(cfg, dataset_of(cfg))

    def fill(valid):
        def into(folder):
            tags = {"tsexp.signature": about, "tsexp.valid": valid}
            return {"store": tracking.address(cfg.tracking), "tags": tags}

        return into

    with spool.parcel(cfg.paths, fill("false")):
        pass
    assert plan.of(ITALY, progress=False).measured == 0
    with spool.parcel(cfg.paths, fill("true")):
        pass
    assert plan.of(ITALY, progress=False).measured == 1
    assert plan.of([*ITALY, "rerun=true"], progress=False).measured == 0
    assert plan.of([*ITALY, "tracking.experiment=other"], progress=False).measured == 0


def test_what_is_fitted_anew_where_it_is_pruned_takes_an_unknown_time_too(here, capsys):
    pruned = ("prune.ratio=0.5", "prune.scope=features")
    assert plan.main(["model=ridge", "data=italy_power_demand", "debug=smoke", *pruned]) == 0
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert all(said[part].rstrip().endswith("+ 1 ?") for part in ("train", "prune"))


def test_jobs_that_nothing_supports_are_counted_apart():
    jobs = checks.asked([*ITALY, "quant.mode=none,static", "runtime=eager"])
    assert [type(j) for j in jobs] == [Config, Unsupported]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prune.ratio=0,1.5"], "prune.ratio=1.5 is out of range"),
        (["prune.ration=0.5"], "did you mean ratio"),
        (["data=plad"], "did you mean plaid"),
        (["experiment=pareto"], "chooses its jobs on the way"),
        (["quant.mode=static"], "supported"),
    ],
)
def test_bad_input_is_told_in_a_line(here, capsys, words, told):
    assert plan.main(words) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert not list(here.iterdir())


def test_it_is_a_subcommand():
    assert command.SUBCOMMANDS["plan"][0] == "tsexp.plan:main"
    with pytest.raises(ConfigError, match="search"):
        checks.asked(["experiment=pareto"])


def test_a_batch_larger_than_the_train_split_is_tried_as_it_is(monkeypatch):
    sizes = []
    build = models.build

    def watched(*how):
        model = build(*how)
        model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
        return model

    monkeypatch.setattr(models, "build", watched)
    cfg = compose(*ITALY, "measure.batch_size=150")
    dataset = dataset_of(cfg)
    assert len(dataset.x_train) < 150
    plan._try(cfg, dataset)
    assert max(sizes) == 150
