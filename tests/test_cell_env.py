"""megopt/Cell-v0: vector equals scalar, one device equals Request-v0, actions, costs, resets, reports, adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import megopt.envs  # noqa: F401  registers the environments
from megopt.benchmarks import cell as benchmark
from megopt.configuration import CONF_DIR
from megopt.envs import scenarios
from megopt.envs.arrivals import Poisson
from megopt.envs.cell import CellEnv, CellVectorEnv
from megopt.envs.dynamics import EnvParams
from megopt.errors import ConfigError
from megopt.schemes.conventional import Conventional
from megopt.system.channel import GaussMarkov, LogDistance, Rayleigh, Trace, UrbanMicro
from tests.environments import (
    INF,
    KINDS,
    assert_checkers_pass,
    cell_settings,
    compare_vector_with_scalars,
    default_cell,
    make_cell,
    random_rows,
    trajectory,
)

CELL_ID = "megopt/Cell-v0"


def test_the_registry_makes_both_shells() -> None:
    scalar, vector = gym.make(CELL_ID, params=default_cell()), gym.make_vec(CELL_ID, num_envs=3, num_devices=4)
    assert isinstance(scalar.unwrapped, CellEnv)
    assert isinstance(vector, CellVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.observation_space.shape == (3, 5 * 4 + 3)
    assert vector.action_space.shape == (3, 4)


@pytest.mark.parametrize("kind", ["shared", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_checkers_of_gymnasium_and_sb3_pass(kind: str) -> None:
    full = cell_settings() | {"bad_actions": "clip", "allocation": "equal" if kind == "shared" else "chosen"}
    assert_checkers_pass(CELL_ID, {"actions": kind}, {"actions": kind, **full})


def test_vector_equals_scalar_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells with all that there is, then the default cell in other places."""
    full = make_cell(2, **cell_settings() | {"allocation": "chosen"})
    assert compare_vector_with_scalars(full, CellEnv, 200, monkeypatch) == 4
    plain = make_cell(2, channel=LogDistance(shadowing_db=6.0), episode_length=20)
    assert compare_vector_with_scalars(plain, CellEnv, 45, monkeypatch) == 4


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 11])
def test_vector_equals_scalar_for_ten_thousand_steps(num_devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = make_cell(2, **cell_settings(num_devices))
    assert compare_vector_with_scalars(vector, CellEnv, 10_000, monkeypatch) >= 220


def test_one_row_vector_equals_scalar() -> None:
    vector, scalar = make_cell(1, **cell_settings()), CellEnv(**cell_settings())
    observation, _ = vector.reset(seed=4)
    seen, _ = scalar.reset(seed=4)
    for rows in random_rows(vector, 100):
        np.testing.assert_array_equal(seen, observation[0])
        observation, *_ = vector.step(rows)
        seen, _, _, is_truncated, _ = scalar.step(rows[0])
        seen = scalar.reset()[0] if is_truncated else seen


def test_same_seed_same_trajectory_and_another_seed_another() -> None:
    actions = random_rows(make_cell(4), 40)
    first = trajectory(make_cell(4), 3, actions)
    np.testing.assert_array_equal(first, trajectory(make_cell(4), 3, actions))
    assert not np.array_equal(first, trajectory(make_cell(4), 4, actions))


def test_a_neighbours_actions_and_resets_change_no_other_cell() -> None:
    calm, restless = make_cell(3, **cell_settings()), make_cell(3, **cell_settings())
    actions = random_rows(calm, 120)
    other = actions.copy()
    other[:, 1] = random_rows(calm, 120, seed=1)[:, 1]
    calm.reset(seed=9)
    restless.reset(seed=9)
    is_one = np.array([False, True, False])
    num_different = 0
    for step in range(100):
        expected, rewards, _, truncated, info = calm.step(actions[step])
        seen, gained, _, ended, own = restless.step(other[step])
        if step % 17 == 3:
            before = seen
            seen, _ = restless.reset(options={"reset_mask": is_one})
            np.testing.assert_array_equal(seen[~is_one], before[~is_one])
            assert seen[1, -1] == 0.0
        np.testing.assert_array_equal(seen[~is_one], expected[~is_one])
        np.testing.assert_array_equal(gained[~is_one], rewards[~is_one])
        np.testing.assert_array_equal(own["costs"][~is_one], info["costs"][~is_one])
        np.testing.assert_array_equal(ended[~is_one], truncated[~is_one])
        num_different += not np.array_equal(seen[1], expected[1])
    assert num_different > 80
    with pytest.raises(ConfigError, match="expected \\(3,\\) and bool"):
        calm.reset(options={"reset_mask": np.ones(15, dtype=bool)})


def test_devices_and_cells_have_independent_streams() -> None:
    """Correlations of SNR and of arrivals, between neighbours and in time, stay within 4.5 standard errors."""
    env = make_cell(
        8, num_devices=8, slot_s=1.0, arrivals=Poisson(requests_per_s=0.5), capacity=50, episode_length=10**6
    )
    rows = np.full((8, 8), int(np.argmin(env.params.table.work.edge_s)))
    env.reset(seed=5)
    snr, waiting = [], [env.step(rows)[0][:, 8:16].ravel()]
    for _ in range(800):
        observation, *_ = env.step(rows)
        snr.append(observation[:, :8].ravel())
        waiting.append(observation[:, 8:16].ravel())
    counts = np.diff(50.0 * np.array(waiting, dtype=float), axis=0) + (np.array(waiting[:-1]) > 0)
    assert abs(counts.mean() - 0.5) < 4.5 * np.sqrt(0.5 / counts.size)
    for seen in (np.array(snr, dtype=float), counts):
        scaled = (seen - seen.mean(axis=0)) / seen.std(axis=0)
        between = np.mean(scaled[:, :-1] * scaled[:, 1:], axis=0)
        in_time = np.mean(scaled[:-1] * scaled[1:], axis=0)
        assert max(np.abs(between).max(), np.abs(in_time).max()) < 4.5 / np.sqrt(len(scaled))


def test_observations_stay_in_their_space_on_every_channel() -> None:
    trace = Trace(snr_db=[-INF, -200.0, 10.0, 200.0], device_stride=1)
    for channel in (Rayleigh(), GaussMarkov(correlation=0.9), LogDistance(), UrbanMicro(), trace):
        settings = cell_settings() | {"channel": channel, "schemes": [Conventional(num_steps=(25,))]}
        env = make_cell(4, **settings, bad_actions="clip")
        observation, _ = env.reset(seed=0)
        for rows in random_rows(env, 25):
            assert env.observation_space.contains(observation)
            observation, rewards, _, _, info = env.step(rows)
            assert np.all(np.isfinite(rewards))
            assert np.all(np.isfinite(info["costs"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allocation": "fair"}, "allocation is 'fair'; expected one of equal, proportional, optimal, chosen"),
        ({"num_devices": 0}, "num_devices is 0"),
        ({"slot_s": 0.0}, "slot_s is 0"),
        ({"max_batch": 64}, "measured batches of 1 to 16"),
        ({"arrivals": Poisson(requests_per_s=[0.1, 0.2])}, "one number, or 8: one per device"),
        ({"scenario": "request"}, "expected one of cell"),
        ({"battery_j": 10.0}, "scenario cell has no battery_j; expected some of profile"),
        ({"render_mode": "human"}, "expected rgb_array or None"),
        ({"autoreset_mode": AutoresetMode.NEXT_STEP}, "SameStep or Disabled"),
    ],
)
def test_wrong_settings_say_what_to_do(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_cell(1, **settings)


def test_step_before_reset_asks_for_a_reset() -> None:
    env = make_cell(1)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(np.zeros((1, 8), dtype=int))
    env.reset(seed=0)
    with pytest.raises(ResetNeeded, match="call step first"):
        env.outcome()


OWN_OF_CONF = {"meg_cvpo": ("k_factor_db", "are_places_stratified", "bandwidth_hz", "limit_share")}
"""Settings in which a file of conf/scenario is not the published setting that its function has as default."""


def composed(path: Path) -> DictConfig:
    """Return a file of conf/ on top of those of its folder that it begins from."""
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    bases = [composed(path.with_name(f"{base}.yaml")) for base in config.pop("defaults", []) if base != "_self_"]
    merged = OmegaConf.merge(*bases, config)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.slow
def test_every_scenario_of_conf_names_the_settings_of_its_function() -> None:
    """All of them, so that a file shows what there is; those named like their function with its defaults."""
    known = {**scenarios.SCENARIOS, **scenarios.CELL_SCENARIOS}
    paths = sorted((CONF_DIR / "scenario").glob("*.yaml"))
    assert {path.stem for path in paths} >= set(known)
    for path in paths:
        config = composed(path)
        made, function = instantiate(config, _convert_="all"), str(config._target_).rsplit(".", 1)[-1]
        assert isinstance(made, EnvParams)
        assert set(config) - {"_target_"} == set(known[function].__kwdefaults__)
        if path.stem == function:
            plain = known[function](**{name: config[name] for name in OWN_OF_CONF.get(function, ())})
            for name in ("episode_length", "is_pipelined", "deadline_s", "battery_j", "link", "channel", "problem"):
                assert getattr(made, name) == getattr(plain, name), f"{path.name}: {name}"


def test_the_benchmark_reports_what_it_promises() -> None:
    report = benchmark.run(num_devices=4, num_envs=8, episode_length=6, repeats=1)
    assert report["cell.decisions_per_s"] > 1000.0
    assert 0.3 < report["cell.requests_per_s"] / report["cell.decisions_per_s"] < 1.0
    assert 0.0 < report["cell.share_of_floor"] < 10.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("PPO", "discrete"), ("SAC", "box"), ("DQN", "shared")])
def test_algorithms_of_sb3_train_unmodified(name: str, kind: str) -> None:
    algorithms = pytest.importorskip("stable_baselines3")
    sb3 = pytest.importorskip("megopt.envs.sb3")
    pytest.importorskip("torch").set_num_threads(1)
    own: dict[str, Any] = {"n_steps": 64} if name == "PPO" else {"learning_starts": 64}
    settings: dict[str, Any] = {"actions": kind, "num_devices": 3, "episode_length": 20}
    for env in (sb3.RequestVecEnv(vector=make_cell(4, **settings)), gym.make(CELL_ID, **settings)):
        model = getattr(algorithms, name)("MlpPolicy", env, seed=0, device="cpu", **own)
        model.learn(200)
        assert env.action_space.contains(model.predict(np.zeros(18, dtype=np.float32))[0])


def test_gymnasium_wrappers_work() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(CELL_ID, num_envs=2, episode_length=4))
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.zeros((2, 8), dtype=int))
    assert info["episode"]["l"].tolist() == [4, 4]
    synchronous = gym.make_vec(CELL_ID, num_envs=2, params=default_cell(), vectorization_mode="sync")
    synchronous.reset(seed=0)
    assert synchronous.step(np.zeros((2, 8), dtype=int))[0].shape == (2, 43)


