"""Long-run limits: against the whole linear program, with every certificate proved from the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.arrays import FloatArray
from megopt.benchmarks import exhaustive as benchmark
from megopt.errors import ProblemError
from megopt.problem import Limit, Problem, ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import AverageSolution, rows_under, solve, state_weights
from megopt.solvers.average_limits_dual import minimise
from megopt.solvers.average_limits_groups import lower_hull
from megopt.solvers.average_limits_lp import solve_by_lp
from megopt.solvers.average_limits_oracle import AffineOracle, DenseOracle
from megopt.solvers.average_limits_recovery import recover
from megopt.solvers.average_limits_sampling import sampled_states
from megopt.solvers.brute_force import RowCosts
from megopt.solvers.solution import Status
from megopt.system.channel import Rayleigh
from megopt.system.link import Link, LinkState
from megopt.system.outcome import Work
from tests.plain_tables import link_of, problem_of, table_of

INF, NAN = float("inf"), float("nan")
COLUMNS = ("latency_s", "energy_j", "device_energy_j", "quality")


def pairs(table: ActionTable, link: LinkState, problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Return objective (S, A) and costs (S, A, m) of every pair by `evaluate`: independent of all solvers."""
    states, rows = np.repeat(np.arange(len(link.snr)), len(table)), np.tile(np.arange(len(table)), len(link.snr))
    result = evaluate(table, rows, link.take(states), problem.metric)
    shape = (len(link.snr), len(table))
    return objective(result, problem).reshape(shape), costs(result, problem).reshape(*shape, len(problem.limits))


def lagrangian(table: ActionTable, link: LinkState, problem: Problem, weight: float, prices: FloatArray) -> FloatArray:
    """Return min_a [weight objective + prices . (cost - limit)] per state over rows with finite costs; inf if none."""
    value, cost = pairs(table, link, problem)
    most = np.maximum(ceilings(problem), -1e9)
    used = most < INF
    is_in = np.isfinite(value) & np.all(np.isfinite(cost[..., used]), axis=-1) & ~np.any(np.isnan(cost), axis=-1)
    with np.errstate(invalid="ignore"):
        worth = weight * value + (cost[..., used] - most[used]) @ prices[used]
    return np.min(np.where(is_in, worth, INF), axis=1)


def scales_of(table: ActionTable, link: LinkState, problem: Problem) -> FloatArray:
    """Return what an excess is relative to: the limit, or where that is next to 0 the largest cost; (num_limits,)."""
    _, cost = pairs(table, link, problem)
    largest = np.max(np.abs(cost), axis=(0, 1), where=np.isfinite(cost), initial=0.0)
    size = np.abs(ceilings(problem))
    return np.where(size > 1e-6 * largest, size, largest)


def assert_certified(
    table: ActionTable, link: LinkState, problem: Problem, solution: AverageSolution, weights: FloatArray | None = None
) -> None:
    """Check feasibility, dual signs, complementary slackness, bound and gap, or the proof of infeasibility."""
    sense = -1.0 if problem.objective == "quality" else 1.0
    mass = state_weights(weights, len(link.snr))
    if not np.isfinite(solution.value) and solution.message == "no state has a row with finite costs":
        assert np.all(np.isinf(lagrangian(table, link, problem, 1.0, np.zeros(len(problem.limits)))[mass > 0.0]))
        return
    assert np.all(solution.prices >= 0.0)
    weight = 1.0 if np.isfinite(solution.value) else 0.0
    dual = lagrangian(table, link, problem, weight, solution.prices)
    served = np.isfinite(dual)
    mass = np.where(served, mass, 0.0) / np.sum(mass[served])
    bound = float(mass[served] @ dual[served])
    most = ceilings(problem)
    scale = scales_of(table, link, problem)
    if weight == 0.0:
        assert solution.status is Status.INFEASIBLE
        assert np.all(solution.rows == -1)
        assert bound > 0.0
        if np.all(most > -INF):
            assert bound == pytest.approx(solution.proof, rel=1e-6, abs=1e-12)
        return
    assert solution.status is (Status.OPTIMAL if np.all(served) else Status.PARTLY_INFEASIBLE)
    np.testing.assert_array_equal(solution.is_served, served)
    assert np.all(solution.costs <= most + 2e-9 * scale)
    size = max(abs(bound), 1e-6)
    assert abs(sense * solution.bound - bound) <= 1e-9 * size
    assert abs(solution.value - solution.bound) <= 1e-7 * size
    bounded = most < INF
    slackness = solution.prices[bounded] * (most[bounded] - solution.costs[bounded])
    assert np.all(np.abs(slackness) <= 1e-6 * size)
    assert len(solution.splits) <= len(problem.limits)
    rows_per_split = [len(split.rows) for split in solution.splits]
    assert sum(rows_per_split) <= len(problem.limits) + len(solution.splits)
    assert all(np.sum(split.shares) == pytest.approx(1.0) for split in solution.splits)


