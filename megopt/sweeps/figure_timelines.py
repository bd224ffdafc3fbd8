"""Where the time of a mean request goes: a bar per policy, a panel per limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.sweeps.figure_data import Means
from megopt.sweeps.figure_words import finish_page, limit_words, limited, title_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

REST = "0.7"
"""Colour of what no part of a record says: the link's round trip, and waiting for the edge."""
MAX_BARS = 3
"""Limits that are shown: the smallest, the middle and the largest."""
MAX_SETTINGS = 30
SEEN = 0.01
"""Share of the longest bar below which a part cannot be seen."""


def save_timelines(means: Means, path: Path) -> list[Path]:
    """Draw how long a mean request waits, is at the edge, on the air and on the device, in the middle setting.

    Returns:
        The files; none where no request was served, or there are too many settings.
    """
    served = means.points[means.points["outage_rate"] < 1.0]
    settings = [setting for setting in means.settings if setting in set(served["setting"])]
    if not settings or len(means.settings) > MAX_SETTINGS:
        return []
    setting = settings[len(settings) // 2]
    points = served[served["setting"] == setting]
    limits = np.unique(points["limit"][np.isfinite(points["limit"])])
    places = np.linspace(0, len(limits) - 1, MAX_BARS).round().astype(int)
    shown = limits[np.unique(places)] if len(limits) else np.array([np.inf])
    with plots.paper_style():
        policies = list(dict.fromkeys(points["policy"]))
        panels = plots.new_panels(len(shown), height_in=1.6 + 0.26 * len(policies))
        name_parts(points, panels[0])
        for panel, limit in zip(panels, shown, strict=True):
            plot_timelines(points[points["limit"].isin([limit, np.inf])], policies, panel)
            panel.set_title(limit_words(limited(means, least=1), limit) if np.isfinite(limit) else "", fontsize=8)
        for panel in panels[1:]:
            panel.tick_params(labelleft=False, left=False)
        title = title_of(means.settings[setting])
        finish_page(panels, means.note + (f"; {title}" if title else ""))
        return plots.save_figure(panels[0], path)


def rest_s(points: pd.DataFrame) -> pd.Series[float]:
    """Return the part of the mean latency that no part of a record says [s]."""
    return (points["latency_s"] - points[list(plots.TIME_PARTS)].sum(axis=1)).clip(lower=0.0)


def name_parts(points: pd.DataFrame, ax: Axes) -> None:
    """Put the parts that can be seen into the legend, in the order of time."""
    from matplotlib.patches import Rectangle

    parts = {"round trip, waiting": (rest_s(points), REST, "")}
    parts |= {name: (points[part], color, hatch) for part, (name, color, hatch) in plots.TIME_PARTS.items()}
    for name, (width_s, color, hatch) in parts.items():
        if (width_s > SEEN * points["latency_s"]).any():
            style = {"facecolor": color, "hatch": hatch, "edgecolor": "white", "lw": 0.0, "label": name}
            ax.add_patch(Rectangle((0.0, 0.0), 0.0, 0.0, transform=ax.transAxes, **style))  # type: ignore[arg-type]


def plot_timelines(points: pd.DataFrame, policies: Sequence[str], ax: Axes) -> Axes:
    """Draw a bar per policy, of the parts of its latency one after another.

    Args:
        points: rows of `Means.points`, one per policy.
        policies: from top to bottom; one without a point has no bar.
        ax: where to draw.
    """
    longest = float(points["latency_s"].max())
    for place, policy in enumerate(policies):
        own = points[points["policy"] == policy]
        if not len(own):
            ax.text(0.02 * longest, place, "not served", va="center", fontsize=7, color="0.35")
            continue
        widths, begin = own[list(plots.TIME_PARTS)].iloc[0], float(rest_s(own).iloc[0])
        ax.barh(place, begin, 0.62, 0.0, color=REST)
        for part, (_, color, hatch) in plots.TIME_PARTS.items():
            ax.barh(place, widths[part], 0.62, begin, color=color, hatch=hatch, edgecolor="white", lw=0.0)
            begin += widths[part]
    ax.set_yticks(range(len(policies)), [policy.replace("_", " ") for policy in policies])
    ax.set_ylim(len(policies) - 0.5, -0.5)
    ax.set_xlim(0.0, 1.04 * longest)
    ax.set_xlabel("Mean time [s]")
    ax.grid(visible=False, axis="y")
    return ax
