"""The environments in which agents learn and everything is judged: single devices, or cells of devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, IntArray
from megopt.envs.cell import CellVectorEnv
from megopt.envs.cell_parameters import CellParams
from megopt.envs.parameters import EnvParams
from megopt.envs.request import RequestVectorEnv
from megopt.envs.shell import VectorShell
from megopt.policies.base import Observation, Policy
from megopt.problem import ceilings
from megopt.rl import agents
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState

AnyVector = VectorShell[Any, Any]


def vector_of(params: EnvParams, num_envs: int, actions: str, bad_actions: str, *, is_autoreset: bool) -> AnyVector:
    """Return the vector environment of some parameters.

    Args:
        params: of a device or a cell.
        num_envs: devices or cells side by side.
        actions: kind of actions, see `megopt.envs.actions`.
        bad_actions: what becomes of rows that may not be taken: "clip" or "raise".
        is_autoreset: whether an episode that ends begins anew in the same step.
    """
    kind: Any = CellVectorEnv if isinstance(params, CellParams) else RequestVectorEnv
    mode = "SameStep" if is_autoreset else "Disabled"
    vector: AnyVector = kind(num_envs, params=params, actions=actions, bad_actions=bad_actions, autoreset_mode=mode)
    return vector


def learning_env(params: EnvParams, num_envs: int, actions: str, bad_actions: str) -> tuple[Any, list[float]]:
    """Return the environment of stable-baselines3 with `num_envs` devices, and the limits of its costs per step."""
    if isinstance(params, CellParams):
        from megopt.analysis.cell_devices import learning_cells

        cells = learning_cells(params, num_envs, actions, bad_actions)
        return cells, [float(limit) for limit in cells.limits]
    from megopt.envs.sb3 import RequestVecEnv

    vector = vector_of(params, num_envs, actions, bad_actions, is_autoreset=True)
    return RequestVecEnv(vector=vector), [float(limit) for limit in ceilings(params.problem)]


def agent_actions(
    agent: Any, observations: NDArray[np.float32], env: AnyVector, rng: np.random.Generator, *, is_sampled: bool
) -> NDArray[Any]:
    """Return what an agent does in each environment; in cells it acts for every device by itself.

    One that was trained with masks is told them here, too.
    """
    is_masked = agents.asks_for_masks(agent)
    if not isinstance(env, CellVectorEnv):
        masks = env.action_masks() if is_masked else None
        return agents.actions_of(agent, observations, rng, is_sampled=is_sampled, masks=masks)
    from megopt.analysis.cell_devices import device_masks, joined_actions, views

    seen, masks = views(observations, env.params.num_devices), device_masks(env) if is_masked else None
    return joined_actions(agents.actions_of(agent, seen, rng, is_sampled=is_sampled, masks=masks), env)


def chosen_actions(policy: Policy, env: AnyVector) -> NDArray[Any]:
    """Return what a policy does about the waiting requests, as the actions "discrete".

    A policy with a memory meets the first request of all episodes, then the second; in cells only those that wait.
    """
    link = env.link_state()
    if not isinstance(env, CellVectorEnv):
        assert isinstance(env, RequestVectorEnv)
        return policy.act(Observation(link=link, previous_airtime_s=env.previous_airtime_s()))
    waiting = np.flatnonzero(env.has_request())
    rows: IntArray = np.full(len(link.snr), int(np.argmax(env.params.is_offered)), dtype=np.int64)
    if len(waiting):
        rows[waiting] = policy.act(Observation(link=link.take(waiting)))
    by_cell = rows.reshape(env.num_envs, -1)
    entries = np.zeros((env.num_envs, by_cell.shape[1] * env.actions.has_weights), dtype=np.int64)
    return np.concatenate([by_cell, entries], axis=1)


def recorded_fading(params: EnvParams, num_episodes: int, seed: int) -> list[LinkState]:
    """Return the link of request 0, 1, ... of the episodes of `seed`, fields of shape (num_episodes,) each.

    Of cells one state that holds all requests: when a request is decided depends on arrivals alone.
    """
    env = vector_of(params, num_episodes, "discrete", "raise", is_autoreset=False)
    env.reset(seed=seed)
    any_rows = np.broadcast_to(
        int(np.argmax(params.is_offered)), (num_episodes, *(env.single_action_space.shape or ()))
    ).copy()
    if isinstance(env, CellVectorEnv) and env.actions.has_weights:
        any_rows[:, env.params.num_devices :] = 0
    links = []
    for _ in range(params.episode_length):
        link = env.link_state()
        links.append(link.take(np.flatnonzero(env.has_request())) if isinstance(env, CellVectorEnv) else link)
        env.step(any_rows)
    return [_joined(links)] if isinstance(env, CellVectorEnv) else links


def _joined(links: list[LinkState]) -> LinkState:
    return replace(
        links[0],
        snr=np.concatenate([link.snr for link in links]),
        downlink_s_per_bit=np.concatenate([link.downlink_s_per_bit for link in links]),
        uplink_s_per_bit=np.concatenate([link.uplink_s_per_bit for link in links]),
    )


def bounded_table(params: EnvParams) -> ActionTable:
    """Return the offered rows at the least that they can cost: in cells alone, with the energy of the best batch."""
    table = params.table.take(np.flatnonzero(params.is_offered))
    if not isinstance(params, CellParams):
        return table
    share = float(np.min(params.curve.energy_share[1:]))
    return replace(table, work=replace(table.work, edge_energy_j=table.work.edge_energy_j * share))


def hides_edge_time(params: EnvParams) -> bool:
    """Return whether a request can hide edge time behind the request before it."""
    return params.is_pipelined and not isinstance(params, CellParams)


def weights_of(final: dict[str, Any]) -> FloatArray:
    """Return how much each episode counts in means per request, shape (num_episodes,)."""
    return np.asarray(final["num_requests"], dtype=np.float64)
