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

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Limit, Problem
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import state_weights
from megopt.solvers.average_limits_oracle import AffineOracle
from megopt.solvers.average_limits_recovery import Choice
from megopt.solvers.average_limits_solution import scored
from megopt.solvers.average_surface_search import POSITIVE, Sandwich, edges_of, span_of
from megopt.solvers.brute_force import NOWHERE, RowCosts
from megopt.solvers.solution import Status
from megopt.system.link import LinkState


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
    edges: IntArray
    num_prices: int
    runtime_s: float

    @property
    def span(self) -> FloatArray:
        """Range of each objective, 1 where it has none, shape (num_objectives,)."""
        return span_of(self.ideal, self.worst)

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
        rising = np.flatnonzero(self.normals[:, number] > POSITIVE)
        price = self.normals[rising, number]
        scaled = self.scaled(points)
        spent = scaled @ self.normals[rising].T - scaled[:, [number]] * price
        return np.asarray(self.ideal[number] + self.span[number] * np.max((self.inner[rising] - spent) / price, axis=1))


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
    search = Sandwich(oracle, len(quantities))
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
        edges=edges_of(simplices, len(rows)),
        num_prices=search.num_prices,
        runtime_s=time.perf_counter() - start,
    )


def means_on(found: AverageSurface, table: ActionTable, link: LinkState) -> FloatArray:
    """Return the means that the prices of the points lead to on other states, shape (num_points, num_objectives).

    Args:
        found: the surface.
        table: the rows of the solve.
        link: states that the solve has not seen, shape (num_states,).
    """
    problem, mass = problem_of(found.quantities, found.metric), state_weights(None, len(link.snr))
    oracle = AffineOracle(RowCosts.of(table, link, problem), link, mass)
    if not len(found.prices) or not np.any(oracle.served):
        return np.full(found.points.shape, np.nan)
    return np.stack([_means(table, link, problem, mass, oracle.rows(prices)) for prices in found.prices])


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
        edges=np.zeros((0, 2), dtype=np.int64),
        num_prices=0,
        runtime_s=time.perf_counter() - start,
    )
