"""The search behind the Pareto surface of long-run means: points of its inside, half-spaces of its outside.

`average_surface` states what the two prove.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers.average_limits_oracle import AffineOracle

_FAR = 16.0
"""How far, in ranges, a worse point may lie to stand for all that is worse."""
_TIE_BREAK = 1e-7
"""Weight of the other objectives where one is minimised alone: of its optima the best in the others."""
POSITIVE = 1e-9
"""Weights below are 0: rounding of the hull."""


def span_of(ideal: FloatArray, worst: FloatArray) -> FloatArray:
    """Return the range of each objective, 1 where it has none, shape (num_objectives,)."""
    return np.where(worst > ideal, worst - ideal, 1.0)


class Sandwich:
    """Points and half-spaces found so far; z are means in ranges."""

    def __init__(self, oracle: AffineOracle, num_objectives: int) -> None:
        """Minimise every objective alone, which gives the ranges and the first points."""
        self._oracle = oracle
        self.prices: list[FloatArray] = []
        self._points: list[FloatArray] = []
        self._proved: dict[bytes, float] = {}
        self.num_prices = 2 * num_objectives
        alone = np.stack([oracle.totals(prices) for prices in np.eye(num_objectives)])
        self.ideal = np.diag(alone).copy()
        size = span_of(self.ideal, alone.max(axis=0))
        anchors = [(unit + _TIE_BREAK) / size for unit in np.eye(num_objectives)]
        self.worst = np.max([oracle.totals(prices) for prices in anchors], axis=0)
        self._size = span_of(self.ideal, self.worst)
        for prices in anchors:
            self._add(prices)

    def close(self, tolerance: float, max_prices: int) -> None:
        """Ask the facets of the inside and add the points below them, until none is more than `tolerance` below."""
        while True:
            normals, inner, _ = self.hull()
            before = len(self._points)
            for normal, offset in zip(normals, inner, strict=True):
                if _key(normal) in self._proved:
                    continue
                if self.num_prices >= max_prices:
                    return
                if offset - self.least(normal) > tolerance:
                    self._add(normal / self._size)
            if len(self._points) == before:
                return

    def least(self, normal: FloatArray) -> float:
        """Return the least normal . z over all choices of rows; every one is a bound, whatever the search did."""
        if _key(normal) not in self._proved:
            self.num_prices += 1
            self._proved[_key(normal)] = float(normal @ self._reached(normal / self._size))
        return self._proved[_key(normal)]

    def _reached(self, prices: FloatArray) -> FloatArray:
        return np.asarray((self._oracle.totals(prices) - self.ideal) / self._size)

    def _add(self, prices: FloatArray) -> None:
        point = self._reached(prices)
        if not any(np.array_equal(point, other) for other in self._points):
            self.prices.append(prices)
            self._points.append(point)

    def hull(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Return normals and offsets of the facets of the inside, and the corners of their simplices.

        Corners from `len(self.prices)` on are no points, but lie far off in the direction of what is worse.

        The inside is the hull of the points and of what is worse. Moving every point far along every axis adds a
        simplex to the hull: the facets of the sum whose normals are >= 0 are those of the inside.
        """
        from scipy.spatial import ConvexHull

        points = np.stack(self._points)
        moves = _FAR * np.eye(points.shape[1])
        hull = ConvexHull(np.concatenate([points, *(points + move for move in moves)]))
        normals = -hull.equations[:, :-1]
        is_low = np.all(normals > -POSITIVE, axis=1)
        normals = np.where(normals[is_low] > POSITIVE, normals[is_low], 0.0)
        normals = normals / np.sum(normals, axis=1, keepdims=True)
        _, first = np.unique(normals.round(12), axis=0, return_index=True)
        inner = np.min(normals[first] @ points.T, axis=1)
        return normals[first], inner, hull.simplices[is_low].astype(np.int64)


def edges_of(simplices: IntArray, num_points: int) -> IntArray:
    """Return the pairs of points that share a simplex, shape (num_edges, 2)."""
    pairs = np.concatenate([simplices[:, [i, j]] for i, j in combinations(range(simplices.shape[1]), 2)])
    return np.unique(np.sort(pairs[np.all(pairs < num_points, axis=1)], axis=1), axis=0)


def _key(normal: FloatArray) -> bytes:
    """Return what tells normals apart: rounding aside, they are equal for facets in one plane."""
    return (normal.round(12) + 0.0).tobytes()
