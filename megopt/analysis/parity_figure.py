"""The figure of `megopt live`: predicted against measured latency, its terms, and the error over the SNR."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis import plots
from megopt.analysis.parity import relative_error, terms_s

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

TERM_STYLES = {
    "edge": ("#0072B2", "//"),
    "link": ("#E69F00", ""),
    "device": ("#56B4E9", ".."),
    "runtime": ("#000000", ""),
}
"""Colour and hatch of the terms, bottom up."""
BAND = 0.1
"""Relative error of the shaded band [1]."""


def save_parity_figure(records: pd.DataFrame, note: str, path: Path) -> list[Path]:
    """Draw and save the figure as PDF and PNG; `path` has no suffix, `note` goes into the corner. Returns the files."""
    with plots.paper_style():
        panels = plots.new_panels(3, height_in=3.0)
        plot_parity(records, panels[0])
        plot_terms(records, panels[1])
        plot_error_over_snr(records, panels[2])
        plots.legend_below(panels[0], num_columns=5)
        plots.stamp(panels[0], note)
        return plots.save_figure(panels[0], path)


def plot_parity(records: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw measured over predicted latency, a marker per request, with the diagonal and its band."""
    ax = plots.new_panels()[0] if ax is None else ax
    both = records[["predicted_latency_s", "latency_s"]].to_numpy(dtype=float)
    ends = np.array([0.85 * both.min(), 1.18 * both.max()])
    ax.fill_between(ends, (1 - BAND) * ends, (1 + BAND) * ends, color="0.85", lw=0, label=f"within {BAND:.0%}")
    ax.plot(ends, ends, color="0.4", lw=0.8)
    for i, (name, group) in enumerate(records.groupby("policy", sort=False)):
        ax.plot(
            group["predicted_latency_s"],
            group["latency_s"],
            linestyle="",
            marker=plots.MARKERS[i % len(plots.MARKERS)],
            color=plots.COLORS[i % len(plots.COLORS)],
            ms=3.2,
            mew=0.6,
            mfc="none",
            label=str(name).replace("_", " "),
        )
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_ticks(axis)
    ax.set_xlabel("Predicted latency [s]")
    ax.set_ylabel("Measured latency [s]")
    ax.set_title("a marker per request", fontsize=8)
    return ax


def plot_terms(records: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the mean terms of the latency, predicted (left bar) beside measured (right bar), per policy."""
    ax = plots.new_panels()[0] if ax is None else ax
    groups = {str(name): group for name, group in records.groupby("policy", sort=False)}
    for i, group in enumerate(groups.values()):
        for offset, of in ((-0.2, "predicted"), (0.2, "measured")):
            bottom, terms = 0.0, terms_s(group, of=of)
            for term, (color, hatch) in TERM_STYLES.items():
                height = float(np.mean(terms[term]))
                style = {"color": color, "hatch": hatch, "edgecolor": "white", "linewidth": 0.0}
                label = term if i == 0 and of == "measured" else None
                ax.bar(i + offset, height, 0.36, bottom, label=label, **style)  # type: ignore[arg-type]
                bottom += height
            ax.text(i + offset, bottom, of[0], ha="center", va="bottom", fontsize=7)
    ax.set_xticks(range(len(groups)), [name.replace("_", "\n") for name in groups], fontsize=8)
    ax.set_ylabel("Mean latency [s]")
    ax.set_title("p: predicted, m: measured", fontsize=8)
    ax.set_ylim(0.0, 1.3 * ax.get_ylim()[1])
    ax.legend(loc="upper center", ncols=2, columnspacing=1.0, handlelength=1.4)
    ax.grid(visible=False, axis="x")
    return ax


def plot_error_over_snr(records: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the absolute relative error of the total over the mean SNR: median, and a bar up to the 95th percentile."""
    ax = plots.new_panels()[0] if ax is None else ax
    levels = np.sort(records["level_db"].unique())
    spacing = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    groups = records.assign(off=100.0 * np.abs(relative_error(records))).groupby("policy", sort=False)
    for i, (_, group) in enumerate(groups):
        by_level = group.groupby("level_db")["off"]
        median, p95 = by_level.median(), by_level.quantile(0.95)
        at = median.index.to_numpy() + 0.12 * spacing * (i - (groups.ngroups - 1) / 2.0)
        style = {"color": plots.COLORS[i % len(plots.COLORS)], "marker": plots.MARKERS[i % len(plots.MARKERS)]}
        up = [np.zeros(len(at)), (p95 - median).to_numpy()]
        ax.errorbar(at, median, up, ms=3.5, lw=1.0, elinewidth=0.8, capsize=1.5, **style)  # type: ignore[arg-type]
    ax.axhline(100.0 * BAND, color="0.4", lw=0.8, linestyle="--")
    ax.set_xticks(levels)
    ax.set_ylim(bottom=0.0)
    ax.set_xlabel("Mean SNR [dB]")
    ax.set_ylabel("Error of the latency [%]")
    ax.set_title("median and 95th percentile", fontsize=8)
    return ax


def _plain_ticks(axis: Axis) -> None:
    """Write plain numbers on a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
