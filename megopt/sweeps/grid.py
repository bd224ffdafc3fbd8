"""The runs of a sweep: the product of its axes, each run with its own resolved and checked configuration.

The axes are a tree of the same shape as the configuration, with a list of values at each leaf:

    axes:
      profile: [a100__snapdragon8gen3__sdxl, bundled]   # choices of a group
      channel:
        choice: [rayleigh, static]                      # the same for a group whose keys are axes as well
        snr_db: [0, 10, 20]                             # values of a key
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megopt.configuration import group_names
from megopt.errors import ConfigError
from megopt.sweeps.run import Run, function_at, json_text

CONTROL = (
    *("axes", "name", "call", "launcher", "results", "redo", "output"),
    *("space", "objectives", "limits", "sampler", "num_trials", "batch", "storage"),
)
"""Keys that say how a sweep or a search is carried out; they are no part of a run's configuration."""
MAX_RUNS = 100_000
"""Runs of one sweep; more would be as many files."""
Compose = Callable[[Sequence[str]], DictConfig]
"""From overrides of groups to the composed configuration."""


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


def runs_of(
    config: DictConfig,
    axes: Sequence[Axis],
    compose: Compose,
    *,
    name: str,
    call: str,
    choices: Mapping[str, str] | None = None,
) -> list[Run]:
    """Return the runs of a sweep, the last axis varying fastest.

    Args:
        config: the configuration of the verb.
        axes: the axes.
        compose: composes the configuration for given choices of groups.
        name: name of the sweep.
        call: dotted path of the library call.
        choices: the yaml that `config` has of each group.

    Raises:
        ConfigError: if an axis names a key that the configuration does not have, there is no such call, or there are
            more than MAX_RUNS runs.
    """
    num_runs = 1
    for axis in axes:
        num_runs *= len(axis.values)
    if num_runs > MAX_RUNS:
        message = f"axes: {num_runs:,} runs; expected at most {MAX_RUNS:,}; take out values or an axis"
        raise ConfigError(message)
    planner = Planner(config=config, compose=compose, name=name, call=call, choices=choices or {})
    points = itertools.product(*(axis.values for axis in axes))
    return [planner.run_at(list(zip(axes, point, strict=True))) for point in points]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Makes runs from points; the same keys have to be set in all of them.

    Attributes:
        config: the configuration of the verb.
        compose: composes the configuration for given choices of groups.
        name: name of the sweep.
        call: dotted path of the library call.
        tree: key of the configuration under which the dimensions stand, for messages.
        choices: the yaml that `config` has of each group.
        composed: what was composed already, by the choices of groups.
    """

    config: DictConfig
    compose: Compose
    name: str
    call: str
    tree: str = "axes"
    choices: Mapping[str, str] = field(default_factory=dict)
    composed: dict[tuple[str, ...], DictConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        function_at(self.call)

    def config_of_all(self) -> dict[str, Any]:
        """Return the configuration without what the sweep itself is, as plain data."""
        return _resolved(_composed(self.config, (), self.compose), {}, self.tree)

    def run_at(self, point: Sequence[tuple[Dimension, Any]]) -> Run:
        """Return the run of a value for each dimension.

        Raises:
            ConfigError: if a dimension names a key that the configuration does not have.
        """
        overrides = [f"{dimension.key}={_choice(value)}" for dimension, value in point]
        groups = tuple(text for text, (dimension, _) in zip(overrides, point, strict=True) if dimension.is_group)
        if groups not in self.composed:
            self.composed[groups] = _composed(self.config, groups, self.compose)
        settings = {dimension.key: value for dimension, value in point if not dimension.is_group}
        config = _resolved(self.composed[groups], settings, self.tree)
        chosen = dict(self.choices) | {
            dimension.key: _choice(value) for dimension, value in point if dimension.is_group
        }
        choices = {group: text for group, text in chosen.items() if group in group_names() and group not in CONTROL}
        return Run.of(sweep=self.name, call=self.call, overrides=overrides, config=config, choices=choices)


def _choice(value: object) -> str:
    """Return a value in Hydra's grammar of overrides."""
    return f"[{','.join(_choice(item) for item in value)}]" if isinstance(value, list) else str(value)


def _composed(config: DictConfig, groups: Sequence[str], compose: Compose) -> DictConfig:
    composed = compose(groups) if groups else config.copy()
    OmegaConf.set_struct(composed, False)
    for key in (*CONTROL, "hydra"):
        composed.pop(key, None)
    OmegaConf.set_struct(composed, True)
    return composed


def _resolved(config: DictConfig, settings: Mapping[str, Any], tree: str) -> dict[str, Any]:
    """Return the configuration with the settings of one run, as plain data. Every run sets the same keys."""
    for key, value in settings.items():
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException:
            raise ConfigError(_unknown(key, config, tree)) from None
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _unknown(key: str, config: DictConfig, tree: str) -> str:
    whole = OmegaConf.to_container(config, resolve=False)
    assert isinstance(whole, dict)
    known = [name for name, _ in leaves(whole)]
    near = difflib.get_close_matches(key, known, n=1)
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    beside = sorted(str(name) for name in (parent if isinstance(parent, DictConfig) else whole) if str(name)[0] != "_")
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"{tree}.{key}: the configuration has no key {key!r}{guess}; expected one of {', '.join(beside)}"
