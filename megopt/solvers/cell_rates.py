"""Whether rates fit into a cell: the common factor by which all of them could grow on the whole band and power.

Units are those of the cell, as in `allocation_device`: w in B, p in P, g the SNR on an even spread, and a pace y = S/t
with S = Z ln 2/B, in nats per second and hertz of the band. At the ratio lambda/mu of the prices every user sends v
nats per symbol, e^v (v - 1) + 1 = g lambda/mu, and takes w = y/v and p = w (e^v - 1)/g. Both grow in proportion to the
paces, so the factor c at which they use up both budgets follows from one root,

    sum p(ratio) = sum w(ratio),   c = 1/sum w,

and paces fit if and only if c >= 1. Between the ratios that the single users would choose alone, sum p/sum w rises.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.solvers.allocation_device import efficiency

_CLOSE = 1e-13
_MOST_STEPS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How far paces fit; fields of shape (..., K) but for `factor` and `log_ratio` of shape (...,).

    Attributes:
        factor: c, by how much all paces could grow [1]; inf if nothing is sent.
        log_ratio: log(lambda/mu) at which both budgets are used up.
        nats: v [nat/symbol].
        cost: price of a unit of pace at mu = 1; the budgets are then worth 1 + e^log_ratio.
        bandwidth: w at the paces times c [B].
        power: p at the paces times c [P].
    """

    factor: FloatArray
    log_ratio: FloatArray
    nats: FloatArray
    cost: FloatArray
    bandwidth: FloatArray
    power: FloatArray


def lone_log_ratio(gain: FloatArray) -> FloatArray:
    """Return log(lambda/mu) at which a user that has the whole cell uses up both budgets, shape as `gain` > 0."""
    v = np.log1p(gain)
    exact = v * np.exp(v) - np.expm1(v)
    series = v * v * (0.5 + v * (1.0 / 3.0 + v / 8.0))  # the difference cancels for small v
    return np.asarray(np.log(np.where(v < 1e-3, series, exact) / gain))


def fit(pace: FloatArray, gain: FloatArray) -> Fit:
    """Return how far paces >= 0 of shape (..., K) fit at the gains > 0 of shape (K,)."""
    is_on, lone = pace > 0.0, lone_log_ratio(gain)
    low = np.min(np.where(is_on, lone, np.inf), axis=-1, keepdims=True)
    high = np.max(np.where(is_on, lone, -np.inf), axis=-1, keepdims=True)
    is_silent = ~np.any(is_on, axis=-1, keepdims=True)
    low, high = np.where(is_silent, 0.0, low), np.where(is_silent, 0.0, high)
    ratio, v = _root(np.where(is_silent, 1.0, pace), gain, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = pace / v
        factor = 1.0 / np.sum(w, axis=-1, keepdims=True)
        w = np.where(is_on, w * factor, 0.0)
    p = w * np.expm1(v) / gain
    total = np.sum(p, axis=-1, keepdims=True)
    p = p / np.where(total > 1.0, total, 1.0)  # rounding of the root must not exceed the power
    return Fit(factor=factor[..., 0], log_ratio=ratio[..., 0], nats=v, cost=np.exp(v) / gain, bandwidth=w, power=p)


def _root(pace: FloatArray, gain: FloatArray, low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return log(lambda/mu), shape (..., 1), and v, shape (..., K): Newton's method in a bracket that shrinks."""
    ratio, v = 0.5 * (low + high), None
    for _ in range(_MOST_STEPS):
        v = efficiency(gain * np.exp(ratio), v)
        grown = np.exp(v)
        w = pace / v
        p = w * np.expm1(v) / gain
        sum_w, sum_p = (np.sum(x, axis=-1, keepdims=True) for x in (w, p))
        by_v = gain * np.exp(ratio) / (v * grown)  # d v/d log ratio
        slope = np.sum(p * by_v * grown / np.expm1(v), axis=-1, keepdims=True) / sum_p
        slope += np.sum((w / sum_w - p / sum_p) * by_v / v, axis=-1, keepdims=True)
        excess = np.log(sum_p / sum_w)  # rises with the ratio
        low, high = np.where(excess < 0.0, ratio, low), np.where(excess > 0.0, ratio, high)
        if np.all((np.abs(excess) < _CLOSE) | (high - low <= 1e-15 * (1.0 + np.abs(low)))):
            break
        moved = ratio - excess / slope
        ratio = np.where((moved >= low) & (moved <= high), moved, 0.5 * (low + high))
    return ratio, efficiency(gain * np.exp(ratio), v)
