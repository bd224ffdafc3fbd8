"""What a setting changes, such as the mean SNR: latency, energy and quality over its number, a line per policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.sweeps.figure_curves import BANDS
from megopt.sweeps.figure_data import Means, number_of
from megopt.sweeps.figure_words import finish_page, key_label, limit_words, limited, mean_label, style_of

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
        finish_page(panels, f"{means.note}{at}; bands: 95 % over the traces{_hollow(points)}")
        return plots.save_figure(panels[0], path)


def _is_compared(points: pd.DataFrame, column: str) -> bool:
    """Return whether a mean is known of two policies at least, or of the only one."""
    known = points[np.isfinite(points[column])]
    return bool(known["policy"].nunique() >= min(2, points["policy"].nunique()) and len(known) > 1)


def _hollow(points: pd.DataFrame) -> str:
    return "; hollow: some request breaks its limit" if (points["violation_rate"] > 0).any() else ""


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
        if not len(own):
            continue
        is_kept, style = (own["violation_rate"] == 0).to_numpy(), style_of(i)
        width, face = 1.1 + 0.5 * (len(names) - 1 - i), {} if is_kept.any() else {"mfc": "white"}
        label = policy.replace("_", " ")
        marks = {"ms": 2.8 + 0.5 * width, "mew": 0.9}
        ax.plot(
            own["at"], own[column], **style, **marks, **face, lw=width, label=label, markevery=np.flatnonzero(is_kept)
        )  # type: ignore[arg-type]
        broken = own[~is_kept]
        ax.plot(broken["at"], broken[column], **{**style, "linestyle": ""}, **marks, mfc="white")  # type: ignore[arg-type]
        if (band := BANDS.get(column)) is not None:
            low, high = (own[column] + sign * own[band].fillna(0.0) for sign in (-1, 1))
            ax.fill_between(own["at"], low, high, color=str(style["color"]), alpha=0.2, linewidth=0)
    for axis, name in ((ax.xaxis, "at"), (ax.yaxis, column)):
        plots.scale_axis(axis, points[name][np.isfinite(points[name])].to_numpy(dtype=float))
    return ax
