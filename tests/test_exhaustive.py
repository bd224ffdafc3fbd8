"""The per-request optimum: known answers, the envelope against the brute force, and words for infeasible problems."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.arrays import IntArray
from megopt.benchmarks import exhaustive as benchmark
from megopt.errors import ProblemError
from megopt.problem import Limit, Problem, ceilings, costs, evaluate, is_feasible, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers import brute_force, envelope, exhaustive
from megopt.solvers.brute_force import RowCosts
from megopt.solvers.feasibility import nearest_feasible_limit, nearest_limits, nearest_limits_together
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState
from megopt.system.outcome import Work
from tests import plain_tables
from tests.plain_tables import limits_of, table_of

INF, NAN = float("inf"), float("nan")
link_of = partial(plain_tables.link_of, round_trip_s=0.25)


def naive_rows(table: ActionTable, link: LinkState, problem: Problem) -> IntArray:
    """Return the best row per state by one plain evaluation per row: independent of everything in `solvers`."""
    best, best_value = np.full(len(link.snr), -1), np.full(len(link.snr), INF)
    for row in range(len(table)):
        result = evaluate(table, np.full(len(link.snr), row), link, problem.metric)
        value = objective(result, problem)
        is_better = is_feasible(result, problem) & (value < best_value)
        best[is_better], best_value[is_better] = row, value[is_better]
    return best


def assert_both_paths_agree(table: ActionTable, link: LinkState, problem: Problem) -> Solution:
    """Solve by all paths, check that they agree state by state, and return the fast path's solution."""
    fast, slow = exhaustive.solve(table, link, problem), exhaustive.solve_by_brute_force(table, link, problem)
    expected = naive_rows(table, link, problem)
    np.testing.assert_array_equal(slow.rows, expected)
    np.testing.assert_array_equal(fast.rows, expected)
    np.testing.assert_array_equal(fast.values, slow.values)
    assert fast.status is slow.status
    assert fast.message == slow.message
    return fast


THREE = table_of(
    edge_s=[1.0, 0.5, 0.0],
    device_s=[0.0, 0.5, 4.0],
    downlink_bits=[4e6, 1e6, 0.0],
    edge_energy_j=[100.0, 40.0, 0.0],
    device_energy_j=[0.0, 5.0, 20.0],
    ssim=[0.9, 0.7, 0.5],
)
"""Edge only, split, device only. Latency at u: 1 + 4e6 u, 1 + 1e6 u, 4. Energy: 100 + 16e6 u, 45 + 4e6 u, 20."""


@pytest.mark.parametrize(
    ("problem", "rows", "values"),
    [
        (Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=3.0)), [0, 1, -1], [0.9, 0.7, NAN]),
        (Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=4.0)), [0, 1, 2], [0.9, 0.7, 0.5]),
        (Problem(objective="latency_s"), [1, 1, 2], [1.1, 2.0, 4.0]),
        (Problem(objective="latency_s", metric="ssim", limits=limits_of(quality=0.8)), [0, 0, 0], [1.4, 5.0, 41.0]),
        (Problem(objective="energy_j", limits=limits_of(latency_s=3.0)), [1, 1, -1], [45.4, 49.0, NAN]),
        (Problem(objective="energy_j", limits=limits_of(latency_s=INF)), [2, 2, 2], [20.0, 20.0, 20.0]),
    ],
)
def test_known_answers_of_three_rows(problem: Problem, rows: list[int], values: list[float]) -> None:
    solution = assert_both_paths_agree(THREE, link_of([1e-7, 1e-6, 1e-5]), problem)
    np.testing.assert_array_equal(solution.rows, rows)
    np.testing.assert_allclose(solution.values, values)
    np.testing.assert_array_equal(solution.bounds, solution.values)
    assert solution.runtime_s > 0.0


def test_outage_leaves_only_rows_without_payload() -> None:
    limits = limits_of(latency_s=4.5)
    for problem in (Problem(objective="quality", metric="ssim", limits=limits), Problem(limits=limits), Problem()):
        assert assert_both_paths_agree(THREE, link_of([1e-7, INF, INF]), problem).rows[1:].tolist() == [2, 2]
    solution = assert_both_paths_agree(THREE.take(np.array([0, 1])), link_of([1e-7, INF]), Problem())
    assert solution.rows.tolist() == [1, -1]
    assert solution.message == "1 of 2 states have no row within the limits: latency_s is infinite there"


def test_fewer_is_better_metric() -> None:
    table = table_of(edge_s=[1.0, 2.0, 3.0], fid=[30.0, 20.0, 10.0])
    problem = Problem(objective="quality", metric="fid", limits=limits_of(latency_s=2.5))
    solution = assert_both_paths_agree(table, link_of([1e-6]), problem)
    assert (solution.rows[0], solution.values[0]) == (1, 20.0)


