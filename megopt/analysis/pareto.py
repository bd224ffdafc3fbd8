"""Non-dominated points and hypervolume; the sets are computed by moocore, a library kept by the field's own people.

A convex set that is given by half-spaces, as the surface of long-run means, has its own hypervolume: the volume of a
polytope, not of a union of boxes.
"""

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


def convex_hypervolume(normals: FloatArray, offsets: FloatArray, reference: FloatArray) -> float:
    """Return the volume of {z >= 0: normals z >= offsets, z <= reference}, every column minimised and 0 at its best.

    Args:
        normals: shape (num_facets, num_objectives), >= 0, with sum 1 in each row.
        offsets: shape (num_facets,).
        reference: shape (num_objectives,), > 0.

    Raises:
        ProblemError: if the shapes do not fit.
    """
    num = len(reference)
    if normals.ndim != 2 or normals.shape != (len(offsets), num):
        shapes = f"normals {normals.shape}, offsets {offsets.shape}, reference {reference.shape}"
        message = f"hypervolume: {shapes}; expected (n, m), (n,) and (m,)"
        raise ProblemError(message)
    from scipy.spatial import ConvexHull, HalfspaceIntersection

    room = float(np.min(normals @ reference - offsets, initial=float(np.min(reference))))
    if room <= 0.0:
        return 0.0
    sides = [np.column_stack([-normals, offsets]), np.column_stack([-np.eye(num), np.zeros(num)])]
    above = np.column_stack([np.eye(num), -reference])
    corners = HalfspaceIntersection(np.concatenate([*sides, above]), reference - 0.5 * room).intersections
    return float(ConvexHull(corners).volume)
