"""Region split: the edge makes a rectangle of the latent, the device completes the rest around it.

    primary_region  share x, or mask            -> Region
    make_region     run at step 0, on the edge  -> latent of the region, which is sent
    complete        run at step 0, that latent  -> finished run, on the device

The device goes from coarse to fine: a run of the whole image at a lower resolution, then the last steps at the full
one. Before each of its steps the region is set to its known latent, noised to the level of that step, so that the rest
grows to fit; at the end it is the known latent itself. The denoiser sees the whole latent at each step: the cost of the
device does not fall with x, except to nothing at x = 1.

Source: masked denoising, Lugmayr et al. 2022, "RePaint", equation 8, without its resampling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch.nn import functional

from megopt.arrays import BoolArray, FloatArray
from megopt.diffusion import codec, schedulers
from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.conditioning import Conditioning, encode
from megopt.diffusion.pipelines import Pipeline
from megopt.diffusion.sampling import advance, start
from megopt.errors import ConfigError, PipelineError
from megopt.units import BITS_PER_BYTE

Size: TypeAlias = tuple[int, int]
"""Height and width of a latent, in positions."""
_DISTORTION_WEIGHT = 0.03
"""Share of the area that one natural unit of log aspect ratio is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A rectangle of a latent, in latent positions.

    Attributes:
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        latent_size: height and width of the whole latent.
    """

    top: int
    left: int
    height: int
    width: int
    latent_size: Size

    def __post_init__(self) -> None:
        rows, columns = self.latent_size
        fits = 0 <= self.top <= rows - self.height and 0 <= self.left <= columns - self.width
        if not fits or self.height < 1 or self.width < 1:
            message = (
                f"region of {self.height}x{self.width} at ({self.top}, {self.left}): expected a rectangle inside the "
                f"latent of {rows}x{columns}"
            )
            raise ConfigError(message)

    @property
    def ratio(self) -> float:
        """Share of the area of the latent [1]: the x of region split."""
        return self.height * self.width / (self.latent_size[0] * self.latent_size[1])

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the latent."""
        return (self.height, self.width) == self.latent_size

    def of(self, latent: torch.Tensor) -> torch.Tensor:
        """Return its part of `latent`, as a view; shape (..., height, width)."""
        return latent[..., self.top : self.top + self.height, self.left : self.left + self.width]


def primary_region(
    ratio_or_mask: float | BoolArray, latent_size: Size, *, around: BoolArray | None = None, grain: int = 1
) -> Region:
    """Return the region that the edge makes.

    Args:
        ratio_or_mask: share of the area [1], in (0, 1]: a rectangle of about the latent's shape and that area, which
            `Region.ratio` of the answer tells. Or a foreground mask, shape (rows, columns), sides the same multiple of
            the latent's: the smallest rectangle that holds it.
        latent_size: height and width of the latent, in positions.
        around: for a ratio, a mask of the same kind: the rectangle covers as much of it as it can; None for the middle.
        grain: sides and corners are multiples of this many positions; a denoiser's own factor makes a region that it
            can run alone. It must divide the latent's sides.

    Raises:
        ConfigError: if the share is outside (0, 1], a mask does not fit the latent or is empty, or the grain does not
            divide the latent.
    """
    if grain < 1 or any(side < 1 or side % grain for side in latent_size):
        message = f"region: grain {grain} on a latent of {latent_size}; expected a divisor of both sides"
        raise ConfigError(message)
    cells = latent_size[0] // grain, latent_size[1] // grain
    if isinstance(ratio_or_mask, np.ndarray):
        corner, sides = _smallest(ratio_or_mask, cells)
    else:
        sides = _sides(float(ratio_or_mask), cells)
        corner = _middle(cells, sides) if around is None else _best(around, cells, sides)
    return Region(
        top=corner[0] * grain,
        left=corner[1] * grain,
        height=sides[0] * grain,
        width=sides[1] * grain,
        latent_size=latent_size,
    )


def region_payload_bits(region: Region, channels: int, codec_bits: int) -> int:
    """Return the exact bits of a region's latent in the frame of `megopt.diffusion.codec`.

    Raises:
        ConfigError: for a bit width that is no codec.
    """
    return codec.payload_bytes((channels, region.height, region.width), codec_bits) * BITS_PER_BYTE


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
    told = conditioning or _encoded(pipeline, begin)
    if sees_whole or region.is_whole:
        return region.of(advance(pipeline, begin, begin.num_steps, told).latent).clone()
    part = replace(begin, latent=region.of(begin.latent).clone())
    return advance(pipeline, part, begin.num_steps, _cropped(told, region, begin)).latent


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
    return _masked_run(pipeline, run, region, known, noise, conditioning or _encoded(pipeline, begin))


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
    told = _encoded(pipeline, small)
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


def _encoded(pipeline: Pipeline, begin: Checkpoint) -> Conditioning:
    assert begin.prompt is not None
    return encode(
        pipeline,
        begin.prompt,
        negative_prompt=begin.negative_prompt,
        guidance_scale=begin.guidance_scale,
        resolution_px=begin.resolution_px,
    )


def _cropped(told: Conditioning, region: Region, begin: Checkpoint) -> Conditioning:
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


def _share_in_cells(mask: BoolArray, cells: Size) -> FloatArray:
    """Return the share of every cell that the mask covers, shape `cells`."""
    factor = mask.shape[0] // cells[0] if mask.ndim == 2 else 0
    is_fitting = factor > 0 and mask.shape == (factor * cells[0], factor * cells[1])
    if mask.dtype != np.bool_ or not is_fitting or not mask.any():
        message = (
            f"region: a mask of {mask.dtype}, shape {mask.shape}, {np.count_nonzero(mask)} set; expected bool with "
            f"some set, and sides that are one multiple of {cells}"
        )
        raise ConfigError(message)
    return np.asarray(mask.reshape(cells[0], factor, cells[1], factor).mean(axis=(1, 3)))


def _sides(ratio: float, cells: Size) -> Size:
    """Return height and width of a rectangle that is near the area, and near the shape of the latent, in cells."""
    if not 0.0 < ratio <= 1.0:
        message = f"region ratio {ratio}: expected a share in (0, 1]"
        raise ConfigError(message)
    height, width = (np.arange(1, side + 1) / side for side in cells)
    distortion = np.abs(np.log(height[:, None] / width))
    best = np.argmin(np.abs(height[:, None] * width - ratio) + _DISTORTION_WEIGHT * distortion)
    row, column = np.unravel_index(best, cells)
    return int(row) + 1, int(column) + 1


def _smallest(mask: BoolArray, cells: Size) -> tuple[Size, Size]:
    """Return corner and sides of the smallest rectangle that holds the mask, in cells."""
    held = np.argwhere(_share_in_cells(mask, cells) > 0.0)
    top, left = (int(first) for first in held.min(axis=0))
    bottom, right = (int(last) for last in held.max(axis=0))
    return (top, left), (bottom - top + 1, right - left + 1)


def _middle(cells: Size, sides: Size) -> Size:
    return (cells[0] - sides[0]) // 2, (cells[1] - sides[1]) // 2


def _best(around: BoolArray, cells: Size, sides: Size) -> Size:
    """Return the corner of the rectangle that covers most of the mask; among equals, the one amid them."""
    covered = np.lib.stride_tricks.sliding_window_view(_share_in_cells(around, cells), sides).sum(axis=(2, 3))
    corners = np.argwhere(covered >= covered.max() - 1e-9)
    top, left = corners[np.argmin(np.sum(np.square(corners - corners.mean(axis=0)), axis=1))]
    return int(top), int(left)
