"""What the records of one run come to: the means that a search compares and figures show as one point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.records import RECORD
from megopt.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

RATES = ("outage_rate", "violation_rate")
OBJECTIVES = (*(column.name for column in RECORD if column.dtype == "float" and column.name != "limit"), *RATES)
"""Quantities that a run comes to: columns whose means over the served requests are taken, and shares of requests."""


def measured(records: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Return quantities of the records of one policy under one limit, as `megopt.analysis.rollout.summarise` has them.

    Args:
        records: the records.
        names: of `OBJECTIVES`.

    Raises:
        ConfigError: if there are several policies or limits, whose means would be mixed.
    """
    for name in ("policy", "limit"):
        if len(records[name].unique()) > 1:
            shown = ", ".join(str(value) for value in records[name].unique()[:4])
            message = (
                f"search: records of several values of {name} ({shown}); expected one; choose one {name} for a run"
            )
            raise ConfigError(message)
    is_served = np.isfinite(records["latency_s"].to_numpy(dtype=float))
    rates = {
        "outage_rate": 1.0 - is_served.mean() if len(records) else np.nan,
        "violation_rate": (records["violation"] > 0).mean() if len(records) else np.nan,
    }
    served = records[is_served]
    return {
        name: float(rates[name] if name in rates else served[name].mean(skipna=False) if len(served) else np.nan)
        for name in names
    }
