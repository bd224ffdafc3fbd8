"""The view on one row of a vector environment: what Gymnasium calls an environment."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from megopt.arrays import BoolArray
from megopt.envs.parameters import EnvParams
from megopt.envs.shell import Info, Observations, VectorShell
from megopt.errors import ConfigError

Vector = TypeVar("Vector", bound=VectorShell[Any, Any])


class RowView(gym.Env[Observations, Any], Generic[Vector]):
    """The view on the one row of a vector environment of one.

    Attributes:
        vector: the vector environment.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]
    vector_type: ClassVar[type[VectorShell[Any, Any]]]
    """The vector environment that a row is viewed of."""

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        """Build the row; keywords are those of `vector_type`, without num_envs and autoreset_mode.

        Raises:
            ConfigError: for one of these two, or as `vector_type` does.
        """
        of_many = sorted({"num_envs", "autoreset_mode"} & set(settings))
        if of_many:
            came = " and ".join(f"{name} = {settings[name]!r}" for name in of_many)
            message = f"environment: {came} for a single environment; expected no {' and no '.join(of_many)}; "
            message += "leave it out, or use gym.make_vec for several environments"
            raise ConfigError(message)
        one = self.vector_type(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **settings)
        self.vector: Vector = one  # type: ignore[assignment]  # a class variable cannot name the type parameter
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    @property
    def params(self) -> EnvParams:
        """What does not change while requests come."""
        return self.vector.params

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observations, Info]:
        """Begin a new episode; with a seed, all randomness begins anew as well."""
        super().reset(seed=seed)
        observation, info = self.vector.reset(seed=seed)
        return observation[0], _row_of(info)

    def step(self, action: Any) -> tuple[Observations, float, bool, bool, Info]:
        """Decide what waits; see `vector_type.step`."""
        observation, reward, is_terminated, is_truncated, info = self.vector.step(np.asarray(action)[np.newaxis])
        return observation[0], float(reward[0]), bool(is_terminated[0]), bool(is_truncated[0]), _row_of(info)

    def action_masks(self) -> BoolArray:
        """Return which rows may be taken next, `VectorShell.action_masks` of the one row."""
        return np.array(self.vector.action_masks()[0])

    def render(self) -> NDArray[np.uint8] | None:
        """Return an RGB frame, shape (height, width, 3); None without a render mode."""
        frames = self.vector.render()
        return None if frames is None else frames[0]


def _row_of(info: Info) -> Info:
    """Return the info of a vector of one without its masks, each value the caller's own."""
    row: Info = {}
    for name, value in info.items():
        if not name.startswith("_") and np.all(info.get(f"_{name}", True)):
            row[name] = _row_of(value) if isinstance(value, dict) else np.array(value[0])[()]
    return row
