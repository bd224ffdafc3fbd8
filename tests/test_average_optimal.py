"""Long-run limits on fresh states: held-out means, and the policy that follows the prices."""

from __future__ import annotations

import numpy as np
import pytest

from megopt.analysis.rollout import rollout
from megopt.benchmarks import exhaustive as benchmark
from megopt.errors import ConfigError, ProblemError
from megopt.policies.average_optimal import AverageOptimal
from megopt.policies.base import Observation
from megopt.problem import Limit, Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.region_split import RegionSplit
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.solvers.average_limits import solve
from megopt.solvers.average_limits_sampling import held_out, sampled_states
from megopt.solvers.solution import Status
from megopt.system.channel import Rayleigh
from megopt.system.link import Link
from megopt.tables.profile import load_profile
from tests.plain_tables import link_of, problem_of, table_of

INF = float("inf")


TWO = table_of(edge_s=[1.0, 3.0], ssim=[0.4, 0.8])
"""Rows whose costs do not depend on the link: the optimum under latency 2.5 follows the better row 3/4 of the time."""


def test_held_out_means_are_the_answer_on_its_own_states_and_sharpen_with_more() -> None:
    table, _ = benchmark.instance(1, 60, np.random.default_rng(4))
    channel, link, problem = Rayleigh(snr_db=10.0), Link(bandwidth_hz=1e6), problem_of(latency_s=1.0)
    states = sampled_states(channel, link, 2000, seed=0, num_blocks=4)
    solution = solve(table, states, problem)
    same = held_out(table, states, problem, solution)
    assert same.value == pytest.approx(solution.value, rel=1e-8)
    assert same.bound == pytest.approx(solution.bound, rel=1e-8)
    assert same.costs == pytest.approx(solution.costs, rel=1e-8)
    few, many = (
        held_out(table, sampled_states(channel, link, num, seed=1, num_blocks=4), problem, solution)
        for num in (1000, 64_000)
    )
    assert 0.04 < many.cost_errors[0] / few.cost_errors[0] < 0.4  # 1/8 but for the spread of 32 batches
    assert few.keeps_limits(problem, 5.0)
    assert many.keeps_limits(problem, 5.0)
    assert not many.keeps_limits(problem_of(latency_s=0.9), 5.0)
    assert many.value <= many.bound + 5.0 * many.bound_error + solution.prices[0] * many.excesses[0] * 1.0
    np.testing.assert_array_equal(
        sampled_states(channel, link, 50, seed=3).snr, sampled_states(channel, link, 50, seed=3).snr
    )


def edge_device_case() -> tuple[ActionTable, Problem, Rayleigh, Link]:
    """SDXL on an H100 and a phone under Rayleigh fading: least latency with mean energies below what it would take."""
    schemes = [Conventional(num_steps=[25]), StepSplit(num_steps=[25])]
    table, _ = compile_all(schemes, load_profile("h100__snapdragon8gen3__sdxl"))
    channel, link = Rayleigh(snr_db=5.0), Link(bandwidth_hz=2e6, edge_tx_power_w=4.7, device_rx_power_w=0.9)
    states = sampled_states(channel, link, 4000, seed=9, num_blocks=8)
    fastest = solve(table, states, Problem(objective="latency_s", limits=(Limit(quantity="energy_j", bound=1e9),)))
    least = solve(table, states, Problem(objective="energy_j"))
    bound = 0.5 * (fastest.costs[0] + least.value)
    problem = Problem(objective="latency_s", limits=(Limit(quantity="energy_j", bound=float(bound)),))
    return table, problem, channel, link


