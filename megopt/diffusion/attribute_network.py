"""A network that reads from an image what its caption tells: the judge of the bundled models, and its features.

A convolutional trunk sees the image at a quarter of its side. For each place one attention map pools the trunk's output
into a slot, from which present, shape, colour, material and size are read; the floor is read from the mean. That mean
is also the feature vector of the Frechet distance.
"""

from __future__ import annotations

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
    def __init__(self, width: int = 96, num_features: int = 128, num_blocks: int = 4) -> None:
        super().__init__()
        half = width // 2
        blocks = [Block(width, 2 ** (number % 3)) for number in range(num_blocks)]
        self.trunk = nn.Sequential(
            nn.Conv2d(3, half, 5, stride=2, padding=2),
            Block(half, 1),
            nn.Conv2d(half, width, 3, stride=2, padding=1),
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
            pixels: in [-1, 1], shape (n, 3, height, width).

        Returns:
            Logits of the object fields side by side, shape (n, num_places, 23); of the floor, shape (n, num_floors);
            features, shape (n, num_features).
        """
        seen = self.trunk(pixels)
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
        """Return the loss under a little noise on the pixels."""
        pixels = to_network(self._images[rows])
        pixels = (pixels + 0.03 * torch.randn(pixels.shape, generator=rng)).to(self._device)
        fields, floor, _ = network(pixels)
        return attribute_loss(fields, floor, self._attributes[rows].to(self._device))

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return the accuracy of each attribute for each held-out set."""
        return {
            f"{name}_{field}": share
            for name, scenes in self._test.items()
            for field, share in accuracy(
                read_attributes(network, scenes.images, self._device)[0], scenes.attributes
            ).items()
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


@torch.no_grad()
def read_attributes(network: nn.Module, images: Images, device: str = "cpu") -> tuple[IntArray, NDArray[np.float32]]:
    """Return attribute vectors (n, NUM_ATTRIBUTES) and features (n, num_features) of uint8 images."""
    vectors, features = [], []
    for first in range(0, len(images), _CHUNK):
        fields, floor, feature = network(to_network(torch.from_numpy(images[first : first + _CHUNK])).to(device))
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
