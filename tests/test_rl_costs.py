"""Limits on costs: what environments report, what it comes to per step and per episode, and how multipliers answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from megopt.errors import ConfigError, ProblemError
from megopt.rl.costs import CostLimits, CostMeter, read_costs
from megopt.rl.lagrangian_duals import Duals
from megopt.rl.pid import PidGains


def test_costs_come_from_the_vector_or_for_one_limit_from_the_number() -> None:
    infos = [{"costs": np.array([1.0, 2.0])}, {"costs": [3.0, 4.0], "cost": 9.0}]
    np.testing.assert_array_equal(read_costs(infos, 2), [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(read_costs([{"cost": 5.0}, {"costs": [6.0], "cost": 9.0}], 1), [[5.0], [6.0]])


@pytest.mark.parametrize(
    ("info", "num_limits", "message"),
    [
        ({}, 1, r'environment 0: info holds nothing; expected info\["costs"\] or info\["cost"\] for 1 limit'),
        ({"cost": 1.0}, 2, r"environment 0: info holds \['cost'\]; expected info\[\"costs\"\] for 2 limit"),
        ({"costs": [1.0, 2.0, 3.0]}, 2, r'info\["costs"\] holds 3 number\(s\); expected 2, one per limit'),
        ({"costs": [1.0, np.nan]}, 2, r'info\["costs"\] = \[1.0, nan\]; expected finite numbers'),
    ],
)
def test_costs_that_do_not_fit_the_limits_are_named(info: dict[str, Any], num_limits: int, message: str) -> None:
    with pytest.raises(ProblemError, match=message) as error:
        read_costs([info], num_limits)
    assert "\n" not in str(error.value)


def meter_of(steps: list[tuple[list[float], list[bool]]]) -> CostMeter:
    meter = CostMeter(2, 1)
    for costs, is_done in steps:
        meter.add(np.array(costs)[:, None], np.array(is_done))
    return meter


STEPS: list[tuple[list[float], list[bool]]] = [([1.0, 2.0], [False, True]), ([3.0, 4.0], [True, False])]


def test_mean_per_step_counts_every_step_and_mean_per_episode_whole_episodes() -> None:
    per_step = meter_of(STEPS).take("step")
    assert per_step is not None
    assert per_step.mean[0] == pytest.approx(10.0 / 4.0)
    per_episode = meter_of(STEPS).take("episode")
    assert per_episode is not None
    assert per_episode.mean[0] == pytest.approx((2.0 + 4.0) / 2.0)
    assert per_episode.episode_length == pytest.approx(1.5)


def test_an_unfinished_episode_is_counted_when_it_ends() -> None:
    meter = meter_of(STEPS)
    meter.take("episode")
    assert meter.take("episode") is None
    meter.add(np.array([[7.0], [5.0]]), np.array([False, True]))
    measure = meter.take("episode")
    assert measure is not None
    assert measure.mean[0] == pytest.approx(4.0 + 5.0)


def test_warm_up_steps_and_episodes_begun_in_warm_up_do_not_count() -> None:
    meter = CostMeter(1, 1)
    meter.add(np.array([[100.0]]), np.array([False]), is_warm_up=True)
    assert meter.take("step") is None
    meter.add(np.array([[1.0]]), np.array([True]))
    assert meter.take("episode") is None
    meter.add(np.array([[3.0]]), np.array([True]))
    measure = meter.take("episode")
    assert measure is not None
    assert measure.mean[0] == 3.0
    assert measure.episode_length == 1.0


def test_multipliers_rise_while_violated_and_fall_while_slack() -> None:
    duals = Duals(CostLimits(values=(0.5, 2.0)), PidGains())
    duals.restart(1)
    rows = []
    for costs in [(1.0, 0.1)] * 5 + [(0.0, 0.1)] * 40:
        duals.count(np.array([costs]), np.array([True]))
        assert duals.update()
        rows.append(duals.multipliers)
    first, second = np.array(rows).T
    assert (np.diff(first[:5]) > 0.0).all()
    assert (np.diff(first[5:]) <= 0.0).all()
    assert first[-1] == 0.0
    assert (second == 0.0).all()
    assert not duals.update()
    assert duals.log_rows()["lagrange/cost_1"] == pytest.approx(0.1)


def test_scaled_costs_of_both_kinds_of_limit() -> None:
    per_step = Duals(CostLimits(values=(0.5, 0.0, -2.0)), PidGains())
    offset, scale = per_step.offset_and_scale()
    np.testing.assert_array_equal(offset, [0.5, 0.0, -2.0])
    np.testing.assert_array_equal(scale, [0.5, 1.0, 2.0])
    per_episode = Duals(CostLimits(values=(8.0,), per="episode", scales=(4.0,)), PidGains())
    per_episode.restart(1)
    for length in (2, 10):  # the scale is that of the first measure: critics must not learn a moving target
        for step in range(length):
            per_episode.count(np.array([[1.0]]), np.array([step == length - 1]))
        per_episode.update()
        offset, scale = per_episode.offset_and_scale()
        assert (offset[0], scale[0]) == (0.0, 4.0 / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"values": ()}, r"limits = \[\]; expected one finite number per cost"),
        ({"values": (float("nan"),)}, r"limits = \[nan\]; expected one finite number"),
        ({"values": (1.0,), "per": "day"}, r"limit_per = 'day'; expected one of step, episode"),
        ({"values": (1.0,), "scales": (1.0, 2.0)}, r"cost_scales = \(1.0, 2.0\); expected 1 numbers > 0"),
    ],
)
def test_limits_that_make_no_sense_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CostLimits(**settings)
