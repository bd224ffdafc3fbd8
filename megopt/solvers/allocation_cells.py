"""Cells in units of their own budgets, their dual, and answers back in the units of the user.

Bands and powers are shares of the cell's budgets, payloads the seconds that they take at one nat per symbol on all of
the band. The dual of `allocation_model` is a bound for any multipliers, and needs no search.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from megopt.arrays import BoolArray, FloatArray, Real
from megopt.ranges import require_within
from megopt.solvers.allocation_device import Devices, efficiency
from megopt.solvers.allocation_model import (
    FEASIBILITY_TOLERANCE,
    AllocationProblem,
    AllocationSolution,
    Objective,
    score,
)
from megopt.solvers.allocation_prices import airtime_cost
from megopt.solvers.solution import Status

SOLVER = "allocation by prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """A problem in the units of its cells; device fields (num_cells, num_devices), cell fields (num_cells,)."""

    devices: Devices
    edge_s: FloatArray
    is_lost: BoolArray
    is_idle: BoolArray

    @property
    def is_settled(self) -> BoolArray:
        """Cells that need no search: infeasible at any price, or with nothing to send."""
        return np.asarray(self.is_lost | self.is_idle)

    @classmethod
    def of(cls, problem: AllocationProblem) -> Cells:
        """Return the cells of `problem`."""

        def flat(values: FloatArray) -> FloatArray:
            return np.asarray(values, dtype=np.float64).reshape(-1, problem.shape[-1])

        alpha, beta = problem.weights
        bandwidth, power = (np.ravel(budget)[:, np.newaxis] for budget in (problem.bandwidth_hz, problem.power_w))
        gain, payload_s = flat(problem.gain_to_noise_hz_per_w) * (power / bandwidth), flat(problem.bits) / bandwidth
        is_sending = payload_s > 0.0
        is_dead = is_sending & (gain <= 0.0)
        edge_s, work = flat(problem.edge_s), flat(problem.device_cycles)
        spare_s = flat(problem.deadline_s) - edge_s - work / flat(problem.clock_max_hz)
        is_late = (spare_s < -FEASIBILITY_TOLERANCE * flat(problem.deadline_s)) | (is_sending & (spare_s <= 0.0))
        devices = Devices(
            payload_s=payload_s * np.log(2.0),
            gain=np.where(is_sending & ~is_dead, gain, 1.0),
            room_s=flat(problem.deadline_s) - edge_s,
            work_hz_s=work,
            clock_min_hz=flat(problem.clock_min_hz),
            clock_max_hz=flat(problem.clock_max_hz),
            latency_weight=flat(alpha),
            airtime_weight=flat(alpha + beta * problem.receive_power_w),
            cubic=flat(2.0 * beta * problem.energy_coefficient),
        )
        return cls(
            devices=devices,
            edge_s=edge_s,
            is_lost=np.any(is_dead | is_late, axis=1),
            is_idle=~np.any(is_sending, axis=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Shares and multipliers in the units of the cells, shape (num_cells, num_devices); cell fields (num_cells, 1)."""

    bandwidth: FloatArray
    power: FloatArray
    clock_hz: FloatArray
    bandwidth_price: FloatArray
    power_price: FloatArray
    deadline_price: FloatArray
    latency_price: FloatArray
    bound: FloatArray
    is_feasible: BoolArray
    least_power: FloatArray


def dual_less_budgets(cells: Cells, devices: Devices, cost: FloatArray, deadline_price: FloatArray) -> FloatArray:
    """Return the dual but for lambda B + mu P, shape (num_cells, 1)."""
    parts = devices.latency_weight * cells.edge_s + devices.dual_values(cost, deadline_price)
    return np.asarray(parts.sum(axis=1, keepdims=True))


