"""Long-run limits where the edge computes while the previous request is on the air: policies that plan one step ahead.

A row's payload is the next request's head start, so a choice is worth more than its own costs. For prices lambda >= 0
of the limits this is an average-cost Markov decision process, whose state is the link of the waiting request and the
airtime of the payload before it (`megopt.solvers.pipelined_values`), with the costs

    objective_a + lambda . (cost_a - limit)

Each set of prices gives a policy; its means are simulated on whole traces. A linear program mixes the policies that
were tried so that the limits hold on average, and names the next prices. In the end each request draws one of the
mixed policies; as one leaves its airtime to the other, the means are simulated once more as drawn, and the limits of
the program corrected until they are kept so. Without anything hidden the optimum of `megopt.solvers.average_limits` is
left. The answer is not proved best: values are those of endless traces, and what no policy within the limits exceeds
says `megopt.solvers.pipelining.bound`.
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
from megopt.solvers.brute_force import NOWHERE
from megopt.solvers.pipelined_values import AheadPlan, PipelinedModel, Requests, model_of, simulated, valued
from megopt.solvers.pipelining_costs import FiniteLimits, Mix, airtimes_s, best_mix, hidden_worths, worth_of
from megopt.system.link import LinkState

_LEAST_SHARE = 1e-9
"""Share of a policy in the mixture below which it is left out."""
_LONGEST_STALL = 5
"""Prices in a row that do not better the mixture before the search ends."""
_NUM_CORRECTIONS, _KEPT_TO = 12, 1e-3
"""Corrections of the limits as drawn policies meet them, and the relative excess at which they count as kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinedSolution:
    """A mixture of policies, one of which each request draws.

    Attributes:
        is_feasible: whether it keeps the limits on the traces to 0.1 %; else it exceeds them least.
        value: its mean objective on the traces as drawn, smaller is better.
        excesses: its relative excess over each finite limit there, shape (num_bounded,).
        plans: the policies.
        shares: probability of each, sums to 1, shape (num_plans,).
        bin_ends_s: see `PipelinedModel`.
        grid_s: see `PipelinedModel`.
        num_iterations: prices that were tried.
        runtime_s: wall time [s].
    """

    is_feasible: bool
    value: float
    excesses: FloatArray
    plans: tuple[AheadPlan, ...]
    shares: FloatArray
    bin_ends_s: FloatArray
    grid_s: FloatArray
    num_iterations: int
    runtime_s: float


