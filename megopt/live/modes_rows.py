"""Rows of the schemes region_split and shared_steps as decisions; what a row leaves open is stated beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from megopt.diffusion.regions import primary_region
from megopt.errors import NotOfferedError
from megopt.live.messages import Decision
from megopt.live.modes_shares import GroupShare, RegionShare


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingTerms:
    """What the rows of an ActionTable leave open.

    Attributes:
        resolution_px: side of the image that the edge works on [px].
        scale_factor: of the latent space, pixels per position.
        num_steps: steps of a region split, whose rows name none.
        group: whom to share steps with; its common steps come from the row. None where there is no group.
        codec_bits: bits per value that is sent.
    """

    resolution_px: int
    scale_factor: int
    num_steps: int
    group: GroupShare | None = None
    codec_bits: int = 16


def sharing_decision(scheme: str, knobs: Mapping[str, float], terms: SharingTerms) -> Decision:
    """Return what a row of `scheme` asks for.

    Args:
        scheme: a key of `SCHEMES`.
        knobs: settings of the row, by name.
        terms: what the row leaves open.

    Raises:
        NotOfferedError: if the row or the terms lack what the mode needs.
        ConfigError: for knobs that no real hand-over has.
    """
    return SCHEMES[scheme](knobs, terms)


def _region(knobs: Mapping[str, float], terms: SharingTerms) -> Decision:
    ratio, side = knobs.get("region_ratio", np.nan), terms.resolution_px // terms.scale_factor
    if not 0.0 < ratio <= 1.0:
        message = f"row of region_split with region_ratio {ratio}: expected a share in (0, 1]; choose another row"
        raise NotOfferedError(message)
    found = primary_region(float(ratio), (side, side))
    top, left, height, width = (
        terms.scale_factor * position for position in (found.top, found.left, found.height, found.width)
    )
    return Decision(
        mode="region_split",
        num_steps=terms.num_steps,
        split_step=terms.num_steps,
        codec_bits=terms.codec_bits,
        region=RegionShare(top_px=top, left_px=left, height_px=height, width_px=width),
    )


def _shared(knobs: Mapping[str, float], terms: SharingTerms) -> Decision:
    num_steps, common, split = (int(knobs[name]) for name in ("num_steps", "common_steps", "split_step"))
    if common == 0:
        return Decision(mode="step_split", num_steps=num_steps, split_step=split, codec_bits=terms.codec_bits)
    if terms.group is None:
        message = "rows of shared_steps need a group: its id, its size and its text; state one, or choose another row"
        raise NotOfferedError(message)
    return Decision(
        mode="shared_steps",
        num_steps=num_steps,
        split_step=split,
        codec_bits=terms.codec_bits,
        group=replace(terms.group, common_steps=common),
    )


SCHEMES: Mapping[str, Callable[[Mapping[str, float], SharingTerms], Decision]] = {
    "region_split": _region,
    "shared_steps": _shared,
}
"""Schemes whose rows are read here."""
