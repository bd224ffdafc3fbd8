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

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs import rendering
from megopt.envs.actions import ActionMap
from megopt.envs.devices import Devices
from megopt.envs.dynamics import FIELDS, legal_rows
from megopt.envs.history import shown_totals
from megopt.envs.row_view import RowView
from megopt.envs.scenarios import SCENARIOS
from megopt.envs.settings import Scenarios
from megopt.envs.shell import Info, Observations, VectorShell
from megopt.problem import evaluate
from megopt.system.outcome import Outcome


class RequestVectorEnv(VectorShell[Devices, rendering.RequestMoment]):
    """`num_envs` devices, each with one request per step; see the module for spaces, reward, costs and info.

    What a row meets depends on the seed, its index and its own actions; no neighbour's reset changes it. The keywords
    are those of `VectorShell`, with the scenarios "request" and "meg_cvpo".
    """

    actions: ActionMap
    scenarios: ClassVar[Scenarios] = SCENARIOS

    def _spaces(self, kind: str, bad_actions: str) -> tuple[ActionMap, int]:
        self._rows: IntArray = np.zeros(self.num_envs, dtype=np.int64)
        return ActionMap.of(self.params.table, self.params.is_offered, kind, bad_actions), len(FIELDS)

    def _begin(self, seed: int) -> Devices:
        return Devices(self.params, self.num_envs, seed)

    def previous_airtime_s(self) -> FloatArray | None:
        """Return the airtime of each device's payload before [s], shape (num_envs,); None where nothing is hidden."""
        state = self._begun().state
        return state.previous_airtime_s if self.params.is_pipelined else None

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
            totals = shown_totals(step.reward, step.costs, self.params.problem)
            moment = rendering.RequestMoment.of(self.outcome(), rows, devices.decided.link.snr, totals)
            self._history.add(moment, step.is_done)
        columns: Info = {"costs": step.costs, "cost": step.cost, "row": rows}
        if step.is_late is not None:
            columns["is_late"] = step.is_late
        info = self._info(columns, step.ended, step.is_done)
        return step.observation, step.reward, step.is_terminated, step.is_truncated, info

    def _legal(self, rows: IntArray, devices: Devices) -> IntArray:
        """Return `rows` after the check against masked rows and dead links."""
        if self._is_all_legal:
            return rows
        return self.actions.check_legal(rows, legal_rows(self.params, devices.state.link))

    def action_masks(self) -> BoolArray:
        """Return which rows the waiting requests may take, shape (num_envs, num_rows); a read-only view where equal."""
        return legal_rows(self.params, self.link_state())

    def outcome(self) -> Outcome:
        """Return all that the latest requests cost and gave, evaluated on demand; fields of shape (num_envs,).

        Raises:
            ResetNeeded: before the first step.
        """
        devices = self._begun()
        if not devices.has_decided:
            message = "outcome: nothing was decided yet; call step first"
            raise ResetNeeded(message)
        result = evaluate(self.params.table, self._rows, devices.decided.link, self.params.problem.metric)
        return replace(result, latency_s=devices.latest_latency_s)

    def _frame(self, env: int) -> NDArray[np.uint8]:
        return rendering.frame(self.params, self._history.of(env))


class RequestEnv(RowView[RequestVectorEnv]):
    """One row of a `RequestVectorEnv`; see the module for spaces, reward, costs and info."""

    vector_type = RequestVectorEnv
