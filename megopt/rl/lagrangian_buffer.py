"""Transitions with one column of costs per limit: a replay buffer, and advantages of costs over a rollout."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.rl.lagrangian_costs import read_costs


class CostReplaySamples(NamedTuple):
    """A batch of transitions; `dones` is 1 for true ends only, a time limit is 0."""

    observations: torch.Tensor
    actions: torch.Tensor
    next_observations: torch.Tensor
    dones: torch.Tensor
    rewards: torch.Tensor
    costs: torch.Tensor


class CostReplayBuffer(ReplayBuffer):
    """stable-baselines3's replay buffer with the costs that `info` reports.

    Attributes:
        costs: unscaled costs, shape (buffer_size, num_envs, num_limits).
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        num_limits: int,
        **settings: Any,
    ) -> None:
        """Build an empty buffer.

        Args:
            buffer_size: transitions over all environments.
            observation_space: any space but Dict.
            action_space: action space.
            num_limits: costs per transition.
            **settings: keywords of `ReplayBuffer`.

        Raises:
            ConfigError: observations are dictionaries, or memory is to be saved at the expense of next observations.
        """
        if isinstance(observation_space, spaces.Dict) or settings.get("optimize_memory_usage"):
            message = (
                "CostReplayBuffer: Dict observations or optimize_memory_usage=True; expected neither; "
                "wrap the environment in gymnasium's FlattenObservation and keep optimize_memory_usage=False"
            )
            raise ConfigError(message)
        super().__init__(buffer_size, observation_space, action_space, **settings)
        self.num_limits = num_limits
        self.costs: NDArray[np.float32] = np.zeros((self.buffer_size, self.n_envs, num_limits), dtype=np.float32)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment, with its costs."""
        self.costs[self.pos] = read_costs(infos, self.num_limits)
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> CostReplaySamples:  # type: ignore[override]  # one field more than the parent's
        rows = (batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds)))  # noqa: NPY002  # SB3's seed
        is_terminated = self.dones[rows] * (1.0 - self.timeouts[rows])
        data = (
            self._normalize_obs(self.observations[rows], env),
            self.actions[rows],
            self._normalize_obs(self.next_observations[rows], env),
            is_terminated.reshape(-1, 1).astype(np.float32),
            self._normalize_reward(self.rewards[rows].reshape(-1, 1), env),
            self.costs[rows],
        )
        return CostReplaySamples(*(self.to_torch(np.asarray(part)) for part in data))


def generalised_advantages(
    costs: FloatArray, values: FloatArray, next_values: FloatArray, is_done: BoolArray, *, gamma: float, decay: float
) -> FloatArray:
    """Return the generalised advantage of every step and cost.

        delta_t = c_t + gamma V(s_t+1) - V(s_t)
        A_t     = delta_t + gamma decay A_t+1        (A_t+1 = 0 where t ends an episode)

    Args:
        costs: costs c, shape (num_steps, num_envs, num_limits).
        values: values V(s_t), same shape.
        next_values: values of the state that followed, before any reset; 0 where the episode terminated; same shape.
        is_done: whether the step ended its episode, by termination or time limit, shape (num_steps, num_envs).
        gamma: discount per step.
        decay: lambda of the estimator, in [0, 1].

    Source: Schulman et al., ICLR 2016, arXiv:1506.02438.
    """
    deltas = costs + gamma * next_values - values
    advantages = np.zeros_like(deltas)
    following = np.zeros_like(deltas[0])
    for step in reversed(range(len(deltas))):
        following = deltas[step] + gamma * decay * np.where(is_done[step, :, None], 0.0, following)
        advantages[step] = following
    return advantages
