"""The runs of a sweep: the product of its axes, each run with its own resolved and checked configuration."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from megopt.configuration import group_names
from megopt.errors import ConfigError
from megopt.sweeps.axes import CONTROL, Axis, Dimension, leaves
from megopt.sweeps.run import Run, function_at

MAX_RUNS = 100_000
"""Runs of one sweep; more would be as many files."""
Compose = Callable[[Sequence[str]], DictConfig]
"""From overrides of groups to the composed configuration."""


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
