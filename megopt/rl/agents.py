"""Learning algorithms by name: build an agent, keep it, stop and go on with it, and read its action probabilities.

Agents that only act are kept in stable-baselines3's zip; runs that go on later in the files of `megopt.rl.resume`.
Both hold pickles, so open only files that you trust.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError, MegoptError
from megopt.files import write_atomically
from megopt.rl.settings import checked_settings
from megopt.torch_devices import require_device

CLASSES = {
    "cvpo": ("megopt.rl.cvpo", "CVPO"),
    "ppo_lag": ("megopt.rl.lagrangian", "PPOLag"),
    "sac_lag": ("megopt.rl.lagrangian", "SACLag"),
    "td3_lag": ("megopt.rl.lagrangian", "TD3Lag"),
    "ddpg_lag": ("megopt.rl.lagrangian", "DDPGLag"),
    "ppo": ("stable_baselines3", "PPO"),
    "sac": ("stable_baselines3", "SAC"),
}
"""Module and class of each algorithm."""
UNLIMITED = ("ppo", "sac")
"""Algorithms that know no limits."""
_DRAWS = 256
"""Actions per state from which probabilities are counted where the policy is a density."""


def class_of(algorithm: str) -> Any:
    """Return the class of an algorithm.

    Raises:
        ConfigError: for a name that is not in `CLASSES`.
    """
    if algorithm not in CLASSES:
        message = f"algorithm {algorithm!r}: expected one of {', '.join(CLASSES)}; choose one"
        raise ConfigError(message)
    module, name = CLASSES[algorithm]
    return getattr(importlib.import_module(module), name)


def new_agent(
    algorithm: str, env: Any, limits: Sequence[float], seed: int, settings: Mapping[str, Any], device: str = "cpu"
) -> Any:
    """Return an agent that has not learned yet.

    Args:
        algorithm: a name of `CLASSES`.
        env: environment of stable-baselines3.
        limits: limit of each mean cost per step; algorithms without limits leave them out.
        seed: of everything that is drawn.
        settings: keywords of the algorithm's class.
        device: of the networks; "auto" for a GPU where there is one.

    Raises:
        ConfigError: for an unknown algorithm, a setting that it does not take or a device that is not there, or an
            algorithm with limits where there are none.
    """
    agent_class = class_of(algorithm)
    bounds = {} if algorithm in UNLIMITED else {"limits": list(limits)}
    where = f"algorithm {algorithm}"
    _require_device(where, device)
    own = deepcopy(checked_settings(where, settings))  # stable-baselines3 writes into policy_kwargs
    try:
        agent = agent_class("MlpPolicy", env, seed=seed, device=device, **bounds, **own)
    except MegoptError:
        raise
    except TypeError as error:
        if "argument" not in str(error):
            raise
        message = f"{where}: {error}; expected keywords of {agent_class.__name__}; change its settings"
        raise ConfigError(message) from error
    except (ValueError, AssertionError) as error:
        if not _is_of_library(error):
            raise
        message = f"{where}: {error}; expected what {agent_class.__name__} takes; change its settings"
        raise ConfigError(message) from error
    _require_updates(where, agent)
    return agent


def _require_device(where: str, device: str) -> None:
    if device != "auto":  # stable-baselines3's word for a GPU where there is one
        require_device(where, device)


def _is_of_library(error: Exception) -> bool:
    """Return whether stable-baselines3 raised it, and no code of ours or of PyTorch."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and str(at.tb_frame.f_globals.get("__name__", "")).startswith("stable_baselines3")


def _require_updates(where: str, agent: Any) -> None:
    every = getattr(agent, "train_freq", None)  # PPO has none
    if every is None:
        return
    if every.unit.value == "episode" and agent.n_envs > 1:
        message = (
            f"{where}: train_freq is {every.frequency} episodes of {agent.n_envs} environments; expected "
            "steps, or episodes of one environment; change train_freq"
        )
        raise ConfigError(message)
    if agent.gradient_steps == 0:
        message = (
            f"{where}: gradient_steps is 0, so nothing is learned; expected a whole number from 1, or -1 "
            "for one per step; change gradient_steps"
        )
        raise ConfigError(message)


