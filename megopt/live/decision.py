"""How one request is shared between edge and device: the record that is sent, checked on both ends, and echoed."""

from __future__ import annotations

from dataclasses import dataclass

from megopt.diffusion.codec import BITS
from megopt.live.modes_shares import SHARING_MODES, SR_KINDS, GroupShare, LayerShare, RegionShare
from megopt.live.records import refuse

EDGE_MODES = ("edge_only", "model_split", "step_split")
"""Modes of which the edge needs to know no more than the decision's own numbers."""
MODES = (*EDGE_MODES, *SHARING_MODES, "device_only")
EXACT_BITS = 32
"""Bits per value of a hand-over that changes nothing."""
CODEC_BITS = (*BITS, EXACT_BITS)
IMAGE_CODECS = ("raw", "png", "jpeg", "webp")
MAX_STEPS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What crosses the link, and how the device enlarges it; the part of a decision that users state as it is.

    Attributes:
        merge_ratio: share of the latent's tokens merged away [1].
        codec_bits: bits per value of the latent, one of `CODEC_BITS`.
        image_codec: format of an image made by the edge, one of `IMAGE_CODECS`.
        image_quality: setting of a lossy format, 1 to 100; 0 for the others.
        sr_scale: the image is made at 1/s of the side and enlarged by the device [1].
        sr_kind: how it is enlarged, one of `SR_KINDS`.
    """

    merge_ratio: float = 0.0
    codec_bits: int = 16
    image_codec: str = "png"
    image_quality: int = 0
    sr_scale: int = 1
    sr_kind: str = "light"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Handover):
    """How one request is shared; sent with it, and back with what was really applied.

    Attributes:
        mode: one of `MODES`.
        num_steps: denoising steps N of the run.
        split_step: steps of the edge: 0 for device only, between 1 and N for step split and shared steps (common ones
            included), N for all others.
        region: what the edge makes; of region split, None for the others.
        group: with whom steps are shared; of shared steps.
        layers: what the edge runs; of layer split.
    """

    mode: str
    num_steps: int
    split_step: int
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
