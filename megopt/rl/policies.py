"""The policy of CVPO: an actor, critics of reward and costs, and the slow copies of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    NatureCNN,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError
from megopt.rl.action_heads import head_of
from megopt.rl.categorical_heads import JointHead
from megopt.rl.networks import CostCritics, FeatureNetwork, new_optimizer


class CVPOPolicy(BasePolicy):
    """Actor, critics and slow copies for Box, Discrete and MultiDiscrete actions.

    Attributes:
        actor: the policy that is fitted, and acts while it learns.
        actor_target: its slow copy, the centre of the trust regions.
        actor_average: its running mean, which acts and is judged otherwise.
        is_exploring: whether `actor` acts, for what is learned from.
        critic: critics of reward and costs.
        critic_target: their slow copies.
        head: what the actor's outputs mean.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        num_limits: int = 0,
        num_critics: int = 1,
        use_joint_masks: bool = False,
        num_bins: int = 0,
    ) -> None:
        """Build all networks; `net_arch` may name `pi` and `qf` layers apart, 256 and 256 by default."""
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self.head = head_of(action_space, is_joint=use_joint_masks, num_bins=num_bins)
        self._settings = {"net_arch": net_arch, "activation_fn": activation_fn} | {
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
            "num_limits": num_limits,
            "num_critics": num_critics,
            "use_joint_masks": use_joint_masks,
            "num_bins": num_bins,
        }
        layers, critic_layers = get_actor_critic_arch([256, 256] if net_arch is None else net_arch)
        num_heads, num_outputs = 1 + num_limits, self.head.num_outputs
        self.actor, self.actor_target, self.actor_average = (
            FeatureNetwork(self, layers, activation_fn, num_outputs) for _ in range(3)
        )
        self.is_exploring = False
        self.actor.begin_flat()  # the first policy is nearly the same in all states, and nearly uniform
        self.critic, self.critic_target = (
            CostCritics(self, critic_layers, activation_fn, self.head, num_heads, num_critics) for _ in range(2)
        )
        copies = (self.actor, self.actor_target), (self.actor, self.actor_average), (self.critic, self.critic_target)
        for network, target in copies:
            target.load_state_dict(network.state_dict())
            target.requires_grad_(False)
            target.set_training_mode(False)
        for network in (self.actor, self.critic):
            network.optimizer = new_optimizer(self, network, lr_schedule(1))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._settings | {"lr_schedule": self._dummy_schedule}

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return actions, within [-1, 1] for Box."""
        return self._predict(observation, deterministic)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, masks: th.Tensor | None = None
    ) -> th.Tensor:
        return self.head.act(self._acting(observation), masks, deterministic)

    def _acting(self, observation: PyTorchObs) -> th.Tensor:
        """Return the outputs of the actor that acts."""
        actor = self.actor if self.is_exploring else self.actor_average
        outputs: th.Tensor = actor(observation)
        return outputs

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: BoolArray | None = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions for observations; with masks, legal ones only.

        Args:
            observation: one observation or one per environment.
            state: unused.
            episode_start: unused.
            deterministic: the mean or likeliest action, in place of a sample.
            action_masks: legal choices, shape (num_choices,) or (num_envs, num_choices); with joint masks legal joint
                actions, also in the shape of the space.

        Raises:
            ConfigError: for masks of another length.
        """
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        tensor, is_vectorised = self.obs_to_tensor(observation)
        masks = th.as_tensor(self.flat_masks(action_masks), device=self.device)
        with th.no_grad():
            actions = self._predict(tensor, deterministic, masks).cpu().numpy()
        shaped = actions.reshape((-1, *(self.action_space.shape or ())))
        return (shaped if is_vectorised else shaped[0]), state

    def probabilities(self, observation: NDArray[Any], action_masks: BoolArray | None = None) -> FloatArray:
        """Return pi(a|s) of the acting policy; of MultiDiscrete all joint actions, the last factor running fastest.

        Args:
            observation: one observation or several.
            action_masks: as in `predict`; illegal actions have probability 0.

        Returns:
            Shape (num_states, num_actions), rows sum to 1.

        Raises:
            ConfigError: for Box, and for products of more actions than are enumerated.
        """
        if not self.head.num_joint:
            message = f"CVPO: probabilities of {self.action_space}; expected actions that can be listed; draw some"
            raise ConfigError(message)
        self.set_training_mode(False)
        states, _ = self.obs_to_tensor(observation)
        masks = None if action_masks is None else th.as_tensor(self.flat_masks(action_masks), device=self.device)
        with th.no_grad():
            prior = self.head.candidates(self._acting(states), masks, 1).prior
        assert prior is not None
        shares = prior.cpu().numpy().astype(np.float64)
        return np.asarray(shares / shares.sum(axis=1, keepdims=True))

    def flat_masks(self, masks: Any) -> BoolArray:
        """Return masks of one state or several, shape (num_states, num_choices).

        Raises:
            ConfigError: for masks of another length.
        """
        flat, wanted = np.array(masks, dtype=np.bool_), self.head.num_choices  # a copy: torch wants to write
        if not wanted or flat.size % wanted:
            kind = "joint actions" if isinstance(self.head, JointHead) else "choices of all factors in a row"
            message = f"CVPO: action masks of shape {flat.shape}; expected {wanted} entries per state, the {kind}"
            raise ConfigError(message)
        return flat.reshape(-1, wanted)

    def set_training_mode(self, mode: bool) -> None:
        """Switch actor and critics; the slow copies stay in evaluation mode."""
        if mode == self.training and mode == self.actor.training:
            return
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode


MlpPolicy = CVPOPolicy


class CnnPolicy(CVPOPolicy):
    """`CVPOPolicy` on images."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        **settings: Any,
    ) -> None:
        """Build all networks with a convolutional extractor each."""
        super().__init__(
            observation_space, action_space, lr_schedule, features_extractor_class=features_extractor_class, **settings
        )
