"""A run of a cell: devices that decide alone share edge and band, and every request that is decided is a record."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis.rollout import records_of
from megopt.arrays import BoolArray, IntArray
from megopt.envs.cell import CellVectorEnv
from megopt.envs.cell_parameters import CellParams
from megopt.errors import ConfigError
from megopt.policies.base import Observation, Policy
from megopt.ranges import require_whole
from megopt.sweeps.chosen_knobs import with_knobs
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd


def cell_point(config: DictConfig) -> pd.DataFrame:
    """Return the records of the policies of a configuration in `megopt/Cell-v0`, `num_traces` cells side by side.

    Each cell runs for `scenario.episode_length` slots. Every device asks the policy with its own link alone in the
    band, as it would on its own; what it then meets is the cell's. A record's edge_s is the time of its batch, and
    latency_s holds the waiting as well.

    Raises:
        ConfigError: if the scenario is no cell, or its problem has no limit.
    """
    params = instantiate(config.scenario, _convert_="all")
    if not isinstance(params, CellParams) or not params.problem.limits:
        message = f"scenario {config.scenario._target_}: expected scenario=cell, with a limit in its problem"
        raise ConfigError(message)
    require_whole("cell", 1, num_traces=config.num_traces)
    require_whole("cell", 0, seed=config.seed)
    parts = [
        _rolled_out(name, factory(table=params.table, problem=params.problem), params, config.num_traces, config.seed)
        for name, factory in instantiate(config.policy).items()
    ]
    import pandas as pd

    return with_knobs(pd.concat(parts, ignore_index=True), params.table)


def _rolled_out(name: str, policy: Policy, params: CellParams, num_cells: int, seed: int) -> pd.DataFrame:
    import pandas as pd

    env = CellVectorEnv(num_cells, params=params, actions="discrete", bad_actions="clip", autoreset_mode="Disabled")
    env.reset(seed=seed)
    parts = []
    for _ in range(params.episode_length):
        link, is_decided = env.link_state(), env.has_request()
        rows = policy.act(Observation(link=link)).reshape(num_cells, params.num_devices)
        *_, info = env.step(rows)
        parts.append(_decided(name, params, info["row"], is_decided, link, env.outcome()))
    records = pd.concat(parts, ignore_index=True)
    records["request"] = np.arange(len(records))
    return records


def _decided(
    name: str, params: CellParams, rows: IntArray, is_decided: BoolArray, link: LinkState, outcome: Outcome
) -> pd.DataFrame:
    """Return the records of the requests of one slot; the trace of a request is its cell."""
    places = np.flatnonzero(is_decided)
    chosen, table = rows.ravel()[places], params.table
    found = Outcome(**{field.name: getattr(outcome, field.name).ravel()[places] for field in fields(Outcome)})
    names = {
        "profile": table.profile,
        "policy": name,
        "scheme": table.scheme[chosen],
        "label": table.label[chosen],
        "row": chosen,
        "kind": table.kind[chosen],
    }
    records = records_of(found, link.take(places), params.problem, params.problem.limits[0].quantity, names)
    return records.assign(trace=places // params.num_devices)
