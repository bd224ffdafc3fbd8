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
from megopt.analysis.baselines import baseline
from megopt.analysis.cell_devices import views
from megopt.analysis.episodes import learning_env
from megopt.analysis.evaluation import evaluate_agent, evaluate_policy, limits_of, recorded_fading
from megopt.analysis.training import CURVE_FILE, STATE_FILE, train
from megopt.analysis.training_plan import TrainingPlan
from megopt.analysis.training_report import bound_on, limit_notes
from megopt.application import run_verb
from megopt.configuration import CONF_DIR
from megopt.envs.actions import ActionError
from megopt.envs.arrivals import Poisson
from megopt.envs.cell_parameters import CellParams
from megopt.envs.parameters import EnvParams
from megopt.envs.scenarios import cell, meg_cvpo, request
from megopt.errors import ConfigError
from megopt.experiments.train import place_of, plans_of
from megopt.policies.fixed import Fixed
from megopt.problem import Limit, Problem
from megopt.rl import agents
from megopt.schemes.conventional import Conventional
from megopt.system.channel import Static
from megopt.system.link import Link
from tests.environments import PHONE, loaded

SMALL = {"policy_kwargs": {"net_arch": [8]}, "learning_rate": 1e-3}
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
        fade_to=0.2,
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
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("ppo_lag", "sac_lag", "td3_lag", "ddpg_lag", "ppo", "sac")
        ),
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


