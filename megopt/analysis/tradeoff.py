"""The main job: sweep one limit, solve at every value, roll every policy out on the same fading trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.rollout import rollout, summarise
from megopt.arrays import FloatArray
from megopt.errors import ConfigError, NotOfferedError
from megopt.policies.base import Policy
from megopt.problem import Problem, affine_cost
from megopt.schemes.action_table import ActionTable
from megopt.solvers import exhaustive
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState

if TYPE_CHECKING:
    import pandas as pd

PolicyFactory = Callable[..., Policy]
"""Called with table= and problem=; returns a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Which limit is varied, and over which values.

    Attributes:
        quantity: the limited quantity.
        values: limits; where empty, `num_points` from the smallest that can be kept to the largest that matters.
        num_points: how many, where `values` is empty.
    """

    quantity: str
    values: tuple[float, ...] = ()
    num_points: int = 24

    def __post_init__(self) -> None:
        if self.num_points < 2:
            message = f"problem.sweep.num_points = {self.num_points}; expected at least 2"
            raise ConfigError(message)
        if any(not value > 0 for value in self.values):
            message = f"problem.sweep.limits = {list(self.values)}; expected numbers above 0"
            raise ConfigError(message)

    def limits(self, table: ActionTable, link: LinkState, problem: Problem) -> FloatArray:
        """Return the swept limits, ascending, shape (num_limits,)."""
        if self.values:
            return np.sort(np.asarray(self.values, dtype=np.float64))
        cost = affine_cost(table, link, problem, self.quantity)
        at_worst = cost.at(_quantile(link.downlink_s_per_bit, 1.0), _quantile(link.uplink_s_per_bit, 1.0))
        reachable = at_worst[np.isfinite(at_worst) & (at_worst > 0)]
        if not len(reachable):
            message = f"{self.quantity} is 0 for every row; sweep another quantity, or name problem.sweep.limits"
            raise ConfigError(message)
        low, high = float(reachable.min()), float(reachable.max())
        return np.geomspace(low * 1.0001, max(high * 1.02, low * 1.1), self.num_points)


def _quantile(values: FloatArray, share: float) -> float:
    """Return a quantile over the states that are no outage."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """What the sweep found.

    Attributes:
        records: one row per request, policy and limit.
        curve: one row per policy and limit, see `rollout.summarise`.
        solutions: the exact optimum over all rows at each limit.
        limits: swept limits, shape (num_limits,).
        problems: the problem at each limit.
        notes: what was left out and why.
    """

    records: pd.DataFrame
    curve: pd.DataFrame
    solutions: Sequence[Solution]
    limits: FloatArray
    problems: Sequence[Problem]
    notes: Sequence[str]

    @property
    def status(self) -> Status:
        """Feasibility over all limits and states."""
        return Status.of(np.concatenate([solution.is_feasible for solution in self.solutions]))


def tradeoff(
    table: ActionTable, link: LinkState, problem: Problem, sweep: Sweep, policies: Mapping[str, PolicyFactory]
) -> Tradeoff:
    """Return records, curve and solutions of a limit sweep.

    Args:
        table: rows of all schemes.
        link: the fading trace, fields of shape (num_requests,); the same for every policy.
        problem: objective, and limits besides the swept one.
        sweep: the swept limit.
        policies: factories by name. A policy that ignores the limit is rolled out once.
    """
    import pandas as pd

    limits = sweep.limits(table, link, problem)
    problems = [problem.with_limit(sweep.quantity, float(bound)) for bound in limits]
    parts, notes = [], []
    for name, factory in policies.items():
        try:
            runs = [(p, factory(table=table, problem=p)) for p in (problems if _adapts(factory) else [problem])]
        except NotOfferedError as error:
            notes.append(f"policy {name} left out: {error}")
            continue
        parts += [rollout(policy, name, table, link, p, sweep.quantity) for p, policy in runs]
    if not parts:
        message = f"no policy fits profile {table.profile}: {'; '.join(notes)}"
        raise NotOfferedError(message)
    records = pd.concat(parts, ignore_index=True)
    solutions = [exhaustive.solve(table, link, p) for p in problems]
    return Tradeoff(
        records=records, curve=summarise(records), solutions=solutions, limits=limits, problems=problems, notes=notes
    )


def _adapts(factory: PolicyFactory) -> bool:
    """Return whether a policy reads the limits; fixed ones do not and are rolled out once."""
    return bool(getattr(getattr(factory, "func", factory), "reads_limits", True))
