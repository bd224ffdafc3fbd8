"""Predictions held against measurements: records of served requests, and errors per policy and term.

    error of a term = |predicted - measured|            total, relative: |predicted - measured| / measured
    link = downlink + uplink + round trips              runtime = total - edge - link - device

The runtime is predicted from earlier requests of the same device, and the speed of the models too where that is asked
for; what the table alone would have predicted is kept beside it.

A record has the columns of `megopt.analysis.records.RECORD`, which hold what was measured, and those of `PREDICTED` and
`SERVED` beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.rollout import records_of
from megopt.arrays import FloatArray
from megopt.problem import Problem, violations
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd

    from megopt.live.parity import Served
    from megopt.schemes.action_table import ActionTable

FIELDS = (
    "latency_s",
    "edge_s",
    "device_s",
    "downlink_s",
    "uplink_s",
    "device_energy_j",
    "edge_energy_j",
    "payload_bits",
)
PREDICTED = tuple(f"predicted_{name}" for name in FIELDS)
"""Columns of predictions, named after the measured ones."""
SERVED = (
    "level_db",
    "waited_s",
    "edge_steps",
    "deadline_s",
    "predicted_violation",
    "predicted_runtime_s",
    "table_latency_s",
    "probability",
    "shadow_row",
    "energy_source",
    "edge_energy_source",
    "notes",
    "prompt",
)
"""Columns that only served requests have; shadow_row is -1 where nobody was asked in the shadow, or failed."""
_TIMES = ("latency_s", "edge_s", "device_s", "downlink_s", "uplink_s")
TERMS = ("edge", "link", "device", "runtime", "total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """How far the predictions of some requests were off.

    Attributes:
        num_requests: requests [1].
        median_abs_error: of the total, relative to the measured one [1].
        p95_abs_error: 95th percentile of the same [1].
        table_median_abs_error: median of the same for predictions by the table alone [1].
        table_p95_abs_error: 95th percentile of the same [1].
        terms_s: by term: median predicted, median measured and median absolute error [s].
        device_energy_j: the same three of the device's energy [J]; NaN where it was not metered.
        edge_energy_j: the same three of the edge's energy [J]; likewise.
        limits_kept_share: share of requests that kept all limits and the deadline [1].
        num_noted: requests that did not go as decided [1].
    """

    num_requests: int
    median_abs_error: float
    p95_abs_error: float
    table_median_abs_error: float
    table_p95_abs_error: float
    terms_s: Mapping[str, tuple[float, float, float]]
    device_energy_j: tuple[float, float, float]
    edge_energy_j: tuple[float, float, float]
    limits_kept_share: float
    num_noted: int

    @property
    def limits_kept(self) -> bool:
        """Whether every request kept all limits and the deadline."""
        return self.limits_kept_share == 1.0


def parity_record(
    predicted: Outcome, measured: Outcome, link: LinkState, problem: Problem, names: Mapping[str, object]
) -> pd.DataFrame:
    """Return the record of one served request.

    Args:
        predicted: fields of shape (1,).
        measured: fields of shape (1,).
        link: that it met, fields of shape (1,).
        problem: objective and limits against which both are scored.
        names: the columns profile, policy, scheme, label, row, kind, trace, request, and those of `SERVED`.
    """
    known = {name: names[name] for name in ("profile", "policy", "scheme", "label", "row", "kind")}
    record = records_of(measured, link, problem, "", known)
    expected = {f"predicted_{name}": getattr(predicted, name) for name in FIELDS}
    excess = np.max(violations(predicted, problem), axis=-1, initial=0.0)
    own = {name: names[name] for name in ("trace", "request", *SERVED) if name != "predicted_violation"}
    return record.assign(**{**own, **expected, "predicted_violation": excess})


def served_record(served: Served, table: ActionTable, problem: Problem) -> pd.DataFrame:
    """Return the record of one request of `megopt.live.parity.serve`; `table` holds its row."""
    cell, found, prompt = served.cell, served.found, served.cell.prompts[served.request]
    names = {
        "profile": table.profile,
        "policy": cell.policy,
        "scheme": table.scheme[found.row],
        "label": table.label[found.row],
        "row": found.row,
        "kind": table.kind[found.row],
        "trace": cell.number,
        "request": served.request,
        "level_db": cell.level_db,
        "waited_s": served.waited_s,
        "edge_steps": found.edge_steps,
        "deadline_s": prompt.deadline_s,
        "predicted_runtime_s": found.predicted_runtime_s,
        "table_latency_s": found.table_latency_s,
        "probability": found.probability,
        "shadow_row": -1 if found.shadow_row is None else found.shadow_row,
        "energy_source": found.energy_source,
        "edge_energy_source": "not_measured" if found.result is None else found.result.energy_source,
        "notes": "; ".join(found.notes),
        "prompt": prompt.text,
    }
    return parity_record(found.predicted, found.measured, cell.link(served.request), problem, names)


def terms_s(records: pd.DataFrame, *, of: str) -> dict[str, FloatArray]:
    """Return the terms of the latency [s] by name, each of shape (num_requests,).

    Args:
        records: of `parity_record`.
        of: "predicted" or "measured".
    """
    prefix = "predicted_" if of == "predicted" else ""
    runtime_s = records["predicted_runtime_s"].to_numpy(dtype=float)
    return _terms_s({name: records[f"{prefix}{name}"].to_numpy(dtype=float) for name in _TIMES}, of, runtime_s)


def outcome_terms_s(result: Outcome, of: str, predicted_runtime_s: float) -> dict[str, FloatArray]:
    """Return the same of an outcome, each of shape (num_requests,)."""
    return _terms_s({name: getattr(result, name) for name in _TIMES}, of, np.array([predicted_runtime_s]))


def _terms_s(times_s: Mapping[str, FloatArray], of: str, predicted_runtime_s: FloatArray) -> dict[str, FloatArray]:
    total, edge, device, down, up = (times_s[name] for name in _TIMES)
    # what is predicted and is neither edge nor device nor runtime is the link's, round trips included
    link = total - edge - device - predicted_runtime_s if of == "predicted" else down + up
    return {"edge": edge, "link": link, "device": device, "runtime": total - edge - device - link, "total": total}


def relative_error(records: pd.DataFrame, by: str = "predicted_latency_s") -> FloatArray:
    """Return (predicted - measured) / measured of the total latency [1], shape (num_requests,).

    Args:
        records: of `parity_record`.
        by: column of the prediction; "table_latency_s" for that of the table alone.
    """
    measured = records["latency_s"].to_numpy(dtype=float)
    return np.asarray((records[by].to_numpy(dtype=float) - measured) / measured)


def errors(records: pd.DataFrame) -> Errors:
    """Return how far the predictions of `records` were off, all of them together."""
    off, table_off = (np.abs(relative_error(records, by)) for by in ("predicted_latency_s", "table_latency_s"))
    predicted, measured = terms_s(records, of="predicted"), terms_s(records, of="measured")
    device_j, edge_j = (
        [records[f"{of}{side}_energy_j"].to_numpy(dtype=float) for of in ("predicted_", "")]
        for side in ("device", "edge")
    )
    is_kept = (records["violation"] <= 0.0) & (records["latency_s"] <= records["deadline_s"])
    return Errors(
        num_requests=len(records),
        median_abs_error=float(np.median(off)),
        p95_abs_error=float(np.quantile(off, 0.95)),
        table_median_abs_error=float(np.median(table_off)),
        table_p95_abs_error=float(np.quantile(table_off, 0.95)),
        terms_s={term: _three(predicted[term], measured[term]) for term in TERMS},
        device_energy_j=_three(*device_j),
        edge_energy_j=_three(*edge_j),
        limits_kept_share=float(is_kept.mean()),
        num_noted=int((records["notes"] != "").sum()),
    )


def errors_by(records: pd.DataFrame, column: str) -> dict[Any, Errors]:
    """Return the errors of each value of a column, in their order of appearance."""
    return {key: errors(group) for key, group in records.groupby(column, sort=False)}


def _three(predicted: FloatArray, measured: FloatArray) -> tuple[float, float, float]:
    return float(np.median(predicted)), float(np.median(measured)), float(np.median(np.abs(predicted - measured)))
