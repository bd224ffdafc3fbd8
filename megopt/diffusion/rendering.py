"""Pixels and foreground masks of scenes: ray casting over many scenes at once, at any resolution.

One camera, one lamp of finite size. Each ray finds the nearest solid, else the floor or the wall; floor and objects
receive cast shadows, the floor a contact shade. With s = `supersampling`, a pixel is the mean of s x s rays in display
values, so an image that is box-averaged to a lower resolution looks like the render at that resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from megopt.arrays import BoolArray, IntArray
from megopt.diffusion.camera import EYE, View, rays_within, view
from megopt.diffusion.scene_arrays import Objects, Surroundings, box_corners, enter, pack
from megopt.diffusion.shading import floor_shade, shade_hits
from megopt.diffusion.shadows import contact_hulls, contact_share, free_of_others, lamp_share, shadow_hulls
from megopt.diffusion.solids import Float32Array
from megopt.errors import ConfigError

if TYPE_CHECKING:
    from megopt.diffusion.scenes import Scene

Images: TypeAlias = NDArray[np.uint8]

SMALLEST_PX = 8

_RAYS_PER_CHUNK = 2**19


def render(scenes: Sequence[Scene], resolution_px: int, supersampling: int = 2) -> tuple[Images, BoolArray]:
    """Return images, uint8 of shape (num_scenes, resolution_px, resolution_px, 3), and their foreground masks.

    Args:
        scenes: at least one.
        resolution_px: height and width, at least 8.
        supersampling: rays per pixel along each axis, at least 1.

    Returns:
        Images and masks (num_scenes, resolution_px, resolution_px), true where objects cover half of a pixel or more.

    Raises:
        ConfigError: if a number is too small.
    """
    _require_at_least("num scenes", len(scenes), 1)
    _require_at_least("resolution_px", resolution_px, SMALLEST_PX)
    _require_at_least("supersampling", supersampling, 1)
    num_at_once = max(1, _RAYS_PER_CHUNK // (resolution_px * supersampling) ** 2)
    images = np.empty((len(scenes), resolution_px, resolution_px, 3), dtype=np.uint8)
    masks = np.empty(images.shape[:3], dtype=np.bool_)
    for first in range(0, len(scenes), num_at_once):
        chunk = slice(first, first + num_at_once)
        images[chunk], masks[chunk] = _render_chunk(scenes[chunk], resolution_px, supersampling)
    return images, masks


def render_many(
    scenes: Sequence[Scene],
    resolution_px: int,
    supersampling: int = 2,
    *,
    num_workers: int = 1,
    shows_progress: bool = True,
) -> tuple[Images, BoolArray]:
    """Return what `render` returns, with a progress bar and optionally in several processes.

    Args:
        scenes: at least one.
        resolution_px: height and width, at least 8.
        supersampling: rays per pixel along each axis, at least 1.
        num_workers: processes; 1 renders in this one.
        shows_progress: whether to show the bar.

    Raises:
        ConfigError: if a number is too small.
    """
    _require_at_least("num scenes", len(scenes), 1)
    _require_at_least("num_workers", num_workers, 1)
    step = 64
    parts = [scenes[first : first + step] for first in range(0, len(scenes), step)]
    paint = partial(render, resolution_px=resolution_px, supersampling=supersampling)
    images = np.empty((len(scenes), resolution_px, resolution_px, 3), dtype=np.uint8)
    masks = np.empty(images.shape[:3], dtype=np.bool_)
    with tqdm(total=len(scenes), desc="render scenes", unit="scene", disable=not shows_progress) as bar:
        done = 0
        for part_images, part_masks in _in_processes(paint, parts, num_workers):
            chunk = slice(done, done + len(part_images))
            images[chunk], masks[chunk] = part_images, part_masks
            done = chunk.stop
            bar.update(len(part_images))
    return images, masks


def visible_pixels(scenes: Sequence[Scene], resolution_px: int) -> tuple[IntArray, IntArray]:
    """Return the pixels that each object shows, and would show if it stood alone, scene by scene, one ray per pixel.

    Args:
        scenes: at least one.
        resolution_px: height and width.

    Returns:
        Two arrays of shape (num_objects_of_all_scenes,).
    """
    objects, _ = pack(scenes)
    owner, _, alone = _cast(objects, len(scenes), view(resolution_px, 1))
    return np.bincount(owner[owner >= 0], minlength=objects.scene.size), alone


def _in_processes(
    paint: Callable[[Sequence[Scene]], tuple[Images, BoolArray]], parts: list[Sequence[Scene]], num_workers: int
) -> Iterator[tuple[Images, BoolArray]]:
    """Yield the images and masks of each part, in order."""
    if num_workers == 1:
        yield from map(paint, parts)
        return
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(paint, parts)


def _render_chunk(scenes: Sequence[Scene], resolution_px: int, supersampling: int) -> tuple[Images, BoolArray]:
    """Return images and masks of scenes that fit into memory together."""
    seen = view(resolution_px, supersampling)
    objects, around = pack(scenes)
    owner, distance, _ = _cast(objects, len(scenes), seen)
    colour = _paint_background(around, seen)
    shade = _shade_floor(objects, around, seen, owner)
    colour *= shade[:, np.newaxis]
    _paint_objects(colour, objects, around, seen, owner, distance)
    np.clip(colour, 0.0, 1.0, out=colour)
    np.sqrt(colour, out=colour)  # display value = square root of linear light
    samples = (resolution_px, supersampling, resolution_px, supersampling)
    pixels = _mean_of_samples(colour.reshape(len(scenes), 3, *samples))
    covered = _mean_of_samples((owner >= 0).astype(np.float32).reshape(len(scenes), *samples))
    return np.moveaxis((pixels * 255.0 + 0.5).astype(np.uint8), 1, -1), covered >= 0.5


def _mean_of_samples(samples: Float32Array) -> Float32Array:
    """Return the means over the rays of each pixel, axes -3 and -1 of (..., rows, rays, columns, rays)."""
    num = samples.shape[-1]
    total = sum(samples[..., i, :, j] for i in range(num) for j in range(num))
    return np.asarray(total / num**2, dtype=np.float32)


def _cast(objects: Objects, num_scenes: int, seen: View) -> tuple[IntArray, Float32Array, IntArray]:
    """Return the nearest object (-1: none) and its distance for every ray, and how many rays hit each object.

    Returns:
        owner and distance of shape (num_scenes, num_rays), and counts regardless of who is in front, (num_objects,).
    """
    num_rays = seen.num_columns**2
    owner = np.full(num_scenes * num_rays, -1, dtype=np.int64)
    distance = np.full(num_scenes * num_rays, np.inf, dtype=np.float32)
    which, ray = rays_within(seen, box_corners(objects))
    entry = enter(objects, which, EYE[:, np.newaxis], seen.direction[:, ray])
    hits = np.flatnonzero(np.isfinite(entry))
    which, ray, entry = which[hits], ray[hits], entry[hits]
    cell = objects.scene[which] * num_rays + ray
    for slot in range(int(objects.slot.max()) + 1):  # within a slot no cell comes twice
        now = np.flatnonzero(objects.slot[which] == slot)
        now = now[entry[now] < distance[cell[now]]]
        distance[cell[now]], owner[cell[now]] = entry[now], which[now]
    shape = num_scenes, num_rays
    return owner.reshape(shape), distance.reshape(shape), np.bincount(which, minlength=objects.scene.size)


def _paint_background(around: Surroundings, seen: View) -> Float32Array:
    """Return the linear colour of floor and wall without objects, shape (num_scenes, 3, num_rays)."""
    colour = np.zeros((around.floor.size, 3, seen.num_columns**2), dtype=np.float32)
    for planes, floor, *colours in zip(
        colour, around.floor, around.bright.T, around.dark.T, around.wall.T, strict=True
    ):
        for weight, rgb in zip(seen.weights[floor], colours, strict=True):
            for plane, value in zip(planes, rgb, strict=True):
                plane += value * weight
    return colour


def _shade_floor(objects: Objects, around: Surroundings, seen: View, owner: IntArray) -> Float32Array:
    """Return cast shadows and contact shades, the factor on the background [1], shape (num_scenes, num_rays)."""
    num_rays = seen.num_columns**2
    unblocked = np.ones(owner.size, dtype=np.float32)
    contact = np.ones(owner.size, dtype=np.float32)
    is_bare = (owner.ravel() < 0).reshape(owner.shape) & seen.on_floor
    for factor, hulls, shade in (
        (unblocked, shadow_hulls(objects, around), lamp_share),
        (contact, contact_hulls(objects), contact_share),
    ):
        which, ray = rays_within(seen, hulls)
        bare = np.flatnonzero(is_bare.ravel()[objects.scene[which] * num_rays + ray])
        which, ray = which[bare], ray[bare]
        share = shade(objects, around, which, seen.point[:, ray], seen.lamp_turn[ray])
        for slot in range(int(objects.slot.max()) + 1):  # within a slot no cell comes twice
            now = np.flatnonzero(objects.slot[which] == slot)
            factor[objects.scene[which[now]] * num_rays + ray[now]] *= share[now]
    return (floor_shade(unblocked) * contact).reshape(owner.shape)


def _paint_objects(
    colour: Float32Array,
    objects: Objects,
    around: Surroundings,
    seen: View,
    owner: IntArray,
    distance: Float32Array,
) -> None:
    """Write the linear colours of all rays that hit an object into `colour`, shape (num_scenes, 3, num_rays)."""
    cell = np.flatnonzero(owner.ravel() >= 0)
    which, ray = owner.ravel()[cell], cell % seen.num_columns**2
    direction = seen.direction[:, ray]
    point = EYE[:, np.newaxis] + distance.ravel()[cell] * direction
    unblocked = free_of_others(objects, around, which, point, seen.lamp_turn[ray])
    colour[objects.scene[which], :, ray] = shade_hits(objects, around, which, point, direction, unblocked).T


def _require_at_least(name: str, came: int, least: int) -> None:
    """Raise ConfigError unless `came` >= `least`."""
    if came < least:
        message = f"render: {name} is {came}; expected an integer >= {least}; change it"
        raise ConfigError(message)
