"""Objective, limits and costs: signs, units and what happens where nothing was measured."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import ProblemError
from megopt.problem import (
    Limit,
    Problem,
    affine_cost,
    ceilings,
    costs,
    evaluate,
    is_feasible,
    objective,
    reward,
    violations,
)
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.region_split import RegionSplit
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.system.link import Link, LinkState
from megopt.system.outcome import COST_QUANTITIES
from megopt.tables.profile import load_profile

RADIO = Link(bandwidth_hz=1e6, round_trip_s=0.02, device_rx_power_w=0.9, device_tx_power_w=2.0, edge_tx_power_w=4.7)


@cache
def a100_table() -> ActionTable:
    schemes = [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,))]
    return compile_all(schemes, load_profile("a100__snapdragon8gen3__sdxl"))[0]


@cache
def sdxl_table() -> ActionTable:
    schemes = [Conventional(num_steps=(25,)), RegionSplit(num_region_ratios=6, num_device_powers=3)]
    return compile_all(schemes, load_profile("megsplitting_sdxl"))[0]


def state(snr: float, num: int) -> LinkState:
    return RADIO.state(np.full(num, snr))


def test_signs_are_turned_where_more_is_better_and_nowhere_else() -> None:
    better, worse = Problem(objective="quality", metric="ssim"), Problem(objective="quality", metric="fid")
    assert (better.sense, worse.sense, Problem().sense) == (-1, 1, 1)
    assert [Problem().sense_of(quantity) for quantity in COST_QUANTITIES] == [1] * len(COST_QUANTITIES)
    limited = Problem(
        metric="ssim", limits=(Limit(quantity="quality", bound=0.5), Limit(quantity="energy_j", bound=2.0))
    )
    assert ceilings(limited).tolist() == [-0.5, 2.0]


def test_outcome_by_hand() -> None:
    """Edge only, raw, at SNR 1: 1 Mbit/s, so 25.165824 s of downlink and 1.024 ms of uplink."""
    table = a100_table()
    result = evaluate(table, np.array([0]), state(1.0, 1))
    assert result.downlink_s[0] == pytest.approx(25.165824)
    assert result.uplink_s[0] == pytest.approx(1.024e-3)
    assert result.latency_s[0] == pytest.approx(table.work.edge_s[0] + 25.165824 + 1.024e-3 + 0.02)
    assert result.device_energy_j[0] == pytest.approx(0.9 * 25.165824 + 2.0 * 1.024e-3)
    assert result.edge_energy_j[0] == pytest.approx(table.work.edge_energy_j[0] + 4.7 * 25.165824)
    assert result.energy_j[0] == pytest.approx(result.edge_energy_j[0] + result.device_energy_j[0])


def test_dead_link_only_lets_device_only_finish() -> None:
    table = a100_table()
    rows = np.arange(len(table))
    result = evaluate(table, rows, state(0.0, len(table)))
    is_device_only = np.char.startswith(table.label, "device only")
    assert np.isfinite(result.latency_s[is_device_only]).all()
    assert np.isinf(result.latency_s[~is_device_only]).all()


@given(st.floats(1e-3, 1e4), st.sampled_from(COST_QUANTITIES))
def test_affine_terms_are_the_outcome(snr: float, quantity: str) -> None:
    table = a100_table()
    link = state(snr, len(table))
    problem = Problem(objective=quantity)
    line = affine_cost(table, link, problem, quantity).at(link.downlink_s_per_bit, link.uplink_s_per_bit)
    np.testing.assert_array_equal(line, evaluate(table, np.arange(len(table)), link).quantity(quantity))


@given(st.floats(0.01, 1e3), st.floats(1.001, 10))
def test_a_better_link_never_costs_more(snr: float, gain: float) -> None:
    table = a100_table()
    rows = np.arange(len(table))
    worse, better = (evaluate(table, rows, state(s, len(rows))) for s in (snr, snr * gain))
    for quantity in COST_QUANTITIES:
        assert np.all(better.quantity(quantity) <= worse.quantity(quantity))


def test_quality_turns_its_sign_so_that_smaller_is_better() -> None:
    table = sdxl_table()
    rows = np.arange(len(table))
    for metric, sense in (("ssim", 1), ("fid", -1)):
        problem = Problem(objective="quality", metric=metric, limits=(Limit(quantity="quality", bound=0.8),))
        result = evaluate(table, rows, state(10.0, len(rows)), metric)
        np.testing.assert_array_equal(reward(result, problem), sense * table.metric(metric))
        np.testing.assert_array_equal(objective(result, problem), -reward(result, problem))
        known = ~np.isnan(table.metric(metric))
        is_good = table.metric(metric) >= 0.8 if sense > 0 else table.metric(metric) <= 0.8
        np.testing.assert_array_equal(is_feasible(result, problem)[known], is_good[known])
        assert not is_feasible(result, problem)[~known].any()


def test_costs_have_one_column_per_limit_in_order() -> None:
    table = a100_table()
    problem = Problem(limits=(Limit(quantity="energy_j", bound=500.0), Limit(quantity="latency_s", bound=5.0)))
    result = evaluate(table, np.arange(len(table)), state(10.0, len(table)))
    assert costs(result, problem).shape == (len(table), 2)
    np.testing.assert_array_equal(costs(result, problem)[:, 1], result.latency_s)
    np.testing.assert_array_equal(ceilings(problem), [500.0, 5.0])
    np.testing.assert_array_equal(violations(result, problem)[:, 0], np.maximum(result.energy_j - 500.0, 0))
    np.testing.assert_array_equal(is_feasible(result, problem), (violations(result, problem) == 0).all(axis=1))


def test_what_was_not_measured_is_no_zero() -> None:
    table = sdxl_table()
    problem = Problem(limits=(Limit(quantity="edge_energy_j", bound=1e9),))
    result = evaluate(table, np.arange(len(table)), state(10.0, len(table)))
    assert np.isinf(violations(result, problem)).all()
    with pytest.raises(ProblemError, match="edge_energy_j was not measured in profile megsplitting_sdxl"):
        affine_cost(table, state(10.0, 1), problem, "edge_energy_j")


def test_with_limit_replaces_the_old_bound() -> None:
    problem = Problem(limits=(Limit(quantity="energy_j", bound=1.0), Limit(quantity="latency_s", bound=2.0)))
    assert [str(limit) for limit in problem.with_limit("energy_j", 3.0).limits] == ["latency_s <= 2", "energy_j <= 3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limit(quantity="speed", bound=1.0), "limit on 'speed': expected one of latency_s"),
        (lambda: Limit(quantity="latency_s", bound=float("nan")), "limit on latency_s is nan; expected a number"),
        (lambda: Problem(objective="joy"), "objective 'joy': expected one of latency_s"),
        (lambda: Problem(objective="quality"), "metric '': expected|with metric ''; expected one of ssim"),
        (lambda: sdxl_table().metric("clip"), "not in the tables of profile megsplitting_sdxl; it offers ssim"),
        (lambda: a100_table().metric("fid"), "it offers ssim, psnr_db"),
        (lambda: Problem(limits={"latency_s": 3.0}), "limits is {'latency_s': 3.0}; expected a tuple of Limit, such"),
        (lambda: Problem(limits=("latency_s",)), "limits is \\('latency_s',\\); expected a tuple of Limit"),
        (lambda: Problem(metric=["ssim"]), "metric \\['ssim'\\]; expected one of ssim"),
        (lambda: Limit(quantity="latency_s", bound="fast"), "limit on latency_s is 'fast'; expected a number"),
        (lambda: evaluate(a100_table(), np.array([0, -1]), state(10.0, 2)), "1 of 2 rows lie outside 0 to"),
    ],
)  # fmt: skip
def test_senseless_problems_are_refused(make: object, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        make()  # type: ignore[operator]
