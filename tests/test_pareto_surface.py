"""Sweeps of a limit and surfaces of three objectives: warm answers are the cold ones, and bounds hold everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.analysis.knee import find_knee
from megopt.analysis.pareto import convex_hypervolume, hypervolume, is_non_dominated
from megopt.analysis.row_fronts import row_fronts
from megopt.analysis.surface import surface
from megopt.analysis.surface_figure import best_third
from megopt.application import run_config
from megopt.arrays import FloatArray
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_limits, average_limits_sweep, average_surface, exhaustive, exhaustive_sweep
from megopt.solvers.solution import Status
from megopt.system.link import Link, LinkState
from megopt.system.outcome import Work

THREE = ("latency_s", "energy_j", "quality")


def table_of(rng: np.random.Generator, num_rows: int) -> ActionTable:
    """Rows in which more seconds and joules buy more quality, more or less."""
    effort = rng.uniform(0.1, 1.0, num_rows)
    noise = rng.uniform(0.5, 1.5, (4, num_rows))
    text = np.array([f"row {i}" for i in range(num_rows)])
    return ActionTable(
        scheme=np.array(["made"] * num_rows),
        label=text,
        knobs=(),
        settings=np.zeros((num_rows, 0)),
        work=Work(
            edge_s=effort * noise[0],
            device_s=0.2 * noise[1],
            downlink_bits=1e6 * rng.choice([0.0, 0.5, 1.0], num_rows) * noise[2],
            uplink_bits=np.zeros(num_rows),
            num_round_trips=np.ones(num_rows),
            edge_energy_j=40.0 * effort * noise[3],
            device_energy_j=5.0 * noise[1],
        ),
        metrics=("ssim",),
        quality=(1.0 - np.exp(-3.0 * effort * noise[2]))[:, None],
        kind=np.array(["modelled"] * num_rows),
        profile="made",
    )


def link_of(rng: np.random.Generator, num_states: int) -> LinkState:
    link = Link(bandwidth_hz=1e6, round_trip_s=0.02, device_rx_power_w=0.9, edge_tx_power_w=4.7)
    return link.state(rng.exponential(10.0, num_states))


def instance(seed: int, num_rows: int = 20, num_states: int = 60) -> tuple[ActionTable, LinkState]:
    rng = np.random.default_rng(seed)
    return table_of(rng, num_rows), link_of(rng, num_states)


QUALITY = Problem(objective="quality", metric="ssim")


@pytest.mark.parametrize("problem", [QUALITY, Problem(objective="energy_j")], ids=["quality", "energy"])
@pytest.mark.parametrize("seed", range(4))
def test_a_warm_sweep_has_the_rows_of_cold_solves(problem: Problem, seed: int) -> None:
    table, link = instance(seed)
    limits = np.random.default_rng(seed).permutation(np.geomspace(0.05, 4.0, 17))
    found = exhaustive_sweep.sweep(table, link, problem, "latency_s", limits)
    for limit, warm in zip(limits, found.solutions, strict=True):
        cold = exhaustive.solve(table, link, problem.with_limit("latency_s", float(limit)))
        np.testing.assert_array_equal(warm.rows, cold.rows)
        np.testing.assert_array_equal(warm.values, cold.values)
        assert (warm.status, warm.message) == (cold.status, cold.message)
    assert found.num_solved.sum() < 0.7 * len(limits) * len(link.snr)


def test_a_floor_on_quality_is_swept_in_its_own_sense() -> None:
    table, link = instance(1)
    problem = Problem(objective="energy_j", metric="ssim")
    found = exhaustive_sweep.sweep(table, link, problem, "quality", np.array([0.5, 0.9, 0.2]))
    low, high, least = (solution.value for solution in found.solutions)
    assert least <= low <= high
    assert found.num_solved[2] == len(link.snr)  # the loosest floor is solved first


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [(), (Limit(quantity="energy_j", bound=25.0),)], ids=["one limit", "two limits"])
def test_a_long_run_sweep_has_the_values_of_cold_solves_with_fewer_prices(fixed: tuple[Limit, ...]) -> None:
    table, link = instance(2, num_states=80)
    problem = Problem(objective="quality", metric="ssim", limits=fixed)
    curve = average_limits_sweep.sweep(table, link, problem, "latency_s", np.geomspace(0.1, 2.0, 12)[::-1])
    cold = [average_limits.solve(table, link, problem.with_limit("latency_s", float(limit))) for limit in curve.limits]
    assert [point.status for point in cold] == list(curve.statuses)
    np.testing.assert_allclose(curve.means, [point.value for point in cold], rtol=1e-8)
    assert Status.INFEASIBLE in curve.statuses
    assert curve.gap < 1e-8
    known = curve.is_feasible
    assert np.all(curve.costs[known, -1] <= curve.limits[known] * (1.0 + 1e-9))
    assert np.all(curve.prices[known] >= 0.0)
    assert np.all(np.diff(curve.means[known]) >= -1e-12)
    assert curve.num_prices.sum() < 0.8 * sum(point.num_iterations for point in cold)


@pytest.mark.parametrize("problem", [QUALITY, Problem(objective="energy_j", metric="ssim")], ids=["up", "down"])
def test_bound_and_chord_enclose_the_optimum_between_the_limits(problem: Problem) -> None:
    table, link = instance(3, num_states=100)
    quantity = "latency_s" if problem.objective == "quality" else "quality"
    limits = np.linspace(0.5, 1.5, 5) if quantity == "latency_s" else np.linspace(0.4, 0.9, 5)
    curve = average_limits_sweep.sweep(table, link, problem, quantity, limits)
    sign = -1.0 if quantity == "quality" else 1.0
    for limit in np.linspace(limits[0], limits[-1], 9):
        best = average_limits.solve(table, link, problem.with_limit(quantity, float(limit))).value
        most = np.array([sign * limit])
        assert curve.sense * curve.bound_at(most)[0] <= curve.sense * best + 1e-9
        assert curve.sense * best <= curve.sense * curve.reached_at(most)[0] + 1e-9
        assert abs(curve.reached_at(most)[0] - curve.bound_at(most)[0]) <= curve.gap_between + 1e-12


def test_a_sweep_below_every_mean_is_infeasible_throughout() -> None:
    table, link = instance(0)
    curve = average_limits_sweep.sweep(table, link, QUALITY, "latency_s", np.array([0.001, 0.002]))
    assert set(curve.statuses) == {Status.INFEASIBLE}
    assert np.isnan(curve.gap)
    assert curve.gap_between == 0.0
    assert np.isneginf(-curve.bound_at(np.array([1.0])))
    assert np.isnan(curve.reached_at(np.array([1.0])))
    with pytest.raises(ProblemError, match=r"sweep of latency_s: limits \[1\.0, inf\]; expected finite numbers"):
        average_limits_sweep.sweep(table, link, QUALITY, "latency_s", np.array([1.0, np.inf]))


CORNER = np.array([[0.0, 1.0], [0.1, 0.1], [1.0, 0.0], [0.5, 0.5]])


def test_knee_by_hand() -> None:
    knee = find_knee(CORNER)
    assert knee is not None
    assert knee.index == 1
    assert knee.bulge == pytest.approx(0.8)
    assert find_knee(np.column_stack([np.linspace(0, 1, 9), np.linspace(1, 0, 9)])) is None  # straight
    assert find_knee(np.array([[0.0, 1.0], [0.8, 0.8], [1.0, 0.0]])) is None  # hollow
    assert find_knee(CORNER[:1]) is None
    assert find_knee(np.array([[np.nan, 0.0], [np.inf, 1.0]])) is None
    with pytest.raises(ProblemError, match=r"knee: points of shape \(4,\); expected"):
        find_knee(CORNER[:, 0])


@given(st.integers(0, 99), st.floats(0.01, 100.0), st.floats(0.01, 100.0), st.floats(-10.0, 10.0))
def test_the_knee_does_not_depend_on_units(seed: int, first: float, second: float, shift: float) -> None:
    x = np.sort(np.random.default_rng(seed).uniform(0.1, 1.0, 12))
    points = np.column_stack([x, 1.0 / x])
    knee, other = find_knee(points), find_knee(points * [first, second] + shift)
    assert knee is not None
    assert other is not None
    assert (other.index, other.bulge) == (knee.index, pytest.approx(knee.bulge, abs=1e-6))


def test_the_knee_of_a_hyperbola_is_where_its_slope_is_that_of_the_chord() -> None:
    x = np.linspace(0.25, 4.0, 4001)
    knee = find_knee(np.column_stack([x, 1.0 / x]))
    assert knee is not None
    assert x[knee.index] == pytest.approx(1.0, abs=1e-3)


def test_convex_hypervolume_by_hand() -> None:
    for num in (2, 3):
        plane = np.full((1, num), 1.0 / num)
        corner = 1.0 if num == 1 else 1.0 / (2.0 if num == 2 else 6.0)
        assert convex_hypervolume(plane, np.array([1.0 / num]), np.ones(num)) == pytest.approx(1.0 - corner)
    point, reference = np.array([0.3, 0.5, 0.2]), np.array([1.1, 1.1, 1.1])
    box = convex_hypervolume(np.eye(3), point, reference)
    assert box == pytest.approx(hypervolume(point[None], reference))
    assert convex_hypervolume(np.eye(3), np.full(3, 2.0), reference) == 0.0
    with pytest.raises(ProblemError, match="hypervolume: normals"):
        convex_hypervolume(np.eye(3), point[:2], reference)


def reached(surface_problem: Problem, table: ActionTable, link: LinkState, rows: FloatArray) -> FloatArray:
    """Means of one choice of rows as the surface counts them."""
    from megopt.solvers.average_limits_recovery import Choice
    from megopt.solvers.average_limits_solution import scored

    weights = np.full(len(rows), 1.0 / len(rows))
    value, costs = scored(table, link, surface_problem, weights, Choice(rows=rows, splits=()))
    return np.append(value, costs)


@pytest.mark.parametrize("seed", range(3))
def test_no_choice_of_rows_lies_beyond_the_bound(seed: int) -> None:
    table, link = instance(seed, num_rows=12, num_states=8)
    found = average_surface.solve(table, link, THREE, "ssim", tolerance=1e-3)
    assert found.status == Status.OPTIMAL
    assert found.gap <= 1e-3
    assert np.all(found.inner >= found.outer - 1e-12)
    assert np.all(found.normals >= 0.0)
    np.testing.assert_allclose(found.normals.sum(axis=1), 1.0)
    assert np.all(is_non_dominated(found.points.round(12)))
    assert np.all(np.abs(found.depth(found.points)) <= 1e-9)
    rng, problem = np.random.default_rng(seed), average_surface.problem_of(THREE, "ssim")
    prices = rng.dirichlet(np.full(3, 0.4), 150) / found.span
    rows = [average_limits.rows_under(table, link, bounded(problem), price) for price in prices]
    rows += list(rng.integers(0, len(table), (50, len(link.snr))))
    means = np.stack([reached(problem, table, link, chosen) for chosen in rows])
    assert np.min(found.depth(means)) >= -found.gap - 1e-9
    assert np.min(found.depth(means)) < 1e-9  # and some of them touch it


def test_points_are_scored_on_states_that_they_have_not_seen() -> None:
    table, link = instance(3)
    _, fresh = instance(4)
    found = average_surface.solve(table, link, THREE, "ssim", tolerance=1e-2)
    np.testing.assert_allclose(average_surface.means_on(found, table, link), found.points, rtol=1e-9)
    assert surface(table, link, THREE, "ssim", {}, 1e-2, link).fresh_distance <= 1e-9
    assert 0.0 < surface(table, link, THREE, "ssim", {}, 1e-2, fresh).fresh_distance < 10.0
    assert np.isnan(surface(table, link, THREE, "ssim", {}, 1e-2).fresh_distance)


def bounded(problem: Problem) -> Problem:
    """The same with limits that bind nowhere but are finite, so that they can be priced."""
    limits = tuple(
        Limit(quantity=limit.quantity, bound=-1e9 if limit.quantity == "quality" else 1e9) for limit in problem.limits
    )
    return Problem(objective=problem.objective, metric=problem.metric, limits=limits)


def test_a_surface_of_two_objectives_is_the_long_run_curve() -> None:
    table, link = instance(5)
    found = average_surface.solve(table, link, ("latency_s", "energy_j"), tolerance=1e-6)
    problem = Problem(objective="energy_j")
    for latency in np.linspace(*np.sort(found.points[:, 0])[[0, -1]], 5)[1:]:
        best = average_limits.solve(table, link, problem.with_limit("latency_s", float(latency))).value
        least = found.least_given(np.array([[latency, 0.0]]), 1)[0]
        assert least == pytest.approx(best, abs=2e-6 * found.span[1])


@pytest.mark.slow
def test_the_map_agrees_with_two_long_run_limits() -> None:
    table, link = instance(6)
    found = average_surface.solve(table, link, THREE, "ssim", tolerance=1e-5)
    middle = np.median(found.points, axis=0)
    limits = (Limit(quantity="latency_s", bound=middle[0]), Limit(quantity="energy_j", bound=middle[1]))
    best = average_limits.solve(table, link, Problem(objective="quality", metric="ssim", limits=limits)).value
    assert -best_third(found, middle[0], middle[1]) == pytest.approx(best, abs=3e-5 * found.span[2])
    assert np.isnan(best_third(found, found.ideal[0] * 0.9, middle[1]))


def test_surfaces_without_a_trade_off_with_four_objectives_and_in_outage() -> None:
    table, link = instance(7)
    best = table.take(np.array([3, 3]))
    flat = average_surface.solve(best, link, THREE, "ssim")
    assert (len(flat.points), flat.gap) == (1, pytest.approx(0.0, abs=1e-12))
    four = average_surface.solve(
        table, link, ("latency_s", "device_energy_j", "edge_energy_j", "quality"), "ssim", tolerance=0.02
    )
    assert four.gap <= 0.02
    dead = Link(bandwidth_hz=1e6).state(np.zeros(3))
    sends = table.take(np.flatnonzero(table.work.downlink_bits > 0))
    assert average_surface.solve(sends, dead, THREE, "ssim").status == Status.INFEASIBLE
    mixed = Link(bandwidth_hz=1e6).state(np.array([0.0, 10.0, 20.0]))
    assert average_surface.solve(sends, mixed, THREE, "ssim").status == Status.PARTLY_INFEASIBLE
    with pytest.raises(ProblemError, match="surface: objectives latency_s; expected two to four different ones"):
        average_surface.solve(table, link, ("latency_s",))
    with pytest.raises(ConfigError, match="surface: tolerance is 0; expected"):
        average_surface.solve(table, link, tolerance=0)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_row_sets_are_certified_and_are_those_of_the_definition(seed: int) -> None:
    table, link = instance(seed, num_rows=9, num_states=4)
    fronts = row_fronts(table, link, THREE, "ssim")
    assert fronts.is_certified
    problem = average_surface.problem_of(THREE, "ssim")
    for state in range(len(link.snr)):
        here = link.take(np.array([state]))
        points = np.stack([reached(problem, table, here, np.array([row])) for row in range(len(table))])
        expected = [not any(np.all(q <= p) and np.any(q < p) for q in points) for p in points]
        np.testing.assert_array_equal(fronts.is_kept[state], expected)


def test_equal_rows_are_all_kept_and_rows_in_outage_take_no_part() -> None:
    table, _ = instance(0, num_rows=6)
    twice = table.take(np.array([0, 0, 1, 2, 3, 4, 5]))
    fronts = row_fronts(twice, Link(bandwidth_hz=1e6).state(np.array([0.0, 10.0])), THREE, "ssim")
    np.testing.assert_array_equal(fronts.is_kept[:, 0], fronts.is_kept[:, 1])
    np.testing.assert_array_equal(fronts.is_finite[0], twice.work.downlink_bits == 0)
    assert fronts.is_certified
    assert fronts.sizes.shape == (2,)
    broken = np.where(fronts.is_kept, 0, fronts.witness)
    assert not type(fronts)(
        quantities=THREE, is_kept=fronts.is_kept, is_finite=fronts.is_finite, witness=broken
    ).is_certified


@pytest.mark.slow
def test_pymoo_sorts_the_same_rows_and_measures_the_same_volume() -> None:
    sorting = pytest.importorskip("pymoo.util.nds.non_dominated_sorting")
    indicators = pytest.importorskip("pymoo.indicators.hv")
    table, link = instance(11, num_rows=60, num_states=10)
    fronts = row_fronts(table, link, THREE, "ssim")
    problem = average_surface.problem_of(THREE, "ssim")
    for state in range(len(link.snr)):
        here = link.take(np.array([state]))
        points = np.stack([reached(problem, table, here, np.array([row])) for row in range(len(table))])
        first = sorting.NonDominatedSorting().do(points, only_non_dominated_front=True)
        np.testing.assert_array_equal(np.flatnonzero(fronts.is_kept[state]), np.sort(first))
        worst = points.max(axis=0)
        assert hypervolume(points, worst) == pytest.approx(indicators.HV(ref_point=worst)(points), rel=1e-9)


@pytest.mark.slow
def test_pymoo_finds_nothing_beyond_the_surface_and_comes_close_to_it() -> None:
    """NSGA-II chooses a row for each state; its best volume lies below the proved one, and near what rows can reach."""
    pytest.importorskip("pymoo")
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as Searched
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PolynomialMutation
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    table, link = instance(12, num_rows=15, num_states=6)
    found = average_surface.solve(table, link, THREE, "ssim", tolerance=1e-3)
    problem = average_surface.problem_of(THREE, "ssim")
    each = np.stack(
        [
            [reached(problem, table, link.take(np.array([state])), np.array([row])) for row in range(len(table))]
            for state in range(len(link.snr))
        ]
    )

    class RowsOfStates(Searched):  # type: ignore[misc]  # pymoo carries no types
        def __init__(self) -> None:
            super().__init__(n_var=len(link.snr), n_obj=3, xl=0, xu=len(table) - 1, vtype=int)

        def _evaluate(self, x: FloatArray, out: dict[str, FloatArray], *_: object, **__: object) -> None:
            out["F"] = found.scaled(each[np.arange(len(link.snr)), x.astype(int)].mean(axis=1))

    search = NSGA2(
        pop_size=120,
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(repair=RoundingRepair()),
        mutation=PolynomialMutation(prob=1.0, eta=3.0, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    front = minimize(RowsOfStates(), search, ("n_gen", 150), seed=1, verbose=False).F
    assert np.min(front @ found.normals.T - found.outer) >= -1e-9
    reference = np.full(3, 1.1)
    proved = [convex_hypervolume(found.normals, side, reference) for side in (found.inner, found.outer)]
    assert 0.9 * proved[0] <= hypervolume(front, reference) <= proved[1]


def run_surface(folder: Path, *overrides: str) -> dict:
    with initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        config = compose("surface", overrides=["num_requests=4", "num_traces=4", *overrides])
    return json.loads(run_config("surface", config, folder).as_json())


@pytest.mark.slow
def test_the_verb_reports_a_proved_surface_and_writes_its_files(tmp_path: Path) -> None:
    report = run_surface(tmp_path, "problem.metric=ssim")
    assert report["status"] == "optimal"
    assert report["gap"] <= 1e-3
    assert report["row_sets_certified"]
    assert 0.0 < report["hypervolume_at_least"] <= report["hypervolume_at_most"] < 1.0
    assert report["objectives"] == ["latency_s", "energy_j", "quality"]
    assert 0.0 < report["knee"]["bulge"] < 1.0
    assert {Path(path).name for path in report["files"]} == {"surface.csv", "rows.csv", "surface.pdf", "surface.png"}
    assert all(Path(path).is_file() for path in report["files"])
    assert all(0.0 <= policy["saving"] < 1.0 for policy in report["policies"].values())


@pytest.mark.slow
def test_the_verb_refuses_what_makes_no_surface(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="objectives = 5; expected a list"):
        run_surface(tmp_path, "objectives=5")
    with pytest.raises(ConfigError, match=r"problem\.limits\.latency_s is set; a surface shows all trade-offs"):
        run_surface(tmp_path, "problem.limits.latency_s=1")
    with pytest.raises(ProblemError, match="expected two to four different ones"):
        run_surface(tmp_path, "objectives=[latency_s]")


def test_two_objectives_have_a_surface_without_a_figure(tmp_path: Path) -> None:
    report = run_surface(tmp_path, "objectives=[latency_s,quality]")
    assert {Path(path).name for path in report["files"]} == {"surface.csv", "rows.csv"}


def test_policies_that_read_limits_are_passed_over() -> None:
    from megopt.policies.optimal import Optimal

    table, link = instance(0)
    assert not surface(table, link, THREE, "ssim", {"optimal": Optimal}).baselines
