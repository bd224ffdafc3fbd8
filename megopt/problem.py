"""Objective, limits, evaluate, reward and costs: the only place where these words are defined.

The per-request problem (P1) of the field, for a request that meets the link state h and chooses a row a:

    min_a objective(a, h)   subject to   cost_i(a, h) <= limit_i,  i = 1..num_limits

A floor on quality enters as the cost -quality with the limit -floor, so that every limit reads "at most".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import COST_QUANTITIES, AffineCost, Outcome, outcome, terms
from megopt.tables.schema import METRIC_SENSES

__all__ = [
    "Limit",
    "Problem",
    "affine_cost",
    "ceilings",
    "costs",
    "evaluate",
    "is_feasible",
    "objective",
    "reward",
    "violations",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on one quantity: a ceiling on a cost, a limit in the metric's own sense on quality (a floor for SSIM).

    Attributes:
        quantity: one of `COST_QUANTITIES`, or "quality".
        bound: the limit [unit of the quantity].
    """

    quantity: str
    bound: float

    def __post_init__(self) -> None:
        if self.quantity not in (*COST_QUANTITIES, "quality"):
            message = f"limit on {self.quantity!r}: expected one of {', '.join((*COST_QUANTITIES, 'quality'))}"
            raise ProblemError(message)
        if isinstance(self.bound, bool) or not isinstance(self.bound, int | float) or np.isnan(self.bound):
            message = f"limit on {self.quantity} is {self.bound!r}; expected a number; change limits.{self.quantity}"
            raise ProblemError(message)
        if self.quantity != "quality" and self.bound < 0:
            message = f"limit on {self.quantity} is {self.bound:g}; seconds and joules are >= 0"
            raise ProblemError(message)

    def __str__(self) -> str:
        return f"{self.quantity} {'at least as good as' if self.quantity == 'quality' else '<='} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to optimise and what to respect, request by request.

    Attributes:
        objective: a cost quantity to minimise, or "quality".
        metric: the quality metric that the word "quality" stands for; empty where quality plays no part.
        limits: the limits, in the order in which `costs` reports them.
    """

    objective: str = "latency_s"
    metric: str = ""
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        if self.objective not in (*COST_QUANTITIES, "quality"):
            message = f"objective {self.objective!r}: expected one of {', '.join((*COST_QUANTITIES, 'quality'))}"
            raise ProblemError(message)
        self._check_limits()
        names_quality = self.objective == "quality" or any(limit.quantity == "quality" for limit in self.limits)
        if not isinstance(self.metric, str) or (names_quality and self.metric not in METRIC_SENSES):
            message = (
                f"quality is asked for with metric {self.metric!r}; expected one of {', '.join(METRIC_SENSES)}, "
                "and a profile that holds it for these schemes (`megopt info`)"
            )
            raise ProblemError(message)

    def _check_limits(self) -> None:
        limits: object = self.limits
        if not isinstance(limits, tuple | list) or not all(isinstance(limit, Limit) for limit in limits):
            example = "(Limit(quantity='latency_s', bound=3.0),)"
            message = f"problem: limits is {limits!r}; expected a tuple of Limit, such as {example}; change limits"
            raise ProblemError(message)
        object.__setattr__(self, "limits", tuple(limits))

    @property
    def sense(self) -> int:
        """1 where the objective is reported as it is minimised, -1 where its sign is turned."""
        return self.sense_of(self.objective)

    def sense_of(self, quantity: str) -> int:
        """Return 1 where a quantity is reported as it is minimised, -1 where its sign is turned: a cost is always 1."""
        return -METRIC_SENSES[self.metric] if quantity == "quality" else 1

    def with_limit(self, quantity: str, bound: float) -> Problem:
        """Return this problem with the limit on `quantity` set to `bound`, in place of any it had."""
        kept = tuple(limit for limit in self.limits if limit.quantity != quantity)
        return Problem(
            objective=self.objective, metric=self.metric, limits=(*kept, Limit(quantity=quantity, bound=bound))
        )


def affine_cost(table: ActionTable, link: LinkState, problem: Problem, quantity: str) -> AffineCost:
    """Return constant and slopes of a quantity for every row; smaller is better, also for quality (sign turned).

    Raises:
        ProblemError: if the quantity holds NaN in every row, that is, was not measured.
    """
    if quantity != "quality":
        cost = terms(table.work, link, quantity)
    else:
        zero = np.zeros(len(table))
        cost = AffineCost(
            constant=problem.sense_of(quantity) * table.metric(problem.metric), per_downlink=zero, per_uplink=zero
        )
    if len(table) and np.all(np.isnan(cost.constant)):
        message = (
            f"{quantity} was not measured in profile {table.profile}; "
            "choose another quantity, or a profile that holds it (`megopt info`)"
        )
        raise ProblemError(message)
    return cost


def evaluate(table: ActionTable, rows: IntArray, link: LinkState, metric: str = "") -> Outcome:
    """Return the outcome of choosing `rows` (num_requests,) on `link` (num_requests,).

    Every claim of a solver or a policy goes through here before it is reported.

    Raises:
        ProblemError: if a row is none of the table's; -1 is how a solver marks a state without a feasible row.
    """
    is_foreign = (np.asarray(rows) < 0) | (np.asarray(rows) >= len(table))
    if np.any(is_foreign):
        message = (
            f"evaluate: {int(np.sum(is_foreign))} of {np.size(rows)} rows lie outside 0 to {len(table) - 1}; "
            "-1 means infeasible: keep the states with solution.is_feasible"
        )
        raise ProblemError(message)
    quality = table.metric(metric)[rows] if metric else np.full(np.shape(rows), np.nan)
    return outcome(table.work.take(rows), link, quality)


def _signed(result: Outcome, quantity: str, problem: Problem) -> FloatArray:
    """Return a quantity with the sign that makes smaller better, shape (num_requests,)."""
    value = result.quantity(quantity)
    return value if problem.sense_of(quantity) == 1 else -value


def objective(result: Outcome, problem: Problem) -> FloatArray:
    """Return the objective as something to minimise, shape (num_requests,)."""
    return _signed(result, problem.objective, problem)


def reward(result: Outcome, problem: Problem) -> FloatArray:
    """Return the reward to maximise, shape (num_requests,): the objective with its sign turned."""
    return -objective(result, problem)


def costs(result: Outcome, problem: Problem) -> FloatArray:
    """Return one cost column per limit, shape (num_requests, num_limits); compare with `ceilings`."""
    if not problem.limits:
        return np.zeros((len(result.latency_s), 0))
    return np.stack([_signed(result, limit.quantity, problem) for limit in problem.limits], axis=-1)


def ceilings(problem: Problem) -> FloatArray:
    """Return the limits as ceilings on `costs`, shape (num_limits,)."""
    return np.array([problem.sense_of(limit.quantity) * limit.bound for limit in problem.limits], dtype=float)


def violations(result: Outcome, problem: Problem) -> FloatArray:
    """Return max(cost - limit, 0), shape (num_requests, num_limits); an unmeasured cost violates by inf."""
    excess = costs(result, problem) - ceilings(problem)
    return np.where(np.isnan(excess), np.inf, np.maximum(excess, 0.0))


def is_feasible(result: Outcome, problem: Problem) -> BoolArray:
    """Return whether each request keeps every limit, shape (num_requests,)."""
    return np.asarray(np.all(costs(result, problem) <= ceilings(problem), axis=-1))
