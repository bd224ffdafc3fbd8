"""What the modes beyond step split say of themselves in a decision: region, group, layers. Checked on both ends."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from megopt.diffusion.layer_pieces import FIRST, LAST
from megopt.live.records import refuse

SHARING_MODES = ("region_split", "shared_steps", "layer_split")
SR_KINDS = ("light", "diffusion", "hybrid")
MAX_GROUP_SIZE = 64
MAX_TEXT_CHARS = 2000
MAX_COARSE_SCALE = 8
_GROUP_ID = re.compile(r"[0-9a-f]{32}")
_LAYER = re.compile(r"[a-z_]{1,24}(\.[0-9]{1,2})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionShare:
    """Region split: the edge makes this rectangle of the image, the device completes the rest around it.

    Attributes:
        top_px: first row [px].
        left_px: first column [px].
        height_px: rows [px].
        width_px: columns [px].
        coarse_scale: the device first runs the image at 1/s of the side; 1 leaves that out [1].
        refine_steps: steps of the device at the full side after a coarse run; 0 for half of the run, or all of it
            where there is no coarse run.
        context_px: the edge also runs so much around the rectangle, and cuts it away; the more of it, the better the
            rectangle fits into the image, and at the image's own side it is cut out of a whole one [px].
    """

    top_px: int
    left_px: int
    height_px: int
    width_px: int
    coarse_scale: int = 1
    refine_steps: int = 0
    context_px: int = 0

    def __post_init__(self) -> None:
        sides = (self.top_px, self.left_px, self.height_px - 1, self.width_px - 1)
        problems = {
            f"a rectangle of {self.height_px}x{self.width_px} px at ({self.top_px}, {self.left_px})": min(sides) < 0,
            f"coarse_scale {self.coarse_scale}, not 1 to {MAX_COARSE_SCALE}": not 1
            <= self.coarse_scale
            <= MAX_COARSE_SCALE,
            f"context_px {self.context_px}, below 0": self.context_px < 0,
            f"refine_steps {self.refine_steps} with coarse_scale {self.coarse_scale}": self.refine_steps < 0
            or (self.refine_steps > 0 and self.coarse_scale == 1),
        }
        refuse("region", problems)

    def outside(self, height_px: int, width_px: int) -> str:
        """Return what is wrong with it in an image of that size, or an empty text."""
        if self.top_px + self.height_px <= height_px and self.left_px + self.width_px <= width_px:
            return ""
        return (
            f"a region of {self.height_px}x{self.width_px} px at ({self.top_px}, {self.left_px}), outside the image "
            f"of {height_px}x{width_px} px"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """Shared steps: the edge runs the first steps once for a group, under a text that its members have in common.

    Attributes:
        group_id: 32 hexadecimal digits that the members agree on.
        size: members that may take part [1].
        prompt: text of the common steps.
        common_steps: steps under it, the first of the run [1].
        guidance_scale: weight of guidance in the common steps [1].
    """

    group_id: str
    size: int
    prompt: str
    common_steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        problems = {
            f"group_id {self.group_id[:40]!r}, not 32 hexadecimal digits": not _GROUP_ID.fullmatch(self.group_id),
            f"size {self.size}, not 1 to {MAX_GROUP_SIZE}": not 1 <= self.size <= MAX_GROUP_SIZE,
            f"a text of more than {MAX_TEXT_CHARS} characters": len(self.prompt) > MAX_TEXT_CHARS,
            f"common_steps {self.common_steps}, below 1": self.common_steps < 1,
            f"guidance_scale {self.guidance_scale}, not 0 to 100": not 0.0 <= self.guidance_scale <= 100.0
            or not math.isfinite(self.guidance_scale),
        }
        refuse("group", problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """Layer split: the edge runs these layers of the denoiser, the device those before and after.

    Attributes:
        first: first layer of the edge, a name of `megopt.diffusion.layer_pieces.layer_names`.
        last: last layer of the edge.
        model_crc: `layer_pieces.denoiser_crc` of the device's denoiser; 0 where the edge runs all layers.
    """

    first: str = FIRST
    last: str = LAST
    model_crc: int = 0

    def __post_init__(self) -> None:
        names = {name: _LAYER.fullmatch(name) is None for name in (self.first, self.last)}
        problems = {f"layer {name[:40]!r}, which is no name of a layer": is_bad for name, is_bad in names.items()}
        problems[f"model_crc {self.model_crc}, not 32 bits"] = not 0 <= self.model_crc < 1 << 32
        refuse("layers", problems)

    @property
    def is_whole(self) -> bool:
        """Whether the edge runs all layers, and nothing goes up but the request."""
        return (self.first, self.last) == (FIRST, LAST)