def test_equal_rows_give_the_lowest() -> None:
    table = THREE.take(np.array([2, 1, 1, 0, 0, 2, 1]))
    link = link_of(np.linspace(0.0, 5e-6, 101))
    for problem in (Problem(), Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=4.0))):
        assert set(assert_both_paths_agree(table, link, problem).rows.tolist()) <= {0, 1, 3}


def test_unmeasured_costs_are_infeasible() -> None:
    table = table_of(edge_s=[1.0, 2.0, 3.0], edge_energy_j=[NAN, 5.0, 1.0], ssim=[0.9, NAN, 0.7])
    link = link_of([1e-6])
    assert assert_both_paths_agree(table, link, Problem(limits=limits_of(energy_j=10.0))).rows.tolist() == [1]
    assert assert_both_paths_agree(table, link, Problem(objective="energy_j")).rows.tolist() == [2]
    problem = Problem(objective="quality", metric="ssim", limits=limits_of(energy_j=10.0))
    assert assert_both_paths_agree(table, link, problem).rows.tolist() == [2]
    only_unmeasured_sends = table_of(edge_energy_j=[1.0, 0.5, NAN], downlink_bits=[0.0, 0.0, 1.0])
    assert assert_both_paths_agree(only_unmeasured_sends, link, Problem(objective="energy_j")).rows.tolist() == [1]


def test_status_and_empty_states() -> None:
    problem = Problem(limits=limits_of(latency_s=1.5))
    assert exhaustive.solve(THREE, link_of([1e-7]), problem).status is Status.OPTIMAL
    assert exhaustive.solve(THREE, link_of([1e-7, 1e-5]), problem).status is Status.PARTLY_INFEASIBLE
    assert exhaustive.solve(THREE, link_of([1e-5]), problem).status is Status.INFEASIBLE
    assert len(assert_both_paths_agree(THREE, link_of([]), problem).rows) == 0


# Small grids provoke ties, limits hit exactly and lines that cross in a state; the factors near 1 provoke near-ties.
GRID = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 0.1, 0.3, 0.1 + 0.2, 1.0 + 2.0**-52, 1.0 - 2.0**-53, 7.7])
TIMES = st.one_of(st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0, 2.0, 10.0, INF]), st.floats(1e-9, 4.0))
PROBLEMS = st.builds(
    lambda objective, limits: Problem(
        objective=objective, metric="ssim", limits=tuple(Limit(quantity=q, bound=b) for q, b in limits.items())
    ),
    st.sampled_from(["quality", "latency_s", "energy_j", "device_energy_j", "edge_energy_j"]),
    st.dictionaries(
        st.sampled_from(["quality", "latency_s", "energy_j", "device_energy_j"]),
        st.sampled_from([0.0, 0.25, 0.3, 1.0, 1.25, 2.25, 3.0, 5.0, 10.0, INF]),
        max_size=3,
    ),
)


@st.composite
def instances(draw: st.DrawFn) -> tuple[ActionTable, LinkState, Problem]:
    num_rows = draw(st.integers(1, 8))
    column = st.lists(GRID, min_size=num_rows, max_size=num_rows)
    energy = st.lists(st.one_of(GRID, st.just(NAN)), min_size=num_rows, max_size=num_rows)
    names = ["edge_s", "device_s", "downlink_bits", "num_round_trips", "ssim"]
    columns = {name: draw(column) for name in names}
    columns |= {name: draw(energy) for name in ("edge_energy_j", "device_energy_j")}
    uplink = draw(st.sampled_from(["none", "equal", "slower", "free"]))
    columns["uplink_bits"] = [0.0] * num_rows if uplink == "none" else draw(column)
    for name in ("edge_energy_j", "device_energy_j"):
        if np.all(np.isnan(np.add(columns["edge_energy_j"], columns["device_energy_j"]))):
            columns[name] = [1.0] * num_rows
    down = np.array(draw(st.lists(TIMES, max_size=6)))
    up = np.array(draw(st.lists(TIMES, min_size=len(down), max_size=len(down)))) if uplink == "free" else down * 3.3
    return table_of(**columns), link_of(down, down if uplink in ("none", "equal") else up), draw(PROBLEMS)