@pytest.mark.heavy
def test_dqn_learns_on_a_cell() -> None:
    """From -13.4 per request of random shared rows to within 15 % of the best row chosen for every request, -3.0."""
    algorithms = pytest.importorskip("stable_baselines3")
    sb3 = pytest.importorskip("megopt.envs.sb3")
    pytest.importorskip("torch").set_num_threads(1)
    params = default_cell()
    env = sb3.RequestVecEnv(vector=CellVectorEnv(16, params=params, actions="shared"))
    settings = {"learning_starts": 1600, "learning_rate": 1e-3, "train_freq": 1, "gradient_steps": 3, "batch_size": 128}
    model = algorithms.DQN(
        "MlpPolicy", env, exploration_fraction=0.5, gamma=0.8, target_update_interval=1600, seed=0, **settings
    )
    model.learn(24_000)

    def reward_per_request(act: Callable[[np.ndarray], Any]) -> float:
        held_out = CellVectorEnv(8, params=params, actions="shared")
        observation, _ = held_out.reset(seed=1000)
        for _ in range(params.episode_length):
            observation, *_, info = held_out.step(act(observation))
        return float(np.mean(info["final"]["reward"]))

    rng, num_rows = np.random.default_rng(0), len(params.table)
    random = reward_per_request(lambda seen: rng.integers(num_rows, size=len(seen)))
    fixed = max(reward_per_request(lambda seen, row=row: np.full(len(seen), row)) for row in range(num_rows))  # type: ignore[misc]
    learned = reward_per_request(lambda seen: model.predict(seen, deterministic=True)[0])
    assert random < 3.0 * fixed
    assert learned > 1.15 * fixed
