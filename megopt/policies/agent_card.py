"""What an agent's numbers mean, kept beside its networks: which rows its actions name and how it saw its requests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.envs.dynamics import FIELDS, SNR_RANGE_DB, EnvParams
from megopt.errors import ConfigError, NotOfferedError
from megopt.files import write_atomically
from megopt.problem import ceilings
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.units import db_from_linear, linear_from_db

CARD_FILE, AGENT_FILE = "agent.json", "agent.zip"
_FORMAT = "megopt agent 1"
_NUM_GRID = 161
"""Points of the table from SNR to seconds per bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCard:
    """What is needed to let an agent of `megopt/Request-v0` act outside its environment.

    Attributes:
        algorithm: its name in `megopt.rl.agents`.
        actions: kind of its actions, see `megopt.envs.actions`.
        seed: seed of its run.
        num_steps: requests it has learned from [1].
        profile: profile of its rows.
        objective: what its reward is, with the metric where that is quality.
        limits: limits that it was trained under, as in `problem.ceilings`.
        rows: names of its rows, in order.
        is_offered: which of them it may choose.
        scales: airtime [s], latency [s] and energy [J] that it sees as 1/2.
        observed_energy: quantity of the energy that it sees.
        is_pipelined: whether the edge computed while the previous request was on the air.
        episode_length: requests of an episode [1].
        downlink_s_per_bit: of its link at SNR from `SNR_RANGE_DB[0]` to `SNR_RANGE_DB[1]` dB [s/bit].
        format: version of this file.
    """

    algorithm: str
    actions: str
    seed: int
    num_steps: int
    profile: str
    objective: str
    limits: tuple[float, ...]
    rows: tuple[str, ...]
    is_offered: tuple[bool, ...]
    scales: tuple[float, float, float]
    observed_energy: str
    is_pipelined: bool
    episode_length: int
    downlink_s_per_bit: tuple[float, ...]
    format: str = _FORMAT

    @classmethod
    def of(cls, params: EnvParams, algorithm: str, actions: str, seed: int, num_steps: int) -> AgentCard:
        """Return the card of an agent that was trained on `params`."""
        table, problem = params.table, params.problem
        grid = params.link.state(linear_from_db(np.linspace(*SNR_RANGE_DB, _NUM_GRID)))
        airtime_s, latency_s, energy_j = (float(scale) for scale in params.scales[:, 0])
        return cls(
            algorithm=algorithm,
            actions=actions,
            seed=seed,
            num_steps=num_steps,
            profile=table.profile,
            objective=problem.metric if problem.objective == "quality" else problem.objective,
            limits=tuple(float(bound) for bound in ceilings(problem)),
            rows=tuple(table.name(row) for row in range(len(table))),
            is_offered=tuple(bool(flag) for flag in params.is_offered),
            scales=(airtime_s, latency_s, energy_j),
            observed_energy=params.terms.observed_energy,
            is_pipelined=params.is_pipelined,
            episode_length=params.episode_length,
            downlink_s_per_bit=tuple(float(value) for value in grid.downlink_s_per_bit),
        )

    def write(self, folder: Path) -> Path:
        """Write the card into the folder of the agent."""
        text = json.dumps(asdict(self))
        return write_atomically(folder / CARD_FILE, lambda path: path.write_text(text + "\n", encoding="utf-8"))

    @classmethod
    def read(cls, folder: Path) -> AgentCard:
        """Return the card of the agent in `folder`.

        Raises:
            ConfigError: if the folder holds none, or one of another format.
        """
        path = folder / CARD_FILE
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            message = f"{path}: {error}; expected the folder of an agent; train one with `megopt train`"
            raise ConfigError(message) from error
        names = {field.name for field in fields(cls)}
        if not isinstance(kept, dict) or set(kept) != names or kept["format"] != _FORMAT:
            message = f"{path}: not of the format {_FORMAT!r}; expected an agent of this version; train it again"
            raise ConfigError(message)
        plain: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in kept.items()}
        return cls(**plain)

    def rows_in(self, table: ActionTable) -> IntArray:
        """Return where the agent's rows stand in `table`, shape (num_rows,); -1 for rows that it may not choose.

        Raises:
            NotOfferedError: if `table` lacks a row that the agent may choose.
        """
        places = {table.name(row): row for row in reversed(range(len(table)))}
        found = np.array([places.get(name, -1) for name in self.rows], dtype=np.int64)
        offered: BoolArray = np.array(self.is_offered)
        lost = np.flatnonzero((found < 0) & offered)
        if len(lost):
            message = (
                f"policy learned: profile {table.profile} and its schemes lack {len(lost)} of the agent's "
                f"{len(self.rows)} rows, such as {self.rows[lost[0]]!r}; expected the rows that it was trained on; "
                f"offer them, or train on this profile"
            )
            raise NotOfferedError(message)
        return np.where(offered, found, -1)

    def snr_db(self, link: LinkState) -> FloatArray:
        """Return the SNR of each request [dB]: as told, or where it is NaN that of the agent's link at this rate."""
        grid = np.linspace(*SNR_RANGE_DB, len(self.downlink_s_per_bit))
        times = np.asarray(self.downlink_s_per_bit)
        is_useful = np.isfinite(times)
        guessed = np.interp(-np.log(link.downlink_s_per_bit), -np.log(times[is_useful]), grid[is_useful])
        with np.errstate(divide="ignore"):
            return np.asarray(np.where(np.isnan(link.snr), guessed, db_from_linear(link.snr)))

    def observation(self, snr_db: float, previous: FloatArray, num_requests: int) -> NDArray[np.float32]:
        """Return what the agent would have seen, shape (1, num_fields), as `megopt.envs.dynamics.observe` lays it out.

        Args:
            snr_db: SNR of the waiting request [dB].
            previous: airtime [s], latency [s] and energy [J] of the request before, shape (3,).
            num_requests: requests since the agent began [1].
        """
        low, high = SNR_RANGE_DB
        seen = np.ones((1, len(FIELDS)), dtype=np.float32)
        seen[0, 0] = np.clip((2.0 * snr_db - high - low) / (high - low), -1.0, 1.0)
        known = np.nan_to_num(previous, nan=0.0, posinf=1e30)
        seen[0, 1:4] = known / (known + np.asarray(self.scales))
        seen[0, 5] = num_requests % self.episode_length / self.episode_length
        return seen
