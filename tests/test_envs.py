"""megopt/Request-v0: vector equals scalar, solver equals environment, actions, costs, resets, adapters, frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

import megopt.envs  # noqa: F401  registers the environments
from megopt.envs import dynamics
from megopt.envs.actions import dimensions_of
from megopt.envs.request import RequestEnv, RequestVectorEnv
from megopt.errors import ConfigError, NotOfferedError, ProblemError
from megopt.policies.base import Observation
from megopt.policies.optimal import Optimal
from megopt.problem import Problem, ceilings, costs, evaluate, is_feasible, reward, violations
from megopt.schemes.conventional import Conventional
from megopt.solvers import exhaustive
from megopt.system.channel import GaussMarkov, LogDistance, Rayleigh, Rician, Static, Trace, UrbanMicro
from megopt.tables.profile import Profile
from tests.environments import (
    INF,
    KINDS,
    PHONE,
    assert_checkers_pass,
    compare_vector_with_scalars,
    loaded,
    request_settings,
    trajectory,
)
from tests.plain_tables import limits_of

REQUEST_ID = "megopt/Request-v0"


def make(num_envs: int, **settings: Any) -> RequestVectorEnv:
    return RequestVectorEnv(num_envs, **settings)


def test_the_registry_makes_both_shells() -> None:
    scalar, vector = gym.make(REQUEST_ID), gym.make_vec(REQUEST_ID, num_envs=3)
    assert isinstance(scalar.unwrapped, RequestEnv)
    assert isinstance(vector, RequestVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.observation_space.shape == (3, len(dynamics.FIELDS))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "discrete" else pytest.mark.slow) for kind in KINDS]
)
def test_checkers_of_gymnasium_and_sb3_pass(kind: str) -> None:
    full = request_settings() | {"bad_actions": "clip"}
    assert_checkers_pass(REQUEST_ID, {"actions": kind}, {"actions": kind, **full})


@pytest.mark.parametrize("is_full", [False, True])
def test_vector_equals_scalar_bit_for_bit(is_full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = request_settings() if is_full else {"channel": LogDistance(shadowing_db=6.0)}
    num_ended = compare_vector_with_scalars(make(3, **settings), RequestEnv, 200, monkeypatch)
    assert num_ended > 9 if is_full else num_ended == 9  # batteries end episodes early


@pytest.mark.slow
def test_vector_equals_scalar_for_ten_thousand_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_vector_with_scalars(make(3, **request_settings()), RequestEnv, 10_000, monkeypatch) > 500


def test_one_row_vector_equals_scalar() -> None:
    vector, scalar = make(1), RequestEnv()
    observation, _ = vector.reset(seed=4)
    seen, _ = scalar.reset(seed=4)
    for step in range(200):
        np.testing.assert_array_equal(seen, observation[0])
        observation, *_ = vector.step([step % 161])
        seen, _, _, is_truncated, _ = scalar.step(step % 161)
        seen = scalar.reset()[0] if is_truncated else seen


def test_same_seed_same_trajectory_and_another_seed_another() -> None:
    actions = np.random.default_rng(0).integers(0, 161, (150, 4))
    first = trajectory(make(4), 3, actions)
    np.testing.assert_array_equal(first, trajectory(make(4), 3, actions))
    assert not np.array_equal(first, trajectory(make(4), 4, actions))


def test_a_neighbours_actions_and_resets_change_no_other_row() -> None:
    """Row 1 drains its battery early and often in one run only; rows 0 and 2 see the same bits in both."""
    settings = request_settings()
    rows = np.random.default_rng(1).integers(0, 5, (300, 3))
    busy = rows.copy()
    busy[:, 1] = 5  # device only: 50 J and more
    calm, restless = make(3, **settings), make(3, **settings)
    first, second = trajectory(calm, 9, rows), trajectory(restless, 9, busy)
    assert not np.array_equal(first[:, 1], second[:, 1])
    np.testing.assert_array_equal(first[:, [0, 2]], second[:, [0, 2]])


def test_a_reset_mask_resets_only_its_rows() -> None:
    env = make(4)
    env.reset(seed=0)
    for _ in range(5):
        before, *_ = env.step([0, 1, 2, 3])
    mask = np.array([False, True, False, False])
    after, _ = env.reset(options={"reset_mask": mask})
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert after[1, 5] == 0.0
    assert not np.array_equal(after[1], env.reset(options={"reset_mask": mask})[0][1])
    with pytest.raises(ConfigError, match="expected \\(4,\\) and bool"):
        env.reset(options={"reset_mask": np.ones(3, dtype=bool)})


def test_rows_have_independent_streams() -> None:
    """Correlation of neighbouring rows' SNR in dB stays within 4.5 standard errors, as does that in time."""
    env = make(64, episode_length=10_000)
    env.reset(seed=5)
    seen = np.stack([env.step(np.zeros(64, dtype=int))[0][:, 0] for _ in range(1500)]).astype(float)
    seen -= seen.mean(axis=0)
    seen /= seen.std(axis=0)
    between = np.mean(seen[:, :-1] * seen[:, 1:], axis=0)
    in_time = np.mean(seen[:-1] * seen[1:], axis=0)
    assert max(np.abs(between).max(), np.abs(in_time).max()) < 4.5 / np.sqrt(1500)


