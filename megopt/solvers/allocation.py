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

from megopt.arrays import BoolArray, FloatArray
from megopt.solvers.allocation_cells import Answer, Cells, dual_less_budgets, reported
from megopt.solvers.allocation_device import Devices
from megopt.solvers.allocation_model import (
    FEASIBILITY_TOLERANCE,
    AllocationProblem,
    AllocationSolution,
    Objective,
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
    cells = Cells.of(problem)
    find = _largest_latency if problem.objective == Objective.LARGEST_LATENCY else _weighted_sum
    with np.errstate(all="ignore"):  # cells without an answer carry inf and NaN until they are set aside
        answer = find(cells)
    return reported(problem, answer, start)


def _search(
    cells: Cells,
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


def _weighted_sum(cells: Cells) -> Answer:
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


def _largest_latency(cells: Cells) -> Answer:
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
    cells: Cells,
    found: _Found,
    devices: Devices,
    shares: tuple[FloatArray, FloatArray, FloatArray],
    power_price: FloatArray,
    cost: FloatArray,
    deadline_price: FloatArray,
) -> Answer:
    """Return the answer with its bound: the dual of `allocation_model` at the prices found."""
    bandwidth_price = np.where(power_price > 0.0, power_price * np.exp(found.log_ratio), 0.0)
    bound = dual_less_budgets(cells, devices, cost, deadline_price) - bandwidth_price - power_price
    return Answer(
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
