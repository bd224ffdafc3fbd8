"""CVPO: heads against torch's distributions, exact resume, masks, recoveries, and a bandit of known optimum."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.logger import configure

from megopt.arrays import BoolArray, FloatArray
from megopt.envs.sb3 import RequestVecEnv
from megopt.errors import ConfigError, ProblemError
from megopt.rl.action_head import Candidates
from megopt.rl.action_heads import GaussianHead, head_of
from megopt.rl.categorical_heads import CategoricalHead, JointHead
from megopt.rl.cvpo import CVPO
from megopt.rl.policies import CVPOPolicy
from megopt.rl.resume import load_run, save_run
from megopt.rl.updates import fit_actor

th.set_num_threads(1)
REWARDS = np.array([0.0, 0.5, 1.0, 0.3])
COSTS = np.array([[0.0, 0.3, 1.0, 0.1], [0.2, 0.9, 0.3, 0.0]])
SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([2, 2]),
    "box": spaces.Box(-2.0, 1.0, (1,)),
}


class Bandit(gym.Env[FloatArray, Any]):
    """Four arms with a reward and costs each; episodes of ten steps, cut. The state says nothing."""

    def __init__(self, kind: str = "discrete", num_limits: int = 1, forbidden: int | None = None) -> None:
        self.kind, self.num_limits, self.forbidden = kind, num_limits, forbidden
        self.observation_space = spaces.Box(-1.0, 1.0, (1,))
        self.action_space = SPACES[kind]
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        arm = int(arms(self.kind, np.asarray(action)[np.newaxis])[0])
        assert arm != self.forbidden
        self.time += 1
        return self._observation(), REWARDS[arm], False, self.time >= 10, {"costs": COSTS[: self.num_limits, arm]}

    def action_masks(self) -> BoolArray:
        return np.arange(4) != self.forbidden


def arms(kind: str, actions: Any) -> Any:
    """Return the arm of each action."""
    if kind == "multi":
        return actions[:, 0] * 2 + actions[:, 1]
    return np.minimum(3, (actions[:, 0] + 2.0) / 3.0 * 4.0).astype(int) if kind == "box" else actions


def agent(env: Any, **settings: Any) -> CVPO:
    chosen: dict[str, Any] = {
        "limits": [0.4],
        "gamma": 0.9,
        "learning_starts": 40,
        "batch_size": 16,
        "num_samples": 8,
        "policy_kwargs": {"net_arch": [16]},
        "measure_window": 50,
        "device": "cpu",
        "seed": 3,
    }
    return CVPO("MlpPolicy", env, **chosen | settings)


def numbers(model: CVPO) -> list[Any]:
    """Return all that a run has come to."""
    optimisers = [model.policy.actor.optimizer.state_dict(), model.policy.critic.optimizer.state_dict()]
    moments = [value for state in optimisers for slot in state["state"].values() for value in slot.values()]
    assert model.latest is not None
    assert model.thresholds is not None
    duals = [model.latest.temperature, *model.latest.multipliers, *model.fit_multipliers, *model.thresholds.current()]
    stored = [model.replay_buffer.rewards, model.replay_buffer.costs, model.replay_buffer.observations]
    tensors = [tensor.numpy() for tensor in (*model.policy.state_dict().values(), *moments)]
    return [*tensors, np.array(duals), *stored, np.array(model.num_timesteps)]


@pytest.mark.parametrize("kind", ["discrete", pytest.param("box", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_the_unbroken_one(kind: str, tmp_path: Path) -> None:
    unbroken = agent(Bandit(kind), n_steps=2).learn(63).learn(30, reset_num_timesteps=False)
    path = save_run(agent(Bandit(kind), n_steps=2).learn(63), tmp_path / "half.megrun")
    np.random.seed(99)  # noqa: NPY002
    th.manual_seed(99)
    resumed = load_run(CVPO, path).learn(30, reset_num_timesteps=False)
    for one, other in zip(numbers(unbroken), numbers(resumed), strict=True):
        assert np.array_equal(one, other)


def test_a_run_goes_on_with_another_environment(tmp_path: Path) -> None:
    path = save_run(agent(Bandit()).learn(55), tmp_path / "run", with_env=False)
    with pytest.raises(ConfigError, match="without its environment"):
        load_run(CVPO, path)
    model = load_run(CVPO, path, env=Bandit())
    assert model.replay_buffer.truncations[model.replay_buffer.newest, 0]
    assert model.learn(10, reset_num_timesteps=False).num_timesteps == 65
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="expected a file of save_run"):
        load_run(CVPO, tmp_path / "junk")


@pytest.mark.parametrize("kind", ["discrete", "multi", "box"])
def test_saved_agents_act_alike(kind: str) -> None:
    model = agent(Bandit(kind)).learn(60)
    archive = io.BytesIO()
    model.save(archive)
    archive.seek(0)
    loaded = CVPO.load(archive)
    observations = np.linspace(-1.0, 1.0, 7, dtype=np.float32)[:, None]
    ours, theirs = (each.predict(observations, deterministic=True)[0] for each in (model, loaded))
    assert np.array_equal(ours, theirs)
    assert all(model.action_space.contains(action) for action in ours)
    assert loaded.latest is not None
    assert loaded.fit_multipliers == pytest.approx(model.fit_multipliers)


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_callbacks_logs_and_progress_bar(tmp_path: Path) -> None:
    evaluation = EvalCallback(Bandit(), eval_freq=30, n_eval_episodes=1, verbose=0, warn=False)
    model = agent(Bandit(), limits=[0.4], limit_per="step", tensorboard_log=str(tmp_path))
    model.learn(60, callback=CallbackList([evaluation]), progress_bar=True, log_interval=1)
    assert evaluation.n_calls == 60
    assert list(tmp_path.glob("run_1/events*"))


def test_masked_choices_are_never_taken() -> None:
    model = agent(Bandit(forbidden=2), use_action_masks=True).learn(80)  # the bandit raises at the forbidden arm
    assert np.array_equal(model.replay_buffer.masks[:80, 0], np.tile([True, True, False, True], (80, 1)))
    taken = model.predict(np.zeros((200, 1), np.float32), action_masks=np.arange(4) == 1)[0]
    assert set(taken.tolist()) == {1}
    with pytest.raises(ConfigError, match="use_action_masks"):
        agent(Bandit("box"), use_action_masks=True)


def test_states_without_a_choice_lend_no_trust_to_the_others() -> None:
    model = agent(Bandit(), use_action_masks=True).learn(80)
    batch = model.replay_buffer.sample(40)
    assert batch.masks is not None
    masks = th.ones_like(batch.masks)
    masks[10:, 1:] = False
    fit = fit_actor(
        model.policy, batch._replace(masks=masks), np.array([9.0]), 1.0, model.settings, np.ones(1), latest=None
    )
    assert fit.step.weights.shape == (10, 4)
    assert fit.step.kl <= model.settings.max_kl + 1e-5
    every = model.policy.head.candidates(model.policy.actor_target(batch.observations), masks, 1)
    assert every.prior is not None
    values = model.policy.critic_target.joined(batch.observations, every)[1] * every.prior
    assert fit.costs[0] == pytest.approx(float(values.sum(1).mean()), rel=1e-5)  # over all states
    for head in (JointHead((2, 2), (0, 0)), CategoricalHead((4,), (0,))):
        assert head.has_choice(masks).tolist() == [True] * 10 + [False] * 30
    assert GaussianHead(1).has_choice(masks).all()


def test_limits_that_no_policy_meets_are_logged_as_recoveries(tmp_path: Path) -> None:
    model = agent(Bandit(), limits=[-5.0], learning_starts=20)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(60, log_interval=1)
    model.logger.close()
    assert model.latest is not None
    assert not model.latest.is_feasible
    text = (tmp_path / "progress.csv").read_text().splitlines()
    row = dict(zip(text[0].split(","), text[-1].split(","), strict=True))
    assert float(row["train/recovery_rate"]) == 1.0
    assert float(row["cost_0/limit"]) == -5.0


@pytest.mark.filterwarnings("ignore:.*Box.*precision:UserWarning")
def test_messages_name_what_is_wrong() -> None:
    class Broken(Bandit):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return *super().step(action)[:1], float("nan"), False, False, {"cost": 0.0}

    with pytest.raises(ProblemError, match="environment 0: its reward is NaN or infinite"):
        agent(Broken()).learn(5)
    with pytest.raises(ProblemError, match="expected 2"):
        agent(Bandit(num_limits=1), limits=[0.1, 0.2]).learn(5)
    unbounded = Bandit()
    unbounded.action_space = spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ConfigError, match="bounded Box"):
        agent(unbounded)
    with pytest.raises(ConfigError, match="gamma"):
        agent(Bandit(), gamma=1.5)
    with pytest.raises(ConfigError, match=r"limits = 0\.5; expected a list with one number per cost"):
        agent(Bandit(), limits=0.5)
    with pytest.raises(ConfigError, match="expected a list with one number per cost"):
        agent(Bandit(), limits=["a", 1.0])
    with pytest.raises(ConfigError, match="batch_size is 0; expected a whole number from 1"):
        agent(Bandit(), batch_size=0)
    told = Bandit()
    told.observation_space = spaces.Dict({"link": spaces.Box(-1.0, 1.0, (1,))})
    with pytest.raises(ConfigError, match="expected arrays; flatten them"):
        agent(told)


def test_masks_that_the_environment_does_not_have_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Bandit, "action_masks")
    with pytest.raises(ConfigError, match=r"no method action_masks\(\); expected one"):
        agent(Bandit(), use_action_masks=True).learn(60)


def test_gaussian_divergences_are_those_of_torch() -> None:
    head, (new, old) = GaussianHead(2), th.randn(2, 5, 4, generator=th.Generator().manual_seed(0))
    (mean, std), (old_mean, old_std) = head.moments(new), head.moments(old)
    before = th.distributions.Normal(old_mean, old_std)
    moved = th.distributions.kl_divergence(before, th.distributions.Normal(mean, old_std)).sum(1).mean()
    spread = th.distributions.kl_divergence(before, th.distributions.Normal(old_mean, std)).sum(1).mean()
    assert head.divergences(new, old, None).tolist() == pytest.approx([float(moved), float(spread)], rel=1e-4)


def test_more_samples_do_not_change_the_balance_of_fit_and_divergence() -> None:
    head, (new, old) = GaussianHead(2), th.randn(2, 5, 4, generator=th.Generator().manual_seed(0))
    latent, weights = th.randn(5, 3, 2), th.softmax(th.randn(5, 3), dim=1)
    once = Candidates(actions=latent, encoding=None, prior=None)
    often = Candidates(actions=latent.repeat(1, 4, 1), encoding=None, prior=None)
    loss = head.fit_loss(new, old, once, weights, None)
    assert float(head.fit_loss(new, old, often, weights.repeat(1, 4) / 4.0, None)) == pytest.approx(float(loss))


def test_joint_probabilities_are_products_of_factors() -> None:
    head = CategoricalHead((2, 3), (0, 5))
    outputs = th.randn(4, 5, generator=th.Generator().manual_seed(1))
    masks = th.tensor([[True, True, True, False, True]]).expand(4, 5)
    prior = head.candidates(outputs, masks, 1).prior
    assert prior is not None
    assert prior.sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-6)
    assert prior[:, [1, 4]].tolist() == [[0.0, 0.0]] * 4
    first, second = th.softmax(outputs[:, :2], 1), th.softmax(outputs[:, 2:].where(masks[:, 2:], th.tensor(-1e9)), 1)
    assert th.allclose(prior, (first[:, :, None] * second[:, None]).reshape(4, 6), atol=1e-6)
    actions = th.tensor([[1, 7], [0, 5]])
    assert head.encode(actions).tolist() == [5, 0]
    acted = head.act(outputs, masks, False)
    assert set(acted[:, 1].tolist()) <= {5, 7}
    assert head.divergences(outputs, outputs, masks).tolist() == pytest.approx([0.0], abs=1e-6)


def test_joint_masks_take_single_combinations_out() -> None:
    head = JointHead((2, 3), (0, 5))
    outputs = th.randn(4, 5, generator=th.Generator().manual_seed(1))
    legal = np.array([[True, False, True], [True, True, False]])
    masks = th.as_tensor(legal.ravel()).expand(4, 6)
    prior, free = (head.candidates(outputs, each, 1).prior for each in (masks, None))
    assert prior is not None
    assert free is not None
    factors = CategoricalHead((2, 3), (0, 5)).candidates(outputs, None, 1).prior
    assert factors is not None
    assert th.allclose(free, factors, atol=1e-6)
    kept = factors * masks
    assert th.allclose(prior, kept / kept.sum(1, keepdim=True), atol=1e-6)
    for is_deterministic in (False, True):
        acted = head.act(outputs.repeat(50, 1), masks.repeat(50, 1), is_deterministic)
        assert legal[acted[:, 0], acted[:, 1] - 5].all()
    assert head.divergences(outputs, outputs, masks).tolist() == pytest.approx([0.0], abs=1e-6)
    new = th.distributions.Categorical(probs=head.row_log_probs(th.zeros(4, 5), masks).exp())
    divergence = th.distributions.kl_divergence(th.distributions.Categorical(probs=prior), new).mean()
    assert float(head.divergences(th.zeros(4, 5), outputs, masks)) == pytest.approx(float(divergence), rel=1e-4)
    with pytest.raises(ConfigError, match="at most 1024"):
        JointHead((40, 40), (0, 0))


def test_probabilities_are_those_that_actions_are_drawn_from() -> None:
    model = CVPO("MlpPolicy", Bandit("multi"), limits=[0.5], seed=0, device="cpu", use_action_masks=True)
    states = np.linspace(-1.0, 1.0, 3, dtype=np.float32)[:, None]
    masks = np.tile([True, False, True, True], (3, 1))
    free, shares = model.probabilities(states), model.probabilities(states, masks)
    assert free.shape == (3, 4)
    assert free.sum(axis=1) == pytest.approx(np.ones(3))
    assert np.array_equal(shares[:, 2:], np.zeros((3, 2)))  # the first factor may only be 0
    many = np.repeat(states[:1], 4000, axis=0)
    drawn = arms("multi", model.predict(many)[0])
    assert np.bincount(drawn, minlength=4) / 4000 == pytest.approx(free[0], abs=0.03)
    with pytest.raises(ConfigError, match="expected actions that can be listed"):
        CVPO("MlpPolicy", Bandit("box"), device="cpu").probabilities(states)


def test_an_agent_keeps_to_joint_masks() -> None:
    class Coupled(Bandit):
        def action_masks(self) -> BoolArray:
            return super().action_masks().reshape(2, 2)

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            answer = super().step(action)
            return *answer[:4], answer[4] | {"action_mask": self.action_masks()}

    model = agent(Coupled("multi", forbidden=2), use_joint_masks=True).learn(80)  # the bandit raises at arm 2
    assert np.array_equal(model.replay_buffer.next_masks[:80, 0], np.tile([True, True, False, True], (80, 1)))
    archive = io.BytesIO()
    model.save(archive)
    archive.seek(0)
    only = np.array([[False, True], [False, False]])
    taken = CVPO.load(archive).predict(np.zeros((50, 1), np.float32), action_masks=only[np.newaxis].repeat(50, 0))[0]
    assert np.array_equal(taken, np.tile([0, 1], (50, 1)))
    with pytest.raises(ConfigError, match=r"shape \(3,\); expected 4 entries per state, the joint actions"):
        model.predict(np.zeros((1, 1), np.float32), action_masks=np.ones(3, dtype=bool))


def test_large_products_are_sampled() -> None:
    head = head_of(spaces.MultiDiscrete([40, 40]))
    assert head.num_joint == 0
    candidates = head.candidates(th.zeros(3, 80), None, 6)
    assert candidates.encoding is not None
    assert candidates.encoding.shape == (3, 6, 80)
    assert candidates.encoding.sum(2).tolist() == [[2.0] * 6] * 3
    uniform = head.fit_loss(th.zeros(3, 80), th.zeros(3, 80), candidates, th.full((3, 6), 1 / 6), None)
    assert float(uniform) == pytest.approx(2 * np.log(40), rel=1e-5)


def test_critics_of_stored_actions_are_those_of_all_actions() -> None:
    policy = CVPOPolicy(spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]), lambda _: 1e-3, [8], num_limits=2)
    states, actions = th.randn(5, 2), th.tensor([[0, 0], [1, 2], [0, 1], [1, 0], [0, 2]])
    every = policy.critic(states, None)
    assert every.shape == (1, 3, 5, 6)
    index = policy.head.encode(actions)
    assert th.equal(policy.critic.of_stored(states, index), every[:, :, th.arange(5), index])
    assert isinstance(policy.head, CategoricalHead)


def test_it_learns_on_the_request_environment() -> None:
    env = RequestVecEnv(num_envs=4)
    limits = [1.0] * env.costs.shape[1]
    model = agent(env, limits=limits, use_action_masks=True, learning_starts=32, gradient_steps=2).learn(80)
    assert model.num_limits == len(limits)
    assert model._n_updates > 0
    assert all(th.isfinite(tensor).all() for tensor in model.policy.state_dict().values())
