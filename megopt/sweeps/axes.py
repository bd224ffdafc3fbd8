"""The axes of a sweep: a tree of the same shape as the configuration, with a list of values at each leaf.

axes:
profile: [a100__snapdragon8gen3__sdxl, bundled]   # choices of a group
channel:
choice: [rayleigh, static]                      # the same for a group whose keys are axes as well
snr_db: [0, 10, 20]                             # values of a key
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf

from megopt.configuration import group_names
from megopt.errors import ConfigError
from megopt.sweeps.run import json_text

CONTROL = (
    *("axes", "name", "call", "launcher", "results", "redo", "output"),
    *("space", "objectives", "limits", "sampler", "num_trials", "batch", "storage"),
)
"""Keys that say how a sweep or a search is carried out; they are no part of a run's configuration."""


class Dimension(Protocol):
    """What is varied: a group, or a key of the configuration with dots."""

    @property
    def key(self) -> str:
        """The group or the key."""
        ...

    @property
    def is_group(self) -> bool:
        """Which of the two."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the grid.

    Attributes:
        key: a group, or a key of the configuration with dots.
        values: choices of the group, or values of the key.
        is_group: which of the two.
    """

    key: str
    values: Sequence[Any]
    is_group: bool

    def __post_init__(self) -> None:
        if not self.values:
            message = f"axes.{self.key} is []; expected at least one value; take an axis out with ~axes.{self.key}"
            raise ConfigError(message)
        texts = [json_text(value) for value in self.values]
        if len(set(texts)) < len(texts):
            message = f"axes.{self.key} names {max(texts, key=texts.count)} twice; expected distinct values"
            raise ConfigError(message)


def axes_of(node: DictConfig) -> list[Axis]:
    """Return the axes of the tree `axes`, in its order.

    Raises:
        ConfigError: if a leaf is no list, a list is empty or repeats a value, or an axis is a key of the sweep itself.
    """
    tree = OmegaConf.to_container(node, resolve=True)
    if not isinstance(tree, dict):
        message = f"axes is {tree!r}; expected keys of the configuration with lists of values"
        raise ConfigError(message)
    return [axis_of(key, values) for key, values in leaves(tree)]


def leaves(
    tree: Mapping[Any, Any], prefix: str = "", is_leaf: Callable[[Mapping[Any, Any]], bool] = lambda node: False
) -> Iterator[tuple[str, Any]]:
    """Return the leaves of a tree with their keys; mappings for which `is_leaf` holds are leaves as well."""
    for name, node in tree.items():
        key = f"{prefix}{name}"
        yield from leaves(node, f"{key}.", is_leaf) if isinstance(node, dict) and not is_leaf(node) else [(key, node)]


def axis_of(key: str, values: object, tree: str = "axes") -> Axis:
    """Return the axis of a leaf of `tree`.

    Raises:
        ConfigError: if it is no list, or a key of the sweep itself.
    """
    if not isinstance(values, list):
        message = f"{tree}.{key} is {values!r}; expected a list of values, such as {tree}.{key}=[{values}]"
        raise ConfigError(message)
    require_of_a_run(key, tree)
    group = key.removesuffix(".choice")
    is_group = group in group_names()
    return Axis(key=group if is_group else key, values=values, is_group=is_group)


def require_of_a_run(key: str, tree: str) -> None:
    """Raise if a leaf of `tree` is a key of the sweep or search itself, which no run can have its own of.

    Raises:
        ConfigError: naming the key.
    """
    if key.split(".")[0] in (*CONTROL, "experiment", "hydra"):
        message = f"{tree}.{key}: {key.split('.')[0]} belongs to the sweep as a whole; set it outside of {tree}"
        raise ConfigError(message)


def require_apart(axes: Sequence[Dimension], overrides: Sequence[str], tree: str = "axes") -> None:
    """Raise if a key is set and is an axis as well.

    Raises:
        ConfigError: naming the first such key.
    """
    keys = {override.lstrip("+~").split("=")[0] for override in overrides}
    for axis in axes:
        if axis.key in keys:
            message = (
                f"{axis.key} is set and is an axis of the sweep as well; narrow the axis, {tree}.{axis.key}=[...], "
                f"or take it out, ~{tree}.{axis.key}"
            )
            raise ConfigError(message)
