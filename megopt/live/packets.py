"""What a link does to the packets of a stream beside being slow: delay, jitter, and losses that are sent again.

Losses and jitter belong to the position of a packet in its stream, so a seed gives the same ones however the operating
system cuts the stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megopt.ranges import require_within
from megopt.units import BITS_PER_BYTE

PACKET_BYTES = 1500
MAX_RESENDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairments:
    """What a link does beside being slow.

    Attributes:
        delay_s: one way [s].
        jitter_s: largest additional delay [s], drawn evenly from 0 on for every packet.
        loss: share of packets that are lost and sent again [1].
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        require_within("shim", 0.0, 60.0, delay_s=self.delay_s, jitter_s=self.jitter_s)
        require_within("shim", 0.0, 0.9, loss=self.loss)


@dataclass(slots=True, kw_only=True)
class Stream:
    """The schedule of one direction of one connection; time is that of the link, from its beginning on [s].

    Attributes:
        impairments: of the link.
        rng: of this direction of this connection.
        num_bytes: bytes scheduled so far [B].
        num_resends: packets sent again so far [1].
        delivered_s: delivery of what was last scheduled [s].
    """

    impairments: Impairments
    rng: np.random.Generator
    num_bytes: int = 0
    num_resends: int = 0
    delivered_s: float = 0.0
    _num_packets: int = field(default=0, repr=False)

    def cost(self, num_bytes: int) -> tuple[float, float]:
        """Return bits on the air [bit] and delay beside airtime [s] of the next `num_bytes` of the stream."""
        self.num_bytes += num_bytes
        begun = -(-self.num_bytes // PACKET_BYTES) - self._num_packets
        self._num_packets += begun
        draws = self.rng.random((begun, 2))  # one row a packet, so that the cutting does not matter
        loss = self.impairments.loss
        resends = np.zeros(begun, dtype=np.int64)
        if loss > 0.0:
            resends = np.minimum(np.log(1.0 - draws[:, 0]) // np.log(loss), MAX_RESENDS).astype(np.int64)
        self.num_resends += int(resends.sum())
        bits = BITS_PER_BYTE * (num_bytes + PACKET_BYTES * int(resends.sum()))
        waits_s = self.impairments.jitter_s * draws[:, 1] + 2.0 * self.impairments.delay_s * resends
        return float(bits), self.impairments.delay_s + float(waits_s.max(initial=0.0))
