"""Records of plain data: every value that comes from the other side is checked before a record is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any, TypeVar

from megopt.errors import ConfigError, PayloadError

Record = TypeVar("Record")
_NESTED: Mapping[str, type] = MappingProxyType({})
_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "str": (str,),
        "int": (int,),
        "float": (float, int),
        "str | None": (str, type(None)),
        "float | None": (float, int, type(None)),
        "tuple[str, ...]": (list,),
        "tuple[int, ...]": (list,),
    }
)


def refuse(where: str, problems: Mapping[str, bool]) -> None:
    """Raise if a problem is there.

    Raises:
        ConfigError: naming all that are.
    """
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        message = f"{where}: {'; '.join(found)}; change it"
        raise ConfigError(message)


def record_of(record: type[Record], values: Any, where: str, nested: Mapping[str, type] = _NESTED) -> Record:
    """Return the record of plain data that came over the link.

    Args:
        record: class of the record; its field types are among those that are known here, or keys of `nested`.
        values: of its fields, exactly these.
        where: for the message.
        nested: classes of fields that are records themselves; "Name | None" is read as "Name" or null.

    Raises:
        PayloadError: if a field is missing or unknown, or a value is of another type or outside its range.
    """
    stated = {field.name: str(field.type) for field in fields(record)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping) or set(values) != set(stated):
        message = f"{where}: expected exactly {', '.join(stated)}; both ends must run the same megopt"
        raise PayloadError(message)
    found = {name: _read(values[name], kind, f"{where}: {name}", nested) for name, kind in stated.items()}
    try:
        return record(**found)
    except ConfigError as error:
        raise PayloadError(str(error)) from error


def _read(value: Any, kind: str, where: str, nested: Mapping[str, type]) -> Any:
    """Return a value of one field; whole numbers become floats where asked for."""
    inner = nested.get(kind.removesuffix(" | None"))
    if inner is not None:
        is_absent = value is None and kind.endswith(" | None")
        return None if is_absent else record_of(inner, value, where, nested)
    is_known = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
    if not is_known or (isinstance(value, float) and not math.isfinite(value)):
        message = f"{where} is {str(value)[:60]!r}; expected {kind}; the sender is no megopt encoder"
        raise PayloadError(message)
    if kind.startswith("tuple"):
        return _read_list(value, str if "str" in kind else int, where)
    return _read_float(value, where) if kind.startswith("float") and value is not None else value


def _read_float(value: float, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        message = f"{where}: a number too large for a float; the sender is no megopt encoder"
        raise PayloadError(message) from error


def _read_list(value: list[Any], kind: type, where: str) -> tuple[Any, ...]:
    if not all(type(item) is kind for item in value):
        message = f"{where}: expected a list of {kind.__name__}; the sender is no megopt encoder"
        raise PayloadError(message)
    return tuple(value)
