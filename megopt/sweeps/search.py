"""Search by Optuna's own ask and tell: each trial is a run of the dataset, the study lies in SQLite and can be resumed.

Trials are asked for in batches, carried out by the launcher of a sweep and told in their order, and the sampler begins
each trial with a seed of its own. So the trials depend on the search alone: not on the launcher, not on which worker
was faster, and not on whether the search was interrupted. Optuna prunes trials of one objective only; here the calls
are short and the objectives several, so nothing is pruned, and what cannot be had is a failed trial.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.sweeps.execution import Execution, OnOutcome, execute
from megopt.sweeps.launchers import Kept, Launcher
from megopt.sweeps.measured import measured
from megopt.sweeps.run import Run, RunStatus
from megopt.sweeps.search_plan import SAMPLERS, Search
from megopt.sweeps.search_space import point_of
from megopt.sweeps.search_study import open_database, open_study, quiet
from megopt.sweeps.store import Store

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial, Trial

OnTold = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        trials: all trials of the study, in order.
        best: numbers of the trials within the limits that no other one dominates.
        num_before: trials of earlier commands.
        is_interrupted: whether Ctrl-C ended it.
        faults: messages of runs that were refused or failed now.
        workers: who carried out the runs now.
        call_s: seconds inside the library call now [s].
    """

    trials: Sequence[FrozenTrial]
    best: Sequence[int]
    num_before: int
    is_interrupted: bool
    faults: Sequence[str]
    workers: Sequence[str]
    call_s: float


def search(
    plan: Search,
    store: Store,
    launcher: Launcher,
    storage: str,
    on_outcome: OnOutcome | None = None,
    on_told: OnTold | None = None,
) -> Found:
    """Return the trials of a study after as many as `plan` asks for; goes on with what the study holds.

    Args:
        plan: what is searched.
        store: the dataset for the records of the trials.
        launcher: where the runs are carried out.
        storage: address of a database in SQLAlchemy's words, such as sqlite:///studies.sqlite3.
        on_outcome: called with the outcome of every run as it comes in.
        on_told: called with the number of finished trials after each batch.

    Raises:
        ConfigError: if Optuna is not installed, or the study is of another search.
    """
    plan.require_points()
    with quiet():
        database = open_database(storage)
        study = open_study(plan, database)
        book = _Book(plan=plan, study=study, database=database, store=store)
        num_before = book.num_finished()
        executions, is_interrupted = book.carry_out(launcher, on_outcome, on_told)
        trials = study.get_trials(deepcopy=False)
        best = [trial.number for trial in study.best_trials] if any(trial.values for trial in trials) else []
    outcomes = [outcome for done in executions for outcome in done.outcomes.values()]
    return Found(
        trials=trials,
        best=best,
        num_before=num_before,
        is_interrupted=is_interrupted,
        faults=[o.message for o in outcomes if o.status in {RunStatus.REFUSED, RunStatus.FAILED}],
        workers=sorted({outcome.worker for outcome in outcomes if outcome.worker}),
        call_s=sum(outcome.call_s for outcome in outcomes),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Book:
    """The study under way."""

    plan: Search
    study: Study
    database: RDBStorage
    store: Store

    def num_finished(self) -> int:
        """Return how many trials were told."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def carry_out(
        self, launcher: Launcher, on_outcome: OnOutcome | None, on_told: OnTold | None
    ) -> tuple[list[Execution], bool]:
        """Carry out batch after batch; return what became of the runs and whether Ctrl-C came."""
        executions: list[Execution] = []
        try:
            with Kept(launcher) as kept:
                while batch := self._next_batch():
                    runs = [self.plan.planner.run_at(point_of(self.plan.space, trial)) for trial in batch]
                    executions.append(execute(runs, self.store, kept, on_outcome))
                    if executions[-1].is_interrupted:
                        return executions, True
                    for trial, run in zip(batch, runs, strict=True):
                        self._tell(trial, run, executions[-1])
                    if on_told is not None:
                        on_told(self.num_finished())
        except KeyboardInterrupt:
            return executions, True
        return executions, False

    def _next_batch(self) -> list[Trial]:
        """Return the trials that an interruption left without values and the rest of their batch, else a new batch."""
        from optuna.trial import Trial, TrialState

        trials = self.study.get_trials(deepcopy=False)
        left = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        first, batch, study_id = (
            len(trials),
            self.plan.batch,
            self.database.get_study_id_from_name(self.plan.planner.name),
        )
        ids = [self.database.get_trial_id_from_study_id_trial_number(study_id, number) for number in left]
        self.study.sampler = self._sampler(first)
        resumed = [Trial(self.study, each) for each in ids]
        if left and first % batch == 0:
            return resumed
        goal = min((first // batch + 1) * batch, self.plan.num_trials)
        return resumed + [self._asked(number) for number in range(first, goal)]

    def _asked(self, number: int) -> Trial:
        """Return a new trial with all its values."""
        self.study.sampler = self._sampler(number)
        trial = self.study.ask()
        point_of(self.plan.space, trial)
        return trial

    def _sampler(self, number: int) -> BaseSampler:
        import optuna

        seed = int(np.random.SeedSequence((self.plan.seed, number)).generate_state(1)[0])
        sampler: BaseSampler = getattr(optuna.samplers, SAMPLERS[self.plan.sampler])(seed=seed)
        return sampler

    def _tell(self, trial: Trial, run: Run, done: Execution) -> None:
        """Tell the study what the run of a trial came to."""
        from optuna.trial import TrialState

        values, message = self._values(run, done)
        trial.set_user_attr("run", run.run_id)
        if message:
            trial.set_user_attr("message", message)
            self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            return
        for name, bound in self.plan.limits.items():
            if name not in trial.constraints:
                trial.set_constraint(name, values[name] - bound)
        self.study.tell(trial.number, [values[name] for name in self.plan.objectives], skip_if_finished=True)

    def _values(self, run: Run, done: Execution) -> tuple[Mapping[str, float], str]:
        """Return the means of a run, or why it has none."""
        outcome = done.outcomes.get(run.run_id)
        if outcome is not None and outcome.status is not RunStatus.DONE:
            return {}, outcome.message
        if outcome is None and (facts := self.store.facts(run))["status"] != RunStatus.DONE:
            return {}, str(facts["message"])
        values = measured(self.store.records(run), [*self.plan.objectives, *self.plan.limits])
        unknown = [name for name, value in values.items() if not math.isfinite(value)]
        return values, f"{unknown[0]} is unknown: not measured, or no request was served" if unknown else ""
