"""The parts of the bundled models by name: what each is trained on, for how long, and where it goes.

    autoencoder -> decoder
    autoencoder, text_encoder -> edge, device
    attributes, sr_light, sr_diffusion

A part is saved in single precision below the working folder, with its card; `export_models` writes what the program
loads, in half precision.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from megopt.diffusion.attribute_network import AttributeNetwork, AttributeObjective
from megopt.diffusion.autoencoder import ShuffleAutoencoder
from megopt.diffusion.diffusers_classes import UNet2DConditionModel
from megopt.diffusion.model_export import CARD_FILE, ModelCard, num_parameters, read_card, save_network, save_pipeline
from megopt.diffusion.super_resolution_network import (
    DiffusionObjective,
    DiffusionSuperResolution,
    LightObjective,
    LightSuperResolution,
)
from megopt.diffusion.training import Trained, train
from megopt.diffusion.training_autoencoder import (
    AutoencoderObjective,
    AutoencoderShape,
    DecoderObjective,
    encode_all,
    normalise_latents,
)
from megopt.diffusion.training_data import SceneSet, joined, scene_set
from megopt.diffusion.training_denoiser import DenoiserObjective, DenoiserShape, LatentSet
from megopt.diffusion.training_objective import Objective, TrainingSettings
from megopt.diffusion.training_text import TextObjective, token_numbers
from megopt.errors import ConfigError
from megopt.files import write_atomically

DENOISERS: Mapping[str, tuple[DenoiserShape, float]] = {
    "edge": (DenoiserShape(widths=(64, 128), reads_text_at_16_px=True), 0.02),
    "device": (DenoiserShape(widths=(32, 64)), 0.03),
}
"""Shape and rate of inner convolutions of each denoiser."""
SINGLE_NETWORKS: Mapping[str, Any] = {
    "attributes": AttributeNetwork,
    "sr_light_x2": LightSuperResolution,
    "sr_light_x4": LightSuperResolution,
    "sr_diffusion_x2": DiffusionSuperResolution,
    "sr_diffusion_x4": DiffusionSuperResolution,
}
"""Class of each part that is no pipeline, by the name of its folder."""
MODEL = "model"
"""Folder of the trained network below that of its part."""
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_LARGE_PX = 256
_LARGE_PER_SMALL = 15
_TEST_SEED_STEP = 1
_NORMALISED_OVER = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRequest:
    """What to train and how long.

    Attributes:
        part: one of `PARTS`.
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
        device: "cpu", "cuda", ...
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
    device: str = "cpu"
    shows_progress: bool = True

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            message = f"part={self.part}: expected one of {', '.join(PARTS)}"
            raise ConfigError(message)
        if self.budget_min is not None and not self.budget_min > 0:
            message = f"budget_min={self.budget_min}: expected minutes > 0; change budget_min"
            raise ConfigError(message)

    def settings(self, **changes: Any) -> TrainingSettings:
        """Return the settings of a run."""
        budget_s = None if self.budget_min is None else 60.0 * self.budget_min
        return TrainingSettings(
            seed=self.seed, num_steps=self.num_steps, budget_s=budget_s, device=self.device, **changes
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
            initial=None if self.start is None else _weights(self.start),
            is_resumed=self.is_resumed,
            shows_progress=self.shows_progress,
        )

    @property
    def name(self) -> str:
        """Folder of the part."""
        return f"{self.part}_x{self.sr_scale}" if self.part.startswith("sr_") else self.part

    def card(self, trained: Trained, network: torch.nn.Module, metrics: Mapping[str, float]) -> ModelCard:
        """Return the card of a trained part."""
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
            settings=asdict(trained.settings),
            began_with=None if start is None else asdict(read_card(start)),
        )


