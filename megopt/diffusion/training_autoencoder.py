"""The autoencoder of the bundled models: 64 px images to latents of a quarter of the side, and back.

    loss = mean( w (|e| + k e^2) ) + g mean( w |grad e| ) + m sum_c( mean_c^2 + (std_c - 1)^2 ) + h log(E'/E)^2

e is the error in display values, w weighs objects, which cover about a tenth of the pixels, and mean_c, std_c are those
of latent channel c. E' and E are the Laplacian energies of output and image: without this term fine texture comes out a
little pale, because the mean of what is likely is smoother than each of it. Training has two runs: both halves
together, with h = 0; then the latents are normalised for good, inside the encoder's last layer, and the decoder is
finished on cached latents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from megopt.arrays import BoolArray
from megopt.diffusion.autoencoder import ShuffleAutoencoder
from megopt.diffusion.metrics import psnr_db, squared_laplacian
from megopt.diffusion.rendering import Images
from megopt.diffusion.training_data import SceneSet
from megopt.diffusion.training_objective import Objective
from megopt.units import db_from_linear

_CHUNK = 64
_OBJECT_MARGIN_PX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderShape:
    """Size of the network, and the weights of its loss.

    Attributes:
        widths: channels at full, half and quarter side.
        encoder_blocks: residual blocks at full, half and quarter side.
        decoder_blocks: the same on the way back.
        latent_channels: channels of the latent.
        latent_noise: standard deviation of the noise that the decoder learns to bear, latents having 1.
        object_weight: weight of a pixel on or beside an object, others having 1.
        square_weight: k, such that an error of 1 / (2 k) counts as much squared as it does by itself.
        gradient_weight: g.
        moment_weight: m.
        sharpness_weight: h, of the decoder's run.
        half_share: share of the steps of the decoder's run on scenes of half the side.
    """

    widths: tuple[int, int, int] = (32, 64, 128)
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    decoder_blocks: tuple[int, int, int] = (2, 3, 2)
    latent_channels: int = 8
    latent_noise: float = 0.03
    object_weight: float = 3.0
    square_weight: float = 25.0
    gradient_weight: float = 0.5
    moment_weight: float = 0.02
    sharpness_weight: float = 0.1
    half_share: float = 0.15

    def build(self) -> nn.Module:
        """Return the autoencoder with random weights."""
        network: nn.Module = ShuffleAutoencoder(
            latent_channels=self.latent_channels,
            block_out_channels=self.widths,
            encoder_blocks=self.encoder_blocks,
            decoder_blocks=self.decoder_blocks,
        )
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class AutoencoderObjective(Objective):
    """Encoder and decoder together."""

    def __init__(self, shape: AutoencoderShape, train: SceneSet, test: SceneSet, device: str = "cpu") -> None:
        self.shape, self.num_samples, self._test, self._device = shape, len(train), test, device
        self._images, self._masks = torch.from_numpy(train.images), torch.from_numpy(train.masks)

    def build(self) -> nn.Module:
        """Return the autoencoder."""
        return self.shape.build()

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the loss of the head of this module."""
        pixels = to_network(self._images[rows]).to(self._device)
        latent = network.encoder(pixels)  # type: ignore[operator]
        noise = torch.randn(latent.shape, generator=rng).to(self._device)
        output = network.decoder(latent + self.shape.latent_noise * noise)  # type: ignore[operator]
        moments = latent.float().mean((0, 2, 3)).square() + (latent.float().std((0, 2, 3)) - 1.0).square()
        loss: torch.Tensor = image_loss(self.shape, output, pixels, self._masks[rows].to(self._device))
        return loss.add(moments.sum(), alpha=self.shape.moment_weight)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return fidelity on the held-out scenes."""
        return fidelity(self._test.images, reconstruct(network, self._test.images, self._device), self._test.masks)

    def describe(self) -> dict[str, Any]:
        """Return the shape."""
        return {"part": "autoencoder", "num_samples": self.num_samples, **_plain(self.shape)}


class DecoderObjective(Objective):
    """The decoder alone, on the latents of a finished encoder."""

    def __init__(
        self,
        shape: AutoencoderShape,
        autoencoder: nn.Module,
        latents: tuple[torch.Tensor, torch.Tensor],
        train: SceneSet,
        test: SceneSet,
        device: str = "cpu",
    ) -> None:
        self.shape, self.num_samples, self._test, self._device = shape, len(train), test, device
        self._levels = [train, train.reduced(2)]
        self._autoencoder, self._latents = autoencoder, latents

    def build(self) -> nn.Module:
        """Return the autoencoder with a frozen encoder."""
        self._autoencoder.encoder.requires_grad_(False)
        return self._autoencoder

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the loss of the decoder on images of full or of half the side."""
        level = int(float(torch.rand((), generator=rng)) < self.shape.half_share)
        latent = self._latents[level][rows].float()
        latent += self.shape.latent_noise * torch.randn(latent.shape, generator=rng)
        output = network.decoder(latent.to(self._device))  # type: ignore[operator]
        images, masks = (torch.from_numpy(array[rows.numpy()]) for array in self._levels[level].pixels())
        pixels = to_network(images).to(self._device)
        loss = image_loss(self.shape, output, pixels, masks.to(self._device))
        return loss + self.shape.sharpness_weight * sharpness_loss(output, pixels)

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return fidelity on the held-out scenes."""
        return fidelity(self._test.images, reconstruct(network, self._test.images, self._device), self._test.masks)

    def describe(self) -> dict[str, Any]:
        """Return the shape."""
        return {"part": "decoder", "num_samples": self.num_samples, **_plain(self.shape)}


def to_network(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (n, height, width, 3) as float in [-1, 1], shape (n, 3, height, width), channels last."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def image_loss(
    shape: AutoencoderShape, output: torch.Tensor, pixels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """Return the image terms of the loss; `masks` are true on objects, shape (n, height, width)."""
    error = (output.float() - pixels) / 2.0
    near = functional.max_pool2d(masks[:, None].float(), 2 * _OBJECT_MARGIN_PX + 1, 1, _OBJECT_MARGIN_PX)
    weight = 1.0 + (shape.object_weight - 1.0) * near
    down = error[:, :, 1:] - error[:, :, :-1]
    along = error[:, :, :, 1:] - error[:, :, :, :-1]
    slopes = (weight[:, :, 1:] * down.abs()).mean() + (weight[:, :, :, 1:] * along.abs()).mean()
    return (weight * (error.abs() + shape.square_weight * error.square())).mean() + shape.gradient_weight * slopes


def sharpness_loss(output: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return the squared logarithm of the Laplacian energy of `output` over that of `pixels`, a scalar."""
    energies = []
    for images in (output.float(), pixels):
        grey = images.mean(1)
        inside = grey[:, 1:-1, 1:-1]
        around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
        energies.append((around - 4.0 * inside).square().mean())
    return (energies[0] / energies[1]).log().square()


