"""Settings of CVPO and of the algorithms beside it: what is refused, and the forms that mean the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from megopt.errors import ConfigError
from megopt.rl import agents
from megopt.rl.settings import checked_settings
from tests.test_cvpo import Bandit, agent

OUT_OF_RANGE = [
    ({"learning_rate": -1}, "learning_rate is -1; expected 0 to 10"),
    ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a number"),
    ({"learning_starts": -1}, "learning_starts is -1; expected a whole number from 0"),
    ({"gradient_steps": -2}, "gradient_steps is -2; expected a whole number from 1, -1 for one per step, or 0"),
    ({"gradient_steps": 1.5}, r"gradient_steps is 1\.5; expected a whole number"),
    ({"train_freq": 0}, "train_freq is 0; expected a whole number from 1"),
    ({"train_freq": [0, "step"]}, "train_freq is 0; expected a whole number from 1"),
    (
        {"train_freq": (2, "day")},
        r"train_freq is \(2, 'day'\); expected a whole number, or a pair such as \[1, episode\]",
    ),
    ({"train_freq": []}, r"train_freq is \[\]; expected a whole number, or a pair"),
    ({"batch_size": 0}, "batch_size is 0; expected a whole number from 1"),
    ({"gamma": 7}, "gamma is 7; expected 0 to 1"),
    ({"tau": 7.0}, "tau is 7; expected 0 to 1"),
    ({"policy_kwargs": {"net_arch": [16, 0]}}, "net_arch is 0; expected a whole number from 1"),
    ({"policy_kwargs": {"net_arch": {"pi": [4], "qf": 8}}}, "expected a list of widths such as"),
]


@pytest.mark.parametrize(("settings", "text"), OUT_OF_RANGE)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"^CVPO: {text}|^CVPO: net_arch is .*{text}"):
        agent(Bandit(), **settings)


@pytest.mark.parametrize("algorithm", ["sac_lag", "ppo_lag", "sac", "cvpo"])
@pytest.mark.parametrize(("settings", "text"), OUT_OF_RANGE[-5:])
def test_they_are_those_of_all_learners(algorithm: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=f"^algorithm {algorithm}: .*{text}"):
        agents.new_agent(algorithm, DummyVecEnv([Bandit]), [0.4], 0, settings)


@pytest.mark.parametrize(("every", "taken"), [(3, 3), ([3, "step"], (3, "step")), ((1, "episode"), (1, "episode"))])
def test_forms_of_train_freq(every: Any, taken: Any) -> None:
    assert checked_settings("here", {"train_freq": every}) == {"train_freq": taken}
    assert agent(Bandit(), train_freq=every).train_freq.frequency == (every if isinstance(every, int) else every[0])


def test_episodes_between_updates() -> None:
    model = agent(Bandit(), train_freq=[1, "episode"], gradient_steps=-1).learn(200)
    assert model._n_updates > 100
    assert agent(Bandit(), train_freq=model.train_freq).train_freq == model.train_freq


@pytest.mark.parametrize(
    ("algorithm", "settings", "text"),
    [
        ("cvpo", {"train_freq": [1, "episode"]}, "train_freq is 1 episodes of 2 environments; expected steps"),
        ("cvpo", {"gradient_steps": 0}, "gradient_steps is 0, so nothing is learned; expected a whole number from 1"),
        ("ppo_lag", {"batch_size": 1}, "algorithm ppo_lag: `batch_size` must be .*; expected what PPOLag takes"),
        ("ppo_lag", {"n_epochs": 0}, "algorithm ppo_lag: n_epochs is 0; expected a whole number from 1"),
        ("ppo_lag", {"speed": 1}, "unexpected keyword argument 'speed'; expected keywords of PPOLag"),
    ],
)
def test_agents_by_name_are_refused_in_words(algorithm: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        agents.new_agent(algorithm, DummyVecEnv([Bandit, Bandit]), [0.4], 0, settings)


def test_faults_that_are_not_the_users_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **keywords: Any) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("megopt.rl.cvpo.CVPO._setup_model", fails)
    with pytest.raises(ValueError, match=r"^ours$"):
        agents.new_agent("cvpo", DummyVecEnv([Bandit]), [0.4], 0, {})


def test_a_device_that_is_not_there_is_no_silent_processor(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="algorithm cvpo: PyTorch cannot use device 'cuda:77'"):
        agents.new_agent("cvpo", DummyVecEnv([Bandit]), [0.4], 0, {}, device="cuda:77")
    known = agents.new_agent("cvpo", DummyVecEnv([Bandit]), [0.4], 0, {}, device="auto")
    assert known.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    path = agents.save_state(agent(Bandit()).learn(50), tmp_path / "run")
    with pytest.raises(ConfigError, match="algorithm cvpo: PyTorch cannot use device 'cuda:77'"):
        agents.load_state("cvpo", path, "cuda:77")
    assert agents.load_state("cvpo", path, "cpu").num_timesteps == 50