@pytest.mark.parametrize("profile", ["h100", "megsplitting_sdxl", "megsplitting_sd3"])
def test_policy_keeps_the_limits_and_meets_the_bound_on_fresh_fading(profile: str) -> None:
    if profile == "h100":
        table, problem, channel, link = edge_device_case()
    else:
        scheme = RegionSplit(num_region_ratios=13, num_device_powers=20)
        table, _ = compile_all([Conventional(num_steps=[25]), scheme], load_profile(profile))
        channel, link = Rayleigh(snr_db=10.0), Link(bandwidth_hz=1e6)
        problem = problem_of("latency_s", device_energy_j=60.0)
        problem = Problem(objective="latency_s", limits=problem.limits)
    policy = AverageOptimal.sampled(table=table, problem=problem, channel=channel, link=link, num_blocks=8, seed=1)
    assert policy.solution.status is Status.OPTIMAL
    assert policy.solution.prices[0] > 0.0
    fresh = sampled_states(channel, link, 20_000, seed=2, num_blocks=8)
    records = rollout(policy, "average optimal", table, fresh, problem)
    held = held_out(table, fresh, problem, policy.solution)
    assert held.keeps_limits(problem, 4.0)
    over = held.costs - ceilings(problem)  # what is over the limit by chance is charged at its price
    assert held.value + policy.solution.prices @ over == pytest.approx(held.bound, rel=1e-4)
    error = float(records["objective"].std()) / np.sqrt(len(records))
    assert abs(records["objective"].mean() - held.bound) <= 4.0 * (error + held.bound_error)
    quantity = problem.limits[0].quantity
    spread = float(records[quantity].std()) / np.sqrt(len(records))
    assert records[quantity].mean() <= problem.limits[0].bound + 4.0 * (spread + float(held.cost_errors[0]))


def test_policy_repeats_with_its_seed_and_serves_every_state() -> None:
    table, problem, channel, link = edge_device_case()
    solution = solve(table, sampled_states(channel, link, 500, seed=0), problem)
    fresh = sampled_states(channel, link, 300, seed=1)
    policies = [AverageOptimal(table=table, problem=problem, solution=solution, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (policy.act(Observation(link=fresh)) for policy in policies)
    np.testing.assert_array_equal(first, again)
    assert np.all((other >= 0) & (other < len(table)))
    dead = link_of([INF, 1e-7])
    rows = AverageOptimal(table=table, problem=problem, solution=solution).act(Observation(link=dead))
    assert np.all((rows >= 0) & (rows < len(table)))


@pytest.mark.parametrize("num_requests", [100, 1000, 10_000])
def test_ties_are_drawn_in_their_shares_far_sooner_than_by_independent_draws(num_requests: int) -> None:
    problem = problem_of(latency_s=2.5)
    policy = AverageOptimal(table=TWO, problem=problem, solution=solve(TWO, link_of([0.0]), problem))
    link = link_of(np.zeros(num_requests))
    rows = np.concatenate([policy.act(Observation(link=link)), policy.act(Observation(link=link))])
    deviation = np.abs(np.cumsum(rows - 0.75))[[num_requests - 1, 2 * num_requests - 1]]
    assert np.all(deviation <= 1.0 + np.log(num_requests))  # independent draws: 0.43 sqrt(num_requests)


def test_policy_of_infeasible_limits_exceeds_them_least() -> None:
    link = link_of(np.zeros(4000))
    problem = problem_of("energy_j", latency_s=1.2, quality=0.6)
    solution = solve(TWO, link, problem)
    assert solution.status is Status.INFEASIBLE
    records = rollout(AverageOptimal(table=TWO, problem=problem, solution=solution), "p", TWO, link, problem)
    # A share q of the better row exceeds 1.2 s by (1 + 2 q - 1.2)/1.2 and misses 0.6 by (0.2 - 0.4 q)/0.6: q = 0.2143.
    assert records["row"].mean() == pytest.approx(0.2143, abs=0.002)


def test_errors_name_the_cause() -> None:
    link = link_of([0.1, 0.2])
    with pytest.raises(ProblemError, match="0 served states for 32 batches of a solution that is infeasible"):
        held_out(TWO, link, problem_of(latency_s=0.1), solve(TWO, link, problem_of(latency_s=0.1)))
    with pytest.raises(ConfigError, match="num_states"):
        sampled_states(Rayleigh(), Link(), 0, seed=0)
