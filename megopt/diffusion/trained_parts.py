"""Trained parts of the bundled models on disk: found by name below a working folder, and exported.

A part is kept in single precision below the working folder, with its card; `export_models` writes what the program
loads, in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from megopt.diffusion.attribute_network import AttributeNetwork
from megopt.diffusion.autoencoder import ShuffleAutoencoder
from megopt.diffusion.diffusers_classes import UNet2DConditionModel
from megopt.diffusion.model_export import CARD_FILE, read_card, save_network, save_pipeline
from megopt.diffusion.super_resolution_network import DiffusionSuperResolution, LightSuperResolution
from megopt.diffusion.training_denoiser import DenoiserShape
from megopt.errors import ConfigError

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


def export_models(folder: Path, target: Path) -> list[Path]:
    """Write every trained part below `folder` as a bundled model below `target`; return the folders written.

    Raises:
        ConfigError: if nothing is trained.
    """
    written = []
    if is_trained(folder, "autoencoder") and is_trained(folder, "text_encoder"):
        shared, kind = trained_shared(folder), autoencoder_part(folder)
        for name in (name for name in DENOISERS if is_trained(folder, name)):
            denoiser = UNet2DConditionModel.from_pretrained(folder / name / MODEL, local_files_only=True)
            cards = {part: read_card(folder / part / MODEL) for part in (kind, "text_encoder", name)}
            owner = None if name == "edge" or not (target / "edge").is_dir() else target / "edge"
            written.append(save_pipeline(denoiser, *shared, target / name, cards, shared_with=owner))
    for name, network_class in SINGLE_NETWORKS.items():
        if is_trained(folder, name):
            network = network_class.from_pretrained(folder / name / MODEL, local_files_only=True).float().eval()
            written.append(save_network(network, target / name, read_card(folder / name / MODEL)))
    if not written:
        message = f"{folder}: no trained parts to export; train them first, with `megopt train-models part=...`"
        raise ConfigError(message)
    return written


def is_trained(folder: Path, part: str) -> bool:
    """Return whether a part is trained, not just begun."""
    return (folder / part / MODEL / CARD_FILE).is_file()


def require_trained(folder: Path, part: str) -> Path:
    """Return the folder of a trained network.

    Raises:
        ConfigError: if it is not trained yet.
    """
    if not is_trained(folder, part):
        message = f"{folder / part}: not trained yet; run `megopt train-models part={part}` first"
        raise ConfigError(message)
    return folder / part / MODEL


def autoencoder_part(folder: Path) -> str:
    """Return which part holds the autoencoder: "decoder" once its decoder was trained further."""
    return "decoder" if is_trained(folder, "decoder") else "autoencoder"


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights in the folder of a trained part, by name.

    Raises:
        ConfigError: if there are none.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        message = f"start={folder}: no {WEIGHTS_FILE}; expected the folder of a trained part, such as {folder / MODEL}"
        raise ConfigError(message)
    return load_file(path)


def trained_shared(folder: Path) -> tuple[Any, Any, CLIPTokenizer]:
    """Return autoencoder, text encoder and tokenizer.

    Raises:
        ConfigError: if one of them is not trained yet.
    """
    kind = autoencoder_part(folder)
    autoencoder = ShuffleAutoencoder.from_pretrained(require_trained(folder, kind), local_files_only=True)
    text = require_trained(folder, "text_encoder")
    encoder: Any = CLIPTextModel.from_pretrained(text, local_files_only=True)
    return autoencoder.eval(), encoder.eval(), CLIPTokenizer.from_pretrained(text, local_files_only=True)
