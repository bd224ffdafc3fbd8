"""The E-step: against convex programs solved apart from it, its optimality conditions, and limits of every kind."""

from __future__ import annotations

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.arrays import FloatArray
from megopt.errors import ConfigError
from megopt.rl.estep import EStep, solve

SEEDS = st.integers(0, 2**31)


def batch(
    seed: int, num_limits: int = 2, tightness: float = 0.3
) -> tuple[FloatArray, FloatArray, FloatArray, float, FloatArray]:
    """Return rewards, costs, thresholds, max_kl and prior; thresholds are `tightness` std below the prior's costs."""
    rng = np.random.default_rng(seed)
    num_states, num_actions = int(rng.integers(1, 6)), int(rng.integers(3, 9))
    prior = rng.dirichlet(np.ones(num_actions), size=num_states)
    rewards = rng.normal(size=(num_states, num_actions))
    costs = rng.normal(size=(num_limits, num_states, num_actions))
    means = np.mean(np.sum(costs * prior, axis=2), axis=1)
    spread = np.sqrt(np.mean(np.sum((costs - means[:, None, None]) ** 2 * prior, axis=2), axis=1))
    return rewards, costs, means - tightness * spread * rng.uniform(0.2, 1.0, num_limits), 0.2, prior


def by_cone_program(
    rewards: FloatArray, costs: FloatArray, thresholds: FloatArray, max_kl: float, prior: FloatArray
) -> tuple[bool, float]:
    """Return whether there is an answer, and its value, from the plain definition of the problem."""
    q = cp.Variable(rewards.shape, nonneg=True)
    num_states = len(rewards)
    kept = [cp.sum(cp.multiply(q, cost)) / num_states <= bound for cost, bound in zip(costs, thresholds, strict=True)]
    region = [cp.sum(q, axis=1) == 1, cp.sum(cp.rel_entr(q, prior)) / num_states <= max_kl]
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(q, rewards)) / num_states), region + kept)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    is_solved = problem.status in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE)
    return is_solved, float(problem.value) if is_solved else np.nan


def check_optimal(step: EStep, thresholds: FloatArray, max_kl: float) -> None:
    """Assert the conditions of Karush, Kuhn and Tucker."""
    assert step.kl <= max_kl + 1e-6
    assert np.all(step.costs <= thresholds + 1e-6)
    assert np.all(step.multipliers >= 0.0)
    assert step.multipliers * (thresholds - step.costs) == pytest.approx(0.0, abs=1e-6)
    assert step.temperature * (max_kl - step.kl) == pytest.approx(0.0, abs=1e-5)
    assert step.bound == pytest.approx(step.reward, abs=2e-6)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("num_limits", [0, 1, 3])
def test_the_dual_equals_the_primal(seed: int, num_limits: int) -> None:
    rewards, costs, thresholds, max_kl, prior = batch(seed, num_limits, tightness=0.3)
    step = solve(rewards, costs, thresholds, max_kl, prior=prior)
    is_solved, value = by_cone_program(rewards, costs, thresholds, max_kl, prior)
    assert step.is_feasible == is_solved
    if is_solved:
        assert step.reward == pytest.approx(value, abs=1e-6)
        assert step.bound == pytest.approx(value, abs=1e-6)


@settings(max_examples=60)
@given(seed=SEEDS, num_limits=st.integers(0, 3), tightness=st.floats(-0.5, 0.2))
def test_answers_meet_the_optimality_conditions(seed: int, num_limits: int, tightness: float) -> None:
    rewards, costs, thresholds, max_kl, prior = batch(seed, num_limits, tightness)
    step = solve(rewards, costs, thresholds, max_kl, prior=prior)
    assert step.weights.sum(axis=1) == pytest.approx(1.0)
    if step.is_feasible:
        check_optimal(step, thresholds, max_kl)
    else:
        assert step.excess > -1e-6


def test_an_answer_at_the_least_temperature_is_as_right_as_any() -> None:
    # q is a vertex in one state and mixes two actions in the other; the dual is flat to rounding long before its
    # gradient is, since its curvature is 1 / eta
    rewards, costs, thresholds, max_kl, prior = batch(4739, 1, tightness=-0.47223532387340833)
    step = solve(rewards, costs, thresholds, max_kl, prior=prior)
    assert step.temperature < 1e-6
    assert step.costs == pytest.approx(thresholds, abs=1e-8)
    check_optimal(step, thresholds, max_kl)


