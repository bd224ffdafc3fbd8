"""Where a pipeline computes, and in which number format: read from one weight of its denoiser.

diffusers' own `pipeline.device` and `model.dtype` walk through every module at each call, to find offloading hooks that
nobody sets here: 1.5 ms for the bundled edge model on a CPU, twice a step when a run is carried on step by step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megopt.diffusion.pipelines import Pipeline, denoiser

if TYPE_CHECKING:
    import torch


def device_of(pipeline: Pipeline) -> torch.device:
    """Return the device of the denoiser's weights."""
    return _weight(pipeline).device


def dtype_of(pipeline: Pipeline) -> torch.dtype:
    """Return the number format of the denoiser's weights."""
    return _weight(pipeline).dtype


def _weight(pipeline: Pipeline) -> torch.Tensor:
    weight: torch.Tensor = next(weight for weight in denoiser(pipeline).parameters() if weight.is_floating_point())
    return weight
