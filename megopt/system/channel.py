"""The channel that each request meets: large-scale SNR of a device times small-scale fading, or a recorded trace.

    snr = mean_snr x |sqrt(s) + sqrt(1 - s) g|^2,     mean_snr = tx power - path loss + shadowing - noise   (in dB)

A device keeps its mean SNR and its specular share s from `initial` on; its scattered amplitude g moves from request to
request (`megopt.system.fading`). A channel class only says how devices are placed and how fast g moves.
Here are the channels of devices at one mean SNR; `channel_places` draws places, `channel_trace` replays a record, and
all can be had from here.
Where each request should meet a place of its own, let every request be a device: `sample_snr(rng, 1, num_requests)[0]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_number
from megopt.system.channel_places import LogDistance, UrbanMacro, UrbanMicro
from megopt.system.channel_trace import Trace
from megopt.system.doppler import DopplerChannel
from megopt.system.fading import Channel, ChannelState, specular_share
from megopt.units import linear_from_db

__all__ = [
    "Channel",
    "ChannelState",
    "GaussMarkov",
    "LogDistance",
    "Rayleigh",
    "Rician",
    "Static",
    "Trace",
    "UrbanMacro",
    "UrbanMicro",
]


def _same_place(snr_db: float, k_factor_db: float, num_devices: int) -> tuple[FloatArray, FloatArray]:
    """Return one mean SNR and one specular share for all devices."""
    return np.full(num_devices, linear_from_db(snr_db)), np.full(num_devices, specular_share(k_factor_db))


@dataclass(frozen=True, slots=True, kw_only=True)
class Static(Channel):
    """The same SNR at every request.

    Attributes:
        snr_db: received SNR [dB].
    """

    snr_db: float = 10.0

    def __post_init__(self) -> None:
        require_number("channel Static", -200.0, 200.0, snr_db=self.snr_db)

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the one SNR, all of it specular."""
        return _same_place(self.snr_db, np.inf, num_devices)

    def slot_correlation(self) -> float:
        """Return 1: nothing moves."""
        return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rayleigh(DopplerChannel):
    """Rayleigh fading: no line of sight, the SNR is exponentially distributed.

    Attributes:
        snr_db: mean received SNR [dB].
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    snr_db: float = 10.0

    def __post_init__(self) -> None:
        require_number(self._check(), -200.0, 200.0, snr_db=self.snr_db)

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the one mean SNR, none of it specular."""
        return _same_place(self.snr_db, -np.inf, num_devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rician(DopplerChannel):
    """Rician fading: a line of sight and scattered paths.

    Attributes:
        snr_db: mean received SNR [dB].
        k_factor_db: power of the line of sight over that of the scattered paths [dB].
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    snr_db: float = 10.0
    k_factor_db: float = 9.0

    def __post_init__(self) -> None:
        require_number(self._check(k_factor_db=self.k_factor_db), -200.0, 200.0, snr_db=self.snr_db)

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the one mean SNR and its specular share."""
        return _same_place(self.snr_db, self.k_factor_db, num_devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussMarkov(DopplerChannel):
    """Fading with memory, g' = rho g + sqrt(1 - rho^2) w; rho is given, or follows from the Doppler shift.

    Attributes:
        snr_db: mean received SNR [dB].
        k_factor_db: Rician factor [dB]; -inf is Rayleigh.
        correlation: rho of the scattered amplitude from one request to the next [1], -1 to 1.
        doppler_hz: largest Doppler shift [Hz]; in place of `correlation`.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    snr_db: float = 10.0
    k_factor_db: float = -np.inf
    correlation: float | None = None

    def __post_init__(self) -> None:
        where = self._check(k_factor_db=self.k_factor_db)
        require_number(where, -200.0, 200.0, snr_db=self.snr_db)
        if (self.correlation is None) == (self.doppler_hz is None):
            came = f"correlation is {self.correlation} and doppler_hz is {self.doppler_hz}"
            message = f"{where}: {came}; expected one number and one null; set one of them to null"
            raise ConfigError(message)
        if self.correlation is not None:
            require_number(where, -1.0, 1.0, correlation=self.correlation)

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the one mean SNR and its specular share."""
        return _same_place(self.snr_db, self.k_factor_db, num_devices)

    def slot_correlation(self) -> float:
        """Return the given correlation, or Jakes'."""
        if self.correlation is not None:
            return self.correlation
        return DopplerChannel.slot_correlation(self)
