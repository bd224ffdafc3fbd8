"""Rendered scenes on disk: seeded shards that are made once, resumed after a stop, and read into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from megopt.arrays import BoolArray, IntArray
from megopt.diffusion.captions import NUM_ATTRIBUTES, attributes, caption
from megopt.diffusion.rendering import Images, render
from megopt.diffusion.scenes import sample_scenes
from megopt.errors import ConfigError
from megopt.files import write_atomically

SHARD_SCENES = 1024
"""Scenes per shard; a shorter set reads the front of the last shard."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneSet:
    """Scenes in memory.

    Attributes:
        images: uint8 pixels, shape (num_scenes, resolution_px, resolution_px, 3).
        masks: true on objects, shape (num_scenes, resolution_px, resolution_px).
        attributes: what the captions tell, shape (num_scenes, NUM_ATTRIBUTES).
        captions: one sentence per scene.
    """

    images: Images
    masks: BoolArray
    attributes: IntArray
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        num = len(self.images)
        assert self.masks.shape == self.images.shape[:3]
        assert self.attributes.shape == (num, NUM_ATTRIBUTES)
        assert len(self.captions) == num

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self) -> tuple[Images, BoolArray]:
        """Return images and masks."""
        return self.images, self.masks

    def reduced(self, factor: int) -> SceneSet:
        """Return the scenes at 1 / `factor` of the side: mean colours, and masks where half is covered or more."""
        num, side = self.images.shape[:2]
        small = side // factor
        images = np.empty((num, small, small, 3), dtype=np.uint8)
        masks = np.empty((num, small, small), dtype=np.bool_)
        for first in range(0, num, SHARD_SCENES):
            part = slice(first, first + SHARD_SCENES)
            blocks = self.images[part].reshape(-1, small, factor, small, factor, 3)
            images[part] = np.rint(blocks.mean(axis=(2, 4), dtype=np.float32))
            masks[part] = self.masks[part].reshape(-1, small, factor, small, factor).mean(axis=(2, 4)) >= 0.5
        return replace(self, images=images, masks=masks)


def scene_set(
    folder: Path, split: str, num: int, *, resolution_px: int = 64, seed: int, shows_progress: bool = True
) -> SceneSet:
    """Return `num` scenes of a split; shards that `folder` lacks are rendered first, one by one.

    Scene i depends on `seed`, `split` and i alone, so a larger set begins with the smaller one.

    Args:
        folder: where shards are kept, below a folder per split, resolution and seed.
        split: one of `scenes.SPLITS`.
        num: how many, at least 1.
        resolution_px: height and width.
        seed: seed >= 0.
        shows_progress: whether to show a bar while rendering.

    Raises:
        ConfigError: for an impossible number or split, or a shard that cannot be read.
    """
    if num < 1:
        message = f"scene set: num is {num}; expected an integer >= 1; change the number of scenes"
        raise ConfigError(message)
    home = folder / f"{split}_{resolution_px}px_seed{seed}"
    paths = [home / f"shard_{number:05d}.npz" for number in range(-(-num // SHARD_SCENES))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    for number in tqdm(missing, desc=f"render {split} {resolution_px} px", unit="shard", disable=not shows_progress):
        render_shard = partial(_render_shard, split=split, number=number, resolution_px=resolution_px, seed=seed)
        write_atomically(paths[number], render_shard)
    parts = [_read_shard(path) for path in paths]
    images, masks, vectors, texts = (np.concatenate(column)[:num] for column in zip(*parts, strict=True))
    return SceneSet(images=images, masks=masks, attributes=vectors, captions=tuple(texts.tolist()))


def joined(sets: Sequence[SceneSet]) -> SceneSet:
    """Return several sets of one resolution as one."""
    return SceneSet(
        images=np.concatenate([scenes.images for scenes in sets]),
        masks=np.concatenate([scenes.masks for scenes in sets]),
        attributes=np.concatenate([scenes.attributes for scenes in sets]),
        captions=tuple(text for scenes in sets for text in scenes.captions),
    )


def _render_shard(target: Path, split: str, number: int, resolution_px: int, seed: int) -> None:
    """Render and write scenes number * SHARD_SCENES and on; masks are stored as bits."""
    own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
    scenes = sample_scenes(own_seed, SHARD_SCENES, split)
    images, masks = render(scenes, resolution_px)
    np.savez(
        target,
        images=images,
        masks=np.packbits(masks, axis=-1),
        attributes=np.stack([attributes(scene) for scene in scenes]).astype(np.uint8),
        captions=np.array([caption(scene) for scene in scenes]),
    )


def _read_shard(path: Path) -> tuple[Images, BoolArray, IntArray, np.ndarray[tuple[int], np.dtype[np.str_]]]:
    """Return images, masks, attribute vectors and captions of a shard."""
    try:
        with path.open("rb") as file, np.load(file) as shard:
            images, bits = shard["images"], shard["masks"]
            masks = np.unpackbits(bits, axis=-1, count=images.shape[2]).astype(np.bool_)
            return images, masks, shard["attributes"].astype(np.int64), shard["captions"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        message = f"{path}: {error}; expected a shard of rendered scenes; delete it, and it is rendered again"
        raise ConfigError(message) from error
