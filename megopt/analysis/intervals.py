"""Interquartile means with stratified bootstrap intervals, for scores over few seeds.

The interquartile mean leaves out the lowest and the highest quarter of all scores: less noisy than the median, and not
moved by one lucky or lost seed as the mean is. The interval comes from drawing the seeds of each stratum (task) anew.
Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An interquartile mean and the interval that it lies in; the ends are NaN with a single seed."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: FloatArray) -> FloatArray:
    """Return the mean of the middle half of the scores over the last two axes, seeds x strata.

    As scipy's `trim_mean(scores, 0.25)`: the number that is left out at each end is rounded down.
    """
    *leading, num_seeds, num_strata = scores.shape
    flat = np.sort(scores.reshape(*leading, num_seeds * num_strata), axis=-1)
    cut = flat.shape[-1] // 4
    return np.asarray(np.mean(flat[..., cut : flat.shape[-1] - cut], axis=-1))


def interval(scores: FloatArray, *, confidence: float = 0.95, num_draws: int = 10_000, seed: int = 0) -> Interval:
    """Return the interquartile mean of scores with its percentile bootstrap interval.

    Args:
        scores: one score per seed, shape (num_seeds,), or per seed and stratum, shape (num_seeds, num_strata).
        confidence: of the interval [1].
        num_draws: bootstrap draws; in each, seeds are drawn with replacement, in every stratum apart [1].
        seed: of the draws.

    Raises:
        ConfigError: for no scores, scores that are not finite, or a number outside its range.
    """
    require_within("interval", 0.0, 1.0, confidence=confidence)
    require_whole("interval", 1, num_draws=num_draws)
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size or not np.all(np.isfinite(table)):
        message = f"interval: scores of shape {np.shape(scores)}; expected finite ones, (seeds,) or (seeds, strata)"
        raise ConfigError(message)
    value = float(interquartile_mean(table))
    if len(table) < 2:
        return Interval(value=value, low=np.nan, high=np.nan)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    picks = rng.integers(len(table), size=(num_draws, *table.shape))
    drawn = interquartile_mean(np.take_along_axis(np.broadcast_to(table, picks.shape), picks, axis=1))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(value=value, low=float(low), high=float(high))
