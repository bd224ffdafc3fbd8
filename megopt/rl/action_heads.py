"""What the actor's outputs mean: squashed Gaussians for Box, factors of a categorical for Discrete and MultiDiscrete.

A head offers candidate actions for the E-step, the weighted likelihood of the M-step, and the divergences that bound
the M-step. The likelihood sums over candidates with weights that sum to 1, as the divergences do, so the number of
candidates does not change the balance between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch.nn import functional

from megopt.errors import ConfigError

LARGEST_ENUMERATION = 1024
"""Joint actions of a MultiDiscrete space up to which all of them are listed; beyond, they are sampled."""
_MASKED = -1e9
_MEAN_BOUND = 4.0
"""Bound on the Gaussian mean before tanh; tanh(4) = 0.9993."""
_STD_FLOOR, _STD_CEILING, _STD_FIRST = 0.02, 1.0, 0.7
"""Range of the Gaussian spread before tanh. Beyond 1 most samples would lie at the ends of the box, all of the same
effect, and nothing would hold the spread back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Actions that the E-step weighs.

    Attributes:
        actions: latent Gaussian samples (num_states, num_actions, dim), or indices per factor; None when enumerated.
        encoding: actions as the critic reads them, shape (num_states, num_actions, size); None when enumerated.
        prior: pi(a|s) of enumerated actions, shape (num_states, num_actions); None when sampled.
    """

    actions: th.Tensor | None
    encoding: th.Tensor | None
    prior: th.Tensor | None


class ActionHead(ABC):
    """Meaning of the actor's outputs.

    Attributes:
        num_outputs: outputs of the actor.
        num_choices: length of an action mask; 0 where nothing can be masked.
        num_joint: joint actions that are enumerated; 0 where actions are sampled.
        encoding_size: numbers per action that a critic reads.
        names: names of the divergences, which are bounded one by one.
    """

    num_outputs: int
    num_choices: int
    num_joint: int
    encoding_size: int
    names: tuple[str, ...]

    @abstractmethod
    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return actions as the environment takes them, within [-1, 1] for Box; shape (num_states, dim)."""

    @abstractmethod
    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return `num_samples` actions per state from the policy, or all actions with their probabilities."""

    @abstractmethod
    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return stored actions (num_states, dim) as critics read them: joint indices (num_states,) or encodings."""

    @abstractmethod
    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the negative mean log likelihood of weighted candidates, weights (num_states, num_actions)."""

    @abstractmethod
    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the mean divergences KL(old | new) by `names` [nat]."""


