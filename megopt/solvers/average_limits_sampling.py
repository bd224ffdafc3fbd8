"""Long-run limits over a continuous channel: draw states to solve on, and fresh states to say what the answer is worth.

The optimum over a sample is an optimistic guess of the optimum over the channel. On fresh states nothing was fitted:
the means of the mixture are unbiased, and so is the mean of min_a [objective + lambda . (cost - limit)], which by weak
duality bounds the optimum of the channel itself. Both carry the standard error of batch means.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.problem import Problem, ceilings, costs, evaluate, objective
from megopt.ranges import require_whole
from megopt.schemes.action_table import ActionTable
from megopt.solvers.average_limits import AverageSolution, Mixture, rows_under
from megopt.solvers.average_limits_curve import LongRunCurve
from megopt.solvers.brute_force import NOWHERE
from megopt.system.fading import Channel
from megopt.system.link import Link, LinkState


def sampled_states(channel: Channel, link: Link, num_states: int, seed: int, num_blocks: int = 1) -> LinkState:
    """Return independent channel states, each met by a new device, shape (num_states,).

    Args:
        channel: where the SNR comes from.
        link: from SNR to seconds per bit.
        num_states: states to draw [1].
        seed: seed of the draw; the same seed gives the same states.
        num_blocks: fading blocks that one payload spans [1].

    Raises:
        ConfigError: if a count is below 1 or no whole number.
    """
    require_whole("long-run limits", 1, num_states=num_states, num_blocks=num_blocks)
    require_whole("long-run limits", 0, seed=seed)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    snr = channel.sample_snr(rng, num_blocks, num_states).T
    return link.state(snr[:, 0] if num_blocks == 1 else snr)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What a long-run answer comes to on states that it was not solved on; errors are standard errors of the means.

    Attributes:
        value: mean objective [unit of the objective].
        value_error: its standard error.
        bound: bound on the mean objective of any choice over the channel (below for min, above for max).
        bound_error: its standard error; 0 where the bound is the same in every batch.
        costs: mean limited costs as in `problem.costs`, shape (num_limits,).
        cost_errors: their standard errors, shape (num_limits,).
        excesses: means above the limits, relative to them, >= 0, shape (num_limits,).
        share_unserved: share of the states without a row with finite costs, left out of all means [1].
    """

    value: float
    value_error: float
    bound: float
    bound_error: float
    costs: FloatArray
    cost_errors: FloatArray
    excesses: FloatArray
    share_unserved: float

    def keeps_limits(self, problem: Problem, num_errors: float = 3.0) -> bool:
        """Return whether every mean is within its limit, or above it by at most `num_errors` standard errors."""
        room = ceilings(problem) + num_errors * self.cost_errors + 1e-9 * np.abs(ceilings(problem))
        return bool(np.all(self.costs <= room))


def held_out(
    table: ActionTable, link: LinkState, problem: Problem, solution: AverageSolution, num_batches: int = 32
) -> HeldOut:
    """Return what `solution` comes to on the states `link`, with the errors of batch means.

    The mixture enters with its shares, so the randomisation adds no noise.

    Args:
        table: the rows of the solve.
        link: fresh states, shape (num_states,), in the order in which they were met: a batch is a run of them.
        problem: the problem of the solve.
        solution: a solution that is not infeasible.
        num_batches: batches, at least 2 [1].

    Raises:
        ProblemError: if the solution is infeasible, or there are fewer served states than batches.
        ConfigError: if `num_batches` is below 2.
    """
    require_whole("held-out states", 2, num_batches=num_batches)
    means, share_unserved = _means_per_state(table, link, problem, solution)
    if len(means) < num_batches:
        message = (
            f"held-out states: {len(means)} served states for {num_batches} batches of a solution that is "
            f"{solution.status}; expected at least one state per batch and a feasible solution; draw more states"
        )
        raise ProblemError(message)
    batches = np.array([np.mean(batch, axis=0) for batch in np.array_split(means, num_batches)])
    mean, error = np.mean(means, axis=0), np.std(batches, axis=0, ddof=1) / np.sqrt(num_batches)
    return HeldOut(
        value=problem.sense * float(mean[0]),
        value_error=float(error[0]),
        bound=problem.sense * float(mean[1]),
        bound_error=float(error[1]),
        costs=mean[2:],
        cost_errors=error[2:],
        excesses=_relative_excess(mean[2:], ceilings(problem)),
        share_unserved=share_unserved,
    )


