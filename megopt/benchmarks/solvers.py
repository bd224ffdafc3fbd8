"""Speed and certificates of the long-run solvers, beside HiGHS on the same instance.

The instance is the random one of `megopt.benchmarks.exhaustive`; its limits hold on average over the states, on latency
and on energy. HiGHS gets the whole linear program, one unknown per pair of state and row. The decision process is the
same table behind an edge queue with Poisson arrivals. Shares of band, power and clocks are timed by `what=allocation`.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from megopt.benchmarks.exhaustive import instance
from megopt.problem import Limit, Problem, ceilings, evaluate
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_limits, exhaustive, occupancy
from megopt.solvers.average_limits_lp import solve_by_lp
from megopt.solvers.average_limits_sampling import held_out
from megopt.solvers.occupancy_levels import edge_queue, poisson_intervals
from megopt.solvers.occupancy_process import level_process
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

_ROOM = 1.3
"""Limits as a multiple of what the fastest rows cost on average: they can be kept, and quality would exceed them."""
_QUEUE_CLASSES, _QUEUE_CAPACITY_S, _QUEUE_INTERVAL_S, _QUEUE_OVERFLOW_S = 4, 12.0, 1.5, 0.02
_Answer = TypeVar("_Answer")


def run(
    num_states: int = 1_000_000,
    num_rows: int = 2_000,
    num_lp_states: int = 300,
    num_lp_rows: int = 100,
    num_queue_points: int = 41,
    num_queue_rows: int = 20,
    seed: int = 0,
    repeats: int = 3,
) -> dict[str, float]:
    """Return times, gaps and ratios; every value is scored by `problem.evaluate`.

    - average_s: one whole call of `average_limits.solve` on `num_states` x `num_rows`, two limits.
    - average_gap: relative distance of its value and its certified bound.
    - speedup_over_highs: lp_highs_s over lp_average_s, same instance of `num_lp_states` x `num_lp_rows`.
    - average_num_prices: prices that were tried. average_violation: largest relative excess over a limit on the
      states of the solve; average_fresh_violation: the same where the mixture meets fresh states.
    - lp_highs_s: the linear program alone, without building it. lp_average_s: the whole call.
    - lp_difference: relative distance of the two values. lp_gap: certified gap of ours on that instance.
    - queue_s: the occupancy program of an edge queue; queue_gap: its certified gap; queue_num_pairs: its unknowns.
    - peak_memory_mb: largest resident size of the whole process so far [MB].

    Args:
        num_states: channel states of the large instance [1].
        num_rows: rows of its action table [1].
        num_lp_states: channel states of the instance that HiGHS solves as well [1].
        num_lp_rows: rows of its action table [1].
        num_queue_points: grid points of the edge's backlog [1].
        num_queue_rows: rows of the decision process [1].
        seed: seed of the instances.
        repeats: the best of so many solves counts [1].
    """
    where = "benchmark solvers"
    require_whole(where, 1, num_states=num_states, num_rows=num_rows, repeats=repeats, num_queue_rows=num_queue_rows)
    require_whole(where, 1, num_lp_states=num_lp_states, num_lp_rows=num_lp_rows)
    require_whole(where, 2, num_queue_points=num_queue_points)
    large, small, fresh, queue = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4))
    table, link = instance(num_states, num_rows, large)
    _, fresh_link = instance(num_states, 1, fresh)
    average = _average(table, link, fresh_link, repeats)
    beside = _beside_highs(*instance(num_lp_states, num_lp_rows, small), repeats)
    result = {
        **average,
        "speedup_over_highs": beside.pop("speedup_over_highs"),
        **beside,
        **_queue(*instance(1_000, num_queue_rows, queue), num_queue_points, repeats),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
    }
    first = ("average_s", "average_gap", "speedup_over_highs")
    return {key: result[key] for key in (*first, *(key for key in result if key not in first))}


def limited(table: ActionTable, link: LinkState) -> Problem:
    """Return best quality under limits on mean latency and energy that the instance can keep."""
    fastest = exhaustive.solve(table, link, Problem(objective="latency_s"))
    result = evaluate(table, fastest.rows, link)
    bounds = {name: _ROOM * float(np.mean(result.quantity(name))) for name in ("latency_s", "energy_j")}
    limits = tuple(Limit(quantity=name, bound=bound) for name, bound in bounds.items())
    return Problem(objective="quality", metric="ssim", limits=limits)


def _average(table: ActionTable, link: LinkState, fresh_link: LinkState, repeats: int) -> dict[str, float]:
    problem = limited(table, link)
    seconds, found = _timed(lambda: average_limits.solve(table, link, problem), repeats)
    most = ceilings(problem)
    assert found.status == Status.OPTIMAL, found.message
    outside = held_out(table, fresh_link, problem, found)
    return {
        "average_s": seconds,
        "average_gap": found.gap,
        "average_num_prices": float(found.num_iterations),
        "average_violation": float(np.max(found.costs / most - 1.0)),
        "average_fresh_violation": float(np.max(outside.costs / most - 1.0)),
    }


def _beside_highs(table: ActionTable, link: LinkState, repeats: int) -> dict[str, float]:
    problem = limited(table, link)
    seconds, found = _timed(lambda: average_limits.solve(table, link, problem), repeats)
    whole = solve_by_lp(table, link, problem)
    assert found.status == whole.status == Status.OPTIMAL, found.message
    return {
        "speedup_over_highs": whole.runtime_s / seconds,
        "lp_highs_s": whole.runtime_s,
        "lp_average_s": seconds,
        "lp_difference": abs(found.value - whole.value) / abs(whole.value),
        "lp_gap": found.gap,
    }


def _queue(table: ActionTable, link: LinkState, num_points: int, repeats: int) -> dict[str, float]:
    level = edge_queue(
        table,
        interval_s=poisson_intervals(_QUEUE_INTERVAL_S),
        capacity_s=_QUEUE_CAPACITY_S,
        num_points=num_points,
        overflow_s=_QUEUE_OVERFLOW_S,
    )
    problem = Problem(objective="latency_s", limits=limited(table, link).limits[1:])
    process = level_process(table, link, problem, [level], _QUEUE_CLASSES).process
    seconds, found = _timed(lambda: occupancy.solve(process), repeats)
    assert found.status == Status.OPTIMAL, found.message
    return {"queue_s": seconds, "queue_gap": found.gap, "queue_num_pairs": float(process.objective.size)}


def _timed(work: Callable[[], _Answer], repeats: int) -> tuple[float, _Answer]:
    """Return the shortest wall time over `repeats` [s] and the last answer."""
    answer, least = None, np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        answer = work()
        least = min(least, time.perf_counter() - start)
    assert answer is not None
    return least, answer
