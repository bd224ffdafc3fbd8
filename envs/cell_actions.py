"""From what an agent says about a whole cell to one row per device, and a weight each where the agent shares the band.

| kind | space | meaning |
|---|---|---|
| "discrete" | MultiDiscrete, num_rows per device | the row of each device |
| "multi_discrete" | MultiDiscrete, m entries per device | index of a value in each dimension of the knob space |
| "box" | Box(-1, 1), m entries per device | the nearest value in each dimension |
| "shared" | Discrete(num_rows) | one row for all devices that have a request |

The entries of device 0 come first, then those of device 1, and so on; see `megopt.envs.actions` for one device.
"shared" is for learners that know Discrete only, such as DQN: in a slot all devices do the same.

With the allocation "chosen", which "shared" cannot have, one more entry per device follows at the end, the weight of
its share of the band: one of the 8 indices of 1, 2, 4, ..., 128, or in a box the point of [-1, 1] that is laid on these
in logarithm. What is said for a device without a request changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from gymnasium import spaces

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.actions import KINDS, ActionError, ActionMap, remedy
from megopt.errors import ConfigError
from megopt.schemes.action_table import ActionTable

SHARED = "shared"
"""Kind of action in which one row is meant for all devices of a cell."""
NUM_WEIGHTS = 8
"""Weights that a share of the band can have: 1, 2, 4, ..., 128."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMap(ActionMap):
    """An `ActionMap` over the devices of all cells, whose messages name device and environment.

    Attributes:
        num_devices: devices per cell.
    """

    num_devices: int = 1

    def _named(self, flat: int) -> str:
        env, device = divmod(flat, self.num_devices)
        return f"action of device {device} in environment {env}"

    def _refuse(self, came: np.ndarray, is_bad: BoolArray) -> None:
        """Raise for the first device with a bad action."""
        flat = int(np.flatnonzero(is_bad.reshape(len(came), -1).any(axis=1))[0])
        message = (
            f"{self._named(flat)} is {came[flat]!s} ({came.dtype}); expected {self._words()}; {remedy(came[flat])}"
        )
        raise ActionError(message)

    def legal(self, rows: IntArray, is_legal: BoolArray, has_request: BoolArray) -> IntArray:
        """Return `rows`, or legal ones in their place where bad actions are clipped.

        Args:
            rows: rows of the table, shape (num_flat,).
            is_legal: rows that may be chosen, shape (num_flat, num_rows).
            has_request: devices whose row is read, shape (num_flat,).

        Raises:
            ActionError: naming the first device whose row is masked, unless bad actions are clipped.
        """
        is_bad = has_request & ~is_legal[np.arange(len(rows)), rows]
        if not np.any(is_bad):
            return rows
        if self.is_clipped:
            return self.check_legal(rows, is_legal)
        flat = int(np.argmax(is_bad))
        message = (
            f"{self._named(flat)} is row {rows[flat]}, which is masked: its objective or a cost is not known, or its "
            'payload meets a dead link; choose by info["action_mask"], or make the environment with bad_actions="clip"'
        )
        raise ActionError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellActions:
    """Turns joint actions of one kind into rows and weights.

    Attributes:
        of_device: the map of each device.
        has_weights: whether the agent shares the band.
        is_shared: whether one row is meant for all devices.
        space: action space of one environment.
    """

    of_device: DeviceMap
    has_weights: bool
    is_shared: bool
    space: spaces.Space[object]

    @classmethod
    def of(
        cls,
        table: ActionTable,
        is_offered: BoolArray,
        kind: str,
        bad_actions: str,
        *,
        num_devices: int,
        has_weights: bool,
    ) -> CellActions:
        """Return the map of `kind` for cells of `num_devices`; see `ActionMap.of`."""
        _check_kind(kind, has_weights)
        is_shared = kind == SHARED
        alone = DeviceMap.of(table, is_offered, "discrete" if is_shared else kind, bad_actions)
        assert isinstance(alone, DeviceMap)
        of_device = replace(alone, num_devices=num_devices)
        space = alone.space if is_shared else _joint_space(of_device, num_devices, has_weights)
        return cls(of_device=of_device, has_weights=has_weights, is_shared=is_shared, space=space)

    @property
    def num_devices(self) -> int:
        """Devices per cell."""
        return self.of_device.num_devices

    def rows(self, actions: object, num_envs: int) -> tuple[IntArray, FloatArray | None]:
        """Return the rows that `actions` name and the weights, each of shape (num_envs x num_devices,).

        Args:
            actions: one joint action per environment, shape (num_envs, entries), or (num_envs,) where it is shared.
            num_envs: how many environments there are.

        Raises:
            ActionError: naming the first device whose action cannot be taken.
        """
        if self.is_shared:
            return self._shared_rows(np.asarray(actions), num_envs), None
        came, per_device = np.asarray(actions), max(1, len(self.of_device.dimensions))
        entries = self.num_devices * per_device
        expected = (num_envs, entries + self.num_devices * self.has_weights)
        if came.shape != expected:
            message = (
                f"actions have shape {came.shape}; expected {expected}, one joint action per environment: {per_device} "
                f"entries for each of {self.num_devices} devices{' and their weights' if self.has_weights else ''}"
            )
            raise ActionError(message)
        of_devices = came[:, :entries].reshape(num_envs * self.num_devices, -1)
        if not self.of_device.dimensions:
            of_devices = of_devices[:, 0]
        rows = self.of_device.rows(of_devices, num_envs * self.num_devices)
        return rows, self._weights(came[:, entries:].ravel()) if self.has_weights else None

    def _shared_rows(self, came: np.ndarray, num_envs: int) -> IntArray:
        if came.shape != (num_envs,):
            message = f"actions have shape {came.shape}; expected ({num_envs},), one row per environment"
            raise ActionError(message)
        return self.of_device.rows(np.repeat(came, self.num_devices), num_envs * self.num_devices)

    def _weights(self, came: np.ndarray) -> FloatArray:
        """Return the weights [1] that indices or points of [-1, 1] stand for."""
        is_box, is_number = self.of_device.kind == "box", came.dtype.kind in "fiu"
        low, high = (-1.0, 1.0) if is_box else (0.0, NUM_WEIGHTS - 1.0)
        if not (is_number and np.all((came >= low) & (came <= high))):
            is_bad = ~((came >= low) & (came <= high)) if is_number else np.ones(came.shape, dtype=bool)
            if not is_number or not self.of_device.is_clipped or np.any(np.isnan(came)):
                flat = int(np.argmax(is_bad))
                message = (
                    f"{self.of_device._named(flat)} has the weight {came[flat]}; expected {low:g} to {high:g}; "
                    'send one from action_space, or make the environment with bad_actions="clip"'
                )
                raise ActionError(message)
        exponent = np.clip(came, low, high).astype(np.float64)
        return np.asarray(np.exp2((exponent + 1.0) * (NUM_WEIGHTS - 1) / 2.0 if is_box else exponent))


def _check_kind(kind: str, has_weights: bool) -> None:
    if kind not in (*KINDS, SHARED):
        message = f"environment: actions is {kind!r}; expected one of {', '.join((*KINDS, SHARED))}; change actions"
        raise ConfigError(message)
    if kind == SHARED and has_weights:
        message = (
            "environment: actions is 'shared' and allocation 'chosen', but one row says no weights; choose another "
            "allocation, or actions=discrete"
        )
        raise ConfigError(message)


def _joint_space(of_device: ActionMap, num_devices: int, has_weights: bool) -> spaces.Space[object]:
    if of_device.kind == "box":
        entries = num_devices * (len(of_device.dimensions) + has_weights)
        return spaces.Box(-1.0, 1.0, (entries,), dtype=np.float32)
    sizes = [len(dimension.values) for dimension in of_device.dimensions] or [of_device.num_rows]
    return spaces.MultiDiscrete(sizes * num_devices + [NUM_WEIGHTS] * num_devices * has_weights)
