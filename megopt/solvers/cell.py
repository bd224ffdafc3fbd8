"""Rows and shares of a cell together, at any size: prices of band and power, then rows that fit, with a certificate.

`cell_model` states the problem and its dual, `cell_pairs` what each user does at given prices, `cell_dual` how the two
prices are found, `cell_rounding` and `cell_shares` how rows and shares are made from them. `cell_exact` is the
reference for small cells. Time grows with users times rows; the number of prices tried does not grow with either.

Infeasible is a status, and exact: a user without any row that keeps the limits, or all users at their humblest rows
asking for more than band and power give.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.solvers.cell_dual import Dual, Try, search
from megopt.solvers.cell_model import FEASIBILITY_TOLERANCE, CellProblem, CellSolution, score
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rounding import Choice, choose, round_up
from megopt.solvers.cell_shares import first_rows, share_out, shared
from megopt.solvers.solution import Status

_ENOUGH = 1.0 + 1e-5
"""What budgets in a message are stretched by, so that six digits of them are not too small."""
SOLVER = "cell by prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows (kept) with shares of the budgets, a bound on the objective to minimise, and what it took."""

    rows: IntArray
    bandwidth: FloatArray
    power: FloatArray
    bound: float
    prices: FloatArray
    num_prices: int

    @classmethod
    def of(cls, choice: Choice, dual: Dual) -> Found:
        """Return a choice of rows with the shares at which all their paces grow by one factor."""
        return cls(
            rows=choice.rows,
            bandwidth=choice.fit.bandwidth,
            power=choice.fit.power,
            bound=dual.best.bound,
            prices=dual.best.prices,
            num_prices=len(dual.tries),
        )


def solve(cell: CellProblem) -> CellSolution:
    """Return rows and shares of the cell with a certified bound; status "optimal" means optimal up to `gap`.

    Raises:
        ProblemError: if a quantity was not measured, or a payload could take forever at no cost.
    """
    start, pairs = perf_counter(), Pairs.of(cell)
    obstacle = infeasibility(cell, pairs)
    if obstacle:
        return infeasible(cell, SOLVER, obstacle, start)
    dual = dual_of(pairs)
    if pairs.is_airtime_free:
        choice = choose(pairs, dual.best.rows) if dual.is_slack else round_up(pairs, dual)
        return reported(cell, pairs, Found.of(choice, dual), SOLVER, start)
    best = share_out(pairs, dual)
    found = Found(
        rows=best.rows,
        bandwidth=best.bandwidth,
        power=best.power,
        bound=dual.best.bound,
        prices=dual.best.prices,
        num_prices=len(dual.tries),
    )
    return reported(cell, pairs, found, SOLVER, start)


def dual_of(pairs: Pairs) -> Dual:
    """Return the best prices of a feasible cell."""
    if not pairs.is_airtime_free:
        start = shared(pairs, first_rows(pairs)[np.newaxis])[0].prices
        return search(pairs, start if np.all(start > 0.0) else np.ones(2))
    dearest, humblest = choose(pairs, _dearest(pairs)), choose(pairs, pairs.humblest())
    if dearest.is_fitting:
        return _slack(pairs, dearest)
    per_budget = 1.0 / float(dearest.fit.factor) - 1.0 / float(humblest.fit.factor)
    worth = max(humblest.value - dearest.value, 1e-12 * abs(dearest.value)) / per_budget
    ratio = np.exp(float(dearest.fit.log_ratio))
    return search(pairs, worth * np.array([ratio, 1.0]) / (1.0 + ratio))


def _dearest(pairs: Pairs) -> IntArray:
    """Return the row of each user with the best objective, of several the humblest, shape (K,)."""
    rows = np.empty(len(pairs.gain), dtype=np.int64)
    for block in pairs.blocks():
        fixed = np.where(np.isfinite(block.floor), block.fixed, np.inf)
        least = np.min(fixed, axis=1, keepdims=True)
        rows[block.users] = np.argmin(np.where(fixed <= least, block.floor, np.inf), axis=1)
    return rows


def _slack(pairs: Pairs, choice: Choice) -> Dual:
    """Return the dual of a cell whose best rows all fit: no price, and the bound is attained."""
    free = Try(
        prices=np.zeros(2),
        bound=choice.value,
        fixed=choice.value,
        excess=np.zeros(2),
        rows=choice.rows,
        unit_price=np.zeros(len(choice.rows)),
    )
    return Dual(best=free, tries=(free,), is_slack=True)


def infeasibility(cell: CellProblem, pairs: Pairs) -> str:
    """Return what stands in the way of any answer; empty if there is one."""
    lost = np.flatnonzero(pairs.is_lost)
    if lost.size:
        return (
            f"{lost.size} of {cell.num_users} users have no row within their limits at any rate, "
            f"first user {lost[0]}: loosen problem.limits or bounds"
        )
    factor = float(choose(pairs, pairs.humblest()).fit.factor)
    if factor < 1.0:
        more = _ENOUGH / factor
        return (
            f"the humblest rows of all users need {1.0 / factor:.6g} times band and power: "
            f"{more * cell.bandwidth_hz:.6g} Hz with {more * cell.power_w:.6g} W would be enough"
        )
    return ""


def infeasible(cell: CellProblem, solver: str, message: str, start: float) -> CellSolution:
    """Return the answer that there is none."""
    nothing = np.full(cell.num_users, np.nan)
    return CellSolution(
        solver=solver,
        status=Status.INFEASIBLE,
        rows=np.full(cell.num_users, -1),
        bandwidth_hz=nothing,
        transmit_power_w=nothing,
        outcome=None,
        value=float("nan"),
        bound=cell.problem.sense * float("inf"),
        violation=float("nan"),
        bandwidth_price=float("nan"),
        power_price=float("nan"),
        num_prices=0,
        runtime_s=perf_counter() - start,
        message=message,
    )


def reported(cell: CellProblem, pairs: Pairs, found: Found, solver: str, start: float) -> CellSolution:
    """Return the answer in the user's units, scored by `problem.evaluate`."""
    rows = pairs.original(found.rows)
    bandwidth_hz, power_w = found.bandwidth * cell.bandwidth_hz, found.power * cell.power_w
    result = score(cell, rows, bandwidth_hz, power_w)
    assert result.violation <= FEASIBILITY_TOLERANCE, result.violation
    return CellSolution(
        solver=solver,
        status=Status.OPTIMAL,
        rows=rows,
        bandwidth_hz=bandwidth_hz,
        transmit_power_w=power_w,
        outcome=result.outcome,
        value=cell.problem.sense * result.signed_value,
        bound=cell.problem.sense * found.bound,
        violation=result.violation,
        bandwidth_price=float(found.prices[0]) / cell.bandwidth_hz,
        power_price=float(found.prices[1]) / cell.power_w,
        num_prices=found.num_prices,
        runtime_s=perf_counter() - start,
    )
