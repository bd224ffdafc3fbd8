"""Draws that meet their shares as soon as can be: fractional parts of multiples of the golden ratio."""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray, IntArray

_GOLDEN_RATIO = (np.sqrt(5.0) - 1.0) / 2.0


class EvenDraws:
    """Numbers drawn with given shares, the t-th from the fractional part of u_0 + t phi, with u_0 from a seed.

    Over T draws the shares are met to within O(log T / T), where independent draws are off by 1 / sqrt(T). The draws go
    on from call to call; the same seed gives the same ones.
    """

    def __init__(self, seed: int) -> None:
        """Draw u_0."""
        self._next = float(np.random.default_rng(np.random.SeedSequence(seed)).random())

    def numbers(self, shares: FloatArray, num_draws: int) -> IntArray:
        """Return numbers below len(shares), shape (num_draws,).

        Args:
            shares: probability of each number, sums to 1.
            num_draws: how many.
        """
        draws = (self._next + _GOLDEN_RATIO * np.arange(num_draws + 1)) % 1.0
        self._next = float(draws[-1])
        ends = np.cumsum(shares)[:-1]  # the last one takes what rounding leaves
        return np.asarray(np.searchsorted(ends, draws[:-1], side="right"))
