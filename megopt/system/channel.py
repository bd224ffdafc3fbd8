"""The channel that each request meets: large-scale SNR of a device times small-scale fading, or a recorded trace.

    snr = mean_snr x |sqrt(s) + sqrt(1 - s) g|^2,     mean_snr = tx power - path loss + shadowing - noise   (in dB)

A device keeps its mean SNR and its specular share s from `initial` on; its scattered amplitude g moves from request to
request (`megopt.system.fading`). A channel class only says how devices are placed and how fast g moves.
Where each request should meet a place of its own, let every request be a device: `sample_snr(rng, 1, num_requests)[0]`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ConfigError
from megopt.ranges import require_number, require_within
from megopt.system.fading import Channel, ChannelState, jakes_correlation, specular_share
from megopt.system.path_loss import (
    URBAN_MACRO,
    URBAN_MICRO,
    UrbanScenario,
    log_distance_path_loss_db,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
    noise_power_dbm,
)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _DopplerChannel(Channel):
    """A fading channel that moves with a Doppler shift.

    Attributes:
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    doppler_hz: float | None = None
    interval_s: float = 1.0

    def _check(self, *, k_factor_db: float = 0.0) -> str:
        """Check what all fading channels hold and return the name that messages start with."""
        where = f"channel {type(self).__name__}"
        require_number(where, -np.inf, np.inf, k_factor_db=k_factor_db)
        require_number(where, 0.0, 1e9, interval_s=self.interval_s)
        if self.doppler_hz is not None:
            require_number(where, 0.0, 1e9, doppler_hz=self.doppler_hz)
        return where

    def slot_correlation(self) -> float:
        """Return Jakes' correlation, 0 without a Doppler shift."""
        return 0.0 if self.doppler_hz is None else float(jakes_correlation(self.doppler_hz, self.interval_s))


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
class Rayleigh(_DopplerChannel):
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
class Rician(_DopplerChannel):
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
class GaussMarkov(_DopplerChannel):
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
        return _DopplerChannel.slot_correlation(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDistance(_DopplerChannel):
    """Devices at uniform distances under log-distance loss, with shadowing and fading; defaults as in MEG-CVPO.

    Source: arXiv 2407.07245 for distances, powers and loss; small-scale fading is not stated there.

    Attributes:
        min_distance_m: smallest distance [m], at least 1 m.
        max_distance_m: largest distance [m].
        tx_power_dbm: transmit power of the edge [dBm].
        noise_dbm: noise power over the band [dBm].
        reference_db: loss at 1 m [dB].
        slope_db: loss per decade of distance [dB].
        shadowing_db: standard deviation of log-normal shadowing [dB].
        k_factor_db: Rician factor [dB]; -inf is Rayleigh, inf has no small-scale fading.
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    min_distance_m: float = 200.0
    max_distance_m: float = 300.0
    tx_power_dbm: float = 30.0
    noise_dbm: float = -94.0
    reference_db: float = 35.3
    slope_db: float = 37.6
    shadowing_db: float = 0.0
    k_factor_db: float = -np.inf

    def __post_init__(self) -> None:
        where = self._check(k_factor_db=self.k_factor_db)
        require_number(where, 1.0, 1e6, min_distance_m=self.min_distance_m)
        require_number(where, self.min_distance_m, 1e6, max_distance_m=self.max_distance_m)
        require_number(where, -200.0, 200.0, tx_power_dbm=self.tx_power_dbm, noise_dbm=self.noise_dbm)
        require_number(where, -200.0, 200.0, reference_db=self.reference_db)
        require_number(where, 0.0, 100.0, slope_db=self.slope_db, shadowing_db=self.shadowing_db)

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return mean SNR and specular share; draws distances, then shadowing."""
        distance_m = rng.uniform(self.min_distance_m, self.max_distance_m, num_devices)
        loss_db = log_distance_path_loss_db(distance_m, reference_db=self.reference_db, slope_db=self.slope_db)
        shadow_db = self.shadowing_db * rng.standard_normal(num_devices)
        mean_snr = linear_from_db(self.tx_power_dbm - loss_db + shadow_db - self.noise_dbm)
        return mean_snr, np.full(num_devices, specular_share(self.k_factor_db))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Urban(_DopplerChannel):
    """Devices in a street-level scenario of 3GPP TR 38.901; fields as in `UrbanMicro`."""

    scenario: ClassVar[UrbanScenario]

    carrier_hz: float = 3.5e9
    min_distance_m: float = 10.0
    max_distance_m: float = 200.0
    base_height_m: float = 10.0
    device_height_m: float = 1.5
    tx_power_dbm: float = 30.0
    bandwidth_hz: float = 20e6
    noise_figure_db: float = 9.0
    is_shadowed: bool = True
    los_k_factor_db: float = 9.0

    def __post_init__(self) -> None:
        where = self._check(k_factor_db=self.los_k_factor_db)
        require_number(where, 10.0, 5000.0, min_distance_m=self.min_distance_m)
        require_number(where, self.min_distance_m, 5000.0, max_distance_m=self.max_distance_m)
        self.scenario.check(where, distance_2d_m=self.max_distance_m, carrier_hz=self.carrier_hz, **self._heights())
        require_number(where, -200.0, 200.0, tx_power_dbm=self.tx_power_dbm)
        require_number(where, 1.0, 1e12, bandwidth_hz=self.bandwidth_hz)
        require_number(where, 0.0, 100.0, noise_figure_db=self.noise_figure_db)

    def _heights(self) -> dict[str, float]:
        return {"base_height_m": self.base_height_m, "device_height_m": self.device_height_m}

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return mean SNR and specular share; draws distances, then lines of sight, then shadowing."""
        distance_m = rng.uniform(self.min_distance_m, self.max_distance_m, num_devices)
        is_los = rng.random(num_devices) < los_probability(self.scenario, distance_m)
        deviation_db = np.where(is_los, self.scenario.los_shadowing_db, self.scenario.nlos_shadowing_db)
        shadow_db = self.is_shadowed * deviation_db * rng.standard_normal(num_devices)
        los_db = los_path_loss_db(self.scenario, distance_m, self.carrier_hz, **self._heights())
        nlos_db = nlos_path_loss_db(self.scenario, distance_m, self.carrier_hz, **self._heights())
        noise_dbm = noise_power_dbm(self.bandwidth_hz, self.noise_figure_db)
        mean_snr = linear_from_db(self.tx_power_dbm - np.where(is_los, los_db, nlos_db) + shadow_db - noise_dbm)
        return mean_snr, np.where(is_los, specular_share(self.los_k_factor_db), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMicro(_Urban):
    """Urban micro cell (street canyon) of 3GPP TR 38.901: Rician in line of sight, which is drawn, else Rayleigh.

    Attributes:
        carrier_hz: carrier frequency [Hz], 0.5 to 100 GHz.
        min_distance_m: smallest horizontal distance [m], at least 10 m.
        max_distance_m: largest horizontal distance [m], at most 5 km.
        base_height_m: antenna height of the base station [m].
        device_height_m: antenna height of the device [m], from 1.5 m.
        tx_power_dbm: transmit power of the edge's base station [dBm].
        bandwidth_hz: bandwidth of the noise [Hz]; keep it equal to the link's.
        noise_figure_db: noise figure of the device [dB].
        is_shadowed: whether log-normal shadowing is drawn.
        los_k_factor_db: Rician factor in line of sight [dB]; the mean of table 7.5-6.
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    scenario: ClassVar[UrbanScenario] = URBAN_MICRO


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMacro(_Urban):
    """Urban macro cell of 3GPP TR 38.901; attributes as in `UrbanMicro`, with a high base station and 46 dBm."""

    scenario: ClassVar[UrbanScenario] = URBAN_MACRO

    min_distance_m: float = 35.0
    max_distance_m: float = 500.0
    base_height_m: float = 25.0
    tx_power_dbm: float = 46.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace(Channel):
    """A recorded SNR, replayed in order, and again from its beginning.

    Attributes:
        snr_db: SNR of each slot [dB], or the path of a csv file with the column `snr_db`; -inf is an outage.
        start_row: row that device 0 starts at.
        device_stride: rows between the starts of two neighbouring devices.

    Raises:
        ConfigError: if the file or its column is missing, or if a value is no number.
    """

    snr_db: Sequence[float] | str | Path
    start_row: int = 0
    device_stride: int = 0
    recorded_snr: FloatArray = field(init=False, repr=False, compare=False)
    """Recorded SNR [1], shape (num_rows,)."""

    def __post_init__(self) -> None:
        if isinstance(self.snr_db, str | Path):
            where, recorded_db = f"channel Trace: {self.snr_db}", _read_column(Path(self.snr_db))
        else:
            where, recorded_db = "channel Trace", list(self.snr_db)
        if not recorded_db:
            message = f"{where}: no rows; expected at least one SNR; give the trace a row"
            raise ConfigError(message)
        require_within(where, -np.inf, 200.0, snr_db=recorded_db)
        for name, row in (("start_row", self.start_row), ("device_stride", self.device_stride)):
            require_within(where, 0, 1e12, **{name: row})
            if row != int(row):
                message = f"{where}: {name} is {row}; expected a whole number of rows; round {name}"
                raise ConfigError(message)
        object.__setattr__(self, "recorded_snr", linear_from_db(recorded_db))

    def place(self, rng: np.random.Generator, num_devices: int) -> tuple[FloatArray, FloatArray]:
        """Return the SNR of the rows that the devices start at, all of it specular."""
        return self._row(self._start(num_devices)), np.ones(num_devices)

    def slot_correlation(self) -> float:
        """Return 1: what moves is the record."""
        return 1.0

    def advance(self, rng: np.random.Generator, state: ChannelState) -> ChannelState:
        """Return the next row of each device; the last row is followed by the first."""
        slot = state.slot + 1
        return replace(state, mean_snr=self._row(self._start(slot.size) + slot), slot=slot)

    def sample_snr(self, rng: np.random.Generator, num_requests: int, num_devices: int = 1) -> FloatArray:
        """Return the replayed SNR [1], shape (num_requests, num_devices); the generator changes nothing."""
        require_within("channel", 1, np.inf, num_requests=num_requests, num_devices=num_devices)
        return self._row(self._start(num_devices) + np.arange(num_requests)[:, np.newaxis])

    def _start(self, num_devices: int) -> IntArray:
        return int(self.start_row) + int(self.device_stride) * np.arange(num_devices)

    def _row(self, row: IntArray) -> FloatArray:
        """Return the recorded SNR [1] of rows of any shape, counted round and round."""
        return self.recorded_snr[row % self.recorded_snr.size]


def _read_column(path: Path) -> list[float]:
    """Return the column `snr_db` of a csv file; empty or non-numeric cells become NaN and are refused by the caller."""
    if not path.is_file():
        message = f"channel Trace: {path}: no such file; expected a csv with the column snr_db; change channel.snr_db"
        raise ConfigError(message)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "snr_db" not in (reader.fieldnames or ()):
            came = ", ".join(reader.fieldnames or ()) or "none"
            message = f"channel Trace: {path}: columns are {came}; expected snr_db among them; rename one or add it"
            raise ConfigError(message)
        return [_number(row["snr_db"]) for row in reader]


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")
