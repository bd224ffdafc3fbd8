"""Learning curves with their limits: reward below its bound, and each limited cost beside its limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis import plots
from megopt.analysis.records import LABELS
from megopt.envs.cell_parameters import CellParams
from megopt.problem import Problem

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from megopt.analysis.training import TrainedRun
    from megopt.analysis.training_plan import TrainingPlan
    from megopt.envs.parameters import EnvParams

_LINE_LENGTH = 36
"""Characters of a label beside a panel, before it goes on in a new line."""


def save_learning_figure(plan: TrainingPlan, run: TrainedRun, bound: float, path: Path) -> list[Path]:
    """Draw and save the curves of one run, sampled and mean policy; `path` has no suffix. Returns the files."""
    limits = plan.params.problem.limits
    with plots.paper_style():
        panels = plots.new_panels(1 + len(limits), width_in=2.6 * (1 + len(limits)) + 0.8)
        for panel, column in zip(panels, ("reward", *(limit.quantity for limit in limits)), strict=True):
            for number, (kind, name) in enumerate((("sampled", "sampled policy"), ("mean", "mean policy"))):
                plot_curve([run.curve], f"{kind}_{column}", name, number, panel)
            finish_panel(panel, plan.params, column, bound)
        legend_below_all(panels)
        note = f"{plan.algorithm}, seed {plan.seed}; profile {plan.params.table.profile}; means per request"
        plots.stamp(panels[0], note)
        return plots.save_figure(panels[0], path)


def plot_curve(curves: Sequence[pd.DataFrame], column: str, name: str, number: int, ax: Axes) -> Axes:
    """Draw the mean over the seeds, and the band from the lowest to the highest seed.

    Args:
        curves: one learning curve per seed.
        column: what to draw.
        name: for the legend.
        number: place of the line among those of the panel, for colour, dash and marker.
        ax: where to draw.
    """
    num_points = min(len(curve) for curve in curves)
    if not num_points:
        return ax
    steps = np.mean([curve["num_steps"].to_numpy(dtype=float)[:num_points] for curve in curves], axis=0)
    values = np.stack([curve[column].to_numpy(dtype=float)[:num_points] for curve in curves])
    color, dash = plots.COLORS[number % len(plots.COLORS)], plots.DASHES[number % len(plots.DASHES)]
    marker, every = plots.MARKERS[number % len(plots.MARKERS)], max(1, num_points // 6)
    ax.plot(steps, values.mean(axis=0), color=color, linestyle=dash, marker=marker, ms=3.5, markevery=every, label=name)
    if len(curves) > 1:
        ax.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.1, linewidth=0)
    return ax


def finish_panel(ax: Axes, params: EnvParams, column: str, bound: float) -> None:
    """Draw the bound or the limit of a panel, and name its axes.

    Args:
        ax: the panel.
        params: environment, with objective and limits.
        column: "reward" or a limited quantity.
        bound: largest mean reward of any policy within the limits.
    """
    problem = params.problem
    if column == "reward":
        if np.isfinite(bound):
            ax.axhline(bound, color="black", lw=1.0, label="bound")
        label = reward_label(problem)
    else:
        limit = next(limit.bound for limit in problem.limits if limit.quantity == column)
        ax.axhline(limit, color="black", lw=1.0, linestyle=(0, (2, 1)), label="limit")
        label = LABELS.get(column, column)
    ax.set_ylabel(label)
    ax.set_xlabel("Slots of devices learned from" if isinstance(params, CellParams) else "Requests learned from")
    _shorten(ax)


def reward_label(problem: Problem) -> str:
    """Return what the reward is, with its unit; over two lines where it is long."""
    if problem.objective == "quality":
        return f"Reward: {plots.metric_label(problem.metric)}"
    objective = plots.mean_label(problem.objective)
    return fill(f"Reward: minus {objective[0].lower()}{objective[1:]}", _LINE_LENGTH)


def legend_below_all(panels: Sequence[Axes], num_columns: int = 7) -> None:
    """Put one legend below all panels, each name once."""
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    found: dict[str, Any] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(num_columns, len(found)))


def _shorten(ax: Axes) -> None:
    """Begin the horizontal axis at 0, with few ticks, and write thousands as k."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.set_xlim(left=0.0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if ax.get_xlim()[1] >= 2000.0:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
