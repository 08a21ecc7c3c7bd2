"""A search and its study: resumed, shared, kept to constraints; jobs are made up, Optuna is real."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hydra_plugins.tsexp_search import Search
from tsexp.config import ConfigError, conf_dir
from tsexp.stores import of_studies
from tsexp.sweeps import jobs
from tsexp.system import alive
from tsexp.system.files import write_json

SPACE = {"prune.ratio": "0,0.3,0.5,0.7", "prune.method": "l1,l2,taylor", "train.lr": "interval(0.1,1.0)"}

HYDRA = SimpleNamespace(
    config_loader=SimpleNamespace(get_group_options=lambda group, **_: ["t1", "t2", "fcn"])
)


class Launcher:
    """Answers each job from its overrides."""

    def __init__(self, folder, dies_at=None, status=None, unread=None, invalid=None, refused=None):
        self.refused = refused
        self.folder, self.dies_at, self.status = folder, dies_at, status or (lambda values: "finished")
        self.unread, self.invalid = unread, invalid
        self.seen = []

    def launch(self, batch, initial_job_idx):
        assert initial_job_idx == len(self.seen)
        returned = []
        for number, overrides in enumerate(batch, initial_job_idx):
            self.seen.append(tuple(overrides))
            if len(self.seen) - 1 == self.dies_at:
                raise KeyboardInterrupt
            values = dict(o.split("=") for o in overrides)
            status = self.status(values)
            (self.folder / str(number)).mkdir(parents=True)
            write_json(
                self.folder / str(number) / jobs.OUTCOME,
                {"name": "job", "status": status, "run_id": "x", "error": None},
            )
            ratio = float(values["prune.ratio"])
            accuracy = 0.9 - 0.2 * ratio - 0.01 * len(values["prune.method"])
            returned.append((accuracy, 2 - ratio, 20 * ratio - 8) if status == "finished" else None)
            if number == self.invalid:
                returned[-1] = None
            if self.refused:
                returned[-1] = ConfigError(self.refused)
            if number == self.unread:
                returned[-1] = ConnectionError("the store began anew")
        return [Job(r) for r in returned]


class Job:
    """What Hydra hands out of a job, which raises what was raised in it."""

    def __init__(self, value):
        self.value = value

    @property
    def return_value(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def search(tmp_path):
    """Do a search: search("one", n_trials=8) → what was launched, and the study."""

    def do(
        command,
        *arguments,
        n_trials=8,
        n_jobs=1,
        seed=0,
        storage="studies/optuna.log",
        data="data",
        preset=None,
        study_name=None,
        **launcher,
    ):
        folder = tmp_path / command
        folder.mkdir()
        write_json(folder / jobs.SWEEP, {"search": "zeus:rapl", "question": data})
        sampler = instantiate(preset) or partial(
            optuna.samplers.TPESampler, seed=seed, n_startup_trials=4, constant_liar=True
        )
        where = storage if "://" in storage else str(tmp_path / storage)
        it = Search(sampler, n_trials, n_jobs, where, study_name, ["val/accuracy_drop_pt<=2"], SPACE)
        it.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
        it.folder, it.launcher, it.hydra_context = folder, Launcher(folder, **launcher), HYDRA
        try:
            it.sweep(["data=acsf1", *arguments])
        except KeyboardInterrupt:
            it.interrupted = True
        names = [s.study_name for s in of_studies(where).get_all_studies()]
        study = optuna.load_study(study_name=names[0], storage=of_studies(where)) if len(names) == 1 else None
        return it.launcher.seen, study, folder

    return do


@pytest.mark.parametrize(
    "preset", sorted((conf_dir() / "hydra/sweeper/sampler").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_sampler_that_is_shipped_proposes(search, preset):
    seen, study, _ = search("one", n_trials=3, preset=OmegaConf.load(preset))
    assert len(seen) == len(study.trials) == 3


def test_the_same_command_goes_on_as_if_it_had_not_stopped(search):
    whole, _, _ = search("whole", n_trials=10, storage="other/optuna.log")
    first, _, _ = search("first", n_trials=4)
    assert first == whole[:4]
    then, study, folder = search("then", n_trials=10)
    assert then == whole  # what was measured is launched again, to be found; the rest is new
    assert len(study.trials) == 10
    assert {o for job in whole for o in job if o.startswith("data")} == {"data=acsf1"}
    solutions = OmegaConf.load(folder / "optimization_results.yaml").solutions
    best = {(t.params["prune.ratio"], t.params["prune.method"]) for t in study.best_trials}
    assert {(s.params["prune.ratio"], s.params["prune.method"]) for s in solutions} == best


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_interruption_changes_nothing_of_what_is_proposed(search, n_jobs):
    whole, _, _ = search("whole", n_trials=10, n_jobs=n_jobs, storage="other/optuna.log")
    seen, _, _ = search("first", n_trials=10, n_jobs=n_jobs, dies_at=2)
    assert seen[:2] == whole[:2]
    then, study, _ = search("second", n_trials=10, n_jobs=n_jobs)
    assert then == whole
    assert len(study.trials) == 10 + n_jobs


def test_a_study_of_another_search_is_refused_by_its_name(search):
    first, _, _ = search("first", n_trials=2, study_name="mine")
    again, study, _ = search("again", n_trials=2, study_name="mine")
    assert again == first
    with pytest.raises(ConfigError, match="the study mine is of another search"):
        search("other", "train.lr=0.5", n_trials=2, study_name="mine")
    with pytest.raises(ConfigError, match="nothing was measured"):
        search("data", n_trials=2, data="other data", study_name="mine")
    assert len(study.trials) == 2


def test_a_constraint_that_nothing_has_a_metric_for_ends_the_search(search):
    with pytest.raises(ConfigError, match="no such metric"):
        search("one", n_trials=4, refused="no such metric")


def test_a_pattern_stands_for_the_options_that_hydra_finds(search):
    seen, _, _ = search("one", "model=glob(t*)", n_trials=8)
    assert {o for job in seen for o in job if o.startswith("model")} == {"model=t1", "model=t2"}


def test_what_was_interrupted_or_failed_is_done_again_once(search):
    seen, study, _ = search("first", n_trials=6, dies_at=2)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    then, study, _ = search(
        "second", n_trials=6, status=lambda v: "failed" if v["prune.method"] == "l2" else "finished"
    )
    assert then[:3] == seen
    failed = [t.params for t in study.trials if t.user_attrs.get("ended") == "failed"]
    again, study, _ = search("third", n_trials=6)
    assert len(study.trials) == 7 + len(failed)
    assert [t.params for t in study.trials[7:]] == failed
    assert sum(t.state.name == "COMPLETE" for t in study.trials) == 6
    assert len(again) == 6
    once_more, study, _ = search("fourth", n_trials=6)
    assert len(study.trials) == 7 + len(failed)
    assert sorted(once_more) == sorted(again)


def test_what_was_measured_but_not_read_is_asked_again(search, capsys):
    seen, study, _ = search("first", n_trials=2, unread=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL"]
    assert "is not known: the store began anew; the same command asks for it again" in capsys.readouterr().err
    again, study, _ = search("second", n_trials=2)
    assert again == seen
    assert sum(t.state.name == "COMPLETE" for t in study.trials) == 2


def test_what_was_invalid_and_is_not_now_is_asked_anew_once(search):
    seen, study, _ = search("first", n_trials=3, invalid=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    still, study, _ = search("second", n_trials=3, invalid=1)  # is counted, and not asked for
    assert still == seen
    assert len(study.trials) == 3
    again, study, _ = search("third", n_trials=3)
    assert again == [*seen, seen[1]]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[3].params == study.trials[1].params
    once_more, study, _ = search("fourth", n_trials=3)
    assert len(study.trials) == 4
    assert sorted(once_more) == sorted(again)


@pytest.mark.parametrize("works", ["none", "0.5"])
def test_a_search_in_a_small_space_ends_although_jobs_fail(search, works):
    small = ["prune.ratio=0,0.5", "prune.method=l1", "train.lr=0.1"]
    how = {"status": lambda values: "finished" if values["prune.ratio"] == works else "failed"}
    seen, study, _ = search("first", *small, n_trials=6, dies_at=40, **how)
    assert len(seen) == len(study.trials) == 6
    failed = {t.params["prune.ratio"] for t in study.trials if t.state.name == "FAIL"}
    again, study, _ = search("second", *small, n_trials=6, dies_at=40, **how)
    assert len(again) < 40
    enqueued = [p["prune.ratio"] for t in study.trials if (p := t.system_attrs.get("fixed_params"))]
    assert sorted(enqueued) == sorted(failed)  # each once


def test_what_nothing_supports_is_not_tried_again(search):
    _, study, _ = search("first", n_trials=4, status=lambda values: "skipped")
    assert len(study.trials) == 4
    seen, study, folder = search("second", n_trials=4)
    assert seen == []
    assert len(study.trials) == 4
    assert OmegaConf.load(folder / "optimization_results.yaml").solutions == []


def test_trials_of_a_dead_command_are_done_again_those_of_a_living_one_are_not(search, capsys):
    search("first", n_trials=2)
    _, study, _ = search("second", n_trials=2)
    me = alive.me()
    others = {"0": me, "0.3": {**me, "started": "0"}, "0.5": {**me, "host": "elsewhere"}}
    for ratio, who in others.items():
        study.enqueue_trial({"prune.ratio": ratio})
        trial = study.ask()
        trial.set_user_attr("process", who)
        trial.suggest_categorical("prune.ratio", ["0", "0.3", "0.5", "0.7"])
    seen, study, _ = search("third", n_trials=5)
    told = capsys.readouterr().out
    assert "2 trial(s) of this search are run by process" in told
    assert "elsewhere" in told
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "RUNNING", "FAIL", "RUNNING", "COMPLETE"]
    assert study.trials[5].params["prune.ratio"] == study.trials[3].params["prune.ratio"]
    assert len(seen) == 3


def test_a_trial_whose_command_dies_meanwhile_is_done_again(search, monkeypatch):
    _, study, _ = search("first", n_trials=2)
    study.enqueue_trial({"prune.ratio": "0.3"})
    other = study.ask()
    other.set_user_attr("process", alive.me())
    other.suggest_categorical("prune.ratio", ["0", "0.3", "0.5", "0.7"])
    dead = iter([False, True])  # when the second one begins, and when it has nothing else to do
    monkeypatch.setattr(alive, "surely_dead", lambda who: next(dead))
    seen, study, _ = search("second", n_trials=4)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[4].params["prune.ratio"] == "0.3"
    assert len(seen) == 4


def test_constraints_are_learned_from_and_bound_the_front(search):
    _, study, _ = search("first", n_trials=24)
    beyond = [t for t in study.trials if float(t.params["prune.ratio"]) > 0.5]
    assert beyond
    assert all(t.constraints == {"val/accuracy_drop_pt<=2": pytest.approx(6)} for t in beyond)
    best = {t.params["prune.ratio"] for t in study.best_trials}
    assert best
    assert "0.7" not in best  # which needs the least energy
    later = [float(t.params["prune.ratio"]) for t in study.trials[12:]]
    assert sum(r > 0.5 for r in later) < len(later) / 4  # at random: a fourth


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_several_at_a_time_propose_different_trials(search, tmp_path, kind):
    storage = "a/b.log" if kind == "journal" else f"sqlite:///{tmp_path}/studies.db"
    seen, study, _ = search("first", n_trials=6, n_jobs=4, storage=storage)
    assert len(set(seen)) == len(seen) == len(study.trials) == 6


def test_two_commands_share_one_search(tmp_path):
    """Processes side by side, one file: n_trials in all, and both end with the table of all."""
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_search as t
from functools import partial
import optuna
from hydra.utils import instantiate
from omegaconf import OmegaConf
folder = Path(sys.argv[2])
class Slow(t.Launcher):
    def launch(self, batch, initial_job_idx):
        time.sleep(0.3)
        return super().launch(batch, initial_job_idx)
sampler = partial(optuna.samplers.TPESampler, seed=0, n_startup_trials=4, constant_liar=True)
it = t.Search(sampler, 10, 1, str(folder.parent / "optuna.log"), None, ["val/accuracy_drop_pt<=2"], t.SPACE)
it.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
it.folder, it.launcher, it.hydra_context = folder, Slow(folder), t.HYDRA
it.sweep(["data=acsf1"])
print(len(it.launcher.seen))
"""
    running = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / jobs.SWEEP, {"search": "zeus:rapl", "question": "data"})
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / name)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    shown = [int(p.communicate()[0].split()[-1]) for p in running]
    assert [p.returncode for p in running] == [0, 0]
    storage = of_studies(str(tmp_path / "optuna.log"))
    (summary,) = storage.get_all_studies()
    trials = optuna.load_study(study_name=summary.study_name, storage=storage).trials
    assert 10 <= len(trials) <= 11  # both may take the last
    who = {json.dumps(t.user_attrs["process"]) for t in trials}
    assert len(who) == 2
    assert max(shown) == len(trials)


