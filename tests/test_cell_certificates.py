"""Rows and shares of a cell: certificates, brute force, mixed-integer optimum, the benchmark."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from megopt.benchmarks import cell_allocation as benchmark
from megopt.solvers import cell
from megopt.solvers.cell_dual import attempt, search
from megopt.solvers.cell_exact import solve_exactly
from megopt.solvers.cell_model import CellProblem
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.solution import Status
from tests.cells import QUALITY, assert_certified, brute_force, links, small, table_of


@pytest.mark.parametrize("objective", ["quality", "latency_s", "device_energy_j", "energy_j"])
def test_prices_exact_and_brute_force_agree(objective: str) -> None:
    for seed in range(4):
        problem = small(seed, num_users=3, num_rows=5, objective=objective)
        ours, exact, best = cell.solve(problem), solve_exactly(problem), brute_force(problem)
        assert ours.status == exact.status
        if exact.status == Status.INFEASIBLE:
            assert best == np.inf
            continue
        assert exact.value == pytest.approx(problem.problem.sense * best, rel=1e-9)
        assert_certified(problem, exact, 1e-6)
        assert_certified(problem, ours, 1.0)
        assert problem.problem.sense * (ours.value - exact.value) >= -1e-9 * abs(exact.value)
        assert problem.problem.sense * (exact.value - ours.bound) >= -1e-9 * abs(exact.value)


@pytest.mark.slow
def test_exact_is_brute_force_on_two_hundred_random_cells() -> None:
    num_infeasible, num_best = 0, 0
    for seed in range(200):
        problem = small(seed, num_users=(2, 3, 4)[seed % 3])
        exact, best = solve_exactly(problem), brute_force(problem)
        ours = cell.solve(problem)
        assert ours.status == exact.status
        num_infeasible += exact.status == Status.INFEASIBLE
        if exact.status == Status.INFEASIBLE:
            assert best == np.inf
            continue
        assert exact.value == pytest.approx(problem.problem.sense * best, rel=1e-6)
        assert exact.gap <= 1e-6
        assert_certified(problem, ours, 1.0)
        assert problem.problem.sense * (ours.bound - exact.value) <= 1e-9 * abs(exact.value)
        num_best += abs(ours.value - exact.value) <= 1e-9 * abs(exact.value)
    assert 5 < num_infeasible < 150
    assert num_best >= 0.9 * (200 - num_infeasible)


def test_any_prices_bound_every_answer() -> None:
    rng = np.random.default_rng(1)
    for objective in ("quality", "latency_s"):
        problem = small(4, objective=objective)
        best, pairs = solve_exactly(problem), Pairs.of(problem)
        value = problem.problem.sense * best.value
        for _ in range(30):
            assert attempt(pairs, rng.lognormal(0.0, 2.0, 2)).bound <= value + 1e-9 * abs(value)


def test_the_search_ends_at_the_same_bound_from_anywhere() -> None:
    pairs = Pairs.of(small(0, num_users=6, num_rows=20, objective="latency_s"))
    bounds = [search(pairs, np.array(start)).best.bound for start in ([1.0, 1.0], [1e-3, 10.0], [50.0, 0.1])]
    np.testing.assert_allclose(bounds, bounds[0], rtol=1e-6)


def test_the_gap_closes_with_the_number_of_users() -> None:
    gaps = [
        cell.solve(benchmark.random_cell(size, 40, "quality", np.random.default_rng(3))).gap for size in (5, 50, 500)
    ]
    assert gaps[2] <= 1e-4
    assert gaps[2] <= gaps[0] + 1e-9


@pytest.mark.parametrize("more", ["bandwidth_hz", "link"])
def test_more_of_anything_never_hurts(more: str) -> None:
    problem = small(0, num_users=5, num_rows=20)
    better = {
        "bandwidth_hz": problem.bandwidth_hz * 1.5,
        "link": dataclasses.replace(problem.link, snr=np.asarray(problem.link.snr) * 2.0),
    }
    values = [solve_exactly(one).value for one in (problem, dataclasses.replace(problem, **{more: better[more]}))]
    assert values[1] >= values[0] * (1.0 - 1e-9)


def test_rows_left_out_would_never_be_needed() -> None:
    """Equal rows and rows that another one beats in everything: the same optimum, and the first of equals stays."""
    table = table_of([1e5, 1e5, 4e5, 5e5], [0.3, 0.3, 0.8, 0.7])
    problem = CellProblem(tables=table, link=links(10.0, 4), bandwidth_hz=6e5, problem=QUALITY)
    np.testing.assert_array_equal(Pairs.of(problem).kinds[0].rows, [0, 2])
    without = dataclasses.replace(problem, tables=table.take(np.array([0, 2])))
    assert solve_exactly(problem).value == pytest.approx(solve_exactly(without).value, rel=1e-12)


@pytest.mark.slow
def test_benchmark_reports_gaps_and_growth() -> None:
    result = benchmark.run(
        num_devices=(50, 400), num_rows=60, num_exact_devices=6, num_exact_rows=15, num_exact_cells=3, repeats=1
    )
    assert result["largest_gap"] <= 0.01
    assert result["quality_exact_gap"] <= 1e-6
    assert result["latency_exact_gap"] <= 1e-6
    assert all(value <= 1e-9 for key, value in result.items() if "violation" in key and "fresh" not in key)
    assert 0.0 < result["growth"] < 3.0
    assert 0.0 < result["quality_fresh_broken_400"] < 1.0
    assert result["quality_fresh_violation_p95_400"] > 0.0
    assert result["peak_memory_mb"] >= 0.99 * result["latency_peak_memory_mb_400"] > 0.0
    documented = (benchmark.run.__doc__ or "").split("Args:")[0]
    assert all(re.sub(r"^(quality|latency)_", "", re.sub(r"_\d+$", "", key)) in documented for key in result)
