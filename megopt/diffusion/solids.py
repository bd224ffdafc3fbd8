"""Six solids in their own frame: where a ray enters, which way the surface faces, and how a texture lies on it.

Every solid stands on y = 0 around the vertical axis. A convex one is the intersection of half spaces n . p <= d and of
at most one quadric

    x^2 + z^2 + a y^2 + b y + c <= 0

so a ray o + t d is inside for one interval of t; the torus is traced by its distance function.
Source: A. Glassner (ed.), An Introduction to Ray Tracing, 1989; J. C. Hart, Sphere Tracing, 1996.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray

Float32Array: TypeAlias = NDArray[np.float32]

_TINY = np.float32(1e-6)
_INSIDE = np.float32(0.998)
"""Shrinks texture coordinates, so that a face does not lie on the border of two cells."""
_TORUS_STEPS = 28
_TORUS_MISS = np.float32(6e-3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """A solid of about unit size; lengths are shares of the object's size.

    Attributes:
        half_x: half extent along x.
        half_z: half extent along z.
        height: extent along y.
        footprint: half extents along x and z and corner radius of the patch that shades the floor.
        quadric: a, b, c of the quadric, or None.
        planes: rows (n_x, n_y, n_z, d) of unit normals.
        ring: ring and tube radius of a torus that stands upright in the plane z = 0, or None.
        num_bands: stripes over the height (around the ring for a torus).
        num_sectors: sectors around the axis in the checkered texture; 0 for cells of a cube.
    """

    half_x: float
    half_z: float
    height: float
    footprint: tuple[float, float, float]
    quadric: tuple[float, float, float] | None = None
    planes: tuple[tuple[float, float, float, float], ...] = field(default=())
    ring: tuple[float, float] | None = None
    num_bands: int = 5
    num_sectors: int = 8

    def enter(self, origin: Float32Array, direction: Float32Array) -> Float32Array:
        """Return the t >= 0 at which rays enter, inf where they miss, shape (num_rays,).

        Args:
            origin: start of the rays outside of the solid, shape (3, num_rays).
            direction: directions of any length, shape (3, num_rays).
        """
        if self.ring is not None:
            return _enter_torus(*self.ring, origin, direction)
        first = np.zeros(origin.shape[1], dtype=np.float32)
        last = np.full(origin.shape[1], np.inf, dtype=np.float32)
        if self.quadric is not None:
            _clip_by_quadric(self.quadric, origin, direction, first, last)
        for plane in self.planes:
            _clip_by_plane(plane, origin, direction, first, last)
        return np.where(first < last, first, np.float32(np.inf))

    def normal(self, point: Float32Array) -> Float32Array:
        """Return outward unit normals at points of the surface, shape (3, num_points) like `point`."""
        if self.ring is not None:
            return _torus_normal(self.ring[0], self.height / 2.0, point)
        best = np.full(point.shape[1], -np.inf, dtype=np.float32)
        normal = np.zeros_like(point)
        if self.quadric is not None:
            best, normal = _quadric_distance(self.quadric, point)
        for *towards, offset in self.planes:
            unit = np.array(towards, dtype=np.float32)
            distance = unit @ point - np.float32(offset)
            nearer = distance > best
            best = np.where(nearer, distance, best)
            normal = np.where(nearer, unit[:, np.newaxis], normal)
        return normal

    def reach(self, across: float, along: float) -> float:
        """Return how far the solid extends along the horizontal unit vector (across, 0, along)."""
        if (self.planes and self.quadric is None) or self.ring is not None:
            return abs(across) * self.half_x + abs(along) * self.half_z
        return self.half_x

    def bands(self, point: Float32Array) -> BoolArray:
        """Return where the second colour of the striped texture lies, shape (num_points,)."""
        x, y, _ = point
        if self.ring is not None:
            turn = np.arctan2(x, y - self.height / 2.0) / (2.0 * np.pi)
            return _is_odd(turn * 2 * self.num_bands)
        return _is_odd(self.num_bands * _INSIDE * y / self.height)

    def cells(self, point: Float32Array) -> BoolArray:
        """Return where the second colour of the checkered texture lies, shape (num_points,)."""
        x, y, z = point
        if self.num_sectors == 0:
            across, along = (1.5 * (_INSIDE * value / self.half_x + 1.0) for value in (x, z))
            return np.asarray(_is_odd(across) ^ _is_odd(along) ^ _is_odd(3.0 * _INSIDE * y / self.height))
        if self.ring is not None:
            turn = np.arctan2(x, y - self.height / 2.0) / (2.0 * np.pi)
            outside = np.hypot(x, y - self.height / 2.0) > self.ring[0]
            return np.asarray(_is_odd(turn * 2 * self.num_bands) ^ (z > 0.0) ^ outside)
        turn = np.arctan2(x, z) / (2.0 * np.pi)
        return np.asarray(_is_odd(turn * self.num_sectors) ^ _is_odd(4.0 * _INSIDE * y / self.height))


def _box(half: float, height: float) -> tuple[tuple[float, float, float, float], ...]:
    """Return the six planes of an upright square box."""
    sides = [(sign, 0.0, 0.0, half) for sign in (-1.0, 1.0)] + [(0.0, 0.0, sign, half) for sign in (-1.0, 1.0)]
    return (*sides, *_slab(height))


def _slab(height: float) -> tuple[tuple[float, float, float, float], ...]:
    """Return the planes 0 <= y <= height."""
    return (0.0, -1.0, 0.0, 0.0), (0.0, 1.0, 0.0, height)


def _roof(half: float, height: float) -> tuple[tuple[float, float, float, float], ...]:
    """Return the five planes of a pyramid on a square base."""
    length = float(np.hypot(half, height))
    lean, rise, offset = height / length, half / length, half * height / length
    sides = [(sign * lean, rise, 0.0, offset) for sign in (-1.0, 1.0)]
    sides += [(0.0, rise, sign * lean, offset) for sign in (-1.0, 1.0)]
    return (*sides, (0.0, -1.0, 0.0, 0.0))


def _sphere(radius: float) -> Solid:
    patch = (0.3 * radius, 0.3 * radius, 0.3 * radius)
    return Solid(
        half_x=radius, half_z=radius, height=2 * radius, footprint=patch, quadric=(1.0, -2.0 * radius, 0.0), num_bands=6
    )


def _cube(half: float) -> Solid:
    planes = _box(half, 2 * half)
    return Solid(half_x=half, half_z=half, height=2 * half, footprint=(half, half, 0.0), planes=planes, num_sectors=0)


def _cylinder(radius: float, height: float) -> Solid:
    patch = (radius, radius, radius)
    return Solid(
        half_x=radius,
        half_z=radius,
        height=height,
        footprint=patch,
        quadric=(0.0, 0.0, -(radius**2)),
        planes=_slab(height),
    )


def _cone(radius: float, height: float) -> Solid:
    patch, slope = (radius, radius, radius), (radius / height) ** 2
    quadric = (-slope, 2.0 * slope * height, -slope * height**2)
    return Solid(half_x=radius, half_z=radius, height=height, footprint=patch, quadric=quadric, planes=_slab(height))


def _torus(ring: float, tube: float) -> Solid:
    outer = ring + tube
    patch = (0.5 * outer, 0.5 * tube, 0.5 * tube)
    return Solid(half_x=outer, half_z=tube, height=2 * outer, footprint=patch, ring=(ring, tube), num_bands=6)


def _pyramid(half: float, height: float) -> Solid:
    planes = _roof(half, height)
    return Solid(half_x=half, half_z=half, height=height, footprint=(half, half, 0.0), planes=planes, num_sectors=0)


SOLIDS: dict[str, Solid] = {
    "sphere": _sphere(0.72),
    "cube": _cube(0.57),
    "cylinder": _cylinder(0.56, 1.35),
    "cone": _cone(0.78, 1.6),
    "torus": _torus(0.55, 0.235),
    "pyramid": _pyramid(0.76, 1.35),
}


def _clip_by_plane(
    plane: tuple[float, float, float, float],
    origin: Float32Array,
    direction: Float32Array,
    first: Float32Array,
    last: Float32Array,
) -> None:
    """Narrow the intervals [first, last] of t to the half space of `plane`, in place."""
    slope, room = np.zeros_like(first), np.full_like(first, plane[3])
    for weight, start, step in zip(plane[:3], origin, direction, strict=True):
        if weight:
            slope += np.float32(weight) * step
            room -= np.float32(weight) * start
    slope[np.abs(slope) < _TINY] = _TINY
    crossing = room / slope
    np.maximum(first, crossing, out=first, where=slope < 0.0)
    np.minimum(last, crossing, out=last, where=slope > 0.0)


def _clip_by_quadric(
    quadric: tuple[float, float, float],
    origin: Float32Array,
    direction: Float32Array,
    first: Float32Array,
    last: Float32Array,
) -> None:
    """Narrow the intervals [first, last] of t to the inside of `quadric`, in place.

    Rays must be shallower than the flank of a cone, so that the inside is one interval.
    """
    a, b, c = (np.float32(value) for value in quadric)
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    square = dx * dx + dz * dz + a * dy * dy
    half = ox * dx + oz * dz + (a * oy + b / 2) * dy
    rest = ox * ox + oz * oz + (a * oy + b) * oy + c
    root = half * half - square * rest
    misses = (root <= 0.0) | (square < _TINY)
    root = np.sqrt(np.where(misses, 0.0, root))
    inverse = np.where(misses, 1.0, 1.0 / np.maximum(square, _TINY)).astype(np.float32)
    np.maximum(first, np.where(misses, np.inf, (-half - root) * inverse), out=first)
    np.minimum(last, (-half + root) * inverse, out=last)


def _quadric_distance(quadric: tuple[float, float, float], point: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return first-order signed distances (num_points,) and unit normals (3, num_points) of a quadric."""
    a, b, c = (np.float32(value) for value in quadric)
    x, y, z = point
    gradient = np.stack([x, a * y + b / 2, z])
    length = np.maximum(np.sqrt((gradient * gradient).sum(axis=0)), _TINY)
    return (x * x + z * z + (a * y + b) * y + c) / (2 * length), gradient / length