def save_agent(agent: Any, path: Path) -> Path:
    """Write what is needed to act, without replay, as stable-baselines3's zip."""

    def write(target: Path) -> None:
        with target.open("wb") as file:
            agent.save(file)

    return write_atomically(path, write)


def load_agent(algorithm: str, path: Path, device: str = "cpu") -> Any:
    """Return an agent of `save_agent`, ready to act.

    Raises:
        ConfigError: for an unknown algorithm or a file that cannot be read as one of its agents.
    """
    agent_class = class_of(algorithm)
    try:
        return agent_class.load(path, device=device)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        message = f"{path}: {error}; expected an agent of {algorithm}, as `megopt train` writes it"
        raise ConfigError(message) from error


def save_state(agent: Any, path: Path) -> Path:
    """Write all that a run depends on; see `megopt.rl.resume.save_run`."""
    from megopt.rl.resume import save_run

    return save_run(agent, path)


def load_state(algorithm: str, path: Path, device: str = "cpu") -> Any:
    """Return the agent of `save_state`, ready to go on with `learn(..., reset_num_timesteps=False)`.

    Raises:
        ConfigError: for an unknown algorithm, a file that is no such run, or a device that is not there.
    """
    from megopt.rl.resume import load_run

    _require_device(f"algorithm {algorithm}", device)
    return load_run(class_of(algorithm), path, device=device)


def asks_for_masks(agent: Any) -> bool:
    """Return whether an agent was trained to keep to its environment's `action_masks()`."""
    return bool(getattr(agent, "asks_for_masks", False))


def actions_of(
    agent: Any,
    observations: NDArray[np.float32],
    rng: np.random.Generator,
    *,
    is_sampled: bool,
    masks: BoolArray | None = None,
) -> NDArray[Any]:
    """Return actions, drawn with `rng` and without touching any other random generator.

    Args:
        agent: the agent.
        observations: shape (num_states, num_fields).
        rng: seeds the draw.
        is_sampled: whether to sample the policy; else its mean or likeliest action.
        masks: legal choices, shape (num_states, num_choices), for agents that `asks_for_masks`.
    """
    legal = {} if masks is None else {"action_masks": masks}
    with _own_randomness(rng):
        actions, _ = agent.predict(observations, deterministic=not is_sampled, **legal)
    return cast("NDArray[Any]", actions)


def probabilities(agent: Any, observations: NDArray[np.float32]) -> FloatArray | None:
    """Return the probability of each Discrete action, shape (num_states, num_actions); None for other spaces."""
    import torch
    from gymnasium import spaces

    if not isinstance(agent.action_space, spaces.Discrete):
        return None
    policy = agent.policy
    if hasattr(policy, "probabilities"):
        return np.asarray(policy.probabilities(observations))
    policy.set_training_mode(False)
    with torch.no_grad():
        states, _ = policy.obs_to_tensor(observations)
        shares = policy.get_distribution(states).distribution.probs.cpu().numpy().astype(np.float64)
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def drawn_actions(agent: Any, observations: NDArray[np.float32], rng: np.random.Generator) -> NDArray[Any]:
    """Return actions to count probabilities from, shape (num_states, num_draws, ...)."""
    repeated = np.repeat(observations, _DRAWS, axis=0)
    actions = actions_of(agent, repeated, rng, is_sampled=True)
    return actions.reshape(len(observations), _DRAWS, *actions.shape[1:])


@contextmanager
def _own_randomness(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch from `rng` and put its generator back afterwards."""
    import torch

    before = torch.get_rng_state()
    torch.manual_seed(int(rng.integers(2**62)))
    try:
        yield
    finally:
        torch.set_rng_state(before)
