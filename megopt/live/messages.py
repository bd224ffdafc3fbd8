"""What edge and device say to each other, as records: capabilities, decision, request, result, failure.

Each is plain data on the wire (`megopt.live.wire`), and every value that comes from the other side is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from megopt.diffusion.codec import BITS
from megopt.diffusion.pipelines import LatentSpace
from megopt.errors import PayloadError
from megopt.live.modes_shares import SHARING_MODES, SR_KINDS, GroupShare, LayerShare, RegionShare
from megopt.live.records import record_of, refuse
from megopt.live.wire import PROTOCOL_VERSION, Frame
from megopt.tables.schema import ENERGY_SOURCES

EDGE_MODES = ("edge_only", "model_split", "step_split")
"""Modes of which the edge needs to know no more than the decision's own numbers."""
MODES = (*EDGE_MODES, *SHARING_MODES, "device_only")
EXACT_BITS = 32
"""Bits per value of a hand-over that changes nothing."""
CODEC_BITS = (*BITS, EXACT_BITS)
IMAGE_CODECS = ("raw", "png", "jpeg", "webp")
MAX_STEPS = 1000
MAX_SIDE_PX = 4096
MAX_PROMPT_CHARS = 2000
MAX_DEADLINE_S = 3600.0
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """How one request is shared; sent with it, and back with what was really applied.

    Attributes:
        mode: one of `MODES`.
        num_steps: denoising steps N of the run.
        split_step: steps of the edge: 0 for device only, between 1 and N for step split and shared steps (common ones
            included), N for all others.
        merge_ratio: share of the latent's tokens merged away [1].
        codec_bits: bits per value of the latent, one of `CODEC_BITS`.
        image_codec: format of an image made by the edge, one of `IMAGE_CODECS`.
        image_quality: setting of a lossy format, 1 to 100; 0 for the others.
        sr_scale: the image is made at 1/s of the side and enlarged by the device [1].
        sr_kind: how it is enlarged, one of `SR_KINDS`.
        region: what the edge makes; of region split, None for the others.
        group: with whom steps are shared; of shared steps.
        layers: what the edge runs; of layer split.
    """

    mode: str
    num_steps: int
    split_step: int
    merge_ratio: float = 0.0
    codec_bits: int = 16
    image_codec: str = "png"
    image_quality: int = 0
    sr_scale: int = 1
    sr_kind: str = "light"
    region: RegionShare | None = None
    group: GroupShare | None = None
    layers: LayerShare | None = None

    def __post_init__(self) -> None:
        wanted = dict.fromkeys(MODES, self.num_steps) | {"device_only": 0}
        is_between = self.mode in ("step_split", "shared_steps")
        is_lossy = self.image_codec in ("jpeg", "webp")
        problems = {
            f"mode {self.mode!r}, not one of {', '.join(MODES)}": self.mode not in MODES,
            f"num_steps {self.num_steps}, not 1 to {MAX_STEPS}": not 1 <= self.num_steps <= MAX_STEPS,
            f"split_step {self.split_step} of {self.num_steps} steps": not 1 <= self.split_step < self.num_steps
            if is_between
            else self.split_step != wanted.get(self.mode, self.split_step),
            f"merge_ratio {self.merge_ratio}, not 0 to 1": not 0.0 <= self.merge_ratio <= 1.0,
            f"codec_bits {self.codec_bits}, not one of {CODEC_BITS}": self.codec_bits not in CODEC_BITS,
            f"merging at {EXACT_BITS} bits, which sends every number": self.merge_ratio > 0.0
            and self.codec_bits == EXACT_BITS,
            f"image_codec {self.image_codec!r}, not one of {', '.join(IMAGE_CODECS)}": self.image_codec
            not in IMAGE_CODECS,
            f"image_quality {self.image_quality} for {self.image_codec}": not is_lossy * 1
            <= self.image_quality
            <= is_lossy * 100,
            f"sr_scale {self.sr_scale}, not 1, 2 or 4": self.sr_scale not in (1, 2, 4),
            f"sr_kind {self.sr_kind!r}, not one of {', '.join(SR_KINDS)}": self.sr_kind not in SR_KINDS,
        }
        refuse("decision", problems | self._share_problems())

    def _share_problems(self) -> dict[str, bool]:
        """Return what could be wrong with region, group and layers, and whether it is."""
        shares = {"region_split": self.region, "shared_steps": self.group, "layer_split": self.layers}
        names = {"region_split": "region", "shared_steps": "group", "layer_split": "layers"}
        problems = {
            f"mode {self.mode} {'without' if mode == self.mode else 'with'} {names[mode]}": (share is None)
            == (mode == self.mode)
            for mode, share in shares.items()
        }
        if self.group is not None:
            common = self.group.common_steps
            problems[f"common_steps {common} of {self.split_step} steps at the edge"] = common > self.split_step
        if self.region is not None:
            problems[f"refine_steps {self.region.refine_steps} of {self.num_steps}"] = (
                self.region.refine_steps > self.num_steps
            )
        problems["merging in layer split: noise has no similar tokens"] = (
            self.layers is not None and self.merge_ratio > 0.0
        )
        return problems


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
        modes: of `MODES`.
        codec_bits: of `CODEC_BITS`.
        image_codecs: of `IMAGE_CODECS`.
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
