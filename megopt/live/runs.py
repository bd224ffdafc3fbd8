"""Runs of one model, step by step, alone or several together: what computes on both ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, conditioning_hash
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.sampling import advance, decode, start
from megopt.live.handover import Image
from megopt.live.messages import Request
from megopt.live.modes_runs import settled


def begin(pipeline: Pipeline, request: Request) -> Checkpoint:
    """Return the run of `request` at step 0; both ends begin it alike.

    Raises:
        ConfigError: for a sampler, a step count or a size that the pipeline cannot have.
    """
    return start(
        pipeline,
        request.prompt,
        num_steps=request.decision.num_steps,
        seed=request.seed,
        sampler=request.sampler,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        resolution_px=(request.height_px, request.width_px),
        negative_prompt=request.negative_prompt,
    )


def steps(pipeline: Pipeline, checkpoint: Checkpoint, told: Conditioning, to_step: int) -> Iterator[Checkpoint]:
    """Yield the run after every further step up to `to_step`; a run with a known region, when it is complete."""
    before, checkpoint = checkpoint.step, settled(pipeline, checkpoint, told)
    if checkpoint.step > before:
        yield checkpoint
    while checkpoint.step < to_step:
        checkpoint = advance(pipeline, checkpoint, checkpoint.step + 1, told)
        yield checkpoint


def finished(pipeline: Pipeline, checkpoint: Checkpoint, told: Conditioning) -> Checkpoint:
    """Return the run after its last step, in one go: nobody asks what lies between."""
    return advance(pipeline, settled(pipeline, checkpoint, told), checkpoint.num_steps, told)


def image(pipeline: Pipeline, checkpoint: Checkpoint) -> Image:
    """Return the image of a finished run of one prompt, uint8, shape (height, width, 3)."""
    decoded: Image = decode(pipeline, settled(pipeline, checkpoint))[0]
    return decoded


def preview(pipeline: Pipeline, checkpoint: Checkpoint) -> Image:
    """Return the image that a run of one prompt is heading for, uint8, shape (height, width, 3)."""
    return image(pipeline, without_noise(pipeline, settled(pipeline, checkpoint)))


def without_noise(pipeline: Pipeline, run: Checkpoint) -> Checkpoint:
    """Return a run without steps left: one step leads from its noise level to none, to what the denoiser sees now."""
    if run.step == run.num_steps:
        return run
    here, levels = slice(run.step, run.step + 1), run.noise_levels
    whole = replace(
        run,
        step=0,
        num_steps=1,
        timesteps=run.timesteps[here],
        noise_levels=torch.cat([levels[here], levels[-1:]]),
        solver_history=(),
    )
    return advance(pipeline, whole, 1)


def joined(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return runs of one image each, at one step of one schedule, as one run of several images."""
    first = checkpoints[0]
    texts = tuple(text for one in checkpoints for text in one.prompt or ())
    negatives = tuple(text for one in checkpoints for text in one.negative_prompt or ()) or None
    return replace(
        first,
        latent=torch.cat([one.latent for one in checkpoints]),
        solver_history=tuple(
            torch.cat(past) for past in zip(*(one.solver_history for one in checkpoints), strict=True)
        ),
        seeds=tuple(one.seeds[0] for one in checkpoints),
        prompt=texts,
        negative_prompt=negatives,
        conditioning_hash=conditioning_hash(texts, negatives),
    )


def taken(checkpoint: Checkpoint, rows: Sequence[int]) -> Checkpoint:
    """Return the given images of a run of several."""
    assert checkpoint.prompt is not None
    texts = tuple(checkpoint.prompt[row] for row in rows)
    stated = checkpoint.negative_prompt
    negatives = None if stated is None else tuple(stated[row] for row in rows)
    return replace(
        checkpoint,
        latent=checkpoint.latent[list(rows)],
        solver_history=tuple(past[list(rows)] for past in checkpoint.solver_history),
        seeds=tuple(checkpoint.seeds[row] for row in rows),
        prompt=texts,
        negative_prompt=negatives,
        conditioning_hash=conditioning_hash(texts, negatives),
    )


def taken_conditioning(told: Conditioning, fewer: Checkpoint, rows: Sequence[int]) -> Conditioning:
    """Return what is told of `fewer`, the given images of the run that `told` is of."""
    num_images = len(told.text) // 2 if told.is_guided else len(told.text)
    halves = [*rows, *(num_images + row for row in rows)] if told.is_guided else list(rows)
    return Conditioning(
        hash=fewer.conditioning_hash,
        is_guided=told.is_guided,
        text=told.text[halves],
        pooled=None if told.pooled is None else told.pooled[halves],
        sizes_px=None if told.sizes_px is None else told.sizes_px[halves],
    )
