"""A frame of `megopt/Cell-v0`: requests that wait, how far edge and band are behind, and each cost beside its limit.

Drawn with Pillow, as that of `megopt.envs.rendering`; one bar is one slot, the latest at the right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from megopt.arrays import FloatArray
from megopt.envs.cell_dynamics import CellParams
from megopt.envs.rendering import HEIGHT_PX, INK, MOMENTS, PAPER, WIDTH_PX, font
from megopt.problem import ceilings

_LEFT, _RIGHT, _TOP = 16, 784, 44
_COLORS = {"waiting": (86, 180, 233), "edge": (0, 114, 178), "band": (230, 159, 0)}
_KEPT, _BROKEN = (0, 158, 115), (213, 94, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMoment:
    """What one slot showed; fields of shape (num_cells,), costs (num_cells, num_limits).

    Attributes:
        num_waiting: requests that wait at the devices after the slot [1].
        edge_busy_s: time for which the edge is busy after the slot [s].
        band_busy_s: time for which the band is busy after the slot [s].
        num_requests: requests decided in the slot [1].
        costs: sum over them, one column per limit.
    """

    num_waiting: FloatArray
    edge_busy_s: FloatArray
    band_busy_s: FloatArray
    num_requests: FloatArray
    costs: FloatArray


def frame(params: CellParams, history: list[CellMoment], env: int) -> NDArray[np.uint8]:
    """Return the frame of one cell, shape (HEIGHT_PX, WIDTH_PX, 3).

    Args:
        params: the environment.
        history: the latest slots, oldest first, at most `MOMENTS`.
        env: which cell.
    """
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), PAPER)
    draw = ImageDraw.Draw(image)
    title = f"megopt/Cell-v0   {params.table.profile}   {params.num_devices} devices, slots of {params.slot_s:g} s"
    draw.text((_LEFT, 12), title, INK, font(16))
    waiting, edge_s, band_s, count = (
        np.array([float(getattr(moment, name)[env]) for moment in history])
        for name in ("num_waiting", "edge_busy_s", "band_busy_s", "num_requests")
    )
    strips = [
        (f"requests waiting: {_now_and_most(waiting)}", waiting, np.inf, _COLORS["waiting"]),
        (f"edge behind by [s]: {_now_and_most(edge_s)}", edge_s, np.inf, _COLORS["edge"]),
        (f"band behind by [s]: {_now_and_most(band_s)}", band_s, np.inf, _COLORS["band"]),
    ]
    for column, (limit, most) in enumerate(zip(params.problem.limits, ceilings(params.problem), strict=True)):
        total = np.array([float(moment.costs[env, column]) for moment in history])
        mean = float(np.sum(total) / max(np.sum(count), 1.0))
        per_request = total / np.maximum(count, 1.0)
        strips.append((f"{limit}, mean {mean:.3g}", per_request, float(most), _BROKEN if mean > most else _KEPT))
    height = (HEIGHT_PX - _TOP) // len(strips)
    for i, (text, values, most, color) in enumerate(strips):
        top = _TOP + i * height
        draw.text((_LEFT, top), text, color, font(14))
        _draw_bars(draw, (top + 20, top + height - 8), values, most, color)
    return np.asarray(image)


def _now_and_most(values: FloatArray) -> str:
    return f"{values[-1]:.3g}, highest bar {values.max():.3g}" if len(values) else "no slot yet"


def _draw_bars(
    draw: ImageDraw.ImageDraw, between: tuple[int, int], values: FloatArray, most: float, color: tuple[int, int, int]
) -> None:
    """Draw one bar per value from the right, and a line at `most` if it is finite, `between` (top, bottom)."""
    top, bottom = between
    ends = np.array([0.0, 1e-9, *values, *([most] if np.isfinite(most) else [])])
    low, high = float(ends.min()), float(ends.max())

    def height(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    width = (_RIGHT - _LEFT) / MOMENTS
    for i, value in enumerate(values):
        left = _RIGHT - (len(values) - i) * width
        ends_px = sorted((height(0.0), height(float(value))))
        draw.rectangle((left, ends_px[0], left + width - 2, ends_px[1]), color)
    if np.isfinite(most):
        draw.line((_LEFT, height(most), _RIGHT, height(most)), INK, 1)
