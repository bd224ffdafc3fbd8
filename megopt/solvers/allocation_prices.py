"""The search for two prices at which devices ask for exactly their budgets; all cells at once.

Demands fall as prices rise. Newton's method on log sum w = 0 and log sum p = 0 in (log lambda/mu, second), where
`second` is log mu, or log(tau - max b) if every device has to be done by tau; demand is close to a power law in both,
so that a few steps are enough. Cells on which it stops early are bisected: at each `second` the ratio is set so that
the band is used up, and the demand for power then falls with `second`, because the dual, once maximised over lambda,
is concave in mu (and because the least power that keeps a common deadline falls with it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.solvers.allocation_device import Devices, efficiency

_MAX_STEPS = 30
_LARGEST_STEP = 4.0
"""Of a logarithm in one step of Newton's method."""
_CLOSE = 1e-8
"""Distance of log demand from log budget from which one more step is exact."""
_ROUGH = 1e-4
"""Residual of v at which a demand on the way is good enough: its error shrinks along with that of the prices."""
_REACH = 100.0
"""How far bisection looks to either side, in logarithms."""
_HALVINGS = 45


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What devices ask for at prices; fields of shape (num_cells, num_devices).

    Attributes:
        log_ratio: log(lambda/mu), shape (num_cells, 1).
        v: nats per symbol [1].
        growth: d log v/d log(lambda/mu).
        airtime_s: t [s], 0 where nothing is sent.
        by_ratio: -d log w/d log(lambda/mu).
        by_second: -d log w/d second, which is also -d log p/d second.
        per_watt: d log p/d log(lambda/mu) - d log w/d log(lambda/mu).
        bandwidth: w/B [1].
        power: p/P [1].
    """

    log_ratio: FloatArray
    v: FloatArray
    growth: FloatArray
    airtime_s: FloatArray
    by_ratio: FloatArray
    by_second: FloatArray
    per_watt: FloatArray
    bandwidth: FloatArray
    power: FloatArray

    @property
    def log_bandwidth(self) -> FloatArray:
        """Logarithm of the cells' demand for bandwidth over their budget, shape (num_cells, 1)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.bandwidth.sum(axis=1, keepdims=True)))

    @property
    def log_power(self) -> FloatArray:
        """Logarithm of the cells' demand for power over their budget, shape (num_cells, 1)."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.power.sum(axis=1, keepdims=True)))


DemandAt: TypeAlias = Callable[[FloatArray, FloatArray, Demand | None], Demand]
"""Demand at (log(lambda/mu), second), each (num_cells, 1); the last demand speeds it up."""


def weighted_demand(devices: Devices) -> DemandAt:
    """Return the demand of devices that minimise their weighted cost; `second` is log mu."""
    unhurried_hz = devices.unhurried_clock_hz()

    def demand_at(log_ratio: FloatArray, log_power_price: FloatArray, last: Demand | None) -> Demand:
        v = _followed(devices, log_ratio, last)
        cost = airtime_cost(devices, v, log_power_price)
        airtime_s, elasticity = devices.airtime(cost, None if last is None else last.airtime_s, unhurried_hz)
        return _demand(devices, log_ratio, v, airtime_s, elasticity, is_priced=True)

    return demand_at


def timed_demand(devices: Devices, start_s: FloatArray, origin_s: FloatArray) -> DemandAt:
    """Return the demand of devices that finish by tau = origin + exp(second), and by their deadlines.

    Args:
        devices: the devices.
        start_s: b = a + C/f_max, shape (num_cells, num_devices).
        origin_s: largest b among the sending devices, shape (num_cells, 1).
    """
    spare_s = devices.room_s - devices.work_hz_s / devices.clock_max_hz

    def demand_at(log_ratio: FloatArray, log_slack: FloatArray, last: Demand | None) -> Demand:
        """Return the demand where all finish by origin + e^log_slack."""
        v = _followed(devices, log_ratio, last)
        slack_s = np.exp(log_slack)
        common_s = np.where(devices.payload_s > 0.0, origin_s - start_s + slack_s, np.inf)
        airtime_s = np.minimum(common_s, spare_s)
        elasticity = np.where(common_s < spare_s, slack_s / common_s, 0.0)
        return _demand(devices, log_ratio, v, airtime_s, elasticity, is_priced=False)

    return demand_at


def _followed(devices: Devices, log_ratio: FloatArray, last: Demand | None) -> FloatArray:
    """Return v at `log_ratio`, roughly if there is a last demand to go on from: along its slope, then corrected."""
    target = devices.gain * np.exp(log_ratio)
    if last is None:
        return efficiency(target)
    return efficiency(target, last.v * np.exp(last.growth * (log_ratio - last.log_ratio)), _ROUGH)


def airtime_cost(devices: Devices, v: FloatArray, log_power_price: FloatArray) -> FloatArray:
    """Return x = S mu e^v/g', what the airtime t costs being x/t, shape (num_cells, num_devices)."""
    return np.asarray(devices.payload_s * np.exp(log_power_price + v) / devices.gain)


