"""Decision processes with memory: known answers, proved certificates, and how far a grid is from continuous levels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.arrays import FloatArray
from megopt.errors import ConfigError, ProblemError
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.solvers import average_limits
from megopt.solvers.average_limits_sampling import sampled_states
from megopt.solvers.occupancy import DecisionProcess, OccupancySolution, solve
from megopt.solvers.occupancy_levels import LinkClasses, battery, edge_queue, poisson_intervals
from megopt.solvers.occupancy_process import level_process
from megopt.solvers.occupancy_simulation import discretisation, simulate
from megopt.solvers.solution import Status
from megopt.system.channel import Rayleigh
from megopt.system.link import Link, LinkState
from megopt.tables.profile import load_profile
from tests import plain_tables
from tests.plain_tables import link_of, table_of

INF = float("inf")
problem_of = partial(plain_tables.problem_of, "latency_s")


def process_of(
    transition: FloatArray, objective: FloatArray, costs: FloatArray | None = None, ceilings: tuple[float, ...] = ()
) -> DecisionProcess:
    full = np.zeros((*objective.shape, 0)) if costs is None else costs
    names = tuple(f"cost {number}" for number in range(len(ceilings)))
    return DecisionProcess(
        transition=transition, objective=objective, costs=full, ceilings=np.array(ceilings), names=names
    )


def random_process(seed: int, num_limits: int) -> DecisionProcess:
    rng = np.random.default_rng(seed)
    num_states, num_actions = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    transition = rng.dirichlet(np.full(num_states, 0.5), size=(num_states, num_actions))
    objective = rng.random((num_states, num_actions))
    objective[0, 0] = INF  # an action that is not allowed
    costs = rng.random((num_states, num_actions, num_limits))
    return process_of(transition, objective, costs, tuple(rng.uniform(0.25, 0.6, num_limits)))


def assert_certified(process: DecisionProcess, solution: OccupancySolution) -> None:
    """Check flow balance, limits, dual signs, complementary slackness and the bound, all from the plain definition."""
    num_states, num_actions = process.objective.shape
    transition = process.transition.toarray().reshape(num_states, num_actions, num_states)
    allowed, most = process.is_allowed, process.ceilings
    weight = 1.0 if solution.status is Status.OPTIMAL else 0.0
    charged = np.where(most < INF, solution.prices, 0.0)
    excess = np.where(np.isfinite(most), process.costs - most, 0.0)
    priced = weight * np.where(allowed, process.objective, 0.0) + excess @ charged
    drift = transition @ solution.potentials - solution.potentials[:, None]
    bound = np.min(np.where(allowed, priced + drift, INF))
    assert np.all(solution.prices >= 0.0)
    np.testing.assert_allclose(np.sum(solution.policy, axis=1), 1.0)
    assert not np.any(solution.policy[~allowed])
    rho = solution.occupancy
    assert np.all(rho >= 0.0)
    np.testing.assert_allclose(np.einsum("sa,sat->t", rho, transition), np.sum(rho, axis=1), atol=1e-9)
    if weight == 0.0:
        assert bound > 0.0
        assert bound == pytest.approx(solution.proof)
        assert solution.message.startswith("no policy keeps cost")
        return
    assert solution.bound == pytest.approx(bound)
    assert solution.value - bound <= 1e-7 * max(1.0, abs(bound))
    assert np.all(solution.costs <= most * (1.0 + 1e-8))
    assert np.all(np.abs((most - solution.costs) * charged) <= 1e-6)


def mean_by_power(process: DecisionProcess, policy: FloatArray) -> float:
    """Return the long-run mean objective of a policy from its own chain, by its stationary distribution."""
    num_states, num_actions = process.objective.shape
    transition = process.transition.toarray().reshape(num_states, num_actions, num_states)
    chain = np.einsum("sa,sat->st", policy, transition)
    system = np.vstack([chain.T - np.eye(num_states), np.ones(num_states)])
    share = np.linalg.lstsq(system, np.append(np.zeros(num_states), 1.0), rcond=None)[0]
    return float(np.sum(share[:, None] * policy * np.where(policy > 0.0, process.objective, 0.0)))


@pytest.mark.parametrize("seed", range(12))
def test_without_limits_it_is_the_best_of_all_deterministic_policies(seed: int) -> None:
    process = random_process(seed, 0)
    solution = solve(process)
    assert_certified(process, solution)
    num_states, num_actions = process.objective.shape
    options = [np.flatnonzero(allowed) for allowed in process.is_allowed]
    means = [mean_by_power(process, np.eye(num_actions)[list(rows)]) for rows in itertools.product(*options)]
    assert solution.value == pytest.approx(min(means), rel=1e-8)
    assert mean_by_power(process, solution.policy) == pytest.approx(solution.value, rel=1e-8)
    assert len(solution.potentials) == num_states


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 100_000), st.integers(1, 3))
def test_limits_are_kept_or_proved_out_of_reach(seed: int, num_limits: int) -> None:
    process = random_process(seed, num_limits)
    solution = solve(process)
    assert_certified(process, solution)
    if solution.status is Status.OPTIMAL:
        assert mean_by_power(process, solution.policy) == pytest.approx(solution.value, rel=1e-6)
        free = solve(replace(process, ceilings=np.full(num_limits, INF)))
        assert solution.value >= free.value - 1e-9


def test_one_state_is_a_coin_between_two_actions() -> None:
    costs = np.array([[[1.0], [3.0]]])
    solution = solve(process_of(np.ones((1, 2, 1)), np.array([[-0.4, -0.8]]), costs, (2.5,)))
    np.testing.assert_allclose(solution.policy, [[0.25, 0.75]], atol=1e-7)
    assert solution.value == pytest.approx(-0.7)
    assert solution.prices == pytest.approx([0.2])
    nothing = solve(process_of(np.ones((1, 2, 1)), np.array([[-0.4, -0.8]]), costs, (0.5,)))
    assert nothing.status is Status.INFEASIBLE
    assert nothing.message == "no policy keeps cost 0 <= 0.5 (nearest mean 1) on average"
    assert nothing.proof == pytest.approx(1.0)


def test_a_level_that_never_binds_leaves_the_memoryless_optimum() -> None:
    table = table_of(edge_s=[0.5, 0.2], device_s=[0.0, 1.0], downlink_bits=[4.0, 1.0], device_energy_j=[0.0, 2.0])
    link = link_of(np.random.default_rng(0).exponential(size=400))
    problem = problem_of(device_energy_j=3.0)
    level = battery(table, link, harvest_j=1e4, capacity_j=1e4, num_points=3)
    model = level_process(table, link, problem, [level], num_classes=6)
    classes = replace(link_of(model.classes.down), uplink_s_per_bit=model.classes.up)
    memoryless = average_limits.solve(table, classes, problem, model.classes.shares)
    solution = solve(model.process)
    assert solution.value == pytest.approx(memoryless.value, rel=1e-7)
    assert solution.prices[0] == pytest.approx(memoryless.prices[0], rel=1e-6)
    finer = level_process(table, link, problem, [level], num_classes=60)
    whole = average_limits.solve(table, link, problem)
    assert abs(solve(finer.process).value - whole.value) < abs(solution.value - whole.value)


def test_waiting_time_of_a_single_row_is_that_of_pollaczek_and_khinchine() -> None:
    table, load = table_of(edge_s=[1.0]), 0.6
    level = edge_queue(
        table, interval_s=poisson_intervals(1.0 / load, 200), capacity_s=16.0, num_points=321, overflow_s=1.0
    )
    model = level_process(table, link_of([1.0]), problem_of(), [level], num_classes=1)
    solution = solve(model.process)
    expected = load / (2.0 * (1.0 - load))
    assert solution.value - 1.0 == pytest.approx(expected, rel=0.03)
    simulated = simulate(model, solution, link_of(np.ones(64 * 600)), seed=0)
    assert abs(simulated.value - 1.0 - expected) <= 4.0 * simulated.value_error + 0.02 * expected
    assert simulated.levels[0] == pytest.approx(simulated.value - 1.0)


def test_a_battery_spends_what_it_harvests_and_no_more() -> None:
    table = table_of(device_s=[5.0, 1.0], device_energy_j=[1.0, 5.0])
    problem = problem_of()
    link = link_of([1.0])
    values = []
    for num_points in (6, 21, 81):
        level = battery(table, link, harvest_j=3.0, capacity_j=40.0, num_points=num_points)
        model = level_process(table, link, problem, [level], num_classes=1)
        solution = solve(model.process)
        assert solution.status is Status.OPTIMAL
        assert solution.costs[0] == pytest.approx(0.0, abs=1e-7)
        values.append(solution.value)
        simulated = simulate(model, solution, link_of(np.ones(32 * 500)), seed=1, num_runs=32)
        assert simulated.value == pytest.approx(3.0, abs=0.05)  # half of the requests are fast: mean energy 3 J
        assert simulated.costs[0] <= 0.01
    assert values[-1] == pytest.approx(3.0, abs=0.02)
    starved = battery(table, link, harvest_j=0.5, capacity_j=40.0, num_points=21)
    solution = solve(level_process(table, link, problem, [starved], num_classes=1).process)
    assert solution.status is Status.INFEASIBLE
    assert solution.message == "no policy keeps shortage_j <= 0 (nearest mean 0.5) on average"


def test_states_that_are_not_visited_lead_to_those_that_are() -> None:
    stay, leave = [1.0, 0.0], [0.0, 1.0]
    transition = np.array([[stay, leave], [leave, leave]])
    objective = np.array([[0.0, 5.0], [-1.0, -1.0]])
    solution = solve(process_of(transition, objective))
    np.testing.assert_array_equal(solution.policy[0], [0.0, 1.0])  # to stay costs less at once and loses for ever
    assert (solution.value, solution.message) == (-1.0, "")
    apart = solve(process_of(np.array([[stay], [leave]]), np.zeros((2, 1))))
    assert apart.message == "the policy has 2 closed classes: its means depend on its start"


def phone_case() -> tuple[ActionTable, LinkState, Link]:
    schemes = [Conventional(num_steps=[25]), StepSplit(num_steps=[25], split_steps=[5, 10, 15, 20])]
    table, _ = compile_all(schemes, load_profile("h100__snapdragon8gen3__sdxl"))
    link = Link(bandwidth_hz=5e6, device_rx_power_w=0.9, edge_tx_power_w=4.7)
    return table, sampled_states(Rayleigh(snr_db=10.0), link, 64 * 1200, seed=3, num_blocks=8), link


@pytest.mark.slow
def test_finer_grids_close_in_on_the_continuous_queue() -> None:
    table, link, _ = phone_case()
    problem = problem_of(device_energy_j=8.0)
    errors = []
    for num_points in (9, 33):
        level = edge_queue(
            table, interval_s=poisson_intervals(3.0), capacity_s=20.0, num_points=num_points, overflow_s=0.01
        )
        model = level_process(table, link, problem, [level], num_classes=4)
        found = discretisation(model, link, seed=4)
        errors.append(found.grid_error)
        simulated = found.simulated
        assert abs(found.finer_value - simulated.value) <= 4.0 * simulated.value_error + found.grid_error * found.value
        assert simulated.costs[0] <= 8.0 + 4.0 * simulated.cost_errors[0] + 0.1
    assert errors[1] < 0.3 * errors[0]
    assert errors[1] < 0.01
    assert found.simulation_error < 0.03


@pytest.mark.slow
def test_queue_and_battery_together() -> None:
    table, link, _ = phone_case()
    queue = edge_queue(table, interval_s=poisson_intervals(4.0, 4), capacity_s=15.0, num_points=11, overflow_s=0.05)
    charge = battery(table, link, harvest_j=6.0, capacity_j=200.0, num_points=11, shortage_j=0.05)
    model = level_process(table, link, problem_of(), [queue, charge], num_classes=3)
    solution = solve(model.process)
    assert solution.status is Status.OPTIMAL
    assert solution.gap < 1e-7
    alone = solve(level_process(table, link, problem_of(), [queue], num_classes=3).process)
    assert solution.value >= alone.value - 1e-9
    simulated = simulate(model, solution, link, seed=5)
    assert simulated.value == pytest.approx(solution.value, rel=0.1)
    assert np.all(simulated.costs <= [0.1, 0.2])
    again = simulate(model, solution, link, seed=5)
    assert again.value == simulated.value


def test_outages_are_classes_of_their_own() -> None:
    table = table_of(edge_s=[1.0, 0.0], device_s=[0.0, 5.0], downlink_bits=[1.0, 0.0])
    link = link_of([0.5, 1.0, 1.5, 2.0, INF])
    classes = LinkClasses.of(link, 2)
    np.testing.assert_allclose(classes.down, [0.75, 1.75, INF])
    np.testing.assert_allclose(classes.shares, [0.4, 0.4, 0.2])
    assert classes.of_states(link).tolist() == [0, 0, 1, 1, 2]
    level = edge_queue(table, interval_s=2.0, capacity_s=4.0, num_points=5)
    model = level_process(table, link, problem_of(), [level], num_classes=2)
    solution = solve(model.process)
    assert solution.value == pytest.approx(0.4 * 1.75 + 0.4 * 2.75 + 0.2 * 5.0)
    with pytest.raises(ProblemError, match="1 of 2 states are in an outage that the classes do not know"):
        LinkClasses.of(link_of([1.0]), 1).of_states(link_of([1.0, INF]))
    only = table.take(np.array([0]))
    with pytest.raises(ProblemError, match="have no action with finite costs"):
        level_process(only, link, problem_of(), [edge_queue(only, interval_s=2.0, capacity_s=4.0)], num_classes=2)


@given(st.floats(0.1, 50.0), st.integers(2, 40), st.floats(-1.0, 2.0), st.floats(-80.0, 80.0))
def test_interpolation_keeps_the_mean_of_the_next_level(capacity: float, points: int, at: float, change: float) -> None:
    level = edge_queue(table_of(edge_s=[1.0]), interval_s=1.0, capacity_s=capacity, num_points=points)
    now = np.array([np.clip(at, 0.0, 1.0) * capacity])
    after, lost = level.moved(now, np.array([change]))
    below, weight = level.neighbours(after)
    assert 0 <= below[0] <= points - 2
    assert -1e-9 <= weight[0] <= 1.0 + 1e-9
    mean = (1.0 - weight) * level.grid[below] + weight * level.grid[below + 1]
    assert mean[0] == pytest.approx(after[0], abs=1e-9 * capacity)
    assert lost[0] == pytest.approx(max(0.0, now[0] + change - capacity), abs=1e-9)


def test_poisson_intervals_keep_the_mean_and_near_the_variance() -> None:
    intervals = poisson_intervals(3.0, 400)
    assert np.mean(intervals) == pytest.approx(3.0)
    assert np.std(intervals) == pytest.approx(3.0, rel=0.01)
    assert poisson_intervals(3.0, 1) == pytest.approx([3.0])


def test_errors_name_the_cause() -> None:
    eye = np.ones((1, 2, 1))
    with pytest.raises(ProblemError, match="1 states x 2 actions come with transition"):
        process_of(np.ones((1, 3, 1)), np.zeros((1, 2)))
    with pytest.raises(ProblemError, match=r"out of state 0 under action 1 sum to 0\.5"):
        process_of(np.array([[[1.0], [0.5]]]), np.zeros((1, 2)))
    with pytest.raises(ProblemError, match="states 0 have no action"):
        process_of(eye, np.full((1, 2), INF))
    table = table_of(edge_s=[1.0, 1.0], device_energy_j=[1.0, np.nan])
    with pytest.raises(ProblemError, match="battery: rows 1 of profile test have no known device energy"):
        battery(table, link_of([1.0]), harvest_j=1.0, capacity_j=2.0)
    with pytest.raises(ConfigError, match="capacity"):
        edge_queue(table, interval_s=1.0, capacity_s=0.0)
    level = edge_queue(table, interval_s=2.0, capacity_s=1.0, num_points=200_001)
    with pytest.raises(ProblemError, match="expected at most 400,000"):
        level_process(table, link_of([1.0]), problem_of(), [level])
    with pytest.raises(ProblemError, match="the link has 0 states"):
        level_process(table, link_of([]), problem_of(), [level])
    small = edge_queue(table, interval_s=2.0, capacity_s=1.0, num_points=3)
    model = level_process(table, link_of([1.0]), problem_of(), [small])
    with pytest.raises(ProblemError, match="1 link states for 64 runs"):
        simulate(model, solve(model.process), link_of([1.0]), seed=0)
    lost = level_process(table, link_of([1.0]), problem_of(latency_s=0.5), [small])
    with pytest.raises(ProblemError, match=r"discretisation: no policy keeps latency_s <= 0\.5"):
        discretisation(lost, link_of(np.ones(200)), seed=0)