def test_known_answer_of_two_actions() -> None:
    # q moves the probability p of action 1 from 1/2; reward 1 and cost 1 there, so the limit sets p = 0.6
    step = solve(np.array([[0.0, 1.0]]), np.array([[[0.0, 1.0]]]), np.array([0.6]), 0.5)
    assert step.weights == pytest.approx(np.array([[0.4, 0.6]]), abs=1e-6)
    assert step.multipliers == pytest.approx([1.0], abs=1e-4)
    # without the limit the trust region sets it: p log 2p + (1 - p) log 2(1 - p) = eps
    free = solve(np.array([[0.0, 1.0]]), np.zeros((0, 1, 2)), np.zeros(0), 0.1)
    p = free.weights[0, 1]
    assert p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)) == pytest.approx(0.1, abs=1e-7)


def test_a_slack_limit_has_no_multiplier_and_changes_nothing() -> None:
    rewards, costs, thresholds, max_kl, prior = batch(3, num_limits=2, tightness=0.1)
    without = solve(rewards, costs[:1], thresholds[:1], max_kl, prior=prior)
    step = solve(rewards, costs, np.array([thresholds[0], 1e3]), max_kl, prior=prior)
    endless = solve(rewards, costs, np.array([thresholds[0], np.inf]), max_kl, prior=prior)
    assert step.multipliers[1] == pytest.approx(0.0, abs=1e-9)
    assert step.weights == pytest.approx(without.weights, abs=1e-6)
    assert endless.weights == pytest.approx(without.weights, abs=1e-6)


def test_a_duplicated_limit_changes_nothing_but_the_share_of_the_multipliers() -> None:
    rewards, costs, thresholds, max_kl, prior = batch(5, num_limits=1, tightness=0.3)
    once = solve(rewards, costs, thresholds, max_kl, prior=prior)
    twice = solve(rewards, np.tile(costs, (2, 1, 1)), np.tile(thresholds, 2), max_kl, prior=prior)
    assert once.is_feasible
    assert once.multipliers[0] > 0.01
    assert twice.weights == pytest.approx(once.weights, abs=1e-6)
    assert twice.multipliers.sum() == pytest.approx(once.multipliers.sum(), rel=1e-5)


