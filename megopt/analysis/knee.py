"""The knee of a trade-off: the point where giving up more of one objective begins to buy little of the others.

Every objective is scaled to 0 at its best and 1 at its worst over the front, so that units play no part. The knee is
the point that bulges furthest below the hyperplane through the unit points, sum_i z_i = 1. With two objectives that is
the chord through the ends of the front, and the point is that of Kneedle without smoothing. The scales are linear, and
they are those of the front that is given: a front cut off elsewhere may have its knee elsewhere.
Source: I. Das, Structural Optimization 18 (1999), p. 107 (largest bulge from the hyperplane of the minima); V. Satopaa
et al., ICDCS Workshops 2011 (Kneedle: largest distance to the chord in the unit square).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.analysis.pareto import is_non_dominated
from megopt.arrays import FloatArray
from megopt.errors import ProblemError

FLAT = 0.05
"""Bulge up to which a front counts as straight: it has no knee [1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """Where a front bends.

    Attributes:
        index: number of the point.
        bulge: how far the point lies below the hyperplane, 1 - sum_i z_i: 0 for a straight front, 1 for a
            right-angled corner at the ideal point.
    """

    index: int
    bulge: float


def scaled(points: FloatArray, ideal: FloatArray, worst: FloatArray) -> FloatArray:
    """Return points with 0 at `ideal` and 1 at `worst` in every column; a column without spread is 0 throughout.

    Args:
        points: shape (num_points, num_objectives).
        ideal: best values, shape (num_objectives,).
        worst: worst values, shape (num_objectives,).
    """
    span = worst - ideal
    return np.asarray((points - ideal) / np.where(span > 0.0, span, np.inf))


def find_knee(points: FloatArray) -> Knee | None:
    """Return the knee among points whose columns are all minimised; None where the front is straight or hollow.

    Args:
        points: shape (num_points, num_objectives), at least two objectives; dominated points and points with NaN or
            inf are passed over.

    Raises:
        ProblemError: if there are fewer than two objectives.
    """
    if points.ndim != 2 or points.shape[1] < 2:
        message = f"knee: points of shape {points.shape}; expected (num_points, num_objectives) with two or more"
        raise ProblemError(message)
    front = np.flatnonzero(is_non_dominated(points))
    if len(front) < 3:
        return None
    chosen = points[front]
    ideal, worst = chosen.min(axis=0), chosen.max(axis=0)
    if np.any(worst <= ideal):
        return None
    bulge = 1.0 - np.sum(scaled(chosen, ideal, worst), axis=1)
    best = int(np.argmax(bulge))
    return Knee(index=int(front[best]), bulge=float(bulge[best])) if bulge[best] > FLAT else None
