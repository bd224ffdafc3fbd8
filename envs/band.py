"""How the devices that receive at the same time share the downlink band.

The power density over the band is constant, so a device's spectral efficiency does not depend on its share w, and a
payload that would take d = bits / (bandwidth x efficiency) seconds alone takes d / w. Shares hold until the last of
the payloads is over.

equal         w_i = 1 / n over the n devices that receive
proportional  w_i = d_i / sum(d): all payloads end together, after sum(d), the shortest time to empty the band
optimal       w_i = sqrt(d_i) / sum(sqrt(d)): least sum of the airtimes
chosen        w_i = weight_i / sum(weight): the agent's weights

The optimum: minimise sum(d_i / w_i) subject to sum(w_i) = 1. The problem is convex; its Lagrangian is stationary where
d_i / w_i^2 is the same for all i, so w_i is proportional to sqrt(d_i), that is to sqrt(bits / efficiency), and the
least sum is (sum(sqrt(d)))^2. Equal shares give n sum(d) and proportional ones too: by Cauchy-Schwarz both are no less.
"""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError

ALLOCATIONS = ("equal", "proportional", "optimal", "chosen")


def check_allocation(allocation: str) -> None:
    """Raise `ConfigError` unless `allocation` is one of `ALLOCATIONS`."""
    if allocation not in ALLOCATIONS:
        message = f"cell: allocation is {allocation!r}; expected one of {', '.join(ALLOCATIONS)}; change allocation"
        raise ConfigError(message)


def stretch(allocation: str, alone_s: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Return 1 / w, by how much sharing stretches each payload's airtime [1]; 1 where nothing is sent.

    Args:
        allocation: one of `ALLOCATIONS`.
        alone_s: airtime of each payload alone in the band [s], shape (..., num_devices); 0 where nothing is sent.
        weights: for "chosen", weights above 0 [1], same shape.

    Raises:
        ConfigError: if the allocation is unknown, or "chosen" comes without weights.
    """
    check_allocation(allocation)
    is_sent = alone_s > 0.0
    if allocation == "equal":
        return np.where(is_sent, np.sum(is_sent, axis=-1, keepdims=True, dtype=np.float64), 1.0)
    if allocation == "chosen":
        if weights is None:
            message = "cell: allocation is 'chosen' but no weights came; expected one per device with the action"
            raise ConfigError(message)
        claim = np.where(is_sent, weights, 0.0)
    else:
        claim = alone_s if allocation == "proportional" else np.sqrt(alone_s)
    total = np.sum(claim, axis=-1, keepdims=True)
    return np.asarray(np.divide(total, claim, out=np.ones_like(claim), where=is_sent))
