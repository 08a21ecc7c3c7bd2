"""The short way of composing the jobs of a sweep makes what Hydra's own way does, and refuses the same."""

import shutil
import time

import pytest
from hydra import compose as hydras_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from tsexp.config import compose, conf_dir

FIXED = ["hydra.job.name=mine", "tracking.experiment='a b, c'", "measure.require=any"]
GRID = [
    "data=italy_power_demand,plaid",
    "experiment=quick,paper",
    "debug=smoke",
    "prune.ratio=0,0.3",
    "data.length=null,${model.patch}",
    "quant.mode=none,'dynamic'",
]


@pytest.fixture
def loaders(monkeypatch):
    """Hydra's loader, the short one, and what composes the master configuration of a sweep."""
    monkeypatch.setattr(compose, "_bases", {})  # a process has one command, but for those of tests
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        short = compose.loader()
        hydras = ConfigLoaderImpl(short.get_search_path())
        yield (
            hydras,
            short,
            lambda *overrides: hydras.load_configuration("config", list(overrides), RunMode.MULTIRUN),
        )


def same(a, b):
    """Values, types, interpolations and what may be set."""
    assert OmegaConf.to_container(a) == OmegaConf.to_container(b)
    assert OmegaConf.is_struct(a) == OmegaConf.is_struct(b)
    for key in ("data", "model", "prune", "tracking"):
        assert OmegaConf.get_type(a, key) is OmegaConf.get_type(b, key)
    assert OmegaConf.to_container(a.data, resolve=True) == OmegaConf.to_container(b.data, resolve=True)


def outcome_of(loader, master, job):
    """The configuration, or why there is none."""
    try:
        return loader.load_sweep_config(master, job)
    except HydraException as error:
        return type(error), str(error)


def test_every_job_of_a_grid_is_what_hydra_makes_of_it(loaders):
    hydras, short, master_of = loaders
    master = master_of(*FIXED, *GRID)
    overrides = OverridesParser.create().parse_overrides(list(master.hydra.overrides.task))
    ((*jobs,),) = BasicSweeper.split_arguments(overrides, None)
    assert len(jobs) == 32
    for job in map(list, jobs):
        expected = hydras.load_sweep_config(master, job)
        assert short._quick(master, job, hydra=True) is not None
        same(short.load_sweep_config(master, job), expected)
        assert short.values(master, job) == OmegaConf.masked_copy(
            expected, [k for k in expected if k != "hydra"]
        )


@pytest.mark.parametrize(
    "job",
    [
        ["prune.ratio=0.3", "prune.ratio=0.5"],
        ["~data"],
        ["~prune.distill"],
        ["+model.colour=red"],
        ["++prune.ratio=0.5"],
        ["+extra={a: [1, 2]}"],
        ["prune={ratio: 0.7}"],
        ["train.schedule='cosine'", 'tracking.experiment="it\'s"', "paths.cache='a=b,c'"],
        ["paths.cache=${paths.data}/cache", "tracking.experiment=${hydra:job.name}"],
        ["model@prune=t1"],
        ["hydra.job.name=other"],
    ],
    ids=" ".join,
)
def test_unusual_overrides_make_what_hydra_makes_of_them(loaders, job):
    hydras, short, master_of = loaders
    master = master_of("data=acsf1")
    made = [outcome_of(loader, master, job) for loader in (hydras, short)]
    if isinstance(made[0], tuple):
        assert made[0] == made[1]
    else:
        same(*made)


@pytest.mark.parametrize(
    "job",
    [["prune.ration=1"], ["data=nope"], ["prune.ratio=abc"], ["prune.ratio=1,2"], ["prune.ratio="], ["a b"]],
    ids=" ".join,
)
def test_what_hydra_refuses_is_refused_in_its_words(loaders, job):
    hydras, short, master_of = loaders
    master = master_of()
    kind, words = outcome_of(hydras, master, job)
    assert outcome_of(short, master, job) == (kind, words)


def test_jobs_that_differ_in_values_alone_read_no_file_again(loaders, monkeypatch):
    _, short, master_of = loaders
    master = master_of("data=acsf1")
    short.load_sweep_config(master, ["data=acsf1", "seed=1"])
    monkeypatch.setattr(
        ConfigLoaderImpl, "_load_configuration_impl", lambda *_, **__: pytest.fail("it reads the files again")
    )
    assert short.load_sweep_config(master, ["data=acsf1", "seed=2"]).seed == 2
    start = time.process_time()
    for seed in range(100):
        short.load_sweep_config(master, ["data=acsf1", f"seed={seed}"])
    assert time.process_time() - start < 2  # a tenth of what Hydra takes


def test_what_is_made_of_a_copy_leaves_the_next_as_it_was(loaders):
    _, short, master_of = loaders
    master = master_of()
    short.load_sweep_config(master, ["seed=7"]).prune.ratio = 0.9
    assert short.load_sweep_config(master, ["seed=8"]).prune.ratio == 0


@pytest.mark.parametrize(
    "job", [[], ["model=t4", "variant=all_50", "seed=1"], ["seed=2", "seed=3"]], ids=" ".join
)
def test_python_gets_what_hydra_composes(monkeypatch, job):
    monkeypatch.setattr(compose, "_bases", {})
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        expected = hydras_compose("config", job)
    for _ in range(2):  # by the files, then by what was made of them
        same(compose.composed(*job), expected)


def test_a_file_that_has_changed_is_read_again(monkeypatch, tmp_path):
    shutil.copytree(conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(compose, "conf_dir", lambda: tmp_path / "conf")
    assert compose.composed("model=t3").train.lr == 0.001
    file = tmp_path / "conf/train/default.yaml"
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.0625"))
    assert compose.composed("model=t3").train.lr == 0.0625
