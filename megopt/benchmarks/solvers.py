"""Speed, certificates and memory of the solvers that share one claim: every answer carries a bound.

Long-run limits and an edge queue are measured here; `megopt.benchmarks.cell_allocation` and
`megopt.benchmarks.allocation` measure rows and shares of a cell. The long-run instance is the random one of
`megopt.benchmarks.exhaustive`; its limits hold on average over the states, on latency and on energy. HiGHS gets the
whole linear program, one unknown per pair of state and row. The queue stands before an edge with Poisson arrivals;
there a payload spans eight fading blocks, as the mean airtime of a single Rayleigh block is infinite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from megopt.benchmarks import allocation, cell_allocation
from megopt.benchmarks.exhaustive import instance
from megopt.benchmarks.timing import best_of, peak_memory_mb, with_peak_memory
from megopt.errors import ConfigError
from megopt.problem import Limit, Problem, ceilings, evaluate
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_limits, exhaustive, occupancy
from megopt.solvers.average_limits_lp import solve_by_lp
from megopt.solvers.average_limits_sampling import held_out, sampled_states
from megopt.solvers.occupancy_levels import edge_queue, poisson_intervals
from megopt.solvers.occupancy_process import level_process
from megopt.solvers.occupancy_simulation import simulate
from megopt.solvers.solution import Status
from megopt.system.channel import Rayleigh
from megopt.system.link import Link, LinkState

PARTS = ("average", "lp", "queue", "cell", "allocation")
_ROOM = 1.3
"""Limits as a multiple of what the fastest rows cost on average: they can be kept, and quality would exceed them."""
_LP_METHODS = {"highs-ipm": "lp_highs_ipm_s", "highs-ds": "lp_highs_ds_s"}
_QUEUE_CLASSES, _QUEUE_CAPACITY_S, _QUEUE_INTERVAL_S, _QUEUE_OVERFLOW_S = 4, 12.0, 1.5, 0.02
_QUEUE_STATES, _QUEUE_BLOCKS = 64_000, 8
_QUEUE_FADING = Rayleigh(snr_db=10.0)
_QUEUE_LINK = Link(bandwidth_hz=1e6, device_rx_power_w=1.0, edge_tx_power_w=40.0)


def run(
    parts: Sequence[str] = PARTS,
    num_states: int = 1_000_000,
    num_rows: int = 2_000,
    num_lp_states: int = 1_000,
    num_lp_rows: int = 500,
    lp_methods: Sequence[str] = ("highs-ipm",),
    num_queue_points: int = 41,
    num_queue_rows: int = 20,
    num_cell_devices: Sequence[int] = (1_000, 10_000),
    num_cell_rows: int = 500,
    num_exact_cells: int = 20,
    num_allocation_devices: int = 1_000,
    seed: int = 0,
    repeats: int = 3,
) -> dict[str, float]:
    """Return times, gaps, ratios, violations and peak memory of each part; each answer is scored anew.

    average: `average_limits.solve` on `num_states` x `num_rows` with two limits.
    - average_s: one whole call. average_gap: relative distance of its value and its certified bound.
    - average_num_prices: prices that were tried. average_violation: largest relative excess over a limit on the
      states of the solve; average_fresh_violation: the same where the mixture meets fresh states
      (below 0 where all means have room).
    lp: the same solver beside HiGHS on one instance of `num_lp_states` x `num_lp_rows`.
    - speedup_over_highs: the fastest of lp_highs_ipm_s, by interior point, and lp_highs_ds_s, by dual simplex, over
      lp_average_s. Both are the linear program alone, without building it, solved once; lp_average_s is
      our whole call, the best of `repeats`.
    - lp_difference: largest relative distance of the values. lp_gap: certified gap of ours on that instance.
    queue: the occupancy program of an edge queue, under limits on mean latency, waiting included, and energy.
    - queue_s: one whole solve; queue_gap: its certified gap; queue_num_pairs: its unknowns.
    - queue_simulation_difference: relative distance of the promised objective and that of a simulation on continuous
      levels and fresh fading; queue_fresh_violation: largest relative excess of its mean costs over a limit
      (below 0 where all have room), and queue_fresh_error: the standard error of that cost, relative to the limit.
    cell, allocation: the keys of `what=cell_allocation` and `what=allocation`, with the part's name before them.
    - PART_peak_memory_mb: largest resident size of the process while the part ran, imports included [MB]; of lp,
      lp_average_peak_memory_mb is ours and lp_highs_peak_memory_mb that of HiGHS. peak_memory_mb: the largest so far.

    Args: as in conf/what/solvers.yaml.

    Raises:
        ConfigError: if a part is unknown, or a number outside its range.
    """
    _require_some_of("parts", parts, PARTS)
    _require_some_of("lp_methods", lp_methods, tuple(_LP_METHODS))
    where = "benchmark solvers"
    require_whole(where, 1, num_states=num_states, num_rows=num_rows, repeats=repeats, num_queue_rows=num_queue_rows)
    require_whole(where, 1, num_lp_states=num_lp_states, num_lp_rows=num_lp_rows)
    require_whole(where, 2, num_queue_points=num_queue_points)
    rngs = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    same: dict[str, int] = {"seed": seed, "repeats": repeats}
    cells = partial(cell_allocation.run, num_cell_devices, num_cell_rows, num_exact_cells=num_exact_cells, **same)
    measure: dict[str, Callable[[], dict[str, float]]] = {
        "average": lambda: _average(num_states, num_rows, rngs[0], rngs[2], repeats),
        "lp": lambda: _beside_highs(*instance(num_lp_states, num_lp_rows, rngs[1]), lp_methods, repeats),
        "queue": lambda: _queue(rngs[3], num_queue_points, num_queue_rows, repeats),
        "cell": lambda: _named("cell", cells()),
        "allocation": lambda: _named("allocation", allocation.run(num_allocation_devices, **same)),
    }
    return _first({key: value for part in PARTS if part in parts for key, value in measure[part]().items()})


def _require_some_of(name: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    if isinstance(chosen, str) or not chosen or any(one not in known for one in chosen):
        message = f"benchmark solvers: {name} {chosen}; expected a list of {', '.join(known)}; change what.{name}"
        raise ConfigError(message)


def _named(part: str, found: dict[str, float]) -> dict[str, float]:
    """Return the keys of another benchmark with the part's name before them."""
    return {f"{part}_{key}": value for key, value in found.items()}


