"""Bandwidth, transmit power and device clocks for many devices, by a search for two prices, with a certificate.

`allocation_model` states the problem and its dual, `allocation_device` what a device does at given prices,
`allocation_prices` how the two prices lambda and mu are found at which the devices together ask for exactly B and P.

The answer is scaled onto both budgets, scored anew, and compared with the dual at the prices found: a wrong search
would show as a gap. Infeasible is a status: the least transmit power that keeps all deadlines is above P, or a payload
meets a dead link. Everything runs on (..., num_devices) arrays, all cells at once.
"""

from __future__ import annotations

from collections.abc import Callable
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
from megopt.solvers.allocation_prices import (
    Demand,
    DemandAt,
    airtime_cost,
    bisect_budgets,
    meet_budgets,
    timed_demand,
    weighted_demand,
)
from megopt.solvers.solution import Status

SOLVER = "allocation by prices"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
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
    def of(cls, problem: AllocationProblem) -> _Cells:
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
class _Answer:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a search for prices ended with, (num_cells, 1); `second` is log mu or log(tau - origin).

    `last` is the demand of the last step where Newton's method settled all cells.
    """

    log_ratio: FloatArray
    second: FloatArray
    is_free: BoolArray
    is_feasible: BoolArray
    least_power: FloatArray
    last: Demand | None


def solve(problem: AllocationProblem) -> AllocationSolution:
    """Return the best shares of every cell with prices, certified bound and status.

    Cells whose deadlines no allocation keeps, or with a payload on a dead link, carry NaN and the bound inf.
    """
    start = perf_counter()
    cells = _Cells.of(problem)
    find = _largest_latency if problem.objective == Objective.LARGEST_LATENCY else _weighted_sum
    with np.errstate(all="ignore"):  # cells without an answer carry inf and NaN until they are set aside
        answer = find(cells)
    return _reported(problem, answer, start)


def _search(
    cells: _Cells,
    demand_of: Callable[[BoolArray], DemandAt],
    log_ratio: FloatArray,
    second: FloatArray,
    is_settled: BoolArray,
) -> _Found:
    """Return the prices of all cells: by Newton's method, and by bisection where that ended early.

    Args:
        cells: the cells.
        demand_of: the demand of the cells that a mask (num_cells,) chooses.
        log_ratio: where to start, (num_cells, 1).
        second: where to start, (num_cells, 1).
        is_settled: cells that need no search, (num_cells,).
    """
    ratio, found, is_met, last = meet_budgets(demand_of(np.ones_like(is_settled)), log_ratio, second, is_settled)
    is_free, is_feasible = cells.is_idle[:, np.newaxis].copy(), ~cells.is_lost[:, np.newaxis]
    least_power, stuck = np.full_like(ratio, np.nan), ~is_met
    if np.any(stuck):
        last = None
        bisected = bisect_budgets(demand_of(stuck), log_ratio[stuck], second[stuck])
        ratio[stuck], found[stuck] = bisected.log_ratio, bisected.second
        least_power[stuck] = np.exp(bisected.least_log_power)
        is_feasible[stuck] = bisected.least_log_power <= FEASIBILITY_TOLERANCE
        is_free[stuck] = bisected.most_log_power < 0.0
    return _Found(
        log_ratio=ratio, second=found, is_free=is_free, is_feasible=is_feasible, least_power=least_power, last=last
    )


def _first_ratio(devices: Devices) -> FloatArray:
    """Return a first log(lambda/mu), (num_cells, 1): that of a device which had the whole cell, averaged in logs."""
    v = np.log1p(devices.gain)
    ratio = np.log((v * np.exp(v) - np.expm1(v)) / devices.gain + 1e-300)
    is_sending = devices.payload_s > 0.0
    return np.asarray(
        np.sum(np.where(is_sending, ratio, 0.0), axis=1, keepdims=True)
        / np.maximum(np.sum(is_sending, axis=1, keepdims=True), 1)
    )


def _weighted_sum(cells: _Cells) -> _Answer:
    devices = cells.devices

    def demand_of(which: BoolArray) -> DemandAt:
        return weighted_demand(devices.take(which))

    found = _search(cells, demand_of, _first_ratio(devices), _first_power_price(devices), cells.is_settled)
    demand = weighted_demand(devices)(found.log_ratio, found.second, found.last)
    power_price = np.where(found.is_free, 0.0, np.exp(found.second))
    bandwidth, power, airtime_s = _onto_budgets(devices, demand)
    cost = airtime_cost(devices, demand.v, np.log(power_price))
    left_s = np.maximum(devices.room_s - airtime_s, 0.0)
    needed_hz = np.where(devices.work_hz_s > 0.0, devices.work_hz_s / left_s, 0.0)
    clock_hz = np.minimum(np.maximum(devices.unhurried_clock_hz(), needed_hz), devices.clock_max_hz)
    deadline_price = devices.deadline_price(cost, airtime_s, clock_hz)
    return _answer(cells, found, devices, (bandwidth, power, clock_hz), power_price, cost, deadline_price)


def _first_power_price(devices: Devices) -> FloatArray:
    """Return a first log mu, (num_cells, 1): that at which the band is used up if no deadline binds."""
    with np.errstate(divide="ignore", invalid="ignore"):
        hurried_hz = np.clip(2.0 * devices.work_hz_s / devices.room_s, devices.clock_min_hz, devices.clock_max_hz)
        weight = np.where(devices.airtime_weight > 0.0, devices.airtime_weight, devices.cubic * hurried_hz**3 + 1e-30)
        v = np.log1p(devices.gain)
        demand = np.sqrt(devices.payload_s * weight * devices.gain * np.exp(-v)) / v
        return np.asarray(2.0 * np.log(np.maximum(demand.sum(axis=1, keepdims=True), 1e-150)))


def _largest_latency(cells: _Cells) -> _Answer:
    devices = cells.devices
    start_s = cells.edge_s + devices.work_hz_s / devices.clock_max_hz
    is_sending = devices.payload_s > 0.0
    origin_s = np.max(np.where(is_sending, start_s, 0.0), axis=1, keepdims=True)

    def search(holders: Devices, ratio: FloatArray, second: FloatArray, is_settled: BoolArray) -> _Found:
        def demand_of(which: BoolArray) -> DemandAt:
            return timed_demand(holders.take(which), start_s[which], origin_s[which])

        return _search(cells, demand_of, ratio, second, is_settled)

    slack_s = np.maximum((devices.payload_s / np.log1p(devices.gain)).sum(axis=1, keepdims=True), 1e-300)
    timeless = replace(devices, room_s=np.full_like(devices.room_s, np.inf))
    found = search(timeless, _first_ratio(devices), np.log(slack_s), cells.is_settled)
    end_s = cells.edge_s + devices.room_s
    is_broken = is_sending & (end_s < (origin_s + np.exp(found.second)) * (1.0 - FEASIBILITY_TOLERANCE))
    if np.any(is_broken):  # without a broken deadline that was the optimum; with one, it can only be later
        is_settled = cells.is_settled | ~np.any(is_broken, axis=1)
        found = search(devices, found.log_ratio, found.second, is_settled)
    else:
        devices = timeless
    demand = timed_demand(devices, start_s, origin_s)(found.log_ratio, found.second, found.last)
    bandwidth, power, _ = _onto_budgets(devices, demand)
    is_common = is_sending & (demand.airtime_s < devices.room_s - devices.work_hz_s / devices.clock_max_hz)
    urgency = airtime_cost(devices, demand.v, np.zeros(1)) / demand.airtime_s**2
    power_price = 1.0 / np.sum(np.where(is_common, urgency, 0.0), axis=1, keepdims=True)
    latest_s = np.max(np.where(is_sending, -np.inf, start_s), axis=1, keepdims=True)
    is_free = found.is_free | (latest_s >= origin_s + np.exp(found.second))  # a device that receives nothing is last
    power_price = np.where(is_free, 0.0, power_price)
    weight = np.where(is_common, urgency * power_price, 0.0)
    is_last = np.where(is_sending, -np.inf, start_s) == latest_s
    weight = np.where(is_free, is_last / np.maximum(is_last.sum(axis=1, keepdims=True), 1), weight)
    priced = replace(devices, latency_weight=weight, airtime_weight=weight)
    cost = airtime_cost(devices, demand.v, np.log(power_price))
    deadline_price = np.where(is_sending & ~is_common & ~is_free, urgency * power_price, 0.0)
    return _answer(cells, found, priced, (bandwidth, power, devices.clock_max_hz), power_price, cost, deadline_price)


def _onto_budgets(devices: Devices, demand: Demand) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return bandwidths and powers that add up to 1, and the airtimes that they give."""
    bandwidth = demand.bandwidth / demand.bandwidth.sum(axis=1, keepdims=True)
    power = demand.power / demand.power.sum(axis=1, keepdims=True)
    is_sending = devices.payload_s > 0.0
    airtime_s = devices.payload_s / (bandwidth * np.log1p(power * devices.gain / bandwidth))
    return tuple(np.where(is_sending, values, 0.0) for values in (bandwidth, power, airtime_s))  # type: ignore[return-value]


