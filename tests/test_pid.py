"""Multipliers of the PID controller against sequences worked out by hand, and their bounds."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError, ProblemError
from megopt.rl import pid
from megopt.rl.pid import PidGains, PidState

EXCESSES = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=30)


def run(errors: list[float], gains: PidGains) -> list[PidState]:
    state, states = pid.initial(1), []
    for error in errors:
        state = pid.update(state, np.array([error]), gains)
        states.append(state)
    return states


def multipliers(errors: list[float], gains: PidGains) -> list[float]:
    return [float(state.multipliers[0]) for state in run(errors, gains)]


def test_terms_add_up_as_worked_out_by_hand() -> None:
    gains = PidGains(proportional=2.0, integral=0.5, derivative=1.0, smoothing=0.0)
    # excess 0.4: P 0.8, I 0.2, D 0; 1.0: P 2, I 0.7, D 0.6; 0.5: P 1, I 0.95, D 0 (falling); -0.2: P -0.4, I 0.85
    assert multipliers([0.4, 1.0, 0.5, -0.2], gains) == pytest.approx([1.0, 3.3, 1.95, 0.45])


def test_smoothing_acts_on_proportion_and_derivative_but_not_on_the_integral() -> None:
    gains = PidGains(proportional=1.0, integral=0.1, derivative=2.0, smoothing=0.75)
    # s: 0.4, then 0.75 * 0.4 + 0.25 * 0.8 = 0.5; I: 0.04, 0.12; D: 0, 2 * 0.1
    assert multipliers([0.4, 0.8], gains) == pytest.approx([0.44, 0.5 + 0.12 + 0.2])


def test_integral_alone_is_projected_gradient_ascent_on_the_dual() -> None:
    gains = PidGains(proportional=0.0, integral=0.25, derivative=0.0, smoothing=0.0)
    assert multipliers([1.0, 1.0, -0.4, -1.0, -1.0, 0.8], gains) == pytest.approx([0.25, 0.5, 0.4, 0.15, 0.0, 0.2])


@pytest.mark.parametrize("num_updates", [10, 1000])
def test_answer_to_the_first_slack_does_not_depend_on_how_long_the_limit_was_out_of_reach(num_updates: int) -> None:
    gains = PidGains(proportional=1.0, integral=0.5, derivative=0.0, smoothing=0.0, ceiling=4.0)
    states = run([1.0] * num_updates + [-1.0], gains)
    assert states[-2].multipliers[0] == 4.0
    assert states[-2].integral[0] == 4.0
    assert states[-1].multipliers[0] == pytest.approx(4.0 - 1.0 - 0.5)


def test_answer_to_the_first_excess_does_not_depend_on_how_long_the_limit_was_slack() -> None:
    gains = PidGains(proportional=1.0, integral=0.5, derivative=0.0, smoothing=0.0)
    assert multipliers([-1.0] * 1000 + [0.2], gains)[-1] == pytest.approx(multipliers([-1.0, 0.2], gains)[-1])
    assert multipliers([-1.0] * 1000 + [0.2], gains)[-1] == pytest.approx(0.2 + 0.1)


@given(errors=EXCESSES, smoothing=st.floats(0.0, 0.95), ceiling=st.floats(0.5, 20.0))
def test_multiplier_and_integral_stay_in_their_range(errors: list[float], smoothing: float, ceiling: float) -> None:
    for state in run(errors, PidGains(smoothing=smoothing, ceiling=ceiling)):
        assert 0.0 <= state.multipliers[0] <= ceiling
        assert 0.0 <= state.integral[0] <= ceiling


@settings(max_examples=20)
@given(errors=EXCESSES, size=st.floats(0.1, 1.0))
def test_steady_violation_raises_and_steady_slack_lowers_to_zero(errors: list[float], size: float) -> None:
    gains = PidGains(proportional=0.5, integral=0.1, derivative=0.0, smoothing=0.0, ceiling=1000.0)
    up = multipliers([*errors, *[size] * 9], gains)[-9:]
    np.testing.assert_allclose(np.diff(up), gains.integral * size)
    down = multipliers([*errors, *[-size] * 300], gains)[-300:]
    assert (np.diff(down) <= 0.0).all()
    assert down[-1] == 0.0


@given(errors=st.lists(st.tuples(*[st.floats(-2.0, 2.0)] * 3), min_size=1, max_size=10))
def test_limits_do_not_mix(errors: list[tuple[float, float, float]]) -> None:
    state = pid.initial(3)
    for row in errors:
        state = pid.update(state, np.array(row), PidGains())
    for column in range(3):
        assert multipliers([row[column] for row in errors], PidGains())[-1] == state.multipliers[column]


def test_one_huge_excess_counts_as_the_cap() -> None:
    gains = PidGains(error_cap=2.0)
    assert multipliers([1e9, 0.0], gains) == multipliers([2.0, 0.0], gains)
    assert multipliers([1.0, -1e9], gains) == multipliers([1.0, -2.0], gains)


def test_state_starts_where_asked_and_survives_pickling() -> None:
    state = pid.update(pid.initial(2, multiplier=1.5), np.array([0.1, -0.1]), PidGains(integral=0.1))
    np.testing.assert_allclose(state.integral, [1.51, 1.49])
    copy = pickle.loads(pickle.dumps(state))
    np.testing.assert_array_equal(copy.multipliers, state.multipliers)
    assert copy.num_updates == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("proportional", -0.1), ("integral", float("nan")), ("smoothing", 1.0), ("ceiling", 0.0), ("error_cap", 0.0)],
)
def test_gains_outside_their_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"PidGains: {name} = .*; expected .*; change this gain"):
        PidGains(**{name: value})


@pytest.mark.parametrize("errors", [[float("nan"), 0.0], [0.0], [float("inf"), 1.0]])
def test_excess_that_is_no_number_is_refused(errors: list[float]) -> None:
    with pytest.raises(ProblemError, match=r"pid.update: .*; expected 2 finite numbers; look for NaN"):
        pid.update(pid.initial(2), np.array(errors), PidGains())
