"""Rows and shares of a cell together: gaps and times at scale, and the distance to the exact optimum on small cells.

The cell is random: Rayleigh fading over distances of 50 to 300 m, 200 kHz per device, and rows that spend their effort
in edge seconds, device seconds or bits, so that no row is best for all. Objective "quality" has limits on latency and
device energy, objective "latency" a floor on quality and a limit on device energy; each device has its own limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from megopt.benchmarks.exhaustive import made_table
from megopt.benchmarks.timing import best_of, peak_memory_mb, with_peak_memory
from megopt.problem import Limit, Problem
from megopt.ranges import require_whole, require_whole_list
from megopt.schemes.action_table import ActionTable
from megopt.solvers import cell
from megopt.solvers.cell_exact import solve_exactly
from megopt.solvers.cell_model import FEASIBILITY_TOLERANCE, CellProblem, CellSolution, score
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.solution import Status
from megopt.system.link import Link, LinkState
from megopt.system.outcome import Work
from megopt.units import linear_from_db

OBJECTIVES = ("quality", "latency")
_HERTZ_PER_DEVICE = 2e5
_MEAN_SNR_DB_AT_50_M = 35.0
_EXPONENT_DB = 37.6


def run(
    num_devices: Sequence[int] = (1_000, 10_000),
    num_rows: int = 500,
    num_exact_devices: int = 12,
    num_exact_rows: int = 60,
    num_exact_cells: int = 20,
    seed: int = 0,
    repeats: int = 3,
) -> dict[str, float]:
    """Return gaps and times of the solver by prices, and its distance to the mixed-integer optimum.

    - largest_gap: the largest of the gaps at scale below.
    - growth: processor time at the largest size over that at the smallest, over the ratio of n log n; at most 1 is no
      faster growth than n log n. The larger of the two objectives.
    - exact_difference: largest relative distance of the value by prices to the exact one on small cells.
    - OBJECTIVE_s_N: one whole call with N devices, best of `repeats`; OBJECTIVE_cpu_s_N: time of the processor.
    - OBJECTIVE_gap_N: relative distance of value and certified bound. OBJECTIVE_violation_N: largest relative excess
      over a limit or budget, by `problem.evaluate`.
    - OBJECTIVE_fresh_broken_N, OBJECTIVE_fresh_violation_p95_N: where rows and shares stay and every device meets new
      Rayleigh fading, the share of devices that break a limit, and the relative excess that 95 % of them stay within.
    - OBJECTIVE_num_rows: rows that no other row beats; OBJECTIVE_num_prices_N: pairs of prices that were tried.
    - OBJECTIVE_exact_gap: largest gap that HiGHS and the cuts leave; OBJECTIVE_exact_s, OBJECTIVE_prices_s: mean times
      on the small cells; OBJECTIVE_dual_distance: largest distance of the dual's bound to the exact optimum there.
    - OBJECTIVE_num_exact: small cells whose limits can be kept.
    - OBJECTIVE_peak_memory_mb_N, OBJECTIVE_exact_peak_memory_mb: largest resident size of the process while these were
      solved; peak_memory_mb: the largest so far, imports included [MB].

    Args:
        num_devices: devices of the large cells, one measurement each, growing [1].
        num_rows: rows of their action table [1].
        num_exact_devices: devices of the small cells [1].
        num_exact_rows: rows of their action tables [1].
        num_exact_cells: small cells for each objective [1].
        seed: seed of the cells.
        repeats: the best of so many solves counts [1].
    """
    where, sizes = "benchmark cell_allocation", list(num_devices)
    require_whole_list(where, 2, num_devices=sizes)
    require_whole(where, 1, num_rows=num_rows, num_exact_devices=num_exact_devices, num_exact_rows=num_exact_rows)
    require_whole(where, 1, num_exact_cells=num_exact_cells, repeats=repeats)
    sequence = np.random.SeedSequence(seed)
    result: dict[str, float] = {}
    for objective in OBJECTIVES:
        large, faded = (
            [random_cell(size, num_rows, objective, np.random.default_rng(sequence), fading) for size in sizes]
            for fading in (None, np.random.default_rng(seed + 2))
        )
        small = [
            random_cell(num_exact_devices, num_exact_rows, objective, np.random.default_rng(child))
            for child in np.random.SeedSequence(seed + 1).spawn(num_exact_cells)
        ]
        found = {**_at_scale(large, faded, repeats), **_beside_exact(small)}
        result |= {f"{objective}_{key}": value for key, value in found.items()}
    return {
        "largest_gap": max(result[f"{name}_gap_{size}"] for name in OBJECTIVES for size in sizes),
        "growth": max(result.pop(f"{name}_growth") for name in OBJECTIVES),
        "exact_difference": max(result[f"{name}_exact_difference"] for name in OBJECTIVES),
        **result,
        "peak_memory_mb": peak_memory_mb(),
    }


def random_cell(
    num_devices: int,
    num_rows: int,
    objective: str,
    rng: np.random.Generator,
    fading: np.random.Generator | None = None,
) -> CellProblem:
    """Return a random cell for "quality" or "latency", which can be kept; `fading` as in `random_link`."""
    table, limit = random_table(num_rows, rng), {"device_energy_j": rng.uniform(8.0, 16.0, num_devices)}
    if objective == "quality":
        limit["latency_s"] = rng.uniform(2.0, 4.0, num_devices)
    else:
        limit["quality"] = np.quantile(table.metric("ssim"), rng.uniform(0.3, 0.7, num_devices))
        limit["device_energy_j"] = limit["device_energy_j"] + 12.0
    limits = tuple(Limit(quantity=name, bound=float(np.mean(bounds))) for name, bounds in limit.items())
    return CellProblem(
        tables=table,
        link=random_link(num_devices, rng, fading),
        bandwidth_hz=_HERTZ_PER_DEVICE * num_devices,
        problem=Problem(objective="quality" if objective == "quality" else "latency_s", metric="ssim", limits=limits),
        bounds=np.stack(list(limit.values()), axis=1),
    )


def random_table(num_rows: int, rng: np.random.Generator) -> ActionTable:
    """Return rows that buy quality by effort, and spend it in edge seconds, device seconds or bits."""
    effort, share = rng.random(num_rows), rng.dirichlet(np.ones(3), num_rows)
    spent, none = effort[:, np.newaxis] * share, np.zeros(num_rows)
    device_s = 0.1 + 2.0 * spent[:, 1]
    work = Work(
        edge_s=0.1 + 2.0 * spent[:, 0],
        device_s=device_s,
        downlink_bits=5e4 + 3e6 * spent[:, 2],
        uplink_bits=none,
        num_round_trips=none,
        edge_energy_j=300.0 * (0.1 + 2.0 * spent[:, 0]),
        device_energy_j=5.0 * device_s,
    )
    return made_table(work, 0.3 + 0.6 * np.sqrt(effort) + 0.05 * rng.random(num_rows))


def random_link(num_devices: int, rng: np.random.Generator, fading: np.random.Generator | None = None) -> LinkState:
    """Return the devices' links: SNR on an even spread, path loss and Rayleigh fading.

    Links of equal `rng` differ in nothing but the fading where `fading` is given, which then draws it.
    """
    loss_db = _EXPONENT_DB * np.log10(rng.uniform(50.0, 300.0, num_devices) / 50.0)
    drawn = rng.exponential(size=num_devices)
    drawn = drawn if fading is None else fading.exponential(size=num_devices)
    snr = linear_from_db(_MEAN_SNR_DB_AT_50_M - loss_db) * drawn
    return Link(bandwidth_hz=_HERTZ_PER_DEVICE, device_rx_power_w=1.0, edge_tx_power_w=40.0).state(snr)


def _at_scale(cells: list[CellProblem], faded: list[CellProblem], repeats: int) -> dict[str, float]:
    """Return the keys of `run` for cells of growing size, and the same with new fading."""
    result: dict[str, float] = {"num_rows": float(len(Pairs.of(cells[0]).kinds[0].rows))}
    least: list[float] = []
    for one, fresh in zip(cells, faded, strict=True):
        timed, peak_mb = with_peak_memory(partial(best_of, partial(cell.solve, one), repeats, num_warm=1))
        found, size = timed.answer, one.num_users
        assert found.status == Status.OPTIMAL, found.message
        least.append(timed.cpu_s)
        result |= {
            f"s_{size}": timed.wall_s,
            f"cpu_s_{size}": timed.cpu_s,
            f"gap_{size}": found.gap,
            f"violation_{size}": found.violation,
            **{f"{key}_{size}": value for key, value in _fresh(fresh, found).items()},
            f"num_prices_{size}": float(found.num_prices),
            f"peak_memory_mb_{size}": peak_mb,
        }
    first, last = cells[0].num_users, cells[-1].num_users
    work = last * np.log(last) / (first * np.log(first))
    return result | {"growth": float(least[-1] / least[0] / work)}


def _fresh(faded: CellProblem, found: CellSolution) -> dict[str, float]:
    """Return how far devices exceed their limits where rows and shares stay and all meet new Rayleigh fading."""
    excess = score(faded, found.rows, found.bandwidth_hz, found.transmit_power_w).excess
    return {
        "fresh_broken": float(np.mean(excess > FEASIBILITY_TOLERANCE)),
        "fresh_violation_p95": float(np.quantile(excess, 0.95)),
    }


def _beside_exact(cells: list[CellProblem]) -> dict[str, float]:
    """Return the keys of `run` for small cells; those that cannot be kept have to be found so by both."""
    answers, peak_mb = with_peak_memory(lambda: [(cell.solve(one), solve_exactly(one)) for one in cells])
    assert all(ours.status == exact.status for ours, exact in answers)
    kept = [(ours, exact) for ours, exact in answers if exact.status == Status.OPTIMAL]
    return {
        "exact_difference": max(abs(ours.value / exact.value - 1.0) for ours, exact in kept),
        "dual_distance": max(abs(ours.bound / exact.value - 1.0) for ours, exact in kept),
        "exact_gap": max(exact.gap for _, exact in kept),
        "exact_s": float(np.mean([exact.runtime_s for _, exact in kept])),
        "prices_s": float(np.mean([ours.runtime_s for ours, _ in kept])),
        "num_exact": float(len(kept)),
        "exact_peak_memory_mb": peak_mb,
    }
