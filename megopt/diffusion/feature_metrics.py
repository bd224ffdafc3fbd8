"""The Frechet distance of two sets of images, by the features that a network sees.

It falls under mild smoothing, so it must not stand alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from megopt.arrays import FloatArray
from megopt.errors import ConfigError


def frechet_distance(features: ArrayLike, real_features: ArrayLike) -> float:
    """Return the Frechet distance of two sets of features, seen as Gaussians.

        d = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

    With C = R^T R the last trace is the sum of the singular values of R1 R2^T: no root of a product of covariances,
    which loses half of the digits. The distance of small sets is biased upwards; compare sets of one size.

    Args:
        features: shape (num_images, num_features).
        real_features: shape (num_real_images, num_features).

    Raises:
        ConfigError: if the shapes do not fit, a value is not finite, or a set has no more images than features.

    Source: Heusel et al. 2017, "GANs trained by a two time-scale update rule", equation 6.
    """
    sets = [np.asarray(given, dtype=np.float64) for given in (features, real_features)]
    _check_feature_sets(*sets)
    means = [given.mean(axis=0) for given in sets]
    roots = [
        np.linalg.qr(given - mean, mode="r") / np.sqrt(len(given) - 1) for given, mean in zip(sets, means, strict=True)
    ]
    traces = sum(float(np.sum(np.square(root))) for root in roots)
    overlap = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    distance = float(np.sum(np.square(means[0] - means[1]))) + traces - 2.0 * overlap
    return max(distance, 0.0)  # rounding of equal sets


def _check_feature_sets(features: FloatArray, real_features: FloatArray) -> None:
    shapes = f"{features.shape} and {real_features.shape}"
    if features.ndim != 2 or real_features.ndim != 2 or features.shape[1] != real_features.shape[1]:
        message = (
            f"frechet distance: features of shape {shapes}; expected (num_images, num_features), features in common"
        )
        raise ConfigError(message)
    if not (np.isfinite(features).all() and np.isfinite(real_features).all()):
        message = "frechet distance: features that are not finite; check the network and its input range"
        raise ConfigError(message)
    num_images, num_features = min(len(features), len(real_features)), features.shape[1]
    if num_images <= num_features:
        message = (
            f"frechet distance: {num_images} images for {num_features} features; too few for a covariance, expected "
            f"at least {num_features + 1}; add images or use fewer features"
        )
        raise ConfigError(message)
