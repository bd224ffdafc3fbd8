"""Small tasks of known optimum: their linear program, their kinds of actions, and what CVPO learns on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megopt.benchmarks import rl_tasks
from megopt.errors import ConfigError
from megopt.rl.tasks import NUM_ARMS, Kind, Task, TaskVecEnv, arm_weights, bandit, budget, played

KINDS: tuple[Kind, ...] = ("discrete", "multi", "box", "steps")
AS_ACTIONS: dict[str, Any] = {
    "discrete": [0, 1, 2, 3],
    "multi": [[0, 0], [0, 1], [1, 0], [1, 1]],
    "box": [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]],
    "steps": [[0.0], [1.5], [4.0], [2.1]],
}


class Mixture:
    """A policy that draws arms with probabilities per state."""

    def __init__(self, shares: Any, kind: Kind) -> None:
        self.shares, self.kind, self.rng = np.asarray(shares), kind, np.random.default_rng(71)

    def predict(self, observations: Any, deterministic: bool = False) -> tuple[Any, None]:
        states = np.argmax(observations, axis=1)
        arms = [self.rng.choice(NUM_ARMS, p=self.shares[state]) for state in states]
        return np.array(AS_ACTIONS[self.kind])[arms], None


def test_known_optima_of_the_bandit() -> None:
    # one state takes arm 1 of cost 0.1; that leaves 0.7 for the worthier one, which mixes arms of cost 0.3 and 1
    share = (0.7 - 0.3) / (1.0 - 0.3)
    assert bandit(1).optimum() == pytest.approx((0.5 * 0.3 + 0.5 + share * 0.5) / 2, abs=1e-9)
    # of budgets, two take the place of one only at a loss
    assert bandit(2).optimum() == pytest.approx(3.0 / 7.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_action_plays_every_arm(kind: Kind) -> None:
    assert np.array_equal(arm_weights(kind, np.array(AS_ACTIONS[kind])), np.eye(NUM_ARMS))
    env = TaskVecEnv(budget(2), kind, num_envs=4)
    assert all(env.action_space.contains(np.array(one, env.action_space.dtype)) for one in AS_ACTIONS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["discrete", "steps"])
@pytest.mark.parametrize("task", [bandit(2), budget(2)])
def test_a_policy_earns_what_its_occupancy_says(kind: Kind, task: Task) -> None:
    shares = np.random.default_rng(1).dirichlet(np.ones(NUM_ARMS), size=len(task.start))
    chain = np.einsum("sa,sat->st", shares, task.transitions)
    visits, at = np.zeros(len(task.start)), task.start
    for _ in range(task.horizon):
        visits, at = visits + at / task.horizon, at @ chain
    reward, costs = played(Mixture(shares, kind), task, kind, num_episodes=400)
    assert reward == pytest.approx(float(np.sum(visits[:, None] * shares * task.rewards)), abs=0.01)
    assert costs == pytest.approx(np.sum(visits[:, None] * shares * task.costs, axis=(1, 2)), abs=0.015)


def test_limits_cost_something_and_no_limit_is_below_the_reach_of_all() -> None:
    for maker in (bandit, budget):
        free = Task(
            **{name: getattr(maker(1), name) for name in ("rewards", "transitions", "start", "horizon", "costs")},
            limits=np.array([9.0]),
        )
        assert maker(2).optimum() < 0.96 * maker(1).optimum() < 0.96 * 0.96 * free.optimum()
    with pytest.raises(ConfigError, match="raise the limits"):
        Task(
            **{name: getattr(bandit(1), name) for name in ("rewards", "transitions", "start", "horizon", "costs")},
            limits=np.array([-1.0]),
        ).optimum()


def test_messages_name_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="kind = 'sphere'; expected one of discrete"):
        TaskVecEnv(bandit(), "sphere")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="task 'walk'; expected one of bandit, budget"):
        rl_tasks.learned("walk", 1, "discrete", 0, 10)


@pytest.mark.slow
def test_the_benchmark_reports_every_combination_and_the_worst_of_all() -> None:
    report = rl_tasks.run(("bandit",), (1,), ("discrete",), num_seeds=1, num_steps=1_760, num_episodes=20)
    assert list(report)[:3] == ["least_share", "largest_excess", "num_missed"]
    assert report["least_share"] == report["bandit.1.discrete.share"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["discrete", "multi"])
def test_the_sampled_policy_attains_the_optimum_of_a_bandit(kind: str) -> None:
    share, excess = rl_tasks.learned("bandit", 1, kind, seed=0, num_steps=64_000)
    assert share >= 0.97
    assert excess <= 0.02


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_limits", [1, 2])
@pytest.mark.parametrize("name", ["bandit", "budget"])
def test_five_seeds_attain_the_optimum_within_the_limits(name: str, num_limits: int, kind: str) -> None:
    for seed in range(5):
        share, excess = rl_tasks.learned(name, num_limits, kind, seed, num_steps=96_000)
        assert share >= 0.97, seed
        assert excess <= 0.02, seed
