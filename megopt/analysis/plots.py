"""Figures from records and curves alone: `plot_x(data, ax=None) -> ax`, and how megopt figures look and are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.records import LABELS
from megopt.arrays import FloatArray
from megopt.files import write_atomically
from megopt.tables.schema import METRICS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from megopt.tables.profile import Profile

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe-Ito palette; lines also differ in dash and marker, so that figures read in grey."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
KNEE: dict[str, Any] = {"marker": "*", "ms": 13, "mfc": "white", "mec": "black", "mew": 1.2, "linestyle": ""}
"""How a knee is marked: its white face stands out from every colour and colour map."""
METRIC_NAMES = {
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "psnr_db": "PSNR",
    "lpips": "LPIPS",
    "fid": "FID",
    "clip": "CLIP score",
}
"""Names of quality metrics on axes; of others the first letter is a capital."""
RC = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.hashsalt": "megopt",
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw with megopt's style, without a screen, and leave the caller's settings alone."""
    import matplotlib as mpl

    with mpl.rc_context(RC):  # type: ignore[arg-type]  # its stub lists keys one by one
        yield


def new_panels(num_panels: int = 1, width_in: float = 7.1, height_in: float = 3.4) -> list[Axes]:
    """Return axes side by side on a figure of their own, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return list(figure.subplots(1, num_panels, squeeze=False)[0])


def plot_tradeoff(curve: pd.DataFrame, x: str, y: str = "latency_s", ax: Axes | None = None) -> Axes:
    """Draw the mean of one quantity against the mean of another: a line per swept policy, a marker per fixed one.

    Args:
        curve: rows of `rollout.summarise`.
        x: column on the horizontal axis, usually the limited quantity.
        y: column on the vertical axis, usually the objective.
        ax: where to draw; new axes where None.

    Points at which some request breaks a limit are hollow; bands are 95 % intervals of the mean latency.
    """
    ax = new_panels()[0] if ax is None else ax
    drawn = curve[np.isfinite(curve[y]) & np.isfinite(curve[x])]
    groups = {str(policy): points for policy, points in drawn.groupby("policy", sort=False)}
    swept = {name: points for name, points in groups.items() if np.isfinite(points["limit"]).all()}
    for i, (name, points) in enumerate(swept.items()):
        _plot_swept(ax, name, points, (x, y), i, len(swept))
    for i, (name, points) in enumerate((n, p) for n, p in groups.items() if n not in swept):
        color, marker = COLORS[(i + len(swept)) % len(COLORS)], MARKERS[(i + 3) % len(MARKERS)]
        ax.plot(points[x], points[y], marker, color=color, label=_named(name, points), ms=5, mec="black", mew=0.5)
    for axis, column in ((ax.xaxis, x), (ax.yaxis, y)):
        scale_axis(axis, drawn[column].to_numpy(dtype=float))
    ax.set_xlabel(mean_label(x))
    ax.set_ylabel(mean_label(y))
    return ax


def mean_label(column: str, metric: str = "") -> str:
    """Return the axis label of the mean of a record column over requests; of the column quality under `metric`."""
    label = metric_label(metric) if column == "quality" and metric else LABELS[column]
    name, _, unit = label.partition(" [")
    return f"{name}, mean per request" + (f" [{unit}" if unit else "")


def metric_label(metric: str) -> str:
    """Return the axis label of a quality metric, with its unit."""
    name, unit = METRIC_NAMES.get(metric, metric.capitalize().replace("_", " ")), METRICS[metric].unit
    return name + (f" [{unit}]" if unit != "1" else "")


def _plot_swept(ax: Axes, name: str, points: pd.DataFrame, columns: tuple[str, str], i: int, num_swept: int) -> None:
    """Draw one swept policy; earlier ones are broader, so that equal curves stay visible below later ones."""
    x, y = columns
    color, dash, marker = COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
    kept, broken = points[points["violation_rate"] == 0], points[points["violation_rate"] > 0]
    width = 1.2 + 0.8 * (num_swept - 1 - i)
    style: dict[str, Any] = {"color": color, "marker": marker, "ms": 2.2 + width}
    if len(kept):
        ax.plot(kept[x], kept[y], linestyle=dash, lw=width, label=_named(name, kept), **style)
    if y == "latency_s":
        low, high = (kept[y] + sign * kept["latency_ci95_s"].fillna(0.0) for sign in (-1, 1))
        ax.fill_between(kept[x], low, high, color=color, alpha=0.15, linewidth=0)
    if len(broken):
        label = None if len(kept) else f"{_named(name, broken)} (limit broken)"
        ax.plot(broken[x], broken[y], linestyle="", mfc="none", label=label, **style)


def _named(name: str, points: pd.DataFrame) -> str:
    """Return a policy's name for a legend, with its largest share of requests in outage."""
    outage = points["outage_rate"].max()
    return _shown(name) + (f" ({outage:.1%} in outage)" if outage > 0 else "")


