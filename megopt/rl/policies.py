"""Networks of CVPO: an actor, critics of reward and costs side by side, and the slow copies of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
    get_actor_critic_arch,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from megopt.arrays import BoolArray, FloatArray
from megopt.rl.action_heads import ActionHead, Candidates, head_of


class ParallelLinear(nn.Module):
    """Linear layers of several networks in one product, each begun as `torch.nn.Linear` begins."""

    def __init__(self, num_networks: int, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        bound = 1.0 / np.sqrt(num_inputs)
        self.weight = nn.Parameter(th.empty(num_networks, num_inputs, num_outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(th.empty(num_networks, 1, num_outputs).uniform_(-bound, bound))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Return (networks, rows, outputs) for inputs (rows, inputs) or (networks, rows, inputs)."""
        if inputs.ndim == 2:
            inputs = inputs.expand(len(self.weight), *inputs.shape)
        return th.baddbmm(self.bias, inputs, self.weight)


class Actor(BaseModel):
    """From observations to the outputs that an action head reads."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        net_arch: list[int],
        activation_fn: type[nn.Module],
        features_extractor: BaseFeaturesExtractor,
        num_outputs: int,
        normalize_images: bool = True,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.network = nn.Sequential(*create_mlp(features_extractor.features_dim, num_outputs, net_arch, activation_fn))
        with th.no_grad():  # the first policy is nearly the same in all states, and nearly uniform
            self.network[-1].weight.mul_(0.01)  # type: ignore[operator]
            self.network[-1].bias.zero_()  # type: ignore[operator]

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """Return outputs, shape (num_states, num_outputs)."""
        assert self.features_extractor is not None
        features = self.extract_features(observations, self.features_extractor)
        return self.network(features)  # type: ignore[no-any-return]


class CostCritics(BaseModel):
    """Q of reward and of each cost, `num_critics` networks per head, all side by side.

    Twins are joined by the minimum for the reward and by the mean for costs: the minimum would promise too little cost.

    Attributes:
        scales: unit of each head's outputs, shape (num_heads,); networks then learn numbers of size 1.
    """

    scales: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        net_arch: list[int],
        activation_fn: type[nn.Module],
        features_extractor: BaseFeaturesExtractor,
        head: ActionHead,
        num_heads: int,
        num_critics: int,
        normalize_images: bool = True,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self._num_joint, self._shape = head.num_joint, (num_critics, num_heads)
        num_inputs = features_extractor.features_dim + (0 if head.num_joint else head.encoding_size)
        layers: list[nn.Module] = []
        for width in net_arch:
            layers += [ParallelLinear(num_heads * num_critics, num_inputs, width), activation_fn()]
            num_inputs = width
        self.network = nn.Sequential(*layers, ParallelLinear(num_heads * num_critics, num_inputs, head.num_joint or 1))
        self.register_buffer("scales", th.ones(num_heads))

    def forward(self, observations: PyTorchObs, encoding: th.Tensor | None) -> th.Tensor:
        """Return Q in units of `scales`, shape (num_critics, num_heads, num_states, num_actions).

        Args:
            observations: shape (num_states, *observation).
            encoding: actions, shape (num_states, num_actions, size); None for all enumerated ones.
        """
        assert self.features_extractor is not None
        features = self.extract_features(observations, self.features_extractor)
        if encoding is None:
            return self.network(features).reshape(*self._shape, len(features), -1)  # type: ignore[no-any-return]
        each = features[:, None].expand(-1, encoding.shape[1], -1)
        rows = th.cat([each, encoding], dim=2).flatten(0, 1)
        return self.network(rows).reshape(*self._shape, *encoding.shape[:2])  # type: ignore[no-any-return]

    def begin_at(self, values: FloatArray, scales: FloatArray) -> None:
        """Set the unit of each head's outputs, and in it what all states and actions are worth before any training.

        A cost critic that begins at 0 promises no cost at all, and the policy would first run over its limits.

        Args:
            values: first value of each head in its unit, shape (num_heads,).
            scales: unit of each head, > 0, shape (num_heads,).
        """
        with th.no_grad():
            self.scales.copy_(th.as_tensor(scales, dtype=th.float32))
            first = th.as_tensor(values, dtype=th.float32, device=self.device).repeat(self._shape[0])
            last = self.network[-1]
            assert isinstance(last, ParallelLinear)
            last.weight.mul_(0.1)
            last.bias.copy_(first[:, None, None].expand_as(last.bias))

    def of_stored(self, observations: PyTorchObs, stored: th.Tensor) -> th.Tensor:
        """Return Q of one stored action per state in units of `scales`, (num_critics, num_heads, num_states)."""
        if not self._num_joint:
            return self(observations, stored[:, None])[..., 0]  # type: ignore[no-any-return]
        values = self(observations, None)
        index = stored.expand(*values.shape[:2], -1)[..., None]
        return th.gather(values, 3, index)[..., 0]

    def joined(self, observations: PyTorchObs, candidates: Candidates) -> th.Tensor:
        """Return Q of candidates in the units of reward and costs, shape (num_heads, num_states, num_actions)."""
        values = self(observations, candidates.encoding)
        joined = th.cat([th.amin(values[:, :1], dim=0), th.mean(values[:, 1:], dim=0)])
        return joined * self.scales[:, None, None]


class CVPOPolicy(BasePolicy):
    """Actor, critics and slow copies for Box, Discrete and MultiDiscrete actions.

    Attributes:
        actor: the policy that acts and is fitted.
        actor_target: its slow copy, the centre of the trust regions.
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
        self.head = head_of(action_space)
        self._settings = {"net_arch": net_arch, "activation_fn": activation_fn} | {
            "features_extractor_class": features_extractor_class,
            "features_extractor_kwargs": features_extractor_kwargs,
            "num_limits": num_limits,
            "num_critics": num_critics,
        }
        actor_arch, critic_arch = get_actor_critic_arch([256, 256] if net_arch is None else net_arch)
        self.actor, self.actor_target = (self._make_actor(actor_arch, activation_fn) for _ in range(2))
        self.critic, self.critic_target = (
            self._make_critics(critic_arch, activation_fn, 1 + num_limits, num_critics) for _ in range(2)
        )
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            target.load_state_dict(network.state_dict())
            target.requires_grad_(False)
            target.set_training_mode(False)
            network.optimizer = self.optimizer_class(
                network.parameters(),
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def _make_actor(self, net_arch: list[int], activation_fn: type[nn.Module]) -> Actor:
        return Actor(
            self.observation_space,
            self.action_space,
            net_arch,
            activation_fn,
            self.make_features_extractor(),
            self.head.num_outputs,
            self.normalize_images,
        )

    def _make_critics(
        self, net_arch: list[int], activation_fn: type[nn.Module], num_heads: int, num_critics: int
    ) -> CostCritics:
        return CostCritics(
            self.observation_space,
            self.action_space,
            net_arch,
            activation_fn,
            self.make_features_extractor(),
            self.head,
            num_heads,
            num_critics,
            self.normalize_images,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self._settings | {"lr_schedule": self._dummy_schedule}

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return actions, within [-1, 1] for Box."""
        return self._predict(observation, deterministic)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, masks: th.Tensor | None = None
    ) -> th.Tensor:
        return self.head.act(self.actor(observation), masks, deterministic)

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
            action_masks: legal choices, shape (num_choices,) or (num_envs, num_choices).
        """
        if action_masks is None:
            return super().predict(observation, state, episode_start, deterministic)
        self.set_training_mode(False)
        tensor, is_vectorised = self.obs_to_tensor(observation)
        masks = th.as_tensor(np.atleast_2d(action_masks), dtype=th.bool, device=self.device)
        with th.no_grad():
            actions = self._predict(tensor, deterministic, masks).cpu().numpy()
        shaped = actions.reshape((-1, *(self.action_space.shape or ())))
        return (shaped if is_vectorised else shaped[0]), state

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
