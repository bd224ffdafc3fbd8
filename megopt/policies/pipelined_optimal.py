"""Long-run limits where the edge computes while the previous request is on the air, as a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from megopt.arrays import IntArray
from megopt.policies.base import Observation
from megopt.problem import Problem
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.solvers.brute_force import NOWHERE, tiles
from megopt.solvers.feasibility import least_violating_rows
from megopt.solvers.pipelined_average import PipelinedSolution, drawn, rows_under, solve
from megopt.system.fading import Channel
from megopt.system.link import Link

_MOST_PAIRS = 1 << 22
"""Requests x rows that a solve holds at once; larger tables are solved on fewer traces."""
_LEAST_TRACES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelinedOptimal:
    """Follows prices of the limits and counts on what pipelining hides, of this request and of the next.

    Each request draws one of at most 1 + num_limits policies, with the shares that keep the limits on the traces.

    It knows the channel's statistics, and of each request the link and the airtime of the payload before
    (`Observation.previous_airtime_s`); an observation without it is read as one with nothing on the air. Where the
    limits cannot be kept it exceeds them least, and a request that no row can serve takes the row that exceeds the
    limits of a single request least.

    Attributes:
        table: the rows of the solve.
        problem: the problem of the solve.
        solution: policies to mix.
        seed: seed of the draws between them.
    """

    table: ActionTable = field(repr=False)
    problem: Problem
    solution: PipelinedSolution = field(repr=False)
    seed: int = 0
    reads_limits: ClassVar[bool] = True
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rng", np.random.default_rng(np.random.SeedSequence(self.seed)))

    @classmethod
    def sampled(
        cls,
        *,
        table: ActionTable,
        problem: Problem,
        channel: Channel,
        link: Link,
        num_traces: int = 1024,
        num_requests: int = 64,
        seed: int = 0,
    ) -> PipelinedOptimal:
        """Return the policy that `solve` finds on traces drawn from `channel` and `link`.

        Places are stratified where the channel can do so, which changes no law and makes the means surer.

        Args:
            table: rows to choose from.
            problem: objective, and limits on the means.
            channel: where the SNR comes from.
            link: from SNR to seconds per bit.
            num_traces: devices to solve over, fewer for large tables [1].
            num_requests: requests of each device, one after another [1].
            seed: seed of the traces, and of the draws between policies.

        Raises:
            ConfigError: if a count is out of range.
            ProblemError: if a quantity was not measured, or a state has no row with finite costs.
        """
        require_whole("policy PipelinedOptimal", 2, num_requests=num_requests)
        require_whole("policy PipelinedOptimal", 1, num_traces=num_traces)
        num_drawn = min(num_traces, max(_LEAST_TRACES, _MOST_PAIRS // (num_requests * max(1, len(table)))))
        rng = np.random.default_rng(np.random.SeedSequence(seed))
        snr = channel.stratified().sample_snr(rng, num_requests, num_drawn)
        solution = solve(table, [link.state(row) for row in snr], problem, seed=seed)
        return cls(table=table, problem=problem, solution=solution, seed=seed)

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,)."""
        link, before_s = observation.link, observation.previous_airtime_s
        before_s = np.zeros(len(link.snr)) if before_s is None else before_s
        followed = drawn(self.solution.shares, self._rng.random(len(link.snr)))
        rows = np.full(len(link.snr), NOWHERE, dtype=np.int64)
        for number in range(len(self.solution.shares)):
            followers = np.flatnonzero(followed == number)
            for part in tiles(len(followers), max(1, _MOST_PAIRS // len(self.table))):
                some = followers[part]
                rows[some] = rows_under(
                    self.solution, number, self.table, link.take(some), self.problem, before_s[some]
                )
        lost = np.flatnonzero(rows == NOWHERE)
        if len(lost):
            rows[lost] = least_violating_rows(self.table, link.take(lost), self.problem)
        return rows
