"""The models that come with megopt: where they lie, and how they are loaded. None needs a network.

| name | what |
|---|---|
| bundled/edge | text-to-image pipeline, the larger denoiser |
| bundled/device | the smaller denoiser; latent space, text encoder and autoencoder are those of bundled/edge |
| attributes | reads from an image what its caption tells: `load_judge` |
| sr_light_x2, sr_light_x4, sr_diffusion_x2, sr_diffusion_x4 | super-resolution: `load_upscaler` |
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from megopt.errors import PipelineError

if TYPE_CHECKING:
    from megopt.diffusion.attribute_network import AttributeNetwork
    from megopt.diffusion.super_resolution import Upscaler

MODELS_DIR = Path(__file__).resolve().parent / "models"
PREFIX = "bundled/"
PIPELINES = ("edge", "device")
DIFFUSION_SR_STEPS = 4
"""Steps of a bundled diffusion upscaler."""
HYBRID_TILINGS = {2: (12, 2, 0)}
"""`patch_px`, `overlap_px` and `context_px` of a bundled hybrid upscaler by scale.

An image of 32 px makes nine patches of 1.27 times its pixels, four of them with foreground; one of 16 px, which is
enlarged by 4, is too small to be worth it."""


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


def has_upscaler(kind: str, scale: int) -> bool:
    """Return whether there is a bundled upscaler of that kind and scale; see `load_upscaler`."""
    if kind == "hybrid":
        return scale in HYBRID_TILINGS and has_upscaler("light", scale) and has_upscaler("diffusion", scale)
    return (MODELS_DIR / f"sr_{kind}_x{scale}").is_dir()


def load_upscaler(kind: str, scale: int) -> Upscaler:
    """Return a bundled upscaler.

    Args:
        kind: "light", "diffusion", or "hybrid": diffusion on patches with foreground, light on the others.
        scale: one of `super_resolution.SCALES`; hybrid for those of `HYBRID_TILINGS`.

    Raises:
        PipelineError: if there is none of that kind and scale.
    """
    from megopt.diffusion.hybrid_super_resolution import HybridUpscaler, Tiling
    from megopt.diffusion.super_resolution import SCALES, NetworkUpscaler
    from megopt.diffusion.super_resolution_network import LightSuperResolution

    if scale not in SCALES:
        message = f"sr_scale {scale}: expected one of {', '.join(map(str, SCALES))}, or 1 for none; change sr_scale"
        raise PipelineError(message)

    if kind == "hybrid" and scale in HYBRID_TILINGS:
        patch_px, overlap_px, context_px = HYBRID_TILINGS[scale]
        return HybridUpscaler(
            foreground=load_upscaler("diffusion", scale),
            background=load_upscaler("light", scale),
            tiling=Tiling(patch_px=patch_px, overlap_px=overlap_px, context_px=context_px),
        )
    folder = _present(f"sr_{kind}_x{scale}")
    if kind == "diffusion":
        return _diffusion_upscaler(folder, scale)
    network = LightSuperResolution.from_pretrained(folder, local_files_only=True).float().eval()
    return NetworkUpscaler(network=network, scale=scale)


def upscalers_digest() -> str:
    """Return a short digest of what all bundled upscalers hold."""
    digest = hashlib.sha256(repr((DIFFUSION_SR_STEPS, HYBRID_TILINGS)).encode())
    for path in sorted(MODELS_DIR.glob("sr_*/*.safetensors")):
        digest.update(path.parent.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _diffusion_upscaler(folder: Path, scale: int) -> Upscaler:
    from megopt.diffusion.super_resolution import DiffusionUpscaler
    from megopt.diffusion.super_resolution_network import RESIDUAL_SCALE, DiffusionSuperResolution, residual_schedule

    return DiffusionUpscaler(
        network=DiffusionSuperResolution.from_pretrained(folder, local_files_only=True).float().eval(),
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
