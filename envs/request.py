"""megopt/Request-v0: one device, one request per step.

The waiting request meets a channel; the agent names a row of the action table; the outcome is evaluated, the channel
moves on, and the next request waits. `RequestVectorEnv` is the implementation, for any number of devices that share
nothing; `RequestEnv` is its view on one row.

Action space, chosen by `actions`; see `megopt.envs.actions`:

| actions | space | meaning |
|---|---|---|
| "discrete" | Discrete(num_rows) | row of the action table |
| "multi_discrete" | MultiDiscrete([...]) | index of a value of each knob |
| "box" | Box(-1, 1, (m,), float32) | nearest value of each knob |

Observation space, Box(-1, 1, (6,), float32):

| # | field | unit | range | scaling |
|---|---|---|---|---|
| 0 | SNR of the waiting request | dB | -30 to 50, ended there | linear onto -1 to 1 |
| 1 | airtime of the previous payload | s | 0 to inf | x / (x + latency scale) |
| 2 | latency of the previous request | s | 0 to inf | x / (x + latency scale) |
| 3 | energy of the previous request | J | 0 to inf | x / (x + energy scale); 0 where no energy was measured |
| 4 | energy left in the battery | 1 | 0 to 1 | share of the capacity; 1 on mains |
| 5 | requests of the episode so far | 1 | 0 to 1 | share of the episode's length |

The scales are the limits of the problem; without one, the median row at 10 dB. Field 3 is the energy of edge and
device, or of the device alone where the edge's was not measured.

Reward: `megopt.problem.reward`, the objective with its sign turned. Costs: `info["costs"]`, one column per limit, from
`megopt.problem.costs`; `info["cost"]` is the sum of `megopt.problem.violations`.

Start: a new device at a new place, nothing before it, a full battery. End: truncated after `episode_length` requests,
terminated when the battery is used up. `info["final"]` then holds an `EpisodeReport` as a dictionary.

Info: costs, cost, row, action_mask (1 for rows that the next request may take, as `Discrete.sample` reads it), is_late
with a deadline, and at the end of an episode final; from the vector environment also final_obs and final_info.

Versions: v0, first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import rendering
from megopt.envs.actions import ActionMap
from megopt.envs.devices import Devices, Ended
from megopt.envs.dynamics import FIELDS, EnvParams, legal_rows
from megopt.envs.scenarios import params_of
from megopt.errors import ConfigError
from megopt.problem import evaluate
from megopt.ranges import require_within
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome

Observations = NDArray[np.float32]
Info = dict[str, Any]


class RequestVectorEnv(VectorEnv[Observations, Any, NDArray[Any]]):
    """`num_envs` devices, each with one request per step; see the module for spaces, reward, costs and info.

    What a row meets depends on the seed, its index and its own actions; no neighbour's reset changes it.
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        params: EnvParams | None = None,
        scenario: str = "request",
        actions: str = "discrete",
        bad_actions: str = "raise",
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **settings: Any,
    ) -> None:
        """Build spaces and tables; nothing is drawn before `reset`.

        Args:
            num_envs: devices.
            params: all parameters; in place of `scenario` and its settings.
            scenario: a name of `megopt.envs.scenarios.SCENARIOS`: "request" or "meg_cvpo".
            actions: "discrete", "multi_discrete" or "box".
            bad_actions: "raise", or "clip" to move actions out of range and masked rows to the nearest legal ones.
            render_mode: "rgb_array" or None.
            autoreset_mode: SAME_STEP, or DISABLED to be reset by hand.
            **settings: keywords of the scenario's function: profile, schemes, channel, link, problem, ...

        Raises:
            ConfigError: for a word or a number that is not one of these.
        """
        require_within("environment", 1, 1e9, num_envs=num_envs)
        self._check_words(params, settings, render_mode, AutoresetMode(autoreset_mode))
        self.params = params or params_of(scenario, settings)
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": AutoresetMode(autoreset_mode)}  # type: ignore[misc]
        self.actions = ActionMap.of(self.params.table, self.params.is_offered, actions, bad_actions)
        self.single_observation_space = spaces.Box(-1.0, 1.0, (len(FIELDS),), dtype=np.float32)
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._always = np.broadcast_to(True, self.num_envs)
        self._is_all_offered = bool(np.all(self.params.is_offered))
        self._devices: Devices | None = None
        self._rows: IntArray = np.zeros(self.num_envs, dtype=np.int64)
        self._history: deque[rendering.Moment] = deque(maxlen=rendering.MOMENTS)

    @staticmethod
    def _check_words(
        params: EnvParams | None, settings: Info, render_mode: str | None, autoreset_mode: AutoresetMode
    ) -> None:
        if params is not None and settings:
            message = f"environment: params and {', '.join(settings)} are given; expected one or the other"
            raise ConfigError(message)
        if render_mode not in (None, "rgb_array"):
            message = f"environment: render_mode is {render_mode!r}; expected rgb_array or None"
            raise ConfigError(message)
        if autoreset_mode == AutoresetMode.NEXT_STEP:
            message = "environment: autoreset_mode is NextStep; expected SameStep or Disabled"
            raise ConfigError(message)

    @property
    def _is_autoreset(self) -> bool:
        return bool(self.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observations, Info]:
        """Begin new episodes; with a seed, all randomness begins anew as well.

        Args:
            seed: seed of everything that is drawn.
            options: {"reset_mask": shape (num_envs,), bool} resets these rows only.

        Returns:
            Observations, shape (num_envs, 6), and info with the action mask.
        """
        super().reset(seed=seed)
        if seed is not None or self._devices is None:
            self._devices = Devices(self.params, self.num_envs, int(self.np_random.integers(2**63)))
        else:
            self._devices.reset(self._reset_mask(options))
        self._history.clear()
        return self._devices.observe(), self._info({})

    def _reset_mask(self, options: Info | None) -> BoolArray:
        mask = np.asarray((options or {}).get("reset_mask", self._always))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            came = f"reset_mask has shape {mask.shape} and type {mask.dtype}"
            message = f"reset: {came}; expected ({self.num_envs},) and bool; leave it out to reset all rows"
            raise ConfigError(message)
        return mask

    def step(self, actions: Any) -> tuple[Observations, FloatArray, BoolArray, BoolArray, Info]:
        """Decide the waiting requests.

        Args:
            actions: one per environment, as `action_space` has them.

        Returns:
            Observations (num_envs, 6), rewards, terminations, truncations, each (num_envs,), and info.

        Raises:
            ActionError: naming the first environment whose action cannot be taken.
            ResetNeeded: before the first reset, or after the end of an episode where autoreset is disabled.
        """
        devices = self._ready()
        self._rows = rows = self._legal(self.actions.rows(actions, self.num_envs), devices)
        rows.flags.writeable = False
        step = devices.step(rows, is_autoreset=self._is_autoreset)
        if self.render_mode is not None:
            self._history.append(rendering.Moment.of(self.outcome(), devices.decided.link.snr, step.costs))
        columns = {"costs": step.costs, "cost": step.cost, "row": rows}
        info = self._info(columns if step.is_late is None else columns | {"is_late": step.is_late})
        if step.ended is not None:
            info |= self._final_info(step.ended, step.is_done, info)
        return step.observation, step.reward, step.is_terminated, step.is_truncated, info

    def _ready(self) -> Devices:
        """Return the devices, all of them in an episode."""
        if self._devices is None:
            message = "step before reset; call reset first"
            raise ResetNeeded(message)
        if not self._is_autoreset and np.any(self._devices.is_over):
            env = int(np.argmax(self._devices.is_over))
            message = f"step after the end of an episode in environment {env}; call reset first"
            raise ResetNeeded(message)
        return self._devices

    def _legal(self, rows: IntArray, devices: Devices) -> IntArray:
        """Return `rows` after the check against masked rows and dead links."""
        if self._is_all_offered and not self.params.can_die:
            return rows
        return self.actions.check_legal(rows, legal_rows(self.params, devices.state.link))

    def _info(self, columns: Info) -> Info:
        """Return info with the action mask, and for each key the mask that Gymnasium's wrappers read."""
        columns = columns | {"action_mask": self.action_masks().view(np.int8)}
        return columns | {f"_{name}": self._always for name in columns}

    def _final_info(self, ended: Ended, is_done: BoolArray, info: Info) -> Info:
        """Return final, and where rows are reset in the same step also final_obs and final_info."""
        final = {field.name: getattr(ended.report, field.name) for field in fields(ended.report)}
        report: Info = {"final": final, "_final": is_done}
        if not self._is_autoreset:
            return report
        kept = {name: info[name] for name in info if "action_mask" not in name}
        return report | {
            "final_obs": ended.observation,
            "_final_obs": is_done,
            "final_info": {**kept, **report},
            "_final_info": is_done,
        }

    def action_masks(self) -> BoolArray:
        """Return which rows the waiting requests may take, shape (num_envs, num_rows); a read-only view where equal."""
        return legal_rows(self.params, self.link_state())

    def link_state(self) -> LinkState:
        """Return the link that the waiting requests meet, fields of shape (num_envs,); what a policy acts on."""
        return self._known().state.link

    def outcome(self) -> Outcome:
        """Return all that the latest requests cost and gave, evaluated on demand; fields of shape (num_envs,)."""
        devices = self._known()
        result = evaluate(self.params.table, self._rows, devices.decided.link, self.params.problem.metric)
        return replace(result, latency_s=devices.latest_latency_s)

    def _known(self) -> Devices:
        if self._devices is None:
            message = "no devices before reset; call reset first"
            raise ResetNeeded(message)
        return self._devices

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one RGB frame per environment, shape (height, width, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(rendering.frame(self.params, list(self._history), env) for env in range(self.num_envs))


class RequestEnv(gym.Env[Observations, Any]):
    """One row of a `RequestVectorEnv`; see the module for spaces, reward, costs and info."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        """Build the row; keywords are those of `RequestVectorEnv`, without num_envs and autoreset_mode."""
        self.vector = RequestVectorEnv(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **settings)
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
        """Decide the waiting request; see `RequestVectorEnv.step`."""
        observation, reward, is_terminated, is_truncated, info = self.vector.step(np.asarray(action)[np.newaxis])
        return observation[0], float(reward[0]), bool(is_terminated[0]), bool(is_truncated[0]), _row_of(info)

    def action_masks(self) -> BoolArray:
        """Return which rows the waiting request may take, shape (num_rows,)."""
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
