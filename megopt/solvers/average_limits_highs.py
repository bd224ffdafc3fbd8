"""One call of HiGHS: a linear program with its multipliers, at the tightest tolerances that HiGHS takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.arrays import FloatArray

_TOLERANCE = 1e-10
_OPTIMAL, _INFEASIBLE = 0, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What HiGHS says of min c.x subject to A x <= b, E x = d, x >= 0.

    Attributes:
        is_feasible: whether some x keeps all constraints.
        value: the minimum; NaN if infeasible.
        x: a vertex that attains it, shape (num_unknowns,); empty if infeasible.
        prices: multipliers of A x <= b, >= 0, shape (num_upper,); empty if infeasible.
        potentials: multipliers of E x = d, shape (num_equal,); empty if infeasible.
    """

    is_feasible: bool
    value: float
    x: FloatArray
    prices: FloatArray
    potentials: FloatArray


def linear_program(
    objective: FloatArray, upper: Any, room: FloatArray, equal: Any, level: FloatArray, method: str = "highs-ds"
) -> Program:
    """Return the minimum of objective.x subject to upper x <= room, equal x = level, x >= 0, at a vertex.

    Args:
        objective: c, shape (num_unknowns,).
        upper: A, array or sparse, shape (num_upper, num_unknowns).
        room: b, shape (num_upper,).
        equal: E, array or sparse, shape (num_equal, num_unknowns).
        level: d, shape (num_equal,).
        method: "highs-ds", dual simplex, or "highs-ipm", interior point with crossover to a vertex.
    """
    from scipy.optimize import linprog

    solver: Any = linprog  # its annotations leave out sparse matrices, which it takes
    options = {"primal_feasibility_tolerance": _TOLERANCE, "dual_feasibility_tolerance": _TOLERANCE}
    result = solver(objective, upper, room, equal, level, method=method, options=options)
    assert result.status in (_OPTIMAL, _INFEASIBLE), result.message
    if result.status == _INFEASIBLE:
        none = np.zeros(0)
        return Program(is_feasible=False, value=np.nan, x=none, prices=none, potentials=none)
    return Program(
        is_feasible=True,
        value=float(result.fun),
        x=np.asarray(result.x),
        prices=np.maximum(-np.asarray(result.ineqlin.marginals), 0.0),
        potentials=np.asarray(result.eqlin.marginals),
    )
