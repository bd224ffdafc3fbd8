"""Rows and shares of a cell: known numbers and limiting cases."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from megopt.errors import ConfigError
from megopt.problem import Limit, Problem
from megopt.solvers import cell
from megopt.solvers.cell_exact import solve_exactly
from megopt.solvers.cell_model import CellProblem, with_clock_levels
from megopt.solvers.cell_rates import fit
from megopt.solvers.exhaustive import solve as solve_per_request
from megopt.solvers.solution import Status
from megopt.system.link import Link
from tests.cells import QUALITY, assert_certified, links, small, table_of


def test_a_knapsack_by_hand() -> None:
    """Two users, the good row needs 3/4 of the band: one takes it, the better channel, and the other the small one."""
    rate = 1e6 * np.log2(1 + 10.0)
    table = table_of([2.0 * rate * 0.2, 2.0 * rate * 0.75], [0.4, 0.9])
    problem = CellProblem(tables=table, link=links(10.0, 2), bandwidth_hz=1e6, problem=QUALITY)
    for found in (cell.solve(problem), solve_exactly(problem)):
        assert found.value == pytest.approx(1.3)
        assert sorted(found.rows) == [0, 1]
        assert_certified(problem, found, 0.1)
    assert solve_exactly(problem).gap <= 1e-7
    assert cell.solve(problem).bound == pytest.approx(0.8 + 0.5 * (1 - 0.4) / 0.55, rel=1e-6)  # fractional knapsack


def test_one_user_has_the_whole_cell() -> None:
    """The optimum is that of the per-request solver at the rate of the whole band."""
    for seed in range(8):
        problem = small(seed, num_users=1, num_rows=30)
        alone = Link(bandwidth_hz=problem.bandwidth_hz, device_rx_power_w=1.0, edge_tx_power_w=40.0)
        limits = tuple(
            Limit(quantity=limit.quantity, bound=float(bound))
            for limit, bound in zip(problem.problem.limits, problem.bounds[0], strict=True)
        )
        request = dataclasses.replace(problem.problem, limits=limits)
        best = solve_per_request(problem.tables[0], alone.state(np.asarray(problem.link.snr)), request)
        found = solve_exactly(problem)
        assert (found.status == Status.INFEASIBLE) == (best.status == Status.INFEASIBLE)
        if best.status == Status.OPTIMAL:
            assert found.value == pytest.approx(float(problem.weights[0]) * best.value, rel=1e-7)


def test_plenty_gives_everyone_the_best_row_at_no_price() -> None:
    table = table_of([1e5, 2e5, 4e5], [0.3, 0.5, 0.8])
    problem = CellProblem(tables=table, link=links(20.0, 5), bandwidth_hz=1e9, problem=QUALITY)
    found = cell.solve(problem)
    np.testing.assert_array_equal(found.rows, 2)
    assert found.value == pytest.approx(5 * 0.8)
    assert found.gap == pytest.approx(0.0, abs=1e-12)
    assert found.bandwidth_price == 0.0


def test_fixed_rows_are_an_allocation() -> None:
    """One row each, latency as objective: shares and value are those of `allocation.solve`."""
    from megopt.solvers import allocation
    from megopt.solvers.allocation_model import AllocationProblem

    snr = np.array([3.0, 10.0, 100.0])
    problem = CellProblem(
        tables=table_of([2e6], [0.5], edge_s=0.3), link=links(list(snr)), bandwidth_hz=1e6, power_w=2.0,
        problem=Problem(objective="latency_s"),
    )  # fmt: skip
    found = cell.solve(problem)
    plain = allocation.solve(
        AllocationProblem(bits=2e6, gain_to_noise_hz_per_w=snr * 5e5, bandwidth_hz=1e6, power_w=2.0, edge_s=0.3)
    )
    np.testing.assert_allclose(found.bandwidth_hz, plain.bandwidth_hz, rtol=1e-6)
    np.testing.assert_allclose(found.transmit_power_w, plain.transmit_power_w, rtol=1e-6)
    assert found.value == pytest.approx(float(plain.values), rel=1e-9)
    assert found.bandwidth_price == pytest.approx(float(plain.bandwidth_price), rel=1e-3)
    assert_certified(problem, found, 1e-7)


def test_users_of_different_kinds_choose_in_their_own_tables() -> None:
    """Two tables for two kinds, interleaved: the same value as one table where every user may take its own rows."""
    poor, rich = table_of([1e5, 3e5], [0.2, 0.3]), table_of([1e5, 2e5, 8e5], [0.4, 0.6, 0.9])
    kinds = np.array([0, 1, 0, 1, 1])
    problem = CellProblem(
        tables=(poor, rich), kinds=kinds, link=links([5.0, 8.0, 11.0, 20.0, 3.0]), bandwidth_hz=3e5, problem=QUALITY
    )
    found = solve_exactly(problem)
    assert_certified(problem, found, 1e-7)
    assert np.all(found.rows < np.where(kinds == 0, 2, 3))
    quality = np.where(kinds == 0, poor.metric("ssim")[np.minimum(found.rows, 1)], rich.metric("ssim")[found.rows])
    assert found.value == pytest.approx(quality.sum())


def test_clock_levels_are_rows() -> None:
    """At half clock twice the device seconds, a quarter of the joules; a limit on energy then picks the slower one."""
    base = table_of([1e5], [0.5], device_energy_j=8.0)
    base = dataclasses.replace(base, work=dataclasses.replace(base.work, device_s=np.array([0.4])))
    table = with_clock_levels(base, (1.0, 0.5))
    np.testing.assert_allclose(table.work.device_s, [0.4, 0.8])
    np.testing.assert_allclose(table.work.device_energy_j, [8.0, 2.0])
    problem = Problem(objective="latency_s", limits=(Limit(quantity="device_energy_j", bound=4.0),))
    found = cell.solve(CellProblem(tables=table, link=links(10.0, 3), bandwidth_hz=1e6, problem=problem))
    np.testing.assert_array_equal(found.rows, 1)
    with pytest.raises(ConfigError, match="clock levels: levels is 2"):
        with_clock_levels(base, (2.0,))


def test_fit_uses_up_both_budgets_and_scales() -> None:
    rng = np.random.default_rng(0)
    pace, gain = rng.uniform(0.0, 1.0, (3, 40)), 10 ** rng.uniform(-2, 4, 40)
    pace[:, :5] = 0.0
    found = fit(pace, gain)
    np.testing.assert_allclose(found.bandwidth.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(found.power.sum(axis=1), 1.0, rtol=1e-9)
    on = pace > 0
    rate = found.bandwidth * np.log1p(np.divide(found.power * gain, found.bandwidth, out=np.zeros((3, 40)), where=on))
    np.testing.assert_allclose(rate[on], (pace * found.factor[:, None])[on], rtol=1e-9)
    np.testing.assert_allclose(fit(2.0 * pace, gain).factor, found.factor / 2.0, rtol=1e-12)
    assert fit(np.zeros(3), np.ones(3)).factor == np.inf
