"""MEGSplitting, ICC 2025: latency against split ratio, and least latency against the device's energy limit.

Published numbers (profiles/megsplitting_sdxl/published_curves.csv) stand beside computed ones, and the closed form of
`megopt.solvers.generation_splitting` beside a cone program and a grid on random instances.
Source: slides "Optimal Energy-Delay Tradeoff for MEG", ICC 2025; the parameters were derived from them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.continuous_region_split import model_of
from megopt.analysis.plots import COLORS, new_panels, note_below, paper_style, save_figure
from megopt.analysis.records import write_tables
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.arrays import FloatArray
from megopt.reproductions.megsplitting_tables import latency_table, pareto_table
from megopt.schemes.region_split import RegionSplit
from megopt.solvers.generation_splitting import (
    RegionSplitModel,
    device_s,
    energy_j,
    latency_s,
    solve,
    solve_fixed_power,
)
from megopt.solvers.generation_splitting_cvxpy import cone_program_latency_s
from megopt.system.link import Link
from megopt.system.payload import image_bits
from megopt.tables.profile import load_profile

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PUBLISHED_LINK = Link(bandwidth_hz=1e6).state(np.array([10.0]))
"""The link of the slides: 1 MHz at SNR 10; ten times is 10 dB, so both readings agree."""
DOWNLINK_S_PER_BIT = float(PUBLISHED_LINK.downlink_s_per_bit[0])
NUM_INSTANCES = 1000
NUM_GRID_POINTS = 100_000
GRID_TOLERANCE = 1e-8
"""Relative excess over the best grid point from which on an answer counts as beaten by the grid."""
NOTE = "markers: published (slides, ICC 2025); lines: computed; parameters derived"
RAW_BITS_PER_PIXEL = 24
LINE_RATIOS = np.linspace(0.4, 0.9999, 50)
"""Split ratios of the computed lines [1]; at 1 itself the coarse pass vanishes."""
LINE_LIMITS_J = np.arange(1.0, 541.0)
"""Energy limits of the computed lines [J]."""
MODEL_STYLES = {"SDXL": (COLORS[0], "o", COLORS[0]), "SD3": (COLORS[1], "s", "white")}
"""Colour, marker and marker face of each published model."""
SCHEME_STYLES: dict[str, tuple[str, Any]] = {
    "edge_only": ("edge only", (0, (1, 1.2))),
    "model_split": ("model split", (0, (5, 1.8))),
    "region_split": ("region split", "-"),
}
"""Label and dash of each scheme."""
FACTOR_STYLES = {
    2: (COLORS[0], "o", 5.0),
    4: (COLORS[1], "s", 5.0),
    6: (COLORS[2], "^", 6.5),
    8: ("#8B3A80", "D", 7.0),
}
"""Colour, marker and marker size of each cost factor; the larger markers lie below."""
POLICY_STYLES: dict[str, tuple[str, Any]] = {
    "optimal": ("optimal power", "-"),
    "fixed": ("fixed full power", (0, (2.5, 1.5))),
}
"""Label and dash of each power policy; markers are filled for optimal and hollow for fixed power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MegSplittingResult:
    """Published against computed, and solver against solver.

    Attributes:
        worst_latency_error_s: largest |computed - published| over the 16 printed latencies [s].
        worst_pareto_error_s: the same over the 36 + 4 latencies read off the energy-delay curves [s].
        worst_relative_disagreement: largest |closed form / cone program - 1| over the random instances [1].
        worst_excess_over_grid: largest (answer / best grid point - 1) of closed form and cone program [1].
        num_above_grid: how often one of them exceeds the grid by more than `GRID_TOLERANCE`.
        worst_gap: largest certified gap of the closed form over the random instances [1].
        comparison: published rows with `computed_latency_s`, `computed_energy_j`, `error_s`, then the computed lines.
        instances: one row per random instance: latencies of closed form, cone program and grid, bound, region ratio.
        paths: files written.
    """

    worst_latency_error_s: float
    worst_pareto_error_s: float
    worst_relative_disagreement: float
    worst_excess_over_grid: float
    num_above_grid: int
    worst_gap: float
    comparison: pd.DataFrame
    instances: pd.DataFrame
    paths: tuple[Path, ...]

    def summary(self) -> dict[str, Any]:
        """Return the plain numbers by name, and the files."""
        names = [field.name for field in fields(self) if field.name not in {"comparison", "instances", "paths"}]
        return {**{name: getattr(self, name) for name in names}, "paths": [str(path) for path in self.paths]}


