"""Super-resolution networks of the bundled models, x2 or x4, light and by diffusion.

Both predict the residual r of a cubic enlargement e of a low-resolution image:

    light      r = net(low)                              one pass, `super_resolution.NetworkUpscaler`
    diffusion  r / c = net(a_t r / c + s_t n, e, t)      a_t, s_t as in `training_denoiser`, c = `RESIDUAL_SCALE`;
                                                         sampled by `super_resolution.DiffusionUpscaler`

The denoiser predicts the residual and not the velocity: most residuals are near zero, and a narrow network that need
not reproduce the noise of every pixel of a block has its width for what is not. Its loss is weighted as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from megopt.diffusion.diffusers_classes import (
    ConfigMixin,
    DDIMScheduler,
    ModelMixin,
    UNet2DModel,
    register_to_config,
)
from megopt.diffusion.metrics import laplacian_energy, psnr_db
from megopt.diffusion.super_resolution import SCALES, BicubicUpscaler, DiffusionUpscaler, from_network
from megopt.diffusion.training_autoencoder import to_network
from megopt.diffusion.training_data import SceneSet
from megopt.diffusion.training_denoiser import NUM_TIMES, mixed, noise_schedule
from megopt.diffusion.training_objective import Objective
from megopt.errors import ConfigError

RESIDUAL_SCALE = 0.1
"""c: about the deviation of residuals, pixels lying in [-1, 1]."""
PATCH_PX = {2: 24, 4: 16}
"""Side of a low-resolution patch by scale; enlarged, it fits into a render of 64 px."""
DIFFUSION_WIDTHS = {2: (32, 64, 64), 4: (64, 64, 96)}
"""Channels of the diffusion network by scale, at blocks of scale x scale pixels and at half and a quarter of that."""
SNR_LIMIT = 5.0
"""g of the min-SNR weight."""
_CHUNK = 16
_TEST_STEPS = 4
_NUM_TESTED = 64


class LightSuperResolution(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A few convolutions at low resolution beside a cubic enlargement."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, scale: int = 2, width: int = 32, num_layers: int = 4) -> None:
        super().__init__()
        _require_scale(scale)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(num_layers - 1):
            layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3 * scale**2, 3, padding=1))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        """Return pixels in [-1, 1], shape (n, 3, scale * height, scale * width), from (n, 3, height, width)."""
        scale = self.config["scale"]
        return enlarged(low, scale) + functional.pixel_shuffle(self.layers(low), scale)


class DiffusionSuperResolution(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Denoises residuals of a cubic enlargement; works on blocks of scale x scale pixels for speed."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, scale: int = 2, widths: tuple[int, ...] | None = None) -> None:
        super().__init__()
        _require_scale(scale)
        widths = widths or DIFFUSION_WIDTHS[scale]
        self.unet = UNet2DModel(
            in_channels=6 * scale**2,
            out_channels=3 * scale**2,
            block_out_channels=widths,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            norm_num_groups=8,
            add_attention=False,
        )

    def forward(self, pixels: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return residuals over `RESIDUAL_SCALE`, shape (n, 3, height, width).

        Args:
            pixels: the noisy residual over `RESIDUAL_SCALE` beside the enlargement, shape (n, 6, height, width); sides
                are multiples of 4 scale.
            time: one for all, or one per image, shape (n,).
        """
        scale = self.config["scale"]
        output = self.unet(functional.pixel_unshuffle(pixels, scale), time).sample
        return functional.pixel_shuffle(output, scale)


def enlarged(low: torch.Tensor, scale: int) -> torch.Tensor:
    """Return the cubic enlargement of pixels (n, 3, height, width)."""
    return functional.interpolate(low.float(), scale_factor=scale, mode="bicubic", antialias=False)


