"""The running mean of CVPO's actor: what it is, who acts when, and what it leaves as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from megopt.errors import ConfigError
from megopt.rl.cvpo import CVPO
from tests.test_cvpo import Bandit, agent


def parameters(network: th.nn.Module) -> Any:
    return np.concatenate([value.detach().numpy().ravel() for value in network.parameters()])


def test_it_is_the_mean_over_the_latest_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a share of 1 the mean over all; of .1 the newest alone for the first ten updates."""
    visited: list[Any] = []
    plain = CVPO.train

    def train(model: CVPO, gradient_steps: int, batch_size: int) -> None:
        plain(model, gradient_steps, batch_size)
        visited.append(parameters(model.policy.actor))

    monkeypatch.setattr(CVPO, "train", train)
    whole = agent(Bandit(), average_share=1.0).learn(60)
    np.testing.assert_allclose(parameters(whole.policy.actor_average), np.mean(visited, axis=0), atol=1e-6)
    assert np.ptp(visited, axis=0).max() > 1e-4
    brief = agent(Bandit(), average_share=0.1).learn(50)
    np.testing.assert_array_equal(parameters(brief.policy.actor_average), parameters(brief.policy.actor))


def test_the_newest_actor_explores_and_the_mean_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent(Bandit(), average_share=1.0).learn(60)
    for network, arm in ((model.policy.actor, 1), (model.policy.actor_average, 2)):
        with th.no_grad():
            for value in network.parameters():
                value.zero_()
            list(network.parameters())[-1].copy_(1e3 * th.eye(4)[arm])
    seen = np.zeros((5, 1), dtype=np.float32)
    assert model.predict(seen)[0].tolist() == [2] * 5
    assert model.probabilities(seen)[:, 2] == pytest.approx(1.0)
    taken: list[int] = []
    plain = Bandit.step

    def step(env: Bandit, action: Any) -> Any:
        taken.append(int(action))
        return plain(env, action)

    monkeypatch.setattr(Bandit, "step", step)
    model.learn(1, reset_num_timesteps=False)
    assert taken == [1]
    assert not model.policy.is_exploring


def test_it_changes_nothing_in_what_is_learned() -> None:
    runs = [agent(Bandit(), average_share=share).learn(80) for share in (0.0, 0.5)]
    np.testing.assert_array_equal(*(parameters(run.policy.actor) for run in runs))
    np.testing.assert_array_equal(parameters(runs[0].policy.actor_average), parameters(runs[0].policy.actor))


def test_saved_and_resumed_agents_answer_by_the_mean(tmp_path: Path) -> None:
    model = agent(Bandit(), average_share=1.0).learn(60)
    assert np.any(parameters(model.policy.actor_average) != parameters(model.policy.actor))
    model.save(tmp_path / "agent.zip")
    loaded = CVPO.load(tmp_path / "agent.zip", device="cpu")
    np.testing.assert_array_equal(parameters(loaded.policy.actor_average), parameters(model.policy.actor_average))
    seen = np.zeros((3, 1), dtype=np.float32)
    np.testing.assert_array_equal(loaded.probabilities(seen), model.probabilities(seen))


def test_callbacks_are_answered_by_the_mean() -> None:
    asked: list[bool] = []

    class Asks(BaseCallback):
        def _on_step(self) -> bool:
            asked.append(self.model.policy.is_exploring)
            return True

    agent(Bandit()).learn(50, callback=Asks())
    assert asked == [False] * 50


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"average_share is 1\.5; expected"):
        agent(Bandit(), average_share=1.5)
