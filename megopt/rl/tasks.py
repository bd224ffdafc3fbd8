"""Small constrained tasks whose optimum a linear program knows, as stable-baselines3 vector environments.

A task has states, four arms, rewards and costs per state and arm, a Markov chain and a horizon at which a time limit
cuts the episode. Its optimum over all policies, also those that look at the clock, is a linear program in the
occupancies m_t(s, a) = P(state s and arm a in step t):

    max sum_t <m_t, r> / T   subject to   sum_t <m_t, c_i> / T <= limit_i,   m_{t+1} follows m_t along the chain

One task comes with four kinds of actions, and all have this optimum:

    discrete   Discrete(4), an arm
    multi      MultiDiscrete([2, 2]), the two binary digits of an arm
    box        Box of two numbers: the probabilities of the digits, reward and costs are those on average
    steps      Box of one number, cut into intervals for the arms 0, 1, 3, 2: a Gaussian has to straddle an end to mix,
               and to pass what is bad in the middle on its way from one good end to the other
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from stable_baselines3.common.vec_env import VecEnv

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ConfigError

Kind = Literal["discrete", "multi", "box", "steps"]
NUM_ARMS = 4
_IN_STEPS = np.array([0, 1, 3, 2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A small constrained Markov decision process.

    Attributes:
        rewards: mean reward, shape (num_states, NUM_ARMS).
        costs: mean costs, shape (num_limits, num_states, NUM_ARMS).
        limits: upper limit of each mean cost per step, shape (num_limits,).
        transitions: P(next state | state, arm), shape (num_states, NUM_ARMS, num_states).
        start: P(first state), shape (num_states,).
        horizon: steps per episode [1].
    """

    rewards: FloatArray
    costs: FloatArray
    limits: FloatArray
    transitions: FloatArray
    start: FloatArray
    horizon: int

    def optimum(self) -> float:
        """Return the largest mean reward per step under the limits.

        Raises:
            ConfigError: if no policy keeps the limits.
        """
        num_states, num_pairs = len(self.start), self.rewards.size
        leave = sparse.kron(sparse.eye(num_states), np.ones((1, NUM_ARMS)))
        arrive = sparse.csr_matrix(self.transitions.reshape(num_pairs, num_states).T)
        flow = sparse.kron(sparse.eye(self.horizon), leave) - sparse.kron(sparse.eye(self.horizon, k=-1), arrive)
        answer: Any = linprog(  # type: ignore[call-overload]  # HiGHS takes sparse matrices
            -np.tile(self.rewards.ravel(), self.horizon) / self.horizon,
            A_ub=np.tile(self.costs.reshape(-1, num_pairs), self.horizon) / self.horizon,
            b_ub=self.limits,
            A_eq=flow,
            b_eq=np.concatenate([self.start, np.zeros((self.horizon - 1) * num_states)]),
        )
        if answer.status != 0:
            message = f"task: the linear program ends with {answer.message!r}; expected an optimum; raise the limits"
            raise ConfigError(message)
        return -float(answer.fun)


def bandit(num_limits: int = 1) -> Task:
    """Return four arms in two states that come at random, one worth twice the other, under one or two limits.

    Each limit makes the optimum mix two arms in one of the states.
    """
    costs = np.array([[0.0, 0.1, 1.0, 0.3], [0.0, 1.0, 0.6, 0.6]])[:num_limits]
    return Task(
        rewards=np.array([[0.5], [1.0]]) * np.array([0.0, 0.3, 1.0, 0.5]),
        costs=np.broadcast_to(costs[:, np.newaxis], (num_limits, 2, NUM_ARMS)),
        limits=np.array([0.4, 0.3])[:num_limits],
        transitions=np.full((2, NUM_ARMS, 2), 0.5),
        start=np.full(2, 0.5),
        horizon=10,
    )


def budget(num_limits: int = 1) -> Task:
    """Return 64 steps with one budget or two: what is worth doing comes and goes, and the largest arm tires.

    States are three worths, each of which stays with probability 0.8, times rested or tired, where rewards are cut by a
    quarter. Arm 2 leads to tired, the others to rested. Limits are on the mean costs, 1 / 64 of a budget.
    """
    worths, gains = np.array([[0.3], [0.6], [1.0]]), np.array([0.0, 0.4, 1.0, 0.7])
    costs = np.array([[0.0, 0.15, 1.0, 0.5], [0.2, 0.9, 0.2, 0.8]])[:num_limits]
    stays = 0.7 * np.eye(3) + 0.1
    tires = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    transitions = np.einsum("xy,ak->xayk", stays, tires).reshape(3, NUM_ARMS, 6)
    return Task(
        rewards=(worths * np.array([1.0, 0.75])).reshape(-1, 1) * gains,
        costs=np.broadcast_to(costs[:, np.newaxis], (num_limits, 6, NUM_ARMS)),
        limits=np.array([0.35, 0.5] if num_limits == 2 else [0.55])[:num_limits],
        transitions=np.repeat(transitions, 2, axis=0),
        start=np.kron(np.full(3, 1.0 / 3.0), [1.0, 0.0]),
        horizon=64,
    )


