"""Run steps a..b of any supported pipeline, stop at any step, go on anywhere.

    start     prompt                          -> Checkpoint at step 0
    advance   Checkpoint at step a            -> Checkpoint at step b
    decode    Checkpoint at the last step     -> images

One loop serves all families. It makes a fresh scheduler for every call and sets its state from the checkpoint, so a run
split at any step, in one process or two, is the unsplit run bit for bit, and the unsplit run is the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megopt.diffusion import schedulers
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, checked_texts, conditioning_hash, encode
from megopt.diffusion.guidance import guided
from megopt.diffusion.pipelines import LatentSpace, Pipeline, denoiser, family, latent_space
from megopt.diffusion.placement import device_of, dtype_of
from megopt.errors import ConfigError, PipelineError


def start(
    pipeline: Pipeline,
    prompt: str | Sequence[str],
    *,
    num_steps: int,
    seed: int | Sequence[int],
    sampler: str,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    resolution_px: int | tuple[int, int] | None = None,
    negative_prompt: str | Sequence[str] | None = None,
) -> Checkpoint:
    """Return a run at step 0: the initial noise and all that is to happen to it.

    Args:
        pipeline: the model.
        prompt: one text, or one per image.
        num_steps: steps of the whole run.
        seed: of the noise, drawn on the CPU whatever the device: one for the whole batch, or one per image. The latter
            makes an image's noise independent of its neighbours.
        sampler: a name in `megopt.diffusion.schedulers.SAMPLERS`.
        guidance_scale: weight of classifier-free guidance [1]; no guidance up to 1.
        guidance_rescale: of `megopt.diffusion.guidance`, 0 to 1 [1].
        resolution_px: side, or height and width, of the image [px]; None for the model's own.
        negative_prompt: one text for all, or one per image; None for the pipeline's own empty conditioning.

    Raises:
        ConfigError: for a sampler that the family cannot use, or impossible steps, sizes or texts.
    """
    texts, negatives = checked_texts(prompt, negative_prompt)
    shape = (len(texts), *_latent_shape(pipeline, resolution_px))
    seeds = tuple(int(one) for one in np.atleast_1d(seed))
    scheduler = schedulers.begin(pipeline, sampler, num_steps, shape)
    noise = _noise(shape, seeds, dtype_of(pipeline)).to(device_of(pipeline))
    return Checkpoint(
        latent=noise * getattr(scheduler, "init_noise_sigma", 1.0),
        step=0,
        num_steps=num_steps,
        sampler=sampler,
        timesteps=scheduler.timesteps,
        noise_levels=getattr(scheduler, "sigmas", torch.empty(0)),
        guidance_scale=float(guidance_scale),
        guidance_rescale=float(guidance_rescale),
        conditioning_hash=conditioning_hash(texts, negatives),
        latent_space=latent_space(pipeline),
        seeds=seeds,
        prompt=texts,
        negative_prompt=negatives,
    )


def advance(
    pipeline: Pipeline, checkpoint: Checkpoint, to_step: int, conditioning: Conditioning | None = None
) -> Checkpoint:
    """Return `checkpoint` after `to_step` steps, on the device and in the number format of `pipeline`.

    Args:
        pipeline: any pipeline of the same latent space, not only the one that began the run.
        checkpoint: where to go on.
        to_step: steps done afterwards, from `checkpoint.step` to `checkpoint.num_steps`.
        conditioning: of `megopt.diffusion.conditioning.encode`; None to encode the checkpoint's own prompt.

    Raises:
        ConfigError: for a `to_step` outside that range.
        PipelineError: if the pipeline's latent space is another, the prompt is missing, or the conditioning is of
            other texts.
    """
    if not checkpoint.step <= to_step <= checkpoint.num_steps:
        message = (
            f"to_step {to_step}: expected {checkpoint.step}, where the run is, to {checkpoint.num_steps}, its last step"
        )
        raise ConfigError(message)
    _check_fit(pipeline, checkpoint)
    scheduler = schedulers.resume(pipeline, checkpoint)
    latent = checkpoint.latent.to(device=device_of(pipeline), dtype=dtype_of(pipeline))
    if to_step > checkpoint.step:
        told = _checked_conditioning(pipeline, checkpoint, conditioning)
        with torch.no_grad():
            for timestep in scheduler.timesteps[checkpoint.step : to_step]:
                output = _guided_output(pipeline, scheduler, told, latent, timestep, checkpoint)
                latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    history = schedulers.history(scheduler) if to_step < checkpoint.num_steps else ()
    return replace(checkpoint, latent=latent, step=to_step, solver_history=history)


def decode(pipeline: Pipeline, checkpoint: Checkpoint) -> NDArray[np.uint8]:
    """Return the images of a finished run, shape (batch, height, width, 3).

    Raises:
        ConfigError: if steps are left to do.
        PipelineError: if the pipeline's latent space is another.
    """
    if checkpoint.step != checkpoint.num_steps:
        message = f"decode: the run is at step {checkpoint.step} of {checkpoint.num_steps}; advance it to the end first"
        raise ConfigError(message)
    _check_fit(pipeline, checkpoint)
    autoencoder = pipeline.vae
    dtype = autoencoder.dtype
    # SDXL's autoencoder overflows in fp16, and says so
    is_upcast = family(pipeline).name == "sdxl" and dtype == torch.float16 and autoencoder.config.force_upcast
    working = autoencoder.to(torch.float32) if is_upcast else autoencoder
    with torch.no_grad():
        latent = _unscaled(working.config, checkpoint.latent.to(device=device_of(pipeline), dtype=working.dtype))
        image = working.decode(latent, return_dict=False)[0]
    if is_upcast:
        autoencoder.to(dtype)
    return _pixels(pipeline, image)


def _latent_shape(pipeline: Pipeline, resolution_px: int | tuple[int, int] | None) -> tuple[int, int, int]:
    """Return channels, height and width of the latent."""
    space, config = latent_space(pipeline), denoiser(pipeline).config
    if resolution_px is None:
        side = config["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return space.channels, int(height), int(width)
    sides = (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px
    grain = space.scale_factor * int(config.get("patch_size") or 1)
    if len(sides) != 2 or any(side <= 0 or side % grain for side in sides):
        message = (
            f"resolution_px {resolution_px}: expected a positive multiple of {grain}, or two of them (height, width)"
        )
        raise ConfigError(message)
    return space.channels, sides[0] // space.scale_factor, sides[1] // space.scale_factor


def _noise(shape: tuple[int, ...], seeds: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if len(seeds) not in {1, shape[0]}:
        message = f"{len(seeds)} seeds for {shape[0]} images: expected one, or one per image"
        raise ConfigError(message)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    per_draw = (shape[0] // len(seeds), *shape[1:])
    return torch.cat([torch.randn(per_draw, generator=generator, dtype=dtype) for generator in generators])


def _check_fit(pipeline: Pipeline, checkpoint: Checkpoint) -> None:
    """Check that `pipeline` can go on from `checkpoint`."""
    here: LatentSpace = latent_space(pipeline)
    problems = checkpoint.latent_space.differences(here)
    config = denoiser(pipeline).config
    patch, limit = int(config.get("patch_size") or 1), config.get("pos_embed_max_size")
    size = tuple(checkpoint.latent.shape[2:])
    if any(side % patch or (limit and side > limit * patch) for side in size):
        problems.append(f"latent size {size} is no multiple of patch size {patch}, or too large for this denoiser")
    if config.get("time_cond_proj_dim") is not None:
        problems.append("the denoiser is guidance-distilled, which no sampler here serves")
    if problems:
        message = f"this {here.family} pipeline cannot go on from the checkpoint: {'; '.join(problems)}"
        raise PipelineError(message)


def _checked_conditioning(
    pipeline: Pipeline, checkpoint: Checkpoint, conditioning: Conditioning | None
) -> Conditioning:
    if conditioning is None:
        if checkpoint.prompt is None:
            message = "checkpoint: it came without its prompt; encode the prompt here and give the conditioning"
            raise PipelineError(message)
        conditioning = encode(
            pipeline,
            checkpoint.prompt,
            negative_prompt=checkpoint.negative_prompt,
            guidance_scale=checkpoint.guidance_scale,
            resolution_px=checkpoint.resolution_px,
        )
    is_guided = checkpoint.guidance_scale > 1.0
    if conditioning.hash != checkpoint.conditioning_hash or conditioning.is_guided != is_guided:
        message = "conditioning: it is of other texts, or of another use of guidance, than the checkpoint's run"
        raise PipelineError(message)
    return conditioning


def _guided_output(
    pipeline: Pipeline,
    scheduler: Any,
    told: Conditioning,
    latent: torch.Tensor,
    timestep: torch.Tensor,
    run: Checkpoint,
) -> torch.Tensor:
    """Return the denoiser's output at `timestep`, guided as `run` asks."""
    batch = torch.cat([latent] * 2) if told.is_guided else latent
    if hasattr(scheduler, "scale_model_input"):
        batch = scheduler.scale_model_input(batch, timestep)
    return guided(_output(pipeline, told, batch, timestep), told, run.guidance_scale, run.guidance_rescale)


