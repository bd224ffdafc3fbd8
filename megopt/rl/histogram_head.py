"""The head of a Box as histograms: factors over intervals of each dimension, for optima that one Gaussian cannot find.

Each dimension of the box is cut into intervals of equal width; a policy gives each a probability and is even within. It
can leave a good end for another without passing what is bad in between. The price is its resolution: an interval is not
divided any further. A policy is a product over the dimensions, as a diagonal Gaussian is.
"""

from __future__ import annotations

import numpy as np
import torch as th
from torch.nn import functional

from megopt.rl.action_head import ActionHead, Candidates

LARGEST_GRID = 64
"""Cells of a box up to which each gives a candidate, at an even point in it; beyond, candidates are sampled."""


class HistogramHead(ActionHead):
    """Independent histograms on [-1, 1], one per dimension; outputs are logits of their intervals.

    Attributes:
        num_bins: intervals per dimension.
    """

    def __init__(self, dim: int, num_bins: int) -> None:
        """Take the number of dimensions of the box, and of intervals of each."""
        self.num_bins, self._dim = num_bins, dim
        self.num_outputs, self.num_choices, self.num_joint, self.encoding_size = dim * num_bins, 0, 0, dim
        self.names = ("policy",)
        cells = np.indices((num_bins,) * dim).reshape(dim, -1).T if num_bins**dim <= LARGEST_GRID else None
        self._cells = None if cells is None else th.as_tensor(cells)

    def log_probs(self, outputs: th.Tensor) -> th.Tensor:
        """Return log probabilities of the intervals, shape (num_states, dim, num_bins)."""
        return functional.log_softmax(outputs.reshape(-1, self._dim, self.num_bins), dim=2)

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return the middle of each likeliest interval, or a sample."""
        if is_deterministic:
            return self._values(th.argmax(self.log_probs(outputs), dim=2), 0.5)
        bins = self._drawn(outputs, 1)[:, 0]
        return self._values(bins, th.rand(bins.shape, device=bins.device))

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return a point in every cell of the box with the cell's probability, or samples where there are too many."""
        log_probs = self.log_probs(outputs)
        if self._cells is None:
            bins, prior = self._drawn(outputs, num_samples), None
        else:
            bins = self._cells.to(outputs.device).expand(len(log_probs), -1, -1)
            prior = th.gather(log_probs, 2, bins.transpose(1, 2)).sum(dim=1).exp()
        values = self._values(bins, th.rand(bins.shape, device=bins.device))
        return Candidates(actions=bins, encoding=values, prior=prior)

    def _drawn(self, outputs: th.Tensor, num_samples: int) -> th.Tensor:
        """Return drawn intervals, shape (num_states, num_samples, dim)."""
        shares = self.log_probs(outputs).exp().flatten(0, 1)
        drawn = th.multinomial(shares, num_samples, replacement=True)
        return drawn.reshape(-1, self._dim, num_samples).transpose(1, 2)

    def _values(self, bins: th.Tensor, places: th.Tensor | float) -> th.Tensor:
        """Return the points at `places`, from 0 to 1, of some intervals."""
        return (bins + places) * (2.0 / self.num_bins) - 1.0

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return the actions: they are stored as critics read them."""
        return actions.float()

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the cross entropy of q and the new policy."""
        assert candidates.actions is not None
        picked = th.gather(self.log_probs(new), 2, candidates.actions.transpose(1, 2))
        return -th.mean(th.sum(weights * picked.sum(dim=1), dim=1))

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the exact KL: the sum over dimensions."""
        before, after = self.log_probs(old), self.log_probs(new)
        return th.mean(th.sum(before.exp() * (before - after), dim=(1, 2)), dim=0, keepdim=True)
