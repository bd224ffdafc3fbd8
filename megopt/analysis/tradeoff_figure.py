"""The figure of `megopt tradeoff`: the curve, and where the time of the optimum goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.analysis.tradeoff_knee import LONG_RUN, curve_knees
from megopt.solvers.average_limits_curve import LongRunCurve
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_BETWEEN = 400
"""Points at which the certified band of the long-run optimum is drawn."""


def save_tradeoff_figure(found: Tradeoff, profile: Profile, sweep: Sweep, path: Path) -> list[Path]:
    """Draw and save the figure as PDF and PNG; `path` has no suffix. Returns the files.

    Left: limited quantity against objective, all policies, the long-run optimum with its certified band, and the knee
    of the first curve that has one. Right: parts of the latency over the limit, of the first
    policy that was swept and served some request; left out where there is none.
    """
    timed = _first_swept_policy(found)
    objective = found.problems[0].objective
    with plots.paper_style():
        panels = plots.new_panels(2 if timed else 1, height_in=3.9)
        plots.plot_tradeoff(found.curve, sweep.quantity, objective, panels[0])
        if found.long_run is not None:
            plot_long_run(found.long_run, panels[0])
        for knee in curve_knees(found, sweep)[:1]:
            label = f"knee of {knee.policy.replace('_', ' ')}"
            panels[0].plot(knee.limited, knee.objective, **plots.KNEE, zorder=5, label=label)
        panels[0].set_ylabel(plots.mean_label(objective, found.metric))
        if timed:
            plots.plot_time_parts(found.records, timed, panels[1])
        plots.legend_below(panels[0], num_columns=5)
        plots.stamp(panels[0], plots.profile_note(profile, found.records))
        return plots.save_figure(panels[0], path)


def plot_long_run(curve: LongRunCurve, ax: Axes) -> Axes:
    """Draw the long-run optimum over the limit on the mean, and the band in which it is proved to lie in between."""
    known = curve.is_feasible
    if np.any(known):
        bends = curve.ceilings[known]
        asked = np.union1d(np.linspace(bends[0], max(curve.costs[known, -1].max(), bends[0]), NUM_BETWEEN), bends)
        asked = asked[asked <= max(curve.costs[known, -1].max(), bends[0])]
        reached, bound = curve.reached_at(asked), curve.bound_at(asked)
        ax.fill_between(asked, reached, bound, color="0.6", alpha=0.6, linewidth=0, zorder=1)
        ax.plot(asked, reached, color="black", lw=0.9, dashes=(2, 1.5), zorder=1.5, label=LONG_RUN)
    return ax


def _first_swept_policy(found: Tradeoff) -> str:
    """Return the first policy with records under finite limits and finite latency; "" where there is none."""
    records = found.records
    swept = records[np.isfinite(records["limit"]) & np.isfinite(records["latency_s"])]
    return str(swept["policy"].iloc[0]) if len(swept) and swept["limit"].nunique() > 1 else ""
