"""From SNR to seconds per bit: Shannon, the CQI table of TS 38.214, round-trip time, downlink and uplink."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from megopt.arrays import FloatArray, IntArray, Real
from megopt.errors import ConfigError
from megopt.ranges import require_number, require_within
from megopt.units import linear_from_db


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """The link that each of `num_requests` requests meets.

    Attributes:
        snr: received downlink SNR [1], shape (num_requests,).
        downlink_s_per_bit: seconds per bit edge to device [s/bit], shape (num_requests,); inf in outage.
        uplink_s_per_bit: seconds per bit device to edge [s/bit], shape (num_requests,).
        round_trip_s: round-trip time of a message besides its airtime [s].
        device_rx_power_w: extra power of the device while receiving [W].
        device_tx_power_w: extra power of the device while sending [W].
        edge_tx_power_w: extra power of the edge's base station while sending [W].
    """

    snr: FloatArray
    downlink_s_per_bit: FloatArray
    uplink_s_per_bit: FloatArray
    round_trip_s: float
    device_rx_power_w: float
    device_tx_power_w: float
    edge_tx_power_w: float

    def take(self, requests: IntArray) -> LinkState:
        """Return the link of the given `requests`, any shape."""
        chosen = {name: getattr(self, name)[requests] for name in ("snr", "downlink_s_per_bit", "uplink_s_per_bit")}
        return replace(self, **chosen)


def uplink_ratio(link: LinkState) -> float | None:
    """Return u_up / u_down [1] if it is the same in every state that carries data, else None.

    With a constant ratio every cost is affine in one number, u_down, and the solvers need no second dimension.

    Args:
        link: states of shape (num_requests,). A state dead in both directions fits any ratio and is passed over;
            a state dead in one direction fits none.

    Returns:
        The ratio [1], constant to 1e-12 relative; None where it varies or where no state carries data.
    """
    is_dead = np.isinf(link.downlink_s_per_bit) & np.isinf(link.uplink_s_per_bit)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (link.uplink_s_per_bit / link.downlink_s_per_bit)[~is_dead]
    if ratio.size == 0 or not np.all(np.isfinite(ratio)) or np.any(ratio == 0.0):
        return None
    return float(ratio[0]) if np.ptp(ratio) <= 1e-12 * ratio[0] else None


class Cqi(NamedTuple):
    """One row of the CQI table: number, modulation, code rate x 1024 [1], efficiency [bit/s/Hz], SNR threshold [dB]."""

    number: int
    modulation: str
    code_rate_x1024: int
    efficiency_bps_per_hz: float
    snr_threshold_db: float


CQI_TABLE = (
    Cqi(1, "QPSK", 78, 0.1523, -6.7),
    Cqi(2, "QPSK", 120, 0.2344, -4.7),
    Cqi(3, "QPSK", 193, 0.3770, -2.3),
    Cqi(4, "QPSK", 308, 0.6016, 0.2),
    Cqi(5, "QPSK", 449, 0.8770, 2.4),
    Cqi(6, "QPSK", 602, 1.1758, 4.3),
    Cqi(7, "16QAM", 378, 1.4766, 5.9),
    Cqi(8, "16QAM", 490, 1.9141, 8.1),
    Cqi(9, "16QAM", 616, 2.4063, 10.3),
    Cqi(10, "64QAM", 466, 2.7305, 11.7),
    Cqi(11, "64QAM", 567, 3.3223, 14.1),
    Cqi(12, "64QAM", 666, 3.9023, 16.3),
    Cqi(13, "64QAM", 772, 4.5234, 18.7),
    Cqi(14, "64QAM", 873, 5.1152, 21.0),
    Cqi(15, "64QAM", 948, 5.5547, 22.7),
)
"""Efficiencies: 3GPP TS 38.214 table 5.2.2.1-2. The thresholds are no part of the standard: they are those that public
link simulators use for a block error rate of 10 percent, from LTE link curves."""

_CQI_EFFICIENCY = np.array([0.0, *(row.efficiency_bps_per_hz for row in CQI_TABLE)])
_CQI_THRESHOLD = linear_from_db([row.snr_threshold_db for row in CQI_TABLE])


def shannon_rate_bps(bandwidth_hz: Real, snr: Real) -> FloatArray:
    """Return the capacity R = B log2(1 + SNR) [bit/s].

    Args:
        bandwidth_hz: bandwidth B [Hz], broadcasts.
        snr: received SNR [1], any shape, at least 0.

    Raises:
        ConfigError: if an SNR is negative or NaN.

    Source: C. E. Shannon, Bell Syst. Tech. J. 1948.
    """
    require_within("Shannon rate", 0.0, np.inf, snr=snr, bandwidth_hz=bandwidth_hz)
    return np.asarray(bandwidth_hz * np.log1p(snr) / np.log(2.0))


def cqi_rate_bps(bandwidth_hz: Real, snr: Real, bler: float = 0.1) -> FloatArray:
    """Return the rate R = B efficiency(SNR) (1 - BLER) [bit/s] of adaptive modulation and coding.

    The highest CQI whose threshold the SNR reaches is used; below CQI 1 nothing is sent and the rate is 0.

    Args:
        bandwidth_hz: bandwidth B [Hz], broadcasts.
        snr: received SNR [1], any shape, at least 0.
        bler: block error rate [1]; each lost block is sent again.

    Raises:
        ConfigError: if an SNR is negative or NaN, or the block error rate outside 0 to 1.

    Source: 3GPP TS 38.214 table 5.2.2.1-2; thresholds as stated at `CQI_TABLE`.
    """
    require_within("CQI rate", 0.0, np.inf, snr=snr, bandwidth_hz=bandwidth_hz)
    require_within("CQI rate", 0.0, 1.0, bler=bler)
    cqi = np.searchsorted(_CQI_THRESHOLD, snr, side="right")
    return np.asarray(bandwidth_hz * _CQI_EFFICIENCY[cqi] * (1.0 - bler))


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A radio link between edge and device.

    Attributes:
        bandwidth_hz: downlink bandwidth [Hz].
        uplink_bandwidth_hz: uplink bandwidth [Hz]; None takes that of the downlink.
        adaptation: "shannon" or "cqi".
        bler: block error rate of "cqi" [1]; "shannon" has none.
        round_trip_s: round-trip time of a message besides its airtime [s].
        uplink_snr_offset_db: uplink SNR over downlink SNR [dB]; negative where the device sends with less power.
        device_rx_power_w: extra power of the device while receiving [W].
        device_tx_power_w: extra power of the device while sending [W].
        edge_tx_power_w: extra power of the edge's base station while sending [W].

    Raises:
        ConfigError: for a value outside its range or an unknown adaptation.
    """

    bandwidth_hz: float = 1e6
    uplink_bandwidth_hz: float | None = None
    adaptation: str = "shannon"
    bler: float = 0.1
    round_trip_s: float = 0.0
    uplink_snr_offset_db: float = 0.0
    device_rx_power_w: float = 0.0
    device_tx_power_w: float = 0.0
    edge_tx_power_w: float = 0.0

    def __post_init__(self) -> None:
        if self.adaptation not in ("shannon", "cqi"):
            message = f"link: adaptation is {self.adaptation!r}; expected shannon or cqi; change adaptation"
            raise ConfigError(message)
        require_number("link", 1.0, 1e12, bandwidth_hz=self.bandwidth_hz)
        if self.uplink_bandwidth_hz is not None:
            require_number("link", 1.0, 1e12, uplink_bandwidth_hz=self.uplink_bandwidth_hz)
        require_number("link", 0.0, 1.0, bler=self.bler)
        require_number("link", -200.0, 200.0, uplink_snr_offset_db=self.uplink_snr_offset_db)
        for name in ("round_trip_s", "device_rx_power_w", "device_tx_power_w", "edge_tx_power_w"):
            require_number("link", 0.0, 1e6, **{name: getattr(self, name)})

    def rate_bps(self, bandwidth_hz: Real, snr: Real) -> FloatArray:
        """Return the rate [bit/s] of a band [Hz] at an SNR [1] under this link's adaptation; arguments broadcast."""
        if self.adaptation == "cqi":
            return cqi_rate_bps(bandwidth_hz, snr, self.bler)
        return shannon_rate_bps(bandwidth_hz, snr)

    def _mean_rate_bps(self, bandwidth_hz: float, snr: FloatArray) -> FloatArray:
        """Return the rate [bit/s] over the blocks of each request, shape (num_requests,)."""
        rate_bps = self.rate_bps(bandwidth_hz, snr)
        return np.asarray(rate_bps.mean(axis=1)) if rate_bps.ndim == 2 else rate_bps

    def state(self, snr: FloatArray) -> LinkState:
        """Return the link that requests with these SNRs meet.

        A payload that spans several fading blocks, in time or frequency, is sent at the mean of their rates. With one
        block the SNR holds for the whole payload; under Rayleigh fading the mean of the airtime is then infinite.

        Args:
            snr: received downlink SNR [1], shape (num_requests,) or (num_requests, num_blocks).

        Returns:
            LinkState with seconds per bit of shape (num_requests,); inf where the rate is 0.

        Raises:
            ConfigError: if an SNR is negative or NaN.
        """
        downlink = _s_per_bit(self._mean_rate_bps(self.bandwidth_hz, snr))
        if self.uplink_snr_offset_db == 0.0 and self.uplink_bandwidth_hz in (None, self.bandwidth_hz):
            uplink = downlink  # the same band at the same SNR
        else:
            uplink_hz = self.bandwidth_hz if self.uplink_bandwidth_hz is None else self.uplink_bandwidth_hz
            uplink = _s_per_bit(self._mean_rate_bps(uplink_hz, snr * linear_from_db(self.uplink_snr_offset_db)))
        return LinkState(
            snr=snr.mean(axis=1) if np.ndim(snr) == 2 else snr,
            downlink_s_per_bit=downlink,
            uplink_s_per_bit=uplink,
            round_trip_s=self.round_trip_s,
            device_rx_power_w=self.device_rx_power_w,
            device_tx_power_w=self.device_tx_power_w,
            edge_tx_power_w=self.edge_tx_power_w,
        )


def _s_per_bit(rate_bps: FloatArray) -> FloatArray:
    """Return 1 / rate [s/bit]; a dead link takes inf."""
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / rate_bps)
