"""The means behind the figures of a sweep, by SQL over its records: a row per setting, policy and limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.sweeps.aggregates import served_mean
from megopt.sweeps.query import Results
from megopt.system.outcome import COST_QUANTITIES
from megopt.tables.schema import METRIC_SENSES, METRICS

if TYPE_CHECKING:
    import pandas as pd

MEANS = ("latency_s", *COST_QUANTITIES[1:], "quality", "objective", "uplink_s", "edge_s", "downlink_s", "device_s")
LIMITS = "problem.sweep.limits"
"""Key of the swept limits of a run."""
POOLED = ("profile", "policy", "seed", LIMITS)
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
        settings: keys and values that tell a setting apart from the others, by its text, ascending; what all runs share
            is left out, and what only sets the limit.
        runs: names of the runs of each setting.
        metric: what the word quality stands for; empty if unknown.
        kinds: provenance kinds behind the records.
    """

    sweep: str
    profile: str
    points: pd.DataFrame
    settings: Mapping[str, Mapping[str, str]]
    runs: Mapping[str, Sequence[str]]
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

    @property
    def middle(self) -> str:
        """The setting in the middle, whose policies have the most limits; empty where there is no record."""
        limits = self.points.groupby("setting")["limit"].nunique()
        most = [text for text in self.settings if text in limits and limits[text] == limits.max()]
        return most[len(most) // 2] if most else ""

    def of_setting(self, setting: str) -> pd.DataFrame:
        """Return the points of one setting, policy by policy, limits ascending."""
        return self.points[self.points["setting"] == setting]


def means_of(results: Results, sweep: str) -> list[Means]:
    """Return the means of each profile of a sweep with records; served requests alone count, as in `summarise`."""
    runs = results.ask("SELECT run, overrides, config::JSON AS config FROM runs WHERE sweep = ? ORDER BY run", [sweep])
    traces = results.ask(_TRACES, [sweep])
    kinds = results.ask("SELECT profile, kind FROM records WHERE sweep = ? GROUP BY 1, 2 ORDER BY 1, 2", [sweep])
    by_run = {run: _varied(overrides) for run, overrides in zip(runs["run"], runs["overrides"], strict=True)}
    configs = dict(zip(runs["run"], runs["config"], strict=True))
    return [
        _means(sweep, str(profile), group, by_run, str(configs[group["run"].iloc[0]]), kinds)
        for profile, group in traces.groupby("profile", sort=True)
    ]


def _means(
    sweep: str,
    profile: str,
    traces: pd.DataFrame,
    by_run: Mapping[str, Mapping[str, str]],
    config: str,
    kinds: pd.DataFrame,
) -> Means:
    keys = _keys_apart(traces, by_run)
    apart = {run: {key: by_run[run][key] for key in keys if key in by_run[run]} for run in traces["run"].unique()}
    by_text = {_text(each): each for each in apart.values()}
    traces = traces.assign(setting=[_text(apart[run]) for run in traces["run"]])
    if not any(LIMITS in by_run[run] for run in apart):
        traces = with_common_limits(traces)
    return Means(
        sweep=sweep,
        profile=profile,
        points=_points(traces),
        settings={text: by_text[text] for text in sorted(by_text, key=_by_number(by_text))},
        runs={str(text): sorted(own["run"].unique()) for text, own in traces.groupby("setting")},
        metric=_metric(config),
        kinds=sorted({kind for text in kinds[kinds["profile"] == profile]["kind"] for kind in text.split("+")}),
    )


def with_common_limits(traces: pd.DataFrame) -> pd.DataFrame:
    """Return traces whose runs found limits of their own, with the mean of the first limits, of the second ones, ...

    A run that is not told its limits spreads as many as it is told between the ends that its channel states have, which
    differ by the seed.
    """
    limits = traces.assign(limit=traces["limit"].where(np.isfinite(traces["limit"])))
    number = limits.groupby(["setting", "policy", "run"])["limit"].rank(method="dense")
    keys = [traces["setting"], traces["policy"]]
    num_own = number.groupby([*keys, traces["run"]]).transform("max")
    is_alike = num_own.groupby(keys).transform("nunique") == 1
    num_all = limits["limit"].groupby(keys).transform("nunique")
    common = limits["limit"].groupby([*keys, number]).transform("mean")
    return traces.assign(limit=common.where((num_own > 1) & is_alike & (num_all > num_own), traces["limit"]))


def _keys_apart(traces: pd.DataFrame, by_run: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the keys that tell settings apart: those of several values, none of which is merely the run's limit."""
    limits = {str(run): own.unique() for run, own in traces.groupby("run")["limit"]}
    keys = dict.fromkeys(key for run in limits for key in by_run[run])
    values = {key: {run: by_run[run].get(key, "") for run in limits} for key in keys}

    def is_limit(key: str) -> bool:
        pairs = [(number_of(value), limits[run][np.isfinite(limits[run])]) for run, value in values[key].items()]
        return all(np.allclose(limit, number, rtol=1e-9, atol=0.0) for number, limit in pairs) and any(
            len(limit) for _, limit in pairs
        )

    return [key for key in keys if len(set(values[key].values())) > 1 and not is_limit(key)]


_TRACES = f"""
SELECT profile, policy, limit_quantity, "limit", run, trace, count(*) AS num,
  count(*) FILTER (isfinite(latency_s)) AS num_served, avg((violation > 0)::INT) AS violation_rate,
  {", ".join(f"{served_mean(name)} AS {name}" for name in MEANS)}
FROM records WHERE sweep = ? GROUP BY ALL ORDER BY ALL
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


def _varied(overrides: Sequence[str]) -> dict[str, str]:
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
