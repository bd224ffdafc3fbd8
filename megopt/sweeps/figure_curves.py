"""What a limit buys: the objective against the limited quantity, a panel per setting, a line per policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.pareto import is_non_dominated
from megopt.arrays import FloatArray
from megopt.sweeps.figure_data import OUTAGE, Means
from megopt.sweeps.figure_marks import BANDS, hollow_words, plot_policy, style_of
from megopt.sweeps.figure_words import finish_page, limited, mean_label, title_of, title_of_all

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_PANELS = 12
MAX_VALUES = 4
"""Values of a key of a search that are few enough for a panel each."""
SAME = 0.03
"""Share of an axis below which two curves look the same."""


def save_curves(means: Means, path: Path) -> list[Path]:
    """Draw the objective against the limited quantity: a line per policy, with 95 % intervals.

    There is a panel for every setting that shows something else. Where each setting has one limit of its own, as the
    trials of a search have, they are all points of one curve: those that none other betters.

    Returns:
        The files; none where fewer than two limits were set, or there are too many settings.
    """
    x, y = limited(means), means.objective
    if not x or x == y:
        return []
    limits = means.points[np.isfinite(means.points["limit"])].groupby(["setting", "policy"])["limit"].nunique()
    if limits.max() < 2:
        return _save_found(means, x, y, path)
    groups = alike(means, x, y)
    if len(groups) > MAX_PANELS:
        return []
    with plots.paper_style():
        panels = grid_of_panels(len(groups))
        for panel, group in zip(panels, groups, strict=True):
            plot_curves(means.of_setting(group[len(group) // 2]), x, y, panel)
            panel.set_title(title_of_all([means.settings[setting] for setting in group]), fontsize=8)
        merged = "; settings that look the same share a panel, the middle one is drawn" if len(groups) > 1 else ""
        merged = merged if len(groups) < len(means.settings) else ""
        if len(groups) == 1 < len(means.settings):
            merged = (
                f"; all settings look the same, {title_of(means.settings[groups[0][len(groups[0]) // 2]])} is drawn"
            )
        note = f"{means.note}; bands: 95 % over the traces{hollow_words(means.points)}{merged}"
        return _finished(panels, means, (x, y), note, path)


def _save_found(means: Means, x: str, y: str, path: Path) -> list[Path]:
    """Draw settings with one limit each as the points of one cloud, and through the best of them a line per policy."""
    points = means.points[np.isfinite(means.points["limit"]) & (means.points["outage_rate"] <= OUTAGE)]
    points = points[np.isfinite(points[x]) & np.isfinite(points[y])]
    values = {key: {setting[key] for setting in means.settings.values() if key in setting} for key in _keys(means)}
    keys = [key for key in values if len(values[key]) <= MAX_VALUES]
    kept = {text: tuple((key, setting.get(key, "")) for key in keys) for text, setting in means.settings.items()}
    groups, policies = sorted(set(kept.values())), list(dict.fromkeys(points["policy"]))
    if len(points) < 3 or len(groups) > MAX_PANELS:
        return []
    with plots.paper_style():
        panels = grid_of_panels(len(groups))
        for panel, group in zip(panels, groups, strict=True):
            plot_found(points[points["setting"].map(kept) == group], (x, y), means.sense, policies, panel)
            panel.set_title(title_of(dict(group)), fontsize=8)
        note = f"{means.note}; {len(points)} runs, each with a limit of its own; lines: the runs that none betters"
        return _finished(panels, means, (x, y), f"{note}, bars: 95 % over the traces", path)


def _keys(means: Means) -> list[str]:
    return list(dict.fromkeys(key for setting in means.settings.values() for key in setting))


def _finished(panels: Sequence[Axes], means: Means, columns: tuple[str, str], note: str, path: Path) -> list[Path]:
    for axis, column in zip((panels[0].xaxis, panels[0].yaxis), columns, strict=True):
        plots.scale_axis(axis, _finite(means, column))
    x_label, y_label = (mean_label(means, column) for column in columns)
    for number, panel in enumerate(panels):
        panel.set_xlabel(x_label if number + num_columns(len(panels)) >= len(panels) else "")
        panel.set_ylabel(y_label if number % num_columns(len(panels)) == 0 else "")
    finish_page(panels, note)
    return plots.save_figure(panels[0], path)


def _finite(means: Means, column: str) -> FloatArray:
    values: FloatArray = means.points[column].to_numpy(dtype=float)
    return values[np.isfinite(values)]


def alike(means: Means, x: str, y: str) -> list[list[str]]:
    """Return the settings in groups of neighbours whose curves look the same; each alone where several keys differ."""
    groups: list[list[str]] = []
    shapes: list[pd.DataFrame] = []
    for setting in means.settings:
        shape = _shape(means, setting, (x, y))
        if groups and len(_keys(means)) == 1 and _looks_the_same(shapes[-1], shape):
            groups[-1].append(setting)
        else:
            groups, shapes = [*groups, [setting]], [*shapes, shape]
    return groups


def _shape(means: Means, setting: str, columns: tuple[str, str]) -> pd.DataFrame:
    """Return the points of a setting as shares of the axes that all settings fill, by policy and limit."""
    own = means.of_setting(setting).set_index(["policy", "limit"])[list(columns)].copy()
    for column in columns:
        values = _finite(means, column)
        is_log = values.min() > 0 and values.max() / values.min() > 5  # as `plots.scale_axis` has it
        low, high = (np.log(end) if is_log else end for end in (values.min(), values.max()))
        own[column] = ((np.log(own[column]) if is_log else own[column]) - low) / ((high - low) or 1.0)
    return own


def _looks_the_same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    if not one.index.equals(other.index):
        return False
    return bool(np.allclose(one.to_numpy(), other.to_numpy(), rtol=0.0, atol=SAME, equal_nan=True))


def plot_curves(points: pd.DataFrame, x: str, y: str, ax: Axes) -> Axes:
    """Draw one quantity against another: a line per swept policy, a marker per fixed one.

    Args:
        points: rows of `Means.points` of one setting.
        x: column on the horizontal axis.
        y: column on the vertical axis.
        ax: where to draw.

    A line passes through all limits; markers are hollow where some request breaks its limit.
    """
    groups = [(str(name), own) for name, own in points.groupby("policy", sort=False)]
    for i, (name, own) in enumerate(groups):
        style, label = style_of(i), name.replace("_", " ")
        if not np.isfinite(own["limit"]).all():
            ax.plot(own[x], own[y], **{**style, "linestyle": ""}, label=label, ms=6, mec="black", mew=0.5)
            continue
        plot_policy(own, (x, y), (i, len(groups)), ax)
    return ax


def plot_found(points: pd.DataFrame, columns: tuple[str, str], sense: int, policies: Sequence[str], ax: Axes) -> Axes:
    """Draw points faintly, and through those that none of the same policy betters a line with 95 % bars.

    Args:
        points: rows of `Means.points`.
        columns: the limited quantity, which is to be small, and the objective.
        sense: +1 where more quality is better, -1 where less is.
        policies: in the order of their colours; one without points is left out.
        ax: where to draw.
    """
    x, y = columns
    toward = np.array([1.0, -sense if y == "quality" else 1.0])
    for i, name in enumerate(policies):
        style, label = style_of(i), name.replace("_", " ")
        own = points[points["policy"] == name]
        if not len(own):
            continue
        ax.plot(own[x], own[y], **{**style, "linestyle": ""}, ms=2.5, alpha=0.35, mew=0.0)
        best = own[is_non_dominated(own[[x, y]].to_numpy(dtype=float) * toward)].sort_values(x)
        spread = best[BANDS[y]].fillna(0.0) if y in BANDS else None
        ax.errorbar(best[x], best[y], spread, **style, ms=3.5, lw=1.2, elinewidth=0.7, capsize=1.5, label=label)
    return ax


def num_columns(num_panels: int) -> int:
    """Return the panels of a row: three, or two where that fills the rows."""
    return min(num_panels, 2 if num_panels == 4 else 3)


def grid_of_panels(num_panels: int) -> list[Axes]:
    """Return panels in rows, with shared axes; those that are not needed are taken away."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = num_columns(num_panels)
    rows = -(-num_panels // columns)
    size = (7.1, 1.0 + 2.1 * rows) if columns > 1 else (4.6, 3.4)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for panel in panels[num_panels:]:
        panel.remove()
    for panel in panels[max(num_panels - columns, 0) : num_panels]:
        panel.tick_params(labelbottom=True)
    return panels[:num_panels]
