"""Latents as packed bytes: 16 (fp16), 8 or 4 bits a value, with a stated header and a checksum.

    frame = header | channel ranges | codes | CRC-32

| part | bytes | content |
|---|---|---|
| header | 20 | magic "MEGL", version u8, bits u8, zero u16, channels, height, width u32 |
| channel ranges | 8 C, none at 16 bits | scale f32 and offset f32 of every channel |
| codes | ceil(C H W bits / 8) | row-major; at 4 bits the first value of a pair is the low half of its byte |
| checksum | 4 | CRC-32 of everything before it |

All numbers are little-endian. At 8 and 4 bits, value = offset + scale code, with offset the smallest value of the
channel and offset + scale (2^bits - 1) its largest: half a scale is the largest error, and a constant channel comes
back exactly.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megopt.errors import ConfigError, PayloadError
from megopt.units import BITS_PER_BYTE

Latent: TypeAlias = NDArray[np.float32]
"""One latent, shape (channels, height, width)."""
Shape: TypeAlias = tuple[int, int, int]
"""Channels, height and width of a latent."""

BITS = (4, 8, 16)
MAGIC = b"MEGL"
VERSION = 1
HEADER = struct.Struct("<4sBBHIII")
CHECKSUM = struct.Struct("<I")
RANGE_BYTES = 8
"""A channel's scale and offset, two float32."""
MAX_NUM_VALUES = 1 << 28
"""Largest latent that `decode` accepts: 1 GiB at float32."""
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)


def payload_bytes(shape: Shape, bits: int) -> int:
    """Return the exact size of `encode`'s answer [B] for a latent of `shape` at `bits` per value.

    Raises:
        ConfigError: for a bit width that is no codec, or a shape that is not three positive numbers.
    """
    _check_bits(bits)
    return _frame_bytes(_checked_shape(shape), bits)


def encode(latent: ArrayLike, bits: int) -> bytes:
    """Return `latent` packed at `bits` per value.

    Args:
        latent: finite values, shape (channels, height, width); read as float32.
        bits: 16 (fp16), 8 or 4.

    Raises:
        ConfigError: for a bit width that is no codec, or values that it cannot hold.
    """
    _check_bits(bits)
    values = as_latent(latent)
    body = _pack_half(values) if bits == 16 else _pack_codes(values, bits)
    frame = HEADER.pack(MAGIC, VERSION, bits, 0, *values.shape) + body
    return frame + CHECKSUM.pack(zlib.crc32(frame))


def decode(payload: bytes) -> Latent:
    """Return the latent of a payload of `encode`, shape (channels, height, width).

    Raises:
        PayloadError: if the payload is truncated, damaged, too large, or of another format or version. Sizes are
            checked before anything is allocated.
    """
    shape, bits = _read_header(payload)
    body = memoryview(payload)[HEADER.size : -CHECKSUM.size]
    if bits == 16:
        return np.frombuffer(body, dtype="<f2").astype(np.float32).reshape(shape)
    return _unpack_codes(body, shape, bits)


def as_latent(latent: ArrayLike) -> Latent:
    """Return `latent` as float32, shape (channels, height, width).

    Raises:
        ConfigError: if it has another number of axes, no values, or values that are not finite at float32.
    """
    given = np.asarray(latent)
    _checked_shape(given.shape)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(given, dtype=np.float32)
    if not np.isfinite(values).all():
        message = "latent: some values are not finite at float32; check the model's output and its dtype"
        raise ConfigError(message)
    return values


def _check_bits(bits: int) -> None:
    if bits not in BITS:
        message = f"codec bits {bits!r}: expected one of {', '.join(map(str, BITS))}"
        raise ConfigError(message)


def _checked_shape(shape: tuple[Any, ...]) -> Shape:
    if len(shape) != 3 or any(int(side) != side or not 1 <= side < 1 << 32 for side in shape):
        message = f"latent of shape {tuple(shape)}: expected (channels, height, width) > 0; encode a batch one by one"
        raise ConfigError(message)
    return int(shape[0]), int(shape[1]), int(shape[2])


