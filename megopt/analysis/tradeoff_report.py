"""What `megopt tradeoff` says of its sweep: tables for people, one JSON object for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.pareto import hypervolume, is_non_dominated
from megopt.analysis.report import rich_table
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.analysis.tradeoff_knee import LONG_RUN, CurveKnee, curve_knees
from megopt.solvers.solution import Status
from megopt.tables.profile import Profile

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

ENERGIES = ("energy_j", "edge_energy_j", "device_energy_j")
MAX_LIMITS_SHOWN = 8


def tables(found: Tradeoff, sweep: Sweep) -> list[Table]:
    """Return the curve, the optimum with its checks, and the hypervolumes as tables."""
    solved = [solver_table(found, sweep), *long_run_tables(found, sweep)]
    return [curve_table(found, sweep), *solved, *hypervolume_tables(found)]


def curve_table(found: Tradeoff, sweep: Sweep) -> Table:
    """Return the curve as a table: fixed policies in one row each, swept ones at a few of their limits and the knee."""
    curve = found.curve
    knees = {(knee.policy, knee.limit) for knee in curve_knees(found, sweep)}
    is_knee = np.array([pair in knees for pair in zip(curve["policy"], curve["limit"], strict=True)], dtype=np.bool_)
    is_shown = curve["limit"].isin(found.limits[_shown(found)]) | ~curve["limit"].isin(found.limits) | is_knee
    held = [name for name in ENERGIES if curve[name].notna().any()]
    header = ["policy", f"limit {sweep.quantity}", "knee", "latency_s ± 95 %", "p95 s", *held]
    shown = zip(curve[is_shown].iterrows(), is_knee[is_shown], strict=True)
    rows = [_curve_row(point, held, "knee" if is_bent else "") for (_, point), is_bent in shown]
    num_traces, num_requests = found.records["trace"].nunique(), int(curve["num_requests"].max())
    title = f"{found.records['profile'].iloc[0]}: means over {num_requests} requests on {num_traces} fading traces"
    if len(found.limits) > MAX_LIMITS_SHOWN:
        title += f"; {MAX_LIMITS_SHOWN} of {len(found.limits)} limits, all are in curve.csv"
    return rich_table(title, [*header, found.metric or "quality", "violations", "outage"], rows)


def _curve_row(point: pd.Series, energies: Sequence[str], knee: str) -> list[str]:
    half = point["latency_ci95_s"]
    return [
        str(point["policy"]),
        "none" if np.isinf(point["limit"]) else f"{point['limit']:.4g}",
        knee,
        _number(point["latency_s"], 3) + ("" if np.isnan(half) else f" ± {half:.3f}"),
        _number(point["latency_p95_s"], 3),
        *(_number(point[name], 1) for name in energies),
        _number(point["quality"], 4),
        _percent(point["violation_rate"]),
        _percent(point["outage_rate"]),
    ]


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _percent(share: float) -> str:
    """Return a share in percent, with a digit where it is small but not 0."""
    return f"{share:.0%}" if share == 0 or share > 0.095 else f"{share:.1%}"


def _shown(found: Tradeoff) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the limits that tables show, evenly picked."""
    return np.unique(np.linspace(0, len(found.limits) - 1, MAX_LIMITS_SHOWN).round().astype(np.int64))


def solver_table(found: Tradeoff, sweep: Sweep) -> Table:
    """Return the optimum over all rows at a few limits: fast path, and the brute force's value as its bound."""
    rows = [
        [
            f"{found.limits[i]:.4g}",
            str(solution.status),
            f"{np.mean(solution.is_feasible):.0%}",
            _number(solution.value, 6),
            _number(solution.bound, 6),
            "-" if np.isnan(solution.gap) else f"{solution.gap:.1e}",
            f"{solution.runtime_s * 1e3:.2f}",
        ]
        for i, solution in ((i, found.solutions[i]) for i in _shown(found))
    ]
    header = [f"limit {sweep.quantity}", "status", "states served", "mean objective", "brute force", "gap", "ms"]
    return rich_table("optimum over all schemes: lower envelope, checked by enumeration", header, rows)


