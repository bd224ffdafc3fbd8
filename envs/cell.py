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
| "shared" | Discrete(num_rows) | one row for all devices that have a request: for DQN, and less than a cell can do |

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
each device may take next, `tuple(mask)` is what `MultiDiscrete.sample` reads; with "shared" 1 for rows that all devices
with a request may take), num_late with a deadline, and at the end of an episode final; from the vector environment also
final_obs and final_info.

Versions: v0, first.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import cell_rendering
from megopt.envs.cell_actions import CellActions
from megopt.envs.cell_dynamics import CELL_FIELDS, DEVICE_FIELDS
from megopt.envs.cell_parameters import CellParams
from megopt.envs.cell_state import CellTransition
from megopt.envs.cells import Cells
from megopt.envs.dynamics import legal_rows
from megopt.envs.history import shown_totals
from megopt.envs.row_view import RowView
from megopt.envs.scenarios import CELL_SCENARIOS
from megopt.envs.settings import Scenarios
from megopt.envs.shell import Info, Observations, VectorShell
from megopt.errors import ConfigError
from megopt.system.outcome import Outcome


class CellVectorEnv(VectorShell[Cells, cell_rendering.CellMoment]):
    """`num_envs` cells, each with one slot per step; see the module for spaces, reward, costs and info.

    What a cell meets depends on the seed, its index and its own actions; no neighbour's reset changes it. The keywords
    are those of `VectorShell`, with the scenario "cell".
    """

    params: CellParams
    actions: CellActions
    scenarios: ClassVar[Scenarios] = CELL_SCENARIOS

    def _spaces(self, kind: str, bad_actions: str) -> tuple[CellActions, int]:
        params: object = self.params
        if not isinstance(params, CellParams):
            message = (
                f"environment: params are {type(params).__name__}; expected CellParams; make them by scenarios.cell"
            )
            raise ConfigError(message)
        self._rows: IntArray = np.zeros(self.num_envs * params.num_devices, dtype=np.int64)
        has_weights = params.allocation == "chosen"
        actions = CellActions.of(
            params.table,
            params.is_offered,
            kind,
            bad_actions,
            num_devices=params.num_devices,
            has_weights=has_weights,
        )
        return actions, len(DEVICE_FIELDS) * params.num_devices + len(CELL_FIELDS)

    def _begin(self, seed: int) -> Cells:
        return Cells(self.params, self.num_envs, seed)

    def step(self, actions: Any) -> tuple[Observations, FloatArray, BoolArray, BoolArray, Info]:
        """Decide the waiting requests of all cells.

        Args:
            actions: one action per environment, as `action_space` has them.

        Returns:
            Observations (num_envs, 5 K + 3), rewards, terminations, truncations, each (num_envs,), and info.

        Raises:
            ActionError: naming the first device whose action cannot be taken.
            ResetNeeded: before the first reset, or after the end of an episode where autoreset is disabled.
        """
        cells = self._ready()
        rows, weights = self.actions.rows(actions, self.num_envs)
        self._rows = rows = self._legal_rows(rows, cells)
        step = cells.step(rows, weights, is_autoreset=self._is_autoreset)
        latest = self._latest()
        if self.render_mode is not None:
            totals = shown_totals(step.reward, step.costs, self.params.problem)
            moment = cell_rendering.CellMoment.of(self.params, cells.decided, latest, rows, totals)
            self._history.add(moment, step.is_done)
        columns = {
            "costs": step.costs,
            "cost": step.cost,
            "num_requests": step.num_requests,
            "num_lost": step.num_lost,
            "row": self._by_cell(np.where(latest.is_decided, rows, -1)),
        }
        if step.num_late is not None:
            columns["num_late"] = step.num_late
        info = self._info(columns, step.ended, step.is_done)
        return step.observation, step.reward, np.zeros(self.num_envs, dtype=bool), step.is_done, info

    def _by_cell(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return a column of devices as (num_envs, num_devices)."""
        return column.reshape(self.num_envs, self.params.num_devices, *column.shape[1:])

    def _latest(self) -> CellTransition:
        latest = self._begun().latest
        if latest is None:
            message = "no requests before the first step; call step first"
            raise ResetNeeded(message)
        return latest

    def _legal_rows(self, rows: IntArray, cells: Cells) -> IntArray:
        """Return `rows` after the check against masked rows and dead links."""
        if self._is_all_legal:
            return rows
        legal = legal_rows(self.params, cells.state.link)
        return self.actions.of_device.legal(rows, legal, cells.state.waiting.num_waiting > 0)

    def action_masks(self) -> BoolArray:
        """Return which rows the devices may take next, shape (num_envs, num_devices, num_rows).

        A read-only view where they are equal. With "shared" actions (num_envs, num_rows): rows that every device with
        a request may take.
        """
        legal = legal_rows(self.params, self.link_state())
        shape = (self.num_envs, self.params.num_devices, legal.shape[1])
        if legal.strides[0] == 0:
            return np.broadcast_to(legal[0], shape[::2] if self.actions.is_shared else shape)
        of_devices = legal.reshape(shape)
        if not self.actions.is_shared:
            return of_devices
        return np.asarray(np.all(of_devices | ~self.has_request()[:, :, np.newaxis], axis=1))

    def has_request(self) -> BoolArray:
        """Return which devices decide a request in the next step, shape (num_envs, num_devices)."""
        return np.asarray(self._by_cell(self._begun().state.waiting.num_waiting > 0))

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

    def _frame(self, env: int) -> NDArray[np.uint8]:
        return cell_rendering.frame(self.params, self._history.of(env))


class CellEnv(RowView[CellVectorEnv]):
    """One cell of a `CellVectorEnv`; see the module for spaces, reward, costs and info."""

    vector_type = CellVectorEnv

    @property
    def params(self) -> CellParams:
        """What does not change while requests come."""
        return self.vector.params