def _demand(
    devices: Devices,
    log_ratio: FloatArray,
    v: FloatArray,
    airtime_s: FloatArray,
    elasticity: FloatArray,
    *,
    is_priced: bool,
) -> Demand:
    is_sending = devices.payload_s > 0.0
    above = np.expm1(v)
    grown = above + 1.0
    growth = devices.gain * np.exp(log_ratio) / (v * v * grown)
    bandwidth = np.where(is_sending, devices.payload_s / (airtime_s * v), 0.0)
    return Demand(
        log_ratio=log_ratio,
        v=v,
        growth=growth,
        airtime_s=np.where(is_sending, airtime_s, 0.0),
        by_ratio=growth * (1.0 + v * elasticity) if is_priced else growth,
        by_second=elasticity,
        per_watt=growth * v * grown / above,
        bandwidth=bandwidth,
        power=bandwidth * above / devices.gain,
    )


def meet_budgets(
    demand_at: DemandAt, log_ratio: FloatArray, second: FloatArray, is_settled: BoolArray
) -> tuple[FloatArray, FloatArray, BoolArray, Demand | None]:
    """Return log(lambda/mu), second, each (num_cells, 1), which cells Newton's method settled, and the last demand.

    Prices and the v of all devices approach their ends together, so that one rough v per step is enough.

    Args:
        demand_at: the demand.
        log_ratio: where to start, shape (num_cells, 1).
        second: where to start, shape (num_cells, 1).
        is_settled: cells that need no search, shape (num_cells,).
    """
    last: Demand | None = None
    is_met = is_settled[:, np.newaxis].copy()
    with np.errstate(all="ignore"):  # a cell without an answer runs off; it is bisected afterwards
        for _ in range(_MAX_STEPS):
            last = demand_at(log_ratio, second, last)
            steps, distance = _newton_steps(last)
            log_ratio = np.where(is_met, log_ratio, log_ratio + steps[0])
            second = np.where(is_met, second, second + steps[1])
            is_met |= distance < _CLOSE
            if np.all(is_met | ~np.isfinite(log_ratio + second)):
                break
    return log_ratio, second, is_met[:, 0], last


def _newton_steps(demand: Demand) -> tuple[tuple[FloatArray, FloatArray], FloatArray]:
    """Return the steps in both unknowns and the distance from the budgets, each (num_cells, 1)."""
    log_w, log_p = demand.log_bandwidth, demand.log_power
    share_w, share_p = demand.bandwidth / np.exp(log_w), demand.power / np.exp(log_p)

    def mean(share: FloatArray, values: FloatArray) -> FloatArray:
        return np.asarray(np.einsum("ij,ij->i", share, values)[:, np.newaxis])

    w_ratio, w_second = -mean(share_w, demand.by_ratio), -mean(share_w, demand.by_second)
    p_ratio, p_second = mean(share_p, demand.per_watt - demand.by_ratio), -mean(share_p, demand.by_second)
    det = w_ratio * p_second - w_second * p_ratio
    steps = (w_second * log_p - p_second * log_w) / det, (p_ratio * log_w - w_ratio * log_p) / det
    clipped = tuple(np.clip(step, -_LARGEST_STEP, _LARGEST_STEP) for step in steps)
    return (clipped[0], clipped[1]), np.maximum(np.abs(log_w), np.abs(log_p))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisected:
    """What bisection says of cells; fields of shape (num_cells, 1).

    Attributes:
        log_ratio: log(lambda/mu).
        second: the other unknown.
        least_log_power: log power demanded at the upper end of the range of `second`; more than 0 means that nothing
            brings the demand down to the budget: the cell is infeasible.
        most_log_power: the same at the lower end; less than 0 means that the budget is not used up even for free.
    """

    log_ratio: FloatArray
    second: FloatArray
    least_log_power: FloatArray
    most_log_power: FloatArray


def bisect_budgets(demand_at: DemandAt, log_ratio: FloatArray, second: FloatArray) -> Bisected:
    """Return where both budgets are met, looked for within `_REACH` of the arguments, each (num_cells, 1)."""
    with np.errstate(all="ignore"):

        def ratio_at(value: FloatArray) -> FloatArray:
            return _falling_root(lambda ratio: demand_at(ratio, value, None).log_bandwidth, log_ratio)

        def log_power(value: FloatArray) -> FloatArray:
            return demand_at(ratio_at(value), value, None).log_power

        low, high = second - _REACH, second + _REACH
        least, most = log_power(high), log_power(low)
        is_between = (least <= 0.0) & (most >= 0.0)
        end = np.where(least > 0.0, high, low)
        root = np.where(is_between, _falling_root(log_power, second), end) if np.any(is_between) else end
        return Bisected(log_ratio=ratio_at(root), second=root, least_log_power=least, most_log_power=most)


def _falling_root(function: Callable[[FloatArray], FloatArray], centre: FloatArray) -> FloatArray:
    """Return the root of a falling function within `_REACH` of `centre`, shape (num_cells, 1)."""
    low, high = centre - _REACH, centre + _REACH
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        is_above = function(middle) > 0.0
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.asarray(0.5 * (low + high))