def _first(found: dict[str, float]) -> dict[str, float]:
    """Return what was found with the keys of the headline at its head and the memory of the process at its end."""
    result = {**found, "peak_memory_mb": peak_memory_mb()}
    headline = ("average_s", "average_gap", "speedup_over_highs")
    head = [key for key in headline if key in result]
    return {key: result[key] for key in (*head, *(key for key in result if key not in head))}


def limited(table: ActionTable, link: LinkState) -> Problem:
    """Return best quality under limits on mean latency and energy that the instance can keep."""
    fastest = exhaustive.solve(table, link, Problem(objective="latency_s"))
    result = evaluate(table, fastest.rows, link)
    bounds = {name: _ROOM * float(np.mean(result.quantity(name))) for name in ("latency_s", "energy_j")}
    limits = tuple(Limit(quantity=name, bound=bound) for name, bound in bounds.items())
    return Problem(objective="quality", metric="ssim", limits=limits)


def _average(
    num_states: int, num_rows: int, rng: np.random.Generator, fresh: np.random.Generator, repeats: int
) -> dict[str, float]:
    table, link = instance(num_states, num_rows, rng)
    problem = limited(table, link)
    timed, peak_mb = with_peak_memory(lambda: best_of(lambda: average_limits.solve(table, link, problem), repeats))
    found, most = timed.answer, ceilings(problem)
    assert found.status == Status.OPTIMAL, found.message
    outside = held_out(table, instance(num_states, 1, fresh)[1], problem, found)
    return {
        "average_s": timed.wall_s,
        "average_gap": found.gap,
        "average_num_prices": float(found.num_iterations),
        "average_violation": float(np.max(found.costs / most - 1.0)),
        "average_fresh_violation": float(np.max(outside.costs / most - 1.0)),
        "average_peak_memory_mb": peak_mb,
    }


def _beside_highs(table: ActionTable, link: LinkState, methods: Sequence[str], repeats: int) -> dict[str, float]:
    problem = limited(table, link)
    ours, ours_mb = with_peak_memory(lambda: best_of(lambda: average_limits.solve(table, link, problem), repeats))
    whole, highs_mb = with_peak_memory(
        lambda: {_LP_METHODS[name]: solve_by_lp(table, link, problem, method=name) for name in methods}
    )
    found = ours.answer
    assert found.status == Status.OPTIMAL, found.message
    assert all(one.status == Status.OPTIMAL for one in whole.values())
    return {
        "speedup_over_highs": min(one.runtime_s for one in whole.values()) / ours.wall_s,
        **{key: one.runtime_s for key, one in whole.items()},
        "lp_average_s": ours.wall_s,
        "lp_difference": max(abs(found.value - one.value) / abs(one.value) for one in whole.values()),
        "lp_gap": found.gap,
        "lp_average_peak_memory_mb": ours_mb,
        "lp_highs_peak_memory_mb": highs_mb,
    }


def _queue(rng: np.random.Generator, num_points: int, num_rows: int, repeats: int) -> dict[str, float]:
    table, _ = instance(1, num_rows, rng)
    seeds = [int(seed) for seed in rng.integers(2**32, size=2)]
    link, fresh = (sampled_states(_QUEUE_FADING, _QUEUE_LINK, _QUEUE_STATES, seed, _QUEUE_BLOCKS) for seed in seeds)
    level = edge_queue(
        table,
        interval_s=poisson_intervals(_QUEUE_INTERVAL_S),
        capacity_s=_QUEUE_CAPACITY_S,
        num_points=num_points,
        overflow_s=_QUEUE_OVERFLOW_S,
    )
    problem = limited(table, link)
    model = level_process(table, link, problem, [level], _QUEUE_CLASSES)
    timed, peak_mb = with_peak_memory(lambda: best_of(lambda: occupancy.solve(model.process), repeats))
    found, most = timed.answer, model.process.ceilings
    assert found.status == Status.OPTIMAL, found.message
    met = simulate(model, found, fresh, seed=0)
    excess = met.costs / most - 1.0
    return {
        "queue_s": timed.wall_s,
        "queue_gap": found.gap,
        "queue_num_pairs": float(model.process.objective.size),
        "queue_simulation_difference": abs(met.value / found.value - 1.0),
        "queue_fresh_violation": float(np.max(excess)),
        "queue_fresh_error": float((met.cost_errors / most)[np.argmax(excess)]),
        "queue_peak_memory_mb": peak_mb,
    }
