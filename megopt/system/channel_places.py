"""Channels of devices at drawn places: log-distance loss, and the urban cells of 3GPP TR 38.901.

Places that are drawn for many devices at once may be stratified: of n devices, one at random lies in each n-th of the
range of distances. Each device by itself is as likely anywhere as without, and means over devices lose nearly all of
the luck of the places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from megopt.arrays import FloatArray
from megopt.ranges import require_number
from megopt.system.doppler import DopplerChannel
from megopt.system.fading import specular_share
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


def uniform_distances_m(
    rng: np.random.Generator, nearest_m: float, farthest_m: float, num_devices: int, *, is_stratified: bool
) -> FloatArray:
    """Return distances that are uniform over a range [m], shape (num_devices,).

    Args:
        rng: generator.
        nearest_m: smallest distance [m].
        farthest_m: largest distance [m].
        num_devices: devices that are placed at once.
        is_stratified: whether one of them, by chance, lies in each of `num_devices` equal parts of the range.
    """
    if not is_stratified:
        return rng.uniform(nearest_m, farthest_m, num_devices)
    share = (rng.permutation(num_devices) + rng.random(num_devices)) / max(1, num_devices)
    return np.asarray(nearest_m + share * (farthest_m - nearest_m))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedChannel(DopplerChannel):
    """Devices at uniform distances.

    Attributes:
        min_distance_m: smallest distance [m].
        max_distance_m: largest distance [m].
        are_places_stratified: whether devices that are placed at once share the distances out evenly.
    """

    min_distance_m: float = 200.0
    max_distance_m: float = 300.0
    are_places_stratified: bool = False

    def stratified(self) -> Self:
        """Return this channel with stratified places."""
        return replace(self, are_places_stratified=True)

    def _distances_m(self, rng: np.random.Generator, num_devices: int) -> FloatArray:
        """Return the distances of new devices [m], shape (num_devices,)."""
        ends_m = self.min_distance_m, self.max_distance_m
        return uniform_distances_m(rng, *ends_m, num_devices, is_stratified=self.are_places_stratified)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDistance(PlacedChannel):
    """Devices at uniform distances under log-distance loss, with shadowing and fading; defaults as in MEG-CVPO.

    Source: arXiv 2407.07245 for distances, powers and loss; small-scale fading is not stated there.

    Attributes:
        min_distance_m: smallest distance [m], at least 1 m.
        max_distance_m: largest distance [m].
        are_places_stratified: whether devices that are placed at once share the distances out evenly.
        tx_power_dbm: transmit power of the edge [dBm].
        noise_dbm: noise power over the band [dBm].
        reference_db: loss at 1 m [dB].
        slope_db: loss per decade of distance [dB].
        shadowing_db: standard deviation of log-normal shadowing [dB].
        k_factor_db: Rician factor [dB]; -inf is Rayleigh, inf has no small-scale fading.
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

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
        distance_m = self._distances_m(rng, num_devices)
        loss_db = log_distance_path_loss_db(distance_m, reference_db=self.reference_db, slope_db=self.slope_db)
        shadow_db = self.shadowing_db * rng.standard_normal(num_devices)
        mean_snr = linear_from_db(self.tx_power_dbm - loss_db + shadow_db - self.noise_dbm)
        return mean_snr, np.full(num_devices, specular_share(self.k_factor_db))


@dataclass(frozen=True, slots=True, kw_only=True)
class Urban(PlacedChannel):
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
        distance_m = self._distances_m(rng, num_devices)
        is_los = rng.random(num_devices) < los_probability(self.scenario, distance_m)
        deviation_db = np.where(is_los, self.scenario.los_shadowing_db, self.scenario.nlos_shadowing_db)
        shadow_db = self.is_shadowed * deviation_db * rng.standard_normal(num_devices)
        los_db = los_path_loss_db(self.scenario, distance_m, self.carrier_hz, **self._heights())
        nlos_db = nlos_path_loss_db(self.scenario, distance_m, self.carrier_hz, **self._heights())
        noise_dbm = noise_power_dbm(self.bandwidth_hz, self.noise_figure_db)
        mean_snr = linear_from_db(self.tx_power_dbm - np.where(is_los, los_db, nlos_db) + shadow_db - noise_dbm)
        return mean_snr, np.where(is_los, specular_share(self.los_k_factor_db), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanMicro(Urban):
    """Urban micro cell (street canyon) of 3GPP TR 38.901: Rician in line of sight, which is drawn, else Rayleigh.

    Attributes:
        carrier_hz: carrier frequency [Hz], 0.5 to 100 GHz.
        min_distance_m: smallest horizontal distance [m], at least 10 m.
        max_distance_m: largest horizontal distance [m], at most 5 km.
        are_places_stratified: whether devices that are placed at once share the distances out evenly.
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
class UrbanMacro(Urban):
    """Urban macro cell of 3GPP TR 38.901; attributes as in `UrbanMicro`, with a high base station and 46 dBm."""

    scenario: ClassVar[UrbanScenario] = URBAN_MACRO

    min_distance_m: float = 35.0
    max_distance_m: float = 500.0
    base_height_m: float = 25.0
    tx_power_dbm: float = 46.0
