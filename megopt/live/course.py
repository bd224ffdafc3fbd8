"""One request of a device, from the prompt to the image: what is known on the way, and what came in the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from megopt.diffusion.checkpoint import Checkpoint
from megopt.live.handover import Image
from megopt.live.messages import Decision, Request, Result
from megopt.metering.energy import Energy
from megopt.ranges import require_whole, require_within
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome
from megopt.units import BITS_PER_BYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the user wants.

    Attributes:
        text: of the image.
        negative_text: of what it is not to show; None for the model's own empty conditioning.
        seed: of the noise.
        resolution_px: side of the image [px].
        deadline_s: when the image is to be there [s].
        sampler: a name in `megopt.diffusion.schedulers.SAMPLERS`.
        guidance_scale: weight of classifier-free guidance [1].
    """

    text: str
    negative_text: str | None = None
    seed: int = 0
    resolution_px: int
    deadline_s: float = 30.0
    sampler: str = "ddim"
    guidance_scale: float = 3.0

    def __post_init__(self) -> None:
        require_within("prompt", 1e-3, 3600.0, deadline_s=self.deadline_s)
        require_whole("prompt", 8, resolution_px=self.resolution_px)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """One image, how it came about, and how far the prediction was off.

    Attributes:
        image: uint8, shape (height, width, 3).
        request_id: of the request.
        row: of the table, as the policy chose it, or as the rule did that stands in for it.
        decision: what `row` asks for.
        edge_steps: steps that the edge really did.
        predicted: of `row` on the observed link, fields of shape (1,); a wait at the edge is not in it.
        measured: what came, fields of shape (1,); the edge's joules and quality are NaN.
        timeline: stage and time [s], in order.
        notes: what did not go as decided, in words; empty if all did.
        energy_source: where the device's joules come from, a key of `megopt.tables.schema.ENERGY_SOURCES`.
    """

    image: Image
    request_id: str
    row: int
    decision: Decision
    edge_steps: int
    predicted: Outcome
    measured: Outcome
    timeline: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    energy_source: str = "not_measured"


@dataclass(slots=True, eq=False)
class Course:
    """What is known of a request while it is under way."""

    prompt: Prompt
    begun_s: float
    run: Checkpoint
    image: Image | None = None
    result: Result | None = None
    link_s: float = 0.0
    payload_bits: float = 0.0
    device_s: float = 0.0
    energy: Energy | None = None
    notes: list[str] = field(default_factory=list)
    timeline: list[tuple[str, float]] = field(default_factory=list)

    def stamp(self, stage: str, begun_s: float) -> float:
        """Note how long a stage took, and return it [s]."""
        took_s = time.monotonic() - begun_s
        self.timeline.append((stage, took_s))
        return took_s

    def outcome(self, request: Request, link: LinkState | None) -> Outcome:
        """Return what the request cost, fields of shape (1,).

        The device's joules are those of its meter, and stated radio watts times the measured time of the link.
        """
        result, unknown = self.result, np.full(1, np.nan)
        downlink_s = self.link_s * self._downlink_share(request, link)
        uplink_s = self.link_s - downlink_s
        radio_j = 0.0 if link is None else link.device_rx_power_w * downlink_s + link.device_tx_power_w * uplink_s
        compute_j = np.nan if self.energy is None else self.energy.energy_j
        return Outcome(
            latency_s=np.array([time.monotonic() - self.begun_s]),
            edge_s=np.array([0.0 if result is None else result.compute_s]),
            device_s=np.array([self.device_s]),
            downlink_s=np.array([downlink_s]),
            uplink_s=np.array([uplink_s]),
            edge_energy_j=unknown,
            device_energy_j=np.array([compute_j + radio_j]),
            energy_j=unknown,
            payload_bits=np.array([self.payload_bits]),
            quality=unknown,
        )

    def _downlink_share(self, request: Request, link: LinkState | None) -> float:
        """Return the share of the measured link time [1] that is the downlink's, by bits and observed rates."""
        if link is None or self.payload_bits == 0.0:
            return 1.0
        down_s = self.payload_bits * float(link.downlink_s_per_bit[0])
        up_s = BITS_PER_BYTE * len(request.frame().to_bytes()) * float(link.uplink_s_per_bit[0])
        return down_s / (down_s + up_s) if 0.0 < down_s + up_s < np.inf else 1.0


def no_link() -> LinkState:
    """Return the state of a link that carries nothing, fields of shape (1,)."""
    dead = np.array([np.inf])
    return LinkState(
        snr=np.zeros(1),
        downlink_s_per_bit=dead,
        uplink_s_per_bit=dead,
        round_trip_s=0.0,
        device_rx_power_w=0.0,
        device_tx_power_w=0.0,
        edge_tx_power_w=0.0,
    )
