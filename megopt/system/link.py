"""From SNR to seconds per bit: Shannon, the CQI table of TS 38.214, round-trip time, downlink and uplink."""

from __future__ import annotations

from dataclasses import dataclass

from megopt.arrays import FloatArray


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
