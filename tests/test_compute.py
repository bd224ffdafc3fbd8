"""Power control, clock control and the affine step model: known numbers, limiting cases, invariants, messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import ConfigError
from megopt.system.compute import (
    clock_energy_j,
    clock_latency_s,
    power_control_energy_j,
    power_control_latency_s,
    step_latency_s,
)

ratios = st.floats(1e-3, 1.0)


def test_power_control_known_numbers() -> None:
    # MEGSplitting, kappa = 0.3 and P = 300 W: half the power takes 2^0.3 = 1.231144 times as long
    assert power_control_latency_s(1.0, 0.5, 0.3) == pytest.approx(1.231144, abs=1e-6)
    assert power_control_energy_j(1.0, 0.5, 0.3, full_power_w=300.0) == pytest.approx(184.6717, abs=1e-3)


def test_power_control_limits() -> None:
    assert power_control_latency_s(2.0, 1.0, 0.3) == 2.0
    assert power_control_latency_s(2.0, 0.0, 0.3) == np.inf
    assert power_control_latency_s(2.0, 0.1, 0.0) == 2.0
    assert power_control_energy_j(2.0, 1.0, 0.3, full_power_w=300.0) == 600.0
    assert power_control_energy_j(2.0, 0.0, 0.3, full_power_w=300.0) == 0.0


@given(first=ratios, second=ratios, exponent=st.floats(0.0, 1.0))
def test_less_power_is_slower_and_saves_energy(first: float, second: float, exponent: float) -> None:
    ratio = np.sort([first, second])
    slow_s, fast_s = power_control_latency_s(1.0, ratio, exponent)
    low_j, high_j = power_control_energy_j(1.0, ratio, exponent, full_power_w=300.0)
    assert slow_s >= fast_s
    assert low_j <= high_j


@given(ratio=ratios, exponent=st.floats(0.0, 1.0))
def test_energy_is_power_times_latency(ratio: float, exponent: float) -> None:
    energy_j = power_control_energy_j(4.0, ratio, exponent, full_power_w=300.0)
    assert energy_j == pytest.approx(ratio * 300.0 * power_control_latency_s(4.0, ratio, exponent))


def test_clock_known_numbers() -> None:
    # HIS, ICC 2025: 13 steps of 15 Mcycle at 2 GHz with 1e-27 J s^2/cycle^3
    assert clock_latency_s(13 * 15e6, 2e9) == pytest.approx(0.0975)
    assert clock_energy_j(13 * 15e6, 2e9, 1e-27) == pytest.approx(0.78)


def test_step_latency_known_number() -> None:
    # SDXL on an A100 (ML.ENERGY, fitted): 0.1627 s + 50 x 0.10774 s
    assert step_latency_s(50, step_s=0.10774, overhead_s=0.1627) == pytest.approx(5.5497)
    assert step_latency_s(0, step_s=0.1, overhead_s=0.2) == 0.2


def test_vector_equals_scalar() -> None:
    ratio = np.array([0.2, 0.5, 1.0])
    np.testing.assert_array_equal(
        power_control_latency_s(1.0, ratio, 0.3), [power_control_latency_s(1.0, float(r), 0.3) for r in ratio]
    )
    steps = np.array([[1, 2], [3, 4]])
    assert step_latency_s(steps, step_s=0.5).tolist() == [[0.5, 1.0], [1.5, 2.0]]
    assert clock_energy_j(np.array([1, 2]), np.array([[1], [2]]), 1.0).shape == (2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_control_latency_s(1.0, [0.5, 1.5], 0.3), "power control: power_ratio is 1.5 at index 1"),
        (lambda: power_control_latency_s(1.0, 0.5, -0.1), "power control: exponent is -0.1; expected 0 to 1"),
        (lambda: power_control_energy_j(-1.0, 0.5, 0.3, full_power_w=1.0), "full_power_latency_s is -1"),
        (lambda: power_control_energy_j(1.0, 0.5, 0.3, full_power_w=np.nan), "full_power_w is nan"),
        (lambda: clock_latency_s(1.0, 0.0), "clock control: clock_hz is 0; expected 1 to inf; change clock_hz"),
        (lambda: clock_energy_j(1.0, 1.0, -1.0), "energy_coefficient is -1"),
        (lambda: step_latency_s(-1, step_s=1.0), "step latency: num_steps is -1; expected 0 to inf"),
    ],
)
def test_compute_refuses(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()
