"""Speed of `megopt/Cell-v0` in device decisions a second, against a floor in plain numpy.

How it is timed: `megopt.benchmarks.episodes`.
"""

from __future__ import annotations

import numpy as np

from megopt.arrays import IntArray
from megopt.benchmarks import episodes
from megopt.benchmarks.episodes import NUM_DECKS, decks, episode_seconds, gathered_columns
from megopt.envs import scenarios
from megopt.envs.arrivals import Poisson
from megopt.envs.cell import CellVectorEnv
from megopt.envs.cell_dynamics import CellParams


def run(
    num_devices: int = 64,
    num_envs: int = 256,
    requests_per_slot: float = 1.0,
    episode_length: int = 32,
    repeats: int = 7,
    allocation: str = "optimal",
    seed: int = 0,
) -> dict[str, float]:
    """Return decisions a second and the share of the floor, for the default cell with random rows.

    - cell.decisions_per_s: rows named for devices a second, one per device and slot, resets included.
    - cell.share_of_floor: as fast as the floor would be 1. The floor draws per device two normal numbers and their
      power, the Poisson arrivals, one log2, one sort within the cell and a gather from each table column that the
      environment reads, in plain numpy on whole arrays.
    - cell.requests_per_s: of the decisions, those of a device that had a request; the others change nothing.
    - cell.steps_per_s: steps of the vector environment a second.

    Args:
        num_devices: devices per cell [1].
        num_envs: cells in parallel [1].
        requests_per_slot: mean arrivals per device and slot [1].
        episode_length: slots of the timed episode [1].
        repeats: the best of so many episodes counts, step by step [1].
        allocation: how the band is shared.
        seed: seed of environment and actions.
    """
    params = scenarios.cell(
        num_devices=num_devices,
        slot_s=1.0,
        arrivals=Poisson(requests_per_s=requests_per_slot),
        allocation=allocation,
        episode_length=episode_length,
    )
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    env = CellVectorEnv(num_envs, params=params)
    env.reset(seed=seed)
    rows = decks(rng, len(params.table), (num_envs, num_devices))
    decided: list[int] = []

    def step_env(step: int) -> None:
        decided.append(int(env.step(rows[step % NUM_DECKS])[4]["num_requests"].sum()))

    env_s, floor_s = episode_seconds(
        [step_env, lambda step: floor_step(rng, params, rows[step % NUM_DECKS], requests_per_slot)],
        episode_length,
        repeats,
    )
    num_decisions = num_envs * num_devices * episode_length
    return {
        "cell.decisions_per_s": num_decisions / env_s,
        "cell.floor_decisions_per_s": num_decisions / floor_s,
        "cell.share_of_floor": floor_s / env_s,
        "cell.requests_per_s": float(np.mean(decided)) * episode_length / env_s,
        "cell.steps_per_s": episode_length / env_s,
        "cell.num_envs": float(num_envs),
        "cell.num_devices": float(num_devices),
    }


def floor_step(rng: np.random.Generator, params: CellParams, rows: IntArray, requests_per_slot: float) -> None:
    """Draw fading and arrivals, take one log2, sort each cell, gather the columns: the least that a step does."""
    columns = [*gathered_columns(params), params.table.work.edge_s, params.table.work.device_s]
    episodes.floor_step(rng, columns, rows)
    rng.poisson(requests_per_slot, rows.shape)
    np.argsort(params.edge_rank[rows], axis=1, kind="stable")
