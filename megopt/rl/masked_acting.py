"""Acting under action masks: only legal choices are drawn, and both masks of a step are stored with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from megopt.arrays import BoolArray
from megopt.errors import ConfigError
from megopt.rl.buffer import CostReplayBuffer
from megopt.rl.policies import CVPOPolicy


class MaskedActing(OffPolicyAlgorithm):
    """An off-policy algorithm that asks the environment's `action_masks()` where its buffer holds masks."""

    policy: CVPOPolicy
    replay_buffer: CostReplayBuffer
    _is_warm_up: bool = True
    _masks: BoolArray | None = None

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return actions for the environments and as stored: random ones at first, then the policy's."""
        self._is_warm_up = self.num_timesteps < learning_starts
        self.policy.is_exploring = True
        try:
            return self._explored(learning_starts, action_noise, n_envs)
        finally:
            self.policy.is_exploring = False

    def _explored(
        self, learning_starts: int, action_noise: ActionNoise | None, n_envs: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        if not self.replay_buffer.num_choices:
            return super()._sample_action(learning_starts, action_noise, n_envs)
        assert self._last_obs is not None
        self._masks = self._current_masks()
        if self._is_warm_up:
            even = th.zeros(n_envs, self.policy.head.num_outputs)
            actions = self.policy.head.act(even, th.as_tensor(self._masks), False).numpy()
            actions = actions.reshape((n_envs, *(self.action_space.shape or ())))
        else:
            actions, _ = self.policy.predict(self._last_obs, action_masks=self._masks)
        return actions, actions

    def _current_masks(self) -> BoolArray:
        """Return the legal choices of every environment, shape (n_envs, num_choices)."""
        assert self.env is not None
        try:
            masks = self.env.env_method("action_masks")
        except AttributeError as error:
            message = (
                "use_action_masks: the environment has no method action_masks(); expected one that returns which "
                "choices are legal; add it, or leave masks out"
            )
            raise ConfigError(message) from error
        return self.policy.flat_masks(np.stack(masks))

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: NDArray[Any] | dict[str, NDArray[Any]],
        reward: NDArray[Any],
        dones: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store a step with its masks."""
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if self._masks is not None:
            following = self._current_masks()
            for row in np.flatnonzero(dones):  # the environment has gone on to its next episode
                if "action_mask" in infos[row]:
                    following[row] = self.policy.flat_masks(infos[row]["action_mask"])[0]
                else:
                    following[row] = True
            self.replay_buffer.set_latest_masks(self._masks, following)
