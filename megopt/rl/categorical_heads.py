"""Heads of Discrete and MultiDiscrete actions: independent categorical factors, with masks per factor or over rows."""

from __future__ import annotations

import numpy as np
import torch as th
from torch.nn import functional

from megopt.errors import ConfigError
from megopt.rl.action_head import ActionHead, Candidates

LARGEST_ENUMERATION = 1024
"""Joint actions of a MultiDiscrete space up to which all of them are listed; beyond, they are sampled."""
_MASKED = -1e9


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

    def listed(self, device: th.device) -> th.Tensor:
        """Return all joint choices, shape (num_joint, factors)."""
        assert self._table is not None
        return self._table.to(device)

    def drawn(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> th.Tensor:
        """Return choices drawn from the policy, shape (num_states, num_samples, factors)."""
        parts = th.split(self.log_probs(outputs, masks), list(self.sizes), dim=1)
        return th.stack([th.multinomial(part.exp(), num_samples, replacement=True) for part in parts], dim=2)

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return the likeliest choice of each factor, or a sample."""
        if is_deterministic:
            parts = th.split(self.log_probs(outputs, masks), list(self.sizes), dim=1)
            chosen = th.stack([th.argmax(part, dim=1) for part in parts], dim=1)
        else:
            chosen = self.drawn(outputs, masks, 1)[:, 0]
        return chosen + th.as_tensor(self._starts, device=chosen.device)

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return all joint actions with their probabilities, or samples where there are too many."""
        if self.num_joint:
            prior = self._joint(self.log_probs(outputs, masks), self.listed(outputs.device)).exp()
            return Candidates(actions=None, encoding=None, prior=prior)
        choices = self.drawn(outputs, masks, num_samples)
        return Candidates(actions=choices, encoding=self._one_hot(choices), prior=None)

    def has_choice(self, masks: th.Tensor) -> th.Tensor:
        """Return which masks leave more than one action, shape (num_states,)."""
        return th.stack([part.sum(dim=1) > 1 for part in th.split(masks, list(self.sizes), dim=1)]).any(dim=0)

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
        choices = self.listed(new.device) if candidates.actions is None else candidates.actions
        return -th.mean(th.sum(weights * self._joint(self.log_probs(new, masks), choices), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the exact KL: the sum over factors."""
        return _kl(self.log_probs(old, masks), self.log_probs(new, masks))


class JointHead(CategoricalHead):
    """Factors that some joint actions are taken out of: pi(a|s) ~ mask(a) prod_j p_j(a_j), enumerated.

    Masks cover joint actions, in the order of `numpy.ravel` of an array of the space's shape.
    """

    def __init__(self, sizes: tuple[int, ...], starts: tuple[int, ...]) -> None:
        """Take the choices per factor and the action that stands for choice 0 of each.

        Raises:
            ConfigError: for more joint actions than are enumerated.
        """
        super().__init__(sizes, starts)
        self.num_choices = self.num_joint
        if not self.num_joint:
            message = f"joint masks over {sizes} choices; expected at most {LARGEST_ENUMERATION} joint actions in all"
            raise ConfigError(message)

    def row_log_probs(self, outputs: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return log probabilities of joint actions, shape (num_states, num_joint)."""
        rows = self._joint(outputs, self.listed(outputs.device))
        return functional.log_softmax(rows if masks is None else th.where(masks, rows, _MASKED), dim=1)

    def has_choice(self, masks: th.Tensor) -> th.Tensor:
        """Return which masks leave more than one action, shape (num_states,)."""
        return masks.sum(dim=1) > 1

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return the likeliest joint action, or a sample."""
        log_probs = self.row_log_probs(outputs, masks)
        index = th.argmax(log_probs, dim=1) if is_deterministic else th.multinomial(log_probs.exp(), 1)[:, 0]
        return self.listed(outputs.device)[index] + th.as_tensor(self._starts, device=outputs.device)

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return all joint actions with their probabilities."""
        return Candidates(actions=None, encoding=None, prior=self.row_log_probs(outputs, masks).exp())

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the cross entropy of q and the new policy."""
        return -th.mean(th.sum(weights * self.row_log_probs(new, masks), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the exact KL over joint actions."""
        return _kl(self.row_log_probs(old, masks), self.row_log_probs(new, masks))


def _kl(old: th.Tensor, new: th.Tensor) -> th.Tensor:
    """Return the mean over states of sum old (log old - log new), shape (1,)."""
    return th.mean(th.sum(old.exp() * (old - new), dim=1), dim=0, keepdim=True)
