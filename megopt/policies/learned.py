"""Any trained agent as a policy: the same networks that learned in `megopt/Request-v0`, on any link.

    policy = Learned(table=table, problem=problem, checkpoint="outputs/train/meg_cvpo/cvpo/seed_0/agent")
    rows = policy.act(Observation(link=link))

An agent sees more than the link: airtime, latency and energy of the request before. The policy keeps count of them from
the rows that it chose, so the requests of one observation are taken one after another and go on from call to call.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, IntArray
from megopt.envs.actions import ActionMap
from megopt.policies.agent_card import AGENT_FILE, AgentCard
from megopt.policies.base import Observation
from megopt.problem import Problem, evaluate
from megopt.rl import agents
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState


@dataclass(slots=True, kw_only=True)
class _Memory:
    """What the agent has done: requests so far, and airtime [s], latency [s] and energy [J] of the latest."""

    num_requests: int = 0
    previous: FloatArray = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Follows a trained agent of any algorithm.

    The limits are those that the agent was trained under; the problem's own are not read.

    Attributes:
        table: the rows; it must hold those that the agent was trained on.
        problem: kept so that every policy is built alike.
        checkpoint: folder of the agent, as `megopt train` writes it.
        is_sampled: whether to sample the agent's policy, which keeps the limits; else its likeliest action.
        seed: seed of the draws.
        card: what the agent's numbers mean.
    """

    table: ActionTable
    problem: Problem
    checkpoint: str | Path
    is_sampled: bool = True
    seed: int = 0
    reads_limits: ClassVar[bool] = False
    card: AgentCard = field(init=False, repr=False, compare=False)
    _agent: Any = field(init=False, repr=False, compare=False)
    _places: IntArray = field(init=False, repr=False, compare=False)
    _actions: ActionMap = field(init=False, repr=False, compare=False)
    _rng: np.random.Generator = field(init=False, repr=False, compare=False)
    _memory: _Memory = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        folder = Path(self.checkpoint)
        card = AgentCard.read(folder)
        places = card.rows_in(self.table)
        own = self.table.take(np.maximum(places, 0))
        parts = {
            "card": card,
            "_agent": agents.load_agent(card.algorithm, folder / AGENT_FILE),
            "_places": places,
            "_actions": ActionMap.of(own, places >= 0, card.actions, "clip"),
            "_rng": np.random.default_rng(np.random.SeedSequence(self.seed)),
            "_memory": _Memory(),
        }
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    def restart(self) -> None:
        """Forget earlier requests, as at the start of an episode."""
        self._memory.num_requests, self._memory.previous = 0, np.zeros(3)

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,), and remember what they led to."""
        link = observation.link
        snr_db = self.card.snr_db(link)
        rows = np.empty(len(snr_db), dtype=np.int64)
        for request in range(len(snr_db)):
            action = agents.actions_of(self._agent, self._seen(snr_db[request]), self._rng, is_sampled=self.is_sampled)
            rows[request] = self._rows(action)[0]
            self._remember(rows[request : request + 1], link.take(np.array([request])))
        return rows

    def probabilities(self, observation: Observation) -> FloatArray:
        """Return the probability of each row if it were each request's turn now, shape (num_requests, num_rows).

        Counted from draws where the agent's actions are points of a box.
        """
        snr_db = self.card.snr_db(observation.link)
        seen = np.concatenate([self._seen(value) for value in snr_db])
        shares = agents.probabilities(self._agent, seen)
        if shares is None:
            drawn = agents.drawn_actions(self._agent, seen, np.random.default_rng(self.seed))
            counts = [np.bincount(self._rows(part), minlength=len(self.table)) for part in drawn]
            return np.asarray(np.stack(counts) / drawn.shape[1])
        targets = self._rows(np.arange(shares.shape[1]))
        answer = np.zeros((len(self.table), len(snr_db)))
        np.add.at(answer, targets, shares.T)
        return answer.T

    def _seen(self, snr_db: float) -> NDArray[np.float32]:
        return self.card.observation(float(snr_db), self._memory.previous, self._memory.num_requests)

    def _rows(self, actions: NDArray[Any]) -> IntArray:
        """Return the rows of the table that actions name; a row that may not be chosen gives way to the nearest."""
        named = self._actions.rows(actions, len(actions))
        return self._places[self._actions.nearest[named]]

    def _remember(self, row: IntArray, link: LinkState) -> None:
        result, memory = evaluate(self.table, row, link), self._memory
        hidden_s = min(float(result.edge_s[0]), memory.previous[0]) if self.card.is_pipelined else 0.0
        energy_j = float(result.quantity(self.card.observed_energy)[0])
        memory.previous = np.array([result.downlink_s[0], result.latency_s[0] - hidden_s, energy_j])
        memory.num_requests += 1
