"""megopt/Cell-v0: vector equals scalar, one device equals Request-v0, actions, costs, resets, reports, adapters."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

import megopt.envs  # noqa: F401  registers the environments
from megopt.benchmarks import cell as benchmark
from megopt.configuration import CONF_DIR
from megopt.envs import cell_rendering, scenarios
from megopt.envs.arrivals import ArrivalTrace, Poisson
from megopt.envs.cell import CellEnv, CellVectorEnv
from megopt.envs.cell_dynamics import CellParams
from megopt.envs.cells import Cells
from megopt.envs.dynamics import EnvParams
from megopt.errors import ConfigError
from megopt.problem import Limit, Problem
from megopt.schemes.conventional import Conventional
from megopt.schemes.step_split import StepSplit
from megopt.system.channel import GaussMarkov, LogDistance, Rayleigh, Trace, UrbanMicro
from megopt.system.link import Link
from megopt.tables.profile import load_profile

CELL_ID = "megopt/Cell-v0"
KINDS = ("discrete", "multi_discrete", "box")
PHONE = "a100__snapdragon8gen3__sdxl"
INF = float("inf")


def limits_of(**bounds: float) -> tuple[Limit, ...]:
    return tuple(Limit(quantity=quantity, bound=bound) for quantity, bound in bounds.items())


def full_settings(num_devices: int = 5) -> dict[str, Any]:
    """Settings in which everything happens: uplink, radio energy, batches, a shared band, memory, losses, deadline."""
    return {
        "profile": PHONE,
        "schemes": [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,))],
        "channel": GaussMarkov(snr_db=5.0, correlation=0.8),
        "link": Link(bandwidth_hz=2e6, round_trip_s=0.02, device_rx_power_w=0.9, device_tx_power_w=2.0,
                     edge_tx_power_w=4.7, uplink_snr_offset_db=-3.0),
        "problem": Problem(objective="energy_j", limits=limits_of(latency_s=60.0, device_energy_j=30.0)),
        "num_devices": num_devices,
        "slot_s": 4.0,
        "arrivals": Poisson(requests_per_s=np.linspace(0.05, 0.3, num_devices).tolist()),
        "allocation": "optimal",
        "capacity": 3,
        "max_batch": 2,
        "episode_length": 90,
        "deadline_s": 100.0,
    }  # fmt: skip


loaded = cache(load_profile)


@cache
def default_params() -> CellParams:
    return scenarios.cell(profile=loaded(scenarios.DEFAULT_CELL_PROFILE))


def make(num_envs: int, **settings: Any) -> CellVectorEnv:
    if not settings:
        settings["params"] = default_params()
    if not {"params", "scenario"} & set(settings):
        settings["profile"] = loaded(settings.get("profile", scenarios.DEFAULT_CELL_PROFILE))
    return CellVectorEnv(num_envs, **settings)


def random_rows(env: CellVectorEnv, num_steps: int, seed: int = 0) -> np.ndarray:
    shape = (num_steps, env.num_envs, env.params.num_devices)
    return np.random.default_rng(seed).integers(0, len(env.params.table), shape)


def test_the_registry_makes_both_shells() -> None:
    scalar, vector = gym.make(CELL_ID, params=default_params()), gym.make_vec(CELL_ID, num_envs=3, num_devices=4)
    assert isinstance(scalar.unwrapped, CellEnv)
    assert isinstance(vector, CellVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.observation_space.shape == (3, 5 * 4 + 3)
    assert vector.action_space.shape == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_checkers_of_gymnasium_and_sb3_pass(kind: str) -> None:
    env_checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for settings in ({}, full_settings() | {"bad_actions": "clip", "allocation": "chosen"}):
            env = gym.make(CELL_ID, actions=kind, render_mode="rgb_array", **settings)
            check_env(env.unwrapped)
            env_checker.check_env(env.unwrapped)
    assert not [str(w.message) for w in caught]


class OneCell:
    """A generator that draws for all cells and hands on what one of them gets."""

    def __init__(self, rng: np.random.Generator, num_cells: int, cell: int) -> None:
        self._rng, self._num_cells, self._cell = rng, num_cells, cell

    def _own(self, drawn: np.ndarray) -> np.ndarray:
        own = len(drawn) // self._num_cells
        return drawn[self._cell * own : (self._cell + 1) * own]

    def standard_normal(self, size: int | tuple[int, ...]) -> np.ndarray:
        shape = (size,) if isinstance(size, int) else size
        return self._own(self._rng.standard_normal((self._num_cells * shape[0], *shape[1:])))

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        return self._own(self._rng.uniform(low, high, self._num_cells * size))

    def poisson(self, mean: Any, size: tuple[int, int]) -> np.ndarray:
        return self._own(self._rng.poisson(mean, (self._num_cells * size[0], size[1])))


def compare_vector_with_scalars(
    num_steps: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, num_envs: int = 2
) -> int:
    """Step a vector and as many scalars on the same draws, ask for equal bits, return how many episodes ended."""
    params = scenarios.cell(**settings)
    vector = make(num_envs, params=params)
    observation, _ = vector.reset(seed=11)
    plain, scalars = Cells._generator, []
    for cell in range(num_envs):

        def generator(self: Cells, *key: int, cell: int = cell) -> Any:
            return OneCell(plain(self, *key), num_envs, cell)

        scalar = CellEnv(params=params)
        monkeypatch.setattr(Cells, "_generator", generator)
        first, _ = scalar.reset(seed=11)
        np.testing.assert_array_equal(first, observation[cell])
        scalars.append((scalar, generator))
    rng, num_ended = np.random.default_rng(0), 0
    shape = (num_envs, params.num_devices)
    for _ in range(num_steps):
        monkeypatch.setattr(Cells, "_generator", plain)
        actions = rng.integers(0, len(params.table), shape)
        if params.allocation == "chosen":
            actions = np.concatenate([actions, rng.integers(0, 8, shape)], axis=1)
        observation, rewards, _, truncated, info = vector.step(actions)
        for cell, (scalar, generator) in enumerate(scalars):
            monkeypatch.setattr(Cells, "_generator", generator)
            seen, gained, _, is_truncated, row = scalar.step(actions[cell])
            assert (gained, is_truncated) == (rewards[cell], truncated[cell])
            for name in ("costs", "cost", "num_requests", "num_lost", "row"):
                np.testing.assert_array_equal(row[name], info[name][cell])
            if is_truncated:
                num_ended += 1
                np.testing.assert_array_equal(seen, info["final_obs"][cell])
                for name, value in row["final"].items():
                    np.testing.assert_array_equal(value, info["final_info"]["final"][name][cell])
                seen, _ = scalar.reset()
            np.testing.assert_array_equal(seen, observation[cell])
    return num_ended


def test_vector_equals_scalar_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand steps of a cell with all that there is, then some of the default cell in other places."""
    assert compare_vector_with_scalars(1000, full_settings() | {"allocation": "chosen"}, monkeypatch) == 22
    settings: dict[str, Any] = {"channel": LogDistance(shadowing_db=6.0), "episode_length": 40}
    assert compare_vector_with_scalars(100, settings, monkeypatch) == 4


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 11])
def test_vector_equals_scalar_for_ten_thousand_steps(num_devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare_vector_with_scalars(5_000, full_settings(num_devices), monkeypatch) >= 110


def test_one_row_vector_equals_scalar() -> None:
    vector, scalar = make(1, **full_settings()), CellEnv(**full_settings())
    observation, _ = vector.reset(seed=4)
    seen, _ = scalar.reset(seed=4)
    for rows in random_rows(vector, 100):
        np.testing.assert_array_equal(seen, observation[0])
        observation, *_ = vector.step(rows)
        seen, _, _, is_truncated, _ = scalar.step(rows[0])
        seen = scalar.reset()[0] if is_truncated else seen


def trajectory(env: CellVectorEnv, seed: int, actions: np.ndarray) -> np.ndarray:
    env.reset(seed=seed)
    return np.stack([np.column_stack(env.step(row)[:2]) for row in actions])


def test_same_seed_same_trajectory_and_another_seed_another() -> None:
    actions = random_rows(make(4), 40)
    first = trajectory(make(4), 3, actions)
    np.testing.assert_array_equal(first, trajectory(make(4), 3, actions))
    assert not np.array_equal(first, trajectory(make(4), 4, actions))


def test_a_neighbours_actions_and_resets_change_no_other_cell() -> None:
    calm, restless = make(3, **full_settings()), make(3, **full_settings())
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
    env = make(8, num_devices=8, slot_s=1.0, arrivals=Poisson(requests_per_s=0.5), capacity=50, episode_length=10**6)
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
        settings = full_settings() | {"channel": channel, "schemes": [Conventional(num_steps=(25,))]}
        env = make(4, **settings, bad_actions="clip")
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
        make(1, **settings)


def test_step_before_reset_asks_for_a_reset() -> None:
    env = make(1)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(np.zeros((1, 8), dtype=int))
    env.reset(seed=0)
    with pytest.raises(ResetNeeded, match="call step first"):
        env.outcome()


def test_every_scenario_of_conf_names_the_settings_of_its_function() -> None:
    known = {**scenarios.SCENARIOS, **scenarios.CELL_SCENARIOS}
    paths = sorted((CONF_DIR / "scenario").glob("*.yaml"))
    assert {path.stem for path in paths} == set(known)
    for path in paths:
        config = OmegaConf.load(path)
        if not OmegaConf.missing_keys(config):
            made = instantiate(config)
            assert isinstance(made, EnvParams)
            plain = known[path.stem]()
            for name in ("episode_length", "is_pipelined", "deadline_s", "battery_j", "link", "channel", "problem"):
                assert getattr(made, name) == getattr(plain, name), f"{path.name}: {name}"
        settings = set(config) - {"_target_"}
        assert settings == set(known[path.stem].__kwdefaults__)


def test_the_benchmark_reports_what_it_promises() -> None:
    report = benchmark.run(num_devices=4, num_envs=8, episode_length=6, repeats=1)
    assert report["cell.decisions_per_s"] > 1000.0
    assert 0.3 < report["cell.requests_per_s"] / report["cell.decisions_per_s"] < 1.0
    assert 0.0 < report["cell.share_of_floor"] < 10.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("PPO", "discrete"), ("SAC", "box")])
