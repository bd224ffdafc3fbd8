"""Shadows on the floor: soft ones of a round lamp, and the dark seam where an object stands."""

from __future__ import annotations

import numpy as np

from megopt.arrays import BoolArray, IntArray
from megopt.diffusion.camera import LAMP_POINTS
from megopt.diffusion.captions import MATERIALS, SHAPES
from megopt.diffusion.scene_arrays import Objects, Surroundings, box_corners, enter
from megopt.diffusion.solids import SOLIDS, Float32Array

_LAMP_RADIUS = 0.07
_GLASS = MATERIALS.index("glass")
_GLASS_SHADOW = 0.5
_CONTACT_SHADE, _CONTACT_REACH = 0.5, 0.22


def contact_hulls(objects: Objects) -> Float32Array:
    """Return floor patches that hold the contact shade of each object, shape (3, 8, num_objects)."""
    corners = box_corners(objects, margin=3.0 * _CONTACT_REACH)
    corners[1] = 0.0
    return corners


def shadow_hulls(objects: Objects, around: Surroundings) -> Float32Array:
    """Return floor points whose hull holds the shadow of each object, shape (3, num_points, num_objects)."""
    corners = box_corners(objects)
    light = around.light[:, objects.scene]
    shadows = []
    for turn in np.arange(4) * (np.pi / 2):
        towards = _lamp_point(light, np.float32(turn), 1.5 * _LAMP_RADIUS)
        shadows.append(corners - (corners[1] / towards[1]) * towards[:, np.newaxis])
    return np.concatenate(shadows, axis=1)


def _lamp_point(light: Float32Array, turn_rad: Float32Array | np.float32, radius: float = _LAMP_RADIUS) -> Float32Array:
    """Return the direction to a point on the rim of the lamp whose centre lies at `light`, shape (3, num)."""
    x, y, z = light
    level = np.sqrt(x * x + z * z)
    across, along = radius * np.cos(turn_rad), radius * np.sin(turn_rad)
    return np.stack(
        [
            x + across * z / level - along * x * y / level,
            y + along * level,
            z - across * x / level - along * z * y / level,
        ]
    )


def lamp_share(
    objects: Objects, around: Surroundings, which: IntArray, point: Float32Array, turn_rad: Float32Array
) -> Float32Array:
    """Return the share of the lamp that object `which` leaves free at `point` [1], shape (num_points,)."""
    light = around.light[:, objects.scene[which]]
    blocked = np.zeros(which.size, dtype=np.float32)
    for i in range(LAMP_POINTS):
        towards = _lamp_point(light, turn_rad + np.float32(2.0 * np.pi * i / LAMP_POINTS))
        blocked += np.isfinite(enter(objects, which, point, towards))
    strength = np.where(objects.material[which] == _GLASS, _GLASS_SHADOW, 1.0)
    return np.asarray(1.0 - blocked / LAMP_POINTS * strength, dtype=np.float32)


def contact_share(
    objects: Objects, around: Surroundings, which: IntArray, point: Float32Array, turn_rad: Float32Array
) -> Float32Array:
    """Return the contact shade of object `which`, the factor on the light at floor points [1], shape (num_points,)."""
    patches = np.array([SOLIDS[name].footprint for name in SHAPES], dtype=np.float32)
    half_x, half_z, radius = patches[objects.shape[which]].T
    x, _, z = np.abs(objects.to_local(which, point - objects.position[:, which]))
    out_x, out_z = np.maximum(x - half_x + radius, 0.0), np.maximum(z - half_z + radius, 0.0)
    gap = np.maximum(np.sqrt(out_x * out_x + out_z * out_z) - radius, 0.0) / np.float32(_CONTACT_REACH)
    return np.asarray(1.0 - _CONTACT_SHADE * np.exp(-gap * gap), dtype=np.float32)


def _is_near_shadow(objects: Objects, around: Surroundings, other: IntArray, point: Float32Array) -> BoolArray:
    """Return whether the way to the lamp passes near object `other`, shape (num_points,)."""
    light = around.light[:, objects.scene[other]]
    offset = objects.position[:, other] - point
    offset[1] += 0.75 * objects.scale[other]
    along = (offset * light).sum(axis=0)
    beside = (offset * offset).sum(axis=0) - along * along
    return np.asarray((along > 0.0) & (beside < (1.4 * objects.scale[other]) ** 2))


def free_of_others(
    objects: Objects, around: Surroundings, which: IntArray, point: Float32Array, turn_rad: Float32Array
) -> Float32Array:
    """Return the share of the lamp that the other objects of the scene leave free [1], shape (num_points,)."""
    free = np.ones(which.size, dtype=np.float32)
    first, num = np.unique(objects.scene, return_index=True, return_counts=True)[1:]
    scene = objects.scene[which]
    for slot in range(int(objects.slot.max()) + 1):
        now = np.flatnonzero((objects.slot[which] != slot) & (num[scene] > slot))
        other = first[scene[now]] + slot
        near = _is_near_shadow(objects, around, other, point[:, now])
        now, other = now[near], other[near]
        free[now] *= lamp_share(objects, around, other, point[:, now], turn_rad[now])
    return free
