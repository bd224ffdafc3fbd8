"""Bandwidth, transmit power and device clocks shared among devices: the problem, its dual and its answer.

Device k downloads Z bits made in a seconds at the edge, then computes C cycles. With bandwidth w, transmit power p and
gain over noise density g (signal-to-noise ratio p g/w), clock f, receive power q and switched capacitance k:

    r = w log2(1 + p g/w)        T = a + Z/r + C/f        E = q Z/r + k C f^2        (E: the device's energy)

    minimise sum (alpha T + beta E)   or   the largest T
    subject to sum w <= B,   sum p <= P,   T <= D,   f_min <= f <= f_max,   w, p >= 0.

Convexity. r is the perspective of the concave log2(1 + p g), so it is jointly concave in (w, p), and Z/r, a convex and
falling function of a concave one, is convex (Boyd and Vandenberghe, "Convex Optimization", 3.2.4 and 3.2.6). In the
device's time d = C/f the rest reads a + Z/r + d and k C^3/d^2, convex too. So the problem is convex and every
multiplier gives a bound.

Dual. With prices lambda [per Hz] and mu [per W], and nu >= 0 on T <= D, the Lagrangian separates into devices. In
v = r ln 2/w, nats per symbol, p = w (e^v - 1)/g, so that holding the rate r costs r times chi ln 2, where

    chi = min_v [lambda + mu (e^v - 1)/g]/v,   attained where  e^v (v - 1) + 1 = g lambda/mu,  and then  chi = mu e^v/g.

The minimum over the airtime t of A t + chi Z ln 2/t is 2 sqrt(A chi Z ln 2), A = alpha + beta q + nu. Hence

    dual = sum [alpha a - nu (D - a) + 2 sqrt(A chi Z ln 2) + min_f (alpha + nu) C/f + beta k C f^2] - lambda B - mu P

bounds the weighted sum from below for ANY lambda, mu, nu >= 0. For the largest latency alpha are multipliers >= 0 that
add up to 1, and beta = 0. The edge's radio energy p t is reported but is no part of an objective: it is not convex in
(w, p).
Source: the system model of HIS (ICC 2025), equations (3) to (9), with shares in place of given bands and powers; dual
decomposition as in Palomar and Chiang, "A tutorial on decomposition methods", IEEE JSAC 2006. The closed form of chi
and the certificate are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ProblemError
from megopt.ranges import require_within
from megopt.solvers.solution import Status
from megopt.system.compute import clock_energy_j, clock_latency_s
from megopt.system.link import shannon_rate_bps

FEASIBILITY_TOLERANCE = 1e-9
"""Relative excess over a budget or a deadline that counts as rounding."""
_LARGEST = 1e30
Given: TypeAlias = Any
"""A number or an array; once the problem is made, an array of the shape that its docstring states."""


class Objective(StrEnum):
    """What to minimise over the devices of a cell."""

    SUM_LATENCY = "sum_latency"
    """The sum of the latencies [s]."""
    ENERGY = "energy"
    """The sum of the devices' energies [J]; deadlines keep it from taking forever."""
    LARGEST_LATENCY = "largest_latency"
    """The latency of the slowest device [s]: max-min fairness in speed."""
    WEIGHTED = "weighted"
    """Latencies times `latency_weight` plus energies times `energy_weight`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationProblem:
    """Cells of devices with one fixed row each. Numbers and arrays broadcast to shape (..., num_devices).

    Attributes:
        bits: payload Z on the downlink [bit], >= 0.
        gain_to_noise_hz_per_w: channel gain over noise power density g [Hz/W], >= 0; 0 is a dead link.
        bandwidth_hz: band B of the cell [Hz], shape (...,).
        power_w: transmit power P of the edge [W], shape (...,).
        edge_s: time a before the payload is ready [s].
        device_cycles: work C of the device [cycle].
        clock_min_hz: smallest clock f_min of the device [Hz].
        clock_max_hz: largest clock f_max [Hz].
        energy_coefficient: switched capacitance k [J s^2/cycle^3].
        receive_power_w: power q of the device while it receives [W].
        deadline_s: limit D on the latency [s], inf for none.
        objective: what to minimise.
        latency_weight: alpha of the objective "weighted" [1/s].
        energy_weight: beta of the objective "weighted" [1/J].

    Raises:
        ConfigError: for a value outside its range.
        ProblemError: if shapes do not broadcast, a clock range is empty, or a payload could take forever for free.
    """

    bits: Given
    gain_to_noise_hz_per_w: Given
    bandwidth_hz: Given
    power_w: Given
    edge_s: Given = 0.0
    device_cycles: Given = 0.0
    clock_min_hz: Given = 1e8
    clock_max_hz: Given = 1.5e9
    energy_coefficient: Given = 1e-27
    receive_power_w: Given = 0.0
    deadline_s: Given = np.inf
    objective: Objective = Objective.SUM_LATENCY
    latency_weight: Given = 1.0
    energy_weight: Given = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", _objective(self.objective))
        where, names = "allocation", [field.name for field in fields(self) if field.name != "objective"]
        for name in names:
            low = {"clock_min_hz": 1.0, "clock_max_hz": 1.0, "bandwidth_hz": 1e-9, "power_w": 1e-30}.get(name, 0.0)
            high = np.inf if name == "deadline_s" else _LARGEST
            require_within(where, low, high, **{name: getattr(self, name)})
        self._broadcast(names)
        if np.any(self.clock_min_hz > self.clock_max_hz):
            message = "allocation: clock_min_hz is above clock_max_hz for some device; expected a range; swap them"
            raise ProblemError(message)
        self._check_cost_of_time()

    def _broadcast(self, names: list[str]) -> None:
        """Give every per-device field the shape (..., num_devices) and every budget the shape (...,)."""
        budgets = ("bandwidth_hz", "power_w")
        values = {name: np.asarray(getattr(self, name), dtype=np.float64) for name in names}
        try:
            shape = np.broadcast_shapes(
                *(values[name].shape for name in names if name not in budgets),
                *((*values[name].shape, 1) for name in budgets),
            )
        except ValueError:
            shapes = {name: value.shape for name, value in values.items() if value.ndim}
            message = (
                f"allocation: shapes {shapes} do not go together; expected (..., num_devices), budgets (...); reshape"
            )
            raise ProblemError(message) from None
        for name, value in values.items():
            object.__setattr__(self, name, np.broadcast_to(value, shape[:-1] if name in budgets else shape))

    def _check_cost_of_time(self) -> None:
        alpha, beta = self.weights
        is_free = (alpha + beta * self.receive_power_w == 0.0) & np.isinf(self.deadline_s) & (self.bits > 0.0)
        if self.objective != Objective.LARGEST_LATENCY and np.any(is_free):
            message = (
                f"allocation: {np.sum(is_free)} payloads may take forever at no cost; expected a deadline_s, "
                "a receive_power_w or a latency_weight for each; set one"
            )
            raise ProblemError(message)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., num_devices)."""
        return np.shape(self.bits)

    @property
    def weights(self) -> tuple[FloatArray, FloatArray]:
        """Alpha and beta of the weighted sum, each (..., num_devices); of the largest latency 0 and 0."""
        ones, zeros = np.ones(self.shape), np.zeros(self.shape)
        return {
            Objective.SUM_LATENCY: (ones, zeros),
            Objective.ENERGY: (zeros, ones),
            Objective.LARGEST_LATENCY: (zeros, zeros),
            Objective.WEIGHTED: (self.latency_weight, self.energy_weight),
        }[self.objective]


