"""The hand-over of a latent from edge to device: merging, packing, bits on the link, and their undoing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray
from megopt.schemes.row_costs import RowCoster, RowCosts
from megopt.system.payload import frame_bits, meg_cvpo_bits
from megopt.tables.profile import Profile, Side

PAYLOADS = ("frame", "meg_cvpo")
"""How bits are counted: the real frames to the byte, or the formula of MEG-CVPO."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """What handing a latent over takes in each row.

    Attributes:
        edge: merging and packing.
        device: unpacking and unmerging.
        downlink_bits: payload [bit], shape (num_rows,).
    """

    edge: RowCosts
    device: RowCosts
    downlink_bits: FloatArray


def hand_over(coster: RowCoster, merge_ratio: FloatArray, codec_bits: FloatArray, payload: str) -> HandOver:
    """Return costs and bits of handing latents over.

    Merging needs timed merge and unmerge rows, fewer than 16 bits timed codec rows. A plain 16-bit hand-over is charged
    for packing where the profile times it.

    Args:
        coster: of the rows.
        merge_ratio: share of tokens merged away [1], shape (num_rows,).
        codec_bits: bits per value, shape (num_rows,).
        payload: one of `PAYLOADS`.

    Raises:
        NotOfferedError: if the profile does not time a part that is needed.
    """
    is_merged = merge_ratio > 0.0

    def packing(side: Side, component: str) -> RowCosts:
        return coster.of(side, component, (codec_bits != 16.0) | coster.profile.has(side, component))

    return HandOver(
        edge=coster.of("edge", "merge", is_merged) + packing("edge", "codec_encode"),
        device=packing("device", "codec_decode") + coster.of("device", "unmerge", is_merged),
        downlink_bits=sent_bits(coster.profile, coster.sr_scale, merge_ratio, codec_bits, payload),
    )


def sent_bits(
    profile: Profile, sr_scale: FloatArray, merge_ratio: FloatArray, codec_bits: FloatArray, payload: str
) -> FloatArray:
    """Return the payload of the latents of rows [bit], shape (num_rows,); arguments as in `hand_over`."""
    channels, height, width = profile.provenance.latent_shape
    shape = np.stack([np.full(len(sr_scale), channels), height / sr_scale, width / sr_scale], axis=-1)
    if payload == "frame":
        return frame_bits(shape, codec_bits, merge_ratio)
    return meg_cvpo_bits(np.prod(shape, axis=-1), codec_bits, merge_ratio)
