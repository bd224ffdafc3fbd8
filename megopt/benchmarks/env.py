"""Speed of both environments against a floor in plain numpy and against Gymnasium's own vector environment.

How it is timed: `megopt.benchmarks.episodes`.
"""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from megopt.benchmarks import cell
from megopt.benchmarks.episodes import (
    NUM_DECKS,
    decks,
    episode_seconds,
    floor_step,
    gathered_columns,
    memory_growth_mb,
)
from megopt.envs import scenarios
from megopt.envs.cell import CellVectorEnv
from megopt.envs.dynamics import EnvParams
from megopt.envs.request import RequestVectorEnv
from megopt.envs.shell import VectorShell


def run(
    num_envs: Sequence[int] = (1, 64, 4096, 65536),
    repeats: int = 7,
    num_devices: int = 64,
    num_cells: int = 256,
    num_memory_steps: int = 100_000,
    seed: int = 0,
) -> dict[str, float]:
    """Return speeds, shares of the floor and the growth of memory, for the default scenarios with random rows.

    - request.<n>.steps_per_s: requests decided a second with n rows in parallel, resets included.
    - request.<n>.floor_steps_per_s: the same for the floor: per request two normal draws and their power, one log2, and
      a gather from each table column that the environment reads, in plain numpy on whole arrays.
    - request.<n>.share_of_floor: the ratio of the two; 1 would be as fast as the floor.
    - cell.decisions_per_s and the other keys of cell: those of `megopt benchmark what=cell` with `num_devices` devices
      in each of `num_cells` cells.
    - cartpole.steps_per_s: Gymnasium's native CartPole vector environment, `cartpole.num_envs` in parallel.
    - memory.request_growth_mb, memory.cell_growth_mb: growth of the process's resident size over `num_memory_steps`
      steps, `memory.steps`, after at most 20,000 steps to warm up [MB]; 4 rows of Request-v0, 1 cell of 4 devices.

    Args:
        num_envs: rows in parallel, one entry of the report each [1].
        repeats: the best of so many episodes counts, step by step [1].
        num_devices: devices per cell [1].
        num_cells: cells in parallel [1].
        num_memory_steps: steps of each memory measurement [1].
        seed: seed of environments and actions.
    """
    params = scenarios.request()
    report: dict[str, float] = {}
    for count in num_envs:
        report |= _request(params, int(count), repeats, seed)
    report |= cell.run(num_devices=num_devices, num_envs=num_cells, repeats=repeats, seed=seed)
    report |= _cartpole(int(max(num_envs)), repeats, params.episode_length, seed)
    return report | memory(num_memory_steps, seed)


def _request(params: EnvParams, num_envs: int, repeats: int, seed: int) -> dict[str, float]:
    """Return speed, floor and their ratio for `num_envs` rows."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    env = RequestVectorEnv(num_envs, params=params)
    env.reset(seed=seed)
    rows = decks(rng, len(params.table), (num_envs,))
    columns = gathered_columns(params)
    env_s, floor_s = episode_seconds(
        [
            lambda step: env.step(rows[step % NUM_DECKS]),
            lambda step: floor_step(rng, columns, rows[step % NUM_DECKS]),
        ],
        params.episode_length,
        repeats,
    )
    decided = num_envs * params.episode_length
    return {
        f"request.{num_envs}.steps_per_s": decided / env_s,
        f"request.{num_envs}.floor_steps_per_s": decided / floor_s,
        f"request.{num_envs}.share_of_floor": floor_s / env_s,
    }


def _cartpole(num_envs: int, repeats: int, num_steps: int, seed: int) -> dict[str, float]:
    env = gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=seed)
    pushes = decks(np.random.default_rng(np.random.SeedSequence(seed)), 2, (num_envs,))
    (seconds,) = episode_seconds([lambda step: env.step(pushes[step % NUM_DECKS])], num_steps, max(1, repeats // 2))
    env.close()
    return {"cartpole.steps_per_s": num_envs * num_steps / seconds, "cartpole.num_envs": float(num_envs)}


def memory(num_steps: int, seed: int = 0) -> dict[str, float]:
    """Return the growth of the process over `num_steps` steps of each environment; see `run` for the keys.

    Args:
        num_steps: steps of each environment [1].
        seed: seed of environments and actions.
    """
    request = RequestVectorEnv(4, params=scenarios.request())
    one_cell = CellVectorEnv(1, params=scenarios.cell(num_devices=4))
    return {
        "memory.request_growth_mb": _growth_mb(request, (4,), num_steps, seed),
        "memory.cell_growth_mb": _growth_mb(one_cell, (1, 4), num_steps, seed),
        "memory.steps": float(num_steps),
    }


def _growth_mb(env: VectorShell, shape: tuple[int, ...], num_steps: int, seed: int) -> float:  # type: ignore[type-arg]
    env.reset(seed=seed)
    rows = decks(np.random.default_rng(np.random.SeedSequence(seed)), len(env.params.table), shape)
    return memory_growth_mb(lambda step: env.step(rows[step % NUM_DECKS]), num_steps)
