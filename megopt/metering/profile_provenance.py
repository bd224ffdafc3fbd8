"""Where a measured profile comes from: models, machine, versions, trials, and what is stated rather than measured."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import numpy as np

from megopt.diffusion.pipelines import Pipeline, latent_space
from megopt.errors import ConfigError
from megopt.metering.profile_request import ProfileRequest

SOURCE = "megopt_profile"
"""Key of the one source of a measured profile."""


def provenance_of(request: ProfileRequest, edge: Pipeline, name: str, resolution_px: int) -> dict[str, Any]:
    """Return the content of provenance.json."""
    space = latent_space(edge)
    side = resolution_px // space.scale_factor
    sides = {"edge": request.edge, "device": request.device}
    grid = request.grid
    quality = "" if grid is None else f"; quality over {grid.num_images} captions that training has not seen"
    return {
        "title": f"{request.edge.model} finished by {request.device.model}, measured",
        **{key: value.hardware() for key, value in sides.items()},
        "model": f"{request.edge.model} and {request.device.model} at {resolution_px} px, {request.sampling.sampler}, "
        f"guidance {request.sampling.guidance_scale:g}, rescaled by {request.sampling.guidance_rescale:g}",
        "created": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "command": request.command,
        "latent_shape": [space.channels, side, side],
        "resolution_px": resolution_px,
        "energy": "energy_j",
        "image_payload": name,
        "sources": {
            SOURCE: {
                "title": "megopt profile",
                "where": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {_versions()}",
                "method": "median of timed calls after a warm-up, repeated until half its 95 % interval is within 3 % "
                f"or {request.budget_s:g} s are over{quality}",
            }
        },
        "parameters": {
            f"{key}_power_w": {
                "value": value.power_w,
                "unit": "W",
                "kind": "modelled",
                "source": "stated parameter, not a measurement: what this side is said to draw while it computes",
            }
            for key, value in sides.items()
            if value.power_w is not None
        },
        "caveats": [f"{key}: {value.meter().reason}." for key, value in sides.items()]
        + ["Idle and waiting energy is counted for neither side."],
    }


def _versions() -> str:
    import diffusers
    import torch

    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, numpy {np.__version__}"


def sample_size(pipeline: Pipeline) -> int:
    """Return the side of the latents that the denoiser of `pipeline` was made for."""
    from megopt.diffusion.pipelines import denoiser

    size = denoiser(pipeline).config["sample_size"]
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        message = f"edge.model: its own size {tuple(size)} is no square; give resolution_px"
        raise ConfigError(message)
    return int(size[0])