def _answer(
    cells: _Cells,
    found: _Found,
    devices: Devices,
    shares: tuple[FloatArray, FloatArray, FloatArray],
    power_price: FloatArray,
    cost: FloatArray,
    deadline_price: FloatArray,
) -> _Answer:
    """Return the answer with its bound: the dual of `allocation_model` at the prices found."""
    bandwidth_price = np.where(power_price > 0.0, power_price * np.exp(found.log_ratio), 0.0)
    bound = _dual(cells, devices, cost, deadline_price) - bandwidth_price - power_price
    return _Answer(
        bandwidth=shares[0],
        power=shares[1],
        clock_hz=shares[2],
        bandwidth_price=bandwidth_price,
        power_price=power_price,
        deadline_price=deadline_price,
        latency_price=devices.latency_weight,
        bound=bound,
        is_feasible=found.is_feasible,
        least_power=found.least_power,
    )


def _dual(cells: _Cells, devices: Devices, cost: FloatArray, deadline_price: FloatArray) -> FloatArray:
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
    cells, shape = _Cells.of(problem), problem.shape
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
        return np.asarray((_dual(cells, devices, cost, late) - hertz - watt).reshape(shape[:-1]))


def _reported(problem: AllocationProblem, answer: _Answer, start: float) -> AllocationSolution:
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
