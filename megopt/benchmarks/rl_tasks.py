"""What CVPO learns on small constrained tasks whose optimum a linear program knows (`megopt.rl.tasks`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from megopt.errors import ConfigError
from megopt.ranges import require_whole

_LEAST_SHARE, _LARGEST_EXCESS = 0.97, 0.02
"""What counts as reached: share of the optimum, and relative excess over a limit."""
_NUM_ENVS = 32
"""Copies of a task side by side: steps are cheap beside updates, and know the mean costs."""
_NUM_BINS = 15
"""Intervals of a histogram on the box that is cut into four arms; ends of arms lie within intervals."""
_DISCOUNTS = {"bandit": 0.0, "budget": 0.9}


def run(
    tasks: Sequence[str] = ("bandit", "budget"),
    num_limits: Sequence[int] = (1, 2),
    kinds: Sequence[str] = ("discrete", "multi", "box", "steps"),
    num_seeds: int = 5,
    num_steps: int = 96_000,
    num_episodes: int = 4000,
    seed: int = 0,
) -> dict[str, float]:
    """Return shares of the optimum and excesses over the limits, of sampled policies on fresh episodes.

    - least_share: least mean reward over the linear program's, over all agents.
    - largest_excess: largest mean cost over its limit, less 1, over all agents and limits.
    - num_missed: agents with a share below 0.97 or an excess above 0.02.
    - <task>.<limits>.<kind>.share, .excess: least share and largest excess over the seeds of one combination.

    Args:
        tasks: bandit, budget.
        num_limits: limits at once, one or two.
        kinds: what actions are: discrete, multi, box, steps.
        num_seeds: agents per combination [1].
        num_steps: environment steps of each agent [1].
        num_episodes: fresh episodes that an agent is judged on [1].
        seed: first of the agents' seeds.

    Raises:
        ConfigError: for an unknown task or kind.
    """
    require_whole("benchmark rl_tasks", 1, num_seeds=num_seeds, num_steps=num_steps, num_episodes=num_episodes)
    cases = list(product(tasks, num_limits, kinds, range(seed, seed + num_seeds)))
    found: dict[str, list[tuple[float, float]]] = {}
    for task, count, kind, agent_seed in tqdm(cases, desc="agents", unit="agent", disable=None):
        outcome = learned(task, int(count), kind, agent_seed, num_steps, num_episodes)
        found.setdefault(f"{task}.{count}.{kind}", []).append(outcome)
    every = [outcome for outcomes in found.values() for outcome in outcomes]
    result = {
        "least_share": min(share for share, _ in every),
        "largest_excess": max(excess for _, excess in every),
        "num_missed": float(sum(share < _LEAST_SHARE or excess > _LARGEST_EXCESS for share, excess in every)),
    }
    for name, outcomes in found.items():
        shares, excesses = zip(*outcomes, strict=True)
        result |= {f"{name}.share": min(shares), f"{name}.excess": max(excesses)}
    return result


def learned(
    name: str, num_limits: int, kind: str, seed: int, num_steps: int, num_episodes: int = 4000, **settings: Any
) -> tuple[float, float]:
    """Return share of the optimum and largest relative excess over a limit of one agent's sampled policy.

    Args:
        name: task.
        num_limits: limits at once.
        kind: what actions are.
        seed: of agent and environment; the fresh episodes have a seed of their own.
        num_steps: environment steps.
        num_episodes: fresh episodes.
        **settings: keywords of CVPO in place of those here.
    """
    from megopt.rl import CVPO
    from megopt.rl import tasks as known

    makers = {"bandit": known.bandit, "budget": known.budget}
    if name not in makers:
        message = f"benchmark rl_tasks: task {name!r}; expected one of {', '.join(makers)}; choose one"
        raise ConfigError(message)
    task = makers[name](num_limits)
    env = known.TaskVecEnv(task, kind, num_envs=_NUM_ENVS, seed=seed)  # type: ignore[arg-type]  # checked there
    chosen = {"gamma": _DISCOUNTS[name], "limits": task.limits.tolist(), "seed": seed, "device": "cpu"}
    agent = CVPO("MlpPolicy", env, **chosen | _settings(kind) | settings).learn(num_steps)
    reward, costs = known.played(agent, task, env.kind, num_episodes, seed=10_000 + seed)
    return reward / task.optimum(), float(np.max(costs / task.limits)) - 1.0


def _settings(kind: str) -> dict[str, Any]:
    """Return settings for networks this small: high rates that fade, and costs measured over half of the run.

    They fade with the square of what is left: a policy still swings about its limits at the rates of a linear end.

    The margin is for the luck of the states: half of 96,000 steps know a mean cost of the budget to about 1 %. A box
    cut into arms has good ends and a bad middle, which one Gaussian covers as a whole: it gets a histogram. Small trust
    regions where probabilities are learned: six states share little, and each swings about the limits by itself. A
    Gaussian has a spread to shrink, which takes as long as its regions are small.
    """
    histogram = {"num_bins": _NUM_BINS} if kind == "steps" else {}
    regions = {} if kind == "box" else {"max_kl": 0.02, "fit_kl": 0.002}
    return (
        histogram
        | regions
        | {
            "learning_rate": lambda remaining: 3e-3 * max(remaining**2, 0.01),
            "learning_starts": 1600,
            "batch_size": 128,
            "num_sampled_states": 64,
            "tau": 0.05,
            "measure_window": 24_000,
            "limit_margin": 0.01,
            "policy_kwargs": {"net_arch": [32, 32]},
        }
    )
