"""Carrying out the runs of a sweep: skip what is done, send the rest out, survive workers that die and Ctrl-C."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from megopt.errors import MegoptError
from megopt.sweeps.launchers import Launcher, for_workers, num_cores
from megopt.sweeps.run import Outcome, Run, RunStatus
from megopt.sweeps.store import Store
from megopt.sweeps.worker import Task, perform

MAX_LOST = 3
"""How often a task may be lost with its worker before its runs count as failed."""
GRACE_S = 30.0
"""How long an interrupted sweep waits for the runs that are under way [s]."""
OnOutcome = Callable[[Outcome], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What became of the runs of a sweep.

    Attributes:
        runs: all runs, in order.
        outcomes: those of the runs that were carried out now, by name.
        num_skipped: runs that were done before [1].
        wall_s: from the first run sent out to the last one back, start of the workers included [s].
        is_interrupted: whether Ctrl-C ended it.
    """

    runs: Sequence[Run]
    outcomes: dict[str, Outcome]
    num_skipped: int
    wall_s: float
    is_interrupted: bool

    def with_status(self, status: RunStatus) -> list[Outcome]:
        """Return the outcomes of one status, in the order of the runs."""
        found = (self.outcomes.get(run.run_id) for run in self.runs)
        return [outcome for outcome in found if outcome is not None and outcome.status is status]


def execute(
    runs: Sequence[Run], store: Store, launcher: Launcher, on_outcome: OnOutcome | None = None, *, redo: bool = False
) -> Execution:
    """Carry out the runs that are not done.

    Args:
        runs: the runs.
        store: the dataset.
        launcher: where.
        on_outcome: called in this process with every outcome as it comes in.
        redo: carry out again what is done.

    Raises:
        ConfigError: if the engine is not installed or cannot be reached.
    """
    done = set() if redo else store.done(list(runs))
    distinct = {run.run_id: run for run in runs if run.run_id not in done}
    store.remove_stale()
    start = time.perf_counter()
    round_ = _Round(on_outcome=on_outcome, outcomes={})
    is_interrupted = round_.carry_out(_tasks(list(distinct.values()), launcher, store), launcher)
    return Execution(
        runs=runs,
        outcomes=round_.outcomes,
        num_skipped=sum(run.run_id in done for run in runs),
        wall_s=time.perf_counter() - start,
        is_interrupted=is_interrupted,
    )


def _tasks(runs: Sequence[Run], launcher: Launcher, store: Store) -> list[Task]:
    size, folder = launcher.runs_per_task, store.folder.resolve()
    return [Task(runs=runs[first : first + size], folder=folder) for first in range(0, len(runs), size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A task to be sent out, and how often it was lost with its worker."""

    task: Task
    num_lost: int = 0


class _PoolBrokeError(BrokenExecutor):
    """Raised to leave the launcher's context after its pool broke, so that it starts another one."""


def _send(executor: Executor, batch: Sequence[_Try], sent: dict[Future[list[Outcome]], _Try]) -> None:
    """Send out tasks into `sent`, as many as the executor takes before it breaks, at least one."""
    for item in batch:
        try:
            sent[executor.submit(perform, item.task)] = item
        except BrokenExecutor:
            if not sent:
                raise
            return


@dataclass(slots=True, kw_only=True)
class _Round:
    """The state of one sweep under way: outcomes so far."""

    on_outcome: OnOutcome | None
    outcomes: dict[str, Outcome]

    def carry_out(self, tasks: Sequence[Task], launcher: Launcher) -> bool:
        """Carry out the tasks, starting the workers again where they died; return whether Ctrl-C came."""
        waiting = deque(_Try(task=task) for task in tasks)
        try:
            while waiting:
                with suppress(_PoolBrokeError), ExitStack() as started:
                    with for_workers():
                        executor = started.enter_context(launcher.start())
                    while waiting:
                        if self._drain(executor, waiting, launcher.num_workers or num_cores()):
                            raise _PoolBrokeError
        except KeyboardInterrupt:
            return True
        return False

    def _drain(self, executor: Executor, waiting: deque[_Try], num_workers: int) -> bool:
        """Send out tasks and take in their outcomes; put back those that were lost; return whether the pool broke.

        What was lost twice goes out alone, so that a task that kills its worker takes no other one with it.
        """
        batch = [waiting.popleft()]
        while waiting and batch[0].num_lost < 2 and waiting[0].num_lost < 2:
            batch.append(waiting.popleft())
        sent: dict[Future[list[Outcome]], _Try] = {}
        lost: dict[Future[list[Outcome]], Exception] = {}
        try:
            with for_workers():
                _send(executor, batch, sent)
            for future in as_completed(sent):
                error = self._take(future)
                if error is not None:
                    lost[future] = error
        except KeyboardInterrupt:
            self._let_end(list(sent))
            raise
        unsent = batch[len(sent) :]
        again = self._again([(item, lost[future]) for future, item in sent.items() if future in lost], num_workers)
        waiting.extend([*unsent, *again])
        return bool(unsent) or any(isinstance(error, BrokenExecutor) for error in lost.values())

    def _take(self, future: Future[list[Outcome]]) -> Exception | None:
        """Take in the outcomes of a task; return the error of its worker if it has one."""
        try:
            outcomes = future.result()
        except MegoptError:
            raise
        except Exception as error:
            return error
        for outcome in outcomes:
            self._note(outcome)
        return None

    def _note(self, outcome: Outcome) -> None:
        if outcome.run_id not in self.outcomes:
            self.outcomes[outcome.run_id] = outcome
            if self.on_outcome is not None:
                self.on_outcome(outcome)

    def _let_end(self, futures: Sequence[Future[list[Outcome]]]) -> None:
        """Call off what has not begun, and take in what ends within the grace."""
        finished, _ = wait([future for future in futures if not future.cancel()], timeout=GRACE_S)
        for future in finished:
            self._take(future)

    def _again(self, lost: Sequence[tuple[_Try, Exception]], num_workers: int) -> list[_Try]:
        """Return the lost tasks, suspects last; those that were lost too often have failed.

        A pool that breaks loses every task, and does not say which one broke it: it was among the first not back.
        """
        innocent: list[_Try] = []
        suspects: list[_Try] = []
        for item, error in lost:
            if isinstance(error, BrokenExecutor) and len(suspects) > num_workers:
                innocent.append(item)
            elif item.num_lost + 1 < MAX_LOST:
                suspects.append(_Try(task=item.task, num_lost=item.num_lost + 1))
            else:
                self._fail(item.task, error)
        return innocent + suspects

    def _fail(self, task: Task, error: Exception) -> None:
        text = " ".join(str(error).split()) or type(error).__name__
        message = f"its worker died {MAX_LOST} times: {text}"
        for run in task.runs:
            self._note(Outcome(run_id=run.run_id, status=RunStatus.FAILED, message=message))
