"""The language of the scenes: attribute values, one grammar, and what a caption says as a vector of integers.

    caption  = clause " , " floor " floor"
    clause   = object " at the " place
             | object relation object
             | object relation object " , both " relation object
    object   = "a" size colour material shape
    relation = "left of" | "right of" | "behind" | "in front of"

Words are separated by single spaces, the comma is a word. A clause fixes the place of every object, hence a caption and
the attribute vector tell the same; only the order of mention is lost in the vector.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import IntArray
from megopt.errors import ConfigError

if TYPE_CHECKING:
    from megopt.diffusion.scenes import Scene

SIZES = ("small", "large")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
MATERIALS = ("matte", "metal", "glass", "striped", "checkered")
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid")
FLOORS = ("plain", "checkered", "striped", "dotted")
PLACES = ("left", "centre", "right", "front", "back")

CLAUSES: dict[tuple[str, ...], str] = {
    **{(place,): f"{{}} at the {place}" for place in PLACES},
    ("left", "right"): "{} left of {}",
    ("right", "left"): "{} right of {}",
    ("front", "back"): "{} in front of {}",
    ("back", "front"): "{} behind {}",
    ("left", "centre", "right"): "{} left of {} , both left of {}",
    ("centre", "left", "right"): "{} right of {} , both left of {}",
    ("centre", "right", "left"): "{} left of {} , both right of {}",
    ("right", "centre", "left"): "{} right of {} , both right of {}",
    ("left", "right", "front"): "{} left of {} , both behind {}",
    ("right", "left", "front"): "{} right of {} , both behind {}",
    ("left", "right", "back"): "{} left of {} , both in front of {}",
    ("right", "left", "back"): "{} right of {} , both in front of {}",
    ("front", "back", "right"): "{} in front of {} , both left of {}",
    ("back", "front", "right"): "{} behind {} , both left of {}",
    ("front", "back", "left"): "{} in front of {} , both right of {}",
    ("back", "front", "left"): "{} behind {} , both right of {}",
}
"""Clause for the places of the objects in the order of mention; one to one."""

_GRAMMAR_WORDS = ("a", ",", "at", "the", "of", "in", "behind", "both", "floor")
VOCABULARY = tuple(dict.fromkeys((*_GRAMMAR_WORDS, *PLACES, *SIZES, *COLOURS, *MATERIALS, *SHAPES, *FLOORS)))
"""Every word of every caption, punctuation included: 37 words."""

MAX_TOKENS = 25
"""Words of the longest caption: three objects, "in front of" once."""

OBJECT_FIELDS = ("present", "shape", "colour", "material", "size")
NUM_ATTRIBUTES = len(PLACES) * len(OBJECT_FIELDS) + 1
"""Length of the attribute vector: five integers per place in the order of `PLACES`, then the floor."""

HELD_OUT_ONE_IN = 10
"""One in so many combinations of objects never occurs in training."""

_PLACES_OF_CLAUSE = {clause: places for places, clause in CLAUSES.items()}
_VALUES_OF_FIELD = (SIZES, COLOURS, MATERIALS, SHAPES)
_OBJECT = re.compile(" ".join(["a", *(f"({'|'.join(values)})" for values in _VALUES_OF_FIELD)]))
_FLOOR = re.compile(rf"(.*) , ({'|'.join(FLOORS)}) floor")


def caption(scene: Scene) -> str:
    """Return the sentence that tells places, attributes and floor of `scene`, objects in its order."""
    phrases = [f"a {o.size} {o.colour} {o.material} {o.shape}" for o in scene.objects]
    clause = CLAUSES[tuple(o.place for o in scene.objects)]
    return f"{clause.format(*phrases)} , {scene.floor} floor"


def attributes(scene: Scene) -> IntArray:
    """Return what the caption of `scene` tells as integers, shape (NUM_ATTRIBUTES,).

    Per place: present (0 or 1) and the positions in SHAPES, COLOURS, MATERIALS and SIZES, all 0 where nothing stands;
    last the position in FLOORS.
    """
    described = [(o.place, o.size, o.colour, o.material, o.shape) for o in scene.objects]
    return _vector(described, scene.floor)


def parse_caption(text: str) -> IntArray:
    """Return the attribute vector that a caption tells, shape (NUM_ATTRIBUTES,), laid out as in `attributes`.

    Raises:
        ConfigError: if a word is not in the vocabulary, or the words do not follow the grammar.
    """
    _require_known_words(text)
    body = _FLOOR.fullmatch(text)
    if body is None:
        message = (
            f"caption {text!r}: no floor at the end; expected ', {FLOORS[0]} floor' or another of {FLOORS}; add it"
        )
        raise ConfigError(message)
    places = _PLACES_OF_CLAUSE.get(_OBJECT.sub("{}", body[1]))
    if places is None:
        message = (
            f"caption {text!r}: not a sentence of the grammar; expected for instance "
            f"'a large red matte cube left of a small cyan metal cone , plain floor' (single spaces); "
            f"see megopt.diffusion.captions"
        )
        raise ConfigError(message)
    described = [(place, *words) for place, words in zip(places, _OBJECT.findall(body[1]), strict=True)]
    return _vector(described, body[2])


def is_held_out(text: str) -> bool:
    """Return whether a caption is kept out of training.

    The rule looks at the unordered combination of (shape, colour, material, size) and at nothing else: a held-out
    combination does not occur in training in any order, at any places, or on any floor.

    Raises:
        ConfigError: if `text` is no caption.
    """
    slots = parse_caption(text)[:-1].reshape(len(PLACES), len(OBJECT_FIELDS))
    combination = sorted(tuple(row[1:]) for row in slots.tolist() if row[0])
    digest = hashlib.blake2b(repr(combination).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_ONE_IN == 0


def _vector(described: Sequence[tuple[str, ...]], floor: str) -> IntArray:
    """Return the attribute vector of (place, size, colour, material, shape) rows and a floor."""
    slots = np.zeros((len(PLACES), len(OBJECT_FIELDS)), dtype=np.int64)
    for place, size, colour, material, shape in described:
        numbers = SHAPES.index(shape), COLOURS.index(colour), MATERIALS.index(material), SIZES.index(size)
        slots[PLACES.index(place)] = (1, *numbers)
    return np.append(slots, FLOORS.index(floor))


def _require_known_words(text: str) -> None:
    """Raise ConfigError at the first word outside the vocabulary."""
    for word in text.split():
        if word not in VOCABULARY:
            near = difflib.get_close_matches(word, VOCABULARY, n=1)
            hint = f"write {near[0]!r}" if near else "rephrase it"
            message = (
                f"caption {text!r}: word {word!r} is unknown; expected the {len(VOCABULARY)} words of "
                f"megopt.diffusion.captions.VOCABULARY; {hint}"
            )
            raise ConfigError(message)