def assert_mixture_is_the_answer(
    table: ActionTable, link: LinkState, problem: Problem, solution: AverageSolution, weights: FloatArray | None = None
) -> None:
    """Following the mixed prices state by state gives the value, within the limits."""
    mass = np.where(solution.is_served, state_weights(weights, len(link.snr)), 0.0)
    mass /= np.sum(mass)
    value, mean = 0.0, np.zeros(len(problem.limits))
    states = np.flatnonzero(mass > 0.0)
    for prices, share in zip(solution.mixture.prices, solution.mixture.shares, strict=True):
        rows = rows_under(table, link.take(states), problem, prices)
        result = evaluate(table, rows, link.take(states), problem.metric)
        value += share * float(mass[states] @ result.quantity(problem.objective))
        mean += share * (mass[states] @ costs(result, problem))
    assert value == pytest.approx(solution.value, rel=1e-6, abs=1e-9)
    most = ceilings(problem)
    assert np.all(mean <= most + 1e-8 * scales_of(table, link, problem))


RANGES = {"latency_s": (0.2, 2.0), "energy_j": (10.0, 120.0), "device_energy_j": (0.5, 6.0), "quality": (0.3, 0.9)}


def random_instance(seed: int) -> tuple[ActionTable, LinkState, Problem, FloatArray | None]:
    rng = np.random.default_rng(seed)
    num_states, num_rows = int(rng.integers(1, 60)), int(rng.integers(1, 25))
    table, link = benchmark.instance(num_states, num_rows, rng)
    uplink = seed % 3
    if uplink:
        columns = {name: getattr(table.work, name) for name in Work.__dataclass_fields__}
        columns |= {"uplink_bits": 1e6 * rng.random(num_rows), "ssim": table.metric("ssim")}
        table = table_of(**columns)
        up = link.downlink_s_per_bit * (3.0 if uplink == 1 else rng.uniform(0.3, 3.0, num_states))
        link = link_of(link.downlink_s_per_bit, up)
    goal = ("quality", "latency_s", "energy_j")[seed // 3 % 3]
    names = [name for name in COLUMNS if name != goal]
    limits = {str(q): float(rng.uniform(*RANGES[q])) for q in rng.permutation(names)[: rng.integers(0, 4)]}
    weights = rng.random(num_states) * (rng.random(num_states) < 0.8) + 1e-3 if seed % 2 else None
    return table, link, problem_of(goal, **limits), weights


@pytest.mark.parametrize(
    "seeds", [range(15), pytest.param(range(15, 200), marks=pytest.mark.slow)], ids=["first 15", "other 185"]
)
def test_two_hundred_random_instances_against_the_whole_linear_program(seeds: range) -> None:
    statuses = []
    for seed in seeds:
        table, link, problem, weights = random_instance(seed)
        solution = solve(table, link, problem, weights)
        whole = solve_by_lp(table, link, problem, weights)
        assert solution.status is whole.status, f"seed {seed}"
        assert_certified(table, link, problem, solution, weights)
        statuses.append(solution.status)
        if solution.status is Status.OPTIMAL:
            assert solution.value == pytest.approx(whole.value, rel=1e-6), f"seed {seed}"
            assert solution.gap <= 1e-6
            assert_mixture_is_the_answer(table, link, problem, solution, weights)
    assert 0.25 <= statuses.count(Status.OPTIMAL) / len(statuses) <= 0.95


TWO = table_of(edge_s=[1.0, 3.0], ssim=[0.4, 0.8])
"""Rows whose costs do not depend on the link: the optimum under latency 2.5 follows the better row 3/4 of the time."""


def test_known_answer_randomises_between_two_rows() -> None:
    for num_states in (1, 7, 5000):
        link = link_of(np.linspace(0.0, 1.0, num_states))
        solution = solve(TWO, link, problem_of(latency_s=2.5))
        assert solution.value == pytest.approx(0.7, rel=1e-9)
        assert solution.costs == pytest.approx([2.5], rel=1e-9)
        assert solution.prices == pytest.approx([0.2], rel=1e-9)
        assert len(solution.splits) <= 1
        assert_certified(TWO, link, problem_of(latency_s=2.5), solution)
        assert np.sort(solution.mixture.shares) == pytest.approx([0.25, 0.75])
    assert len(solve(TWO, link_of([0.0]), problem_of(latency_s=2.5)).splits) == 1


def test_a_looser_limit_is_worth_its_price() -> None:
    table, link = benchmark.instance(400, 80, np.random.default_rng(3))
    tight, loose = (solve(table, link, problem_of(latency_s=bound)) for bound in (0.7, 0.701))
    gain = (loose.value - tight.value) / 0.001
    assert loose.prices[0] - 1e-9 <= gain <= tight.prices[0] + 1e-9
    assert tight.prices[0] > 0.0


def test_slack_and_infinite_limits_cost_nothing() -> None:
    table, link = benchmark.instance(100, 40, np.random.default_rng(1))
    free = solve(table, link, problem_of())
    for limits in ({"latency_s": INF}, {"latency_s": 1e9, "energy_j": INF}):
        solution = solve(table, link, problem_of(**limits))
        assert solution.value == pytest.approx(free.value, rel=1e-12)
        assert not np.any(solution.prices)
        assert_certified(table, link, problem_of(**limits), solution)
    assert free.splits == ()


def test_dead_links_leave_only_rows_without_payload() -> None:
    table = table_of(edge_s=[1.0, 2.0], downlink_bits=[1.0, 0.0], uplink_bits=[1.0, 1.0], ssim=[0.9, 0.5])
    link = link_of([0.1, INF, 0.1, INF], [0.1, 0.2, INF, INF])
    solution = solve(table, link, problem_of(latency_s=10.0))
    assert solution.rows.tolist() == [0, 1, -1, -1]
    assert solution.status is Status.PARTLY_INFEASIBLE
    assert "2 of 4 states have no row with finite costs" in solution.message
    assert solution.value == pytest.approx(0.7)
    assert_certified(table, link, problem_of(latency_s=10.0), solution)
    dead = solve(table, link.take(np.array([3])), problem_of(latency_s=10.0))
    assert (dead.status, dead.message) == (Status.INFEASIBLE, "no state has a row with finite costs")
    weighted = solve(table, link, problem_of(latency_s=10.0), np.array([0.0, 0.0, 1.0, 1.0]))
    assert weighted.status is Status.INFEASIBLE


def test_infeasible_limits_are_named_with_what_could_be_kept() -> None:
    link = link_of([0.0, 0.0])
    solution = solve(TWO, link, problem_of(latency_s=0.5, quality=0.4))
    assert solution.status is Status.INFEASIBLE
    assert solution.reachable == pytest.approx([1.0, NAN], nan_ok=True)
    assert solution.message.startswith("no choice of rows keeps the limits on average: latency_s <= 0.5 is out of")
    assert solution.message.endswith("reach, its nearest reachable mean is 1")
    both = solve(TWO, link, problem_of(latency_s=0.5, quality=0.9))
    assert np.all(np.isnan(both.reachable))
    assert both.message.startswith("no choice of rows keeps latency_s <= 0.5 and quality at least as good as 0.9 on")
    trade = solve(TWO, link, problem_of("energy_j", latency_s=2.0, quality=0.7))
    assert trade.reachable == pytest.approx([2.5, -0.6])
    assert_certified(TWO, link, problem_of(latency_s=0.5, quality=0.9), both)
    endless = solve(TWO, link, problem_of(quality=INF))
    assert endless.status is Status.INFEASIBLE
    assert "its nearest reachable mean is 0.8" in endless.message


GRID = st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.1, 0.3, 0.1 + 0.2, 1.0 + 2.0**-52, 7.7])
TIMES = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 10.0, INF]), st.floats(1e-3, 4.0))
BOUNDS = st.sampled_from([0.0, 0.1, 0.3, 1.0, 1.3, 2.0, 3.0, 5.0, 10.0, 1e6, INF])


