"""Ray, Dask and Slurm through their own executors: attach to what runs already, or start one on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from megopt.errors import ConfigError
from megopt.ranges import require_number, require_whole
from megopt.sweeps.launchers import num_cores, require_engine, require_workers

CLUSTERS = ("slurm", "local")
"""Kinds of clusters that submitit sends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dask:
    """Dask: a scheduler that runs already, or processes on this machine.

    Attributes:
        address: of the scheduler, such as tcp://10.0.0.5:8786; None starts workers on this machine.
        num_workers: processes to start; None takes one per core. Read only without an address.
        runs_per_task: runs sent to a worker at once.
        timeout_s: how long to wait for the scheduler [s].
    """

    address: str | None = None
    num_workers: int | None = None
    runs_per_task: int = 1
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        require_workers("dask", self.num_workers, self.runs_per_task)
        require_number("launcher dask", 0.1, 1e6, timeout_s=self.timeout_s)

    @contextmanager
    def start(self) -> Iterator[Executor]:
        """Attach to the scheduler, or start one; tasks of a worker that dies go to another one."""
        with require_engine("dask", "distributed"):
            distributed: Any = import_module("distributed")  # its classes carry no types
        if self.address is not None:
            try:
                client = distributed.Client(self.address, timeout=self.timeout_s)
            except (OSError, ValueError) as error:
                raise ConfigError(_unreachable("dask", self.address, error)) from None
            with client:
                yield client.get_executor(pure=False)
            return
        workers = self.num_workers or num_cores()
        with (
            distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            distributed.Client(cluster, timeout=self.timeout_s) as client,
        ):
            yield client.get_executor(pure=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    """Ray: a cluster that runs already, or one on this machine.

    Attributes:
        address: of the cluster's head, such as 10.0.0.5:6379, or auto for the one of this machine; None starts one.
        num_workers: cores of the cluster to start; None takes one per core. Read only without an address.
        runs_per_task: runs sent to a worker at once.
        num_cpus: cores that a task asks for [1].
        max_retries: how often Ray repeats a task whose worker died [1].
    """

    address: str | None = None
    num_workers: int | None = None
    runs_per_task: int = 1
    num_cpus: float = 1.0
    max_retries: int = 3

    def __post_init__(self) -> None:
        require_workers("ray", self.num_workers, self.runs_per_task)
        require_number("launcher ray", 0.0, 1e6, num_cpus=self.num_cpus)
        require_whole("launcher ray", 0, max_retries=self.max_retries)

    @contextmanager
    def start(self) -> Iterator[Executor]:
        """Attach to the cluster, or start one; Ray repeats the tasks of a worker that dies."""
        if self.address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # else Ray writes a token into the home folder
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
        with require_engine("ray", "ray"):
            import ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if self.address is None:  # "local", not None: a head that was killed leaves an address behind
                workers = self.num_workers or num_cores()
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
            else:
                ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(_unreachable("ray", self.address or "local", error)) from None
        try:
            yield _RayExecutor(options={"num_cpus": self.num_cpus, "max_retries": self.max_retries})
        finally:
            ray.shutdown()


@dataclass(frozen=True, slots=True, kw_only=True)
class _RayExecutor(Executor):
    """Ray's remote functions behind the interface of the standard library."""

    options: dict[str, Any]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        import ray

        future: Future[Any] = ray.remote(**self.options)(fn).remote(*args, **kwargs).future()
        return future


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitit:
    """Jobs of a Slurm cluster, or processes of this machine that stand in for them, through submitit.

    Attributes:
        cluster: slurm or local.
        num_workers: jobs in the queue at the same time.
        runs_per_task: runs of one job; a job takes seconds to start, so let it do many.
        folder: where submitit keeps its scripts and logs; every node must see it.
        timeout_min: longest time of a job [min].
        cpus_per_task: cores of a job [1].
        mem_gb: memory of a job [GB]; None takes the partition's.
        partition: partition of the cluster; None takes the default one.
        setup: lines of shell at the start of a job, such as `module load python`.
    """

    cluster: str = "slurm"
    num_workers: int = 8
    runs_per_task: int = 25
    folder: str = "outputs/slurm"
    timeout_min: int = 60
    cpus_per_task: int = 1
    mem_gb: float | None = None
    partition: str | None = None
    setup: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        require_workers("submitit", self.num_workers, self.runs_per_task)
        require_whole("launcher submitit", 1, timeout_min=self.timeout_min, cpus_per_task=self.cpus_per_task)
        require_number("launcher submitit", 0.1, 1e6, **({} if self.mem_gb is None else {"mem_gb": self.mem_gb}))
        if self.cluster not in CLUSTERS:
            message = f"launcher.cluster = {self.cluster!r}; expected one of {', '.join(CLUSTERS)}"
            raise ConfigError(message)

    @contextmanager
    def start(self) -> Iterator[Executor]:
        """Send one job per task; jobs that have not ended when the context is left are cancelled."""
        with require_engine("slurm", "submitit"):
            import submitit
        try:
            jobs = submitit.AutoExecutor(folder=Path(self.folder).resolve() / "%j", cluster=self.cluster)
        except RuntimeError as error:
            message = f"launcher=slurm: {error}; expected `srun` on this machine; try launcher=submitit_local"
            raise ConfigError(message) from None
        jobs.update_parameters(timeout_min=self.timeout_min, cpus_per_task=self.cpus_per_task, name="megopt")
        if self.cluster == "slurm":
            jobs.update_parameters(slurm_setup=list(self.setup))
            if self.partition is not None:
                jobs.update_parameters(slurm_partition=self.partition)
        if self.mem_gb is not None:
            jobs.update_parameters(mem_gb=self.mem_gb)
        with _JobExecutor(jobs, self.num_workers) as executor:
            yield executor


class _JobExecutor(ThreadPoolExecutor):
    """One thread per job in the queue: it sends the job and waits for its result."""

    def __init__(self, jobs: Any, num_workers: int) -> None:
        super().__init__(num_workers)
        self._jobs = jobs
        self._sent: list[Any] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return super().submit(self._send_and_wait, fn, *args, **kwargs)

    def _send_and_wait(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        job = self._jobs.submit(fn, *args, **kwargs)
        self._sent.append(job)
        return job.result()

    def __exit__(self, *details: object) -> None:
        for job in self._sent:
            if not job.done():
                job.cancel()
        self.shutdown(wait=True, cancel_futures=True)


def _unreachable(launcher: str, address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"launcher={launcher}: address {address} does not answer ({text}); leave launcher.address=null to start one"
