"""The figure of HIQM: twelve curves through the published points, and what the fits leave over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.plots import MARKERS, note_below
from megopt.arrays import FloatArray
from megopt.schemes.shared_steps_quality import BINS, NUM_STEPS, published_points, sigmoid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NOTE = "markers: published means (HIS, ICC 2025); lines: least squares"
TITLES = {"sim_npi": "(a) weaker guidance while shared", "plain": "(b) plain"}
COLOR_MAP = "viridis"


def draw(fits: pd.DataFrame) -> list[Axes]:
    """Return the four panels, drawn from the table of `megopt.reproductions.hiqm.fit_table`: curves above residuals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.1, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(TITLES), sharex=True, sharey="row", height_ratios=[3.2, 1])
    for (variant, title), (curves, residuals) in zip(TITLES.items(), grid.T, strict=True):
        rows = fits[fits["variant"] == variant]
        plot_curves(rows, curves)
        plot_residuals(rows, residuals)
        curves.set_title(title, loc="left", fontsize=9)
        residuals.set_xlabel(f"Common steps of {NUM_STEPS}")
    grid[0, 0].set_ylabel("Mean CLIP score")
    grid[1, 0].set_ylabel("Published less\nfitted [0.001]")
    grid[0, 0].legend(loc="lower left", title="similarity of prompts", title_fontsize=8, ncols=2, columnspacing=1.2)
    note_below(grid[0, 0], NOTE)
    return list(grid.ravel())


def plot_curves(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the six fitted curves of a variant through all its published points, with the range of R2.

    Args:
        rows: the variant's rows of `megopt.reproductions.hiqm.fit_table`.
        ax: where to draw.
    """
    steps = np.linspace(0.0, NUM_STEPS - 1.0, 200)
    points = published_points(str(rows["variant"].iloc[0]))
    for number, curve in enumerate(rows.to_dict("records")):
        color, marker = _style(number)
        ax.plot(steps, _fitted(curve, steps), color=color, lw=1.2)
        label = f"{curve['similarity']:g}"
        ax.plot(points[number], marker, color=color, ms=3.6, mec="white", mew=0.3, label=label, zorder=3)
    text = f"$R^2$ {rows['r2'].min():.4f} to {rows['r2'].max():.4f}"
    ax.text(0.97, 0.96, text, transform=ax.transAxes, ha="right", va="top", fontsize=8)
    ax.set(xlim=(-0.7, NUM_STEPS - 0.3), ylim=(0.05, 0.34))
    return ax


def plot_residuals(rows: pd.DataFrame, ax: Axes) -> Axes:
    """Draw published less fitted scores of a variant, in thousandths.

    Args:
        rows: the variant's rows of `megopt.reproductions.hiqm.fit_table`.
        ax: where to draw.
    """
    points, steps = published_points(str(rows["variant"].iloc[0])), np.arange(NUM_STEPS, dtype=np.float64)
    for number, curve in enumerate(rows.to_dict("records")):
        color, marker = _style(number)
        left = 1e3 * (points[number] - _fitted(curve, steps))
        ax.plot(steps, left, color=color, marker=marker, ms=2.4, mec="white", mew=0.2, lw=0.6)
    ax.axhline(0.0, color="0.3", lw=0.7)
    return ax


def _fitted(curve: Mapping[Any, float], steps: FloatArray) -> FloatArray:
    return sigmoid(steps, *(curve[name] for name in ("L", "K", "B", "D")))


def _style(number: int) -> tuple[tuple[float, float, float, float], str]:
    """Return colour and marker of a bin; the more similar, the lighter."""
    from matplotlib import colormaps

    return colormaps[COLOR_MAP](0.92 * number / (len(BINS) - 1)), MARKERS[number]
