"""`megopt compare`: intervals of known numbers, a bound that nothing exceeds, finished runs that are skipped."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import trim_mean

from megopt.analysis import training
from megopt.analysis.baselines import BASELINES, baseline
from megopt.analysis.comparison import compare
from megopt.analysis.comparison_figure import save_comparison_figure
from megopt.analysis.comparison_report import report_of, runs_frame
from megopt.analysis.evaluation import evaluate_policy, limits_of, recorded_fading
from megopt.analysis.intervals import interquartile_mean, interval
from megopt.analysis.training_plan import TrainingPlan
from megopt.analysis.training_report import bound_line, bound_on, limit_notes
from megopt.application import run_verb
from megopt.arrays import FloatArray
from megopt.envs.dynamics import EnvParams
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError, ProblemError
from megopt.problem import Problem, ceilings
from megopt.schemes.action_table import ActionTable
from megopt.solvers import average_limits, pipelining
from megopt.solvers.solution import Status
from megopt.system.link import LinkState


def params_of(latency_s: float = 0.15, energy_j: float = 10.0, *, is_pipelined: bool = True) -> EnvParams:
    params = meg_cvpo(k_factor_db=10.0, episode_length=8, is_pipelined=is_pipelined)
    problem = params.problem.with_limit("latency_s", latency_s).with_limit("energy_j", energy_j)
    return replace(params, problem=problem)


def joined(links: list[LinkState]) -> LinkState:
    names = ("snr", "downlink_s_per_bit", "uplink_s_per_bit")
    return replace(links[0], **{name: np.concatenate([getattr(link, name) for link in links]) for name in names})


def test_interquartile_mean_is_scipys_trimmed_mean_and_ignores_one_lost_seed() -> None:
    scores = np.random.default_rng(0).normal(size=(7, 3))
    assert float(interquartile_mean(scores)) == pytest.approx(trim_mean(scores, 0.25, axis=None))
    assert interval(np.array([1.0, 2.0, 3.0, 4.0])).value == 2.5
    lost = interval(np.array([1.0, 1.0, 1.0, 1.0, -1e9]))
    assert lost.value == 1.0


def test_intervals_cover_the_middle_of_a_known_law_as_often_as_they_say() -> None:
    draws = np.random.default_rng(1).normal(size=(200, 12))
    found = [interval(scores, num_draws=400, seed=number) for number, scores in enumerate(draws)]
    assert 0.86 < np.mean([one.low <= 0.0 <= one.high for one in found]) < 0.99
    assert interval(np.ones(5)).low == interval(np.ones(5)).high == 1.0
    assert np.isnan(interval(np.ones(1)).low)


def test_strata_are_drawn_apart() -> None:
    scores = np.array([[0.0, 10.0], [0.0, 10.0]])  # no spread within a stratum
    found = interval(scores)
    assert (found.low, found.value, found.high) == (5.0, 5.0, 5.0)


@pytest.mark.parametrize("scores", [np.zeros(0), np.array([np.nan]), np.zeros((2, 2, 2))])
def test_scores_that_are_none_are_refused(scores: FloatArray) -> None:
    with pytest.raises(ConfigError, match="expected finite ones"):
        interval(scores)


def test_without_pipelining_the_bound_is_that_of_long_run_limits() -> None:
    params = params_of(is_pipelined=False, latency_s=0.2)
    links = recorded_fading(params, num_episodes=16, seed=0)
    found = pipelining.bound(params.table, links, params.problem, is_pipelined=False)
    exact = average_limits.solve(params.table, joined(links), params.problem)
    assert found.status == Status.OPTIMAL
    assert -found.bound == pytest.approx(exact.bound, rel=2e-5)
    assert found.bound <= found.planned
    assert found.prices == pytest.approx(exact.prices, rel=0.05, abs=0.05)


@settings(max_examples=settings().max_examples // 4, deadline=None)
@given(seed=st.integers(0, 1000), latency_s=st.floats(0.09, 0.2))
def test_with_pipelining_the_bound_is_the_best_mixture_of_all_plans(seed: int, latency_s: float) -> None:
    params = params_of(latency_s)
    rows = np.random.default_rng(seed).choice(len(params.table), 3, replace=False)
    table, problem = params.table.take(rows), params.problem
    links = [link.take(np.array([0])) for link in recorded_fading(params, num_episodes=1, seed=seed)[:3]]
    plans = np.array([_cost_of_plan(table, links, problem, plan) for plan in itertools.product(range(3), repeat=3)])
    best = linprog(plans[:, 0], plans[:, 1:].T, ceilings(problem), np.ones((1, len(plans))), np.ones(1))
    found = pipelining.bound(table, links, problem, is_pipelined=True, tolerance=1e-9)
    if best.status == 0:
        assert found.bound == pytest.approx(best.fun, rel=1e-6)
    else:
        assert found.status == Status.INFEASIBLE


def _cost_of_plan(table: ActionTable, links: list[LinkState], problem: Problem, plan: tuple[int, ...]) -> FloatArray:
    """Return mean objective and costs of one plan by the definition of pipelining."""
    total, air_s = np.zeros(3), 0.0
    for row, link in zip(plan, links, strict=True):
        work = table.work
        down_s = float(work.downlink_bits[row] * link.downlink_s_per_bit[0])
        waits_s = max(float(work.edge_s[row]) - air_s, 0.0)
        trips_s = float(work.num_round_trips[row]) * link.round_trip_s
        latency_s = waits_s + float(work.device_s[row]) + down_s + trips_s
        energy_j = float(work.edge_energy_j[row] + work.device_energy_j[row])
        costs = {"latency_s": latency_s, "energy_j": energy_j}
        total += [-table.metric(problem.metric)[row], *(costs[limit.quantity] for limit in problem.limits)]
        air_s = down_s
    return total / len(plan)


@pytest.mark.slow
def test_no_baseline_within_the_limits_exceeds_the_bound_on_the_same_fading() -> None:
    params = params_of(0.2, 10.0)
    links = recorded_fading(params, num_episodes=8, seed=4)
    best = -pipelining.bound(params.table, links, params.problem, is_pipelined=True).bound
    rewards = {}
    for name in BASELINES:
        found = evaluate_policy(baseline(name, params), params, num_episodes=8, seed=4).summary(limits_of(params))
        rewards[name] = found["reward"]
        assert found["excess"] > 0.0 or found["reward"] <= best + 1e-9, name
    unaltered = params.table.metric("psnr_db").max()  # all steps, nothing merged
    assert rewards["conventional"] == pytest.approx(unaltered, abs=1e-6)
    assert rewards["fixed"] <= rewards["average_optimal"]


def test_limits_out_of_reach_and_no_request_are_told_apart() -> None:
    params = params_of(1e-3)
    links = recorded_fading(params, num_episodes=2, seed=0)
    found = pipelining.bound(params.table, links, params.problem, is_pipelined=True)
    assert found.status == Status.INFEASIBLE
    assert np.isnan(found.bound)
    with pytest.raises(ProblemError, match="no request"):
        pipelining.bound(params.table, [], params.problem, is_pipelined=True)
    with pytest.raises(ConfigError, match="baseline 'luck': expected some of exhaustive"):
        baseline("luck", params)


def test_a_run_with_limits_out_of_reach_says_so_in_words() -> None:
    plan = replace(plan_of("cvpo"), params=params_of(1e-3))
    found = bound_on(plan, 2, 0)
    assert limit_notes(plan, found) == [bound_line(found)]
    assert "the limits cannot be kept on these episodes" in bound_line(found)


def plan_of(algorithm: str) -> TrainingPlan:
    settings = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8}
    extra = {"n_steps": 4, "n_epochs": 1} if algorithm.startswith("ppo") else {"learning_starts": 8}
    return TrainingPlan(
        scenario="meg_cvpo",
        params=params_of(),
        algorithm=algorithm,
        actions="discrete",
        settings=settings | extra,
        num_envs=2,
        num_steps=16,
        eval_every=8,
        eval_episodes=2,
    )


@pytest.mark.slow
def test_a_comparison_keeps_finished_runs_and_draws_its_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {name: plan_of(name) for name in ("cvpo", "ppo_lag")}
    first = compare(plans, list(BASELINES), tmp_path, num_seeds=2, num_episodes=4, shows_progress=False)
    assert first.is_finished
    assert [entry.name for entry in first.entries] == ["cvpo", "ppo_lag", *BASELINES]
    monkeypatch.setattr(training, "_chunk", lambda *arguments: pytest.fail("trained again"))
    again = compare(plans, list(BASELINES), tmp_path, num_seeds=2, num_episodes=4, shows_progress=False)
    assert [entry.sampled for entry in again.entries] == [entry.sampled for entry in first.entries]
    files = save_comparison_figure(again, tmp_path / "comparison")
    assert [path.name for path in files] == ["comparison.pdf", "comparison.png"]
    answer = json.loads(report_of(again, files).as_json())
    cvpo = answer["entries"]["cvpo"]
    assert cvpo["num_seeds"] == 2
    assert cvpo["reward"]["low"] <= cvpo["reward"]["iqm"] <= cvpo["reward"]["high"]
    assert cvpo["gap"] == pytest.approx(1.0 - cvpo["reward"]["iqm"] / answer["bound"])
    assert len(runs_frame(again)) == 2 * 2 * 2 + len(BASELINES)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["algorithms=[dqn]"], "algorithms = ['dqn']; expected some of cvpo"),
        pytest.param(["algorithms=[]"], "algorithms = []; expected some of", marks=pytest.mark.slow),
        (["seeds=0"], "compare: seeds is 0; expected a whole number from 1; change seeds"),
        pytest.param(["test_episodes=1.5"], "test_episodes is 1.5; expected a whole number", marks=pytest.mark.slow),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    overrides: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_verb("compare", [*overrides, f"hydra.run.dir={tmp_path}", f"folder={tmp_path / 'all'}"]) == 2
    assert text in capsys.readouterr().err
