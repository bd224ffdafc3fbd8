"""What `megopt compare` answers: a line per algorithm and baseline, with intervals, limits and the gap to the bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.comparison import TOLERANCE, Comparison, Entry
from megopt.analysis.evaluation import limits_of
from megopt.analysis.intervals import Interval
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.analysis.training_report import limit_notes, share_of

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table


def report_of(found: Comparison, files: Sequence[Path]) -> Report:
    """Return the report of a comparison, whole or stopped."""
    notes = [f"note: {note}" for note in (*found.notes, *limit_notes(found.plan, found.bound))]
    return Report(
        summary=summary(found, files),
        headline=headline(found),
        tables=[table(found)],
        lines=[_bound_line(found), *_legend(found), *notes, *(f"wrote {shown_path(path)}" for path in files)],
    )


def headline(found: Comparison) -> str:
    """Return one line: the best algorithm within its limits."""
    kept = [entry for entry in found.entries if entry.is_learned and entry.kept_rate == 1.0]
    if not kept:
        return "no algorithm kept all limits with every seed"
    best = max(kept, key=lambda entry: entry.score().value)
    return f"{best.name}: {share_of(best.score().value, found.best_reward):.2%} of the bound, all limits kept"


def summary(found: Comparison, files: Sequence[Path]) -> dict[str, Any]:
    """Return the JSON object of a comparison."""
    plan = found.plan
    return {
        "scenario": plan.scenario,
        "profile": plan.params.table.profile,
        "limits": {
            limit.quantity: float(most)
            for limit, most in zip(plan.params.problem.limits, limits_of(plan.params), strict=True)
        },
        "is_finished": found.is_finished,
        "status": str(found.bound.status),
        "bound": found.best_reward,
        "bound_search_gap": (found.bound.planned - found.bound.bound) / max(abs(found.bound.bound), 1e-12),
        "prices": found.bound.prices,
        "num_steps": plan.num_steps,
        "num_episodes": found.num_episodes,
        "tolerance": TOLERANCE,
        "entries": {entry.name: _entry_summary(found, entry) for entry in found.entries},
        "plans": {name: each.fingerprint() for name, each in found.plans.items()},
        "notes": [*found.notes, *limit_notes(found.plan, found.bound)],
        "files": [str(path) for path in files],
    }


def _entry_summary(found: Comparison, entry: Entry) -> dict[str, Any]:
    score = entry.score()
    return {
        "is_learned": entry.is_learned,
        "num_seeds": len(entry.sampled),
        "reward": _plain(score),
        "share_of_bound": share_of(score.value, found.best_reward),
        "gap": 1.0 - share_of(score.value, found.best_reward),
        "mean_policy_reward": _plain(entry.score(is_sampled=False)) if entry.mean else None,
        "mean_policy_excess": _worst(entry.mean),
        "costs": np.mean([run["costs"] for run in entry.sampled], axis=0),
        "worst_excess": _worst(entry.sampled),
        "kept_rate": entry.kept_rate,
        "violation_rate": float(np.mean([run["violation_rate"] for run in entry.sampled])),
        "training_s": list(entry.training_s),
        "runs": {"sampled": list(entry.sampled), "mean": list(entry.mean)},
    }


def _plain(score: Interval) -> dict[str, float]:
    return {"iqm": score.value, "low": score.low, "high": score.high}


def _worst(runs: Sequence[Any]) -> float:
    """Return the largest relative excess over a limit of any seed, to four digits; NaN without runs."""
    return round(max((float(run["excess"]) for run in runs), default=np.nan), 4) + 0.0  # 0.0 in place of -0.0


def table(found: Comparison) -> Table:
    """Return one row per algorithm and baseline."""
    names = [limit.quantity for limit in found.plan.params.problem.limits]
    header = ["who", "reward", "of bound", *names, "worst limit", "kept", "episodes over", "mean policy", "s/run"]
    return rich_table("fresh episodes, the same for all", header, [_row(found, entry) for entry in found.entries])


def _row(found: Comparison, entry: Entry) -> list[str]:
    score = entry.score()
    costs = np.mean([run["costs"] for run in entry.sampled], axis=0)
    training_s = float(np.mean(entry.training_s))
    return [
        entry.name,
        _shown(score),
        "-" if np.isnan(found.best_reward) else f"{share_of(score.value, found.best_reward):.2%}",
        *(f"{cost:.4g}" for cost in costs),
        f"{_worst(entry.sampled):+.1%}",
        f"{entry.kept_rate:.0%}",
        f"{np.mean([run['violation_rate'] for run in entry.sampled]):.0%}",
        f"{entry.score(is_sampled=False).value:.4g} ({_worst(entry.mean):+.1%})" if entry.mean else "-",
        f"{training_s:.0f}" if entry.is_learned else "-",
    ]


def _shown(score: Interval) -> str:
    return f"{score.value:.4g}" + ("" if np.isnan(score.low) else f" [{score.low:.4g}, {score.high:.4g}]")


def _bound_line(found: Comparison) -> str:
    if np.isnan(found.best_reward):
        return "the limits cannot be kept on these episodes: no policy does"
    return f"no policy within the limits gains more than {found.best_reward:.6g} on these episodes"


def _legend(found: Comparison) -> list[str]:
    limits = ", ".join(str(limit) for limit in found.plan.params.problem.limits)
    return [
        f"limits on the means: {limits or 'none'}; kept: share of seeds with every mean within {TOLERANCE:.0%} of them",
        "reward: interquartile mean over seeds [95 % bootstrap interval] of the sampled policy; worst limit over seeds",
    ]


def runs_frame(found: Comparison) -> pd.DataFrame:
    """Return one row per run and kind of policy."""
    import pandas as pd

    first = found.plan.seed
    rows: list[dict[str, Any]] = []
    for entry in found.entries:
        for kind, runs in (("sampled", entry.sampled), ("mean", entry.mean)):
            for number, run in enumerate(runs):
                costs = {f"cost_{index}": cost for index, cost in enumerate(run["costs"])}
                kept = {name: value for name, value in run.items() if name != "costs"}
                rows.append({"who": entry.name, "policy": kind, "seed": first + number, **kept, **costs})
    return pd.DataFrame(rows)
