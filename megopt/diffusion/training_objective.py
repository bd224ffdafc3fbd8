"""What the training loop is given: how long and how to train, and what on what."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from megopt.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How long and how a network is trained. One of `num_steps` and `budget_s` is given.

    Attributes:
        seed: of the initial weights, the order of the data and the noise.
        num_steps: steps of the whole run; such a run has the same result every time.
        budget_s: wall-clock seconds of the whole run, pauses not counted; the result depends on the machine.
        batch_size: samples per step.
        learning_rate: base of the annealing, for AdamW.
        inner_rate: base of the annealing for inner convolutions, by `OrthogonalMomentum`; None for AdamW there too.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        warmup_steps: steps of linear warm-up.
        ema_decay: of the moving average of the weights, which is what a run returns.
        checkpoint_every_s: seconds between checkpoints.
        log_every: steps between log lines.
        evaluate_every_s: seconds between evaluations of the average.
        device: "cpu", "cuda", ...
        uses_bf16: whether the forward pass runs under bf16 autocast.
        is_compiled: whether torch.compile makes the network's kernels, which needs a C++ compiler on a CPU.
    """

    seed: int
    num_steps: int | None = None
    budget_s: float | None = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    inner_rate: float | None = None
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup_steps: int = 100
    ema_decay: float = 0.999
    checkpoint_every_s: float = 60.0
    log_every: int = 50
    evaluate_every_s: float = 300.0
    device: str = "cpu"
    uses_bf16: bool = True
    is_compiled: bool = False

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.budget_s is None):
            message = f"training: num_steps {self.num_steps}, budget_s {self.budget_s}; expected one of the two"
            raise ConfigError(message)
        for name in ("num_steps", "budget_s", "batch_size", "learning_rate", "clip_norm", "warmup_steps", "log_every"):
            came = getattr(self, name)
            if came is not None and not came > 0:
                message = f"training: {name} is {came}; expected a number > 0; change {name}"
                raise ConfigError(message)


class Objective(ABC):
    """What is trained on what: a network, a loss on rows of a data set, and what to watch."""

    num_samples: int
    """Rows of the data set."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with initial weights; torch's generator is seeded around the call."""

    @abstractmethod
    def loss(self, network: nn.Module, rows: torch.Tensor, rng: torch.Generator, progress: float) -> torch.Tensor:
        """Return the mean loss, a scalar.

        Args:
            network: what `build` returned.
            rows: rows of the data set, shape (batch_size,).
            rng: the only source of randomness, on the CPU.
            progress: share of the run that is done, in [0, 1).
        """

    def may_be_new(self, name: str) -> bool:
        """Return whether initial weights may lack this one; its own initial value must then leave the output as is."""
        return False

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Return what to log about the averaged network."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return plain data that must be the same for a run to be resumed."""
        return {}
