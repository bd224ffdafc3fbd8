"""A network that reads from an image what its caption tells: the judge of the bundled models, and its features.

A convolutional trunk sees the image at a quarter of its side, or a latent at all of it. For each place one attention
map pools the trunk's output into a slot, from which present, shape, colour, material and size are read; the floor is
read from the mean. That mean is also the feature vector of the Frechet distance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from megopt.arrays import BoolArray, IntArray
from megopt.diffusion.captions import COLOURS, FLOORS, MATERIALS, OBJECT_FIELDS, PLACES, SHAPES, SIZES
from megopt.diffusion.diffusers_classes import ConfigMixin, ModelMixin, register_to_config
from megopt.diffusion.rendering import Images
from megopt.diffusion.training_autoencoder import to_network
from megopt.diffusion.training_data import SceneSet
from megopt.diffusion.training_objective import Objective

NUM_VALUES = {
    "present": 2,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "material": len(MATERIALS),
    "size": len(SIZES),
}
"""Classes of each object field, in the order of `OBJECT_FIELDS`."""
_CHUNK = 128


class AttributeNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Reads attribute vectors; saved and loaded like any diffusers model."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        width: int = 96,
        num_features: int = 128,
        num_blocks: int = 4,
        in_channels: int = 3,
        strides: tuple[int, int] = (2, 2),
    ) -> None:
        super().__init__()
        half = width // 2
        blocks = [Block(width, 2 ** (number % 3)) for number in range(num_blocks)]
        self.trunk = nn.Sequential(
            nn.Conv2d(in_channels, half, 5, stride=strides[0], padding=2),
            Block(half, 1),
            nn.Conv2d(half, width, 3, stride=strides[1], padding=1),
            *blocks,
            nn.SiLU(),
            nn.Conv2d(width, num_features, 1),
            nn.SiLU(),
        )
        self.attention = nn.Conv2d(num_features, len(PLACES), 3, padding=1)
        self.slot = nn.Sequential(nn.Linear(2 * num_features, num_features), nn.SiLU())
        self.place = nn.Parameter(torch.zeros(len(PLACES), 2 * num_features))
        self.fields = nn.Linear(num_features, sum(NUM_VALUES.values()))
        self.floor = nn.Linear(num_features, len(FLOORS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return logits and features.

        Args:
            pixels: in [-1, 1], shape (n, 3, height, width); or what else it was built for.

        Returns:
            Logits of the object fields side by side, shape (n, num_places, 23); of the floor, shape (n, num_floors);
            features, shape (n, num_features).
        """
        return self.answers(self.trunk(pixels))

    def answers(self, seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what `forward` does, from the trunk's output, shape (n, num_features, rows, columns)."""
        weights = self.attention(seen).float().flatten(2).softmax(-1)
        flat = seen.float().flatten(2)
        features = flat.mean(-1)
        pooled = torch.einsum("npk,nck->npc", weights, flat)
        joined = torch.cat([pooled, features[:, None].expand_as(pooled)], dim=-1) + self.place
        return self.fields(self.slot(joined)), self.floor(features), features


class Block(nn.Module):
    """Two convolutions beside the identity; the second begins at zero."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        """Return an array of the shape of `seen`."""
        changed: torch.Tensor = self.second(functional.silu(self.first(functional.silu(seen))))
        return seen + changed


class AttributeObjective(Objective):
    """Cross-entropy of every field of every object, of presence at every place, and of the floor."""

    def __init__(self, train: SceneSet, test: dict[str, SceneSet], device: str = "cpu", width: int = 96) -> None:
        self.num_samples, self._test, self._device, self._width = len(train), test, device, width
        self._images, self._attributes = torch.from_numpy(train.images), torch.from_numpy(train.attributes)

    def build(self) -> nn.Module:
        """Return the network."""
        network: nn.Module = AttributeNetwork(width=self._width).to(memory_format=torch.channels_last)
        return network

    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the loss under a little noise on what is read."""
        fields, floor, _ = network(self.noisy_inputs(rows, rng).to(self._device))
        return attribute_loss(fields, floor, self._attributes[rows].to(self._device))

    def noisy_inputs(self, rows: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return what the network reads of `rows`, with noise: pixels, shape (batch_size, 3, height, width)."""
        pixels = to_network(self._images[rows])
        return pixels + 0.03 * torch.randn(pixels.shape, generator=rng)

    def read(self, network: nn.Module, name: str) -> IntArray:
        """Return the attribute vectors read from the held-out set `name`, shape (n, NUM_ATTRIBUTES)."""
        return read_attributes(network, self._test[name].images, self._device)[0]

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the accuracy of each attribute for each held-out set."""
        return {
            f"{name}_{field}": share
            for name, scenes in self._test.items()
            for field, share in accuracy(self.read(network, name), scenes.attributes).items()
        }

    def describe(self) -> dict[str, Any]:
        """Return the size."""
        return {"part": "attributes", "width": self._width, "num_samples": self.num_samples}


def attribute_loss(fields: torch.Tensor, floor: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy per place and image.

    Args:
        fields: logits as `AttributeNetwork` returns them, shape (n, num_places, 23).
        floor: logits, shape (n, num_floors).
        attributes: shape (n, NUM_ATTRIBUTES).
    """
    slots = attributes[:, :-1].reshape(len(attributes), len(PLACES), len(OBJECT_FIELDS))
    is_present = slots[..., 0] > 0
    parts = torch.split(fields.float(), list(NUM_VALUES.values()), dim=-1)
    total = functional.cross_entropy(floor.float(), attributes[:, -1])
    total = total + functional.cross_entropy(parts[0].flatten(0, 1), slots[..., 0].flatten())
    for number, logits in enumerate(parts[1:], start=1):
        total = total + functional.cross_entropy(logits[is_present], slots[..., number][is_present])
    return total


def decided(fields: torch.Tensor, floor: torch.Tensor) -> IntArray:
    """Return the likeliest attribute vectors, 0 where nothing stands, shape (n, NUM_ATTRIBUTES)."""
    parts = [part.argmax(-1) for part in torch.split(fields, list(NUM_VALUES.values()), dim=-1)]
    slots = torch.stack([part * (parts[0] > 0) for part in parts], dim=-1)
    return torch.cat([slots.flatten(1), floor.argmax(-1)[:, None]], dim=1).cpu().numpy().astype(np.int64)


def read_attributes(network: nn.Module, images: Images, device: str = "cpu") -> tuple[IntArray, NDArray[np.float32]]:
    """Return attribute vectors (n, NUM_ATTRIBUTES) and features (n, num_features) of uint8 images."""
    return read_inputs(network, torch.from_numpy(images), to_network, device)


@torch.no_grad()
def read_inputs(
    network: nn.Module, inputs: torch.Tensor, prepared: Callable[[torch.Tensor], torch.Tensor], device: str = "cpu"
) -> tuple[IntArray, NDArray[np.float32]]:
    """Return what `read_attributes` does of any inputs, `prepared` for the network part by part."""
    vectors, features = [], []
    for first in range(0, len(inputs), _CHUNK):
        fields, floor, feature = network(prepared(inputs[first : first + _CHUNK]).to(device))
        vectors.append(decided(fields, floor))
        features.append(feature.float().cpu().numpy())
    return np.concatenate(vectors), np.concatenate(features)


def accuracy(came: IntArray, expected: IntArray) -> dict[str, float]:
    """Return the share of right answers per attribute [1], over objects that are there, and of wholly right images.

    Args:
        came: attribute vectors, shape (n, NUM_ATTRIBUTES).
        expected: those of the captions, of the same shape.
    """
    shape = (len(came), len(PLACES), len(OBJECT_FIELDS))
    is_right: BoolArray = came == expected
    slots = is_right[:, :-1].reshape(shape)
    is_present = expected[:, :-1].reshape(shape)[..., 0] > 0
    shares = {name: float(slots[..., number][is_present].mean()) for number, name in enumerate(OBJECT_FIELDS)}
    shares["present"] = float(slots[..., 0].mean())
    return shares | {"floor": float(is_right[:, -1].mean()), "all": float(is_right.all(axis=1).mean())}


def load_attribute_network(folder: Path) -> AttributeNetwork:
    """Return the network saved in `folder`, in single precision."""
    network: AttributeNetwork = AttributeNetwork.from_pretrained(folder, local_files_only=True).float().eval()
    return network
