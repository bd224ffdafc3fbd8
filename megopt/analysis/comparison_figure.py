"""The figure of `megopt compare`: learning curves with bound and limits above, what all came to in the end below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.comparison import Comparison
from megopt.analysis.evaluation import limits_of
from megopt.analysis.learning_figure import finish_panel, legend_below_all, plot_curve, reward_label
from megopt.analysis.records import LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT_COLOR, BROKEN_COLOR = "#7A8B99", "#E0E0E0"
_HATCH = "///"


def save_comparison_figure(found: Comparison, path: Path) -> list[Path]:
    """Draw and save the figure as PDF and PNG; `path` has no suffix. Returns the files, none without any entry."""
    if not found.entries:
        return []
    names = ["reward", *(limit.quantity for limit in found.plan.params.problem.limits)]
    with plots.paper_style():
        upper, lower = _panels(len(names), len(found.entries))
        learned = [entry for entry in found.entries if entry.is_learned]
        for panel, column in zip(upper, names, strict=True):
            for number, entry in enumerate(learned):
                plot_curve(entry.curves, f"sampled_{column}", entry.name.replace("_", "-"), number, panel)
            finish_panel(panel, found.plan.params, column, found.best_reward)
        plot_rewards(found, lower[0])
        for number, panel in enumerate(lower[1:]):
            plot_cost(found, number, panel)
        legend_below_all(upper)
        plots.stamp(upper[0], _note(found))
        return plots.save_figure(upper[0], path)


def _panels(num_columns: int, num_entries: int) -> tuple[list[Axes], list[Axes]]:
    """Return the upper and the lower row of panels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height_in = 3.0 + 0.6 + 0.24 * num_entries
    figure = Figure(figsize=(2.9 * num_columns + 1.0, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        2, num_columns, squeeze=False, gridspec_kw={"height_ratios": [3.0, 0.6 + 0.24 * num_entries]}
    )
    for panel in axes[1][1:]:
        panel.sharey(axes[1][0])
    return list(axes[0]), list(axes[1])


def plot_rewards(found: Comparison, ax: Axes) -> Axes:
    """Draw the interquartile mean reward of all with its interval, as a bar from the lowest reward on.

    A bar is dark where every seed keeps the limits, and light and hatched where some seed does not.
    """
    scores = [entry.score() for entry in found.entries]
    ends = [value for score in scores for value in (score.value, score.low, score.high) if np.isfinite(value)]
    low, high = min(ends), max([*ends, *([found.best_reward] if np.isfinite(found.best_reward) else [])])
    start = low - 0.15 * max(high - low, 1e-9)
    for place, (entry, score) in enumerate(zip(found.entries, scores, strict=True)):
        is_kept = entry.kept_rate == 1.0
        ax.barh(
            place,
            score.value - start,
            left=start,
            height=0.66,
            color=KEPT_COLOR if is_kept else BROKEN_COLOR,
            hatch="" if is_kept else _HATCH,
            edgecolor="#9A9A9A",
            linewidth=0.0,
        )
        if np.isfinite(score.low):
            ax.plot([score.low, score.high], [place, place], color="black", lw=1.2)
    if np.isfinite(found.best_reward):
        ax.axvline(found.best_reward, color="black", lw=1.0)
    ax.set_xlim(start, high + 0.05 * (high - start))
    ax.set_yticks(range(len(found.entries)), [entry.name.replace("_", "-") for entry in found.entries])
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(f"{reward_label(found.plan.params.problem)}; bars cut")
    return ax


def plot_cost(found: Comparison, number: int, ax: Axes) -> Axes:
    """Draw the mean of one limited cost of all, seed by seed, as shares of its limit."""
    limit = limits_of(found.plan.params)[number]
    unit = abs(limit) or 1.0
    for place, entry in enumerate(found.entries):
        shares = np.array([run["costs"][number] for run in entry.sampled]) / unit
        is_kept = shares <= limit / unit + 0.01
        for marker, color, chosen in (("o", KEPT_COLOR, is_kept), ("X", BROKEN_COLOR, ~is_kept)):
            ax.plot(
                shares[chosen], np.full(int(np.sum(chosen)), place), marker, color=color, ms=5, mec="black", mew=0.4
            )
    ax.axvline(limit / unit, color="black", lw=1.0, linestyle=(0, (2, 1)))
    ax.grid(visible=False, axis="y")
    ax.tick_params(labelleft=False)
    quantity = found.plan.params.problem.limits[number].quantity
    ax.set_xlabel(f"{LABELS.get(quantity, quantity).split(' [')[0]} / limit")
    return ax


def _note(found: Comparison) -> str:
    num_seeds = max(len(entry.sampled) for entry in found.entries)
    learned = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}, {found.num_episodes} test episodes"
    return f"profile {found.plan.params.table.profile}; {learned}; dark: limits kept, light: broken"
