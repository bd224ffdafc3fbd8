"""Policies that keep limits request after request: drift plus penalty beside the certified optimum, and greedy ones."""

from __future__ import annotations

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from megopt.analysis.rollout import rollout
from megopt.analysis.tradeoff import Sweep, tradeoff
from megopt.arrays import FloatArray, IntArray
from megopt.benchmarks import exhaustive as benchmark
from megopt.configuration import CONF_DIR
from megopt.errors import ConfigError, NotOfferedError, ProblemError
from megopt.policies import online
from megopt.policies.average_optimal import AverageOptimal
from megopt.policies.base import Observation, Policy
from megopt.policies.drift_plus_penalty import DriftPlusPenalty, objective_spread
from megopt.policies.greedy import Greedy, Least
from megopt.policies.optimal import Optimal
from megopt.problem import Limit, Problem, ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.solvers.average_limits import solve
from megopt.solvers.average_limits_sampling import held_out, sampled_states
from megopt.system.channel import Rayleigh
from megopt.system.link import Link, LinkState
from megopt.system.outcome import Work
from megopt.tables.profile import load_profile
from tests.plain_tables import link_of, problem_of, table_of

INF = float("inf")


def instance(num_states: int, num_rows: int = 60, seed: int = 0) -> tuple[ActionTable, LinkState]:
    return benchmark.instance(num_states, num_rows, np.random.default_rng(seed))


def acted(policy: Policy, link: LinkState) -> IntArray:
    return policy.act(Observation(link=link))


def mean_costs(table: ActionTable, rows: IntArray, link: LinkState, problem: Problem) -> FloatArray:
    return np.asarray(np.mean(costs(evaluate(table, rows, link, problem.metric), problem), axis=0))


TIGHT = problem_of(latency_s=0.8, energy_j=30.0)
TWO = table_of(edge_s=[1.0, 3.0], ssim=[0.4, 0.8])


def test_first_choices_by_hand() -> None:
    """With V = 1, -0.8 / 0.4 wins until Q = 1; the excess over 2 s is 1/2 for row 1 and -1/2 for row 0."""
    policy = DriftPlusPenalty(table=TWO, problem=problem_of(latency_s=2.0), objective_weight=1.0)
    assert acted(policy, link_of(np.zeros(6))).tolist() == [1, 1, 0, 1, 0, 1]
    assert policy.queues.tolist() == [1.0]
    patient = DriftPlusPenalty(table=TWO, problem=problem_of(latency_s=2.0), objective_weight=4.0)
    assert acted(patient, link_of(np.zeros(20))).tolist() == [1] * 8 + [0, 1] * 6
    assert objective_spread(TWO, problem_of()) == pytest.approx(0.4)
    assert objective_spread(TWO, problem_of("latency_s")) == 2.0
    assert objective_spread(TWO, problem_of("energy_j")) == 1.0


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(1e-3, 1e4), st.integers(1, 40))
def test_mean_excess_is_at_most_queue_over_time_on_any_sequence(seed: int, weight: float, num_requests: int) -> None:
    table, link = instance(num_requests, 12, seed)
    policy = DriftPlusPenalty(table=table, problem=TIGHT, objective_weight=weight)
    rows = acted(policy, link)
    over = (mean_costs(table, rows, link, TIGHT) - ceilings(TIGHT)) / np.abs(ceilings(TIGHT))
    assert np.all(policy.queues >= 0.0)
    assert np.all(over <= policy.queues / num_requests + 1e-12)


