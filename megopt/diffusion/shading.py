"""What light makes of a scene: surroundings, floor patterns, and the colour of a surface point by material.

Colours are linear light; `display` turns them into what a screen shows. All arrays are single precision and hold one
component per leading row, (3, num_points), because that is the fast layout.
"""

from __future__ import annotations

import numpy as np

from megopt.arrays import IntArray
from megopt.diffusion.captions import FLOORS, MATERIALS, SHAPES
from megopt.diffusion.scene_arrays import Objects, Surroundings
from megopt.diffusion.solids import SOLIDS, Float32Array

WALL_Z = 5.5
"""Where the wall stands."""

_METAL, _GLASS = MATERIALS.index("metal"), MATERIALS.index("glass")
_STRIPED, _CHECKERED = MATERIALS.index("striped"), MATERIALS.index("checkered")

_AMBIENT, _KEY = 0.34, 0.90
_FLOOR_AMBIENT = 0.33
"""Share of the light on the floor that stays in full shadow."""
_REFRACTION = 1.0 / 1.3
_TILE = 1.0


def floor_pattern(
    floor: int, x: Float32Array, z: Float32Array, blur_x: Float32Array, blur_z: Float32Array
) -> Float32Array:
    """Return the share of the dark colour [1], averaged over a box around each floor point, shape (num_points,).

    Args:
        floor: position in `captions.FLOORS`.
        x: points, shape (num_points,).
        z: points, shape (num_points,).
        blur_x: width of the box along x, shape (num_points,).
        blur_z: width of the box along z, shape (num_points,).
    """
    if FLOORS[floor] == "plain":
        return np.zeros_like(x)
    if FLOORS[floor] == "striped":
        return 0.5 + 0.5 * _square_wave(x / _TILE + 0.5, blur_x / _TILE)
    if FLOORS[floor] == "checkered":
        return 0.5 - 0.5 * _square_wave(x / _TILE, blur_x / _TILE) * _square_wave(z / _TILE, blur_z / _TILE)
    spacing, radius = 1.1, 0.3
    to_x, to_z = (value - spacing * np.round(value / spacing) for value in (x, z))
    blur = np.maximum(0.5 * (blur_x + blur_z), 1e-3)
    disc = np.clip(0.5 + (radius - np.sqrt(to_x * to_x + to_z * to_z)) / blur, 0.0, 1.0)
    washed = np.clip(blur_z / spacing - 0.4, 0.0, 1.0)
    return np.asarray(disc + (np.pi * (radius / spacing) ** 2 - disc) * washed, dtype=np.float32)


def _square_wave(phase: Float32Array, width: Float32Array) -> Float32Array:
    """Return the mean of a square wave (+1 on even, -1 on odd cells) over a box, by the difference of its integral."""
    width = np.maximum(width, np.float32(1e-3))
    low, high = ((phase + sign * width / 2) / 2 for sign in (-1.0, 1.0))
    rise = np.abs(high - np.floor(high) - 0.5) - np.abs(low - np.floor(low) - 0.5)
    return np.asarray(-2.0 * rise / width, dtype=np.float32)


def floor_light(x: Float32Array, z: Float32Array) -> Float32Array:
    """Return the light on the bare floor relative to its middle [1]: a soft spot, dim along the wall."""
    spot = 1.06 / (1.0 + 0.018 * (x * x + (z - 0.5) ** 2))
    return np.asarray(spot * (1.0 - 0.3 * np.exp((z - WALL_Z) / 0.5)), dtype=np.float32)


def wall_light(x: Float32Array, y: Float32Array) -> Float32Array:
    """Return the light on the wall relative to its middle [1]."""
    spot = 1.12 / (1.0 + 0.012 * x * x + 0.05 * (y - 0.8) ** 2)
    return np.asarray(spot * (1.0 - 0.25 * np.exp(-np.maximum(y, 0.0) / 0.35)), dtype=np.float32)


