"""Non-dominated points and hypervolume; the sets are computed by moocore, a library kept by the field's own people."""

from __future__ import annotations

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ProblemError


def is_non_dominated(points: FloatArray) -> BoolArray:
    """Return which points no other point dominates when every column is minimised.

    Args:
        points: shape (num_points, num_objectives); a point with NaN or inf is never kept.

    Returns:
        Shape (num_points,). Of equal points all are kept.
    """
    import moocore

    is_kept = np.asarray(np.isfinite(points).all(axis=1), dtype=np.bool_)
    if is_kept.any():
        is_kept[is_kept] = moocore.is_nondominated(points[is_kept], keep_weakly=True)
    return is_kept


def hypervolume(points: FloatArray, reference: FloatArray) -> float:
    """Return the volume that `points` dominate below `reference`, every column minimised.

    Args:
        points: shape (num_points, num_objectives).
        reference: shape (num_objectives,); points beyond it add nothing.

    Raises:
        ProblemError: if the shapes do not fit.
    """
    if points.ndim != 2 or points.shape[1] != len(reference):
        message = f"hypervolume: points {points.shape} and reference {reference.shape}; expected (n, m) and (m,)"
        raise ProblemError(message)
    import moocore

    inside = points[np.isfinite(points).all(axis=1)]
    return float(moocore.hypervolume(inside, ref=reference)) if len(inside) else 0.0
