"""Where the runs of a sweep are carried out: one interface over the executors of several engines.

A launcher starts an executor, or attaches to one, and gives it back: `submit(function, argument)` returns a future. On
this machine that is a pool of warm processes; `megopt.sweeps.clusters` holds Ray, Dask and Slurm.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Protocol

from megopt.errors import ConfigError, MegoptError
from megopt.ranges import require_whole

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that keep numerical libraries in the workers to one thread each, where the user has not set them."""


class Launcher(Protocol):
    """Starts executors.

    `num_workers` may be None, which leaves it to the engine.
    """

    @property
    def num_workers(self) -> int | None:
        """Runs carried out at the same time."""
        ...

    @property
    def runs_per_task(self) -> int:
        """Runs sent to a worker at once."""
        ...

    def start(self) -> AbstractContextManager[Executor]:
        """Start the executor; leaving the context ends what was started, and nothing else."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes(ABC):
    """Processes on this machine that live as long as the sweep.

    Attributes:
        num_workers: processes; None takes one per core that this process may use.
        runs_per_task: runs sent to a process at once.
    """

    num_workers: int | None = None
    runs_per_task: int = 1

    def __post_init__(self) -> None:
        require_workers(type(self).__name__.lower(), self.num_workers, self.runs_per_task)

    @contextmanager
    def start(self) -> Iterator[Executor]:
        """Start the processes when they are first needed."""
        with self.pool(self.num_workers or num_cores()) as executor:
            yield executor

    @abstractmethod
    def pool(self, num_workers: int) -> Executor:
        """Return a pool of so many processes."""


class Local(Processes):
    """The standard library's processes."""

    __slots__ = ()

    def pool(self, num_workers: int) -> Executor:
        """Return a pool of so many processes."""
        return ProcessPoolExecutor(num_workers, mp_context=get_context("spawn"))  # a fork would copy held locks


class Joblib(Processes):
    """joblib's own processes (loky), which pickle what the standard pool cannot, such as functions of a notebook."""

    __slots__ = ()

    def pool(self, num_workers: int) -> Executor:
        """Return a pool of so many processes."""
        with require_engine("joblib", "joblib"):
            from joblib.externals.loky import ProcessPoolExecutor as LokyExecutor
        executor: Executor = LokyExecutor(num_workers)
        return executor


class Kept:
    """A launcher whose executor stays from one execution to the next; one that broke is replaced.

    Used in a `with` statement, which ends what was started.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._started = ExitStack()
        self._executor: Executor | None = None

    @property
    def num_workers(self) -> int | None:
        """Runs carried out at the same time."""
        return self._launcher.num_workers

    @property
    def runs_per_task(self) -> int:
        """Runs sent to a worker at once."""
        return self._launcher.runs_per_task

    @contextmanager
    def start(self) -> Iterator[Executor]:
        """Start the executor the first time, and again after it broke."""
        if self._executor is None:
            self._executor = self._started.enter_context(self._launcher.start())
        try:
            yield self._executor
        except BrokenExecutor:
            self._end()
            raise

    def _end(self) -> None:
        self._executor = None
        self._started.close()

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *details: object) -> None:
        self._end()


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_workers(where: str, num_workers: int | None, runs_per_task: int) -> None:
    """Raise unless both are whole numbers from 1; `num_workers` may be None."""
    if num_workers is not None:
        require_whole(f"launcher {where}", 1, num_workers=num_workers)
    require_whole(f"launcher {where}", 1, runs_per_task=runs_per_task)


@contextmanager
def require_engine(launcher: str, package: str) -> Iterator[None]:
    """Turn a missing package into one line that says how to install it.

    Raises:
        ConfigError: in place of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        if isinstance(error, MegoptError) or (error.name or "").split(".")[0] != package:
            raise
        message = f"launcher={launcher} needs {package}, which is not installed; pip install 'megopt[cluster]'"
        raise ConfigError(message) from None


@contextmanager
def for_workers() -> Iterator[None]:
    """Start workers inside: they hold back Ctrl-C, which the terminal sends to them as well, and use one thread each.

    The sweep alone answers to Ctrl-C: it lets what runs come to its end. Processes inherit the signals that are held
    back and the environment of the thread that starts them.
    """
    is_set = {name: os.environ.get(name) for name in THREADS}
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    os.environ.update({name: value or "1" for name, value in is_set.items()})
    try:
        yield
    finally:
        for name, value in is_set.items():
            if value is None:
                os.environ.pop(name, None)
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
