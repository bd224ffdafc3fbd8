"""The per-request optimum at every value of one limit, from the loosest to the tightest, with warm starts.

A tighter limit only takes rows away. So a row that is best under a loose limit and still keeps a tighter one is best
there too: with the answers of the neighbour at hand, only the states whose row breaks the new limit are solved again,
and a state without a row under one limit has none under any tighter. Rows and values are those of `exhaustive.solve`,
limit by limit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.problem import Problem, ceilings, costs, evaluate
from megopt.schemes.action_table import ActionTable
from megopt.solvers import exhaustive
from megopt.solvers.brute_force import NOWHERE, tiles
from megopt.solvers.feasibility import nearest_feasible_limit
from megopt.solvers.solution import Solution, Status
from megopt.system.link import LinkState

_SCORED_AT_ONCE = 1 << 13
"""States scored at once, so that the arrays of `evaluate` stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSweep:
    """Answers under every value of one limit.

    Attributes:
        quantity: the limited quantity.
        limits: its values, in the order that was asked for [unit of the quantity], shape (num_limits,).
        solutions: the answer at each.
        num_solved: states that had to be solved anew at each, shape (num_limits,).
    """

    quantity: str
    limits: FloatArray
    solutions: tuple[Solution, ...]
    num_solved: IntArray


def sweep(table: ActionTable, link: LinkState, problem: Problem, quantity: str, limits: FloatArray) -> LimitSweep:
    """Return the best row per state under every limit on `quantity`.

    Args:
        table: rows to choose from.
        link: states, shape (num_states,).
        problem: objective, and limits besides the swept one; a limit on `quantity` is replaced.
        quantity: the limited quantity.
        limits: its values, in any order [unit of the quantity], shape (num_limits,).

    Raises:
        ProblemError: as `exhaustive.solve`.
    """
    problems = [problem.with_limit(quantity, float(bound)) for bound in limits]
    most = np.array([ceilings(swept)[-1] for swept in problems])
    state = _State(num_states=len(link.snr))
    solutions: dict[int, Solution] = {}
    num_solved = np.zeros(len(problems), dtype=np.int64)
    for number in np.argsort(-most, kind="stable"):
        start = time.perf_counter()
        num_solved[number] = state.tighten(table, link, problems[number], float(most[number]))
        solutions[int(number)] = state.solution(table, link, problems[number], start)
    ordered = tuple(solutions[number] for number in range(len(problems)))
    return LimitSweep(quantity=quantity, limits=np.asarray(limits), solutions=ordered, num_solved=num_solved)


class _State:
    """The answer under the last limit: row, objective and swept cost of every state; -inf where there is no row."""

    def __init__(self, num_states: int) -> None:
        self._rows = np.full(num_states, NOWHERE, dtype=np.int64)
        self._values = np.full(num_states, np.nan)
        self._spent = np.full(num_states, np.inf)  # nothing is solved yet: every state breaks every limit

    def tighten(self, table: ActionTable, link: LinkState, problem: Problem, most: float) -> int:
        """Solve the states whose row costs more than `most` anew; return how many they were."""
        broken = np.flatnonzero(self._spent > most)
        if len(broken):
            solution = exhaustive.solve(table, link.take(broken), problem)
            self._rows[broken], self._values[broken] = solution.rows, solution.values
            self._spent[broken] = -np.inf
            for tile in tiles(len(broken), _SCORED_AT_ONCE):
                states = broken[tile][solution.is_feasible[tile]]
                result = evaluate(table, self._rows[states], link.take(states), problem.metric)
                self._spent[states] = costs(result, problem)[:, -1]
        return len(broken)

    def solution(self, table: ActionTable, link: LinkState, problem: Problem, start: float) -> Solution:
        """Return the present answer as a solution that began at `start` [s]."""
        lost, message = np.flatnonzero(self._rows == NOWHERE), ""
        if len(lost):
            nearest = (
                nearest_feasible_limit(table, link.take(lost), problem) or f"{problem.objective} is infinite there"
            )
            message = f"{len(lost)} of {len(self._rows)} states have no row within the limits: {nearest}"
        return Solution(
            solver="exhaustive, warm",
            status=Status.of(self._rows != NOWHERE),
            rows=self._rows.copy(),
            values=self._values.copy(),
            bounds=self._values.copy(),
            runtime_s=time.perf_counter() - start,
            message=message,
        )
