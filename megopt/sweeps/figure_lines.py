"""What a setting changes, such as the mean SNR: latency, energy and quality over its number, a line per policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.sweeps.figure_data import Means, number_of
from megopt.sweeps.figure_marks import hollow_words, plot_policy
from megopt.sweeps.figure_words import finish_page, key_label, limit_words, limited, mean_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

COLUMNS = ("latency_s", "energy_j", "quality")


def save_lines(means: Means, path: Path) -> list[Path]:
    """Draw latency, energy and quality over the one number that the settings vary, a line per policy.

    Where there are several limits, the middle one is drawn. A quantity that was not measured under it has no panel.

    Returns:
        The files; none where the settings do not differ by one number of at least three values.
    """
    keys = {key for setting in means.settings.values() for key in setting}
    values = {text: [number_of(value) for value in setting.values()] for text, setting in means.settings.items()}
    if len(keys) != 1 or len(values) < 3 or not all(len(own) == 1 and np.isfinite(own[0]) for own in values.values()):
        return []
    (key,) = keys
    limits = np.unique(means.points["limit"][np.isfinite(means.points["limit"])])
    limit = float(limits[len(limits) // 2]) if len(limits) else np.inf
    points = means.points[means.points["limit"].isin([limit, np.inf])]
    points = points.assign(at=[values[setting][0] for setting in points["setting"]])
    columns = [name for name in COLUMNS if _is_compared(points, name)]
    if not columns:
        return []
    with plots.paper_style():
        panels = plots.new_panels(len(columns), width_in=min(7.1, 1.5 + 2.8 * len(columns)), height_in=2.9)
        for panel, column in zip(panels, columns, strict=True):
            plot_lines(points, column, panel)
            panel.set_xlabel(key_label(key))
            panel.set_ylabel(mean_label(means, column))
        quantity = limited(means, least=1)
        at = f"; {limit_words(quantity, limit)}" if quantity else ""
        finish_page(panels, f"{means.note}{at}; bands: 95 % over the traces{hollow_words(points)}")
        return plots.save_figure(panels[0], path)


def _is_compared(points: pd.DataFrame, column: str) -> bool:
    """Return whether a mean is known of two policies at least, or of the only one."""
    known = points[np.isfinite(points[column])]
    return bool(known["policy"].nunique() >= min(2, points["policy"].nunique()) and len(known) > 1)


def plot_lines(points: pd.DataFrame, column: str, ax: Axes) -> Axes:
    """Draw a mean over the column `at`, a line per policy, markers hollow where some request breaks its limit.

    Args:
        points: rows of `Means.points` with the column `at`, one per policy and value.
        column: the mean.
        ax: where to draw.
    """
    names = list(dict.fromkeys(points["policy"]))
    for i, policy in enumerate(names):
        own = points[(points["policy"] == policy) & np.isfinite(points[column])].sort_values("at")
        if len(own):
            plot_policy(own, ("at", column), (i, len(names)), ax)
    for axis, name in ((ax.xaxis, "at"), (ax.yaxis, column)):
        plots.scale_axis(axis, points[name][np.isfinite(points[name])].to_numpy(dtype=float))
    return ax
