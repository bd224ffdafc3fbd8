"""A frame of `megopt/Cell-v0`: the way of each request through edge, band and device, who waits, and the limits.

A color is a device. A batch at the edge, and its payloads in the band, are one bar that its members share. What is
decided is known to its end: right of the line, in grey, is what is still to come. Drawn with Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megopt.arrays import FloatArray, IntArray
from megopt.envs.canvas import FAINT, GREY, HEIGHT_PX, INK, PALETTE, SHADE, WIDTH_PX, Canvas, Scale
from megopt.envs.cell_parameters import CellParams
from megopt.envs.cell_state import CellState, CellTransition
from megopt.envs.history import Moment, Past
from megopt.envs.mean_panels import draw_panels

SHOWN_DEVICES = 8
"""Devices with a lane of their own; edge and band show all."""
SLOTS_BEHIND, SLOTS_AHEAD = 40, 20
_LEFT, _RIGHT, _TOP, _DEVICES_PX = 92, WIDTH_PX - 20, 78, 128
_EDGE_PX, _WAITING_PX = 30, 34


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMoment(Moment):
    """What one slot showed; beside the attributes of `Moment`, shape (num_cells, num_devices) unless stated.

    Attributes:
        begin_s: when the slot begins in its episode [s], shape (num_cells,).
        spans_s: when each device's request is at the edge, in the band and at the device [s], in time of the episode:
            begin and end, shape (num_cells, num_devices, 3, 2); NaN where it is not.
        batch_size: members of its batch [1]; 0 without one.
        num_waiting: requests that wait at the devices of a cell after the slot [1], shape (num_cells,).
    """

    begin_s: FloatArray
    spans_s: FloatArray
    batch_size: IntArray
    num_waiting: FloatArray

    @classmethod
    def of(
        cls, params: CellParams, before: CellState, made: CellTransition, rows: IntArray, totals: FloatArray
    ) -> CellMoment:
        """Return what a frame needs of a slot that led from `before` to `made` by `rows` (num_flat,)."""
        shape = (-1, params.num_devices)
        begin_s = np.asarray(before.slot * params.slot_s, dtype=np.float64)
        is_decided = made.is_decided.reshape(shape)
        spans_s = _spans_s(params, before, made, rows) + begin_s[:, np.newaxis, np.newaxis, np.newaxis]
        return cls(
            totals=totals,
            num_requests=is_decided.sum(axis=1).astype(np.float64),
            begin_s=begin_s,
            spans_s=spans_s,
            batch_size=made.service.batch_size,
            num_waiting=made.state.waiting.num_waiting.reshape(shape).sum(axis=1).astype(np.float64),
        )


def _spans_s(params: CellParams, before: CellState, made: CellTransition, rows: IntArray) -> FloatArray:
    """Return begin and end at edge, in the band and at the device, from the beginning of the slot on [s]."""
    service, shape = made.service, made.service.over_s.shape
    is_decided = made.is_decided.reshape(shape)
    on_air_s = service.over_s - made.outcome.downlink_s.reshape(shape)
    done_s = on_air_s - service.band_wait_s
    device_s = np.maximum(service.over_s, before.device_busy_s.reshape(shape))
    work_s = params.table.work.device_s.take(rows).reshape(shape)
    ends = [[done_s - service.batch_s, done_s], [on_air_s, service.over_s], [device_s, device_s + work_s]]
    spans_s = np.moveaxis(np.array(ends), (0, 1), (-2, -1))
    spans_s[service.batch_size == 0, :2] = np.nan
    spans_s[~is_decided] = np.nan
    return np.asarray(spans_s)


def frame(params: CellParams, past: Past[CellMoment]) -> NDArray[np.uint8]:
    """Return the frame of one cell, shape (HEIGHT_PX, WIDTH_PX, 3).

    Args:
        params: the environment.
        past: what it looks back on.
    """
    canvas = Canvas()
    canvas.text((20, 16), "megopt/Cell-v0", size=20)
    canvas.text((_RIGHT, 18), f"slot {past.num_steps} of {params.episode_length}", size=15, anchor="ra")
    shown = min(params.num_devices, SHOWN_DEVICES)
    of_all = f", {shown} of them shown" if shown < params.num_devices else ""
    about = f"{params.num_devices} devices{of_all}, slots of {params.slot_s:g} s, allocation of the band: "
    canvas.text((20, 44), f"{params.table.profile}   {about}{params.allocation}", GREY, 13)
    bottom = _draw_timeline(canvas, params, past)
    draw_panels(canvas, (20, bottom + 58, _RIGHT, HEIGHT_PX - 8), params.problem, past, "slots")
    return canvas.array()


def _draw_timeline(canvas: Canvas, params: CellParams, past: Past[CellMoment]) -> float:
    """Draw the lanes of edge, band, devices and of those who wait; return where they end [px]."""
    now, env = past.num_steps, past.env
    low = max(now - SLOTS_BEHIND, 0)
    ends = {"low": low * params.slot_s, "high": (low + SLOTS_BEHIND + SLOTS_AHEAD) * params.slot_s}
    time = Scale(**ends, begin_px=_LEFT, end_px=_RIGHT)
    shown = min(params.num_devices, SHOWN_DEVICES)
    height = _DEVICES_PX / shown
    lanes = [("edge", _EDGE_PX), ("band", _EDGE_PX), *((f"device {d}", height) for d in range(shown))]
    tops = _TOP + np.cumsum([0.0, *(px for _, px in lanes)])
    bottom = float(tops[-1]) + _WAITING_PX
    now_px = time.px(now * params.slot_s)
    canvas.bar((now_px, _TOP, _RIGHT, bottom), SHADE)
    for (name, px), top in zip(lanes, tops[:-1], strict=True):
        canvas.text((20, top + px / 2), name, size=12 if px >= _EDGE_PX or height < 20 else 13, anchor="lm")
        canvas.line([(_LEFT, top + px), (_RIGHT, top + px)], FAINT)
    for moment in past.moments:
        _draw_batches(canvas, time, moment, env, tops)
        for device in range(shown):
            begin_s, end_s = moment.spans_s[env, device, 2]
            if end_s > max(begin_s, time.low):
                box = (time.px(begin_s), tops[2 + device] + 2, time.px(end_s), tops[3 + device] - 2)
                canvas.span(box, PALETTE[device % len(PALETTE)])
    _draw_waiting(canvas, time, past, params.slot_s, bottom)
    canvas.line([(now_px, _TOP), (now_px, bottom)], INK)
    canvas.text((min(now_px + 4, _RIGHT - 150), _TOP - 15), "decided, still to come", GREY, 11)
    canvas.x_axis(time, bottom, "time of the episode [s]", most=10)
    return bottom


def _draw_batches(canvas: Canvas, time: Scale, moment: CellMoment, env: int, tops: FloatArray) -> None:
    """Draw the batches of a slot at the edge and in the band, each bar shared by its members."""
    spans_s = moment.spans_s[env]
    starts_s = np.round(spans_s[:, 0, 0], 6)  # members of a batch begin together, but for rounding
    for start_s in np.unique(starts_s[np.isfinite(starts_s)]):
        members = np.flatnonzero(starts_s == start_s)
        for lane in (0, 1):
            top, bottom = tops[lane] + 3, tops[lane + 1] - 3
            height = (bottom - top) / len(members)
            for nth, device in enumerate(members):
                begin_s, end_s = spans_s[device, lane]
                if end_s > max(begin_s, time.low):
                    box = (time.px(begin_s), top + nth * height, time.px(end_s), top + (nth + 1) * height)
                    canvas.span(box, PALETTE[device % len(PALETTE)])


def _draw_waiting(canvas: Canvas, time: Scale, past: Past[CellMoment], slot_s: float, bottom: float) -> None:
    """Draw how many requests wait after each slot."""
    waiting = np.array([moment.num_waiting[past.env] for moment in past.moments])
    most = max(float(waiting.max(initial=0.0)), 1.0)
    top = bottom - _WAITING_PX + 5
    canvas.text((20, (top + bottom) / 2), "waiting", size=12, anchor="lm")
    canvas.text((_LEFT - 6, top), f"{most:g}", GREY, 10, "ra")
    for moment, count in zip(past.moments, waiting, strict=True):
        begin_s = moment.begin_s[past.env] + slot_s
        height = (bottom - top) * count / most
        canvas.bar((time.px(begin_s) + 0.5, bottom - height, time.px(begin_s + slot_s) - 0.5, bottom), GREY)