TIME_PARTS = {
    "uplink_s": ("uplink", "#000000", ""),
    "edge_s": ("edge", "#0072B2", "//"),
    "downlink_s": ("downlink", "#E69F00", ""),
    "device_s": ("device", "#56B4E9", ".."),
}
"""Parts of the latency in their order, with name, colour and hatch."""


def plot_time_parts(records: pd.DataFrame, policy: str, ax: Axes | None = None) -> Axes:
    """Draw where the time of a swept policy goes: mean uplink, edge, downlink and device time over the limit."""
    ax = new_panels()[0] if ax is None else ax
    chosen = records[(records["policy"] == policy) & np.isfinite(records["latency_s"])]
    means = chosen.groupby("limit")[list(TIME_PARTS)].mean()
    is_seen = [part for part in TIME_PARTS if means[part].max() > 0.01 * means.sum(axis=1).max()]
    if len(means):
        layers = ax.stackplot(
            means.index,
            means[is_seen].to_numpy().T,
            step="mid",
            labels=[TIME_PARTS[p][0] for p in is_seen],
        )
        for layer, part in zip(layers, is_seen, strict=True):
            _, color, hatch = TIME_PARTS[part]
            layer.set(facecolor=color, hatch=hatch, edgecolor="white", linewidth=0.0)
    quantity = str(chosen["limit_quantity"].iloc[0]) if len(chosen) else ""
    ax.set_xlabel(f"Limit on {LABELS.get(quantity, quantity)[0].lower() + LABELS.get(quantity, quantity)[1:]}")
    ax.set_ylabel(f"Mean time, {_shown(policy)} policy [s]")
    scale_axis(ax.xaxis, means.index.to_numpy(dtype=float))
    ax.set_ylim(0, 1.15 * means.sum(axis=1).max() if len(means) else 1.0)
    ax.legend(loc="upper right", ncols=4, columnspacing=1.0, frameon=True, framealpha=0.85, edgecolor="none")
    return ax


def _shown(name: str) -> str:
    """Return a policy's name for a legend."""
    return name.replace("_", " ")


def scale_axis(axis: Axis, values: FloatArray) -> None:
    """Choose a logarithmic axis where positive values span more than a factor of five; write plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    if len(values) and values.min() > 0 and values.max() / values.min() > 5:
        (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def legend_below(ax: Axes, num_columns: int = 4) -> None:
    """Put the legend of `ax` below all panels, where it covers no data."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=num_columns)


def stamp(ax: Axes, note: str) -> None:
    """Write the provenance note into the upper right corner, above the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.965))  # type: ignore[union-attr,call-arg]
    figure.text(0.995, 0.995, note, ha="right", va="top", fontsize=7, color="0.35")


def note_below(ax: Axes, note: str) -> None:
    """Write a note into the lower right corner, below all panels."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.get_layout_engine().set(rect=(0, 0.07, 1, 0.93))  # type: ignore[union-attr,call-arg]
    figure.text(0.995, 0.012, note, ha="right", va="bottom", fontsize=8, color="0.35")


def save_figure(ax: Axes, path: Path, dpi: float | None = None) -> list[Path]:
    """Save the figure of `ax` as vector PDF and as PNG, atomically; `path` has no suffix. Returns the files.

    Args:
        ax: any axes of the figure.
        path: where to, without a suffix.
        dpi: dots per inch of the PNG; that of `RC` if None.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    # Without a creation date, the same data give the same bytes.
    png: dict[str, Any] = {} if dpi is None else {"dpi": dpi}
    options: dict[str, dict[str, Any]] = {".pdf": {"metadata": {"CreationDate": None}}, ".png": png}
    return [
        write_atomically(path.with_suffix(suffix), lambda target, kw=kw: figure.savefig(target, **kw))  # type: ignore[misc]
        for suffix, kw in options.items()
    ]


def profile_note(profile: Profile, records: pd.DataFrame) -> str:
    """Return the corner note: profile, kinds of rows, parameters that a user set, and quality that nobody measured."""
    kinds = sorted({kind for text in records["kind"].unique() for kind in text.split("+") if kind})
    stated = profile.provenance.parameters.items()
    changed = [f"{name} {parameter.value:g} {parameter.unit}" for name, parameter in stated if parameter.is_set_by_user]
    quality = "" if len(profile.quality) else "quality not measured"
    parts = (f"profile {profile.name}", *changed, f"data: {', '.join(kinds)}", quality)
    return "; ".join(text for text in parts if text)
