"""Long-run limits where the edge computes while the previous request is on the air: a policy that plans one step ahead.

A row's payload is the next request's head start, so a choice is worth more than its own costs. For prices lambda >= 0
of the limits this is an average-cost Markov decision process whose state is the link s_t of the waiting request and
the airtime w_t of the payload before it. What a choice leaves behind has the relative value V(bin(s_t), airtime_t),

    V(k, w) = sum_k' P(k'|k) E[ min_a { l_a(s) - h min(edge_a, w) + V(k', airtime_a(s)) } | s in bin k' ] - g

    l_a = objective_a + lambda . (cost_a - limit),    h: what a hidden second is worth in l

over bins of the time per bit with their chances of following each other, as in a finite-state Markov channel (Wang and
Moayeri, IEEE Trans. Veh. Technol. 1995), solved by relative value iteration (Puterman, Markov Decision Processes, 8.5).
Each set of prices gives a policy; its means are simulated on whole traces, and a linear program mixes the policies that
were tried so that the limits hold on average, and names the next prices. Without anything hidden V is constant, and the
optimum of `megopt.solvers.average_limits` is left.
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
from megopt.solvers.pipelining_costs import FiniteLimits, Mix, airtimes_s, best_mix, hides, spread_of, worth_of
from megopt.system.link import LinkState

_MAX_SWEEPS, _DAMPING = 200, 0.7
"""Sweeps of the value iteration, and the share of the way that each goes: policies that alternate do not swing."""
_TOLERANCE = 1e-5
"""Change of a sweep, over the spread of the objective, at which values count as found."""
_LEAST_SHARE = 1e-9
"""Share of a policy in the mixture below which it is left out."""
_MAX_STALLED = 5
"""Prices in a row that do not better the mixture before the search ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadPlan:
    """A policy by prices and by what a choice leaves to the next request.

    Attributes:
        weights: of objective and relative excesses, shape (1 + num_bounded,).
        values: V, relative value per bin and airtime on the grid, shape (num_bins, num_airtimes).
    """

    weights: FloatArray
    values: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinedSolution:
    """The mixture of policies that is best on the traces.

    Attributes:
        is_feasible: whether it keeps the limits on the traces; else it exceeds them least. It is not proved best: what
            no policy exceeds says `megopt.solvers.pipelining.bound`.
        value: mean objective, smaller is better, of the mixture on the traces.
        excesses: its relative excess over each finite limit, shape (num_bounded,).
        plans: the policies that are mixed.
        shares: probability of each, sums to 1, shape (num_plans,).
        bin_ends_s: ends between bins of the downlink time [s/bit], increasing, shape (num_bins - 1,).
        grid_s: airtimes of the values [s], increasing, shape (num_airtimes,).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requests:
    """Costs of all rows for some requests, fields with a first axis (after the parts) of requests.

    Attributes:
        worth: objective and relative excesses, shape (1 + num_bounded, num_requests, num_rows).
        airtime_s: of each row's payload, shape (num_requests, num_rows).
        bins: bin of each request's link, shape (num_requests,).
    """

    worth: FloatArray
    airtime_s: FloatArray
    bins: IntArray

    def at(self, chosen: IntArray) -> _Requests:
        """Return some of the requests."""
        return _Requests(worth=self.worth[:, chosen], airtime_s=self.airtime_s[chosen], bins=self.bins[chosen])

    def ahead(self, plan: AheadPlan, grid_s: FloatArray) -> FloatArray:
        """Return weighted costs with what they leave to the next request, shape (num_requests, num_rows)."""
        left = np.empty_like(self.airtime_s)
        for number, values in enumerate(plan.values):
            here = self.bins == number
            left[here] = np.interp(self.airtime_s[here], grid_s, values)
        return np.asarray(np.tensordot(plan.weights, self.worth, axes=1) + left)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """What the prices do not change.

    Attributes:
        requests: all requests, traces fastest.
        sample: some of each bin, as many of each, bin by bin.
        chances: P(bin | bin before), shape (num_bins, num_bins).
        edge_s: edge time of each row, shape (num_rows,).
        hides: see `hides`.
        grid_s: airtimes of the values [s].
        num_traces: traces side by side.
        unit: spread of the objective.
    """

    requests: _Requests
    sample: _Requests
    chances: FloatArray
    edge_s: FloatArray
    hides: FloatArray
    grid_s: FloatArray
    num_traces: int
    unit: float


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
) -> PipelinedSolution:
    """Return the best mixture of policies that plan one request ahead.

    Args:
        table: rows to choose from.
        links: the link of request 0, 1, ... of all traces, fields of shape (num_traces,) each.
        problem: objective, and limits on the means over traces and requests.
        num_bins: bins of the time per bit [1].
        num_airtimes: airtimes at which values are kept [1].
        num_samples: requests of each bin that values are computed on [1].
        max_iterations: prices to try at most.
        tolerance: relative gain of the mixture below which a price did not better it.

    Raises:
        ProblemError: if there are fewer than two requests, a request has no row with finite costs, or a quantity was
            not measured.
        ConfigError: if a count is out of range.
    """
    start = time.perf_counter()
    require_whole("pipelined average", 1, num_bins=num_bins, num_samples=num_samples, max_iterations=max_iterations)
    require_whole("pipelined average", 2, num_airtimes=num_airtimes)
    if len(links) < 2:
        message = f"pipelined average: {len(links)} requests; expected the links of at least two, one after another"
        raise ProblemError(message)
    limits = FiniteLimits.of(problem)
    model, bin_ends_s = _model(table, links, problem, limits, num_bins, num_airtimes, num_samples)
    plans: list[AheadPlan] = []
    means: list[FloatArray] = []
    mix, best, num_stalled = best_mix(np.zeros((1, 1 + len(limits.most))), model.unit), np.inf, 0
    for _ in range(max_iterations):
        before = plans[-1].values if plans else np.zeros((len(model.chances), num_airtimes))
        plans.append(_valued(model, np.append(1.0, mix.prices * model.unit), before))
        means.append(_simulated(model, plans[-1]))
        mix = best_mix(np.array(means), model.unit)
        is_better = not mix.is_feasible or mix.value < best - tolerance * max(abs(best), 1e-12)
        num_stalled = 0 if is_better else num_stalled + 1
        best = min(best, mix.value)
        if num_stalled >= _MAX_STALLED or not len(limits.most):
            break
    return _solution(plans, np.array(means), mix, bin_ends_s, model.grid_s, time.perf_counter() - start)


def _solution(
    plans: list[AheadPlan], means: FloatArray, mix: Mix, bin_ends_s: FloatArray, grid_s: FloatArray, runtime_s: float
) -> PipelinedSolution:
    kept = np.flatnonzero(mix.shares > _LEAST_SHARE)
    shares = mix.shares[kept] / mix.shares[kept].sum()
    total = shares @ means[kept]
    return PipelinedSolution(
        is_feasible=mix.is_feasible,
        value=float(total[0]),
        excesses=total[1:],
        plans=tuple(plans[number] for number in kept),
        shares=shares,
        bin_ends_s=bin_ends_s,
        grid_s=grid_s,
        num_iterations=len(plans),
        runtime_s=runtime_s,
    )


def _model(
    table: ActionTable,
    links: Sequence[LinkState],
    problem: Problem,
    limits: FiniteLimits,
    num_bins: int,
    num_airtimes: int,
    num_samples: int,
) -> tuple[_Model, FloatArray]:
    """Return the decision process of the traces, and the ends between its bins [s/bit]."""
    parts = [worth_of(table, link, problem, limits) for link in links]
    if not all(np.all(np.any(is_usable, axis=1)) for _, is_usable in parts):
        message = (
            "pipelined average: a request has no row with finite costs; expected one, such as device only; offer it"
        )
        raise ProblemError(message)
    times = np.array([link.downlink_s_per_bit for link in links])
    ends = np.unique(np.quantile(times[np.isfinite(times)], np.arange(1, num_bins) / num_bins))
    bins = np.searchsorted(ends, times, side="right")
    requests = _Requests(
        worth=np.concatenate([worth for worth, _ in parts], axis=1),
        airtime_s=np.concatenate([airtimes_s(table.work.downlink_bits, link) for link in links]),
        bins=bins.ravel(),
    )
    used = np.unique(bins)
    counts = np.zeros((len(ends) + 1, len(ends) + 1))
    np.add.at(counts, (bins[:-1], bins[1:]), 1.0)
    counts[:, used] += 1e-9  # a bin that only ends traces is followed by any
    spread_out = [np.linspace(0, np.sum(requests.bins == k) - 1, num_samples).astype(np.int64) for k in used]
    chosen = [np.flatnonzero(requests.bins == k)[places] for k, places in zip(used, spread_out, strict=True)]
    model = _Model(
        requests=requests,
        sample=requests.at(np.concatenate(chosen)),
        chances=(counts / counts.sum(axis=1, keepdims=True))[:, used],
        edge_s=table.work.edge_s,
        hides=hides(problem, limits, is_pipelined=True),
        grid_s=np.linspace(0.0, float(np.max(table.work.edge_s)) or 1.0, num_airtimes),
        num_traces=times.shape[1],
        unit=spread_of(requests.worth[0]),
    )
    return model, ends


def _valued(model: _Model, weights: FloatArray, first: FloatArray) -> AheadPlan:
    """Return the plan of some weights, its values found by relative value iteration from `first`."""
    hidden_worth, plan = float(weights @ model.hides), AheadPlan(weights=weights, values=first)
    hidden = hidden_worth * np.minimum(model.edge_s, model.grid_s[:, None])  # (airtimes, rows)
    for _ in range(_MAX_SWEEPS if hidden_worth else 1):
        costs = model.sample.ahead(plan, model.grid_s)
        least = np.stack([np.min(costs - saved, axis=1) for saved in hidden], axis=1)  # (requests, airtimes)
        by_bin = least.reshape(model.chances.shape[1], -1, len(model.grid_s)).mean(axis=1)
        values = model.chances @ by_bin
        change = values - values[0, 0] - plan.values
        plan = AheadPlan(weights=weights, values=plan.values + _DAMPING * change)
        if np.max(np.abs(change)) <= _TOLERANCE * model.unit:
            break
    return plan


def _simulated(model: _Model, plan: AheadPlan) -> FloatArray:
    """Return mean objective and relative excesses of a plan on the traces, shape (1 + num_bounded,)."""
    hidden_worth, costs = float(plan.weights @ model.hides), model.requests.ahead(plan, model.grid_s)
    airtime_s, total = np.zeros(model.num_traces), np.zeros(len(model.hides))
    for first in range(0, len(costs), model.num_traces):
        here = np.arange(first, first + model.num_traces)
        hidden_s = np.minimum(model.edge_s, airtime_s[:, None])
        rows = np.argmin(costs[here] - hidden_worth * hidden_s, axis=1)
        saved_s = hidden_s[np.arange(len(here)), rows]
        total += np.sum(model.requests.worth[:, here, rows], axis=1) - model.hides * np.sum(saved_s)
        airtime_s = model.requests.airtime_s[here, rows]
    return np.asarray(total / len(costs))


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
    requests = _Requests(
        worth=worth,
        airtime_s=airtimes_s(table.work.downlink_bits, link),
        bins=np.searchsorted(solution.bin_ends_s, link.downlink_s_per_bit, side="right"),
    )
    hidden_worth = float(plan.weights @ hides(problem, limits, is_pipelined=True))
    hidden_s = np.minimum(table.work.edge_s, previous_airtime_s[:, None])
    rows = np.argmin(requests.ahead(plan, solution.grid_s) - hidden_worth * hidden_s, axis=1)
    return np.where(np.any(is_usable, axis=1), rows, NOWHERE)