@pytest.mark.parametrize(
    "problem",
    [
        Problem(objective="latency_s", limits=limits_of(device_energy_j=40.0)),
        Problem(objective="quality", metric="ssim", limits=limits_of(latency_s=3.5, device_energy_j=60.0)),
        Problem(objective="device_energy_j", metric="ssim", limits=limits_of(latency_s=3.0, quality=0.7)),
    ],
)
def test_the_solvers_policy_obtains_what_the_solver_claims(problem: Problem) -> None:
    env = make(200, problem=problem)
    table, policy = env.params.table, Optimal(table=env.params.table, problem=problem)
    env.reset(seed=1)
    for _ in range(70):
        link = env.link_state()
        claimed = exhaustive.solve(table, link, problem)
        _, rewards, _, _, info = env.step(policy.act(Observation(link=link)))
        can, sign = claimed.is_feasible, 1.0 if problem.objective == "quality" else -1.0
        assert can.any()
        np.testing.assert_allclose(sign * rewards[can], claimed.values[can], rtol=0, atol=1e-9)  # noqa: PD011
        assert np.all(info["cost"][can] == 0.0)
        assert np.all(info["cost"][~can] > 0.0)


@pytest.mark.parametrize("is_full", [False, True])
def test_reward_and_costs_are_those_of_the_problem(is_full: bool) -> None:
    settings = request_settings() | {"is_pipelined": False} if is_full else {}
    env = make(50, **settings)
    problem, rng = env.params.problem, np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(70):
        link, rows = env.link_state(), rng.integers(0, len(env.params.table), 50)
        result = evaluate(env.params.table, rows, link, problem.metric)
        _, rewards, _, _, info = env.step(rows)
        np.testing.assert_array_equal(rewards, reward(result, problem))
        np.testing.assert_array_equal(info["costs"], costs(result, problem))
        np.testing.assert_allclose(info["cost"], violations(result, problem).sum(axis=1), rtol=1e-14)
        np.testing.assert_array_equal(info["row"], rows)
        np.testing.assert_array_equal(env.outcome().latency_s, result.latency_s)


def test_pipelining_hides_the_edge_behind_the_previous_airtime() -> None:
    settings = request_settings() | {"battery_j": INF, "channel": Static(snr_db=-3.0)}
    env = make(6, **settings)
    env.reset(seed=0)
    before = None
    for _ in range(4):
        rows = np.arange(6)
        plain = evaluate(env.params.table, rows, env.link_state())
        env.step(rows)
        hidden = np.zeros(6) if before is None else np.minimum(plain.edge_s, before)
        execution = np.maximum(plain.edge_s - (0.0 if before is None else before), 0.0) + plain.downlink_s
        rest = plain.device_s + plain.uplink_s + env.params.table.work.num_round_trips[rows] * 0.02
        np.testing.assert_allclose(env.outcome().latency_s, plain.latency_s - hidden, rtol=1e-14)
        np.testing.assert_allclose(env.outcome().latency_s, execution + rest, rtol=1e-12)
        before = plain.downlink_s
    assert np.any(hidden > 0.5)


