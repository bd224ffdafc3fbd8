"""The samplers, and their schedulers set to any step of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.pipelines import Pipeline, denoiser, family
from megopt.diffusion.placement import device_of, dtype_of
from megopt.errors import ConfigError, PipelineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A deterministic sampler.

    Attributes:
        scheduler: class name in `diffusers`.
        families: families that it can sample.
        settings: scheduler settings that make it this sampler; all others come from the pipeline.
    """

    scheduler: str
    families: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS: Mapping[str, Sampler] = {
    # a latent has no range to be clipped to
    "ddim": Sampler(scheduler="DDIMScheduler", families=("sd", "sdxl"), settings={"clip_sample": False}),
    "euler": Sampler(scheduler="EulerDiscreteScheduler", families=("sd", "sdxl")),
    "dpmpp_2m": Sampler(
        scheduler="DPMSolverMultistepScheduler",
        families=("sd", "sdxl"),
        settings={"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "flow_match_euler": Sampler(
        scheduler="FlowMatchEulerDiscreteScheduler", families=("sd3",), settings={"stochastic_sampling": False}
    ),
}


def begin(pipeline: Pipeline, sampler: str, num_steps: int, shape: tuple[int, ...]) -> Any:
    """Return a fresh scheduler of `sampler`, at step 0 of `num_steps`.

    Args:
        pipeline: whose scheduler settings to take over.
        sampler: a name in `SAMPLERS`.
        num_steps: steps of the whole run.
        shape: of the latent, (batch, channels, height, width).

    Raises:
        ConfigError: for a sampler that the family cannot use, or more steps than noise levels.
        PipelineError: if the scheduler's settings do not give one time per step.
    """
    name = family(pipeline).name
    allowed = [key for key, candidate in SAMPLERS.items() if name in candidate.families]
    if sampler not in allowed:
        message = f"sampler {sampler!r}: the {name} family can use {', '.join(allowed)}"
        raise ConfigError(message)
    num_levels = pipeline.scheduler.config.num_train_timesteps
    if not 1 <= num_steps <= num_levels:
        message = f"num_steps {num_steps!r}: expected 1 to {num_levels}, the noise levels that the model was trained on"
        raise ConfigError(message)
    shift = _time_shift(pipeline.scheduler.config, pipeline, shape)
    scheduler = copy.copy(_made(pipeline.scheduler, sampler, num_steps, str(device_of(pipeline)), shift))
    if len(scheduler.timesteps) != num_steps:
        message = (
            f"sampler {sampler!r}: the pipeline's settings give {len(scheduler.timesteps)} times for {num_steps} steps"
        )
        raise PipelineError(message)
    if hasattr(scheduler, "model_outputs"):  # the one thing in it that steps change in place
        scheduler.model_outputs = list(scheduler.model_outputs)
    return scheduler


@lru_cache(maxsize=64)
def _made(own: Any, sampler: str, num_steps: int, device: str, shift: float | None) -> Any:
    """Return a scheduler to copy: a run that is carried on step by step asks for the same one at every step.

    Args:
        own: the pipeline's scheduler.
        sampler: a name in `SAMPLERS`.
        num_steps: of the whole run.
        device: of the times.
        shift: of the times; None for models without.
    """
    import diffusers

    chosen = SAMPLERS[sampler]
    scheduler = getattr(diffusers, chosen.scheduler).from_config(own.config, **chosen.settings)
    scheduler.set_timesteps(num_steps, device=device, **({} if shift is None else {"mu": shift}))
    return scheduler


def _time_shift(config: Any, pipeline: Pipeline, shape: tuple[int, ...]) -> float | None:
    """Return the shift of the times that some SD3 models make grow linearly with the number of image tokens.

    Source: `calculate_shift` of diffusers' StableDiffusion3Pipeline.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    patch = denoiser(pipeline).config["patch_size"]
    num_tokens = (shape[2] // patch) * (shape[3] // patch)
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    slope = (top - base) / (most - least)
    return float(num_tokens * slope + (base - slope * least))


def resume(pipeline: Pipeline, checkpoint: Checkpoint) -> Any:
    """Return a fresh scheduler in the state in which the checkpoint's own was left.

    Times and noise levels are the checkpoint's, so they need not be those that the pipeline would choose itself.

    Raises:
        ConfigError: for a sampler that the family cannot use.
        PipelineError: if the checkpoint's times are none of this model.
    """
    scheduler = begin(pipeline, checkpoint.sampler, checkpoint.num_steps, tuple(checkpoint.latent.shape))
    _check_state(scheduler, checkpoint)
    scheduler.timesteps = checkpoint.timesteps.to(scheduler.timesteps)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = checkpoint.noise_levels.to(scheduler.sigmas)
        scheduler.set_begin_index(checkpoint.step)
    if hasattr(scheduler, "model_outputs"):
        device, dtype = device_of(pipeline), dtype_of(pipeline)
        past = [output.to(device=device, dtype=dtype) for output in checkpoint.solver_history]
        scheduler.model_outputs = [None] * (scheduler.config.solver_order - len(past)) + past
        scheduler.lower_order_nums = len(past)
    return scheduler


def history(scheduler: Any) -> tuple[torch.Tensor, ...]:
    """Return the model outputs that the next step asks for: one less than the order of the solver."""
    past = getattr(scheduler, "model_outputs", [None])
    return tuple(output for output in past[1:] if output is not None)


def _check_state(scheduler: Any, checkpoint: Checkpoint) -> None:
    """Check that `scheduler` can take over the checkpoint's times, noise levels and history."""
    num_levels = scheduler.config.num_train_timesteps
    has_levels = hasattr(scheduler, "sigmas")
    last_time = num_levels if checkpoint.sampler == "flow_match_euler" else num_levels - 1
    problems = {
        f"times outside 0..{last_time}": not ((checkpoint.timesteps >= 0) & (checkpoint.timesteps <= last_time)).all(),
        "noise levels that it has no use for, or none": (len(checkpoint.noise_levels) > 0) != has_levels,
        "more solver history than its order": len(checkpoint.solver_history) >= scheduler.config.get("solver_order", 1),
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    if found:
        message = (
            f"checkpoint for sampler {checkpoint.sampler!r}: {'; '.join(found)}; was it written for another sampler?"
        )
        raise PipelineError(message)
