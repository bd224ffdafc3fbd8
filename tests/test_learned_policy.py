"""Agents as policies: they see what they saw in the environment, name the same rows, and refuse foreign tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megopt.envs.request import RequestVectorEnv
from megopt.envs.sb3 import RequestVecEnv
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError, NotOfferedError
from megopt.policies.agent_card import AGENT_FILE, AgentCard
from megopt.policies.base import Observation
from megopt.policies.learned import Learned
from megopt.rl import agents
from megopt.system.link import LinkState

PARAMS = meg_cvpo(k_factor_db=10.0, episode_length=6)
TABLE, PROBLEM = PARAMS.table, PARAMS.problem


def checkpoint(folder: Path, algorithm: str = "cvpo", actions: str = "discrete") -> Path:
    """An agent that has learned nothing: what it does is as good a test."""
    env = RequestVecEnv(vector=RequestVectorEnv(1, params=PARAMS, actions=actions))
    small = {"policy_kwargs": {"net_arch": [8]}}
    agents.save_agent(agents.new_agent(algorithm, env, [3.0, 1800.0], 0, small), folder / AGENT_FILE)
    AgentCard.of(PARAMS, algorithm, actions, 0, 0).write(folder)
    return folder


def links(num_requests: int, seed: int = 0) -> LinkState:
    rng = np.random.default_rng(seed)
    return PARAMS.link.state(PARAMS.channel.sample_snr(rng, num_requests)[:, 0])


def test_a_learned_policy_sees_what_the_environment_shows(tmp_path: Path) -> None:
    policy = Learned(table=TABLE, problem=PROBLEM, checkpoint=checkpoint(tmp_path))
    env = RequestVectorEnv(1, params=PARAMS, autoreset_mode="Disabled")
    shown, _ = env.reset(seed=3)
    for _ in range(PARAMS.episode_length):
        link = env.link_state()
        seen = policy._seen(policy.card.snr_db(link)[0])
        assert seen == pytest.approx(shown, abs=2e-6)
        rows = policy.act(Observation(link=link))
        shown, *_ = env.step(rows)


@pytest.mark.parametrize(("algorithm", "actions"), [("cvpo", "discrete"), ("ppo", "discrete"), ("sac_lag", "box")])
def test_probabilities_are_those_of_the_rows_that_are_drawn(algorithm: str, actions: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, algorithm, actions)
    policy = Learned(table=TABLE, problem=PROBLEM, checkpoint=folder)
    link = links(2)
    shares = policy.probabilities(Observation(link=link))
    assert shares.shape == (2, len(TABLE))
    assert shares.sum(axis=1) == pytest.approx(1.0)
    seen = np.repeat(policy._seen(policy.card.snr_db(link)[0]), 4000, axis=0)
    drawn = policy._rows(agents.actions_of(policy._agent, seen, np.random.default_rng(1), is_sampled=True))
    counted = np.bincount(drawn, minlength=len(TABLE)) / len(drawn)
    assert 0.5 * np.abs(counted - shares[0]).sum() < (0.1 if actions == "discrete" else 0.3)


def test_the_same_seed_gives_the_same_rows_and_likeliest_rows_need_none(tmp_path: Path) -> None:
    folder, link = checkpoint(tmp_path), links(12)
    sampled = [Learned(table=TABLE, problem=PROBLEM, checkpoint=folder, seed=seed) for seed in (0, 0, 1)]
    rows = [policy.act(Observation(link=link)) for policy in sampled]
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    likeliest = Learned(table=TABLE, problem=PROBLEM, checkpoint=folder, is_sampled=False)
    first = likeliest.act(Observation(link=link.take(np.array([0]))))
    expected = np.argmax(
        Learned(table=TABLE, problem=PROBLEM, checkpoint=folder).probabilities(Observation(link=link)), axis=1
    )
    assert first[0] == expected[0]
    likeliest.restart()
    assert likeliest.act(Observation(link=link.take(np.array([0]))))[0] == first[0]


def test_rows_are_found_by_name_in_another_order_and_a_lacking_one_is_named(tmp_path: Path) -> None:
    folder, link = checkpoint(tmp_path), links(5)
    own = Learned(table=TABLE, problem=PROBLEM, checkpoint=folder).act(Observation(link=link))
    turned = TABLE.take(np.arange(len(TABLE))[::-1])
    other = Learned(table=turned, problem=PROBLEM, checkpoint=folder).act(Observation(link=link))
    assert [TABLE.name(row) for row in own] == [turned.name(row) for row in other]
    with pytest.raises(NotOfferedError, match="lack 1 of the agent's 90 rows, such as 'conventional: model split"):
        Learned(table=TABLE.take(np.arange(1, len(TABLE))), problem=PROBLEM, checkpoint=folder)


def test_a_link_of_known_rate_and_unknown_snr_is_read_through_the_agents_link(tmp_path: Path) -> None:
    card = AgentCard.read(checkpoint(tmp_path))
    link = links(20)
    blind = replace(link, snr=np.full(20, np.nan))
    assert card.snr_db(blind) == pytest.approx(card.snr_db(link), abs=0.01)


@pytest.mark.parametrize("text", [None, "{", '{"format": "megopt agent 0"}'])
def test_a_folder_without_an_agent_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "agent.json").write_text(text)
    with pytest.raises(ConfigError, match=r"expected (the folder of an agent|an agent of this version)"):
        Learned(table=TABLE, problem=PROBLEM, checkpoint=tmp_path)
