"""A frame of `megopt/Request-v0`: who was busy when (edge, link, device), and each limited cost beside its limit.

Drawn with Pillow: a frame takes a few milliseconds, and no window or display is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from megopt.arrays import FloatArray
from megopt.envs.dynamics import EnvParams
from megopt.problem import ceilings
from megopt.system.outcome import Outcome
from megopt.units import db_from_linear

MOMENTS = 64
"""Steps that a frame can look back on."""
WIDTH_PX, HEIGHT_PX = 800, 448
SHOWN_REQUESTS = 8
LANES = ("edge", "link", "device")
_LEFT, _RIGHT, _TOP, _LANE_PX = 76, 780, 56, 46
INK, _FAINT, PAPER = (34, 34, 34), (214, 214, 214), (255, 255, 255)
_BAR = {"edge": (0, 114, 178), "link": (230, 159, 0), "device": (0, 158, 115)}
_KEPT, _BROKEN = (0, 114, 178), (213, 94, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What one step showed; fields of shape (num_envs,), costs (num_envs, num_limits).

    Attributes:
        snr: received SNR [1].
        edge_s: compute time at the edge [s].
        link_s: airtime in both directions [s].
        device_s: compute time at the device [s].
        costs: one column per limit.
    """

    snr: FloatArray
    edge_s: FloatArray
    link_s: FloatArray
    device_s: FloatArray
    costs: FloatArray

    @classmethod
    def of(cls, outcome: Outcome, snr: FloatArray, costs: FloatArray) -> Moment:
        """Return what a frame needs of an outcome."""
        link_s = outcome.downlink_s + outcome.uplink_s
        return cls(snr=snr, edge_s=outcome.edge_s, link_s=link_s, device_s=outcome.device_s, costs=costs.copy())


def frame(params: EnvParams, history: list[Moment], env: int) -> NDArray[np.uint8]:
    """Return the frame of one environment, shape (HEIGHT_PX, WIDTH_PX, 3).

    Args:
        params: the environment.
        history: the latest moments of the vector environment, oldest first.
        env: which environment.
    """
    image = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), PAPER)
    draw = ImageDraw.Draw(image)
    state = f"SNR {db_from_linear(history[-1].snr[env]):.1f} dB" if history else "no request yet"
    draw.text((16, 12), f"megopt/Request-v0   {params.table.profile}   {state}", INK, font(16))
    _draw_timeline(draw, params, history, env)
    _draw_limits(draw, params, history, env)
    return np.asarray(image)


def spans(moments: list[Moment], env: int, *, is_pipelined: bool) -> FloatArray:
    """Return when each side is busy [s], shape (num_moments, 3, 2): begin and end at edge, on the link, at the device.

    With pipelining the edge begins when the previous payload goes on the air, and a payload waits for a free link.
    """
    times = np.zeros((len(moments), len(LANES), 2))
    free_edge_s = free_link_s = 0.0
    for row, moment in zip(times, moments, strict=True):
        ready_s = free_edge_s + float(moment.edge_s[env])
        sent_s = max(ready_s, free_link_s) + float(moment.link_s[env])
        row[0] = free_edge_s, ready_s
        row[1] = max(ready_s, free_link_s), sent_s
        row[2] = sent_s, sent_s + float(moment.device_s[env])
        free_link_s = sent_s
        free_edge_s = row[1, 0] if is_pipelined else row[2, 1]
    return times


def _draw_timeline(draw: ImageDraw.ImageDraw, params: EnvParams, history: list[Moment], env: int) -> None:
    """Draw one lane per side and one bar per request in it."""
    shown = history[-SHOWN_REQUESTS:]
    times = spans(shown, env, is_pipelined=params.is_pipelined)
    end_s = max(float(np.max(times, initial=0.0, where=np.isfinite(times))), 1e-9)
    for lane, name in enumerate(LANES):
        y = _TOP + lane * _LANE_PX
        draw.text((16, y + 10), name, INK, font(14))
        draw.line((_LEFT, y + _LANE_PX - 6, _RIGHT, y + _LANE_PX - 6), _FAINT)
        for row, moment_times in enumerate(times):
            begin, stop = _LEFT + (_RIGHT - _LEFT) * np.minimum(moment_times[lane], end_s) / end_s
            if stop - begin < 0.5:
                continue
            color = _BAR[name] if (len(history) - len(shown) + row) % 2 else tuple(c * 3 // 4 for c in _BAR[name])
            draw.rectangle((begin, y + 4, max(stop - 1, begin), y + _LANE_PX - 10), color)
    y = _TOP + len(LANES) * _LANE_PX
    draw.text((_LEFT, y), f"{len(shown)} latest requests, {end_s:.2f} s in all", INK, font(12))


def _draw_limits(draw: ImageDraw.ImageDraw, params: EnvParams, history: list[Moment], env: int) -> None:
    """Draw for each limit the cost of each request, their running mean and the limit."""
    limits, most = params.problem.limits, ceilings(params.problem)
    top = _TOP + len(LANES) * _LANE_PX + 30
    if not limits:
        draw.text((16, top), "no limits", INK, font(14))
        return
    height = (HEIGHT_PX - top - 12) // len(limits)
    costs = np.array([moment.costs[env] for moment in history]).reshape(-1, len(limits))
    means = np.cumsum(costs, axis=0) / np.arange(1, len(costs) + 1)[:, np.newaxis]
    for column, limit in enumerate(limits):
        y, mean = top + column * height, float(means[-1, column]) if len(costs) else float("nan")
        color = _KEPT if not mean > most[column] else _BROKEN
        draw.text((16, y), f"{limit}, mean {mean:.3g}", color, font(14))
        box = (_LEFT, y + 20, _RIGHT, y + height - 8)
        _draw_cost(draw, box, costs[:, column], means[:, column], float(most[column]), color)


def _draw_cost(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    costs: FloatArray,
    means: FloatArray,
    most: float,
    color: tuple[int, int, int],
) -> None:
    """Draw bars of the costs, a line of the means and a line at the limit into `box` (left, top, right, bottom)."""
    left, top, right, bottom = box
    values = np.array([0.0, most, *costs])
    values = values[np.isfinite(values)]
    low, span = float(values.min()), max(float(np.ptp(values)) * 1.1, 1e-9)
    step = (right - left) / MOMENTS

    def height(value: float) -> float:
        return float(np.clip(bottom - (bottom - top) * (value - low) / span, top, bottom))

    for i, cost in enumerate(np.nan_to_num(costs, nan=low, posinf=low + span)):
        ends = sorted((height(0.0), height(float(cost))))
        draw.rectangle((left + i * step, ends[0], left + (i + 1) * step - 2, ends[1]), _FAINT)
    if len(means) > 1:
        draw.line([(left + (i + 0.5) * step, height(float(mean))) for i, mean in enumerate(means)], color, 3)
    draw.line((left, height(most), right, height(most)), INK, 1)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that comes with Pillow, `size` pixels high."""
    return ImageFont.load_default(size)
