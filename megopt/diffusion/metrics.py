"""Quality of images: PSNR, SSIM, MS-SSIM, sharpness, text alignment; and the Frechet distance of two sets.

    values -> Estimate (mean with a bootstrap interval)

All compare with a reference, with a caption or with a set of real images; none needs a download. The Frechet distance
falls under mild smoothing, so it must not stand alone. Sharpness grows with noise, so it is read beside PSNR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.diffusion.captions import NUM_ATTRIBUTES, OBJECT_FIELDS, PLACES
from megopt.diffusion.rendering import Images
from megopt.errors import ConfigError
from megopt.units import db_from_linear

ATTRIBUTE_NAMES = (*OBJECT_FIELDS, "floor")
"""What `AttributeMatch.per_attribute` counts."""
SMALLEST_SSIM_PX = 11
"""Side of the Gaussian window of SSIM (standard deviation 1.5)."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_IMAGES_PER_CHUNK = 64
_ATTRIBUTE_AT = np.append(np.tile(np.arange(len(OBJECT_FIELDS)), len(PLACES)), len(OBJECT_FIELDS))
"""Number in `ATTRIBUTE_NAMES` of each position of an attribute vector."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """A mean over images and how far it can be trusted.

    Attributes:
        values: one value per image, shape (num_images,).
        mean: their mean.
        std: their standard deviation; NaN where a value is infinite.
        low: lower end of the interval of the mean; NaN for one image.
        high: upper end.
        level: share of such intervals that hold the true mean [1].
    """

    values: FloatArray
    mean: float
    std: float
    low: float
    high: float
    level: float


def estimate(values: ArrayLike, *, seed: int, level: float = 0.95, num_resamples: int = 2000) -> Estimate:
    """Return the mean of `values` with its percentile bootstrap interval.

    Args:
        values: one value per image, shape (num_images,); may be infinite, as the PSNR of equal images is.
        seed: of the resampling.
        level: share of intervals that hold the true mean [1], between 0 and 1.
        num_resamples: bootstrap means to draw.

    Raises:
        ConfigError: if there are no values, a value is NaN, or a setting is outside its range.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.ndim != 1 or not given.size or np.isnan(given).any():
        message = (
            f"estimate: values of shape {given.shape}, {np.isnan(given).sum()} NaN; expected (num_images,), no NaN"
        )
        raise ConfigError(message)
    if not 0.0 < level < 1.0 or num_resamples < 1:
        message = f"estimate: level {level}, num_resamples {num_resamples}; expected 0 < level < 1 and at least 1"
        raise ConfigError(message)
    low = high = np.nan
    if given.size > 1:
        rng = np.random.default_rng(seed)
        means = [given[rng.integers(given.size, size=given.size)].mean() for _ in range(num_resamples)]
        # no interpolation: the ends may be infinite
        low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0], method="inverted_cdf")
    std = float(given.std()) if np.isfinite(given).all() else np.nan
    return Estimate(values=given, mean=float(given.mean()), std=std, low=float(low), high=float(high), level=level)


def mean_squared_error(images: Images, reference: Images) -> FloatArray:
    """Return the mean squared error of each image against its reference, for pixels in [0, 1], shape (num_images,).

    Args:
        images: uint8, shape (num_images, height, width, 3).
        reference: of the same shape.

    Raises:
        ConfigError: if the arrays are no images or not of one shape.
    """
    _check_pair(images, reference)
    errors = [np.mean(np.square(one / 255.0 - other / 255.0)) for one, other in zip(images, reference, strict=True)]
    return np.array(errors)


def psnr_db(images: Images, reference: Images) -> FloatArray:
    """Return the peak signal-to-noise ratio of each image, -10 log10(MSE) [dB], shape (num_images,); equal is +inf.

    Args:
        images: uint8, shape (num_images, height, width, 3).
        reference: of the same shape.

    Raises:
        ConfigError: if the arrays are no images or not of one shape.
    """
    return -db_from_linear(mean_squared_error(images, reference))


