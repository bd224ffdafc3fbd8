"""What images show against what their captions tell, attribute by attribute.

attributes read from images, attributes of captions -> AttributeMatch (per attribute, per image, all right)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.diffusion.captions import NUM_ATTRIBUTES, OBJECT_FIELDS, PLACES
from megopt.errors import ConfigError

ATTRIBUTE_NAMES = (*OBJECT_FIELDS, "floor")
"""What `AttributeMatch.per_attribute` counts."""
_ATTRIBUTE_AT = np.append(np.tile(np.arange(len(OBJECT_FIELDS)), len(PLACES)), len(OBJECT_FIELDS))
"""Number in `ATTRIBUTE_NAMES` of each position of an attribute vector."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttributeMatch:
    """What images show against what their captions tell.

    Attributes:
        is_right: shape (num_images, NUM_ATTRIBUTES). A field of an object that is told but not seen is wrong.
        is_told: positions that the caption tells, of the same shape: presence at all places, the other fields where an
            object stands, the floor.
        is_shown: positions behind `alignment`: as `is_told`, less the places that are empty in caption and image.
    """

    is_right: BoolArray
    is_told: BoolArray
    is_shown: BoolArray

    @property
    def per_attribute(self) -> FloatArray:
        """Share right over images and places, in the order of `ATTRIBUTE_NAMES`; NaN where never told."""
        told, right = (
            np.bincount(_ATTRIBUTE_AT, weights=which.sum(axis=0))
            for which in (self.is_told, self.is_told & self.is_right)
        )
        shares: FloatArray = np.divide(right, told, out=np.full(told.shape, np.nan), where=told > 0)
        return shares

    @property
    def alignment(self) -> FloatArray:
        """Share right of what caption or image hold, shape (num_images,); an object that is not told is wrong."""
        return np.asarray((self.is_right & self.is_shown).sum(axis=1) / self.is_shown.sum(axis=1))  # the floor counts

    @property
    def is_all_right(self) -> BoolArray:
        """Whether every told attribute is right and nothing else is there, shape (num_images,)."""
        return np.asarray((self.is_right | ~self.is_told).all(axis=1))


def match_attributes(seen: ArrayLike, told: ArrayLike) -> AttributeMatch:
    """Return how the attributes of images match those of their captions.

    Args:
        seen: attribute vectors that a network reads from the images, shape (num_images, NUM_ATTRIBUTES).
        told: those of the captions (`captions.parse_caption`), of the same shape.

    Raises:
        ConfigError: if the shapes differ or are none of attribute vectors.
    """
    came, asked = np.asarray(seen), np.asarray(told)
    if came.shape != asked.shape or came.ndim != 2 or came.shape[1] != NUM_ATTRIBUTES or not len(came):
        message = f"attributes of shape {came.shape} and {asked.shape}; expected (num_images, {NUM_ATTRIBUTES}) twice"
        raise ConfigError(message)
    is_there, is_asked = (_at_every_field(vectors) for vectors in (came, asked))
    is_presence = np.equal(_ATTRIBUTE_AT, ATTRIBUTE_NAMES.index("present"))
    return AttributeMatch(
        is_right=(came == asked) & (is_there | is_presence),
        is_told=is_asked | is_presence,
        is_shown=is_asked | (is_there & is_presence),
    )


def _at_every_field(vectors: IntArray) -> BoolArray:
    """Return whether the object that each attribute belongs to is there; the floor always is."""
    slots = vectors[:, :-1].reshape(len(vectors), len(PLACES), len(OBJECT_FIELDS))
    present = np.broadcast_to(slots[..., :1] > 0, slots.shape).reshape(len(vectors), -1)
    return np.concatenate([present, np.ones((len(vectors), 1), dtype=np.bool_)], axis=1)