def test_the_learning_rate_fades_over_the_whole_run_and_not_over_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, judged = [], training._judged

    def judge(plan: TrainingPlan, agent: Any) -> Any:
        rates.append(agent.policy.actor.optimizer.param_groups[0]["lr"])
        return judged(plan, agent)

    monkeypatch.setattr(training, "_judged", judge)
    run = train(plan_of(), tmp_path, shows_progress=False)
    # the first point comes before any update
    assert rates[1:] == pytest.approx([1e-3 * (1.0 - 0.8 * done / 64) for done in (32, 48, 64)], abs=3e-5)
    assert list(run.curve["num_updates"]) == sorted(run.curve["num_updates"])


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
        names = sorted({path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml")} - {"cvpo_cells"})
        config = hydra.compose("train", [f"algorithm=[{','.join(names)}]", "limits.latency_s=0.2"])
        cells = hydra.compose("train", ["algorithm=cvpo_cells", "scenario=cell_energy"])
    assert next(iter(plans_of(cells).values())).settings["fit_kl"] == 0.002
    plans = plans_of(config)
    assert set(plans) == set(names) == set(agents.CLASSES)
    for name, plan in plans.items():
        assert plan.algorithm == name
        assert [limit.quantity for limit in plan.params.problem.limits] == ["energy_j", "latency_s"]
        assert plan.params.problem.limits[1].bound == 0.2
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
    assert "all 32 requests were random, up to learning_starts = 2000" in answer["notes"][0]
    assert (tmp_path / "run" / "learning_curve.png").is_file()
    assert {"sampled_latency_s", "mean_energy_j", "sampled_excess"} <= set(answer["latest"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["algorithm=[cvpo,ppo]"], "train: 2 algorithms; expected one"),
        pytest.param(
            ["algorithm.cvpo.settings.learning_rate=a"], "cvpo: learning_rate is 'a'; expected", marks=pytest.mark.slow
        ),
        pytest.param(["num_threads=x"], "train: num_threads is 'x'; expected a whole number", marks=pytest.mark.slow),
        pytest.param(["num_steps=0"], "num_steps is 0; expected a whole number from 1", marks=pytest.mark.slow),
        pytest.param(["algorithm.cvpo.settings.gamma=2"], "gamma is 2", marks=pytest.mark.slow),
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


def test_the_folder_of_a_run_names_the_limits_that_were_set() -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        found = [hydra.compose("train", overrides) for overrides in ([], ["limits.latency_s=0.2"])]
        bare = hydra.compose("train", ["algorithm=ppo", "scenario=request", "+scenario.problem.objective=latency_s"])
    places = [place_of(config, next(iter(plans_of(config).values()))) for config in found]
    assert places == ["meg_cvpo", "meg_cvpo_latency_s_0.2"]
    plan = plan_of("ppo")
    problem = replace(plan.params.problem, limits=())
    assert place_of(bare, replace(plan, params=replace(plan.params, problem=problem))) == "meg_cvpo_no_limits"


def test_limits_that_cost_nothing_are_named() -> None:
    plan = plan_of()
    loose = plan.params.problem.with_limit("latency_s", 3.0)
    for problem, text in (
        (loose.with_limit("energy_j", 1800.0), "no limit binds (latency_s, energy_j)"),
        (loose.with_limit("energy_j", 8.0), "the limit on latency_s does not bind beside the others"),
    ):
        other = replace(plan, params=replace(plan.params, problem=problem))
        notes = limit_notes(other, bound_on(other, 4, seed=0))
        assert len(notes) == 1
        assert text in notes[0]


@pytest.mark.parametrize("algorithm", ["cvpo", pytest.param("ppo_lag", marks=pytest.mark.slow)])
def test_cells_are_trained_judged_and_bounded(algorithm: str, tmp_path: Path) -> None:
    arrivals = Poisson(requests_per_s=0.1)
    params = cell(num_devices=2, episode_length=16, arrivals=arrivals, capacity=64)
    plan = plan_of(algorithm, params=params, scenario="cell", num_steps=32)
    run = train(plan, tmp_path, shows_progress=False)
    assert np.isfinite(run.curve["sampled_reward"]).all()
    bound = bound_on(plan, 8, seed=3)
    for name in ("average_optimal", "greedy", "fixed"):
        found = evaluate_policy(baseline(name, params), params, num_episodes=8, seed=3).summary(limits_of(params))
        assert found["excess"] > 0.0 or found["reward"] <= -bound.bound + 1e-9, name
    links = recorded_fading(params, num_episodes=8, seed=3)
    assert len(links[0].snr) == pytest.approx(8 * 16 * 2 * 0.2, rel=0.5)


def test_costs_told_to_devices_of_cells_have_the_limit_per_request_as_limit_per_slot() -> None:
    quiet = Poisson(requests_per_s=0.02)
    params = cell(num_devices=2, episode_length=64, arrivals=quiet, channel=Static(snr_db=10.0))
    env, limits = learning_env(params, 200, "discrete", "raise")
    assert env.num_envs == 200
    assert limits == pytest.approx(0.04 * limits_of(params), rel=0.1)
    env.seed(0)
    first = env.reset()
    assert first.shape == (200, 9)
    told, gained = 0.0, 0.0
    for _ in range(params.episode_length):
        _, rewards, dones, infos = env.step(np.zeros(200, dtype=np.int64))
        told += float(np.sum(env.costs))
        gained += float(np.sum(rewards))
    assert dones.all()
    assert all(info["TimeLimit.truncated"] and len(info["terminal_observation"]) == 9 for info in infos)
    fixed = Fixed(table=params.table, problem=params.problem, scheme="conventional", label=str(params.table.label[0]))
    found = evaluate_policy(fixed, params, num_episodes=200, seed=5).summary(limits_of(params))
    requests = 200 * 64 * 0.04
    assert gained / requests == pytest.approx(found["reward"], rel=0.1)
    excess = (told - 200 * 64 * limits[0]) / requests
    assert excess == pytest.approx(found["costs"][0] - float(limits_of(params)[0]), rel=0.1)
    with pytest.raises(ConfigError, match="expected a multiple of 2"):
        learning_env(params, 5, "discrete", "raise")


def test_masks_of_a_cell_say_which_devices_decide() -> None:
    params = cell(num_devices=2, episode_length=8, arrivals=Poisson(requests_per_s=0.2))
    env, _ = learning_env(params, 40, "discrete", "raise")
    num_rows = len(params.table.label)
    observed = env.reset()
    for _ in range(params.episode_length):
        choices = np.stack(env.env_method("action_masks")).sum(axis=1)
        assert np.array_equal(choices, np.where(observed[:, 1] > 0.0, num_rows, 1))
        assert len(set(choices.tolist())) == 2
        observed, _, _, infos = env.step(np.zeros(40, dtype=np.int64))
    waits = np.array([info["terminal_observation"][1] > 0.0 for info in infos])
    assert np.array_equal([info["action_mask"].all() for info in infos], waits)
    boxes, _ = learning_env(params, 40, "box", "clip")
    boxes.reset()
    with pytest.raises(ConfigError, match=r"action masks with actions Box.*; expected rows"):
        boxes.env_method("action_masks")


def masked_cell(kind: str) -> CellParams:
    """Return a cell whose first row is not offered, as its quality is not known, or whose links are dead at times."""
    shared: dict[str, Any] = {"num_devices": 2, "episode_length": 8, "arrivals": Poisson(requests_per_s=0.2)}
    if kind == "dead link":
        schemes = [Conventional(num_steps=(25,))]
        return cell(profile=loaded(PHONE), link=Link(adaptation="cqi"), schemes=schemes, **shared)
    problem = Problem(objective="quality", metric="ssim", limits=(Limit(quantity="latency_s", bound=9.0),))
    params = cell(profile=loaded(PHONE), problem=problem, **shared)
    return replace(params, table=params.table.take(np.argsort(params.is_offered, kind="stable")))


@pytest.mark.parametrize("kind", ["not offered", "dead link"])
def test_devices_of_a_cell_name_no_row_that_is_not_offered_or_needs_a_dead_link(kind: str) -> None:
    params = masked_cell(kind)
    env, _ = learning_env(params, 200, "discrete", "raise")
    observed, rng, num_dead = env.reset(), np.random.default_rng(0), 0
    for _ in range(params.episode_length):
        masks, waits = np.stack(env.env_method("action_masks")), observed[:, 1] > 0.0
        is_dead = np.isinf(env.cells.link_state().downlink_s_per_bit) & waits
        assert not masks[:, ~params.is_offered].any()
        assert not masks[is_dead][:, params.needs_link].any()
        assert np.array_equal(masks[waits & ~is_dead], np.tile(params.is_offered, (np.sum(waits & ~is_dead), 1)))
        assert np.array_equal(masks[~waits].argmax(axis=1), np.full(np.sum(~waits), np.argmax(params.is_offered)))
        assert (masks[~waits].sum(axis=1) == 1).all()
        num_dead += int(is_dead.sum())
        observed, _, _, infos = env.step(np.array([rng.choice(np.flatnonzero(mask)) for mask in masks]))
    assert (num_dead > 0) == (kind == "dead link") == bool(params.is_offered[0])
    finals = np.stack([info["action_mask"] for info in infos])
    waits = np.array([info["terminal_observation"][1] > 0.0 for info in infos])
    assert np.array_equal(finals[waits], np.tile(params.is_offered, (waits.sum(), 1)))
    assert not finals[:, ~params.is_offered].any()


@pytest.mark.parametrize("is_cell", [True, False])
def test_an_agent_that_learned_with_masks_is_judged_with_them(is_cell: bool) -> None:
    params: EnvParams = masked_cell("not offered")
    if not is_cell:
        params = request(profile=loaded(PHONE), problem=params.problem, episode_length=8)
    env, limits = learning_env(params, 2, "discrete", "raise")
    untrained = [
        agents.new_agent("cvpo", env, limits, 0, OFF_POLICY | {"use_action_masks": is_masked})
        for is_masked in (True, False)
    ]
    judge = {"num_episodes": 20, "seed": 3, "is_sampled": True, "bad_actions": "raise"}
    assert np.isfinite(evaluate_agent(untrained[0], params, "discrete", **judge).reward).any()
    with pytest.raises(ActionError, match="which is masked"):
        evaluate_agent(untrained[1], params, "discrete", **judge)


def test_the_plan_of_cells_records_that_devices_are_masked() -> None:
    with hydra.initialize_config_module(version_base="1.3", config_module="megopt.conf"):
        chosen = [hydra.compose("train", [f"algorithm={name}", "scenario=cell"]) for name in ("cvpo_cells", "cvpo")]
        cells, single = (next(iter(plans_of(config).values())) for config in chosen)
    assert cells.settings["use_action_masks"] is True
    assert cells.fingerprint()["settings"]["use_action_masks"] is True
    assert "use_action_masks" not in single.settings


def test_a_device_of_a_cell_sees_itself_what_it_shares_and_how_many_others_wait() -> None:
    cells = np.arange(2 * 13, dtype=np.float32).reshape(2, 13) / 100.0
    cells[0, 2:4] = 0.0  # nobody waits in the first cell
    seen = views(cells, 2)
    assert seen.shape == (4, 9)
    assert seen[3, :5] == pytest.approx(cells[1, [1, 3, 5, 7, 9]])
    assert seen[3, 5:8] == pytest.approx(cells[1, 10:])
    assert seen[:, 8].tolist() == [0.0, 0.0, 1.0, 1.0]
