"""Devices of a cell as the rows of a learner: one agent for all of them, each seeing itself and what it shares.

A learner of whole cells has one action entry per device, of which few matter in a slot. Here every device is a row of
its own with the same policy, as devices are alike. It sees, all within [-1, 1],

    its own five fields | edge busy, band busy, progress | share of the other devices with a waiting request

and is told the reward and the costs of its own request, which wait for the requests of the others; 0 without one. With
n = 1 or 0 requests in the slot and r a slot's mean number per device, costs are told as

    cost + (r - n) limit      whose mean per slot is at most r limit where the mean per request is at most limit
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from megopt.arrays import BoolArray, FloatArray
from megopt.envs.cell import CellVectorEnv
from megopt.envs.cell_dynamics import CELL_FIELDS, DEVICE_FIELDS
from megopt.envs.cell_parameters import CellParams
from megopt.envs.sb3 import RequestVecEnv, RowInfos
from megopt.errors import ConfigError
from megopt.problem import ceilings, costs, reward

_WAITING = DEVICE_FIELDS.index("num_waiting")
_RATE_SLOTS = 4096
"""Slots of arrivals behind the mean number of requests."""


def requests_per_slot(params: CellParams) -> float:
    """Return the mean number of requests that come to a device in a slot [1]."""
    slots = np.arange(_RATE_SLOTS) % params.episode_length
    counts = params.arrivals.counts(np.random.default_rng(0), slots, params.num_devices, params.slot_s)
    return max(float(np.mean(counts)), 1e-6)


def views(observations: NDArray[np.float32], num_devices: int) -> NDArray[np.float32]:
    """Return what each device sees of its cell, shape (num_cells x num_devices, 9).

    Args:
        observations: of the cells, shape (num_cells, 5 num_devices + 3), as `megopt.envs.cell` lays them out.
        num_devices: devices per cell.
    """
    cells = len(observations)
    own = observations[:, : -len(CELL_FIELDS)].reshape(cells, len(DEVICE_FIELDS), num_devices).transpose(0, 2, 1)
    shared = np.repeat(observations[:, np.newaxis, -len(CELL_FIELDS) :], num_devices, axis=1)
    waits = (own[:, :, _WAITING] > 0.0).astype(np.float32)
    others = (waits.sum(axis=1, keepdims=True) - waits) / max(num_devices - 1, 1)
    return np.concatenate([own, shared, others[:, :, np.newaxis]], axis=2).reshape(cells * num_devices, -1)


def joined_actions(actions: NDArray[Any], env: CellVectorEnv) -> NDArray[Any]:
    """Return the joint action of each cell from one action per device; with chosen shares, equal ones."""
    joint = np.asarray(actions).reshape(env.num_envs, -1)
    if not env.actions.has_weights:
        return joint
    return np.concatenate([joint, np.zeros((env.num_envs, env.params.num_devices), dtype=joint.dtype)], axis=1)


def device_masks(cells: CellVectorEnv) -> BoolArray:
    """Return which rows each device may name next, shape (num_cells x num_devices, num_rows).

    Raises:
        ConfigError: where an action of a device is no row.
    """
    space, params = cells.actions.of_device.space, cells.params
    if not isinstance(space, spaces.Discrete):
        message = f"cell: action masks with actions {space}; expected rows; set actions to discrete, or leave masks out"
        raise ConfigError(message)
    legal = cells.action_masks().reshape(cells.num_envs * params.num_devices, -1)
    return _masks(legal, cells.has_request().ravel(), params.is_offered)


def _masks(is_legal: BoolArray, has_request: BoolArray, is_offered: BoolArray) -> BoolArray:
    """Return the legal rows of devices with a request; of others, whose choice changes nothing, the first offered one.

    A learner then knows where there is something to decide, and spends its trust region on those states.
    """
    first = np.arange(len(is_offered)) == np.argmax(is_offered)
    return np.where(has_request[:, np.newaxis], is_legal, first)


class DeviceVecEnv(RequestVecEnv):
    """A `CellVectorEnv` as stable-baselines3 expects it, one row per device; see the module.

    Attributes:
        costs: cost per limit of the latest step as told, shape (num_envs, num_limits).
        limits: limit of each, per slot.
    """

    def __init__(self, vector: CellVectorEnv) -> None:
        """Take a vector environment of cells that resets its rows in the same step."""
        super().__init__(vector=vector)
        self.cells = vector
        num_devices = vector.params.num_devices
        self.num_envs = vector.num_envs * num_devices
        self.action_space = vector.actions.of_device.space
        self.observation_space = spaces.Box(-1.0, 1.0, (len(DEVICE_FIELDS) + len(CELL_FIELDS) + 1,), np.float32)
        self._per_request = ceilings(vector.params.problem)
        self._rate = requests_per_slot(vector.params)
        self.limits: FloatArray = self._rate * self._per_request
        self._seeds = [None] * self.num_envs
        self._options = [{} for _ in range(self.num_envs)]
        self.reset_infos = [{} for _ in range(self.num_envs)]

    def reset(self) -> NDArray[np.float32]:
        """Begin new episodes in all cells; shape (num_envs, 9)."""
        return views(super().reset(), self.cells.params.num_devices)

    def action_masks(self) -> BoolArray:
        """Return which rows each device may name next, shape (num_envs, num_rows); see `device_masks`.

        Raises:
            ConfigError: where an action is no row.
        """
        return device_masks(self.cells)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the cells once and return each index's row of the answer."""
        if method_name == "action_masks":
            return list(self.action_masks()[self._rows(indices)])
        return super().env_method(method_name, *method_args, indices=indices, **kwargs)

    def step_wait(self) -> VecEnvStepReturn:
        """Decide the waiting requests; returns observations, rewards (float32), dones and infos, row by row."""
        vector, num_devices = self.cells, self.cells.params.num_devices
        assert self._actions is not None
        observation, _, _, is_cut, info = vector.step(joined_actions(self._actions, vector))
        outcome, problem = vector.outcome(), vector.params.problem
        is_decided = ~np.isnan(outcome.latency_s).ravel()
        gained = np.where(is_decided, reward(outcome, problem).ravel(), 0.0)
        cost = np.where(is_decided[:, np.newaxis], costs(outcome, problem).reshape(self.num_envs, -1), 0.0)
        self.costs = cost + (self._rate - is_decided[:, np.newaxis]) * self._per_request
        is_done = np.repeat(is_cut, num_devices)
        told: dict[str, Any] = {"costs": self.costs}
        if "final" in info:
            last = views(info["final_obs"], num_devices)
            told |= {"final": {}, "_final": is_done, "final_obs": last}
            offered = vector.params.is_offered  # what the link would have been like is not known
            told["final_mask"] = _masks(offered, last[:, _WAITING] > 0.0, offered)
        infos = RowInfos(self.num_envs, told, is_done)
        return views(observation, num_devices), gained.astype(np.float32), is_done, cast("list[Any]", infos)


def learning_cells(params: CellParams, num_envs: int, actions: str, bad_actions: str) -> DeviceVecEnv:
    """Return the environment of a learner with `num_envs` devices, in as many cells as they fill.

    Raises:
        ConfigError: if they fill no whole number of cells.
    """
    num_cells, rest = divmod(num_envs, params.num_devices)
    if rest or not num_cells:
        message = (
            f"train: num_envs is {num_envs} for cells of {params.num_devices} devices; expected a multiple of "
            f"{params.num_devices}; change algorithm.<name>.num_envs"
        )
        raise ConfigError(message)
    return DeviceVecEnv(CellVectorEnv(num_cells, params=params, actions=actions, bad_actions=bad_actions))
