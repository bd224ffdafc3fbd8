"""The range checks of numbers that a user sets."""

from __future__ import annotations

import numpy as np

from megopt.errors import ConfigError


def require_within(where: str, low: float, high: float, **quantities: object) -> None:
    """Raise unless every value of every quantity is a number in [low, high].

    Args:
        where: who asks, the first word of the message.
        low: smallest legal value.
        high: largest legal value.
        **quantities: scalars or arrays by name, in the unit of their suffix; NaN is always illegal.

    Raises:
        ConfigError: if a value is no number or outside, or for an empty list; an empty array is one of no requests.
    """
    for name, came in quantities.items():
        if isinstance(came, list | tuple) and not came:
            message = f"{where}: {name} is {came!r}; expected numbers from {low:g} to {high:g}; give at least one"
            raise ConfigError(message)
        values = np.asarray(came)
        if values.dtype.kind not in "fiu":
            message = f"{where}: {name} is {came!r}; expected a number from {low:g} to {high:g}; change {name}"
            raise ConfigError(message)
        outside = ~((values >= low) & (values <= high))
        if np.any(outside):
            first = np.flatnonzero(outside)[0]
            at = f" at index {first}, {np.sum(outside)} such of {values.size}" if values.ndim else ""
            message = f"{where}: {name} is {values.flat[first]:g}{at}; expected {low:g} to {high:g}; change {name}"
            raise ConfigError(message)


def require_number(where: str, low: float, high: float, **quantities: object) -> None:
    """Raise unless every quantity is one number in [low, high].

    Raises:
        ConfigError: for anything else, lists and arrays included.
    """
    for name, came in quantities.items():
        if isinstance(came, list | tuple) or (isinstance(came, np.ndarray) and came.ndim):
            message = f"{where}: {name} is {came!r}; expected one number from {low:g} to {high:g}; change {name}"
            raise ConfigError(message)
    require_within(where, low, high, **quantities)


def require_whole(where: str, low: int, **quantities: object) -> None:
    """Raise unless every quantity is a whole number of at least `low`.

    Raises:
        ConfigError: for anything else, booleans and whole floats included.
    """
    for name, came in quantities.items():
        if isinstance(came, bool) or not isinstance(came, int | np.integer) or came < low:
            message = f"{where}: {name} is {came!r}; expected a whole number from {low}; change {name}"
            raise ConfigError(message)


def require_whole_list(where: str, low: int, **lists: object) -> None:
    """Raise unless every quantity is a list of at least one whole number, none below `low`, none twice.

    Raises:
        ConfigError: for anything else.
    """
    for name, came in lists.items():
        if not isinstance(came, list | tuple) or not came or len(set(came)) < len(came):
            message = f"{where}: {name} is {came!r}; expected a list of distinct whole numbers, such as [{low}]"
            raise ConfigError(message)
        for value in came:
            require_whole(where, low, **{name: value})
