"""The camera: rays of an image, what they see of the bare surroundings, and which of them pass a solid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from megopt.arrays import BoolArray, IntArray
from megopt.diffusion.captions import FLOORS
from megopt.diffusion.shading import WALL_Z, floor_light, floor_pattern, wall_light
from megopt.diffusion.solids import Float32Array

EYE = np.array([0.0, 3.3, -7.2], dtype=np.float32)
"""Where the camera stands."""

LAMP_POINTS = 3
"""Points of the lamp that a ray looks at."""

_TARGET = np.array([0.0, 0.70, 0.0], dtype=np.float32)
_HALF_WIDTH = 0.355
"""Half the width of the image at distance 1 from the camera."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Rays of one image size and what they see without objects; ray = row * num_columns + column.

    Attributes:
        num_columns: rays per row and rows.
        direction: unit vectors, shape (3, num_rays).
        point: floor or wall point, shape (3, num_rays).
        on_floor: whether it is the floor, shape (num_rays,).
        weights: what bright floor, dark floor and wall colour count [1], shape (num_floors, 3, num_rays).
        lamp_turn: turn of the lamp's points [rad], differs between the rays of a pixel, shape (num_rays,).
    """

    num_columns: int
    direction: Float32Array
    point: Float32Array
    on_floor: BoolArray
    weights: Float32Array
    lamp_turn: Float32Array


@lru_cache(maxsize=8)
def view(resolution_px: int, supersampling: int) -> View:
    """Return the rays of one image size; the rays of a pixel lie on a rotated grid, which smooths upright edges."""
    s, side = supersampling, resolution_px * supersampling
    row, column = np.indices((side, side)).reshape(2, -1)
    right = (column + (row % s + 0.5) / s) / side * 2.0 - 1.0
    up = 1.0 - (row + (column % s + 0.5) / s) / side * 2.0
    forward, to_right, to_up = _axes()
    ray = forward[:, np.newaxis] + _HALF_WIDTH * (np.outer(to_right, right) + np.outer(to_up, up))
    direction = ray / np.linalg.norm(ray, axis=0)
    to_wall = (WALL_Z - EYE[2]) / direction[2]
    to_floor = np.where(direction[1] < 0.0, -EYE[1] / np.minimum(direction[1], -1e-6), np.inf)
    reach = np.minimum(to_floor, to_wall)
    point = EYE[:, np.newaxis] + reach * direction
    on_floor = to_floor < to_wall
    blur_x = 2.0 * _HALF_WIDTH / side * reach
    blur_z = blur_x / np.maximum(-direction[1], 0.05)
    light = np.where(on_floor, floor_light(point[0], point[2]), wall_light(point[0], point[1]))
    dark = [floor_pattern(floor, point[0], point[2], blur_x, blur_z) for floor in range(len(FLOORS))]
    weights = [light * np.stack([on_floor * (1.0 - share), on_floor * share, ~on_floor]) for share in dark]
    single = partial(np.asarray, dtype=np.float32)
    return View(
        num_columns=side,
        direction=single(direction),
        point=single(point),
        on_floor=on_floor,
        weights=single(weights),
        lamp_turn=single(2.0 * np.pi / LAMP_POINTS * ((row % s) * s + column % s) / s**2),
    )


def _axes() -> tuple[Float32Array, Float32Array, Float32Array]:
    """Return the camera's unit vectors forward, right and up, each of shape (3,)."""
    forward = (_TARGET - EYE) / np.linalg.norm(_TARGET - EYE)
    return forward, np.array([1.0, 0.0, 0.0]), np.array([0.0, forward[2], -forward[1]])


def rays_within(seen: View, corners: Float32Array) -> tuple[IntArray, IntArray]:
    """Return pairs (hull, ray) that hold every ray through a hull: those in the rectangle around its image.

    Args:
        seen: the rays.
        corners: points whose hull is meant, shape (3, num_corners, num_hulls).
    """
    forward, to_right, to_up = _axes()
    offset = corners - EYE[:, np.newaxis, np.newaxis]
    depth = _HALF_WIDTH * np.tensordot(forward, offset, 1)
    column = (np.tensordot(to_right, offset, 1) / depth + 1.0) / 2.0 * seen.num_columns
    row = (1.0 - np.tensordot(to_up, offset, 1) / depth) / 2.0 * seen.num_columns
    left, top = (np.clip(np.floor(axis.min(axis=0)), 0, seen.num_columns).astype(np.int64) for axis in (column, row))
    right, low = (np.clip(np.ceil(axis.max(axis=0)), 0, seen.num_columns).astype(np.int64) for axis in (column, row))
    width, num = right - left, (right - left) * (low - top)
    hull = np.repeat(np.arange(num.size), num)
    within = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num, num)
    line = within // width[hull]
    return hull, (top[hull] + line) * seen.num_columns + left[hull] + within - line * width[hull]
