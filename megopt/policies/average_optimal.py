"""The optimum under limits that hold on average over the channel, as a policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from megopt.arrays import IntArray
from megopt.policies.base import Observation
from megopt.policies.even_draws import EvenDraws
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import AverageSolution, rows_under, solve
from megopt.solvers.average_limits_sampling import sampled_states
from megopt.solvers.brute_force import NOWHERE
from megopt.solvers.feasibility import least_violating_rows
from megopt.system.fading import Channel
from megopt.system.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class AverageOptimal:
    """Follows the prices of a long-run solution: each request takes the row of least objective + prices . costs.

    The solution mixes at most 1 + num_limits prices. All of them lie next to the optimal ones, so they agree on the row
    of every state but those where rows tie, and there the draw between them is the randomisation that the optimum
    needs. So states outside the sample are served as those in it are: by the prices, with ties drawn in the shares
    that keep the limits (`megopt.policies.even_draws`); the same seed and sequence of requests give the same rows.

    Where the limits cannot be kept, the mixture is the one that exceeds them least; where no row is finite, the row
    that exceeds the limits of the single request least is taken.

    Attributes:
        table: the rows of the solve.
        problem: the problem of the solve.
        solution: prices to follow.
        seed: seed of the draws between prices.
    """

    table: ActionTable
    problem: Problem
    solution: AverageSolution
    seed: int = 0
    reads_limits: ClassVar[bool] = True
    _draws: EvenDraws = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_draws", EvenDraws(self.seed))

    @classmethod
    def sampled(
        cls,
        *,
        table: ActionTable,
        problem: Problem,
        channel: Channel,
        link: Link,
        num_states: int = 20_000,
        num_blocks: int = 1,
        seed: int = 0,
    ) -> AverageOptimal:
        """Return the policy that is optimal over states drawn from `channel` and `link`.

        Args:
            table: rows to choose from.
            problem: objective, and limits on the means.
            channel: where the SNR comes from.
            link: from SNR to seconds per bit.
            num_states: states to solve over [1].
            num_blocks: fading blocks that one payload spans [1].
            seed: seed of the states, and of the draws between prices.

        Raises:
            ConfigError: if a count is below 1.
            ProblemError: if a quantity was not measured.
        """
        states = sampled_states(channel, link, num_states, seed, num_blocks)
        return cls(table=table, problem=problem, solution=solve(table, states, problem), seed=seed)

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,)."""
        link, mixture = observation.link, self.solution.mixture
        followed = self._draws.numbers(mixture.shares, len(link.snr))
        rows = np.full(len(link.snr), NOWHERE, dtype=np.int64)
        for number, prices in enumerate(mixture.prices):
            requests = np.flatnonzero(followed == number)
            rows[requests] = rows_under(self.table, link.take(requests), self.problem, prices)
        lost = np.flatnonzero(rows == NOWHERE)
        if len(lost):
            rows[lost] = least_violating_rows(self.table, link.take(lost), self.problem)
        return rows
