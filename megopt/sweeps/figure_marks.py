"""How policies look in the figures of a sweep: colour, dash, marker, hollow where a limit is broken, the 95 % band."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis import plots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MANY = 12
"""Points of a line from which on markers are small."""
BANDS = {"latency_s": "latency_ci95_s", "quality": "quality_ci95"}
"""Columns with half the 95 % interval of a mean."""


def style_of(number: int) -> dict[str, Any]:
    """Return colour, dash and marker of the policy of a place, so that lines can be told apart in grey as well."""
    lists = {"color": plots.COLORS, "linestyle": plots.DASHES, "marker": plots.MARKERS}
    return {name: values[number % len(values)] for name, values in lists.items()}


def hollow_words(points: pd.DataFrame) -> str:
    """Return what a note says of hollow markers, where there are any."""
    return "; hollow: some request breaks its limit" if (points["violation_rate"] > 0).any() else ""


def plot_policy(points: pd.DataFrame, columns: tuple[str, str], place: tuple[int, int], ax: Axes) -> None:
    """Draw the line of a policy with its 95 % band, markers hollow where some request breaks its limit.

    Args:
        points: rows of `Means.points` of one policy, in the order of the line.
        columns: on the horizontal and on the vertical axis.
        place: number of the policy, and how many there are; earlier lines are broader, so that they stay visible below
            equal ones.
        ax: where to draw.
    """
    (x, y), (number, num_policies) = columns, place
    is_kept, style = (points["violation_rate"] == 0).to_numpy(), style_of(number)
    width = 1.1 + 0.5 * (num_policies - 1 - number)
    marks: dict[str, Any] = {"ms": (2.8 if len(points) <= MANY else 1.8) + 0.5 * width, "mew": 0.9}
    line: dict[str, Any] = {"lw": width, "label": str(points["policy"].iloc[0]).replace("_", " ")}
    face: dict[str, Any] = {} if is_kept.any() else {"mfc": "white"}
    ax.plot(points[x], points[y], markevery=np.flatnonzero(is_kept), **style, **marks, **line, **face)
    ax.plot(points[x][~is_kept], points[y][~is_kept], **{**style, "linestyle": ""}, **marks, mfc="white")
    if (band := BANDS.get(y)) is not None:
        low, high = (points[y] + sign * points[band].fillna(0.0) for sign in (-1, 1))
        ax.fill_between(points[x], low, high, color=style["color"], alpha=0.2, linewidth=0)
