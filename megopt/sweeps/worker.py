"""What a worker does: call the library with a run's configuration, and write the records."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megopt.errors import MegoptError, NotOfferedError
from megopt.sweeps.run import Outcome, Run, RunStatus, function_at

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is sent to a worker at once.

    Attributes:
        runs: the runs, one after another.
        folder: the dataset, an absolute path that the worker can write to.
    """

    runs: Sequence[Run]
    folder: Path


def perform(task: Task) -> list[Outcome]:
    """Carry out the runs of a task; what goes wrong with one is its outcome and does not stop the others."""
    return [_perform(run, task.folder) for run in task.runs]


def _perform(run: Run, folder: Path) -> Outcome:
    from megopt.sweeps.store import Store

    start = time.perf_counter()
    records, status, message = _called(run)
    call_s = time.perf_counter() - start
    if status in {RunStatus.DONE, RunStatus.LEFT_OUT}:
        try:
            Store(folder=folder).write(run, records, status=status, message=message, call_s=call_s)
        except (MegoptError, OSError) as error:
            status, message = RunStatus.FAILED, _line(error)
    return Outcome(
        run_id=run.run_id,
        status=status,
        message=message,
        call_s=call_s,
        num_records=len(records) if records is not None and status is RunStatus.DONE else 0,
        worker=f"{platform.node()}:{os.getpid()}",
    )


def _called(run: Run) -> tuple[pd.DataFrame | None, RunStatus, str]:
    """Return the records of a run, or None with the reason."""
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.create(dict(run.config))
        OmegaConf.set_struct(config, True)
        return function_at(run.call)(config), RunStatus.DONE, ""
    except Exception as error:
        cause = _ours(error)
        if isinstance(cause, NotOfferedError):
            return None, RunStatus.LEFT_OUT, _line(cause)
        if cause is not None:
            return None, RunStatus.REFUSED, _line(cause)
        where = traceback.extract_tb(error.__traceback__)[-1]
        return None, RunStatus.FAILED, f"{_line(error)} ({Path(where.filename).name}:{where.lineno})"


def _ours(error: BaseException) -> MegoptError | None:
    """Return the error of ours that `error` is, or that caused it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, MegoptError):
        cause = cause.__cause__
    return cause


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, MegoptError) else f"{type(error).__name__}: {text}"
