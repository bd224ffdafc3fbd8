"""A profile folder from real runs: compute.csv, quality.csv, payload.csv and where they come from."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.diffusion import bundled
from megopt.diffusion.evaluation import Sampling, generated, truth
from megopt.diffusion.pipelines import Pipeline, latent_space, load, weights_digest
from megopt.diffusion.rendering import Images
from megopt.errors import ConfigError, PipelineError
from megopt.files import write_atomically
from megopt.metering.compute_table import Side, measure_compute
from megopt.metering.image_codecs import measure_image_codecs
from megopt.metering.meters import ChosenMeter, best_meter
from megopt.metering.quality_grid import Grid, Models, Upscalers
from megopt.metering.quality_table import Task, measure_quality
from megopt.tables import schema

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "megopt_profile"
"""Key of the one source of a measured profile."""
_PAYLOAD_IMAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SideRequest:
    """One side of a profile.

    Attributes:
        model: as `pipelines.load` takes it.
        torch_device: "cpu", "cuda", ...
        dtype: one of `pipelines.DTYPES`.
        num_threads: threads of a CPU side.
        power_w: stated power while computing [W], where no counter can be read; None for none.
        batch_sizes: images computed together.
    """

    model: str
    torch_device: str = "cpu"
    dtype: str = "float32"
    num_threads: int = 1
    power_w: float | None = None
    batch_sizes: tuple[int, ...] = (1,)

    def meter(self) -> ChosenMeter:
        """Return the meter of this side."""
        return best_meter(self.torch_device, power_w=self.power_w)

    def hardware(self) -> str:
        """Return what computes, in words."""
        if self.torch_device.startswith("cuda"):
            import torch

            return torch.cuda.get_device_name(self.torch_device)
        return f"{_cpu_name()}, {self.num_threads} thread{'s' * (self.num_threads > 1)}"

    def side(self, name: str, pipeline: Pipeline, upscalers: Upscalers) -> Side:
        """Return what `measure_compute` times: this side's hardware with its loaded `pipeline`."""
        return Side(
            name=name,
            model=self.model,
            pipeline=pipeline,
            meter=self.meter().meter,
            num_threads=self.num_threads,
            batch_sizes=self.batch_sizes,
            upscalers=upscalers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What to profile.

    Attributes:
        edge: the edge.
        device: the device.
        grid: of quality.csv; None to measure no quality.
        sampling: how images are sampled.
        resolution_px: side of the target [px]; None for the edge model's own.
        scene_seed: of the captions, none of which training has seen.
        budget_s: most seconds per row of compute.csv, after ten calls.
        command: what the user typed.
    """

    edge: SideRequest
    device: SideRequest
    grid: Grid | None
    sampling: Sampling
    resolution_px: int | None = None
    scene_seed: int = 2000
    budget_s: float = 4.0
    command: str = ""


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
    resolution_px = request.resolution_px or int(edge.vae_scale_factor) * _sample_size(edge)
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
    text = json.dumps(_provenance(request, edge, target.name, resolution_px), indent=2) + "\n"
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


def _provenance(request: ProfileRequest, edge: Pipeline, name: str, resolution_px: int) -> dict[str, Any]:
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


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _sample_size(pipeline: Pipeline) -> int:
    from megopt.diffusion.pipelines import denoiser

    size = denoiser(pipeline).config["sample_size"]
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        message = f"edge.model: its own size {tuple(size)} is no square; give resolution_px"
        raise ConfigError(message)
    return int(size[0])


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, lambda target: table.to_csv(target, index=False))
