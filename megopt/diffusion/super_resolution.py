"""Upscaling of images: bicubic, one network pass (light), diffusion; hybrid_super_resolution.py joins two of them.

Networks see float pixels in [-1, 1], shape (n, 3, height, width), and every upscaler takes and returns uint8 images of
shape (n, height, width, 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

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
        check_images(images)
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


def _in_batches(
    upscaler: NetworkUpscaler | DiffusionUpscaler,
    images: Images,
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Images:
    """Return what `run` makes of the pixels and their bicubic enlargement, `batch_size` images at once."""
    import torch

    check_images(images)
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


def check_images(images: Images) -> None:
    """Check that images are uint8 of shape (n, height, width, 3).

    Raises:
        ConfigError: if they are not.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.size:
        message = f"images: {images.dtype} of shape {images.shape}; expected uint8 of shape (n, height, width, 3)"
        raise ConfigError(message)
