"""From what an agent says to rows of the ActionTable: a row, an index per knob, or a point of [-1, 1]^m.

| kind | space | meaning |
|---|---|---|
| "discrete" | Discrete(num_rows) | the row itself |
| "multi_discrete" | MultiDiscrete(number of values per dimension) | index of a value in each dimension |
| "box" | Box(-1, 1, (m,)) | the nearest value in each dimension, values laid linearly on [-1, 1] |

The dimensions are the scheme, every knob, and the variant that tells rows of equal knobs apart (an edge-only row per
image codec), each where it has more than one value. A dimension that a row lacks is ignored for that row. Combinations
that name no offered row stand for the offered row nearest to them: of the same scheme if it has one, then by squared
distance of the values laid on [-1, 1]. So only "discrete" can name a masked row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction

from megopt.arrays import BoolArray, IntArray
from megopt.envs.dimensions import Dimension, dimensions_of, lookup_of, nearest_offered
from megopt.errors import ConfigError, MegoptError
from megopt.schemes.action_table import ActionTable

KINDS = ("discrete", "multi_discrete", "box")
MAX_COMBINATIONS = 200_000
"""Most combinations of knob values that a lookup is built for."""


class ActionError(MegoptError, InvalidAction, ValueError):
    """Raised when an action is no number, out of range, or names a masked row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionMap:
    """Turns actions of one kind into rows.

    Attributes:
        kind: one of `KINDS`.
        space: action space of one environment.
        is_clipped: whether an action out of range is moved to the nearest legal one; else it is refused. NaN always is.
        num_rows: rows of the table.
        dimensions: the knob space; empty for "discrete".
        lookup: row of each combination, shape (product of the dimensions' sizes,).
        nearest: offered row nearest to each row, shape (num_rows,).
    """

    kind: str
    space: spaces.Space[object]
    is_clipped: bool
    num_rows: int
    dimensions: tuple[Dimension, ...]
    lookup: IntArray
    nearest: IntArray

    @classmethod
    def of(cls, table: ActionTable, is_offered: BoolArray, kind: str, bad_actions: str) -> ActionMap:
        """Return the map of `kind` for the rows that are offered.

        Args:
            table: the rows.
            is_offered: rows that may be named, shape (num_rows,).
            kind: one of `KINDS`.
            bad_actions: "raise" or "clip".

        Raises:
            ConfigError: for another word, or more than `MAX_COMBINATIONS` combinations.
        """
        if kind not in KINDS or bad_actions not in ("raise", "clip"):
            expected = f"one of {', '.join(KINDS)}, and raise or clip"
            message = f"environment: actions is {kind!r} and bad_actions {bad_actions!r}; expected {expected}"
            raise ConfigError(message)
        dimensions = dimensions_of(table)
        sizes = [len(dimension.values) for dimension in dimensions]
        num_combinations = np.prod(sizes, dtype=float) if sizes else 0.0
        if kind != "discrete" and not 1 <= num_combinations <= MAX_COMBINATIONS:
            message = (
                f"environment: actions={kind} on knobs with {sizes} values; expected 1 to {MAX_COMBINATIONS:,} "
                "combinations of at least one knob; offer fewer values, or actions=discrete"
            )
            raise ConfigError(message)
        lookup = lookup_of(dimensions, is_offered) if kind != "discrete" else np.zeros(0, dtype=np.int64)
        return cls(
            kind=kind,
            space=_space(kind, len(table), sizes),
            is_clipped=bad_actions == "clip",
            num_rows=len(table),
            dimensions=() if kind == "discrete" else dimensions,
            lookup=lookup,
            nearest=nearest_offered(dimensions, is_offered),
        )

    def rows(self, actions: object, num_envs: int) -> IntArray:
        """Return the rows that `actions` name, shape (num_envs,), newly allocated.

        Args:
            actions: one action per environment, shape (num_envs,) or (num_envs, m).
            num_envs: how many environments there are.

        Raises:
            ActionError: naming the first environment whose action cannot be taken.
        """
        came = np.asarray(actions)
        expected = (num_envs, len(self.dimensions)) if self.dimensions else (num_envs,)
        if came.shape != expected:
            message = f"actions have shape {came.shape}; expected {expected}, one {self._words()} per environment"
            raise ActionError(message)
        if self.kind == "box":
            return self._of_points(came)
        indices = self._checked(came, self._sizes())
        if self.kind == "discrete":
            return indices
        flat = np.ravel_multi_index(tuple(indices.T), tuple(self._sizes()))
        return np.asarray(self.lookup[flat], dtype=np.int64)

    def _sizes(self) -> list[int]:
        return [len(dimension.values) for dimension in self.dimensions] or [self.num_rows]

    def _checked(self, came: np.ndarray, sizes: list[int]) -> IntArray:
        """Return whole numbers within their sizes, a copy."""
        if came.dtype.kind not in "iu":
            self._refuse(came, np.ones(came.shape, dtype=bool))
        last = np.asarray(sizes if came.ndim > 1 else sizes[0]) - 1
        if came.min(initial=0) < 0 or np.any(came.max(axis=0, initial=0) > last):
            if not self.is_clipped:
                self._refuse(came, (came < 0) | (came > last))
            return np.asarray(np.clip(came, 0, last), dtype=np.int64)
        return came.astype(np.int64)

    def _of_points(self, came: np.ndarray) -> IntArray:
        """Return the rows nearest to points of [-1, 1]^m."""
        if came.dtype.kind not in "fiu":
            self._refuse(came, np.ones(came.shape, dtype=bool))
        if not (came.min(initial=0.0) >= -1.0 and came.max(initial=0.0) <= 1.0):
            is_bad = np.isnan(came) if self.is_clipped else ~((came >= -1.0) & (came <= 1.0))
            if np.any(is_bad):
                self._refuse(came, is_bad)
        flat = np.zeros(len(came), dtype=np.int64)
        for column, dimension in zip(came.T, self.dimensions, strict=True):
            middles = 0.5 * (dimension.coordinates[1:] + dimension.coordinates[:-1])
            flat = flat * len(dimension.values) + np.searchsorted(middles, column)
        return self.lookup.take(flat)

    def _refuse(self, came: np.ndarray, is_bad: BoolArray) -> None:
        """Raise for the first environment with a bad action."""
        env = int(np.flatnonzero(is_bad.reshape(len(came), -1).any(axis=1))[0])
        message = (
            f"action of environment {env} is {came[env]!s} ({came.dtype}); expected {self._words()}; "
            f"{remedy(came[env])}"
        )
        raise ActionError(message)

    def _words(self) -> str:
        if self.kind == "discrete":
            return f"a whole number from 0 to {self.num_rows - 1}: a row"
        names = ", ".join(f"{dimension.name} ({len(dimension.values)})" for dimension in self.dimensions)
        what = "numbers from -1 to 1" if self.kind == "box" else "whole numbers below the sizes"
        return f"{what}: {names}"

    def check_legal(self, rows: IntArray, is_legal: BoolArray, first_env: int = 0) -> IntArray:
        """Return `rows`, or legal ones in their place where bad actions are clipped.

        Args:
            rows: rows of the table, shape (num_envs,).
            is_legal: rows that may be chosen, shape (num_envs, num_rows).
            first_env: index of the first of these environments, for the message.

        Raises:
            ActionError: naming the first environment whose row is masked, unless bad actions are clipped.
        """
        envs = np.arange(len(rows))
        is_bad = ~is_legal[envs, rows]
        if not np.any(is_bad):
            return rows
        if self.is_clipped:
            near = np.where(is_legal[envs, self.nearest[rows]], self.nearest[rows], np.argmax(is_legal, axis=1))
            return np.where(is_bad, near, rows)
        env = int(np.argmax(is_bad))
        message = (
            f"action of environment {env + first_env} is row {rows[env]}, which is masked: its objective or a cost is "
            'not known, or its payload meets a dead link; choose by info["action_mask"], or make the environment with '
            'bad_actions="clip"'
        )
        raise ActionError(message)


def remedy(came: np.ndarray) -> str:
    """Return what to do about a bad action; NaN is never clipped."""
    if np.issubdtype(came.dtype, np.floating) and not np.isfinite(came).all():
        return "look for the NaN or infinity in the policy that sent it"
    return 'send one from action_space, or make the environment with bad_actions="clip"'


def _space(kind: str, num_rows: int, sizes: list[int]) -> spaces.Space[object]:
    if kind == "discrete":
        return spaces.Discrete(num_rows)
    if kind == "multi_discrete":
        return spaces.MultiDiscrete(sizes)
    return spaces.Box(-1.0, 1.0, (len(sizes),), dtype=np.float32)
