"""Rows and shares of a cell: degenerate and infeasible cells, and what makes no sense."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.benchmarks import cell_allocation as benchmark
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Problem
from megopt.solvers import cell
from megopt.solvers.cell_exact import solve_exactly
from megopt.solvers.cell_model import CellProblem
from megopt.solvers.cell_pairs import Pairs
from megopt.solvers.cell_rounding import choose
from megopt.solvers.solution import Status
from tests.cells import QUALITY, assert_certified, brute_force, links, small, table_of


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    num_users=st.integers(1, 4),
    num_rows=st.integers(1, 4),
    dead=st.booleans(),
    equal=st.booleans(),
    silent=st.booleans(),
)
def test_degenerate_cells_are_solved_or_refused_by_status(
    seed: int, num_users: int, num_rows: int, dead: bool, equal: bool, silent: bool
) -> None:
    """One row, equal rows, a dead link, rows without payload: certified, or infeasible as brute force says."""
    problem = small(seed, num_users=num_users, num_rows=num_rows)
    table = problem.tables[0].take(np.zeros(num_rows, dtype=int)) if equal else problem.tables[0]
    if silent:
        bits = table.work.downlink_bits.copy()
        bits[0] = 0.0
        table = dataclasses.replace(table, work=dataclasses.replace(table.work, downlink_bits=bits))
    snr = np.array(problem.link.snr)
    snr[0] = 0.0 if dead else snr[0]
    problem = dataclasses.replace(problem, tables=table, link=dataclasses.replace(problem.link, snr=snr))
    ours, best = cell.solve(problem), brute_force(problem)
    if ours.status == Status.INFEASIBLE:
        assert best == np.inf
        assert ours.message
        assert np.all(ours.rows == -1)
        return
    assert_certified(problem, ours, 1.0)
    assert problem.problem.sense * (ours.bound - problem.problem.sense * best) <= 1e-9 * abs(best)


def test_infeasible_names_the_band_that_would_do() -> None:
    table = table_of([4e6, 6e6], [0.4, 0.9])
    problem = CellProblem(tables=table, link=links(10.0, 6), bandwidth_hz=1e6, problem=QUALITY)
    for found in (cell.solve(problem), solve_exactly(problem)):
        assert found.status == Status.INFEASIBLE
        assert found.bound == -np.inf
        assert np.isnan(found.value)
    times = float(found.message.split("need ")[1].split(" times")[0])
    enough = dataclasses.replace(
        problem, bandwidth_hz=1e6 * times * 1.0001, power_w=times * 1.0001,
        link=dataclasses.replace(problem.link, snr=np.asarray(problem.link.snr)),
    )  # fmt: skip
    assert cell.solve(enough).status == Status.OPTIMAL
    late = dataclasses.replace(problem, bounds=np.where(np.arange(6) == 2, -1.0, 2.0)[:, None])
    assert "1 of 6 users have no row within their limits at any rate, first user 2" in cell.solve(late).message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bandwidth_hz": 0.0}, ConfigError, "cell: bandwidth_hz is 0"),
        ({"weights": [1.0, -1.0]}, ConfigError, "cell: weights is -1"),
        ({"weights": [1.0, 1.0, 1.0]}, ProblemError, r"weights has shape \(3,\); expected \(2,\)"),
        ({"kinds": 1}, ConfigError, "cell: kinds is 1"),
        ({"bounds": [[np.nan], [1.0]]}, ConfigError, "bounds hold NaN"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, object], error: type[Exception], message: str) -> None:
    fields = {"tables": table_of([1e5], [0.5]), "link": links(10.0, 2), "bandwidth_hz": 1e6, "problem": QUALITY}
    with pytest.raises(error, match=message):
        CellProblem(**(fields | change))  # type: ignore[arg-type]


def test_payloads_that_could_take_forever_are_refused() -> None:
    problem = CellProblem(
        tables=table_of([1e5], [0.5]), link=links(10.0, 2), bandwidth_hz=1e6,
        problem=Problem(objective="quality", metric="ssim"),
    )  # fmt: skip
    with pytest.raises(ProblemError, match="lets payloads take forever; expected a finite limit"):
        cell.solve(problem)


def test_large_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megopt.solvers.cell_exact._MOST_PAIRS", 3)
    problem = benchmark.random_cell(8, 30, "quality", np.random.default_rng(5))
    with pytest.raises(ProblemError, match="stay in the running; expected at most 3"):
        solve_exactly(problem, gap=0.0)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_stated_budgets_suffice_and_a_hair_less_ends(seed: int) -> None:
    whole = dataclasses.replace(small(seed), bounds=np.tile([4.0, 0.3, 16.0][: small(seed).bounds.shape[1]], (4, 1)))
    message = cell.solve(dataclasses.replace(whole, bandwidth_hz=whole.bandwidth_hz * 1e-6, power_w=1e-9)).message
    found = re.search(r": ([0-9.e+-]+) Hz with ([0-9.e+-]+) W would be enough", message)
    assert found is not None, message
    enough = dataclasses.replace(whole, bandwidth_hz=float(found[1]), power_w=float(found[2]))
    assert cell.solve(enough).status != Status.INFEASIBLE
    factor = float(choose(Pairs.of(enough), Pairs.of(enough).humblest()).fit.factor)
    for shortage in (-1e-9, 5e-10, 1e-8):
        near = (1.0 - shortage) / factor
        budget = {"bandwidth_hz": enough.bandwidth_hz * near, "power_w": enough.power_w * near}
        status = cell.solve(dataclasses.replace(enough, **budget)).status
        assert (status == Status.INFEASIBLE) == (shortage > 0.0)