def long_run_tables(found: Tradeoff, sweep: Sweep) -> list[Table]:
    """Return the optimum with the limit on the mean alone, its bound and the price of the limit; none if not solved."""
    if found.long_run is None:
        return []
    curve = found.long_run
    rows = [
        [
            f"{curve.limits[i]:.4g}",
            str(curve.statuses[i]),
            _number(curve.means[i], 6),
            _number(curve.bounds[i], 6),
            f"{curve.prices[i]:.4g}".replace("nan", "-"),
            _number(curve.costs[i, -1], 4),
            str(curve.num_prices[i]),
        ]
        for i in _shown(found)
    ]
    header = [
        f"limit on mean {sweep.quantity}",
        "status",
        "mean objective",
        "bound",
        "price",
        "reached",
        "prices tried",
    ]
    title = (
        f"{LONG_RUN}: limits hold on average; largest gap {curve.gap:.1e}, between the limits {curve.gap_between:.2g}"
    )
    return [rich_table(title, header, rows)]


def hypervolume_tables(found: Tradeoff) -> list[Table]:
    """Return the volume that each swept policy dominates, and its share of the largest; none without swept policies."""
    reference, volumes = _hypervolumes(found.curve[np.isfinite(found.curve["limit"])])
    most = max(volumes.values(), default=0.0)
    if most <= 0.0:
        return []
    rows = [[policy, f"{volume:.6g}", f"{volume / most:.1%}"] for policy, volume in volumes.items()]
    corner = ", ".join(f"{value:.4g}" for value in reference.values())
    return [rich_table(f"hypervolume below ({corner})", ["policy", "objective x limit", "of the largest"], rows)]


def closed_form_tables(facts: dict[str, float]) -> list[Table]:
    """Return the certificate of the region split's closed form as a table; none where it does not apply."""
    rows = [[name.replace("_", " "), f"{value:.2e}"] for name, value in facts.items()]
    title = "closed form of region split, ratio and power continuous"
    return [rich_table(title, ["fact", "value"], rows)] if facts else []


def summary(found: Tradeoff, profile: Profile, sweep: Sweep, nearest: str, files: Sequence[Path]) -> dict[str, Any]:
    """Return the JSON object of the run."""
    reference, volumes = _hypervolumes(found.curve[np.isfinite(found.curve["limit"])])
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
    points = [
        {"limit": limit, "status": str(status), "value": value, "bound": bound, "price": price, "spent": spent}
        for limit, status, value, bound, price, spent in zip(
            curve.limits, curve.statuses, curve.means, curve.bounds, curve.prices, curve.costs[:, -1], strict=True
        )
    ]
    return {"gap": curve.gap, "gap_between": curve.gap_between, "runtime_s": curve.runtime_s, "points": points}


def _hypervolumes(curve: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """Return the reference, the worst of all swept points, and each swept policy's volume below it.

    The axes are objective and limit, both minimised, over the points that keep their limit, so that no policy can beat
    the optimum over all rows. Volumes compare policies of one run only.
    """
    columns = ["objective", "limit"]
    curve = curve[curve["violation_rate"] == 0]
    points = curve[columns].to_numpy(dtype=float)
    finite = points[np.isfinite(points).all(axis=1)]
    if not len(finite):
        return {}, {}
    worst = finite.max(axis=0)
    volumes = {
        str(policy): hypervolume(group[columns].to_numpy(dtype=float), worst)
        for policy, group in curve.groupby("policy", sort=False)
    }
    return dict(zip(columns, map(float, worst), strict=True)), volumes


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


def notes(found: Tradeoff) -> list[str]:
    """Return what the tables do not say: what was left out, and the first limit that not every state can keep."""
    partly = [solution.message for solution in found.solutions if solution.message]
    partly = partly if found.status == Status.PARTLY_INFEASIBLE else []
    outages = found.curve.loc[found.curve["outage_rate"] > 0, "policy"].unique()
    lines = [*found.notes, *partly[:1]]
    problem = found.problems[0]
    if problem.objective != "quality" and not any(limit.quantity == "quality" for limit in problem.limits):
        lines.append(f"no limit on quality is set; set problem.limits.quality to bound {problem.metric or 'it'}")
    if len(outages):
        lines.append(f"requests in outage are left out of the means of {', '.join(outages)}; see the column outage")
    return lines


def complaints(found: Tradeoff, nearest: str) -> list[str]:
    """Return what the user must hear: no limit of the sweep can be kept in any state."""
    return [f"status infeasible: {nearest}"] if found.status == Status.INFEASIBLE else []
