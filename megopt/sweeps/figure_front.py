"""The Pareto surface of a sweep or a search: the best mean quality within limits on mean latency and energy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.pareto import is_non_dominated
from megopt.arrays import FloatArray
from megopt.sweeps.figure_data import OUTAGE, Means
from megopt.sweeps.figure_words import finish_page, limit_words, mean_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NUM_CELLS = 300
"""Cells of the map along each axis."""
MEASURED, NUM_QUALITIES = 0.8, 5
"""Share of points whose quality has to be known for a surface, and how many values it has to take."""
SAME = 1e-6
"""Relative difference of two qualities that is rounding."""
SLICES = (0.25, 0.5, 1.0)
"""Energies at which the surface is cut, as quantiles of those on it."""


def save_front(means: Means, path: Path) -> list[Path]:
    """Draw the surface as a map with its points, and cuts through it; without quality, the front of latency and energy.

    Returns:
        The files; none where fewer than three points can be compared.
    """
    points = _comparable(means)
    if len(points) < 3:
        return []
    measured = points[np.isfinite(points["quality"])]
    has_quality = len(measured) > MEASURED * len(points) and _num_values(measured) >= NUM_QUALITIES
    points = measured if has_quality else points
    with plots.paper_style():
        if has_quality:
            panels = plots.new_panels(2, height_in=3.2)
            plot_surface_map(means, points, panels[0])
            plot_cuts(means, points, panels[1])
        else:
            panels = plots.new_panels(1, width_in=5.8, height_in=3.4)
            plot_front(means, points, panels[0])
        finish_page(panels, f"{means.note}; {len(points)} points")
        return plots.save_figure(panels[0], path)


def _comparable(means: Means) -> pd.DataFrame:
    """Return the points whose requests were served and whose energy is known, each once."""
    points = means.points
    is_kept = np.isfinite(points["latency_s"]) & np.isfinite(points["energy_j"]) & (points["outage_rate"] <= OUTAGE)
    kept: pd.DataFrame = points[is_kept].drop_duplicates(["policy", "latency_s", "energy_j", "quality"])
    return kept


def _num_values(points: pd.DataFrame) -> int:
    """Return how many qualities there are, those that differ by rounding as one."""
    values = np.unique(points["quality"].to_numpy(dtype=float))
    return 1 + int((np.diff(values) > SAME * np.abs(values).max()).sum()) if len(values) else 0


def plot_surface_map(means: Means, points: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the best quality over limits on both means; white where no point keeps them, dots where none is better."""
    columns = points[["latency_s", "energy_j", "quality"]].to_numpy(dtype=float)
    x, y = (_limits(columns[:, number]) for number in (0, 1))
    best = means.sense * attained(columns[:, 0], columns[:, 1], means.sense * columns[:, 2], x, y)
    mesh = ax.pcolormesh(x, y, np.ma.masked_invalid(best), cmap="viridis", shading="nearest", rasterized=True)
    is_best = is_non_dominated(columns * np.array([1.0, 1.0, -means.sense]))
    ax.plot(*columns[is_best, :2].T, "o", ms=3.2, mfc="white", mec="black", mew=0.6, label="no point is better")
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.colorbar(mesh, ax=ax, pad=0.02)
    ax.set_title(f"{_best(means)} within both limits", fontsize=8)
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        plots.scale_axis(axis, values)
    ax.set_xlabel("Limit on mean latency [s]")
    ax.set_ylabel("Limit on mean energy [J]")
    ax.grid(visible=False)
    return ax


def plot_cuts(means: Means, points: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the best quality over the limit on the mean latency, at some limits on the mean energy."""
    columns = points[["latency_s", "energy_j", "quality"]].to_numpy(dtype=float)
    on_it = columns[is_non_dominated(columns * np.array([1.0, 1.0, -means.sense]))]
    x = _limits(columns[:, 0])
    for i, limit in enumerate(np.unique(np.quantile(on_it[:, 1], SLICES))):
        gain = means.sense * columns[:, 2]
        best = means.sense * attained(columns[:, 0], columns[:, 1], gain, x, np.array([limit]))[0]
        color, dash = plots.COLORS[i % len(plots.COLORS)], plots.DASHES[i % len(plots.DASHES)]
        ax.step(x, best, where="post", color=color, linestyle=dash, label=f"mean {limit_words('energy_j', limit)}")
    plots.scale_axis(ax.xaxis, x)
    ax.set_xlabel("Limit on mean latency [s]")
    ax.set_ylabel(_best(means))
    return ax


def plot_front(means: Means, points: pd.DataFrame, ax: Axes) -> Axes:
    """Draw mean latency against mean energy, a marker per policy, and the steps that no point lies below."""
    for i, (policy, own) in enumerate(points.groupby("policy", sort=False)):
        color, marker = plots.COLORS[i % len(plots.COLORS)], plots.MARKERS[i % len(plots.MARKERS)]
        name = str(policy).replace("_", " ")
        ax.plot(own["energy_j"], own["latency_s"], marker, color=color, ms=3.2, mfc="none", mew=0.7, label=name)
    columns = points[["energy_j", "latency_s"]].to_numpy(dtype=float)
    front = columns[is_non_dominated(columns)]
    front = front[np.argsort(front[:, 0])]
    ax.step(front[:, 0], front[:, 1], where="post", color="black", lw=1.0, label="front")
    for axis, values in ((ax.xaxis, columns[:, 0]), (ax.yaxis, columns[:, 1])):
        plots.scale_axis(axis, values)
    ax.set_xlabel(mean_label(means, "energy_j"))
    ax.set_ylabel(mean_label(means, "latency_s"))
    return ax


def attained(first: FloatArray, second: FloatArray, gain: FloatArray, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the largest gain among the points within limits on both costs; NaN where there is none.

    Args:
        first: first cost of each point, shape (num_points,).
        second: second cost, same shape.
        gain: what is to be large, same shape.
        x: limits on the first cost, ascending, shape (num_x,).
        y: limits on the second cost, ascending, shape (num_y,).

    Returns:
        Shape (num_y, num_x).
    """
    best = np.full((len(y) + 1, len(x) + 1), -np.inf)
    np.maximum.at(best, (np.searchsorted(y, second), np.searchsorted(x, first)), gain)
    best = np.maximum.accumulate(np.maximum.accumulate(best[:-1, :-1], axis=0), axis=1)
    return np.where(np.isfinite(best), best, np.nan)


def _best(means: Means) -> str:
    label = mean_label(means, "quality")
    return f"Best {label[0].lower()}{label[1:]}"


def _limits(values: FloatArray) -> FloatArray:
    """Return limits that span the values, log-spaced where these are wide, shape (NUM_CELLS,)."""
    low, high = float(values.min()), float(values.max())
    if low > 0.0 and high / low > 5.0:
        return np.geomspace(low / 1.05, high * 1.05, NUM_CELLS)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return np.linspace(low - room, high + room, NUM_CELLS)