class GaussianHead(ActionHead):
    """Diagonal Gaussian before tanh, which maps onto the box; outputs are means and spreads."""

    def __init__(self, dim: int) -> None:
        """Take the number of dimensions of the box."""
        self.num_outputs, self.num_choices, self.num_joint, self.encoding_size = 2 * dim, 0, 0, dim
        self.names = ("mean", "spread")

    @staticmethod
    def moments(outputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean and standard deviation before tanh, each of shape (num_states, dim)."""
        mean, spread = th.chunk(outputs, 2, dim=-1)
        span = _STD_CEILING - _STD_FLOOR
        first = float(np.log((_STD_FIRST - _STD_FLOOR) / (_STD_CEILING - _STD_FIRST)))
        return _MEAN_BOUND * th.tanh(mean / _MEAN_BOUND), _STD_FLOOR + span * th.sigmoid(spread + first)

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return tanh of the mean, or of a sample."""
        mean, std = self.moments(outputs)
        return th.tanh(mean if is_deterministic else mean + std * th.randn_like(mean))

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return samples before tanh and what they do."""
        mean, std = self.moments(outputs)
        noise = th.randn((len(mean), num_samples, mean.shape[1]), device=mean.device)
        latent = mean[:, None] + std[:, None] * noise
        return Candidates(actions=latent, encoding=th.tanh(latent), prior=None)

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return the actions: they are stored as critics read them."""
        return actions.float()

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the loss of the crossed Gaussians: new mean with old spread, old mean with new spread."""
        assert candidates.actions is not None
        (mean, std), (old_mean, old_std) = self.moments(new), self.moments(old)
        by_mean = ((candidates.actions - mean[:, None]) / old_std[:, None]) ** 2 / 2.0
        by_std = ((candidates.actions - old_mean[:, None]) / std[:, None]) ** 2 / 2.0 + th.log(std)[:, None]
        return th.mean(th.sum(weights * th.sum(by_mean + by_std, dim=2), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the KL of moving the mean alone and of changing the spread alone."""
        (mean, std), (old_mean, old_std) = self.moments(new), self.moments(old)
        by_mean = th.sum(((mean - old_mean) / old_std) ** 2, dim=1) / 2.0
        ratio = (old_std / std) ** 2
        by_std = th.sum(ratio - 1.0 - th.log(ratio), dim=1) / 2.0
        return th.stack([th.mean(by_mean), th.mean(by_std)])


class CategoricalHead(ActionHead):
    """Independent categorical factors, one for Discrete; outputs are their logits side by side.

    Attributes:
        sizes: choices per factor.
    """

    def __init__(self, sizes: tuple[int, ...], starts: tuple[int, ...]) -> None:
        """Take the choices per factor and the action that stands for choice 0 of each."""
        self.sizes, self._starts = sizes, starts
        num_joint = int(np.prod(sizes, dtype=np.float64)) if len(sizes) > 1 else sizes[0]
        self.num_joint = num_joint if num_joint <= LARGEST_ENUMERATION or len(sizes) == 1 else 0
        self.num_outputs = self.num_choices = self.encoding_size = sum(sizes)
        self.names = ("policy",)
        self._offsets = th.as_tensor(np.cumsum([0, *sizes[:-1]]))
        self._table = th.as_tensor(np.indices(sizes).reshape(len(sizes), -1).T) if self.num_joint else None

    def log_probs(self, outputs: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return log probabilities per factor side by side, shape (num_states, sum of sizes)."""
        legal = outputs if masks is None else th.where(masks, outputs, _MASKED)
        return th.cat([functional.log_softmax(part, dim=1) for part in th.split(legal, list(self.sizes), dim=1)], dim=1)

    def _joint(self, log_probs: th.Tensor, choices: th.Tensor) -> th.Tensor:
        """Return log probabilities of choices (num_actions, factors) or (num_states, num_actions, factors)."""
        columns = choices + self._offsets.to(choices.device)
        if columns.ndim == 2:
            return log_probs[:, columns].sum(dim=2)
        picked = th.gather(log_probs, 1, columns.reshape(len(columns), -1))
        return picked.reshape(columns.shape).sum(dim=2)

    def _sample(self, log_probs: th.Tensor, num_samples: int) -> th.Tensor:
        """Return choices, shape (num_states, num_samples, factors)."""
        parts = th.split(log_probs, list(self.sizes), dim=1)
        return th.stack([th.multinomial(part.exp(), num_samples, replacement=True) for part in parts], dim=2)

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return the likeliest choice of each factor, or a sample."""
        log_probs = self.log_probs(outputs, masks)
        parts = th.split(log_probs, list(self.sizes), dim=1)
        best = th.stack([th.argmax(part, dim=1) for part in parts], dim=1)
        chosen = best if is_deterministic else self._sample(log_probs, 1)[:, 0]
        return chosen + th.as_tensor(self._starts, device=chosen.device)

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return all joint actions with their probabilities, or samples where there are too many."""
        log_probs = self.log_probs(outputs, masks)
        if self._table is not None:
            prior = self._joint(log_probs, self._table.to(outputs.device)).exp()
            return Candidates(actions=None, encoding=None, prior=prior)
        choices = self._sample(log_probs, num_samples)
        return Candidates(actions=choices, encoding=self._one_hot(choices), prior=None)

    def _one_hot(self, choices: th.Tensor) -> th.Tensor:
        factors = th.unbind(choices, dim=-1)
        coded = [functional.one_hot(factor, size) for factor, size in zip(factors, self.sizes, strict=True)]
        return th.cat(coded, dim=-1).float()

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return joint indices (num_states,) where actions are enumerated, else one-hot codes."""
        choices = actions.long() - th.as_tensor(self._starts, device=actions.device)
        if not self.num_joint:
            return self._one_hot(choices)
        index = choices[:, 0]
        for factor, size in enumerate(self.sizes[1:], start=1):
            index = index * size + choices[:, factor]
        return index

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the cross entropy of q and the new policy."""
        choices = self._table if candidates.actions is None else candidates.actions
        assert choices is not None
        return -th.mean(th.sum(weights * self._joint(self.log_probs(new, masks), choices.to(new.device)), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the exact KL: the sum over factors."""
        old_log, new_log = self.log_probs(old, masks), self.log_probs(new, masks)
        return th.mean(th.sum(old_log.exp() * (old_log - new_log), dim=1), dim=0, keepdim=True)


def head_of(space: spaces.Space[Any]) -> ActionHead:
    """Return the head of an action space.

    Raises:
        ConfigError: for spaces other than bounded Box, Discrete and MultiDiscrete.
    """
    if isinstance(space, spaces.Box) and space.is_bounded():
        return GaussianHead(int(np.prod(space.shape)))
    if isinstance(space, spaces.Discrete):
        return CategoricalHead((int(space.n),), (int(space.start),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return CategoricalHead(tuple(int(size) for size in space.nvec), tuple(int(start) for start in space.start))
    message = f"action space is {space}; expected a bounded Box, Discrete or flat MultiDiscrete; wrap the environment"
    raise ConfigError(message)
