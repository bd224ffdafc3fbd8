"""Limits as shares of what rows cost: known ends, order, and limits that bind on the bundled profile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megopt.analysis.evaluation import recorded_fading
from megopt.envs.limit_shares import limit_bounds
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError
from megopt.problem import Limit
from megopt.solvers import pipelining

DEFAULT = {"k_factor_db": 10.0, "bandwidth_hz": 0.25e6}


def test_share_0_is_the_cheapest_row_and_share_1_the_best_one() -> None:
    params = meg_cvpo(**DEFAULT, is_pipelined=False)  # type: ignore[arg-type]
    work, quality = params.table.work, params.table.metric("psnr_db")
    energy_j = work.edge_energy_j + work.device_energy_j
    assert limit_bounds(params, 0.0)[1] == pytest.approx(energy_j.min(), rel=5e-3)
    assert limit_bounds(params, 1.0)[1] == pytest.approx(energy_j[np.argmax(quality)], rel=5e-3)


def test_bounds_grow_with_the_share_and_are_on_the_costs_that_are_named() -> None:
    params = meg_cvpo(**DEFAULT)  # type: ignore[arg-type]
    bounds = np.array([limit_bounds(params, share) for share in (0.0, 0.25, 0.5, 1.0)])
    assert np.all(np.diff(bounds, axis=0) > 0.0)
    one = replace(params, problem=replace(params.problem, limits=(Limit(quantity="edge_energy_j", bound=1.0),)))
    assert limit_bounds(one, 0.5)[0] == pytest.approx(bounds[2, 1], rel=0.02)  # nearly all energy is the edge's
    assert limit_bounds(params, 0.5)[0] < limit_bounds(replace(params, is_pipelined=False), 0.5)[0]
    with pytest.raises(ConfigError, match="limit_share"):
        limit_bounds(params, -0.1)


def test_the_best_row_is_that_of_the_metric() -> None:
    params = meg_cvpo(**DEFAULT, metric="frechet", is_pipelined=False)  # type: ignore[arg-type]
    work, distance = params.table.work, params.table.metric("frechet")
    energy_j = work.edge_energy_j + work.device_energy_j
    assert limit_bounds(params, 1.0)[1] == pytest.approx(energy_j[np.nanargmin(distance)], rel=5e-3)


def test_a_floor_of_quality_has_no_share() -> None:
    params = meg_cvpo(**DEFAULT)  # type: ignore[arg-type]
    floor = replace(params, problem=replace(params.problem, limits=(Limit(quantity="quality", bound=20.0),)))
    with pytest.raises(ConfigError, match=r"limit_share 0\.5 with a limit on quality"):
        limit_bounds(floor, 0.5)


def test_both_limits_of_the_default_scenario_bind() -> None:
    params = meg_cvpo(**DEFAULT, limit_share=0.5)  # type: ignore[arg-type]
    links = recorded_fading(params, num_episodes=16, seed=0)
    found = pipelining.bound(params.table, links, params.problem, is_pipelined=True)
    worth = found.prices * [limit.bound for limit in params.problem.limits]
    assert np.all(worth > 1.0)  # dB that a limit twice as wide would be worth, to first order
    assert -found.bound < 0.95 * params.table.metric("psnr_db").max()
    published = meg_cvpo(**DEFAULT).problem.limits  # type: ignore[arg-type]
    assert [limit.bound for limit in published] == [3.0, 1800.0]
