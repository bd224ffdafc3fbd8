"""Settings of CVPO and of the algorithms beside it: what is refused, and the forms that mean the same."""

from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from megopt.errors import ConfigError
from megopt.rl import agents
from megopt.rl.settings import OFF_POLICY, off_policy_settings
from tests.test_cvpo import Bandit, agent


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"learning_rate": -1}, "learning_rate is -1; expected 1e-12 to 10"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a number"),
        ({"learning_starts": -1}, "learning_starts is -1; expected a whole number from 0"),
        ({"gradient_steps": -2}, "gradient_steps is -2; expected a whole number from 0"),
        ({"train_freq": 0}, "train_freq is 0; expected a whole number from 1"),
        (
            {"train_freq": (2, "day")},
            r"train_freq is \(2, 'day'\); expected a whole number, or one and step or episode",
        ),
        ({"train_freq": []}, "train_freq is None; expected a whole number from 1"),
        ({"tau": 7.0}, "tau is 7; expected 0 to 1"),
        ({"policy_kwargs": {"net_arch": [16, 0]}}, "CVPO: net_arch: width is 0; expected a whole number from 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        agent(Bandit(), **settings)


@pytest.mark.parametrize("every", [3, [3, "step"], (3, "step")])
def test_forms_of_train_freq(every: Any) -> None:
    assert off_policy_settings("here", OFF_POLICY | {"train_freq": every})["train_freq"] == (3, "step")
    assert agent(Bandit(), train_freq=every).train_freq.frequency == 3


def test_episodes_between_updates() -> None:
    model = agent(Bandit(), train_freq=[1, "episode"], gradient_steps=-1).learn(200)
    assert model._n_updates > 100
    assert agent(Bandit(), train_freq=model.train_freq).train_freq == model.train_freq


@pytest.mark.parametrize(
    ("algorithm", "settings", "text"),
    [
        ("cvpo", {"train_freq": [1, "episode"]}, "train_freq is 1 episodes of 2 environments; expected steps from 1"),
        ("cvpo", {"gradient_steps": 0}, "gradient_steps is 0, so nothing is learned; expected a whole number from 1"),
        ("ppo_lag", {"n_steps": 0}, "algorithm ppo_lag: .* n_steps=0 .*; PPOLag refuses its settings"),
        ("ppo_lag", {"speed": 1}, "unexpected keyword argument 'speed'; expected keywords of PPOLag"),
    ],
)
def test_agents_by_name_are_refused_in_words(algorithm: str, settings: dict[str, Any], text: str) -> None:
    env = DummyVecEnv([Bandit, Bandit])
    with pytest.raises(ConfigError, match=text):
        agents.new_agent(algorithm, env, [0.4], 0, settings)


def test_a_device_that_is_not_there_is_no_silent_processor() -> None:
    with pytest.raises(ConfigError, match="algorithm cvpo: PyTorch cannot use device 'cuda:77'"):
        agents.new_agent("cvpo", DummyVecEnv([Bandit]), [0.4], 0, {}, device="cuda:77")
    assert agents.new_agent("cvpo", DummyVecEnv([Bandit]), [0.4], 0, {}, device="auto").num_limits == 1
