"""A profile folder from real runs: compute.csv, quality.csv, payload.csv and where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megopt.diffusion import bundled
from megopt.diffusion.evaluation import generated, truth
from megopt.diffusion.pipelines import Pipeline, latent_space, load, weights_digest
from megopt.diffusion.rendering import Images
from megopt.errors import PipelineError
from megopt.files import write_atomically
from megopt.metering.compute_table import measure_compute
from megopt.metering.image_codecs import measure_image_codecs
from megopt.metering.quality_generator import Models, Upscalers
from megopt.metering.quality_table import Task, measure_quality
from megopt.tables import schema

if TYPE_CHECKING:
    import pandas as pd

from megopt.metering.profile_provenance import SOURCE, provenance_of, sample_size
from megopt.metering.profile_request import ProfileRequest

_PAYLOAD_IMAGES = 16


def measure_profile(request: ProfileRequest, folder: Path, target: Path) -> Path:
    """Measure and write a profile folder; quality that `folder` holds already is not measured again.

    Args:
        request: what to profile.
        folder: working folder.
        target: where the profile goes; its files are replaced one by one, provenance last.

    Raises:
        ConfigError: if a number is outside its range, or `folder` holds another measurement.
        PipelineError: if a model cannot be loaded, or the two are not of one latent space.
    """
    edge, device = _loaded(request)
    resolution_px = request.resolution_px or int(edge.vae_scale_factor) * sample_size(edge)
    scales = request.grid.sr_scales if request.grid is not None else (1,)
    upscalers = _upscalers(scales)
    import pandas as pd

    quality = pd.DataFrame(columns=[column.name for column in schema.QUALITY])
    if request.grid is not None:
        quality = _quality(request, edge, device, upscalers, resolution_px, folder)
    payload = measure_image_codecs(_example_images(edge, request), source=SOURCE)
    sides = (
        request.edge.side("edge", edge, {}),
        request.device.side("device", device, upscalers),
    )
    rows = measure_compute(
        sides,
        caption=truth(2, seed=request.scene_seed, split="unseen").captions[0],
        resolution_px=resolution_px,
        sr_scales=scales,
        sampling=request.sampling,
        source=SOURCE,
        budget_s=request.budget_s,
    )
    compute = pd.DataFrame(rows, columns=[column.name for column in schema.COMPUTE])
    tables = {"compute.csv": compute, "quality.csv": quality, "payload.csv": payload}
    for name, table in tables.items():
        _write_csv(target / name, table)
    text = json.dumps(provenance_of(request, edge, target.name, resolution_px), indent=2) + "\n"
    return write_atomically(target / "provenance.json", lambda path: path.write_text(text, encoding="utf-8")).parent


def _loaded(request: ProfileRequest) -> tuple[Pipeline, Pipeline]:
    edge = load(request.edge.model, device=request.edge.torch_device, dtype=request.edge.dtype)
    device = load(request.device.model, device=request.device.torch_device, dtype=request.device.dtype)
    apart = latent_space(edge).differences(latent_space(device))
    if apart:
        message = (
            f"edge.model={request.edge.model}, device.model={request.device.model}: {'; '.join(apart)}; "
            "expected models of one latent space"
        )
        raise PipelineError(message)
    return edge, device


def _quality(
    request: ProfileRequest,
    edge: Pipeline,
    device: Pipeline,
    upscalers: Upscalers,
    resolution_px: int,
    folder: Path,
) -> pd.DataFrame:
    """Return quality.csv of scenes that training has not seen; only bundled models are judged by their attributes."""
    assert request.grid is not None
    told = truth(request.grid.num_images, seed=request.scene_seed, split="unseen", resolution_px=resolution_px)
    is_bundled = all(side.model.startswith(bundled.PREFIX) for side in (request.edge, request.device))
    task = Task(captions=told.captions)
    if is_bundled:
        task = Task(captions=told.captions, real=told.images, attributes=told.attributes, judge=bundled.load_judge())
    models = Models(
        edge=edge,
        device=device,
        upscalers=upscalers,
        resolution_px=resolution_px,
        sampling=request.sampling,
    )
    identity: dict[str, Any] = {
        name: [side.model, side.dtype, side.torch_device, weights_digest(pipeline)]
        for name, side, pipeline in (("edge", request.edge, edge), ("device", request.device, device))
    }
    if upscalers:
        identity["upscalers"] = bundled.upscalers_digest()
    return measure_quality(
        request.grid, models, task, folder, identity={**identity, "scene_seed": request.scene_seed}, source=SOURCE
    )


def _upscalers(scales: tuple[int, ...]) -> Upscalers:
    """Return the bundled upscalers by kind and scale; those of other kinds than light where there are any."""
    return {
        (kind, scale): bundled.load_upscaler(kind, scale).upscale
        for scale in scales
        for kind in schema.UPSCALERS
        if scale > 1 and (kind == "light" or bundled.has_upscaler(kind, scale))
    }


def _example_images(edge: Pipeline, request: ProfileRequest) -> list[Images]:
    """Return generated images whose encoded size stands for those that an edge sends whole."""
    captions = truth(_PAYLOAD_IMAGES, seed=request.scene_seed, split="unseen").captions
    num_steps = max(request.grid.num_steps) if request.grid is not None else 2
    return list(generated(edge, captions, num_steps, request.sampling))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda target: table.to_csv(target, index=False))
