"""Rows of the schemes beyond step split as decisions; what a row leaves open is stated beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from megopt.diffusion.regions import primary_region
from megopt.errors import ConfigError, NotOfferedError
from megopt.live.decision import Decision
from megopt.live.modes_shares import GroupShare, LayerShare, RegionShare
from megopt.tables.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingTerms:
    """What the rows of an ActionTable leave open.

    Attributes:
        resolution_px: side of the image that the edge works on [px].
        scale_factor: of the latent space, pixels per position.
        num_steps: steps of a region split, whose rows name none.
        group: whom to share steps with; its common steps come from the row. None where there is no group.
        codec_bits: bits per value that is sent.
        sr_kind: how images are enlarged, of rows that are.
    """

    resolution_px: int
    scale_factor: int
    num_steps: int
    group: GroupShare | None = None
    codec_bits: int = 16
    sr_kind: str = "light"


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
    return Decision(
        mode="region_split",
        num_steps=terms.num_steps,
        split_step=terms.num_steps,
        codec_bits=terms.codec_bits,
        region=region_share(float(ratio), side, terms.scale_factor),
    )


def region_share(ratio: float, side: int, scale_factor: int, *, coarse_scale: int = 1) -> RegionShare:
    """Return the centred rectangle of a share of an image.

    Args:
        ratio: its share of the area [1].
        side: of the latent, in positions.
        scale_factor: of the latent space, pixels per position.
        coarse_scale: as `RegionShare.coarse_scale`; the rectangle lies on that grid.
    """
    found = primary_region(ratio, (side, side), grain=coarse_scale)
    sides = (found.top, found.left, found.height, found.width)
    top, left, height, width = (scale_factor * position for position in sides)
    return RegionShare(top_px=top, left_px=left, height_px=height, width_px=width, coarse_scale=coarse_scale)


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


def _layers(knobs: Mapping[str, float], terms: SharingTerms) -> Decision:
    num_steps = int(knobs["num_steps"])
    bits = int(knobs["codec_bits"])
    return Decision(mode="layer_split", num_steps=num_steps, split_step=num_steps, codec_bits=bits, layers=LayerShare())


SCHEMES: Mapping[str, Callable[[Mapping[str, float], SharingTerms], Decision]] = {
    "region_split": _region,
    "shared_steps": _shared,
    "layer_split": _layers,
}
"""Schemes whose rows are read here."""


def terms_of(stated: Mapping[str, Any], schemes: Sequence[object], model: Provenance) -> SharingTerms:
    """Return the terms of a configuration.

    Args:
        stated: its keys num_steps, codec_bits, group_id, group_size, group_prompt, group_guidance_scale.
        schemes: whose rows are carried out.
        model: the profile's, with the sides of image and latent.

    Raises:
        ConfigError: if the schemes enlarge images in more than one way; rows do not tell which.
    """
    kinds = sorted({str(kind) for scheme in schemes if (kind := getattr(scheme, "sr_kind", None)) is not None})
    if len(kinds) > 1:
        message = f"schemes with sr_kind {', '.join(kinds)}: rows do not tell which; state one sr_kind for all of them"
        raise ConfigError(message)
    group = GroupShare(
        group_id=stated["group_id"] or "0" * 32,
        size=stated["group_size"],
        prompt=stated["group_prompt"],
        common_steps=1,
        guidance_scale=stated["group_guidance_scale"],
    )
    return SharingTerms(
        resolution_px=model.resolution_px,
        scale_factor=model.resolution_px // model.latent_shape[-1],
        num_steps=stated["num_steps"],
        group=group,
        codec_bits=stated["codec_bits"],
        sr_kind=(kinds or ["light"])[0],
    )
