"""How the environments are timed: episodes in turns, the floor in plain numpy, and the growth of memory.

Everything runs on one core. Environment and floor take turns, one episode each. For each step of the episode the
shortest time over the repeats counts, and these are summed: so the step that ends all episodes at once and begins new
ones is in, and what other programs on the machine take is mostly out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.envs.dynamics import EnvParams

NUM_DECKS = 4
"""Random action arrays that the steps go through in turn."""

WARM_UP_STEPS = 20_000
"""Steps before the size of the process is first looked at [1]."""


def decks(rng: np.random.Generator, num_rows: int, shape: tuple[int, ...]) -> IntArray:
    """Return random rows of a table for the steps to go through in turn, shape (NUM_DECKS, *shape)."""
    return rng.integers(0, num_rows, (NUM_DECKS, *shape))


def episode_seconds(works: list[Callable[[int], object]], num_steps: int, repeats: int) -> list[float]:
    """Return for each work the sum over an episode's steps of the shortest time over the repeats [s].

    The works take turns, one episode each; a first episode is not counted.

    Args:
        works: what is timed, called with the step's number.
        num_steps: steps of an episode [1].
        repeats: episodes of each work [1].
    """
    least = np.full((len(works), num_steps), np.inf)
    for repeat in range(repeats + 1):
        for i, work in enumerate(works):
            for step in range(num_steps):
                start = time.perf_counter()
                work(step)
                if repeat:
                    least[i, step] = min(least[i, step], time.perf_counter() - start)
    return [float(total) for total in least.sum(axis=1)]


def gathered_columns(params: EnvParams) -> list[FloatArray]:
    """Return the table columns that a step of the environment gathers, each of shape (num_rows,)."""
    terms = params.terms
    columns = [terms.downlink_bits, terms.uplink_bits, terms.quality]
    columns += [terms.edge_s] if params.is_pipelined else []
    for name in ("latency_s", "device_energy_j", "edge_energy_j", "energy_j"):
        cost = terms.costs[name]
        columns += [cost.constant] if name == "latency_s" else [cost.constant, cost.per_downlink, cost.per_uplink]
    return [column for column in columns if len(column) > 1]


def floor_step(rng: np.random.Generator, columns: list[FloatArray], rows: IntArray) -> None:
    """Draw the fading, take one log2 and gather the columns: the least that any such environment does."""
    scattered = rng.standard_normal((rows.size, 2))
    gain = scattered[:, 0] ** 2 + scattered[:, 1] ** 2
    np.log2(1.0 + 5.0 * gain)
    for column in columns:
        column[rows]


def memory_growth_mb(work: Callable[[int], object], num_steps: int) -> float:
    """Return by how much the process grew in `num_steps` calls after `WARM_UP_STEPS`, or as many if less [MB]."""
    for step in range(min(num_steps, WARM_UP_STEPS)):
        work(step)
    before_mb = _resident_mb()
    for step in range(num_steps):
        work(step)
    return _resident_mb() - before_mb


def _resident_mb() -> float:
    """Return the resident size of this process now; where the system does not tell, its largest size so far [MB]."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2.0**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
