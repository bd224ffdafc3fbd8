"""Speed of CVPO beside stable-baselines3's SAC: same environment, same layers, same batches, same run.

The environment is `megopt/Request-v0` with both of its limits; SAC sees rewards alone. The algorithms take turns, so
that what other programs on the machine take falls on all of them, and the shortest time over the turns counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from megopt.envs import scenarios
from megopt.problem import ceilings
from megopt.ranges import require_whole
from megopt.rl.settings import checked_settings
from megopt.torch_devices import set_threads

_WARM_UP_STEPS = 64


def run(
    num_envs: int = 16,
    num_steps: int = 128,
    num_updates: int = 20,
    batch_size: int = 256,
    net_arch: Sequence[int] = (256, 256),
    repeats: int = 5,
    num_threads: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Return rates and their ratios; `box` and `discrete` are the actions that CVPO takes, SAC's are a box.

    - update_ratio.box, update_ratio.discrete: time per update of CVPO over that of SAC; below 1 is faster.
    - step_ratio.box, step_ratio.discrete: environment steps per second of CVPO over those of SAC, without updates.
    - <algorithm>.updates_per_s: gradient updates a second: critics, E-step and actor, or SAC's own.
    - <algorithm>.steps_per_s: environment steps a second, with the policy acting, stored in replay.

    Args:
        num_envs: devices side by side [1].
        num_steps: steps of all devices that are timed at a time [1].
        num_updates: updates that are timed at a time [1].
        batch_size: transitions per update [1].
        net_arch: widths of the hidden layers of all networks [1].
        repeats: the best of so many turns counts [1].
        num_threads: of a CPU, for the networks of all; one as in `megopt train` [1].
        seed: of environments and networks.

    Raises:
        ConfigError: for a number that is none or too small.
    """
    where = "benchmark rl"
    require_whole(where, 1, num_envs=num_envs, num_steps=num_steps, num_updates=num_updates, repeats=repeats)
    require_whole(where, 0, seed=seed)
    layers = list(net_arch)
    checked_settings(where, {"batch_size": batch_size, "policy_kwargs": {"net_arch": layers}})
    set_threads(where, num_threads)
    agents = _agents(num_envs, batch_size, layers, seed)
    works: list[Callable[[], float]] = []
    for agent in agents.values():
        works += [_stepping(agent, num_steps), _updating(agent, num_updates, batch_size)]
    seconds = _shortest_seconds(works, repeats)
    step_s = dict(zip(agents, seconds[::2], strict=True))
    update_s = dict(zip(agents, seconds[1::2], strict=True))
    peer = "sac"
    kinds = {name.split(".")[1]: name for name in agents if name != peer}
    result = {f"update_ratio.{kind}": update_s[name] / update_s[peer] for kind, name in kinds.items()}
    result |= {f"step_ratio.{kind}": step_s[peer] / step_s[name] for kind, name in kinds.items()}
    for name in agents:
        result[f"{name}.updates_per_s"] = num_updates / update_s[name]
        result[f"{name}.steps_per_s"] = num_envs * num_steps / step_s[name]
    return result


def _agents(num_envs: int, batch_size: int, layers: list[int], seed: int) -> dict[str, Any]:
    """Return all agents past their random steps."""
    from stable_baselines3 import SAC

    from megopt.envs.sb3 import RequestVecEnv
    from megopt.rl.cvpo import CVPO

    limits = ceilings(scenarios.request().problem)
    num_first = max(_WARM_UP_STEPS * num_envs, batch_size)
    shared: dict[str, Any] = {"learning_starts": num_first, "batch_size": batch_size, "buffer_size": 100_000}
    shared |= {"gradient_steps": 0, "train_freq": 1, "seed": seed, "device": "cpu"}
    bounded = {"limits": list(limits)}
    peers: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "sac": (SAC, "box", {}),
        "cvpo.box": (CVPO, "box", bounded),
        "cvpo.discrete": (CVPO, "discrete", bounded),
    }
    agents: dict[str, Any] = {}
    for name, (algorithm, kind, bounds) in peers.items():
        env = RequestVecEnv(num_envs, actions=kind)
        agents[name] = algorithm("MlpPolicy", env, policy_kwargs={"net_arch": list(layers)}, **bounds, **shared)
    for agent in agents.values():
        agent.learn(num_first + num_envs)
    return agents


def _stepping(agent: Any, num_steps: int) -> Callable[[], float]:
    """Return what takes steps of all devices, and tells how long they took [s]."""

    def timed() -> float:
        start = time.perf_counter()
        agent.learn(num_steps * agent.n_envs, reset_num_timesteps=False)
        return time.perf_counter() - start

    return timed


def _updating(agent: Any, num_updates: int, batch_size: int) -> Callable[[], float]:
    """Return what makes updates, each after one step of all devices as in training, and tells how long they took [s].

    CVPO compares its critics with the costs of the steps since the last update, so how many these are is part of it.
    """

    def timed() -> float:
        """Return how long the updates took [s]."""
        seconds = 0.0
        for _ in range(num_updates):
            agent.learn(agent.n_envs, reset_num_timesteps=False)
            start = time.perf_counter()
            agent.train(1, batch_size)
            seconds += time.perf_counter() - start
        return seconds

    return timed


def _shortest_seconds(works: list[Callable[[], float]], repeats: int) -> list[float]:
    """Return the shortest time that each work tells [s]; they take turns, the first of which is not counted."""
    least = np.full(len(works), np.inf)
    for repeat in range(repeats + 1):
        for number, work in enumerate(works):
            seconds = work()
            if repeat:
                least[number] = min(least[number], seconds)
    return [float(seconds) for seconds in least]
