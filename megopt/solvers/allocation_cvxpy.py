"""The allocation as a disciplined convex program in cvxpy: the independent check of `allocation`.

Shares are in units of an even share (w in B/K, p in P/K for K devices), g' = g P/B, S = Z ln 2 K/B, and times in units
of the mean time that an even share takes. With rates r, airtimes t and device times d,

    minimise    sum (A t + alpha d + e y^2)     or   tau
    subject to  r <= w log(1 + g' p/w),   S/r <= t,   t + d <= D - a   (and a + t + d <= tau),   sum w, sum p <= K,
                d = C/(f_max y),   f_min/f_max <= y <= 1,      e = beta k C f_max^2: energy at full speed.

Where energy does not count, the clock y = f/f_max is 1 and no variable. w log(1 + g' p/w) is minus the relative entropy
of w and w + g' p. All data are parameters and none meets another one in a product (DPP), so that one compilation serves
all problems of a kind with as many devices. An interior-point method takes no starting point: a warm solve is one that
reuses the compilation. Its answer is scored by `score`, and its dual variables are judged by `dual_bound`.
Source: Agrawal, Verschueren, Diamond and Boyd, "A rewriting system for convex optimization problems", 2018 (cvxpy);
Goulart and Chen, "Clarabel", 2024.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from time import perf_counter
from typing import Any

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ProblemError
from megopt.solvers.allocation_cells import dual_bound
from megopt.solvers.allocation_model import AllocationProblem, AllocationSolution, Objective, score
from megopt.solvers.solution import Status

SOLVER = "allocation by cvxpy"
ATTEMPTS = ((1e-8, 1.0), (1e-8, 8.0), (1e-8, 0.125), (1e-10, 1.0), (1e-7, 1.0))
"""Tolerance of Clarabel and factor on the time unit, tried in this order: the first is its own choice."""
LARGEST_GAP = 3e-7
"""Relative distance of score and bound up to which an answer counts, whatever the method says about itself."""
_NO_DEADLINE = 1e4
"""Room in place of an infinite deadline where other devices have one [times the time unit]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a compiled program covers.

    Attributes:
        num_devices: devices.
        is_fair: whether the largest latency is minimised.
        has_deadlines: whether some device has one.
        has_energy: whether energy counts, so that clocks are variables.
    """

    num_devices: int
    is_fair: bool
    has_deadlines: bool
    has_energy: bool

    @classmethod
    def of(cls, problem: AllocationProblem) -> Kind:
        """Return the kind of a problem with one cell."""
        return cls(
            num_devices=problem.shape[0],
            is_fair=problem.objective == Objective.LARGEST_LATENCY,
            has_deadlines=bool(np.any(np.isfinite(problem.deadline_s))),
            has_energy=bool(np.any(problem.weights[1] * problem.energy_coefficient > 0.0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A compiled program: parameters, variables, and the constraints whose duals are read, by name."""

    problem: Any
    parameters: dict[str, Any]
    variables: dict[str, Any]
    constraints: dict[str, Any]


def solve_by_cvxpy(problem: AllocationProblem) -> AllocationSolution:
    """Return the best shares of one cell, found by an interior-point method.

    Args:
        problem: one cell, shape (num_devices,).

    Raises:
        ProblemError: for more than one cell, for devices without payload or work (the method needs an interior), or if
            the method neither converges nor proves infeasibility.
    """
    _check(problem)
    start, kind = perf_counter(), Kind.of(problem)
    spare_s = problem.deadline_s - problem.edge_s - problem.device_cycles / problem.clock_max_hz
    if np.any((problem.gain_to_noise_hz_per_w == 0.0) | (spare_s <= 0.0)):
        return _infeasible(problem, start)
    program, natural = compiled(kind), _Units.of(problem)
    for tolerance, factor in ATTEMPTS:
        units = replace(natural, second=natural.second * factor)
        _set_parameters(program, problem, units)
        status = _status(program.problem, tolerance)
        if status.startswith("optimal"):
            answer = _reported(problem, program, units, start)
            if answer.gaps <= LARGEST_GAP:
                return answer
        if status.startswith("infeasible"):
            return _infeasible(problem, start)
    message = (
        f"allocation by cvxpy: Clarabel ended with status {status}; expected a gap of at most "
        f"{LARGEST_GAP:g}; the cell is badly scaled, use allocation.solve"
    )
    raise ProblemError(message)