def with_breakpoints(table: ActionTable, link: LinkState, problem: Problem) -> LinkState:
    """Return states at the exact link times where a row meets a limit or two objectives cross, and next to them."""
    row_costs = RowCosts.of(table, link, problem)
    line = row_costs.objective
    pairs = [
        (most - cost.constant, cost.per_downlink)
        for cost, most in zip(row_costs.limits, row_costs.ceilings, strict=True)
    ]
    pairs += [((line.constant - one).ravel(), (other - line.per_downlink).ravel())
              for one, other in zip(line.constant, line.per_downlink, strict=True)]  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.concatenate([rise / slope for rise, slope in pairs])
    times = times[np.isfinite(times) & (times > 0.0)]
    near = [times, np.nextafter(times, 0.0), np.nextafter(times, INF), times * (1.0 + 1e-10), times * (1.0 - 1e-10)]
    return link_of(np.concatenate([link.downlink_s_per_bit, *near]))


@settings(max_examples=settings().max_examples if settings().max_examples < 100 else 300)
@given(instances())
def test_paths_agree_on_generated_instances(instance: tuple[ActionTable, LinkState, Problem]) -> None:
    table, link, problem = instance
    assert_both_paths_agree(table, link, problem)
    assert_both_paths_agree(table, with_breakpoints(table, link, problem), problem)


@given(instances())
def test_no_feasible_row_beats_the_chosen_one(instance: tuple[ActionTable, LinkState, Problem]) -> None:
    table, link, problem = instance
    solution = exhaustive.solve(table, link, problem)
    chosen = np.full(len(link.snr), INF)
    answered = np.flatnonzero(solution.is_feasible)
    result = evaluate(table, solution.rows[answered], link.take(answered), problem.metric)
    assert np.all(costs(result, problem) <= ceilings(problem))
    np.testing.assert_array_equal(result.quantity(problem.objective), solution.values[answered])
    chosen[answered] = objective(result, problem)
    for row in range(len(table)):
        result = evaluate(table, np.full(len(link.snr), row), link, problem.metric)
        assert not np.any(is_feasible(result, problem) & (objective(result, problem) < chosen))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("uplink_ratio", [None, 1.0, 1.0 / 3.0])
def test_paths_agree_on_large_random_instances(seed: int, uplink_ratio: float | None) -> None:
    rng = np.random.default_rng(seed)
    table, link = benchmark.instance(9_000, 60, rng)
    if uplink_ratio is not None:
        columns = {name: getattr(table.work, name) for name in Work.__dataclass_fields__}
        columns |= {"uplink_bits": 1e6 * rng.random(60) * (rng.random(60) < 0.5), "ssim": table.metric("ssim")}
        table = table_of(**columns)
    down = np.where(rng.random(9_000) < 0.01, INF, link.downlink_s_per_bit)
    link = link_of(down, None if uplink_ratio is None else uplink_ratio * down)
    limits = limits_of(latency_s=2.0, energy_j=150.0)
    for goal in ("quality", "latency_s", "energy_j"):
        assert_both_paths_agree(table, link, Problem(objective=goal, metric="ssim", limits=limits))


def test_screen_returns_the_rows_of_the_plain_evaluation() -> None:
    table, link = benchmark.instance(500, 300, np.random.default_rng(7))
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
    for problem in (
        Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=2.0, energy_j=150.0)),
        Problem(objective="energy_j", limits=limits_of(latency_s=2.0)),
        Problem(objective="latency_s"),
    ):
        row_costs = RowCosts.of(table, link, problem)
        expected = brute_force.choose_exactly(row_costs, down, up)
        for chunk_states in (1, 7, 500, None):
            np.testing.assert_array_equal(brute_force.choose(row_costs, down, up, chunk_states), expected)


def test_uplink_that_is_not_proportional_falls_back() -> None:
    table = table_of(downlink_bits=[1.0, 4.0], uplink_bits=[4.0, 1.0])
    link = link_of([1.0, 2.0, 1.0], [2.0, 1.0, 1.0])
    assert exhaustive.rows_by_envelope(RowCosts.of(table, link, Problem()), link) is None
    assert assert_both_paths_agree(table, link, Problem()).rows.tolist() == [1, 0, 0]
    without_uplink = table_of(downlink_bits=[1.0, 4.0])
    assert exhaustive.rows_by_envelope(RowCosts.of(without_uplink, link, Problem()), link) is not None


def test_envelope_of_many_states_equals_binary_search() -> None:
    steps = envelope.Envelope(edges=np.array([1e-7, 1e-6, 1.0000000001e-6, INF]), rows=np.array([3, 2, -2, 5, -1]))
    u = np.concatenate([np.geomspace(1e-9, 1.0, 20_000), [0.0, 1e-7, 1e-6, np.nextafter(1e-6, 1.0), INF]])
    np.testing.assert_array_equal(steps.at(u), steps.rows[np.searchsorted(steps.edges, u)])


def test_brute_force_memory_is_bounded() -> None:
    import tracemalloc

    table, link = benchmark.instance(20_000, 2_000, np.random.default_rng(0))
    problem = Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=2.0, energy_j=150.0))
    tracemalloc.start()
    exhaustive.solve_by_brute_force(table, link, problem)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()