def reduced(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Return the box average of pixels (n, 3, height, width), which looks like a render at that size."""
    return functional.avg_pool2d(images, factor)


class SuperResolutionObjective(Objective):
    """What light and diffusion super-resolution share: pairs of patches, half of them from each of two sets.

    Small renders teach the way up to the side that the bundled models work at; large ones, at four times that side, the
    way beyond it.
    """

    def __init__(
        self,
        train: tuple[SceneSet, SceneSet],
        test: tuple[SceneSet, SceneSet],
        *,
        scale: int,
        device: str = "cpu",
    ) -> None:
        """Take small and large renders to learn from and to be tested on."""
        _require_scale(scale)
        self.scale, self.device, self._test = scale, device, test
        self.patch_px = PATCH_PX[scale]
        self._images = [torch.from_numpy(scenes.images) for scenes in train]
        self.num_samples = len(train[0])

    def pairs(self, rows: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return patches at low and high resolution, (n, 3, patch_px, patch_px) and `scale` times that."""
        pairs = [self._pair(int(row), rng, is_large=number % 2 == 1) for number, row in enumerate(rows)]
        low, high = zip(*pairs, strict=True)
        return torch.cat(low).to(self.device), torch.cat(high).to(self.device)

    def describe(self) -> dict[str, Any]:
        """Return scale and patch size."""
        return {"part": type(self).__name__, "scale": self.scale, "patch_px": self.patch_px}

    def _pair(self, row: int, rng: torch.Generator, *, is_large: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._images[int(is_large)]
        shrink = max(SCALES) // self.scale if is_large else 1
        side = self.patch_px * self.scale * shrink
        image = images[row % len(images)]
        top, left = (int(torch.randint(0, size - side + 1, (), generator=rng)) for size in image.shape[:2])
        return self._reduced(to_network(image[None, top : top + side, left : left + side]), shrink)

    def _reduced(self, pixels: torch.Tensor, shrink: int) -> tuple[torch.Tensor, torch.Tensor]:
        high = reduced(pixels, shrink) if shrink > 1 else pixels
        return reduced(high, self.scale), high

    def _test_pairs(self, *, is_large: bool, num: int | None = None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        images = self._test[int(is_large)].images[:num]
        shrink = max(SCALES) // self.scale if is_large else 1
        starts = range(0, len(images), _CHUNK)
        return [self._reduced(to_network(torch.from_numpy(images[first : first + _CHUNK])), shrink) for first in starts]


class LightObjective(SuperResolutionObjective):
    """Absolute error of the light network."""

    def build(self) -> nn.Module:
        """Return the network."""
        network: nn.Module = LightSuperResolution(scale=self.scale)
        return network

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the mean absolute error."""
        low, high = self.pairs(rows, rng)
        output: torch.Tensor = network(low)
        return functional.l1_loss(output.float(), high)

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return PSNR [dB] of the network and of the cubic enlargement on held-out scenes of either set."""
        results: dict[str, float] = {}
        for prefix, is_large in (("small", False), ("large", True)):
            squares: dict[str, list[float]] = {"psnr_db": [], "cubic_psnr_db": []}
            for low, high in self._test_pairs(is_large=is_large):
                for name, came in (
                    ("psnr_db", network(low.to(self.device)).cpu()),
                    ("cubic_psnr_db", enlarged(low, self.scale)),
                ):
                    squares[name].append(float(((came.clamp(-1, 1) - high) / 2.0).square().mean()))
            results |= {
                f"{prefix}_{name}": float(-10.0 * np.log10(np.mean(values))) for name, values in squares.items()
            }
        return results


class DiffusionObjective(SuperResolutionObjective):
    """Squared error of denoised residuals, weighted by min(snr + 1, `SNR_LIMIT`)."""

    def build(self) -> nn.Module:
        """Return the denoiser."""
        network: nn.Module = DiffusionSuperResolution(scale=self.scale)
        return network

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the weighted squared error."""
        low, high = self.pairs(rows, rng)
        told = enlarged(low, self.scale)
        residual = (high - told) / RESIDUAL_SCALE
        times = torch.randint(0, NUM_TIMES, (len(low),), generator=rng)
        share = residual_schedule().alphas_cumprod.float()[times][:, None, None, None].to(self.device)
        noise = torch.randn(residual.shape, generator=rng).to(self.device)
        noisy, _ = mixed(residual, noise, share)
        output: torch.Tensor = network(torch.cat([noisy, told], dim=1), times.to(self.device))
        weight = (1.0 / (1.0 - share).clamp(min=1e-8)).clamp(max=SNR_LIMIT)
        error: torch.Tensor = (weight * (output.float() - residual).square()).mean()
        return error

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return PSNR and sharpness of sampled images and of the cubic enlargement on held-out scenes of either set."""
        upscaler = DiffusionUpscaler(
            network=network,
            scheduler=residual_schedule(),
            scale=self.scale,
            num_steps=_TEST_STEPS,
            residual_scale=RESIDUAL_SCALE,
        )
        results: dict[str, float] = {}
        for prefix, is_large in (("small", False), ("large", True)):
            pairs = self._test_pairs(is_large=is_large, num=_NUM_TESTED)
            high = np.concatenate([from_network(pair[1]) for pair in pairs])
            for name, make in (("", upscaler.upscale), ("cubic_", BicubicUpscaler(scale=self.scale).upscale)):
                came = np.concatenate([make(from_network(low)) for low, _ in pairs])
                results[f"{prefix}_{name}psnr_db"] = float(psnr_db(came, high).mean())
                results[f"{prefix}_{name}sharpness"] = float(
                    laplacian_energy(came).mean() / laplacian_energy(high).mean()
                )
        return results


def residual_schedule() -> Any:
    """Return the schedule of the diffusion network, set up for sampling."""
    return DDIMScheduler.from_config(noise_schedule().config, prediction_type="sample")


def _require_scale(scale: int) -> None:
    if scale not in SCALES:
        message = f"super-resolution: scale is {scale!r}; expected one of {SCALES}; change scale"
        raise ConfigError(message)
