"""Outage and mean rate of every channel of megopt, from formulas that are written here anew: closed or by quadrature.

A channel is a law over places, (weight, mean SNR, Rician K), and given its place a device's power is a non-central
chi-square with two degrees of freedom. So with P the probability of a place,

    outage(t) = sum P F(2 (1 + K) t / S; 2, 2 K),     mean rate = sum P E[log2(1 + S g)]

Places are integrated by Gauss-Legendre over the distance and Gauss-Hermite over the shadowing in dB.
Sources: 3GPP TR 38.901 V17 tables 7.4.1-1 (loss, shadowing) and 7.4.2-1 (line of sight); Simon and Alouini, Digital
Communication over Fading Channels, for the chi-square.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import brentq
from scipy.special import exp1
from scipy.stats import ncx2

from megopt.system.channel import (
    Channel,
    GaussMarkov,
    LogDistance,
    Rayleigh,
    Rician,
    Static,
    Trace,
    UrbanMacro,
    UrbanMicro,
)

_LEGENDRE, _HERMITE = np.polynomial.legendre.leggauss(48), np.polynomial.hermite_e.hermegauss(40)
_POWERS = np.polynomial.legendre.leggauss(600)


def linear(ratio_db: np.ndarray | float) -> np.ndarray:
    return np.asarray(10.0 ** (np.asarray(ratio_db, dtype=float) / 10.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Places of a device; all of shape (num_places,), the weights sum to 1, K may be inf."""

    weight: np.ndarray
    mean_snr: np.ndarray
    k: np.ndarray

    def outage(self, threshold: float) -> float:
        """Return the probability of an SNR below the threshold [1]."""
        k = np.where(np.isinf(self.k), 0.0, self.k)
        fading = ncx2.cdf(2.0 * (1.0 + k) * threshold / self.mean_snr, 2, 2.0 * k)
        return float(self.weight @ np.where(np.isinf(self.k), self.mean_snr < threshold, fading))

    def mean_rate(self) -> float:
        """Return the mean of log2(1 + SNR) [bit/s/Hz]."""
        total = 0.0
        for k in np.unique(self.k):
            own = self.k == k
            total += float(self.weight[own] @ _rate(self.mean_snr[own], float(k)))
        return total

    def threshold(self, outage: float) -> float:
        """Return the SNR [1] below which a device is with the given probability."""
        return float(linear(brentq(lambda db: self.outage(float(linear(db))) - outage, -120.0, 120.0)))


def _rate(mean: np.ndarray, k: float) -> np.ndarray:
    """Return E[log2(1 + S g)] for each mean S (num_places,): exp(1/S) E1(1/S) / ln 2 for K = 0, else by quadrature."""
    if np.isinf(k):
        return np.asarray(np.log2(1.0 + mean))
    if k == 0.0:
        inverse = 1.0 / mean
        with np.errstate(over="ignore", invalid="ignore"):
            rate = np.exp(inverse) * exp1(inverse) / np.log(2.0)
        return np.where(inverse > 500.0, mean * (1.0 - mean) / np.log(2.0), rate)
    most = 2.0 * k + 60.0 + 20.0 * k**0.5
    at, weight = 0.5 * most * (_POWERS[0] + 1.0), 0.5 * most * _POWERS[1]
    scale = mean[:, np.newaxis] / (2.0 * (1.0 + k))
    return np.asarray(np.log2(1.0 + scale * at) @ (weight * ncx2.pdf(at, 2, 2.0 * k)))


def law_of(channel: Channel) -> Law:
    """Return the law of a channel; a channel without one has no test, which is an error."""
    return _LAWS[type(channel)](channel)


def _same_place(snr_db: float, k: float) -> Law:
    return Law(weight=np.ones(1), mean_snr=linear([snr_db]), k=np.array([k]))


def _log_distance(channel: LogDistance) -> Law:
    distance_m, weight = _distances(channel.min_distance_m, channel.max_distance_m)
    loss_db = channel.reference_db + channel.slope_db * np.log10(distance_m)
    mean_db = channel.tx_power_dbm - loss_db - channel.noise_dbm
    return _shadowed(mean_db, weight, channel.shadowing_db, float(linear(channel.k_factor_db)))