def train_part(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train one part, or what is left of it, and save it.

    Returns:
        The part's folder and card.

    Raises:
        ConfigError: if a part that this one needs is not trained yet, or a checkpoint is of other settings.
        PipelineError: if a checkpoint cannot be read.
    """
    return PARTS[request.part](request)


def export_models(folder: Path, target: Path) -> list[Path]:
    """Write every trained part below `folder` as a bundled model below `target`; return the folders written.

    Raises:
        ConfigError: if nothing is trained.
    """
    written = []
    if _is_trained(folder, "autoencoder") and _is_trained(folder, "text_encoder"):
        shared, kind = _trained_shared(folder), _autoencoder_part(folder)
        for name in (name for name in DENOISERS if _is_trained(folder, name)):
            denoiser = UNet2DConditionModel.from_pretrained(folder / name / MODEL, local_files_only=True)
            cards = {part: read_card(folder / part / MODEL) for part in (kind, "text_encoder", name)}
            owner = None if name == "edge" or not (target / "edge").is_dir() else target / "edge"
            written.append(save_pipeline(denoiser, *shared, target / name, cards, shared_with=owner))
    for name, network_class in SINGLE_NETWORKS.items():
        if _is_trained(folder, name):
            network = network_class.from_pretrained(folder / name / MODEL, local_files_only=True).float().eval()
            written.append(save_network(network, target / name, read_card(folder / name / MODEL)))
    if not written:
        message = f"{folder}: no trained parts to export; train them first, with `megopt train-models part=...`"
        raise ConfigError(message)
    return written


def _is_trained(folder: Path, part: str) -> bool:
    return (folder / part / MODEL / CARD_FILE).is_file()


def _require_trained(folder: Path, part: str) -> Path:
    if not _is_trained(folder, part):
        message = f"{folder / part}: not trained yet; run `megopt train-models part={part}` first"
        raise ConfigError(message)
    return folder / part / MODEL


def _autoencoder_part(folder: Path) -> str:
    return "decoder" if _is_trained(folder, "decoder") else "autoencoder"


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        message = f"start={folder}: no {WEIGHTS_FILE}; expected the folder of a trained part, such as {folder / MODEL}"
        raise ConfigError(message)
    return load_file(path)


def _trained_shared(folder: Path) -> tuple[Any, Any, CLIPTokenizer]:
    kind = _autoencoder_part(folder)
    autoencoder = ShuffleAutoencoder.from_pretrained(_require_trained(folder, kind), local_files_only=True)
    text = _require_trained(folder, "text_encoder")
    encoder: Any = CLIPTextModel.from_pretrained(text, local_files_only=True)
    return autoencoder.eval(), encoder.eval(), CLIPTokenizer.from_pretrained(text, local_files_only=True)


def _autoencoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train encoder and decoder, then normalise the latents; the encoder is final."""
    shape = AutoencoderShape(latent_channels=request.latent_channels, latent_noise=request.latent_noise)
    scenes, test = request.scenes("train", request.num_scenes), joined(list(request.test_scenes().values()))
    objective = AutoencoderObjective(shape, scenes, test, request.device)
    settings = request.settings(batch_size=8, learning_rate=1.5e-3, inner_rate=0.02, warmup_steps=50)
    trained = request.run(objective, settings)
    network: Any = trained.network.to(request.device)
    normalise_latents(network, scenes.images[:_NORMALISED_OVER], request.device)
    card = request.card(trained, network, objective.evaluate(network))
    return save_network(network, request.folder / request.name / MODEL, card, torch.float32), card


def _decoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train the decoder of a trained autoencoder further; latents, and with them the denoisers, stay valid."""
    folder = _require_trained(request.folder, "autoencoder")
    autoencoder = ShuffleAutoencoder.from_pretrained(folder, local_files_only=True).to(request.device)
    scenes, test = request.scenes("train", request.num_scenes), joined(list(request.test_scenes().values()))
    latents = (
        cached_latents(request.folder, autoencoder, scenes, request.device),
        cached_latents(request.folder, autoencoder, scenes.reduced(2), request.device),
    )
    channels = autoencoder.config["latent_channels"]
    shape = AutoencoderShape(latent_channels=channels, latent_noise=request.latent_noise)
    objective = DecoderObjective(shape, autoencoder, latents, scenes, test, request.device)
    settings = request.settings(batch_size=8, learning_rate=1e-3, inner_rate=0.01, warmup_steps=50)
    return _one_run(request, objective, settings)


def _attributes(request: PartRequest) -> tuple[Path, ModelCard]:
    objective = AttributeObjective(request.scenes("train", request.num_scenes), request.test_scenes(), request.device)
    settings = request.settings(batch_size=48, learning_rate=1.5e-3, inner_rate=0.02, warmup_steps=50, ema_decay=0.998)
    return _one_run(request, objective, settings)


def _text_encoder(request: PartRequest) -> tuple[Path, ModelCard]:
    """Train the text encoder; what is saved is the encoder without its queries, and the tokenizer."""
    objective = TextObjective(
        request.scenes("train", request.num_scenes), request.test_scenes()["unseen"], request.device
    )
    trained = request.run(objective, request.settings(batch_size=128, learning_rate=1e-3, uses_bf16=False))
    encoder: Any = trained.network.encoder
    card = request.card(trained, encoder, trained.metrics)
    folder = save_network(encoder, request.folder / request.name / MODEL, card, torch.float32)
    objective.tokenizer.save_pretrained(folder)
    return folder, card


def _denoiser(request: PartRequest) -> tuple[Path, ModelCard]:
    autoencoder, encoder, tokenizer = _trained_shared(request.folder)
    autoencoder = autoencoder.to(request.device)
    shape, rate = DENOISERS[request.part]
    shape = replace(shape, latent_channels=autoencoder.config["latent_channels"], text_width=encoder.config.hidden_size)
    empty = token_numbers(tokenizer, ("",))[0]
    learnt, held_out = (
        LatentSet(
            latents=(
                cached_latents(request.folder, autoencoder, scenes, request.device),
                cached_latents(request.folder, autoencoder, scenes.reduced(2), request.device),
                cached_latents(request.folder, autoencoder, scenes.reduced(4), request.device),
            ),
            numbers=token_numbers(tokenizer, scenes.captions),
            empty=empty,
        )
        for scenes in (request.scenes("train", request.num_scenes), request.test_scenes()["unseen"])
    )
    objective = DenoiserObjective(shape, encoder, learnt, held_out, request.device)
    settings = request.settings(batch_size=32, learning_rate=1e-3, inner_rate=rate, ema_decay=0.999)
    return _one_run(request, objective, settings)


def _super_resolution(request: PartRequest) -> tuple[Path, ModelCard]:
    num, num_test = (max(1, n // _LARGE_PER_SMALL) for n in (request.num_scenes, request.num_test_scenes))
    train_scenes = request.scenes("train", request.num_scenes), request.scenes("train", num, _LARGE_PX)
    test_scenes = (
        request.scenes("unseen", request.num_test_scenes, is_test=True),
        request.scenes("unseen", num_test, _LARGE_PX, is_test=True),
    )
    kind = LightObjective if request.part == "sr_light" else DiffusionObjective
    objective = kind(train_scenes, test_scenes, scale=request.sr_scale, device=request.device)
    return _one_run(request, objective, request.settings(batch_size=16, learning_rate=2e-3, inner_rate=0.02))


def _one_run(request: PartRequest, objective: Objective, settings: TrainingSettings) -> tuple[Path, ModelCard]:
    trained = request.run(objective, settings)
    card = request.card(trained, trained.network, trained.metrics)
    return save_network(trained.network, request.folder / request.name / MODEL, card, torch.float32), card


def cached_latents(folder: Path, autoencoder: Any, scenes: SceneSet, device: str) -> torch.Tensor:
    """Return the latents of `scenes`, from a file of the same encoder and images if there is one."""
    digest = hashlib.sha256(scenes.images[:: max(1, len(scenes) // 64)].tobytes())
    for weight in autoencoder.encoder.state_dict().values():
        digest.update(weight.float().cpu().contiguous().numpy().tobytes())
    path = folder / "data" / f"latents_{len(scenes)}_{scenes.images.shape[1]}px_{digest.hexdigest()[:16]}.npy"
    if not path.is_file():
        latents = encode_all(autoencoder, scenes.images, device).numpy()
        write_atomically(path, lambda target: np.save(target, latents))
    return torch.from_numpy(np.load(path))


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, 1 thread"


PARTS: Mapping[str, Callable[[PartRequest], tuple[Path, ModelCard]]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "attributes": _attributes,
    "text_encoder": _text_encoder,
    "edge": _denoiser,
    "device": _denoiser,
    "sr_light": _super_resolution,
    "sr_diffusion": _super_resolution,
}
"""How each part is trained."""
