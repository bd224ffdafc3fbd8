"""Runs that a device has been given a part of: a finished region, or the noise of some steps; both go on like any."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning
from megopt.diffusion.layers import step_with
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.region_completion import complete
from megopt.diffusion.regions import Region
from megopt.errors import ConfigError, PayloadError
from megopt.live.modes_shares import RegionShare

Run = TypeVar("Run", bound=Checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegionRun(Checkpoint):
    """A run at step 0 of which a region is known to its end.

    Attributes:
        region: in latent positions.
        known: finished latent of the region, shape (1, channels, region.height, region.width).
        coarse_scale: as `megopt.diffusion.region_completion.complete`.
        refine_steps: likewise; None for its own choice.
    """

    region: Region
    known: torch.Tensor
    coarse_scale: int = 1
    refine_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NoiseRun(Checkpoint):
    """A run whose last steps are known by their guided noise only; its latent is the one before them.

    Attributes:
        pending: guided noise of steps `step - len(pending)` to `step`, each of the latent's shape.
    """

    pending: tuple[torch.Tensor, ...] = ()


def region_of(share: RegionShare, resolution_px: tuple[int, int], scale_factor: int) -> Region:
    """Return the rectangle of `share` in the latent of an image.

    Args:
        share: the rectangle.
        resolution_px: height and width of the image [px].
        scale_factor: of the latent space, pixels per position.

    Raises:
        ConfigError: if it is outside the image, not made of whole latent positions, or its coarse run does not fit.
    """
    outside = share.outside(*resolution_px)
    grain = scale_factor * share.coarse_scale
    sides = (share.top_px, share.left_px, share.height_px, share.width_px, *resolution_px)
    if outside or any(side % grain for side in sides) or share.context_px % scale_factor:
        wrong = outside or (
            f"sides of {sides[:4]} px in an image of {resolution_px}, or context_px {share.context_px}, no multiples "
            f"of {grain} px"
        )
        message = f"region: {wrong}; choose top, left, height and width inside the image, in steps of {grain} px"
        raise ConfigError(message)
    top, left, height, width, rows, columns = (side // scale_factor for side in sides)
    return Region(top=top, left=left, height=height, width=width, latent_size=(rows, columns))


def with_context(region: Region, positions: int) -> Region:
    """Return the region with so many latent positions around it, as far as the image goes."""
    rows, columns = region.latent_size
    top, left = max(0, region.top - positions), max(0, region.left - positions)
    bottom = min(rows, region.top + region.height + positions)
    right = min(columns, region.left + region.width + positions)
    return replace(region, top=top, left=left, height=bottom - top, width=right - left)


def with_region(begun: Checkpoint, share: RegionShare, region: Region, known: torch.Tensor) -> RegionRun:
    """Return the run of `begun` at step 0 with its `region` known."""
    told: dict[str, Any] = {"region": region, "known": known, "coarse_scale": share.coarse_scale}
    return RegionRun(**_values(begun), **told, refine_steps=share.refine_steps or None)


def with_noise(begun: Checkpoint, noise: torch.Tensor, step: int) -> NoiseRun:
    """Return the run of `begun` after the one further step whose guided noise came.

    Raises:
        PayloadError: if it is the noise of another step.
    """
    if step != begun.step + 1:
        message = f"noise of step {step}: expected step {begun.step + 1}; a frame is missing, receive it again"
        raise PayloadError(message)
    pending = begun.pending if isinstance(begun, NoiseRun) else ()
    return NoiseRun(**{**_values(begun), "step": step}, pending=(*pending, noise))


def settled(pipeline: Pipeline, run: Checkpoint, told: Conditioning | None = None) -> Checkpoint:
    """Return `run` with all that is known of it worked in: a region completed, steps taken with their noise.

    Args:
        pipeline: the device's model.
        run: any run.
        told: conditioning of the run, for a region; None to encode its own prompt.
    """
    if isinstance(run, RegionRun) and run.step < run.num_steps:
        return complete(
            pipeline,
            plain(run),
            run.region,
            run.known,
            coarse_scale=run.coarse_scale,
            refine_steps=run.refine_steps,
            conditioning=told,
        )
    if not isinstance(run, NoiseRun):
        return run
    before = replace(plain(run), step=run.step - len(run.pending))
    for noise in run.pending:
        before = step_with(pipeline, before, noise)
    return before


def plain(run: Checkpoint) -> Checkpoint:
    """Return the checkpoint alone."""
    return Checkpoint(**_values(run))


def as_batch(values: np.ndarray[Any, Any], like: torch.Tensor) -> torch.Tensor:
    """Return values of one image, shape (channels, height, width), as a batch of one in the numbers of `like`."""
    return torch.from_numpy(values[np.newaxis].copy()).to(like)


def _values(run: Checkpoint) -> dict[str, Any]:
    return {field.name: getattr(run, field.name) for field in fields(Checkpoint)}
