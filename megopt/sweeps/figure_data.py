"""The means behind the figures of a sweep, by SQL over its records: a row per setting, policy and limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.sweeps.query import Results, served_mean
from megopt.system.outcome import COST_QUANTITIES
from megopt.tables.schema import METRIC_SENSES, METRICS

if TYPE_CHECKING:
    import pandas as pd

MEANS = ("latency_s", *COST_QUANTITIES[1:], "quality", "objective", "uplink_s", "edge_s", "downlink_s", "device_s")
POOLED = ("profile", "policy", "seed", "problem.sweep.limits")
"""Axes that tell no settings apart: they are a column of the records, or more of the same."""
FIRST = "optimal"
"""The policy that comes first, and so has the same colour in all figures."""
OUTAGE = 0.01
"""Share of requests in outage above which a mean is not comparable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """The means of one profile in one sweep.

    Attributes:
        sweep: its name.
        profile: the profile.
        points: a row per policy, setting and limit: policy, setting, limit_quantity, limit, the means of `MEANS` over
            the served requests, latency_ci95_s and quality_ci95 (half the 95 % interval over the traces), outage_rate,
            violation_rate.
        settings: keys and values that tell a setting apart from the others, by its text, ascending.
        metric: what the word quality stands for; empty if unknown.
        kinds: provenance kinds behind the records.
    """

    sweep: str
    profile: str
    points: pd.DataFrame
    settings: Mapping[str, Mapping[str, str]]
    metric: str
    kinds: Sequence[str]

    @property
    def note(self) -> str:
        """The corner note of a figure: sweep, profile and where the numbers come from."""
        quality = "" if np.isfinite(self.points["quality"]).any() else "; quality not measured"
        return f"{self.sweep}; {self.profile}; data: {', '.join(self.kinds)}{quality}"

    @property
    def objective(self) -> str:
        """The quantity that the policies aimed at, found by its values; latency_s where none fits."""
        aim = self.points["objective"].to_numpy(dtype=float)
        for name in ("quality", *COST_QUANTITIES):
            values = self.points[name].to_numpy(dtype=float)
            if np.isfinite(values).any() and any(np.allclose(aim, s * values, equal_nan=True) for s in (1.0, -1.0)):
                return name
        return "latency_s"

    @property
    def sense(self) -> int:
        """+1 where more quality is better, -1 where less is."""
        return METRIC_SENSES.get(self.metric, 1)

    @property
    def quality_label(self) -> str:
        """The name of the quality metric with its unit."""
        if self.metric not in METRICS:
            return "Quality"
        unit = METRICS[self.metric].unit
        return self.metric.removesuffix("_db").upper() + (f" [{unit}]" if unit != "1" else "")

    def of_setting(self, setting: str) -> pd.DataFrame:
        """Return the points of one setting, policy by policy, limits ascending."""
        return self.points[self.points["setting"] == setting]


def means_of(results: Results, sweep: str) -> list[Means]:
    """Return the means of each profile of a sweep with records; served requests alone count, as in `summarise`."""
    runs = results.ask("SELECT run, overrides, config::JSON AS config FROM runs WHERE sweep = ? ORDER BY run", [sweep])
    settings = [_setting(overrides) for overrides in runs["overrides"]]
    texts = runs.assign(setting=[_text(each) for each in settings])[["run", "setting"]]
    by_text = {_text(each): each for each in settings}
    metric = _metric(str(runs["config"].iloc[0])) if len(runs) else ""
    results.connection.register("settings_of_runs", texts)
    try:
        traces = results.ask(_TRACES, [sweep])
        kinds = results.ask("SELECT profile, kind FROM records WHERE sweep = ? GROUP BY 1, 2 ORDER BY 1, 2", [sweep])
    finally:
        results.connection.unregister("settings_of_runs")
    return [
        Means(
            sweep=sweep,
            profile=str(profile),
            points=_points(group),
            settings={text: by_text[text] for text in sorted(group["setting"].unique(), key=_by_number(by_text))},
            metric=metric,
            kinds=sorted({kind for text in kinds[kinds["profile"] == profile]["kind"] for kind in text.split("+")}),
        )
        for profile, group in traces.groupby("profile", sort=True)
    ]


_TRACES = f"""
SELECT profile, setting, policy, limit_quantity, "limit", run, trace, count(*) AS num,
  count(*) FILTER (isfinite(latency_s)) AS num_served, avg((violation > 0)::INT) AS violation_rate,
  {", ".join(f"{served_mean(name)} AS {name}" for name in MEANS)}
FROM records JOIN settings_of_runs USING (run) WHERE sweep = ? GROUP BY ALL ORDER BY ALL
"""
"""Means of every trace: intervals are over traces, which are independent."""


def _points(traces: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    keys = ["setting", "policy", "limit_quantity", "limit"]
    rows = [dict(zip(keys, key, strict=True)) | _point(group) for key, group in traces.groupby(keys, sort=True)]
    points = pd.DataFrame(rows)
    ranked = points.assign(is_fixed=~np.isfinite(points["limit"]), is_other=points["policy"] != FIRST)
    order = ranked.sort_values(["is_other", "is_fixed", "policy", "setting", "limit"], kind="stable").index
    return points.loc[order].reset_index(drop=True)


def _point(traces: pd.DataFrame) -> dict[str, float]:
    served = traces[traces["num_served"] > 0]
    weights = served["num_served"].to_numpy(dtype=float)
    mean = {
        name: float(np.average(served[name].to_numpy(dtype=float), weights=weights)) if len(served) else np.nan
        for name in MEANS
    }
    return mean | {
        "latency_ci95_s": _half_interval(served["latency_s"].to_numpy(dtype=float)),
        "quality_ci95": _half_interval(served["quality"].to_numpy(dtype=float)),
        "outage_rate": 1.0 - weights.sum() / traces["num"].sum(),
        "violation_rate": float(np.average(traces["violation_rate"], weights=traces["num"])),
    }


def _half_interval(trace_means: Any) -> float:
    """Return half the 95 % interval of the mean of independent trace means; NaN with fewer than two."""
    from scipy.special import stdtrit

    num = len(trace_means)
    return float(stdtrit(num - 1, 0.975) * np.std(trace_means, ddof=1) / np.sqrt(num)) if num > 1 else float("nan")


def _setting(overrides: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=")[::2] for text in overrides]
    return {key: value for key, value in pairs if key not in POOLED}


def _text(setting: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in setting.items())


def _by_number(settings: Mapping[str, Mapping[str, str]]) -> Any:
    """Return a key to sort settings by their values, numbers by size."""

    def key(text: str) -> list[tuple[float, str]]:
        return [(number_of(value), value) for value in settings[text].values()]

    return key


def number_of(text: str) -> float:
    """Return the number that a value is; inf where it is none."""
    try:
        return float(text)
    except ValueError:
        return float("inf")


def _metric(config: str) -> str:
    import json

    problem = json.loads(config).get("problem") or {}
    metric = str(problem.get("metric", ""))
    return metric if metric in METRICS else ""