def _means_per_state(
    table: ActionTable, link: LinkState, problem: Problem, solution: AverageSolution
) -> tuple[FloatArray, float]:
    """Return objective, Lagrangian and costs of the mixture per served state, shape (num_served, 2 + num_limits)."""
    if not np.isfinite(solution.value):
        return np.zeros((0, 2 + len(problem.limits))), 0.0
    priced = np.append(1.0, solution.prices)
    best = rows_under(table, link, problem, priced)
    served = np.flatnonzero(best != NOWHERE)
    states, share_unserved = link.take(served), 1.0 - len(served) / max(1, len(best))
    mean = mixed(table, states, problem, solution.mixture)
    finite = ceilings(problem) < np.inf
    least = _scored(table, states, problem, best[served])
    excess = least[:, 1:][:, finite] - ceilings(problem)[finite]
    lagrangian = least[:, 0] + excess @ solution.prices[finite]
    return np.column_stack([mean[:, 0], lagrangian, mean[:, 1:]]), share_unserved


def mixed(table: ActionTable, link: LinkState, problem: Problem, mixture: Mixture) -> FloatArray:
    """Return objective and costs of a mixture, both to minimise, in each state, shape (num_states, 1 + num_limits).

    Args:
        table: the rows of the solve.
        link: states that have a row with finite costs, shape (num_states,).
        problem: the problem of the solve.
        mixture: what the solve found.
    """
    mean = np.zeros((len(link.snr), 1 + len(problem.limits)))
    for prices, share in zip(mixture.prices, mixture.shares, strict=True):
        mean += share * _scored(table, link, problem, rows_under(table, link, problem, prices))
    return mean


def curve_excesses(table: ActionTable, link: LinkState, problem: Problem, curve: LongRunCurve) -> FloatArray:
    """Return the largest mean above its limit, relative to it, at each limit of a curve on fresh states, (num_limits,).

    0 where every mean is kept; NaN where the limits cannot be kept, or no state has a row with finite costs.

    Args:
        table: the rows of the sweep.
        link: states that the sweep has not seen, shape (num_states,).
        problem: the problem of the sweep.
        curve: what the sweep found.
    """
    excesses = np.full(len(curve.limits), np.nan)
    for number in np.flatnonzero(curve.is_feasible):
        limited, mixture = problem.with_limit(curve.quantity, float(curve.limits[number])), curve.mixtures[number]
        served = np.flatnonzero(rows_under(table, link, limited, mixture.prices[0]) != NOWHERE)
        if len(served):
            means = np.mean(mixed(table, link.take(served), limited, mixture)[:, 1:], axis=0)
            excesses[number] = np.max(_relative_excess(means, ceilings(limited)))
    return excesses


def _relative_excess(means: FloatArray, most: FloatArray) -> FloatArray:
    """Return means above their limits, relative to them, >= 0, shape (num_limits,); 0 where nothing is limited."""
    with np.errstate(invalid="ignore"):
        excess = np.maximum(means - most, 0.0) / np.where(most == 0.0, 1.0, np.abs(most))
    return np.where(np.isinf(most), 0.0, excess)


def _scored(table: ActionTable, link: LinkState, problem: Problem, rows: IntArray) -> FloatArray:
    """Return objective and costs of `rows` by `evaluate`, shape (num_states, 1 + num_limits)."""
    result = evaluate(table, rows, link, problem.metric)
    return np.column_stack([objective(result, problem), costs(result, problem)])
