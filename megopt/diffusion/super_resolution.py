"""Upscaling of images: bicubic, one network pass (light), diffusion, and a region-aware hybrid of two of them.

    patches -> foreground: one upscaler, background: another -> blended with windows that sum to one -> image

Networks see float pixels in [-1, 1], shape (n, 3, height, width), and every upscaler takes and returns uint8 images of
shape (n, height, width, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.diffusion.rendering import Images
from megopt.errors import ConfigError, PipelineError

if TYPE_CHECKING:
    import torch
    from torch import nn

SCALES = (2, 4)
"""Scales that are offered."""


class Upscaler(Protocol):
    """Makes images larger."""

    @property
    def scale(self) -> int:
        """Factor on each side."""

    def upscale(self, images: Images) -> Images:
        """Return uint8 images, shape (n, scale height, scale width, 3), of those of shape (n, height, width, 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BicubicUpscaler:
    """Bicubic interpolation, the baseline that costs next to nothing.

    Attributes:
        scale: one of `SCALES`.
    """

    scale: int

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def upscale(self, images: Images) -> Images:
        """Return the interpolated images."""
        _check_images(images)
        return from_network(_interpolated(_to_network(images), self.scale))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NetworkUpscaler:
    """One pass of a network: light super-resolution.

    Attributes:
        network: maps pixels (n, 3, height, width) to (n, 3, scale height, scale width), in evaluation mode.
        scale: one of `SCALES`.
        batch_size: images at once.
    """

    network: nn.Module
    scale: int
    batch_size: int = 16

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def upscale(self, images: Images) -> Images:
        """Return the network's images.

        Raises:
            PipelineError: if the network's output is not `scale` times as large.
        """
        return _in_batches(self, images, lambda pixels, _: self.network(pixels))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DiffusionUpscaler:
    """A denoiser that is told the bicubic image: diffusion super-resolution.

    The denoiser works on the residual to the bicubic image. Every image starts from the same noise, so what becomes of
    it does not depend on its neighbours.

    Attributes:
        network: called with the noisy residual beside the bicubic image (n, 6, height, width) and one time; returns, or
            holds as `sample`, what the scheduler's prediction type says, shape (n, 3, height, width).
        scheduler: a scheduler of `diffusers` without random steps, such as DDIM.
        scale: one of `SCALES`.
        num_steps: denoising steps.
        residual_scale: a residual in network range is this times what the network denoises.
        seed: of the noise.
        batch_size: images at once.
    """

    network: nn.Module
    scheduler: Any
    scale: int
    num_steps: int
    residual_scale: float = 1.0
    seed: int = 0
    batch_size: int = 16

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.num_steps < 1:
            message = f"diffusion upscaler: num_steps {self.num_steps}; expected 1 or more"
            raise ConfigError(message)

    def upscale(self, images: Images) -> Images:
        """Return the denoised images.

        Raises:
            PipelineError: if the network's output is not `scale` times as large.
        """
        return _in_batches(self, images, self._denoised)

    def _denoised(self, pixels: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        """Return the images for `told`, the bicubic ones."""
        import torch

        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        scheduler.set_timesteps(self.num_steps, device=told.device)
        noise = torch.randn((1, *told.shape[1:]), generator=torch.Generator().manual_seed(self.seed))
        residual = noise.to(told).expand_as(told) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(residual, timestep)
            output = self.network(torch.cat([seen, told], dim=1), timestep)
            residual = scheduler.step(getattr(output, "sample", output), timestep, residual, return_dict=False)[0]
        image: torch.Tensor = told + self.residual_scale * residual
        return image


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
        _check_images(images)
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

    _check_images(images)
    colour = images - images.mean(axis=3, keepdims=True)
    distance = np.linalg.norm(colour - np.median(colour, axis=2, keepdims=True), axis=3)
    return np.asarray(uniform_filter(distance, (1, window_px, window_px)) >= least_distance)


def _in_batches(
    upscaler: NetworkUpscaler | DiffusionUpscaler,
    images: Images,
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Images:
    """Return what `run` makes of the pixels and their bicubic enlargement, `batch_size` images at once."""
    import torch

    _check_images(images)
    weight = next(upscaler.network.parameters(), torch.empty(0))
    results = []
    for first in range(0, len(images), upscaler.batch_size):
        pixels = _to_network(images[first : first + upscaler.batch_size]).to(weight)
        told = _interpolated(pixels, upscaler.scale)
        with torch.no_grad():
            output = run(pixels, told)
        if output.shape != told.shape:
            message = f"upscaler x{upscaler.scale}: output of shape {tuple(output.shape)}; expected {tuple(told.shape)}"
            raise PipelineError(message)
        results.append(from_network(output))
    return np.concatenate(results)


def _to_network(images: Images) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).movedim(3, 1).float().div(127.5).sub(1.0)


def from_network(pixels: torch.Tensor) -> Images:
    """Return uint8 images, shape (n, height, width, 3), of pixels in [-1, 1], shape (n, 3, height, width)."""
    levels = pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).byte()
    return np.ascontiguousarray(levels.movedim(1, 3).cpu().numpy())


def _interpolated(pixels: torch.Tensor, scale: int) -> torch.Tensor:
    from torch.nn import functional

    return functional.interpolate(pixels, scale_factor=scale, mode="bicubic", align_corners=False)


def _check_scale(scale: int) -> None:
    if scale not in SCALES:
        message = f"sr_scale {scale!r}: not offered; expected one of {', '.join(map(str, SCALES))}"
        raise ConfigError(message)


def _check_images(images: Images) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        message = f"images: {images.dtype} of shape {images.shape}; expected uint8 of shape (n, height, width, 3)"
        raise ConfigError(message)