@st.composite
def degenerate(draw: st.DrawFn) -> tuple[ActionTable, LinkState, Problem, FloatArray | None]:
    num_rows = draw(st.integers(1, 5))
    column = st.lists(GRID, min_size=num_rows, max_size=num_rows)
    names = ["edge_s", "downlink_bits", "edge_energy_j", "device_energy_j", "ssim"]
    columns = {name: draw(column) for name in names}
    uplink = draw(st.sampled_from(["none", "equal", "free"]))
    columns["uplink_bits"] = [0.0] * num_rows if uplink == "none" else draw(column)
    down = draw(st.lists(TIMES, min_size=1, max_size=5))
    up = draw(st.lists(TIMES, min_size=len(down), max_size=len(down))) if uplink == "free" else down
    limits = draw(st.lists(st.tuples(st.sampled_from(COLUMNS), BOUNDS), max_size=3))
    goal = draw(st.sampled_from(["quality", "latency_s", "energy_j"]))
    problem = Problem(objective=goal, metric="ssim", limits=tuple(Limit(quantity=q, bound=b) for q, b in limits))
    weights = draw(st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(down), max_size=len(down)))
    is_usable = weights is not None and sum(weights) > 0.0
    return table_of(**columns), link_of(down, up), problem, np.array(weights) if is_usable else None


