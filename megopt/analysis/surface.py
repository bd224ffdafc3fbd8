"""The job of `megopt surface`: three objectives at once, of every channel state and of long-run means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.knee import Knee, find_knee
from megopt.analysis.pareto import convex_hypervolume
from megopt.analysis.row_fronts import RowFronts, row_fronts
from megopt.analysis.tradeoff import PolicyFactory, reads_limits
from megopt.arrays import FloatArray, IntArray
from megopt.errors import NotOfferedError
from megopt.policies.base import Observation
from megopt.problem import Problem, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_surface
from megopt.solvers.average_surface import AverageSurface, means_on
from megopt.solvers.brute_force import NOWHERE
from megopt.system.link import LinkState

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = 1.1
"""Reference point of the hypervolume, in ranges: a tenth beyond the worst, so that the ends of a front count too.

Source: H. Ishibuchi et al., Evolutionary Computation 26 (2018), p. 411.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """What the objectives allow together.

    Attributes:
        table: the rows.
        means: the surface of long-run means, with its bound.
        fronts: the non-dominated rows of every state.
        knee: the knee among the points of `means`; None where the surface is flat.
        hypervolume: proved least and greatest share of the box between `means.ideal` and `REFERENCE` that is dominated.
        baselines: means of the policies that take no limits, as in `means.points`, by name.
        fresh_distance: largest distance of a point's means and those of its prices on fading that was not solved for,
            as a share of the range of each objective [1]; NaN where there was none.
        notes: what was left out and why.
    """

    table: ActionTable
    means: AverageSurface
    fronts: RowFronts
    knee: Knee | None
    hypervolume: tuple[float, float]
    baselines: Mapping[str, FloatArray]
    fresh_distance: float
    notes: tuple[str, ...]

    def reported(self, points: FloatArray) -> FloatArray:
        """Return minimised objectives as they are reported: quality in its metric's own sense."""
        return points * self.senses

    @property
    def senses(self) -> FloatArray:
        """1 for an objective that is minimised as reported, -1 for one that is maximised, shape (num_objectives,)."""
        problem = average_surface.problem_of(self.means.quantities, self.means.metric)
        return np.array([problem.sense_of(name) for name in self.means.quantities], dtype=np.float64)

    def uses(self, point: int) -> IntArray:
        """Return how many states choose each row at a point of `means`, shape (num_rows,)."""
        rows = self.means.rows[point]
        return np.bincount(rows[rows != NOWHERE], minlength=len(self.table))

    def frame(self) -> pd.DataFrame:
        """Return the points as a DataFrame: means as reported, prices, the commonest row and its share."""
        import pandas as pd

        columns: dict[str, object] = {}
        for number, name in enumerate(self.means.quantities):
            columns[name] = self.reported(self.means.points)[:, number]
            columns[f"price_of_{name}"] = self.means.prices[:, number]
        counts = [self.uses(point) for point in range(len(self.means.points))]
        columns["commonest_row"] = [self.table.name(int(np.argmax(count))) for count in counts]
        columns["share"] = [float(np.max(count) / np.sum(count)) for count in counts]
        return pd.DataFrame(columns)

    def row_frame(self) -> pd.DataFrame:
        """Return the action table with the share of states in which each row is non-dominated, and is used."""
        used = sum((self.uses(point) > 0 for point in range(len(self.means.points))), np.zeros(len(self.table)))
        return self.table.frame().assign(non_dominated_share=self.fronts.shares, on_surface=used > 0)


def surface(
    table: ActionTable,
    link: LinkState,
    quantities: tuple[str, ...],
    metric: str,
    policies: Mapping[str, PolicyFactory],
    tolerance: float = 1e-3,
    fresh: LinkState | None = None,
) -> Surface:
    """Return the Pareto sets of `quantities` over the states of `link`, and where policies without limits lie.

    Args:
        table: rows of all schemes.
        link: states, shape (num_states,).
        quantities: two to four different objectives.
        metric: what the word quality stands for.
        policies: factories by name; those that read limits are passed over.
        tolerance: distance of bound and surface at which to stop, as a share of the ranges [1].
        fresh: states of their own, to score the points on; None for none.

    Raises:
        ProblemError: if the objectives are no such list, or a quantity was not measured.
    """
    means = average_surface.solve(table, link, quantities, metric, tolerance=tolerance)
    problem = average_surface.problem_of(quantities, metric)
    baselines, notes = {}, []
    for name, factory in policies.items():
        if reads_limits(factory):
            continue
        try:
            baselines[name] = _means(table, link, problem, factory(table=table, problem=problem).act(_seen(link)))
        except NotOfferedError as error:
            notes.append(f"policy {name} left out: {error}")
    reference = np.full(len(quantities), REFERENCE)
    volumes = [convex_hypervolume(means.normals, side, reference) for side in (means.inner, means.outer)]
    return Surface(
        table=table,
        means=means,
        fronts=row_fronts(table, link, quantities, metric),
        knee=find_knee(means.points) if len(means.points) else None,
        hypervolume=(volumes[0] / REFERENCE ** len(quantities), volumes[1] / REFERENCE ** len(quantities)),
        baselines=baselines,
        fresh_distance=_distance(means, means.points[:0] if fresh is None else means_on(means, table, fresh)),
        notes=tuple(notes),
    )


def _distance(means: AverageSurface, others: FloatArray) -> float:
    """Return the largest distance of the points and `others`, in ranges; NaN where there are none."""
    return float(np.max(np.abs(others - means.points) / means.span)) if others.size else float("nan")


def _seen(link: LinkState) -> Observation:
    return Observation(link=link)


def _means(table: ActionTable, link: LinkState, problem: Problem, rows: IntArray) -> FloatArray:
    """Return the means of the objectives over the states that are no outage, shape (num_objectives,)."""
    result = evaluate(table, rows, link, problem.metric)
    names = (problem.objective, *(limit.quantity for limit in problem.limits))
    values = np.column_stack([objective(result, problem), costs(result, problem)])
    is_served = np.isfinite(values[:, 0])
    return np.asarray(np.mean(values[is_served], axis=0)) if np.any(is_served) else np.full(len(names), np.nan)
