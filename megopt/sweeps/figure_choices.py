"""What a policy chose: maps of split step, merge ratio and super-resolution over the SNR of a request and the limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis import plots
from megopt.arrays import FloatArray, IntArray
from megopt.sweeps.figure_data import Means
from megopt.sweeps.figure_words import finish_page, limit_label, title_of
from megopt.sweeps.query import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MAX_KNOBS = 4
MAX_TICKS = 5
MAX_BINS = 16
MAX_LIMITS = 24
NONE = "0.85"
"""Colour of a cell without the knob."""
KNOBS = {
    "split_step": "Steps at the edge",
    "merge_ratio": "Merged tokens",
    "sr_scale": "Super-resolution factor",
    "num_steps": "Denoising steps",
    "codec_bits": "Bits per latent value",
}


def save_choices(results: Results, means: Means, path: Path) -> list[Path]:
    """Draw what the first policy that reads limits chose most often; a panel per knob that is not always the same.

    Returns:
        The files; none where no such policy met two limits, or the records do not hold the knobs.
    """
    means, left = of_one_setting_but_its_channel(means)
    policy = next((str(p) for p, own in means.points.groupby("policy", sort=False) if _num_limits(own) > 1), "")
    held = {name for name in results.columns() if name in KNOBS}
    chosen = _chosen(results, means, policy) if policy and held == set(KNOBS) else None
    if chosen is None or not len(chosen):
        return []
    counts = {name: len(chosen[name].dropna().unique()) for name in (*KNOBS, "limit", "bin")}
    knobs = [name for name in KNOBS if counts[name] > 1][:MAX_KNOBS]
    if not knobs or counts["limit"] < 2 or counts["bin"] < 2:
        return []
    with plots.paper_style():
        width_in = min(7.1, max(4.6, 0.9 + 2.1 * len(knobs)))
        panels = plots.new_panels(len(knobs), width_in=width_in, height_in=3.3)
        for panel, knob in zip(panels, knobs, strict=True):
            plot_choice(chosen, knob, panel)
        panels[0].set_ylabel(limit_label(str(means.points["limit_quantity"].iloc[0])))
        for panel in panels[1:]:
            panel.tick_params(labelleft=False)
        fixed = [f"{KNOBS[name].lower()} {chosen[name].dropna().iloc[0]:g}" for name in KNOBS if counts[name] == 1]
        same = f"; always: {', '.join(fixed)}" if fixed else ""
        _explain_grey(panels, chosen, knobs)
        at = f"; {title_of(left)}" if left else ""
        finish_page(panels, f"{means.note}{at}; what {policy.replace('_', ' ')} chose most often{same}")
        return plots.save_figure(panels[0], path)


def of_one_setting_but_its_channel(means: Means) -> tuple[Means, Mapping[str, str]]:
    """Return the means of the settings that differ from the middle one by their channel alone, and what they share.

    The map is over the SNR of each request, so requests of several channels make one map; those of several links,
    schemes or the like would not.
    """
    shared = {text: _but_channel(setting) for text, setting in means.settings.items()}
    left = shared.get(means.middle, {})
    kept = {text for text, rest in shared.items() if rest == left}
    points = means.points[means.points["setting"].isin(kept)]
    return replace(
        means, points=points, settings={text: means.settings[text] for text in means.settings if text in kept}
    ), left


def _but_channel(setting: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in setting.items() if key.split(".")[0] != "channel"}


def _explain_grey(panels: Sequence[Axes], chosen: pd.DataFrame, knobs: Sequence[str]) -> None:
    """Put grey into the legend where some cell has no value."""
    from matplotlib.patches import Rectangle

    num_cells = len(chosen["limit"].unique()) * len(chosen["bin"].unique())
    if chosen[list(knobs)].isna().to_numpy().any() or len(chosen) < num_cells:
        label = "chosen without such a knob, or no request served"
        transform = panels[0].transAxes
        panels[0].add_patch(Rectangle((0.0, 0.0), 0.0, 0.0, transform=transform, color=NONE, label=label))


def plot_choice(chosen: pd.DataFrame, knob: str, ax: Axes) -> Axes:
    """Draw one knob over SNR and limit, with a colour bar that has a colour per value where these are few.

    Args:
        chosen: bin (SNR [dB]), limit, and the knobs, one row per cell.
        knob: the column.
        ax: where to draw.
    """
    from matplotlib.ticker import MaxNLocator

    grid = chosen.pivot_table(index="limit", columns="bin", values=knob, dropna=False)
    width = float(np.diff(grid.columns.to_numpy(dtype=float)).min()) if grid.shape[1] > 1 else 1.0
    cells = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    values = np.unique(cells.compressed())
    style, ticks = _colors(values)
    shown = np.ma.masked_array(np.searchsorted(values, cells.filled(values[0])), cells.mask)
    edges = np.append(grid.columns.to_numpy(dtype=float), float(grid.columns[-1]) + width)
    mesh = ax.pcolormesh(edges, np.arange(len(grid) + 1) - 0.5, shown, rasterized=True, **style)
    ax.set_facecolor(NONE)
    every = max(1, -(-len(grid) // 8))
    ax.set_yticks(range(0, len(grid), every), [f"{limit:.{3 if limit < 1e3 else 4}g}" for limit in grid.index[::every]])
    ax.xaxis.set_major_locator(MaxNLocator(4, prune="both"))
    ax.set_xlabel("SNR of the request [dB]")
    ax.set_title(KNOBS[knob], fontsize=8)
    ax.grid(visible=False)
    figure = ax.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(mesh, ax=ax, location="bottom", pad=0.02, aspect=16)
    bar.set_ticks(list(ticks), labels=[f"{values[place]:g}" for place in ticks])
    bar.ax.minorticks_off()
    return ax


def _colors(values: FloatArray) -> tuple[dict[str, Any], IntArray]:
    """Return a colour per value, and the places of the values that the bar names."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    num = len(values)
    colors = colormaps["viridis"](np.linspace(0.0, 1.0, max(num, 2)))[:num]
    style = {"cmap": ListedColormap(colors), "norm": BoundaryNorm(np.arange(num + 1) - 0.5, num)}
    return style, np.unique(np.linspace(0, num - 1, MAX_TICKS).round().astype(np.int64))


