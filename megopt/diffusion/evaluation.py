"""How good text-to-image models are on scenes whose truth is known: by steps, by model, on seen and unseen captions.

    real scenes >= autoencoder's reconstructions >= images of the edge model >= images of the device model

All four are read by one attribute network. What it gets wrong on real scenes bounds what any model can reach, and so do
the reconstructions, the ceiling of every model that shares the autoencoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.diffusion import metrics
from megopt.diffusion.attribute_match import ATTRIBUTE_NAMES, match_attributes
from megopt.diffusion.attribute_network import AttributeNetwork, read_attributes
from megopt.diffusion.captions import attributes, caption
from megopt.diffusion.conditioning import encode
from megopt.diffusion.feature_metrics import frechet_distance
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.rendering import Images, render
from megopt.diffusion.sampling import advance, decode, start
from megopt.diffusion.scenes import sample_scenes
from megopt.errors import ConfigError

IMAGES_PER_BATCH = 64
REFERENCE_STEPS = 50
"""Steps of the run that other runs of the same seed are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """Scenes to be drawn, and how they really look.

    Attributes:
        captions: one per scene.
        attributes: what they tell, shape (num_scenes, NUM_ATTRIBUTES).
        images: renders, uint8, shape (num_scenes, resolution_px, resolution_px, 3).
        masks: true on objects, shape (num_scenes, resolution_px, resolution_px).
    """

    captions: tuple[str, ...]
    attributes: IntArray
    images: Images
    masks: BoolArray


def truth(num: int, *, seed: int, split: str, resolution_px: int = 64) -> Truth:
    """Return `num` fresh scenes of a split of `scenes.SPLITS`.

    Raises:
        ConfigError: for an impossible number or split.
    """
    if num < 2:
        message = f"num_images is {num}; expected 2 or more"
        raise ConfigError(message)
    scenes = sample_scenes(seed, num, split)
    images, masks = render(scenes, resolution_px)
    return Truth(
        captions=tuple(caption(scene) for scene in scenes),
        attributes=np.stack([attributes(scene) for scene in scenes]),
        images=images,
        masks=masks,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """How images are made.

    Attributes:
        sampler: a name in `schedulers.SAMPLERS`.
        guidance_scale: weight of classifier-free guidance [1].
        guidance_rescale: of `megopt.diffusion.guidance` [1].
        seed: image i starts from noise of seed + i, whatever its neighbours.
    """

    sampler: str = "ddim"
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.0
    seed: int = 0


def batches(num: int) -> Iterator[slice]:
    """Return the slices of `IMAGES_PER_BATCH` images that make `num`."""
    for first in range(0, num, IMAGES_PER_BATCH):
        yield slice(first, min(num, first + IMAGES_PER_BATCH))


def generated(pipeline: Pipeline, captions: Sequence[str], num_steps: int, sampling: Sampling) -> Images:
    """Return an image per caption, uint8, shape (num_captions, height, width, 3)."""
    images = []
    for part in batches(len(captions)):
        begun = start(
            pipeline,
            captions[part],
            num_steps=num_steps,
            seed=range(sampling.seed + part.start, sampling.seed + part.stop),
            sampler=sampling.sampler,
            guidance_scale=sampling.guidance_scale,
            guidance_rescale=sampling.guidance_rescale,
        )
        told = encode(
            pipeline,
            captions[part],
            guidance_scale=sampling.guidance_scale,
            resolution_px=begun.resolution_px,
        )
        images.append(decode(pipeline, advance(pipeline, begun, num_steps, told)))
    return np.concatenate(images)


def reconstructed(pipeline: Pipeline, images: Images) -> Images:
    """Return what the autoencoder of `pipeline` leaves of images."""
    import torch

    from megopt.diffusion.training_autoencoder import reconstruct

    with torch.no_grad():
        return np.concatenate([reconstruct(pipeline.vae, images[part]) for part in batches(len(images))])


def scores(judge: AttributeNetwork, images: Images, told: Truth, reference: Images | None = None) -> dict[str, Any]:
    """Return what is known of images of the scenes of `told`: each a mean, shares with a 95 % interval.

    Args:
        judge: reads attributes.
        images: one per scene, uint8, shape (num_scenes, height, width, 3).
        told: the scenes.
        reference: what the images are compared with pixel by pixel; None for nothing.
    """
    vectors, features = read_attributes(judge, images)
    match = match_attributes(vectors, told.attributes)
    result: dict[str, Any] = {
        "all_right": interval(match.is_all_right.astype(np.float64)),
        "alignment": interval(match.alignment),
        "per_attribute": dict(zip(ATTRIBUTE_NAMES, match.per_attribute.tolist(), strict=True)),
        "sharpness": float(metrics.laplacian_energy(images).mean() / metrics.laplacian_energy(told.images).mean()),
    }
    if len(images) > features.shape[1]:
        result["frechet"] = frechet_distance(features, real_features(judge, told))
    if reference is not None:
        result["psnr_db"] = interval(metrics.psnr_db(images, reference))
        result["ssim"] = interval(metrics.ssim(images, reference))
    return result


def real_features(judge: AttributeNetwork, told: Truth) -> FloatArray:
    """Return the features of the renders, shape (num_scenes, num_features)."""
    return np.asarray(read_attributes(judge, told.images)[1], dtype=np.float64)


def interval(values: FloatArray) -> dict[str, float]:
    """Return mean and 95 % bootstrap interval over images, and their number."""
    found = metrics.estimate(values, seed=0)
    return {"mean": found.mean, "low": found.low, "high": found.high, "num_images": len(values)}
