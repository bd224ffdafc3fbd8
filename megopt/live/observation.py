"""What the device knows of its link before it decides: told by the radio, or measured with two short calls."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from megopt.live.connection import Connection
from megopt.live.trace import RateTrace
from megopt.ranges import require_whole, require_within
from megopt.system.link import LinkState
from megopt.units import BITS_PER_BYTE


class LinkObserver(Protocol):
    """Knows the state of the link."""

    async def observe(self, connection: Connection) -> LinkState:
        """Return the state of one request, fields of shape (1,).

        Raises:
            LinkError: if there is no link.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLink:
    """Channel state as a radio reports it: the slot that a trace is in.

    Attributes:
        trace: rates of the link.
        round_trip_s: of a message besides its airtime [s].
        begun_s: beginning of the trace [s], monotonic clock.
    """

    trace: RateTrace
    round_trip_s: float = 0.0
    begun_s: float = field(default_factory=time.monotonic)

    async def observe(self, connection: Connection) -> LinkState:
        """Return the state of the slot that the link is in."""
        slot = self.trace.slot_at(time.monotonic() - self.begun_s)
        return _state(
            snr=self.trace.snr[slot],
            downlink_bps=self.trace.downlink_bps[slot],
            uplink_bps=self.trace.uplink_bps[slot],
            round_trip_s=self.round_trip_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedLink:
    """Two calls of different size: the time of the small one, and what the bytes of the large one add.

        t_rt = t_small,    R_down = 8 (n_large - n_small) / (t_large - t_small)

    The uplink is taken to be `uplink_share` of the downlink; an SNR is not measured and NaN.

    Attributes:
        num_bytes: of the large call [B].
        uplink_share: R_up / R_down [1].
        max_rate_bps: taken where the difference is too small to be seen [bit/s].
    """

    num_bytes: int = 8192
    uplink_share: float = 1.0
    max_rate_bps: float = 1e9

    def __post_init__(self) -> None:
        require_whole("link probe", 64, num_bytes=self.num_bytes)
        require_within("link probe", 1e-3, 1e3, uplink_share=self.uplink_share)
        require_within("link probe", 1.0, 1e12, max_rate_bps=self.max_rate_bps)

    async def observe(self, connection: Connection) -> LinkState:
        """Measure, and return what was found."""
        small_s = await connection.probe(1)
        large_s = await connection.probe(self.num_bytes)
        bits, more_s = BITS_PER_BYTE * (self.num_bytes - 1), large_s - small_s
        rate_bps = min(bits / more_s, self.max_rate_bps) if more_s > 0.0 else self.max_rate_bps
        return _state(
            snr=np.nan,
            downlink_bps=rate_bps,
            uplink_bps=self.uplink_share * rate_bps,
            round_trip_s=min(small_s, large_s),
        )


def with_wait(link: LinkState, wait_s: float) -> LinkState:
    """Return the link as a policy sees it of an edge with a queue: a round trip lasts `wait_s` [s] longer."""
    return replace(link, round_trip_s=link.round_trip_s + wait_s)


def _state(*, snr: float, downlink_bps: float, uplink_bps: float, round_trip_s: float) -> LinkState:
    with np.errstate(divide="ignore"):
        down, up = np.array([[1.0], [1.0]]) / np.array([[downlink_bps], [uplink_bps]])
    return LinkState(
        snr=np.array([snr]),
        downlink_s_per_bit=down,
        uplink_s_per_bit=up,
        round_trip_s=round_trip_s,
        device_rx_power_w=0.0,
        device_tx_power_w=0.0,
        edge_tx_power_w=0.0,
    )
