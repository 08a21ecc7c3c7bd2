"""The sweeper of ``hydra/sweeper=optuna``: it searches, and keeps its study where several can work on it.

Hydra looks for plugins in this namespace, and imports this file whenever it starts: what is heavy comes
later. Hydra's own Optuna sweeper (1.3) is made for Optuna 2, which cannot keep a study with the SQLAlchemy
that MLflow needs; and it has no constraints.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

ENDED = "ended"
"""User attribute of a trial: how its job ended; a trial without is lost, or still runs."""
QUESTION = "question"
"""User attribute of a study: what is searched, as it is named by."""
PROCESS = "process"
"""User attribute of a trial: who runs it (`tsexp.system.alive`)."""
AGAIN = ("failed", "kept")
"""How a job may end that the next command tries again, and"""
MEASURED = ("finished", "found")
"""with a measurement, which the trial has failed with only if it is invalid."""


class Search(Sweeper):
    """Propose jobs that promise accuracy for little energy, learn from each, until there are enough.

    The study is known by what is searched, how, of which data, by the versions of what makes the values, the
    source of energy and the kind of CPU; the same command goes on with it, beside others that do the same.
    Each trial's proposal follows from its number and the trials before it, not from who asks: a search that
    was interrupted proposes what it would have proposed.

    Parameters
    ----------
    sampler
        One of Optuna's, made anew for each trial with a seed that follows from its number.
    n_trials
        Of the study, in all its commands; those that were lost do not count.
    n_jobs
        Trials at a time, of this command.
    storage
        For `tsexp.stores.of_studies`.
    study_name
        None: named by what is searched.
    constraints
        For `tsexp.report.constraints`; their violations are what a job returns after its two objectives.
    params
        Overrides, as on the command line.
    """

    def __init__(
        self,
        sampler: partial[Any],
        n_trials: int,
        n_jobs: int,
        storage: str,
        study_name: str | None,
        constraints: Sequence[str],
        params: Mapping[str, Any] | None,
    ) -> None:
        self.sampler, self.n_trials, self.n_jobs = sampler, n_trials, n_jobs
        self.storage, self.study_name = storage, study_name
        self.constraints, self.params = list(constraints), dict(params or {})
        self.number = 0
        """Of the next job of this command."""
        self.launched: set[int] = set()
        """Numbers of the trials whose jobs this command has launched."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.folder = Path(config.hydra.sweep.dir)

    def sweep(self, arguments: list[str]) -> None:
        """Search: called by Hydra with the overrides of the command line, after `sweeps.checks` passed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader  # it knows what glob finds
        parser = OverridesParser.create(config_loader=loader)
        every = [f"{key}={value}" for key, value in self.params.items()] + arguments
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(every)}
        self.space = {key: _distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        self.fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
        rerun = overrides.get("rerun")
        self.again = rerun is not None and str(rerun.value()).lower() in ("true", "1", "yes", "on")
        study = self._study()
        self._take_up(study, (None, *AGAIN))
        self._show(study)  # what was measured before is found: this command ends with the table of all
        while (left := self._left(study)) > 0:
            self._round(study, min(left, self.n_jobs))
        self._show(study)  # what others measured meanwhile
        self._write(study)

    def _study(self) -> Study:
        import optuna

        from tsexp import stores
        from tsexp.config import ConfigError

        question = self._name()
        study = optuna.create_study(
            storage=None if self.again else stores.of_studies(self.storage),
            study_name=self.study_name or question,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        if study.trials and study.user_attrs.get(QUESTION, study.study_name) != question:
            raise ConfigError(
                f"the study {study.study_name} is of another search: of other values, settings, constraints, "
                "data or versions, another kind of CPU or source of energy; give another "
                "hydra.sweeper.study_name, or none\nnothing was measured"
            )
        study.set_user_attr(QUESTION, question)
        return study

    def _name(self) -> str:
        """Name what is searched, and what it is learned from."""
        from tsexp.config import NOT_ASKED, digest
        from tsexp.sweeps.jobs import SWEEP
        from tsexp.system import cpu

        about = json.loads((self.folder / SWEEP).read_text())
        fixed = sorted(line for line in self.fixed if not line.lstrip("+").startswith(NOT_ASKED))
        how = {k: v for k, v in self.sampler.keywords.items() if k != "constant_liar"}
        asked = [
            *(f"{key}: {value!r}" for key, value in sorted(self.space.items())),
            *fixed,
            f"{self.sampler.func.__name__} {sorted(how.items())}",
            *self.constraints,
            about["search"],
            about["question"],
            cpu.facts(),
        ]
        return f"tsexp-{digest(asked)[:16]}"

    def _left(self, study: Study) -> int:
        """Count the trials still to be made, those of commands that have died meanwhile among them."""
        if self.n_trials <= len(_counted(study)):
            self._take_up(study, (None,))
        return self.n_trials - len(_counted(study))

    def _take_up(self, study: Study, ends: Sequence[str | None]) -> None:
        """Have trials done again that died with their command, or ended so; None: nobody knows how."""
        from optuna.trial import TrialState

        from tsexp.system import alive

        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and alive.surely_dead(trial.user_attrs.get(PROCESS, {})):
                study.tell(trial.number, state=TrialState.FAIL)
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            lost = trial.state == TrialState.FAIL and trial.user_attrs.get(ENDED) in ends
            # Asked anew: what was proposed, and failed, several times is enqueued once.
            if lost and trial.params and not _superseded(trial, study.get_trials(deepcopy=False)):
                study.enqueue_trial(trial.params)
        elsewhere = [t for t in trials if t.state == TrialState.RUNNING]
        if elsewhere:
            who = sorted({alive.told(t.user_attrs.get(PROCESS, {})) for t in elsewhere})
            print(f"tsexp: {len(elsewhere)} trial(s) of this search are run by {', '.join(who)}")

    def _show(self, study: Study) -> None:
        """Launch what other commands have measured: it is found in the store, and is in this one's table.

        What was invalid is measured again; if it is valid now, it is asked for anew.
        """
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        done = [t for t in trials if t.number not in self.launched and t.user_attrs.get(ENDED) in MEASURED]
        if done:
            returned = self._launch([self._job(t.params) for t in done])
            self.launched |= {t.number for t in done}
            for trial, values in zip(done, returned, strict=True):
                valid_now = trial.state == TrialState.FAIL and isinstance(values, list)
                if valid_now and not _superseded(trial, study.get_trials(deepcopy=False)):
                    study.enqueue_trial(trial.params)

    def _round(self, study: Study, size: int) -> None:
        """Ask for some trials, launch their jobs, tell the study how they ended."""
        from optuna.trial import TrialState

        from tsexp.sweeps.jobs import read_outcome

        trials: list[Trial] = []
        try:
            for _ in range(size):
                trials.append(study.ask())
                self._propose(study, trials[-1])
            first = self.number
            returned = self._launch([self._job(t.params) for t in trials])
        except BaseException:  # interrupted or terminated: the next command has them done
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
            raise
        for number, (trial, values) in enumerate(zip(trials, returned, strict=True), first):
            outcome = read_outcome(self.folder / str(number))
            ended = outcome.status if outcome else "failed"
            if isinstance(values, Exception):
                ended, values = "failed", None  # it may be measured: the next command finds it
            trial.set_user_attr(ENDED, ended)
            if values is None:
                study.tell(trial, state=TrialState.FAIL)
            else:
                for constraint, violation in zip(self.constraints, values[2:], strict=True):
                    trial.set_constraint(constraint, violation)
                study.tell(trial, values[:2])
        self.launched |= {t.number for t in trials}

    def _propose(self, study: Study, trial: Trial) -> None:
        from tsexp.system import alive

        trial.set_user_attr(PROCESS, alive.me())
        # Of those that are asked again, parameters are fixed; what had none was never proposed.
        before = [
            t
            for t in study.get_trials(deepcopy=False)[: trial.number]
            if "fixed_params" not in t.system_attrs and (t.params or not t.state.is_finished())
        ]
        study.sampler = self.sampler(seed=self.sampler.keywords["seed"] + len(before))
        for key, distribution in self.space.items():
            trial._suggest(key, distribution)

    def _job(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        return *(f"{key}={params[key]}" for key in self.space), *self.fixed

    def _launch(self, jobs: Sequence[tuple[str, ...]]) -> list[list[float] | Exception | None]:
        """Return what each job returned: None of one that failed, or what was raised."""
        from tsexp.config import ConfigError, redact

        assert self.launcher is not None
        returned = self.launcher.launch(jobs, initial_job_idx=self.number)
        self.number += len(jobs)
        values: list[list[float] | Exception | None] = []
        for job in returned:
            try:
                values.append(None if job.return_value is None else [float(v) for v in job.return_value])
            except ConfigError:  # the search itself asks for what cannot be
                raise
            except Exception as error:
                told = f"tsexp: what a job of the search came to is not known: {redact(str(error))}"
                print(f"{told}; the same command asks for it again", file=sys.stderr)
                values.append(error)
        return values

    def _write(self, study: Study) -> None:
        """Write the front, as Hydra's sweepers do."""
        best = []
        for trial in study.best_trials:
            solution = {"params": trial.params, "values": trial.values}
            best += [solution] if solution not in best else []
        OmegaConf.save(
            OmegaConf.create({"name": "optuna", "study": study.study_name, "solutions": best}),
            self.folder / "optimization_results.yaml",
        )