def background(around: Surroundings, scene: IntArray, point: Float32Array, direction: Float32Array) -> Float32Array:
    """Return the linear colour of floor, wall and lamps that rays from `point` along `direction` see, shape (3, n)."""
    (x, y, z), (dx, dy, dz) = point, direction
    to_floor = np.where(dy < -1e-3, y / np.maximum(-dy, 1e-3), np.inf)
    to_wall = np.where(dz > 1e-3, (WALL_Z - z) / np.maximum(dz, 1e-3), np.inf)
    on_floor = to_floor < to_wall
    reach = np.minimum(np.minimum(to_floor, to_wall), 60.0)
    at_x, at_y, at_z = x + reach * dx, y + reach * dy, z + reach * dz
    share = np.zeros_like(x)
    blur = (0.06 + 0.03 * reach).astype(np.float32)
    for floor in range(1, len(FLOORS)):
        now = np.flatnonzero(on_floor & (around.floor[scene] == floor))
        share[now] = floor_pattern(floor, at_x[now], at_z[now], blur[now], blur[now])
    bright = around.bright[:, scene]
    ground = (bright + (around.dark[:, scene] - bright) * share) * floor_light(at_x, np.minimum(at_z, WALL_Z))
    lamp = np.clip((dy - 0.30) / 0.25, 0.0, 1.0)
    dome = around.wall[:, scene] * np.where(dz > 1e-3, wall_light(at_x, at_y), 0.55) * (1.0 - 0.35 * lamp) + 0.95 * lamp
    return np.asarray(np.where(on_floor, ground, dome), dtype=np.float32)


def floor_shade(unblocked: Float32Array) -> Float32Array:
    """Return the light on the floor relative to the bare floor [1] when a share `unblocked` of the lamp is seen."""
    return _FLOOR_AMBIENT + (1.0 - _FLOOR_AMBIENT) * unblocked


def shade_hits(
    objects: Objects,
    around: Surroundings,
    which: IntArray,
    point: Float32Array,
    direction: Float32Array,
    unblocked: Float32Array,
) -> Float32Array:
    """Return the linear colour of points on objects, shape (3, num_points).

    Args:
        objects: all objects.
        around: all surroundings.
        which: object of each point, shape (num_points,).
        point: points on the surfaces, shape (3, num_points).
        direction: unit vectors from the camera to the points, shape (3, num_points).
        unblocked: share of the lamp that no other object hides [1], shape (num_points,).
    """
    scene = objects.scene[which]
    light = around.light[:, scene]
    normal, albedo = _surface(objects, which, point)
    facing = np.maximum(_dot(normal, light), 0.0) * unblocked
    contact = 1.0 - 0.45 * np.exp(-point[1] / (0.2 * objects.scale[which]))
    colour = albedo * (_AMBIENT * (0.55 + 0.45 * normal[1]) * contact + _KEY * facing)
    against = -_dot(direction, normal)
    mirrored = direction + 2.0 * against * normal
    glint = np.maximum(_dot(mirrored, light), 0.0) * unblocked
    material = objects.material[which]
    for number, shade, tint, power in ((_METAL, _metal, 0.7, 50), (_GLASS, _glass, 0.2, 60)):
        now = np.flatnonzero(material == number)
        highlight = 1.2 * (1.0 - tint + tint * albedo[:, now]) * glint[now] ** power
        rays = point[:, now], direction[:, now], normal[:, now], mirrored[:, now]
        colour[:, now] = shade(around, scene[now], albedo[:, now], colour[:, now], *rays) + highlight
    textured = material >= _STRIPED
    return np.asarray(colour + np.where(textured, 0.10 * glint**24, 0.0), dtype=np.float32)


