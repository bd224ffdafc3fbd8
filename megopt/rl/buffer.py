"""Replay buffer with a vector of costs per step: n-step returns per head, termination kept apart from truncation.

With heads x = (reward, cost_1, .., cost_M) and n' <= n steps up to the end of the episode or of what is stored,

    return_x = sum_{j < n'} gamma^j x_{t+j},     discount = gamma^{n'} (1 - terminated),     next state s_{t+n'}

so that the target of every critic is return_x + discount Qbar_x(next state). A time limit bootstraps, an end does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within
from megopt.rl.costs import read_costs, require_finite_rewards


class CostReplaySamples(NamedTuple):
    """A batch of transitions.

    Attributes:
        observations: shape (num_samples, *observation).
        actions: as stored, scaled to [-1, 1] for Box, shape (num_samples, action_dim).
        next_observations: states n' steps on, shape (num_samples, *observation).
        returns: discounted sums of reward and costs, shape (num_samples, 1 + num_limits).
        discounts: gamma^{n'}, 0 where the episode terminated, shape (num_samples,).
        masks: legal actions per state, shape (num_samples, num_choices); None without masks.
        next_masks: the same of the next states.
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    returns: th.Tensor
    discounts: th.Tensor
    masks: th.Tensor | None
    next_masks: th.Tensor | None


class CostReplayBuffer(ReplayBuffer):
    """A ring of transitions with costs.

    Attributes:
        costs: cost per limit of each step, shape (buffer_size, n_envs, num_limits).
        terminations: whether the step ended the episode, shape (buffer_size, n_envs).
        truncations: whether a time limit cut the episode after the step, shape (buffer_size, n_envs).
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        *,
        num_limits: int = 0,
        n_steps: int = 1,
        gamma: float = 0.99,
        num_choices: int = 0,
    ) -> None:
        """Allocate the ring.

        Args:
            buffer_size: transitions, over all environments.
            observation_space: what is observed; no dictionaries.
            action_space: what is done.
            device: where batches go.
            n_envs: environments side by side.
            optimize_memory_usage: has to be False.
            num_limits: costs per step.
            n_steps: steps per return.
            gamma: discount per step.
            num_choices: length of an action mask; 0 for none.
        """
        require_whole("replay buffer", 1, buffer_size=buffer_size, n_steps=n_steps)
        require_within("replay buffer", 0.0, 1.0, gamma=gamma)
        if optimize_memory_usage or isinstance(observation_space, spaces.Dict):
            came = "optimize_memory_usage" if optimize_memory_usage else "a Dict observation space"
            message = f"replay buffer: {came}; expected separate next observations in one array; leave it out"
            raise ConfigError(message)
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        shape = (self.buffer_size, self.n_envs)
        self.costs = np.zeros((*shape, num_limits), dtype=np.float32)
        self.terminations = np.zeros(shape, dtype=np.bool_)
        self.truncations = np.zeros(shape, dtype=np.bool_)
        self.masks = np.ones((*shape, num_choices), dtype=np.bool_)
        self.next_masks = np.ones((*shape, num_choices), dtype=np.bool_)
        self.num_limits, self.n_steps, self.gamma, self.num_choices = num_limits, n_steps, gamma, num_choices

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of every environment.

        Args:
            obs: observations, shape (n_envs, *observation).
            next_obs: what followed, before any reset, shape (n_envs, *observation).
            action: shape (n_envs, action_dim).
            reward: shape (n_envs,).
            done: whether the episode ended or was cut, shape (n_envs,).
            infos: `costs` or `cost`, and `TimeLimit.truncated` where a time limit cut the episode.

        Raises:
            ProblemError: for costs of the wrong length, and for rewards or costs that are not finite.
        """
        require_finite_rewards(reward)
        at = self.pos
        self.costs[at] = read_costs(infos, self.num_limits) if self.num_limits else 0.0
        is_cut = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self.truncations[at] = is_cut & np.asarray(done, dtype=np.bool_)
        self.terminations[at] = ~is_cut & np.asarray(done, dtype=np.bool_)
        super().add(obs, next_obs, action, reward, done, infos)

    def set_latest_masks(self, masks: BoolArray, next_masks: BoolArray) -> None:
        """Store the legal actions of the latest step and of what followed it, each of shape (n_envs, num_choices)."""
        self.masks[self.newest], self.next_masks[self.newest] = masks, next_masks

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> CostReplaySamples:  # type: ignore[override]
        """Return transitions drawn uniformly with replacement."""
        return self._get_samples(np.random.randint(0, self.size(), size=batch_size), env)  # noqa: NPY002

    def _get_samples(self, batch_inds: NDArray[Any], env: VecNormalize | None = None) -> CostReplaySamples:  # type: ignore[override]
        """Return the transitions that begin at `batch_inds`, each in an environment drawn at random."""
        return self.transitions(batch_inds, np.random.randint(0, self.n_envs, size=len(batch_inds)), env)  # noqa: NPY002

    def transitions(self, at: NDArray[Any], rows: NDArray[Any], env: VecNormalize | None = None) -> CostReplaySamples:
        """Return the transitions that begin at places `at` of the ring in environments `rows`, each (num_samples,)."""
        ahead = np.arange(self.n_steps)
        places = (at[:, np.newaxis] + ahead) % self.buffer_size
        columns = rows[:, np.newaxis]
        is_last = (self.terminations | self.truncations)[places, columns] | (places == self.newest)
        num_steps = np.where(np.any(is_last, axis=1), np.argmax(is_last, axis=1) + 1, self.n_steps)
        rewards = self._normalize_reward(self.rewards[places, columns], env)
        heads = np.concatenate([rewards[..., np.newaxis], self.costs[places, columns]], axis=2)
        weights = self.gamma**ahead * (ahead < num_steps[:, np.newaxis])
        last = (at + num_steps - 1) % self.buffer_size
        discounts = self.gamma**num_steps * ~self.terminations[last, rows]
        return CostReplaySamples(
            observations=self.to_torch(np.asarray(self._normalize_obs(self.observations[at, rows], env))),
            actions=self.to_torch(self.actions[at, rows]),
            next_observations=self.to_torch(np.asarray(self._normalize_obs(self.next_observations[last, rows], env))),
            returns=self.to_torch(np.einsum("nj,njx->nx", weights, heads).astype(np.float32)),
            discounts=self.to_torch(discounts.astype(np.float32)),
            masks=self.to_torch(self.masks[at, rows]) if self.num_choices else None,
            next_masks=self.to_torch(self.next_masks[last, rows]) if self.num_choices else None,
        )

    def latest(self, num_steps: int, env: VecNormalize | None = None) -> CostReplaySamples:
        """Return the transitions of the latest `num_steps` steps over all environments, or what is stored of them."""
        count = max(1, min(-(-num_steps // self.n_envs), self.size()))
        at = (self.pos - 1 - np.arange(count)) % self.buffer_size
        return self.transitions(np.repeat(at, self.n_envs), np.tile(np.arange(self.n_envs), count), env)

    @property
    def newest(self) -> int:
        """Place of the latest step: what follows it in the ring is older, or empty."""
        return (self.pos - 1) % self.buffer_size

    def head_moments(self) -> tuple[FloatArray, FloatArray]:
        """Return mean and root mean square of reward and costs over what is stored, shape (1 + num_limits,) each.

        A root mean square of 0 is given as 1.
        """
        stop = self.size()
        heads = np.concatenate([self.rewards[:stop, :, np.newaxis], self.costs[:stop]], axis=2, dtype=np.float64)
        size = np.sqrt(np.mean(heads**2, axis=(0, 1)))
        return np.mean(heads, axis=(0, 1)), np.where(size > 0.0, size, 1.0)