def ssim(images: Images, reference: Images) -> FloatArray:
    """Return the structural similarity of each image [1], shape (num_images,); equal is 1.

    Gaussian window of standard deviation 1.5, inside the border, mean over the colour channels. The uniform window of
    `megopt.metering.image_codecs` gives other numbers.

    Args:
        images: uint8, shape (num_images, height, width, 3), each side at least `SMALLEST_SSIM_PX`.
        reference: of the same shape.

    Raises:
        ConfigError: if the arrays are no images, not of one shape, or too small.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    _check_pair(images, reference, SMALLEST_SSIM_PX)
    from skimage import metrics

    measured: Any = metrics.structural_similarity  # carries no types
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(images, reference, strict=True)
    return np.array([measured(one, other, channel_axis=2, data_range=255, **window) for one, other in pairs])


def ms_ssim(images: Images, reference: Images, num_scales: int | None = None) -> FloatArray:
    """Return the multi-scale structural similarity of each image [1], shape (num_images,); equal is 1.

    The published five scales need sides of 176 px. With fewer scales the published weights of the finer ones are
    used, rescaled to sum 1; values of different `num_scales` do not compare.

    Args:
        images: uint8, shape (num_images, height, width, 3), each side at least `SMALLEST_SSIM_PX`.
        reference: of the same shape.
        num_scales: scales to use; None for `ms_ssim_scales` of the image size.

    Raises:
        ConfigError: if the arrays are no images, not of one shape, or too small for that many scales.

    Source: Wang et al. 2003, "Multiscale structural similarity for image quality assessment".
    """
    _check_pair(images, reference, SMALLEST_SSIM_PX)
    most = ms_ssim_scales(images.shape[1], images.shape[2])
    num = most if num_scales is None else num_scales
    if not 1 <= num <= most:
        message = f"ms_ssim: {num} scales on {images.shape[1]}x{images.shape[2]} px; expected 1 to {most}"
        raise ConfigError(message)
    import torch
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measured

    weights = tuple(weight / sum(_SCALE_WEIGHTS[:num]) for weight in _SCALE_WEIGHTS[:num])
    values = []
    for first in range(0, len(images), _IMAGES_PER_CHUNK):
        chunk = slice(first, first + _IMAGES_PER_CHUNK)
        came, wanted = (torch.from_numpy(each[chunk] / np.float32(255.0)).movedim(3, 1) for each in (images, reference))
        similar = measured(came, wanted, data_range=1.0, betas=weights, reduction="none")
        values.append(np.atleast_1d(similar.numpy().astype(np.float64)))
    return np.concatenate(values)


def ms_ssim_scales(height: int, width: int) -> int:
    """Return the most scales that MS-SSIM can have on images of this size [px]: 3 at 64 px, 5 from 176 px on."""
    # the window must fit into the coarsest scale; the square is torchmetrics' own limit
    sides = [min(height, width) // max(2**halvings, halvings**2) for halvings in range(len(_SCALE_WEIGHTS))]
    return sum(side >= SMALLEST_SSIM_PX for side in sides)


def laplacian_energy(images: Images) -> FloatArray:
    """Return the mean squared Laplacian of the luminance of each image, shape (num_images,); a flat image has 0.

    Args:
        images: uint8, shape (num_images, height, width, 3), each side at least 3.

    Raises:
        ConfigError: if the array holds no images.
    """
    _check_images("images", images, smallest_px=3)
    return np.array([np.mean(squared_laplacian(image), dtype=np.float64) for image in images])


def squared_laplacian(image: Images) -> FloatArray:
    """Return the squared Laplacian of the luminance of one image inside its border, shape (height - 2, width - 2)."""
    grey = image.astype(np.float32) @ _LUMINANCE
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return np.asarray(np.square(around - 4.0 * grey[1:-1, 1:-1]))


def sharpness(images: Images, reference: Images) -> FloatArray:
    """Return the Laplacian energy of each image over that of its reference [1], shape (num_images,); equal is 1.

    Below 1 is blurred; above 1 is noise, ringing or detail that the reference lacks.

    Args:
        images: uint8, shape (num_images, height, width, 3), each side at least 3.
        reference: of the same shape.

    Raises:
        ConfigError: if the arrays are no images, not of one shape, or a reference is flat.
    """
    _check_pair(images, reference)
    energies = laplacian_energy(reference)
    if not energies.all():
        message = f"sharpness: reference {np.flatnonzero(energies == 0.0)[0]} is flat; expected images with some detail"
        raise ConfigError(message)
    return laplacian_energy(images) / energies


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


def text_alignment(image_features: ArrayLike, text_features: ArrayLike) -> FloatArray:
    """Return the cosine between the features of each image and of its text [1], shape (num_images,).

    Args:
        image_features: of a network that puts images and texts into one space, shape (num_images, num_features).
        text_features: one row per image, of the same shape.

    Raises:
        ConfigError: if the shapes differ, or a row is zero or not finite.
    """
    image, text = (np.asarray(given, dtype=np.float64) for given in (image_features, text_features))
    if image.ndim != 2 or image.shape != text.shape:
        message = (
            f"text alignment: features of shape {image.shape} and {text.shape}; expected (num_images, num_features)"
        )
        raise ConfigError(message)
    lengths = np.linalg.norm(image, axis=1) * np.linalg.norm(text, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0.0)).all():
        message = "text alignment: features that are all zero or not finite; check the network and its input range"
        raise ConfigError(message)
    return np.asarray(np.sum(image * text, axis=1) / lengths)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttributeMatch:
    """What images show against what their captions tell.

    Attributes:
        is_right: shape (num_images, NUM_ATTRIBUTES). A field of an object that is told but not seen is wrong.
        is_told: positions that the caption tells, of the same shape: presence at all places, the other fields where an
            object stands, the floor.
        is_shown: positions behind `alignment`: as `is_told`, less the places that are empty in caption and image.
    """

    is_right: BoolArray
    is_told: BoolArray
    is_shown: BoolArray

    @property
    def per_attribute(self) -> FloatArray:
        """Share right over images and places, in the order of `ATTRIBUTE_NAMES`; NaN where never told."""
        told, right = (
            np.bincount(_ATTRIBUTE_AT, weights=which.sum(axis=0))
            for which in (self.is_told, self.is_told & self.is_right)
        )
        shares: FloatArray = np.divide(right, told, out=np.full(told.shape, np.nan), where=told > 0)
        return shares

    @property
    def alignment(self) -> FloatArray:
        """Share right of what caption or image hold, shape (num_images,); an object that is not told is wrong."""
        return np.asarray((self.is_right & self.is_shown).sum(axis=1) / self.is_shown.sum(axis=1))  # the floor counts

    @property
    def is_all_right(self) -> BoolArray:
        """Whether every told attribute is right and nothing else is there, shape (num_images,)."""
        return np.asarray((self.is_right | ~self.is_told).all(axis=1))


def match_attributes(seen: ArrayLike, told: ArrayLike) -> AttributeMatch:
    """Return how the attributes of images match those of their captions.

    Args:
        seen: attribute vectors that a network reads from the images, shape (num_images, NUM_ATTRIBUTES).
        told: those of the captions (`captions.parse_caption`), of the same shape.

    Raises:
        ConfigError: if the shapes differ or are none of attribute vectors.
    """
    came, asked = np.asarray(seen), np.asarray(told)
    if came.shape != asked.shape or came.ndim != 2 or came.shape[1] != NUM_ATTRIBUTES or not len(came):
        message = f"attributes of shape {came.shape} and {asked.shape}; expected (num_images, {NUM_ATTRIBUTES}) twice"
        raise ConfigError(message)
    is_there, is_asked = (_at_every_field(vectors) for vectors in (came, asked))
    is_presence = np.equal(_ATTRIBUTE_AT, ATTRIBUTE_NAMES.index("present"))
    return AttributeMatch(
        is_right=(came == asked) & (is_there | is_presence),
        is_told=is_asked | is_presence,
        is_shown=is_asked | (is_there & is_presence),
    )


def attributes_from_logits(logits: Sequence[ArrayLike]) -> IntArray:
    """Return the likeliest value of each attribute, shape (num_images, num_attributes).

    Args:
        logits: one array per attribute, shape (num_images, num_values of that attribute).

    Raises:
        ConfigError: if there are none, or they are not of one number of images.
    """
    arrays = [np.asarray(one) for one in logits]
    if not arrays or any(one.ndim != 2 or not one.size or len(one) != len(arrays[0]) for one in arrays):
        shapes = ", ".join(str(one.shape) for one in arrays)
        message = f"logits of shapes {shapes or 'none'}; expected (num_images, num_values) for each attribute"
        raise ConfigError(message)
    return np.stack([one.argmax(axis=1) for one in arrays], axis=1).astype(np.int64)


def _at_every_field(vectors: IntArray) -> BoolArray:
    """Return whether the object that each attribute belongs to is there; the floor always is."""
    slots = vectors[:, :-1].reshape(len(vectors), len(PLACES), len(OBJECT_FIELDS))
    present = np.broadcast_to(slots[..., :1] > 0, slots.shape).reshape(len(vectors), -1)
    return np.concatenate([present, np.ones((len(vectors), 1), dtype=np.bool_)], axis=1)


def _check_images(name: str, images: Images, smallest_px: int = 1) -> None:
    shape, dtype = np.shape(images), getattr(images, "dtype", None)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0] or min(shape[1:3]) < smallest_px:
        message = (
            f"{name}: {dtype} of shape {shape}; expected uint8 of shape (num_images, height, width, 3), "
            f"sides at least {smallest_px} px"
        )
        raise ConfigError(message)


def _check_pair(images: Images, reference: Images, smallest_px: int = 1) -> None:
    _check_images("images", images, smallest_px)
    _check_images("reference", reference, smallest_px)
    if images.shape != reference.shape:
        message = f"images of shape {images.shape}, reference of shape {reference.shape}; expected one shape"
        raise ConfigError(message)


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
