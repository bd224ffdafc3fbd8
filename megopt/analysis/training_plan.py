"""All that a training run depends on, and what tells two runs apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megopt.envs.cell_parameters import CellParams
from megopt.envs.parameters import EnvParams
from megopt.errors import ConfigError
from megopt.policies.agent_card import AgentCard
from megopt.ranges import require_whole, require_within
from megopt.rl import agents


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """All that a run depends on.

    Attributes:
        scenario: name of the setting, for people.
        params: the environment.
        algorithm: a name of `megopt.rl.agents.CLASSES`.
        actions: kind of the agent's actions, see `megopt.envs.actions`.
        settings: keywords of the algorithm.
        num_envs: devices side by side [1].
        num_steps: requests to learn from, over all devices [1].
        eval_every: requests between two points of the learning curve [1].
        eval_episodes: held-out episodes behind each point [1].
        checkpoint_every: points of the curve between two checkpoints [1].
        seed: of everything that is drawn.
        device: of the networks.
        fade_to: learning rate at the end of the run over that at its start, in [0, 1]; in between it falls linearly.
        bad_actions: what becomes of rows that may not be taken: "clip" or "raise".
    """

    scenario: str
    params: EnvParams
    algorithm: str
    actions: str
    settings: Mapping[str, Any]
    num_envs: int = 16
    num_steps: int = 100_000
    eval_every: int = 4_000
    eval_episodes: int = 32
    checkpoint_every: int = 5
    seed: int = 0
    device: str = "cpu"
    fade_to: float = 1.0
    bad_actions: str = "clip"

    def __post_init__(self) -> None:
        agents.class_of(self.algorithm)
        require_whole("train", 1, num_envs=self.num_envs, num_steps=self.num_steps, eval_every=self.eval_every)
        require_whole("train", 1, eval_episodes=self.eval_episodes, checkpoint_every=self.checkpoint_every)
        require_whole("train", 0, seed=self.seed)
        require_within("train", 0.0, 1.0, fade_to=self.fade_to)
        if not self.params.problem.limits and self.algorithm not in agents.UNLIMITED:
            message = f"train: scenario {self.scenario} has no limits; algorithm {self.algorithm} needs one; set limits"
            raise ConfigError(message)

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells two runs apart, as plain data."""
        card = AgentCard.of(self.params, self.algorithm, self.actions, self.seed, self.num_steps)
        names = ("scenario", "num_envs", "num_steps", "eval_every", "eval_episodes", "seed", "fade_to")
        return {
            "algorithm": self.algorithm,
            "actions": self.actions,
            "settings": json.loads(json.dumps(dict(self.settings), sort_keys=True, default=str)),
            "profile": card.profile,
            "objective": card.objective,
            "quantities": [limit.quantity for limit in self.params.problem.limits],
            "limits": list(card.limits),
            "channel": repr(self.params.channel),
            "link": repr(self.params.link),
            "num_rows": len(card.rows),
            "is_pipelined": card.is_pipelined,
            "episode_length": card.episode_length,
            **_cell_fingerprint(self.params),
            **{name: getattr(self, name) for name in names},
        }


def _cell_fingerprint(params: EnvParams) -> dict[str, Any]:
    if not isinstance(params, CellParams):
        return {}
    names = ("num_devices", "slot_s", "capacity", "allocation")
    ratios = [float(ratio) for ratio in params.curve.latency_ratio]
    return {name: getattr(params, name) for name in names} | {"arrivals": repr(params.arrivals), "batches": ratios}
