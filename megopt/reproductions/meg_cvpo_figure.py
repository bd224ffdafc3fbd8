"""The figure of `megopt reproduce figure=meg_cvpo`: quality, latency, energy and violations over power and limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megopt.analysis.plots import COLORS, DASHES, MARKERS, metric_label, stamp

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from megopt.schemes.action_table import ActionTable

COLUMNS = {
    "quality": "quality",
    "latency_s": "latency [s]",
    "energy_j": "energy [J]",
    "violation_rate": "episodes over a limit [1]",
}
"""Columns that are drawn, with the labels of their axes; quality is labelled by its metric."""
AXES = {"power_dbm": "transmit power [dBm]", "limit_share": "limits, share of their range [1]"}
NAMES = {
    "cvpo": "CVPO",
    "ppo_lag": "PPO-Lag",
    "ddpg_lag": "DDPG-Lag",
    "sac_lag": "SAC-Lag",
    "ppo": "PPO, no limits",
    "average_optimal": "optimum, channel known",
    "fixed": "fixed compression",
}
"""Names in the legend where they differ from those in the table."""
_LOG_FROM = 10.0
"""Largest value over the smallest from which an axis is logarithmic."""


def draw(table: pd.DataFrame, actions: ActionTable, metric: str) -> Axes:
    """Return the first axes of a grid: a row per axis of the sweep, a column per quantity.

    Args:
        table: rows of `megopt.reproductions.meg_cvpo.sweep_table`.
        actions: the rows behind it, with their provenance.
        metric: what quality is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [axis for axis in AXES if axis in set(table["axis"])]
    figure = Figure(figsize=(12.0, 0.9 + 2.6 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(names), len(COLUMNS), squeeze=False)
    for axis, row in zip(names, panels, strict=True):
        points = table[table["axis"] == axis]
        for column, panel in zip(COLUMNS, row, strict=True):
            plot_column(points, column, panel)
            panel.set_xlabel(AXES[axis])
            panel.set_ylabel(metric_label(metric) if column == "quality" else COLUMNS[column])
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    first: Axes = panels[0][0]
    kinds = sorted({kind for text in actions.kind for kind in str(text).split("+") if kind})
    stamp(first, f"profile {actions.profile}; data: {', '.join(kinds)}; means per request; grey: limit")
    return first


def plot_column(points: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """Draw one quantity over one axis of the sweep: a line per way, and the limit where there is one.

    Args:
        points: rows of the table of one axis.
        column: what to draw.
        ax: where to draw.
    """
    for number, (who, rows) in enumerate(points.groupby("who", sort=False)):
        ordered = rows.sort_values("value")
        ax.plot(
            ordered["value"],
            ordered[column],
            color=COLORS[number % len(COLORS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)],
            ms=4,
            label=NAMES.get(str(who), str(who)),
        )
    if f"limit_{column}" in points:
        limits = points.groupby("value")[f"limit_{column}"].first()
        ax.plot(limits.index, limits.to_numpy(), color="0.5", linewidth=3, alpha=0.4, zorder=0)
    least, most = points[column].min(), points[column].max()
    if column in ("latency_s", "energy_j") and most > _LOG_FROM * least:
        _make_logarithmic(ax)
    return ax


def _make_logarithmic(ax: Axes) -> None:
    """Make the vertical axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
