"""megopt/Cell-v0: many devices, an edge queue with batching, and a band that they share.

Each step is one slot. Every device with a waiting request decides its oldest one by a row of the action table; edge,
band and devices serve what was decided, new requests arrive, the channels move on. See `megopt.envs.cell_dynamics` for
the equations and `megopt.envs.queueing`, `band`, `batching`, `arrivals` for their parts. `CellVectorEnv` is the
implementation, for any number of cells that share nothing; `CellEnv` is its view on one cell.

Action space for K devices, chosen by `actions`; see `megopt.envs.cell_actions`:

| actions | space | meaning |
|---|---|---|
| "discrete" | MultiDiscrete([num_rows] x K) | row of each device |
| "multi_discrete" | MultiDiscrete([...] x K) | index of a value of each knob, device by device |
| "box" | Box(-1, 1, (m K,), float32) | nearest value of each knob, device by device |

With the allocation "chosen", K weights of the shares of the band follow.

Observation space, Box(-1, 1, (5 K + 3,), float32); each of the first five rows stands for K entries, device 0 first:

| # | field | unit | range | scaling |
|---|---|---|---|---|
| 0 | SNR of each device | dB | -30 to 50, ended there | linear onto -1 to 1 |
| 1 | requests that wait at the device | 1 | 0 to capacity | share of the capacity |
| 2 | age of the oldest of them | s | 0 to inf | x / (x + latency scale); 0 where none waits |
| 3 | time for which the device is busy | s | 0 to inf | x / (x + latency scale) |
| 4 | latency of its previous request | s | 0 to inf | x / (x + latency scale) |
| 5 K | time for which the edge is busy with earlier slots | s | 0 to inf | x / (x + latency scale) |
| 5 K + 1 | time for which the band is busy with earlier slots | s | 0 to inf | x / (x + latency scale) |
| 5 K + 2 | slots of the episode so far | 1 | 0 to 1 | share of the episode's length |

The scale is the limit on the latency; without one, the latency of the median row alone in the cell at 10 dB.

Reward: sum of `megopt.problem.reward` over the requests decided in the slot; 0 without one. Costs: `info["costs"]`, one
column per limit, sum of `megopt.problem.costs` over them; `info["cost"]` is the sum of `megopt.problem.violations`.
`info["num_requests"]` counts them: a limit of L per request asks for costs - num_requests L of at most 0 in the mean.

Start: new devices at new places, empty queues, and what arrives in slot 0. End: truncated after `episode_length` slots.
`info["final"]` then holds a `CellReport` as a dictionary.

Info: costs, cost, num_requests, num_lost, row (of each device, -1 where none was decided), action_mask (1 for rows that
each device may take next; `tuple(mask)` is what `MultiDiscrete.sample` reads), num_late with a deadline, and at the end
of an episode final; from the vector environment also final_obs and final_info.

Versions: v0, first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import cell_rendering
from megopt.envs.cell_actions import CellActions
from megopt.envs.cell_dynamics import CELL_FIELDS, DEVICE_FIELDS, CellParams, CellTransition
from megopt.envs.cells import Cells, CellsStep
from megopt.envs.dynamics import legal_rows
from megopt.envs.request import RequestEnv, RequestVectorEnv
from megopt.envs.scenarios import CELL_SCENARIOS, params_of
from megopt.errors import ConfigError
from megopt.ranges import require_within
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome

Observations = NDArray[np.float32]
Info = dict[str, Any]


class CellVectorEnv(RequestVectorEnv):
    """`num_envs` cells, each with one slot per step; see the module for spaces, reward, costs and info.

    What a cell meets depends on the seed, its index and its own actions; no neighbour's reset changes it.
    """

    params: CellParams
    actions: CellActions  # type: ignore[assignment]  # a joint action in place of one device's
    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        params: CellParams | None = None,
        scenario: str = "cell",
        actions: str = "discrete",
        bad_actions: str = "raise",
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        **settings: Any,
    ) -> None:
        """Build spaces and tables; nothing is drawn before `reset`.

        Args:
            num_envs: cells.
            params: all parameters; in place of `scenario` and its settings.
            scenario: a name of `megopt.envs.scenarios.CELL_SCENARIOS`.
            actions: "discrete", "multi_discrete" or "box".
            bad_actions: "raise", or "clip" to move actions out of range and masked rows to the nearest legal ones.
            render_mode: "rgb_array" or None.
            autoreset_mode: SAME_STEP, or DISABLED to be reset by hand.
            **settings: keywords of the scenario's function: num_devices, slot_s, arrivals, allocation, profile, ...

        Raises:
            ConfigError: for a word or a number that is not one of these.
        """
        require_within("environment", 1, 1e9, num_envs=num_envs)
        self._check_words(params, settings, render_mode, AutoresetMode(autoreset_mode))
        chosen = params or params_of(scenario, settings, CELL_SCENARIOS)
        if not isinstance(chosen, CellParams):
            message = (
                f"environment: params are {type(chosen).__name__}; expected CellParams; make them by scenarios.cell"
            )
            raise ConfigError(message)
        self.params = chosen
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.metadata = {**type(self).metadata, "autoreset_mode": AutoresetMode(autoreset_mode)}  # type: ignore[misc]
        self.actions = CellActions.of(
            chosen.table,
            chosen.is_offered,
            actions,
            bad_actions,
            num_devices=chosen.num_devices,
            has_weights=chosen.allocation == "chosen",
        )
        num_fields = len(DEVICE_FIELDS) * chosen.num_devices + len(CELL_FIELDS)
        self.single_observation_space = spaces.Box(-1.0, 1.0, (num_fields,), dtype=np.float32)
        self.single_action_space = self.actions.space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._always = np.broadcast_to(True, self.num_envs)
        self._is_all_offered = bool(np.all(chosen.is_offered))
        self._cells: Cells | None = None
        self._moments: deque[cell_rendering.CellMoment] = deque(maxlen=cell_rendering.MOMENTS)
        self._rows: IntArray = np.zeros(self.num_envs * chosen.num_devices, dtype=np.int64)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Observations, Info]:
        """Begin new episodes; with a seed, all randomness begins anew as well.

        Args:
            seed: seed of everything that is drawn.
            options: {"reset_mask": shape (num_envs,), bool} resets these cells only.

        Returns:
            Observations, shape (num_envs, 5 K + 3), and info with the action mask.
        """
        VectorEnv.reset(self, seed=seed)
        if seed is not None or self._cells is None:
            self._cells = Cells(self.params, self.num_envs, int(self.np_random.integers(2**63)))
        else:
            self._cells.reset(self._reset_mask(options))
        self._moments.clear()
        return self._cells.observe(), self._info({})

    def step(self, actions: Any) -> tuple[Observations, FloatArray, BoolArray, BoolArray, Info]:
        """Decide the waiting requests of all cells.

        Args:
            actions: one joint action per environment, as `action_space` has them.

        Returns:
            Observations (num_envs, 5 K + 3), rewards, terminations, truncations, each (num_envs,), and info.

        Raises:
            ActionError: naming the first device whose action cannot be taken.
            ResetNeeded: before the first reset, or after the end of an episode where autoreset is disabled.
        """
        cells = self._ready_cells()
        rows, weights = self.actions.rows(actions, self.num_envs)
        self._rows = rows = self._legal_rows(rows, cells)
        step = cells.step(rows, weights, is_autoreset=self._is_autoreset)
        latest = self._latest()
        if self.render_mode is not None:
            self._moments.append(self._moment(latest, step))
        columns = {
            "costs": step.costs,
            "cost": step.cost,
            "num_requests": step.num_requests,
            "num_lost": step.num_lost,
            "row": self._by_cell(np.where(latest.is_decided, rows, -1)),
        }
        info = self._info(columns if step.num_late is None else columns | {"num_late": step.num_late})
        if step.ended is not None:
            info |= self._final_info(step.ended, step.is_done, info)  # type: ignore[arg-type]  # same two fields
        return step.observation, step.reward, np.zeros(self.num_envs, dtype=bool), step.is_done, info

    def _by_cell(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a column of devices as (num_envs, num_devices)."""
        return column.reshape(self.num_envs, self.params.num_devices, *column.shape[1:])

    def _ready_cells(self) -> Cells:
        """Return the cells, all of them in an episode."""
        cells = self._begun()
        if not self._is_autoreset and np.any(cells.is_over):
            message = f"step after the end of an episode in environment {np.argmax(cells.is_over)}; call reset first"
            raise ResetNeeded(message)
        return cells

    def _begun(self) -> Cells:
        if self._cells is None:
            message = "no cells before reset; call reset first"
            raise ResetNeeded(message)
        return self._cells

    def _latest(self) -> CellTransition:
        latest = self._begun().latest
        if latest is None:
            message = "no requests before the first step; call step first"
            raise ResetNeeded(message)
        return latest

    def _legal_rows(self, rows: IntArray, cells: Cells) -> IntArray:
        """Return `rows` after the check against masked rows and dead links."""
        if self._is_all_offered and not self.params.can_die:
            return rows
        legal = legal_rows(self.params, cells.state.link)
        return self.actions.of_device.legal(rows, legal, cells.state.waiting.num_waiting > 0)

    def action_masks(self) -> BoolArray:
        """Return which rows the devices may take next, shape (num_envs, num_devices, num_rows).

        A read-only view where they are equal; nothing is masked for the sake of a device without a request.
        """
        legal = legal_rows(self.params, self.link_state())
        shape = (self.num_envs, self.params.num_devices, legal.shape[1])
        return np.broadcast_to(legal[0], shape) if legal.strides[0] == 0 else legal.reshape(shape)

    def has_request(self) -> BoolArray:
        """Return which devices decide a request in the next step, shape (num_envs, num_devices)."""
        return np.asarray(self._by_cell(self._begun().state.waiting.num_waiting > 0))

    def link_state(self) -> LinkState:
        """Return the link of each device alone in the band, fields of shape (num_envs x num_devices,)."""
        return self._begun().state.link

    def outcome(self) -> Outcome:
        """Return what the latest requests cost and gave; fields (num_envs, num_devices), NaN where none was decided.

        edge_s is the time of the batch that the request was in; latency_s less edge_s, device_s, downlink_s, uplink_s
        and round trips is `waiting_s`.
        """
        made, work = self._latest(), self.params.table.work.take(self._rows)
        edge_s = np.where(made.service.batch_size.ravel() > 0, made.service.batch_s.ravel(), work.edge_s)
        full = replace(made.outcome, edge_s=edge_s, device_s=work.device_s, payload_bits=work.downlink_bits)
        columns = {field.name: getattr(full, field.name) for field in fields(full)}
        return Outcome(**{name: self._by_cell(self._decided(column, made)) for name, column in columns.items()})

    def waiting_s(self) -> FloatArray:
        """Return how long the latest requests waited [s], (num_envs, num_devices); NaN where none was decided."""
        made = self._latest()
        return np.asarray(self._by_cell(self._decided(made.waiting_s, made)))

    @staticmethod
    def _decided(column: FloatArray, made: CellTransition) -> FloatArray:
        return np.where(made.is_decided, column, np.nan)

    def _moment(self, latest: CellTransition, step: CellsStep) -> cell_rendering.CellMoment:
        return cell_rendering.CellMoment(
            num_waiting=self._by_cell(latest.state.waiting.num_waiting).sum(axis=1).astype(np.float64),
            edge_busy_s=latest.state.edge_busy_s,
            band_busy_s=latest.state.band_busy_s,
            num_requests=step.num_requests.astype(np.float64),
            costs=step.costs,
        )

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return one RGB frame per environment, shape (height, width, 3); None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(cell_rendering.frame(self.params, list(self._moments), env) for env in range(self.num_envs))


class CellEnv(RequestEnv):
    """One cell of a `CellVectorEnv`; see the module for spaces, reward, costs and info."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        """Build the cell; keywords are those of `CellVectorEnv`, without num_envs and autoreset_mode."""
        self.vector: CellVectorEnv = CellVectorEnv(
            1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **settings
        )
        self.render_mode = render_mode
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    @property
    def params(self) -> CellParams:
        """What does not change while requests come."""
        return self.vector.params
