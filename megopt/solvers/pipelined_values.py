"""Policies that plan one request ahead: what a choice leaves to the next request, and what a policy comes to on traces.

For given weights of objective and relative excesses, what a choice leaves behind has the relative value

    V(k, w) = sum_k' P(k'|k) E[ min_a { l_a(s) - h min(edge_a, w) + V(k', airtime_a(s)) } | s in bin k' ] - g

with l_a the weighted costs of row a, h what a hidden second is worth in them, w the airtime that is left, and bins k of
the time per bit, whose chances of following each other are counted on traces, as in a finite-state Markov channel.
Found by relative value iteration. Without anything hidden V is 0.
Source: Puterman, Markov Decision Processes, 8.5; Wang and Moayeri, IEEE Trans. Veh. Technol. 1995, for the bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers.pipelining_costs import FiniteLimits, airtimes_s, hidden_worths, spread_of, worth_of
from megopt.system.link import LinkState

_MAX_SWEEPS, _DAMPING = 200, 0.7
"""Sweeps of the value iteration, and the share of the way that each goes: policies that alternate do not swing."""
_TOLERANCE = 1e-4
"""Change of a sweep, over what rows differ by in the median request, at which values count as found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AheadPlan:
    """A policy by weights and by what a choice leaves to the next request.

    Attributes:
        weights: of objective and relative excesses, shape (1 + num_bounded,).
        values: V, per bin and airtime on the grid, shape (num_bins, num_airtimes).
    """

    weights: FloatArray
    values: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Costs of all rows for some requests.

    Attributes:
        worth: objective and relative excesses, shape (1 + num_bounded, num_requests, num_rows).
        airtime_s: of each row's payload, shape (num_requests, num_rows).
        bins: bin of each request's link, shape (num_requests,).
    """

    worth: FloatArray
    airtime_s: FloatArray
    bins: IntArray

    def take(self, chosen: IntArray) -> Requests:
        """Return some of the requests."""
        return Requests(worth=self.worth[:, chosen], airtime_s=self.airtime_s[chosen], bins=self.bins[chosen])

    def ahead(self, plan: AheadPlan, grid_s: FloatArray) -> FloatArray:
        """Return weighted costs with what they leave to the next request, shape (num_requests, num_rows)."""
        left = np.empty_like(self.airtime_s)
        for number, values in enumerate(plan.values):
            here = self.bins == number
            left[here] = np.interp(self.airtime_s[here], grid_s, values)
        return np.asarray(np.tensordot(plan.weights, self.worth, axes=1) + left)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinedModel:
    """The decision process of some traces, which no prices change.

    Attributes:
        requests: all requests, traces running fastest.
        sample: as many of each bin that is met, bin by bin.
        chances: P(bin that is met | bin before), shape (num_bins, num_met).
        edge_s: edge time of each row, shape (num_rows,).
        hidden_worths: by how much objective and excesses fall with a hidden second, shape (1 + num_bounded,).
        bin_ends_s: ends between bins of the downlink time [s/bit], increasing, shape (num_bins - 1,).
        grid_s: airtimes of the values [s], increasing, shape (num_airtimes,).
        num_traces: traces side by side.
        unit: spread of the objective.
    """

    requests: Requests
    sample: Requests
    chances: FloatArray
    edge_s: FloatArray
    hidden_worths: FloatArray
    bin_ends_s: FloatArray
    grid_s: FloatArray
    num_traces: int
    unit: float


def model_of(
    table: ActionTable,
    links: Sequence[LinkState],
    problem: Problem,
    *,
    num_bins: int,
    num_airtimes: int,
    num_samples: int,
) -> PipelinedModel:
    """Return the decision process of traces; arguments as in `megopt.solvers.pipelined_average.solve`."""
    limits = FiniteLimits.of(problem)
    parts = [worth_of(table, link, problem, limits) for link in links]
    if not all(np.all(np.any(is_usable, axis=1)) for _, is_usable in parts):
        message = (
            "pipelined average: a request has no row with finite costs; expected one, such as device only; offer it"
        )
        raise ProblemError(message)
    times = np.array([link.downlink_s_per_bit for link in links])
    finite = times[np.isfinite(times)]
    bin_ends_s = np.unique(np.quantile(finite, np.arange(1, num_bins) / num_bins)) if len(finite) else np.zeros(0)
    bins = np.searchsorted(bin_ends_s, times, side="right")
    requests = Requests(
        worth=np.concatenate([worth for worth, _ in parts], axis=1),
        airtime_s=np.concatenate([airtimes_s(table.work.downlink_bits, link) for link in links]),
        bins=bins.ravel(),
    )
    met = [np.flatnonzero(requests.bins == number) for number in np.unique(bins)]
    even = [here[np.linspace(0, len(here) - 1, num_samples).astype(np.int64)] for here in met]
    return PipelinedModel(
        requests=requests,
        sample=requests.take(np.concatenate(even)),
        chances=_chances(bins, len(bin_ends_s) + 1),
        edge_s=table.work.edge_s,
        hidden_worths=hidden_worths(problem, limits, is_pipelined=True),
        bin_ends_s=bin_ends_s,
        grid_s=np.linspace(0.0, float(np.max(table.work.edge_s)) or 1.0, num_airtimes),
        num_traces=times.shape[1],
        unit=spread_of(requests.worth[0]),
    )


def _chances(bins: IntArray, num_bins: int) -> FloatArray:
    """Return how often a bin that is met follows each bin, shape (num_bins, num_met); bins (num_steps, num_traces)."""
    met = np.unique(bins)
    counts = np.zeros((num_bins, num_bins))
    np.add.at(counts, (bins[:-1], bins[1:]), 1.0)
    counts[:, met] += 1e-9  # a bin that only ends traces is followed by any
    return np.asarray((counts / counts.sum(axis=1, keepdims=True))[:, met])


def valued(model: PipelinedModel, weights: FloatArray, first: FloatArray) -> AheadPlan:
    """Return the plan of some weights; its values are searched from `first` on, shape (num_bins, num_airtimes)."""
    hidden_worth = float(weights @ model.hidden_worths)
    if hidden_worth == 0.0:
        return AheadPlan(weights=weights, values=np.zeros_like(first))
    saved = hidden_worth * np.minimum(model.edge_s, model.grid_s[:, None])  # (airtimes, rows)
    plan = AheadPlan(weights=weights, values=first)
    for _ in range(_MAX_SWEEPS):
        costs = model.sample.ahead(plan, model.grid_s)
        least = np.stack([np.min(costs - part, axis=1) for part in saved], axis=1)  # (requests, airtimes)
        by_bin = least.reshape(model.chances.shape[1], -1, len(model.grid_s)).mean(axis=1)
        values = model.chances @ by_bin
        change = values - values[0, 0] - plan.values
        plan = AheadPlan(weights=weights, values=plan.values + _DAMPING * change)
        if np.max(np.abs(change)) <= _TOLERANCE * _typical_spread(costs):
            break
    return plan


def _typical_spread(costs: FloatArray) -> float:
    """Return what the rows of the median request differ by, or 1 where they do not."""
    finite = np.where(np.isfinite(costs), costs, np.nan)
    return float(np.median(np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1))) or 1.0


def simulated(model: PipelinedModel, plans: Sequence[AheadPlan], followed: IntArray) -> FloatArray:
    """Return mean objective and relative excesses on the traces, shape (1 + num_bounded,).

    Args:
        model: the traces.
        plans: policies.
        followed: which of them each request follows, shape (num_requests,), traces running fastest.
    """
    costs = [model.requests.ahead(plan, model.grid_s) for plan in plans]
    worths = [float(plan.weights @ model.hidden_worths) for plan in plans]
    airtime_s, total = np.zeros(model.num_traces), np.zeros(len(model.hidden_worths))
    for first in range(0, len(followed), model.num_traces):
        here = np.arange(first, first + model.num_traces)
        hidden_s = np.minimum(model.edge_s, airtime_s[:, None])
        chosen = [np.argmin(cost[here] - worth * hidden_s, axis=1) for cost, worth in zip(costs, worths, strict=True)]
        rows = np.choose(followed[here], chosen)
        saved_s = hidden_s[np.arange(len(here)), rows]
        total += np.sum(model.requests.worth[:, here, rows], axis=1) - model.hidden_worths * np.sum(saved_s)
        airtime_s = model.requests.airtime_s[here, rows]
    return np.asarray(total / len(followed))
