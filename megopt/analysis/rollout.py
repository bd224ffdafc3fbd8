"""Let a policy act on a fading trace and record what every request cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.records import RECORD
from megopt.arrays import FloatArray
from megopt.policies.base import Observation, Policy
from megopt.problem import Problem, ceilings, evaluate, objective, violations
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome
from megopt.units import db_from_linear

if TYPE_CHECKING:
    import pandas as pd


def rollout(
    policy: Policy, name: str, table: ActionTable, link: LinkState, problem: Problem, limit_quantity: str = ""
) -> pd.DataFrame:
    """Return one record per request of `policy` acting on `link` (num_requests,).

    Args:
        policy: chooses rows of `table`.
        name: name of the policy in the records.
        table: the rows.
        link: the link of every request.
        problem: objective and limits against which the outcome is scored.
        limit_quantity: the limit that a sweep varies; its bound goes into the column `limit`.
    """
    rows = policy.act(Observation(link=link))
    chosen = {"scheme": table.scheme[rows], "label": table.label[rows], "row": rows, "kind": table.kind[rows]}
    result = evaluate(table, rows, link, problem.metric)
    return records_of(result, link, problem, limit_quantity, {"profile": table.profile, "policy": name, **chosen})


def records_of(
    result: Outcome, link: LinkState, problem: Problem, limit_quantity: str, names: Mapping[str, object]
) -> pd.DataFrame:
    """Return one record per request of an outcome, scored against `problem`.

    Args:
        result: outcome of the requests, fields of shape (num_requests,).
        link: the link of every request.
        problem: objective and limits against which the outcome is scored.
        limit_quantity: the limit that a sweep varies; its bound goes into the column `limit`.
        names: the columns profile, policy, scheme, label, row and kind: values or arrays of shape (num_requests,).
    """
    import pandas as pd

    bounds = [limit.bound for limit in problem.limits if limit.quantity == limit_quantity]
    columns = {
        **names,
        "limit_quantity": limit_quantity,
        "limit": bounds[0] if bounds else np.inf,
        "trace": 0,
        "request": np.arange(len(result.latency_s)),
        "snr_db": db_from_linear(link.snr),
        **{field.name: getattr(result, field.name) for field in fields(result)},
        "objective": objective(result, problem),
        "violation": np.max(violations(result, problem) / _scale(problem), axis=-1, initial=0.0),
    }
    return pd.DataFrame(columns)[[column.name for column in RECORD]]


def _scale(problem: Problem) -> FloatArray:
    """Return what an excess over each limit is relative to, shape (num_limits,)."""
    bounds = np.abs(ceilings(problem))
    return np.where(np.isfinite(bounds) & (bounds > 0.0), bounds, 1.0)


MEANS = ("latency_s", "energy_j", "edge_energy_j", "device_energy_j", "quality", "objective")


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per policy and limit.

    Means are over the requests that were served, that is, not in outage; the share in outage stands in `outage_rate`.
    A mean over any value that was not measured is NaN. `latency_ci95_s` is half the 95 % interval of the mean latency
    over the means of the traces (Student's t); NaN with fewer than two. Median and 95th percentile count outages as
    inf.
    """
    import pandas as pd

    keys = ["policy", "limit_quantity", "limit"]
    rows = [dict(zip(keys, key, strict=True)) | _summary(group) for key, group in records.groupby(keys, sort=False)]
    return pd.DataFrame(rows)


def _summary(group: pd.DataFrame) -> dict[str, object]:
    served = group[np.isfinite(group["latency_s"])]
    latency = group["latency_s"].to_numpy(dtype=float)
    return {
        **{name: served[name].mean(skipna=False) if len(served) else np.nan for name in MEANS},
        "latency_ci95_s": _half_interval(served.groupby("trace")["latency_s"].mean().to_numpy(dtype=float)),
        "latency_median_s": float(np.quantile(latency, 0.5, method="inverted_cdf")),
        "latency_p95_s": float(np.quantile(latency, 0.95, method="inverted_cdf")),
        "outage_rate": 1.0 - len(served) / len(group),
        "violation_rate": float(np.mean(group["violation"] > 0)),
        "num_requests": len(group),
        "kind": "+".join(sorted({kind for text in group["kind"].unique() for kind in text.split("+")})),
        "rows_used": int(group["label"].nunique()),
    }


def _half_interval(trace_means: FloatArray) -> float:
    """Return half the 95 % interval of the mean of independent trace means; NaN with fewer than two."""
    from scipy.stats import t as student

    num = len(trace_means)
    if num < 2:
        return float("nan")
    return float(student.ppf(0.975, num - 1) * np.std(trace_means, ddof=1) / np.sqrt(num))
