"""Attributes told and seen: what counts as right, per attribute and per image."""

from __future__ import annotations

import numpy as np
import pytest

from megopt.diffusion.attribute_match import ATTRIBUTE_NAMES, match_attributes
from megopt.diffusion.captions import NUM_ATTRIBUTES, attributes
from megopt.diffusion.scenes import sample_scenes
from megopt.errors import ConfigError


def test_attributes_that_match() -> None:
    told = np.stack([attributes(scene) for scene in sample_scenes(0, 6)])
    match = match_attributes(told, told)
    assert match.is_all_right.all()
    np.testing.assert_array_equal(match.alignment, 1.0)
    np.testing.assert_array_equal(match.per_attribute, 1.0)
    assert len(match.per_attribute) == len(ATTRIBUTE_NAMES)


def vector(*objects: tuple[int, ...], floor: int = 0) -> list[int]:
    """Attribute vector with the given (place, shape, colour, material, size)."""
    slots = np.zeros((5, 5), dtype=np.int64)
    for place, *values in objects:
        slots[place] = (1, *values)
    return [*slots.ravel().tolist(), floor]


def test_attributes_are_counted_as_stated() -> None:
    told = vector((0, 2, 3, 1, 1), floor=2)
    seen = {
        "wrong colour": vector((0, 2, 4, 1, 1), floor=2),  # 5 of 6: presence, three fields, floor
        "missing": vector(floor=2),  # only the floor, of 6
        "unasked": vector((0, 2, 3, 1, 1), (3, 0, 0, 0, 0), floor=2),  # 6 of 7
        "wrong floor": vector((0, 2, 3, 1, 1), floor=1),
    }
    match = match_attributes(list(seen.values()), [told] * 4)
    np.testing.assert_allclose(match.alignment, [5 / 6, 1 / 6, 6 / 7, 5 / 6])
    assert not match.is_all_right.any()
    shares = dict(zip(ATTRIBUTE_NAMES, match.per_attribute, strict=True))
    assert shares == pytest.approx(
        {"present": 18 / 20, "shape": 3 / 4, "colour": 2 / 4, "material": 3 / 4, "size": 3 / 4, "floor": 3 / 4}
    )


def test_an_unseen_object_does_not_match_by_chance() -> None:
    # a told sphere is shape 0, as is every field of an empty place
    match = match_attributes([vector()], [vector((1, 0, 0, 0, 0))])
    np.testing.assert_allclose(match.alignment, 1 / 6)
    assert dict(zip(ATTRIBUTE_NAMES, match.per_attribute, strict=True))["shape"] == 0.0


def test_attributes_never_told_are_nan() -> None:
    match = match_attributes([vector()], [vector()])
    np.testing.assert_array_equal(np.isnan(match.per_attribute), [False, True, True, True, True, False])
    assert match.is_all_right.all()


def test_vectors_of_another_number_are_refused() -> None:
    values = np.zeros((4, NUM_ATTRIBUTES), dtype=np.int64)
    with pytest.raises(ConfigError, match=r"expected \(num_images, 26\) twice"):
        match_attributes(values, values[:3])
