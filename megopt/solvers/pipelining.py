"""A bound for long-run limits where the edge computes while the previous request is on the air.

With pipelining the latency of a request depends on two rows, its own and the one before:

    latency_t = edge_t - min(edge_t, airtime_{t-1}) + airtime_t + ...

For recorded fading and prices lambda >= 0 let a planner that knows all of it choose every row, by dynamic programming
over the payload of the row before. No policy does better on this fading: by weak duality

    g(lambda) = mean over traces of min_a sum_t [objective_t + lambda . (cost_t - limit)] / T

bounds the mean objective of any way to choose rows, drawn ones and learned ones included, whose mean costs on this
fading keep the limits. Cutting planes raise g. Without pipelining rows of different requests do not meet, and g is the
bound of `megopt.solvers.average_limits`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.solvers.pipelining_costs import (
    PRICE_CEILING,
    FiniteLimits,
    Mix,
    airtimes_s,
    best_mix,
    hidden_worths,
    spread_of,
    worth_of,
)
from megopt.solvers.solution import Status
from megopt.system.link import LinkState


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedBound:
    """What no policy exceeds on recorded fading.

    Attributes:
        status: optimal where the limits can be kept on this fading by the planner, else infeasible.
        bound: no policy that keeps the limits has a smaller mean objective; NaN if infeasible.
        planned: mean objective of the planner, which mixes plans; `planned - bound` is the gap of the search.
        prices: what a unit of each limit is worth in units of the objective, >= 0, shape (num_limits,).
        num_iterations: prices that were tried.
        runtime_s: wall time [s].
    """

    status: Status
    bound: float
    planned: float
    prices: FloatArray
    num_iterations: int
    runtime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fading:
    """Costs of all rows on all requests, without what pipelining hides.

    Attributes:
        worth: objective and excesses over the limits, relative to them, shape (T, 1 + num_limits, num_traces, R).
        hides: which of these fall with hidden edge time, and by how much a second [1/s], shape (1 + num_limits,).
        airtime_s: of each distinct payload, shape (T, num_traces, num_payloads).
        edge_s: distinct edge times of the rows, shape (num_edges,).
        edge_of: index of each row's edge time, rows sorted by payload, shape (R,).
        first_of: first row of each payload, rows sorted by payload, shape (num_payloads,).
    """

    worth: FloatArray
    hides: FloatArray
    airtime_s: FloatArray
    edge_s: FloatArray
    edge_of: IntArray
    first_of: IntArray


def bound(
    table: ActionTable,
    links: Sequence[LinkState],
    problem: Problem,
    *,
    is_pipelined: bool,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> PlannedBound:
    """Return the bound of the problem on recorded fading.

    Args:
        table: rows to choose from.
        links: the link of request 0, 1, ... of all traces, fields of shape (num_traces,) each.
        problem: objective, and limits on the means over traces and requests.
        is_pipelined: whether the edge computes while the previous request is on the air.
        tolerance: relative gap of the search at which to stop.
        max_iterations: prices to try at most.

    Raises:
        ProblemError: if there is no request, no finite limit's cost, or a quantity was not measured.
        ConfigError: if `max_iterations` is below 1.
    """
    start = time.perf_counter()
    require_whole("planned bound", 1, max_iterations=max_iterations)
    if not links:
        message = "planned bound: no request; expected the link of at least one"
        raise ProblemError(message)
    limits = FiniteLimits.of(problem)
    fading = _fading(table, links, problem, limits, is_pipelined=is_pipelined)
    unit, none = spread_of(fading.worth[:, 0]), np.zeros(len(limits.most))
    best, best_prices, mix = -np.inf, none, Mix(value=np.inf, prices=none, shares=np.zeros(0))
    cuts: list[FloatArray] = []
    found = 0
    for found in range(1, max_iterations + 1):  # noqa: B007  # read after the loop
        means = _plan(fading, np.append(1.0, mix.prices * unit))
        value = float(means[0] + mix.prices * unit @ means[1:])
        if value > best:
            best, best_prices = value, mix.prices
        cuts.append(means)
        mix = best_mix(np.array(cuts), unit)
        if mix.value - best <= tolerance * max(abs(best), 1e-12):
            break
    is_feasible = mix.is_feasible and not np.any(best_prices >= 0.999 * PRICE_CEILING)
    all_prices = np.zeros(len(problem.limits))
    all_prices[limits.numbers] = best_prices * unit / limits.scales
    return PlannedBound(
        status=Status.OPTIMAL if is_feasible else Status.INFEASIBLE,
        bound=best if is_feasible else np.nan,
        planned=mix.value if is_feasible else np.nan,
        prices=all_prices,
        num_iterations=found,
        runtime_s=time.perf_counter() - start,
    )


def _fading(
    table: ActionTable, links: Sequence[LinkState], problem: Problem, limits: FiniteLimits, *, is_pipelined: bool
) -> _Fading:
    """Return costs on all requests."""
    rows = table.take(np.argsort(table.work.downlink_bits, kind="stable"))
    payloads, first_of = np.unique(rows.work.downlink_bits, return_index=True)
    edge_s, edge_of = np.unique(rows.work.edge_s, return_inverse=True)
    worth = []
    for link in links:
        here, is_usable = worth_of(rows, link, problem, limits)
        if not np.all(np.any(is_usable, axis=1)):
            message = (
                "planned bound: a request has no row with finite costs; expected one, such as device only; offer it"
            )
            raise ProblemError(message)
        worth.append(here)
    return _Fading(
        worth=np.stack(worth),
        hides=hidden_worths(problem, limits, is_pipelined=is_pipelined),
        airtime_s=np.stack([airtimes_s(payloads, link) for link in links]),
        edge_s=edge_s,
        edge_of=np.ravel(edge_of),
        first_of=first_of,
    )


def _plan(fading: _Fading, weights: FloatArray) -> FloatArray:
    """Return mean objective and excesses per request of the plan of least weighted sum, shape (1 + num_limits,).

    Args:
        fading: costs on all requests.
        weights: of objective and excesses, shape (1 + num_limits,).
    """
    hidden_worth = float(weights @ fading.hides)
    num_steps, num_parts, num_traces, _ = fading.worth.shape
    total = np.zeros((num_traces, 1))  # least weighted sum so far, per payload of the latest row
    parts = np.zeros((num_parts, num_traces, 1))  # what it is made of
    traces = np.arange(num_traces)[:, None]
    ends = np.append(fading.first_of[1:], len(fading.edge_of))
    for step in range(num_steps):
        air = fading.airtime_s[step - 1] if step else np.zeros((num_traces, 1))
        hidden = np.minimum(fading.edge_s[:, None], air[:, None, :])  # (traces, edges, payloads)
        chosen = np.argmin(total[:, None, :] - hidden_worth * hidden, axis=2)  # (traces, edges)
        saved = np.take_along_axis(hidden, chosen[..., None], axis=2)[..., 0]
        before = total[traces, chosen] - hidden_worth * saved
        here = fading.worth[step]
        value = np.tensordot(weights, here, axes=1) + before[:, fading.edge_of]
        best = np.stack(
            [first + np.argmin(value[:, first:end], axis=1) for first, end in zip(fading.first_of, ends, strict=True)],
            axis=1,
        )
        total = value[traces, best]
        edges = fading.edge_of[best]
        came_from = chosen[traces, edges]
        gained = here[:, traces, best] - fading.hides[:, None, None] * saved[traces, edges]
        parts = parts[:, traces, came_from] + gained
    last = np.argmin(total, axis=1)
    return np.asarray(np.mean(parts[:, np.arange(num_traces), last], axis=1) / num_steps)
