"""What `megopt tradeoff` says of its sweep: tables for people, one JSON object for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.pareto import hypervolume, is_non_dominated
from megopt.analysis.report import rich_table
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.solvers.solution import Status
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

ENERGIES = ("energy_j", "edge_energy_j", "device_energy_j")
MAX_LIMITS_SHOWN = 8


def curve_table(found: Tradeoff, sweep: Sweep) -> Table:
    """Return the curve as a table: fixed policies in one row each, swept ones at a few of their limits."""
    curve = found.curve
    shown = np.unique(np.linspace(0, len(found.limits) - 1, MAX_LIMITS_SHOWN).round().astype(int))
    is_shown = curve["limit"].isin(found.limits[shown]) | ~curve["limit"].isin(found.limits)
    held = [name for name in ENERGIES if curve[name].notna().any()]
    header = ["policy", f"limit {sweep.quantity}", "latency_s ± 95 %", *held, "quality", "violations", "rows used"]
    rows = []
    for _, point in curve[is_shown].iterrows():
        limit = "none" if np.isinf(point["limit"]) else f"{point['limit']:.4g}"
        latency = f"{point['latency_s']:.3f} ± {point['latency_ci95_s']:.3f}"
        quality = "-" if np.isnan(point["quality"]) else f"{point['quality']:.4f}"
        energies = [f"{point[name]:.1f}" for name in held]
        rows.append(
            [
                point["policy"],
                limit,
                latency,
                *energies,
                quality,
                f"{point['violation_rate']:.0%}",
                str(point["rows_used"]),
            ]
        )
    title = f"{curve_profile(found)}: mean over {int(curve['num_requests'].max())} requests on one fading trace"
    return rich_table(title, header, rows)


def curve_profile(found: Tradeoff) -> str:
    """Return the name of the profile that the records come from."""
    return str(found.records["profile"].iloc[0])


def solver_table(found: Tradeoff, sweep: Sweep) -> Table:
    """Return status, value, bound and gap of the exact optimum over all rows, at a few limits."""
    shown = np.unique(np.linspace(0, len(found.limits) - 1, MAX_LIMITS_SHOWN).round().astype(int))
    rows = [
        [
            f"{found.limits[i]:.4g}",
            solution.solver,
            str(solution.status),
            f"{np.mean(solution.is_feasible):.0%}",
            f"{solution.value:.6g}",
            f"{solution.bound:.6g}",
            f"{solution.gap:.1e}",
            f"{solution.runtime_s * 1e3:.2f}",
        ]
        for i, solution in ((i, found.solutions[i]) for i in shown)
    ]
    header = [f"limit {sweep.quantity}", "solver", "status", "states served", "objective", "bound", "gap", "ms"]
    return rich_table("optimum over all schemes", header, rows)


def closed_form_tables(facts: dict[str, float]) -> list[Table]:
    """Return the certificate of the region split's closed form as a table; none where it does not apply."""
    rows = [[name.replace("_", " "), f"{value:.2e}"] for name, value in facts.items()]
    return (
        [rich_table("closed form of region split, ratio and power continuous", ["fact", "value"], rows)]
        if facts
        else []
    )


def summary(found: Tradeoff, profile: Profile, sweep: Sweep, nearest: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return the JSON object of the run."""
    optimal = found.curve[np.isfinite(found.curve["limit"])]
    return {
        "profile": profile.name,
        "kinds": "+".join(sorted({kind for text in found.records["kind"].unique() for kind in text.split("+")})),
        "status": str(found.status),
        "nearest_feasible_limit": nearest,
        "limit_quantity": sweep.quantity,
        "hypervolume": _hypervolume(optimal, sweep),
        "curve": found.curve.to_dict("records"),
        "solutions": [
            {
                "limit": float(limit),
                "solver": solution.solver,
                "status": str(solution.status),
                "value": solution.value,
                "bound": solution.bound,
                "gap": solution.gap,
                "runtime_s": solution.runtime_s,
                "message": solution.message,
            }
            for limit, solution in zip(found.limits, found.solutions, strict=True)
        ],
        "notes": list(found.notes),
        "files": [str(path) for path in files],
    }


def _hypervolume(curve: pd.DataFrame, sweep: Sweep) -> dict[str, float]:
    """Return the hypervolume of each swept policy in (objective, limited quantity), below the worst of all points."""
    if sweep.quantity not in curve:
        return {}
    columns = ["objective", sweep.quantity]
    points = curve[columns].to_numpy(dtype=float)
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        return {}
    return {
        str(policy): hypervolume(group[columns].to_numpy(dtype=float), finite.max(axis=0))
        for policy, group in curve.groupby("policy", sort=False)
    }


def non_dominated(curve: pd.DataFrame, energy: str) -> pd.DataFrame:
    """Return the points of the curve that no other point beats in both latency and `energy`."""
    return curve[is_non_dominated(curve[["latency_s", energy]].to_numpy(dtype=float))]


def headline(found: Tradeoff, sweep: Sweep) -> str:
    """Return one line: the span of the optimal curve."""
    values = [solution.value for solution in found.solutions if solution.status != Status.INFEASIBLE]
    if not values:
        return f"infeasible at every {sweep.quantity}"
    return (
        f"optimum {min(values):.3f} to {max(values):.3f} over {sweep.quantity} "
        f"{found.limits[0]:.4g} to {found.limits[-1]:.4g}"
    )


def complaints(found: Tradeoff, nearest: str) -> list[str]:
    """Return what the user must hear: no limit of the sweep can be kept in any state."""
    if found.status != Status.INFEASIBLE:
        return []
    return [f"status infeasible: {nearest}"]
