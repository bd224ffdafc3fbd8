"""Region split, where: the rectangle of the latent that the edge makes, of share x around what matters most.

    primary_region  share x, or mask  -> Region

region_completion.py makes it, and completes the rest around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from megopt.arrays import BoolArray, FloatArray
from megopt.diffusion import codec
from megopt.errors import ConfigError
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
