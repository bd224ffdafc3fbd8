"""The figure of `megopt surface`: the Pareto surface in space, and as a map of the best value of one objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis import plots
from megopt.analysis.records import LABELS
from megopt.analysis.surface import Surface
from megopt.arrays import FloatArray
from megopt.solvers.average_surface import AverageSurface
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

NUM_CELLS = 400
"""Cells of the map along each axis."""
NUM_LEVELS = 10
"""Levels of the map, about."""
NUM_CELLS_IN_SPACE = 70
"""Cells of the surface in space along each axis."""
COLOR_MAP = "viridis"


def save_surface_figure(found: Surface, profile: Profile, path: Path) -> list[Path]:
    """Draw and save the figure as PDF and PNG; `path` has no suffix. Returns the files, none if nothing is reachable.

    Left: the surface of three objectives, its proved points as dots. Right: the best third objective over limits on the
    means of the first two, with the policies that take no limits.
    """
    if not len(found.means.points) or len(found.means.quantities) != 3:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with plots.paper_style():
        figure = Figure(figsize=(7.1, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        space = figure.add_subplot(1, 2, 1, projection="3d")
        plane = figure.add_subplot(1, 2, 2)
        plot_surface(found, space)
        plot_map(found, plane)
        plots.legend_below(plane, num_columns=5)
        plots.stamp(plane, _note(found, profile))
        return plots.save_figure(plane, path)


def plot_surface(found: Surface, ax: Any) -> Any:
    """Draw the best third objective above limits on the means of the first two, with all points that were found.

    The surface goes on where a looser limit gains nothing; objectives of a wide range are drawn by their logarithms.
    """
    from matplotlib import colormaps
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    axes = [_Axis.of(_grid(found, number, NUM_CELLS_IN_SPACE)) for number in (0, 1)]
    levels, scale = _levels(found), _color_scale(found)
    third, missing = _third(found.means, *np.meshgrid(axes[0].values, axes[1].values))
    height = np.where(missing > 1e-6, np.nan, np.clip(third * found.senses[2], levels[0], levels[-1]))
    at = np.meshgrid(axes[0].drawn(axes[0].values), axes[1].drawn(axes[1].values))
    style: dict[str, Any] = {"rstride": 1, "cstride": 1, "linewidth": 0, "antialiased": False, "shade": False}
    ax.plot_surface(*at, height, facecolors=colormaps[COLOR_MAP](scale(height)), **style)

    def drawn(points: FloatArray) -> FloatArray:
        first, second, last = np.moveaxis(found.reported(points), -1, 0)
        return np.stack([axes[0].drawn(first), axes[1].drawn(second), last], axis=-1)

    between = np.linspace(0.0, 1.0, 12)[:, None, None]
    ends = found.means.points[found.means.edges]
    lines = drawn(np.moveaxis((1.0 - between) * ends[:, 0] + between * ends[:, 1], 0, 1))
    ax.add_collection3d(Line3DCollection(lines, colors="0.1", linewidths=0.6, zorder=5))
    ax.plot(*drawn(found.means.points).T, "o", ms=2.4, color="black", mec="none", zorder=6)
    if found.knee is not None:
        ax.plot(*drawn(found.means.points[[found.knee.index]]).T, **plots.KNEE, zorder=10)
    _dress(found, axes, ax)
    return ax


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Values along one axis in space, and whether their logarithms are drawn."""

    values: FloatArray
    is_log: bool

    @classmethod
    def of(cls, values: FloatArray) -> _Axis:
        return cls(values=values, is_log=bool(values[0] > 0.0 and values[-1] / values[0] > 5.0))

    def drawn(self, values: FloatArray) -> FloatArray:
        """Return where values stand on the axis."""
        return np.log10(values) if self.is_log else values

    def ticks(self) -> FloatArray:
        """Return a few round values inside the axis."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        low, high = float(self.values[0]), float(self.values[-1])
        logarithmic = [LogLocator(subs=subs) for subs in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0))]
        for locator in logarithmic if self.is_log else [MaxNLocator(4)]:
            found = np.asarray(locator.tick_values(low, high))
            found = found[(found >= low) & (found <= high)]
            if len(found) > 2:
                break
        return found


def _dress(found: Surface, axes: Sequence[_Axis], ax: Any) -> None:
    """Give the axes in space their limits, ticks, labels and view."""
    for name, axis in zip("xy", axes, strict=True):
        getattr(ax, f"set_{name}lim")(*axis.drawn(axis.values[[0, -1]]))
        getattr(ax, f"set_{name}ticks")(axis.drawn(axis.ticks()), labels=[f"{value:g}" for value in axis.ticks()])
    ax.zaxis.set_major_locator(_few_ticks())
    for number, name in enumerate("xyz"):
        getattr(ax, f"set_{name}label")(_label(found, found.means.quantities[number]), fontsize=8, labelpad=-2)
        ax.tick_params(axis=name, labelsize=7, pad=-2)
        getattr(ax, f"{name}axis").set_pane_color((1.0, 1.0, 1.0, 0.0))
    ax.view_init(elev=26, azim=-122)
    ax.set_box_aspect((1, 1, 0.85), zoom=0.82)


def plot_map(found: Surface, ax: Axes | None = None) -> Axes:
    """Draw the best third objective over limits on the means of the first two; white where no choice keeps them."""
    ax = plots.new_panels()[0] if ax is None else ax
    scale, levels = _color_scale(found), _levels(found)
    horizontal, vertical = (_grid(found, number, NUM_CELLS) for number in (0, 1))
    third, missing = _third(found.means, *np.meshgrid(horizontal, vertical))
    best = np.clip(third * found.senses[2], levels[0], levels[-1])
    filled = ax.contourf(horizontal, vertical, best, levels=levels, cmap=COLOR_MAP, norm=scale)
    ax.contour(horizontal, vertical, best, levels=levels, colors="white", linewidths=0.4)
    if np.any(missing > 0.0):
        ax.contourf(horizontal, vertical, missing, levels=[0.0, np.inf], colors="white")
        ax.contour(horizontal, vertical, missing, levels=[0.0], colors="black", linewidths=0.8)
    _plot_baselines(found, ax, scale)
    if found.knee is not None:
        ax.plot(*found.reported(found.means.points)[found.knee.index, :2, None], **plots.KNEE, label="knee", zorder=6)
    for axis, values, number in ((ax.xaxis, horizontal, 0), (ax.yaxis, vertical, 1)):
        plots.scale_axis(axis, values)
        axis.set_label_text("Limit on mean " + _lowered(_label(found, found.means.quantities[number])))
    ax.set_xlim(horizontal[0], horizontal[-1])
    ax.set_ylim(vertical[0], vertical[-1])
    figure = ax.get_figure(root=True)
    assert figure is not None
    label = f"Best mean {_lowered(_label(found, found.means.quantities[2]))}"
    bar = figure.colorbar(filled, ax=ax, label=label, pad=0.02, spacing="proportional")
    bar.set_ticks(
        list(levels[1:-1]) or list(levels),
        labels=[f"{level:g}" for level in (levels[1:-1] if len(levels) > 2 else levels)],
    )
    return ax


def best_third(means: AverageSurface, first: FloatArray, second: FloatArray) -> FloatArray:
    """Return the least third objective of the surface under limits on the first two, NaN where they cannot be kept.

    Args:
        means: a surface of three objectives.
        first: limits on the mean of the first [its unit].
        second: limits on the mean of the second, same shape [its unit].
    """
    best, missing = _third(means, first, second)
    return np.where(missing <= 1e-6, best, np.nan)


def _third(means: AverageSurface, first: FloatArray, second: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the least third objective, and by how much the limits on the first two cannot be kept [ranges]."""
    limits = [(limit - means.ideal[i]) / means.span[i] for i, limit in enumerate((first, second))]
    best, missing = np.full(np.shape(first), -np.inf), np.full(np.shape(first), -np.inf)
    for normal, offset in zip(means.normals, means.inner, strict=True):
        room = offset - normal[0] * limits[0] - normal[1] * limits[1]
        if normal[2] > 1e-6:
            best = np.maximum(best, room / normal[2])
        else:
            missing = np.maximum(missing, room)
    return means.ideal[2] + means.span[2] * best, missing


