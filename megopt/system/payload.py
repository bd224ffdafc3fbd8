"""Bits that cross the link: latents with merged tokens and packed codecs, encoded images."""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray, Real

BITS_PER_MERGED_VALUE = 1.0
"""Index map of the merged tokens, per merged latent value [bit]; the 16/16 of MEG-CVPO's payload formula."""


def latent_bits(num_values: Real, codec_bits: Real, merge_ratio: Real = 0.0) -> FloatArray:
    """Return the payload of one latent [bit], shape of the broadcast arguments.

        Z = kept q + merged,    kept = (1 - r) n,  merged = r n

    With q = 16 this is (kept + merged/16) 16 bit.

    Args:
        num_values: latent values n [1].
        codec_bits: bits per kept value q [bit].
        merge_ratio: share r of the tokens merged away [1].

    Source: MEG-CVPO (arXiv 2407.07245), payload of a merged latent.
    """
    merged = np.asarray(num_values, dtype=np.float64) * merge_ratio
    return np.asarray((num_values - merged) * codec_bits + merged * BITS_PER_MERGED_VALUE)


def image_bits(resolution_px: Real, bits_per_pixel: Real) -> FloatArray:
    """Return the payload of a square image [bit]: `resolution_px` squared times `bits_per_pixel` [bit/px]."""
    return np.asarray(np.square(np.asarray(resolution_px, dtype=np.float64)) * bits_per_pixel)
