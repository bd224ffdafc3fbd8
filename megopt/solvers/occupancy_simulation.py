"""What a discretised answer is worth: its policy on levels that move continuously, and the problem on a finer grid.

Between grid points the policy takes that of the point below or above, with the weights of linear interpolation, which
is how the decision process itself moves between points. Costs and gains are those of the link state that was drawn, not
of its class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole
from megopt.solvers.occupancy import OccupancySolution, solve
from megopt.solvers.occupancy_process import LevelProcess, level_process, pair_costs
from megopt.solvers.solution import Status
from megopt.system.link import LinkState


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Means over independent runs of a policy, after its start; errors are standard errors over the runs.

    Attributes:
        value: mean objective, smaller is better.
        value_error: its standard error.
        costs: mean costs in the order of the process, losses of the levels last, shape (num_costs,).
        cost_errors: their standard errors, shape (num_costs,).
        levels: mean level of each [s or J], shape (num_levels,).
    """

    value: float
    value_error: float
    costs: FloatArray
    cost_errors: FloatArray
    levels: FloatArray


def simulate(
    model: LevelProcess,
    solution: OccupancySolution,
    link: LinkState,
    seed: int,
    num_runs: int = 64,
    burn_in: float = 0.2,
) -> Simulated:
    """Return what the policy of `solution` comes to on levels that move continuously.

    Args:
        model: the process that was solved.
        solution: its solution.
        link: link states, independent from request to request, shape (num_states,): num_runs runs of equal length.
        seed: seed of arrivals and of the draws between rows.
        num_runs: independent runs [1].
        burn_in: share of each run that is left out of the means [1].

    Raises:
        ProblemError: if there are fewer states than two requests per run, or an outage that the classes do not know.
        ConfigError: if `num_runs` is below 2.
    """
    require_whole("simulation", 2, num_runs=num_runs)
    num_requests = len(link.snr) // num_runs
    if num_requests < 2:
        message = (
            f"simulation: {len(link.snr)} link states for {num_runs} runs; expected two or more per run; draw more"
        )
        raise ProblemError(message)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    kinds = model.classes.of_states(link)
    cumulative = np.cumsum(solution.policy, axis=1)
    levels = [np.zeros(num_runs) for _ in model.levels]
    sums = np.zeros((num_runs, 1 + len(solution.costs) + len(levels)))
    first = int(burn_in * num_requests)
    for request in range(num_requests):
        states = np.arange(num_runs) * num_requests + request
        rows = _drawn_rows(model, cumulative, kinds[states], levels, rng)
        value, costs, moved = _step(model, link.take(states), rows, levels, rng)
        if request >= first:
            sums += np.column_stack([value, costs, *levels])
        levels = moved
    means = sums / (num_requests - first)
    mean, error = np.mean(means, axis=0), np.std(means, axis=0, ddof=1) / np.sqrt(num_runs)
    last = 1 + len(solution.costs)
    return Simulated(
        value=float(mean[0]),
        value_error=float(error[0]),
        costs=mean[1:last],
        cost_errors=error[1:last],
        levels=mean[last:],
    )


def _drawn_rows(
    model: LevelProcess, cumulative: FloatArray, kinds: IntArray, levels: list[FloatArray], rng: np.random.Generator
) -> IntArray:
    """Return a row for each run, from the policy at a grid point next to its levels, shape (num_runs,)."""
    point = np.zeros(len(kinds), dtype=np.int64)
    for level, now in zip(model.levels, levels, strict=True):
        below, weight = level.neighbours(now)
        point = point * level.num_points + below + (rng.random(len(now)) < weight)
    policy = cumulative[kinds * int(np.prod(model.shape)) + point]
    # The last sum may round below 1; the last row that has any probability is then the one.
    draw = rng.random((len(kinds), 1)) * policy[:, -1:]
    return np.asarray(np.argmax(policy > draw, axis=1))


def _step(
    model: LevelProcess, link: LinkState, rows: IntArray, levels: list[FloatArray], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, list[FloatArray]]:
    """Return objective (num_runs,), costs with losses (num_runs, num_costs), and the next levels."""
    times = (link.downlink_s_per_bit, link.uplink_s_per_bit)
    runs = np.arange(len(rows))
    every = (times[0][:, None], times[1][:, None])
    points = [now[:, None] for now in levels]
    objective, costs = pair_costs(model.table, link, model.problem, model.levels, points, every)
    moved, losses = [], []
    for level, now in zip(model.levels, levels, strict=True):
        change = level.gain.at(*every)[runs, rows] + rng.choice(level.arrivals, size=len(rows))
        after, lost = level.moved(now, change)
        moved.append(after)
        losses.append(lost)
    return objective[runs, rows], np.column_stack([costs[runs, rows], *losses]), moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Discretisation:
    """How far the grid is from the continuous levels.

    Attributes:
        value: mean objective that the process promises, smaller is better.
        finer_value: the same with twice as many intervals on every grid.
        simulated: the policy of `value` on continuous levels.
    """

    value: float
    finer_value: float
    simulated: Simulated

    @property
    def grid_error(self) -> float:
        """Relative distance of the two grids."""
        return abs(self.value - self.finer_value) / max(abs(self.finer_value), 1e-12)

    @property
    def simulation_error(self) -> float:
        """Relative distance of promise and simulation."""
        return abs(self.value - self.simulated.value) / max(abs(self.simulated.value), 1e-12)


def discretisation(model: LevelProcess, link: LinkState, seed: int, num_runs: int = 64) -> Discretisation:
    """Return how far the answer of `model` is from a finer grid and from continuous levels.

    Args:
        model: a process whose limits can be kept.
        link: link states to refine and to simulate on, shape (num_states,).
        seed: seed of the simulation.
        num_runs: independent runs [1].

    Raises:
        ProblemError: if the limits of `model` cannot be kept.
    """
    levels = [replace(level, num_points=2 * level.num_points - 1) for level in model.levels]
    num_classes = len(model.classes.edges) + 1
    finer = level_process(model.table, link, model.problem, levels, num_classes)
    solution, fine = solve(model.process), solve(finer.process)
    for one in (solution, fine):
        if one.status is Status.INFEASIBLE:
            message = f"discretisation: {one.message}; expected limits that can be kept; loosen one"
            raise ProblemError(message)
    return Discretisation(
        value=solution.value,
        finer_value=fine.value,
        simulated=simulate(model, solution, link, seed, num_runs),
    )
