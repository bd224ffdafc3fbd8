"""`megopt train`: a stopped run equals the unbroken one, curves hold limits, wrong input is refused in one line."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import pytest

from megopt.analysis import training
from megopt.analysis.evaluation import evaluate_agent, evaluate_policy, recorded_fading
from megopt.analysis.training import CURVE_FILE, STATE_FILE, TrainingPlan, train
from megopt.application import run_verb
from megopt.configuration import CONF_DIR
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError
from megopt.experiments.train import plans_of
from megopt.policies.fixed import Fixed
from megopt.rl import agents

SMALL = {"policy_kwargs": {"net_arch": [8]}}
OFF_POLICY = {**SMALL, "learning_starts": 16, "batch_size": 8, "buffer_size": 200}
ON_POLICY = {**SMALL, "n_steps": 8, "batch_size": 8, "n_epochs": 1}


def plan_of(algorithm: str = "cvpo", **changes: Any) -> TrainingPlan:
    params = meg_cvpo(k_factor_db=10.0, episode_length=8)
    problem = params.problem.with_limit("latency_s", 0.15).with_limit("energy_j", 10.0)
    kind = "box" if algorithm.startswith(("sac", "td3", "ddpg")) else "discrete"
    settings = ON_POLICY if algorithm.startswith("ppo") else OFF_POLICY
    plan = TrainingPlan(
        scenario="meg_cvpo",
        params=replace(params, problem=problem),
        algorithm=algorithm,
        actions=kind,
        settings=settings,
        num_envs=2,
        num_steps=64,
        eval_every=16,
        eval_episodes=2,
        checkpoint_every=2,
    )
    return replace(plan, **changes)


def interrupted_at(point: int, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Let the user press Ctrl-C while a point of the curve is judged."""
    judged, calls = training._judged, []

    def judge(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == point:
            os.kill(os.getpid(), signal.SIGINT)
        return judged(*arguments)

    monkeypatch.setattr(training, "_judged", judge)
    return judged


@pytest.mark.parametrize(
    "algorithm",
    [
        "cvpo",
        "ppo_lag",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sac_lag", "td3_lag", "ddpg_lag", "ppo", "sac")),
    ],
)
def test_a_run_stopped_by_an_interrupt_and_gone_on_with_equals_the_unbroken_one(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(algorithm)
    unbroken = train(plan, tmp_path / "unbroken", shows_progress=False)
    judged = interrupted_at(1, monkeypatch)
    stopped = train(plan, tmp_path / "stopped", shows_progress=False)
    monkeypatch.setattr(training, "_judged", judged)
    assert not stopped.is_finished
    assert len(stopped.curve) == 1
    assert (tmp_path / "stopped" / STATE_FILE).is_file()
    gone_on = train(plan, tmp_path / "stopped", shows_progress=False)
    assert gone_on.is_finished
    assert not (tmp_path / "stopped" / STATE_FILE).exists()
    pd.testing.assert_frame_equal(
        unbroken.curve.drop(columns="training_s"), gone_on.curve.drop(columns="training_s"), check_exact=True
    )
    kept = [agents.load_agent(algorithm, tmp_path / name / "agent" / "agent.zip") for name in ("unbroken", "stopped")]
    for one, other in zip(*(agent.policy.parameters() for agent in kept), strict=True):
        assert np.array_equal(one.detach().numpy(), other.detach().numpy())


def test_a_finished_run_is_not_trained_again_and_another_plan_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(num_steps=16)
    first = train(plan, tmp_path, shows_progress=False)
    monkeypatch.setattr(training, "_new_agent", lambda plan: pytest.fail("trained again"))
    again = train(plan, tmp_path, shows_progress=False)
    pd.testing.assert_frame_equal(first.curve, again.curve)
    assert list(pd.read_csv(tmp_path / CURVE_FILE)["num_steps"]) == [16]
    assert any((tmp_path / "tensorboard").iterdir())
    with pytest.raises(ConfigError, match=r"holds another run .seed = 0 there and 1 now"):
        train(replace(plan, seed=1), tmp_path, shows_progress=False)


def test_judging_an_agent_moves_no_random_generator_and_meets_the_recorded_fading(tmp_path: Path) -> None:
    import torch

    plan = plan_of(num_steps=16)
    train(plan, tmp_path, shows_progress=False)
    agent = agents.load_agent("cvpo", tmp_path / "agent" / "agent.zip")
    before = torch.get_rng_state()
    found = [evaluate_agent(agent, plan.params, "discrete", num_episodes=3, seed=5, is_sampled=True) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(found[0].reward, found[1].reward)
    links = recorded_fading(plan.params, num_episodes=3, seed=5)
    assert len(links) == plan.params.episode_length
    table = plan.params.table
    fixed = Fixed(table=table, problem=plan.params.problem, scheme="conventional", label="model split, 4 steps")
    energy = evaluate_policy(fixed, plan.params, num_episodes=3, seed=5).energy_j
    assert energy == pytest.approx(table.work.edge_energy_j[0] + table.work.device_energy_j[0])


def test_every_algorithm_of_the_configuration_can_be_built() -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        names = sorted(path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml"))
        config = hydra.compose("train", [f"algorithm=[{','.join(names)}]", "limits.latency_s=0.2"])
    plans = plans_of(config)
    assert set(plans) == set(names) == set(agents.CLASSES)
    for name, plan in plans.items():
        assert plan.algorithm == name
        assert [limit.bound for limit in plan.params.problem.limits] == [1800.0, 0.2]
        agent = training._new_agent(plan)
        assert agent.seed == 0


def test_the_verb_writes_its_files_and_answers_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["num_steps=32", "eval_every=32", "eval_episodes=2", "scenario.episode_length=4", "scenario.k_factor_db=10"]
    overrides = [*small, f"folder={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'hydra'}", "output=json"]
    assert run_verb("train", [*overrides, "limits.latency_s=0.15", "limits.energy_j=10"]) == 0
    answer = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert answer["is_finished"]
    assert answer["status"] == "optimal"
    assert answer["plan"]["limits"] == [0.15, 10.0]
    assert (tmp_path / "run" / "learning_curve.png").is_file()
    assert {"sampled_latency_s", "mean_energy_j", "sampled_excess"} <= set(answer["latest"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["scenario=cell"], "expected one of megopt/Request-v0: request or meg_cvpo"),
        (["algorithm=[cvpo,ppo]"], "train: 2 algorithms; expected one"),
        (["num_steps=0"], "num_steps is 0; expected a whole number from 1"),
        (["algorithm.cvpo.settings.gamma=2"], "gamma is 2"),
        (["+algorithm.cvpo.settings.speed=2"], "unexpected keyword argument 'speed'"),
        (["algorithm.cvpo.algorithm=dqn"], "algorithm 'dqn': expected one of cvpo, ppo_lag"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    overrides: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    places = [f"hydra.run.dir={tmp_path}", f"folder={tmp_path / 'run'}"]
    assert run_verb("train", [*overrides, *places]) == 2
    assert text in capsys.readouterr().err