def _check(problem: AllocationProblem) -> None:
    if len(problem.shape) != 1:
        message = f"allocation by cvxpy: shape {problem.shape}; expected (num_devices,); pass one cell at a time"
        raise ProblemError(message)
    has_nothing = (problem.bits == 0.0) | ((problem.device_cycles == 0.0) & Kind.of(problem).has_energy)
    if np.any(has_nothing):
        message = (
            f"allocation by cvxpy: {np.sum(has_nothing)} devices receive nothing, or compute nothing where energy "
            "counts; expected both, as the program has no interior otherwise; use allocation.solve"
        )
        raise ProblemError(message)


@lru_cache(maxsize=16)
def compiled(kind: Kind) -> Program:
    """Return the program of a kind; its parameters are set before each solve."""
    cp: Any = import_module("cvxpy")

    def of_devices(**attributes: bool) -> Any:
        return cp.Parameter(kind.num_devices, **attributes)

    names = ("payload", "gain", "airtime_weight", "work_weight", "full_speed_energy", "fast_work", "slowest_clock")
    parameters = {name: of_devices(nonneg=True) for name in names}
    parameters |= {"room": of_devices(), "edge": of_devices()}
    w, p, r, t, y = (cp.Variable(kind.num_devices, nonneg=True) for _ in range(5))
    work = cp.multiply(parameters["fast_work"], cp.inv_pos(y)) if kind.has_energy else parameters["fast_work"]
    constraints = {
        "rate": r <= -cp.rel_entr(w, w + cp.multiply(parameters["gain"], p)),
        "airtime": cp.multiply(parameters["payload"], cp.inv_pos(r)) <= t,
        "bandwidth": cp.sum(w) <= kind.num_devices,
        "power": cp.sum(p) <= kind.num_devices,
    }
    objective = parameters["airtime_weight"] @ t
    if kind.has_deadlines:
        constraints["deadline"] = t + work <= parameters["room"]
    if kind.has_energy:
        constraints |= {"fast": y <= 1.0, "slow": y >= parameters["slowest_clock"]}
        objective += parameters["work_weight"] @ cp.inv_pos(y) + parameters["full_speed_energy"] @ cp.square(y)
    if kind.is_fair:
        tau = cp.Variable()
        objective = kind.num_devices * tau  # the latencies then have prices near 1, as in a sum
        constraints["latency"] = parameters["edge"] + t + work <= tau
    problem = cp.Problem(cp.Minimize(objective), list(constraints.values()))
    return Program(problem=problem, parameters=parameters, variables={"w": w, "p": p, "y": y}, constraints=constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """Even shares [Hz], [W], the mean time that they take [s], and the mean weight of a second in the objective."""

    hertz: float
    watt: float
    second: float
    weight: float

    @classmethod
    def of(cls, problem: AllocationProblem) -> _Units:
        """Return the units of one cell."""
        hertz, watt = float(problem.bandwidth_hz) / problem.shape[0], float(problem.power_w) / problem.shape[0]
        rate_bps = hertz * np.log2(1.0 + np.maximum(problem.gain_to_noise_hz_per_w, 1e-300) * watt / hertz)
        second = float(np.mean(problem.bits / np.maximum(rate_bps, 1e-3 * np.max(rate_bps)))) or 1.0
        alpha, beta = problem.weights
        work_s = problem.device_cycles / problem.clock_max_hz
        energy = beta * (
            problem.receive_power_w + problem.energy_coefficient * problem.clock_max_hz**3 * work_s / second
        )
        return cls(hertz=hertz, watt=watt, second=second, weight=float(np.mean(alpha + energy)) or 1.0)


def _set_parameters(program: Program, problem: AllocationProblem, units: _Units) -> None:
    (alpha, beta), second = problem.weights, units.second
    fast = problem.device_cycles / problem.clock_max_hz / second
    room = (problem.deadline_s - problem.edge_s) / second
    values = {
        "payload": problem.bits * np.log(2.0) / (units.hertz * second),
        "gain": problem.gain_to_noise_hz_per_w * units.watt / units.hertz,
        "airtime_weight": (alpha + beta * problem.receive_power_w) / units.weight,
        "work_weight": alpha * fast / units.weight,
        "full_speed_energy": beta * problem.energy_coefficient * problem.clock_max_hz**3 * fast / units.weight,
        "fast_work": fast,
        "slowest_clock": problem.clock_min_hz / problem.clock_max_hz,
        "room": np.where(np.isfinite(room), room, _NO_DEADLINE),
        "edge": problem.edge_s / second,
    }
    for name, value in values.items():
        program.parameters[name].value = value


def _status(problem: Any, tolerance: float) -> str:
    """Solve `problem`; return "optimal", "infeasible" or what went wrong."""
    import cvxpy as cp

    limits = {"tol_gap_abs": tolerance, "tol_gap_rel": tolerance, "tol_feas": tolerance}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "solution may be inaccurate": the status is read instead
        try:
            problem.solve(solver=cp.CLARABEL, warm_start=False, **limits)  # same answer whatever came before
        except cp.error.SolverError:
            return "failed"
    return str(problem.status)


def _reported(problem: AllocationProblem, program: Program, units: _Units, start: float) -> AllocationSolution:
    """Return the answer in the user's units, scaled onto the budgets, scored by `score`."""
    shares = [np.maximum(program.variables[name].value, 0.0) for name in ("w", "p")]
    bandwidth_hz, power_w = (
        share / np.sum(share) * float(budget)
        for share, budget in zip(shares, (problem.bandwidth_hz, problem.power_w), strict=True)
    )
    clock_hz = np.array(problem.clock_max_hz)
    if Kind.of(problem).has_energy:
        clock_hz = clock_hz * np.clip(program.variables["y"].value, problem.clock_min_hz / clock_hz, 1.0)
    prices = _prices(problem, program, units)
    scores = score(problem, bandwidth_hz, power_w, clock_hz)
    return AllocationSolution(
        solver=SOLVER,
        status=Status.OPTIMAL,
        bandwidth_hz=bandwidth_hz,
        transmit_power_w=power_w,
        clock_hz=clock_hz,
        airtime_s=scores.airtime_s,
        latency_s=scores.latency_s,
        device_energy_j=scores.device_energy_j,
        values=scores.values,
        bounds=dual_bound(problem, **prices),
        least_power_w=np.asarray(np.nan),
        runtime_s=perf_counter() - start,
        **prices,
    )


def _prices(problem: AllocationProblem, program: Program, units: _Units) -> dict[str, FloatArray]:
    """Return the dual variables as prices in the user's units; those that rounding made negative are 0."""
    is_fair = problem.objective == Objective.LARGEST_LATENCY
    per_second = 1.0 / problem.shape[0] if is_fair else units.weight
    scale = per_second * units.second

    def dual(name: str) -> FloatArray:
        found = program.constraints[name].dual_value if name in program.constraints else np.zeros(problem.shape)
        return np.maximum(np.asarray(found, dtype=np.float64), 0.0)

    return {
        "bandwidth_price": dual("bandwidth") * scale / units.hertz,
        "power_price": dual("power") * scale / units.watt,
        "deadline_price": np.where(np.isfinite(problem.deadline_s), dual("deadline") * per_second, 0.0),
        "latency_price": dual("latency") if is_fair else problem.weights[0],
    }


def _infeasible(problem: AllocationProblem, start: float) -> AllocationSolution:
    nothing, unknown = np.full(problem.shape, np.nan), np.asarray(np.nan)
    per_device = ("bandwidth_hz", "transmit_power_w", "clock_hz", "airtime_s", "latency_s", "device_energy_j")
    return AllocationSolution(
        solver=SOLVER,
        status=Status.INFEASIBLE,
        **dict.fromkeys((*per_device, "deadline_price", "latency_price"), nothing),
        **dict.fromkeys(("values", "bandwidth_price", "power_price", "least_power_w"), unknown),
        bounds=np.asarray(np.inf),
        runtime_s=perf_counter() - start,
    )
