"""The exact optimum of a cell: a mixed-integer program over rows that learns the convex part by cuts. For small cells.

Binaries z_ka say which row each user takes. Whether rows fit, and what they cost with their best shares, is convex and
enters by cuts, which hold for all z because they come from the dual of `cell_model` (generalised Benders; Geoffrion
1972). With x_k the price of a unit of pace at prices lambda and mu,

    they fit only if      sum x_k floor_ka z_ka <= lambda B + mu P
    they cost at least    sum v_ka(lambda, mu) z_ka - lambda B - mu P,      v: what a pair costs at these prices.

HiGHS solves the program; its rows get their exact shares by `cell_rates.fit` or `allocation.solve`, which is an answer,
and the prices there are one more cut, tight at these rows; the program's bound rises until the two meet. A pair that by
the dual alone would cost more than the best answer known is left out for good (reduced-cost fixing).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole, require_within
from megopt.solvers.cell import Found, dual_of, infeasibility, infeasible, reported
from megopt.solvers.cell_dual import Dual, unit_price
from megopt.solvers.cell_model import CellProblem, CellSolution
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rounding import choose, round_up
from megopt.solvers.cell_shares import share_out, shared

SOLVER = "cell by mixed-integer program"
_MOST_PAIRS = 5_000
_NEAR = 1e-5
"""Excess of a cut below which HiGHS may overlook it; the rows are then ruled out by name as well."""
_INFEASIBLE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """The pairs that an answer better than the best known may hold; fields of shape (num_pairs,)."""

    users: IntArray
    rows: IntArray
    fixed: FloatArray
    weighed: FloatArray
    floor: FloatArray

    @classmethod
    def of(cls, pairs: Pairs, dual: Dual, best: float) -> _Listed:
        """Return the pairs whose part in the dual does not lift it above `best`."""
        parts, room = [], (best - dual.best.bound) * (1.0 + 1e-9) + 1e-12 * abs(best)
        for block in pairs.blocks():
            price = np.maximum(dual.best.unit_price[block.users, np.newaxis], 1e-300)
            value, _ = block.values(price)
            user, row = np.nonzero(value - np.min(value, axis=1, keepdims=True) <= room)
            users = np.arange(len(pairs.gain))[block.users]
            fixed = np.broadcast_to(block.fixed, value.shape)[user, row]
            weighed = block.weight[user, 0] * block.root[row] ** 2
            parts.append((users[user], row, fixed, weighed, block.floor[user, row]))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return cls(**dict(zip(cls.__dataclass_fields__, columns, strict=True)))

    def costs(self, unit_price: FloatArray) -> FloatArray:
        """Return what each pair costs at prices of a unit of pace, shape (K,)."""
        price = unit_price[self.users]
        pace = np.maximum(np.sqrt(self.weighed / price), self.floor)
        return np.asarray(self.fixed + self.weighed / pace + price * pace)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """min eta subject to one row per user and to cuts; the last unknown is eta, counted from `base` in `unit`."""

    listed: _Listed
    num_users: int
    base: float
    unit: float
    cuts: list[tuple[FloatArray, float]] = field(default_factory=list)

    def must_fit(self, unit_price: FloatArray, worth: float) -> None:
        """Add the cut that the paces asked for are worth no more than the budgets."""
        self.cuts.append((np.append(unit_price[self.listed.users] * self.listed.floor / worth, 0.0), 1.0))

    def must_cost(self, values: FloatArray, worth: float) -> None:
        """Add the cut that eta is at least the sum of the pairs' `values` less `worth`."""
        least = np.full(self.num_users, np.inf)
        np.minimum.at(least, self.listed.users, values)
        above = (values - least[self.listed.users]) / self.unit
        self.cuts.append((np.append(above, -1.0), (self.base + worth - float(np.sum(least))) / self.unit))

    def must_differ(self, rows: IntArray) -> None:
        """Add the cut that rules out one set of kept rows."""
        is_same = self.listed.rows == rows[self.listed.users]
        self.cuts.append((np.append(is_same.astype(np.float64), 0.0), self.num_users - 1.0))

    def solve(self, time_limit_s: float) -> tuple[IntArray | None, float]:
        """Return the rows of the optimum, None if there is none left, and a lower bound on eta in the user's units."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        num = len(self.listed.users)
        of_user = csr_array((np.ones(num), (self.listed.users, np.arange(num))), shape=(self.num_users, num + 1))
        constraints = [LinearConstraint(of_user, 1.0, 1.0)]
        if self.cuts:
            matrix, room = np.stack([cut for cut, _ in self.cuts]), np.array([level for _, level in self.cuts])
            constraints.append(LinearConstraint(matrix, -np.inf, room))
        solver: Any = milp
        result = solver(
            np.append(np.zeros(num), 1.0),
            integrality=np.append(np.ones(num), 0.0),
            bounds=Bounds(np.zeros(num + 1), np.append(np.ones(num), np.inf)),
            constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": time_limit_s},
        )
        if result.status == _INFEASIBLE:
            return None, np.inf
        bound = self.base + self.unit * max(float(result.mip_dual_bound or 0.0), 0.0)
        return (None if result.x is None else self._rows(result.x[:-1])), bound

    def _rows(self, z: FloatArray) -> IntArray:
        """Return the row of each user with the largest z, shape (K,)."""
        rows, order = np.empty(self.num_users, dtype=np.int64), np.argsort(z, kind="stable")
        rows[self.listed.users[order]] = self.listed.rows[order]
        return rows


def solve_exactly(
    cell: CellProblem, gap: float = 1e-7, max_rounds: int = 200, time_limit_s: float = 60.0
) -> CellSolution:
    """Return the optimum of a small cell, certified to `gap` unless rounds or time run out; the gap is in the result.

    Args:
        cell: the cell.
        gap: relative distance of value and bound at which to stop [1].
        max_rounds: mixed-integer programs to solve at most [1].
        time_limit_s: wall time of one program [s].

    Raises:
        ProblemError: if more than 5,000 pairs of user and row stay in the running.
        ConfigError: for a gap, a number of rounds or a time outside its range.
    """
    require_within("cell exactly", 0.0, 1.0, gap=gap)
    require_whole("cell exactly", 1, max_rounds=max_rounds)
    require_within("cell exactly", 1e-3, 1e9, time_limit_s=time_limit_s)
    start, pairs = perf_counter(), Pairs.of(cell)
    obstacle = infeasibility(cell, pairs)
    if obstacle:
        return infeasible(cell, SOLVER, obstacle, start)
    dual = dual_of(pairs)
    search = _Search(pairs=pairs, dual=dual, gap=gap)
    search.take_first()
    if not search.is_done:
        search.run(max_rounds, time_limit_s)
    assert search.best is not None
    return reported(cell, pairs, search.best, SOLVER, start)


@dataclass(slots=True, kw_only=True)
class _Search:
    """The best answer and the bound so far."""

    pairs: Pairs
    dual: Dual
    gap: float
    best: Found | None = None
    value: float = np.inf
    bound: float = -np.inf

    @property
    def is_done(self) -> bool:
        """Whether value and bound have met."""
        return self.value - self.bound <= self.gap * max(abs(self.bound), 1e-12)

    def take_first(self) -> None:
        """Take the answer by prices as the first one."""
        self.bound = self.dual.best.bound
        if self.dual.is_slack:
            self.judge(self.dual.best.rows)
        elif self.pairs.is_airtime_free:
            self.judge(round_up(self.pairs, self.dual).rows)
        else:
            self.judge(share_out(self.pairs, self.dual).rows)

    def run(self, max_rounds: int, time_limit_s: float) -> None:
        """Solve programs and add cuts until value and bound meet."""
        program = self.program()
        for num in range(1, max_rounds + 1):
            rows, bound = program.solve(time_limit_s)
            self.bound = max(self.bound, min(bound, self.value))
            if rows is not None:
                self.judge(rows, program)
            self.update(num)
            if rows is None or self.is_done:
                break

    def program(self) -> _Program:
        """Return the first program, with the cuts of the dual's tries."""
        listed = _Listed.of(self.pairs, self.dual, self.value)
        if len(listed.users) > _MOST_PAIRS:
            message = (
                f"cell exactly: {len(listed.users)} pairs of user and row stay in the running; expected at most "
                f"{_MOST_PAIRS:,}; use cell.solve, whose gap is {self.value - self.bound:g}, or fewer users"
            )
            raise ProblemError(message)
        program = _Program(listed=listed, num_users=len(self.pairs.gain), base=self.bound, unit=self.value - self.bound)
        if self.pairs.is_airtime_free:
            program.must_cost(listed.fixed, 0.0)
        for one in self.dual.tries:
            self.cut(program, one.prices)
        return program

    def cut(self, program: _Program, prices: FloatArray) -> None:
        """Add what lambda B and mu P, shape (2,), say."""
        price, _ = unit_price(np.maximum(prices, 1e-300), self.pairs.gain)
        worth = float(np.sum(np.maximum(prices, 1e-300)))
        program.must_fit(price, worth)
        if not self.pairs.is_airtime_free:
            program.must_cost(program.listed.costs(price), worth)

    def judge(self, rows: IntArray, program: _Program | None = None) -> None:
        """Give `rows` their best shares; keep them if they are the best so far, and cut where they are not allowed."""
        choice = choose(self.pairs, rows)
        ratio = float(np.exp(choice.fit.log_ratio))
        excess = 1.0 / float(choice.fit.factor) - 1.0
        if excess > 0.0:
            if program is not None:
                program.must_fit(choice.fit.cost, 1.0 + ratio)
                if excess < _NEAR:
                    program.must_differ(rows)
            return
        if self.pairs.is_airtime_free:
            self.keep(Found.of(choice, self.dual), choice.value)
            return
        found = shared(self.pairs, rows[np.newaxis])[0]
        if program is not None:
            self.cut(program, found.prices)
        shares = Found(
            rows=rows,
            bandwidth=found.bandwidth,
            power=found.power,
            bound=self.bound,
            prices=found.prices,
            num_prices=1,
        )
        self.keep(shares, found.value)

    def keep(self, found: Found, value: float) -> None:
        """Keep an answer if it is better than the best so far."""
        if value < self.value:
            self.best, self.value = found, value
        self.update(0)

    def update(self, num_programs: int) -> None:
        """Write the bound and the number of programs into the best answer."""
        if self.best is not None:
            self.best = replace(self.best, bound=min(self.bound, self.value), num_prices=num_programs)
