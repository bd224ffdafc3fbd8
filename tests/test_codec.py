"""Packed latents: exact sizes, error bounds, damaged payloads."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from megopt.diffusion.codec import BITS, CHECKSUM, HEADER, MAX_NUM_VALUES, Latent, decode, encode, payload_bytes
from megopt.errors import ConfigError, PayloadError

FP16_MAX = 65504.0
EXPECTED_CODES = 4 * 128 * 128  # values of an SDXL latent
bit_widths = st.sampled_from(BITS)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


def latents(limit: float) -> st.SearchStrategy[Latent]:
    values = st.floats(-limit, limit, width=32)
    return shapes.flatmap(lambda shape: arrays.arrays(np.float32, shape, elements=values))


def noise(shape: tuple[int, int, int]) -> Latent:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "codes"), [(16, 2 * EXPECTED_CODES), (8, EXPECTED_CODES), (4, EXPECTED_CODES // 2)])
def test_sdxl_latent_has_the_stated_size(bits: int, codes: int) -> None:
    ranges = 0 if bits == 16 else 4 * 8
    assert payload_bytes((4, 128, 128), bits) == 20 + ranges + codes + 4
    assert len(encode(noise((4, 128, 128)), bits)) == payload_bytes((4, 128, 128), bits)


@given(shape=shapes, bits=bit_widths)
def test_size_is_predicted_to_the_byte(shape: tuple[int, int, int], bits: int) -> None:
    payload = encode(noise(shape), bits)
    assert len(payload) == payload_bytes(shape, bits)
    assert decode(payload).shape == shape


def test_four_bit_codes_are_two_to_a_byte() -> None:
    # the channel runs from 0 to 15, so that scale is 1 and codes are values
    payload = encode(np.array([[[0.0, 15.0, 3.0, 10.0, 7.0]]]), 4)
    assert payload[HEADER.size + 8 : -CHECKSUM.size] == bytes([0xF0, 0xA3, 0x07])


# --- errors of the round trip ---------------------------------------------------------------------------------------


@given(latent=latents(FP16_MAX))
def test_sixteen_bits_round_to_fp16(latent: Latent) -> None:
    assert np.array_equal(decode(encode(latent, 16)), latent.astype(np.float16).astype(np.float32))


@given(latent=latents(2.0**100), bits=st.sampled_from((4, 8)))
def test_error_is_at_most_half_a_scale(latent: Latent, bits: int) -> None:
    flat = latent.reshape(len(latent), -1).astype(np.float64)
    scale = (flat.max(axis=1) - flat.min(axis=1)) / (2**bits - 1)
    rounding = np.abs(flat).max(axis=1) * 2.0**-22 + 1e-37  # float32 arithmetic, and ranges below its normal numbers
    error = np.abs(decode(encode(latent, bits)).reshape(flat.shape) - flat).max(axis=1)
    assert (error <= 0.5 * scale + rounding).all()


@given(shape=shapes, bits=bit_widths, value=st.floats(-1e4, 1e4, width=16))
def test_constant_latents_come_back_exactly(shape: tuple[int, int, int], bits: int, value: float) -> None:
    latent = np.full(shape, value, dtype=np.float32)
    assert np.array_equal(decode(encode(latent, bits)), latent)


@given(shape=shapes, bits=bit_widths)
@settings(max_examples=30)
def test_encoding_a_decoded_latent_changes_little(shape: tuple[int, int, int], bits: int) -> None:
    once = decode(encode(noise(shape), bits))
    np.testing.assert_allclose(decode(encode(once, bits)), once, rtol=1e-5, atol=1e-5)


def test_error_falls_with_bits() -> None:
    latent = noise((4, 32, 32))
    errors = [float(np.square(decode(encode(latent, bits)) - latent).mean()) for bits in BITS]
    assert errors[0] > 100 * errors[1] > 10_000 * errors[2]
    # uniform quantiser: mean square error scale^2 / 12
    scale = np.ptp(latent.reshape(4, -1), axis=1) / 15
    assert errors[0] == pytest.approx(float(np.square(scale).mean() / 12), rel=0.1)


def test_channels_have_their_own_range() -> None:
    latent = noise((2, 16, 16)) * np.array([1.0, 1000.0], dtype=np.float32)[:, None, None]
    assert np.abs(decode(encode(latent, 8)) - latent)[0].max() < 0.02


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 3, 32, "8"])
def test_other_bit_widths_are_refused(bits: Any) -> None:
    with pytest.raises(ConfigError, match="expected one of 4, 8, 16"):
        encode(noise((1, 2, 2)), bits)
    with pytest.raises(ConfigError, match="expected one of 4, 8, 16"):
        payload_bytes((1, 2, 2), bits)


@pytest.mark.parametrize("latent", [np.zeros((2, 2)), np.zeros((1, 4, 8, 8)), np.zeros((0, 2, 2))])
def test_other_shapes_are_refused(latent: Any) -> None:
    with pytest.raises(ConfigError, match="expected \\(channels, height, width\\)"):
        encode(latent, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="not finite"):
        encode(np.full((1, 2, 2), value), 8)


def test_values_beyond_fp16_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not fit fp16"):
        encode(np.full((1, 2, 2), 7e4), 16)


@given(bits=bit_widths, data=st.data())
def test_damaged_payloads_are_refused(bits: int, data: st.DataObject) -> None:
    payload = encode(noise((2, 3, 5)), bits)
    position = data.draw(st.integers(0, len(payload) - 1))
    flip = data.draw(st.integers(1, 255))
    flipped = payload[:position] + bytes([payload[position] ^ flip]) + payload[position + 1 :]
    for broken in (flipped, payload[:position], payload + b"\0"):
        with pytest.raises(PayloadError, match="latent payload"):
            decode(broken)


def framed(header: bytes, body: bytes = b"") -> bytes:
    return header + body + CHECKSUM.pack(zlib.crc32(header + body))


def test_oversized_headers_are_refused_before_allocation() -> None:
    huge = HEADER.pack(b"MEGL", 1, 4, 0, 1 << 31, 1 << 31, 1 << 31)
    with pytest.raises(PayloadError, match=f"expected 1 to {MAX_NUM_VALUES} values"):
        decode(framed(huge))
    large = HEADER.pack(b"MEGL", 1, 4, 0, 1, 1 << 14, 1 << 14)
    with pytest.raises(PayloadError, match="the header states shape"):
        decode(framed(large))


def test_impossible_ranges_are_refused() -> None:
    header = HEADER.pack(b"MEGL", 1, 8, 0, 1, 1, 1)
    for scale in (float("nan"), -1.0):
        with pytest.raises(PayloadError, match="channel range"):
            decode(framed(header, struct.pack("<ff", scale, 0.0) + b"\1"))