def test_algorithms_of_sb3_train_unmodified(name: str, kind: str) -> None:
    algorithms = pytest.importorskip("stable_baselines3")
    sb3 = pytest.importorskip("megopt.envs.sb3")
    pytest.importorskip("torch").set_num_threads(1)
    own: dict[str, Any] = {"n_steps": 64} if name == "PPO" else {"learning_starts": 64}
    settings: dict[str, Any] = {"actions": kind, "num_devices": 3, "episode_length": 20}
    for env in (sb3.RequestVecEnv(vector=make(4, **settings)), gym.make(CELL_ID, **settings)):
        model = getattr(algorithms, name)("MlpPolicy", env, seed=0, device="cpu", **own)
        model.learn(200)
        assert env.action_space.contains(model.predict(np.zeros(18, dtype=np.float32))[0])


def test_gymnasium_wrappers_work() -> None:
    env = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(CELL_ID, num_envs=2, episode_length=4))
    env.reset(seed=0)
    for _ in range(4):
        *_, info = env.step(np.zeros((2, 8), dtype=int))
    assert info["episode"]["l"].tolist() == [4, 4]
    synchronous = gym.make_vec(CELL_ID, num_envs=2, params=default_params(), vectorization_mode="sync")
    synchronous.reset(seed=0)
    assert synchronous.step(np.zeros((2, 8), dtype=int))[0].shape == (2, 43)


def test_a_frame_shows_the_past() -> None:
    env = make(2, render_mode="rgb_array", arrivals=ArrivalTrace())
    env.reset(seed=0)
    empty = env.render()
    for rows in random_rows(env, 5):
        env.step(rows)
    frames = env.render()
    assert empty is not None
    assert frames is not None
    assert frames[0].shape == (cell_rendering.HEIGHT_PX, cell_rendering.WIDTH_PX, 3)
    assert frames[0].dtype == np.uint8
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[0], empty[0])
    assert make(1).render() is None
    scalar = CellEnv(render_mode="rgb_array", profile=loaded(PHONE))
    scalar.reset(seed=0)
    assert scalar.render() is not None
