"""Figures from records and curves alone: `plot_x(data, ax=None) -> ax`, and how megopt figures look and are saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.records import LABELS, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from megopt.tables.profile import Profile

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe-Ito palette; lines also differ in dash and marker, so that figures read in grey."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
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


def new_axes(width_in: float = 7.0, height_in: float = 4.0) -> Axes:
    """Return one empty pair of axes on a figure of its own, drawn without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def plot_energy_delay(curve: pd.DataFrame, energy: str, ax: Axes | None = None) -> Axes:
    """Draw mean latency against mean energy: a line per swept policy, a marker per fixed one.

    Args:
        curve: rows of `rollout.summarise`.
        energy: energy column on the horizontal axis.
        ax: where to draw; new axes where None.

    Points at which some request breaks a limit are hollow; bands are 95 % intervals of the mean latency.
    """
    ax = new_axes() if ax is None else ax
    drawn = curve[np.isfinite(curve["latency_s"]) & np.isfinite(curve[energy])]
    colors, markers = cycle(COLORS), cycle(MARKERS)
    dashes = cycle(DASHES)
    for policy, points in drawn.groupby("policy", sort=False):
        color, marker = next(colors), next(markers)
        if len(points) == 1:
            ax.plot(
                points[energy], points["latency_s"], marker, color=color, label=str(policy), ms=7, mec="white", zorder=4
            )
            continue
        dash = next(dashes)
        kept, broken = points[points["violation_rate"] == 0], points[points["violation_rate"] > 0]
        ax.plot(kept[energy], kept["latency_s"], linestyle=dash, marker=marker, ms=3.5, color=color, label=str(policy))
        low, high = (kept["latency_s"] + sign * kept["latency_ci95_s"] for sign in (-1, 1))
        ax.fill_between(kept[energy], low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(broken[energy], broken["latency_s"], marker, ms=3.5, mfc="none", color=color)
    for axis, column in ((ax.xaxis, energy), (ax.yaxis, "latency_s")):
        _scale(axis, drawn[column].to_numpy(dtype=float))
    ax.set_xlabel(f"{LABELS[energy]}, mean per request".replace(" [J], mean per request", ", mean per request [J]"))
    ax.set_ylabel("Latency, mean per request [s]")
    return ax


def _scale(axis: object, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Choose a logarithmic axis where positive values span more than a factor of eight; write plain numbers on it."""
    from matplotlib.axis import Axis
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    assert isinstance(axis, Axis)
    if len(values) and values.min() > 0 and values.max() / values.min() > 8:
        axis._set_axes_scale("log")  # type: ignore[attr-defined]
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def outside_legend(ax: Axes, title: str = "") -> None:
    """Put the legend to the right of the axes, where it covers no data."""
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0.0, title=title or None, alignment="left")


def stamp(ax: Axes, note: str) -> None:
    """Write the provenance note into the lower right corner, below the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.get_layout_engine().set(rect=(0, 0.045, 1, 0.955))  # type: ignore[union-attr,call-arg]
    figure.text(0.995, 0.008, note, ha="right", va="bottom", fontsize=6.5, color="0.35")


def save_figure(ax: Axes, path: Path) -> list[Path]:
    """Save the figure of `ax` as vector PDF and as PNG, atomically; `path` has no suffix. Returns the files."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    saved = []
    for suffix in (".pdf", ".png"):
        metadata = {"CreationDate": None} if suffix == ".pdf" else {}  # the same data give the same bytes
        saved.append(
            write_atomically(path.with_suffix(suffix), lambda target, m=metadata: figure.savefig(target, metadata=m))  # type: ignore[misc]
        )
    return saved


def profile_note(profile: Profile, records: pd.DataFrame) -> str:
    """Return the corner note: profile, the kinds of rows the figure was made from, and quality that nobody measured."""
    kinds = sorted({kind for text in records["kind"].unique() for kind in text.split("+") if kind})
    quality = "" if len(profile.quality) else "quality not measured"
    return "; ".join(text for text in (f"profile {profile.name}", f"data: {', '.join(kinds)}", quality) if text)
