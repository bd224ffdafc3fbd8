"""Merged tokens: identity at 0, growing error, exact sizes, damaged payloads."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.diffusion import codec, merging
from megopt.diffusion.codec import BITS, CHECKSUM, Latent
from megopt.diffusion.merging import HEADER, MergedLatent, merge, merged_payload_bytes, unmerge
from megopt.errors import ConfigError, PayloadError

ratios = st.floats(0.0, 1.0)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 11), st.integers(1, 11))
seeds = st.integers(0, 2**32 - 1)


def noise(shape: tuple[int, int, int], seed: int = 0) -> Latent:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def squared_error(latent: Latent, ratio: float) -> float:
    return float(np.square(unmerge(merge(latent, ratio)).astype(np.float64) - latent).sum())


# --- merging --------------------------------------------------------------------------------------------------------


def test_known_tokens() -> None:
    latent = np.array([[[1, 1, 0, 8], [1, 1, 4, 0], [5, 7, 2, 2], [5, 7, 2, 6]]], dtype=np.float32)
    half = merge(latent, 0.5)  # variances 0, 11, 1, 3: the two on the left go
    assert half.merged.tolist() == [[True, False], [True, False]]
    assert half.values.tolist() == [[1, 0, 8, 4, 0, 6, 2, 2, 2, 6]]
    assert unmerge(half).tolist() == [[[1, 1, 0, 8], [1, 1, 4, 0], [6, 6, 2, 2], [6, 6, 2, 6]]]


@given(shape=shapes, seed=seeds)
def test_ratio_zero_is_the_identity(shape: tuple[int, int, int], seed: int) -> None:
    latent = noise(shape, seed)
    assert np.array_equal(unmerge(merge(latent, 0.0)), latent)


@given(shape=shapes, ratio=ratios, value=st.floats(-(2.0**100), 2.0**100, width=32))
def test_constant_latents_are_lossless(shape: tuple[int, int, int], ratio: float, value: float) -> None:
    latent = np.full(shape, value, dtype=np.float32)
    assert np.array_equal(unmerge(merge(latent, ratio)), latent)


@given(shape=shapes, seed=seeds, pair=st.tuples(ratios, ratios))
def test_error_grows_with_the_ratio(shape: tuple[int, int, int], seed: int, pair: tuple[float, float]) -> None:
    latent = noise(shape, seed)
    low, high = sorted(pair)
    assert squared_error(latent, low) <= squared_error(latent, high) * (1 + 1e-6)


@given(shape=shapes, seed=seeds, ratio=ratios)
def test_merging_twice_changes_nothing(shape: tuple[int, int, int], seed: int, ratio: float) -> None:
    once = unmerge(merge(noise(shape, seed), ratio))
    assert np.array_equal(unmerge(merge(once, ratio)), once)


def test_ratio_one_leaves_a_quarter_of_the_values() -> None:
    assert merge(noise((4, 16, 16)), 1.0).values.shape == (4, 64)


def test_odd_edges_are_always_sent() -> None:
    latent = noise((2, 5, 3))
    restored = unmerge(merge(latent, 1.0))
    assert np.array_equal(restored[:, 4, :], latent[:, 4, :])
    assert np.array_equal(restored[:, :, 2], latent[:, :, 2])


def test_the_callers_latent_is_left_alone() -> None:
    latent = noise((2, 4, 4))
    before = latent.copy()
    merge(latent, 1.0)
    assert np.array_equal(latent, before)


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_sdxl_latent_has_the_stated_size() -> None:
    # 4096 tokens, half merged: 4 (16384 - 3 2048) values at 4 bits, a map of 512 B; 24 B of frame outside, 56 inside
    assert merged_payload_bytes((4, 128, 128), 0.5, 4) == 4 * 10240 // 2 + 512 + 24 + 56
    assert merged_payload_bytes((4, 128, 128), 0.0, 4) == codec.payload_bytes((4, 128, 128), 4) + 24


@given(shape=shapes, seed=seeds, ratio=ratios, bits=st.sampled_from(BITS))
def test_size_is_predicted_to_the_byte(shape: tuple[int, int, int], seed: int, ratio: float, bits: int) -> None:
    merged = merge(noise(shape, seed), ratio)
    payload = merging.encode(merged, bits)
    assert len(payload) == merged_payload_bytes(shape, ratio, bits)
    received = merging.decode(payload)
    assert received.shape == shape
    assert np.array_equal(received.merged, merged.merged)
    expected = codec.decode(codec.encode(merged.values[:, None], bits))[:, 0]
    assert np.array_equal(received.values, expected)
    assert unmerge(received).shape == shape


def test_size_falls_with_the_ratio() -> None:
    sizes = [merged_payload_bytes((4, 64, 64), ratio, 8) for ratio in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert sizes == sorted(sizes, reverse=True)


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_ratios_outside_are_refused(ratio: float) -> None:
    with pytest.raises(ConfigError, match="expected a share from 0 to 1"):
        merge(noise((1, 4, 4)), ratio)
    with pytest.raises(ConfigError, match="expected a share from 0 to 1"):
        merged_payload_bytes((1, 4, 4), ratio, 8)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of 4, 8, 16"):
        merged_payload_bytes((1, 4, 4), 0.5, 5)
    with pytest.raises(ConfigError, match="channels, height, width"):
        merge(np.zeros((4, 4)), 0.5)
    with pytest.raises(PayloadError, match="leaves 10 positions, and values of shape"):
        MergedLatent(values=np.zeros((1, 4), np.float32), merged=np.eye(2, dtype=np.bool_), shape=(1, 4, 4))


@given(ratio=ratios, bits=st.sampled_from(BITS), data=st.data())
def test_damaged_payloads_are_refused(ratio: float, bits: int, data: st.DataObject) -> None:
    payload = merging.encode(merge(noise((2, 6, 5)), ratio), bits)
    position = data.draw(st.integers(0, len(payload) - 1))
    flipped = payload[:position] + bytes([payload[position] ^ data.draw(st.integers(1, 255))]) + payload[position + 1 :]
    for broken in (flipped, payload[:position], payload + b"\0"):
        with pytest.raises(PayloadError, match="payload"):
            merging.decode(broken)


@pytest.mark.parametrize(("height", "width", "merged"), [(1 << 31, 1 << 31, 0), (1 << 14, 1 << 14, 1 << 26), (4, 4, 5)])
def test_impossible_headers_are_refused_before_allocation(height: int, width: int, merged: int) -> None:
    frame = HEADER.pack(b"MEGM", 1, height, width, merged)
    inner = codec.encode(noise((1, 1, 4)), 8)
    with pytest.raises(PayloadError, match="merged payload"):
        merging.decode(frame + CHECKSUM.pack(zlib.crc32(frame)) + inner)
