"""Analytic baselines of `megopt/Request-v0`: what can be had without learning, from exact optimum to one fixed row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from megopt.analysis.episodes import hides_edge_time
from megopt.arrays import FloatArray, IntArray
from megopt.envs.parameters import EnvParams
from megopt.errors import ConfigError, NotOfferedError
from megopt.policies.average_optimal import AverageOptimal
from megopt.policies.base import Observation, Policy
from megopt.policies.drift_plus_penalty import DriftPlusPenalty
from megopt.policies.greedy import Greedy
from megopt.policies.optimal import Optimal
from megopt.policies.pipelined_optimal import PipelinedOptimal
from megopt.problem import ceilings, costs, evaluate, objective
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits_sampling import sampled_states

_NUM_STATES = 4000
"""Channel states on which the best fixed row is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Among:
    """A policy on some rows, named by their places in the whole table."""

    policy: Policy
    rows: IntArray
    reads_limits: ClassVar[bool] = True

    def act(self, observation: Observation) -> IntArray:
        """Return rows of the whole table, shape (num_requests,)."""
        return self.rows[self.policy.act(observation)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Always:
    """The same row for every request."""

    row: int
    reads_limits: ClassVar[bool] = True

    def act(self, observation: Observation) -> IntArray:
        """Return the row for every request, shape (num_requests,)."""
        return np.full(len(observation.link.snr), self.row, dtype=np.int64)


def baseline(name: str, params: EnvParams, seed: int = 0) -> Policy:
    """Return a baseline by name.

    Args:
        name: a name of `BASELINES`.
        params: the environment; of devices with pipelining `average_optimal`, `drift_plus_penalty`, `greedy` and
            `fixed` count on what it hides.
        seed: of the states that an optimum is computed on, and of draws.

    Raises:
        ConfigError: for another name.
        NotOfferedError: if the table has no row for it.
    """
    if name not in BASELINES:
        message = f"baseline {name!r}: expected some of {', '.join(BASELINES)}; change baselines"
        raise ConfigError(message)
    rows = np.flatnonzero(params.is_offered)
    return _Among(policy=BASELINES[name](params, params.table.take(rows), seed), rows=rows)


def _average_optimal(params: EnvParams, table: ActionTable, seed: int) -> Policy:
    """Return the optimum of limits on average; with pipelining the one that plans for the next request."""
    problem, channel, link = params.problem, params.channel, params.link
    if not hides_edge_time(params) or params.episode_length == 1:
        return AverageOptimal.sampled(table=table, problem=problem, channel=channel, link=link, seed=seed)
    length = params.episode_length
    return PipelinedOptimal.sampled(
        table=table, problem=problem, channel=channel, link=link, num_requests=length, seed=seed
    )


def _fixed(params: EnvParams, table: ActionTable, seed: int) -> Policy:
    """Return the single row that is best on average within the limits, or exceeds them least where none keeps them."""
    link = sampled_states(params.channel, params.link, _NUM_STATES, seed)
    most = ceilings(params.problem)
    worth = np.empty(len(table))
    over = np.empty(len(table))
    for row in range(len(table)):
        result = evaluate(table, np.full(len(link.snr), row), link, params.problem.metric)
        if hides_edge_time(params):  # of all requests of an episode but the first
            hidden_s = np.minimum(result.edge_s, np.roll(result.downlink_s, 1)) * (1.0 - 1.0 / params.episode_length)
            result = replace(result, latency_s=result.latency_s - hidden_s)
        worth[row] = np.mean(objective(result, params.problem))
        over[row] = _largest_excess(np.mean(costs(result, params.problem), axis=0), most)
    kept = np.where(over <= 0.0, worth, np.inf)
    return _Always(row=int(np.argmin(kept) if np.any(np.isfinite(kept)) else np.argmin(over)))


def _largest_excess(means: FloatArray, most: FloatArray) -> float:
    excess = (means - most) / np.where(most == 0.0, 1.0, np.abs(most))
    return float(np.max(excess, initial=-np.inf))


def _conventional(params: EnvParams, table: ActionTable, seed: int) -> Policy:
    """Return generation without sharing decisions: at the edge alone, all steps, nothing merged, image or latent sent.

    Of the rows of the scheme "conventional" those that begin with "edge only", else "model split"; of these the largest
    payload, which nothing was merged in, and among equals the longest computation, which has all steps.
    """
    for way in ("edge only", "model split"):
        rows = np.flatnonzero((table.scheme == "conventional") & np.char.startswith(table.label, way))
        if len(rows):
            work = table.work.take(rows)
            return _Always(row=int(rows[np.lexsort((work.edge_s, work.downlink_bits))[-1]]))
    message = f"baseline conventional: profile {table.profile} and its schemes offer no edge only and no model split"
    raise NotOfferedError(message)


BASELINES: dict[str, Callable[[EnvParams, ActionTable, int], Policy]] = {
    "exhaustive": lambda params, table, seed: Optimal(table=table, problem=params.problem),
    "average_optimal": _average_optimal,
    "drift_plus_penalty": lambda params, table, seed: DriftPlusPenalty(table=table, problem=params.problem),
    "greedy": lambda params, table, seed: Greedy(table=table, problem=params.problem),
    "fixed": _fixed,
    "conventional": _conventional,
}
"""Builders by name: limits on each request, limits on average, the same without statistics, saved budget, one row."""