def _distribution(override: Override) -> BaseDistribution:
    """What a key is drawn from: the words of a choice or range, or the numbers of an interval."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not override.is_interval_sweep():
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    interval = override.value()
    assert isinstance(interval, IntervalSweep)
    assert interval.start is not None
    assert interval.end is not None
    log = "log" in interval.tags
    if isinstance(interval.start, int) and isinstance(interval.end, int):
        return IntDistribution(interval.start, interval.end, log=log)
    return FloatDistribution(float(interval.start), float(interval.end), log=log)


def _counted(study: Study) -> list[FrozenTrial]:
    """Return the trials that `n_trials` counts: that ended or run, not those that were lost or done again."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [
        t
        for t in trials
        if t.state in (TrialState.COMPLETE, TrialState.RUNNING)
        or (t.state == TrialState.FAIL and ENDED in t.user_attrs and not _superseded(t, trials))
    ]


def _superseded(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Say whether a failed trial was, or will be, done again.

    Not by one that happens to be the same and fails, too: with these uncounted, a search in a small space
    would not end.
    """
    from optuna.trial import TrialState

    if trial.user_attrs.get(ENDED) not in (None, *AGAIN, *MEASURED):
        return False
    return any(
        t.system_attrs.get("fixed_params") == trial.params
        or (t.state == TrialState.COMPLETE and t.params == trial.params)
        for t in trials
        if t.number > trial.number
    )
