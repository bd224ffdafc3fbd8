"""What a search may choose: a tree of the shape of the configuration, with a range or a list of choices at each leaf.

space:
  policy: [optimal, step_split]        # choices, of a group or of a key, as in the axes of a sweep
  num_steps: [[8], [12], [25]]         # a choice may itself be a list
  limit: {low: 0.1, high: 3.0, log: true}   # a range of numbers; of whole numbers where both ends are whole
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from omegaconf import DictConfig, OmegaConf

from megopt.errors import ConfigError
from megopt.sweeps.axes import Axis, axis_of, leaves, require_of_a_run
from megopt.sweeps.run import json_text

if TYPE_CHECKING:
    from optuna.trial import Trial

RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        key: key of the configuration with dots.
        low: smallest value; with two whole ends only whole numbers are chosen.
        high: largest value.
        log: whether small values are looked at as closely as large ones.
        step: distance between values; None for all of them.

    Raises:
        ConfigError: if there is nothing to choose, or `log` comes with low <= 0 or a step.
    """

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        numbers: Sequence[object] = [self.low, self.high] + ([] if self.step is None else [self.step])
        if any(isinstance(x, bool) or not isinstance(x, int | float) or not math.isfinite(x) for x in numbers):
            self._refuse("expected finite numbers")
        if not self.low < self.high:
            self._refuse("expected low < high; to keep a value fixed, set the key itself")
        if self.log not in (True, False):
            self._refuse("expected log true or false")
        if self.log and (self.low <= 0 or self.step is not None):
            self._refuse("log: true needs low > 0 and no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            self._refuse("expected a step from above 0 to high - low")

    @property
    def is_group(self) -> bool:
        """A range is never of a group."""
        return False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are chosen."""
        return all(isinstance(x, int) for x in (self.low, self.high, 1 if self.step is None else self.step))

    def _refuse(self, why: str) -> None:
        message = (
            f"space.{self.key} is {{low: {self.low}, high: {self.high}, log: {self.log}, step: {self.step}}}; {why}"
        )
        raise ConfigError(message)


Searched: TypeAlias = Axis | Range


def space_of(node: DictConfig) -> list[Searched]:
    """Return the dimensions of the tree `space`, in its order.

    Raises:
        ConfigError: if it is empty, or a leaf is neither a range nor a list of distinct choices.
    """
    tree = OmegaConf.to_container(node, resolve=True)
    if not isinstance(tree, dict) or not tree:
        message = f"space is {tree!r}; expected keys with ranges or choices, such as +space.seed=[0,1]"
        raise ConfigError(message)
    return [_searched(key, leaf) for key, leaf in leaves(tree, is_leaf=_is_range)]


def _is_range(node: Mapping[Any, Any]) -> bool:
    return "low" in node or "high" in node


def _searched(key: str, leaf: object) -> Searched:
    if isinstance(leaf, list):
        return axis_of(key, leaf, "space")
    if not isinstance(leaf, dict):
        message = f"space.{key} is {leaf!r}; expected choices, space.{key}=[{leaf}], or a range, {{low: 0, high: 1}}"
        raise ConfigError(message)
    strange, missing = sorted(set(leaf) - set(RANGE_KEYS)), [name for name in ("low", "high") if name not in leaf]
    if strange or missing:
        found = f"has {strange[0]}" if strange else f"lacks {missing[0]}"
        message = f"space.{key} {found}; expected low and high, and optionally log and step"
        raise ConfigError(message)
    require_of_a_run(key, "space")
    return Range(key=key, **leaf)


def point_of(space: Sequence[Searched], trial: Trial) -> list[tuple[Searched, Any]]:
    """Return the value that a trial has for each dimension; what it has no value for is chosen now."""
    return [(one, _chosen(one, trial)) for one in space]


def _chosen(one: Searched, trial: Trial) -> Any:
    if isinstance(one, Axis):
        by_word = {_word(value): value for value in one.values}
        return by_word[trial.suggest_categorical(one.key, list(by_word))]
    if one.is_whole:
        step = 1 if one.step is None else int(one.step)
        return trial.suggest_int(one.key, int(one.low), int(one.high), log=one.log, step=step)
    return trial.suggest_float(one.key, one.low, one.high, log=one.log, step=one.step)


def _word(value: Any) -> Any:
    """Return a choice as Optuna can store it: lists as JSON."""
    return json_text(value) if isinstance(value, list | dict) else value


def described(space: Sequence[Searched]) -> dict[str, Any]:
    """Return the space as plain data, to tell two searches apart."""
    return {
        one.key: list(one.values) if isinstance(one, Axis) else [one.low, one.high, one.log, one.step] for one in space
    }
