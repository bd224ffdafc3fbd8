"""Learning curves with their limits, from the folders of trained agents: a figure per problem, a line per algorithm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megopt.analysis import plots
from megopt.analysis.learning_figure import plot_curve
from megopt.analysis.records import LABELS
from megopt.sweeps.figure_words import SHORT, finish_page
from megopt.tables.schema import METRICS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

RUN_FILE, CURVE_FILE = "run.json", "curve.parquet"
ASKED = ("scenario", "profile", "objective", "quantities", "limits", "channel", "link")
"""What runs have to share to stand in one figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """Runs of one problem.

    Attributes:
        asked: what was asked of all, by `ASKED`.
        curves: learning curves of the seeds by algorithm.
    """

    asked: Mapping[str, Any]
    curves: Mapping[str, Sequence[pd.DataFrame]]

    @property
    def name(self) -> str:
        """Scenario and limits, as a file name can hold them."""
        limits = [
            f"{quantity}_{abs(limit):.4g}"
            for quantity, limit in zip(self.asked["quantities"], self.asked["limits"], strict=True)
        ]
        return "__".join([str(self.asked["scenario"]), *limits]).replace(".", "p")


def learned_in(folders: Sequence[Path]) -> list[Learned]:
    """Return the runs below some folders, those of one problem together; names and files ascending."""
    import pandas as pd

    found: dict[str, dict[str, list[pd.DataFrame]]] = {}
    for path in sorted(path for folder in folders for path in folder.glob(f"**/{RUN_FILE}")):
        if (path.parent / CURVE_FILE).is_file():
            run = json.loads(path.read_text(encoding="utf-8"))
            if all(name in run for name in (*ASKED, "algorithm")):
                asked = json.dumps({name: run[name] for name in ASKED}, sort_keys=True)
                curves = found.setdefault(asked, {}).setdefault(str(run["algorithm"]), [])
                curves.append(pd.read_parquet(path.parent / CURVE_FILE))
    return [Learned(asked=json.loads(asked), curves=curves) for asked, curves in sorted(found.items())]


def save_learned(learned: Learned, path: Path) -> list[Path]:
    """Draw reward and limited costs over the requests learned from, mean over the seeds and the band that they span."""
    quantities = [str(name) for name in learned.asked["quantities"]]
    with plots.paper_style():
        panels = plots.new_panels(1 + len(quantities), width_in=7.1, height_in=2.9)
        for panel, column in zip(panels, ("reward", *quantities), strict=True):
            for number, (name, curves) in enumerate(sorted(learned.curves.items())):
                plot_curve(curves, f"sampled_{column}", name.replace("_", "-"), number, panel)
            _finish(learned, column, panel)
        nums = sorted({len(curves) for curves in learned.curves.values()})
        seeds = (
            f"{' to '.join(str(num) for num in dict.fromkeys((nums[0], nums[-1])))} seed{'s' if nums[-1] > 1 else ''}"
        )
        bands = "; bands: from the lowest to the highest" if nums[-1] > 1 else ""
        finish_page(
            panels, f"{learned.asked['scenario']}; {learned.asked['profile']}; sampled policies, {seeds}{bands}"
        )
        return plots.save_figure(panels[0], path)


def _finish(learned: Learned, column: str, ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    asked = learned.asked
    if column == "reward":
        objective = str(asked["objective"])
        unit = METRICS[objective].unit if objective in METRICS else ""
        shown = objective.removesuffix("_db").upper() + (f" [{unit}]" if unit not in {"", "1"} else "")
        ax.set_ylabel(f"Reward: {shown}" if objective in METRICS else f"Reward: minus {LABELS[objective].lower()}")
    else:
        limit = abs(float(asked["limits"][list(asked["quantities"]).index(column)]))
        ax.axhline(limit, color="black", lw=1.0, linestyle=(0, (2, 1)), label="limit")
        label = SHORT.get(column, LABELS.get(column, column))
        ax.set_ylabel(f"Mean {label[0].lower()}{label[1:]}")
    ax.set_xlabel("Requests learned from")
    ax.set_xlim(left=0.0)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if ax.get_xlim()[1] >= 2000.0:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k" if value else "0"))
