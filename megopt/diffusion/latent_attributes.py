"""What a latent shows, read without decoding it, and the loss on predicted clean latents that this makes possible.

    x' = a x_t - s v'        loss = |f(x') - f(x)|^2 + r * cross-entropy of the scene's attributes, read from x'

x' is the clean latent that a denoiser's velocity v' at the noisy latent x_t stands for, f the features of a frozen
network that reads attributes from latents, of length 1 in every cell. A mean-square error hardly tells a matte thing
from a metal one where few cells are covered; these features do. The network is a training aid, and judges no result.
Source: S. Lin, X. Yang, Diffusion model with perceptual loss, 2024 (on the predicted clean sample);
T. Berrada et al., Boosting latent diffusion with perceptual objectives, 2024 (features of latents, limits of noise).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from megopt.arrays import IntArray
from megopt.diffusion.attribute_network import AttributeNetwork, AttributeObjective, attribute_loss, read_inputs
from megopt.diffusion.training_data import SceneSet
from megopt.errors import ConfigError

LARGEST_NOISE = 0.3
"""Largest deviation of the noise that the network learns to read through; latents have 1."""


class LatentAttributeObjective(AttributeObjective):
    """The attribute network's loss on cached latents at full resolution, with noise of a deviation drawn per latent.

    Scenes come with their latents, shape (num_scenes, latent_channels, 16, 16).
    """

    def __init__(
        self,
        train: tuple[SceneSet, torch.Tensor],
        test: Mapping[str, tuple[SceneSet, torch.Tensor]],
        device: str = "cpu",
        width: int = 64,
    ) -> None:
        super().__init__(train[0], {name: scenes for name, (scenes, _) in test.items()}, device, width)
        self._latents, self._test_latents = train[1], {name: latents for name, (_, latents) in test.items()}

    def build(self) -> nn.Module:
        """Return the network, without strides."""
        network: Any = AttributeNetwork(width=self._width, in_channels=self._latents.shape[1], strides=(1, 1))
        return network.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]

    def noisy_inputs(self, rows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return noisy latents, shape (batch_size, latent_channels, 16, 16)."""
        latents = self._latents[rows].float()
        deviations = LARGEST_NOISE * torch.rand((len(rows), 1, 1, 1), generator=rng)
        return latents + deviations * torch.randn(latents.shape, generator=rng)

    def read(self, network: nn.Module, name: str) -> IntArray:
        """Return the attribute vectors read from held-out latents, shape (n, NUM_ATTRIBUTES)."""
        return read_inputs(network, self._test_latents[name], torch.Tensor.float, self._device)[0]

    def describe(self) -> dict[str, Any]:
        """Return the size."""
        return {**super().describe(), "part": "latent_attributes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceptualSettings:
    """How much of a denoiser's loss is about what the predicted clean latents show.

    Attributes:
        weight: of the whole term beside the velocity loss; 0 for none.
        lowest_snr: signal-to-noise ratio below which a prediction is not looked at.
        highest_snr: the one above which it is not: there it is the clean latent, nearly.
        reading_share: r, weight of the cross-entropy within the term.
    """

    weight: float = 0.0
    lowest_snr: float = 0.05
    highest_snr: float = 10.0
    reading_share: float = 0.1

    def __post_init__(self) -> None:
        if not (self.weight >= 0.0 and self.reading_share >= 0.0):
            message = (
                f"perceptual: weight {self.weight}, reading_share {self.reading_share}; "
                f"expected numbers >= 0; change them"
            )
            raise ConfigError(message)
        if not 0.0 <= self.lowest_snr < self.highest_snr:
            message = (
                f"perceptual: lowest_snr {self.lowest_snr}, highest_snr {self.highest_snr}; "
                f"expected 0 <= lowest_snr < highest_snr; change them"
            )
            raise ConfigError(message)


class PerceptualLoss:
    """The term of the loss; the network is frozen, so that gradients reach the predicted latents alone."""

    def __init__(self, network: Any, settings: PerceptualSettings, device: str = "cpu") -> None:
        self.settings = settings
        self._network = network.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def is_looked_at(self, snr: torch.Tensor) -> torch.Tensor:
        """Return which signal-to-noise ratios, shape (n,), are within the limits, bool of the same shape."""
        return (snr >= self.settings.lowest_snr) & (snr <= self.settings.highest_snr)

    def __call__(self, guessed: torch.Tensor, clean: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of predicted clean latents, without the weight.

        Args:
            guessed: predicted, shape (n, latent_channels, 16, 16), n >= 1.
            clean: the true ones, of the same shape.
            attributes: of their scenes, shape (n, NUM_ATTRIBUTES).
        """
        seen = self._network.trunk(guessed)
        with torch.no_grad():
            expected = _of_length_one(self._network.trunk(clean))
        distance = (_of_length_one(seen) - expected).square().sum(1).mean()
        if not self.settings.reading_share:
            return distance
        fields, floor, _ = self._network.answers(seen)
        return distance + self.settings.reading_share * attribute_loss(fields, floor, attributes)

    def describe(self) -> dict[str, Any]:
        """Return the settings and a digest of the network."""
        digest = hashlib.sha256()
        for weight in self._network.state_dict().values():
            digest.update(weight.float().cpu().contiguous().numpy().tobytes())
        return {**asdict(self.settings), "network": digest.hexdigest()[:16]}


def _of_length_one(features: torch.Tensor) -> torch.Tensor:
    return functional.normalize(features.float(), dim=1, eps=1e-4)
