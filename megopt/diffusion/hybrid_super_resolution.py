"""Region-aware super-resolution: one upscaler for patches with foreground, another for the rest.

patches -> foreground: one upscaler, background: another -> blended with windows that sum to one -> image
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.diffusion.rendering import Images
from megopt.diffusion.super_resolution import Upscaler, check_images
from megopt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Equal square patches with overlap, and the windows that blend them.

    A window is 0 on the outer `context_px` of a patch, where an upscaler sees too little around a pixel, rises as a
    raised cosine over `overlap_px`, and is 1 inside; at the border of the image it stays 1. Windows are divided by
    their sum, so they sum to 1. An operator that looks no further than `context_px` gives the same tiled and untiled.

    Attributes:
        patch_px: side of a patch, before upscaling.
        overlap_px: width of the blend, before upscaling.
        context_px: pixels of a patch that are seen but not used, on each inner side, before upscaling.
    """

    patch_px: int = 24
    overlap_px: int = 2
    context_px: int = 1

    def __post_init__(self) -> None:
        is_possible = self.overlap_px >= 1 and self.context_px >= 0
        if not is_possible or self.patch_px <= 2 * (self.context_px + self.overlap_px):
            message = (
                f"tiling: patch_px {self.patch_px}, overlap_px {self.overlap_px}, context_px {self.context_px}; "
                "expected overlap_px >= 1, context_px >= 0 and patch_px above twice their sum"
            )
            raise ConfigError(message)

    def starts(self, side_px: int) -> IntArray:
        """Return where patches begin along a side of `side_px` [px], evenly; one patch if the side is no longer."""
        span = side_px - min(self.patch_px, side_px)
        stride = self.patch_px - 2 * self.context_px - self.overlap_px
        return np.linspace(0, span, -(-span // stride) + 1).round().astype(np.int64)

    def windows(self, side_px: int, scale: int) -> FloatArray:
        """Return the weights of the patches along a side, after upscaling, shape (num_starts, scale side_px)."""
        position = (np.arange(scale * side_px) + 0.5) / scale  # centre of each pixel, in pixels before upscaling
        weights = []
        for start in self.starts(side_px):
            end = min(start + self.patch_px, side_px)
            rise = np.ones_like(position) if start == 0 else self._ramp(position - start)
            fall = np.ones_like(position) if end == side_px else self._ramp(end - position)
            weights.append(np.where((position > start) & (position < end), np.minimum(rise, fall), 0.0))
        return np.asarray(weights / np.sum(weights, axis=0))

    def _ramp(self, depth_px: FloatArray) -> FloatArray:
        """Return the weight of pixels this deep inside a patch."""
        share = np.clip((depth_px - self.context_px) / self.overlap_px, 0.0, 1.0)
        return np.asarray(0.5 - 0.5 * np.cos(np.pi * share))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HybridUpscaler:
    """One upscaler for patches with foreground, another for the rest. Equal upscalers make it plain tiling.

    Attributes:
        foreground: for patches that hold foreground.
        background: for the others, of the same scale.
        tiling: the patches.
        least_share: a patch holds foreground if its mask covers at least this share of it [1].
    """

    foreground: Upscaler
    background: Upscaler
    tiling: Tiling = Tiling()
    least_share: float = 0.05

    def __post_init__(self) -> None:
        if self.foreground.scale != self.background.scale or not 0.0 < self.least_share <= 1.0:
            message = (
                f"hybrid upscaler: scales {self.foreground.scale} and {self.background.scale}, least_share "
                f"{self.least_share}; expected one scale, and a share in (0, 1]"
            )
            raise ConfigError(message)

    @property
    def scale(self) -> int:
        """Factor on each side."""
        return self.foreground.scale

    def upscale(self, images: Images, masks: BoolArray | None = None) -> Images:
        """Return the blended images.

        Args:
            images: uint8, shape (n, height, width, 3).
            masks: foreground, shape (n, height, width); None for `saliency_masks` of the images.
        """
        is_foreground = self.foreground_patches(images, masks)
        num, height, width, _ = images.shape
        rows, columns = self.tiling.starts(height), self.tiling.starts(width)
        patches = self._cut(images)
        large = np.empty((*patches.shape[:3], *(self.scale * side for side in patches.shape[3:5]), 3), dtype=np.uint8)
        for upscaler, chosen in ((self.foreground, is_foreground), (self.background, ~is_foreground)):
            if chosen.any():
                large[chosen] = upscaler.upscale(patches[chosen])
        down, along = self.tiling.windows(height, self.scale), self.tiling.windows(width, self.scale)
        total = np.zeros((num, self.scale * height, self.scale * width, 3))
        for i, top in enumerate(rows * self.scale):
            for j, left in enumerate(columns * self.scale):
                part = slice(top, top + large.shape[3]), slice(left, left + large.shape[4])
                weight = np.outer(down[i, part[0]], along[j, part[1]])[..., None]
                total[:, *part] += weight * large[:, i, j]
        return np.rint(total).astype(np.uint8)

    def foreground_patches(self, images: Images, masks: BoolArray | None = None) -> BoolArray:
        """Return which patches go to the foreground's upscaler, shape (n, num_rows, num_columns).

        Their mean is the foreground share phi of the latency of hybrid super-resolution.

        Args:
            images: uint8, shape (n, height, width, 3).
            masks: foreground, shape (n, height, width); None for `saliency_masks` of the images.

        Raises:
            ConfigError: if the masks are not of the images' size.
        """
        check_images(images)
        known = saliency_masks(images) if masks is None else np.asarray(masks)
        if known.shape != images.shape[:3] or known.dtype != np.bool_:
            message = f"masks: {known.dtype} of shape {known.shape}; expected bool of shape {images.shape[:3]}"
            raise ConfigError(message)
        return np.asarray(self._cut(known).mean(axis=(3, 4)) >= self.least_share)

    def overhead(self, height: int, width: int) -> float:
        """Return the pixels of all patches over those of the image [1]: what overlap and context cost."""
        num_patches = len(self.tiling.starts(height)) * len(self.tiling.starts(width))
        return num_patches * min(self.tiling.patch_px, height) * min(self.tiling.patch_px, width) / (height * width)

    def _cut(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the patches of `images`, shape (n, num_rows, num_columns, patch height, patch width, ...)."""
        side = self.tiling.patch_px
        rows, columns = (self.tiling.starts(length) for length in images.shape[1:3])
        cut = [[images[:, top : top + side, left : left + side] for left in columns] for top in rows]
        return np.stack([np.stack(row, axis=1) for row in cut], axis=1)


def saliency_masks(images: Images, *, window_px: int = 5, least_distance: float = 22.0) -> BoolArray:
    """Return where the hue stands out from its row: an estimate of the foreground where no mask is known.

    The distance of a pixel's colour, less its brightness, from the median of the row, averaged nearby. Brightness and
    texture say little: a patterned floor varies more than an object. A grey object on grey ground is not found; it is
    upscaled as background.

    Args:
        images: uint8, shape (n, height, width, 3).
        window_px: side of the square that is averaged over.
        least_distance: least mean distance in it, in 256 levels.
    """
    from scipy.ndimage import uniform_filter

    check_images(images)
    colour = images - images.mean(axis=3, keepdims=True)
    distance = np.linalg.norm(colour - np.median(colour, axis=2, keepdims=True), axis=3)
    return np.asarray(uniform_filter(distance, (1, window_px, window_px)) >= least_distance)
