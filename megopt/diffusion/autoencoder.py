"""The autoencoder of the bundled models: residual convolutions at three resolutions, joined by pixel shuffles.

    encoder   64 px -> 32 px -> 16 px      decoder   16 px -> 32 px -> 64 px      (sides of a 64 px image)

Going down, 2 x 2 pixels become channels and a 1 x 1 convolution reduces them; going up, the reverse. Nothing is thrown
away on the way down, and narrow layers work at full resolution, where edges are: per second of training on a CPU this
reached far higher fidelity than stages of one width joined by strides and nearest-neighbour upsampling.
Source of the idea: J. Chen et al., Deep compression autoencoder for efficient high-resolution diffusion models, 2024.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn
from torch.nn import functional

from megopt.diffusion.diffusers_classes import ConfigMixin, ModelMixin, register_to_config


class ShuffleAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Images to latents of a quarter of the side, and back; used like `diffusers.AutoencoderTiny`.

    Args:
        latent_channels: channels of the latent.
        block_out_channels: channels at full, half and quarter side.
        encoder_blocks: residual blocks at full, half and quarter side.
        decoder_blocks: the same on the way back.
        scaling_factor: what a pipeline multiplies latents by; 1, for latents are normalised in the weights.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 8,
        block_out_channels: tuple[int, int, int] = (32, 64, 128),
        encoder_blocks: tuple[int, int, int] = (1, 1, 1),
        decoder_blocks: tuple[int, int, int] = (2, 3, 2),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        full, half, quarter = block_out_channels
        self.encoder = nn.Sequential(
            _conv(3, full),
            *_blocks(full, encoder_blocks[0]),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * full, half, 1),
            *_blocks(half, encoder_blocks[1]),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * half, quarter, 1),
            *_blocks(quarter, encoder_blocks[2]),
            _conv(quarter, latent_channels),
        )
        self.decoder = nn.Sequential(
            _conv(latent_channels, quarter),
            *_blocks(quarter, decoder_blocks[2]),
            nn.Conv2d(quarter, 4 * half, 1),
            nn.PixelShuffle(2),
            *_blocks(half, decoder_blocks[1]),
            nn.Conv2d(half, 4 * full, 1),
            nn.PixelShuffle(2),
            *_blocks(full, decoder_blocks[0]),
            _conv(full, 3),
        )

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """Return the latents of images in [-1, 1], shape (n, 3, height, width), sides divisible by 4."""
        latents = self.encoder(x)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    def decode(
        self, z: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Return the images of latents, in [-1, 1] up to a small overshoot; nothing is random."""
        images = self.decoder(z)
        return DecoderOutput(sample=images) if return_dict else (images,)


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the last convolution begins at zero, so an untrained block passes x on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _conv(width, width), _conv(width, width)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of `x`."""
        result: torch.Tensor = x + self.last(functional.silu(self.first(functional.silu(x))))
        return result


def _conv(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, padding=1)


def _blocks(width: int, num: int) -> list[nn.Module]:
    return [ResidualBlock(width) for _ in range(num)]
