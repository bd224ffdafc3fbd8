"""The lower half of a frame: objective and limited quantities of each step, their running means and the limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.arrays import FloatArray
from megopt.envs.canvas import BROKEN, FAINT, GREY, INK, KEPT, Box, Canvas, Scale
from megopt.envs.history import MOMENTS, Past, shown_bounds
from megopt.problem import Problem, ceilings
from megopt.tables.schema import METRIC_SENSES

_GAP_PX, _AXIS_PX, _TITLE_PX, _FOOT_PX = 28, 44, 26, 36


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One quantity over the steps that are shown.

    Attributes:
        name: what it is, with its unit.
        values: value of each step, shape (num_moments,); NaN where nothing was decided.
        means: running mean over the episode, same shape.
        bound: the limit; NaN for the objective.
        is_kept: whether the mean keeps the limit; True for the objective.
        is_cost: whether it counts seconds or joules, as bars from 0; a quality is shown as points.
    """

    name: str
    values: FloatArray
    means: FloatArray
    bound: float
    is_kept: bool
    is_cost: bool


def draw_panels(canvas: Canvas, box: Box, problem: Problem, past: Past[Any], unit: str) -> None:
    """Draw one panel per quantity, side by side, into `box`; `unit` is what the steps are called."""
    panels = panels_of(problem, past)
    left, top, right, bottom = box
    width = (right - left + _GAP_PX) / len(panels) - _GAP_PX
    first = past.num_steps - len(past.moments)
    for i, panel in enumerate(panels):
        begin = left + i * (width + _GAP_PX)
        _draw_panel(canvas, (begin, top, begin + width, bottom), panel, first, unit)


def panels_of(problem: Problem, past: Past[Any]) -> list[Panel]:
    """Return a panel for the objective, unless it is limited too, and one for each limit."""
    quantities = [problem.objective, *(limit.quantity for limit in problem.limits)]
    values, bounds = past.per_request, shown_bounds(problem)
    sense = METRIC_SENSES.get(problem.metric, 1)
    most = np.concatenate([[np.inf], ceilings(problem)])
    panels = []
    for column, quantity in enumerate(quantities):
        if column == 0 and quantity in quantities[1:]:
            continue
        mean = past.means[-1, column] if len(past.means) else np.nan
        cost = -mean * sense if quantity == "quality" else mean
        panels.append(
            Panel(
                name=problem.metric if quantity == "quality" else _words(quantity),
                values=values[:, column],
                means=past.means[:, column],
                bound=float(bounds[column]),
                is_kept=not cost > most[column],
                is_cost=quantity != "quality",
            )
        )
    return panels


def _words(quantity: str) -> str:
    """Return a quantity in words with its unit: device_energy_j is device energy [J]."""
    *words, unit = quantity.split("_")
    return f"{' '.join(words)} [{unit.upper() if unit == 'j' else unit}]"


def _draw_panel(canvas: Canvas, box: Box, panel: Panel, first: int, unit: str) -> None:
    left, top, right, bottom = box
    x = Scale(low=first, high=first + MOMENTS, begin_px=left + _AXIS_PX, end_px=right)
    y = _value_scale(panel, bottom - _FOOT_PX, top + _TITLE_PX)
    color = KEPT if panel.is_kept else BROKEN
    canvas.text((left, top), panel.name, INK, 14)
    canvas.text((right, top), _numbers(panel), color, 14, "ra")
    for i, value in enumerate(panel.values):
        if not np.isnan(value):
            place = y.px(float(value))
            width_px = y.begin_px - place if panel.is_cost else 3.0
            shade = FAINT if panel.is_cost else GREY
            canvas.bar((x.px(first + i) + 1, place, x.px(first + i + 1) - 1, place + width_px), shade)
        if value > y.high:  # what is shown goes on above
            canvas.bar((x.px(first + i) + 1, y.end_px, x.px(first + i + 1) - 1, y.end_px + 3), GREY)
    means = [(x.px(first + i + 0.5), y.px(float(mean))) for i, mean in enumerate(panel.means) if np.isfinite(mean)]
    if len(means) > 1:
        canvas.line(means, color, 2.5)
    if np.isfinite(panel.bound):
        canvas.dashes((x.begin_px, y.px(panel.bound)), (x.end_px, y.px(panel.bound)), INK)
    canvas.y_axis(y, x.begin_px, most=4)
    canvas.x_axis(x, bottom - _FOOT_PX, f"{unit} of the episode", most=5)


def _numbers(panel: Panel) -> str:
    mean = panel.means[-1] if len(panel.means) else np.nan
    said = f"mean {mean:.3g}" if np.isfinite(mean) else ""
    return f"{said}   limit {panel.bound:g}" if np.isfinite(panel.bound) else said


def _value_scale(panel: Panel, bottom: float, top: float) -> Scale:
    """Return a scale that holds the limit, nine of ten values and most means; what is above ends at its top."""
    values, means = (some[np.isfinite(some)] for some in (panel.values, panel.means))
    bound = [panel.bound] if np.isfinite(panel.bound) else []
    of_values = [*np.quantile(values, [0.05, 0.9])] if len(values) else []
    of_means = [*np.quantile(means, [0.05, 0.95]), means[-1]] if len(means) else []
    seen = np.array([*of_values, *of_means, *bound])
    low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 1.0)
    low = 0.0 if panel.is_cost else low
    margin = 0.15 * max(high - low, 1e-9, 1e-6 * abs(high))
    return Scale(low=low if panel.is_cost else low - margin, high=high + margin, begin_px=bottom, end_px=top)