@given(seed=SEEDS)
@settings(max_examples=20)
def test_the_order_of_limits_does_not_matter(seed: int) -> None:
    rewards, costs, thresholds, max_kl, prior = batch(seed, num_limits=3, tightness=0.3)
    step = solve(rewards, costs, thresholds, max_kl, prior=prior)
    turned = solve(rewards, costs[::-1], thresholds[::-1], max_kl, prior=prior)
    assert turned.is_feasible == step.is_feasible
    assert turned.weights == pytest.approx(step.weights, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaled_values_scale_the_duals_alone(scale: float) -> None:
    rewards, costs, thresholds, max_kl, prior = batch(7, num_limits=2, tightness=0.2)
    step = solve(rewards, costs, thresholds, max_kl, prior=prior)
    scaled = solve(scale * rewards + 3.0 * scale, costs / scale, thresholds / scale, max_kl, prior=prior)
    assert step.is_feasible
    assert scaled.weights == pytest.approx(step.weights, abs=1e-6)
    assert scaled.temperature == pytest.approx(scale * step.temperature, rel=1e-4)
    assert scaled.multipliers == pytest.approx(scale**2 * step.multipliers, rel=1e-4, abs=1e-6 * scale**2)


def test_a_limit_out_of_reach_leads_to_the_least_cost_in_the_trust_region() -> None:
    rewards, costs, _, max_kl, prior = batch(11, num_limits=1)
    step = solve(rewards, costs, np.array([-50.0]), max_kl, prior=prior)
    _, least = by_cone_program(-costs[0], np.zeros((0, *rewards.shape)), np.zeros(0), max_kl, prior)
    assert not step.is_feasible
    assert step.kl == pytest.approx(max_kl, abs=1e-6)
    assert step.costs[0] == pytest.approx(-least, abs=1e-6)
    # a limit just beyond reach and one just within it differ in the verdict
    assert not solve(rewards, costs, np.array([-least - 1e-3]), max_kl, prior=prior).is_feasible
    assert solve(rewards, costs, np.array([-least + 1e-3]), max_kl, prior=prior).is_feasible


def test_limits_that_exclude_each_other_share_the_excess() -> None:
    rewards = np.array([[0.3, 0.1, 0.0, 0.2]])
    cost = np.array([[0.0, 1.0, 2.0, 3.0]])
    step = solve(rewards, np.stack([cost, -cost]), np.array([1.0, -2.0]), 5.0)
    assert not step.is_feasible
    assert step.costs == pytest.approx([1.5, -1.5], abs=1e-5)  # half way between at most 1 and at least 2


def test_a_cost_that_no_action_moves_is_reported_and_does_not_stop_learning() -> None:
    rewards = np.array([[0.0, 1.0, 2.0]])
    step = solve(rewards, np.ones((1, 1, 3)), np.array([0.5]), 0.1)
    assert not step.is_feasible
    assert step.reward > 1.1


def test_masked_actions_have_no_weight() -> None:
    rewards = np.array([[0.0, 1.0, 9.0], [3.0, 1.0, 0.0]])
    prior = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    step = solve(rewards, np.zeros((0, 2, 3)), np.zeros(0), 0.3, prior=prior)
    only = solve(rewards[:, [0, 1]], np.zeros((0, 2, 2)), np.zeros(0), 0.3, prior=np.array([[0.5, 0.5], [1.0, 0.0]]))
    assert np.all(step.weights[prior == 0.0] == 0.0)
    assert step.kl == pytest.approx(0.3, abs=1e-6)
    assert only.weights[1] == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("num_samples", [8, 64, 512])
def test_the_number_of_samples_does_not_change_the_trust_region(num_samples: int) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(64, num_samples))
    step = solve(rewards, rng.normal(size=(1, 64, num_samples)), np.array([-0.05]), 0.1)
    assert step.kl == pytest.approx(0.1, abs=1e-6)
    assert step.weights.sum(axis=1) == pytest.approx(1.0)
    assert step.reward == pytest.approx(np.sqrt(2 * 0.1), abs=0.1)  # Gaussian values: shifted by sqrt(2 eps)


def test_an_earlier_answer_changes_the_time_alone() -> None:
    rewards, costs, thresholds, max_kl, prior = batch(13, num_limits=2, tightness=0.2)
    first = solve(rewards, costs, thresholds, max_kl, prior=prior)
    second = solve(rewards, costs, thresholds, max_kl, prior=prior, start=first)
    assert second.weights == pytest.approx(first.weights, abs=1e-7)
    assert second.num_iterations <= 1 < first.num_iterations


@given(seed=SEEDS, sharpness=st.floats(-2.0, 0.0))
@settings(max_examples=40)
def test_nearly_certain_policies_are_no_trouble(seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    prior = np.maximum(rng.dirichlet(np.full(4, 10.0**sharpness), size=3), 1e-30)
    prior /= prior.sum(axis=1, keepdims=True)
    rewards, costs = rng.normal(size=(3, 4)), rng.normal(size=(1, 3, 4))
    thresholds = np.mean(np.sum(costs * prior, axis=2), axis=1) + 0.05
    step = solve(rewards, costs, thresholds, 0.1, prior=prior, tolerance=1e-6)
    assert step.is_feasible
    assert step.kl <= 0.1 + 1e-4
    assert step.costs[0] <= thresholds[0] + 1e-4
    assert step.bound - step.reward == pytest.approx(0.0, abs=1e-4)


def test_messages_name_what_is_wrong() -> None:
    rewards, costs = np.zeros((2, 3)), np.zeros((1, 2, 3))
    with pytest.raises(ConfigError, match=r"thresholds \(2,\)"):
        solve(rewards, costs, np.zeros(2), 0.1)
    with pytest.raises(ConfigError, match="not finite"):
        solve(np.full((2, 3), np.nan), costs, np.zeros(1), 0.1)
    with pytest.raises(ConfigError, match="max_kl"):
        solve(rewards, costs, np.zeros(1), 0.0)
    with pytest.raises(ConfigError, match="sum to 1"):
        solve(rewards, costs, np.zeros(1), 0.1, prior=np.ones((2, 3)))
