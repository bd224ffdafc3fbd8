"""Networks of the constrained algorithms: from observations to outputs, and critics of reward and costs in one."""

from __future__ import annotations

import numpy as np
import torch as th
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from megopt.arrays import FloatArray
from megopt.rl.action_head import ActionHead, Candidates


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


class FeatureNetwork(BaseModel):
    """Layers behind a features extractor: the actor of CVPO, and the values of costs of PPO-Lag."""

    def __init__(
        self,
        policy: BasePolicy,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        num_outputs: int,
    ) -> None:
        """Build the layers with an extractor of their own, as `policy` makes it."""
        extractor = policy.make_features_extractor()
        super().__init__(
            policy.observation_space,
            policy.action_space,
            features_extractor=extractor,
            normalize_images=policy.normalize_images,
        )
        self.network = nn.Sequential(*create_mlp(extractor.features_dim, num_outputs, net_arch, activation_fn))

    def begin_flat(self) -> None:
        """Make the first outputs nearly 0 in all states."""
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        with th.no_grad():
            last.weight.mul_(0.01)
            last.bias.zero_()

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """Return outputs, shape (num_states, num_outputs)."""
        assert self.features_extractor is not None
        features = self.extract_features(observations, self.features_extractor)
        return self.network(features)  # type: ignore[no-any-return]


def _in_place(activation: nn.Module) -> nn.Module:
    """Return an activation that needs no second array where it can do without: candidates make large ones."""
    if isinstance(activation, nn.ReLU):
        activation.inplace = True
    return activation


class CostCritics(BaseModel):
    """Q of reward and of each cost, `num_critics` networks per head, all side by side.

    Twins are joined by the minimum for the reward and by the mean for costs: the minimum would promise too little cost.

    Attributes:
        scales: unit of each head's outputs, shape (num_heads,); networks then learn numbers of size 1.
    """

    scales: th.Tensor

    def __init__(
        self,
        policy: BasePolicy,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        head: ActionHead,
        num_heads: int,
        num_critics: int,
    ) -> None:
        """Build the layers with an extractor of their own, as `policy` makes it."""
        extractor = policy.make_features_extractor()
        super().__init__(
            policy.observation_space,
            policy.action_space,
            features_extractor=extractor,
            normalize_images=policy.normalize_images,
        )
        self._num_joint, self._shape = head.num_joint, (num_critics, num_heads)
        num_inputs = extractor.features_dim + (0 if head.num_joint else head.encoding_size)
        layers: list[nn.Module] = []
        for width in net_arch:
            layers += [ParallelLinear(num_heads * num_critics, num_inputs, width), _in_place(activation_fn())]
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
        if candidates.num_points > 1:
            joined = joined.reshape(*joined.shape[:2], -1, candidates.num_points).mean(dim=3)
        return joined * self.scales[:, None, None]


def new_optimizer(policy: BasePolicy, network: nn.Module, rate: float) -> th.optim.Optimizer:
    """Return an optimizer of a network, of the kind and with the keywords that a policy was given."""
    return policy.optimizer_class(network.parameters(), lr=rate, **policy.optimizer_kwargs)  # type: ignore[call-arg]


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor) -> float:
    """Take one step down a loss; returns the loss."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())
