"""Image metrics: known numbers, limiting cases, agreement with independent implementations, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megopt.diffusion.metrics import (
    estimate,
    laplacian_energy,
    mean_squared_error,
    ms_ssim,
    ms_ssim_scales,
    psnr_db,
    sharpness,
    ssim,
)
from megopt.diffusion.rendering import Images, render
from megopt.diffusion.scenes import sample_scenes
from megopt.errors import ConfigError

torch.set_num_threads(1)
PAIRED = (mean_squared_error, psnr_db, ssim, ms_ssim, sharpness)


@pytest.fixture(scope="module")
def scenes() -> Images:
    return render(sample_scenes(0, 3), 64)[0]


def noisy(images: Images, amplitude: float) -> Images:
    noise = np.random.default_rng(0).normal(0.0, amplitude, images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def blurred(images: Images) -> Images:
    wide = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    parts = [wide[:, row : row + height, column : column + width] for row in range(3) for column in range(3)]
    return np.mean(parts, axis=0).round().astype(np.uint8)


# --- pairs of images ------------------------------------------------------------------------------------------------


def test_equal_images_have_the_best_value(scenes: Images) -> None:
    assert np.array_equal(psnr_db(scenes, scenes), np.full(3, np.inf))
    assert np.array_equal(mean_squared_error(scenes, scenes), np.zeros(3))
    for metric in (ssim, ms_ssim, sharpness):
        np.testing.assert_allclose(metric(scenes, scenes), 1.0, atol=1e-6)


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    np.testing.assert_allclose(psnr_db(np.full_like(black, 255), black), 0.0, atol=1e-12)
    np.testing.assert_allclose(psnr_db(np.full_like(black, 51), black), 20.0 * np.log10(5.0))


def test_similarity_falls_with_noise(scenes: Images) -> None:
    worse = [noisy(scenes, amplitude) for amplitude in (4.0, 16.0, 48.0)]
    for metric in (psnr_db, ssim, ms_ssim):
        values = np.array([metric(images, scenes) for images in worse])
        assert (np.diff(values, axis=0) < 0.0).all(), metric.__name__


def test_ssim_of_shifted_flat_images_is_the_luminance_term() -> None:
    dark, bright = (np.full((1, 16, 16, 3), level, dtype=np.uint8) for level in (50, 100))
    expected = (2 * 50 * 100 + 2.55**2) / (50**2 + 100**2 + 2.55**2)
    np.testing.assert_allclose(ssim(dark, bright), expected)
    np.testing.assert_allclose(ms_ssim(dark, bright), expected, atol=1e-5)


def test_ssim_is_that_of_torchmetrics(scenes: Images) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    changed = noisy(scenes, 12.0)
    pair = [torch.from_numpy(each / 255.0).permute(0, 3, 1, 2) for each in (changed, scenes)]
    full = structural_similarity_index_measure(*pair, data_range=1.0, reduction="none", return_full_image=True)[1]
    np.testing.assert_allclose(ssim(changed, scenes), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(("side", "scales"), [(10, 0), (11, 1), (22, 2), (64, 3), (99, 4), (175, 4), (176, 5)])
def test_scales_that_fit(side: int, scales: int) -> None:
    assert ms_ssim_scales(side, 2 * side) == scales
    if scales:
        image = np.random.default_rng(1).integers(0, 256, (1, side, 2 * side, 3), dtype=np.uint8)
        np.testing.assert_allclose(ms_ssim(image, image), 1.0, atol=1e-6)


def test_one_scale_of_ms_ssim_is_ssim(scenes: Images) -> None:
    changed = noisy(scenes, 12.0)
    inner = ssim(changed, scenes)  # torchmetrics counts the border too
    np.testing.assert_allclose(ms_ssim(changed, scenes, num_scales=1), inner, atol=0.06)
    with pytest.raises(ConfigError, match="4 scales on 64x64 px; expected 1 to 3"):
        ms_ssim(changed, scenes, num_scales=4)


def test_values_do_not_depend_on_the_neighbours(scenes: Images) -> None:
    changed = noisy(scenes, 12.0)
    many, reference = (np.concatenate([each] * 23) for each in (changed, scenes))  # two chunks
    for metric in PAIRED:
        values = metric(many, reference)
        assert values.shape == (69,)
        np.testing.assert_allclose(values[-1:], metric(changed[-1:], scenes[-1:]), rtol=1e-5)


def test_sharpness_tells_blur_and_noise(scenes: Images) -> None:
    assert (sharpness(blurred(scenes), scenes) < 0.6).all()
    assert (sharpness(noisy(scenes, 20.0), scenes) > 1.2).all()


def test_laplacian_energy_of_a_known_image() -> None:
    image = np.zeros((1, 3, 3, 3), dtype=np.uint8)
    image[0, 1, 1] = 10  # one inner pixel: Laplacian -40
    assert laplacian_energy(image)[0] == pytest.approx(1600.0)
    flat = np.full((2, 8, 8, 3), 7, dtype=np.uint8)
    np.testing.assert_allclose(laplacian_energy(flat), 0.0, atol=1e-6)
    with pytest.raises(ConfigError, match="reference 0 is flat"):
        sharpness(flat, np.zeros_like(flat))


@pytest.mark.parametrize("metric", PAIRED)
def test_what_is_no_pair_of_images_is_refused(metric: Any, scenes: Images) -> None:
    with pytest.raises(ConfigError, match=r"images of shape \(2, 64, 64, 3\), reference of shape \(3, 64, 64, 3\)"):
        metric(scenes[:2], scenes)
    with pytest.raises(ConfigError, match="float64"):
        metric(scenes / 255.0, scenes)
    with pytest.raises(ConfigError, match="reference: uint8 of shape"):
        metric(scenes, scenes[0])
    with pytest.raises(ConfigError, match=r"shape \(0, 64, 64, 3\)"):
        metric(scenes[:0], scenes[:0])


# --- means ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_estimate_is_seeded_and_covers() -> None:
    rng = np.random.default_rng(2)
    first, again, other = (estimate(np.arange(20.0), seed=seed) for seed in (0, 0, 1))
    assert (first.mean, first.std) == (9.5, pytest.approx(np.std(np.arange(20.0))))
    assert (first.low, first.high) == (again.low, again.high) != (other.low, other.high)
    found = [estimate(rng.normal(3.0, 1.0, 40), seed=number, num_resamples=400) for number in range(200)]
    assert 0.90 <= np.mean([one.low <= 3.0 <= one.high for one in found]) <= 0.99


def test_estimate_at_its_limits() -> None:
    equal = estimate(np.full(4, np.inf), seed=0)
    assert (equal.mean, equal.low, equal.high) == (np.inf, np.inf, np.inf)
    assert np.isnan(equal.std)
    one = estimate([2.0], seed=0)
    assert one.mean == 2.0
    assert np.isnan([one.low, one.high]).all()
    for wrong in ([], [1.0, np.nan], [[1.0]]):
        with pytest.raises(ConfigError, match="estimate: values of shape"):
            estimate(wrong, seed=0)
    with pytest.raises(ConfigError, match="level 1"):
        estimate([1.0, 2.0], seed=0, level=1.0)
