"""Rows and shares of a cell together: the problem, its dual, its answer and its score.

User k of a slot chooses one row a of its action table; the downlink band B and the transmit power P of the edge are
divided among all. With seconds c, bits Z, and every cost of the system model affine in the airtime t of the payload,

    minimise    sum_k weight_k [F_ka + A_a t_k]         F: the objective without the downlink, A: its growth with t
    subject to  t_k <= limit of user k on each quantity, solved for t,
                t_k = Z_a/r_k,   r_k = w_k log2(1 + p_k g_k/w_k),   sum w <= B,   sum p <= P.

For the objective "quality" A is 0: airtime only has to keep the limits, and what counts is whether the rates that they
ask for fit. For "latency_s" A is 1. Clock levels of a device are rows too: `with_clock_levels`.

Dual. As in `allocation_model`, holding the rate r costs r times chi ln 2 at the prices lambda and mu, so that

    dual = sum_k min_a [weight_k F_ka + min_t (weight_k A_a t + chi_k Z_a ln 2/t)] - lambda B - mu P

bounds every choice of rows with every allocation from below, for any lambda, mu >= 0. Where rows could be mixed within
a user it would be attained; two prices leave at most two users with a mixture, so the gap shrinks with the number of
users (Shapley and Folkman; Ekeland and Temam, "Convex Analysis and Variational Problems", 1976, appendix I).
Source: problem 5 of the system model; dual decomposition as in Palomar and Chiang, IEEE JSAC 2006.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Problem, costs, evaluate, objective
from megopt.ranges import require_within
from megopt.schemes.action_table import ActionTable
from megopt.solvers.solution import Status
from megopt.system.link import LinkState, shannon_rate_bps
from megopt.system.outcome import Outcome

FEASIBILITY_TOLERANCE = 1e-9
"""Relative excess over a budget or a limit that counts as rounding."""
Given: TypeAlias = Any
"""A number or an array; once the problem is made, an array of the shape that its docstring states."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellProblem:
    """One slot of a cell of K users.

    Attributes:
        tables: the rows to choose from: one action table, or one for each kind of user.
        link: the K users, shape (K,). Read are `snr`, the SNR [1] if the whole power were spread over the whole band,
            the uplink, the round trip and the radio powers; 0 is a dead link. The downlink follows from the shares.
        bandwidth_hz: downlink band B of the cell [Hz].
        problem: objective, and limits that each user has to keep.
        kinds: index into `tables` of each user, shape (K,).
        power_w: transmit power P of the edge [W].
        weights: weight of each user in the objective [1], > 0, shape (K,).
        bounds: limits of each user, in the order of `problem.limits` and in place of their bounds, shape
            (K, num_limits).

    Raises:
        ConfigError: for a value outside its range.
        ProblemError: if shapes do not go together.
    """

    tables: Given
    link: LinkState
    bandwidth_hz: float
    problem: Problem
    kinds: Given = 0
    power_w: float = 1.0
    weights: Given = 1.0
    bounds: Given = None

    def __post_init__(self) -> None:
        where, num_users = "cell", np.size(self.link.snr)
        require_within(where, 1e-9, 1e30, bandwidth_hz=self.bandwidth_hz, weights=self.weights)
        require_within(where, 1e-30, 1e30, power_w=self.power_w)
        require_within(where, 0.0, 1e30, snr=self.link.snr)
        tables = (self.tables,) if isinstance(self.tables, ActionTable) else tuple(self.tables)
        require_within(where, 0, len(tables) - 1, kinds=self.kinds)
        bounds = [limit.bound for limit in self.problem.limits] if self.bounds is None else self.bounds
        shapes = {"kinds": (num_users,), "weights": (num_users,), "bounds": (num_users, len(self.problem.limits))}
        given = {"kinds": np.asarray(self.kinds), "weights": np.asarray(self.weights, dtype=np.float64)}
        given["bounds"] = np.asarray(bounds, dtype=np.float64)
        object.__setattr__(self, "tables", tables)
        for name, shape in shapes.items():
            object.__setattr__(self, name, _broadcast(name, given[name], shape))
        if np.any(np.isnan(self.bounds)):
            message = "cell: bounds hold NaN; expected a number per user and limit, inf for none; change bounds"
            raise ConfigError(message)

    @property
    def num_users(self) -> int:
        """K."""
        return int(np.size(self.link.snr))

    @property
    def ceilings(self) -> FloatArray:
        """Limits as ceilings on `megopt.problem.costs`, shape (K, num_limits)."""
        senses = np.array([self.problem.sense_of(limit.quantity) for limit in self.problem.limits], dtype=np.float64)
        return np.asarray(senses * self.bounds)