def _enter_torus(ring: float, tube: float, origin: Float32Array, direction: Float32Array) -> Float32Array:
    """Return where rays enter an upright torus, by sphere tracing inside its bounding sphere, shape (num_rays,)."""
    outer = np.float32(ring + tube)
    ball = (1.0, -2.0 * float(outer), 0.0)
    first = np.zeros(origin.shape[1], dtype=np.float32)
    last = np.full(origin.shape[1], np.inf, dtype=np.float32)
    _clip_by_quadric(ball, origin, direction, first, last)
    entry = np.full(origin.shape[1], np.inf, dtype=np.float32)
    alive = np.flatnonzero(first < last)
    (ox, oy, oz), (dx, dy, dz) = origin[:, alive], direction[:, alive]
    oy = oy - outer
    t, end = first[alive], last[alive]
    inverse = 1.0 / np.sqrt(dx * dx + dy * dy + dz * dz)
    gap = np.zeros_like(t)
    for _ in range(_TORUS_STEPS):
        x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
        across = np.sqrt(x * x + y * y) - np.float32(ring)
        gap = np.sqrt(across * across + z * z) - np.float32(tube)
        t = np.minimum(t + gap * inverse, end)
    hits = (gap < _TORUS_MISS) & (t < end)
    entry[alive[hits]] = t[hits]
    return entry


def _torus_normal(ring: float, centre: float, point: Float32Array) -> Float32Array:
    """Return outward unit normals of an upright torus at `point`, shape (3, num_points)."""
    x, y, z = point[0], point[1] - np.float32(centre), point[2]
    share = 1.0 - np.float32(ring) / np.maximum(np.hypot(x, y), _TINY)
    gradient = np.stack([x * share, y * share, z])
    return np.asarray(gradient / np.maximum(np.sqrt((gradient * gradient).sum(axis=0)), _TINY), dtype=np.float32)


def _is_odd(cell: Float32Array) -> BoolArray:
    """Return whether the integer part of `cell` is odd."""
    return np.asarray(np.floor(cell).astype(np.int32) % 2 == 1)
