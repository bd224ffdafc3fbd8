"""The figure of `megopt tradeoff`: the curve, and where the time of the optimum goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megopt.analysis import plots
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.tables.profile import Profile
from megopt.tables.schema import METRICS


def save_tradeoff_figure(found: Tradeoff, profile: Profile, sweep: Sweep, path: Path) -> list[Path]:
    """Draw and save the figure as PDF and PNG; `path` has no suffix. Returns the files.

    Left: limited quantity against objective, all policies. Right: parts of the latency over the limit, of the first
    policy that was swept and served some request; left out where there is none.
    """
    timed = _first_swept_policy(found)
    objective = found.problems[0].objective
    with plots.paper_style():
        panels = plots.new_panels(2 if timed else 1)
        plots.plot_tradeoff(found.curve, sweep.quantity, objective, panels[0])
        if objective == "quality":
            panels[0].set_ylabel(f"{found.metric}, mean per request [{METRICS[found.metric].unit}]".replace(" [1]", ""))
        if timed:
            plots.plot_time_parts(found.records, timed, panels[1])
        plots.legend_below(panels[0])
        plots.stamp(panels[0], plots.profile_note(profile, found.records))
        return plots.save_figure(panels[0], path)


def _first_swept_policy(found: Tradeoff) -> str:
    """Return the first policy with records under finite limits and finite latency; "" where there is none."""
    records = found.records
    swept = records[np.isfinite(records["limit"]) & np.isfinite(records["latency_s"])]
    return str(swept["policy"].iloc[0]) if len(swept) and swept["limit"].nunique() > 1 else ""
