"""Bits that cross the link: latents in their real frames or as published formulas count them, and encoded images.

| accounting | what it counts |
|---|---|
| `frame_bits` | the frames of `megopt.diffusion.codec` and `megopt.diffusion.merging`, exact to the byte |
| `latent_bits` | the values of a latent alone; the Z of MEGSplitting |
| `meg_cvpo_bits` | values kept and one bit per value merged; the payload of MEG-CVPO |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from megopt.arrays import FloatArray, Real
from megopt.diffusion import codec, merging
from megopt.errors import ConfigError
from megopt.units import BITS_PER_BYTE

FRAME_CODEC_BITS = codec.BITS
"""Bits per value that a real frame can hold."""
BITS_PER_MERGED_VALUE = 1.0
"""Index map of the merged tokens, per merged latent value [bit]; the 16/16 of MEG-CVPO's payload formula."""


def frame_bits(latent_shape: ArrayLike, codec_bits: ArrayLike, merge_ratio: ArrayLike = 0.0) -> FloatArray:
    """Return the exact payload of one latent [bit], header, ranges, bitmap and checksums included.

    A latent without merging travels in the codec's frame, any other in that of the merged latent.

    Args:
        latent_shape: channels, height and width, shape (..., 3).
        codec_bits: bits per value, one of `FRAME_CODEC_BITS`, shape (...).
        merge_ratio: share of 2x2 tokens merged away [1], 0 to 1, shape (...); each spares three quarters of its values.

    Returns:
        Payload [bit], of the broadcast shape (...).

    Raises:
        ConfigError: for a bit width that is no codec, a ratio outside 0..1 or an impossible shape.

    Source: `megopt.diffusion.codec.payload_bytes` and `megopt.diffusion.merging.merged_payload_bytes`.
    """
    shapes = np.asarray(latent_shape, dtype=np.float64)
    if shapes.ndim < 1 or shapes.shape[-1] != 3:
        message = f"frame_bits: latent_shape has shape {shapes.shape}; expected (..., 3): channels, height, width"
        raise ConfigError(message)
    columns = np.broadcast_arrays(
        *np.moveaxis(shapes, -1, 0), np.asarray(codec_bits, dtype=float), np.asarray(merge_ratio, dtype=float)
    )
    settings = np.stack(columns, axis=-1)
    unique, index = np.unique(settings.reshape(-1, len(columns)), axis=0, return_inverse=True)
    frames = np.array([_frame_bytes(*row) for row in unique], dtype=np.float64) * BITS_PER_BYTE
    return frames[np.ravel(index)].reshape(settings.shape[:-1])


def _frame_bytes(*setting: float) -> int:
    """Return the size of one frame [B] for channels, height, width, bits per value and merge ratio."""
    # what is not whole is left for the codec to refuse
    channels, height, width, bits = (int(n) if float(n).is_integer() else n for n in setting[:4])
    shape, merge_ratio = (channels, height, width), setting[4]
    if merge_ratio == 0.0:
        return codec.payload_bytes(shape, bits)  # type: ignore[arg-type]
    return merging.merged_payload_bytes(shape, merge_ratio, bits)  # type: ignore[arg-type]


def latent_bits(num_values: Real, codec_bits: Real) -> FloatArray:
    """Return n q [bit]: the values of one latent alone, shape of the broadcast arguments.

    Args:
        num_values: latent values n [1].
        codec_bits: bits per value q [bit].

    Source: MEGSplitting (ICC 2025), payload Z of a latent.
    """
    return np.asarray(np.asarray(num_values, dtype=np.float64) * codec_bits)


def meg_cvpo_bits(num_values: Real, codec_bits: Real, merge_ratio: Real = 0.0) -> FloatArray:
    """Return the payload of one latent as MEG-CVPO counts it [bit], shape of the broadcast arguments.

        Z = kept q + merged,    kept = (1 - r) n,  merged = r n

    With q = 16 this is (kept + merged/16) 16 bit. A merged token leaves nothing behind but its index.

    Args:
        num_values: latent values n [1].
        codec_bits: bits per kept value q [bit].
        merge_ratio: share r of the tokens merged away [1].

    Source: MEG-CVPO (arXiv 2407.07245), payload of a merged latent.
    """
    merged = np.asarray(num_values, dtype=np.float64) * merge_ratio
    return latent_bits(num_values - merged, codec_bits) + merged * BITS_PER_MERGED_VALUE


def image_bits(resolution_px: Real, bits_per_pixel: Real) -> FloatArray:
    """Return the payload of a square image [bit]: `resolution_px` squared times `bits_per_pixel` [bit/px]."""
    return np.asarray(np.square(np.asarray(resolution_px, dtype=np.float64)) * bits_per_pixel)
