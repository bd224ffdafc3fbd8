"""Algorithms x seeds x analytic baselines on the same fading: finished runs are kept and skipped the next time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.baselines import baseline
from megopt.analysis.evaluation import Evaluation, evaluate_agent, evaluate_policy, limits_of
from megopt.analysis.intervals import Interval, interval
from megopt.analysis.training import AGENT_FOLDER, TrainedRun, train
from megopt.analysis.training_plan import TrainingPlan
from megopt.analysis.training_report import bound_on, reward_bound
from megopt.errors import ConfigError, NotOfferedError
from megopt.files import write_atomically
from megopt.policies.agent_card import AGENT_FILE
from megopt.ranges import require_whole
from megopt.rl import agents
from megopt.solvers.pipelining import PlannedBound

if TYPE_CHECKING:
    import pandas as pd

RECORD_FILE = "record.json"
TOLERANCE = 0.01
"""Relative excess up to which a limit counts as kept: what the sampling of the test episodes cannot resolve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one algorithm or baseline came to, one value per seed; baselines have one seed.

    Attributes:
        name: algorithm or baseline.
        is_learned: whether it was trained.
        sampled: summaries of the sampled policy by `Evaluation.summary`, one per seed.
        mean: summaries of the mean policy; empty for baselines.
        training_s: wall time of learning per seed [s]; 0 for baselines.
        curves: learning curve per seed; empty for baselines.
    """

    name: str
    is_learned: bool
    sampled: Sequence[Mapping[str, Any]]
    mean: Sequence[Mapping[str, Any]] = ()
    training_s: Sequence[float] = (0.0,)
    curves: Sequence[pd.DataFrame] = ()

    def score(self, key: str = "reward", *, is_sampled: bool = True) -> Interval:
        """Return the interquartile mean of a value over the seeds, with its bootstrap interval."""
        runs = self.sampled if is_sampled else self.mean
        return interval(np.array([run[key] for run in runs], dtype=np.float64))

    @property
    def kept_rate(self) -> float:
        """Share of the seeds whose sampled policy keeps every limit to within `TOLERANCE`."""
        return float(np.mean([run["excess"] <= TOLERANCE for run in self.sampled]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison found.

    Attributes:
        plans: the plan of each algorithm, with the first seed.
        entries: algorithms first, then baselines.
        bound: bound on the test episodes.
        num_episodes: test episodes [1].
        notes: what was left out and why, and whether the user stopped it.
        is_finished: whether all runs are there.
    """

    plans: Mapping[str, TrainingPlan]
    entries: Sequence[Entry]
    bound: PlannedBound
    num_episodes: int
    notes: Sequence[str]
    is_finished: bool

    @property
    def plan(self) -> TrainingPlan:
        """Any of the plans: all share scenario and limits."""
        return next(iter(self.plans.values()))

    @property
    def best_reward(self) -> float:
        """The bound as a largest mean reward."""
        return reward_bound(self.bound)


