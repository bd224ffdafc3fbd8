"""The replay buffer on hand-made steps, and thresholds from limits against sums over episodes written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import ConfigError, ProblemError
from megopt.rl.buffer import CostReplayBuffer, CostReplaySamples
from megopt.rl.costs import CostLimits
from megopt.rl.thresholds import CriticMeans, Thresholds, mean_horizon

GAMMA = 0.5


def filled(ends: dict[int, str], num_steps: int = 6, size: int = 8, n_steps: int = 3) -> CostReplayBuffer:
    """Return a buffer of steps t = 0, 1, ..: reward t, costs (10 t, 1); `ends` names steps that end an episode."""
    box = spaces.Box(-1e3, 1e3, (1,))
    buffer = CostReplayBuffer(size, box, spaces.Discrete(3), "cpu", num_limits=2, n_steps=n_steps, gamma=GAMMA)
    for step in range(num_steps):
        info = {"costs": [10.0 * step, 1.0], "TimeLimit.truncated": ends.get(step) == "cut"}
        arrays = [np.array([[float(value)]]) for value in (step, step + 1)]
        buffer.add(*arrays, np.array([[1]]), np.array([float(step)]), np.array([step in ends]), [info])
    return buffer


def at(buffer: CostReplayBuffer, *places: int) -> CostReplaySamples:
    return buffer.transitions(np.array(places), np.zeros(len(places), dtype=int))


def test_returns_sum_each_head_on_its_own() -> None:
    batch = at(filled({}), 1)
    assert batch.returns[0].tolist() == pytest.approx([1 + 0.5 * 2 + 0.25 * 3, 10 + 5 * 2 + 2.5 * 3, 1.75])
    assert batch.discounts.tolist() == [0.125]
    assert batch.next_observations.tolist() == [[4.0]]


def test_a_termination_does_not_bootstrap_and_a_time_limit_does() -> None:
    ended, cut = at(filled({2: "end"}), 1), at(filled({2: "cut"}), 1)
    for batch in (ended, cut):
        assert batch.returns[0].tolist() == pytest.approx([1 + 0.5 * 2, 10 + 5 * 2, 1.5])
        assert batch.next_observations.tolist() == [[3.0]]
    assert ended.discounts.tolist() == [0.0]
    assert cut.discounts.tolist() == [0.25]


def test_returns_stop_at_the_write_head() -> None:
    young = at(filled({}, num_steps=4), 3)
    assert young.returns[0, 0] == 3.0
    assert young.discounts.tolist() == [0.5]
    # a full ring: place 1 holds step 9, the newest; what lies after it in the ring is older
    old = at(filled({}, num_steps=10), 0)
    assert old.returns[0, 0] == pytest.approx(8 + 0.5 * 9)
    assert old.next_observations.tolist() == [[10.0]]


def test_rows_of_several_environments_stay_apart() -> None:
    box = spaces.Box(-1e3, 1e3, (1,))
    buffer = CostReplayBuffer(8, box, box, "cpu", n_envs=2, num_limits=1, n_steps=2, gamma=1.0)
    for step in range(3):
        infos = [{"cost": 1.0}, {"cost": 100.0}]
        reward = np.array([step, 10.0 * step])
        buffer.add(np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1)), reward, np.array([step == 1, False]), infos)
    batch = buffer.transitions(np.array([1, 1]), np.array([0, 1]))
    assert batch.returns.tolist() == [[1.0, 1.0], [30.0, 200.0]]
    assert batch.discounts.tolist() == [0.0, 1.0]
    means, sizes = buffer.head_moments()
    assert means == pytest.approx([5.5, 50.5])
    assert sizes == pytest.approx([np.sqrt(505.0 / 6.0), np.sqrt(10001.0 / 2.0)])


def test_masks_go_with_their_step() -> None:
    box = spaces.Box(-1.0, 1.0, (1,))
    buffer = CostReplayBuffer(4, box, spaces.Discrete(2), "cpu", num_choices=2)
    buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.array([[0]]), np.zeros(1), np.zeros(1, dtype=bool), [{}])
    buffer.set_latest_masks(np.array([[True, False]]), np.array([[False, True]]))
    batch = at(buffer, 0)
    assert batch.masks is not None
    assert batch.next_masks is not None
    assert batch.masks.tolist() == [[True, False]]
    assert batch.next_masks.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("info", "reward", "message"),
    [
        ({"costs": [1.0]}, 0.0, "expected 2"),
        ({}, 0.0, "expected info"),
        ({"costs": [1.0, np.nan]}, 0.0, "finite"),
        ({"costs": [1.0, 1.0]}, np.nan, "reward"),
    ],
)
def test_steps_that_cannot_be_learnt_from_are_refused(info: dict[str, Any], reward: float, message: str) -> None:
    buffer = filled({}, num_steps=1)
    one = np.zeros((1, 1))
    with pytest.raises(ProblemError, match=message):
        buffer.add(one, one, np.array([[1]]), np.array([reward]), np.array([False]), [info])
    assert buffer.size() == 1


@given(
    gamma=st.floats(0.0, 0.999),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    ends=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_the_horizon_is_the_mean_discounted_count_of_steps(gamma: float, lengths: list[int], ends: list[bool]) -> None:
    counts = [
        sum(gamma**k for k in range(length - t)) if is_end else 1.0 / (1.0 - gamma)
        for length, is_end in zip(lengths, ends, strict=False)
        for t in range(length)
    ]
    horizon = mean_horizon(np.array(lengths, dtype=float), np.array(ends[: len(lengths)]), gamma)
    assert horizon == pytest.approx(np.mean(counts), rel=1e-6)


def test_known_horizons() -> None:
    # 64 steps, gamma 0.97: against the value at step 0, (1 - gamma^64) / (1 - gamma), which is 0.858 and 1.513 of these
    first = (1 - 0.97**64) / 0.03
    assert first / mean_horizon(np.array([64.0]), np.array([False]), 0.97) == pytest.approx(0.858, abs=1e-3)
    assert first / mean_horizon(np.array([64.0]), np.array([True]), 0.97) == pytest.approx(1.513, abs=1e-3)
    assert mean_horizon(np.array([3.0]), np.array([True]), 1.0) == 2.0
    with pytest.raises(ConfigError, match="gamma = 1"):
        mean_horizon(np.array([3.0]), np.array([False]), 1.0)


def same_means(value: float) -> CriticMeans:
    mean = np.array([value])
    return CriticMeans(taken=mean, visited=mean, replayed=mean)


def run(
    thresholds: Thresholds, cost: float, value: float, num_steps: int, length: int = 10, is_felt: bool = False
) -> None:
    """Take `num_steps` steps of constant cost, cut every `length`, with a critic that says `value`."""
    for step in range(num_steps):
        is_cut = np.array([step % length == length - 1])
        thresholds.observe(np.array([[cost]]), np.array([False]), is_cut, is_warm_up=False)
        thresholds.update(same_means(value), np.array([is_felt]))


def test_thresholds_follow_the_limit_and_then_the_measurement() -> None:
    limits = CostLimits(values=(5.0,), per="episode")
    thresholds = Thresholds(limits, 0.9, num_envs=1, window=100)
    assert np.isinf(thresholds.current()[0])  # the length of an episode is not known yet
    run(thresholds, cost=0.7, value=8.0, num_steps=50)
    assert thresholds.current()[0] == pytest.approx(0.5 * 10.0)  # 5 per 10 steps, horizon 1 / (1 - 0.9)
    run(thresholds, cost=0.7, value=8.0, num_steps=400, is_felt=True)
    # the critic says 8 where costs say 7, so the threshold is 1 higher; a lasting excess of 0.2 per step adds an
    # integral down to its bound, a tenth of 0.5 + 0.7
    assert thresholds.current()[0] == pytest.approx(6.0 - 0.12 * 10.0)
    assert thresholds.measured_cost()[0] == pytest.approx(7.0)


def test_an_actor_that_rests_beside_the_threshold_is_led_to_the_limit() -> None:
    # the critic is right, but the actor always comes out 0.03 above what the threshold asks for
    thresholds = Thresholds(CostLimits(values=(0.5,)), 0.9, num_envs=1, window=50)
    cost = 0.5
    for _ in range(40):
        run(thresholds, cost, value=10.0 * cost, num_steps=10, is_felt=True)
        cost = float(thresholds.current()[0]) / 10.0 + 0.03
    assert cost == pytest.approx(0.5, abs=1e-3)


def test_a_slack_limit_winds_nothing_up() -> None:
    felt, slack = (Thresholds(CostLimits(values=(0.5,)), 0.9, num_envs=1, window=50) for _ in range(2))
    run(felt, cost=0.4, value=4.0, num_steps=1000, is_felt=True)
    run(slack, cost=0.4, value=4.0, num_steps=1000)
    assert felt.current()[0] == pytest.approx(5.0 + 0.09 * 10.0)
    assert slack.current()[0] == pytest.approx(5.0)


def test_batches_that_are_dear_by_luck_do_not_lead_a_threshold_away() -> None:
    # a limit is felt in the dear half of the batches alone; on average replay is at the threshold
    rng = np.random.default_rng(0)
    thresholds = Thresholds(CostLimits(values=(0.5,)), 0.9, num_envs=1, window=100)
    for _ in range(2000):
        thresholds.observe(np.array([[0.5]]), np.array([False]), np.array([False]), is_warm_up=False)
        luck = rng.normal(0.0, 0.5)
        means = CriticMeans(taken=np.array([5.0]), visited=np.array([5.0]), replayed=np.array([5.0 + luck]))
        thresholds.update(means, np.array([luck > 0.0]))
    assert thresholds.current()[0] == pytest.approx(5.0, rel=0.02)


def test_luck_of_the_draws_moves_a_threshold_little_where_the_critic_is_right() -> None:
    # costs of 64-step stretches are off by up to a half; the critic sees that coming, replay does not share it, and the
    # policy follows the threshold
    rng = np.random.default_rng(0)
    thresholds = Thresholds(CostLimits(values=(1.0,)), 0.5, num_envs=1, window=640)
    found = []
    for _ in range(400):
        luck = rng.uniform(0.5, 1.5)
        for _ in range(64):
            cost = np.array([[float(thresholds.current()[0]) / 2.0 * luck]])
            thresholds.observe(cost, np.array([False]), np.array([False]), is_warm_up=False)
        level = float(thresholds.current()[0])
        seen = np.array([level * luck])
        means = CriticMeans(taken=seen, visited=seen, replayed=np.array([level]))
        thresholds.update(means, np.array([True]))
        found.append(float(thresholds.current()[0]))
    window_noise = 2.0 * np.sqrt(1.0 / 12.0) / np.sqrt(10.0)
    assert np.std(found[200:]) < 0.3 * window_noise
    assert np.mean(found[200:]) == pytest.approx(2.0, rel=0.05)


def test_replayed_states_that_are_dearer_raise_the_threshold() -> None:
    thresholds = Thresholds(CostLimits(values=(0.5,)), 0.9, num_envs=1, window=20)
    means = CriticMeans(taken=np.array([5.0]), visited=np.array([5.0]), replayed=np.array([6.0]))
    for _ in range(200):
        thresholds.observe(np.array([[0.5]]), np.array([False]), np.array([False]), is_warm_up=False)
        thresholds.update(means, np.array([True]))
    assert thresholds.current()[0] == pytest.approx(6.0)


def test_a_margin_is_held_back_on_the_safe_side() -> None:
    for limit, wanted in ((0.5, 4.5), (-0.5, -5.5)):
        thresholds = Thresholds(CostLimits(values=(limit,)), 0.9, num_envs=1, margin=0.1)
        assert thresholds.current()[0] == pytest.approx(wanted)


def test_steps_before_learning_do_not_count() -> None:
    thresholds = Thresholds(CostLimits(values=(0.5,)), 0.9, num_envs=1, window=10)
    for _ in range(20):
        thresholds.observe(np.array([[99.0]]), np.array([False]), np.array([False]), is_warm_up=True)
    run(thresholds, cost=0.25, value=0.0, num_steps=40)
    assert thresholds.measured[0] == pytest.approx(0.25)