@settings(max_examples=2 * settings().max_examples)
@given(degenerate())
def test_degenerate_instances_end_with_a_proved_status(
    instance: tuple[ActionTable, LinkState, Problem, FloatArray | None],
) -> None:
    table, link, problem, weights = instance
    solution = solve(table, link, problem, weights)
    assert_certified(table, link, problem, solution, weights)
    if np.isfinite(solution.value):
        assert_mixture_is_the_answer(table, link, problem, solution, weights)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["none", "ratio", "free"]))
def test_oracle_picks_the_best_row_of_every_state(seed: int, uplink: str) -> None:
    rng = np.random.default_rng(seed)
    num_states, num_rows = int(rng.integers(1, 1200)), int(rng.integers(1, 30))
    bits = [rng.integers(0, 4, num_rows).astype(float) for _ in range(4)]
    table = table_of(edge_s=bits[0], downlink_bits=bits[1], uplink_bits=bits[2] * (uplink != "none"), ssim=bits[3])
    down = rng.exponential(size=num_states)
    link = link_of(down, rng.exponential(size=num_states) if uplink == "free" else 2.0 * down)
    problem = problem_of(latency_s=1.0, energy_j=1.0)
    weights = rng.random(num_states)
    row_costs = RowCosts.of(table, link, problem)
    oracle = AffineOracle(row_costs, link, weights)
    value, cost = pairs(table, link, problem)
    full = np.moveaxis(np.concatenate([value[..., None], cost], axis=-1), -1, 0)
    dense = DenseOracle(full, weights)
    for prices in (np.array([1.0, 0.0, 0.0]), np.array([0.0, 1.0, 0.5]), rng.random(3)):
        worth = np.einsum("q,qsa->sa", prices, full)
        for one in (oracle, dense):
            rows = one.rows(prices)
            np.testing.assert_allclose(
                worth[np.arange(num_states), rows], np.min(worth, axis=1), rtol=1e-12, atol=1e-12
            )
            picked = full[:, np.arange(num_states), rows] @ weights / np.sum(weights)
            assert prices @ one.totals(prices) == pytest.approx(prices @ picked, rel=1e-9, abs=1e-12)


def test_lower_hull_of_three_lines() -> None:
    lines, begins = lower_hull(np.array([0.0, 1.0, 1.5]), np.array([2.0, 1.5, 0.0]))
    assert (lines.tolist(), begins.tolist()) == ([0, 2], [0.75])
    lines, begins = lower_hull(np.array([0.0, 0.5, 1.5]), np.array([2.0, 1.0, 0.0]))
    assert (lines.tolist(), begins.tolist()) == ([0, 1, 2], [0.5, 1.0])


