"""Region split on real models: the edge makes a region of the latent, the device completes the rest around it.

    make_region     run at step 0, on the edge  -> latent of the region, which is sent
    complete        run at step 0, that latent  -> finished run, on the device

The device goes from coarse to fine: a run of the whole image at a lower resolution, then the last steps at the full
one. Before each of its steps the region is set to its known latent, noised to the level of that step, so that the rest
grows to fit; at the end it is the known latent itself. The denoiser sees the whole latent at each step: the cost of the
device does not fall with x, except to nothing at x = 1.

Source: masked denoising, Lugmayr et al. 2022, "RePaint", equation 8, without its resampling.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from megopt.diffusion import schedulers
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, encode_run
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.regions import Region
from megopt.diffusion.sampling import advance, start
from megopt.errors import ConfigError, PipelineError


def make_region(
    pipeline: Pipeline,
    begin: Checkpoint,
    region: Region,
    *,
    sees_whole: bool = False,
    conditioning: Conditioning | None = None,
) -> torch.Tensor:
    """Return the finished latent of the region, shape (batch, channels, region.height, region.width).

    Args:
        pipeline: the edge's model.
        begin: the run at step 0, as `sampling.start` returns it.
        region: what to make; its sides must suit the denoiser.
        sees_whole: False runs the region alone, so that the cost falls with x, and its content is composed as an image
            of its own; True runs the whole latent and cuts the region out of it, at the whole cost.
        conditioning: of `conditioning.encode`; None to encode the run's own prompt.

    Raises:
        ConfigError: if the run has begun, or is of another size than the region's latent.
        PipelineError: if the pipeline cannot run it.
    """
    _check_begin(begin, region)
    told = conditioning or encode_run(pipeline, begin)
    if sees_whole or region.is_whole:
        return region.of(advance(pipeline, begin, begin.num_steps, told).latent).clone()
    part = replace(begin, latent=region.of(begin.latent).clone())
    return advance(pipeline, part, begin.num_steps, cropped(told, region, begin)).latent


def complete(
    pipeline: Pipeline,
    begin: Checkpoint,
    region: Region,
    known: torch.Tensor,
    *,
    coarse_scale: int = 1,
    refine_steps: int | None = None,
    conditioning: Conditioning | None = None,
) -> Checkpoint:
    """Return the finished run: `known` in the region, and the rest made by `pipeline` to fit.

    A region that is the whole latent is returned as it is, without a step.

    Args:
        pipeline: the device's model, of the same latent space.
        begin: the run at step 0, equal on both sides: prompt and seed make it.
        region: where `known` belongs.
        known: finished latent of the region, shape (batch, channels, region.height, region.width).
        coarse_scale: the coarse run has 1 / coarse_scale of the sides, which it must divide; 1 leaves it out.
        refine_steps: steps at full resolution, the last of the run, 0..num_steps; None for all without a coarse run,
            and half with one.
        conditioning: of `conditioning.encode`; None to encode the run's own prompt.

    Raises:
        ConfigError: if the run has begun, a size does not fit, or the refinement has more steps than the run.
        PipelineError: if the pipeline's latent space is another.
    """
    _check_begin(begin, region)
    _check_known(begin, region, known, coarse_scale)
    first = begin.num_steps - _refine_steps(begin, coarse_scale, refine_steps)
    begin = advance(pipeline, begin, 0)  # no step, but checked against this model, on its device and in its numbers
    known = known.to(begin.latent)
    if region.is_whole:
        return replace(begin, latent=known, step=begin.num_steps)
    noise = _unit_noise(pipeline, begin)
    run = begin
    if first:
        coarse = _coarse(pipeline, begin, region, known, coarse_scale)
        run = replace(begin, latent=coarse, step=first)
        run = replace(run, latent=_noised(pipeline, run, coarse, noise))
    return _masked_run(pipeline, run, region, known, noise, conditioning or encode_run(pipeline, begin))


def _masked_run(
    pipeline: Pipeline, run: Checkpoint, region: Region, known: torch.Tensor, noise: torch.Tensor, told: Conditioning
) -> Checkpoint:
    """Run to the end; before each step, and at the end, the region is the known latent at the level of that step."""
    canvas = torch.zeros_like(noise)
    region.of(canvas).copy_(known)
    for step in range(run.step, run.num_steps):
        latent = run.latent.clone()
        region.of(latent).copy_(region.of(_noised(pipeline, run, canvas, noise)))
        run = advance(pipeline, replace(run, latent=latent), step + 1, told)
    latent = run.latent.clone()
    region.of(latent).copy_(known)
    return replace(run, latent=latent)


def _coarse(
    pipeline: Pipeline, begin: Checkpoint, region: Region, known: torch.Tensor, coarse_scale: int
) -> torch.Tensor:
    """Return a finished coarse latent of the whole image, enlarged to the size of the run."""
    height, width = region.latent_size
    assert begin.prompt is not None
    small = start(
        pipeline,
        begin.prompt,
        num_steps=begin.num_steps,
        seed=begin.seeds,
        sampler=begin.sampler,
        guidance_scale=begin.guidance_scale,
        guidance_rescale=begin.guidance_rescale,
        resolution_px=(begin.resolution_px[0] // coarse_scale, begin.resolution_px[1] // coarse_scale),
        negative_prompt=begin.negative_prompt,
    )
    inside = Region(
        top=region.top // coarse_scale,
        left=region.left // coarse_scale,
        height=region.height // coarse_scale,
        width=region.width // coarse_scale,
        latent_size=(height // coarse_scale, width // coarse_scale),
    )
    averaged = functional.avg_pool2d(known, coarse_scale)
    told = encode_run(pipeline, small)
    finished = _masked_run(pipeline, small, inside, averaged, _unit_noise(pipeline, small), told)
    return functional.interpolate(finished.latent, scale_factor=coarse_scale, mode="bilinear", align_corners=False)


def _noised(pipeline: Pipeline, run: Checkpoint, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return `clean` at the noise level before the next step of `run`, in the scaling of its sampler."""
    if run.step == run.num_steps:
        return clean
    scheduler = schedulers.resume(pipeline, replace(run, solver_history=()))
    timesteps = scheduler.timesteps[run.step : run.step + 1]
    is_flow = hasattr(scheduler, "scale_noise")
    noised = scheduler.scale_noise(clean, timesteps, noise) if is_flow else scheduler.add_noise(clean, noise, timesteps)
    return torch.as_tensor(noised)


