"""Settings and comparisons that the tests of megopt/Request-v0 and megopt/Cell-v0 share."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from megopt.envs import scenarios
from megopt.envs.arrivals import Poisson
from megopt.envs.cell import CellVectorEnv
from megopt.envs.cell_dynamics import CellParams
from megopt.envs.clockwork import Clockwork
from megopt.envs.row_view import RowView
from megopt.envs.shell import VectorShell
from megopt.problem import Problem
from megopt.schemes.conventional import Conventional
from megopt.schemes.step_split import StepSplit
from megopt.system.channel import GaussMarkov
from megopt.system.link import Link
from megopt.tables.profile import Profile, load_profile
from tests.plain_tables import limits_of

PHONE = "a100__snapdragon8gen3__sdxl"
KINDS = ("discrete", "multi_discrete", "box")
INF = float("inf")


@cache
def loaded(name: str) -> Profile:
    """Return a profile, read once."""
    return load_profile(name)


def radio_settings(latency_s: float) -> dict[str, Any]:
    """Settings with uplink, radio energy and memory in time, and a limit on the latency [s]."""
    return {
        "profile": loaded(PHONE),
        "schemes": [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,))],
        "channel": GaussMarkov(snr_db=5.0, correlation=0.8),
        "link": Link(bandwidth_hz=2e6, round_trip_s=0.02, device_rx_power_w=0.9, device_tx_power_w=2.0,
                     edge_tx_power_w=4.7, uplink_snr_offset_db=-3.0),
        "problem": Problem(objective="energy_j", limits=limits_of(latency_s=latency_s, device_energy_j=30.0)),
    }  # fmt: skip


def request_settings() -> dict[str, Any]:
    """Settings of Request-v0 in which everything happens: also pipelining, a battery and a deadline."""
    return radio_settings(6.0) | {"is_pipelined": True, "battery_j": 400.0, "deadline_s": 10.0}


def cell_settings(num_devices: int = 5) -> dict[str, Any]:
    """Settings of Cell-v0 in which everything happens: also batches, a shared band, losses and a deadline."""
    return radio_settings(60.0) | {
        "num_devices": num_devices,
        "slot_s": 4.0,
        "arrivals": Poisson(requests_per_s=np.linspace(0.05, 0.3, num_devices).tolist()),
        "allocation": "optimal",
        "capacity": 3,
        "max_batch": 2,
        "episode_length": 90,
        "deadline_s": 100.0,
    }


@cache
def default_cell() -> CellParams:
    """Return the parameters of the default cell, compiled once."""
    return scenarios.cell(profile=loaded(scenarios.DEFAULT_CELL_PROFILE))


def make_cell(num_envs: int, **settings: Any) -> CellVectorEnv:
    """Return cells of these settings; without any, the default ones, and profiles read once."""
    if not settings:
        settings["params"] = default_cell()
    if not {"params", "scenario"} & set(settings):
        settings.setdefault("profile", loaded(scenarios.DEFAULT_CELL_PROFILE))
    return CellVectorEnv(num_envs, **settings)


def random_rows(env: CellVectorEnv, num_steps: int, seed: int = 0) -> np.ndarray:
    """Return a row for each device in each step, shape (num_steps, num_envs, num_devices)."""
    shape = (num_steps, env.num_envs, env.params.num_devices)
    return np.random.default_rng(seed).integers(0, len(env.params.table), shape)


def assert_checkers_pass(env_id: str, *all_settings: dict[str, Any]) -> None:
    """Ask Gymnasium's and stable-baselines3's checkers, which must not even warn."""
    env_checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for settings in all_settings:
            env = gym.make(env_id, render_mode="rgb_array", **settings)
            check_env(env.unwrapped)
            env_checker.check_env(env.unwrapped)
    assert not [str(w.message) for w in caught]


def trajectory(env: VectorShell[Any, Any], seed: int, actions: np.ndarray) -> np.ndarray:
    """Return observations and rewards under `actions` (num_steps, ...), (num_steps, num_envs, num_fields + 1)."""
    env.reset(seed=seed)
    return np.stack([np.column_stack(env.step(row)[:2]) for row in actions])


class OneRow:
    """A generator that draws for all rows of a vector environment and hands on what one of them gets."""

    def __init__(self, rng: np.random.Generator, num_envs: int, env: int) -> None:
        self._rng, self._num_envs, self._env = rng, num_envs, env

    def _own(self, drawn: np.ndarray) -> np.ndarray:
        own = len(drawn) // self._num_envs
        return drawn[self._env * own : (self._env + 1) * own]

    def standard_normal(self, size: int | tuple[int, ...]) -> np.ndarray:
        shape = (size,) if isinstance(size, int) else size
        return self._own(self._rng.standard_normal((self._num_envs * shape[0], *shape[1:])))

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        return self._own(self._rng.uniform(low, high, self._num_envs * size))

    def random(self, size: int) -> np.ndarray:
        return self._own(self._rng.random(self._num_envs * size))

    def poisson(self, mean: Any, size: tuple[int, int]) -> np.ndarray:
        return self._own(self._rng.poisson(mean, (self._num_envs * size[0], size[1])))


class Rows:
    """As many scalar environments as a vector environment has rows, each fed with the draws of its row."""

    def __init__(self, vector: VectorShell[Any, Any], row_type: type[RowView[Any]], patch: pytest.MonkeyPatch) -> None:
        self._num_envs, self._patch, self._plain = vector.num_envs, patch, Clockwork._generator
        self._scalars = [row_type(params=vector.params) for _ in range(vector.num_envs)]

    def row(self, env: int) -> RowView[Any]:
        """Return a scalar environment; from here on all draws are those of its row."""
        plain, num_envs = self._plain, self._num_envs
        self._patch.setattr(Clockwork, "_generator", lambda works, *key: OneRow(plain(works, *key), num_envs, env))
        return self._scalars[env]

    def leave(self) -> None:
        """Let all draws be as they are."""
        self._patch.setattr(Clockwork, "_generator", self._plain)


def compare_vector_with_scalars(
    vector: VectorShell[Any, Any], row_type: type[RowView[Any]], num_steps: int, patch: pytest.MonkeyPatch
) -> int:
    """Step a vector and as many scalars on the same draws, ask for equal bits, return how many episodes ended."""
    rows, num_ended = Rows(vector, row_type, patch), 0
    vector.action_space.seed(0)
    observation, _ = vector.reset(seed=11)
    for env in range(vector.num_envs):
        np.testing.assert_array_equal(rows.row(env).reset(seed=11)[0], observation[env])
    for _ in range(num_steps):
        rows.leave()
        actions = vector.action_space.sample()
        stepped = vector.step(actions)
        num_ended += sum(_is_same(rows.row(env), actions[env], stepped, env) for env in range(vector.num_envs))
    return num_ended


def _is_same(scalar: RowView[Any], action: Any, stepped: tuple[Any, ...], env: int) -> bool:
    """Step one row, compare it with that of the vector, reset it where its episode ended; return whether it did."""
    observation, rewards, terminated, truncated, info = stepped
    seen, gained, is_terminated, is_truncated, row = scalar.step(action)
    assert (gained, is_terminated, is_truncated) == (rewards[env], terminated[env], truncated[env])
    for name in set(row) - {"action_mask", "final"}:
        np.testing.assert_array_equal(row[name], info[name][env], err_msg=name)
    if is_terminated or is_truncated:
        np.testing.assert_array_equal(seen, info["final_obs"][env])
        for name, value in row["final"].items():
            np.testing.assert_array_equal(value, info["final_info"]["final"][name][env], err_msg=name)
        seen, _ = scalar.reset()
    np.testing.assert_array_equal(seen, observation[env])
    return is_terminated or is_truncated