def _distances(low_m: float, high_m: float, *kinks_m: float) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes [m] and weights of a mean over uniform distances, split where a formula has a kink."""
    ends = [low_m, *sorted(kink for kink in kinks_m if low_m < kink < high_m), high_m]
    nodes = [0.5 * (b - a) * (_LEGENDRE[0] + 1.0) + a for a, b in pairwise(ends)]
    weights = [0.5 * (b - a) * _LEGENDRE[1] / (high_m - low_m) for a, b in pairwise(ends)]
    return np.concatenate(nodes), np.concatenate(weights)


def _shadowed(mean_db: np.ndarray, weight: np.ndarray, deviation_db: float, k: float) -> Law:
    """Return the law of places whose mean SNR [dB] is shadowed by a normal variable."""
    normal, normal_weight = _HERMITE[0], _HERMITE[1] / np.sqrt(2.0 * np.pi)
    snr_db, joint = np.add.outer(mean_db, deviation_db * normal), np.outer(weight, normal_weight)
    return Law(weight=joint.ravel(), mean_snr=linear(snr_db).ravel(), k=np.full(joint.size, k))


@dataclass(frozen=True, slots=True, kw_only=True)
class Street:
    """One scenario of TR 38.901: coefficients of a + b log10(d3) + c log10(f/GHz), and the rest of its tables."""

    los: tuple[float, float]
    los_beyond: float
    nlos: tuple[float, float, float]
    height_db_per_m: float
    decay_m: float
    deviation_db: tuple[float, float]


MICRO = Street(los=(32.4, 21.0), los_beyond=9.5, nlos=(22.4, 35.3, 21.3), height_db_per_m=0.3, decay_m=36.0,
               deviation_db=(4.0, 7.82))  # fmt: skip
MACRO = Street(los=(28.0, 22.0), los_beyond=9.0, nlos=(13.54, 39.08, 20.0), height_db_per_m=0.6, decay_m=63.0,
               deviation_db=(4.0, 6.0))  # fmt: skip


def _street(channel: UrbanMicro | UrbanMacro, street: Street) -> Law:
    """Return the law of an urban channel: line of sight is drawn by probability, shadowing by its deviation."""
    gap_m, carrier_ghz = channel.base_height_m - channel.device_height_m, channel.carrier_hz / 1e9
    break_m = 4.0 * (channel.base_height_m - 1.0) * (channel.device_height_m - 1.0) * channel.carrier_hz / 299792458.0
    distance_m, weight = _distances(channel.min_distance_m, channel.max_distance_m, 18.0, break_m)
    log_m, log_f = np.log10(np.sqrt(distance_m**2 + gap_m**2)), np.log10(carrier_ghz)
    near_db = street.los[0] + street.los[1] * log_m + 20.0 * log_f
    far_db = street.los[0] + 40.0 * log_m + 20.0 * log_f - street.los_beyond * np.log10(break_m**2 + gap_m**2)
    los_db = np.where(distance_m < break_m, near_db, far_db)
    nlos_db = street.nlos[0] + street.nlos[1] * log_m + street.nlos[2] * log_f
    nlos_db = np.maximum(los_db, nlos_db - street.height_db_per_m * (channel.device_height_m - 1.5))
    share = 18.0 / distance_m + np.exp(-distance_m / street.decay_m) * (1.0 - 18.0 / distance_m)
    share = np.where(distance_m <= 18.0, 1.0, share)
    noise_dbm = -174.0 + 10.0 * np.log10(channel.bandwidth_hz) + channel.noise_figure_db
    parts = [
        _shadowed(channel.tx_power_dbm - loss_db - noise_dbm, weight * part, channel.is_shadowed * deviation_db, k)
        for loss_db, part, deviation_db, k in (
            (los_db, share, street.deviation_db[0], float(linear(channel.los_k_factor_db))),
            (nlos_db, 1.0 - share, street.deviation_db[1], 0.0),
        )
    ]
    return Law(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in Law.__slots__})


def _trace(channel: Trace) -> Law:
    snr = np.array([linear(db) for db in channel.snr_db])  # type: ignore[union-attr]
    return Law(weight=np.full(len(snr), 1.0 / len(snr)), mean_snr=snr, k=np.full(len(snr), np.inf))


_LAWS: dict[type[Channel], Callable[..., Law]] = {
    Static: lambda channel: _same_place(channel.snr_db, np.inf),
    Rayleigh: lambda channel: _same_place(channel.snr_db, 0.0),
    Rician: lambda channel: _same_place(channel.snr_db, float(linear(channel.k_factor_db))),
    GaussMarkov: lambda channel: _same_place(channel.snr_db, float(linear(channel.k_factor_db))),
    LogDistance: _log_distance,
    UrbanMicro: lambda channel: _street(channel, MICRO),
    UrbanMacro: lambda channel: _street(channel, MACRO),
    Trace: _trace,
}