class TaskVecEnv(VecEnv):
    """Copies of a task side by side, with costs in `info["costs"]`; observations name the state, one-hot.

    Attributes:
        task: the task.
        kind: what actions are.
    """

    def __init__(self, task: Task, kind: Kind, num_envs: int = 8, seed: int = 0) -> None:
        """Build the environments.

        Args:
            task: the task.
            kind: what actions are.
            num_envs: copies.
            seed: of all states.

        Raises:
            ConfigError: for a kind that is not known.
        """
        if kind not in get_args(Kind):
            message = f"task: kind = {kind!r}; expected one of {', '.join(get_args(Kind))}; choose one"
            raise ConfigError(message)
        self.task, self.kind = task, kind
        self._rng = np.random.default_rng(seed)
        self._states, self._time = np.zeros(num_envs, dtype=np.int64), 0
        self._weights = np.zeros((num_envs, NUM_ARMS))
        self.render_mode = None
        actions: dict[str, spaces.Space[Any]] = {
            "discrete": spaces.Discrete(NUM_ARMS),
            "multi": spaces.MultiDiscrete([2, 2]),
            "box": spaces.Box(0.0, 1.0, (2,), np.float32),
            "steps": spaces.Box(0.0, 4.0, (1,), np.float32),
        }
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (len(task.start),), np.float32), actions[kind])

    def _observed(self) -> NDArray[np.float32]:
        return np.eye(len(self.task.start), dtype=np.float32)[self._states]

    def reset(self) -> NDArray[np.float32]:
        """Begin a new episode everywhere; returns observations, shape (num_envs, num_states)."""
        self._time = 0
        self._states = self._drawn(np.broadcast_to(self.task.start, (self.num_envs, len(self.task.start))))
        return self._observed()

    def _drawn(self, probabilities: FloatArray) -> IntArray:
        """Return one column per row, drawn with the row's probabilities."""
        edges = np.cumsum(probabilities, axis=1)
        return np.asarray(np.sum(self._rng.random((len(edges), 1)) * edges[:, -1:] >= edges, axis=1))

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take note of the actions, shape (num_envs,) or (num_envs, size)."""
        self._weights = arm_weights(self.kind, np.asarray(actions))

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], BoolArray, list[dict[str, Any]]]:
        """Return observations, rewards, whether episodes are over, and infos."""
        task, weights = self.task, self._weights
        rewards = np.sum(task.rewards[self._states] * weights, axis=1)
        costs = np.sum(task.costs[:, self._states] * weights, axis=2).T
        infos: list[dict[str, Any]] = [{"costs": row} for row in costs]
        self._states = self._drawn(np.einsum("na,nas->ns", weights, task.transitions[self._states]))
        self._time += 1
        is_over = self._time >= task.horizon
        observed = self._observed()
        if is_over:
            for info, last in zip(infos, observed, strict=True):
                info |= {"terminal_observation": last, "TimeLimit.truncated": True}
            observed = self.reset()
        return observed, rewards.astype(np.float32), np.full(self.num_envs, is_over), infos

    def close(self) -> None:
        """Do nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the whole, once per environment asked for."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the whole."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **settings: Any) -> list[Any]:
        """Call a method of the whole; its answer once per environment asked for."""
        return [getattr(self, method_name)(*args, **settings)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return that nothing is wrapped."""
        return [False] * len(list(self._get_indices(indices)))


def arm_weights(kind: Kind, actions: NDArray[Any]) -> FloatArray:
    """Return the share of each arm in some actions, shape (num_actions, NUM_ARMS); see the module."""
    if kind == "box":
        first, second = np.asarray(actions, dtype=np.float64).T
        shares = [(1.0 - first) * (1.0 - second), (1.0 - first) * second, first * (1.0 - second), first * second]
        return np.stack(shares, axis=1)
    if kind == "steps":
        arms = _IN_STEPS[np.minimum(np.asarray(actions)[:, 0], NUM_ARMS - 0.5).astype(np.int64)]
    else:
        arms = np.asarray(actions)[:, 0] * 2 + np.asarray(actions)[:, 1] if kind == "multi" else np.asarray(actions)
    return np.asarray(np.eye(NUM_ARMS)[arms])


def played(
    model: Any, task: Task, kind: Kind, num_episodes: int = 2000, seed: int = 0, *, is_deterministic: bool = False
) -> tuple[float, FloatArray]:
    """Return mean reward and mean costs per step of a model on fresh episodes; costs have shape (num_limits,).

    Args:
        model: anything with `predict(observations, deterministic=...)`.
        task: the task.
        kind: what actions are.
        num_episodes: fresh episodes.
        seed: of the states.
        is_deterministic: whether to take the mean or likeliest action; the limits hold for sampled ones.
    """
    env = TaskVecEnv(task, kind, num_episodes, seed)
    observed: Any = env.reset()
    reward, costs = 0.0, np.zeros(len(task.limits))
    for _ in range(task.horizon):
        observed, rewards, _, infos = env.step(model.predict(observed, deterministic=is_deterministic)[0])
        reward += float(np.mean(rewards)) / task.horizon
        costs += np.mean([info["costs"] for info in infos], axis=0) / task.horizon
    return reward, costs