def _metal(
    around: Surroundings,
    scene: IntArray,
    albedo: Float32Array,
    diffuse: Float32Array,
    point: Float32Array,
    direction: Float32Array,
    normal: Float32Array,
    mirrored: Float32Array,
) -> Float32Array:
    """Return the colour of polished, tinted metal without its highlight, shape (3, num_points)."""
    grazing = (1.0 + _dot(direction, normal)) ** 5
    tint = albedo + (1.0 - albedo) * np.minimum(0.5 * grazing, 1.0)
    seen = background(around, scene, point, mirrored) * _studio(mirrored, around.light[:, scene])
    near = np.exp(-point[1] / np.maximum(-mirrored[1], 0.05) / 0.8)  # the mirrored floor lies in the contact shade
    return np.asarray(0.18 * diffuse + 1.1 * tint * seen * (1.0 - 0.65 * near))


def _studio(mirrored: Float32Array, light: Float32Array) -> Float32Array:
    """Return how bright a mirror sees the studio [1]: a strip on the lamp's side, dim opposite, bright above."""
    level = np.sqrt((mirrored[0] ** 2 + mirrored[2] ** 2) * (light[0] ** 2 + light[2] ** 2))
    side = (mirrored[0] * light[0] + mirrored[2] * light[2]) / np.maximum(level, 1e-3)
    strip = 0.8 * np.clip((side - 0.80) / 0.12, 0.0, 1.0)
    upwards = np.clip(0.5 + mirrored[1] / 0.3, 0.0, 1.0)
    around_level = 0.45 + 0.75 * np.square(0.5 + 0.5 * side) + strip
    return np.asarray(around_level + (1.15 - around_level) * upwards)


def _glass(
    around: Surroundings,
    scene: IntArray,
    albedo: Float32Array,
    diffuse: Float32Array,
    point: Float32Array,
    direction: Float32Array,
    normal: Float32Array,
    mirrored: Float32Array,
) -> Float32Array:
    """Return the colour of clear, tinted glass without its highlight, shape (3, num_points).

    Refraction at the front surface only; other objects are not seen through it.
    """
    facing = np.clip(-_dot(direction, normal), 0.0, 1.0)
    bend = _REFRACTION * facing - np.sqrt(1.0 - _REFRACTION**2 * (1.0 - facing * facing))
    behind = background(around, scene, point, _REFRACTION * direction + bend * normal)
    rim = 0.30 + 1.10 * facing
    glow = 0.65 * np.maximum(-_dot(normal, around.light[:, scene]), 0.0)
    pale = 0.14 * facing * facing
    lit = 0.62 + 0.56 * (0.5 + 0.5 * _dot(normal, around.light[:, scene]))
    through = lit * (pale + (1.0 - pale) * albedo) * (behind * rim + glow) + 0.10 * diffuse
    grazing = 0.10 + 0.70 * (1.0 - facing) ** 4
    return np.asarray(through + grazing * (background(around, scene, point, mirrored) - through))


def _surface(objects: Objects, which: IntArray, point: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return unit normals and linear surface colours, texture included, each of shape (3, num_points)."""
    local = objects.to_local(which, point - objects.position[:, which])
    normal = np.empty_like(local)
    second = np.zeros(which.size, dtype=np.bool_)
    shape, material = objects.shape[which], objects.material[which]
    for number, name in enumerate(SHAPES):
        now = np.flatnonzero(shape == number)
        normal[:, now] = SOLIDS[name].normal(local[:, now])
        striped, checkered = (now[material[now] == texture] for texture in (_STRIPED, _CHECKERED))
        second[striped] = SOLIDS[name].bands(local[:, striped])
        second[checkered] = SOLIDS[name].cells(local[:, checkered])
    albedo = np.where(second, objects.second[:, which], objects.colour[:, which])
    return objects.to_world(which, normal), albedo


def _dot(first: Float32Array, second: Float32Array) -> Float32Array:
    """Return the scalar products of two rows of vectors, shape (num_vectors,)."""
    return np.asarray(first[0] * second[0] + first[1] * second[1] + first[2] * second[2])
