"""The knob space of an action table: its dimensions, and the row that each point of it stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.schemes.action_table import ActionTable

_OTHER_SCHEME = 1e3
"""Squared distance of a row of another scheme: more than any distance within a scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One dimension of the knob space.

    Attributes:
        name: "scheme", the knob's name, or "variant".
        values: its distinct values, ascending, shape (num_values,); indices for "scheme" and "variant".
        coordinates: the values laid linearly on [-1, 1], shape (num_values,).
        index: index of each row's value, shape (num_rows,); -1 where the row lacks it.
    """

    name: str
    values: FloatArray
    coordinates: FloatArray
    index: IntArray


def dimensions_of(table: ActionTable) -> tuple[Dimension, ...]:
    """Return scheme, knobs and variant of a table, those that have more than one value."""
    _, scheme = np.unique(table.scheme, return_inverse=True)
    columns = [("scheme", scheme.astype(np.float64))]
    columns += [(knob.name, table.settings[:, i]) for i, knob in enumerate(table.knobs)]
    named = np.stack([np.nan_to_num(column, nan=-np.inf) for _, column in columns], axis=-1)
    _, group = np.unique(named, axis=0, return_inverse=True)
    columns.append(("variant", _rank_within(np.ravel(group))))
    dimensions = []
    for name, column in columns:
        values = np.unique(column[~np.isnan(column)])
        if len(values) > 1:
            coordinates = 2.0 * (values - values[0]) / (values[-1] - values[0]) - 1.0
            index = np.where(np.isnan(column), -1, np.searchsorted(values, np.nan_to_num(column)))
            dimensions.append(Dimension(name=name, values=values, coordinates=coordinates, index=index))
    return tuple(dimensions)


def _rank_within(group: IntArray) -> FloatArray:
    """Return 0, 1, 2, ... within the rows of each group, in order; NaN where a row is alone in its group."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])
    rank = np.empty(len(group))
    rank[order] = np.arange(len(group)) - first
    return np.where(np.bincount(group)[group] > 1, rank, np.nan)


def lookup_of(dimensions: tuple[Dimension, ...], is_offered: BoolArray) -> IntArray:
    """Return the row of each combination, shape (product of sizes,)."""
    grid = np.stack(np.meshgrid(*(np.arange(len(d.values)) for d in dimensions), indexing="ij"), axis=-1)
    return _closest(dimensions, grid.reshape(-1, len(dimensions)), np.flatnonzero(is_offered))


def nearest_offered(dimensions: tuple[Dimension, ...], is_offered: BoolArray) -> IntArray:
    """Return the offered row nearest to each row: itself where it is offered, shape (num_rows,)."""
    nearest = np.arange(len(is_offered))
    lost = np.flatnonzero(~is_offered)
    if len(lost) and np.any(is_offered):
        points = np.stack([d.index[lost] for d in dimensions], axis=-1) if dimensions else np.zeros((len(lost), 0), int)
        nearest[lost] = _closest(dimensions, points, np.flatnonzero(is_offered))
    return nearest


def _closest(dimensions: tuple[Dimension, ...], points: IntArray, rows: IntArray) -> IntArray:
    """Return the closest of `rows` to each point (num_points, m) of value indices; an index of -1 is ignored."""
    answer = np.empty(len(points), dtype=np.int64)
    chunk = max(1, 4_000_000 // max(1, len(rows)))
    for start in range(0, len(points), chunk):
        part = points[start : start + chunk]
        distance = np.zeros((len(part), len(rows)))
        for column, dimension in zip(part.T, dimensions, strict=True):
            own, theirs = column[:, np.newaxis], dimension.index[rows][np.newaxis]
            gap = np.square(dimension.coordinates[own] - dimension.coordinates[theirs])
            gap = _OTHER_SCHEME * (gap > 0) if dimension.name == "scheme" else gap
            distance += np.where((own < 0) | (theirs < 0), 0.0, gap)
        answer[start : start + chunk] = rows[np.argmin(distance, axis=1)]
    return answer