def _plot_baselines(found: Surface, ax: Axes, scale: Normalize) -> None:
    from matplotlib import colormaps

    for number, (name, means) in enumerate(found.baselines.items()):
        point = found.reported(means)
        marker, color = plots.MARKERS[(number + 1) % len(plots.MARKERS)], colormaps[COLOR_MAP](scale(point[2]))
        style: dict[str, Any] = {"ms": 7, "mfc": color, "mec": "black", "mew": 1.0, "linestyle": ""}
        ax.plot(point[0], point[1], marker, **style, label=name.replace("_", " "), zorder=5)


def _grid(found: Surface, number: int, num_cells: int) -> FloatArray:
    """Return limits on one objective that span surface and policies, shape (num_cells,); log-spaced if wide."""
    points = np.stack([*found.means.points, *found.baselines.values()])[:, number]
    low, high = float(np.nanmin(points)), float(np.nanmax(points))
    if low > 0.0 and high / low > 5.0:
        room = (high / low) ** 0.06
        return np.geomspace(low / room, high * room, num_cells)
    room = 0.06 * (high - low) or 1.0
    return np.linspace(low - room, high + room, num_cells)


def _levels(found: Surface) -> FloatArray:
    from matplotlib.ticker import MaxNLocator

    values = found.reported(found.means.points)[:, 2]
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.array([low - 0.5, low + 0.5])
    inside = np.asarray(MaxNLocator(NUM_LEVELS).tick_values(low, high), dtype=np.float64)
    room = 0.02 * (high - low)
    return np.concatenate([[low], inside[(inside > low + room) & (inside < high - room)], [high]])


def _color_scale(found: Surface) -> Normalize:
    from matplotlib.colors import Normalize

    levels = _levels(found)
    return Normalize(levels[0], levels[-1])


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def _label(found: Surface, name: str) -> str:
    """Return the label of an objective with its unit."""
    return LABELS[name] if name != "quality" else plots.metric_label(found.means.metric)


def _lowered(label: str) -> str:
    """Return a label as it stands inside a sentence; names in capitals stay."""
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def _note(found: Surface, profile: Profile) -> str:
    kinds = sorted({kind for text in np.unique(found.table.kind) for kind in text.split("+") if kind})
    gap = f"bound within {found.means.gap:.2g} of each range"
    return f"profile {profile.name}; data: {', '.join(kinds)}; {gap}"
