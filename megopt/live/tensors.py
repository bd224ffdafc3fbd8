"""Named arrays as one part of a frame, in the format of safetensors; sizes are checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as tensor_format

from megopt.errors import PayloadError
from megopt.live.wire import Part


def tensors_part(name: str, tensors: Mapping[str, NDArray[Any]]) -> Part:
    """Return named arrays as one part, in safetensors' format."""
    stored = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    return Part(name=name, encoding="tensors", payload=tensor_format.save(stored))


def tensors_of(part: Part, expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """Return the arrays of a part of `tensors_part`.

    Args:
        part: the part.
        expected: dtype and shape by name, such as {"timesteps": ("int64", (8,))}; arrays of other sizes are refused
            before they are made.

    Raises:
        PayloadError: if the part holds anything else, or is no safetensors payload.
    """
    num_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in expected.values())
    overhead = len(part.payload) - num_bytes
    if part.encoding != "tensors" or not 0 <= overhead <= 8 + 256 * (len(expected) + 1):
        message = f"part {part.name}: {part.encoding} of {len(part.payload)} B; expected tensors of about {num_bytes} B"
        raise PayloadError(message)
    try:
        found = tensor_format.load(part.payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"part {part.name}: no safetensors payload ({error}); the sender is no megopt encoder"
        raise PayloadError(message) from error
    stated = {name: (str(array.dtype), array.shape) for name, array in found.items()}
    if stated != dict(expected):
        message = f"part {part.name}: it holds {stated}; expected {dict(expected)}"
        raise PayloadError(message)
    return found
