"""Decibels, dBm and bytes: the only place where they are converted.

Inside megopt every quantity is SI (s, J, W, Hz, bit) and ratios are linear, unless a name ends in `_db` or `_dbm`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, Real

BITS_PER_BYTE = 8


def linear_from_db(ratio_db: Real) -> FloatArray:
    """Return 10^(x/10) for a power ratio `ratio_db` [dB], any shape."""
    return np.asarray(10.0 ** (np.asarray(ratio_db, dtype=np.float64) / 10.0))


def db_from_linear(ratio: Real) -> FloatArray:
    """Return 10 log10(x) for a power ratio `ratio` [1] >= 0, any shape; 0 gives -inf."""
    with np.errstate(divide="ignore"):
        return np.asarray(10.0 * np.log10(np.asarray(ratio, dtype=np.float64)))


def write_db(ratio: NDArray[np.float32]) -> None:
    """Write 10 log10(x) over power ratios `ratio` [1] > 0, any shape, in their own precision and without a copy."""
    np.log(ratio, out=ratio)
    ratio *= np.float32(10.0 / np.log(10.0))


def watt_from_dbm(power_dbm: Real) -> FloatArray:
    """Return the power [W] of `power_dbm` [dBm], any shape: 30 dBm is 1 W."""
    return linear_from_db(np.asarray(power_dbm, dtype=np.float64) - 30.0)


def dbm_from_watt(power_w: Real) -> FloatArray:
    """Return the power [dBm] of `power_w` [W] >= 0, any shape; 0 W gives -inf."""
    return db_from_linear(power_w) + 30.0


def bits_from_bytes(num_bytes: Real) -> FloatArray:
    """Return bits for `num_bytes` [byte], any shape."""
    return np.asarray(np.asarray(num_bytes, dtype=np.float64) * BITS_PER_BYTE)
