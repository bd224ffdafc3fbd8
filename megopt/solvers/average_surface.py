"""The Pareto surface of long-run means in any few objectives, from inside and from outside, with a proved distance.

Rows may be chosen at random, so the means that can be reached form a convex set. For weights w >= 0 on the objectives,
an oracle names the way to choose rows of least w . means: one point of the surface, and the half-space w . z >= h(w)
that no choice of rows leaves. Inside is the hull of the points found, and all that is worse; outside the intersection
of the half-spaces. Each facet of the inside is asked with its own normal, and answered by a point below it or by the
proof that there is none, until no facet lies more than `tolerance` above what is proved for it.

Then no choice of rows is better than the inside by more than `gap` of the range, in all objectives at once: if z can be
reached, every facet w . y >= b has w . (z + gap) >= h(w) + gap >= b, so z + gap lies inside.
Source: G. Rote, Computing 48 (1992), p. 337 (sandwich); K. Klamroth, J. Tind and M. Wiecek, Math. Methods of Oper. Res.
56 (2003), p. 413; R. Bokrantz and A. Forsgren, INFORMS J. Computing 25 (2013), p. 377 (convex Pareto surfaces).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Limit, Problem
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import scored, state_weights
from megopt.solvers.average_limits_oracle import AffineOracle
from megopt.solvers.average_limits_recovery import Choice
from megopt.solvers.brute_force import NOWHERE, RowCosts
from megopt.solvers.solution import Status
from megopt.system.link import LinkState

_FAR = 16.0
"""How far, in ranges, a worse point may lie to stand for all that is worse."""
_TIE_BREAK = 1e-7
"""Weight of the other objectives where one is minimised alone: of its optima the best in the others."""
_POSITIVE = 1e-9
"""Weights below are 0: rounding of the hull."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageSurface:
    """The surface in the units of the objectives, every one of them minimised (quality with its sign turned).

    Attributes:
        quantities: the objectives, in the order of all columns.
        metric: what the word quality stands for; empty where it is no objective.
        status: optimal; partly infeasible if some states have no row with finite costs, and means are over the others;
            infeasible if none has.
        points: means by `problem.evaluate`, shape (num_points, num_objectives).
        prices: price of each objective under which a point is best, >= 0, same shape.
        rows: row of each state at each point, -1 where none, shape (num_points, num_states).
        ideal: proved least mean of each objective, shape (num_objectives,).
        worst: largest mean among the points that minimise one objective, shape (num_objectives,).
        normals: prices w of the facets of the inside, in ranges, sum 1, shape (num_facets, num_objectives).
        inner: w . z at each facet, with z = (means - ideal) / (worst - ideal), shape (num_facets,).
        outer: proved least w . z over all choices of rows, shape (num_facets,).
        triangles: points of each facet that is bounded, for drawing, shape (num_triangles, num_objectives).
        edges: pairs of neighbouring points, for drawing, shape (num_edges, 2).
        num_prices: prices that were tried.
        runtime_s: wall time of the solve [s].
    """

    quantities: tuple[str, ...]
    metric: str
    status: Status
    points: FloatArray
    prices: FloatArray
    rows: IntArray
    ideal: FloatArray
    worst: FloatArray
    normals: FloatArray
    inner: FloatArray
    outer: FloatArray
    triangles: IntArray
    edges: IntArray
    num_prices: int
    runtime_s: float

    @property
    def span(self) -> FloatArray:
        """Range of each objective, 1 where it has none, shape (num_objectives,)."""
        return _span(self.ideal, self.worst)

    @property
    def gap(self) -> float:
        """Largest distance of inside and outside, as a share of the range of every objective [1]."""
        return float(np.max(self.inner - self.outer, initial=0.0))

    def scaled(self, points: FloatArray) -> FloatArray:
        """Return points with 0 at `ideal` and 1 at `worst`, shape (num_points, num_objectives)."""
        return np.asarray((points - self.ideal) / self.span)

    def depth(self, points: FloatArray) -> FloatArray:
        """Return how far each point lies inside, by its nearest facet [ranges], shape (num_points,).

        Negative for a point that is better than the inside; of a point that can be reached, at least -gap.
        """
        return np.asarray(np.min(self.scaled(points) @ self.normals.T - self.inner, axis=1))

    def least_given(self, points: FloatArray, number: int) -> FloatArray:
        """Return the least mean of one objective while the others stay as in `points` [its unit], shape (num_points,).

        Args:
            points: means that the surface can reach or that are worse, shape (num_points, num_objectives).
            number: the objective.
        """
        rising = np.flatnonzero(self.normals[:, number] > _POSITIVE)
        price = self.normals[rising, number]
        scaled = self.scaled(points)
        spent = scaled @ self.normals[rising].T - scaled[:, [number]] * price
        return np.asarray(self.ideal[number] + self.span[number] * np.max((self.inner[rising] - spent) / price, axis=1))


def _span(ideal: FloatArray, worst: FloatArray) -> FloatArray:
    return np.where(worst > ideal, worst - ideal, 1.0)