def _output(pipeline: Pipeline, told: Conditioning, batch: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Run the denoiser once; the only place where the families differ."""
    arguments: dict[str, Any] = {"encoder_hidden_states": told.text, "return_dict": False}
    if family(pipeline).name == "sd3":
        arguments |= {"timestep": timestep.expand(len(batch)), "pooled_projections": told.pooled}
    else:
        arguments["timestep"] = timestep
    if told.sizes_px is not None:
        arguments["added_cond_kwargs"] = {"text_embeds": told.pooled, "time_ids": told.sizes_px}
    output: torch.Tensor = denoiser(pipeline)(batch, **arguments)[0]
    return output


def _unscaled(config: Any, latent: torch.Tensor) -> torch.Tensor:
    """Return what the autoencoder decodes: the latent without the scaling of training."""
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return latent / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(latent) for values in (mean, std))
    unscaled: torch.Tensor = latent * std / config["scaling_factor"] + mean
    return unscaled


def _pixels(pipeline: Pipeline, image: torch.Tensor) -> NDArray[np.uint8]:
    flagged = None
    if hasattr(pipeline, "run_safety_checker"):
        image, flagged = pipeline.run_safety_checker(image, device_of(pipeline), image.dtype)
    keep = None if flagged is None else [not is_flagged for is_flagged in flagged]
    shares = pipeline.image_processor.postprocess(image, output_type="np", do_denormalize=keep)
    return np.asarray(np.rint(shares * 255.0), dtype=np.uint8)