def _objective(name: str) -> Objective:
    if name not in list(Objective):
        message = f"allocation: objective {name!r}; expected one of {', '.join(Objective)}; change objective"
        raise ProblemError(message)
    return Objective(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationSolution:
    """The shares of every cell, what they cost, and how good they provably are. NaN where infeasible.

    Attributes:
        solver: name of the solver.
        status: summary over the cells.
        bandwidth_hz: w [Hz], shape (..., num_devices); the same shape below unless another is said.
        transmit_power_w: p [W].
        clock_hz: f [Hz].
        airtime_s: Z/r [s].
        latency_s: T [s].
        device_energy_j: E [J].
        values: the objective [its unit], shape (...,).
        bounds: certified lower bound on the objective of any feasible allocation, shape (...,); of an infeasible cell
            inf.
        bandwidth_price: lambda, what one more hertz is worth [unit of the objective/Hz], shape (...,).
        power_price: mu, what one more watt is worth [unit of the objective/W], shape (...,).
        deadline_price: nu, what one more second of deadline is worth [unit of the objective/s].
        latency_price: multipliers of the latencies in the objective, alpha or the weights behind the largest [1].
        least_power_w: least transmit power that keeps all deadlines [W], shape (...,); NaN where it was not needed.
        runtime_s: wall time of the solve [s].
    """

    solver: str
    status: Status
    bandwidth_hz: FloatArray
    transmit_power_w: FloatArray
    clock_hz: FloatArray
    airtime_s: FloatArray
    latency_s: FloatArray
    device_energy_j: FloatArray
    values: FloatArray
    bounds: FloatArray
    bandwidth_price: FloatArray
    power_price: FloatArray
    deadline_price: FloatArray
    latency_price: FloatArray
    least_power_w: FloatArray
    runtime_s: float

    @property
    def is_feasible(self) -> BoolArray:
        """Which cells have an answer, shape (...,)."""
        return np.asarray(np.isfinite(self.values))

    @property
    def gaps(self) -> FloatArray:
        """Relative distance of value and bound, shape (...,); NaN where infeasible."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(self.values - self.bounds) / np.maximum(np.abs(self.bounds), 1e-12))

    @property
    def radio_energy_j(self) -> FloatArray:
        """Energy p t that the edge sends with [J], shape (..., num_devices)."""
        return np.asarray(self.transmit_power_w * self.airtime_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What an allocation costs: airtime [s], latency [s], device energy [J], (..., num_devices); objective (...,)."""

    airtime_s: FloatArray
    latency_s: FloatArray
    device_energy_j: FloatArray
    values: FloatArray


def score(
    problem: AllocationProblem, bandwidth_hz: FloatArray, transmit_power_w: FloatArray, clock_hz: FloatArray
) -> Scores:
    """Return what shares of shape (..., num_devices) cost, by the formulas of `megopt.system`; dead links take inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = np.where(bandwidth_hz > 0.0, transmit_power_w * problem.gain_to_noise_hz_per_w / bandwidth_hz, 0.0)
        rate_bps = shannon_rate_bps(bandwidth_hz, snr)
        airtime = np.where(problem.bits > 0.0, problem.bits / rate_bps, 0.0)
    latency = problem.edge_s + airtime + clock_latency_s(problem.device_cycles, clock_hz)
    energy = clock_energy_j(problem.device_cycles, clock_hz, problem.energy_coefficient)
    with np.errstate(invalid="ignore"):
        energy = energy + np.where(problem.receive_power_w > 0.0, problem.receive_power_w * airtime, 0.0)
    return Scores(airtime_s=airtime, latency_s=latency, device_energy_j=energy, values=_value(problem, latency, energy))


def _value(problem: AllocationProblem, latency_s: FloatArray, energy_j: FloatArray) -> FloatArray:
    if problem.objective == Objective.LARGEST_LATENCY:
        return np.asarray(np.max(latency_s, axis=-1))
    alpha, beta = problem.weights
    with np.errstate(invalid="ignore"):
        parts = np.where(alpha > 0.0, alpha * latency_s, 0.0) + np.where(beta > 0.0, beta * energy_j, 0.0)
    return np.asarray(np.sum(parts, axis=-1))


def violation(
    problem: AllocationProblem, bandwidth_hz: FloatArray, transmit_power_w: FloatArray, clock_hz: FloatArray
) -> FloatArray:
    """Return the largest relative excess over a budget, a deadline or a clock range, shape (...,); 0 if none."""
    latency = score(problem, bandwidth_hz, transmit_power_w, clock_hz).latency_s
    with np.errstate(divide="ignore", invalid="ignore"):
        excesses = (
            np.sum(bandwidth_hz, axis=-1) / problem.bandwidth_hz - 1.0,
            np.sum(transmit_power_w, axis=-1) / problem.power_w - 1.0,
            np.max(np.where(np.isinf(problem.deadline_s), -1.0, latency / problem.deadline_s - 1.0), axis=-1),
            np.max(clock_hz / problem.clock_max_hz - 1.0, axis=-1),
            np.max(problem.clock_min_hz / clock_hz - 1.0, axis=-1),
        )
    return np.asarray(np.maximum(np.max(np.stack(np.broadcast_arrays(*excesses)), axis=0), 0.0))
