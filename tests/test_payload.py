"""Payloads: predicted bits are those of really encoded latents; published formulas give their published numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.diffusion import codec, merging
from megopt.errors import ConfigError
from megopt.system.payload import FRAME_CODEC_BITS, frame_bits, image_bits, latent_bits, meg_cvpo_bits

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 13), st.integers(1, 13))
RATIOS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.0, 1.0))


def encoded_bits(shape: tuple[int, int, int], bits: int, ratio: float) -> int:
    """Really encode a latent, and count."""
    latent = np.random.default_rng(0).normal(size=shape)
    if ratio == 0.0:
        return 8 * len(codec.encode(latent, bits))
    return 8 * len(merging.encode(merging.merge(latent, ratio), bits))


@given(SHAPES, st.sampled_from(FRAME_CODEC_BITS), RATIOS)
@settings(max_examples=150)
def test_predicted_bits_are_those_of_real_encodes(shape: tuple[int, int, int], bits: int, ratio: float) -> None:
    assert frame_bits(shape, bits, ratio) == encoded_bits(shape, bits, ratio)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(FRAME_CODEC_BITS), RATIOS), min_size=1, max_size=12))
@settings(max_examples=30)
def test_a_column_of_rows_is_every_row_alone(rows: list[tuple[tuple[int, int, int], int, float]]) -> None:
    shapes, bits, ratios = (np.array(column) for column in zip(*rows, strict=True))
    found = frame_bits(shapes, bits, ratios)
    assert found.tolist() == [encoded_bits(*row) for row in rows]


def test_frames_broadcast() -> None:
    found = frame_bits((4, 16, 16), np.array([[16], [8], [4]]), np.array([0.0, 0.5]))
    assert found.shape == (3, 2)
    assert np.all(np.diff(found, axis=0) < 0)
    assert np.all(np.diff(found, axis=1) < 0)
    assert found[2, 1] == encoded_bits((4, 16, 16), 4, 0.5)


def test_sdxl_at_1024_px_by_hand() -> None:
    """4 x 128 x 128 values: fp16 131,072 byte and 4 bit 32,768 byte; frames add 24 byte, and 8 a channel at 4 bits."""
    assert frame_bits((4, 128, 128), 16) == 8 * (131_072 + 24)
    assert frame_bits((4, 128, 128), 4) == 8 * (32_768 + 24 + 32)
    # half of 4096 tokens spare three quarters of their values; bitmap 512 byte, 24 byte more of header and checksum
    assert frame_bits((4, 128, 128), 16, 0.5) == 8 * (131_072 * 5 // 8 + 24 + 512 + 24)
    assert latent_bits(65_536, 16) == 1_048_576
    assert image_bits(1024, 24) == 3_145_728 * 8


def test_the_payload_of_meg_cvpo() -> None:
    kept, merged = 0.75 * 65_536, 0.25 * 65_536
    assert meg_cvpo_bits(65_536, 16, 0.25) == pytest.approx((kept + merged / 16) * 16)
    assert meg_cvpo_bits(65_536, 16) == latent_bits(65_536, 16)
    assert meg_cvpo_bits(65_536, 12, 1.0) == 65_536


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 8, 8), 12), "codec bits 12: expected one of 4, 8, 16"),
        (((4, 8, 8), [16, 7.5]), "codec bits .*7.5.*: expected one of 4, 8, 16"),
        (((4, 8, 8), 16, 1.5), "merge_ratio .*1.5.*: expected a share from 0 to 1"),
        (((4, 8.5, 8), 16), r"latent of shape .*8.5.*: expected \(channels, height, width\) > 0"),
        (((4, 0, 8), 16, 0.5), r"expected \(channels, height, width\) > 0"),
        (((8, 8), 16), r"latent_shape has shape \(2,\); expected \(..., 3\)"),
    ],
)
def test_impossible_frames_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        frame_bits(*arguments)