def test_nearest_feasible_limit_of_one_limit() -> None:
    link = link_of([1e-7, 1e-5])
    solution = exhaustive.solve(THREE, link, Problem(limits=limits_of(energy_j=0.01)))
    assert solution.status is Status.INFEASIBLE
    assert solution.message == (
        "2 of 2 states have no row within the limits: energy_j <= 0.01 is below what any row reaches; "
        "the nearest feasible limit is 20 (test: row2)"
    )
    assert nearest_feasible_limit(THREE, link, Problem(limits=limits_of(energy_j=20.0))) == ""


def test_nearest_feasible_floor_on_quality() -> None:
    problem = Problem(metric="ssim", limits=limits_of(quality=0.95, latency_s=3.0))
    quality, latency = nearest_limits(THREE, link_of([1e-6]), problem)
    assert (quality.bound, quality.row) == (0.7, 1)
    assert not latency.is_within_reach
    assert nearest_feasible_limit(THREE, link_of([1e-6]), problem) == (
        "quality at least as good as 0.95 is above what any row reaches; the nearest feasible limit is 0.7 (test: row1)"
    )


def test_nearest_feasible_limits_together() -> None:
    problem = Problem(limits=limits_of(latency_s=0.5, energy_j=30.0))
    text = nearest_feasible_limit(THREE, link_of([1e-6]), problem)
    assert text == "latency_s <= 0.5 is below what any row reaches; the nearest feasible limit is 4 (test: row2)"
    problem = Problem(limits=limits_of(latency_s=0.5, energy_j=10.0))
    text = nearest_feasible_limit(THREE, link_of([1e-6]), problem)
    assert (
        "latency_s <= 0.5 and energy_j <= 10 are out of reach together; the nearest feasible limits are 2 and 49"
        in text
    )
    outage = nearest_feasible_limit(THREE.take(np.array([0])), link_of([INF]), Problem(limits=limits_of(latency_s=1.0)))
    assert outage == "no row has a finite cost there, whatever the limits"


@settings(max_examples=settings().max_examples)
@given(instances())
def test_nearest_limits_are_feasible_and_tight(instance: tuple[ActionTable, LinkState, Problem]) -> None:
    table, link, problem = instance
    alive = np.flatnonzero(np.isfinite(link.downlink_s_per_bit) & np.isfinite(link.uplink_s_per_bit))
    link = link.take(alive)
    nearest = nearest_limits(table, link, problem)
    assert bool(nearest) == (bool(problem.limits) and bool(np.any(naive_rows(table, link, problem) < 0)))
    for one in nearest:
        if one.is_within_reach:
            moved = problem.with_limit(one.limit.quantity, one.bound)
            assert exhaustive.solve(table, link, moved).status is Status.OPTIMAL
            tighter = np.nextafter(one.bound, one.limit.bound)
            moved = problem.with_limit(one.limit.quantity, float(tighter))
            assert exhaustive.solve(table, link, moved).status is not Status.OPTIMAL
    moved = problem
    for one in nearest_limits_together(table, link, problem):
        moved = moved.with_limit(one.limit.quantity, one.bound)
    if nearest and moved is not problem:
        assert exhaustive.solve(table, link, moved).status is Status.OPTIMAL


@pytest.mark.parametrize(
    ("table", "link", "problem", "text"),
    [
        (THREE.take(np.zeros(0, dtype=np.int64)), link_of([1.0]), Problem(), "has no rows"),
        (THREE, link_of([-1.0]), Problem(), "downlink_s_per_bit is negative or NaN"),
        (THREE, link_of([1.0], [NAN]), Problem(), "uplink_s_per_bit is negative or NaN"),
        (table_of(edge_s=[1.0, -1.0]), link_of([1.0]), Problem(), "latency_s has a negative part in rows 1"),
        (table_of(edge_energy_j=[NAN]), link_of([1.0]), Problem(objective="energy_j"), "was not measured"),
    ],
)
def test_errors_name_the_cause(table: ActionTable, link: LinkState, problem: Problem, text: str) -> None:
    for solve in (exhaustive.solve, exhaustive.solve_by_brute_force):
        with pytest.raises(ProblemError, match=text):
            solve(table, link, problem)


def test_benchmark_reports_its_keys() -> None:
    result = benchmark.run(num_states=300, num_rows=40, repeats=1)
    assert list(result)[:3] == ["states_per_s", "speedup_over_bruteforce", "bruteforce_share_of_floor"]
    assert result["num_differences"] == result["affine_num_differences"] == 0.0
    assert all(np.isfinite(list(result.values())))
