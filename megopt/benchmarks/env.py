"""Speed of `megopt/Request-v0` against a floor in plain numpy and against Gymnasium's own vector environment.

Everything runs on one core. Environment and floor take turns, one episode each. For each step of the
episode the shortest time over the repeats counts, and these are summed: so the step that ends all episodes at once
and begins new ones is in, and what other programs on the machine take is mostly out.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.envs import scenarios
from megopt.envs.dynamics import EnvParams
from megopt.envs.request import RequestVectorEnv

_DECKS = 4
"""Random action arrays that the steps go through in turn."""


def run(
    num_envs: Sequence[int] = (1, 64, 4096, 65536),
    repeats: int = 7,
    num_memory_steps: int = 20_000,
    seed: int = 0,
) -> dict[str, float]:
    """Return speeds, shares of the floor and the growth of memory, for the default scenario with random rows.

    - request.<n>.steps_per_s: requests decided a second with n rows in parallel, resets included.
    - request.<n>.floor_steps_per_s: the same for the floor: per request two normal draws and their power, one log2, and
      a gather from each table column that the environment reads, in plain numpy on whole arrays.
    - request.<n>.share_of_floor: the ratio of the two; 1 would be as fast as the floor.
    - cartpole.steps_per_s: Gymnasium's native CartPole vector environment, `cartpole.num_envs` in parallel.
    - memory.growth_mb: growth of the process's resident size over `num_memory_steps` steps of 64 rows, after as many
      steps to warm up [MB].

    Args:
        num_envs: rows in parallel, one entry of the report each [1].
        repeats: the best of so many episodes counts, step by step [1].
        num_memory_steps: steps of the memory measurement [1].
        seed: seed of environment and actions.
    """
    params = scenarios.request()
    report: dict[str, float] = {}
    for count in num_envs:
        report |= _request(params, int(count), repeats, seed)
    largest = int(max(num_envs))
    report |= _cartpole(largest, repeats, params.episode_length, seed)
    report["memory.growth_mb"] = _memory_growth_mb(params, num_memory_steps, seed)
    report["memory.steps"] = float(num_memory_steps)
    return report


def _request(params: EnvParams, num_envs: int, repeats: int, seed: int) -> dict[str, float]:
    """Return speed, floor and their ratio for `num_envs` rows."""
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    env = RequestVectorEnv(num_envs, params=params)
    env.reset(seed=seed)
    decks = [rng.integers(0, len(params.table), num_envs) for _ in range(_DECKS)]
    columns = gathered_columns(params)
    env_s, floor_s = _episode_seconds(
        [
            lambda step: env.step(decks[step % _DECKS]),
            lambda step: floor_step(rng, columns, decks[step % _DECKS]),
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


def gathered_columns(params: EnvParams) -> list[FloatArray]:
    """Return the table columns that a step of the environment gathers, each of shape (num_rows,)."""
    terms = params.terms
    columns = [terms.downlink_bits, terms.uplink_bits, terms.quality]
    columns += [terms.edge_s] if params.is_pipelined else []
    for name in ("latency_s", "device_energy_j", "edge_energy_j", "energy_j"):
        cost = terms.costs[name]
        columns += [cost.constant] if name == "latency_s" else [cost.constant, cost.per_downlink, cost.per_uplink]
    return [column for column in columns if len(column) > 1]


def floor_step(rng: np.random.Generator, columns: list[FloatArray], rows: IntArray) -> None:
    """Draw the fading, take one log2 and gather the columns: the least that any such environment does."""
    scattered = rng.standard_normal((len(rows), 2))
    gain = scattered[:, 0] ** 2 + scattered[:, 1] ** 2
    np.log2(1.0 + 5.0 * gain)
    for column in columns:
        column[rows]


def _cartpole(num_envs: int, repeats: int, num_steps: int, seed: int) -> dict[str, float]:
    env = gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=seed)
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    decks = [rng.integers(0, 2, num_envs) for _ in range(_DECKS)]
    (seconds,) = _episode_seconds([lambda step: env.step(decks[step % _DECKS])], num_steps, max(1, repeats // 2))
    env.close()
    return {"cartpole.steps_per_s": num_envs * num_steps / seconds, "cartpole.num_envs": float(num_envs)}


def _episode_seconds(works: list[Callable[[int], object]], num_steps: int, repeats: int) -> list[float]:
    """Return for each work the sum over an episode's steps of the shortest time over the repeats [s].

    The works take turns, one episode each; a first episode is not counted.
    """
    least = np.full((len(works), num_steps), np.inf)
    for repeat in range(repeats + 1):
        for i, work in enumerate(works):
            for step in range(num_steps):
                start = time.perf_counter()
                work(step)
                if repeat:
                    least[i, step] = min(least[i, step], time.perf_counter() - start)
    return [float(total) for total in least.sum(axis=1)]


def _memory_growth_mb(params: EnvParams, num_steps: int, seed: int) -> float:
    """Return by how much the process grew in `num_steps` steps after as many to warm up [MB]."""
    env = RequestVectorEnv(64, params=params)
    env.reset(seed=seed)
    rows = np.random.default_rng(np.random.SeedSequence(seed)).integers(0, len(params.table), (_DECKS, 64))
    before = 0.0
    for step in range(2 * num_steps):
        if step == num_steps:
            before = _resident_mb()
        env.step(rows[step % _DECKS])
    return _resident_mb() - before


def _resident_mb() -> float:
    """Return the resident size of this process now; where the system does not tell, its largest size so far [MB]."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2.0**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
