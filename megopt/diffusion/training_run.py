"""The state of a training run, its checkpoint and its log on disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from megopt.diffusion.orthogonal_momentum import OrthogonalMomentum, split_weights
from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.errors import ConfigError, PipelineError
from megopt.files import write_atomically

CHECKPOINT_FILE = "checkpoint.pt"
LOG_FILE = "log.jsonl"
VERSION = 1
_FREE_SETTINGS = {"checkpoint_every_s", "log_every", "evaluate_every_s", "device"}
"""Settings that may change between a stop and a resume."""


@dataclass(slots=True, kw_only=True)
class Run:
    """What changes from step to step; everything that a checkpoint holds."""

    network: nn.Module
    average: list[torch.Tensor]
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)

    def parameters(self) -> list[nn.Parameter]:
        """Return the weights that are trained."""
        return [weight for weight in self.network.parameters() if weight.requires_grad]

    def averaged(self) -> nn.Module:
        """Return a copy of the network with averaged weights, in evaluation mode."""
        copy = deepcopy(self.network).eval()
        trained = [weight for weight in copy.parameters() if weight.requires_grad]
        with torch.no_grad():
            for weight, mean in zip(trained, self.average, strict=True):
                weight.copy_(mean)
        return copy


def begin(objective: Objective, settings: TrainingSettings, initial: Mapping[str, torch.Tensor] | None) -> Run:
    """Return a run at step 0, from random or from `initial` weights.

    Raises:
        ConfigError: if `initial` is of another network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = objective.build().to(settings.device).train()
    if initial is not None:
        try:
            own = {name: weight for name, weight in network.state_dict().items() if objective.may_be_new(name)}
            network.load_state_dict({**own, **initial})
        except RuntimeError as error:
            message = f"initial weights: {error}; expected those of the same part and size"
            raise ConfigError(message) from error
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return Run(
        network=network,
        average=[weight.detach().clone() for weight in weights],
        optimizers=_optimizers(network, settings),
    )


def _optimizers(network: nn.Module, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    inner, other = split_weights(network)
    optimizers: list[torch.optim.Optimizer] = []
    if settings.inner_rate is None:
        other += inner
    elif inner:
        optimizers.append(OrthogonalMomentum(inner, lr=settings.inner_rate))
    decay = settings.weight_decay
    optimizers.append(
        torch.optim.AdamW(other, lr=settings.learning_rate, weight_decay=decay, betas=(0.9, 0.99), fused=True)
    )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def log(folder: Path, run: Run, entry: Mapping[str, Any]) -> None:
    """Append one JSON line with step, seconds and the mean loss since the last line."""
    line = {"step": run.step, "elapsed_s": round(run.elapsed_s, 2)}
    if run.losses:
        line["loss"] = float(np.mean(run.losses))
    run.losses.clear()
    with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, **entry}) + "\n")


def forget_later_lines(path: Path, step: int) -> None:
    """Drop lines that a stopped run wrote after its last checkpoint."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    write_atomically(path, lambda target: target.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8"))


def _identity(objective: Objective, settings: TrainingSettings) -> str:
    """Return what must not change between a stop and a resume, as text."""
    kept = {name: value for name, value in asdict(settings).items() if name not in _FREE_SETTINGS}
    return json.dumps({**kept, **objective.describe()}, sort_keys=True)


def save(run: Run, objective: Objective, settings: TrainingSettings, path: Path) -> None:
    """Write a checkpoint; a reader finds the old one or the new one."""
    state = {
        "version": VERSION,
        "identity": _identity(objective, settings),
        "step": run.step,
        "elapsed_s": run.elapsed_s,
        "network": run.network.state_dict(),
        "average": run.average,
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
    }
    write_atomically(path, lambda target: torch.save(state, target))


def restore(run: Run, objective: Objective, settings: TrainingSettings, path: Path) -> None:
    """Put `run` into the state of a checkpoint."""
    try:
        state = torch.load(path, map_location=settings.device, weights_only=True)
        version, came = state["version"], json.loads(state["identity"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        message = f"{path}: {error}; expected a checkpoint of training; delete it, or give resume=false to begin anew"
        raise PipelineError(message) from error
    expected = json.loads(_identity(objective, settings)) | {"version": VERSION}
    came = came | {"version": version}
    other = [
        f"{key} {came.get(key)!r} against {expected.get(key)!r}"
        for key in {**came, **expected}
        if came.get(key) != expected.get(key)
    ]
    if other:
        message = (
            f"{path}: of another run: {'; '.join(sorted(other))}; give its settings, or resume=false to begin anew"
        )
        raise ConfigError(message)
    run.network.load_state_dict(state["network"])
    for optimizer, past in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(past)
    run.average = [mean.to(weight.device) for mean, weight in zip(state["average"], run.parameters(), strict=True)]
    run.step, run.elapsed_s = int(state["step"]), float(state["elapsed_s"])
