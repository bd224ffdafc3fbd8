"""Linear interpolation on a full grid of measured points; outside the grid it raises instead of guessing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import OutOfTableError


def interpolate(
    axes: Mapping[str, FloatArray], values: FloatArray, query: Mapping[str, FloatArray], where: str
) -> FloatArray:
    """Return `values`, given at the points `axes`, at the points `query`.

    Args:
        axes: coordinates of the measured points by axis name, each of shape (num_measured,).
        values: measured values, shape (num_measured,).
        query: coordinates asked for, by the same names, each of shape (num_points,).
        where: file and row group, for messages.

    Returns:
        Interpolated values, shape (num_points,).

    Raises:
        OutOfTableError: if a coordinate lies outside the measured range, or the points do not fill a grid.
    """
    grid = {name: np.unique(points) for name, points in axes.items()}
    for name, points in grid.items():
        _check_inside(name, points, query[name], where)
    varying = [name for name, points in grid.items() if len(points) > 1]
    num_points = len(next(iter(query.values())))
    if not varying:
        _check_single(values, where)
        return np.full(num_points, values[0])
    table = np.full([len(grid[name]) for name in varying], np.nan)
    is_filled = np.zeros(table.shape, dtype=bool)
    index = tuple(np.searchsorted(grid[name], axes[name]) for name in varying)
    table[index], is_filled[index] = values, True
    if is_filled.sum() < len(values):
        message = f"{where}: {len(values) - int(is_filled.sum())} points of the grid are given more than once; keep one"
        raise OutOfTableError(message)
    if not is_filled.all():
        message = (
            f"{where}: {int((~is_filled).sum())} points of the grid {' x '.join(varying)} are missing; measure them too"
        )
        raise OutOfTableError(message)
    from scipy.interpolate import RegularGridInterpolator

    points = np.stack([query[name] for name in varying], axis=-1)
    return np.asarray(RegularGridInterpolator([grid[name] for name in varying], table)(points))


def _check_single(values: FloatArray, where: str) -> None:
    if len(values) > 1:
        message = f"{where}: one point is given {len(values)} times; keep one"
        raise OutOfTableError(message)


def _check_inside(name: str, measured: FloatArray, asked: FloatArray, where: str) -> None:
    low, high = float(measured[0]), float(measured[-1])
    is_outside = ~((asked >= low) & (asked <= high))
    if np.any(is_outside):
        values = ", ".join(f"{value:g}" for value in np.unique(asked[is_outside])[:4])
        span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        message = f"{where}: {name} = {values} lies outside the measured range; expected {span}"
        raise OutOfTableError(message)