def _chosen(results: Results, means: Means, policy: str) -> pd.DataFrame:
    """Return the knobs that most served requests were given, per bin of the SNR and limit."""
    where = (
        "sweep = ? AND profile = ? AND list_contains(?, run) AND policy = ? "
        'AND isfinite(latency_s) AND isfinite("limit") AND isfinite(snr_db)'
    )
    runs = [run for setting in means.settings for run in means.runs[setting]]
    given: list[object] = [means.sweep, means.profile, runs, policy]
    asked = f"SELECT quantile_cont(snr_db, [0.01, 0.99]) AS ends FROM records WHERE {where}"
    ends = results.ask(asked, given)["ends"][0]
    if ends is None:
        return results.ask("SELECT * FROM records WHERE false")
    low, high = (float(end) for end in ends)
    width = next(width for width in (0.5, 1.0, 2.0, 5.0, 10.0, 1e9) if (high - low) / width <= MAX_BINS)
    knobs, limit = ", ".join(KNOBS), _limit_expression(means, policy)
    counted = (
        f'SELECT floor(snr_db / {width}) * {width} AS bin, {limit} AS "limit", {knobs}, count(*) AS num FROM records '
        f"WHERE {where} AND snr_db BETWEEN {low} AND {high} GROUP BY ALL"
    )
    return results.ask(
        f"SELECT * FROM ({counted}) "
        f'QUALIFY row_number() OVER (PARTITION BY bin, "limit" ORDER BY num DESC, {knobs}) = 1 '
        'ORDER BY "limit", bin',
        given,
    )


def _limit_expression(means: Means, policy: str) -> str:
    """Return the limit in SQL; where runs have limits of their own, the nearest of `MAX_LIMITS` log-spaced ones."""
    values = means.points[means.points["policy"] == policy]["limit"]
    ends = [float(value) for value in (values[np.isfinite(values)].min(), values[np.isfinite(values)].max())]
    if _num_limits(means.points[means.points["policy"] == policy]) <= MAX_LIMITS or ends[0] <= 0.0:
        return '"limit"'
    step = float(np.log(ends[1] / ends[0])) / MAX_LIMITS
    return f'{ends[0]} * exp(round(ln("limit" / {ends[0]}) / {step}) * {step})'


def _num_limits(points: pd.DataFrame) -> int:
    return int(points["limit"][np.isfinite(points["limit"])].nunique())
