"""What edge and device say to each other, as records: request, result, capabilities.

Each is plain data on the wire (`megopt.live.wire`), and every value that comes from the other side is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megopt.diffusion.pipelines import LatentSpace
from megopt.errors import PayloadError
from megopt.live.decision import MAX_STEPS, Decision
from megopt.live.modes_shares import GroupShare, LayerShare, RegionShare
from megopt.live.records import record_of, refuse
from megopt.live.wire import PROTOCOL_VERSION, Frame
from megopt.tables.schema import ENERGY_SOURCES

MAX_SIDE_PX = 4096
MAX_PROMPT_CHARS = 2000
MAX_DEADLINE_S = 3600.0
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One image, and how it is to be made.

    Attributes:
        request_id: 32 hexadecimal digits that the device draws; the same request again gives the same result once.
        prompt: text.
        negative_prompt: text, or None for the model's own empty conditioning.
        sampler: a name in `megopt.diffusion.schedulers.SAMPLERS`.
        guidance_scale: weight of classifier-free guidance [1].
        guidance_rescale: of `megopt.diffusion.guidance`, 0 to 1 [1].
        seed: of the initial noise.
        height_px: of the image that the edge works on [px], before any upscaling.
        width_px: likewise [px].
        schedule_crc: `handover.schedule_crc` of the device's own run; the edge sends its schedule if its own differs.
        checkpoint_every: steps between two checkpoints that the edge sends on the way; 0 for none.
        deadline_s: time that is left for the edge [s]; it stops at the first step boundary after it.
        decision: how it is shared.
    """

    request_id: str
    prompt: str
    negative_prompt: str | None
    sampler: str
    guidance_scale: float
    guidance_rescale: float = 0.0
    seed: int
    height_px: int
    width_px: int
    schedule_crc: int
    checkpoint_every: int
    deadline_s: float
    decision: Decision

    def __post_init__(self) -> None:
        texts = [text for text in (self.prompt, self.negative_prompt) if text is not None]
        region = self.decision.region
        outside = "" if region is None else region.outside(self.height_px, self.width_px)
        problems = {
            f"request_id {self.request_id[:40]!r}, not 32 hexadecimal digits": not _REQUEST_ID.fullmatch(
                self.request_id
            ),
            f"a text of more than {MAX_PROMPT_CHARS} characters": any(len(text) > MAX_PROMPT_CHARS for text in texts),
            f"guidance_scale {self.guidance_scale}, not 0 to 100": not 0.0 <= self.guidance_scale <= 100.0,
            f"guidance_rescale {self.guidance_rescale}, not 0 to 1": not 0.0 <= self.guidance_rescale <= 1.0,
            f"seed {self.seed}, not 0 to 2^63 - 1": not 0 <= self.seed < 1 << 63,
            f"{self.height_px}x{self.width_px} px, not 1 to {MAX_SIDE_PX}": not (
                1 <= self.height_px <= MAX_SIDE_PX and 1 <= self.width_px <= MAX_SIDE_PX
            ),
            f"schedule_crc {self.schedule_crc}, not 32 bits": not 0 <= self.schedule_crc < 1 << 32,
            f"checkpoint_every {self.checkpoint_every}": not 0 <= self.checkpoint_every <= MAX_STEPS,
            f"deadline_s {self.deadline_s}, not above 0 and up to {MAX_DEADLINE_S:g}": not 0.0
            < self.deadline_s
            <= MAX_DEADLINE_S,
            outside: bool(outside),
        }
        refuse("request", problems)

    def frame(self) -> Frame:
        """Return the request as a frame."""
        return Frame(kind="request", fields=asdict(self))

    @classmethod
    def of_frame(cls, frame: Frame) -> Request:
        """Return the request of a frame.

        Raises:
            PayloadError: if it is none, or a value is of another type or outside its range.
        """
        _check_kind(frame, "request")
        return record_of(cls, frame.fields, "request", _NESTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the edge says beside a checkpoint or an image.

    Attributes:
        request_id: of the request.
        step: steps done.
        decision: what was applied.
        queue_s: time before the edge began [s].
        compute_s: time of the edge's models [s], merging and packing included.
        total_s: time from the last byte of the request to the first of the answer [s].
        batch_size: requests that were computed together, mean over the steps [1].
        energy_j: of the edge's models, an even share of what was computed together [J]; None where it was not measured.
        energy_source: where the joules come from, a key of `megopt.tables.schema.ENERGY_SOURCES`.
    """

    request_id: str
    step: int
    decision: Decision
    queue_s: float
    compute_s: float
    total_s: float
    batch_size: float
    energy_j: float | None = None
    energy_source: str = "not_measured"

    def __post_init__(self) -> None:
        times_s = (self.queue_s, self.compute_s, self.total_s)
        problems = {
            f"times {times_s} s, some below 0": min(times_s) < 0.0,
            f"energy_j {self.energy_j} from {self.energy_source[:40]!r}": (self.energy_j or 0.0) < 0.0
            or self.energy_source not in ENERGY_SOURCES
            or (self.energy_source == "not_measured" and self.energy_j is not None),
        }
        refuse("result", problems)

    @classmethod
    def of_frame(cls, frame: Frame) -> Result:
        """Return the result of a frame of kind "result" or "checkpoint".

        Raises:
            PayloadError: as `Request.of_frame`.
        """
        _check_kind(frame, "checkpoint" if frame.kind == "checkpoint" else "result")
        return record_of(cls, frame.fields, "result", _NESTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an edge can do, and how busy it is.

    Attributes:
        protocol_version: of the frames.
        megopt_version: of the program.
        model: name of its model.
        latent_space: of the model.
        samplers: names in `megopt.diffusion.schedulers.SAMPLERS`.
        modes: of `megopt.live.decision.MODES`.
        codec_bits: of `megopt.live.decision.CODEC_BITS`.
        image_codecs: of `megopt.live.decision.IMAGE_CODECS`.
        max_steps: largest num_steps.
        max_side_px: largest side [px].
        num_waiting: requests that wait or run.
        wait_s: estimate of the time before a new request begins [s].
        step_s: estimate of one denoising step [s]; 0 before the first.
        layers: of its denoiser, in order, where it offers layer split.
    """

    protocol_version: int
    megopt_version: str
    model: str
    latent_space: LatentSpace
    samplers: tuple[str, ...]
    modes: tuple[str, ...]
    codec_bits: tuple[int, ...]
    image_codecs: tuple[str, ...]
    max_steps: int
    max_side_px: int
    num_waiting: int
    wait_s: float
    step_s: float
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = {
            f"protocol version {self.protocol_version}, not {PROTOCOL_VERSION}": self.protocol_version
            != PROTOCOL_VERSION,
            f"wait_s {self.wait_s} or step_s {self.step_s} below 0": self.wait_s < 0.0 or self.step_s < 0.0,
            f"num_waiting {self.num_waiting} below 0": self.num_waiting < 0,
        }
        refuse("capabilities", problems)

    def plain(self) -> dict[str, Any]:
        """Return plain data, as in JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of_plain(cls, values: Any) -> Capabilities:
        """Return the capabilities of plain data that came over the link.

        Raises:
            PayloadError: as `Request.of_frame`.
        """
        return record_of(cls, values, "capabilities", _NESTED)

    def problems(self, decision: Decision, space: LatentSpace) -> list[str]:
        """Return what keeps this edge from carrying out `decision` for a device of latent space `space`."""
        offered = {
            f"mode {decision.mode}": decision.mode in self.modes,
            f"{decision.codec_bits} bits": decision.codec_bits in self.codec_bits,
            f"{decision.num_steps} steps": decision.num_steps <= self.max_steps,
            f"image codec {decision.image_codec}": decision.image_codec in self.image_codecs,
        }
        if decision.layers is not None:
            offered |= {f"layer {name}": name in self.layers for name in (decision.layers.first, decision.layers.last)}
        missing = [f"it does not offer {name}" for name, is_offered in offered.items() if not is_offered]
        return missing + (self.latent_space.differences(space) if decision.mode != "edge_only" else [])


_NESTED: Mapping[str, type] = {
    record.__name__: record for record in (Decision, LatentSpace, RegionShare, GroupShare, LayerShare)
}


def _check_kind(frame: Frame, expected: str) -> None:
    if frame.kind != expected:
        message = f"frame of kind {frame.kind!r}: expected {expected}; both ends must run the same megopt"
        raise PayloadError(message)
