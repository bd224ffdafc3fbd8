"""Bundled models on disk: half-precision safetensors, a model card in JSON, whole pipelines or single networks."""

from __future__ import annotations

import json
import platform
import shutil
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megopt import __version__
from megopt.diffusion.diffusers_classes import StableDiffusionPipeline
from megopt.diffusion.training_denoiser import noise_schedule
from megopt.errors import ConfigError, PipelineError
from megopt.files import write_atomically

CARD_FILE = "model_card.json"
_READABLE = 0o644
SHARED_PARTS = ("vae", "text_encoder", "tokenizer")
"""Parts that pipelines of one latent space have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Where a network comes from and how good it is.

    Attributes:
        part: what it is.
        data: what it was trained on, in words.
        seed: of the run.
        num_steps: optimiser steps.
        training_s: wall-clock seconds.
        hardware: what it was trained on.
        num_parameters: weights, biases included.
        metrics: held-out results, named with their unit.
        settings: how it was trained.
        began_with: card of the network that it began with; None for random weights.
        versions: of the libraries.
    """

    part: str
    data: str
    seed: int
    num_steps: int
    training_s: float
    hardware: str
    num_parameters: int
    metrics: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    began_with: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    def write(self, folder: Path) -> Path:
        """Write the card into `folder`."""
        text = json.dumps(asdict(self), indent=2) + "\n"
        return write_atomically(folder / CARD_FILE, lambda target: target.write_text(text, encoding="utf-8"))


def library_versions() -> dict[str, str]:
    """Return the versions that a model was trained with."""
    import diffusers
    import transformers

    return {
        "megopt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }


def read_card(folder: Path) -> ModelCard:
    """Return the card in `folder`.

    Raises:
        ConfigError: if there is none, or it is not one.
    """
    path = folder / CARD_FILE
    try:
        return ModelCard(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        message = f"{path}: {error}; expected the card of a trained part; train it with `megopt train-models part=...`"
        raise ConfigError(message) from error


def num_parameters(network: nn.Module) -> int:
    """Return the number of weights, biases included."""
    return sum(weight.numel() for weight in network.parameters())


def save_network(network: Any, folder: Path, card: ModelCard, dtype: torch.dtype = torch.float16) -> Path:
    """Save a diffusers or transformers network as safetensors, beside its card; an old folder is replaced whole."""
    fresh = _fresh(folder)
    deepcopy(network).to(dtype).to(memory_format=torch.contiguous_format).save_pretrained(fresh)
    card.write(fresh)
    return _replaced(fresh, folder)


def save_pipeline(
    denoiser: Any,
    autoencoder: Any,
    text_encoder: Any,
    tokenizer: Any,
    folder: Path,
    cards: dict[str, ModelCard],
    *,
    shared_with: Path | None = None,
) -> Path:
    """Save a StableDiffusionPipeline in half precision, with the cards of its parts.

    Args:
        denoiser: a UNet2DConditionModel trained on `noise_schedule`.
        autoencoder: a ShuffleAutoencoder with normalised latents.
        text_encoder: a CLIPTextModel.
        tokenizer: its tokenizer.
        folder: where to; an old folder is replaced whole.
        cards: by part.
        shared_with: folder of a pipeline beside this one whose `SHARED_PARTS` are linked to instead of written again.

    Raises:
        PipelineError: if `shared_with` lacks such a part.
    """
    pipeline = StableDiffusionPipeline(
        vae=deepcopy(autoencoder),
        text_encoder=deepcopy(text_encoder),
        tokenizer=tokenizer,
        unet=deepcopy(denoiser),
        scheduler=noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    fresh = _fresh(folder)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        part.to(dtype=torch.float16, memory_format=torch.contiguous_format)
    pipeline.save_pretrained(fresh)
    _name_autoencoder(fresh / "model_index.json", autoencoder)
    if shared_with is not None:
        _link_parts(fresh, shared_with)
    text = json.dumps({part: asdict(card) for part, card in cards.items()}, indent=2) + "\n"
    write_atomically(fresh / CARD_FILE, lambda target: target.write_text(text, encoding="utf-8"))
    return _replaced(fresh, folder)


def _name_autoencoder(index: Path, autoencoder: Any) -> None:
    """State the module of the autoencoder's class, which `diffusers` then imports; it writes the package alone."""
    content = json.loads(index.read_text(encoding="utf-8"))
    if not type(autoencoder).__module__.startswith("diffusers."):
        content["vae"] = [type(autoencoder).__module__, type(autoencoder).__name__]
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(index, lambda target: target.write_text(text, encoding="utf-8"))


def _link_parts(folder: Path, owner: Path) -> None:
    """Replace the shared parts of a saved pipeline by relative links to those of `owner`, a folder beside it."""
    for part in SHARED_PARTS:
        if owner.parent != folder.parent or not (owner / part).is_dir():
            message = f"{owner}: no {part} beside {folder.name}; export the pipeline that owns the shared parts first"
            raise PipelineError(message)
        shutil.rmtree(folder / part)
        (folder / part).symlink_to(Path("..") / owner.name / part, target_is_directory=True)


def _fresh(folder: Path) -> Path:
    """Return an empty folder beside `folder`, to be moved into place when it is complete."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    return fresh


def _replaced(fresh: Path, folder: Path) -> Path:
    """Move a complete folder into place."""
    for path in fresh.rglob("*.safetensors"):
        path.chmod(_READABLE)  # safetensors makes files that only their owner can read
    shutil.rmtree(folder, ignore_errors=True)
    return fresh.rename(folder)