def dual_bound(
    problem: AllocationProblem,
    *,
    bandwidth_price: Real,
    power_price: Real,
    deadline_price: Real = 0.0,
    latency_price: Real | None = None,
) -> FloatArray:
    """Return the dual of `allocation_model`, shape (...,): a lower bound on the objective for any multipliers >= 0.

    Args:
        problem: the cells.
        bandwidth_price: lambda [unit of the objective/Hz], shape (...,).
        power_price: mu [unit of the objective/W], shape (...,).
        deadline_price: nu [unit of the objective/s], shape (..., num_devices), 0 where there is no deadline.
        latency_price: for the largest latency, weights >= 0 of the latencies, scaled here to add up to 1.

    Raises:
        ConfigError: if a multiplier is negative or NaN.
    """
    require_within("dual bound", 0.0, np.finfo(float).max, bandwidth_price=bandwidth_price, power_price=power_price)
    require_within("dual bound", 0.0, np.finfo(float).max, deadline_price=deadline_price)
    cells, shape = Cells.of(problem), problem.shape
    devices = cells.devices
    if problem.objective == Objective.LARGEST_LATENCY:
        require_within("dual bound", 0.0, np.finfo(float).max, latency_price=latency_price)
        weight = np.broadcast_to(np.asarray(latency_price, dtype=np.float64), shape).reshape(-1, shape[-1])
        weight = weight / weight.sum(axis=1, keepdims=True)
        devices = replace(devices, latency_weight=weight, airtime_weight=weight)
    hertz, watt = (
        np.broadcast_to(price * budget, shape[:-1]).reshape(-1, 1)
        for price, budget in ((bandwidth_price, problem.bandwidth_hz), (power_price, problem.power_w))
    )
    late = np.broadcast_to(np.asarray(deadline_price, dtype=np.float64), shape).reshape(-1, shape[-1])
    is_priced = (hertz > 0.0) & (watt > 0.0)
    with np.errstate(all="ignore"):
        v = efficiency(devices.gain * np.where(is_priced, hertz / watt, 1.0))
        cost = np.where(is_priced, airtime_cost(devices, v, np.log(watt)), 0.0)
        return np.asarray((dual_less_budgets(cells, devices, cost, late) - hertz - watt).reshape(shape[:-1]))


def reported(problem: AllocationProblem, answer: Answer, start: float) -> AllocationSolution:
    """Return the answer in the user's units, scored by `score`; NaN where infeasible."""
    shape, is_feasible = problem.shape, answer.is_feasible.reshape(problem.shape[:-1])

    def per_device(values: FloatArray) -> FloatArray:
        return np.where(is_feasible[..., np.newaxis], values.reshape(shape), np.nan)

    def per_cell(values: FloatArray) -> FloatArray:
        return np.where(is_feasible, values.reshape(shape[:-1]), np.nan)

    zero = np.zeros(shape)  # scores of infeasible cells are thrown away, but their inputs have to be numbers
    bandwidth_hz, power_w = (
        np.where(is_feasible[..., np.newaxis], share.reshape(shape) * budget[..., np.newaxis], zero)
        for share, budget in ((answer.bandwidth, problem.bandwidth_hz), (answer.power, problem.power_w))
    )
    clock_hz = np.where(is_feasible[..., np.newaxis], answer.clock_hz.reshape(shape), problem.clock_max_hz)
    scores = score(problem, bandwidth_hz, power_w, clock_hz)
    return AllocationSolution(
        solver=SOLVER,
        status=Status.of(is_feasible),
        bandwidth_hz=per_device(bandwidth_hz),
        transmit_power_w=per_device(power_w),
        clock_hz=per_device(clock_hz),
        airtime_s=per_device(scores.airtime_s),
        latency_s=per_device(scores.latency_s),
        device_energy_j=per_device(scores.device_energy_j),
        values=per_cell(scores.values),
        bounds=np.where(is_feasible, answer.bound.reshape(shape[:-1]), np.inf),
        bandwidth_price=per_cell(answer.bandwidth_price) / problem.bandwidth_hz,
        power_price=per_cell(answer.power_price) / problem.power_w,
        deadline_price=per_device(answer.deadline_price),
        latency_price=per_device(answer.latency_price),
        least_power_w=answer.least_power.reshape(shape[:-1]) * problem.power_w,
        runtime_s=perf_counter() - start,
    )
