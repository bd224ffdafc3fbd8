"""Stopping a run and going on with it: all that the next step depends on, in one file.

    save_run(model, "run.megrun")
    model = load_run(CVPO, "run.megrun")
    model.learn(more_steps, reset_num_timesteps=False)

The file holds networks, slow copies, optimisers, duals, thresholds, replay buffer (where the algorithm keeps one),
environment and the state of all random generators: on the same machine the run goes on as if it had never stopped. Any
algorithm of stable-baselines3 can be kept so. It is read with pickle, so open only files that you trust.
"""

from __future__ import annotations

import io
import pickle
import random
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from megopt.errors import ConfigError
from megopt.files import write_atomically
from megopt.rl.buffer import CostReplayBuffer

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)
_FORMAT = "megopt run 1"


def save_run(model: BaseAlgorithm, path: str | Path, *, with_env: bool = True) -> Path:
    """Write all that a run depends on.

    Args:
        model: the agent, between two calls of `learn`.
        path: the file.
        with_env: whether to keep the environment; without it, a run goes on with a new episode.

    Raises:
        ConfigError: if the environment cannot be pickled.
    """
    archive = io.BytesIO()
    model.save(archive)
    run = {
        "format": _FORMAT,
        "model": archive.getvalue(),
        "buffer": getattr(model, "replay_buffer", None),
        "env": _pickled(model.env) if with_env else None,
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }
    return write_atomically(Path(path), lambda temporary: temporary.write_bytes(cloudpickle.dumps(run)))


def load_run(algorithm: type[Algorithm], path: str | Path, env: GymEnv | None = None, **settings: Any) -> Algorithm:
    """Return the agent of `save_run`, ready to go on with `learn(..., reset_num_timesteps=False)`.

    Args:
        algorithm: class of the agent.
        path: the file.
        env: an environment in place of the kept one; the run then goes on with a new episode.
        **settings: keywords of the algorithm's `load`.

    Raises:
        ConfigError: if the file is no run, or holds no environment and none is given.
    """
    run = _read(Path(path))
    if env is None and run["env"] is None:
        message = f"{path}: the run was kept without its environment; expected one; pass env=..."
        raise ConfigError(message)
    kept = None if env is not None else pickle.loads(run["env"])
    is_new = env is not None
    model = algorithm.load(io.BytesIO(run["model"]), env=env if is_new else kept, force_reset=is_new, **settings)
    if run["buffer"] is not None:
        _restore_buffer(model, run["buffer"], is_cut=is_new)
    random.setstate(run["python"])
    np.random.set_state(run["numpy"])  # noqa: NPY002
    th.set_rng_state(run["torch"])
    if run["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(run["cuda"])
    return model


def _restore_buffer(model: Any, buffer: Any, *, is_cut: bool) -> None:
    """Give a model its replay; with another environment the episodes that were under way count as cut."""
    model.replay_buffer = buffer
    buffer.device = model.device
    if is_cut and buffer.size() and isinstance(buffer, CostReplayBuffer):
        buffer.truncations[buffer.newest] |= ~buffer.terminations[buffer.newest]


def _pickled(env: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps(env))
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        message = f"save_run: the environment cannot be pickled ({error}); expected one that can; pass with_env=False"
        raise ConfigError(message) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        run = pickle.loads(path.read_bytes())
    except (pickle.UnpicklingError, EOFError, FileNotFoundError) as error:
        message = f"{path}: {error}; expected a file of save_run"
        raise ConfigError(message) from error
    if not isinstance(run, dict) or run.get("format") != _FORMAT:
        message = f"{path}: not of the format {_FORMAT!r}; expected a file of save_run of this version"
        raise ConfigError(message)
    return run
