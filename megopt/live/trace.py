"""The rates of a link over time, replayed: the very fading that policies are trained and judged on.

    bits sent between t0 and t1 = integral of R(t) dt,   R(t) = rates[floor(t / slot_s) mod num_slots]

A trace is round: its last slot is followed by its first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megopt.arrays import FloatArray
from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within
from megopt.system.fading import Channel
from megopt.system.link import Link, LinkState

DIRECTIONS = ("downlink", "uplink")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTrace:
    """What a link carries, slot by slot.

    Attributes:
        snr: received downlink SNR [1], shape (num_slots,).
        downlink_bps: rate edge to device [bit/s], shape (num_slots,); 0 in an outage.
        uplink_bps: rate device to edge [bit/s], shape (num_slots,); 0 in an outage.
        slot_s: length of a slot [s]; inf holds the first slot for ever.
    """

    snr: FloatArray
    downlink_bps: FloatArray
    uplink_bps: FloatArray
    slot_s: float

    def __post_init__(self) -> None:
        num_slots = self.snr.size
        shapes = {name: getattr(self, name).shape for name in ("snr", "downlink_bps", "uplink_bps")}
        if num_slots == 0 or set(shapes.values()) != {(num_slots,)}:
            message = (
                f"rate trace: fields have the shapes {shapes}; expected one shape (num_slots,) with a slot or more"
            )
            raise ConfigError(message)
        require_within("rate trace", 0.0, np.inf, snr=self.snr)
        require_within("rate trace", 0.0, 1e15, downlink_bps=self.downlink_bps, uplink_bps=self.uplink_bps)
        if not self.slot_s > 0.0:
            message = f"rate trace: slot_s is {self.slot_s}; expected a time > 0; change slot_s"
            raise ConfigError(message)

    @classmethod
    def of_channel(
        cls, channel: Channel, link: Link, *, num_slots: int, slot_s: float, seed: int | np.random.SeedSequence
    ) -> RateTrace:
        """Return the trace of one device, in the numbers that stepping `channel` with the same seed would give.

        Args:
            channel: source of the SNR.
            link: turns SNR into rates.
            num_slots: length [1].
            slot_s: length of a slot [s]; where the channel has a Doppler shift, its own `interval_s` keeps it true.
            seed: of `numpy.random.default_rng`; a spawned one replays a trace of `megopt tradeoff`.

        Raises:
            ConfigError: for an impossible count, time or seed.
        """
        if not isinstance(seed, np.random.SeedSequence):
            require_whole("rate trace", 0, seed=seed)
        require_whole("rate trace", 1, num_slots=num_slots)
        snr = channel.sample_snr(np.random.default_rng(seed), num_slots)[:, 0]
        return cls.of_state(link.state(snr), slot_s=slot_s)

    @classmethod
    def of_state(cls, state: LinkState, *, slot_s: float) -> RateTrace:
        """Return the trace that meets the states of a link, one per slot."""
        with np.errstate(divide="ignore"):
            downlink_bps, uplink_bps = 1.0 / state.downlink_s_per_bit, 1.0 / state.uplink_s_per_bit
        return cls(snr=state.snr, downlink_bps=downlink_bps, uplink_bps=uplink_bps, slot_s=slot_s)

    def rates_bps(self, direction: str) -> FloatArray:
        """Return the rates [bit/s] of "downlink" or "uplink", shape (num_slots,)."""
        assert direction in DIRECTIONS
        return self.downlink_bps if direction == "downlink" else self.uplink_bps

    def slot_at(self, time_s: float) -> int:
        """Return the slot that the link is in `time_s` after its beginning."""
        return 0 if np.isinf(self.slot_s) else int(time_s // self.slot_s) % self.snr.size

    def held(self, slot: int) -> RateTrace:
        """Return the one slot `slot`, counted round and round, held for ever: block fading, one slot a request."""
        at = [slot % self.snr.size]
        return RateTrace(
            snr=self.snr[at], downlink_bps=self.downlink_bps[at], uplink_bps=self.uplink_bps[at], slot_s=np.inf
        )

    def with_outage(self, begin_s: float, end_s: float) -> RateTrace:
        """Return the trace with nothing sent in the slots that touch `begin_s` to `end_s`.

        Raises:
            ConfigError: if the times are not 0 <= begin < end <= the trace's length.
        """
        length_s = self.slot_s * self.snr.size
        if not 0.0 <= begin_s < end_s <= length_s:
            message = f"outage from {begin_s} s to {end_s} s: expected 0 <= begin < end <= {length_s:g} s, the trace"
            raise ConfigError(message)
        begins_s = self.slot_s * np.arange(self.snr.size)
        is_out = (begins_s < end_s) & (begins_s + self.slot_s > begin_s)
        return replace(
            self,
            downlink_bps=np.where(is_out, 0.0, self.downlink_bps),
            uplink_bps=np.where(is_out, 0.0, self.uplink_bps),
        )

    def finish_s(self, direction: str, start_s: float, num_bits: float) -> float:
        """Return when `num_bits` [bit] are through that begin at `start_s` [s]; inf if they never are."""
        rates_bps = self.rates_bps(direction)
        if num_bits <= 0.0:
            return start_s
        if np.isinf(self.slot_s):
            return start_s + num_bits / float(rates_bps[0]) if rates_bps[0] > 0.0 else np.inf
        # bits sent from the beginning of the trace to every slot boundary, shape (num_slots + 1,)
        sent = np.concatenate([[0.0], np.cumsum(rates_bps * self.slot_s)])
        if sent[-1] == 0.0:
            return np.inf
        round_s = self.slot_s * rates_bps.size
        num_rounds, within_s = divmod(start_s, round_s)
        boundaries_s = self.slot_s * np.arange(rates_bps.size + 1)
        target = float(np.interp(within_s, boundaries_s, sent)) + num_bits
        more_rounds = max(0, int(np.ceil(target / sent[-1])) - 1)
        target -= more_rounds * sent[-1]
        slot = min(max(int(np.searchsorted(sent, target, side="left")), 1), rates_bps.size) - 1
        end_s = boundaries_s[slot] + (target - sent[slot]) / rates_bps[slot] if rates_bps[slot] else boundaries_s[slot]
        return max(start_s, float((num_rounds + more_rounds) * round_s + end_s))
