"""What a piece of computation costs: power control, clock control, and the affine cost of diffusion steps."""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.ranges import require_within


def power_control_latency_s(full_power_latency_s: Real, power_ratio: Real, exponent: Real) -> FloatArray:
    """Return t (p/P)^(-kappa) [s]: the time of a piece of work at the power p in place of the full power P.

    Args:
        full_power_latency_s: time t at full power [s], any shape.
        power_ratio: p/P [1] from 0 to 1, broadcasts; 0 gives inf s.
        exponent: kappa [1] from 0 to 1, broadcasts; MEGSplitting measured 0.3.

    Raises:
        ConfigError: outside those ranges.

    Source: MEGSplitting, ICC 2025, delay of the device under power control.
    """
    _check_power_control(full_power_latency_s, power_ratio, exponent)
    with np.errstate(divide="ignore"):
        slowdown = np.asarray(power_ratio, dtype=np.float64) ** -np.asarray(exponent, dtype=np.float64)
    return np.asarray(full_power_latency_s * slowdown)


def power_control_energy_j(
    full_power_latency_s: Real, power_ratio: Real, exponent: Real, *, full_power_w: Real
) -> FloatArray:
    """Return p t (p/P)^(-kappa) = P t (p/P)^(1 - kappa) [J]: the energy of the work of `power_control_latency_s`.

    Args:
        full_power_latency_s: time t at full power [s], any shape.
        power_ratio: p/P [1] from 0 to 1, broadcasts.
        exponent: kappa [1] from 0 to 1, broadcasts.
        full_power_w: full power P [W], broadcasts.

    Raises:
        ConfigError: outside those ranges.

    Source: MEGSplitting, ICC 2025, energy of the device under power control.
    """
    _check_power_control(full_power_latency_s, power_ratio, exponent)
    require_within("power control", 0.0, np.inf, full_power_w=full_power_w)
    share = np.asarray(power_ratio, dtype=np.float64) ** (1.0 - np.asarray(exponent, dtype=np.float64))
    return np.asarray(full_power_w * np.asarray(full_power_latency_s) * share)


def _check_power_control(full_power_latency_s: Real, power_ratio: Real, exponent: Real) -> None:
    require_within("power control", 0.0, np.inf, full_power_latency_s=full_power_latency_s)
    require_within("power control", 0.0, 1.0, power_ratio=power_ratio, exponent=exponent)


def clock_latency_s(num_cycles: Real, clock_hz: Real) -> FloatArray:
    """Return cycles / f [s].

    Args:
        num_cycles: work [cycle], any shape.
        clock_hz: clock f of the processor [Hz], at least 1 Hz, broadcasts.

    Raises:
        ConfigError: outside those ranges.

    Source: dynamic voltage and frequency scaling as in HIS, ICC 2025, equations (1), (3) and (8).
    """
    _check_clock(num_cycles, clock_hz)
    return np.asarray(np.asarray(num_cycles, dtype=np.float64) / clock_hz)


def clock_energy_j(num_cycles: Real, clock_hz: Real, energy_coefficient: Real) -> FloatArray:
    """Return k cycles f^2 [J].

    Args:
        num_cycles: work [cycle], any shape.
        clock_hz: clock f of the processor [Hz], at least 1 Hz, broadcasts.
        energy_coefficient: effective switched capacitance k [J s^2 / cycle^3], broadcasts; 1e-27 is usual.

    Raises:
        ConfigError: outside those ranges.

    Source: dynamic voltage and frequency scaling as in HIS, ICC 2025, equations (2), (4) and (9).
    """
    _check_clock(num_cycles, clock_hz)
    require_within("clock control", 0.0, np.inf, energy_coefficient=energy_coefficient)
    return np.asarray(energy_coefficient * np.asarray(num_cycles, dtype=np.float64) * np.asarray(clock_hz) ** 2.0)


def _check_clock(num_cycles: Real, clock_hz: Real) -> None:
    require_within("clock control", 0.0, np.inf, num_cycles=num_cycles)
    require_within("clock control", 1.0, np.inf, clock_hz=clock_hz)


def step_latency_s(num_steps: Real, *, step_s: Real, overhead_s: Real = 0.0) -> FloatArray:
    """Return overhead + steps x step time [s]: the affine latency of a diffusion run.

    Args:
        num_steps: denoising steps [1], any shape.
        step_s: time of one step [s], broadcasts.
        overhead_s: text encoding, decoding and the rest that every run pays [s], broadcasts.

    Raises:
        ConfigError: if one of them is negative.

    Source: least squares over the ML.ENERGY leaderboard, R^2 > 0.99 for most models.
    """
    require_within("step latency", 0.0, np.inf, num_steps=num_steps, step_s=step_s, overhead_s=overhead_s)
    return np.asarray(overhead_s + np.asarray(num_steps, dtype=np.float64) * step_s)
