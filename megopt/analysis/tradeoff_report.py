"""What `megopt tradeoff` says of its sweep: lines for people, one JSON object for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.pareto import is_non_dominated
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.analysis.tradeoff_knee import CurveKnee, curve_knees
from megopt.analysis.tradeoff_tables import hypervolumes
from megopt.solvers.solution import Status
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    import pandas as pd


def summary(found: Tradeoff, profile: Profile, sweep: Sweep, nearest: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return the JSON object of the run."""
    reference, volumes = hypervolumes(found.curve[np.isfinite(found.curve["limit"])])
    return {
        "profile": profile.name,
        "parameters": {name: parameter.value for name, parameter in profile.provenance.parameters.items()},
        "kinds": "+".join(sorted({kind for text in found.records["kind"].unique() for kind in text.split("+")})),
        "status": str(found.status),
        "nearest_feasible_limit": nearest,
        "limit_quantity": sweep.quantity,
        "metric": found.metric,
        "hypervolume": volumes,
        "hypervolume_reference": reference,
        "knees": [asdict(knee) for knee in curve_knees(found, sweep)],
        "long_run": _long_run(found),
        "curve": found.curve.to_dict("records"),
        "non_dominated": _front(found.curve, sweep),
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


def _long_run(found: Tradeoff) -> dict[str, Any] | None:
    """Return the long-run curve as plain data; None where it was not solved."""
    if found.long_run is None:
        return None
    curve = found.long_run
    columns = {
        "limit": curve.limits,
        "status": [str(status) for status in curve.statuses],
        "value": curve.means,
        "bound": curve.bounds,
        "price": curve.prices,
        "spent": curve.costs[:, -1],
        "fresh_excess": found.fresh_excesses,
    }
    points = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"gap": curve.gap, "gap_between": curve.gap_between, "runtime_s": curve.runtime_s, "points": points}


def _front(curve: pd.DataFrame, sweep: Sweep) -> list[dict[Any, Any]]:
    """Return the points, of any policy, that no other beats in both objective and limited quantity."""
    is_kept = is_non_dominated(curve[["objective", sweep.quantity]].to_numpy(dtype=float))
    columns = list(dict.fromkeys(["policy", "limit", "objective", sweep.quantity]))
    front: list[dict[Any, Any]] = curve.loc[is_kept, columns].to_dict("records")
    return front


def headline(found: Tradeoff, sweep: Sweep) -> str:
    """Return one line: the span of the optimal curve."""
    values = [solution.value for solution in found.solutions if solution.status != Status.INFEASIBLE]
    if not values:
        return f"infeasible at every {sweep.quantity}"
    return (
        f"optimum {min(values):.3f} to {max(values):.3f} over {sweep.quantity} "
        f"{found.limits[0]:.4g} to {found.limits[-1]:.4g}"
    )


def knee_lines(found: Tradeoff, sweep: Sweep) -> list[str]:
    """Return one line per knee: where the curve bends, and how sharply."""
    return [_knee_line(knee, sweep, found.metric) for knee in curve_knees(found, sweep)]


def _knee_line(knee: CurveKnee, sweep: Sweep, metric: str) -> str:
    return (
        f"knee of {knee.policy}: limit {knee.limit:.4g}, mean {sweep.quantity} {knee.limited:.4g}, mean objective "
        f"{knee.objective:.4g}{f' ({metric})' if metric else ''}, bulge {knee.bulge:.2f}"
    )


def notes(found: Tradeoff, sweep: Sweep) -> list[str]:
    """Return what the tables do not say: what was left out, and the first limit that not every state can keep."""
    outages = found.curve.loc[found.curve["outage_rate"] > 0, "policy"].unique()
    lines = [*found.notes, *_unkept(found, sweep)]
    problem = found.problems[0]
    if problem.objective != "quality" and not any(limit.quantity == "quality" for limit in problem.limits):
        lines.append(f"no limit on quality is set; set problem.limits.quality to bound {problem.metric or 'it'}")
    if len(outages):
        lines.append(f"requests in outage are left out of the means of {', '.join(outages)}; see the column outage")
    return lines


def _unkept(found: Tradeoff, sweep: Sweep) -> list[str]:
    """Return what stands in the way at the first swept limit that some state cannot keep, and how many more are so."""
    said = [i for i, solution in enumerate(found.solutions) if solution.message]
    if found.status != Status.PARTLY_INFEASIBLE or not said:
        return []
    first, more = said[0], f"; {len(said) - 1} more swept limits are out of reach of some state" if said[1:] else ""
    return [f"at {sweep.quantity} = {found.limits[first]:.4g}: {found.solutions[first].message}{more}"]


def complaints(found: Tradeoff, sweep: Sweep, nearest: str) -> list[str]:
    """Return what the user must hear: no limit of the sweep can be kept in any state."""
    if found.status != Status.INFEASIBLE:
        return []
    return [f"status infeasible, also at {sweep.quantity} = {found.limits[-1]:.4g}, the loosest swept limit: {nearest}"]