def _frame_bytes(shape: Shape, bits: int) -> int:
    channels, height, width = shape
    ranges = 0 if bits == 16 else RANGE_BYTES * channels
    codes = -(-channels * height * width * bits // BITS_PER_BYTE)
    return HEADER.size + ranges + codes + CHECKSUM.size


def _pack_half(values: Latent) -> bytes:
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if np.isinf(halves).any():
        message = f"latent: |value| up to {np.abs(values).max():.3g} does not fit fp16 (65504); use 8 bits or rescale"
        raise ConfigError(message)
    return halves.tobytes()


def _pack_codes(values: Latent, bits: int) -> bytes:
    flat = values.reshape(len(values), -1)
    levels = 2**bits - 1
    ranges = np.empty((len(flat), 2), dtype="<f4")
    ranges[:, 1] = flat.min(axis=1)
    span = flat.max(axis=1).astype(np.float64) - ranges[:, 1]
    ranges[:, 0] = np.where(span > 0, np.maximum(span / levels, SMALLEST_SCALE), 0.0)
    scale, offset = ranges.astype(np.float64).T[..., None]
    steps = np.divide(flat - offset, scale, out=np.zeros(flat.shape), where=scale > 0)
    codes = np.clip(np.rint(steps), 0, levels).astype(np.uint8).ravel()
    return ranges.tobytes() + (_pack_nibbles(codes) if bits == 4 else codes.tobytes())


def _unpack_codes(body: memoryview, shape: Shape, bits: int) -> Latent:
    ranges_bytes = RANGE_BYTES * shape[0]
    scale, offset = np.frombuffer(body[:ranges_bytes], dtype="<f4").reshape(-1, 2).astype(np.float64).T[..., None]
    if not (np.isfinite(scale).all() and np.isfinite(offset).all() and (scale >= 0).all()):
        message = "latent payload: a channel range is not finite or negative; the sender is no megopt encoder"
        raise PayloadError(message)
    codes = np.frombuffer(body[ranges_bytes:], dtype=np.uint8)
    codes = (_unpack_nibbles(codes) if bits == 4 else codes)[: shape[0] * shape[1] * shape[2]]
    with np.errstate(over="ignore"):
        values: Latent = (offset + scale * codes.reshape(shape[0], -1)).astype(np.float32)
    return values.reshape(shape)


def _pack_nibbles(codes: NDArray[np.uint8]) -> bytes:
    pairs = np.append(codes, np.zeros(len(codes) % 2, dtype=np.uint8)).reshape(-1, 2)
    return (pairs[:, 0] | pairs[:, 1] << 4).astype(np.uint8).tobytes()


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([packed & 0x0F, packed >> 4], axis=1).ravel()


def _read_header(payload: bytes) -> tuple[Shape, int]:
    """Return shape and bits of a payload whose size, version and checksum are as they should be."""
    if len(payload) < HEADER.size + CHECKSUM.size:
        message = f"latent payload of {len(payload)} B: too short for a header of {HEADER.size} B; receive it again"
        raise PayloadError(message)
    magic, version, bits, reserved, *sides = HEADER.unpack_from(payload)
    if magic != MAGIC or version != VERSION or bits not in BITS or reserved:
        message = (
            f"latent payload: magic {magic!r}, version {version}, {bits} bits; expected {MAGIC!r}, version {VERSION}, "
            f"one of {BITS} bits; both ends must run the same megopt"
        )
        raise PayloadError(message)
    shape: Shape = (sides[0], sides[1], sides[2])
    _check_size(payload, shape, bits)
    if zlib.crc32(memoryview(payload)[: -CHECKSUM.size]) != CHECKSUM.unpack(payload[-CHECKSUM.size :])[0]:
        message = "latent payload: the checksum does not match; it was damaged on the way, receive it again"
        raise PayloadError(message)
    return shape, bits


def _check_size(payload: bytes, shape: Shape, bits: int) -> None:
    num_values = shape[0] * shape[1] * shape[2]
    if not 0 < num_values <= MAX_NUM_VALUES:
        message = f"latent payload: the header states shape {shape}; expected 1 to {MAX_NUM_VALUES} values"
        raise PayloadError(message)
    expected = _frame_bytes(shape, bits)
    if len(payload) != expected:
        message = f"latent payload of {len(payload)} B: the header states shape {shape} at {bits} bits, {expected} B"
        raise PayloadError(message)
