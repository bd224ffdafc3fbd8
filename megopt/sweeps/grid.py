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
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megopt.configuration import group_names
from megopt.errors import ConfigError
from megopt.sweeps.run import Run, function_at, json_text

CONTROL = ("axes", "name", "call", "launcher", "results", "redo", "output")
"""Keys that say how a sweep is carried out; they are no part of a run's configuration."""
MAX_RUNS = 100_000
"""Runs of one sweep; more would be as many files."""
Compose = Callable[[Sequence[str]], DictConfig]
"""From overrides of groups to the composed configuration."""


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
    return [_axis(key, values) for key, values in _leaves(tree)]


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, node in tree.items():
        key = f"{prefix}{name}"
        yield from _leaves(node, f"{key}.") if isinstance(node, dict) else [(key, node)]


def _axis(key: str, values: object) -> Axis:
    if not isinstance(values, list):
        message = f"axes.{key} is {values!r}; expected a list of values, such as axes.{key}=[{values}]"
        raise ConfigError(message)
    if key.split(".")[0] in (*CONTROL, "experiment", "hydra"):
        message = f"axes.{key}: {key.split('.')[0]} belongs to the sweep as a whole; set it outside of axes"
        raise ConfigError(message)
    group = key.removesuffix(".choice")
    is_group = group in group_names()
    return Axis(key=group if is_group else key, values=values, is_group=is_group)


def require_apart(axes: Sequence[Axis], overrides: Sequence[str]) -> None:
    """Raise if a key is set and is an axis as well.

    Raises:
        ConfigError: naming the first such key.
    """
    keys = {override.lstrip("+~").split("=")[0] for override in overrides}
    for axis in axes:
        if axis.key in keys:
            message = (
                f"{axis.key} is set and is an axis of the sweep as well; narrow the axis, axes.{axis.key}=[...], "
                f"or take it out, ~axes.{axis.key}"
            )
            raise ConfigError(message)


def runs_of(config: DictConfig, axes: Sequence[Axis], compose: Compose, *, name: str, call: str) -> list[Run]:
    """Return the runs of a sweep, the last axis varying fastest.

    Args:
        config: the configuration of the verb.
        axes: the axes.
        compose: composes the configuration for given choices of groups.
        name: name of the sweep.
        call: dotted path of the library call.

    Raises:
        ConfigError: if an axis names a key that the configuration does not have, there is no such call, or there are
            more than MAX_RUNS runs.
    """
    function_at(call)
    groups = [axis for axis in axes if axis.is_group]
    keys = [axis for axis in axes if not axis.is_group]
    num_runs = 1
    for axis in axes:
        num_runs *= len(axis.values)
    if num_runs > MAX_RUNS:
        message = f"axes: {num_runs:,} runs; expected at most {MAX_RUNS:,}; take out values or an axis"
        raise ConfigError(message)
    composed = {choices: _composed(config, groups, choices, compose) for choices in _products(groups)}
    runs = []
    for point in itertools.product(*(axis.values for axis in axes)):
        values = dict(zip((axis.key + "=" * axis.is_group for axis in axes), point, strict=True))
        base = composed[tuple(_choice(values[f"{axis.key}="]) for axis in groups)]
        settings = {axis.key: values[axis.key] for axis in keys}
        overrides = [f"{key.rstrip('=')}={_choice(value)}" for key, value in values.items()]
        runs.append(Run.of(sweep=name, call=call, overrides=overrides, config=_resolved(base, settings)))
    return runs


def _products(groups: Sequence[Axis]) -> Iterator[tuple[str, ...]]:
    return itertools.product(*([_choice(value) for value in axis.values] for axis in groups))


def _choice(value: object) -> str:
    """Return a value in Hydra's grammar of overrides."""
    return f"[{','.join(_choice(item) for item in value)}]" if isinstance(value, list) else str(value)


def _composed(config: DictConfig, groups: Sequence[Axis], choices: Sequence[str], compose: Compose) -> DictConfig:
    overrides = [f"{axis.key}={choice}" for axis, choice in zip(groups, choices, strict=True)]
    composed = compose(overrides) if overrides else config.copy()
    OmegaConf.set_struct(composed, False)
    for key in (*CONTROL, "hydra"):
        composed.pop(key, None)
    OmegaConf.set_struct(composed, True)
    return composed


def _resolved(config: DictConfig, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the settings of one run, as plain data. Every run sets the same keys."""
    for key, value in settings.items():
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException:
            raise ConfigError(_unknown(key, config)) from None
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _unknown(key: str, config: DictConfig) -> str:
    tree = OmegaConf.to_container(config, resolve=False)
    assert isinstance(tree, dict)
    known = [name for name, _ in _leaves(tree)]
    near = difflib.get_close_matches(key, known, n=1)
    parent = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    beside = sorted(str(name) for name in (parent if isinstance(parent, DictConfig) else tree) if str(name)[0] != "_")
    guess = f" (did you mean {near[0]}?)" if near else ""
    return f"axes.{key}: the configuration has no key {key!r}{guess}; expected one of {', '.join(beside)}"
