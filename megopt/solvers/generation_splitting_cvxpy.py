"""Region split as one convex cone program in cvxpy: the independent check of the closed form.

On the branch x < 1 take the device's time tau = t (p/P)^(-kappa) in place of the power. Then p <= P reads t <= tau, and

    E = p tau <= epsilon   <=>   t <= e^kappa tau^(1 - kappa),   e = epsilon/P,

whose right side is concave: a three-dimensional power cone. The branch and the lone point x = 1 (model split, latency
A) enter together through the convex hull of their union: lambda in [0, 1] is the weight of the branch, x and tau are
scaled by it, and because the power cone is homogeneous its perspective is again a power cone,

    minimise    (1 - lambda) A + x A + tau
    subject to  t = beta (c lambda + (lambda - x) b),   x_min lambda <= x <= lambda,   t <= tau,
                t <= (e lambda)^kappa tau^(1 - kappa).

The objective is linear, so its minimum over the hull is the better of the two minima: no closed form enters.
Data are parameters (DPP) except kappa: one compilation per power exponent. Times are in units of A.
Source: perspective of a disjunction, Ceria and Soares, "Convex programming for disjunctive convex optimization", 1999.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.errors import ProblemError
from megopt.ranges import require_within
from megopt.solvers.generation_splitting import RegionSplitModel, device_s, edge_s

TOLERANCES = (1e-10, 1e-8)
"""Gap and feasibility tolerances of Clarabel, tried in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """A compiled program; values go into its parameters, all of them times in units of A, x_min excepted."""

    problem: Any
    coarse: Any
    refine: Any
    allowed: Any
    region_ratio_min: Any


def cone_program_latency_s(
    model: RegionSplitModel, energy_limit_j: Real, downlink_s_per_bit: Real, *, show_progress: bool = False
) -> FloatArray:
    """Return the least latency [s] of `generation_splitting.solve`, found by an interior-point method.

    Args:
        model: constants; arrays broadcast with the other arguments. The power exponent lies strictly between 0 and 1.
        energy_limit_j: limit on the device's energy [J], >= 0, any shape.
        downlink_s_per_bit: link time [s/bit], finite, broadcasts.
        show_progress: whether to draw a bar on a terminal.

    Raises:
        ConfigError: outside those ranges.
        ProblemError: if the solver does not converge.
    """
    from tqdm import tqdm

    require_within("cone program", 0.0, np.inf, energy_limit_j=energy_limit_j)
    require_within("cone program", 0.0, np.finfo(float).max, downlink_s_per_bit=downlink_s_per_bit)
    require_within("cone program", 1e-3, 1.0 - 1e-3, power_exponent=model.power_exponent)
    edge = edge_s(model, downlink_s_per_bit)
    require_within("cone program", np.finfo(float).tiny, np.finfo(float).max, edge_s=edge)
    most = device_s(model, model.region_ratio_min)
    allowed = np.minimum(np.asarray(energy_limit_j, dtype=np.float64) / model.device_power_max_w, most)
    data = (edge, device_s(model, 1.0), np.asarray(model.cost_factor * model.device_refine_s), allowed)
    rows = np.broadcast_arrays(*data, model.region_ratio_min, model.power_exponent)
    values = np.stack([np.ravel(row) for row in rows], axis=1)
    bar = tqdm(values, desc="cone programs", unit="solve", leave=False, disable=None if show_progress else True)
    return np.reshape(np.array([_solve_one(*map(float, value)) for value in bar]), rows[0].shape)


def _solve_one(edge: float, coarse: float, refine: float, allowed: float, low: float, kappa: float) -> float:
    """Return the optimum of one instance [s]."""
    program = _compiled(kappa)
    program.coarse.value, program.refine.value = coarse / edge, refine / edge
    program.allowed.value, program.region_ratio_min.value = allowed / edge, low
    for tolerance in TOLERANCES:
        if _converges(program.problem, tolerance):
            return float(program.problem.value) * edge
    message = (
        f"cone program: Clarabel ended with status {program.problem.status}; expected optimal at a tolerance of "
        f"{TOLERANCES[-1]:g}; the instance is badly scaled, use generation_splitting.solve"
    )
    raise ProblemError(message)


def _converges(problem: Any, tolerance: float) -> bool:
    """Solve `problem`; return whether it ended within the tolerance."""
    import warnings

    import cvxpy as cp

    limits = {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "solution may be inaccurate": the status is read instead
        try:
            problem.solve(solver=cp.CLARABEL, warm_start=False, **limits)  # same answer whatever was solved before
        except cp.error.SolverError:
            return False
    return bool(problem.status == cp.OPTIMAL)


@lru_cache(maxsize=64)
def _compiled(kappa: float) -> _Program:
    """Return the program for one power exponent; its parameters are set before each solve."""
    import cvxpy as cp

    coarse, refine, allowed, low = (cp.Parameter(nonneg=True) for _ in range(4))
    weight, ratio, device = cp.Variable(), cp.Variable(), cp.Variable()  # lambda, x and tau
    full_power = coarse * weight + refine * (weight - ratio)
    constraints = [
        weight >= 0,
        weight <= 1,
        ratio >= low * weight,
        ratio <= weight,
        full_power <= device,
        cp.PowCone3D(device, allowed * weight, full_power, 1.0 - kappa),
    ]
    problem = cp.Problem(cp.Minimize(1 - weight + ratio + device), constraints)
    assert problem.is_dpp()
    return _Program(problem=problem, coarse=coarse, refine=refine, allowed=allowed, region_ratio_min=low)