def test_another_question_is_another_study(search, tmp_path):
    search("one", n_trials=1)
    more = [(["seed=1"], {}), (["prune.ratio=0,0.1"], {}), ([], {"seed": 1}), (["train.progress=false"], {})]
    for number, (arguments, changes) in enumerate([*more, ([], {"data": "other series"})]):
        search(f"more{number}", *arguments, n_trials=1, **changes)
    names = {s.study_name for s in of_studies(str(tmp_path / "studies/optuna.log")).get_all_studies()}
    assert len(names) == 5  # where a job shows its progress is no part of the question


def test_measuring_again_begins_anew_and_leaves_the_study_alone(search):
    before, _, _ = search("one", n_trials=3)
    seen, _, _ = search("again", "rerun=true", n_trials=3)
    assert len(seen) == 3
    after, study, _ = search("two", n_trials=3)
    assert (len(study.trials), after) == (3, before)


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("postgresql://me:hunter2@127.0.0.1/studies", "has a password in it.*PGPASSWORD"),
        ("nosuch://x", "cannot be opened"),
        ("sqlite:////proc/nowhere/at/all.db", "cannot be opened"),
        ("/dev/null/optuna.log", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_in_a_line(storage, told):
    with pytest.raises(ConfigError, match=told) as error:
        of_studies(storage)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)


def test_hydra_imports_the_plugin_without_optuna():
    heavy = "assert not {'optuna', 'torch', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"import hydra_plugins.tsexp_search, sys; {heavy}"], check=True)
    assert Search.__module__ == "hydra_plugins.tsexp_search"  # Hydra takes plugins from nowhere else
