"""Two settings of shared steps: the paper's, and one calibrated by a profile.

`paper_problem` takes what the paper prints; its bandwidth, power, channel, noise, compression and the scale of its
objective are not printed, so that the transfer and the weights are arguments. Its steps (7.5 ms at the edge) are about
500 times faster than a phone's: `profile_problem` takes measured steps instead.
Source: HIS, ICC 2025, table I and equations (1) to (9).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.schemes.row_costs import RowCoster
from megopt.solvers.grouping_model import SharingProblem
from megopt.system.compute import clock_energy_j, clock_latency_s
from megopt.system.payload import latent_bits

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

EDGE_CYCLES_PER_STEP, DEVICE_CYCLES_PER_STEP = 15e6, 14e6
EDGE_CLOCK_HZ = 2e9
DEVICE_CLOCK_RANGE_HZ = (1.4e9, 1.6e9)
ENERGY_COEFFICIENT = 1e-27
"""Switched capacitance of edge and device alike [J s^2/cycle^3]."""
LATENT_BITS = float(latent_bits(128 * 128 * 16, 16))
MAX_COMMON_STEPS, MAX_EDGE_STEPS, NUM_STEPS = 13, 16, 28
NUM_USERS, NUM_GROUPS = 50, 2


def paper_problem(
    quality: FloatArray,
    device_clock_hz: FloatArray,
    *,
    downlink_s_per_bit: Real,
    edge_tx_power_w: Real,
    compression: float = 1.0,
    weights: tuple[float, float, float] = (0.4, 0.3, 0.3),
) -> SharingProblem:
    """Return the paper's users.

    Args:
        quality: Q, shape (num_users, num_prompts, c_max + 1); `grouping_model.quality_table` gives it.
        device_clock_hz: clock of each device [Hz], shape (num_users,); the paper draws it from 1.4 to 1.6 GHz.
        downlink_s_per_bit: seconds per bit [s/bit], (num_users,) or a number; not printed in the paper.
        edge_tx_power_w: transmit power [W], (num_users,) or a number; not printed in the paper.
        compression: how many times smaller the sent latent is [1]; not printed in the paper.
        weights: w_Q, w_T and w_E; the paper normalises Q, T and E by a scale that it does not print.

    Raises:
        ConfigError: for a value outside its range.
    """
    clock = np.asarray(device_clock_hz, dtype=np.float64)
    transfer_s = np.broadcast_to(LATENT_BITS / compression * np.asarray(downlink_s_per_bit), clock.shape)
    return SharingProblem(
        quality=quality,
        edge_step_s=float(clock_latency_s(EDGE_CYCLES_PER_STEP, EDGE_CLOCK_HZ)),
        edge_step_j=float(clock_energy_j(EDGE_CYCLES_PER_STEP, EDGE_CLOCK_HZ, ENERGY_COEFFICIENT)),
        device_step_s=clock_latency_s(DEVICE_CYCLES_PER_STEP, clock),
        device_step_j=clock_energy_j(DEVICE_CYCLES_PER_STEP, clock, ENERGY_COEFFICIENT),
        transfer_s=transfer_s,
        transfer_j=np.asarray(transfer_s * edge_tx_power_w),
        num_steps=NUM_STEPS,
        max_edge_steps=MAX_EDGE_STEPS,
        quality_weight=weights[0],
        latency_weight=weights[1],
        energy_weight=weights[2],
    )


def profile_problem(
    profile: Profile,
    quality: FloatArray,
    *,
    downlink_s_per_bit: Real,
    edge_tx_power_w: Real = 0.0,
    weights: tuple[float, float, float] = (1.0, 1.0, 0.0),
    num_steps: int = NUM_STEPS,
) -> SharingProblem:
    """Return users with the steps of a profile; overheads of both sides count as part of the transfer.

    Args:
        profile: times and energies of a step on either side.
        quality: Q, shape (num_users, num_prompts, c_max + 1).
        downlink_s_per_bit: seconds per bit [s/bit], (num_users,) or a number.
        edge_tx_power_w: transmit power [W], (num_users,) or a number.
        weights: w_Q [1/score], w_T [1/s] and w_E [1/J].
        num_steps: steps of a request.

    Raises:
        OutOfTableError: if the profile did not measure so many steps.
    """
    profile.check_num_steps(num_steps)
    num_users, none = len(quality), np.zeros(1)
    coster = RowCoster(profile=profile, scheme="shared_steps", sr_scale=np.ones(1))
    overhead = coster.edge_latent_run(none) + coster.device_run(none)
    edge, device = profile.cost("edge", "denoise_step"), profile.cost("device", "denoise_step")
    bits = latent_bits(float(np.prod(profile.provenance.latent_shape)), 16)
    airtime_s = np.broadcast_to(bits * np.asarray(downlink_s_per_bit, dtype=np.float64), (num_users,))
    return SharingProblem(
        quality=quality,
        edge_step_s=edge.latency_s,
        edge_step_j=edge.energy_j,
        device_step_s=np.full(num_users, device.latency_s),
        device_step_j=np.full(num_users, device.energy_j),
        transfer_s=airtime_s + overhead.latency_s,
        transfer_j=np.asarray(airtime_s * edge_tx_power_w) + overhead.energy_j,
        num_steps=num_steps,
        quality_weight=weights[0],
        latency_weight=weights[1],
        energy_weight=weights[2],
    )
