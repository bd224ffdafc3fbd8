"""What an actor's outputs mean: what every kind of action space has to answer.

A head offers candidate actions for the E-step, the weighted likelihood of the M-step, and the divergences that bound
the M-step. The likelihood sums over candidates with weights that sum to 1, as the divergences do, so the number of
candidates does not change the balance between the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch as th


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Actions that the E-step weighs.

    Attributes:
        actions: what the actor's likelihood is of, shape (num_states, num_actions, factors): values before tanh of
            a Gaussian, intervals of a histogram, whether drawn or listed, and drawn choices of a (Multi)Discrete
            space; None where all of its choices are listed.
        encoding: the actions as the critic reads them, shape (num_states, num_actions x num_points, encoding_size);
            None where all choices of a (Multi)Discrete space are listed.
        prior: pi(a|s) of listed choices or cells, shape (num_states, num_actions); None of drawn ones.
        num_points: points in a row of `encoding` that stand for one action, whose values are averaged; of histograms
            several, drawn within a cell.
    """

    actions: th.Tensor | None
    encoding: th.Tensor | None
    prior: th.Tensor | None
    num_points: int = 1


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

    def has_choice(self, masks: th.Tensor) -> th.Tensor:
        """Return which masks leave more than one action, shape (num_states,)."""
        return th.ones(len(masks), dtype=th.bool, device=masks.device)

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
