"""Large-scale loss between edge and device: log-distance, free space, TR 38.901 urban micro and macro, thermal noise.

Distances are metres, carriers Hz, losses dB; every function broadcasts over its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.ranges import require_within
from megopt.units import db_from_linear

SPEED_OF_LIGHT_M_PER_S = 299_792_458.0
THERMAL_NOISE_DBM_PER_HZ = -174.0


def noise_power_dbm(bandwidth_hz: Real, noise_figure_db: Real = 0.0) -> FloatArray:
    """Return the receiver noise N = -174 dBm/Hz + 10 log10(B) + F [dBm].

    Args:
        bandwidth_hz: bandwidth B [Hz], any shape.
        noise_figure_db: noise figure F of the receiver [dB], broadcasts.

    Raises:
        ConfigError: if the bandwidth is below 1 Hz.

    Source: thermal noise density k T at T = 290 K.
    """
    require_within("noise power", 1.0, np.inf, bandwidth_hz=bandwidth_hz)
    return np.asarray(THERMAL_NOISE_DBM_PER_HZ + db_from_linear(bandwidth_hz) + noise_figure_db)


def log_distance_path_loss_db(distance_m: Real, *, reference_db: float = 35.3, slope_db: float = 37.6) -> FloatArray:
    """Return PL = reference + slope log10(d / 1 m) [dB].

    Args:
        distance_m: distance d [m], any shape, at least 1 m.
        reference_db: loss at 1 m [dB].
        slope_db: loss per decade of distance [dB]; ten times the path-loss exponent.

    Raises:
        ConfigError: if a distance is below 1 m.

    Source: the defaults are those of MEG-CVPO, arXiv 2407.07245.
    """
    require_within("log-distance path loss", 1.0, np.inf, distance_m=distance_m)
    return np.asarray(reference_db + slope_db * np.log10(distance_m))


def friis_path_loss_db(distance_m: Real, carrier_hz: Real) -> FloatArray:
    """Return the free-space loss PL = 20 log10(4 pi d f / c) [dB].

    Args:
        distance_m: distance d [m], any shape, at least 1 m.
        carrier_hz: carrier frequency f [Hz], broadcasts.

    Raises:
        ConfigError: if a distance is below 1 m or a carrier below 1 MHz.

    Source: H. T. Friis, "A Note on a Simple Transmission Formula", Proc. IRE 1946.
    """
    require_within("free-space path loss", 1.0, np.inf, distance_m=distance_m)
    require_within("free-space path loss", 1e6, np.inf, carrier_hz=carrier_hz)
    return np.asarray(20.0 * np.log10(4.0 * np.pi * np.asarray(distance_m) * carrier_hz / SPEED_OF_LIGHT_M_PER_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class UrbanScenario:
    """Constants of one street-level scenario of 3GPP TR 38.901.

    Attributes:
        name: short name in messages.
        los_intercept_db: LOS loss at 1 m and 1 GHz [dB], table 7.4.1-1.
        los_slope_db: LOS loss per decade of distance up to the breakpoint [dB].
        los_breakpoint_db: weight of the breakpoint term beyond it [dB].
        nlos_intercept_db: NLOS loss at 1 m and 1 GHz [dB].
        nlos_slope_db: NLOS loss per decade of distance [dB].
        nlos_carrier_db: NLOS loss per decade of frequency [dB].
        nlos_height_db: NLOS gain per metre of device height above 1.5 m [dB/m].
        los_decay_m: decay length of the LOS probability [m], table 7.4.2-1.
        los_shadowing_db: standard deviation of LOS shadowing [dB], table 7.4.1-1.
        nlos_shadowing_db: standard deviation of NLOS shadowing [dB].
        los_k_factor_db: mean Rician factor under LOS [dB], table 7.5-6.
        max_device_height_m: largest device height that is modelled [m].
    """

    name: str
    los_intercept_db: float
    los_slope_db: float
    los_breakpoint_db: float
    nlos_intercept_db: float
    nlos_slope_db: float
    nlos_carrier_db: float
    nlos_height_db: float
    los_decay_m: float
    los_shadowing_db: float
    nlos_shadowing_db: float
    los_k_factor_db: float
    max_device_height_m: float

    def check(
        self, where: str, *, distance_2d_m: Real, carrier_hz: Real, base_height_m: Real, device_height_m: Real
    ) -> None:
        """Raise ConfigError in the name of `where` outside the range of table 7.4.1-1; units as named, any shape."""
        require_within(where, 10.0, 5000.0, distance_2d_m=distance_2d_m)
        require_within(where, 0.5e9, 100e9, carrier_hz=carrier_hz)
        require_within(where, 2.0, 150.0, base_height_m=base_height_m)
        require_within(where, 1.5, self.max_device_height_m, device_height_m=device_height_m)


URBAN_MICRO = UrbanScenario(
    name="UMi",
    los_intercept_db=32.4,
    los_slope_db=21.0,
    los_breakpoint_db=9.5,
    nlos_intercept_db=22.4,
    nlos_slope_db=35.3,
    nlos_carrier_db=21.3,
    nlos_height_db=0.3,
    los_decay_m=36.0,
    los_shadowing_db=4.0,
    nlos_shadowing_db=7.82,
    los_k_factor_db=9.0,
    max_device_height_m=22.5,
)
"""UMi street canyon; the usual base height is 10 m."""

# Above 13 m the effective environment height of UMa is drawn per link (note 1 of table 7.4.1-1); not modelled here.
URBAN_MACRO = UrbanScenario(
    name="UMa",
    los_intercept_db=28.0,
    los_slope_db=22.0,
    los_breakpoint_db=9.0,
    nlos_intercept_db=13.54,
    nlos_slope_db=39.08,
    nlos_carrier_db=20.0,
    nlos_height_db=0.6,
    los_decay_m=63.0,
    los_shadowing_db=4.0,
    nlos_shadowing_db=6.0,
    los_k_factor_db=9.0,
    max_device_height_m=13.0,
)
"""UMa; the usual base height is 25 m."""


def breakpoint_distance_m(carrier_hz: Real, *, base_height_m: Real, device_height_m: Real) -> FloatArray:
    """Return d_BP = 4 (h_BS - 1 m) (h_UT - 1 m) f / c [m]; arguments in Hz and m broadcast.

    Source: 3GPP TR 38.901 table 7.4.1-1 note 1, with c exact in place of the rounded 3e8 m/s (0.006 dB beyond d_BP).
    """
    heights_m2 = (np.asarray(base_height_m) - 1.0) * (np.asarray(device_height_m) - 1.0)
    return np.asarray(4.0 * heights_m2 * carrier_hz / SPEED_OF_LIGHT_M_PER_S)


def los_path_loss_db(
    scenario: UrbanScenario, distance_2d_m: Real, carrier_hz: Real, *, base_height_m: Real, device_height_m: Real
) -> FloatArray:
    """Return the line-of-sight loss [dB] of an urban scenario.

    With d3 = sqrt(d2^2 + (h_BS - h_UT)^2), f in GHz and the scenario's constants a, b, k:
    PL = a + b log10 d3 + 20 log10 f up to the breakpoint d_BP, and beyond it
    PL = a + 40 log10 d3 + 20 log10 f - k log10(d_BP^2 + (h_BS - h_UT)^2).

    Args:
        scenario: `URBAN_MICRO` or `URBAN_MACRO`.
        distance_2d_m: horizontal distance d2 [m], any shape, 10 m to 5 km.
        carrier_hz: carrier frequency [Hz], 0.5 to 100 GHz, broadcasts.
        base_height_m: antenna height h_BS of the base station [m], broadcasts.
        device_height_m: antenna height h_UT of the device [m], broadcasts.

    Raises:
        ConfigError: outside those ranges.

    Source: 3GPP TR 38.901 table 7.4.1-1.
    """
    heights = {"base_height_m": base_height_m, "device_height_m": device_height_m}
    scenario.check(f"{scenario.name} path loss", distance_2d_m=distance_2d_m, carrier_hz=carrier_hz, **heights)
    breakpoint_m = breakpoint_distance_m(carrier_hz, **heights)
    height_gap_m = np.asarray(base_height_m) - device_height_m
    distance_3d_m = np.hypot(distance_2d_m, height_gap_m)
    common_db = scenario.los_intercept_db + 20.0 * np.log10(np.asarray(carrier_hz) / 1e9)
    near_db = scenario.los_slope_db * np.log10(distance_3d_m)
    far_db = 40.0 * np.log10(distance_3d_m) - scenario.los_breakpoint_db * np.log10(breakpoint_m**2 + height_gap_m**2)
    return np.asarray(common_db + np.where(np.asarray(distance_2d_m) < breakpoint_m, near_db, far_db))


def nlos_path_loss_db(
    scenario: UrbanScenario, distance_2d_m: Real, carrier_hz: Real, *, base_height_m: Real, device_height_m: Real
) -> FloatArray:
    """Return the loss without line of sight [dB]: PL = max(PL_LOS, a + b log10 d3 + c log10 f - h (h_UT - 1.5 m)).

    Arguments, units, shapes and errors are those of `los_path_loss_db`; a, b, c, h are the scenario's NLOS constants.

    Source: 3GPP TR 38.901 table 7.4.1-1.
    """
    los_db = los_path_loss_db(
        scenario, distance_2d_m, carrier_hz, base_height_m=base_height_m, device_height_m=device_height_m
    )
    distance_3d_m = np.hypot(distance_2d_m, np.asarray(base_height_m) - device_height_m)
    nlos_db = (
        scenario.nlos_intercept_db
        + scenario.nlos_slope_db * np.log10(distance_3d_m)
        + scenario.nlos_carrier_db * np.log10(np.asarray(carrier_hz) / 1e9)
        - scenario.nlos_height_db * (np.asarray(device_height_m) - 1.5)
    )
    return np.maximum(los_db, nlos_db)


def los_probability(scenario: UrbanScenario, distance_2d_m: Real) -> FloatArray:
    """Return the probability of line of sight [1] of an outdoor device up to 13 m high (UMi: of any height).

    P = 1 up to 18 m, and 18/d2 + exp(-d2/D) (1 - 18/d2) beyond, with the scenario's decay length D.

    Args:
        scenario: `URBAN_MICRO` or `URBAN_MACRO`.
        distance_2d_m: horizontal distance d2 [m], any shape, 10 m to 5 km.

    Raises:
        ConfigError: outside that range.

    Source: 3GPP TR 38.901 table 7.4.2-1.
    """
    require_within(f"{scenario.name} LOS probability", 10.0, 5000.0, distance_2d_m=distance_2d_m)
    distance_m = np.asarray(distance_2d_m, dtype=np.float64)
    near = np.minimum(18.0 / distance_m, 1.0)
    return np.asarray(near + np.exp(-distance_m / scenario.los_decay_m) * (1.0 - near))
