"""Small cells with known tables, their optimum by brute force, and what every certified answer keeps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megopt.benchmarks import cell_allocation as benchmark
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers.cell_model import CellProblem, CellSolution, score
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rates import fit
from megopt.solvers.cell_shares import shared
from megopt.solvers.solution import Status
from megopt.system.link import Link, LinkState
from megopt.system.outcome import Work

QUALITY = Problem(
    objective="quality", metric="ssim", limits=(Limit(quantity="latency_s", bound=2.0),)
)  # fmt: skip


def table_of(
    bits: list[float], quality: list[float], edge_s: float | list[float] = 0.0, device_energy_j: float = 1.0
) -> ActionTable:
    num_rows = len(bits)
    none = np.zeros(num_rows)
    work = Work(
        edge_s=np.broadcast_to(edge_s, num_rows).astype(float), device_s=none, downlink_bits=np.array(bits),
        uplink_bits=none, num_round_trips=none, edge_energy_j=none, device_energy_j=none + device_energy_j,
    )  # fmt: skip
    return ActionTable(
        scheme=np.full(num_rows, "made"), label=np.arange(num_rows).astype(str), knobs=(),
        settings=np.zeros((num_rows, 0)), work=work, metrics=("ssim",), quality=np.array(quality)[:, None],
        kind=np.full(num_rows, "modelled"), profile="made",
    )  # fmt: skip


def links(snr: float | list[float], num_users: int | None = None) -> LinkState:
    values = np.full(num_users, snr) if num_users else np.asarray(snr, dtype=float)
    return Link(bandwidth_hz=1e6, device_rx_power_w=1.0).state(values)


def small(seed: int, num_users: int = 4, num_rows: int = 6, objective: str = "") -> CellProblem:
    """A random cell with weights, each user with its own limits; some cannot be kept."""
    rng = np.random.default_rng(seed)
    objective = objective or ("quality", "latency_s", "device_energy_j", "energy_j")[seed % 4]
    table = benchmark.random_table(num_rows, rng)
    limit = {"latency_s": rng.uniform(0.5, 4.0, num_users)}
    if objective != "quality":
        limit["quality"] = rng.uniform(0.3, 0.8, num_users)
    if seed % 3:
        limit["device_energy_j"] = rng.uniform(2.0, 16.0, num_users)
    return CellProblem(
        tables=table,
        link=benchmark.random_link(num_users, rng),
        bandwidth_hz=float(rng.uniform(1e5, 6e5)) * num_users,
        power_w=3.0,
        problem=Problem(
            objective=objective, metric="ssim", limits=tuple(Limit(quantity=name, bound=1.0) for name in limit)
        ),
        weights=rng.uniform(0.5, 2.0, num_users),
        bounds=np.stack(list(limit.values()), axis=1),
    )


def brute_force(problem: CellProblem) -> float:
    """Value of the best of all sets of rows that fit, each with its best shares; inf, to minimise, if none does."""
    pairs = Pairs.of(problem)
    every = np.array(list(itertools.product(range(len(pairs.kinds[0].rows)), repeat=problem.num_users)))
    is_usable = np.all(np.isfinite(pairs.kinds[0].floor[np.arange(problem.num_users), every]), axis=1)
    if not np.any(is_usable):
        return np.inf
    every = every[is_usable]
    if not pairs.is_airtime_free:
        return min(one.value for one in shared(pairs, every))
    parts = [pairs.chosen(rows) for rows in every]
    factor = fit(np.stack([part.needed for part in parts]), pairs.gain).factor
    values = np.array([np.sum(part.fixed) for part in parts])
    return float(np.min(values[factor >= 1.0], initial=np.inf))


def assert_certified(problem: CellProblem, found: CellSolution, gap: float) -> None:
    """Feasible, scored anew, prices of the right sign, value and bound in order and within `gap`."""
    assert found.status == Status.OPTIMAL
    assert found.violation <= 1e-9
    again = score(problem, found.rows, found.bandwidth_hz, found.transmit_power_w)
    assert problem.problem.sense * again.signed_value == pytest.approx(found.value, rel=1e-12)
    assert not np.any(again.is_broken)
    assert found.bandwidth_price >= 0.0
    assert found.power_price >= 0.0
    assert problem.problem.sense * (found.value - found.bound) >= -1e-9 * abs(found.bound)
    assert found.gap <= gap
