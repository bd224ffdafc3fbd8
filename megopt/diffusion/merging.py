"""Merging similar tokens of a latent before it is sent, and putting them back afterwards.

A token is a whole 2x2 block of latent positions, all channels together. The tokens whose values vary least inside are
merged: one mean per channel is sent in place of four values. `merge_ratio` r is the share of tokens merged, so

    values sent = C (H W - 3 round(r num_tokens)),      num_tokens = floor(H/2) floor(W/2)

An odd last row or column belongs to no token and is always sent.

    frame = header | bitmap | CRC-32 | latent payload of `megopt.diffusion.codec`

| part | bytes | content |
|---|---|---|
| header | 20 | magic "MEGM", version u8, three zero bytes, height, width, merged tokens u32 |
| bitmap | ceil(num_tokens / 8); 0 if none or all are merged | 1 = merged, row-major, first token in the high bit |
| checksum | 4 | CRC-32 of header and bitmap |

Merging the least varying tokens first makes the squared error of a latent grow with the ratio, and as little as it can.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megopt.arrays import BoolArray
from megopt.diffusion import codec
from megopt.diffusion.codec import CHECKSUM, Latent, Shape
from megopt.errors import ConfigError, PayloadError
from megopt.units import BITS_PER_BYTE

MAGIC = b"MEGM"
VERSION = 1
HEADER = struct.Struct("<4sB3xIII")
SIDE = 2
"""Side of a token, in latent positions."""
SPARED = SIDE * SIDE - 1
"""Values that a merged token spares, per channel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergedLatent:
    """What is left of a latent after merging.

    Attributes:
        values: values to send, shape (channels, num_sent): position by position in row-major order, with the mean of a
            merged token at its first position and its other positions left out.
        merged: which tokens are merged, shape (height // 2, width // 2).
        shape: shape of the latent before merging.
    """

    values: NDArray[np.float32]
    merged: BoolArray
    shape: Shape

    def __post_init__(self) -> None:
        """Check that values, map and shape belong together."""
        channels, height, width = self.shape
        num_sent = _num_sent(height, width, int(self.merged.sum()))
        if self.merged.shape != (height // SIDE, width // SIDE) or self.values.shape != (channels, num_sent):
            message = (
                f"merged latent of shape {self.shape}: a map of shape {self.merged.shape} that leaves {num_sent} "
                f"positions, and values of shape {self.values.shape}; expected {(channels, num_sent)}"
            )
            raise PayloadError(message)


def merge(latent: ArrayLike, ratio: float) -> MergedLatent:
    """Return `latent` with the share `ratio` of its tokens merged, the least varying first.

    Args:
        latent: finite values, shape (channels, height, width).
        ratio: share of tokens to merge [1], 0 (nothing is changed) to 1.

    Raises:
        ConfigError: for a ratio outside 0..1, or a latent that is not (channels, height, width) and finite.
    """
    values = codec.as_latent(latent)
    blocks = _blocks(values).astype(np.float64)
    merged = _least_varying(blocks.var(axis=(2, 4)).sum(axis=0), ratio)
    sent = values.copy()
    _blocks(sent)[:, :, 0, :, 0] = np.where(merged, blocks.mean(axis=(2, 4)), blocks[:, :, 0, :, 0])
    shape = (values.shape[0], values.shape[1], values.shape[2])
    return MergedLatent(values=sent[:, _sent_positions(merged, shape)], merged=merged, shape=shape)


def unmerge(merged: MergedLatent) -> Latent:
    """Return the latent of `merged`, shape `merged.shape`: every position of a merged token takes the token's mean."""
    latent = np.empty(merged.shape, dtype=np.float32)
    latent[:, _sent_positions(merged.merged, merged.shape)] = merged.values
    blocks = _blocks(latent)
    first = blocks[:, :, :1, :, :1]
    blocks[...] = np.where(merged.merged[:, None, :, None], first, blocks)
    return latent


def encode(merged: MergedLatent, bits: int) -> bytes:
    """Return `merged` as bytes, its values packed at `bits` each.

    Raises:
        ConfigError: for a bit width that is no codec, or values that it cannot hold.
    """
    _, height, width = merged.shape
    num_merged = int(merged.merged.sum())
    frame = HEADER.pack(MAGIC, VERSION, height, width, num_merged)
    if _bitmap_bytes(merged.merged.size, num_merged):
        frame += np.packbits(merged.merged).tobytes()
    return frame + CHECKSUM.pack(zlib.crc32(frame)) + codec.encode(merged.values[:, None, :], bits)


def decode(payload: bytes) -> MergedLatent:
    """Return the merged latent of a payload of `encode`.

    Raises:
        PayloadError: if the payload is truncated, damaged, too large, or of another format or version. Sizes are
            checked before anything is allocated.
    """
    height, width, num_merged = _read_header(payload)
    num_tokens = (height // SIDE) * (width // SIDE)
    end = HEADER.size + _bitmap_bytes(num_tokens, num_merged)
    if len(payload) < end + CHECKSUM.size or zlib.crc32(payload[:end]) != CHECKSUM.unpack_from(payload, end)[0]:
        message = "merged payload: it is truncated, or the checksum of its map does not match; receive it again"
        raise PayloadError(message)
    values = codec.decode(payload[end + CHECKSUM.size :])
    if values.shape[1:] != (1, _num_sent(height, width, num_merged)):
        message = (
            f"merged payload: {values.shape} values for {height}x{width} positions with {num_merged} merged tokens"
        )
        raise PayloadError(message)
    bitmap = np.frombuffer(payload[HEADER.size : end], dtype=np.uint8)
    merged = np.unpackbits(bitmap, count=num_tokens) if len(bitmap) else np.full(num_tokens, num_merged > 0)
    return MergedLatent(
        values=values[:, 0],
        merged=merged.astype(np.bool_).reshape(height // SIDE, width // SIDE),
        shape=(len(values), height, width),
    )


def merged_payload_bytes(shape: Shape, ratio: float, bits: int) -> int:
    """Return the exact size [B] of `encode(merge(latent, ratio), bits)` for a latent of `shape`.

    Raises:
        ConfigError: for a ratio outside 0..1, a bit width that is no codec, or a shape that is not three positive
            numbers.
    """
    codec.payload_bytes(shape, bits)  # checks shape and bits
    channels, height, width = shape
    num_tokens = (height // SIDE) * (width // SIDE)
    num_merged = _num_merged(num_tokens, ratio)
    values = codec.payload_bytes((channels, 1, _num_sent(height, width, num_merged)), bits)
    return HEADER.size + _bitmap_bytes(num_tokens, num_merged) + CHECKSUM.size + values


def _num_merged(num_tokens: int, ratio: float) -> int:
    if not 0.0 <= ratio <= 1.0:
        message = f"merge_ratio {ratio!r}: expected a share from 0 to 1"
        raise ConfigError(message)
    return int(ratio * num_tokens + 0.5)


def _num_sent(height: int, width: int, num_merged: int) -> int:
    return height * width - SPARED * num_merged


def _bitmap_bytes(num_tokens: int, num_merged: int) -> int:
    return 0 if num_merged in (0, num_tokens) else -(-num_tokens // BITS_PER_BYTE)


def _blocks(latent: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the tokens of `latent` as a view, shape (channels, height // 2, 2, width // 2, 2)."""
    channels, height, width = latent.shape
    rows, columns = height // SIDE, width // SIDE
    stride_c, stride_h, stride_w = latent.strides
    return np.lib.stride_tricks.as_strided(
        latent,
        shape=(channels, rows, SIDE, columns, SIDE),
        strides=(stride_c, SIDE * stride_h, stride_h, SIDE * stride_w, stride_w),
    )


def _least_varying(variance: NDArray[np.float64], ratio: float) -> BoolArray:
    """Return a map of the share `ratio` of tokens with the smallest `variance`; ties go to the first token."""
    merged = np.zeros(variance.size, dtype=np.bool_)
    order = np.argsort(variance, axis=None, kind="stable")
    merged[order[: _num_merged(variance.size, ratio)]] = True
    return merged.reshape(variance.shape)


def _sent_positions(merged: BoolArray, shape: Shape) -> BoolArray:
    """Return which positions are sent, shape (height, width): all but the last three of a merged token."""
    _, height, width = shape
    rows, columns = merged.shape
    sent = np.ones((height, width), dtype=np.bool_)
    inner = sent[: SIDE * rows, : SIDE * columns].reshape(rows, SIDE, columns, SIDE)
    keep = np.broadcast_to(~merged[:, None, :, None], inner.shape).copy()
    keep[:, 0, :, 0] = True
    sent[: SIDE * rows, : SIDE * columns] = keep.reshape(SIDE * rows, SIDE * columns)
    return sent


def _read_header(payload: bytes) -> tuple[int, int, int]:
    """Return height, width and number of merged tokens, when they are possible."""
    if len(payload) < HEADER.size:
        message = f"merged payload of {len(payload)} B: too short for a header of {HEADER.size} B; receive it again"
        raise PayloadError(message)
    magic, version, height, width, num_merged = HEADER.unpack_from(payload)
    if magic != MAGIC or version != VERSION:
        message = (
            f"merged payload: magic {magic!r}, version {version}; expected {MAGIC!r}, version {VERSION}; "
            "both ends must run the same megopt"
        )
        raise PayloadError(message)
    if not 0 < height * width <= codec.MAX_NUM_VALUES or num_merged > (height // SIDE) * (width // SIDE):
        message = (
            f"merged payload: the header states {height}x{width} positions and {num_merged} merged tokens; impossible"
        )
        raise PayloadError(message)
    return int(height), int(width), int(num_merged)