def solve(
    table: ActionTable,
    link: LinkState,
    quantities: tuple[str, ...] = ("latency_s", "energy_j", "quality"),
    metric: str = "",
    weights: FloatArray | None = None,
    tolerance: float = 1e-3,
    max_prices: int = 4000,
) -> AverageSurface:
    """Return the Pareto surface of the means of `quantities` over all ways to choose rows.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        quantities: two to four different objectives.
        metric: the quality metric that the word "quality" stands for.
        weights: weight of each state [1], shape (num_states,); equal if None.
        tolerance: distance of inside and outside at which to stop, as a share of the ranges [1].
        max_prices: prices tried at most, about; beyond, `gap` says what was reached.

    Raises:
        ProblemError: if the objectives are no such list, or a quantity was not measured.
        ConfigError: if tolerance or max_prices make no sense.
    """
    start = time.perf_counter()
    require_within("surface", 1e-9, 1.0, tolerance=tolerance)
    require_whole("surface", 1, max_prices=max_prices)
    problem = problem_of(quantities, metric)
    mass = state_weights(weights, len(link.snr))
    oracle = AffineOracle(RowCosts.of(table, link, problem), link, mass)
    is_served = oracle.served
    if not np.any(mass[is_served] > 0.0):
        return _nothing(quantities, metric, len(link.snr), start)
    search = _Sandwich(oracle, len(quantities))
    search.close(tolerance, max_prices)
    normals, inner, simplices = search.hull()
    rows = np.stack([oracle.rows(prices) for prices in search.prices])
    return AverageSurface(
        quantities=quantities,
        metric=metric,
        status=Status.OPTIMAL if np.all(is_served) else Status.PARTLY_INFEASIBLE,
        points=np.stack([_means(table, link, problem, mass, chosen) for chosen in rows]),
        prices=np.stack(search.prices),
        rows=rows,
        ideal=search.ideal,
        worst=search.worst,
        normals=normals,
        inner=inner,
        outer=np.array([search.least(normal) for normal in normals]),
        triangles=simplices[np.all(simplices < len(rows), axis=1)],
        edges=_edges(simplices, len(rows)),
        num_prices=search.num_prices,
        runtime_s=time.perf_counter() - start,
    )


def problem_of(quantities: tuple[str, ...], metric: str) -> Problem:
    """Return the problem whose objective is the first quantity and whose costs are the others, none of them limited.

    Raises:
        ProblemError: if there are not two to four different quantities, or one is unknown.
    """
    if not 2 <= len(quantities) <= 4 or len(set(quantities)) < len(quantities):
        message = f"surface: objectives {', '.join(quantities)}; expected two to four different ones"
        raise ProblemError(message)
    return Problem(
        objective=quantities[0],
        metric=metric,
        limits=tuple(Limit(quantity=name, bound=float("inf")) for name in quantities[1:]),
    )


def _means(table: ActionTable, link: LinkState, problem: Problem, weights: FloatArray, rows: IntArray) -> FloatArray:
    """Return the means of all objectives by `evaluate`, shape (num_objectives,)."""
    value, others = scored(table, link, problem, weights, Choice(rows=rows, splits=()))
    return np.concatenate([[value], others])


def _nothing(quantities: tuple[str, ...], metric: str, num_states: int, start: float) -> AverageSurface:
    """Return the surface of a sample in which no state has a row with finite costs."""
    num, none = len(quantities), np.zeros((0, len(quantities)))
    return AverageSurface(
        quantities=quantities,
        metric=metric,
        status=Status.INFEASIBLE,
        points=none,
        prices=none,
        rows=np.full((0, num_states), NOWHERE, dtype=np.int64),
        ideal=np.full(num, np.nan),
        worst=np.full(num, np.nan),
        normals=none,
        inner=np.zeros(0),
        outer=np.zeros(0),
        triangles=np.zeros((0, num), dtype=np.int64),
        edges=np.zeros((0, 2), dtype=np.int64),
        num_prices=0,
        runtime_s=time.perf_counter() - start,
    )


class _Sandwich:
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
        size = _span(self.ideal, alone.max(axis=0))
        anchors = [(unit + _TIE_BREAK) / size for unit in np.eye(num_objectives)]
        self.worst = np.max([oracle.totals(prices) for prices in anchors], axis=0)
        self._size = _span(self.ideal, self.worst)
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
        is_low = np.all(normals > -_POSITIVE, axis=1)
        normals = np.where(normals[is_low] > _POSITIVE, normals[is_low], 0.0)
        normals = normals / np.sum(normals, axis=1, keepdims=True)
        _, first = np.unique(normals.round(12), axis=0, return_index=True)
        inner = np.min(normals[first] @ points.T, axis=1)
        return normals[first], inner, hull.simplices[is_low].astype(np.int64)


def _edges(simplices: IntArray, num_points: int) -> IntArray:
    """Return the pairs of points that share a simplex, shape (num_edges, 2)."""
    pairs = np.concatenate([simplices[:, [i, j]] for i, j in combinations(range(simplices.shape[1]), 2)])
    return np.unique(np.sort(pairs[np.all(pairs < num_points, axis=1)], axis=1), axis=0)


def _key(normal: FloatArray) -> bytes:
    """Return what tells normals apart: rounding aside, they are equal for facets in one plane."""
    return (normal.round(12) + 0.0).tobytes()
