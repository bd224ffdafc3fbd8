"""The header of a frame: plain JSON with a kind, fields and the parts that follow; no key twice, no NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from megopt.errors import PayloadError


def header_bytes(kind: str, fields: Mapping[str, Any], parts: Sequence[Sequence[Any]]) -> bytes:
    """Return the header as bytes; the same header always gives the same bytes.

    Args:
        kind: of the frame.
        fields: plain data.
        parts: name, encoding and bytes [B] of each.

    Raises:
        PayloadError: for fields that are no plain data.
    """
    header = {"kind": kind, "fields": dict(fields), "parts": parts}
    try:
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        message = f"frame {kind}: its fields are no plain data ({error}); send numbers, texts, lists, mappings"
        raise PayloadError(message) from error


def parsed_header(text: bytes) -> dict[str, Any]:
    """Return the header, an object with exactly its three entries: kind, fields and parts.

    Raises:
        PayloadError: if `text` is anything else.
    """
    try:
        header = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        message = f"frame: the header is not plain JSON ({error}); the sender is no megopt encoder"
        raise PayloadError(message) from error
    types = {"kind": str, "fields": dict, "parts": list}
    if not isinstance(header, dict) or set(header) != set(types):
        message = "frame: the header is no object of kind, fields and parts; the sender is no megopt encoder"
        raise PayloadError(message)
    for name, expected in types.items():
        if not isinstance(header[name], expected):
            message = f"frame: {name} in the header is no {expected.__name__}; the sender is no megopt encoder"
            raise PayloadError(message)
    return header


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is no number"
    raise ValueError(message)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        message = "an object names a key twice"
        raise ValueError(message)
    return found
