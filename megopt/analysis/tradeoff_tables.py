"""The tables of `megopt tradeoff`: the curve, the optimum with its checks, long-run limits, hypervolumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.pareto import hypervolume
from megopt.analysis.report import rich_table
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.analysis.tradeoff_knee import LONG_RUN, curve_knees

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
            "-" if np.isnan(found.fresh_excesses[i]) else f"{found.fresh_excesses[i]:.2%}",
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
        "excess on fresh fading",
        "prices tried",
    ]
    title = (
        f"{LONG_RUN}: limits hold on average; largest gap {curve.gap:.1e}, between the limits {curve.gap_between:.2g}"
    )
    return [rich_table(title, header, rows)]


def hypervolume_tables(found: Tradeoff) -> list[Table]:
    """Return the volume that each swept policy dominates, and its share of the largest; none without swept policies."""
    reference, volumes = hypervolumes(found.curve[np.isfinite(found.curve["limit"])])
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


def hypervolumes(curve: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
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
