"""What `megopt train` answers: the last point of the curve, the bound beside it, and the learning curve as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis import learning_figure
from megopt.analysis.episodes import bounded_table, hides_edge_time
from megopt.analysis.evaluation import limits_of, recorded_fading
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.analysis.training import AGENT_FOLDER, CURVE_FILE, VALIDATION_SEED, TrainedRun
from megopt.analysis.training_plan import TrainingPlan
from megopt.solvers import pipelining
from megopt.solvers.pipelining import PlannedBound

if TYPE_CHECKING:
    from collections.abc import Sequence


def report_of(plan: TrainingPlan, run: TrainedRun) -> Report:
    """Return the report of a run, finished or stopped; draws its learning curve."""
    bound = validation_bound(plan)
    files = learning_figure.save_learning_figure(plan, run, reward_bound(bound), run.folder / "learning_curve")
    latest = run.curve.iloc[-1].to_dict() if len(run.curve) else {}
    summary = _summary(plan, run, bound, latest, files)
    state = "finished" if run.is_finished else "stopped; the same command goes on with it"
    return Report(
        summary=summary,
        headline=_headline(plan, summary),
        tables=[_table(plan, latest)],
        lines=[
            f"{plan.algorithm}, seed {plan.seed}: {summary['num_steps']} of {plan.num_steps} requests, {state}",
            *([] if np.isnan(bound.bound) else [bound_line(bound)]),
            *(f"note: {note}" for note in summary["notes"]),
            *(f"wrote {shown_path(path)}" for path in [run.folder / CURVE_FILE, run.folder / AGENT_FOLDER, *files]),
        ],
    )


def validation_bound(plan: TrainingPlan) -> PlannedBound:
    """Return the bound on the episodes behind the learning curve."""
    return bound_on(plan, plan.eval_episodes, VALIDATION_SEED)


def bound_on(plan: TrainingPlan, num_episodes: int, seed: int) -> PlannedBound:
    """Return what no policy within the limits exceeds on the episodes of `seed`."""
    params = plan.params
    links = recorded_fading(params, num_episodes=num_episodes, seed=seed)
    rows, hides = bounded_table(params), hides_edge_time(params)
    return pipelining.bound(rows, links, params.problem, is_pipelined=hides)


def reward_bound(bound: PlannedBound) -> float:
    """Return the bound as a largest mean reward; NaN where the limits cannot be kept."""
    return -bound.bound


def bound_line(bound: PlannedBound) -> str:
    """Return what a bound says, in words."""
    if np.isnan(bound.bound):
        return "the limits cannot be kept on these episodes: no policy does; raise them"
    return f"no policy within the limits gains more than {reward_bound(bound):.6g} on these episodes"


def untrained_notes(plan: TrainingPlan, latest: dict[Any, Any]) -> list[str]:
    """Return a line where a run has taken no gradient step, which no reward tells."""
    if not latest or latest["num_updates"] > 0:
        return []
    starts = plan.settings.get("learning_starts", 0)
    return [
        f"nothing was learned: all {int(latest['num_steps'])} requests were random, up to learning_starts = {starts}; "
        "raise num_steps"
    ]


def limit_notes(plan: TrainingPlan, bound: PlannedBound) -> list[str]:
    """Return a line where limits cost nothing: the best policy without them keeps them."""
    limits = plan.params.problem.limits
    if np.isnan(bound.bound):
        return [bound_line(bound)]
    if not len(limits):
        return []
    worth = bound.prices * np.abs(limits_of(plan.params))
    slack = [limit.quantity for limit, price in zip(limits, worth, strict=True) if price <= 1e-3 * abs(bound.bound)]
    if len(slack) == len(limits):
        names = ", ".join(slack)
        return [f"no limit binds ({names}): the best policy without them keeps them; lower one by limits.{slack[0]}"]
    return [f"the limit on {quantity} does not bind beside the others" for quantity in slack]


def share_of(reward: float, bound: float) -> float:
    """Return 1 - (bound - reward) / |bound|: the share of the bound for rewards above 0, and 1 at the bound for any."""
    return 1.0 - (bound - reward) / max(abs(bound), 1e-12)


def _summary(
    plan: TrainingPlan, run: TrainedRun, bound: PlannedBound, latest: dict[Any, Any], files: Sequence[Path]
) -> dict[str, Any]:
    best = reward_bound(bound)
    return {
        "plan": plan.fingerprint(),
        "is_finished": run.is_finished,
        "num_steps": int(latest.get("num_steps", 0)),
        "training_s": run.training_s,
        "status": str(bound.status),
        "bound": best,
        "share_of_bound": share_of(float(latest.get("sampled_reward", np.nan)), best),
        "latest": latest,
        "notes": [*untrained_notes(plan, latest), *limit_notes(plan, bound)],
        "checkpoint": str(run.folder / AGENT_FOLDER),
        "files": [str(path) for path in [run.folder / CURVE_FILE, *files]],
    }


def _headline(plan: TrainingPlan, summary: dict[str, Any]) -> str:
    excess = summary["latest"].get("sampled_excess", np.nan)
    share = summary["share_of_bound"]
    reached = "limits out of reach" if np.isnan(share) else f"{share:.1%} of the bound"
    return (
        f"{plan.algorithm} seed {plan.seed}: {reached}, "
        f"worst limit {excess:+.1%}, {summary['training_s']:.0f} s of learning"
    )


def _table(plan: TrainingPlan, latest: dict[Any, Any]) -> Any:
    limits = dict(zip((limit.quantity for limit in plan.params.problem.limits), limits_of(plan.params), strict=True))
    rows = [
        ["reward", *(f"{latest.get(f'{kind}_reward', np.nan):.5g}" for kind in ("sampled", "mean")), "-"],
        *(
            [name, *(f"{latest.get(f'{kind}_{name}', np.nan):.5g}" for kind in ("sampled", "mean")), f"{limit:g}"]
            for name, limit in limits.items()
        ),
        [
            "episodes over a limit",
            *(f"{latest.get(f'{kind}_violation_rate', np.nan):.0%}" for kind in ("sampled", "mean")),
            "-",
        ],
    ]
    return rich_table("held-out episodes, means per request", ["quantity", "sampled", "mean policy", "limit"], rows)
