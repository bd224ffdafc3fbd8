"""How benchmarks of solvers time a piece of work, and the memory of the process while it runs."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

_Answer = TypeVar("_Answer")
_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_forgotten_mb = [0.0]
"""The largest peak that the system was made to forget [MB]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed(Generic[_Answer]):
    """What a piece of work took.

    Attributes:
        answer: what the last run returned.
        wall_s: shortest wall time of a run [s].
        cpu_s: shortest processor time of a run [s].
    """

    answer: _Answer
    wall_s: float
    cpu_s: float


def best_of(work: Callable[[], _Answer], repeats: int, num_warm: int = 0) -> Timed[_Answer]:
    """Return the shortest times over `repeats` runs, at least 1, after `num_warm` runs that are not counted."""
    for _ in range(num_warm):
        work()
    wall, cpu = [], []
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        answer = work()
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
    return Timed(answer=answer, wall_s=min(wall), cpu_s=min(cpu))


def with_peak_memory(work: Callable[[], _Answer]) -> tuple[_Answer, float]:
    """Return the answer of `work` and the largest resident size of the process while it ran, imports included [MB].

    Where the system cannot forget an earlier peak, it is the largest size so far.
    """
    can_forget = _forget_peak()
    answer = work()
    return answer, _peak_since_mb() if can_forget else peak_memory_mb()


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far [MB]."""
    return max(_forgotten_mb[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)


def _forget_peak() -> bool:
    """Set the recorded peak back to the present size; return whether the system does that."""
    largest_mb = peak_memory_mb()
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    _forgotten_mb[0] = largest_mb
    return _STATUS.is_file()


def _peak_since_mb() -> float:
    """Return the recorded peak of the resident size [MB]."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024.0
