"""Let a policy act on a fading trace and record what every request cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.records import RECORD
from megopt.policies.base import Observation, Policy
from megopt.problem import Problem, evaluate, objective, violations
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
        "request": np.arange(len(result.latency_s)),
        "snr_db": db_from_linear(link.snr),
        **{field.name: getattr(result, field.name) for field in fields(result)},
        "objective": objective(result, problem),
        "violation": np.max(violations(result, problem), axis=-1, initial=0.0),
    }
    return pd.DataFrame(columns)[[column.name for column in RECORD]]


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per policy and limit: means, the 95 % interval of the latency, the violation rate.

    The interval is 1.96 standard errors over requests of one trace. A mean with an outage (infinite latency) is inf.
    """
    groups = records.groupby(["policy", "limit_quantity", "limit"], sort=False, dropna=False)
    means = groups[["latency_s", "energy_j", "edge_energy_j", "device_energy_j", "quality", "objective"]].mean()
    with np.errstate(invalid="ignore"):
        spread: pd.Series = groups["latency_s"].std(ddof=1).fillna(0.0) / np.sqrt(groups.size())
    means["latency_ci95_s"] = 1.96 * spread
    means["violation_rate"] = groups["violation"].agg(lambda violation: float(np.mean(violation > 0)))
    means["num_requests"] = groups.size()
    means["kind"] = groups["kind"].agg(lambda kinds: "+".join(sorted({k for text in kinds for k in text.split("+")})))
    means["rows_used"] = groups["label"].nunique()
    return means.reset_index()
