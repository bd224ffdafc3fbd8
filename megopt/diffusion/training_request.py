"""What to train and how long: the request that every part of the bundled models is trained by."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megopt.diffusion.latent_attributes import PerceptualSettings
from megopt.diffusion.model_export import ModelCard, num_parameters, read_card
from megopt.diffusion.super_resolution import SCALES
from megopt.diffusion.trained_parts import DENOISERS, MODEL, trained_weights
from megopt.diffusion.training import Trained, train
from megopt.diffusion.training_data import SceneSet, scene_set
from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.errors import ConfigError
from megopt.torch_devices import require_device

_TEST_SEED_STEP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRequest:
    """What to train and how long.

    Attributes:
        part: one of `training_parts.PARTS`.
        budget_min: wall-clock minutes of training, data not counted; None where `num_steps` is given.
        num_steps: steps of each run, for results that repeat exactly; None where `budget_min` is given.
        seed: of data, weights and noise; held-out scenes take the next one.
        start: folder of a trained part whose weights to begin with; None for random ones.
        is_resumed: whether to go on from checkpoints.
        folder: working folder: data, checkpoints, trained parts.
        num_scenes: training scenes.
        num_test_scenes: held-out scenes per split.
        latent_channels: of the autoencoder.
        latent_noise: that its decoder learns to bear, latents having deviation 1.
        sr_scale: of the super-resolution parts.
        rate_factor: times every part's own learning rates; below 1 to change trained weights gently.
        perceptual: what the loss of a denoiser looks at in the clean latents that it predicts.
        device: "cpu", "cuda", ...
        is_compiled: whether torch.compile makes the networks' kernels.
        shows_progress: whether to show bars.
    """

    part: str
    budget_min: float | None
    folder: Path
    num_steps: int | None = None
    seed: int = 1
    start: Path | None = None
    is_resumed: bool = True
    num_scenes: int = 61440
    num_test_scenes: int = 1024
    latent_channels: int = 8
    latent_noise: float = 0.03
    sr_scale: int = 2
    rate_factor: float = 1.0
    perceptual: PerceptualSettings = field(default_factory=PerceptualSettings)
    device: str = "cpu"
    is_compiled: bool = False
    shows_progress: bool = True

    def __post_init__(self) -> None:
        require_device("train-models", self.device)
        if self.budget_min is not None and not self.budget_min > 0:
            message = f"budget_min={self.budget_min}: expected minutes > 0; change budget_min"
            raise ConfigError(message)
        if not self.rate_factor > 0:
            message = f"rate_factor={self.rate_factor}: expected a number > 0; change rate_factor"
            raise ConfigError(message)
        if self.sr_scale not in SCALES:
            message = f"sr_scale={self.sr_scale}: expected one of {', '.join(map(str, SCALES))}; change sr_scale"
            raise ConfigError(message)
        if self.perceptual.weight and self.part not in DENOISERS:
            message = (
                f"perceptual.weight={self.perceptual.weight} with part={self.part}: expected one of "
                f"{', '.join(DENOISERS)}; leave it out for other parts"
            )
            raise ConfigError(message)

    def settings(self, **changes: Any) -> TrainingSettings:
        """Return the settings of a run; from trained weights, it draws other noise than the runs before."""
        budget_s = None if self.budget_min is None else 60.0 * self.budget_min
        for name in changes.keys() & {"learning_rate", "inner_rate"}:
            changes[name] *= self.rate_factor
        return TrainingSettings(
            seed=self.seed if self.start is None else _seed_after(self.seed, read_card(self.start)),
            num_steps=self.num_steps,
            budget_s=budget_s,
            device=self.device,
            is_compiled=self.is_compiled,
            **changes,
        )

    def scenes(self, split: str, num: int, resolution_px: int = 64, *, is_test: bool = False) -> SceneSet:
        """Return training or held-out scenes."""
        return scene_set(
            self.folder / "data",
            split,
            num,
            resolution_px=resolution_px,
            seed=self.seed + _TEST_SEED_STEP * is_test,
            shows_progress=self.shows_progress,
        )

    def test_scenes(self, num: int | None = None) -> dict[str, SceneSet]:
        """Return held-out scenes with captions that training may contain, and with captions that it cannot."""
        num = num or self.num_test_scenes
        return {"seen": self.scenes("train", num, is_test=True), "unseen": self.scenes("unseen", num, is_test=True)}

    def run(self, objective: Objective, settings: TrainingSettings) -> Trained:
        """Train below the part's folder."""
        return train(
            objective,
            settings,
            self.folder / self.name,
            initial=None if self.start is None else trained_weights(self.start),
            is_resumed=self.is_resumed,
            shows_progress=self.shows_progress,
        )

    @property
    def name(self) -> str:
        """Folder of the part."""
        return f"{self.part}_x{self.sr_scale}" if self.part.startswith("sr_") else self.part

    def card(
        self,
        trained: Trained,
        network: torch.nn.Module,
        metrics: Mapping[str, float],
        extra_settings: Mapping[str, Any] | None = None,
    ) -> ModelCard:
        """Return the card of a trained part.

        Args:
            trained: the run.
            network: what it made.
            metrics: on held-out scenes.
            extra_settings: of the loss, beside those of the run; None for none.
        """
        start = self.start or (self.folder / "autoencoder" / MODEL if self.part == "decoder" else None)
        return ModelCard(
            part=self.name,
            data=f"{self.num_scenes} procedural scenes, training captions only, seed {self.seed}",
            seed=self.seed,
            num_steps=trained.num_steps,
            training_s=round(trained.seconds, 1),
            hardware=_hardware(self.device),
            num_parameters=num_parameters(network),
            metrics=dict(metrics),
            settings={**asdict(trained.settings), **(extra_settings or {})},
            began_with=None if start is None else asdict(read_card(start)),
        )


def _seed_after(seed: int, card: ModelCard) -> int:
    """Return the seed of a run that begins with the weights of `card`: of data order and noise, not of the scenes."""
    return int(np.random.SeedSequence((seed, card.num_steps, card.seed)).generate_state(1)[0])


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread"
