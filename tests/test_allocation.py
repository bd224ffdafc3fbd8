"""Allocation: optimality conditions, limiting cases in closed form, two independent solvers that agree, statuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.benchmarks import allocation as benchmark
from megopt.errors import ConfigError, ProblemError
from megopt.solvers.allocation import solve
from megopt.solvers.allocation_cells import dual_bound
from megopt.solvers.allocation_device import efficiency
from megopt.solvers.allocation_model import AllocationProblem, AllocationSolution, Objective, score, violation
from megopt.solvers.solution import Status
from megopt.system.link import LinkState
from megopt.system.outcome import Work, outcome

TOLERANCE = 1e-9


def cell(num_devices: int, objective: str = "sum_latency", seed: int = 0, **fields: object) -> AllocationProblem:
    rng = np.random.default_rng(seed)
    drawn = {
        "bits": rng.uniform(1e5, 4e6, num_devices),
        "gain_to_noise_hz_per_w": 10 ** rng.uniform(6, 9, num_devices),
        "bandwidth_hz": 1e5 * num_devices,
        "power_w": 0.1 * num_devices,
        "edge_s": rng.uniform(0.1, 1.0, num_devices),
        "device_cycles": rng.uniform(1e8, 2e9, num_devices),
        "receive_power_w": rng.uniform(0.1, 1.0, num_devices),
        "latency_weight": rng.uniform(0.1, 1.0, num_devices),
    }
    return AllocationProblem(objective=objective, **(drawn | fields))  # type: ignore[arg-type]


def shares_of(found: AllocationSolution) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return found.bandwidth_hz, found.transmit_power_w, found.clock_hz


def bound_of(problem: AllocationProblem, found: AllocationSolution) -> np.ndarray:
    return dual_bound(
        problem,
        bandwidth_price=found.bandwidth_price,
        power_price=found.power_price,
        deadline_price=found.deadline_price,
        latency_price=found.latency_price,
    )


def assert_certified(problem: AllocationProblem, found: AllocationSolution) -> None:
    """Primal feasibility, dual signs, complementary slackness, and a gap of rounding size."""
    assert found.status == Status.OPTIMAL
    assert np.all(violation(problem, *shares_of(found)) <= TOLERANCE)
    assert all(np.all(p >= 0) for p in (found.bandwidth_price, found.power_price, found.deadline_price))
    slack_s = np.where(np.isfinite(problem.deadline_s), problem.deadline_s - found.latency_s, 1e30)
    assert np.all(np.where(slack_s > 1e-6 * problem.deadline_s, found.deadline_price, 0.0) == 0.0)
    np.testing.assert_allclose(found.bounds, bound_of(problem, found), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.values, found.bounds, rtol=TOLERANCE, atol=1e-12)


# known numbers and limiting cases


def test_equal_devices_share_equally() -> None:
    """K equal devices: B/K and P/K each, and the latency of one link in closed form."""
    problem = AllocationProblem(
        bits=np.full(4, 1e6), gain_to_noise_hz_per_w=1e7, bandwidth_hz=4e6, power_w=4.0, device_cycles=3e9
    )
    found = solve(problem)
    np.testing.assert_allclose(found.bandwidth_hz, 1e6, rtol=1e-9)
    np.testing.assert_allclose(found.transmit_power_w, 1.0, rtol=1e-9)
    np.testing.assert_allclose(found.latency_s, 1.0 / np.log2(11.0) + 2.0, rtol=1e-9)
    assert found.values == pytest.approx(4.0 * (1.0 / np.log2(11.0) + 2.0), rel=1e-9)
    assert found.gaps <= TOLERANCE


@pytest.mark.parametrize("objective", ["sum_latency", "largest_latency"])
def test_equal_links_share_by_the_payload(objective: str) -> None:
    """Equal gains: the density is common, so that shares follow the square root of the payload, or the payload."""
    bits = np.array([1e6, 4e6, 9e6])
    problem = AllocationProblem(
        bits=bits, gain_to_noise_hz_per_w=1e7, bandwidth_hz=1e6, power_w=1.0, objective=objective
    )
    found = solve(problem)
    wanted = bits if objective == "largest_latency" else np.sqrt(bits)
    np.testing.assert_allclose(found.bandwidth_hz, 1e6 * wanted / wanted.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.transmit_power_w, wanted / wanted.sum(), rtol=1e-9)


def test_the_largest_latency_is_everybodys() -> None:
    found = solve(cell(20, "largest_latency"))
    np.testing.assert_allclose(found.latency_s, found.values, rtol=1e-9)
    assert np.sum(found.latency_price) == pytest.approx(1.0)


def test_the_unhurried_clock_balances_time_and_energy() -> None:
    """Without a deadline f = (alpha/(2 beta k))^(1/3): 1e9 Hz for alpha = 2, beta = 1, k = 1e-27."""
    found = solve(cell(3, "weighted", latency_weight=2.0, energy_weight=1.0, energy_coefficient=1e-27))
    np.testing.assert_allclose(found.clock_hz, 1e9, rtol=1e-12)
    np.testing.assert_allclose(solve(cell(3, "energy")).clock_hz, 1e8)
    np.testing.assert_allclose(solve(cell(3, "sum_latency")).clock_hz, 1.5e9)


def test_efficiency_solves_its_equation() -> None:
    target = np.logspace(-12, 30, 85)
    v = efficiency(target)
    exact = np.where(v < 1e-2, v * v / 2 + v**3 / 3 + v**4 / 8 + v**5 / 30, np.exp(v) * (v - 1) + 1)
    np.testing.assert_allclose(exact, target, rtol=1e-9)
    assert np.all(np.diff(v) > 0)


def test_prices_are_what_the_budgets_are_worth() -> None:
    """Envelope theorem: the derivative of the optimum in B, P and a deadline is minus its price."""
    problem = cell(6, "weighted", deadline_s=9.0)
    base = solve(problem)
    assert np.any(base.deadline_price > 0)
    for name, price in (("bandwidth_hz", base.bandwidth_price), ("power_w", base.power_price)):
        step = 1e-5 * getattr(problem, name)
        more, less = (solve(dataclasses.replace(problem, **{name: getattr(problem, name) + s})) for s in (step, -step))
        assert (less.values - more.values) / (2 * step) == pytest.approx(price, rel=1e-6)
    first = int(np.argmax(base.deadline_price))
    step = 1e-5 * np.eye(6)[first]
    more, less = (solve(dataclasses.replace(problem, deadline_s=problem.deadline_s + s)) for s in (step, -step))
    assert (less.values - more.values) / 2e-5 == pytest.approx(base.deadline_price[first], rel=1e-5)


def test_scores_are_those_of_the_system_model() -> None:
    problem = cell(5, "weighted", receive_power_w=0.7)
    found = solve(problem)
    zero, u = np.zeros(5), found.airtime_s / problem.bits
    work = Work(
        edge_s=problem.edge_s, device_s=problem.device_cycles / found.clock_hz, downlink_bits=problem.bits,
        uplink_bits=zero, num_round_trips=zero, edge_energy_j=zero,
        device_energy_j=1e-27 * problem.device_cycles * found.clock_hz**2,
    )  # fmt: skip
    link = LinkState(
        snr=zero, downlink_s_per_bit=u, uplink_s_per_bit=zero, round_trip_s=0.0,
        device_rx_power_w=0.7, device_tx_power_w=0.0, edge_tx_power_w=0.0,
    )  # fmt: skip
    result = outcome(work, link, zero)
    np.testing.assert_allclose(found.latency_s, result.latency_s, rtol=1e-12)
    np.testing.assert_allclose(found.device_energy_j, result.device_energy_j, rtol=1e-12)
    rate = found.bandwidth_hz * np.log2(
        1 + found.transmit_power_w * problem.gain_to_noise_hz_per_w / found.bandwidth_hz
    )
    np.testing.assert_allclose(u, 1 / rate, rtol=1e-12)
    np.testing.assert_allclose(found.radio_energy_j, found.transmit_power_w * problem.bits / rate, rtol=1e-12)


# certificates


@pytest.mark.parametrize("objective", list(Objective))
@pytest.mark.parametrize("deadline_s", [np.inf, 12.0])
@pytest.mark.parametrize("num_devices", [1, 7, 300])
def test_every_answer_carries_its_certificate(objective: str, deadline_s: float, num_devices: int) -> None:
    problem = cell(num_devices, objective, deadline_s=deadline_s)
    assert_certified(problem, solve(problem))


@pytest.mark.slow
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num_devices=st.integers(1, 8),
    objective=st.sampled_from(list(Objective)),
    idle=st.booleans(),
    lazy=st.booleans(),
    silent=st.booleans(),
    factor=st.sampled_from([1.0001, 1.01, 1.5, 10.0]),
)
def test_degenerate_cells_are_solved_or_refused_by_status(
    seed: int, num_devices: int, objective: Objective, idle: bool, lazy: bool, silent: bool, factor: float
) -> None:
    """Devices without payload, work or receive power; deadlines from hardly feasible to loose; both sides of it."""
    problem = cell(num_devices, "largest_latency", seed)
    first = np.eye(num_devices)[0] == 1
    changes: dict[str, object] = {
        "bits": np.where(idle & first, 0.0, problem.bits),
        "device_cycles": np.where(lazy & first, 0.0, problem.device_cycles),
        "receive_power_w": 0.0 if silent else problem.receive_power_w,
    }
    problem = dataclasses.replace(problem, **changes)
    least_s = solve(problem).values
    feasible = dataclasses.replace(problem, objective=objective, deadline_s=least_s * factor)
    assert_certified(feasible, solve(feasible))
    hopeless = dataclasses.replace(problem, objective=objective, deadline_s=least_s * 0.999)
    found = solve(hopeless)
    assert found.status == Status.INFEASIBLE
    assert np.isnan(found.values)
    assert found.bounds == np.inf


def test_any_multipliers_bound_every_allocation() -> None:
    rng = np.random.default_rng(3)
    for objective in Objective:
        problem = cell(5, objective, deadline_s=60.0)
        best = solve(problem)
        for _ in range(30):
            noise = rng.lognormal(0.0, 0.5, 4)
            bound = dual_bound(
                problem,
                bandwidth_price=best.bandwidth_price * noise[0],
                power_price=best.power_price * noise[1],
                deadline_price=best.deadline_price * noise[2],
                latency_price=best.latency_price * rng.lognormal(0.0, 0.5, 5),
            )
            share_w, share_p = rng.dirichlet(np.full(5, 20.0)), rng.dirichlet(np.full(5, 20.0))
            tried = share_w * problem.bandwidth_hz, share_p * problem.power_w, rng.uniform(1e8, 1.5e9, 5)
            assert bound <= best.values * (1 + 1e-12)
            if violation(problem, *tried) == 0.0:
                assert score(problem, *tried).values >= best.values * (1 - 1e-12)


def test_a_fine_grid_finds_nothing_better() -> None:
    """Two devices, shares of band and power on a 400 x 400 grid: the best lies within a thousandth above."""
    problem = cell(2, "sum_latency", seed=5)
    w, p = (axis.ravel() for axis in np.meshgrid(*[np.linspace(0.0, 1.0, 402)[1:-1]] * 2))
    grid = AllocationProblem(
        **{f: getattr(problem, f) for f in ("bits", "gain_to_noise_hz_per_w", "edge_s", "device_cycles")},
        bandwidth_hz=np.full(len(w), problem.bandwidth_hz), power_w=np.full(len(w), problem.power_w),
    )  # fmt: skip
    both = [np.stack([share, 1 - share], axis=1) * float(b) for share, b in ((w, 2e5), (p, 0.2))]
    least = score(grid, both[0], both[1], grid.clock_max_hz).values.min()
    best = solve(problem).values
    assert best <= least <= best * 1.001


@pytest.mark.parametrize("objective", list(Objective))
def test_many_cells_at_once_are_the_cells_one_by_one(objective: str) -> None:
    rng = np.random.default_rng(1)
    bits = rng.uniform(1e5, 4e6, (2, 3, 6))
    bits[0, 1] = 0.0
    gains = 10 ** rng.uniform(6, 9, (2, 3, 6))
    gains[1, 2, 0] = 0.0
    problem = cell(6, objective, bits=bits, gain_to_noise_hz_per_w=gains, bandwidth_hz=rng.uniform(4e5, 8e5, (2, 3)))
    found = solve(problem)
    assert found.status == Status.PARTLY_INFEASIBLE
    np.testing.assert_array_equal(found.is_feasible, [[True, True, True], [True, True, False]])
    for i, j in np.ndindex(2, 3):
        alone = cell(
            6, objective, bits=bits[i, j], gain_to_noise_hz_per_w=gains[i, j], bandwidth_hz=problem.bandwidth_hz[i, j]
        )
        np.testing.assert_allclose(found.values[i, j], solve(alone).values, rtol=1e-9)
        np.testing.assert_allclose(found.bandwidth_hz[i, j], solve(alone).bandwidth_hz, rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "objective"), [("bandwidth_hz", "sum_latency"), ("power_w", "largest_latency"), ("deadline_s", "energy")]
)
def test_more_of_anything_never_hurts(more: str, objective: str) -> None:
    values = [solve(cell(9, objective, **({"deadline_s": 15.0} | {more: base * factor}))).values
              for base in [{"bandwidth_hz": 9e5, "power_w": 0.9, "deadline_s": 15.0}[more]]
              for factor in (1.0, 1.2, 2.0)]  # fmt: skip
    assert values[0] > values[1] > values[2]


# statuses and messages


def test_infeasible_names_the_power_that_would_do() -> None:
    problem = cell(5, "energy", deadline_s=float(solve(cell(5, "largest_latency")).values) * 0.9)
    found = solve(problem)
    assert found.status == Status.INFEASIBLE
    assert found.least_power_w > problem.power_w
    enough = solve(dataclasses.replace(problem, power_w=found.least_power_w * 1.0001))
    assert enough.status == Status.OPTIMAL
    assert solve(dataclasses.replace(problem, power_w=found.least_power_w * 0.9999)).status == Status.INFEASIBLE


def test_resources_without_use_have_no_price() -> None:
    """Energy alone, free reception, loose deadlines: slowest clocks, and more band would change nothing."""
    problem = cell(4, "energy", receive_power_w=0.0, deadline_s=1e4)
    found = solve(problem)
    assert_certified(problem, found)
    np.testing.assert_allclose(found.clock_hz, 1e8)
    assert found.bandwidth_price == 0.0
    assert found.power_price == 0.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"objective": "fastest"}, ProblemError, "objective 'fastest'; expected one of sum_latency, energy"),
        ({"bits": -1.0}, ConfigError, "allocation: bits is -1"),
        ({"power_w": 0.0}, ConfigError, "allocation: power_w is 0"),
        ({"clock_min_hz": 2e9}, ProblemError, "clock_min_hz is above clock_max_hz"),
        ({"edge_s": np.zeros(4)}, ProblemError, "do not go together; expected"),
        ({"objective": "energy", "receive_power_w": 0.0}, ProblemError, "3 payloads may take forever at no cost"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cell(3, **change)  # type: ignore[arg-type]


# the independent check


@pytest.fixture(scope="module")
def solve_by_cvxpy() -> Callable[[AllocationProblem], AllocationSolution]:
    from megopt.solvers.allocation_cvxpy import solve_by_cvxpy

    return solve_by_cvxpy


@pytest.mark.slow
def test_programs_are_compiled_once_with_parameters() -> None:
    from megopt.solvers.allocation_cvxpy import Kind, compiled

    for objective in Objective:
        for deadline_s in (np.inf, 20.0):
            kind = Kind.of(cell(4, objective, deadline_s=deadline_s))
            assert compiled(kind).problem.is_dpp()
            assert compiled(kind) is compiled(Kind.of(cell(4, objective, seed=9, deadline_s=deadline_s)))


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(Objective))
def test_cvxpy_agrees(objective: str, solve_by_cvxpy: Callable[[AllocationProblem], AllocationSolution]) -> None:
    for seed in range(4):
        problem = cell(6, objective, seed, deadline_s=np.inf if seed % 2 else 14.0)
        ours, theirs = solve(problem), solve_by_cvxpy(problem)
        assert theirs.status == Status.OPTIMAL
        assert ours.values == pytest.approx(theirs.values, rel=1e-6)
        assert theirs.bounds == pytest.approx(ours.values, rel=1e-6)
        np.testing.assert_allclose(ours.bandwidth_price, theirs.bandwidth_price, rtol=1e-3)
        np.testing.assert_allclose(ours.power_price, theirs.power_price, rtol=1e-3)


@pytest.mark.slow
def test_cvxpy_agrees_on_two_hundred_random_cells(
    solve_by_cvxpy: Callable[[AllocationProblem], AllocationSolution],
) -> None:
    num_infeasible = 0
    for seed in range(200):
        objective = list(Objective)[seed % 4]
        deadline_s = np.inf if seed % 3 == 0 else float(np.random.default_rng(seed).uniform(5.0, 20.0))
        problem = cell((2, 5, 12)[seed % 3], objective, seed, deadline_s=deadline_s)
        ours, theirs = solve(problem), solve_by_cvxpy(problem)
        assert ours.status == theirs.status
        num_infeasible += ours.status == Status.INFEASIBLE
        if ours.status == Status.OPTIMAL:
            assert ours.values == pytest.approx(theirs.values, rel=1e-6)
    assert 5 < num_infeasible < 150


def test_cvxpy_says_what_it_cannot_do(solve_by_cvxpy: Callable[[AllocationProblem], AllocationSolution]) -> None:
    with pytest.raises(ProblemError, match=r"shape \(2, 3\); expected \(num_devices,\)"):
        solve_by_cvxpy(cell(3, bits=np.ones((2, 3))))
    with pytest.raises(ProblemError, match="1 devices receive nothing"):
        solve_by_cvxpy(cell(2, bits=np.array([0.0, 1e6])))
    assert solve_by_cvxpy(cell(2, gain_to_noise_hz_per_w=np.array([0.0, 1e7]))).status == Status.INFEASIBLE


@pytest.mark.slow
def test_benchmark_reports_speed_and_agreement() -> None:
    result = benchmark.run(num_devices=60, repeats=1)
    assert result["least_speedup"] > 1.0
    assert all(value <= 1e-6 for key, value in result.items() if key.endswith(("difference", "gap")))
    assert 0.0 < result["batch_s_per_cell"] < result["sum_latency_cvxpy_s"]
