"""`megopt search`: settings chosen by Optuna, for several objectives at once, on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from megopt.analysis.report import Report
from megopt.errors import ConfigError
from megopt.sweeps import search_report as say
from megopt.sweeps import sweep_report
from megopt.sweeps.axes import require_apart
from megopt.sweeps.grid import Planner
from megopt.sweeps.search import search
from megopt.sweeps.search_plan import Search
from megopt.sweeps.search_space import space_of
from megopt.sweeps.store import Store, require_sweep_name


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of a search; the records go to the dataset, the trials to the study."""
    plan, store = planned(config), Store(folder=Path(config.results))
    launcher = instantiate(config.launcher, _convert_="all")
    storage = config.storage or f"sqlite:///{store.folder}/studies.sqlite3"
    store.folder.mkdir(parents=True, exist_ok=True)
    with sweep_report.progress(plan.num_trials, 0, "search") as bar:
        found = search(plan, store, launcher, storage, bar.note, bar.reach)
    return say.report(found, plan, store, storage)


def planned(config: DictConfig) -> Search:
    """Return the search of a configuration."""
    settings = HydraConfig.get()
    if settings.mode != RunMode.RUN:
        message = "megopt search is no multirun: name what may be chosen in space, such as +space.seed=[0,1]"
        raise ConfigError(message)
    space, task = space_of(config.space), list(settings.overrides.task)
    require_apart(space, task, "space")
    name = require_sweep_name(config.name)
    return Search(
        planner=Planner(
            config=config,
            compose=lambda groups: hydra.compose("search", overrides=[*task, *groups]),
            name=name,
            call=config.call,
            tree="space",
            choices=settings.runtime.choices,
        ),
        space=space,
        objectives=_mapping("objectives", config.objectives),
        limits={key: bound for key, bound in _mapping("limits", config.limits).items() if bound is not None},
        sampler=config.sampler,
        num_trials=config.num_trials,
        batch=config.batch,
        seed=config.seed,
    )


def _mapping(name: str, node: object) -> Mapping[str, Any]:
    if not isinstance(node, DictConfig):
        message = f"{name} = {node!r}; expected a mapping, such as {name}.latency_s=..."
        raise ConfigError(message)
    return {str(key): value for key, value in OmegaConf.to_container(node, resolve=True).items()}  # type: ignore[union-attr]
