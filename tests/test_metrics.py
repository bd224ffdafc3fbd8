"""Image metrics: known numbers, limiting cases, agreement with independent implementations, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from megopt.arrays import FloatArray
from megopt.diffusion.captions import NUM_ATTRIBUTES, attributes
from megopt.diffusion.metrics import (
    ATTRIBUTE_NAMES,
    attributes_from_logits,
    estimate,
    frechet_distance,
    laplacian_energy,
    match_attributes,
    mean_squared_error,
    ms_ssim,
    ms_ssim_scales,
    psnr_db,
    sharpness,
    ssim,
    text_alignment,
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


# --- Frechet distance -----------------------------------------------------------------------------------------------


def exact_sample(mean: FloatArray, covariance: FloatArray, num: int, seed: int) -> FloatArray:
    """Points whose sample moments are exactly those given."""
    points = np.random.default_rng(seed).standard_normal((num, len(mean)))
    points -= points.mean(axis=0)
    root, _ = np.linalg.qr(points)
    return np.asarray(root * np.sqrt(num - 1) @ linalg.cholesky(covariance) + mean)


def random_covariance(size: int, seed: int) -> FloatArray:
    factor = np.random.default_rng(seed).standard_normal((size, size))
    return np.asarray(factor @ factor.T + 0.1 * np.eye(size))


@given(seed=st.integers(0, 2**16), size=st.integers(1, 6))
def test_frechet_distance_is_the_closed_form(seed: int, size: int) -> None:
    means = np.random.default_rng(seed).standard_normal((2, size))
    covariances = [random_covariance(size, seed + number) for number in (1, 2)]
    cross = linalg.sqrtm(covariances[0] @ covariances[1])
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1] - 2.0 * cross.real)
    sets = [exact_sample(means[number], covariances[number], 40 + 10 * number, seed) for number in (0, 1)]
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert frechet_distance(*sets) == pytest.approx(frechet_distance(*reversed(sets)))


def test_frechet_distance_in_one_dimension() -> None:
    # |m1 - m2|^2 + (s1 - s2)^2
    sets = [exact_sample(np.array([m]), np.array([[s**2]]), 30, 3) for m, s in ((1.0, 2.0), (4.0, 0.5))]
    assert frechet_distance(*sets) == pytest.approx(9.0 + 2.25)


def test_frechet_distance_of_nearly_singular_sets_is_real_and_small() -> None:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((300, 4)) @ rng.standard_normal((4, 64))  # rank 4 of 64
    assert frechet_distance(features, features) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(features, features + 1.0) == pytest.approx(64.0)


def test_frechet_distance_refuses_small_or_unlike_sets() -> None:
    features = np.random.default_rng(5).standard_normal((8, 8))
    with pytest.raises(ConfigError, match="8 images for 8 features; too few for a covariance, expected at least 9"):
        frechet_distance(features, features)
    with pytest.raises(ConfigError, match=r"\(8, 8\) and \(8, 7\)"):
        frechet_distance(features, features[:, :7])
    with pytest.raises(ConfigError, match="not finite"):
        frechet_distance(features * np.nan, features)


# --- text -----------------------------------------------------------------------------------------------------------


def test_attributes_that_match(scenes: Images) -> None:
    told = np.stack([attributes(scene) for scene in sample_scenes(0, 6)])
    match = match_attributes(told, told)
    assert match.is_all_right.all()
    np.testing.assert_array_equal(match.alignment, 1.0)
    np.testing.assert_array_equal(match.per_attribute, 1.0)
    assert len(match.per_attribute) == len(ATTRIBUTE_NAMES)


def vector(*objects: tuple[int, ...], floor: int = 0) -> list[int]:
    """Attribute vector with the given (place, shape, colour, material, size)."""
    slots = np.zeros((5, 5), dtype=np.int64)
    for place, *values in objects:
        slots[place] = (1, *values)
    return [*slots.ravel().tolist(), floor]


def test_attributes_are_counted_as_stated() -> None:
    told = vector((0, 2, 3, 1, 1), floor=2)
    seen = {
        "wrong colour": vector((0, 2, 4, 1, 1), floor=2),  # 5 of 6: presence, three fields, floor
        "missing": vector(floor=2),  # only the floor, of 6
        "unasked": vector((0, 2, 3, 1, 1), (3, 0, 0, 0, 0), floor=2),  # 6 of 7
        "wrong floor": vector((0, 2, 3, 1, 1), floor=1),
    }
    match = match_attributes(list(seen.values()), [told] * 4)
    np.testing.assert_allclose(match.alignment, [5 / 6, 1 / 6, 6 / 7, 5 / 6])
    assert not match.is_all_right.any()
    shares = dict(zip(ATTRIBUTE_NAMES, match.per_attribute, strict=True))
    assert shares == pytest.approx(
        {"present": 18 / 20, "shape": 3 / 4, "colour": 2 / 4, "material": 3 / 4, "size": 3 / 4, "floor": 3 / 4}
    )


def test_an_unseen_object_does_not_match_by_chance() -> None:
    # a told sphere is shape 0, as is every field of an empty place
    match = match_attributes([vector()], [vector((1, 0, 0, 0, 0))])
    np.testing.assert_allclose(match.alignment, 1 / 6)
    assert dict(zip(ATTRIBUTE_NAMES, match.per_attribute, strict=True))["shape"] == 0.0


def test_attributes_never_told_are_nan() -> None:
    match = match_attributes([vector()], [vector()])
    np.testing.assert_array_equal(np.isnan(match.per_attribute), [False, True, True, True, True, False])
    assert match.is_all_right.all()


def test_logits_become_attributes() -> None:
    rng = np.random.default_rng(6)
    values = rng.integers(0, 2, (4, NUM_ATTRIBUTES))
    logits = [np.eye(2)[column] for column in values.T]
    assert np.array_equal(attributes_from_logits(logits), values)
    for wrong in ([], [np.zeros((2, 3)), np.zeros((3, 3))], [np.zeros(3)]):
        with pytest.raises(ConfigError, match="logits of shapes"):
            attributes_from_logits(wrong)
    with pytest.raises(ConfigError, match=r"expected \(num_images, 26\) twice"):
        match_attributes(values, values[:3])


def test_text_alignment_is_the_cosine() -> None:
    image = np.array([[1.0, 0.0], [1.0, 1.0], [3.0, 0.0]])
    text = np.array([[2.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(text_alignment(image, text), [1.0, np.sqrt(0.5), -1.0])
    with pytest.raises(ConfigError, match="all zero"):
        text_alignment(np.zeros((3, 2)), text)
    with pytest.raises(ConfigError, match="expected"):
        text_alignment(image[:2], text)