def test_calls_go_on_where_the_last_one_ended() -> None:
    table, link = instance(300)
    for make in (DriftPlusPenalty, Greedy):
        whole = acted(make(table=table, problem=TIGHT), link)
        policy = make(table=table, problem=TIGHT)
        parts = [acted(policy, link.take(np.array([request]))) for request in range(300)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        policy.restart()
        np.testing.assert_array_equal(acted(policy, link), whole)


def test_costs_come_in_runs_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table, link = instance(300)
    whole = acted(DriftPlusPenalty(table=table, problem=TIGHT), link)
    monkeypatch.setattr(online, "_PAIRS_AT_ONCE", 7 * len(table))
    np.testing.assert_array_equal(acted(DriftPlusPenalty(table=table, problem=TIGHT), link), whole)


def test_violation_falls_with_time_and_the_objective_nears_the_certified_optimum_as_v_grows() -> None:
    table, link = instance(12_000)
    optimum = solve(table, link, TIGHT)
    gaps = []
    for weight in (3.0, 10.0, 30.0):
        policy = DriftPlusPenalty(table=table, problem=TIGHT, objective_weight=weight)
        rows = acted(policy, link)
        excess = costs(evaluate(table, rows, link, "ssim"), TIGHT) / ceilings(TIGHT) - 1.0
        running = np.cumsum(excess, axis=0) / np.arange(1, 12_001)[:, None]
        worst = np.max(running, axis=1)
        for num_requests in (100, 1000, 12_000):  # the queue stays of the order of V, so the excess falls as V / T
            assert worst[num_requests - 1] <= (0.5 * weight + 3.0) / num_requests
        result = evaluate(table, rows, link, "ssim")
        # What is over the limits is charged at its price: then no way to choose rows is above the bound.
        charged = np.mean(result.quality) - optimum.prices @ (mean_costs(table, rows, link, TIGHT) - ceilings(TIGHT))
        gaps.append(optimum.bound - charged)
        drift = 0.5 * float(np.mean(np.sum(excess**2, axis=1)))
        assert -1e-9 <= gaps[-1] <= drift * objective_spread(table, TIGHT) / weight + 2e-4
    assert gaps[0] > 2.0 * gaps[1] > 3.0 * gaps[2] > 0.0
    assert gaps[2] < 0.005 * optimum.bound


def test_drift_plus_penalty_learns_the_prices_of_the_limits() -> None:
    table, link = instance(12_000, seed=3)
    optimum = solve(table, link, TIGHT)
    policy = DriftPlusPenalty(table=table, problem=TIGHT, objective_weight=100.0)
    acted(policy, link)
    learned = policy.queues * objective_spread(table, TIGHT) / (100.0 * ceilings(TIGHT))
    np.testing.assert_allclose(learned, optimum.prices, atol=0.25 * np.max(optimum.prices))


def test_without_binding_limits_the_best_row_is_taken() -> None:
    table, link = instance(200)
    best = int(np.argmax(table.metric("ssim")))
    for problem in (problem_of(), problem_of(latency_s=INF), problem_of(latency_s=1e6)):
        for make in (DriftPlusPenalty, Greedy):
            assert set(acted(make(table=table, problem=problem), link).tolist()) == {best}


def test_outages_take_a_row_and_leave_the_queues_alone() -> None:
    table = table_of(edge_s=[1.0, 2.0], downlink_bits=[1.0, 1.0], ssim=[0.4, 0.8])
    for make, field in ((DriftPlusPenalty, "queues"), (Greedy, "saved")):
        policy = make(table=table, problem=problem_of(latency_s=2.0))
        acted(policy, link_of([0.5, 0.7]))
        before = getattr(policy, field).copy()
        rows = acted(policy, link_of([INF, INF]))
        assert np.all((rows >= 0) & (rows < 2))
        np.testing.assert_array_equal(getattr(policy, field), before)
        assert np.all(np.isfinite(before))


def test_greedy_spends_what_it_saved() -> None:
    """Limit 2 s: the second row of 3 s is paid by the second of 1 s that went before."""
    policy = Greedy(table=TWO, problem=problem_of(latency_s=2.0))
    assert acted(policy, link_of(np.zeros(6))).tolist() == [0, 1, 0, 1, 0, 1]
    assert policy.saved.tolist() == [0.0]
    hungry = Greedy(table=TWO, problem=problem_of(latency_s=0.5))
    assert acted(hungry, link_of(np.zeros(3))).tolist() == [0, 0, 0]
    assert hungry.saved.tolist() == [-3.0]


@settings(max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_greedy_keeps_the_limits_at_every_time_where_a_row_always_fits(seed: int, num_requests: int) -> None:
    table, link = instance(num_requests, 12, seed)
    free = table_of(edge_s=[0.0], ssim=[0.0])
    columns = {name: [*getattr(table.work, name), getattr(free.work, name)[0]] for name in Work.__dataclass_fields__}
    table = table_of(**columns, ssim=[*table.metric("ssim"), 0.0])
    rows = acted(Greedy(table=table, problem=TIGHT), link)
    spent = np.cumsum(costs(evaluate(table, rows, link, "ssim"), TIGHT), axis=0)
    share = np.arange(1, num_requests + 1)[:, None] * ceilings(TIGHT)
    assert np.all(spent <= share * (1.0 + 1e-12) + 1e-9)


def test_no_online_policy_beats_the_bound_and_the_long_run_optimum_beats_them() -> None:
    table, link = instance(8000, seed=5)
    optimum = solve(table, link, TIGHT)
    made = {
        "greedy": Greedy(table=table, problem=TIGHT),
        "drift": DriftPlusPenalty(table=table, problem=TIGHT, objective_weight=10.0),
        "per request": Optimal(table=table, problem=TIGHT),
        "average": AverageOptimal(table=table, problem=TIGHT, solution=optimum),
    }
    charged = {}
    for name, policy in made.items():
        result = evaluate(table, acted(policy, link), link, "ssim")
        over = np.maximum(np.mean(costs(result, TIGHT), axis=0) - ceilings(TIGHT), 0.0)
        charged[name] = float(np.mean(result.quality) - optimum.prices @ over)
        assert charged[name] <= optimum.bound + 1e-9, name
    assert charged["average"] == pytest.approx(optimum.bound, abs=2e-3)
    assert charged["average"] > charged["drift"] > charged["per request"]
    assert charged["average"] > charged["greedy"] > charged["per request"]


@pytest.mark.parametrize("quantity", ["latency_s", "energy_j", "device_energy_j", "edge_energy_j", "quality"])
def test_least_takes_the_row_that_no_other_is_below(quantity: str) -> None:
    table, link = instance(50)
    problem = problem_of(latency_s=0.1)
    rows = acted(Least(table=table, problem=problem, quantity=quantity), link)
    goal = problem_of(quantity)
    chosen = objective(evaluate(table, rows, link, "ssim"), goal)
    for row in range(len(table)):
        assert np.all(chosen <= objective(evaluate(table, np.full(50, row), link, "ssim"), goal))


def test_least_serves_an_outage_with_some_row() -> None:
    table = table_of(edge_s=[1.0, 2.0], downlink_bits=[1.0, 1.0])
    assert acted(Least(table=table, problem=Problem(), quantity="latency_s"), link_of([INF])).tolist() == [0]


def test_errors_name_the_cause() -> None:
    unmeasured = table_of(edge_s=[1.0], device_energy_j=[float("nan")])
    for quantity in ("energy_j", "device_energy_j"):
        with pytest.raises(NotOfferedError, match=f"profile test has no row with a known {quantity}"):
            Least(table=unmeasured, problem=Problem(), quantity=quantity)
    with pytest.raises(ProblemError, match="objective 'speed'"):
        Least(table=TWO, problem=Problem(), quantity="speed")
    for make in (DriftPlusPenalty, Greedy):
        with pytest.raises(ProblemError, match="quality at least as good as inf holds a limit that no row can keep"):
            make(table=TWO, problem=problem_of(quality=INF))
    with pytest.raises(ConfigError, match="objective_weight"):
        DriftPlusPenalty(table=TWO, problem=problem_of(), objective_weight=0.0)


NAMES = ("average_optimal", "drift_plus_penalty", "greedy", "fastest", "least_energy")


def test_configured_policies_join_a_sweep() -> None:
    channel, link = Rayleigh(snr_db=10.0), Link(bandwidth_hz=20e6, device_rx_power_w=0.9, edge_tx_power_w=4.7)
    table, _ = compile_all(
        [Conventional(num_steps=[25]), StepSplit(num_steps=[25])], load_profile("h100__snapdragon8gen3__sdxl")
    )
    config = OmegaConf.create(
        {
            "channel": {"_target_": "megopt.system.channel.Rayleigh", "snr_db": 10.0},
            "link": {"_target_": "megopt.system.link.Link", "bandwidth_hz": 20e6},
            "num_blocks": 8,
            "policy": OmegaConf.merge(*(OmegaConf.load(CONF_DIR / "policy" / f"{name}.yaml") for name in NAMES)),
        }
    )
    config.policy.average_optimal.num_states = 500
    states = sampled_states(channel, link, 64, seed=0, num_blocks=8)
    found = tradeoff(
        table, states, Problem(), Sweep(quantity="energy_j", values=(100.0, 700.0)), instantiate(config.policy)
    )
    assert set(found.curve["policy"]) == set(NAMES)
    assert not found.notes
    latency = found.curve.set_index(["policy", "limit"])["latency_s"]
    assert all(latency.loc["fastest"].iloc[0] <= value + 1e-12 for value in latency)


def test_drift_plus_penalty_meets_the_certified_bound_on_a_phone() -> None:
    table, _ = compile_all(
        [Conventional(num_steps=[25]), StepSplit(num_steps=[25])], load_profile("h100__snapdragon8gen3__sdxl")
    )
    channel, link = Rayleigh(snr_db=5.0), Link(bandwidth_hz=2e6, edge_tx_power_w=4.7, device_rx_power_w=0.9)
    problem = Problem(objective="latency_s", limits=(Limit(quantity="energy_j", bound=500.0),))
    solution = solve(table, sampled_states(channel, link, 4000, seed=1, num_blocks=8), problem)
    fresh = sampled_states(channel, link, 6000, seed=2, num_blocks=8)
    held = held_out(table, fresh, problem, solution)
    policy = DriftPlusPenalty(table=table, problem=problem, objective_weight=10.0)
    records = rollout(policy, "drift plus penalty", table, fresh, problem)
    assert records["energy_j"].mean() <= 500.0 * (1.0 + policy.queues[0] / len(records) + 1e-12)
    assert records["energy_j"].mean() <= 502.0
    over = records["energy_j"].mean() - 500.0
    charged = records["latency_s"].mean() + solution.prices[0] * over
    assert held.bound - 4.0 * held.bound_error <= charged <= 1.01 * held.bound
