"""What CVPO writes to the log of each call of `train`."""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray
from megopt.rl.costs import CostLimits
from megopt.rl.thresholds import Thresholds
from megopt.rl.updates import Fit


def log_rows(
    fits: list[Fit], critic_loss: float, bounds: FloatArray, thresholds: Thresholds, limits: CostLimits | None
) -> dict[str, float]:
    """Return values by the names that go to the log.

    Args:
        fits: the updates of the call.
        critic_loss: its mean loss of the critics.
        bounds: thresholds on Q that the updates had, shape (num_limits,).
        thresholds: what they rest on.
        limits: the limits; None without.
    """
    latest = fits[-1].step
    rows = {
        "train/critic_loss": critic_loss,
        "train/fit_loss": float(np.mean([fit.loss for fit in fits])),
        "train/fit_divergence": float(np.mean([fit.divergence_share for fit in fits])),
        "train/kl": float(latest.kl),
        "train/temperature": float(latest.temperature),
        "train/effective_samples": float(latest.effective_samples),
        "train/recovery_rate": float(np.mean([not fit.step.is_feasible for fit in fits])),
        "train/horizon": float(thresholds.horizon),
    }
    for number, limit in enumerate(limits.values if limits is not None else ()):
        rows |= {
            f"cost_{number}/limit": float(limit),
            f"cost_{number}/measured": float(thresholds.measured_cost()[number]),
            f"cost_{number}/threshold": float(bounds[number]),
            f"cost_{number}/q_value": float(fits[-1].costs[number]),
            f"cost_{number}/multiplier": float(latest.multipliers[number]),
        }
    return rows