def compare(
    plans: Mapping[str, TrainingPlan],
    baselines: Sequence[str],
    folder: Path,
    *,
    num_seeds: int,
    num_episodes: int = 128,
    test_seed: int = 1_000_000,
    is_resumed: bool = True,
    shows_progress: bool = True,
) -> Comparison:
    """Train what is missing, judge everything on the same fresh episodes and return it.

    Args:
        plans: plan of each algorithm; its seed is the first one.
        baselines: names of `megopt.analysis.baselines.BASELINES`.
        folder: one folder per algorithm and seed below it.
        num_seeds: seeds per algorithm [1].
        num_episodes: test episodes, the same for all [1].
        test_seed: of their places and fading.
        is_resumed: whether finished runs are kept and stopped ones gone on with.
        shows_progress: whether to draw bars.

    Raises:
        ConfigError: for no plan, or plans of different scenarios.
    """
    require_whole("compare", 1, num_seeds=num_seeds, num_episodes=num_episodes)
    require_whole("compare", 0, test_seed=test_seed)
    if not plans or len({(plan.scenario, plan.params.problem) for plan in plans.values()}) != 1:
        message = f"compare: {len(plans)} algorithms, on one scenario and problem; expected at least one; name them"
        raise ConfigError(message)
    judge = _Judge(num_episodes=num_episodes, seed=test_seed)
    entries, notes, is_finished = [], [], True
    for name, plan in plans.items():
        runs: list[tuple[dict[str, Any], TrainedRun]] = []
        for seed in range(plan.seed, plan.seed + num_seeds):
            place = folder / name / f"seed_{seed}"
            run = train(replace(plan, seed=seed), place, is_resumed=is_resumed, shows_progress=shows_progress)
            is_finished = run.is_finished
            if not is_finished:
                notes.append(f"stopped in {name} seed {seed}; the same command goes on")
                break
            runs.append((_record(replace(plan, seed=seed), run, judge), run))
        if runs:
            entries.append(_entry(name, runs))
        if not is_finished:
            break
    plan = next(iter(plans.values()))
    found, left_out = _baselines(baselines, plan, judge) if is_finished else ([], [])
    return Comparison(
        plans=plans,
        entries=[*entries, *found],
        bound=bound_on(plan, num_episodes, test_seed),
        num_episodes=num_episodes,
        notes=[*notes, *left_out],
        is_finished=is_finished,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judge:
    """The test episodes."""

    num_episodes: int
    seed: int

    def of_agent(self, plan: TrainingPlan, folder: Path) -> dict[str, Any]:
        """Return what an agent of a seed came to."""
        agent = agents.load_agent(plan.algorithm, folder / AGENT_FOLDER / AGENT_FILE)

        def judged(*, is_sampled: bool) -> Evaluation:
            """Return what a policy came to."""
            return evaluate_agent(
                agent,
                plan.params,
                plan.actions,
                num_episodes=self.num_episodes,
                seed=self.seed,
                is_sampled=is_sampled,
                bad_actions=plan.bad_actions,
            )

        limits = limits_of(plan.params)
        return {
            "sampled": judged(is_sampled=True).summary(limits),
            "mean": judged(is_sampled=False).summary(limits),
        }


def _record(plan: TrainingPlan, run: TrainedRun, judge: _Judge) -> dict[str, Any]:
    """Return what the run came to on the test episodes, from its record where that is of the same episodes."""
    path = run.folder / RECORD_FILE
    test = {"num_episodes": judge.num_episodes, "seed": judge.seed, "plan": plan.fingerprint()}
    if path.is_file() and (kept := json.loads(path.read_text(encoding="utf-8")))["test"] == test:
        return dict(kept)
    record = {"test": test, "training_s": run.training_s, **judge.of_agent(plan, run.folder)}
    write_atomically(path, lambda target: target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))
    return record


def _entry(name: str, runs: Sequence[tuple[dict[str, Any], TrainedRun]]) -> Entry:
    return Entry(
        name=name,
        is_learned=True,
        sampled=[record["sampled"] for record, _ in runs],
        mean=[record["mean"] for record, _ in runs],
        training_s=[float(record["training_s"]) for record, _ in runs],
        curves=[run.curve for _, run in runs],
    )


def _baselines(names: Sequence[str], plan: TrainingPlan, judge: _Judge) -> tuple[list[Entry], list[str]]:
    """Return the baselines on the test episodes, and what was left out."""
    entries, notes = [], []
    for name in names:
        try:
            policy = baseline(name, plan.params)
        except NotOfferedError as error:
            notes.append(f"{name} left out: {error}")
            continue
        found = evaluate_policy(policy, plan.params, num_episodes=judge.num_episodes, seed=judge.seed)
        entries.append(Entry(name=name, is_learned=False, sampled=[found.summary(limits_of(plan.params))]))
    return entries, notes