def test_costs_that_are_not_affine_are_solved_from_their_array() -> None:
    rng = np.random.default_rng(5)
    full = rng.random((3, 300, 20)) ** np.array([1.0, 2.0, 3.0])[:, None, None]
    full[1, 0, :19] = INF  # one state with a single usable row
    full[2, 1, :] = INF  # and one without any
    weights = np.full(300, 1.0 / 300)
    oracle, most = DenseOracle(full, weights), np.array([0.05, 0.04])
    found = minimise(oracle, most)
    choice = recover(oracle, found.mixture, weights, most)
    assert (choice.rows[0], choice.rows[1]) == (19, -1)
    served = np.delete(np.arange(300), 1)
    fractional = {split.state: split for split in choice.splits}
    totals = np.zeros(3)
    for state in served:
        split = fractional.get(int(state))
        picked = full[:, state, split.rows] @ split.shares if split else full[:, state, choice.rows[state]]
        totals += picked / len(served)
    assert np.all(totals[1:] <= most * (1.0 + 2e-9))
    assert totals[0] == pytest.approx(found.bound, rel=1e-7)
    assert np.all(found.prices > 0.0)
    with pytest.raises(ProblemError, match=r"costs of shape \(3, 300, 20\) with 2 weights"):
        DenseOracle(full, np.ones(2))


@pytest.mark.slow
def test_very_many_contested_states_leave_one_split() -> None:
    solution = solve(TWO, link_of(np.linspace(0.0, 1.0, 200_000)), problem_of(latency_s=2.0 + 1e-7))
    assert len(solution.splits) == 1
    assert solution.gap <= 1e-8
    assert np.mean(solution.rows) == pytest.approx(0.5, abs=1e-5)


def test_sixteen_link_rates_randomise_in_one_of_them() -> None:
    table, _ = benchmark.instance(1, 60, np.random.default_rng(2))
    link = sampled_states(Rayleigh(snr_db=10.0), Link(bandwidth_hz=1e6, adaptation="cqi"), 3000, seed=0)
    table = table_of(
        edge_s=np.append(table.work.edge_s, 5.0),
        downlink_bits=np.append(table.work.downlink_bits, 0.0),
        ssim=np.append(table.metric("ssim"), 0.2),
    )
    problem = problem_of(latency_s=2.0)
    solution = solve(table, link, problem)
    assert np.any(np.isinf(link.downlink_s_per_bit))
    assert_certified(table, link, problem, solution)
    assert_mixture_is_the_answer(table, link, problem, solution)
    rows = [rows_under(table, link, problem, prices) for prices in solution.mixture.prices]
    assert len(np.unique(link.downlink_s_per_bit[np.ptp(rows, axis=0) > 0])) == 1


def test_memory_stays_bounded_where_both_link_times_vary() -> None:
    import tracemalloc

    table, link = benchmark.instance(20_000, 500, np.random.default_rng(0))
    columns = {name: getattr(table.work, name) for name in Work.__dataclass_fields__}
    rng = np.random.default_rng(1)
    table = table_of(**(columns | {"uplink_bits": 1e6 * rng.random(500), "ssim": table.metric("ssim")}))
    link = link_of(link.downlink_s_per_bit, link.downlink_s_per_bit * rng.uniform(0.5, 2.0, 20_000))
    tracemalloc.start()
    solution = solve(table, link, problem_of(latency_s=0.9, energy_j=40.0))
    assert tracemalloc.get_traced_memory()[1] < 60e6  # the matrix of all pairs takes 80 MB for each of three quantities
    tracemalloc.stop()
    assert solution.gap <= 1e-9


def test_errors_name_the_cause() -> None:
    link = link_of([0.1, 0.2])
    with pytest.raises(ProblemError, match="0 channel states"):
        solve(TWO, link_of([]), problem_of())
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [NAN, 1.0]):
        with pytest.raises(ProblemError, match="weights"):
            solve(TWO, link, problem_of(), np.array(weights))
    with pytest.raises(ProblemError, match="at most 4,000,000 pairs"):
        solve_by_lp(TWO, link_of(np.ones(2_000_001)), problem_of())
