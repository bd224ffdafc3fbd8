"""stable-baselines3 on the native vector environment: one step of all rows at once, no environment per row.

    from megopt.envs.sb3 import RequestVecEnv
    model = stable_baselines3.PPO("MlpPolicy", RequestVecEnv(num_envs=64))

stable-baselines3 wants one info dictionary per row; `RowInfos` makes one when it is asked for. Learners that read costs
take `RequestVecEnv.costs`, an array, and need none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvStepReturn

from megopt.arrays import FloatArray
from megopt.envs.request import RequestVectorEnv
from megopt.envs.shell import VectorShell
from megopt.errors import ConfigError

Info = dict[str, Any]
_COLUMNS = ("costs", "cost", "row", "is_late", "num_requests", "num_lost", "num_late")
"""Keys of info that each row's dictionary has, where the environment gives them."""


class RowInfos(Sequence[Info]):
    """The infos of one step as a sequence of dictionaries, each made at first use and kept."""

    def __init__(self, num_envs: int, info: Info, is_timeout: NDArray[np.bool_]) -> None:
        self._num_envs = num_envs
        self._info = info
        self._is_timeout = is_timeout
        self._made: dict[int, Info] = {}

    def __len__(self) -> int:
        return self._num_envs

    @overload
    def __getitem__(self, index: int) -> Info: ...
    @overload
    def __getitem__(self, index: slice) -> list[Info]: ...
    def __getitem__(self, index: int | slice) -> Info | list[Info]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._num_envs))]
        row = range(self._num_envs)[index]
        if row not in self._made:
            self._made[row] = self._make(row)
        return self._made[row]

    def __iter__(self) -> Iterator[Info]:
        return (self[row] for row in range(self._num_envs))

    def _make(self, row: int) -> Info:
        info = self._info
        made: Info = {"TimeLimit.truncated": bool(self._is_timeout[row])}
        made |= {name: info[name][row] for name in _COLUMNS if name in info}
        if "final" in info and info["_final"][row]:
            made["terminal_observation"] = info["final_obs"][row]
            if "final_mask" in info:
                made["action_mask"] = info["final_mask"][row]
            made["final"] = {name: values[row] for name, values in info["final"].items()}
        return made


class RequestVecEnv(VecEnv):
    """A `RequestVectorEnv`, or a vector environment of cells, as stable-baselines3 expects it.

    Attributes:
        vector: the native vector environment.
        costs: cost per limit of the latest step, shape (num_envs, num_limits).
    """

    def __init__(self, num_envs: int = 1, *, vector: VectorShell[Any, Any] | None = None, **settings: Any) -> None:
        """Build the native vector environment, or take one that resets its rows in the same step.

        Args:
            num_envs: devices.
            vector: a vector environment, in place of `num_envs` and settings.
            **settings: keywords of `RequestVectorEnv`.
        """
        if vector is not None and (settings or not isinstance(vector, VectorShell)):
            message = (
                f"RequestVecEnv: vector {type(vector).__name__} with settings {', '.join(settings) or 'none'}; "
                "expected a vector environment of megopt alone; give the settings where it is made"
            )
            raise ConfigError(message)
        self.vector: VectorShell[Any, Any] = vector or RequestVectorEnv(num_envs, **settings)
        mode = self.vector.metadata["autoreset_mode"]
        if mode != AutoresetMode.SAME_STEP:
            message = f"RequestVecEnv: autoreset_mode {mode.value}; stable-baselines3 wants rows reset in the same step"
            raise ConfigError(message)
        self.costs: FloatArray = np.zeros((self.vector.num_envs, len(self.vector.params.problem.limits)))
        self._actions: NDArray[Any] | None = None
        super().__init__(self.vector.num_envs, self.vector.single_observation_space, self.vector.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Begin new episodes in all rows, from the seed that `seed` set, if any; shape (num_envs, num_fields)."""
        observation, _ = self.vector.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = cast("list[Info]", [{}] * self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Decide the waiting requests; returns observations, rewards (float32), dones and infos."""
        observation, reward, is_terminated, is_truncated, info = self.vector.step(self._actions)
        self.costs = info["costs"]
        infos = RowInfos(self.num_envs, info, is_truncated & ~is_terminated)
        is_done = is_terminated | is_truncated
        return observation, reward.astype(np.float32), is_done, cast("list[Info]", infos)

    def close(self) -> None:
        """Close the vector environment."""
        self.vector.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return one frame per row; None without a render mode."""
        return self.vector.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the vector environment, once per index."""
        return [getattr(self.vector, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the vector environment, for all rows."""
        setattr(self.vector, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the vector environment once and return each index's row of the answer."""
        answer = getattr(self.vector, method_name)(*method_args, **kwargs)
        is_by_row = isinstance(answer, np.ndarray | tuple) and len(answer) == self.num_envs
        return [answer[row] if is_by_row else answer for row in self._rows(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False: no row is wrapped."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return [int(row) for row in self._get_indices(indices)]
