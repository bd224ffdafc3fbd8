"""Scenes, captions and rendering: same seed same pixels, words equal integers, splits, masks, resolutions, failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.diffusion.camera import EYE, rays_within, view
from megopt.diffusion.captions import (
    CLAUSES,
    COLOURS,
    FLOORS,
    HELD_OUT_ONE_IN,
    MATERIALS,
    MAX_TOKENS,
    NUM_ATTRIBUTES,
    OBJECT_FIELDS,
    PLACES,
    SHAPES,
    SIZES,
    VOCABULARY,
    attributes,
    caption,
    is_held_out,
    parse_caption,
)
from megopt.diffusion.rendering import render, render_many, visible_pixels
from megopt.diffusion.scenes import (
    MIN_IMAGE_SHARE,
    MIN_VISIBLE_SHARE,
    Scene,
    SceneObject,
    sample_scenes,
    shows_every_object,
)
from megopt.diffusion.solids import SOLIDS
from megopt.errors import ConfigError

EXAMPLE = "a large red matte cylinder left of a small cyan metal cone , striped floor"
Z_OF_PLACE = {"left": 0.0, "centre": 0.0, "right": 0.0, "front": -1.35, "back": 1.7}
X_OF_PLACE = {"left": -1.7, "centre": 0.0, "right": 1.7, "front": 0.0, "back": 0.0}


def one_object(place: str = "centre", **changes: object) -> SceneObject:
    plain = SceneObject(
        shape="sphere",
        colour="red",
        material="matte",
        size="large",
        place=place,
        x=X_OF_PLACE[place],
        z=Z_OF_PLACE[place],
        yaw_rad=0.6,
        scale=0.98,
    )
    return replace(plain, **changes)


def scene_of(*objects: SceneObject, floor: str = "plain") -> Scene:
    return Scene(
        objects=objects, floor=floor, wall_hue=0.6, floor_tone=0.5, light_azimuth_rad=0.9, light_elevation_rad=0.9
    )


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    objects = [
        one_object(
            place,
            shape=draw(st.sampled_from(SHAPES)),
            colour=draw(st.sampled_from(COLOURS)),
            material=draw(st.sampled_from(MATERIALS)),
            size=draw(st.sampled_from(SIZES)),
        )
        for place in draw(st.sampled_from(list(CLAUSES)))
    ]
    return scene_of(*objects, floor=draw(st.sampled_from(FLOORS)))


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return sample_scenes(3, 600, "train")


def test_vocabulary_and_length_are_what_is_stated() -> None:
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 37
    longest = max(len(clause.replace("{}", "a b c d e").split()) for clause in CLAUSES.values())
    assert longest + len([",", "plain", "floor"]) == MAX_TOKENS
    assert len(set(CLAUSES.values())) == len(CLAUSES)


def test_known_caption() -> None:
    # places left and right, present everywhere else zero; last the floor
    slots = parse_caption(EXAMPLE)[:-1].reshape(len(PLACES), len(OBJECT_FIELDS))
    left = [1, SHAPES.index("cylinder"), COLOURS.index("red"), MATERIALS.index("matte"), SIZES.index("large")]
    right = [1, SHAPES.index("cone"), COLOURS.index("cyan"), MATERIALS.index("metal"), SIZES.index("small")]
    np.testing.assert_array_equal(slots, [left, [0] * 5, right, [0] * 5, [0] * 5])
    assert parse_caption(EXAMPLE)[-1] == FLOORS.index("striped")


@given(scene=scenes())
def test_caption_tells_the_attributes(scene: Scene) -> None:
    words = caption(scene).split()
    assert set(words) <= set(VOCABULARY)
    assert len(words) <= MAX_TOKENS
    assert parse_caption(caption(scene)).shape == (NUM_ATTRIBUTES,)
    np.testing.assert_array_equal(parse_caption(caption(scene)), attributes(scene))


@given(scene=scenes(), floor=st.sampled_from(FLOORS), data=st.data())
def test_held_out_ignores_order_place_and_floor(scene: Scene, floor: str, data: st.DataObject) -> None:
    places = data.draw(st.sampled_from([places for places in CLAUSES if len(places) == len(scene.objects)]))
    moved = [replace(o, place=p) for o, p in zip(data.draw(st.permutations(scene.objects)), places, strict=True)]
    assert is_held_out(caption(scene)) == is_held_out(caption(scene_of(*moved, floor=floor)))


def test_splits_hold_what_they_say(train: list[Scene]) -> None:
    assert not any(is_held_out(caption(scene)) for scene in train)
    assert all(is_held_out(caption(scene)) for scene in sample_scenes(3, 40, "unseen"))
    share = np.mean([is_held_out(caption(scene)) for scene in sample_scenes(3, 600, "any")])
    assert share == pytest.approx(1 / HELD_OUT_ONE_IN, abs=0.05)  # four standard errors


def test_every_attribute_value_occurs_in_train(train: list[Scene]) -> None:
    seen = {value for s in train for o in s.objects for value in (o.shape, o.colour, o.material, o.size, o.place)}
    assert seen == {*SHAPES, *COLOURS, *MATERIALS, *SIZES, *PLACES}
    assert {scene.floor for scene in train} == set(FLOORS)
    assert {tuple(o.place for o in scene.objects) for scene in train} == set(CLAUSES)
    assert set(Counter(len(scene.objects) for scene in train)) == {1, 2, 3}


def test_same_seed_same_scenes_and_pixels() -> None:
    once, again = sample_scenes(5, 12), sample_scenes(5, 20)
    assert once == again[:12]
    assert once != sample_scenes(6, 12)
    images, masks = render(once, 32)
    images_again, masks_again = render(again, 32)  # in other company
    np.testing.assert_array_equal(images, images_again[:12])
    np.testing.assert_array_equal(masks, masks_again[:12])
    np.testing.assert_array_equal(images, render_many(once, 32, shows_progress=False)[0])


@pytest.mark.slow
def test_processes_render_the_same() -> None:
    some = sample_scenes(5, 70)
    images, masks = render_many(some, 16, num_workers=2, shows_progress=False)
    np.testing.assert_array_equal(images, render(some, 16)[0])
    np.testing.assert_array_equal(masks, render(some, 16)[1])


def test_shape_and_range() -> None:
    images, masks = render(sample_scenes(1, 3), 24, supersampling=1)
    assert images.shape == (3, 24, 24, 3)
    assert images.dtype == np.uint8
    assert masks.shape == (3, 24, 24)
    assert masks.dtype == np.bool_
    assert images.std() > 20.0


@pytest.mark.slow
def test_large_render_averages_to_the_small_one() -> None:
    some = sample_scenes(2, 10)
    small, large = render(some, 64)[0].astype(float), render(some, 256)[0].astype(float)
    averaged = large.reshape(len(some), 64, 4, 64, 4, 3).mean(axis=(2, 4))
    psnr_db = 10.0 * np.log10(255.0**2 / np.square(averaged - small).mean(axis=(1, 2, 3)))
    assert psnr_db.min() > 30.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("material", ["matte", "metal"])
def test_mask_is_where_the_object_changes_the_picture(shape: str, material: str) -> None:
    # the same scene without the object: moved out of the picture, its shadow with it
    scene = scene_of(one_object(shape=shape, material=material))
    gone = scene_of(one_object(shape=shape, material=material, x=-40.0, z=3.0))
    (with_it, without), (mask, empty) = render([scene, gone], 64)
    changed = np.abs(with_it.astype(int) - without).max(axis=-1) > 8
    assert not empty.any()
    assert mask.mean() > 0.02
    assert (changed & mask).sum() > 0.97 * mask.sum()
    darker = with_it.astype(int).sum(axis=-1) < without.astype(int).sum(axis=-1)
    edge = mask ^ _grown(mask)
    assert not (changed & ~mask & ~edge & ~darker).any()  # outside, shadows alone


def test_sphere_known_outline() -> None:
    # At the centre of the image a sphere of radius r at distance d is a disc of tan(asin(r / d)), to a few percent
    scene = scene_of(one_object())
    radius = SOLIDS["sphere"].half_x * 0.98
    distance = np.linalg.norm(EYE - np.array([0.0, radius, 0.0]))
    expected = np.pi * np.tan(np.arcsin(radius / distance)) ** 2 / (2 * 0.355) ** 2
    assert render([scene], 128)[1].mean() == pytest.approx(expected, rel=0.03)


def test_cube_has_three_flat_shades() -> None:
    cube = one_object(shape="cube", colour="white")
    half, cosine, sine = SOLIDS["cube"].half_x * cube.scale, np.cos(cube.yaw_rad), np.sin(cube.yaw_rad)
    # up, front left, front right
    axes = half * np.array([(0.0, 1.0, 0.0), (-sine, 0.0, -cosine), (cosine, 0.0, -sine)])
    image = render([scene_of(cube)], 128)[0][0].reshape(-1, 3).mean(axis=1)
    shades = []
    for face, *others in (axes, axes[[1, 0, 2]], axes[[2, 0, 1]]):
        spots = [face + a * others[0] + b * others[1] + (0.0, half, 0.0) for a in (0.3, 0.8) for b in (-0.6, 0.6)]
        levels = [image[rays_within(view(128, 1), spot[:, np.newaxis, np.newaxis])[1][0]] for spot in spots]
        assert np.ptp(levels) < 15.0  # one face, one shade, up to the contact shade
        shades.append(np.mean(levels))
    assert np.diff(np.sort(shades)).min() > 20.0


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_colour_shows(shape: str, material: str) -> None:
    variants = [scene_of(one_object(shape=shape, material=material, colour=colour)) for colour in COLOURS]
    images, masks = render(variants, 32)
    means = np.array([image[mask].mean(axis=0) for image, mask in zip(images, masks, strict=True)])
    gaps = np.linalg.norm(means[:, np.newaxis] - means, axis=-1) + 1e9 * np.eye(len(COLOURS))
    assert gaps.min() > 10.0  # mean display colours, of 255


@pytest.mark.parametrize(("field", "values"), [("material", MATERIALS), ("shape", SHAPES), ("size", SIZES)])
def test_every_other_value_shows(field: str, values: tuple[str, ...]) -> None:
    scale = {"small": 0.66, "large": 0.98}
    variants = [one_object(**{field: value}) for value in values]
    images = render([scene_of(replace(o, scale=scale[o.size])) for o in variants], 64)[0].astype(float)
    images = np.concatenate([images, render([scene_of(one_object(), floor=f) for f in FLOORS[1:]], 64)[0]])
    apart = np.abs(images[:, np.newaxis] - images).mean(axis=(2, 3, 4)) + 1e9 * np.eye(len(images))
    assert apart.min() > 0.8


def test_light_falls_and_throws_shadows() -> None:
    # With the light on the left the floor right of a sphere is darker than the floor left of it
    scene = replace(scene_of(one_object()), light_azimuth_rad=-1.2)
    image, mask = (array[0] for array in render([scene], 64))
    row, columns = int(np.flatnonzero(mask.any(axis=1))[-1]) - 2, np.flatnonzero(mask.any(axis=0))
    left, right = image[row, columns[0] - 4], image[row, columns[-1] + 4]
    assert left.astype(int).sum() > right.astype(int).sum() + 60


def test_every_object_is_visible(train: list[Scene]) -> None:
    visible, alone = visible_pixels(train, 64)
    assert (visible >= MIN_VISIBLE_SHARE * alone).all()
    assert (visible >= MIN_IMAGE_SHARE * 64**2).all()


def test_objects_do_not_touch(train: list[Scene]) -> None:
    assert SOLIDS["cube"].reach(np.sqrt(0.5), np.sqrt(0.5)) == pytest.approx(np.sqrt(2.0) * SOLIDS["cube"].half_x)
    assert SOLIDS["cone"].reach(0.6, 0.8) == SOLIDS["cone"].half_x
    for one, other in (pair for scene in train for pair in combinations(scene.objects, 2)):
        gap = np.hypot(one.x - other.x, one.z - other.z)
        assert gap > sum(o.scale * SOLIDS[o.shape].half_z for o in (one, other))


def test_hidden_object_is_noticed() -> None:
    hidden = scene_of(one_object("front"), one_object("back", x=0.0, z=0.4, scale=0.3, size="small"))
    assert shows_every_object([hidden, scene_of(one_object())]) == [False, True]


@settings(max_examples=20, deadline=None)
@given(scene=scenes(), resolution_px=st.integers(8, 40), supersampling=st.integers(1, 3))
def test_any_scene_renders(scene: Scene, resolution_px: int, supersampling: int) -> None:
    images, masks = render([scene], resolution_px, supersampling)
    assert images.shape == (1, resolution_px, resolution_px, 3)
    assert masks.any()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: parse_caption("a large blu matte cube at the left , plain floor"), "'blu' is unknown.*write 'blue'"),
        (lambda: parse_caption("a large blue matte cube at the left"), "no floor at the end.*add it"),
        (lambda: parse_caption("a large blue cube at the left , plain floor"), "not a sentence of the grammar"),
        (lambda: parse_caption(EXAMPLE.replace("left", "behind")), "not a sentence of the grammar.*see megopt"),
        (lambda: is_held_out("nonsense"), "'nonsense' is unknown"),
        (lambda: render(sample_scenes(0, 1), 7), "resolution_px is 7; expected an integer >= 8"),
        (lambda: render(sample_scenes(0, 1), 8, 0), "supersampling is 0; expected an integer >= 1"),
        (lambda: render([], 64), "num scenes is 0"),
        (lambda: render_many(sample_scenes(0, 1), 8, num_workers=0), "num_workers is 0"),
        (lambda: sample_scenes(0, 0), "num is 0; expected an integer >= 1; change num"),
        (lambda: sample_scenes(-1, 1), "rng_seed is -1; expected an integer >= 0"),
        (lambda: sample_scenes(0, 1, "test"), "split is 'test'; expected one of 'train', 'unseen', 'any'"),
        (lambda: one_object(colour="pink"), "colour is 'pink'; expected one of 'red'"),
        (lambda: one_object(scale=0.0), "scale is 0.0; expected a number > 0"),
        (lambda: scene_of(one_object("left"), one_object("left")), "places of the objects is .*'left', 'left'"),
        (lambda: scene_of(one_object(), floor="wet"), "floor is 'wet'"),
    ],
)
def test_failures_say_what_to_do(call: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        call()


def _grown(mask: np.ndarray) -> np.ndarray:
    """Return the mask with every pixel that touches it, corners included."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
