"""Captioned procedural scenes: training and evaluation data of the bundled text-to-image models.

A `Scene` is a description; `rendering.render` turns it into pixels and a foreground mask at any resolution, and
`captions.caption` into words. Lengths are those of the scene, where a large object is about 1.2 wide: x to the right,
y up, z away from the camera, the floor at y = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from megopt.diffusion.captions import (
    CLAUSES,
    COLOURS,
    FLOORS,
    MATERIALS,
    PLACES,
    SHAPES,
    SIZES,
    caption,
    is_held_out,
)
from megopt.diffusion.rendering import visible_pixels
from megopt.diffusion.solids import SOLIDS
from megopt.errors import ConfigError

SPLITS = ("train", "unseen", "any")
MAX_OBJECTS = 3
NUM_OBJECTS_SHARE = (0.25, 0.40, 0.35)
"""Share of scenes with one, two and three objects, before scenes with a hidden object are redrawn."""

SCALE_OF_SIZE = {"small": 0.66, "large": 0.98}
MIN_VISIBLE_SHARE = 0.6
"""Least share of an object's outline that no other object hides."""
MIN_IMAGE_SHARE = 0.008
"""Least share of the image that an object covers."""

_POSITIONS = {
    "left": (-1.7, 0.0),
    "centre": (0.0, 0.0),
    "right": (1.7, 0.0),
    "front": (0.0, -1.35),
    "back": (0.0, 1.7),
}
_ASIDE = {"left": 0.8, "right": -0.8}
_LEGAL_VALUES = {"shape": SHAPES, "colour": COLOURS, "material": MATERIALS, "size": SIZES, "place": PLACES}
_VISIBILITY_PX = 64
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """One solid on the floor.

    Attributes:
        shape: one of `captions.SHAPES`.
        colour: one of `captions.COLOURS`.
        material: one of `captions.MATERIALS`.
        size: one of `captions.SIZES`.
        place: one of `captions.PLACES`, what the caption says.
        x: centre, to the right.
        z: centre, away from the camera.
        yaw_rad: turn about the vertical axis [rad].
        scale: what multiplies the lengths of its `solids.Solid`.
    """

    shape: str
    colour: str
    material: str
    size: str
    place: str
    x: float
    z: float
    yaw_rad: float
    scale: float

    def __post_init__(self) -> None:
        for name, legal in _LEGAL_VALUES.items():
            _require_one_of("scene object", name, getattr(self, name), legal)
        if not self.scale > 0.0:
            message = f"scene object: scale is {self.scale}; expected a number > 0; change scale"
            raise ConfigError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One to three objects on a patterned floor before a wall.

    Attributes:
        objects: in the order in which the caption names them; their places are a key of `captions.CLAUSES`.
        floor: one of `captions.FLOORS`.
        wall_hue: hue of the wall in [0, 1), not in the caption.
        floor_tone: brightness of the floor in [0, 1], not in the caption.
        light_azimuth_rad: direction of the light, from the camera to the right [rad], not in the caption.
        light_elevation_rad: height of the light above the floor [rad], not in the caption.
    """

    objects: tuple[SceneObject, ...]
    floor: str
    wall_hue: float
    floor_tone: float
    light_azimuth_rad: float
    light_elevation_rad: float

    def __post_init__(self) -> None:
        _require_one_of("scene", "floor", self.floor, FLOORS)
        _require_one_of("scene", "places of the objects", tuple(o.place for o in self.objects), tuple(CLAUSES))


def sample_scenes(rng_seed: int, num: int, split: str = "any") -> list[Scene]:
    """Return `num` scenes; scene i depends on `rng_seed`, `split` and i alone, so a shorter list is a prefix.

    A scene is redrawn until no two objects touch, its caption belongs to the split, and each object shows at least
    `MIN_VISIBLE_SHARE` of its outline on at least `MIN_IMAGE_SHARE` of the image.

    Args:
        rng_seed: seed >= 0.
        num: how many, at least 1.
        split: "train" without held-out captions, "unseen" with held-out captions only, or "any".

    Raises:
        ConfigError: if `num` < 1 or `rng_seed` < 0, or for an unknown split.
    """
    for name, came, least in (("num", num, 1), ("rng_seed", rng_seed, 0)):
        if came < least:
            message = f"sample_scenes: {name} is {came}; expected an integer >= {least}; change {name}"
            raise ConfigError(message)
    _require_one_of("sample_scenes", "split", split, SPLITS)
    streams = [_stream(np.random.default_rng((rng_seed, i)), split) for i in range(num)]
    return [scene for first in range(0, num, _BLOCK) for scene in _first_visible(streams[first : first + _BLOCK])]


def shows_every_object(scenes: list[Scene]) -> list[bool]:
    """Return for each scene whether no object is hidden or tiny, by `MIN_VISIBLE_SHARE` and `MIN_IMAGE_SHARE`."""
    visible, alone = visible_pixels(scenes, _VISIBILITY_PX)
    fine = (visible >= MIN_VISIBLE_SHARE * alone) & (visible >= MIN_IMAGE_SHARE * _VISIBILITY_PX**2)
    remaining = iter(fine.tolist())
    return [all(list(islice(remaining, len(scene.objects)))) for scene in scenes]


def _first_visible(streams: list[Iterator[Scene]]) -> list[Scene]:
    """Return from each stream the first scene that shows every object."""
    scenes = [next(stream) for stream in streams]
    pending = list(range(len(streams)))
    while pending:
        fine = shows_every_object([scenes[i] for i in pending])
        pending = [i for i, is_fine in zip(pending, fine, strict=True) if not is_fine]
        for i in pending:
            scenes[i] = next(streams[i])
    return scenes


def _stream(rng: np.random.Generator, split: str) -> Iterator[Scene]:
    """Yield random scenes of a split for ever."""
    while True:
        scene = _draw_scene(rng)
        if _stand_apart(scene) and (split == "any" or is_held_out(caption(scene)) == (split == "unseen")):
            yield scene


def _stand_apart(scene: Scene) -> bool:
    """Return whether a gap lies between any two objects, seen along the line between their centres."""
    for one, other in combinations(scene.objects, 2):
        distance = math.hypot(other.x - one.x, other.z - one.z)
        towards = (other.x - one.x) / distance, (other.z - one.z) / distance
        if distance <= _reach(one, *towards) + _reach(other, *towards):
            return False
    return True


def _reach(solid: SceneObject, across: float, along: float) -> float:
    """Return how far an object extends along the unit vector (across, along) on the floor."""
    cosine, sine = math.cos(solid.yaw_rad), math.sin(solid.yaw_rad)
    return solid.scale * SOLIDS[solid.shape].reach(cosine * across - sine * along, sine * across + cosine * along)


def _draw_scene(rng: np.random.Generator) -> Scene:
    """Return a random scene, hidden objects and held-out captions included."""
    num_objects = rng.choice(MAX_OBJECTS, p=NUM_OBJECTS_SHARE) + 1
    layouts = [places for places in CLAUSES if len(places) == num_objects]
    places = layouts[rng.integers(len(layouts))]
    return Scene(
        objects=tuple(
            _draw_object(rng, place, position) for place, position in zip(places, _positions(rng, places), strict=True)
        ),
        floor=FLOORS[rng.integers(len(FLOORS))],
        wall_hue=float(rng.random()),
        floor_tone=float(rng.random()),
        light_azimuth_rad=float(rng.choice((-1.0, 1.0)) * np.deg2rad(rng.uniform(40.0, 80.0))),
        light_elevation_rad=float(np.deg2rad(rng.uniform(48.0, 60.0))),
    )


def _draw_object(rng: np.random.Generator, place: str, position: tuple[float, float]) -> SceneObject:
    """Return a random object at (x, z)."""
    shape, colour, material, size = (
        values[rng.integers(len(values))] for values in (SHAPES, COLOURS, MATERIALS, SIZES)
    )
    x, z = np.asarray(position) + rng.uniform(-1.0, 1.0, 2) * (0.06, 0.12)
    return SceneObject(
        shape=shape,
        colour=colour,
        material=material,
        size=size,
        place=place,
        x=float(x),
        z=float(z),
        yaw_rad=_draw_yaw_rad(rng, shape),
        scale=float(SCALE_OF_SIZE[size] * rng.uniform(0.97, 1.03)),
    )


def _draw_yaw_rad(rng: np.random.Generator, shape: str) -> float:
    """Return a turn [rad] that shows two faces of what has faces and the hole of a torus."""
    low, high = (-30.0, 30.0) if shape == "torus" else (20.0, 70.0)
    return float(np.deg2rad(rng.uniform(low, high)))


def _positions(rng: np.random.Generator, places: tuple[str, ...]) -> list[tuple[float, float]]:
    """Return (x, z) for each place: front and back step apart, and away from a third object."""
    positions = {place: _POSITIONS[place] for place in places}
    if {"front", "back"} <= set(places):
        apart = rng.choice((-1.0, 1.0)) * rng.uniform(0.25, 0.45)
        aside = sum(_ASIDE.get(place, 0.0) for place in places)
        positions["front"] = (aside + apart, _POSITIONS["front"][1])
        positions["back"] = (aside - apart, _POSITIONS["back"][1])
    return list(positions.values())


def _require_one_of(where: str, name: str, came: object, legal: tuple[object, ...]) -> None:
    """Raise ConfigError unless `came` is one of `legal`."""
    if came not in legal:
        expected = ", ".join(repr(value) for value in legal)
        message = f"{where}: {name} is {came!r}; expected one of {expected}; change it"
        raise ConfigError(message)
