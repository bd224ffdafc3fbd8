"""What `megopt search` says: the best trials, what was chosen in them, and how many were no good."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from megopt.analysis.report import Report, rich_table, shown_path
from megopt.sweeps.search import Found
from megopt.sweeps.search_plan import Search
from megopt.sweeps.store import Store
from megopt.sweeps.sweep_report import INPUT_FAULT, INTERRUPTED, MAX_MESSAGES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MAX_ROWS = 24
"""Best trials that the table shows, evenly over the first objective."""


def report(found: Found, plan: Search, store: Store, storage: str) -> Report:
    """Return the report of a search."""
    name = plan.planner.name
    best = [found.trials[number] for number in found.best]
    counts = _counts(found.trials)
    summary = {
        "search": name,
        "num_trials": len(found.trials),
        "num_before": found.num_before,
        **counts,
        "interrupted": found.is_interrupted,
        "best": [_facts(trial, plan) for trial in best],
        "call_s": found.call_s,
        "workers": list(found.workers),
        "results": str(store.folder),
        "storage": storage,
        "messages": _messages(found.trials),
    }
    headline = f"{len(best)} best of {len(found.trials)} trials"
    folder = shown_path(store.folder.resolve())
    return Report(
        summary=summary,
        headline=headline,
        tables=[_table(best, plan, name)] if best else [],
        lines=[
            f"{headline}: {', '.join(f'{count} {what}' for what, count in counts.items())}",
            *(f"note: {text}" for text in _messages(found.trials)),
            f"study {name} in {storage}; records in {folder}/sweep={name}",
            f"figures of its records: megopt figures results={folder} sweep={name}",
        ],
        complaints=_complaints(found, plan),
        exit_code=INTERRUPTED if found.is_interrupted else INPUT_FAULT if not best else 0,
    )


def _counts(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    return {
        "within the limits": sum(bool(trial.values) and not _breaks(trial) for trial in trials),
        "beyond a limit": sum(bool(trial.values) and _breaks(trial) for trial in trials),
        "without values": sum(trial.state.is_finished() and not trial.values for trial in trials),
    }


def _breaks(trial: FrozenTrial) -> bool:
    return any(excess > 0 for excess in _excess(trial).values())


def _excess(trial: FrozenTrial) -> Mapping[str, float]:
    return trial.constraints or {}


def _facts(trial: FrozenTrial, plan: Search) -> dict[str, Any]:
    values = dict(zip(plan.objectives, trial.values, strict=True))
    return {"trial": trial.number, "run": trial.user_attrs.get("run"), "settings": trial.params, "values": values}


def _table(best: Sequence[FrozenTrial], plan: Search, name: str) -> Any:
    ordered = sorted(best, key=lambda trial: tuple(trial.values))
    num = min(len(ordered), MAX_ROWS)
    picked = [ordered[round(i * (len(ordered) - 1) / max(num - 1, 1))] for i in range(num)]
    keys = [one.key for one in plan.space]
    rows = [
        [str(trial.number), *(_cell(trial.params[key]) for key in keys), *(f"{value:.5g}" for value in trial.values)]
        for trial in picked
    ]
    title = f"search {name}: {len(picked)} of {len(best)} trials that no other one dominates"
    heads = [f"{quantity} ({direction[:3]})" for quantity, direction in plan.objectives.items()]
    return rich_table(title, ["trial", *keys, *heads], rows)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).strip('"')


def _messages(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return why trials have no values, each reason once."""
    counts = Counter(str(trial.user_attrs["message"]) for trial in trials if "message" in trial.user_attrs)
    return [f"{text} [{count} trials]" for text, count in counts.most_common(MAX_MESSAGES)]


def _complaints(found: Found, plan: Search) -> list[str]:
    if found.is_interrupted:
        num = sum(trial.state.is_finished() for trial in found.trials)
        return [f"interrupted with {num} of {plan.num_trials} trials done; the same command goes on from here"]
    if not found.best:
        return ["no trial is within the limits; loosen limits, widen space or raise num_trials"]
    return []
