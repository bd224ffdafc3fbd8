"""The Frechet distance: closed form, limiting cases, failures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from megopt.arrays import FloatArray
from megopt.diffusion.feature_metrics import frechet_distance
from megopt.errors import ConfigError


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


@pytest.mark.slow
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