def run(output_dir: Path, seed: int = 0) -> Report:
    """Return the report of `reproduce` for `megopt reproduce figure=megsplitting`."""
    result = reproduce(output_dir, seed)
    rows = [[name.replace("_", " "), f"{value:.3g}"] for name, value in result.summary().items() if name != "paths"]
    headline = (
        f"latencies within {result.worst_latency_error_s:.1e} s, energy-delay curves within "
        f"{result.worst_pareto_error_s:.3f} s, solvers within {result.worst_relative_disagreement:.1e}"
    )
    lines = [
        "P and kappa were derived from the published curves: meeting them is no independent test.",
        *(f"wrote {shown_path(path)}" for path in result.paths),
    ]
    table = rich_table("MEGSplitting, published against computed", ["quantity", "value"], rows)
    tables = [latency_table(result.comparison), pareto_table(result.comparison), table]
    return Report(summary=result.summary(), headline=headline, tables=tables, lines=lines)


def reproduce(output_dir: Path, seed: int = 0) -> MegSplittingResult:
    """Compare with the publication and among solvers; write two tables and the figure (PDF, PNG) to `output_dir`."""
    comparison, instances = compare_with_published(), compare_solvers(NUM_INSTANCES, seed)
    tables = {"comparison": comparison, "instances": instances}
    paths = write_tables(tables, output_dir)
    with paper_style():
        paths += save_figure(draw(comparison)[0], output_dir / "megsplitting", dpi=300)
    error = comparison["error_s"].abs().groupby(comparison["quantity"]).max()
    answers = instances[["closed_form_s", "cone_program_s"]]
    excess = answers.div(instances["grid_s"], axis=0) - 1.0
    return MegSplittingResult(
        worst_latency_error_s=float(error["latency"]),
        worst_pareto_error_s=float(error["pareto"]),
        worst_relative_disagreement=float((answers["closed_form_s"] / answers["cone_program_s"] - 1.0).abs().max()),
        worst_excess_over_grid=float(excess.to_numpy().max()),
        num_above_grid=int((excess > GRID_TOLERANCE).to_numpy().sum()),
        worst_gap=float(instances["gap"].max()),
        comparison=comparison,
        instances=instances,
        paths=tuple(paths),
    )


def published_model(name: str = "SDXL", cost_factor: float | FloatArray = 2.0) -> RegionSplitModel:
    """Return the published setting of "SDXL" or "SD3" at `cost_factor` beta [1], from its profile."""
    return replace(model_of(load_profile(f"megsplitting_{name.lower()}"), RegionSplit()), cost_factor=cost_factor)


def load_published() -> pd.DataFrame:
    """Return the published numbers, one row each; the columns are explained in the head of the file."""
    import pandas as pd

    path = files("megopt.profiles") / "megsplitting_sdxl" / "published_curves.csv"
    with path.open() as file:
        return pd.read_csv(file, comment="#")


def compare_with_published() -> pd.DataFrame:
    """Return published rows with computed values, then rows without published latency that make the computed lines."""
    import pandas as pd

    rows = pd.concat([load_published(), _line_rows()], ignore_index=True)
    keys = ["quantity", "model", "scheme", "power_policy"]
    for (quantity, name, scheme, policy), group in rows.groupby(keys, dropna=False):
        latency, energy = _computed(str(quantity), str(name), str(scheme), str(policy), group)
        rows.loc[group.index, "computed_latency_s"], rows.loc[group.index, "computed_energy_j"] = latency, energy
    return rows.assign(error_s=rows["computed_latency_s"] - rows["latency_s"])


def _line_rows() -> pd.DataFrame:
    """Return the points of the computed lines: columns as in the published table, source "computed"."""
    import pandas as pd

    fixed = {"scheme": "region_split", "source": "computed"}
    ratios = {"quantity": "latency", "cost_factor": 2.0, "power_policy": "fixed", "region_ratio": LINE_RATIOS}
    limits = {"quantity": "pareto", "model": "SDXL", "energy_limit_j": LINE_LIMITS_J}
    frames = [pd.DataFrame({**fixed, **ratios, "model": name}) for name in MODEL_STYLES]
    for factor, policy in product(FACTOR_STYLES, POLICY_STYLES):
        frames.append(pd.DataFrame({**fixed, **limits, "cost_factor": float(factor), "power_policy": policy}))
    return pd.concat(frames, ignore_index=True)