def test_final_observation_and_report_of_an_episode() -> None:
    env = make(3, episode_length=5, deadline_s=4.2)
    auto, _ = env.reset(seed=2)
    by_hand = make(3, episode_length=5, deadline_s=4.2, autoreset_mode=AutoresetMode.DISABLED)
    by_hand.reset(seed=2)
    rows, results = np.array([5, 80, 160]), []
    for step in range(5):
        auto, _, _, truncated, info = env.step(rows)
        kept, *_, own = by_hand.step(rows)
        results.append((env.outcome(), info))
        assert ("final_obs" in info) == (step == 4) == bool(truncated.all())
    np.testing.assert_array_equal(info["final_obs"], kept)
    assert np.all(info["final_obs"][:, 5] == 1.0)
    assert np.all(auto[:, 5] == 0.0)
    assert np.all(auto[:, 1:4] == 0.0)
    final, problem = info["final_info"]["final"], env.params.problem
    np.testing.assert_allclose(final["latency_s"], np.mean([o.latency_s for o, _ in results], axis=0))
    np.testing.assert_allclose(final["costs"], np.mean([i["costs"] for _, i in results], axis=0))
    np.testing.assert_array_equal(final["is_kept"], final["costs"] <= ceilings(problem))
    broken = np.mean([~is_feasible(o, problem) for o, _ in results], axis=0)
    np.testing.assert_allclose(final["violation_rate"], broken)
    np.testing.assert_allclose(final["late_rate"], np.mean([i["is_late"] for _, i in results], axis=0))
    assert np.all(np.isnan(final["edge_energy_j"]))
    assert "final_obs" not in own
    with pytest.raises(ResetNeeded, match="environment 0"):
        by_hand.step(rows)


def test_a_battery_ends_the_episode_and_is_seen() -> None:
    env = make(2, **request_settings())
    env.reset(seed=0)
    drained, share = 0.0, 1.0
    for _ in range(60):
        observation, _, terminated, _, info = env.step([5, 0])
        drained += float(env.outcome().device_energy_j[0])
        if terminated[0]:
            break
        assert share > observation[0, 4] == pytest.approx(1.0 - drained / 400.0, abs=1e-6)
        share = observation[0, 4]
    assert terminated.tolist() == [True, False]
    assert drained >= 400.0
    assert info["_final_obs"].tolist() == [True, False]
    assert info["final_obs"][0, 4] == 0.0


def test_observations_stay_in_their_space_on_every_channel() -> None:
    trace = Trace(snr_db=[-INF, -200.0, 10.0, 200.0])
    schemes = [Conventional(num_steps=(25,))]
    for channel in (Rayleigh(), Rician(), GaussMarkov(correlation=0.9), LogDistance(), UrbanMicro(), trace):
        env = make(8, profile=loaded(PHONE), schemes=schemes, channel=channel, bad_actions="clip")
        observation, _ = env.reset(seed=0)
        for row in range(70):
            assert env.observation_space.contains(observation)
            observation, rewards, *_ = env.step(np.full(8, row % 6))
            assert np.all(np.isfinite(rewards))


