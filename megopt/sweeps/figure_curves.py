"""Curves of a sweep: what a limit buys per policy and setting, what a setting changes, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.learning_figure import legend_below_all
from megopt.analysis.records import LABELS
from megopt.sweeps.figure_data import Means, number_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_PANELS = 12
BANDS = {"latency_s": "latency_ci95_s", "quality": "quality_ci95"}
"""Columns with half the 95 % interval of a mean."""
WAITING = "0.7"
"""Colour of what a request waits."""
MAX_BARS = 3
"""Limits that the timelines show: the smallest, the middle and the largest."""
NAMES = {
    "channel.snr_db": "Mean SNR [dB]",
    "scenario.num_devices": "Devices in the cell",
    "link.bandwidth_hz": "Bandwidth [Hz]",
}
"""Axis labels of keys of the configuration."""
SHORT = {"energy_j": "Energy [J]"}
"""Axis labels of columns, where that of a record is long."""


def save_curves(means: Means, path: Path) -> list[Path]:
    """Draw the objective against the limited quantity: a panel per setting, a line per policy, with 95 % intervals.

    Returns:
        The files; none where fewer than two limits were swept, or there are too many settings.
    """
    x, y = _limited(means), means.objective
    settings = list(means.settings)
    if not x or x == y or len(settings) > MAX_PANELS:
        return []
    with plots.paper_style():
        panels = grid_of_panels(len(settings))
        for panel, setting in zip(panels, settings, strict=False):
            plot_curves(means.of_setting(setting), x, y, panel)
            panel.set_title(_title(means.settings[setting]), fontsize=8)
        for axis, column in ((panels[0].xaxis, x), (panels[0].yaxis, y)):
            plots.scale_axis(axis, means.points[column][np.isfinite(means.points[column])].to_numpy(dtype=float))
        _label_outer(panels, _mean_label(means, x), _mean_label(means, y))
        legend_below_all(panels, num_columns=5)
        plots.stamp(panels[0], f"{means.note}; bands: 95 %; hollow: limit broken")
        return plots.save_figure(panels[0], path)


def save_lines(means: Means, path: Path) -> list[Path]:
    """Draw latency, energy and quality over the one number that the settings vary, a line per policy.

    Returns:
        The files; none where the settings do not differ by one number of at least three values.
    """
    keys = {key for setting in means.settings.values() for key in setting}
    values = [number_of(value) for setting in means.settings.values() for value in setting.values()]
    if len(keys) != 1 or len(values) < 3 or not np.all(np.isfinite(values)):
        return []
    (key,) = keys
    columns = [name for name in ("latency_s", "energy_j", "quality") if np.isfinite(means.points[name]).any()]
    limits = np.unique(means.points["limit"][np.isfinite(means.points["limit"])])
    limit = float(limits[len(limits) // 2]) if len(limits) else np.inf
    with plots.paper_style():
        panels = plots.new_panels(len(columns), height_in=3.0)
        for panel, column in zip(panels, columns, strict=True):
            _plot_lines(means, column, dict(zip(means.settings, values, strict=True)), limit, panel)
            plots.scale_axis(panel.xaxis, np.array(values))
            plots.scale_axis(panel.yaxis, means.points[column][np.isfinite(means.points[column])].to_numpy(dtype=float))
            panel.set_xlabel(NAMES.get(key, key))
            panel.set_ylabel(_mean_label(means, column))
        legend_below_all(panels, num_columns=5)
        quantity = _limited(means, least=1)
        at = f"; {quantity.rpartition('_')[0].replace('_', ' ')} limit {limit:g} {_unit(quantity)}" if quantity else ""
        plots.stamp(panels[0], means.note + at)
        return plots.save_figure(panels[0], path)


def save_timelines(means: Means, path: Path) -> list[Path]:
    """Draw when a mean request is up, at the edge, down and on the device: a panel per limit, a bar per policy."""
    served = means.points[means.points["outage_rate"] < 1.0]
    settings = [setting for setting in means.settings if setting in set(served["setting"])]
    if not settings or len(means.settings) > MAX_PANELS:
        return []
    setting = settings[len(settings) // 2]
    points = served[served["setting"] == setting]
    limits = np.unique(points["limit"][np.isfinite(points["limit"])])
    picked = (
        np.unique(limits[np.linspace(0, len(limits) - 1, MAX_BARS).round().astype(int)]) if len(limits) else [np.inf]
    )
    with plots.paper_style():
        panels = plots.new_panels(len(picked), height_in=1.5 + 0.24 * points["policy"].nunique())
        for panel, limit in zip(panels, picked, strict=True):
            _plot_bars(means, points, float(limit), panel)
        for panel in panels[1:]:
            panel.tick_params(labelleft=False)
        panels[len(panels) // 2].set_xlabel("Time since the request, mean [s]")
        legend_below_all(panels, num_columns=5)
        title = _title(means.settings[setting])
        plots.stamp(panels[0], means.note + (f"; {title}" if title else ""))
        return plots.save_figure(panels[0], path)


def _plot_bars(means: Means, points: pd.DataFrame, limit: float, ax: Axes) -> None:
    policies = list(dict.fromkeys(points["policy"]))
    for place, policy in enumerate(policies):
        own = points[(points["policy"] == policy) & points["limit"].isin([limit, np.inf])]
        if not len(own):
            continue
        begin = float(own["latency_s"].iloc[0] - own[list(plots.TIME_PARTS)].iloc[0].sum())
        if begin > 0.01 * float(own["latency_s"].iloc[0]):
            ax.barh(place, begin, 0.62, 0.0, color=WAITING, label="waiting")
        for part, (name, color, hatch) in plots.TIME_PARTS.items():
            width = float(own[part].iloc[0])
            style = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.0}
            ax.barh(place, width, 0.62, begin, label=name, **style)  # type: ignore[arg-type]
            begin += width
    ax.set_yticks(range(len(policies)), [policy.replace("_", " ") for policy in policies])
    ax.set_ylim(len(policies) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    quantity = _limited(means, least=1)
    if np.isfinite(limit):
        ax.set_title(f"{quantity.rpartition('_')[0].replace('_', ' ')} ≤ {limit:g} {_unit(quantity)}", fontsize=8)


def _plot_lines(means: Means, column: str, values: Mapping[str, float], limit: float, ax: Axes) -> None:
    at = means.points["setting"].map(values)
    chosen = means.points.assign(at=at)[means.points["limit"].isin([limit, np.inf])]
    policies = list(dict.fromkeys(means.points["policy"]))
    for i, policy in enumerate(policies):
        own = chosen[(chosen["policy"] == policy) & np.isfinite(chosen[column])].sort_values("at")
        color, dash, marker = (s[i % len(s)] for s in (plots.COLORS, plots.DASHES, plots.MARKERS))
        label = policy.replace("_", " ")
        ax.plot(own["at"], own[column], color=color, linestyle=dash, marker=marker, ms=3.5, label=label)
        if (band := BANDS.get(column)) is not None:
            low, high = (own[column] + sign * own[band].fillna(0.0) for sign in (-1, 1))
            ax.fill_between(own["at"], low, high, color=color, alpha=0.15, linewidth=0)


def plot_curves(points: pd.DataFrame, x: str, y: str, ax: Axes) -> Axes:
    """Draw one quantity against another: a line per swept policy, a marker per fixed one.

    Args:
        points: rows of `Means.points` of one setting.
        x: column on the horizontal axis.
        y: column on the vertical axis.
        ax: where to draw.

    A line passes through neighbouring limits that every request keeps; points where some request breaks one are hollow.
    """
    for i, (name, own) in enumerate(points.groupby("policy", sort=False)):
        color, dash, marker = (s[i % len(s)] for s in (plots.COLORS, plots.DASHES, plots.MARKERS))
        label, kept = str(name).replace("_", " "), own[y].where(own["violation_rate"] == 0)
        if not np.isfinite(own["limit"]).all():
            ax.plot(own[x], own[y], marker, color=color, label=label, ms=6, mec="black", mew=0.5)
            continue
        ax.plot(own[x], kept, color=color, linestyle=dash, marker=marker, ms=3.5, label=label)
        broken = own[own["violation_rate"] > 0]
        ax.plot(broken[x], broken[y], marker, color=color, mfc="none", ms=3.5, mew=0.8)
        if (band := BANDS.get(y)) is not None:
            low, high = (kept + sign * own[band].fillna(0.0) for sign in (-1, 1))
            ax.fill_between(own[x], low, high, color=color, alpha=0.15, linewidth=0)
    return ax


def grid_of_panels(num_panels: int, num_columns: int = 3) -> list[Axes]:
    """Return panels in rows of at most `num_columns`, with shared axes; those that are not needed are taken away."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(num_panels, num_columns)
    rows = -(-num_panels // columns)
    figure = Figure(figsize=(7.1 if columns > 1 else 5.8, 0.9 + 2.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel in panels[num_panels:]:
        panel.remove()
    for panel in panels[max(num_panels - columns, 0) : num_panels]:
        panel.tick_params(labelbottom=True)
    return panels[:num_panels]


def _label_outer(panels: list[Axes], x_label: str, y_label: str, num_columns: int = 3) -> None:
    """Label the lowest panel of each column and the first panel of each row."""
    for number, panel in enumerate(panels):
        panel.set_xlabel(x_label if number + num_columns >= len(panels) else "")
        panel.set_ylabel(y_label if number % num_columns == 0 else "")


def _title(setting: Mapping[str, str]) -> str:
    parts = []
    for key, value in setting.items():
        name, _, unit = NAMES.get(key, key).partition(" [")
        parts.append(f"{name} {value} {unit.removesuffix(']')}".strip() if key in NAMES else f"{key} {value}")
    return ", ".join(parts)


def _mean_label(means: Means, column: str) -> str:
    name = means.quality_label if column == "quality" else SHORT.get(column, LABELS.get(column, column))
    return f"Mean {name if name[:2].isupper() else name[0].lower() + name[1:]}"


def _unit(quantity: str) -> str:
    return {"s": "s", "j": "J"}.get(quantity.rpartition("_")[2], "")


def _limited(means: Means, least: int = 2) -> str:
    """Return the limited quantity; empty where fewer limits than `least` were set."""
    finite = means.points[np.isfinite(means.points["limit"])]
    quantities = finite["limit_quantity"].unique()
    return str(quantities[0]) if len(quantities) == 1 and len(finite["limit"].unique()) >= least else ""