def _broadcast(name: str, values: Any, shape: tuple[int, ...]) -> Any:
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        message = f"cell: {name} has shape {np.shape(values)}; expected {shape}; one entry per user of link"
        raise ProblemError(message) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellSolution:
    """Rows and shares of a cell, what they cost, and how good they provably are. NaN and -1 where infeasible.

    Attributes:
        solver: name of the solver.
        status: optimal (up to `gap`) or infeasible.
        rows: row of each user in its own table, shape (K,).
        bandwidth_hz: w [Hz], shape (K,).
        transmit_power_w: p [W], shape (K,).
        outcome: what each user meets, by `problem.evaluate`; None if infeasible.
        value: weighted sum of the objective over the users [unit of the objective].
        bound: certified bound on the value of any rows with any shares (below for min, above for max); inf for min, and
            -inf for max, if infeasible.
        violation: largest relative excess over a limit or a budget; 0 if none.
        bandwidth_price: lambda, what the bound gains by one more hertz [unit of the objective/Hz], >= 0.
        power_price: mu, the same of one more watt [unit of the objective/W], >= 0.
        num_prices: pairs of prices that were tried, or mixed-integer programs that were solved.
        runtime_s: wall time [s].
        message: what to know besides: if infeasible, who stands in the way or what would be enough.
    """

    solver: str
    status: Status
    rows: IntArray
    bandwidth_hz: FloatArray
    transmit_power_w: FloatArray
    outcome: Outcome | None
    value: float
    bound: float
    violation: float
    bandwidth_price: float
    power_price: float
    num_prices: int
    runtime_s: float
    message: str = ""

    @property
    def gap(self) -> float:
        """Relative distance |value - bound| / max(|bound|, 1e-12); NaN if infeasible."""
        return abs(self.value - self.bound) / max(abs(self.bound), 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScore:
    """What rows and shares cost.

    Attributes:
        outcome: what each user meets, fields of shape (K,).
        signed_value: weighted objective, to minimise.
        excess: each user's largest excess over a limit, relative to the limit, >= 0, shape (K,).
        violation: largest relative excess over a limit or a budget.
    """

    outcome: Outcome
    signed_value: float
    excess: FloatArray
    violation: float

    @property
    def is_broken(self) -> BoolArray:
        """Which users exceed a limit by more than rounding, shape (K,)."""
        return np.asarray(self.excess > FEASIBILITY_TOLERANCE)


def score(cell: CellProblem, rows: IntArray, bandwidth_hz: FloatArray, transmit_power_w: FloatArray) -> CellScore:
    """Return what rows and shares of shape (K,) cost, by `problem.evaluate`; a payload without a share takes inf."""
    snr_at_even = cell.link.snr * cell.bandwidth_hz / cell.power_w
    is_on = bandwidth_hz > 0.0
    snr = np.divide(transmit_power_w * snr_at_even, bandwidth_hz, out=np.zeros(cell.num_users), where=is_on)
    with np.errstate(divide="ignore"):
        s_per_bit = 1.0 / shannon_rate_bps(bandwidth_hz, snr)
    link = replace(cell.link, snr=snr, downlink_s_per_bit=s_per_bit)
    outcome = _evaluated(cell, rows, link)
    value = float(np.sum(cell.weights * objective(outcome, cell.problem)))
    excess = np.max(_excess(costs(outcome, cell.problem), cell.ceilings), axis=1, initial=0.0)
    budgets = max(np.sum(bandwidth_hz) / cell.bandwidth_hz, np.sum(transmit_power_w) / cell.power_w) - 1.0
    return CellScore(
        outcome=outcome,
        signed_value=value,
        excess=excess,
        violation=float(max(np.max(excess, initial=0.0), budgets, 0.0)),
    )


def _evaluated(cell: CellProblem, rows: IntArray, link: LinkState) -> Outcome:
    """Return the outcome of all users, each in the table of its kind."""
    if len(cell.tables) == 1:
        return evaluate(cell.tables[0], rows, link, cell.problem.metric)
    merged = {field.name: np.empty(cell.num_users) for field in fields(Outcome)}
    for kind, table in enumerate(cell.tables):
        users = np.flatnonzero(cell.kinds == kind)
        part = evaluate(table, rows[users], link.take(users), cell.problem.metric)
        for name, column in merged.items():
            column[users] = getattr(part, name)
    return Outcome(**merged)


def _excess(came: FloatArray, most: FloatArray) -> FloatArray:
    """Return the excess of costs over ceilings relative to the ceilings, each (K, num_limits); NaN counts as inf."""
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(np.isinf(most) & (most > 0.0), 0.0, (came - most) / np.maximum(np.abs(most), 1e-12))
    return np.where(np.isnan(excess), np.inf, excess)


def with_clock_levels(table: ActionTable, levels: tuple[float, ...]) -> ActionTable:
    """Return `table` with each row once per clock level y of the device: its seconds over y, its joules times y^2.

    Args:
        table: rows at full clock.
        levels: clocks over the largest clock [1], each above 0 and at most 1.

    Raises:
        ConfigError: if a level is outside.

    Source: dynamic power k f^3 at work C/f: energy k C f^2, as in `megopt.system.compute.clock_energy_j`.
    """
    require_within("clock levels", 1e-3, 1.0, levels=levels)
    clock, rows = np.repeat(np.asarray(levels), len(table)), np.tile(np.arange(len(table)), len(levels))
    chosen = table.take(rows)
    work = replace(
        chosen.work,
        device_s=chosen.work.device_s / clock,
        device_energy_j=chosen.work.device_energy_j * clock * clock,
    )
    label = [f"{name}, clock {y:g}" for name, y in zip(chosen.label, clock, strict=True)]
    return replace(chosen, work=work, label=np.array(label))