def solve(
    table: ActionTable,
    links: Sequence[LinkState],
    problem: Problem,
    *,
    num_bins: int = 12,
    num_airtimes: int = 33,
    num_samples: int = 48,
    max_iterations: int = 40,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> PipelinedSolution:
    """Return a mixture of policies that plan one request ahead, of least mean objective within the limits.

    Args:
        table: rows to choose from.
        links: the link of request 0, 1, ... of all traces, fields of shape (num_traces,) each.
        problem: objective, and limits on the means over traces and requests.
        num_bins: bins of the time per bit [1].
        num_airtimes: airtimes at which values are kept [1].
        num_samples: requests of each bin that values are computed on [1].
        max_iterations: prices to try at most.
        tolerance: relative gain of the mixture below which a price did not better it.
        seed: of the draws between policies on the traces.

    Raises:
        ProblemError: if there are fewer than two requests, a request has no row with finite costs, a limit is one that
            no row can keep, or a quantity was not measured.
        ConfigError: if a count is out of range.
    """
    start = time.perf_counter()
    require_whole("pipelined average", 1, num_bins=num_bins, num_samples=num_samples, max_iterations=max_iterations)
    require_whole("pipelined average", 2, num_airtimes=num_airtimes)
    if len(links) < 2:
        message = f"pipelined average: {len(links)} requests; expected the links of at least two, one after another"
        raise ProblemError(message)
    model = model_of(table, links, problem, num_bins=num_bins, num_airtimes=num_airtimes, num_samples=num_samples)
    plans, means = _tried(model, max_iterations, tolerance)
    kept, shares, acted, is_feasible = _drawn_mix(model, plans, means, seed)
    return PipelinedSolution(
        is_feasible=is_feasible,
        value=float(acted[0]),
        excesses=acted[1:],
        plans=tuple(plans[number] for number in kept),
        shares=shares,
        bin_ends_s=model.bin_ends_s,
        grid_s=model.grid_s,
        num_iterations=len(plans),
        runtime_s=time.perf_counter() - start,
    )


def _tried(model: PipelinedModel, max_iterations: int, tolerance: float) -> tuple[list[AheadPlan], FloatArray]:
    """Return policies by one price after another, and what each comes to, shape (num_plans, 1 + num_bounded)."""
    num_bounded, num_requests = len(model.hidden_worths) - 1, len(model.requests.bins)
    plans: list[AheadPlan] = []
    means: list[FloatArray] = []
    prices, best, num_stalled = np.zeros(num_bounded), np.inf, 0
    values = np.zeros((len(model.chances), len(model.grid_s)))
    for _ in range(max_iterations):
        plans.append(valued(model, np.append(1.0, prices * model.unit), values))
        means.append(simulated(model, plans[-1:], np.zeros(num_requests, dtype=np.int64)))
        mix, values = best_mix(np.array(means), model.unit), plans[-1].values
        is_better = not np.isfinite(best) or mix.value < best - tolerance * max(abs(best), 1e-12)
        num_stalled = 0 if is_better else num_stalled + 1
        best, prices = min(best, mix.value), mix.prices
        if num_stalled >= _LONGEST_STALL or not num_bounded:
            break
    return plans, np.array(means)


def _drawn_mix(
    model: PipelinedModel, plans: Sequence[AheadPlan], means: FloatArray, seed: int
) -> tuple[IntArray, FloatArray, FloatArray, bool]:
    """Return which policies to mix, their shares, what they come to as drawn, and whether that keeps the limits."""
    draws = np.random.default_rng(np.random.SeedSequence((seed, 1))).random(len(model.requests.bins))
    correction = np.zeros(means.shape[1] - 1)
    found: list[tuple[float, float, IntArray, FloatArray, FloatArray]] = []
    for _ in range(_NUM_CORRECTIONS):
        mix: Mix = best_mix(means + np.append(0.0, correction), model.unit)
        kept = np.flatnonzero(mix.shares > _LEAST_SHARE)
        shares = mix.shares[kept] / mix.shares[kept].sum()
        acted = simulated(model, [plans[int(number)] for number in kept], drawn(shares, draws))
        excess = float(np.max(acted[1:], initial=0.0))
        found.append((max(0.0, excess - _KEPT_TO), float(acted[0]), kept, shares, acted))
        off = acted[1:] + np.where(correction > 0.0, 0.0, np.maximum(0.0, -acted[1:]))  # only what binds is relaxed
        if len(kept) == 1 or np.max(np.abs(off), initial=0.0) <= 0.5 * _KEPT_TO:
            break
        correction = np.maximum(0.0, correction + off)
    excess, _, kept, shares, acted = min(found, key=lambda one: one[:2])
    return kept, shares, acted, excess == 0.0


def drawn(shares: FloatArray, draws: FloatArray) -> IntArray:
    """Return which policy each request follows, from numbers that are uniform in [0, 1); shape of `draws`."""
    return np.asarray(np.searchsorted(np.cumsum(shares)[:-1], draws, side="right"))


def rows_under(
    solution: PipelinedSolution,
    number: int,
    table: ActionTable,
    link: LinkState,
    problem: Problem,
    previous_airtime_s: FloatArray,
) -> IntArray:
    """Return the rows that one plan of a solution takes, shape (num_requests,); NOWHERE where none is finite.

    Args:
        solution: what `solve` found.
        number: which of its plans.
        table: the rows of the solve.
        link: the link of each request, fields of shape (num_requests,).
        problem: the problem of the solve.
        previous_airtime_s: airtime of the payload before [s], shape (num_requests,).
    """
    limits, plan = FiniteLimits.of(problem), solution.plans[number]
    worth, is_usable = worth_of(table, link, problem, limits)
    requests = Requests(
        worth=worth,
        airtime_s=airtimes_s(table.work.downlink_bits, link),
        bins=np.searchsorted(solution.bin_ends_s, link.downlink_s_per_bit, side="right"),
    )
    hidden_worth = float(plan.weights @ hidden_worths(problem, limits, is_pipelined=True))
    hidden_s = np.minimum(table.work.edge_s, previous_airtime_s[:, None])
    rows = np.argmin(requests.ahead(plan, solution.grid_s) - hidden_worth * hidden_s, axis=1)
    return np.where(np.any(is_usable, axis=1), rows, NOWHERE)
