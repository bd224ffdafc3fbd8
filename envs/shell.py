"""What the vector environments have in common under Gymnasium: spaces, resets, masks, reports of episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from megopt.arrays import BoolArray
from megopt.envs.actions import ActionMap
from megopt.envs.cell_actions import CellActions
from megopt.envs.clockwork import Clockwork, Ended
from megopt.envs.history import History, Moment
from megopt.envs.parameters import EnvParams
from megopt.envs.settings import Scenarios, params_of
from megopt.errors import ConfigError
from megopt.ranges import require_whole
from megopt.system.link import LinkState

Observations = NDArray[np.float32]
Info = dict[str, Any]
Works = TypeVar("Works", bound=Clockwork[Any])
Kind = TypeVar("Kind", bound=Moment)


class VectorShell(VectorEnv[Observations, Any, NDArray[Any]], ABC, Generic[Works, Kind]):
    """`num_envs` rows that share nothing around a `Clockwork`; the subclasses say what a row is.

    Attributes:
        params: what does not change while requests come.
        actions: from what an agent says to rows of the action table.
    """

    params: EnvParams
    actions: ActionMap | CellActions
    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    scenarios: ClassVar[Scenarios]
    """Scenarios that the environment knows by name; the first is the default."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        params: EnvParams | None = None,
        scenario: str | None = None,
        actions: str = "discrete",
        bad_actions: str = "raise",
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **settings: Any,
    ) -> None:
        """Build spaces and tables; nothing is drawn before `reset`.

        Args:
            num_envs: rows.
            params: all parameters; in place of `scenario` and its settings.
            scenario: a name of `scenarios`; None is the first.
            actions: "discrete", "multi_discrete" or "box"; in a cell also "shared".
            bad_actions: "raise", or "clip" to move actions out of range and masked rows to the nearest legal ones.
            render_mode: "rgb_array" or None.
            autoreset_mode: SAME_STEP, or DISABLED to be reset by hand.
            **settings: keywords of the scenario's function: profile, schemes, channel, link, problem, ...

        Raises:
            ConfigError: for a word or a number that is not one of these.
        """
        require_whole("environment", 1, num_envs=num_envs)
        mode = _autoreset_mode(autoreset_mode)
        _check_words(params, settings, render_mode)
        if params is None:
            params = params_of(next(iter(self.scenarios)) if scenario is None else scenario, settings, self.scenarios)
        self.params = params
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": mode}  # type: ignore[misc]
        self.actions, num_fields = self._spaces(actions, bad_actions)
        self.single_observation_space = spaces.Box(-1.0, 1.0, (num_fields,), dtype=np.float32)
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._always = np.broadcast_to(True, self.num_envs)
        self._is_all_legal = bool(np.all(self.params.is_offered)) and not self.params.can_die
        self._is_autoreset = mode == AutoresetMode.SAME_STEP
        self._works: Works | None = None
        self._history: History[Kind] = History(self.num_envs, len(self.params.problem.limits))

    @abstractmethod
    def _spaces(self, kind: str, bad_actions: str) -> tuple[ActionMap | CellActions, int]:
        """Return the map of actions, and how many fields an observation has."""

    @abstractmethod
    def _begin(self, seed: int) -> Works:
        """Return the clockwork from a seed on."""

    @abstractmethod
    def _frame(self, env: int) -> NDArray[np.uint8]:
        """Return the RGB frame of one environment, shape (height, width, 3)."""

    @abstractmethod
    def action_masks(self) -> BoolArray:
        """Return which rows may be taken next, True for those that may; the last axis is num_rows."""

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observations, Info]:
        """Begin new episodes; with a seed, all randomness begins anew as well.

        Args:
            seed: seed of everything that is drawn.
            options: {"reset_mask": shape (num_envs,), bool} resets these rows only.

        Returns:
            Observations, shape (num_envs, num_fields), and info with the action mask.

        Raises:
            ConfigError: for a mask of another shape or type, or one beside a seed that leaves rows out.
        """
        mask = self._reset_mask(options)
        if seed is not None and not mask.all():
            message = f"reset: seed {seed} with a reset_mask; a seed begins all rows anew; give one of the two"
            raise ConfigError(message)
        super().reset(seed=seed)
        if seed is not None or self._works is None:
            self._works = self._begin(int(self.np_random.integers(2**63)))
        else:
            self._works.reset(mask)
        self._history.begin(mask)
        return self._works.observe(), self._info({})

    def _reset_mask(self, options: Info | None) -> BoolArray:
        mask = np.asarray((options or {}).get("reset_mask", self._always))
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            came = f"reset_mask has shape {mask.shape} and type {mask.dtype}"
            message = f"reset: {came}; expected ({self.num_envs},) and bool; leave it out to reset all rows"
            raise ConfigError(message)
        return mask

    def _begun(self) -> Works:
        """Return the clockwork, after the first reset."""
        if self._works is None:
            message = "environment: nothing has begun; call reset first"
            raise ResetNeeded(message)
        return self._works

    def _ready(self) -> Works:
        """Return the clockwork, all of its rows in an episode."""
        works = self._begun()
        if not self._is_autoreset and np.any(works.is_over):
            message = f"step after the end of an episode in environment {np.argmax(works.is_over)}; call reset first"
            raise ResetNeeded(message)
        return works

    def _info(self, columns: Info, ended: Ended | None = None, is_done: BoolArray | None = None) -> Info:
        """Return info with the action mask, for each key the mask that wrappers read, and what ended if any."""
        columns = columns | {"action_mask": self.action_masks().view(np.int8)}
        info = columns | {f"_{name}": self._always for name in columns}
        return info if ended is None else info | self._final_info(ended, is_done, info)

    def _final_info(self, ended: Ended, is_done: BoolArray | None, info: Info) -> Info:
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

    def link_state(self) -> LinkState:
        """Return the link of each device alone in the band, what a policy acts on; one entry per device, flat."""
        link: LinkState = self._begun().state.link
        return link

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one RGB frame per environment, shape (height, width, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self._frame(env) for env in range(self.num_envs))


def _autoreset_mode(word: AutoresetMode | str) -> AutoresetMode:
    """Return the mode of a word; rows are reset in the same step, or by hand."""
    modes = {mode.value: mode for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)}
    name = word.value if isinstance(word, AutoresetMode) else word
    if not isinstance(name, str) or name not in modes:
        message = f"environment: autoreset_mode is {name!r}; expected {' or '.join(modes)}; change autoreset_mode"
        raise ConfigError(message)
    return modes[name]


def _check_words(params: object, settings: Info, render_mode: object) -> None:
    if params is not None and settings:
        message = f"environment: params and {', '.join(settings)} are given; expected one or the other"
        raise ConfigError(message)
    if params is not None and not isinstance(params, EnvParams):
        message = f"environment: params are {params!r}; expected those that a function of megopt.envs.scenarios returns"
        raise ConfigError(message)
    if render_mode not in (None, "rgb_array"):
        message = f"environment: render_mode is {render_mode!r}; expected rgb_array or None"
        raise ConfigError(message)
