"""One request of a device, from the prompt to the image: what is known on the way, and what came in the end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np

from megopt.diffusion.checkpoint import Checkpoint
from megopt.live.decision import Decision
from megopt.live.handover import Image
from megopt.live.messages import Request, Result
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
        guidance_rescale: of `megopt.diffusion.guidance`, 0 to 1 [1].
    """

    text: str
    negative_text: str | None = None
    seed: int = 0
    resolution_px: int
    deadline_s: float = 30.0
    sampler: str = "ddim"
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        require_within("prompt", 1e-3, 3600.0, deadline_s=self.deadline_s)
        require_whole("prompt", 8, resolution_px=self.resolution_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What will be done.

    Attributes:
        row: of the table; -1 for a stated decision that is no row.
        decision: what is asked for.
        probability: with which a policy chose the row [1].
        has_policy_failed: whether the policy named no row of the table in time, and a rule stands in for it.
    """

    row: int
    decision: Decision
    probability: float = 1.0
    has_policy_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """What one frame of a request carried.

    Attributes:
        step: steps done when it was sent.
        up_bytes: payload to the edge [B]; 0 where nothing but the request went up.
        down_bytes: payload to the device [B].
        edge_s: time of the edge's models [s], since the last frame.
    """

    step: int
    up_bytes: int
    down_bytes: int
    edge_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generated:
    """One image, how it came about, and how far the prediction was off.

    Attributes:
        image: uint8, shape (height, width, 3).
        request_id: of the request.
        row: of the table, as the policy chose it, or as the rule did that stands in for it; -1 for a stated decision
            that is no row.
        decision: what was asked for.
        edge_steps: steps that the edge really did.
        predicted: of `row` on the observed link, fields of shape (1,), as earlier requests have corrected it, with the
            wait that the edge has stated; NaN where there is no row.
        predicted_runtime_s: part of it that is neither models nor link [s].
        table_latency_s: latency of `row` on the observed link by the table alone [s].
        measured: what came, fields of shape (1,); quality is NaN, and so are joules that nobody metered.
        timeline: stage and time [s], in order.
        notes: what did not go as decided, in words; empty if all did.
        result: the edge's last words; None if there were none.
        crossed: payloads, one entry per frame that came.
        probability: with which the policy chose `row` [1].
        has_policy_failed: whether the policy named no row of the table in time, and a rule stands in for it.
        shadow_row: that a policy in the shadow would have chosen; None without one, or where it failed.
        energy_source: where the device's joules come from, a key of `megopt.tables.schema.ENERGY_SOURCES`.
    """

    image: Image
    request_id: str
    row: int
    decision: Decision
    edge_steps: int
    predicted: Outcome
    predicted_runtime_s: float
    table_latency_s: float
    measured: Outcome
    timeline: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]
    result: Result | None
    crossed: tuple[StepBytes, ...]
    probability: float = 1.0
    has_policy_failed: bool = False
    shadow_row: int | None = None
    energy_source: str = "not_measured"


@dataclass(slots=True, eq=False)
class Course:
    """What is known of a request while it is under way."""

    prompt: Prompt
    begun_s: float
    run: Checkpoint
    image: Image | None = None
    is_asked: bool = False
    result: Result | None = None
    link_s: float = 0.0
    payload_bits: float = 0.0
    device_s: float = 0.0
    energy: Energy | None = None
    crossed: list[StepBytes] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    timeline: list[tuple[str, float]] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Write down what did not go as decided; once, however often it happens."""
        if text not in self.notes:
            self.notes.append(text)

    def stamp(self, stage: str, begun_s: float) -> float:
        """Note how long a stage took, and return it [s]."""
        took_s = time.monotonic() - begun_s
        self.timeline.append((stage, took_s))
        return took_s

    def add_device(self, took_s: float, energy: Energy) -> None:
        """Add what the device's models took: seconds, and joules of the same window."""
        self.device_s += took_s
        if self.energy is None:
            self.energy = energy
        elif self.energy.source != "not_measured":
            self.energy = replace(energy, energy_j=self.energy.energy_j + energy.energy_j)

    @property
    def edge_s(self) -> float:
        """Time of the edge's models [s]."""
        return sum(one.edge_s for one in self.crossed) if self.result is None else self.result.compute_s

    @property
    def queue_s(self) -> float:
        """Time in the edge's queue [s]."""
        return 0.0 if self.result is None else self.result.queue_s

    @property
    def edge_steps(self) -> int:
        """Steps that the edge has done, or had a part in."""
        if self.result is None:
            return self.crossed[-1].step if self.crossed else 0
        return self.result.step

    def outcome(self, request: Request, link: LinkState | None) -> Outcome:
        """Return what the request cost, fields of shape (1,).

        Joules are those of the meters, and stated radio watts times the measured time of the link.
        """
        downlink_s = self.link_s * self._downlink_share(request, link)
        uplink_s = self.link_s - downlink_s
        radio_j = 0.0 if link is None else link.device_rx_power_w * downlink_s + link.device_tx_power_w * uplink_s
        device_j = radio_j + (np.nan if self.energy is None else self.energy.energy_j)
        edge_j = self._edge_j() + (0.0 if link is None else link.edge_tx_power_w * downlink_s)
        return Outcome(
            latency_s=np.array([time.monotonic() - self.begun_s]),
            edge_s=np.array([self.edge_s]),
            device_s=np.array([self.device_s]),
            downlink_s=np.array([downlink_s]),
            uplink_s=np.array([uplink_s]),
            edge_energy_j=np.array([edge_j]),
            device_energy_j=np.array([device_j]),
            energy_j=np.array([edge_j + device_j]),
            payload_bits=np.array([self.payload_bits]),
            quality=np.full(1, np.nan),
        )

    def _edge_j(self) -> float:
        """Return the joules that the edge states [J]; 0 where it did nothing, NaN where nobody metered it."""
        if not self.is_asked:
            return 0.0
        return np.nan if self.result is None or self.result.energy_j is None else self.result.energy_j

    def _downlink_share(self, request: Request, link: LinkState | None) -> float:
        """Return the share of the measured link time [1] that is the downlink's, by bits and observed rates."""
        if link is None or self.payload_bits == 0.0:
            return 1.0
        down_s = self.payload_bits * float(link.downlink_s_per_bit[0])
        up_bytes = len(request.frame().to_bytes()) + sum(one.up_bytes for one in self.crossed)
        up_s = BITS_PER_BYTE * up_bytes * float(link.uplink_s_per_bit[0])
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
