"""Quality of images: PSNR, SSIM, MS-SSIM, sharpness.

    values -> Estimate (mean with a bootstrap interval)

All compare with a reference; none needs a download. Sharpness grows with noise, so it is read beside PSNR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from megopt.arrays import FloatArray
from megopt.diffusion.rendering import Images
from megopt.errors import ConfigError
from megopt.units import db_from_linear

SMALLEST_SSIM_PX = 11
"""Side of the Gaussian window of SSIM (standard deviation 1.5)."""

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_IMAGES_PER_CHUNK = 64


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
