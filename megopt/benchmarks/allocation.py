"""Speed of the allocation by prices against cvxpy on the same cell, with the distance between their answers.

cvxpy compiles each kind of program once, outside the clock; what is timed is a warm solve: set the parameters, solve,
score. The cell is random: Rayleigh fading over distances of 50 to 300 m, payloads of 0.1 to 4 Mbit, 1 MHz and 1 W for
every ten devices.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import numpy as np

from megopt.ranges import require_whole, require_within
from megopt.solvers.allocation import solve
from megopt.solvers.allocation_cvxpy import solve_by_cvxpy
from megopt.solvers.allocation_model import AllocationProblem, AllocationSolution, Objective
from megopt.units import linear_from_db, watt_from_dbm

_NOISE_W_PER_HZ = watt_from_dbm(-174.0 + 9.0)
"""Thermal noise at 290 K and a receiver's noise figure of 9 dB."""


def run(num_devices: int = 1_000, seed: int = 0, repeats: int = 7, deadline_s: float = 30.0) -> dict[str, float]:
    """Return times and ratios of the two solvers on a random cell with `num_devices` devices.

    - least_speedup: the smallest of the speedups below.
    - OBJECTIVE_speedup: OBJECTIVE_cvxpy_s over OBJECTIVE_prices_s: whole calls, best of `repeats`.
    - OBJECTIVE_difference: relative distance of the two values; OBJECTIVE_gap: relative distance of the value by prices
      and its certified bound.
    - batch_s_per_cell: time per cell of one call that solves 64 cells at once for the sum of latencies.
    - peak_memory_mb: largest resident size of the whole process so far [MB].

    Args:
        num_devices: devices in the cell [1].
        seed: seed of the cell.
        repeats: the best of so many solves counts [1].
        deadline_s: deadline of every device where energy is minimised [s].
    """
    require_whole("benchmark allocation", 1, num_devices=num_devices, repeats=repeats)
    require_within("benchmark allocation", 1e-3, 1e9, deadline_s=deadline_s)
    sequence = np.random.SeedSequence(seed)
    result: dict[str, float] = {}
    for objective in Objective:
        problem = cell((num_devices,), objective, np.random.default_rng(sequence), deadline_s)
        result |= {f"{objective}_{key}": value for key, value in _compared(problem, repeats).items()}
    speedups = [value for key, value in result.items() if key.endswith("speedup")]
    cells = cell((64, num_devices), Objective.SUM_LATENCY, np.random.default_rng(sequence), deadline_s)
    batch_s, _ = _timed(lambda: solve(cells), repeats)
    peak_memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    return {
        "least_speedup": min(speedups),
        **result,
        "batch_s_per_cell": batch_s / 64,
        "peak_memory_mb": peak_memory_mb,
    }


def cell(
    shape: tuple[int, ...], objective: Objective, rng: np.random.Generator, deadline_s: float
) -> AllocationProblem:
    """Return random cells of `shape` (..., num_devices); only the energy objective has the deadline."""
    path_loss_db = 35.3 + 37.6 * np.log10(rng.uniform(50.0, 300.0, shape))
    gain = linear_from_db(-path_loss_db) * rng.exponential(size=shape)
    return AllocationProblem(
        bits=rng.uniform(1e5, 4e6, shape),
        gain_to_noise_hz_per_w=gain / _NOISE_W_PER_HZ,
        bandwidth_hz=1e5 * shape[-1],
        power_w=0.1 * shape[-1],
        edge_s=rng.uniform(0.1, 1.0, shape),
        device_cycles=rng.uniform(1e8, 2e9, shape),
        receive_power_w=rng.uniform(0.1, 1.0, shape),
        deadline_s=deadline_s if objective == Objective.ENERGY else np.inf,
        objective=objective,
    )


def _compared(problem: AllocationProblem, repeats: int) -> dict[str, float]:
    """Return the keys of `run` for one problem."""
    prices_s, by_prices = _timed(lambda: solve(problem), repeats)
    cvxpy_s, by_cvxpy = _timed(lambda: solve_by_cvxpy(problem), repeats)
    return {
        "speedup": cvxpy_s / prices_s,
        "prices_s": prices_s,
        "cvxpy_s": cvxpy_s,
        "difference": abs(float(by_cvxpy.values / by_prices.values) - 1.0),
        "gap": float(by_prices.gaps),
    }


def _timed(work: Callable[[], AllocationSolution], repeats: int) -> tuple[float, AllocationSolution]:
    """Return the shortest wall time over `repeats` [s] and the answer; a first run is not counted."""
    answer, least = work(), np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        least = min(least, time.perf_counter() - start)
    return least, answer
