"""The models that come with megopt: where they lie, and how they are loaded. None needs a network.

| name | what |
|---|---|
| bundled/edge | text-to-image pipeline, the larger denoiser |
| bundled/device | the smaller denoiser; latent space, text encoder and autoencoder are those of bundled/edge |
| attributes | reads from an image what its caption tells: `load_judge` |
| sr_light_x2, sr_light_x4, sr_diffusion_x2, sr_diffusion_x4 | super-resolution: `load_upscaler` |
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megopt.errors import PipelineError

if TYPE_CHECKING:
    from megopt.diffusion.attribute_network import AttributeNetwork
    from megopt.diffusion.super_resolution import Upscaler

MODELS_DIR = Path(__file__).resolve().parent / "models"
PREFIX = "bundled/"
PIPELINES = ("edge", "device")
DIFFUSION_SR_STEPS = 8
"""Steps of a bundled diffusion upscaler."""


def located(model: str | Path) -> str | Path:
    """Return the folder of a bundled pipeline for its name, and anything else as it came.

    Raises:
        PipelineError: for a name that begins as a bundled one and is none.
    """
    if not str(model).startswith(PREFIX):
        return model
    name = str(model).removeprefix(PREFIX)
    if name not in PIPELINES:
        known = ", ".join(f"{PREFIX}{one}" for one in PIPELINES)
        message = f"{model}: no bundled pipeline; expected one of {known}, a folder or the name of a model on the hub"
        raise PipelineError(message)
    return _present(name)


def load_judge() -> AttributeNetwork:
    """Return the network that reads attributes, in evaluation mode."""
    from megopt.diffusion.attribute_network import load_attribute_network

    return load_attribute_network(_present("attributes"))


def load_upscaler(kind: str, scale: int) -> Upscaler:
    """Return a bundled upscaler.

    Args:
        kind: "light" or "diffusion".
        scale: one of `super_resolution.SCALES`.

    Raises:
        PipelineError: if there is none of that kind and scale.
    """
    from megopt.diffusion.super_resolution import DiffusionUpscaler, NetworkUpscaler
    from megopt.diffusion.super_resolution_network import (
        RESIDUAL_SCALE,
        DiffusionSuperResolution,
        LightSuperResolution,
        residual_schedule,
    )

    folder = _present(f"sr_{kind}_x{scale}")
    network_class = LightSuperResolution if kind == "light" else DiffusionSuperResolution
    network = network_class.from_pretrained(folder, local_files_only=True).float().eval()
    if kind == "light":
        return NetworkUpscaler(network=network, scale=scale)
    return DiffusionUpscaler(
        network=network,
        scheduler=residual_schedule(),
        scale=scale,
        num_steps=DIFFUSION_SR_STEPS,
        residual_scale=RESIDUAL_SCALE,
    )


def _present(name: str) -> Path:
    folder = MODELS_DIR / name
    if not folder.is_dir():
        message = f"{folder}: not there; train it with `megopt train-models`, and write it with part=export"
        raise PipelineError(message)
    return folder
