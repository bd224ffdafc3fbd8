"""Lagrangian algorithms: advantages, replay, saving and errors, and constrained bandits whose optimum is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from megopt import rl
from megopt.arrays import FloatArray
from megopt.envs.sb3 import RequestVecEnv
from megopt.errors import ConfigError, ProblemError
from megopt.problem import ceilings
from megopt.rl.advantages import generalised_advantages
from megopt.rl.lagrangian import DDPGLag, PidGains, PPOLag, SACLag, TD3Lag
from megopt.rl.lagrangian_duals import new_duals
from megopt.rl.resume import load_run, save_run

torch.set_num_threads(1)
WEIGHTS = np.array([1.0, 0.5])
ARMS = np.array([[0.0, 0.0], [0.6, 0.2], [1.0, 1.0]])
"""Reward and cost of each arm."""
GENTLE = PidGains(proportional=0.1, integral=0.02, derivative=0.05)
"""For rewards of about 0.5 and updates every few dozen gradient steps."""
LIMITS = {"arms": (0.25, 0.9), "box": (0.25, 0.36)}


def outcome(kind: str, context: Any, action: Any) -> tuple[FloatArray, FloatArray]:
    """Reward and costs of a contextual bandit: three arms, or two numbers in [0, 1] that cost their squares."""
    if kind == "arms":
        arm = np.asarray(action)
        costs = np.stack([ARMS[arm, 1], np.full(arm.shape, 0.5)], axis=-1)  # the second limit is always slack
        return WEIGHTS[context] * ARMS[arm, 0], costs
    levels = np.asarray(action, dtype=float)
    return WEIGHTS[context] * levels.sum(axis=-1), levels**2


class Bandit(gym.Env[Any, Any]):
    """Contextual bandit whose episodes last `length` steps, up to a time limit, or up to a true end for length 1."""

    def __init__(self, kind: str = "box", length: int = 1, report: str = "costs") -> None:
        self.kind, self.length, self.report = kind, length, report
        self.observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
        ends = (-np.inf, np.inf) if kind == "line" else (0.0, 1.0)
        box = gym.spaces.Box(*ends, (2,), np.float32)
        self.action_space: gym.Space[Any] = gym.spaces.Discrete(3) if kind == "arms" else box
        self.reward_offset = 0.0

    def _observe(self) -> Any:
        self.context = int(self.np_random.integers(2))
        return np.eye(2, dtype=np.float32)[self.context]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.num_steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        reward, costs = outcome(self.kind, self.context, action)
        info = {"costs": {"costs": costs}, "cost": {"cost": costs[0]}, "none": {}}[self.report]
        is_over = self.num_steps >= self.length
        return (
            self._observe(),
            float(reward) + self.reward_offset,
            is_over and self.length == 1,
            is_over and self.length > 1,
            info,
        )


def bandits(num_envs: int, **settings: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: Bandit(**settings) for _ in range(num_envs)])


def best_value(kind: str) -> float:
    """Optimum over all mixtures of actions per context, by linear programming (a grid of 0.05 for numbers)."""
    grid = np.linspace(0.0, 1.0, 21)
    actions = np.arange(3) if kind == "arms" else np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    rewards, costs = zip(*(outcome(kind, np.full(len(actions), c), actions) for c in (0, 1)), strict=True)
    answer = linprog(
        -np.concatenate(rewards) / 2.0,
        A_ub=np.concatenate(costs).T / 2.0,
        b_ub=LIMITS[kind],
        A_eq=np.kron(np.eye(2), np.ones(len(actions))),
        b_eq=np.ones(2),
    )
    return float(-answer.fun)


def played(model: Any, kind: str, *, deterministic: bool = False) -> tuple[float, FloatArray]:
    """Mean reward and costs of a policy over 4000 contexts, as many of one kind as of the other."""
    contexts = np.arange(4000) % 2
    actions, _ = model.predict(np.eye(2, dtype=np.float32)[contexts], deterministic=deterministic)
    reward, costs = outcome(kind, contexts, actions)
    return float(reward.mean()), costs.mean(axis=0)


def tiny(algorithm: type[Any], env: Any = None, **settings: Any) -> Any:
    """An algorithm with networks and batches as small as they get."""
    settings = {"limits": [0.25, 0.36], "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}} | settings
    if algorithm is PPOLag:
        settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 2} | settings
    else:
        settings = {"learning_starts": 8, "batch_size": 8, "buffer_size": 200, "dual_interval": 8} | settings
    return algorithm("MlpPolicy", env or Bandit(), **settings)


ALGORITHMS = [PPOLag, SACLag, TD3Lag, DDPGLag]
FEW_FAST = [PPOLag, DDPGLag, *(pytest.param(algorithm, marks=pytest.mark.slow) for algorithm in (SACLag, TD3Lag))]
"""All of them, but one of each kind where slow tests are left out: on-policy and off-policy."""


def test_cost_advantages_equal_those_of_stable_baselines3_on_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    costs, values = rng.normal(size=(2, 7, 3, 2))
    last, is_done = rng.normal(size=(3, 2)), rng.random((7, 3)) < 0.3
    next_values = np.concatenate([values[1:], last[None]])
    next_values[is_done] = 0.0
    ours = generalised_advantages(costs, values, next_values, is_done, gamma=0.9, decay=0.8)
    space = gym.spaces.Discrete(2)
    for column in range(2):
        theirs = RolloutBuffer(7, Bandit().observation_space, space, gamma=0.9, gae_lambda=0.8, n_envs=3)
        theirs.rewards, theirs.values = costs[..., column], values[..., column]
        theirs.episode_starts[1:] = is_done[:-1]
        theirs.compute_returns_and_advantage(torch.as_tensor(last[:, column]), is_done[-1])
        np.testing.assert_allclose(ours[..., column], theirs.advantages, atol=1e-6)


def test_a_time_limit_bootstraps_and_an_end_does_not() -> None:
    values, costs = np.full((2, 1, 1), 10.0), np.ones((2, 1, 1))
    is_done = np.ones((2, 1), dtype=bool)
    next_values = np.array([[[10.0]], [[0.0]]])  # the first step was cut short, the second was the end
    advantages = generalised_advantages(costs, values, next_values, is_done, gamma=0.9, decay=0.95)
    np.testing.assert_allclose(advantages[:, 0, 0], [1.0 + 9.0 - 10.0, 1.0 - 10.0])


def test_ppo_learns_from_the_advantage_of_the_lagrangian(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def look(model: Any) -> None:
        buffer = model.rollout_buffer
        seen["reward"], seen["combined"] = buffer.returns - buffer.values, buffer.advantages
        costs, observations = np.stack(model._costs), torch.as_tensor(buffer.observations).reshape(-1, 2)
        values = model.cost_value(observations).detach().numpy().reshape(costs.shape)
        seen["costs"] = (costs - LIMITS["arms"]) / np.array(LIMITS["arms"]) - values

    monkeypatch.setattr(PPOLag, "train", look)
    model = tiny(PPOLag, bandits(2, kind="arms"), limits=LIMITS["arms"])
    model.duals.state = model.duals.state.__class__(
        multipliers=np.array([0.0, 0.0]), integral=np.array([0.7, 3.0]), smoothed=np.zeros(2), num_updates=1
    )
    model.learn(32)
    assert (model.duals.multipliers > 0.1).all()
    expected = seen["reward"] - seen["costs"] @ model.duals.multipliers
    np.testing.assert_allclose(seen["combined"], expected, atol=1e-5)


@pytest.mark.parametrize("algorithm", FEW_FAST)
def test_a_saved_model_comes_back_with_duals_critics_and_policy(algorithm: type[Any], tmp_path: Path) -> None:
    model = tiny(algorithm, bandits(2), tensorboard_log=str(tmp_path)).learn(64, log_interval=1)
    assert model.duals.state.num_updates >= 2
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=bandits(2), device="cpu")
    for name in ("multipliers", "integral", "smoothed"):
        np.testing.assert_array_equal(getattr(again.duals.state, name), getattr(model.duals.state, name))
    assert again.duals.limits == model.duals.limits
    before, after = model.get_parameters(), again.get_parameters()
    critics = [name for name in before if name.startswith("cost_")]
    assert len(critics) == (2 if algorithm is PPOLag else 3)
    for name in (name for name in critics if not name.endswith("optimizer")):
        assert all(torch.equal(before[name][key], after[name][key]) for key in before[name])
    observation = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(
        again.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    again.learn(64, reset_num_timesteps=False)
    assert again.num_timesteps == 128
    assert again.duals.state.num_updates > model.duals.state.num_updates
    written = b"".join(path.read_bytes() for path in (tmp_path / f"{algorithm.__name__}_1").iterdir())
    assert all(f"lagrange/{name}_1".encode() in written for name in ("multiplier", "cost", "limit"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", FEW_FAST)
def test_a_run_that_was_kept_goes_on_as_the_unbroken_one(algorithm: type[Any], tmp_path: Path) -> None:
    model = tiny(algorithm, bandits(1)).learn(64)
    path = save_run(model, tmp_path / "run.megrun")
    model.learn(64, reset_num_timesteps=False)
    again = load_run(algorithm, path)
    again.learn(64, reset_num_timesteps=False)
    for one, other in zip(model.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    np.testing.assert_array_equal(again.duals.multipliers, model.duals.multipliers)


def test_a_callback_stops_a_run_and_the_next_run_begins_new_episodes() -> None:
    class StopAt(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 10

    for algorithm in (PPOLag, TD3Lag):
        model = tiny(algorithm, Bandit(length=50), limit_per="episode", limits=[1.0, 1.0]).learn(64, StopAt())
        assert model.num_timesteps == 10
        assert model.learn(150).duals.measure.episode_length == 50.0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_environment_without_costs_or_with_a_nan_reward_ends_in_one_line(algorithm: type[Any]) -> None:
    with pytest.raises(ProblemError, match=r"environment 0: info holds .*; expected info\[\"costs\"\]") as error:
        tiny(algorithm, Bandit(report="none")).learn(32)
    assert "\n" not in str(error.value)
    env = Bandit()
    env.reward_offset = float("nan")
    with pytest.raises(ProblemError, match="environment 0: its reward is NaN or infinite"):
        tiny(algorithm, env).learn(32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SACLag("MlpPolicy", Bandit()), r"limits = None; expected a list with one number per cost"),
        (lambda: tiny(PPOLag, limits=[]), r"limits = \[\]; expected one finite number per cost"),
        (lambda: tiny(TD3Lag, n_steps=3), r"TD3Lag: .* n_steps .*; expected .* one-step returns"),
        (lambda: tiny(DDPGLag, policy_delay=3), r"DDPGLag: policy_delay; expected no keyword of TD3's own"),
        (lambda: tiny(PPOLag, Bandit("line")), r"PPOLag: action space is Box.*; expected a bounded Box"),
    ],
)
def test_settings_that_cannot_be_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_multipliers_grow_with_the_rewards_whose_size_is_measured() -> None:
    gains = {"integral": 0.1, "proportional": 0.0, "derivative": 0.0}
    small, large = (new_duals([1.0], "step", None, gains, reward_scale=None) for _ in range(2))
    for duals, factor in ((small, 1.0), (large, 30.0)):
        duals.measure_rewards(factor * np.array([[1.0, 3.0]]))
        duals.measure_rewards(np.zeros(3))  # measured once
        duals.restart(2)
        duals.count(np.full((2, 1), 1.5), np.array([False, False]))
        assert duals.update()
    assert small.multipliers == pytest.approx([0.1 * 0.5])
    assert large.multipliers == pytest.approx(30.0 * small.multipliers)
    with pytest.raises(ConfigError, match="gains: speed; expected some of proportional"):
        new_duals([1.0], "step", None, {"speed": 1.0})
    with pytest.raises(ConfigError, match="reward_scale"):
        new_duals([1.0], "step", None, None, reward_scale=0.0)


def test_ddpg_is_td3_without_its_additions() -> None:
    model = tiny(DDPGLag)
    assert (model.policy_delay, model.target_noise_clip, model.critic.n_critics) == (1, 0.0, 1)
    assert model.cost_critic.n_critics == 2


@pytest.mark.parametrize(("algorithm", "actions"), [(PPOLag, "multi_discrete"), (SACLag, "box")])
def test_the_native_vector_environment_serves_as_it_is(algorithm: type[Any], actions: str) -> None:
    env = RequestVecEnv(num_envs=2, actions=actions)
    model = tiny(algorithm, env, limits=ceilings(env.vector.params.problem)).learn(64)
    assert model.duals.state.num_updates >= 2
    assert model.duals.measure.mean.shape == (env.costs.shape[1],)
    assert model.duals.measure.mean[0] > 0.0


def decaying(rate: float) -> Callable[[float], float]:
    return lambda remaining: rate * max(remaining, 0.05)


def check_bandit(model: Any, kind: str, tolerance: float = 0.15) -> None:
    value, costs = played(model, kind)
    limits = np.array(LIMITS[kind])
    assert value >= 0.95 * best_value(kind), (value, costs)
    assert costs[0] == pytest.approx(limits[0], rel=tolerance), (value, costs)
    assert (costs <= (1.0 + tolerance) * limits).all(), (value, costs)


@pytest.mark.slow
@pytest.mark.parametrize(("limit_per", "length"), [("step", 1), ("episode", 4)])
def test_ppo_ends_near_the_mixture_of_arms_that_is_optimal(limit_per: Any, length: int) -> None:
    limits = [limit * length for limit in LIMITS["arms"]]
    model = PPOLag(
        "MlpPolicy",
        bandits(16, kind="arms", length=length),
        limits=limits,
        limit_per=limit_per,
        n_steps=32,
        batch_size=128,
        n_epochs=5,
        gamma=0.8,
        learning_rate=decaying(4e-3),
        gains=GENTLE,
        policy_kwargs={"net_arch": [16]},
        seed=1,
        device="cpu",
    ).learn(512 * 40)
    check_bandit(model, "arms")
    # The better context mixes its last two arms: lambda = 0.25 * (1 - 0.6) / (1 - 0.2) per relative excess.
    assert model.duals.multipliers[0] == pytest.approx(0.125, rel=0.25)
    assert model.duals.multipliers[1] == 0.0
    # A fixed arm per context cannot do it: the optimum is a mixture, which only the sampled policy plays.
    assert played(model, "arms", deterministic=True)[1][0] != pytest.approx(0.25, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [SACLag, TD3Lag, DDPGLag])
def test_off_policy_algorithms_end_near_the_optimum_under_two_limits(algorithm: type[Any]) -> None:
    settings: dict[str, Any] = {"action_noise": NormalActionNoise(np.zeros(2), np.full(2, 0.1))}
    if algorithm is SACLag:
        settings = {"ent_coef": 0.005}
    model = algorithm(
        "MlpPolicy",
        bandits(16),
        limits=LIMITS["box"],
        learning_rate=decaying(3e-3),
        learning_starts=256,
        batch_size=128,
        train_freq=1,
        gradient_steps=4,
        tau=0.02,
        buffer_size=10_000,
        dual_interval=128,
        gains=GENTLE,
        policy_kwargs={"net_arch": [32, 32]},
        seed=1,
        device="cpu",
        **settings,
    ).learn(6400)
    check_bandit(model, "box")
    # Without a grid: a_i = w sqrt(d_i / E[w^2]) and lambda_i = sqrt(d_i E[w^2]) / 2 per relative excess.
    known = np.sqrt(np.array(LIMITS["box"]) * np.mean(WEIGHTS**2)) / 2.0
    np.testing.assert_allclose(model.duals.multipliers, known, rtol=0.25)
    observation, action = torch.eye(2), torch.zeros(2, 2)  # 0 is the middle of the box: 0.5, whose square is 0.25
    learned = torch.cat(model.cost_critic(observation, action), dim=1).detach().numpy()
    np.testing.assert_allclose(learned, np.tile([0.0, 0.25 / 0.36 - 1.0], (2, 1)), atol=0.15)


def test_the_room_names_all_its_algorithms() -> None:
    assert (rl.PPOLag, rl.SACLag, rl.TD3Lag, rl.DDPGLag) == (PPOLag, SACLag, TD3Lag, DDPGLag)
    assert {name for name in rl.__all__ if callable(getattr(rl, name))} == set(rl.__all__) <= set(dir(rl))
    with pytest.raises(AttributeError, match=r"megopt\.rl"):
        _ = rl.SafePPO
