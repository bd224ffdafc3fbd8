"""The policy that counts on what pipelining hides: limiting cases, known optima, the certified bound, its queues."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.analysis.baselines import baseline
from megopt.analysis.evaluation import evaluate_policy, limits_of, recorded_fading
from megopt.arrays import FloatArray
from megopt.envs.parameters import EnvParams
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError, ProblemError
from megopt.policies.base import Observation
from megopt.policies.drift_plus_penalty import DriftPlusPenalty
from megopt.policies.pipelined_optimal import PipelinedOptimal
from megopt.solvers import average_limits, pipelining
from megopt.solvers.pipelined_average import solve
from megopt.system.channel import LogDistance, Rayleigh
from megopt.system.link import Link, LinkState
from tests.plain_tables import link_of, problem_of, table_of

ENDLESS, SLOW = 0.0, 1e-3
"""Times per bit [s]."""


@cache
def meg_cvpo_params() -> EnvParams:
    return meg_cvpo(k_factor_db=10.0, are_places_stratified=True, bandwidth_hz=0.25e6, limit_share=0.5)


def constant(num_requests: int, down_s: float) -> list[LinkState]:
    return [link_of([down_s]) for _ in range(num_requests)]


def test_with_nothing_to_hide_it_is_the_optimum_of_limits_on_average() -> None:
    rng = np.random.default_rng(0)
    table = table_of(edge_s=np.zeros(8), device_s=rng.random(8), downlink_bits=1e3 * rng.random(8), ssim=rng.random(8))
    down = rng.uniform(1e-4, 1e-3, (12, 40))
    problem = problem_of(latency_s=0.6)
    found = solve(table, [link_of(row) for row in down], problem, tolerance=1e-7)
    exact = average_limits.solve(table, link_of(down.ravel()), problem)
    assert found.is_feasible
    assert -found.value == pytest.approx(exact.value, rel=2e-3)  # shares of 480 requests, as drawn
    assert found.excesses[0] <= 1e-3


def test_on_a_link_that_never_changes_it_finds_the_best_cycle() -> None:
    """1 s at the edge and 1 s on the air, or 1.5 s at the device: time and again, the first hides all but airtime."""
    table = table_of(edge_s=[1.0, 0.0], device_s=[0.0, 1.5], downlink_bits=[1e3, 0.0], ssim=[0.8, 0.8])
    found = solve(table, constant(400, SLOW), problem_of("latency_s"))
    assert found.value == pytest.approx(1.0, abs=0.01)  # but for the first request, which hides nothing


def test_a_payload_is_worth_what_the_next_request_hides() -> None:
    """Alone, row 1 costs .2 s less; sent before another, row 0 hides .9 s of its edge time, row 1 hides nothing."""
    table = table_of(edge_s=[1.0, 1.0], device_s=[0.0, 0.7], downlink_bits=[9e2, 0.0], ssim=[0.8, 0.8])
    alone = table.work.edge_s + table.work.device_s + table.work.downlink_bits * SLOW
    assert alone[1] < alone[0]
    found = solve(table, constant(200, SLOW), problem_of("latency_s"))
    assert found.value == pytest.approx(1.0, abs=0.01)


@settings(max_examples=settings().max_examples // 4, deadline=None)
@given(seed=st.integers(0, 10_000), limit_s=st.floats(0.3, 2.0))
def test_its_value_is_never_below_the_certified_bound(seed: int, limit_s: float) -> None:
    rng = np.random.default_rng(seed)
    table = table_of(
        edge_s=rng.random(5), device_s=rng.random(5), downlink_bits=1e3 * rng.integers(0, 3, 5), ssim=rng.random(5)
    )
    links, problem = [link_of(row) for row in rng.uniform(1e-4, 1e-3, (10, 6))], problem_of(latency_s=limit_s)
    found = solve(table, links, problem, num_bins=3, max_iterations=15)
    proved = pipelining.bound(table, links, problem, is_pipelined=True)
    if found.is_feasible:
        assert np.all(found.excesses <= 1e-3)
        dearest = float(proved.prices @ np.array([limit_s])) * 1e-3  # what excesses of 0.1 % are worth
        assert found.value >= proved.bound - dearest - 1e-6


@pytest.mark.slow
def test_it_comes_close_to_the_bound_and_ahead_of_what_knows_less() -> None:
    params = meg_cvpo_params()
    proved = -pipelining.bound(
        params.table, recorded_fading(params, num_episodes=64, seed=5), params.problem, is_pipelined=True
    ).bound
    found = {
        name: evaluate_policy(baseline(name, params), params, num_episodes=64, seed=5).summary(limits_of(params))
        for name in ("average_optimal", "drift_plus_penalty", "greedy", "fixed")
    }
    assert found["average_optimal"]["reward"] >= 0.99 * proved
    assert found["average_optimal"]["excess"] <= 0.015
    assert found["drift_plus_penalty"]["reward"] >= 0.97 * proved
    assert found["average_optimal"]["reward"] > found["greedy"]["reward"] > found["fixed"]["reward"]


def test_airtime_before_is_what_an_observation_says() -> None:
    """With 1 s on the air before it, the row with 1 s at the edge is the quicker one; without, the other."""
    table = table_of(edge_s=[1.0, 0.0], device_s=[0.0, 0.6], ssim=[0.8, 0.8])
    problem = problem_of("latency_s")
    policy = PipelinedOptimal(table=table, problem=problem, solution=solve(table, constant(4, ENDLESS), problem))
    link = link_of([ENDLESS] * 2)
    assert policy.act(Observation(link=link, previous_airtime_s=np.array([1.0, 0.1]))).tolist() == [0, 1]
    assert policy.act(Observation(link=link)).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 8, 1024])
@pytest.mark.parametrize("limit_s", [0.4, 0.7])
def test_what_acts_keeps_the_limits_that_the_mixture_keeps(num_devices: int, limit_s: float) -> None:
    """One policy of two leaves airtime for the other to hide behind, so means as drawn are not means of the two."""
    table = table_of(edge_s=[1.0, 0.0], device_s=[0.0, 0.2], downlink_bits=[1e3, 0.0], ssim=[0.9, 0.1])
    problem = problem_of(latency_s=limit_s)
    found = solve(table, [link_of([SLOW] * 8) for _ in range(500)], problem)
    assert found.is_feasible
    policy = PipelinedOptimal(table=table, problem=problem, solution=found)
    before_s, latencies_s = np.zeros(num_devices), []
    for _ in range(4_000 // num_devices + 100):
        rows = policy.act(Observation(link=link_of([SLOW] * num_devices), previous_airtime_s=before_s))
        hidden_s = np.minimum(table.work.edge_s[rows], before_s)
        before_s = table.work.downlink_bits[rows] * SLOW
        latencies_s.append(np.mean(table.work.edge_s[rows] - hidden_s + table.work.device_s[rows] + before_s))
    assert np.mean(latencies_s) <= limit_s * 1.04


@pytest.mark.slow
@pytest.mark.parametrize("episode_length", [1, 2, 4])
@pytest.mark.parametrize("name", ["average_optimal", "fixed"])
def test_in_short_episodes_the_first_request_hides_nothing(name: str, episode_length: int) -> None:
    params = replace(meg_cvpo_params(), episode_length=episode_length)
    found = evaluate_policy(baseline(name, params), params, num_episodes=2000, seed=6).summary(limits_of(params))
    assert found["excess"] <= 0.02


def test_floors_on_quality_and_limits_without_effect() -> None:
    table = table_of(edge_s=[0.5, 0.1], ssim=[0.9, 0.3])
    floor = solve(table, constant(300, ENDLESS), problem_of("latency_s", quality=0.6, energy_j=np.inf))
    assert floor.is_feasible
    assert floor.value == pytest.approx(0.3, abs=0.02)  # half and half
    assert floor.excesses.shape == (1,)
    with pytest.raises(ProblemError, match="one that no row can keep"):
        solve(table, constant(3, ENDLESS), problem_of("latency_s", quality=np.inf))


def test_where_no_link_is_ever_alive_the_device_works_alone() -> None:
    table = table_of(edge_s=[0.1, 0.0], device_s=[0.0, 0.9], downlink_bits=[1e3, 0.0], ssim=[0.8, 0.2])
    assert solve(table, constant(3, np.inf), problem_of("latency_s")).value == pytest.approx(0.9)


def test_same_seed_same_rows() -> None:
    params = meg_cvpo_params()
    some = params.table.take(np.arange(0, len(params.table), 9))
    world = {"table": some, "problem": params.problem, "channel": params.channel, "link": params.link}
    policies = [PipelinedOptimal.sampled(**world, num_traces=32, num_requests=8, seed=3) for _ in range(2)]
    link = recorded_fading(params, num_episodes=40, seed=1)[0]
    rows = [policy.act(Observation(link=link, previous_airtime_s=np.full(40, 0.05))) for policy in policies]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_limits_out_of_reach_are_a_status_and_exceeded_least() -> None:
    table = table_of(edge_s=[1.0, 0.5], ssim=[0.8, 0.2])
    found = solve(table, constant(6, ENDLESS), problem_of(latency_s=0.1))
    assert not found.is_feasible
    assert found.excesses == pytest.approx([4.0])  # .5 s of .1 s
    policy = PipelinedOptimal(table=table, problem=problem_of(latency_s=0.1), solution=found)
    assert policy.act(Observation(link=link_of([ENDLESS] * 3))).tolist() == [1, 1, 1]


def test_an_outage_takes_the_row_that_exceeds_least() -> None:
    table = table_of(edge_s=[0.1, 0.0], device_s=[0.0, 0.9], downlink_bits=[1e3, 0.0], ssim=[0.8, 0.2])
    problem = problem_of(latency_s=0.5)
    policy = PipelinedOptimal(table=table, problem=problem, solution=solve(table, constant(4, 1e-4), problem))
    assert policy.act(Observation(link=link_of([np.inf]))).tolist() == [1]


def test_messages() -> None:
    table = table_of(edge_s=[1.0], downlink_bits=[1e3], ssim=[0.8])
    with pytest.raises(ProblemError, match="1 requests; expected the links of at least two"):
        solve(table, constant(1, SLOW), problem_of())
    with pytest.raises(ProblemError, match="no row with finite costs; expected one, such as device only"):
        solve(table, constant(2, np.inf), problem_of("latency_s"))
    with pytest.raises(ConfigError, match="num_bins is 0"):
        solve(table, constant(2, SLOW), problem_of(), num_bins=0)
    with pytest.raises(ConfigError, match="num_requests is 1"):
        PipelinedOptimal.sampled(table=table, problem=problem_of(), channel=LogDistance(), link=Link(), num_requests=1)


@settings(max_examples=settings().max_examples // 4, deadline=None)
@given(seed=st.integers(0, 1000), limit_s=st.floats(0.2, 1.5))
def test_queues_owe_what_the_means_with_pipelining_exceed(seed: int, limit_s: float) -> None:
    """Neely's identity, mean cost - limit <= scale Q(T) / T, for latencies without the hidden time."""
    rng = np.random.default_rng(seed)
    table = table_of(edge_s=rng.random(4), downlink_bits=1e3 * rng.random(4), ssim=rng.random(4))
    policy = DriftPlusPenalty(table=table, problem=problem_of(latency_s=limit_s))
    before_s, latencies_s = 0.0, []
    for down_s in rng.uniform(1e-4, 1e-3, 50):
        row = policy.act(Observation(link=link_of([down_s]), previous_airtime_s=np.array([before_s])))[0]
        airtime_s = float(table.work.downlink_bits[row] * down_s)
        latencies_s.append(max(float(table.work.edge_s[row]) - before_s, 0.0) + airtime_s)
        before_s = airtime_s
    owed: FloatArray = limit_s * policy.queues / len(latencies_s)
    assert np.mean(latencies_s) - limit_s <= owed[0] + 1e-9


def test_of_channels_without_places_traces_are_drawn_as_they_are() -> None:
    table = table_of(edge_s=[0.2, 0.0], device_s=[0.0, 0.5], downlink_bits=[1e3, 0.0], ssim=[0.8, 0.6])
    policy = PipelinedOptimal.sampled(
        table=table, problem=problem_of("latency_s"), channel=Rayleigh(snr_db=10.0), link=Link(), num_requests=16
    )
    assert policy.solution.is_feasible
