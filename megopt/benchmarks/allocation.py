"""Speed of the allocation by prices against cvxpy on the same cell, with the distance between their answers.

cvxpy compiles each kind of program once, outside the clock; what is timed is a warm solve: set the parameters, solve,
score. The cell is random: Rayleigh fading over distances of 50 to 300 m, payloads of 0.1 to 4 Mbit, 1 MHz and 1 W for
every ten devices.
"""

from __future__ import annotations

import numpy as np

from megopt.benchmarks.timing import best_of, peak_memory_mb, with_peak_memory
from megopt.ranges import require_whole, require_within
from megopt.solvers.allocation import solve
from megopt.solvers.allocation_cvxpy import solve_by_cvxpy
from megopt.solvers.allocation_model import (
    FEASIBILITY_TOLERANCE,
    AllocationProblem,
    AllocationSolution,
    Objective,
    score,
    violation,
)
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
    - OBJECTIVE_violation: largest relative excess over a budget, a deadline or a clock range, scored anew.
    - OBJECTIVE_fresh_broken, OBJECTIVE_fresh_violation_p95, OBJECTIVE_fresh_value_ratio: where the shares stay and
      every device meets new Rayleigh fading, the share of devices past their deadline, the relative excess over it that
      95 % of the devices stay within, and the value over what it was; without deadlines the first two are 0.
    - OBJECTIVE_peak_memory_mb, OBJECTIVE_cvxpy_peak_memory_mb: largest resident size of the process while prices or
      cvxpy solved; peak_memory_mb: the largest so far, imports included [MB].

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
        rng = np.random.default_rng(sequence)
        faded = cell((num_devices,), objective, rng, deadline_s, np.random.default_rng(seed + 1))
        found = _compared(problem, faded, repeats)
        result |= {f"{objective}_{key}": value for key, value in found.items()}
    speedups = [value for key, value in result.items() if key.endswith("speedup")]
    cells = cell((64, num_devices), Objective.SUM_LATENCY, np.random.default_rng(sequence), deadline_s)
    batch_s = best_of(lambda: solve(cells), repeats, num_warm=1).wall_s
    return {
        "least_speedup": min(speedups),
        **result,
        "batch_s_per_cell": batch_s / 64,
        "peak_memory_mb": peak_memory_mb(),
    }


def cell(
    shape: tuple[int, ...],
    objective: Objective,
    rng: np.random.Generator,
    deadline_s: float,
    fading: np.random.Generator | None = None,
) -> AllocationProblem:
    """Return random cells of `shape` (..., num_devices); only the energy objective has the deadline.

    Cells of equal `rng` differ in nothing but the Rayleigh fading where `fading` is given, which then draws it.
    """
    path_loss_db = 35.3 + 37.6 * np.log10(rng.uniform(50.0, 300.0, shape))
    drawn = rng.exponential(size=shape)
    gain = linear_from_db(-path_loss_db) * (drawn if fading is None else fading.exponential(size=shape))
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


def _compared(problem: AllocationProblem, faded: AllocationProblem, repeats: int) -> dict[str, float]:
    """Return the keys of `run` for one problem, and the same with new fading."""
    prices, prices_mb = with_peak_memory(lambda: best_of(lambda: solve(problem), repeats, num_warm=1))
    cvxpy, cvxpy_mb = with_peak_memory(lambda: best_of(lambda: solve_by_cvxpy(problem), repeats, num_warm=1))
    found = prices.answer
    return {
        "speedup": cvxpy.wall_s / prices.wall_s,
        "prices_s": prices.wall_s,
        "cvxpy_s": cvxpy.wall_s,
        "difference": abs(float(cvxpy.answer.values / found.values) - 1.0),
        "gap": float(found.gaps),
        **_rescored(problem, faded, found),
        "peak_memory_mb": prices_mb,
        "cvxpy_peak_memory_mb": cvxpy_mb,
    }


def _rescored(problem: AllocationProblem, faded: AllocationProblem, found: AllocationSolution) -> dict[str, float]:
    """Return violation and value of the shares, scored anew on the channel of the solve and on one with new fading."""
    shares = (found.bandwidth_hz, found.transmit_power_w, found.clock_hz)
    fresh = score(faded, *shares)
    late = np.maximum(fresh.latency_s / faded.deadline_s - 1.0, 0.0)
    return {
        "violation": float(violation(problem, *shares)),
        "fresh_broken": float(np.mean(late > FEASIBILITY_TOLERANCE)),
        "fresh_violation_p95": float(np.quantile(late, 0.95)),
        "fresh_value_ratio": float(fresh.values / found.values),
    }
