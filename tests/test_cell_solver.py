"""Rows and shares of a cell: certificates, brute force, limiting cases, mixed-integer optimum, statuses."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.benchmarks import cell_allocation as benchmark
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers import cell
from megopt.solvers.cell_dual import attempt, search
from megopt.solvers.cell_exact import solve_exactly
from megopt.solvers.cell_model import CellProblem, CellSolution, score, with_clock_levels
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rates import fit
from megopt.solvers.cell_rounding import choose
from megopt.solvers.cell_shares import shared
from megopt.solvers.exhaustive import solve as solve_per_request
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
    assert problem.sense * again.signed_value == pytest.approx(found.value, rel=1e-12)
    assert not np.any(again.is_broken)
    assert found.bandwidth_price >= 0.0
    assert found.power_price >= 0.0
    assert problem.sense * (found.value - found.bound) >= -1e-9 * abs(found.bound)
    assert found.gap <= gap


# known numbers and limiting cases


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


# certificates


@pytest.mark.parametrize("objective", ["quality", "latency_s", "device_energy_j", "energy_j"])
def test_prices_exact_and_brute_force_agree(objective: str) -> None:
    for seed in range(4):
        problem = small(seed, num_users=3, num_rows=5, objective=objective)
        ours, exact, best = cell.solve(problem), solve_exactly(problem), brute_force(problem)
        assert ours.status == exact.status
        if exact.status == Status.INFEASIBLE:
            assert best == np.inf
            continue
        assert exact.value == pytest.approx(problem.sense * best, rel=1e-9)
        assert_certified(problem, exact, 1e-6)
        assert_certified(problem, ours, 1.0)
        assert problem.sense * (ours.value - exact.value) >= -1e-9 * abs(exact.value)
        assert problem.sense * (exact.value - ours.bound) >= -1e-9 * abs(exact.value)


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
        assert exact.value == pytest.approx(problem.sense * best, rel=1e-6)
        assert exact.gap <= 1e-6
        assert_certified(problem, ours, 1.0)
        assert problem.sense * (ours.bound - exact.value) <= 1e-9 * abs(exact.value)
        num_best += abs(ours.value - exact.value) <= 1e-9 * abs(exact.value)
    assert 5 < num_infeasible < 150
    assert num_best >= 0.9 * (200 - num_infeasible)


def test_any_prices_bound_every_answer() -> None:
    rng = np.random.default_rng(1)
    for objective in ("quality", "latency_s"):
        problem = small(4, objective=objective)
        best, pairs = solve_exactly(problem), Pairs.of(problem)
        value = problem.sense * best.value
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


# statuses and messages


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num_users=st.integers(1, 4),
    num_rows=st.integers(1, 4),
    dead=st.booleans(),
    equal=st.booleans(),
    silent=st.booleans(),
)
def test_degenerate_cells_are_solved_or_refused_by_status(
    seed: int, num_users: int, num_rows: int, dead: bool, equal: bool, silent: bool
) -> None:
    """One row, equal rows, a dead link, rows without payload: certified, or infeasible as brute force says."""
    problem = small(seed, num_users=num_users, num_rows=num_rows)
    table = problem.tables[0].take(np.zeros(num_rows, dtype=int)) if equal else problem.tables[0]
    if silent:
        bits = table.work.downlink_bits.copy()
        bits[0] = 0.0
        table = dataclasses.replace(table, work=dataclasses.replace(table.work, downlink_bits=bits))
    snr = np.array(problem.link.snr)
    snr[0] = 0.0 if dead else snr[0]
    problem = dataclasses.replace(problem, tables=table, link=dataclasses.replace(problem.link, snr=snr))
    ours, best = cell.solve(problem), brute_force(problem)
    if ours.status == Status.INFEASIBLE:
        assert best == np.inf
        assert ours.message
        assert np.all(ours.rows == -1)
        return
    assert_certified(problem, ours, 1.0)
    assert problem.sense * (ours.bound - problem.sense * best) <= 1e-9 * abs(best)


def test_infeasible_names_the_band_that_would_do() -> None:
    table = table_of([4e6, 6e6], [0.4, 0.9])
    problem = CellProblem(tables=table, link=links(10.0, 6), bandwidth_hz=1e6, problem=QUALITY)
    for found in (cell.solve(problem), solve_exactly(problem)):
        assert found.status == Status.INFEASIBLE
        assert found.bound == -np.inf
        assert np.isnan(found.value)
    times = float(found.message.split("need ")[1].split(" times")[0])
    enough = dataclasses.replace(
        problem, bandwidth_hz=1e6 * times * 1.0001, power_w=times * 1.0001,
        link=dataclasses.replace(problem.link, snr=np.asarray(problem.link.snr)),
    )  # fmt: skip
    assert cell.solve(enough).status == Status.OPTIMAL
    late = dataclasses.replace(problem, bounds=np.where(np.arange(6) == 2, -1.0, 2.0)[:, None])
    assert "1 of 6 users have no row within their limits at any rate, first user 2" in cell.solve(late).message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bandwidth_hz": 0.0}, ConfigError, "cell: bandwidth_hz is 0"),
        ({"weights": [1.0, -1.0]}, ConfigError, "cell: weights is -1"),
        ({"weights": [1.0, 1.0, 1.0]}, ProblemError, r"weights has shape \(3,\); expected \(2,\)"),
        ({"kinds": 1}, ConfigError, "cell: kinds is 1"),
        ({"bounds": [[np.nan], [1.0]]}, ConfigError, "bounds hold NaN"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    fields = {"tables": table_of([1e5], [0.5]), "link": links(10.0, 2), "bandwidth_hz": 1e6, "problem": QUALITY}
    with pytest.raises(error, match=message):
        CellProblem(**(fields | change))  # type: ignore[arg-type]


def test_payloads_that_could_take_forever_are_refused() -> None:
    problem = CellProblem(
        tables=table_of([1e5], [0.5]), link=links(10.0, 2), bandwidth_hz=1e6,
        problem=Problem(objective="quality", metric="ssim"),
    )  # fmt: skip
    with pytest.raises(ProblemError, match="lets payloads take forever; expected a finite limit"):
        cell.solve(problem)


def test_large_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megopt.solvers.cell_exact._MOST_PAIRS", 3)
    problem = benchmark.random_cell(8, 30, "quality", np.random.default_rng(5))
    with pytest.raises(ProblemError, match="stay in the running; expected at most 3"):
        solve_exactly(problem, gap=0.0)


@pytest.mark.slow
def test_benchmark_reports_gaps_and_growth() -> None:
    result = benchmark.run(
        num_devices=(50, 400), num_rows=60, num_exact_devices=6, num_exact_rows=15, num_exact_cells=3, repeats=1
    )
    assert result["largest_gap"] <= 0.01
    assert result["quality_exact_gap"] <= 1e-6
    assert result["latency_exact_gap"] <= 1e-6
    assert all(value <= 1e-9 for key, value in result.items() if "violation" in key)
    assert 0.0 < result["growth"] < 3.0


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_stated_budgets_suffice_and_a_hair_less_ends(seed: int) -> None:
    whole = dataclasses.replace(small(seed), bounds=np.tile([4.0, 0.3, 16.0][: small(seed).bounds.shape[1]], (4, 1)))
    message = cell.solve(dataclasses.replace(whole, bandwidth_hz=whole.bandwidth_hz * 1e-6, power_w=1e-9)).message
    found = re.search(r": ([0-9.e+-]+) Hz with ([0-9.e+-]+) W would be enough", message)
    assert found is not None, message
    enough = dataclasses.replace(whole, bandwidth_hz=float(found[1]), power_w=float(found[2]))
    assert cell.solve(enough).status != Status.INFEASIBLE
    factor = float(choose(Pairs.of(enough), Pairs.of(enough).humblest()).fit.factor)
    for shortage in (-1e-9, 5e-10, 1e-8):
        near = (1.0 - shortage) / factor
        budget = {"bandwidth_hz": enough.bandwidth_hz * near, "power_w": enough.power_w * near}
        status = cell.solve(dataclasses.replace(enough, **budget)).status
        assert (status == Status.INFEASIBLE) == (shortage > 0.0)
