"""Scenes as arrays that a renderer takes by the thousand: a column per object, a row of surroundings per scene."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import IntArray
from megopt.diffusion.captions import FLOORS, MATERIALS, SHAPES
from megopt.diffusion.solids import SOLIDS, Float32Array

if TYPE_CHECKING:
    from megopt.diffusion.scenes import Scene


_DISPLAY_COLOURS = {
    "red": (0.87, 0.12, 0.12),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.86, 0.12),
    "green": (0.12, 0.66, 0.22),
    "cyan": (0.10, 0.80, 0.86),
    "blue": (0.12, 0.27, 0.90),
    "purple": (0.56, 0.16, 0.78),
    "white": (0.95, 0.95, 0.95),
}


_LIGHT_COLOURS = ("orange", "yellow", "cyan", "white")


_SECOND_ON_LIGHT, _SECOND_ON_DARK = (0.16, 0.16, 0.20), (0.96, 0.95, 0.92)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """The objects of several scenes, one entry each.

    Attributes:
        scene: number of the scene, shape (num_objects,).
        slot: number within the scene, shape (num_objects,).
        shape: position in `captions.SHAPES`, shape (num_objects,).
        material: position in `captions.MATERIALS`, shape (num_objects,).
        colour: linear colour, shape (3, num_objects).
        second: linear second colour of textures, shape (3, num_objects).
        position: centre of the base, shape (3, num_objects).
        cosine: cosine of the turn about the vertical axis, shape (num_objects,).
        sine: its sine, shape (num_objects,).
        scale: length of one local unit, shape (num_objects,).
    """

    scene: IntArray
    slot: IntArray
    shape: IntArray
    material: IntArray
    colour: Float32Array
    second: Float32Array
    position: Float32Array
    cosine: Float32Array
    sine: Float32Array
    scale: Float32Array

    def to_local(self, which: IntArray, vector: Float32Array) -> Float32Array:
        """Return vectors in the frames of objects `which`, shape (3, num_vectors)."""
        cosine, sine, inverse = self.cosine[which], self.sine[which], 1.0 / self.scale[which]
        x, y, z = vector
        return np.stack([(cosine * x - sine * z) * inverse, y * inverse, (sine * x + cosine * z) * inverse])

    def to_world(self, which: IntArray, unit: Float32Array) -> Float32Array:
        """Return unit vectors of the frames of objects `which` in the frame of the scene, shape (3, num_vectors)."""
        cosine, sine = self.cosine[which], self.sine[which]
        x, y, z = unit
        return np.stack([cosine * x + sine * z, y, cosine * z - sine * x])


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Floor, wall and light of several scenes.

    Attributes:
        floor: position in `captions.FLOORS`, shape (num_scenes,).
        bright: linear colour of the floor, shape (3, num_scenes).
        dark: linear colour of the pattern on it, shape (3, num_scenes).
        wall: linear colour of the wall, shape (3, num_scenes).
        light: unit vector to the light, shape (3, num_scenes).
    """

    floor: IntArray
    bright: Float32Array
    dark: Float32Array
    wall: Float32Array
    light: Float32Array


def pack(scenes: Sequence[Scene]) -> tuple[Objects, Surroundings]:
    """Return objects and surroundings of `scenes` as arrays."""
    rows = [(i, slot, o) for i, scene in enumerate(scenes) for slot, o in enumerate(scene.objects)]
    seconds = [_SECOND_ON_LIGHT if o.colour in _LIGHT_COLOURS else _SECOND_ON_DARK for _, _, o in rows]
    yaw_rad = np.array([o.yaw_rad for _, _, o in rows])
    objects = Objects(
        scene=np.array([i for i, _, _ in rows]),
        slot=np.array([slot for _, slot, _ in rows]),
        shape=np.array([SHAPES.index(o.shape) for _, _, o in rows]),
        material=np.array([MATERIALS.index(o.material) for _, _, o in rows]),
        colour=_linear([_DISPLAY_COLOURS[o.colour] for _, _, o in rows]),
        second=_linear(seconds),
        position=np.array([(o.x, 0.0, o.z) for _, _, o in rows], dtype=np.float32).T,
        cosine=np.cos(yaw_rad).astype(np.float32),
        sine=np.sin(yaw_rad).astype(np.float32),
        scale=np.array([o.scale for _, _, o in rows], dtype=np.float32),
    )
    return objects, _surroundings(scenes)


def _surroundings(scenes: Sequence[Scene]) -> Surroundings:
    """Return floor, wall and light of `scenes` as arrays."""
    azimuth = np.array([scene.light_azimuth_rad for scene in scenes])
    elevation = np.array([scene.light_elevation_rad for scene in scenes])
    level = np.cos(elevation)
    light = np.stack([np.sin(azimuth) * level, np.sin(elevation), -np.cos(azimuth) * level])
    tone = np.array([scene.floor_tone for scene in scenes])[:, np.newaxis]
    return Surroundings(
        floor=np.array([FLOORS.index(scene.floor) for scene in scenes]),
        bright=_linear((0.70 + 0.12 * tone) * np.array([1.0, 0.975, 0.94])),
        dark=_linear((0.45 + 0.10 * tone) * np.array([0.96, 0.97, 1.0])),
        wall=_linear([colorsys.hsv_to_rgb(scene.wall_hue, 0.36, 0.90) for scene in scenes]),
        light=light.astype(np.float32),
    )


def _linear(display_rows: object) -> Float32Array:
    """Return linear colours, shape (3, n), of display colours, shape (n, 3)."""
    return np.asarray(np.square(np.asarray(display_rows, dtype=np.float32)).T)


def box_corners(objects: Objects, margin: float = 0.0) -> Float32Array:
    """Return the corners of the boxes around objects, `margin` local units wider, shape (3, 8, num_objects)."""
    solids = [SOLIDS[SHAPES[shape]] for shape in objects.shape]
    half_x, height, half_z = np.array([(s.half_x, s.height, s.half_z) for s in solids], dtype=np.float32).T
    signs = np.array(np.meshgrid([-1, 1], [0, 1], [-1, 1])).reshape(3, 8, 1)
    local = signs * np.stack([half_x + margin, height, half_z + margin])[:, np.newaxis] * objects.scale
    which = np.broadcast_to(np.arange(objects.scene.size), local.shape[1:])
    return np.asarray(objects.to_world(which, local) + objects.position[:, np.newaxis], dtype=np.float32)


def enter(objects: Objects, which: IntArray, origin: Float32Array, direction: Float32Array) -> Float32Array:
    """Return the distance at which each ray enters its object `which`, inf for a miss, shape (num_rays,)."""
    start = objects.to_local(which, origin - objects.position[:, which])
    step = objects.to_local(which, direction)
    shape = objects.shape[which]
    entry = np.empty(which.size, dtype=np.float32)
    for number, name in enumerate(SHAPES):
        now = np.flatnonzero(shape == number)
        entry[now] = SOLIDS[name].enter(start[:, now], step[:, now])
    return entry
