"""The main job: sweep one limit, solve at every value, roll every policy out on the same fading trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.rollout import rollout, summarise
from megopt.arrays import FloatArray
from megopt.errors import ConfigError, NotOfferedError
from megopt.policies.base import Policy
from megopt.problem import Problem, affine_cost
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_limits_sweep, exhaustive, exhaustive_sweep
from megopt.solvers.average_limits_curve import LongRunCurve
from megopt.solvers.average_limits_sampling import curve_excesses
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState
from megopt.system.outcome import COST_QUANTITIES

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
    values: Sequence[float] = ()
    num_points: int = 24

    def __post_init__(self) -> None:
        if self.quantity not in COST_QUANTITIES:
            message = f"problem.sweep.quantity = {self.quantity!r}; expected one of {', '.join(COST_QUANTITIES)}"
            raise ConfigError(message)
        require_whole("problem.sweep", 2, num_points=self.num_points)
        for value in self.values:
            require_within("problem.sweep", 1e-300, np.finfo(float).max, limits=value)

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
        long_run: the optimum where the swept limit holds for the mean alone, with its certified bound; None where it
            was not asked for.
        fresh_excesses: largest mean above its limit, relative to it, where the long-run optimum meets fading that it
            was not solved for, shape (num_limits,); NaN where it is infeasible or was not asked for.
    """

    records: pd.DataFrame
    curve: pd.DataFrame
    solutions: Sequence[Solution]
    limits: FloatArray
    problems: Sequence[Problem]
    notes: Sequence[str]
    fresh_excesses: FloatArray
    long_run: LongRunCurve | None = None

    @property
    def metric(self) -> str:
        """The quality metric of the records; empty where none was named."""
        return self.problems[0].metric

    @property
    def status(self) -> Status:
        """Feasibility over all limits and states."""
        return Status.of(np.concatenate([solution.is_feasible for solution in self.solutions]))


def tradeoff(
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    sweep: Sweep,
    policies: Mapping[str, PolicyFactory],
    num_traces: int = 1,
    fresh: LinkState | None = None,
) -> Tradeoff:
    """Return records, curve and solutions of a limit sweep.

    Args:
        table: rows of all schemes.
        link: the fading, fields of shape (num_requests,): `num_traces` independent traces of equal length, one after
            another; the same for every policy.
        problem: objective, and limits besides the swept one.
        sweep: the swept limit.
        policies: factories by name. A policy that ignores the limit is rolled out once.
        num_traces: independent traces in `link`; intervals are over their means.
        fresh: fading of its own, to solve the sweep with all limits on means as well and to score the answers on;
            None for neither.

    Raises:
        ConfigError: if `problem` limits the swept quantity as well.
        NotOfferedError: if no policy fits the table.
    """
    import pandas as pd

    _require_sense(problem, sweep, policies)
    limits = sweep.limits(table, link, problem)
    problems = [problem.with_limit(sweep.quantity, float(bound)) for bound in limits]
    parts, notes = [], []
    for name, factory in policies.items():
        try:
            runs = [(p, factory(table=table, problem=p)) for p in (problems if reads_limits(factory) else [problem])]
        except NotOfferedError as error:
            notes.append(f"policy {name} left out: {error}")
            continue
        parts += [rollout(policy, name, table, link, p, sweep.quantity) for p, policy in runs]
    if not parts:
        message = f"no policy fits profile {table.profile}: {'; '.join(notes)}"
        raise NotOfferedError(message)
    records = pd.concat(parts, ignore_index=True)
    records["trace"] = records["request"] // (len(link.snr) // num_traces)
    long_run = None if fresh is None else average_limits_sweep.sweep(table, link, problem, sweep.quantity, limits)
    excesses = np.full(len(limits), np.nan)
    if fresh is not None and long_run is not None:
        excesses = curve_excesses(table, fresh, problem, long_run)
    return Tradeoff(
        records=records,
        curve=summarise(records),
        solutions=_solved_twice(table, link, problem, sweep.quantity, limits),
        limits=limits,
        problems=problems,
        notes=notes,
        fresh_excesses=excesses,
        long_run=long_run,
    )


def _require_sense(problem: Problem, sweep: Sweep, policies: Mapping[str, PolicyFactory]) -> None:
    """Raise ConfigError where problem, sweep and policies do not fit together."""
    if sweep.quantity in {limit.quantity for limit in problem.limits}:
        message = (
            f"problem.limits.{sweep.quantity} is set and the same quantity is swept; keep one: name the values in "
            "problem.sweep.limits, or sweep another problem.sweep.quantity"
        )
        raise ConfigError(message)
    if sweep.quantity == problem.objective:
        message = (
            f"{sweep.quantity} is both the objective and the swept limit; choose another problem.objective or "
            "problem.sweep.quantity"
        )
        raise ConfigError(message)
    if not policies:
        message = "no policy was named; choose with policy=[optimal,model_split]"
        raise ConfigError(message)


def _solved_twice(
    table: ActionTable, link: LinkState, problem: Problem, quantity: str, limits: FloatArray
) -> list[Solution]:
    """Return the answers of the warm fast path, bounded by the brute force's: two algorithms that share no shortcut."""
    found = exhaustive_sweep.sweep(table, link, problem, quantity, limits).solutions
    problems = (problem.with_limit(quantity, float(bound)) for bound in limits)
    checks = (exhaustive.solve_by_brute_force(table, link, each) for each in problems)
    return [replace(solution, bounds=check.values) for solution, check in zip(found, checks, strict=True)]


def reads_limits(factory: PolicyFactory) -> bool:
    """Return whether a policy reads the limits; fixed ones do not and are rolled out once."""
    return bool(getattr(getattr(factory, "func", factory), "reads_limits", True))
