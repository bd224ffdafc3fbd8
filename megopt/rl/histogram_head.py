"""The head of a Box as histograms: factors over intervals of each dimension, for optima that one Gaussian cannot find.

Each dimension of the box is cut into intervals of equal width; a policy gives each a probability and is even within. It
can leave a good end for another without passing what is bad in between. The price is its resolution: an interval is not
divided any further. A policy is a product over the dimensions, as a diagonal Gaussian is.
"""

from __future__ import annotations

import torch as th

from megopt.rl.action_head import ActionHead, Candidates
from megopt.rl.categorical_heads import CategoricalHead

LARGEST_GRID = 64
"""Cells of a box up to which each is a candidate; beyond, candidates are sampled."""
NUM_POINTS = 4
"""Points that stand for a cell. With one, q would take a cell where its point is good and leave it where it is bad; a
policy cannot, and would come to rest beside its limits wherever a cell holds both."""


class HistogramHead(ActionHead):
    """Independent histograms on [-1, 1], one per dimension; outputs are logits of their intervals.

    Attributes:
        num_bins: intervals per dimension.
        intervals: the head of MultiDiscrete whose choices are the intervals.
    """

    def __init__(self, dim: int, num_bins: int) -> None:
        """Take the number of dimensions of the box, and of intervals of each."""
        self.num_bins, self.intervals = num_bins, CategoricalHead((num_bins,) * dim, (0,) * dim)
        self.num_outputs, self.num_choices, self.num_joint, self.encoding_size = dim * num_bins, 0, 0, dim
        self.names = self.intervals.names
        self._is_listed = num_bins**dim <= LARGEST_GRID

    def act(self, outputs: th.Tensor, masks: th.Tensor | None, is_deterministic: bool) -> th.Tensor:
        """Return the middle of each likeliest interval, or a sample."""
        bins = self.intervals.act(outputs, None, is_deterministic)
        return self._points(bins, 0.5 if is_deterministic else th.rand(bins.shape, device=bins.device))

    def candidates(self, outputs: th.Tensor, masks: th.Tensor | None, num_samples: int) -> Candidates:
        """Return every cell of the box with its probability, or samples where there are too many; points in each."""
        if self._is_listed:
            prior = self.intervals.candidates(outputs, None, 1).prior
            bins = self.intervals.listed(outputs.device).expand(len(outputs), -1, -1)
        else:
            prior, bins = None, self.intervals.drawn(outputs, None, num_samples)
        points = self._points(bins[:, :, None], self._spread(bins)).flatten(1, 2)
        return Candidates(actions=bins, encoding=points, prior=prior, num_points=NUM_POINTS)

    @staticmethod
    def _spread(bins: th.Tensor) -> th.Tensor:
        """Return places in each cell, one in each quarter of every dimension (a Latin hypercube)."""
        shape = (*bins.shape[:2], NUM_POINTS, bins.shape[2])
        quarter = th.argsort(th.rand(shape, device=bins.device), dim=2)
        return (quarter + th.rand(shape, device=bins.device)) / NUM_POINTS

    def _points(self, bins: th.Tensor, places: th.Tensor | float) -> th.Tensor:
        """Return the points at `places`, from 0 to 1, of some intervals."""
        return (bins + places) * (2.0 / self.num_bins) - 1.0

    def encode(self, actions: th.Tensor) -> th.Tensor:
        """Return the actions: they are stored as critics read them."""
        return actions.float()

    def fit_loss(
        self, new: th.Tensor, old: th.Tensor, candidates: Candidates, weights: th.Tensor, masks: th.Tensor | None
    ) -> th.Tensor:
        """Return the cross entropy of q and the new policy."""
        return self.intervals.fit_loss(new, old, candidates, weights, None)

    def divergences(self, new: th.Tensor, old: th.Tensor, masks: th.Tensor | None) -> th.Tensor:
        """Return the exact KL: the sum over dimensions."""
        return self.intervals.divergences(new, old, None)
