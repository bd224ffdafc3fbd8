"""Judge agents and policies on the same fresh episodes: same places, same fading and same arrivals for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.analysis import episodes
from megopt.analysis.episodes import AnyVector
from megopt.arrays import FloatArray
from megopt.envs.parameters import EnvParams
from megopt.envs.shell import Observations
from megopt.errors import ConfigError
from megopt.policies.base import Policy
from megopt.problem import ceilings
from megopt.ranges import require_whole
from megopt.system.link import LinkState

Chooser = Callable[[Observations, AnyVector], Any]
"""From observations and the environment behind them to actions, one per episode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a way to choose came to; fields of shape (num_episodes,), means over the requests of an episode.

    Attributes:
        reward: mean reward [unit of the objective].
        costs: mean cost per limit, shape (num_episodes, num_limits).
        latency_s: mean latency [s].
        energy_j: mean energy of edge and device [J].
        quality: mean quality [metric's unit].
        num_requests: requests of each episode [1].
    """

    reward: FloatArray
    costs: FloatArray
    latency_s: FloatArray
    energy_j: FloatArray
    quality: FloatArray
    num_requests: FloatArray

    def summary(self, limits: FloatArray) -> dict[str, Any]:
        """Return means over the requests of all episodes as plain data, and how the limits were kept.

        `excess` is the largest excess of a mean cost over its limit, relative to it, below 0 where all are kept;
        `violation_rate` the share of episodes whose own mean exceeds a limit.
        """
        shares = self.num_requests / max(float(np.sum(self.num_requests)), 1.0)
        costs = shares @ self.costs
        return {
            "reward": float(shares @ self.reward),
            "costs": [float(cost) for cost in costs],
            "excess": float(np.max(relative_excess(costs, limits), initial=-np.inf)) if len(limits) else 0.0,
            "violation_rate": float(np.mean(np.any(self.costs > limits, axis=1))),
            "latency_s": float(shares @ self.latency_s),
            "energy_j": float(shares @ self.energy_j),
            "quality": float(shares @ self.quality),
        }


def relative_excess(costs: FloatArray, limits: FloatArray) -> FloatArray:
    """Return (cost - limit) / |limit|, or cost - limit where the limit is 0; arrays that broadcast."""
    return np.asarray((costs - limits) / np.where(limits == 0.0, 1.0, np.abs(limits)))


def evaluate(
    chooser: Chooser, params: EnvParams, actions: str, num_episodes: int, seed: int, bad_actions: str = "raise"
) -> Evaluation:
    """Return what `chooser` comes to on the episodes of `seed`; the same seed gives the same fading to all.

    Args:
        chooser: says what to do.
        params: the environment.
        actions: kind of the chooser's actions, see `megopt.envs.actions`.
        num_episodes: episodes side by side [1].
        seed: of places and fading.
        bad_actions: what becomes of rows that may not be taken: "clip" or "raise".

    Raises:
        ConfigError: if episodes can end early, as with a battery.
    """
    _require(params, num_episodes, seed)
    env = episodes.vector_of(params, num_episodes, actions, bad_actions, is_autoreset=False)
    observations, _ = env.reset(seed=seed)
    info: dict[str, Any] = {}
    for _ in range(params.episode_length):
        observations, _, _, _, info = env.step(chooser(observations, env))
    final = info["final"]
    return Evaluation(
        reward=final["reward"],
        costs=final["costs"],
        latency_s=final["latency_s"],
        energy_j=final["energy_j"],
        quality=final["quality"],
        num_requests=episodes.weights_of(final),
    )


def evaluate_agent(
    agent: Any,
    params: EnvParams,
    actions: str,
    *,
    num_episodes: int,
    seed: int,
    is_sampled: bool,
    bad_actions: str = "clip",
) -> Evaluation:
    """Return what an agent of `megopt.rl.agents` comes to; no random generator but its own is touched."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))

    def choose(observations: Observations, env: AnyVector) -> Any:
        return episodes.agent_actions(agent, observations, env, rng, is_sampled=is_sampled)

    return evaluate(choose, params, actions, num_episodes, seed, bad_actions)


def evaluate_policy(policy: Policy, params: EnvParams, *, num_episodes: int, seed: int) -> Evaluation:
    """Return what a policy comes to; one with a memory meets the first request of all episodes, then the second."""

    def choose(observations: Observations, env: AnyVector) -> Any:
        return episodes.chosen_actions(policy, env)

    return evaluate(choose, params, "discrete", num_episodes, seed)


def recorded_fading(params: EnvParams, *, num_episodes: int, seed: int) -> list[LinkState]:
    """Return the link of request 0, 1, ... of the episodes of `seed`; see `megopt.analysis.episodes`."""
    _require(params, num_episodes, seed)
    return episodes.recorded_fading(params, num_episodes, seed)


def limits_of(params: EnvParams) -> FloatArray:
    """Return the limits on mean costs per request, shape (num_limits,)."""
    return ceilings(params.problem)


def _require(params: EnvParams, num_episodes: int, seed: int) -> None:
    require_whole("evaluation", 1, num_episodes=num_episodes)
    require_whole("evaluation", 0, seed=seed)
    if params.has_battery:
        message = f"evaluation: battery_j = {params.battery_j:g}; expected episodes of equal length; set it to .inf"
        raise ConfigError(message)
