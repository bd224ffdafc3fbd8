"""megopt/Request-v0 under Gymnasium's wrappers, stable-baselines3, a plain learner and the benchmark."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import megopt.envs  # noqa: F401  registers the environments
from megopt.benchmarks import env as benchmark
from megopt.benchmarks.episodes import gathered_columns
from megopt.envs import scenarios
from megopt.envs.request import RequestVectorEnv

REQUEST_ID = "megopt/Request-v0"


def make(num_envs: int, **settings: Any) -> RequestVectorEnv:
    return RequestVectorEnv(num_envs, **settings)


def test_gymnasium_wrappers_work() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(
        gym.wrappers.vector.ClipReward(gym.make_vec(REQUEST_ID, num_envs=2, episode_length=4), -5.0, 0.0)
    )
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.array([5, 160]))
    assert info["episode"]["l"].tolist() == [4, 4]
    listed = gym.wrappers.vector.DictInfoToList(gym.make_vec(REQUEST_ID, num_envs=2, episode_length=2))
    listed.reset(seed=0)
    listed.step(np.array([5, 160]))
    infos = listed.step(np.array([5, 160]))[4]
    assert infos[1]["final_info"]["final"]["num_requests"] == 2  # type: ignore[index]
    by_hand = gym.make_vec(REQUEST_ID, num_envs=2, autoreset_mode="Disabled")
    rescaled = gym.wrappers.vector.RescaleObservation(by_hand, np.float32(0.0), np.float32(1.0))
    rescaled.reset(seed=0)
    assert rescaled.step(np.array([5, 160]))[0].min() >= 0.0
    synchronous = gym.make_vec(REQUEST_ID, num_envs=2, vectorization_mode="sync")
    synchronous.reset(seed=0)
    assert synchronous.step(np.array([5, 160]))[0].shape == (2, 6)


def test_sb3_sees_terminal_observations_and_time_limits() -> None:
    sb3 = pytest.importorskip("megopt.envs.sb3")
    env = sb3.RequestVecEnv(3, episode_length=4)
    native = make(3, episode_length=4)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), native.reset(seed=7)[0])
    for step in range(4):
        observation, rewards, dones, infos = env.step(np.array([5, 80, 160]))
        expected, own_rewards, _, _, info = native.step([5, 80, 160])
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_allclose(rewards, own_rewards, rtol=1e-6)
        np.testing.assert_array_equal(env.costs, info["costs"])
        assert [i["TimeLimit.truncated"] for i in infos] == [step == 3] * 3 == dones.tolist()
        np.testing.assert_array_equal(infos[-1]["costs"], info["costs"][2])
    np.testing.assert_array_equal(infos[1]["terminal_observation"], info["final_obs"][1])
    assert infos[1]["final"]["num_requests"] == 4
    assert len(infos[:2]) == 2
    with pytest.raises(IndexError):
        infos[3]
    assert env.env_method("action_masks", indices=[0])[0].shape == (161,)
    assert env.get_attr("num_envs") == [3, 3, 3]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("PPO", "multi_discrete"), ("DQN", "discrete"), ("SAC", "box")])
def test_algorithms_of_sb3_train_unmodified(name: str, kind: str) -> None:
    algorithms = pytest.importorskip("stable_baselines3")
    vec_monitor = pytest.importorskip("stable_baselines3.common.vec_env").VecMonitor
    sb3 = pytest.importorskip("megopt.envs.sb3")
    pytest.importorskip("torch").set_num_threads(1)
    own: dict[str, Any] = {"n_steps": 64} if name == "PPO" else {"learning_starts": 64}
    for env in (vec_monitor(sb3.RequestVecEnv(4, actions=kind)), gym.make(REQUEST_ID, actions=kind)):
        model = getattr(algorithms, name)("MlpPolicy", env, seed=0, device="cpu", **own)
        model.learn(300)
        assert len(model.ep_info_buffer) > 0
        assert np.all(np.isfinite(model.predict(np.zeros(6, dtype=np.float32))[0]))


def cross_entropy(env: gym.vector.VectorEnv[Any, Any, Any], num_rounds: int) -> list[float]:
    """Learn one distribution over rows, knowing nothing but Gymnasium; return the mean penalised reward per round."""
    num_rows = int(env.single_action_space.n)  # type: ignore[attr-defined]
    rng, weights, gains = np.random.default_rng(0), np.full(num_rows, 1.0 / num_rows), []
    env.reset(seed=0)
    for _ in range(num_rounds):
        rows = rng.choice(num_rows, env.num_envs, p=weights)
        _, rewards, _, _, info = env.step(rows)
        score = rewards - 1.0 * info["cost"]
        elite = rows[score >= np.quantile(score, 0.9)]
        weights = 0.7 * weights + 0.3 * np.bincount(elite, minlength=num_rows) / len(elite)
        gains.append(float(score.mean()))
    return gains


def test_a_learner_that_knows_only_gymnasium_improves() -> None:
    gains = cross_entropy(gym.make_vec(REQUEST_ID, num_envs=512), 60)
    assert np.mean(gains[-5:]) > 0.5 * np.mean(gains[:5])  # rewards are negative: half the penalised latency


@pytest.mark.slow
def test_the_benchmark_reports_what_it_promises() -> None:
    report = benchmark.run(num_envs=(1, 16), repeats=1, num_devices=4, num_cells=8, num_memory_steps=20)
    for count in (1, 16):
        assert report[f"request.{count}.steps_per_s"] > 100.0
        assert 0.0 < report[f"request.{count}.share_of_floor"] < 10.0
    assert report["cell.decisions_per_s"] > 100.0
    assert report["cartpole.steps_per_s"] > 0.0
    assert report["memory.steps"] == 20.0
    assert len(gathered_columns(scenarios.request())) == 4


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    assert_no_growth(20_000)


@pytest.mark.heavy
def test_memory_does_not_grow_over_a_million_steps() -> None:
    assert_no_growth(1_000_000)


def assert_no_growth(num_steps: int) -> None:
    report = benchmark.memory(num_steps)
    assert report["memory.request_growth_mb"] <= 1.0
    assert report["memory.cell_growth_mb"] <= 1.0


@pytest.mark.slow
def test_the_python_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stable_baselines3", "moviepy"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "environments.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) >= 4
    assert [path.suffix for path in (tmp_path / "films").iterdir()] == [".mp4"]