def test_snr_is_seen_in_db_on_a_line() -> None:
    for snr_db, seen in ((-40.0, -1.0), (-30.0, -1.0), (10.0, 0.0), (30.0, 0.5), (50.0, 1.0), (60.0, 1.0)):
        observation, _ = make(1, channel=Static(snr_db=snr_db)).reset(seed=0)
        assert observation[0, 0] == pytest.approx(seen, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"actions": "continuous"}, ConfigError, "expected one of discrete, multi_discrete, box"),
        ({"bad_actions": "ignore"}, ConfigError, "raise or clip"),
        ({"scenario": "cvpo"}, ConfigError, "expected one of request, meg_cvpo"),
        ({"profle": "x"}, ConfigError, "has no profle; expected some of profile"),
        ({"render_mode": "human"}, ConfigError, "expected rgb_array"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP}, ConfigError, "SameStep or Disabled"),
        ({"episode_length": 0}, ConfigError, "episode_length is 0"),
        ({"battery_j": -1.0}, ConfigError, "battery_j is -1"),
        ({"problem": Problem(objective="energy_j")}, ProblemError, "energy_j was not measured"),
        (
            {"scenario": "meg_cvpo", "profile": "megsplitting_sdxl"},
            NotOfferedError,
            "lacks a row for edge denoise_step.*psnr_db at several values",
        ),
    ],
)
def test_wrong_settings_say_what_to_do(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(1, **settings)


def test_step_before_reset_asks_for_a_reset() -> None:
    with pytest.raises(ResetNeeded, match="call reset first"):
        make(1).step([0])


def step_and_merge_profile() -> Profile:
    """Return the phone's profile with made-up merge rows and quality over steps and merge ratios."""
    phone = loaded(PHONE)
    like = phone.compute[(phone.compute["side"] == "device") & (phone.compute["component"] == "vae_decode")]
    rows = [
        like.assign(side=side, component=component, latency_s=0.01, energy_j=0.05)
        for side, component in (("edge", "merge"), ("device", "unmerge"))
    ]
    steps, ratios = np.meshgrid(np.arange(4, 13), np.linspace(0.0, 0.9, 10))
    blank = dict.fromkeys(("region_ratio", "std", "num_images"), np.nan)
    quality = pd.DataFrame(
        {
            "scheme": "step_split",
            "num_steps": steps.ravel(),
            "split_step": steps.ravel(),
            "sr_scale": 1,
            "codec_bits": 16,
            "merge_ratio": ratios.ravel(),
            "metric": "psnr_db",
            "value": 20.0 + steps.ravel() - 8.0 * ratios.ravel(),
            "kind": "modelled",
            "source": like["source"].iloc[0],
            **blank,
        }
    ).reindex(columns=phone.quality.columns)
    compute = pd.concat([phone.compute, *rows], ignore_index=True)
    compute.loc[compute["num_steps"].notna(), "num_steps"] = 4
    return replace(phone, compute=compute, quality=quality)


def test_the_setting_of_meg_cvpo() -> None:
    env = make(512, scenario="meg_cvpo", profile=step_and_merge_profile(), actions="box")
    observation, _ = env.reset(seed=0)
    params = env.params
    assert params.is_pipelined
    assert params.episode_length == 64
    assert ceilings(params.problem).tolist() == [3.0, 1800.0]
    mean_snr_db = 10.0 * np.log10(env._begun().state.channel.mean_snr)
    ends = [30.0 + 94.0 - 35.3 - 37.6 * np.log10(d) for d in (300.0, 200.0)]
    assert ends[0] <= mean_snr_db.min() < ends[0] + 0.1 < ends[1] - 0.1 < mean_snr_db.max() <= ends[1]
    assert {d.name for d in dimensions_of(params.table)} == {"num_steps", "merge_ratio"}
    observation, rewards, *_ = env.step(np.zeros((512, 2), dtype=np.float32))
    assert np.all((rewards > 15.0) & (rewards < 35.0))
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_row_reset_by_hand_does_not_depend_on_earlier_resets_of_others(order: tuple[int, ...]) -> None:
    def begun(masks: list[list[bool]]) -> np.ndarray:
        env = RequestVectorEnv(3, autoreset_mode="Disabled", episode_length=2)
        env.reset(seed=3)
        for mask in masks:
            observation, _ = env.reset(options={"reset_mask": np.array(mask)})
        return observation

    alone = [begun([[i == row for i in range(3)]])[row] for row in range(3)]
    together = begun([[i == row for i in range(3)] for row in order])
    np.testing.assert_array_equal(together, np.stack(alone))


def test_a_seed_and_a_mask_do_not_go_together() -> None:
    env = RequestVectorEnv(2)
    with pytest.raises(ConfigError, match="a seed begins all rows anew"):
        env.reset(seed=1, options={"reset_mask": np.array([True, False])})
    with pytest.raises(ConfigError, match="num_envs"):
        RequestVectorEnv(2.7)  # type: ignore[arg-type]


def test_there_is_no_outcome_before_the_first_step() -> None:
    env = RequestVectorEnv(2)
    env.reset(seed=1)
    with pytest.raises(ResetNeeded, match="nothing was decided yet"):
        env.outcome()