def _computed(quantity: str, name: str, scheme: str, policy: str, rows: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return latencies [s] and device energies [J], shape (num_rows,); saturation rows are solved without a limit."""
    if scheme == "edge_only":
        profile = load_profile(f"megsplitting_{name.lower()}")
        sent_bits = float(image_bits(profile.provenance.resolution_px, RAW_BITS_PER_PIXEL))
        seconds = profile.cost("edge", "whole_generation").latency_s + sent_bits * DOWNLINK_S_PER_BIT
        return np.full(len(rows), seconds), np.zeros(len(rows))
    if quantity == "latency":
        model = published_model(name)
        ratio = np.ones(len(rows)) if scheme == "model_split" else rows["region_ratio"].to_numpy(float)
        power_w = model.device_power_max_w
        return latency_s(model, ratio, power_w, DOWNLINK_S_PER_BIT), energy_j(model, ratio, power_w)
    limit_j = np.inf if quantity == "saturation" else rows["energy_limit_j"].to_numpy(float)
    solver = solve if policy == "optimal" else solve_fixed_power
    found = solver(published_model(name, rows["cost_factor"].to_numpy(float)), limit_j, DOWNLINK_S_PER_BIT)
    return found.latency_s, found.energy_j


def random_instances(num_instances: int, seed: int) -> tuple[RegionSplitModel, FloatArray, FloatArray]:
    """Return models, energy limits [J] and link times [s/bit], each of shape (num_instances,)."""
    rng = np.random.default_rng(seed)

    def spread(low: float, high: float) -> FloatArray:
        return np.exp(rng.uniform(np.log(low), np.log(high), num_instances))

    model = RegionSplitModel(
        edge_full_s=spread(0.5, 20.0),
        latent_bits=spread(1e4, 1e7),
        device_coarse_s=spread(0.01, 1.0),
        device_refine_s=spread(0.05, 10.0),
        device_power_max_w=spread(2.0, 300.0),
        power_exponent=rng.uniform(0.05, 0.9, num_instances),
        region_ratio_min=rng.uniform(0.05, 0.9, num_instances),
        cost_factor=spread(1.0, 4.0),
    )
    most_j = model.device_power_max_w * device_s(model, model.region_ratio_min)
    return model, np.asarray(most_j * spread(0.02, 2.0)), 1.0 / spread(1e5, 1e8)


def compare_solvers(num_instances: int, seed: int) -> pd.DataFrame:
    """Return one row per random instance: closed form, cone program, grid of `NUM_GRID_POINTS` ratios, bound."""
    import pandas as pd
    from tqdm import trange

    model, limit_j, link = random_instances(num_instances, seed)
    found = solve(model, limit_j, link)
    cone = cone_program_latency_s(model, limit_j, link, show_progress=True)
    columns = {field.name: np.broadcast_to(getattr(model, field.name), limit_j.shape) for field in fields(model)}
    grid = np.empty(num_instances)
    for i in trange(num_instances, desc="grids", leave=False, disable=None):
        one = RegionSplitModel(**{name: float(values[i]) for name, values in columns.items()})
        grid[i] = grid_latency_s(one, limit_j[i], link[i], NUM_GRID_POINTS)
    answers = {"closed_form_s": found.latency_s, "cone_program_s": cone, "grid_s": grid, "bound_s": found.bound_s}
    chosen = {"region_ratio": found.region_ratio, "power_w": found.power_w, "gap": found.gap}
    return pd.DataFrame({"instance": np.arange(num_instances), **answers, **chosen})


def grid_latency_s(model: RegionSplitModel, energy_limit_j: float, downlink_s_per_bit: float, num_points: int) -> float:
    """Return the least latency [s] over `num_points` ratios, each at the largest power that keeps the limit."""
    ratio = np.linspace(model.region_ratio_min, 1.0, num_points)
    full_power_j = model.device_power_max_w * device_s(model, ratio)
    share = np.minimum(energy_limit_j / full_power_j, 1.0) ** (1.0 / (1.0 - model.power_exponent))
    return float(np.min(latency_s(model, ratio, share * model.device_power_max_w, downlink_s_per_bit)))


def draw(comparison: pd.DataFrame) -> list[Axes]:
    """Return both panels, drawn from the table of `compare_with_published` alone."""
    left, right = new_panels(2, 7.1, 3.0)
    plot_latency_panel(comparison, left)
    plot_pareto_panel(comparison, right)
    left.set_title(r"(a) full device power, $\beta = 2$", loc="left", fontsize=9)
    right.set_title("(b) SDXL", loc="left", fontsize=9)
    note_below(left, NOTE)
    return [left, right]


def plot_latency_panel(comparison: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw latency against split ratio at full device power, with model split and edge only as levels.

    Args:
        comparison: table of `compare_with_published`.
        ax: where to draw; new axes where None.
    """
    ax = new_panels(1, 3.5, 3.0)[0] if ax is None else ax
    rows = comparison[comparison["quantity"] == "latency"]
    for (name, scheme), group in rows.groupby(["model", "scheme"], sort=False):
        color, marker, face = MODEL_STYLES[str(name)]
        line = group.sort_values("region_ratio")
        if scheme != "region_split":  # a level; its marker stands at x = 1, where the edge makes the whole image
            line = line.loc[line.index.repeat(2)].assign(region_ratio=[LINE_RATIOS[0], 1.0])
        dash = SCHEME_STYLES[str(scheme)][1]
        ax.plot(line["region_ratio"], line["computed_latency_s"], color=color, linestyle=dash, solid_capstyle="butt")
        marks = line[line["latency_s"].notna()].drop_duplicates("latency_s", keep="last")
        ax.plot(marks["region_ratio"], marks["latency_s"], marker, color=color, mfc=face, ms=5, zorder=4, clip_on=False)
    ax.set(xlabel="Split ratio $x$, share made at the edge", ylabel="Latency [s]", xlim=(0.38, 1.02), ylim=(0, 14))
    _legend_of_latency(ax)
    return ax


def _legend_of_latency(ax: Axes) -> None:
    """Say what lines and markers are, in the empty band between the levels."""
    from matplotlib.lines import Line2D

    schemes = [Line2D([], [], color="0.2", linestyle=dash, label=label) for label, dash in SCHEME_STYLES.values()]
    models = [
        Line2D([], [], color=color, marker=marker, mfc=face, ms=5, label=name)
        for name, (color, marker, face) in MODEL_STYLES.items()
    ]
    ax.legend(handles=[*schemes, *models], ncols=2, loc="center", bbox_to_anchor=(0.5, 0.595), columnspacing=1.5)


def plot_pareto_panel(comparison: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw least latency against the energy limit, for each cost factor, with optimal and with fixed power.

    Args:
        comparison: table of `compare_with_published`.
        ax: where to draw; new axes where None.
    """
    ax = new_panels(1, 3.5, 3.0)[0] if ax is None else ax
    rows = comparison[comparison["quantity"] == "pareto"]
    for factor, policy in product(reversed(FACTOR_STYLES), POLICY_STYLES):
        curve = rows[(rows["cost_factor"] == factor) & (rows["power_policy"] == policy)].sort_values("energy_limit_j")
        color, marker, size = FACTOR_STYLES[factor]
        dash, width, face = POLICY_STYLES[policy][1], *((1.5, color) if policy == "optimal" else (1.0, "white"))
        ax.plot(curve["energy_limit_j"], curve["computed_latency_s"], color=color, linestyle=dash, lw=width)
        edge = "white" if policy == "optimal" else color
        ax.plot(curve["energy_limit_j"], curve["latency_s"], marker, mfc=face, mec=edge, mew=0.7, ms=size, zorder=4)
        last = (curve["energy_limit_j"].iloc[-1], curve["computed_latency_s"].iloc[-1])
        if policy == "optimal":
            label = rf"$\beta = {factor}$"
            ax.annotate(label, last, xytext=(5, 0), textcoords="offset points", va="center", color=color)
    ax.set(xlabel=r"Device energy limit $\epsilon$ [J]", ylabel="Least latency [s]", xlim=(0, 545), ylim=(1.9, 4.75))
    _legend_of_pareto(ax)
    return ax


def _legend_of_pareto(ax: Axes) -> None:
    """Say what lines and markers are, above the curves."""
    from matplotlib.lines import Line2D

    faces = {"optimal": "0.2", "fixed": "white"}
    handles = [
        Line2D([], [], color="0.2", linestyle=dash, marker="o", mfc=faces[policy], ms=4.5, label=label)
        for policy, (label, dash) in POLICY_STYLES.items()
    ]
    ax.legend(handles=handles, ncols=2, loc="upper center", columnspacing=1.5)
