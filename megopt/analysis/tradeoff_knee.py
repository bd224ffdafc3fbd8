"""Where the curves of a trade-off bend: the knee of every swept policy and of the long-run optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.analysis.knee import find_knee
from megopt.analysis.tradeoff import Sweep, Tradeoff
from megopt.solvers.average_limits_curve import LongRunCurve

LONG_RUN = "long-run optimum"
"""Name of the curve with limits on means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveKnee:
    """The knee of one curve.

    Attributes:
        policy: name of the curve.
        limit: the limit at the knee [unit of the limited quantity].
        limited: mean of the limited quantity there [its unit].
        objective: mean of the objective there, as it is reported [its unit].
        bulge: how sharp the knee is, see `knee.Knee` [1].
    """

    policy: str
    limit: float
    limited: float
    objective: float
    bulge: float


def curve_knees(found: Tradeoff, sweep: Sweep) -> list[CurveKnee]:
    """Return the knee of each swept policy, over the points that keep their limits, and of the long-run optimum.

    Curves are those of the figure: mean of the limited quantity against mean objective. A straight one has no knee.
    """
    curve, objective = found.curve, found.problems[0].objective
    knees = []
    for policy, group in curve[np.isfinite(curve["limit"])].groupby("policy", sort=False):
        kept = group[group["violation_rate"] == 0]
        knee = find_knee(kept[[sweep.quantity, "objective"]].to_numpy(dtype=float))
        if knee is not None:
            point = kept.iloc[knee.index]
            knees.append(
                CurveKnee(
                    policy=str(policy),
                    limit=float(point["limit"]),
                    limited=float(point[sweep.quantity]),
                    objective=float(point[objective]),
                    bulge=knee.bulge,
                )
            )
    return knees + ([] if found.long_run is None else _of_long_run(found.long_run))


def _of_long_run(curve: LongRunCurve) -> list[CurveKnee]:
    spent = curve.costs[:, -1]
    knee = find_knee(np.column_stack([np.where(curve.is_feasible, spent, np.nan), curve.sense * curve.means]))
    if knee is None:
        return []
    limit, value = float(curve.limits[knee.index]), float(curve.means[knee.index])
    return [
        CurveKnee(policy=LONG_RUN, limit=limit, limited=float(spent[knee.index]), objective=value, bulge=knee.bulge)
    ]
