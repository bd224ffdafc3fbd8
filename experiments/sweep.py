"""`megopt sweep`: a grid of runs of one library call, on this machine or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.fading_traces import sample_link
from megopt.analysis.report import Report
from megopt.analysis.tradeoff import tradeoff
from megopt.errors import ConfigError, NotOfferedError
from megopt.experiments.tradeoff import problem_of
from megopt.sweeps import sweep_report as say
from megopt.sweeps.axes import axes_of, require_apart
from megopt.sweeps.chosen_knobs import with_knobs
from megopt.sweeps.compiled_table import compiled
from megopt.sweeps.execution import execute
from megopt.sweeps.grid import runs_of
from megopt.sweeps.run import Run
from megopt.sweeps.store import Store, require_sweep_name

if TYPE_CHECKING:
    import pandas as pd


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of a sweep; the records go to the dataset."""
    runs, store = planned_runs(config), Store(folder=Path(config.results))
    launcher = instantiate(config.launcher, _convert_="all")
    if not isinstance(config.redo, bool):
        message = f"redo = {config.redo!r}; expected true or false"
        raise ConfigError(message)
    with say.progress(len(runs), 0 if config.redo else len(store.done(runs))) as bar:
        done = execute(runs, store, launcher, bar.note, redo=config.redo)
    return say.report(done, store)


def planned_runs(config: DictConfig) -> list[Run]:
    """Return the runs of a sweep."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.RUN:
        message = "megopt sweep is a multirun already: name the values in axes, such as axes.channel.snr_db=[0,10]"
        raise ConfigError(message)
    axes, task = axes_of(config.axes), list(settings.overrides.task)
    require_apart(axes, task)
    return runs_of(
        config,
        axes,
        lambda groups: hydra.compose("sweep", overrides=[*task, *groups]),
        name=require_sweep_name(config.name),
        call=config.call,
        choices=settings.runtime.choices,
    )


def tradeoff_point(config: DictConfig) -> pd.DataFrame:
    """Return the records of the policies of a configuration on its fading traces, under its limits."""
    profile, table, left_out = compiled(config)
    problem, sweep = problem_of(config.problem, profile, table)
    policies = instantiate(config.policy)
    for name in [name for name, factory in policies.items() if factory.keywords.get("scheme") in left_out]:
        message = f"policy {name}: profile {profile.name} does not carry its scheme"
        raise NotOfferedError(message)
    return with_knobs(tradeoff(table, sample_link(config), problem, sweep, policies, config.num_traces).records, table)
