"""The figure of HIS: quality against common steps, and shares of the gain of sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.plots import COLORS, new_panels, note_below
from megopt.schemes.shared_steps_quality import BINS, NUM_STEPS, VARIANTS, published_points, sigmoid

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NOTE = "markers: published (HIS, ICC 2025); lines and bars: computed; rate and power stated, not published"
SHOWN_BINS = {0.2: (COLORS[0], "o"), 0.4: (COLORS[1], "s"), 0.7: (COLORS[2], "^")}
"""Similarities that are drawn, with colour and marker; the others lie between them."""
VARIANT_STYLES: dict[str, tuple[str, Any]] = {
    "sim_npi": ("weaker guidance while shared", "-"),
    "plain": ("plain", "--"),
}
"""Label and dash of each variant; markers are filled for the first and hollow for the second."""


def draw(fits: pd.DataFrame, comparison: pd.DataFrame) -> list[Axes]:
    """Return both panels, drawn from the tables of `megopt.reproductions.his` alone."""
    left, right = new_panels(2, 7.1, 3.2)
    plot_quality_panel(fits, left)
    plot_share_panel(comparison, right)
    left.set_title("(a) quality of shared steps", loc="left", fontsize=9)
    right.set_title("(b) gain over no sharing", loc="left", fontsize=9)
    note_below(left, NOTE)
    return [left, right]


def plot_quality_panel(fits: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw CLIP score against common steps: published points, fitted curves.

    Args:
        fits: table of `hiqm.fit_table`.
        ax: where to draw; new axes where None.
    """
    ax = new_panels(1, 3.5, 3.0)[0] if ax is None else ax
    steps = np.linspace(0.0, NUM_STEPS - 1.0, 200)
    for variant in VARIANTS:
        points, dash = published_points(variant), VARIANT_STYLES[variant][1]
        rows = fits[fits["variant"] == variant].set_index("similarity")
        for similarity, (color, marker) in SHOWN_BINS.items():
            ax.plot(steps, sigmoid(steps, *rows.loc[similarity, ["L", "K", "B", "D"]]), dash, color=color, lw=1.2)
            face = color if variant == "sim_npi" else "white"
            scores = points[BINS.index(similarity), ::2]
            ax.plot(np.arange(NUM_STEPS)[::2], scores, marker, color=color, mfc=face, ms=3.5, mew=0.8, zorder=3)
    ax.set(xlabel="Common steps of 28", ylabel="Mean CLIP score", xlim=(-0.7, 27.7), ylim=(0.05, 0.335))
    _legend_of_quality(ax)
    return ax


def _legend_of_quality(ax: Axes) -> None:
    """Say what colours and dashes are, below the curves."""
    from matplotlib.lines import Line2D

    bins = [
        Line2D([], [], color=color, marker=marker, ms=3.5, label=f"similarity {similarity:g}")
        for similarity, (color, marker) in SHOWN_BINS.items()
    ]
    variants = [
        Line2D([], [], color="0.2", linestyle=dash, marker="o", ms=3.5, mfc=face, label=label)
        for (label, dash), face in zip(VARIANT_STYLES.values(), ("0.2", "white"), strict=True)
    ]
    ax.legend(handles=[*bins, *variants], loc="lower left", fontsize=7, handlelength=2.2)


def plot_share_panel(comparison: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the share of the gain of HIS that each way to share reaches: computed bars, published markers.

    Args:
        comparison: table of `his.compared`.
        ax: where to draw; new axes where None.
    """
    ax = new_panels(1, 3.5, 3.0)[0] if ax is None else ax
    rows = comparison[comparison["scheme"] != "IIS"].reset_index(drop=True)
    at = np.arange(len(rows))
    spread: dict[str, Any] = {"ecolor": "0.3", "capsize": 3, "error_kw": {"lw": 0.8}}
    ax.bar(at, rows["computed"], 0.55, yerr=rows["computed_std"], color=COLORS[5], label="computed", **spread)
    for place, share in zip(at, rows["computed"], strict=True):  # at the foot: above the bars runs the line of HIS
        ax.annotate(f"{share:.2f}", (place, 0.0), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    ax.plot(at, rows["published"], "D", color=COLORS[1], ms=6, mec="white", label="published", zorder=4)
    ax.axhline(1.0, color="0.5", lw=0.7, dashes=(3, 2))
    names = ["exact\noptimum" if name == "exact" else str(name) for name in rows["scheme"]]
    ax.set_xticks(at, names)
    top = 1.3 * float(np.nanmax([rows["computed"].max(), 1.0]))
    ax.set(ylabel="Share of the gain of HIS [1]", ylim=(min(0.0, 1.2 * float(rows["computed"].min())), top))
    ax.grid(visible=False, axis="x")
    ax.legend(loc="upper left", ncols=2)
    return ax