def _unit_noise(pipeline: Pipeline, begin: Checkpoint) -> torch.Tensor:
    """Return the noise that the run began with, of standard deviation 1."""
    scale = getattr(schedulers.resume(pipeline, begin), "init_noise_sigma", 1.0)
    return begin.latent / scale


def cropped(told: Conditioning, region: Region, begin: Checkpoint) -> Conditioning:
    """Return the conditioning of a part of the image: SDXL is told where it was cut out, the others are not."""
    if told.sizes_px is None:
        return told
    sizes, factor = told.sizes_px.clone(), begin.latent_space.scale_factor
    place = [factor * value for value in (region.top, region.left, region.height, region.width)]
    sizes[:, 2:] = torch.tensor(place).to(sizes)
    return replace(told, sizes_px=sizes)


def _refine_steps(begin: Checkpoint, coarse_scale: int, refine_steps: int | None) -> int:
    if refine_steps is None:
        return begin.num_steps if coarse_scale == 1 else -(-begin.num_steps // 2)
    if not 0 <= refine_steps <= begin.num_steps or (coarse_scale == 1 and refine_steps < begin.num_steps):
        message = (
            f"region: refine_steps {refine_steps} with coarse_scale {coarse_scale}; expected 0 to {begin.num_steps}, "
            "and all of them without a coarse run"
        )
        raise ConfigError(message)
    return refine_steps


def _check_begin(begin: Checkpoint, region: Region) -> None:
    if begin.prompt is None:
        message = "region: the run came without its prompt, which both sides need; begin it with sampling.start"
        raise PipelineError(message)
    if begin.step != 0 or tuple(begin.latent.shape[2:]) != region.latent_size:
        message = (
            f"region: a run at step {begin.step} on a latent of {tuple(begin.latent.shape[2:])}; expected step 0 and "
            f"{region.latent_size}, the size that the region was made for"
        )
        raise ConfigError(message)


def _check_known(begin: Checkpoint, region: Region, known: torch.Tensor, coarse_scale: int) -> None:
    expected = (*begin.latent.shape[:2], region.height, region.width)
    if tuple(known.shape) != expected:
        message = f"region: a known latent of shape {tuple(known.shape)}; expected {expected}"
        raise ConfigError(message)
    sides = (region.top, region.left, region.height, region.width, *region.latent_size)
    if coarse_scale < 1 or any(side % coarse_scale for side in sides):
        message = (
            f"region: coarse_scale {coarse_scale} with a {region.height}x{region.width} region at ({region.top}, "
            f"{region.left}) of {region.latent_size}; expected a divisor of all; make it with grain={coarse_scale}"
        )
        raise ConfigError(message)
