"""A frame of `megopt/Request-v0`: who was busy when (edge, link, device), and each quantity beside its limit.

Drawn with Pillow: a frame takes some milliseconds, and no window or display is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, IntArray
from megopt.envs.canvas import FAINT, GREY, HEIGHT_PX, PALETTE, WIDTH_PX, Canvas, Scale
from megopt.envs.history import Moment, Past
from megopt.envs.mean_panels import draw_panels
from megopt.envs.parameters import EnvParams
from megopt.system.outcome import Outcome
from megopt.units import db_from_linear

SHOWN_REQUESTS = 10
LANES = ("edge", "link", "device")
_LEFT, _RIGHT, _TOP, _LANE_PX = 76, WIDTH_PX - 20, 84, 54
_BOTTOM = _TOP + len(LANES) * _LANE_PX


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMoment(Moment):
    """What one step showed; beside the attributes of `Moment`, shape (num_envs,).

    Attributes:
        rows: rows that were taken.
        snr: received SNR [1].
        edge_s: compute time at the edge [s].
        link_s: airtime in both directions [s].
        device_s: compute time at the device [s].
    """

    rows: IntArray
    snr: FloatArray
    edge_s: FloatArray
    link_s: FloatArray
    device_s: FloatArray

    @classmethod
    def of(cls, outcome: Outcome, rows: IntArray, snr: FloatArray, totals: FloatArray) -> RequestMoment:
        """Return what a frame needs of the outcome of `rows` (num_envs,)."""
        return cls(
            totals=totals,
            num_requests=np.ones(len(rows)),
            rows=rows,
            snr=snr,
            edge_s=outcome.edge_s,
            link_s=outcome.downlink_s + outcome.uplink_s,
            device_s=outcome.device_s,
        )


def frame(params: EnvParams, past: Past[RequestMoment]) -> NDArray[np.uint8]:
    """Return the frame of one environment, shape (HEIGHT_PX, WIDTH_PX, 3).

    Args:
        params: the environment.
        past: what it looks back on.
    """
    canvas = Canvas()
    canvas.text((20, 16), "megopt/Request-v0", size=20)
    canvas.text((_RIGHT, 18), f"request {past.num_steps} of {params.episode_length}", size=15, anchor="ra")
    canvas.text((20, 44), f"{params.table.profile}   {_latest(params, past)}", GREY, 13)
    _draw_timeline(canvas, params, past)
    draw_panels(canvas, (20, _BOTTOM + 64, _RIGHT, HEIGHT_PX - 8), params.problem, past, "requests")
    return canvas.array()


def _latest(params: EnvParams, past: Past[RequestMoment]) -> str:
    if not past.moments:
        return "no request yet"
    latest, env = past.moments[-1], past.env
    return f"latest: {params.table.name(latest.rows[env])} at {db_from_linear(latest.snr[env]):.1f} dB"


def spans(past: Past[RequestMoment], *, is_pipelined: bool) -> FloatArray:
    """Return when each side is busy [s], shape (num_moments, 3, 2): begin and end at edge, on the link, at the device.

    With pipelining the edge begins when the previous payload goes on the air, and a payload waits for a free link.
    """
    times = np.zeros((len(past.moments), len(LANES), 2))
    free_edge_s = free_link_s = 0.0
    for row, moment in zip(times, past.moments, strict=True):
        ready_s = free_edge_s + float(moment.edge_s[past.env])
        sent_s = max(ready_s, free_link_s) + float(moment.link_s[past.env])
        row[0] = free_edge_s, ready_s
        row[1] = max(ready_s, free_link_s), sent_s
        row[2] = sent_s, sent_s + float(moment.device_s[past.env])
        free_link_s = sent_s
        free_edge_s = row[1, 0] if is_pipelined else row[2, 1]
    return times


def _draw_timeline(canvas: Canvas, params: EnvParams, past: Past[RequestMoment]) -> None:
    """Draw one lane per side and one bar per request in it, with the request's number."""
    times = spans(past, is_pipelined=params.is_pipelined)[-SHOWN_REQUESTS:]
    times -= times[0, 0, 0] if len(times) else 0.0
    end_s = max(float(np.max(times, initial=0.0, where=np.isfinite(times))), 1e-9)
    scale = Scale(low=0.0, high=end_s, begin_px=_LEFT, end_px=_RIGHT)
    for lane, name in enumerate(LANES):
        top = _TOP + lane * _LANE_PX
        canvas.text((20, top + _LANE_PX / 2), name, size=14, anchor="lm")
        canvas.line([(_LEFT, top + _LANE_PX), (_RIGHT, top + _LANE_PX)], FAINT)
        for nth, (begin_s, stop_s) in enumerate(times[:, lane], past.num_steps - len(times) + 1):
            box = (scale.px(begin_s), top + 6, scale.px(stop_s), top + _LANE_PX - 6)
            if stop_s > begin_s:
                canvas.span(box, PALETTE[nth % len(PALETTE)], str(nth))
    canvas.x_axis(scale, _BOTTOM, f"time since the first of the {len(times)} latest requests [s]", most=10)