@torch.no_grad()
def normalise_latents(autoencoder: Any, images: Images, device: str = "cpu") -> None:
    """Give the latents of `images` mean 0 and deviation 1 per channel by changing the encoder's last layer.

    The decoder's first layer is changed to match, exactly but for the border.
    """
    latents = encode_all(autoencoder, images, device).float()
    mean, std = latents.mean((0, 2, 3)).to(device), latents.std((0, 2, 3)).to(device)
    last, first = autoencoder.encoder[-1], autoencoder.decoder[0]
    last.weight.div_(std[:, None, None, None])
    last.bias.sub_(mean).div_(std)
    first.bias.add_(torch.einsum("ocij,c->o", first.weight, mean))
    first.weight.mul_(std[None, :, None, None])


@torch.no_grad()
def encode_all(autoencoder: nn.Module, images: Images, device: str = "cpu") -> torch.Tensor:
    """Return the latents of uint8 images in half precision, shape (n, latent_channels, side / 4, side / 4)."""
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        chunks = [
            autoencoder.encoder(to_network(torch.from_numpy(images[first : first + _CHUNK])).to(device)).float()  # type: ignore[operator]
            for first in range(0, len(images), _CHUNK)
        ]
    return torch.cat(chunks).half().cpu()


@torch.no_grad()
def reconstruct(autoencoder: nn.Module, images: Images, device: str = "cpu") -> Images:
    """Return what is left of uint8 images after encoding and decoding, in the network's own precision."""
    results = []
    for first in range(0, len(images), _CHUNK):
        pixels = to_network(torch.from_numpy(images[first : first + _CHUNK])).to(device)
        output = autoencoder.decoder(autoencoder.encoder(pixels))  # type: ignore[operator]
        results.append(output.add(1.0).mul(127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(results)


def fidelity(real: Images, other: Images, masks: BoolArray) -> dict[str, float]:
    """Return PSNR [dB] over all pixels and on objects, and Laplacian energy over that of the real images [1]."""
    square = np.square(real.astype(np.float64) - other)
    energies = [np.stack([squared_laplacian(image) for image in images]) for images in (real, other)]
    inside = masks[:, 1:-1, 1:-1]
    return {
        "psnr_db": _psnr_db(square.mean()),
        "image_psnr_db": float(psnr_db(other, real).mean()),
        "object_psnr_db": _psnr_db(square[masks].mean()),
        "sharpness": float(energies[1].mean() / energies[0].mean()),
        "object_sharpness": float(energies[1][inside].mean() / energies[0][inside].mean()),
    }


def _psnr_db(mean_square: float) -> float:
    """Return the PSNR [dB] of a mean over pixels of many images, which no mean over images gives."""
    return float(-db_from_linear(mean_square / 255.0**2))


def _plain(shape: AutoencoderShape) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(shape).items()}
